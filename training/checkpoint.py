"""The training state on disk: everything that a run needs to go on exactly where it was saved."""

import json
import os
import pathlib
from typing import Any

import tensorflow as tf

from dnnlib.util import UserError, gfile, is_remote_path

FOLDER = 'checkpoints'


class TrainingCheckpoint:
    """Saves and restores the variables of a run and its progress, by tf.train.Checkpoint in the run directory.

    A checkpoint counts only once the file `checkpoint` names it, and that file is replaced in one move when all
    others are whole: a run killed while saving resumes from the checkpoint before.

    Args:
        run_dir: The run directory; checkpoints go to its folder `checkpoints`.
        variables: {stable name: tf.Variable}.
        keep: Number of checkpoints to keep.
    """

    def __init__(self, run_dir: str, variables: dict[str, tf.Variable], keep: int = 2):
        self._progress = tf.Variable('{}', dtype=tf.string, trainable=False)
        self._names = sorted(variables)
        self._checkpoint = tf.train.Checkpoint(progress=self._progress, variables=dict(variables))
        self._manager = tf.train.CheckpointManager(
            self._checkpoint, os.path.join(run_dir, FOLDER), max_to_keep=keep, checkpoint_name='state')

    def save(self, progress: dict[str, Any], number: int) -> str:
        """Writes all variables and `progress`, plain values that JSON can hold; returns the path."""
        self._progress.assign(json.dumps({**progress, 'variables': self._names}))
        return self._manager.save(checkpoint_number=number)

    def restore(self) -> dict[str, Any] | None:
        """Restores the latest checkpoint and returns its progress; None where there is none.

        Errors: UserError when it is damaged or belongs to other networks; nothing may be used then.
        """
        path = self._manager.latest_checkpoint
        if path is None:
            return None
        stored = read_progress(path)
        if stored.pop('variables') != self._names:
            raise UserError(f'{path}: the checkpoint belongs to networks with other variables; '
                            'resume with the configuration that it was made with')
        try:
            self._checkpoint.restore(path).assert_consumed()
        except (ValueError, AssertionError, tf.errors.OpError) as error:
            raise UserError(f'{path}: the checkpoint does not fit this configuration or is damaged '
                            f'({str(error).splitlines()[0]})') from error
        return stored


def read_progress(path: str) -> dict[str, Any]:
    """The progress stored in a checkpoint, without any network. UserError where the file is damaged."""
    try:
        reader = tf.train.load_checkpoint(path)
        return json.loads(reader.get_tensor('progress/.ATTRIBUTES/VARIABLE_VALUE'))
    except (tf.errors.OpError, ValueError, RuntimeError) as error:
        raise UserError(f'{path}: the checkpoint cannot be read ({str(error).splitlines()[0]}); '
                        f'remove it from {os.path.dirname(path)} to use the one before') from error


def has_checkpoint(run_dir: str) -> bool:
    """Whether a run directory holds a checkpoint to resume from."""
    return tf.train.latest_checkpoint(os.path.join(run_dir, FOLDER)) is not None


def find_latest_run(result_dir: str) -> str:
    """The run directory with the highest number that holds a checkpoint; UserError where there is none."""
    remote = is_remote_path(result_dir)
    names = gfile().listdir(result_dir) if remote else os.listdir(result_dir) if os.path.isdir(result_dir) else []
    numbered = [name.rstrip('/') for name in names if name.partition('-')[0].isdigit()]
    for name in sorted(numbered, key=lambda name: int(name.partition('-')[0]), reverse=True):
        path = f'{result_dir.rstrip("/")}/{name}' if remote else str(pathlib.Path(result_dir) / name)
        if has_checkpoint(path):
            return path
    raise UserError(f'--resume: no run directory with a checkpoint in {result_dir}; '
                    'give a run directory or a network-snapshot-*.pkl')
