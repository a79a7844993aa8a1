"""Several workers, each a process of its own: they read their shares of minibatches, and train as one."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from dnnlib.util import UserError
from tests import testutil
from tests import training_testutil as util
from tests.test_trainer import make_images, make_trainer, state_of
from training import dataset, strategies
from training.checkpoint import has_checkpoint

MINIBATCH, MINIBATCH_GPU, STEPS = 8, 2, (1, 2)


def make_set(path: str) -> dataset.Dataset:
    images, labels = make_images(24)
    np.savez(path, images=images, labels=labels.argmax(axis=1))
    return dataset.load_dataset(path, max_label_size='full', seed=5)


def run_worker(folder: str, index: int) -> None:
    """One of the workers, or (None) a run without any; saves what it read and all variables."""
    subject = make_trainer(strategies.make_strategy(1, 'auto'), G_reg_interval=9, D_reg_interval=9)
    found = make_set(os.path.join(folder, f'set{index}.npz'))
    batches = found.minibatches(16, MINIBATCH, mirror_augment=True, shard=subject.reader)
    read = []
    for step in STEPS:
        images, labels = next(batches)
        read.append(images)
        subject.step(step, images, labels, MINIBATCH_GPU, 0.05, 0.05, ema_beta=0.5)
    np.savez(os.path.join(folder, f'{index}.npz'), reader=subject.reader, read=np.stack(read),
             **{f'state/{name}': value for name, value in state_of(subject).items()})


def nimg_of(run_dir: str) -> int:
    """Number of images that a run has seen, as its latest checkpoint says."""
    reader = tf.train.load_checkpoint(os.path.join(run_dir, 'checkpoints'))
    return json.loads(reader.get_tensor('progress/.ATTRIBUTES/VARIABLE_VALUE'))['nimg']


def start_two(*commands: list[str]) -> list[subprocess.Popen]:
    """Two Python processes on this machine that are told of each other; one list of arguments for each."""
    sockets = [socket.create_server(('localhost', 0)) for _ in range(2)]
    addresses = [f'localhost:{sock.getsockname()[1]}' for sock in sockets]
    for sock in sockets:
        sock.close()
    processes = []
    for index, command in enumerate(commands):
        config = {'cluster': {'worker': addresses}, 'task': {'type': 'worker', 'index': index}}
        processes.append(subprocess.Popen(
            [sys.executable, *command], cwd=testutil.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env={**os.environ, 'TF_CONFIG': json.dumps(config), 'CUDA_VISIBLE_DEVICES': '',
                            'TF_CPP_MIN_LOG_LEVEL': '2'}))
    return processes


class MultiWorkerTest(util.RunTest):

    def test_worker_index(self):
        cluster = {'chief': ['a:1'], 'worker': ['b:1', 'c:1']}
        for kind, index, expected in (('chief', 0, 0), ('worker', 0, 1), ('worker', 1, 2)):
            config = json.dumps({'cluster': cluster, 'task': {'type': kind, 'index': index}})
            with mock.patch.dict(os.environ, TF_CONFIG=config):
                self.assertEqual(strategies.worker_index(), expected)
        for text in ('{', '[]', '{"cluster": {"worker": ["a:1"]}}',
                     config.replace('"index": 1', '"index": 2'), config.replace('"type"', '"kind"')):
            with mock.patch.dict(os.environ, TF_CONFIG=text), self.assertRaisesRegex(
                    UserError, r'^TF_CONFIG: expected [^\n]* Received: '):
                strategies.worker_index()
        with mock.patch.dict(os.environ, TF_CONFIG=''):
            self.assertEqual(strategies.worker_index(), 0)

    @pytest.mark.slow
    def test_one_run_directory(self):
        """The chief's; the other leaves a log there. Both stop at once when one is told to, and go on."""
        result_dir = self.folder()
        command = ['train.py', f'--result-dir={result_dir}']
        begin = [*command, *util.SMALL_FLAGS, '--minibatch-gpu=4', '--total-kimg=500']
        processes = start_two(begin, begin)
        run_dir = os.path.join(result_dir, '00000-stylegan2-pixelart32-1gpu-demo')
        while processes[0].poll() is None and not has_checkpoint(run_dir):
            time.sleep(0.1)
        processes[1].send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=300) for process in processes]
        self.assertEqual([process.returncode for process in processes], [0, 128 + signal.SIGTERM], outputs)
        self.assertIn('(another worker); the state is saved.', outputs[0][0])
        self.assertEqual(os.listdir(result_dir), [os.path.basename(run_dir)])
        self.assertEqual({name for name in os.listdir(run_dir) if 'worker' in name}, {'log-worker1.txt'})
        self.assertLen([name for name in os.listdir(run_dir) if 'tfevents' in name], 1)

        # One is killed: the other does not wait for ever.
        processes = start_two(*[[*command, '--resume']] * 2)
        for line in processes[1].stdout:
            if line.startswith('Resuming at'):
                break
        processes[1].kill()
        stderr = processes[0].communicate(timeout=300)[1]
        processes[1].communicate()
        self.assertEqual(processes[0].returncode, 2, stderr)
        self.assertRegex(stderr, 'train.py: error: another worker has gone [^\\n]* --resume\\n$')

        nimg = nimg_of(run_dir)
        go_on = [*command, '--resume', f'--total-kimg={(nimg + 16) / 1000}']
        processes = start_two(go_on, go_on)
        outputs = [process.communicate(timeout=300) for process in processes]
        self.assertEqual([process.returncode for process in processes], [0, 0], outputs)
        self.assertEqual(os.listdir(result_dir), [os.path.basename(run_dir)])
        self.assertContainsSubset({'_finished.txt', 'network-final.pkl'}, os.listdir(run_dir))
        self.assertEqual(nimg_of(run_dir), nimg + 16)
        log = pathlib.Path(run_dir, 'log-worker1.txt').read_text()
        self.assertIn(f'Resuming at {nimg / 1000:.1f} of', log)

    @pytest.mark.slow
    def test_mistake_of_one(self):
        """The other one ends with one line too, and there is no run directory."""
        result_dir = self.folder()
        command = ['train.py', f'--result-dir={result_dir}', *util.SMALL_FLAGS, '--minibatch-gpu=4']
        processes = start_two(command, [*command, f'--dataset={result_dir}/nothing'])
        errors = [process.communicate(timeout=300)[1] for process in processes]
        self.assertEqual([process.returncode for process in processes], [2, 2], errors)
        self.assertRegex(errors[0], 'train.py: error: another worker has gone [^\\n]*\\n$')
        self.assertRegex(errors[1], 'train.py: error: there is no data set at [^\\n]*\\n$')
        self.assertEmpty(os.listdir(result_dir))

    def test_two_workers(self):
        folder = self.get_temp_dir()
        processes = start_two(*(
            ['-c', f'from tests.test_multiworker import run_worker; run_worker({folder!r}, {index})']
            for index in range(2)))
        run_worker(folder, 2)
        for process in processes:
            _, stderr = process.communicate(timeout=300)
            self.assertEqual(process.returncode, 0, stderr[-3000:])
        first, second, one = (dict(np.load(os.path.join(folder, f'{i}.npz'))) for i in range(3))
        self.assertEqual([tuple(result['reader']) for result in (first, second, one)],
                         [(0, 2), (1, 2), (0, 1)])
        # Half of each minibatch, and together all of it.
        self.assertAllEqual(np.concatenate([first['read'], second['read']], axis=1), one['read'])
        for name, value in one.items():
            if name.startswith('state/'):
                self.assertAllEqual(first[name], second[name], name)
                testutil.assert_close(self, first[name], value, 2e-5, 2e-5, msg=name)


if __name__ == '__main__':
    tf.test.main()
