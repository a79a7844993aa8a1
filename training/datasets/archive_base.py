"""What the readers of publishers' archives share: the interface of a source, and bounded reading."""

import bisect
import gzip
import itertools
import os
import threading
import zlib
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from dnnlib.util import UserError

_CHUNK = 1 << 20
_READ_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)

_open_lock = threading.Lock()


def _renew_lock() -> None:
    global _open_lock
    _open_lock = threading.Lock()   # The forking thread's siblings may have held the old one.


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_renew_lock)


class Source:
    """Images as their publisher ships them, read one by one in any order.

    Safe for threads and forked processes. Pickles without open files: they are opened where they are used.

    Attributes:
        name: Short name.
        shape: [H, W, C] of each image.
        labels: int [N], float32 [N, K] or None.
        label_names: One name per class or component, or None.
        description: Where the images come from and what was done with them, for people.
        shuffled: Whether the official command of this data set shuffles the images.
        problems: Messages of images for which `read` will raise UserError, by index, as far as known.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        description: str,
        labels: np.ndarray | None = None,
        label_names: list[str] | None = None,
        shuffled: bool = True,
    ) -> None:
        self.name = name
        self.shape = [int(size) for size in shape]
        self.description = description
        self.labels = labels
        self.label_names = label_names
        self.shuffled = shuffled
        self.problems = {}
        self._handle = (0, None)        # The process that opened it, and the open file.

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, index: int) -> np.ndarray:
        """The image of an index: uint8 [H, W, C], the caller's own.

        Errors: UserError, naming the file, for an image that cannot be used; LeftOutError if the recipe of
        this data set leaves it out; IndexError.
        """
        raise NotImplementedError

    def item_name(self, index: int) -> str:
        """What messages call the image of an index."""
        raise NotImplementedError

    def close(self) -> None:
        """Releases open files; the next `read` opens them again."""
        pid, handle = self._handle
        self._handle = (0, None)
        if handle is not None and pid == os.getpid():
            self._close(handle)

    def _open(self) -> Any:
        """Opens the files; called once per process."""
        raise NotImplementedError

    def _close(self, handle: Any) -> None:
        handle.close()

    def _opened(self) -> Any:
        pid, handle = self._handle
        if handle is None or pid != os.getpid():    # A forked process shares the position in open files.
            with _open_lock:
                pid, handle = self._handle
                if handle is None or pid != os.getpid():
                    handle = self._open()
                    self._handle = (os.getpid(), handle)
        return handle

    def _check_index(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f'{self.name} holds images 0 to {len(self) - 1}; received index {index}')
        return int(index)

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_handle': (0, None)}

    def __enter__(self) -> 'Source':
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


class ArraySource(Source):
    """Images that are held in memory, as one array; pickled copies read it again where they are used.

    Args:
        load: Returns uint8 [N, H, W, C]; a top-level function or a partial of one.
        parts: (file, number of images in it) in the order of the array.
        images: What `load` returned, if it was called already.
        The others: see Source.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], np.ndarray],
        parts: list[tuple[str, int]],
        description: str,
        images: np.ndarray | None = None,
        **options: Any,
    ) -> None:
        images = load() if images is None else images
        super().__init__(name, images.shape[1:], description, **options)
        self._load = load
        self._files = [path for path, _ in parts]
        self._ends = list(itertools.accumulate(count for _, count in parts))
        self._array_shape = images.shape
        self._handle = (os.getpid(), images)

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, index: int) -> np.ndarray:
        return np.array(self._opened()[self._check_index(index)], order='C')

    def item_name(self, index: int) -> str:
        part = bisect.bisect_right(self._ends, index)
        first = self._ends[part - 1] if part else 0
        return f'{self._files[part]}[{index - first}]'

    def _opened(self) -> np.ndarray:
        if self._handle[1] is not None:     # Memory, unlike open files, survives a fork.
            return self._handle[1]
        return super()._opened()

    def _open(self) -> np.ndarray:
        images = self._load()
        if images.shape != self._array_shape:
            raise UserError(f'{self._files[0]} has changed since it was opened; start again.')
        return images

    def _close(self, handle: np.ndarray) -> None:
        pass


def read_exactly(file: IO[bytes], count: int, path: str) -> bytes:
    """`count` bytes, read in pieces, so that a header that lies about the size takes no memory.

    Errors: UserError, naming the file, if it ends before or is damaged.
    """
    pieces, left = [], count
    try:
        while left:
            piece = file.read(min(left, _CHUNK))
            if not piece:
                raise UserError(f'{path} is truncated: {left} of {count} bytes are missing; download or copy '
                                'it again.')
            pieces.append(piece)
            left -= len(piece)
    except _READ_ERRORS as error:
        raise UserError(f'{path} is truncated or damaged ({error}); download or copy it again.') from error
    return b''.join(pieces)


def check_end(file: IO[bytes], path: str, what: str) -> None:
    """Errors: UserError, naming the file, if there is more of it or a checksum of what was read is wrong."""
    try:
        more = file.read(1)
    except _READ_ERRORS as error:
        raise UserError(f'{path} is truncated or damaged ({error}); download or copy it again.') from error
    if more:
        raise UserError(f'{path} goes on after {what}; download or copy it again.')


class BoundedReader:
    """A file that refuses to be read beyond `limit` bytes, for archives that unpack to more than they should.

    Args:
        file: Readable and seekable binary file.
        limit: Largest position.
        path: What messages call it.
    """

    def __init__(self, file: IO[bytes], limit: int, path: str) -> None:
        self._file, self._limit, self._path = file, limit, path

    def _check(self, end: int) -> None:
        if end > self._limit:
            raise UserError(f'{self._path} unpacks to more than {self._limit} bytes, which this data set '
                            'does not; download it again.')

    def read(self, count: int = -1) -> bytes:
        count = self._limit + 1 - self._file.tell() if count < 0 else count
        self._check(self._file.tell() + count)
        return self._file.read(count)

    def seek(self, position: int, whence: int = 0) -> int:
        if whence == 0:
            self._check(position)
        return self._file.seek(position, whence)

    def tell(self) -> int:
        return self._file.tell()


def missing_extra(module: str, error: ImportError) -> UserError:
    """The message for a package that only some data sets need."""
    return UserError(f'reading this data set needs the package {module} ({error}); install it with: '
                     'pip install stylegan-tf2[data]')


def find_file(folder: str, names: list[str], what: str) -> str:
    """The first of the names that lies in a folder, or the path itself if it is such a file.

    Errors: UserError that says which files are needed.
    """
    if not os.path.exists(folder):
        raise UserError(f'there is no folder {folder}; expected the one with {what}: {names[0]}.')
    if os.path.isfile(folder):
        if os.path.basename(folder) in names:
            return folder
        raise UserError(f'{folder} is not {what}; expected {" or ".join(names)}, or the folder that holds '
                        'it.')
    for name in names:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
    there = sorted(name for name in os.listdir(folder) if not name.startswith('.'))
    shown = ', '.join(there[:8] + ['...'] * (len(there) > 8)) or 'nothing'
    raise UserError(f'{folder} does not hold {what}: expected {" or ".join(names)}; it holds {shown}.')
