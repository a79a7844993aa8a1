"""dnnlib.util.open_url against a server on this machine that breaks off, lies, hangs and refuses."""

import concurrent.futures
import contextlib
import email.utils
import errno
import gzip
import hashlib
import io
import json
import os
import pathlib
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dnnlib import UserError, download, transfer
from dnnlib.util import make_cache_dir_path, open_url, set_cache_dir
from tests import http_testutil, testutil
from tests.http_testutil import Answer

BODY = np.random.RandomState(1).bytes(500_000)
OTHER = np.random.RandomState(2).bytes(500_000)
CODE = ('import sys\nfrom dnnlib.util import open_url\n'
        'print(open_url(sys.argv[1], sys.argv[2], return_filename=True))')


class Terminal(io.StringIO):
    def isatty(self):
        return True


class DownloadTestCase(parameterized.TestCase, tf.test.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = os.path.join(folder.name, 'cache')
        download._checked.clear()
        download._unkept.clear()

    def serve(self, *answers, name='a.pkl', **more):
        """A server for one file; sets `self.url`."""
        self.server = http_testutil.start(self, {name: list(answers), **more})
        self.url = self.server.url + name
        return self.server

    def fetch(self, url=None, **kwargs):
        """Bytes of the file, what was printed."""
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            with open_url(url or self.url, self.dir, **kwargs) as file:
                data = file.read()
        return data, stderr.getvalue()

    def fails(self, pattern, url=None, **kwargs):
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            with self.assertRaisesRegex(UserError, pattern) as caught:
                open_url(url or self.url, self.dir, **kwargs)
        self.assertNotIn('\n', str(caught.exception))
        return str(caught.exception), stderr.getvalue()

    def names(self):
        """Files in the cache, without the locks, which stay."""
        return sorted(name for name in os.listdir(self.dir) if not name.endswith('.lock'))

    def file_name(self, url=None, name='a.pkl'):
        return f'{hashlib.md5((url or self.url).encode()).hexdigest()}_{name}'


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


class TroubleTest(DownloadTestCase):
    @parameterized.named_parameters(
        ('short', dict(cut=150_000)),
        ('reset', dict(cut=150_000, reset=True)),
        ('chunked', dict(cut=150_000, chunked=True)),
        ('length_too_large', dict(length=600_000)),
    )
    def test_resumes(self, trouble):
        self.serve(Answer(BODY, **trouble), Answer(BODY, cut=100_000), BODY)
        data, stderr = self.fetch()
        self.assertEqual(data, BODY)
        ranges = self.server.ranges('a.pkl')
        if 'length' in trouble:  # Of the rest, the server says that it is none.
            return
        self.assertEqual(self.server.requests[1][1]['If-Range'], f'"{hashlib.md5(BODY).hexdigest()}"')
        self.assertLen(ranges, 3)
        if 'reset' in trouble:  # It takes away bytes that have arrived already.
            self.assertRegex(ranges[1], r'bytes=\d{2,6}-')
            return
        self.assertEqual(ranges, [None, 'bytes=150000-', 'bytes=250000-'])
        self.assertRegex(stderr, r'a.pkl: the connection (ended|broke off) after 150.0 kB.*; trying again in '
                                 r'.* s \(attempt 2 of 10\)\nResuming .* at 150.0 kB...\n')
        self.assertBetween(self.server.waits[0], 0.5, 1.5)
        self.assertBetween(self.server.waits[1], 1, 3)

    def test_nothing_to_resume_with(self):
        for name, trouble in [
            ('no ranges', dict(ranges=False)), ('no validator', dict(etag='')), ('weak', dict(etag='W/"1"')),
        ]:
            path = name.replace(' ', '') + '.pkl'
            self.serve(Answer(BODY, cut=150_000, **trouble), Answer(BODY, **trouble), name=path)
            self.assertEqual(self.fetch()[0], BODY)
            expected = 'bytes=150000-' if name == 'no ranges' else None
            self.assertEqual(self.server.ranges(path), [None, expected])

    def test_last_modified_serves_too(self):
        date = {'Last-Modified': 'Wed, 21 Oct 2015 07:28:00 GMT'}
        self.serve(Answer(BODY, cut=150_000, etag='', headers=date), Answer(BODY, etag='', headers=date))
        self.assertEqual(self.fetch()[0], BODY)
        self.assertEqual(self.server.ranges('a.pkl'), [None, 'bytes=150000-'])

    def test_the_file_changes_meanwhile(self):
        self.serve(Answer(BODY, cut=150_000), OTHER)
        self.assertEqual(self.fetch()[0], OTHER)
        self.serve(Answer(BODY, cut=150_000), Answer(b'now shorter', etag=''), name='b.pkl')
        self.assertEqual(self.fetch()[0], b'now shorter')
        # A server that ignores If-Range: other ETag, other length.
        for changed in (Answer(OTHER, etag='"x"'), Answer(OTHER[:400_000], etag='')):
            self.serve(Answer(BODY, cut=150_000), changed, name='c.pkl')
            changed.heeds_if_range = False
            self.assertEqual(self.fetch()[0], changed.body)
            self.assertEqual(self.server.ranges('c.pkl'), [None, 'bytes=150000-', None])

    @parameterized.parameters('bytes 0-499999/500000', 'bytes 150000-499999/7', 'nonsense', 'bytes 1-2')
    def test_another_part_than_asked_for(self, content_range):
        self.serve(Answer(BODY, cut=150_000), Answer(BODY, content_range=content_range), BODY)
        self.assertEqual(self.fetch()[0], BODY)
        self.assertEqual(self.server.ranges('a.pkl'), [None, 'bytes=150000-', None])

    def test_not_resumable_any_more(self):
        self.serve(Answer(BODY, cut=150_000), Answer(b'', 416), BODY)
        self.assertEqual(self.fetch()[0], BODY)
        self.assertEqual(self.server.ranges('a.pkl'), [None, 'bytes=150000-', None])

    def test_pieces_that_do_not_fit(self):
        """The server has another file under the same ETag: found by the sha256, then all of it is fetched."""
        self.serve(Answer(BODY, cut=150_000, etag='"1"'), Answer(OTHER, etag='"1"'))
        data, stderr = self.fetch(sha256=hashlib.sha256(OTHER).hexdigest())
        self.assertEqual(data, OTHER)
        self.assertRegex(stderr, 'expected a file with sha256 .* downloading all of it again')
        self.assertEqual(self.server.ranges('a.pkl'), [None, 'bytes=150000-', None])

    def test_lengths(self):
        self.serve(Answer(BODY, chunked=True))
        self.assertEqual(self.fetch()[0], BODY)
        self.serve(Answer(BODY, length='none'), name='b.pkl')
        self.assertEqual(self.fetch()[0], BODY)
        self.serve(Answer(BODY, length='many'), name='c.pkl')
        self.assertEqual(self.fetch()[0], BODY)
        self.serve(b'', name='d.pkl')
        self.fails(r'the server sent an empty file \(3 attempts\)')
        self.serve(Answer(BODY, length=600_000, ranges=False), name='e.pkl')
        self.fails(r'e.pkl: the connection ended after 500.0 kB of 600.0 kB \(10 attempts\)\. If you have')
        self.assertEqual(self.server.count('e.pkl'), 10)
        self.assertLessEqual(max(self.server.waits), 90)

    def test_a_connection_that_breaks_every_megabyte(self):
        body = BODY * 30
        self.serve(Answer(body, cut=1_200_000))
        self.assertEqual(self.fetch(num_attempts=2)[0], body)
        self.assertEqual(self.server.count('a.pkl'), 13)

    def test_busy(self):
        date = email.utils.formatdate(time.time() + 100)
        self.serve(Answer(b'busy', 503), Answer(b'', 429, {'Retry-After': '7'}),
                   Answer(b'', 503, {'Retry-After': date}), Answer(b'', 500, {'Retry-After': 'soon'}), BODY)
        data, stderr = self.fetch()
        self.assertEqual(data, BODY)
        self.assertBetween(self.server.waits[0], 0.5, 1.5)
        self.assertEqual(self.server.waits[1], 7)
        self.assertBetween(self.server.waits[2], 90, 100)
        self.assertBetween(self.server.waits[3], 4, 12)
        self.assertIn('answers 429 Too Many Requests; trying again in 7.0 s (attempt 3 of 10)', stderr)
        self.serve(Answer(b'', 429, {'Retry-After': '3600'}), name='b.pkl')
        self.fails('429 Too Many Requests and asks to come back in 1h 00m 00s')
        self.assertEqual((self.server.count('b.pkl'), self.server.waits), (1, []))
        self.serve(Answer(b'', 503), name='c.pkl')
        self.fails(r'c.pkl: the server answers 503 Service Unavailable \(3 attempts\)', num_attempts=3)
        self.assertEqual(self.server.count('c.pkl'), 3)

    @parameterized.parameters(
        (404, 'there is no such file on the server'), (410, 'the file is gone'), (403, 'refuses access'),
        (401, 'asks for a password'), (407, 'the proxy asks'), (418, 'does not send it'),
        (204, 'the server answers with'), (304, 'redirects in a way'))
    def test_refused(self, status, text):
        self.serve(Answer(b'' if status in (204, 304) else BODY, status))
        message, stderr = self.fails(f'a.pkl: .*{text}.*{status}')
        self.assertEqual((self.server.count('a.pkl'), stderr), (1, ''))
        self.assertIn(f'put it at {os.path.join(self.dir, self.file_name())}', message)

    def test_hanging(self):
        with mock.patch.object(transfer, 'TIMEOUT', 0.1):
            self.serve(Answer(BODY, hang=1.0), BODY)
            data, stderr = self.fetch()
            self.assertEqual(data, BODY)
            self.assertIn('no answer for 0.1 s', stderr)
            self.assertEqual(self.server.ranges('a.pkl'), [None, 'bytes=250000-'])
            with socket.create_server(('127.0.0.1', 0)) as silent:  # Accepts, never answers.
                url = f'http://127.0.0.1:{silent.getsockname()[1]}/a.pkl'
                self.fails(r'no answer for 0.1 s \(2 attempts\)', url, num_attempts=2)

    def test_offline(self):
        self.serve(BODY)
        url = http_testutil.refused_url() + 'a.pkl'
        message, stderr = self.fails(r'cannot be reached \(Connection refused\) \(3 attempts\)', url)
        self.assertEqual(stderr.count('\n'), 2)
        path = os.path.join(self.dir, self.file_name(url))
        self.assertTrue(message.endswith(f'If you have the file: pass its path instead, or put it at {path}'))
        pathlib.Path(path).write_bytes(OTHER)
        self.assertEqual(self.fetch(url), (OTHER, ''))
        with mock.patch.object(socket, 'getaddrinfo', side_effect=socket.gaierror(-2, 'unknown')):
            self.fails(r'host nowhere.invalid is not known here \(no network\?\)', 'https://nowhere.invalid/a')

    def test_addresses_that_lead_nowhere(self):
        self.serve(BODY)
        for host in ('127.0.0.1:99999', '127.0.0.1:port', 'x' * 70 + 'é.invalid', 'a b'):
            self.fails('not an address that can be reached', f'http://{host}/a.pkl')

    def test_answers_that_are_none(self):
        with socket.create_server(('127.0.0.1', 0)) as server:
            url = f'http://127.0.0.1:{server.getsockname()[1]}/a.pkl'
            self.serve()
            answers = [b'', b'SSH-2.0-OpenSSH\r\n', b'HTTP/1.1 200 OK\r\n' + b'A: b\r\n' * 200 + b'\r\n']

            def serve():
                for text in answers:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(1 << 16)
                        connection.sendall(text)
            thread = threading.Thread(target=serve)
            thread.start()
            self.fails(r'the answer of the server is not understood \(HTTPException\) \(3 attempts\)', url,
                       num_attempts=3)
            thread.join()

    def test_pages_instead_of_files(self):
        html = {'Content-Type': 'text/html; charset=utf-8'}
        page = b'<!DOCTYPE html><html><head><title>%s</title></head><body>%s</body></html>'
        for text, headers, pattern in [
            (page % (b'Google Drive - Quota exceeded', b''), html, 'the quota for downloads'),
            (page % (b'Google Drive', b'cannot scan it for viruses'), {}, 'it asks for a confirmation'),
            (page % (b'Log\x1b[2J in', b''), html, "its title is 'Log \\[2J in'"),
            (b'\n<div>Sorry', html, 'it has no title'),
        ]:
            self.serve(Answer(text, headers=headers))
            self.fails(f'a.pkl: the server sent a web page instead of the file: {pattern}')
            self.assertEqual(self.server.count('a.pkl'), 1)
            self.assertEqual(self.names(), [])
        for name in ('a.html', 'page'):  # Who asks for a page gets one.
            self.serve(Answer(text, headers=html), name=name)
            self.assertEqual(self.fetch()[0], text)
        self.serve(Answer(BODY, headers=html))  # Some servers say so of everything.
        self.assertEqual(self.fetch()[0], BODY)

    def test_redirections(self):
        def to(address):
            return Answer(b'', 302, {'Location': address})
        self.serve(Answer(b'', 308, {'Location': '/b c?d=1'}))
        self.server.files['b%20c?d=1'] = [Answer(BODY, cut=150_000), BODY]
        self.assertEqual(self.fetch()[0], BODY)
        self.assertEqual(self.server.ranges('b%20c?d=1'), [None, 'bytes=150000-'])
        self.serve(to('/l.pkl?2'), **{'l.pkl?2': to('/l.pkl')}, name='l.pkl')
        self.fails('redirects in a way that cannot be followed')
        for address in ('file:///etc/passwd', 'ftp://127.0.0.1/a', 'data:,a'):
            self.serve(to(address), name='x.pkl')
            self.fails('the server redirects from http to .*: not followed|in a way that cannot be followed')
        request = mock.Mock(type='https', full_url='https://a/b')
        with self.assertRaisesRegex(transfer._RedirectError, 'from https to http://a/b.*: not followed'):
            transfer._Redirects().redirect_request(request, None, 302, '', {}, 'http://a/b?token=secret')

    def test_encodings(self):
        packed = gzip.compress(BODY[:250_000]) + gzip.compress(BODY[250_000:])
        headers = {'Content-Encoding': 'gzip'}
        self.serve(Answer(packed, cut=150_000, headers=headers), Answer(packed, headers=headers))
        self.assertEqual(self.fetch(sha256=hashlib.sha256(BODY).hexdigest())[0], BODY)
        self.assertEqual(self.server.ranges('a.pkl'), [None, 'bytes=150000-'])
        self.assertEqual(self.server.requests[0][1]['Accept-Encoding'], 'identity')
        self.assertEqual(self.fetch(), (BODY, ''))
        self.serve(Answer(packed, headers=headers), name='a.pkl.gz')
        self.assertEqual(self.fetch()[0], packed)
        for damaged in (packed[:-20], b'no gzip', packed[:200] + b'\0' * 500 + packed[700:]):
            self.serve(Answer(damaged, headers=headers), name='b.pkl')
            self.fails('arrived damaged')
        self.serve(Answer(BODY, headers={'Content-Encoding': 'br'}), name='c.pkl')
        self.fails('packs the file as br')

    def test_secrets_stay_secret(self):
        self.serve(Answer(BODY, cut=10), Answer(BODY, 302, {'Location': '/b.pkl?key=secret'}),
                   **{'b.pkl?key=secret': [Answer(b'', 503), BODY], 'd.pkl?key=secret': Answer(b'', 404)})
        self.server.files['a.pkl?key=secret'] = self.server.files.pop('a.pkl')
        url = self.url.replace('://', '://user:secr%65t@') + '?key=secret'
        data, stderr = self.fetch(url)
        self.assertEqual(data, BODY)
        self.assertIn('/a.pkl?…', stderr)
        message, more = self.fails('no such file', self.server.url + 'd.pkl?key=secret')
        record = pathlib.Path(self.dir, '.' + self.file_name(url) + '.json').read_text()
        for text in (stderr, message, more, record):
            self.assertNotIn('secr', text)
            self.assertNotIn('user', text)
        sent = [headers.get('Authorization') for _, headers in self.server.requests]
        self.assertEqual(sent[:3], ['Basic dXNlcjpzZWNyZXQ=', 'Basic dXNlcjpzZWNyZXQ=', None])

    def test_proxy(self):
        self.serve(BODY)
        self.server.files['http://network.invalid/p.pkl'] = OTHER
        with mock.patch.dict(os.environ, http_proxy=self.server.url, no_proxy='', NO_PROXY=''):
            self.assertEqual(self.fetch('http://network.invalid/p.pkl')[0], OTHER)

    def test_terminal(self):
        self.serve(Answer(BODY, cut=150_000), BODY)
        with contextlib.redirect_stderr(Terminal()) as stderr:
            open_url(self.url, self.dir, return_filename=True)
        self.assertRegex(stderr.getvalue(), r'\ra.pkl:  30%\|.* 150k/500k')

    def test_lines_of_progress(self):
        self.serve(BODY)
        with mock.patch.object(transfer, 'REPORT_INTERVAL', 0.0):
            _, stderr = self.fetch()
        self.assertRegex(stderr, r'\n  \d+%, 0s left\n')


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
