"""pretrained_networks: names of published networks, mirrors, loading once; train.py --resume by address."""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

import tensorflow as tf

import pretrained_networks
import train
from dnnlib import UserError, flags
from tests import http_testutil, testutil
from training.snapshots import kimg_of_snapshot

ALIAS = 'gdrive:networks/stylegan2-ffhq-config-f.pkl'
OFFICIAL = 'https://nvlabs-fi-cdn.nvidia.com/stylegan2/networks/stylegan2-ffhq-config-f.pkl'


class PretrainedTestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = folder.name
        self.cache = os.path.join(self.dir, 'cache', 'downloads')
        self.set_environment(STYLEGAN_CACHE_DIR=os.path.join(self.dir, 'cache'))
        pretrained_networks._told_licence = False

    def set_environment(self, **values):
        environment = mock.patch.dict(os.environ, values)
        environment.start()
        self.addCleanup(environment.stop)

    def serve(self, files):
        server = http_testutil.start(self, files)
        self.set_environment(STYLEGAN_NETWORKS_URL=server.url)
        return server

    def quietly(self, func, *args):
        """The result, and what was printed on stderr."""
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            return func(*args), stderr.getvalue()

    def snapshot(self):
        return pathlib.Path(testutil.golden('training', 'stylegan2_f_init.pkl')).read_bytes()


class NamesTest(PretrainedTestCase):
    def test_published_names(self):
        urls = pretrained_networks.gdrive_urls
        self.assertLen(urls, 36)
        self.assertEqual(urls[ALIAS], OFFICIAL)
        for name in ['ffhq-config-a', 'car-config-d', 'cat-config-a', 'church-config-f', 'horse-config-f']:
            self.assertIn(f'gdrive:networks/stylegan2-{name}.pkl', urls)
        self.assertNotIn('gdrive:networks/stylegan2-cat-config-b.pkl', urls)
        table2 = 'table2/stylegan2-car-config-e-Gresnet-Dorig.pkl'
        self.assertEqual(urls[f'gdrive:networks/{table2}'], os.path.dirname(OFFICIAL) + '/' + table2)
        self.assertEqual(sum('/table2/' in url for url in urls.values()), 18)

    def test_get_path_or_url(self):
        get = pretrained_networks.get_path_or_url
        self.assertEqual(get(ALIAS), OFFICIAL)
        for name in ('a.pkl', '/a/b.pkl', 'https://a/b.pkl?c=1', 'gs://a/b.pkl'):
            self.assertEqual(get(name), name)
        self.assertEqual(get('~/a.pkl'), os.path.expanduser('~/a.pkl'))
        for name in ('gdrive:networks/stylegan2-ffhq-config-g.pkl', 'gdrive:stylegan2-ffhq-config-f.pkl',
                     'gdrive:networks/stylegan2-ffhq-config-f', 'gdrive://networks/stylegan2-ffhq-config-f.pkl'):
            with self.assertRaisesRegex(UserError, f"{name}: there is no .* network; did you mean '{ALIAS}'"):
                get(name)
        with self.assertRaisesRegex(UserError, 'pretrained_networks.py list shows them all'):
            get('gdrive:')

    def test_check_path(self):
        """Neither the network nor TensorFlow is needed."""
        code = ('import sys, pretrained_networks\n'
                'for name in sys.argv[1:]: pretrained_networks.check_path(name)\n'
                'assert "tensorflow" not in sys.modules and "urllib.request" not in sys.modules')
        subprocess.run([sys.executable, '-c', code, ALIAS, 'https://nowhere.invalid/a.pkl', 'gs://a/b.pkl'],
                       cwd=testutil.ROOT, check=True)
        check = pretrained_networks.check_path
        with self.assertRaisesRegex(UserError, 'the published network is gdrive:networks/stylegan2-ffhq'):
            check('stylegan2-ffhq-config-f.pkl')
        for name in ('htps://a/b.pkl', 'https:/a/b.pkl', 'https://', 'http://[::1/a.pkl'):
            with self.assertRaisesRegex(UserError, 'expected a file, https://host/'):
                check(name)
        with self.assertRaises(FileNotFoundError):
            check('nothing.pkl')
        with self.assertRaises(IsADirectoryError):
            check(self.dir)

    def test_script(self):
        name = f'{hashlib.md5(OFFICIAL.encode()).hexdigest()}_stylegan2-ffhq-config-f.pkl'
        path = pathlib.Path(self.cache, name)
        path.parent.mkdir(parents=True)
        path.write_bytes(b'x')

        def run(*args):
            with contextlib.redirect_stdout(io.StringIO()) as stdout:
                flags.run_command(pretrained_networks.make_parser().parse_args(args))
            return stdout.getvalue().splitlines()
        lines = run('list')
        self.assertLen(lines, 36)
        self.assertEqual([line for line in lines if ' ' in line], [f'{ALIAS}  {path}'])
        self.assertEqual(run('download', f'--network={ALIAS}'), [str(path)])


class MirrorTest(PretrainedTestCase):
    def test_server(self):
        table2 = 'table2/stylegan2-car-config-e-Gskip-Dskip.pkl'
        server = self.serve({table2: b'1', 'stylegan2-ffhq-config-f.pkl': b'2'})
        alias = f'gdrive:networks/{table2}'
        path, stderr = self.quietly(pretrained_networks.local_file, alias)
        self.assertEqual(pathlib.Path(path).read_bytes(), b'1')
        self.assertRegex(stderr, r"\ANote: NVIDIA's published networks are for non-commercial use, see .*\n"
                                 r'Downloading http://127.0.0.1:\d+/table2/.*\nDownloaded .*\n\Z')
        self.assertEqual(self.quietly(pretrained_networks.local_file, alias), (path, ''))
        # The note comes once.
        _, stderr = self.quietly(pretrained_networks.local_file, ALIAS)
        self.assertRegex(stderr, r'\ADownloading ')
        self.assertLen(server.requests, 2)

    def test_a_file_of_the_official_code_comes_first(self):
        server = self.serve({})
        name = f'{hashlib.md5(OFFICIAL.encode()).hexdigest()}_stylegan2-ffhq-config-f.pkl'
        path = pathlib.Path(self.cache, name)
        path.parent.mkdir(parents=True)
        path.write_bytes(b'x')
        self.assertEqual(self.quietly(pretrained_networks.local_file, ALIAS), (str(path), ''))
        self.assertEmpty(server.requests)

    def test_directory(self):
        path = pathlib.Path(self.dir, 'stylegan2-ffhq-config-f.pkl')
        for mirror in (self.dir, pathlib.Path(self.dir).as_uri() + '/'):
            self.set_environment(STYLEGAN_NETWORKS_URL=mirror)
            with self.assertRaisesRegex(UserError, 'STYLEGAN_NETWORKS_URL is a directory that has no such'):
                pretrained_networks.check_path(ALIAS)
            path.write_bytes(b'x')
            pretrained_networks.check_path(ALIAS)
            self.assertEqual(self.quietly(pretrained_networks.local_file, ALIAS), (str(path), ''))
            path.unlink()


class LoadTest(PretrainedTestCase):
    def test_loaded_and_downloaded_once(self):
        server = self.serve({'stylegan2-ffhq-config-f.pkl': self.snapshot()})
        networks, _ = self.quietly(pretrained_networks.load_networks, ALIAS)
        self.assertEqual([network.name for network in networks], ['G', 'D', 'Gs'])
        url = server.url + 'stylegan2-ffhq-config-f.pkl'
        self.assertIs(pretrained_networks.load_network(url), networks[2])
        self.assertIs(pretrained_networks.load_networks(ALIAS)[0], networks[0])
        self.assertLen(server.requests, 1)
        local = pretrained_networks.load_network(testutil.golden('training', 'stylegan2_f_init.pkl'))
        for name in local.vars:
            self.assertAllEqual(networks[2].get_var(name), local.get_var(name))


class ResumeTest(PretrainedTestCase):
    """train.py --resume by address."""

    def arguments(self, *args):
        return train.make_parser().parse_args([*args, f'--result-dir={self.dir}/results'])

    def test_new_run(self):
        server = self.serve({'network-snapshot-000010.pkl?key=1': self.snapshot()})
        url = server.url + 'network-snapshot-000010.pkl?key=1'
        with contextlib.redirect_stdout(io.StringIO()) as stdout:
            self.assertEqual(train.run(self.arguments(f'--resume={url}', '--dry-run')), 0)
        self.assertEqual(json.loads(stdout.getvalue())['resume_pkl'], url)
        self.assertEmpty(server.requests)  # Who only looks does not download.
        (submit_config, kwargs), _ = self.quietly(train.new_run, self.arguments(f'--resume={url}'))
        self.assertEqual(pathlib.Path(kwargs['resume_pkl']).read_bytes(), self.snapshot())
        self.assertEqual(kimg_of_snapshot(kwargs['resume_pkl']), 10)
        self.assertEqual(submit_config.resume_address, url)

        mismatch = self.arguments(f'--resume={url}', '--config=stylegan-f', '--resolution=32')
        with self.assertRaisesRegex(UserError, '_network-snapshot-000010.pkl holds G_main, '):
            self.quietly(train.run, mismatch)
        self.assertLen(server.requests, 1)

    def test_alias_and_mistakes(self):
        self.serve({'stylegan2-ffhq-config-f.pkl': self.snapshot()})
        (_, kwargs), _ = self.quietly(train.new_run, self.arguments(f'--resume={ALIAS}'))
        self.assertEqual(pathlib.Path(kwargs['resume_pkl']).read_bytes(), self.snapshot())
        for what, pattern in [
            ('gdrive:networks/stylegan2-ffhq-config-g.pkl', 'no such published network; did you mean'),
            (http_testutil.refused_url() + 'a.pkl', r'cannot be reached \(Connection refused\)'),
        ]:
            with self.assertRaisesRegex(UserError, pattern):
                self.quietly(train.run, self.arguments(f'--resume={what}'))
        self.assertFalse(os.path.exists(os.path.join(self.dir, 'results')))


if __name__ == '__main__':
    tf.test.main()
