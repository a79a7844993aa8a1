"""A run that was stopped, or killed, goes on exactly: nothing is lost, wherever it was."""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from dnnlib.submission import RunContext, load_submit_config
from dnnlib.tflib import legacy
from dnnlib.util import UserError
from metrics.metric_base import MetricBase
from tests import testutil
from tests import training_testutil as util
from training import snapshots
from training.checkpoint import TrainingCheckpoint, find_latest_run, has_checkpoint
from training.dataset import Prefetcher
from training.trainer import Trainer


def kill_after_checkpoint(result_dir: str, delay: float) -> str:
    """Starts a run of 25 minibatches, kills it `delay` seconds after its first checkpoint."""
    code = ('import time\n'
            'from tests import training_testutil as util\n'
            'for step in range(4, 25):\n'   # Slower, so that it does not end before it is killed.
            '    util.at_step(step, lambda: time.sleep(0.3)).start()\n'
            f'util.train({result_dir!r})\n')
    env = {**os.environ, 'PYTHONPATH': str(testutil.ROOT)}
    process = subprocess.Popen([sys.executable, '-c', code], env=env, stderr=subprocess.PIPE, text=True)
    run_dir = os.path.join(result_dir, '00000-small')
    while process.poll() is None and not has_checkpoint(run_dir):
        time.sleep(0.05)
    time.sleep(delay)
    process.kill()
    _, stderr = process.communicate(timeout=60)
    if process.returncode != -signal.SIGKILL:
        raise AssertionError(f'the run was not killed: {process.returncode} {stderr}')
    return run_dir


class FailingMetric(MetricBase):
    """The number of its call, or an error in those that `failures` names."""

    needs_reals = False
    failures: list[int] = []
    calls = 0

    def _evaluate(self, ev):
        self.calls += 1
        if self.calls - 1 in self.failures:
            raise UserError('no such thing')
        self._report_result(self.calls - 1)


class ResumeTest(util.RunTest):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.whole = util.train(os.path.join(cls.root, 'whole'))

    def assert_same_end(self, run_dir: str):
        """The run has come to where the uninterrupted one is, bit for bit."""
        actual, expected = util.checkpoint_values(run_dir), util.checkpoint_values(self.whole.run_dir)
        self.assertEqual(set(actual), set(expected))
        for name, value in expected.items():
            self.assertEqual(actual[name].tobytes(), value.tobytes(), name)
        curves, expected = util.scalars(run_dir), util.scalars(self.whole.run_dir)
        for tag in expected:
            if tag.startswith(('Loss/', 'Progress/', 'Train')):
                self.assertEqual(curves[tag], expected[tag], tag)
        final = [
            pathlib.Path(path, 'network-final.pkl').read_bytes() for path in (run_dir, self.whole.run_dir)
        ]
        self.assertEqual(final[0], final[1])
        for name in ('reals.png', 'fakes_init.png', 'fakes000000.png'):
            pictures = [pathlib.Path(path, name).read_bytes() for path in (run_dir, self.whole.run_dir)]
            self.assertEqual(pictures[0], pictures[1], name)

    def test_kill_move_and_stop(self):
        """Killed at a random moment, moved, stopped by SIGTERM within a tick: nothing shows."""
        result_dir = os.path.join(self.root, 'interrupted')
        killed = kill_after_checkpoint(result_dir, random.uniform(0, 2))
        self.assertFalse(os.path.exists(os.path.join(killed, '_finished.txt')))
        os.makedirs(os.path.join(self.root, 'elsewhere'))
        run_dir = shutil.move(killed, os.path.join(self.root, 'elsewhere', '00042-moved'))

        with util.at_step(14, lambda: os.kill(os.getpid(), signal.SIGTERM)):
            progress = util.resume(run_dir)
        self.assertEqual(
            (progress.step, progress.stop_reason, progress.stop_signal), (15, 'SIGTERM', signal.SIGTERM)
        )
        self.assertFalse(os.path.exists(os.path.join(run_dir, '_finished.txt')))
        self.assertIn(
            'Stopped at kimg 0.1 (SIGTERM); the state is saved.', pathlib.Path(run_dir, 'log.txt').read_text()
        )

        # In the last step it is too late to stop: the run has finished, and says so.
        with util.at_step(24, lambda: os.kill(os.getpid(), signal.SIGTERM)):
            progress = util.resume(run_dir)
        self.assertEqual((progress.step, progress.stop_reason, progress.stop_signal), (25, None, None))
        self.assertTrue(os.path.exists(os.path.join(run_dir, '_finished.txt')))
        self.assert_same_end(run_dir)
        self.assertEqual(util.files(run_dir), util.files(self.whole.run_dir))
        log = pathlib.Path(run_dir, 'log.txt').read_text()
        self.assertEqual(log.count('Training for 0.2 kimg'), 1)
        self.assertEqual(log.count('Resuming at'), 2)

    @pytest.mark.slow
    def test_many_kills(self):
        """Killed again and again, also while it writes: all files are whole, and the end is the same."""
        run_dir = kill_after_checkpoint(os.path.join(self.root, 'killed'), 0)
        code = f'from tests import training_testutil as util; util.resume({run_dir!r})'
        kills = 0
        for seed in range(30):
            env = {**os.environ, 'PYTHONPATH': str(testutil.ROOT)}
            process = subprocess.Popen([sys.executable, '-c', code], env=env, stderr=subprocess.DEVNULL)
            log = pathlib.Path(run_dir, 'log.txt')
            before = log.read_text().count('tick ')
            while process.poll() is None and log.read_text().count('tick ') == before:
                time.sleep(0.005)
            time.sleep(random.Random(seed).uniform(0, 1))
            process.kill()
            kills += process.wait() == -signal.SIGKILL
            for path in pathlib.Path(run_dir).glob('*.pkl'):
                legacy.load_pkl(str(path)) if 'network' in path.name else load_submit_config(run_dir)
            for path in pathlib.Path(run_dir).glob('*.png'):
                with PIL.Image.open(path) as image:
                    image.load()
            if process.returncode == 0:
                break
        self.assertEqual(process.returncode, 0)
        self.assertGreater(kills, 1)
        self.assert_same_end(run_dir)

    def test_abort(self):
        run_dir = self.folder()
        with mock.patch.object(Trainer, 'step', lambda *args: []), \
                util.at_step(7, lambda: pathlib.Path(run_dir, '00000-small', 'abort.txt').touch()):
            progress = util.train(run_dir)
            self.assertEqual((progress.step, progress.stop_reason, progress.stop_signal),
                             (8, 'abort.txt', None))
            self.assertFalse(os.path.exists(os.path.join(progress.run_dir, '_finished.txt')))
            progress = util.resume(progress.run_dir)
        self.assertEqual((progress.step, progress.stop_reason), (25, None))
        self.assertEqual(util.files(progress.run_dir), util.files(self.whole.run_dir))

    def test_finished_run(self):
        """With the same length nothing happens; with a larger one the run goes on."""
        run_dir = shutil.copytree(self.whole.run_dir, os.path.join(self.root, 'finished', '00000-small'))
        progress = util.resume(run_dir)
        self.assertEqual((progress.step, progress.tick), (25, 3))
        self.assert_same_end(run_dir)
        with mock.patch.object(Trainer, 'step', lambda *args: []):
            progress = util.resume(run_dir, total_kimg=0.264)
        self.assertEqual((progress.step, progress.tick), (33, 4))
        self.assertEqual(list(util.scalars(run_dir)['Progress/kimg']), [32, 96, 160, 200, 264])

    def test_another_data_set(self):
        run_dir = shutil.copytree(self.whole.run_dir, os.path.join(self.root, 'other', '00000-small'))
        rnd = np.random.RandomState(0)
        path = os.path.join(self.root, 'other.npz')
        np.savez(path, images=rnd.randint(0, 256, [64, 8, 8, 3]).astype(np.uint8), labels=np.arange(64) % 8)
        with self.assertRaisesRegex(UserError, r'^--resume: the data set other is not the one [^\n]*$'):
            util.resume(run_dir, dataset_args=dict(dataset=path))

    def test_start_from_a_snapshot_that_is_gone(self):
        """A run that began with another run's snapshot goes on without that file."""
        source = shutil.copy(os.path.join(self.whole.run_dir, 'network-final.pkl'), self.folder())
        with mock.patch.object(Trainer, 'step', lambda *args: []):  # Without the time of real steps.
            progress = util.train(self.folder(), resume_pkl=source, total_kimg=0.032)
            os.remove(source)
            progress = util.resume(progress.run_dir, total_kimg=0.064)
        self.assertEqual(progress.step, 8)
        final = pathlib.Path(progress.run_dir, 'network-final.pkl').read_bytes()
        self.assertEqual(final, pathlib.Path(self.whole.run_dir, 'network-final.pkl').read_bytes())

    def test_data_that_cannot_be_read_for_a_while(self):
        """What was learned since the last snapshot is saved; the run goes on when the data is there again."""
        real_next, calls = Prefetcher.__next__, []

        def failing(prefetcher):
            calls.append(0)
            if len(calls) == 7:
                raise UserError('images.zip has gone')
            return real_next(prefetcher)

        result_dir = self.folder()
        with mock.patch.object(Trainer, 'step', lambda *args: []):  # Without the time of real steps.
            with (mock.patch.object(Prefetcher, '__next__', failing),
                  self.assertRaisesRegex(UserError, 'images.zip has gone')):
                util.train(result_dir, total_kimg=0.128)
            run_dir = os.path.join(result_dir, '00000-small')
            self.assertIn('The data cannot be read at kimg 0.0; the state is saved.',
                          pathlib.Path(run_dir, 'log.txt').read_text())
            self.assertTrue(os.path.exists(os.path.join(run_dir, 'checkpoints', 'state-6.index')))
            self.assertEqual(util.resume(run_dir).step, 16)
        self.assertIn('Resuming at 0.0 of', pathlib.Path(run_dir, 'log.txt').read_text())

    def test_metric_that_fails(self):
        """At the first snapshot it ends the run, before there is anything to lose; later it only warns."""
        args = dict(metric_arg_list=[dict(func_name='tests.test_resume.FailingMetric', name='toy')],
                    hook_args=[dict(func_name='training.monitors.KeepBest', metric='toy')])
        with mock.patch.object(Trainer, 'step', lambda *args: []):
            FailingMetric.failures = [0]
            with self.assertRaisesRegex(UserError, 'no such thing'):
                util.train(self.folder(), **args)
            FailingMetric.failures = [1, 2]
            with mock.patch('training.monitors.better_of', lambda name: 'low'):
                progress = util.train(self.folder(), **args)
        self.assertEqual((progress.tick, progress.hooks['0-KeepBest']['best']), (3, 0.0))
        lines = pathlib.Path(progress.run_dir, 'metric-toy.txt').read_text().splitlines()
        self.assertEqual([line.split()[-1] for line in lines], ['0.0000', '3.0000'])
        log = pathlib.Path(progress.run_dir, 'log.txt').read_text()
        self.assertEqual(log.count('Warning: toy of '), 2)
        self.assertEqual(util.scalars(progress.run_dir)['Metrics/toy'], {32: 0.0, 200: 3.0})

    def test_stops_count_in_keep_snapshots(self):
        run_dir = self.folder()
        begin = dict(total_kimg=5, keep_snapshots=2, network_snapshot_ticks=None, image_snapshot_ticks=None,
                     sched_args=dict(minibatch_size_base=500, minibatch_gpu_base=500, tick_kimg_base=100))
        for number in range(3):

            def step(_trainer, step, *_args, last=2 * number + 1):
                if step == last:
                    RunContext.get().request_stop('test')
                return []

            with mock.patch.object(Trainer, 'step', step):
                progress = util.resume(run_dir) if number else util.train(self.folder(), **begin)
            run_dir = progress.run_dir
        found = sorted(name for name in util.files(run_dir) if name.startswith('network'))
        self.assertEqual(
            (progress.step, found), (6, ['network-snapshot-000002.pkl', 'network-snapshot-000003.pkl'])
        )


class CheckpointTest(util.RunTest):
    """TrainingCheckpoint with two variables."""

    def setUp(self):
        super().setUp()
        self.run_dir = self.folder()
        self.variables = {'a/x': tf.Variable([1.0, 2.0]), 'b': tf.Variable(3, dtype=tf.int64)}
        self.checkpoint = TrainingCheckpoint(self.run_dir, self.variables)
        for number in (1, 2, 3):
            self.variables['b'].assign(number)
            self.checkpoint.save({'step': number}, number)

    def path(self, name):
        return os.path.join(self.run_dir, 'checkpoints', name)

    def restored(self, variables=None):
        """What a new process finds: (progress, value of b)."""
        variables = variables or {'a/x': tf.Variable([0.0, 0.0]), 'b': tf.Variable(0, dtype=tf.int64)}
        progress = TrainingCheckpoint(self.run_dir, variables).restore()
        return progress, int(variables['b'])

    def test_round_trip(self):
        self.assertEqual(self.restored(), ({'step': 3}, 3))
        self.assertEqual(
            {name.split('.')[0] for name in os.listdir(self.path(''))}, {'checkpoint', 'state-2', 'state-3'}
        )

    def test_nothing_to_restore(self):
        self.assertIsNone(TrainingCheckpoint(self.folder(), self.variables).restore())

    def test_moved(self):
        moved = self.folder()
        shutil.move(os.path.join(self.run_dir, 'checkpoints'), moved)
        self.run_dir = moved
        self.assertEqual(self.restored(), ({'step': 3}, 3))

    def damage(self, name, kind):
        if kind == 'remove':
            os.remove(self.path(name))
        elif kind == 'change':
            data = pathlib.Path(self.path(name)).read_bytes()
            pathlib.Path(self.path(name)).write_bytes(bytes(byte ^ 255 for byte in data))
        else:
            os.truncate(self.path(name), os.path.getsize(self.path(name)) // 2)

    def test_damaged_newest(self):
        for name in ('state-3.data-00000-of-00001', 'state-3.index'):
            for kind in ('remove', 'truncate', 'change'):
                with self.subTest(name=name, kind=kind):
                    kept = shutil.copytree(self.path(''), os.path.join(self.folder(), 'kept'))
                    self.damage(name, kind)
                    self.assertEqual(self.restored(), ({'step': 2}, 2))
                    self.assertTrue(has_checkpoint(self.run_dir))
                    shutil.rmtree(self.path(''))
                    shutil.move(kept, self.path(''))

    def test_damaged_one_is_written_anew(self):
        self.damage('state-3.data-00000-of-00001', 'truncate')
        checkpoint = TrainingCheckpoint(self.run_dir, self.variables)
        checkpoint.restore()
        self.variables['b'].assign(33)
        checkpoint.save({'step': 3}, 3)
        self.assertEqual(self.restored(), ({'step': 3}, 33))

    def test_all_damaged(self):
        for number in (2, 3):
            self.damage(f'state-{number}.index', 'truncate')
        with self.assertRaisesRegex(
            UserError, r'state-3: the checkpoint is damaged [^\n]*there is no other[^\n]*$'
        ):
            self.restored()

    def test_damaged_list(self):
        """The file that names the checkpoints is empty, or gone: they are found all the same."""
        for damage in (lambda path: os.truncate(path, 0), os.remove,
                       lambda path: pathlib.Path(path).write_bytes(b'\xff' * 50)):
            damage(self.path('checkpoint'))
            self.assertTrue(has_checkpoint(self.run_dir))
            self.assertEqual(self.restored(), ({'step': 3}, 3))
        self.variables['b'].assign(4)
        TrainingCheckpoint(self.run_dir, self.variables).save({'step': 4}, 4)
        self.assertEqual(self.restored(), ({'step': 4}, 4))

    def test_killed_while_saving(self):
        """What TensorFlow leaves when it is killed before the new checkpoint counts."""
        os.makedirs(self.path('state-4_temp'))
        for name in ('state-4_temp/part-00000-of-00001.data-00000-of-00001', 'state-4.data-00000-of-00001',
                     'state-4.index', 'checkpoint.tmp1234'):
            pathlib.Path(self.path(name)).write_bytes(b'half')
        self.assertEqual(self.restored(), ({'step': 3}, 3))
        names = {name.split('.')[0] for name in os.listdir(self.path(''))}
        self.assertEqual(names, {'checkpoint', 'state-2', 'state-3'})
        self.assertFalse(os.path.exists(self.path('checkpoint.tmp1234')))

    def test_same_state_is_not_written_again(self):
        before = os.stat(self.path('state-3.index'))
        self.checkpoint.save({'step': 3}, 3)
        self.assertEqual(os.stat(self.path('state-3.index')).st_mtime_ns, before.st_mtime_ns)

    def test_other_variables(self):
        with self.assertRaisesRegex(UserError, 'networks with other variables'):
            self.restored(
                {'a/x': tf.Variable([0.0, 0.0]), 'b': tf.Variable(0, dtype=tf.int64), 'c': tf.Variable(0.0)}
            )
        with self.assertRaisesRegex(UserError, 'does not fit this configuration'):
            self.restored({'a/x': tf.Variable([0.0]), 'b': tf.Variable(0, dtype=tf.int64)})

    def test_latest_run(self):
        root = self.folder()
        with self.assertRaisesRegex(UserError, 'no run directory with a checkpoint'):
            find_latest_run(root)
        for name in ('00002-b', '00010-a', '00011-without'):
            os.makedirs(os.path.join(root, name))
        for name in ('00002-b', '00010-a'):
            shutil.copytree(self.path(''), os.path.join(root, name, 'checkpoints'))
        self.assertEqual(find_latest_run(root), os.path.join(root, '00010-a'))


class FullDiskTest(util.RunTest):
    """No room for more than so many bytes per file: one line, and everything written before is whole."""

    def run_with_limit(self, pattern: str):
        """A run of train.py that after its first tick can write no file as large as the one of that name."""
        result_dir = self.folder()
        code = (
            'import glob, os, resource, sys\n'
            'from dnnlib.startup import load_tensorflow\n'
            'load_tensorflow()\n'
            'import train\n'
            'from tests import training_testutil as util\n'
            'from training import configs, trainer\n'
            "sys.argv[0] = 'train.py'\n"
            "configs.DEMO['sched_args']['tick_kimg_base'] = 0.06\n"
            'def limit():\n'
            f'    size = os.path.getsize(glob.glob({result_dir!r} + "/*/{pattern}")[0]) - 1\n'
            '    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))\n'
            'trainer.Trainer.step = lambda *args: []\n'     # Nothing need be learned.
            'util.at_step(10, limit).start()\n'
            'train.main()\n'
        )
        flags = [*util.SMALL_FLAGS, '--total-kimg=0.2', f'--result-dir={result_dir}']
        done = util.run_script(*flags, code=code)
        return done, find_latest_run(result_dir)

    def check(self, pattern, text):
        done, run_dir = self.run_with_limit(pattern)
        lines = done.stderr.splitlines()
        self.assertEqual((done.returncode, len(lines)), (2, 1), done.stderr)
        self.assertIn(text, lines[0])
        self.assertIn('File too large', lines[0])
        self.assertNotIn('{{', lines[0])
        found = {name for name in util.files(run_dir) if name.startswith(('checkpoints', 'network', '.'))}
        self.assertEqual(found, {'checkpoints/checkpoint', 'checkpoints/state-4.index',
                                 'checkpoints/state-4.data-00000-of-00001', 'network-snapshot-000000.pkl'})
        snapshots.load_networks(os.path.join(run_dir, 'network-snapshot-000000.pkl'))
        self.assertFalse(os.path.exists(os.path.join(run_dir, '_finished.txt')))
        return run_dir

    def test_checkpoint(self):
        run_dir = self.check('checkpoints/state-4.data*', 'the checkpoint cannot be written')
        with mock.patch.object(Trainer, 'step', lambda *args: []):
            self.assertEqual(util.resume(run_dir, total_kimg=0.08).step, 10)

    def test_snapshot(self):
        self.check('network-snapshot-000000.pkl', 'network-snapshot-000000.pkl: ')


if __name__ == '__main__':
    tf.test.main()
