"""dnnlib.submission: run directories and their records, resuming, stopping by file, signal or request."""

import collections
import contextlib
import io
import json
import os
import pathlib
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time

import numpy as np
import tensorflow as tf

import dnnlib
from dnnlib import RunContext, SubmitConfig, submit_run
from dnnlib.file_lock import file_lock
from dnnlib.submission import load_submit_config, make_run_dir, run_number, submit
from tests import testutil


def run_returning(submit_config, **kwargs):
    print('inside the run')
    with open(dnnlib.make_run_dir_path('made.txt'), 'w') as file:
        file.write('x')
    return submit_config, kwargs


def run_raising(submit_config, error):
    print('about to fail')
    raise error


def run_asked_to_stop(submit_config):
    with RunContext(submit_config) as context:
        context.request_stop('enough')
    return context.should_stop()


def run_until_aborted(submit_config, stale):
    with RunContext(submit_config) as context:
        if context.should_stop() != stale:
            return 'wrong'
        open(os.path.join(submit_config.run_dir, 'abort.txt'), 'w').close()
        return context.should_stop(), context.stop_reason


class SubmissionTestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = os.path.realpath(folder.name)
        self.out = io.StringIO()
        streams = contextlib.ExitStack()
        self.addCleanup(streams.close)
        streams.enter_context(contextlib.redirect_stdout(self.out))
        streams.enter_context(contextlib.redirect_stderr(self.out))

    def submit(self, name, *, desc='test', config=None, **kwargs):
        config = config or SubmitConfig(run_dir_root=self.root, run_desc=desc)
        return submit_run(config, f'{__name__}.{name}', **kwargs)

    def read(self, *path):
        with open(os.path.join(self.root, *path), encoding='utf-8') as file:
            return file.read()

    def exists(self, *path):
        return os.path.exists(os.path.join(self.root, *path))


class SubmitRunTest(SubmissionTestCase):
    def test_run(self):
        config = SubmitConfig(run_dir_root=self.root, run_desc='test', num_gpus=2)
        before = dict(config)
        stdout = sys.stdout
        received, kwargs = self.submit('run_returning', config=config, rate=0.5, names=('a', 'b'))
        self.assertIs(sys.stdout, stdout)
        self.assertEqual(config, before)
        self.assertEqual(kwargs, {'rate': 0.5, 'names': ('a', 'b')})
        self.assertIsInstance(received, SubmitConfig)
        self.assertEqual(received.run_dir, os.path.join(self.root, '00000-test'))
        self.assertEqual((received.run_id, received.run_name, received.num_gpus), (0, '00000-test', 2))
        self.assertEqual(sorted(os.listdir(received.run_dir)), [
            '_finished.txt', 'log.txt', 'made.txt', 'run.txt', 'submit_config.json', 'submit_config.pkl',
            'submit_config.txt'])
        self.assertIn('inside the run\n', self.read('00000-test', 'log.txt'))
        self.assertEqual(self.read('00000-test', 'log.txt'), self.out.getvalue())
        self.assertStartsWith(self.out.getvalue(), f'Run directory: {received.run_dir}\n')
        self.assertFalse(RunContext.is_initialized())

    def test_records(self):
        self.submit(
            'run_returning',
            pair=(1, 2.5),
            number=np.float32(0.5),
            count=np.int64(3),
            flag=np.bool_(True),
            array=np.arange(3),
            easy=dnnlib.EasyDict(a=dnnlib.EasyDict(b=None)),
            ordered=collections.OrderedDict(x={1: 2}),
            some={'b', 'a'},
            func=os.path.join,
            path=textwrap,
        )
        values = json.loads(self.read('00000-test', 'submit_config.json'))
        kwargs = values['run_func_kwargs']
        self.assertEqual(kwargs.pop('path'), str(textwrap))
        self.assertEqual(kwargs.pop('func'), 'posixpath.join' if os.name == 'posix' else 'ntpath.join')
        self.assertEqual(kwargs, {
            'pair': [1, 2.5], 'number': 0.5, 'count': 3, 'flag': True, 'array': [0, 1, 2],
            'easy': {'a': {'b': None}}, 'ordered': {'x': {'1': 2}}, 'some': ['a', 'b']})
        self.assertEqual(values['run_func_name'], f'{__name__}.run_returning')

        # The pickle needs no code to be read: it names no class at all.
        class NoClasses(pickle.Unpickler):
            def find_class(self, module, name):
                raise AssertionError(f'{module}.{name}')
        with open(os.path.join(self.root, '00000-test', 'submit_config.pkl'), 'rb') as file:
            plain = NoClasses(file).load()
        self.assertIs(type(plain), dict)
        self.assertIs(type(plain['run_func_kwargs']['number']), float)
        self.assertEqual(plain['run_func_kwargs']['pair'], (1, 2.5))

        text = self.read('00000-test', 'run.txt')
        for expected in (f'function: {__name__}.run_returning', "'pair': (1, 2.5)", 'python: ',
                         'tensorflow: ', 'host: ', 'user: ', f'command: {sys.executable}'):
            self.assertIn(expected, text)
        self.assertIn("'run_desc': 'test'", self.read('00000-test', 'submit_config.txt'))

    def test_load_submit_config(self):
        received, _ = self.submit('run_returning', pair=(1, 2))
        moved = os.path.join(self.root, 'moved')
        os.rename(received.run_dir, moved)
        config = load_submit_config(moved)
        self.assertIsInstance(config, SubmitConfig)
        self.assertEqual((config.run_dir, config.run_func_kwargs.pair), (moved, (1, 2)))
        with self.assertRaisesRegex(dnnlib.UserError, 'not a run directory'):
            load_submit_config(self.root)
        damaged = (
            b'', b'junk', pickle.dumps([1]), pickle.dumps(os.system), pickle.dumps({1: 2})[:-3],
            b'\x80\x04}(]K\x01u.',  # A dict with a list for a key: TypeError.
            b'\x80\x04\x8e' + b'\xff' * 8 + b'.',  # Bytes of a length beyond any: OverflowError.
        )
        for content in damaged:
            with open(os.path.join(moved, 'submit_config.pkl'), 'wb') as file:
                file.write(content)
            with self.assertRaisesRegex(dnnlib.UserError, 'submit_config.pkl'):
                load_submit_config(moved)

    def test_numbers_grow_from_the_highest(self):
        for name in ('00007-other', '00003', 'notes', '12-short', '20240131-date'):
            os.mkdir(os.path.join(self.root, name))
        open(os.path.join(self.root, '00004-file.txt'), 'w').close()
        descs = ('a', 'a', '', None, 'x y/../z')
        names = [self.submit('run_returning', desc=desc)[0].run_name for desc in descs]
        self.assertEqual(names, ['00008-a', '00009-a', '00010', '00011', '00012-x-y-..-z'])

    def test_run_number(self):
        for name, number in [
            ('00012-desc', 12), ('00000', 0), ('1234567-a', 1234567), ('0012-a', None),
            ('20240131-date', None), ('00012x', None), ('notes', None), ('', None),
        ]:
            self.assertEqual(run_number(name), number, name)

    def test_root_is_made(self):
        root = os.path.join(self.root, 'a', 'b')
        received, _ = self.submit('run_returning', config=SubmitConfig(run_dir_root=root))
        self.assertEqual(received.run_dir, os.path.join(root, '00000'))

    def test_mistakes_make_no_directory(self):
        with self.assertRaisesRegex(dnnlib.UserError, "did you mean 'run_returning'"):
            self.submit('run_retruning')
        with self.assertRaisesRegex(dnnlib.UserError, 'expected the name of a function'):
            submit_run(SubmitConfig(run_dir_root=self.root), 'os.sep')
        self.assertEqual(os.listdir(self.root), [])

    def test_as_official_scripts_call_it(self):
        config = SubmitConfig()
        config.run_dir_root = self.root
        config.submit_target = dnnlib.SubmitTarget.LOCAL
        config.local.do_not_copy_source_files = True
        kwargs = dnnlib.EasyDict(run_func_name=f'{__name__}.run_returning', submit_config=config, seed=3)
        self.assertEqual(submit_run(**kwargs)[1], {'seed': 3})
        self.assertEqual(submit_run(config, run_returning, seed=4)[1], {'seed': 4})

    def test_remote_root(self):
        # TensorFlow's in-memory file system stands for gs://.
        config = SubmitConfig(run_dir_root='ram://runs', run_desc='x')
        for number in range(2):
            result = submit_run(config, f'{__name__}.run_asked_to_stop')
            self.assertTrue(result)
            names = tf.io.gfile.listdir(f'ram://runs/0000{number}-x')
            self.assertIn('submit_config.json', names)
            self.assertIn('log.txt', names)
        self.assertEqual(load_submit_config('ram://runs/00001-x').run_desc, 'x')

    def test_processes_that_start_at_once(self):
        code = textwrap.dedent('''
            import sys, time
            from dnnlib import EasyDict
            from dnnlib.submission import SubmitConfig, submit
            time.sleep(max(0, float(sys.argv[2]) - time.time()))
            for i in range(25):
                config = SubmitConfig(run_dir_root=sys.argv[1], run_desc=sys.argv[3])
                submit._create_run_dir(config)
                print(config.run_id)
        ''')
        start = str(time.time() + 2)
        # Half of them with a description of their own: the number is to be different all the same.
        descs = ['same'] * 4 + ['a', 'b', 'c', 'd']
        processes = [subprocess.Popen([sys.executable, '-c', code, self.root, start, desc], cwd=testutil.ROOT,
                                      stdout=subprocess.PIPE, text=True) for desc in descs]
        numbers = []
        for process in processes:
            numbers += map(int, process.communicate(timeout=60)[0].split())
            self.assertEqual(process.returncode, 0)
        self.assertLen(numbers, 200)
        self.assertLen(set(numbers), 200)
        self.assertLen(os.listdir(self.root), 200)

    def test_another_run_comes_between(self):
        # The other run makes its directory after this one has looked which numbers are taken.
        list_numbers = submit._numbers
        for number, desc in ((0, 'test'), (2, 'other')):
            other = os.path.join(self.root, f'{number:05d}-{desc}')

            def list_then_make(root, path=other):
                numbers = list_numbers(root)
                if not os.path.exists(path):
                    os.mkdir(path)
                return numbers
            with tf.compat.v1.test.mock.patch.object(submit, '_numbers', list_then_make):
                received, _ = self.submit('run_returning')
            self.assertEqual(received.run_id, number + 1)
        names = ['00000-test', '00001-test', '00002-other', '00003-test']
        self.assertEqual(sorted(os.listdir(self.root)), names)


class FinishedTest(SubmissionTestCase):
    def test_exception(self):
        stdout = sys.stdout
        for number, error in enumerate([RuntimeError('out of luck'), KeyboardInterrupt(), SystemExit(3)]):
            with self.assertRaises(type(error)):
                self.submit('run_raising', error=error)
            run = f'0000{number}-test'
            self.assertFalse(self.exists(run, '_finished.txt'))
            log = self.read(run, 'log.txt')
            self.assertIn('about to fail\nTraceback (most recent call last)', log)
            self.assertIn(type(error).__name__, log)
            self.assertIs(sys.stdout, stdout)
            self.assertFalse(RunContext.is_initialized())
        self.assertNotIn('Traceback', self.out.getvalue())

    def test_stopped_is_not_finished(self):
        self.assertTrue(self.submit('run_asked_to_stop'))
        self.assertFalse(self.exists('00000-test', '_finished.txt'))
        self.assertIn('enough', self.read('00000-test', 'log.txt'))

    def test_abort_txt(self):
        self.assertEqual(self.submit('run_until_aborted', stale=False), (True, 'abort.txt'))
        self.assertFalse(self.exists('00000-test', '_finished.txt'))
        config = load_submit_config(os.path.join(self.root, '00000-test'))
        config.resume = True
        # Resuming takes the old abort.txt away: or else the run would stop again at once.
        self.assertEqual(self.submit('run_until_aborted', config=config, stale=False), (True, 'abort.txt'))

    def test_resume(self):
        received, _ = self.submit('run_returning', part=1)
        received.resume = True
        received, kwargs = self.submit('run_returning', config=received, part=2)
        self.assertEqual((received.run_id, received.run_name, kwargs), (0, '00000-test', {'part': 2}))
        self.assertEqual(os.listdir(self.root), ['00000-test'])
        self.assertEqual(self.read('00000-test', 'log.txt').count('inside the run\n'), 2)
        text = self.read('00000-test', 'run.txt')
        self.assertEqual(re.findall(r"arguments: (.*)\n", text), ["{'part': 1}", "{'part': 2}"])
        self.assertTrue(self.exists('00000-test', '_finished.txt'))
        with self.assertRaises(RuntimeError):
            self.submit('run_raising', config=received, error=RuntimeError())
        self.assertFalse(self.exists('00000-test', '_finished.txt'))  # The one of the earlier start is gone.

    def test_resume_removes_half_written_files(self):
        """Of a process that was killed; what users have put there stays."""
        received, _ = self.submit('run_returning')
        received.resume = True
        stale = os.path.join(received.run_dir, '.network-snapshot-000001.pkl.tmp-4711-0123abcd')
        kept = [os.path.join(received.run_dir, name)
                for name in ('.notes.tmp', 'a.tmp-1-0123abcd', '.tmp-12')]
        for path in [stale, *kept]:
            pathlib.Path(path).touch()
        self.submit('run_returning', config=received)
        self.assertEqual([os.path.exists(path) for path in [stale, *kept]], [False, True, True, True])

    def test_workers(self):
        """The chief makes the directory beforehand; another worker leaves a log of its own there."""
        config = SubmitConfig(run_dir_root=self.root, run_desc='test', worker=0)
        make_run_dir(config)
        received, _ = self.submit('run_returning', config=config)
        self.assertEqual((received.run_dir, os.listdir(self.root)), (config.run_dir, ['00000-test']))
        before = set(os.listdir(config.run_dir))
        self.assertContainsSubset({'log.txt', '_finished.txt', 'submit_config.pkl'}, before)
        log = self.read('00000-test', 'log.txt')
        other = SubmitConfig(run_dir_root=self.root, run_desc='test', worker=3, run_dir=config.run_dir)
        with file_lock(config.run_dir):     # The chief is at work.
            self.submit('run_returning', config=other)
        self.assertEqual(set(os.listdir(config.run_dir)) - before, {'log-worker3.txt'})
        self.assertEqual(self.read('00000-test', 'log.txt'), log)
        self.assertIn('inside the run', self.read('00000-test', 'log-worker3.txt'))

    def test_resume_what_another_process_is_at_work_in(self):
        received, _ = self.submit('run_returning')
        received.resume = True
        names = ('log.txt', 'run.txt', '_finished.txt')
        before = [self.read(received.run_name, name) for name in names]
        code = ('import sys, time; from dnnlib.file_lock import file_lock\n'
                'with file_lock(sys.argv[1]): print("held", flush=True); time.sleep(60)')
        with subprocess.Popen([sys.executable, '-c', code, received.run_dir], cwd=testutil.ROOT,
                              stdout=subprocess.PIPE, text=True) as process:
            self.assertEqual(process.stdout.readline(), 'held\n')
            with self.assertRaisesRegex(dnnlib.UserError, 'another process is at work'):
                self.submit('run_returning', config=received)
            process.kill()
        self.assertEqual(before, [self.read(received.run_name, name) for name in names])
        self.submit('run_returning', config=received)  # What a killed process held is free.

    def test_resume_what_is_not_there(self):
        config = SubmitConfig(run_dir_root=self.root, resume=True)
        with self.assertRaisesRegex(dnnlib.UserError, 'received none'):
            self.submit('run_returning', config=config)
        config.run_dir = os.path.join(self.root, '00005-x')
        with self.assertRaisesRegex(dnnlib.UserError, 'not an existing run directory'):
            self.submit('run_returning', config=config)


class RunContextTest(SubmissionTestCase):
    def setUp(self):
        super().setUp()
        self.config = SubmitConfig(run_dir=self.root)

    def test_singleton(self):
        with self.assertRaisesRegex(RuntimeError, 'no run'):
            RunContext.get()
        with RunContext(self.config, max_epoch=5) as context:
            self.assertIs(RunContext.get(), context)
            self.assertTrue(RunContext.is_initialized())
            with self.assertRaisesRegex(RuntimeError, 'going on'):
                RunContext(SubmitConfig(run_dir='/elsewhere'))
            with RunContext(self.config) as inner:
                self.assertIs(inner, context)
            self.assertTrue(RunContext.is_initialized())
            self.assertEqual(context.get_max_epoch(), 5)
        self.assertFalse(RunContext.is_initialized())
        context.close()
        with RunContext(self.config) as other:
            self.assertIsNot(other, context)
            self.assertIsNone(other.get_max_epoch())

    def test_progress_and_times(self):
        with RunContext(self.config) as context:
            self.assertEqual(context.get_last_update_interval(), 0)
            time.sleep(0.05)
            context.update(loss='1.0', cur_epoch=2, max_epoch=10)
            interval = context.get_last_update_interval()
            self.assertBetween(interval, 0.05, 5)
            self.assertLess(context.get_time_since_last_update(), context.get_time_since_start())
            context.update(cur_epoch=3)
            self.assertLess(context.get_last_update_interval(), interval)
            self.assertEqual((context.loss, context.get_cur_epoch(), context.get_max_epoch()), ('1.0', 3, 10))
        self.assertEqual(self.out.getvalue(), '')

    def test_paths(self):
        self.assertEqual(dnnlib.make_run_dir_path('a', 'b'), os.path.join(os.getcwd(), 'a', 'b'))
        with RunContext(self.config):
            self.assertEqual(dnnlib.make_run_dir_path('a', 'b'), os.path.join(self.root, 'a', 'b'))
            self.assertEqual(dnnlib.make_run_dir_path(), self.root)

    def test_stop(self):
        with RunContext(self.config) as context:
            self.assertFalse(context.should_stop())
            context.request_stop('one')
            context.request_stop('two')
            self.assertTrue(context.should_stop())
            self.assertEqual(context.stop_reason, 'one')
            self.assertIsNone(context.stop_signal)
        with RunContext(self.config) as context:
            self.assertFalse(context.should_stop())
            open(os.path.join(self.root, 'abort.txt'), 'w').close()
            self.assertTrue(context.should_stop())
            self.assertEqual(context.stop_reason, 'abort.txt')

    def test_signals(self):
        handlers = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
        with RunContext(self.config) as context:
            signal.raise_signal(signal.SIGINT)
            self.assertTrue(context.should_stop())
            self.assertEqual((context.stop_reason, context.stop_signal), ('SIGINT', signal.SIGINT))
            with self.assertRaises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        self.assertEqual([signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)], handlers)
        # Functions that never look for a request to stop keep the usual signals.
        with RunContext(self.config, take_signals=False) as context:
            self.assertEqual(signal.getsignal(signal.SIGTERM), handlers[1])
            context.should_stop()
            self.assertNotEqual(signal.getsignal(signal.SIGTERM), handlers[1])
        self.assertEqual(signal.getsignal(signal.SIGTERM), handlers[1])

    def test_other_threads_leave_signals_alone(self):
        results = []

        def work():
            with RunContext(self.config) as context:
                results.append((context.should_stop(), signal.getsignal(signal.SIGTERM)))
        before = signal.getsignal(signal.SIGTERM)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        self.assertEqual(results, [(False, before)])

    def start(self, function, hangup='SIG_DFL'):
        """Starts a process with a run that prints 'ready' and then works; returns it once it is ready.

        hangup: what it does at SIGHUP when it starts, whatever these tests do.
        """
        code = f'import signal; signal.signal(signal.SIGHUP, signal.{hangup})' + textwrap.dedent('''
            import os, sys, time
            import dnnlib
            sys.path.insert(0, sys.argv[1])
            import the_run
            try:
                dnnlib.submit_run(dnnlib.SubmitConfig(run_dir_root=sys.argv[1]), 'the_run.run')
            except KeyboardInterrupt:
                sys.exit(130)
        ''')
        with open(os.path.join(self.root, 'the_run.py'), 'w') as file:
            file.write('import time\nimport dnnlib\n\n\n' + textwrap.dedent(function))
        process = subprocess.Popen([sys.executable, '-c', code, self.root], cwd=testutil.ROOT, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.addCleanup(process.kill)
        for line in process.stdout:
            if line == 'ready\n':
                return process
        self.fail(process.stderr.read())

    POLLING = '''
        def run(submit_config):
            context = dnnlib.RunContext.get()
            context.should_stop()
            print('ready')
            while not context.should_stop():
                time.sleep(0.01)
            print('saved')
    '''

    def test_sigterm(self):
        process = self.start(self.POLLING)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=30)
        self.assertEqual(process.returncode, 0)
        self.assertIn('saved\n', stdout)
        self.assertIn('SIGTERM', stderr)
        self.assertIn('saved\ndnnlib: Stopped', self.read('00000', 'log.txt'))
        self.assertFalse(self.exists('00000', '_finished.txt'))

    def test_closed_terminal(self):
        """The state is saved although nobody reads what is printed."""
        process = self.start(self.POLLING)
        process.stdout.close()
        process.stderr.close()
        process.send_signal(signal.SIGHUP)
        process.wait(timeout=30)
        log = self.read('00000', 'log.txt')
        self.assertIn('saved\n', log)
        self.assertIn('\ndnnlib: Stopped the_run.run() after', log)
        self.assertIn('SIGHUP', log)

    def test_closed_terminal_under_nohup(self):
        process = self.start(self.POLLING, hangup='SIG_IGN')
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        log = self.read('00000', 'log.txt')
        self.assertIn('SIGTERM', log)
        self.assertNotIn('SIGHUP', log)

    def test_abort_txt_from_outside(self):
        process = self.start(self.POLLING)
        open(os.path.join(self.root, '00000', 'abort.txt'), 'w').close()
        self.assertIn('saved\n', process.communicate(timeout=30)[0])
        self.assertEqual(process.returncode, 0)

    def test_second_ctrl_c(self):
        process = self.start('''
            def run(submit_config):
                with dnnlib.RunContext(submit_config) as context:
                    print('ready')
                    while not context.should_stop():
                        time.sleep(0.01)
                    print('saving')
                    time.sleep(60)
        ''')
        process.send_signal(signal.SIGINT)
        self.assertIn('saving\n', iter(process.stdout.readline, ''))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        self.assertEqual(process.returncode, 130)
        self.assertIn('KeyboardInterrupt', self.read('00000', 'log.txt'))
        self.assertFalse(self.exists('00000', '_finished.txt'))

    def test_sigterm_ends_a_run_that_never_looks(self):
        process = self.start('''
            def run(submit_config):
                print('ready')
                time.sleep(60)
        ''')
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        self.assertEqual(process.returncode, -signal.SIGTERM)


class ToPlainTest(tf.test.TestCase):
    def test_types(self):
        class Text(str):
            pass

        for value, expected in (
            (np.float64(0.1), 0.1), (np.int8(3), 3), (True, True), (Text('a'), 'a'), (None, None),
            ({(1, 2): 3, np.int64(4): 5}, {'(1, 2)': 3, 4: 5}), (collections.namedtuple('P', 'x')(1), (1,)),
        ):
            plain = submit.to_plain(value)
            self.assertEqual(plain, expected)
            self.assertIs(type(plain), type(expected))
