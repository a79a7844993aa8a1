"""Locks between processes."""

import os
import subprocess
import sys
import tempfile
import time

import tensorflow as tf

from dnnlib.file_lock import LockedError, file_lock, locks_work
from tests import testutil


class FileLockTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.dir = tempfile.mkdtemp(dir=self.get_temp_dir())
        self.path = os.path.join(self.dir, 'x.lock')

    def test_held_once(self):
        told = []
        for path in (self.path, self.dir):  # A file, a directory.
            with file_lock(path):
                begin = time.monotonic()
                with self.assertRaisesRegex(LockedError, 'another process holds') as caught:
                    with file_lock(path, 0.3, lambda: told.append(1)):
                        self.fail('held twice')
                self.assertEqual(caught.exception.path, path)
                self.assertGreaterEqual(time.monotonic() - begin, 0.3)
                with self.assertRaises(LockedError), file_lock(path):
                    self.fail('held twice')
            with file_lock(path, on_wait=lambda: told.append(2)):
                pass
        self.assertEqual(told, [1, 1])

    def test_whether_locks_work(self):
        with file_lock(self.path):
            self.assertTrue(locks_work(self.path))
        self.assertFalse(locks_work(self.path))  # Nobody holds it.
        self.assertFalse(locks_work(self.path + '.none'))

    def test_an_exception_frees_it(self):
        with self.assertRaises(KeyError), file_lock(self.path):
            raise KeyError
        with file_lock(self.path):
            pass

    def test_processes_take_turns(self):
        code = ('import sys; from dnnlib.file_lock import file_lock\n'
                'for _ in range(20):\n'
                '    with file_lock(sys.argv[1] + ".lock", 60):\n'
                '        with open(sys.argv[1], "r+") as file:\n'
                '            count = int(file.read()); file.seek(0); file.write(str(count + 1))\n')
        counter = os.path.join(self.dir, 'count')
        with open(counter, 'w') as file:
            file.write('0')
        processes = [subprocess.Popen([sys.executable, '-c', code, counter], cwd=testutil.ROOT)
                     for _ in range(4)]
        self.assertEqual([process.wait(timeout=60) for process in processes], [0] * 4)
        with open(counter) as file:
            self.assertEqual(file.read(), '80')


if __name__ == '__main__':
    tf.test.main()
