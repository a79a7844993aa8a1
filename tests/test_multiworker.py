"""Several workers, each a process of its own: they read their shares of minibatches, and train as one."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import tensorflow as tf

from tests import testutil
from tests.test_trainer import make_images, make_trainer, state_of
from training import dataset, trainer

MINIBATCH, MINIBATCH_GPU, STEPS = 8, 2, (1, 2)


def make_set(path: str) -> dataset.Dataset:
    images, labels = make_images(24)
    np.savez(path, images=images, labels=labels.argmax(axis=1))
    return dataset.load_dataset(path, max_label_size='full', seed=5)


def run_worker(folder: str, index: int) -> None:
    """One of the workers, or (None) a run without any; saves what it read and all variables."""
    subject = make_trainer(trainer.make_strategy(1, 'auto'), G_reg_interval=9, D_reg_interval=9)
    found = make_set(os.path.join(folder, f'set{index}.npz'))
    batches = found.minibatches(16, MINIBATCH, mirror_augment=True, shard=subject.reader)
    read = []
    for step in STEPS:
        images, labels = next(batches)
        read.append(images)
        subject.step(step, images, labels, MINIBATCH_GPU, 0.05, 0.05, ema_beta=0.5)
    np.savez(os.path.join(folder, f'{index}.npz'), reader=subject.reader, read=np.stack(read),
             **{f'state/{name}': value for name, value in state_of(subject).items()})


class MultiWorkerTest(tf.test.TestCase):

    def test_two_workers(self):
        folder = self.get_temp_dir()
        sockets = [socket.create_server(('localhost', 0)) for _ in range(2)]
        addresses = [f'localhost:{sock.getsockname()[1]}' for sock in sockets]
        for sock in sockets:
            sock.close()
        processes = []
        for index in range(2):
            config = {'cluster': {'worker': addresses}, 'task': {'type': 'worker', 'index': index}}
            code = f'from tests.test_multiworker import run_worker; run_worker({folder!r}, {index})'
            processes.append(subprocess.Popen(
                [sys.executable, '-c', code], cwd=testutil.ROOT, stderr=subprocess.PIPE, text=True,
                env={**os.environ, 'TF_CONFIG': json.dumps(config), 'TF_CPP_MIN_LOG_LEVEL': '2'}))
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
