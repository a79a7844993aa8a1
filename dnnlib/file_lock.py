"""A lock between processes: whoever holds the file's lock works, others wait or are told."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator

__all__ = ['LockedError', 'file_lock', 'locks_work']

_POLL = 0.1     # Seconds between two attempts.


class LockedError(Exception):
    """Another process holds the lock. `path`: the file of the lock."""

    def __init__(self, path: str) -> None:
        super().__init__(f'another process holds {path}')
        self.path = path


@contextlib.contextmanager
def file_lock(path: str | os.PathLike, time_limit: float = 0,
              on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds a lock between processes; the system frees that of a process that ends, however it does.

    The file stays, empty: removing it would let a third process lock another file of the same name while the
    second still waits for this one. Where the file system has no locks nothing is held (Windows, some network
    mounts): what the lock protects has to appear whole all the same.

    Args:
        path: File of the lock, made if it is not there, or an existing directory.
        time_limit: Seconds to wait for another process; 0 = not at all.
        on_wait: Called once when there is something to wait for.

    Errors: LockedError when another process does not give it up in time; OSError as `open` raises it.
    """
    path = os.fspath(path)
    deadline = time.monotonic() + time_limit
    flags = os.O_RDONLY if os.path.isdir(path) else os.O_WRONLY | os.O_CREAT
    descriptor = os.open(path, flags, 0o666)
    try:
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                raise LockedError(path)
            if on_wait is not None:
                on_wait()
                on_wait = None
            time.sleep(_POLL)
        yield
    finally:
        os.close(descriptor)


def locks_work(path: str | os.PathLike) -> bool:
    """Whether a lock that `file_lock` has taken keeps others out; not where its file is not even there."""
    try:
        with open(path, 'r+b') as file:
            return not _try_lock(file.fileno())
    except OSError:
        return False


def _try_lock(descriptor: int) -> bool:
    """False if another process has it; True if it is ours or there are no locks here."""
    try:
        import fcntl  # Not on Windows.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True
