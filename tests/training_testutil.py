"""What the tests of whole training runs share: a run that takes seconds, and ways to look at what it left."""

import contextlib
import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Any
from unittest import mock

import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing import event_file_loader

from dnnlib.submission import SubmitConfig, load_submit_config, submit_run
from tests import testutil
from training.configs import find_config, merge
from training.trainer import Trainer

# 8×8 images of the embedded data set, in minibatches of 8 in two rounds; a tick every 8 minibatches.
SMALL = dict(
    G_args=dict(fmap_base=32, fmap_max=8, latent_size=8, dlatent_size=8, mapping_fmaps=8, mapping_layers=2),
    D_args=dict(fmap_base=32, fmap_max=8),
    D_loss_args=dict(gamma=0.1),
    sched_args=dict(G_lrate_base=0.003, D_lrate_base=0.003, minibatch_size_base=8, minibatch_gpu_base=4,
                    tick_kimg_base=0.06, tick_kimg_dict={}),
    G_smoothing_kimg=0.1,
    dataset_args=dict(resolution=8, max_label_size='full'),
    grid_args=dict(size='4x2'),
    mirror_augment=True,
    total_kimg=0.2,
    image_snapshot_ticks=1,
    network_snapshot_ticks=1,
    keep_snapshots=None,
)

# The embedded images grow from 8×8 to 16×16: minibatches of 16 at 8×8, then of 8; lod 1 until 64 images, then
# a fade until 128.
GROWING = dict(
    G_args=dict(fmap_base=32, fmap_max=8, latent_size=8, dlatent_size=8, mapping_fmaps=8, mapping_layers=2),
    D_args=dict(fmap_base=32, fmap_max=8),
    sched_args=dict(lod_initial_resolution=8, lod_training_kimg=0.064, lod_transition_kimg=0.064,
                    minibatch_size_base=8, minibatch_size_dict={8: 16}, minibatch_gpu_dict={8: 8},
                    tick_kimg_base=0.03, tick_kimg_dict={}),
    G_smoothing_kimg=0.1,
    dataset_args=dict(resolution=16),
    grid_args=dict(size='4x2'),
    minibatch_repeats=1,
    mirror_augment=True,
    total_kimg=0.16,
    image_snapshot_ticks=1,
    network_snapshot_ticks=1,
)

# SMALL by flags, where ticks are longer than the run.
SMALL_FLAGS = ['--config=demo', '--resolution=8', '--fmap-base=32', '--fmap-max=8', '--minibatch-size=8',
               '--minibatch-gpu=8', '--total-kimg=0.064', '--snap=1']

TICK_LINE = re.compile(
    r'tick (\d+) +kimg (\d+\.\d) +lod (\d+\.\d\d) +minibatch (\d+) +time (\S.*?) +sec/tick (\d+\.\d) +'
    r'sec/kimg (\d+\.\d\d) +maintenance (\d+\.\d) +gpumem (\d+\.\d)')


class RunTest(tf.test.TestCase):
    """Tests with a folder `self.root` for all of the class, and a new one per call of `self.folder()`."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.root = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, cls.root)

    def folder(self) -> str:
        return tempfile.mkdtemp(dir=self.root)


def small_kwargs(**changes: Any) -> dict[str, Any]:
    """Arguments of the training loop for a run of seconds, with changes laid over them."""
    return merge(merge(find_config('config-f'), SMALL), changes)


def train(result_dir: str, **changes: Any):
    """A run in a new directory; returns what the training loop returns."""
    return _train(result_dir, small_kwargs(**changes))


def train_growing(result_dir: str, config: str, **changes: Any):
    """A run of a growing config as small as GROWING says."""
    return _train(result_dir, merge(merge(find_config(config), GROWING), changes))


def _train(result_dir: str, kwargs: dict):
    with contextlib.redirect_stdout(io.StringIO()):
        return submit_run(SubmitConfig(run_dir_root=result_dir, run_desc='small'),
                          'training.training_loop.training_loop', **kwargs)


def resume(run_dir: str, **changes: Any):
    """Goes on with a run, as train.py --resume does."""
    config = load_submit_config(run_dir)
    config.resume = True
    with contextlib.redirect_stdout(io.StringIO()):
        return submit_run(
            config, 'training.training_loop.training_loop', **merge(config.run_func_kwargs, changes)
        )


def at_step(step: int, action):
    """A context in which `action()` is called after the given step of training."""
    real_step = Trainer.step

    def counted(self, number, *args):
        reports = real_step(self, number, *args)
        if number == step:
            action()
        return reports
    return mock.patch.object(Trainer, 'step', counted)


def run_script(
    *args: str, cwd: str | None = None, code: str | None = None, **env: str
) -> subprocess.CompletedProcess:
    """Runs train.py with these flags, or Python code that may call train.main(), and waits for its end."""
    command = [sys.executable, *(['-c', code] if code else [str(testutil.ROOT / 'train.py')]), *args]
    env = {**os.environ, 'PYTHONPATH': str(testutil.ROOT), 'TF_CPP_MIN_LOG_LEVEL': '2', **env}
    return subprocess.run(
        command, cwd=cwd or testutil.ROOT, env=env, capture_output=True, text=True, timeout=300
    )


def checkpoint_values(run_dir: str) -> dict[str, np.ndarray]:
    """All variables in the latest checkpoint of a run, but for its progress."""
    reader = tf.train.load_checkpoint(os.path.join(run_dir, 'checkpoints'))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()
            if name.startswith('variables/')}


def events(run_dir: str) -> list:
    """All events in the event files of a run, in the order of writing."""
    paths = sorted(
        pathlib.Path(run_dir).glob('events.out.tfevents.*'), key=lambda path: path.stat().st_mtime_ns
    )
    return [event for path in paths for event in event_file_loader.LegacyEventFileLoader(str(path)).Load()]


def scalars(run_dir: str) -> dict[str, dict[int, float]]:
    """{tag: {step: value}} of the event files of a run; a later event replaces one of the same step."""
    found = {}
    for event in events(run_dir):
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == 'scalars':
                found.setdefault(value.tag, {})[event.step] = float(tf.make_ndarray(value.tensor))
    return found


def files(run_dir: str) -> set[str]:
    """Names of the files in a run directory and its folders; 'events' for the event files."""
    root = pathlib.Path(run_dir)
    names = {str(path.relative_to(root)) for path in root.rglob('*') if path.is_file()}
    return {re.sub(r'^events\.out\.tfevents\..*', 'events', name) for name in names}
