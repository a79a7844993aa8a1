"""The training state on disk: everything that a run needs to go on exactly where it was saved."""

import contextlib
import json
import os
import pathlib
import re
from typing import Any

import tensorflow as tf

from dnnlib.submission import run_number
from dnnlib.util import UserError, atomic_write, gfile, is_remote_path

FOLDER = 'checkpoints'
PREFIX = 'state'        # Of the files of a checkpoint: state-<number>.index and so on.
OPTIONAL = 'hooks/'     # Variables of hooks into the loop, which a resumed run may have others of.


class TrainingCheckpoint:
    """Saves and restores the variables of a run and its progress by tf.train.Checkpoint.

    A checkpoint counts only once the file `checkpoint` names it, and that file is replaced in one move when
    all others are whole: a run killed while saving resumes from the checkpoint before. Where that file itself
    is damaged or gone, those count whose files are there.

    Args:
        run_dir: The run directory; checkpoints go to its folder `checkpoints`.
        variables: {stable name: tf.Variable}.
        keep: Number of checkpoints to keep.
        clean: Remove what an interrupted save has left? Only by the one process that saves.
    """

    def __init__(self, run_dir: str, variables: dict[str, tf.Variable], keep: int = 2, clean: bool = True):
        self._progress = tf.Variable('{}', dtype=tf.string, trainable=False)
        self._variables = dict(variables)
        self._checkpoint = tf.train.Checkpoint(progress=self._progress, variables=dict(variables))
        _mend_list(os.path.join(run_dir, FOLDER))
        self._manager = tf.train.CheckpointManager(
            self._checkpoint, os.path.join(run_dir, FOLDER), max_to_keep=keep, checkpoint_name=PREFIX)
        self._known = None  # Path of the checkpoint that holds what was read or written last.
        if clean and self._paths():
            _remove_files(self._manager.directory, keep=self._paths())

    def _paths(self) -> list[str]:
        """The checkpoints, oldest first."""
        latest = self._manager.latest_checkpoint
        earlier = [path for path in self._manager.checkpoints if path != latest]
        return earlier if latest is None else [*earlier, latest]

    def save(self, progress: dict[str, Any], number: int) -> str:
        """Writes all variables and `progress`, plain values that JSON can hold; returns the path.

        A state that this run has read or written under the same number is not written again: it is the same.

        Errors: UserError where it cannot be written, as on a full disk; the one before stays usable then.
        """
        path = os.path.join(self._manager.directory, f'{PREFIX}-{number}')
        if path == self._known:
            return path
        self._progress.assign(json.dumps({**progress, 'variables': sorted(self._variables)}))
        earlier = self._paths()
        try:
            self._manager.save(checkpoint_number=number)
            _sync(path)
        except (tf.errors.OpError, OSError) as error:
            if tf.train.latest_checkpoint(self._manager.directory) != path:
                _remove_files(self._manager.directory, keep=earlier)
            advice = 'go on with --resume, the one before is whole' if earlier else 'start again'
            raise UserError(f'{path}: the checkpoint cannot be written ({_first_line(error)}). '
                            f'Make room and {advice}') from error
        self._known = path
        return path

    def restore(self) -> dict[str, Any] | None:
        """Restores the latest checkpoint and returns its progress; None where there is none.

        Where its files are damaged, as after a power failure, the one before is taken, with a warning.
        Optional variables that it does not hold stay as they are; those that only it holds are left there.

        Errors: UserError when none can be read, or they belong to other networks; nothing may be used then.
        """
        problem = None
        for path in reversed(self._paths()):
            try:
                stored = self._restore(path)
            except _Damaged as error:
                problem = problem or error
                continue
            if problem is not None:
                print(f'Warning: {problem}. Going on from the one before, {path}.')
            self._known = path
            return stored
        if problem is not None:
            raise UserError(f'{problem}, and there is no other to resume from; start a new run from a '
                            'network-snapshot-*.pkl') from problem
        return None

    def _restore(self, path: str) -> dict[str, Any]:
        stored = _read_progress(path)
        names = set(stored.pop('variables'))
        if {name for name in names.symmetric_difference(self._variables) if not name.startswith(OPTIONAL)}:
            raise UserError(f'{path}: the checkpoint belongs to networks with other variables; '
                            'resume with the configuration that it was made with')
        try:
            if names == set(self._variables):
                self._checkpoint.restore(path).assert_consumed()
            else:
                common = {name: self._variables[name] for name in names.intersection(self._variables)}
                partial = tf.train.Checkpoint(progress=self._progress, variables=common)
                partial.restore(path).assert_existing_objects_matched().expect_partial()
        except (tf.errors.OpError, IndexError, RuntimeError) as error:  # IndexError: a file that is cut off.
            raise _Damaged(f'{path}: the checkpoint is damaged ({_first_line(error)})') from error
        except (ValueError, AssertionError) as error:
            raise UserError(f'{path}: the checkpoint does not fit this configuration '
                            f'({_first_line(error)})') from error
        return stored


class _Damaged(UserError):
    """The files of a checkpoint are not whole."""


def _first_line(error: Exception) -> str:
    """The message of an error without the operations and devices that TensorFlow puts around it."""
    text = error.message if isinstance(error, tf.errors.OpError) else str(error)
    line = (text.splitlines() or [type(error).__name__])[0]
    return re.sub(r'\{\{.*?\}\} ?| ?\[Op:.*', '', line)


def _read_progress(path: str) -> dict[str, Any]:
    try:
        reader = tf.train.load_checkpoint(path)
        return json.loads(reader.get_tensor('progress/.ATTRIBUTES/VARIABLE_VALUE'))
    except (tf.errors.OpError, IndexError, ValueError, RuntimeError) as error:
        raise _Damaged(f'{path}: the checkpoint is damaged ({_first_line(error)})') from error


def _sync(path: str) -> None:
    """Puts the files of a checkpoint on the disk: TensorFlow leaves them to the cache of the system."""
    if is_remote_path(path):
        return
    folder, name = os.path.split(path)
    for file in [*pathlib.Path(folder).glob(f'{name}.*'), pathlib.Path(folder) / 'checkpoint']:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_files(folder: str, keep: list[str]) -> None:
    """Removes what an interrupted or failed save has left in the folder of checkpoints."""
    files = gfile()
    if not files.isdir(folder):
        return
    kept = {os.path.basename(path) for path in keep}
    for name in (name.rstrip('/') for name in files.listdir(folder)):
        of_checkpoint = name.startswith(f'{PREFIX}-') and name.split('.')[0] not in kept
        if of_checkpoint or name.startswith('checkpoint.tmp'):
            path = os.path.join(folder, name)
            files.rmtree(path) if files.isdir(path) else files.remove(path)


def has_checkpoint(run_dir: str) -> bool:
    """Whether a run directory holds a checkpoint to resume from."""
    folder = os.path.join(run_dir, FOLDER)
    return _list_is_good(folder) or bool(_found(folder))


def stored_progress(run_dir: str) -> dict[str, Any] | None:
    """The progress in the latest checkpoint that can be read, None where there is none."""
    folder = os.path.join(run_dir, FOLDER)
    for name in reversed(_found(folder)):
        with contextlib.suppress(_Damaged):
            return _read_progress(os.path.join(folder, name))
    return None


def _list_is_good(folder: str) -> bool:
    """Whether the file `checkpoint` is there and can be read."""
    try:
        return tf.train.get_checkpoint_state(folder) is not None
    except ValueError:      # An empty file.
        return False


def _found(folder: str) -> list[str]:
    """The names of the checkpoints whose files lie in a folder, oldest first."""
    names = gfile().listdir(folder) if gfile().isdir(folder) else []
    numbers = sorted(int(match[1]) for name in names
                     if (match := re.fullmatch(rf'{PREFIX}-(\d+)\.index', name)))
    return [f'{PREFIX}-{number}' for number in numbers]


def _mend_list(folder: str) -> None:
    """Writes the file `checkpoint` anew, by the files that are there, where it is damaged or gone."""
    names, path = _found(folder), os.path.join(folder, 'checkpoint')
    if _list_is_good(folder):
        return
    if names:
        lines = [f'model_checkpoint_path: "{names[-1]}"\n',
                 *(f'all_model_checkpoint_paths: "{name}"\n' for name in names)]
        with atomic_write(path, 'w') as file:
            file.write(''.join(lines))
    elif gfile().exists(path):
        gfile().remove(path)


def find_latest_run(result_dir: str) -> str:
    """The run directory with the highest number that holds a checkpoint; UserError where there is none."""
    remote = is_remote_path(result_dir)
    names = []
    if remote or os.path.isdir(result_dir):
        names = gfile().listdir(result_dir) if remote else os.listdir(result_dir)
    numbered = [name.rstrip('/') for name in names if run_number(name.rstrip('/')) is not None]
    for name in sorted(numbered, key=run_number, reverse=True):
        path = f'{result_dir.rstrip("/")}/{name}' if remote else str(pathlib.Path(result_dir) / name)
        if has_checkpoint(path):
            return path
    raise UserError(f'--resume: no run directory with a checkpoint in {result_dir}; '
                    'give a run directory or a network-snapshot-*.pkl')
