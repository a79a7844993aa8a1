"""dnnlib.util: dictionaries, times, names of functions, atomic files, the console log."""

import contextlib
import copy
import io
import json
import os
import pickle
import stat
import subprocess
import sys
import tempfile
import textwrap

import tensorflow as tf
from absl.testing import parameterized

import dnnlib
from dnnlib import util
from tests import testutil


def make_temp_dir(test):
    folder = tempfile.TemporaryDirectory()
    test.addCleanup(folder.cleanup)
    return os.path.realpath(folder.name)


def run_python(code, *args):
    """Exit status of a program in a process of its own."""
    command = [sys.executable, '-c', textwrap.dedent(code), *args]
    return subprocess.run(command, cwd=testutil.ROOT, stdout=subprocess.DEVNULL, timeout=60).returncode


def module_level_function(*args, **kwargs):
    return args, kwargs


class EasyDictTest(tf.test.TestCase):
    def test_attributes_are_items(self):
        d = dnnlib.EasyDict(a=1)
        d.b = 2
        d['c'] = 3
        self.assertEqual(dict(d), {'a': 1, 'b': 2, 'c': 3})
        self.assertEqual((d.a, d['b'], d.c), (1, 2, 3))
        del d.a
        self.assertNotIn('a', d)

    def test_missing(self):
        d = dnnlib.EasyDict()
        with self.assertRaisesRegex(AttributeError, "'nothing'"):
            _ = d.nothing
        with self.assertRaises(AttributeError):
            del d.nothing
        self.assertFalse(hasattr(d, 'nothing'))
        self.assertEqual(getattr(d, 'nothing', 7), 7)

    def test_pickle_and_copy(self):
        d = dnnlib.EasyDict(a=dnnlib.EasyDict(b=[1]))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            other = pickle.loads(pickle.dumps(d, protocol))
            self.assertIsInstance(other.a, dnnlib.EasyDict)
            self.assertEqual(other, d)
        other = copy.deepcopy(d)
        other.a.b.append(2)
        self.assertEqual(d.a.b, [1])
        self.assertEqual(json.loads(json.dumps(d)), {'a': {'b': [1]}})


class FormatTest(parameterized.TestCase, tf.test.TestCase):
    @parameterized.parameters(
        (0, '0s', '0s'), (42, '42s', '42s'), (59.4, '59s', '59s'), (59.6, '1m 00s', '1m 00s'),
        (185, '3m 05s', '3m 05s'), (3723, '1h 02m 03s', '1h 02m'), (86399.7, '1d 00h 00m', '1d 00h'),
        (183899, '2d 03h 04m', '2d 03h'), (-42, '-42s', '-42s'), (-0.2, '0s', '0s'),
        (float('nan'), '?', '?'), (float('inf'), '?', '?'),
    )
    def test_format_time(self, seconds, full, brief):
        self.assertEqual(util.format_time(seconds), full)
        self.assertEqual(util.format_time_brief(seconds), brief)

    @parameterized.parameters(
        ('http://x.org/a.pkl', True), ('https://localhost:80/a', True), ('x.pkl', False), ('gs://b/a', False),
        ('http://', False), ('C:\\x.pkl', False), ('file:///a.pkl', False), (None, False), (3, False),
        ('http://[bad', False),
    )
    def test_is_url(self, text, expected):
        self.assertEqual(util.is_url(text), expected)

    def test_paths(self):
        self.assertTrue(util.is_url('file:///a.pkl', allow_file_urls=True))
        self.assertTrue(util.is_remote_path('gs://bucket/a'))
        self.assertFalse(util.is_remote_path('/a/b'))
        self.assertFalse(util.is_remote_path('C:\\a'))


class ByNameTest(parameterized.TestCase, tf.test.TestCase):
    def test_finds(self):
        self.assertIs(util.get_obj_by_name('dnnlib.util.EasyDict'), util.EasyDict)
        self.assertIs(util.get_obj_by_name('dnnlib.util.EasyDict.keys'), util.EasyDict.keys)
        self.assertIs(util.get_obj_by_name('os.path.join'), os.path.join)
        self.assertIs(util.get_obj_by_name('json'), json)
        self.assertEqual(util.get_obj_by_name('np.float32').__name__, 'float32')
        self.assertEqual(util.get_module_from_obj_name('dnnlib.util.EasyDict'), (util, 'EasyDict'))

    @parameterized.parameters(
        ('dnnlib.util.EasyDikt', "dnnlib.util has no 'EasyDikt'; did you mean 'EasyDict'"),
        ('dnnlib.utill.EasyDict', "dnnlib has no 'utill'; did you mean 'util'"),
        ('dnlib.util.EasyDict', "no module 'dnlib'; did you mean 'dnnlib'"),
        ('dnnlib.util.EasyDict.kyes', "has no 'kyes'; did you mean 'keys'"),
        ('qqqqqqzzz.f', "no module 'qqqqqqzzz'$"),
        ('', "received ''"), ('a..b', 'received'), ('os.system("x")', 'received'), (None, 'received None'),
    )
    def test_missing(self, name, message):
        with self.assertRaisesRegex(dnnlib.UserError, message):
            util.get_obj_by_name(name)

    def test_errors_inside_modules_pass_through(self):
        folder = make_temp_dir(self)
        with open(os.path.join(folder, 'lacks_dependency.py'), 'w') as file:
            file.write('import no_such_dependency_at_all\n')
        with open(os.path.join(folder, 'is_broken.py'), 'w') as file:
            file.write('1 / 0\n')
        sys.path.insert(0, folder)
        self.addCleanup(sys.path.remove, folder)
        with self.assertRaisesRegex(ModuleNotFoundError, 'no_such_dependency_at_all'):
            util.get_obj_by_name('lacks_dependency.f')
        with self.assertRaises(ZeroDivisionError):
            util.get_obj_by_name('is_broken.f')

    def test_call(self):
        name = util.get_top_level_function_name(module_level_function)
        self.assertEqual(name, f'{__name__}.module_level_function')
        self.assertEqual(util.call_func_by_name(1, func_name=name, b=2), ((1,), {'b': 2}))
        for bad in (lambda: 0, self.test_call, 3):
            with self.assertRaises(dnnlib.UserError):
                util.get_top_level_function_name(bad)
        with self.assertRaisesRegex(dnnlib.UserError, 'func_name'):
            util.call_func_by_name(1)
        with self.assertRaisesRegex(dnnlib.UserError, 'expected a function'):
            util.call_func_by_name(func_name='os.sep')

    def test_import_is_free_of_tensorflow(self):
        status = run_python('import dnnlib, dnnlib.flags, sys; sys.exit("tensorflow" in sys.modules)')
        self.assertEqual(status, 0)


class AtomicWriteTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = make_temp_dir(self)
        self.path = os.path.join(self.folder, 'file.bin')

    def read(self):
        with open(self.path, 'rb') as file:
            return file.read()

    def test_appears_when_whole(self):
        with util.atomic_write(self.path) as file:
            file.write(b'one')
            file.flush()
            self.assertFalse(os.path.exists(self.path))
            name, = os.listdir(self.folder)
            self.assertRegex(name, rf'^\.file\.bin\.tmp-{os.getpid()}-[0-9a-f]+$')
        self.assertEqual(self.read(), b'one')
        with util.atomic_write(self.path, 'w') as file:
            file.write('zwölf\n')
        self.assertEqual(self.read(), 'zwölf\n'.encode())
        self.assertEqual(os.listdir(self.folder), ['file.bin'])

    def test_failure_leaves_the_old_file(self):
        with util.atomic_write(self.path) as file:
            file.write(b'old')
        for error in (RuntimeError, KeyboardInterrupt, OSError):
            with self.assertRaises(error), util.atomic_write(self.path) as file:
                file.write(b'new')
                raise error
            self.assertEqual(self.read(), b'old')
            self.assertEqual(os.listdir(self.folder), ['file.bin'])

    def test_killed_process_leaves_the_old_file(self):
        with util.atomic_write(self.path) as file:
            file.write(b'old')
        run_python("""
            import os, sys, dnnlib
            with dnnlib.util.atomic_write(sys.argv[1]) as file:
                file.write(b'new')
                os._exit(9)
        """, self.path)
        self.assertEqual(self.read(), b'old')

    def test_errors(self):
        with self.assertRaises(FileNotFoundError), util.atomic_write(os.path.join(self.folder, 'no', 'x')):
            pass
        with self.assertRaisesRegex(dnnlib.UserError, "received 'a'"), util.atomic_write(self.path, 'a'):
            pass
        os.mkdir(self.path)
        with self.assertRaises(OSError), util.atomic_write(self.path) as file:
            file.write(b'x')
        self.assertEqual(os.listdir(self.folder), ['file.bin'])

    def test_keeps_permissions_and_links(self):
        with util.atomic_write(self.path) as file:
            file.write(b'old')
        os.chmod(self.path, 0o640)
        link = os.path.join(self.folder, 'link')
        os.symlink('file.bin', link)
        with util.atomic_write(link) as file:
            file.write(b'new')
        self.assertTrue(os.path.islink(link))
        self.assertEqual(self.read(), b'new')
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o640)
        with util.atomic_write(os.devnull) as file:
            file.write(b'x')
        self.assertTrue(stat.S_ISCHR(os.stat(os.devnull).st_mode))

    def test_long_name(self):
        self.path = os.path.join(self.folder, 'x' * 255)
        with util.atomic_write(self.path) as file:
            file.write(b'1')
        self.assertEqual(self.read(), b'1')

    def test_remote(self):
        # TensorFlow's in-memory file system stands for gs://.
        path = 'ram://folder/file.bin'
        for content in (b'one', b'two'):
            with util.atomic_write(path) as file:
                file.write(content)
            self.assertEqual(tf.io.gfile.GFile(path, 'rb').read(), content)
        with self.assertRaises(RuntimeError), util.atomic_write(path) as file:
            file.write(b'three')
            raise RuntimeError
        self.assertEqual(tf.io.gfile.GFile(path, 'rb').read(), b'two')
        self.assertEqual(tf.io.gfile.glob('ram://folder/.*tmp*'), [])


class CacheDirTest(tf.test.TestCase):
    def test_precedence(self):
        env = {'STYLEGAN_CACHE_DIR': '/s', 'DNNLIB_CACHE_DIR': '/d', 'XDG_CACHE_HOME': '/x', 'HOME': '/h'}
        with tf.compat.v1.test.mock.patch.dict(os.environ, env):
            util.set_cache_dir('/set')
            self.addCleanup(util.set_cache_dir, None)
            self.assertEqual(util.make_cache_dir_path('a', 'b'), '/set/a/b')
            util.set_cache_dir(None)
            self.assertEqual(util.make_cache_dir_path('a'), '/s/a')
            del os.environ['STYLEGAN_CACHE_DIR']
            self.assertEqual(util.make_cache_dir_path('a'), '/d/a')
            del os.environ['DNNLIB_CACHE_DIR']
            self.assertEqual(util.make_cache_dir_path('a'), '/x/dnnlib/a')
            del os.environ['XDG_CACHE_HOME']
            self.assertIn(util.make_cache_dir_path(), ('/h/.cache/dnnlib', '/h/Library/Caches/dnnlib'))


class LoggerTest(parameterized.TestCase, tf.test.TestCase):
    def setUp(self):
        super().setUp()
        self.path = os.path.join(make_temp_dir(self), 'log.txt')
        self.out, self.err = io.StringIO(), io.StringIO()
        streams = contextlib.ExitStack()
        self.addCleanup(streams.close)
        streams.enter_context(contextlib.redirect_stdout(self.out))
        streams.enter_context(contextlib.redirect_stderr(self.err))

    def log(self, path=None):
        with open(path or self.path, encoding='utf-8', newline='') as file:
            return file.read()

    def test_tee(self):
        with util.Logger(self.path) as logger:
            print('eins zwölf')
            print('zwei', file=sys.stderr)
            logger.write('drei\n')
            logger.write_to_file('vier\n')
            self.assertEqual(self.log(), 'eins zwölf\nzwei\ndrei\nvier\n')  # At once, not at the end.
        self.assertIs(sys.stdout, self.out)
        self.assertIs(sys.stderr, self.err)
        print('later')
        self.assertEqual(self.log(), 'eins zwölf\nzwei\ndrei\nvier\n')
        self.assertEqual(self.out.getvalue(), 'eins zwölf\ndrei\nlater\n')
        self.assertEqual(self.err.getvalue(), 'zwei\n')

    def test_modes(self):
        for mode, expected in (('w', 'x\n'), ('a', 'x\nx\n'), ('w', 'x\n')):
            with util.Logger(self.path, file_mode=mode):
                print('x')
            self.assertEqual(self.log(), expected)

    def test_restores_after_an_exception_and_closes_twice(self):
        with self.assertRaises(RuntimeError), util.Logger(self.path) as logger:
            raise RuntimeError
        logger.close()
        self.assertIs(sys.stdout, self.out)

    def test_nested(self):
        inner = self.path + '.inner'
        with util.Logger(self.path):
            outer_stream = sys.stdout
            with util.Logger(inner):
                print('both')
            self.assertIs(sys.stdout, outer_stream)
            print('outer')
        self.assertEqual(self.log(), 'both\nouter\n')
        self.assertEqual(self.log(inner), 'both\n')
        self.assertEqual(self.out.getvalue(), 'both\nouter\n')

    def test_closed_in_the_wrong_order(self):
        outer, inner = util.Logger(self.path), util.Logger(self.path + '.inner')
        outer.close()
        print('inner')
        inner.close()
        self.assertEqual(self.log(self.path + '.inner'), 'inner\n')
        self.assertEqual(self.log(), '')
        self.assertEqual(self.out.getvalue(), 'inner\n')

    @parameterized.parameters(
        (['\r 10%', '\r 20%', '\r100%', '\n', 'next\n'], '100%\nnext\n'),
        (['10%\r', '20%\r', 'done\n'], 'done\n'),
        (['10%\r', '20%\r'], '20%\n'),                        # Never ended: the last state stays.
        (['\r10%', '\r20%', '\r      \r', 'next\n'], 'next\n'),  # A bar that wipes itself.
        (['start', '\r10%', '\r20%\n'], 'start\n20%\n'),
        (['a\r\nb\r\n'], 'a\nb\n'),
        (['no newline'], 'no newline'),
        (['\x1b[31mred\x1b[0m\n'], 'red\n'),
        (['', '\n', '\n'], '\n\n'),
        (['one\ntwo\r', 'three\nfour\n'], 'one\nthree\nfour\n'),
    )
    def test_progress_bars(self, writes, expected):
        with util.Logger(self.path):
            for text in writes:
                sys.stdout.write(text)
        self.assertEqual(self.log().replace(' 100%', '100%'), expected)
        self.assertEqual(self.out.getvalue(), ''.join(writes))

    def test_bar_on_stderr_does_not_disturb_stdout(self):
        with util.Logger(self.path):
            for i in range(3):
                print(f'\rbar {i}', end='', file=sys.stderr)
                print(f'line {i}')
        self.assertEqual(self.log(), 'line 0\nline 1\nline 2\nbar 2\n')

    def test_streams_pass_through(self):
        self.out.isatty = lambda: True
        with util.Logger(self.path):
            self.assertTrue(sys.stdout.isatty())
            self.assertFalse(sys.stderr.isatty())
            with self.assertRaises(io.UnsupportedOperation):
                sys.stdout.fileno()
        status = run_python("""
            import sys, dnnlib
            with dnnlib.util.Logger(sys.argv[1]):
                sys.exit(sys.stdout.fileno() != 1)
        """, self.path)
        self.assertEqual(status, 0)

    def test_full_disk_does_not_stop_printing(self):
        if not os.path.exists('/dev/full'):
            self.skipTest('no /dev/full on this system')
        with util.Logger('/dev/full'):
            print('one')
            print('two')
        self.assertEqual(self.out.getvalue(), 'one\ntwo\n')
        self.assertEqual(self.err.getvalue().count('Warning: cannot write the log file'), 1)

    def test_console_that_goes_away(self):
        """A closed terminal, or a pipe that nobody reads any more: the file has everything."""
        for path, count in ((self.path, 1), (None, 0)):
            read_end, write_end = os.pipe()
            with contextlib.ExitStack() as stack:
                console = os.fdopen(write_end, 'w')
                stack.enter_context(contextlib.suppress(OSError))
                stack.callback(console.close)
                stack.enter_context(contextlib.redirect_stdout(console))
                stack.enter_context(util.Logger(path))
                print('one')
                os.close(read_end)
                if path is None:
                    with self.assertRaises(BrokenPipeError):
                        print('two')
                    continue
                print('two')
                print('three', flush=True)
            lines = self.log().splitlines()
            self.assertEqual([line for line in lines if line and 'Warning' not in line],
                             ['one', 'two', 'three'])
            self.assertEqual(sum('Warning: cannot write to the console' in line for line in lines), count)

    def test_log_survives_a_kill(self):
        run_python("""
            import os, sys, dnnlib
            dnnlib.util.Logger(sys.argv[1])
            print('written')
            os._exit(9)
        """, self.path)
        self.assertEqual(self.log(), 'written\n')
