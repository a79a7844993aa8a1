"""The place where a data set is made, beside that where it will be, and how it gets there.

While it is made, the data set NAME lies in `.NAME.partial`, which the process at work holds locked:

    state.json      what is made and how far it is, written anew every few seconds
    progress/       append-only: digests of the images, lengths of encoded records, what was left out
    data/           the files of the data set, renamed to NAME at the very end
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from typing import BinaryIO

from dnnlib.file_lock import LockedError, file_lock
from dnnlib.util import UserError, atomic_write, is_remote_path

_DATA_FILES = re.compile(
    r'.*-r\d\d(-\d{5}-of-\d{5})?\.tfrecords(\.index)?|.*\.labels|dataset\.json|\..*\.tmp-\d+-[0-9a-f]+')
_OUR_FILES = re.compile(_DATA_FILES.pattern + r'|.*\.lengths|digests|skipped')


def target_folder(path: str) -> str:
    """The absolute path of a data set to make. Errors: UserError where none can be."""
    if is_remote_path(path):
        raise UserError(f'{path}: data sets are made in local folders; copy the finished one there.')
    path = os.path.realpath(os.path.expanduser(path))
    if path == os.path.realpath(os.curdir) or os.path.ismount(path):
        raise UserError(f'{path} is a mount point or the current directory; give a new folder in it.')
    if os.path.basename(path).startswith('.'):
        raise UserError(f'{path}: names that begin with a dot are hidden from the readers of data sets.')
    return path


def check_target(path: str, overwrite: bool = False) -> None:
    """Errors: UserError where a data set must not be put, since something is there."""
    if not os.path.lexists(path):
        return
    if not os.path.isdir(path):
        raise UserError(f'{path} is a file; expected the name of a folder to make.')
    names = sorted(os.listdir(path))
    foreign = [name for name in names if not _DATA_FILES.fullmatch(name)]
    if foreign:
        raise UserError(f'{path} exists and holds what is not of a data set ({foreign[0]}); give another '
                        'folder, or move these files away.')
    if names and not overwrite:
        raise UserError(f'{path} exists and holds a data set ({names[0]}); give another folder, or '
                        '--overwrite to replace it.')


def remove_data_files(folder: str) -> None:
    """Removes a folder of data set files; others in it are left. Errors: UserError if there are any."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            if _DATA_FILES.fullmatch(name):
                os.unlink(os.path.join(folder, name))
        try:
            os.rmdir(folder)
        except OSError as error:
            raise UserError(f'{folder} holds files that are not of a data set; move them away.') from error


class Workspace:
    """The folder `.NAME.partial` and its append-only files."""

    def __init__(self, target: str) -> None:
        parent, name = os.path.split(target)
        self.target = target
        self.path = os.path.join(parent, f'.{name}.partial')
        self.data = os.path.join(self.path, 'data')
        self._old = os.path.join(self.path, 'data.old')
        self._progress = os.path.join(self.path, 'progress')
        self._state = os.path.join(self.path, 'state.json')
        self._files: dict[str, BinaryIO] = {}
        self.sizes: dict[str, int] = {}     # Of all files, in step with each other after each task.

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out of the folder; makes and, when it is empty at the end, removes it."""
        with self._acquire():
            try:
                self._tidy()
                yield
            finally:
                self.close()
                with contextlib.suppress(OSError):      # Not empty: an unfinished conversion.
                    os.rmdir(self.path)

    def _acquire(self) -> contextlib.ExitStack:
        while True:
            os.makedirs(self.path, exist_ok=True)
            with contextlib.ExitStack() as stack:
                try:
                    before = os.stat(self.path)
                    stack.enter_context(file_lock(self.path))
                    if os.path.samestat(before, os.stat(self.path)):
                        return stack.pop_all()
                except LockedError:
                    raise UserError(f'{self.target} is being made by another process; wait for it or give '
                                    'another folder.') from None
                except FileNotFoundError:       # The process that held it has just finished and removed it.
                    pass

    def _tidy(self) -> None:
        """Removes what is left where a process was ended right after it had put the data set in its place."""
        if os.path.isfile(self._state) and os.path.isdir(self.target) and not os.path.isdir(self.data):
            self.clear()
            remove_data_files(self._old)
        elif not os.path.isfile(self._state) and os.listdir(self.path):
            raise UserError(f'{self.path} does not come from a conversion; move it away.')

    def load(self) -> dict | None:
        """The state of an unfinished conversion, with files cut back to it; None where there is none."""
        try:
            with open(self._state, encoding='utf-8') as file:
                state = json.load(file)
            sizes = {self.file(name): size for name, size in state['sizes'].items()}
            if any(os.path.getsize(path) < size for path, size in sizes.items()):
                return None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        for path, size in sizes.items():
            os.truncate(path, size)
        for folder in [self.data, self._progress]:
            for name in os.listdir(folder):     # Begun after the state was saved.
                if os.path.join(folder, name) not in sizes and _OUR_FILES.fullmatch(name):
                    os.unlink(os.path.join(folder, name))
        self.sizes = state['sizes']
        return state

    def save(self, state: dict) -> None:
        """Makes what was written so far safe."""
        for file in self._files.values():
            os.fsync(file.fileno())
        with atomic_write(self._state, 'w') as file:
            json.dump({**state, 'sizes': self.sizes}, file)

    def start(self) -> None:
        """Removes what an earlier conversion has left, and nothing else."""
        self.clear()
        self.save({})
        os.makedirs(self.data)
        os.makedirs(self._progress)

    def clear(self) -> None:
        """Removes all files of a conversion. The state is last: it tells that they are ours."""
        self.close()
        self.sizes = {}
        remove_data_files(self.data)
        if os.path.isdir(self._progress):
            shutil.rmtree(self._progress)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._state)

    def file(self, name: str) -> str:
        """Path of an append-only file: records are data, all else is progress."""
        return os.path.join(self.data if name.endswith('.tfrecords') else self._progress, name)

    def append(self, name: str, data: bytes) -> None:
        """Writes to the end of a file. Errors: OSError that names the file."""
        if name not in self._files:
            self._files[name] = open(self.file(name), 'ab', buffering=0)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._files[name].write(rest):]
        except OSError as error:
            error.filename = self.file(name)
            raise

    def read(self, name: str) -> bytes:
        """What was appended to a file."""
        if name not in self.sizes:
            return b''
        with open(self.file(name), 'rb') as file:
            return file.read(self.sizes[name])

    def close(self) -> None:
        """Releases the files, safe on the disk."""
        for file in self._files.values():
            with file:
                os.fsync(file.fileno())
        self._files = {}

    def move_to_target(self) -> None:
        """Puts the finished data set in its place, and an old one of that name aside."""
        if os.path.isdir(self.target) and os.listdir(self.target):
            check_target(self.target, overwrite=True)
            remove_data_files(self._old)
            os.rename(self.target, self._old)
        os.rename(self.data, self.target)
        remove_data_files(self._old)
        self.clear()
