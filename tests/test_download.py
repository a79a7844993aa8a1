"""dnnlib.util.open_url: the cache, the disk below it, and several processes at once."""

import concurrent.futures
import contextlib
import errno
import hashlib
import io
import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dnnlib import transfer
from dnnlib.util import make_cache_dir_path, open_url, set_cache_dir
from tests import http_testutil, testutil
from tests.download_testutil import BODY, CODE, OTHER, DownloadTestCase
from tests.http_testutil import Answer


class CacheTest(DownloadTestCase):
    def test_once(self):
        self.serve(BODY)
        data, stderr = self.fetch()
        self.assertEqual(data, BODY)
        self.assertRegex(stderr, r'\ADownloading http://127.0.0.1:\d+/a.pkl \(500.0 kB\)...\n'
                                 r'Downloaded 500.0 kB in 0s to .*_a.pkl\n\Z')
        name = self.file_name()
        self.assertEqual(self.names(), [f'.{name}.json', name])
        record = json.loads(pathlib.Path(self.dir, f'.{name}.json').read_text())
        self.assertEqual(record['sha256'], hashlib.sha256(BODY).hexdigest())
        self.assertEqual((record['url'], record['file'], record['size']), (self.url, name, len(BODY)))
        self.assertEqual(self.fetch(), (BODY, ''))
        self.assertEqual(open_url(self.url, self.dir, return_filename=True), os.path.join(self.dir, name))
        self.assertEqual(self.server.count('a.pkl'), 1)

    def test_the_file_is_like_any_other(self):
        value = {'a': np.arange(5), 'b': 'text'}
        self.serve(pickle.dumps(value) + BODY)
        for cache in (True, False):
            with contextlib.redirect_stderr(io.StringIO()), open_url(self.url, self.dir, cache=cache) as file:
                self.assertTrue(file.seekable())
                self.assertAllEqual(pickle.load(file)['a'], value['a'])
                self.assertEqual(file.read(), BODY)
                self.assertEqual(file.seek(1), 1)

    def test_without_cache(self):
        self.serve(Answer(BODY, cut=200_000), BODY)
        data, _ = self.fetch(cache=False)
        self.assertEqual(data, BODY)
        self.assertFalse(os.path.exists(self.dir))
        self.assertEqual(self.server.ranges('a.pkl'), [None, 'bytes=200000-'])
        self.fails('return_filename goes with cache=True', cache=False, return_filename=True)

    def test_official_positions_of_arguments(self):
        self.serve(BODY)
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            path = open_url(self.url, self.dir, 1, False, True, True)
        self.assertEqual((pathlib.Path(path).read_bytes(), stderr.getvalue()), (BODY, ''))

    def test_directory_by_default(self):
        self.serve(BODY)
        set_cache_dir(self.dir)
        self.addCleanup(set_cache_dir, None)
        path = open_url(self.url, verbose=False, return_filename=True)
        self.assertEqual(path, make_cache_dir_path('downloads', self.file_name()))

    def test_files_of_the_official_code_and_by_hand(self):
        self.serve(BODY)
        os.makedirs(self.dir)
        for name in ('a.pkl', 'karras2019.pkl'):
            path = pathlib.Path(self.dir, self.file_name(name=name))
            path.write_bytes(name.encode())
            self.assertEqual(self.fetch(), (name.encode(), ''))
            path.unlink()
        path.touch()  # An empty one is what a crash left.
        self.assertEqual(self.fetch()[0], BODY)
        self.assertEqual(self.server.count('a.pkl'), 1)

    @parameterized.parameters(b'short', b'\0' * len(BODY))
    def test_a_changed_file_is_downloaded_again(self, damage):
        self.serve(BODY)
        self.fetch()
        path = pathlib.Path(self.dir, self.file_name())
        path.write_bytes(damage)
        data, stderr = self.fetch()
        self.assertEqual(data, BODY)
        self.assertRegex(stderr, r'\A.*_a.pkl has changed since it was downloaded \(.* instead of .*\): '
                                 r'downloading it again\nDownloading ')
        self.assertEqual(self.fetch(), (BODY, ''))

    @parameterized.parameters('', '[1]', '{"sha256": 5, "file": []}', '[' * 100_000)
    def test_damaged_record(self, text):
        self.serve(BODY)
        self.fetch()
        pathlib.Path(self.dir, f'.{self.file_name()}.json').write_text(text)
        self.assertEqual(self.fetch(), (BODY, ''))

    def test_sha256(self):
        self.serve(BODY)
        right, wrong = hashlib.sha256(BODY).hexdigest(), hashlib.sha256(OTHER).hexdigest()
        message, _ = self.fails(f'expected a file with sha256 {wrong}, received {right}', sha256=wrong)
        self.assertEqual(self.server.count('a.pkl'), 1)
        self.assertEqual(self.names(), [])
        self.assertEqual(self.fetch(sha256=right.upper())[0], BODY)
        self.assertEqual(self.fetch(sha256=right)[0], BODY)
        self.assertEqual(self.server.count('a.pkl'), 2)
        _, stderr = self.fails('expected a file', sha256=wrong)
        self.assertRegex(stderr, 'is not the file asked for')
        self.assertEqual(self.fetch(sha256=right)[0], BODY)  # The one that was there has stayed.
        self.fails('64 hexadecimal digits', sha256='abc')
        self.fails('num_attempts', num_attempts=0)

    def test_names(self):
        self.serve(BODY)
        long = 'x' * 300
        for address, name, headers in [
            ('networks/stylegan2-ffhq-config-f.pkl?token=secret', 'stylegan2-ffhq-config-f.pkl', {}),
            ('uc?id=5', 'karras.pkl', {'Content-Disposition': 'attachment; filename="karras.pkl"'}),
            ('b.pkl', 'b.pkl', {'Content-Disposition': 'attachment; filename="../../c.pkl"'}),
            ('download', 'etc_passwd', {'Content-Disposition': "x; filename*=UTF-8''%2e%2e%2Fetc%20passwd"}),
            ('', 'download', {}),
            ('%2e%2e%2fx%00%1b.pkl', 'x__.pkl', {}),
            (long + '.pkl', 'x' * 146 + '.pkl', {}),
        ]:
            self.server.files[address] = Answer(address.encode() or b'root', headers=headers)
            url = self.server.url + address
            path = open_url(url, self.dir, verbose=False, return_filename=True)
            self.assertEqual(os.path.basename(path), self.file_name(url, name))
            self.assertEqual(open_url(url, self.dir, return_filename=True), path)
            self.assertEqual(pathlib.Path(path).read_bytes(), address.encode() or b'root')

    def test_local_files(self):
        path = os.path.join(self.get_temp_dir(), 'a b.pkl')
        pathlib.Path(path).write_bytes(BODY)
        for address in (path, pathlib.Path(path), pathlib.Path(path).as_uri(), 'file://localhost' + path):
            self.assertEqual(self.fetch(address), (BODY, ''))
            self.assertEqual(open_url(address, return_filename=True), path)
        with mock.patch.dict(os.environ, HOME=os.path.dirname(path)):
            self.assertEqual(self.fetch('~/a b.pkl')[0], BODY)
        self.fails('expected a file with sha256', path, sha256='0' * 64)
        with self.assertRaises(FileNotFoundError):
            open_url(path + 'x')
        self.fails('expected file:///directory/name', 'file://host/a.pkl')
        for address in ('http://', 'https://[::1', 'http:/a.pkl'):
            self.fails('expected an address such as', address)


class DiskTest(DownloadTestCase):
    def test_cache_that_cannot_be_written(self):
        self.serve(BODY)
        pathlib.Path(self.dir).write_text('a file')
        blocked = os.path.join(self.dir, 'cache')
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            path = open_url(self.url, blocked, return_filename=True)
            with open_url(self.url, blocked) as file:
                self.assertEqual(file.name, path)
                self.assertEqual(file.read(), BODY)
        self.assertRegex(stderr.getvalue(), r'\AWarning: .*cache cannot be written \(Not a directory\): .* '
                                            r'STYLEGAN_CACHE_DIR names another directory\n')
        self.assertEqual(self.server.count('a.pkl'), 1)
        self.dir = blocked
        message, _ = self.fails('no such file on the server', self.server.url + 'b.pkl')
        self.assertNotIn('put it at', message)  # Not in a directory that will be gone.
        self.dir = 'gs://bucket/cache'
        self.fails('expected a local directory for the cache')

    def test_no_directory_at_all(self):
        self.serve(BODY)
        pathlib.Path(self.dir).write_text('a file')
        self.dir += '/cache'
        error = FileNotFoundError(errno.ENOENT, 'No usable temporary directory found')
        with mock.patch.object(tempfile, 'mkdtemp', side_effect=error), \
                mock.patch.object(tempfile, 'TemporaryFile', side_effect=error):
            self.assertEqual(self.fetch()[0], BODY)
            self.fails('there is no directory to keep it in', return_filename=True)

    def test_read_only_cache_with_the_file(self):
        self.serve(BODY)
        self.fetch()
        with mock.patch.object(os, 'makedirs', side_effect=PermissionError(errno.EACCES, 'no')):
            self.assertEqual(self.fetch(), (BODY, ''))

    def test_full_disk(self):
        self.serve(BODY)
        usage = mock.Mock(free=1000)
        with mock.patch.object(transfer.shutil, 'disk_usage', return_value=usage):
            self.fails(r'no space left in .*cache \(500.0 kB are needed, 1.0 kB are free\)\. Make room')
        self.serve(Answer(BODY, chunked=True), name='b.pkl')
        code = ('import resource, signal, sys\nfrom dnnlib import flags\n'
                'signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n'
                'resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n' + CODE)
        done = subprocess.run([sys.executable, '-c', code, self.url, self.dir], cwd=testutil.ROOT,
                              capture_output=True, text=True, env=http_testutil.environment())
        self.assertRegex(done.stderr, r'b.pkl: no space left in .*cache \(File too large\)\. Make')
        part = pathlib.Path(self.dir, f'.{self.file_name(name="b.pkl")}.part')
        self.assertEqual(part.read_bytes(), BODY[:200_000])
        self.assertEqual(self.fetch()[0], BODY)
        self.assertEqual(self.server.ranges('b.pkl')[-1], 'bytes=200000-')

    def test_no_locks(self):
        self.serve(BODY)
        with mock.patch('fcntl.flock', side_effect=OSError(errno.ENOLCK, 'no locks')):
            self.assertEqual(self.fetch()[0], BODY)
            self.assertEqual(self.names(), [f'.{self.file_name()}.json', self.file_name()])
            self.serve(Answer(BODY, cut=1000), name='b.pkl')
            self.fails('ended after', num_attempts=1)
            self.serve(Answer(BODY, piece_pause=0.02), name='c.pkl')  # Two at once do not mix.
            with concurrent.futures.ThreadPoolExecutor() as pool:
                results = pool.map(lambda _: open_url(self.url, self.dir, verbose=False).read(), range(2))
                self.assertEqual(list(results), [BODY, BODY])
            self.assertEqual(self.server.count('c.pkl'), 2)
        self.assertFalse([name for name in self.names() if 'part' in name])


class ProcessTest(DownloadTestCase):
    def start_process(self):
        return subprocess.Popen(
            [sys.executable, '-c', CODE, self.url, self.dir], cwd=testutil.ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=http_testutil.environment())

    def test_two_processes_one_request(self):
        self.serve(Answer(BODY, piece_pause=0.1))
        processes = [self.start_process() for _ in range(3)]
        results = [process.communicate(timeout=60) for process in processes]
        self.assertEqual({stdout for stdout, _ in results}, {os.path.join(self.dir, self.file_name()) + '\n'})
        self.assertEqual(self.server.count('a.pkl'), 1)
        self.assertIn('Waiting for another process that downloads', ''.join(stderr for _, stderr in results))

    def test_threads(self):
        self.serve(Answer(BODY, piece_pause=0.02))
        with concurrent.futures.ThreadPoolExecutor() as pool:
            paths = list(pool.map(lambda _: open_url(self.url, self.dir, verbose=False, return_filename=True),
                                  range(4)))
        self.assertLen(set(paths), 1)
        self.assertEqual(self.server.count('a.pkl'), 1)

    def test_killed(self):
        self.serve(Answer(BODY, piece_pause=0.2), BODY)
        process = self.start_process()
        part = os.path.join(self.dir, f'.{self.file_name()}.part')
        deadline = time.monotonic() + 60
        while not (os.path.exists(part) and os.path.getsize(part) >= 100_000):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        self.assertLen([name for name in self.names() if name.startswith('.')], 2)
        arrived = os.path.getsize(part)
        data, stderr = self.fetch()
        self.assertEqual(data, BODY)
        self.assertRegex(stderr, r'\AResuming ')
        self.assertEqual(self.server.ranges('a.pkl'), [None, f'bytes={arrived}-'])
        self.assertEqual(self.names(), [f'.{self.file_name()}.json', self.file_name()])

    @parameterized.parameters('missing', 'junk', 'other total', 'longer')
    def test_beginning_of_unknown_origin(self, kind):
        """What another process left is not trusted without the state that belongs to it."""
        self.serve(BODY)
        os.makedirs(self.dir)
        part = pathlib.Path(self.dir, f'.{self.file_name()}.part')
        part.write_bytes(OTHER[:100_000])
        state = dict(validator=f'"{hashlib.md5(BODY).hexdigest()}"', total=len(BODY))
        if kind == 'other total':
            state['total'] = len(BODY) + 1
        elif kind == 'longer':
            part.write_bytes(OTHER + OTHER)
        if kind != 'missing':
            pathlib.Path(f'{part}.json').write_text('junk' if kind == 'junk' else json.dumps(state))
        self.assertEqual(self.fetch()[0], BODY)


if __name__ == '__main__':
    tf.test.main()
