"""What the tests of downloads share: a server that answers as told, and a cache of their own."""

import contextlib
import hashlib
import io
import os
import tempfile

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dnnlib import UserError, download
from dnnlib.util import open_url
from tests import http_testutil

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
