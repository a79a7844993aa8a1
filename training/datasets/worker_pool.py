"""Work spread over processes, results in order; and the line that says how far it is."""

import collections
import contextlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tqdm

from dnnlib.util import UserError, format_time

_AHEAD = 2              # Tasks that a worker holds: one in work, one waiting.
_LOG_SECONDS = 10       # Between the lines of a log.


def default_workers() -> int:
    """The number of processors that this process may use, at most 16."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return min(available, 16)


def ordered_map(func: Callable, tasks: Iterable, workers: int) -> Iterator:
    """`map(func, tasks)` by several processes, which end with this one, however it ends.

    Processes are started afresh ('spawn'), not copied: safe beside threads and TensorFlow. No more than twice
    as many results as workers wait to be taken.

    Args:
        func: A function at the top level of a module, or an object with `__call__`; pickled once per worker.
        tasks: Arguments, small ones.
        workers: Number of processes; 1 = none but this one.

    Errors: Those of func, in the order of the tasks. UserError if a worker dies.
    """
    if workers <= 1:
        yield from map(func, tasks)
        return
    with _Pool(func, workers) as pool:
        yield from pool.map(tasks)


class _Pool:
    """Worker processes with a pipe each. Nobody else holds its ends, so a side sees when the other dies."""

    def __init__(self, func: Callable, workers: int) -> None:
        context = multiprocessing.get_context('spawn')
        self._processes = {}    # By the connection.
        try:
            with _interrupts_ignored():     # Workers inherit it: Ctrl-C is this process's business alone.
                for _ in range(workers):
                    mine, theirs = context.Pipe()
                    process = context.Process(target=_serve, args=(theirs, func), daemon=True)
                    self._processes[mine] = process
                    process.start()
                    theirs.close()
        except BaseException:
            self.close()
            raise

    def map(self, tasks: Iterable) -> Iterator:
        """Results in order."""
        tasks = enumerate(tasks)
        held = collections.Counter()
        results = {}
        wanted = submitted = 0
        done = False
        while True:
            for connection in [*self._processes] * _AHEAD:
                if done or held[connection] >= _AHEAD or submitted - wanted >= _AHEAD * len(self._processes):
                    continue
                task = next(tasks, None)
                done = task is None
                if not done:
                    self._talk(connection, connection.send, task)
                    held[connection] += 1
                    submitted += 1
            if wanted in results:
                yield _unwrap(*results.pop(wanted))
                wanted += 1
            elif wanted == submitted:
                return
            else:
                busy = [connection for connection in held if held[connection]]
                for connection in multiprocessing.connection.wait(busy):
                    number, *result = self._talk(connection, connection.recv)
                    results[number] = result
                    held[connection] -= 1

    def _talk(self, connection: Any, action: Callable, *args: Any) -> Any:
        try:
            return action(*args)
        except (EOFError, ConnectionError) as error:
            process = self._processes[connection]
            process.join(5)
            code = process.exitcode
            how = f'was ended by signal {-code}' if code is not None and code < 0 else f'ended ({code})'
            hint = ' Mostly memory has run out: give a smaller --workers.' if code == -signal.SIGKILL else ''
            raise UserError(f'a worker process {how}.{hint}') from error

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        for connection, process in self._processes.items():
            connection.close()
            if process.pid is not None:
                process.kill()
        for process in self._processes.values():
            if process.pid is not None:
                process.join()

    def __enter__(self) -> '_Pool':
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _serve(connection: Any, func: Callable) -> None:
    """Body of a worker process."""
    os.environ['CUDA_VISIBLE_DEVICES'] = '-1'   # Should it need TensorFlow: not the memory of the GPU.
    with contextlib.suppress(EOFError, ConnectionError):    # The other process has ended, or wants no more.
        while True:
            number, task = connection.recv()
            try:
                result = number, func(task), None
            except Exception as error:  # Whatever it is, it is raised again where the result is used.
                result = number, error, traceback.format_exc()
            connection.send(result)


def _unwrap(value: Any, trace: str | None) -> Any:
    if trace is None:
        return value
    if isinstance(value, UserError | OSError):
        raise value
    raise RuntimeError(f'in a worker process: {trace}') from value


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def check_picklable(obj: Any, what: str) -> None:
    """Errors: UserError where `obj` cannot go to another process."""
    try:
        pickle.dumps(obj)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UserError(f'{what} cannot be used by several processes: {error}. Give --workers=1.') from error


class Progress:
    """How far the work is and how long it will take: a bar on a terminal, a line now and then in a log.

    Args:
        total: Number of images.
        done: Number of those that were finished before.
        what: The work, for the beginning of the line.
    """

    def __init__(self, total: int, done: int = 0, what: str = 'Images') -> None:
        self._total, self._first, self._done, self._what = total, done, done, what
        self._begin = self._printed = time.monotonic()
        self._bar = None
        if sys.stderr is not None and sys.stderr.isatty():
            self._bar = tqdm.tqdm(total=total, initial=done, desc=what, unit=' images', dynamic_ncols=True)

    def add(self, count: int) -> None:
        """Counts images as done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._printed >= _LOG_SECONDS:
            self._printed = time.monotonic()
            rate = self.rate
            left = format_time((self._total - self._done) / rate) if rate else '?'
            print(f'{self._what}: {self._done} of {self._total} ({100 * self._done // self._total}%), '
                  f'{rate:.0f} images/s, {left} left', flush=True)

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._begin

    @property
    def rate(self) -> float:
        """Images per second since the start."""
        return (self._done - self._first) / max(self.seconds, 1e-9)

    def close(self) -> None:
        """Ends the bar's line."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
