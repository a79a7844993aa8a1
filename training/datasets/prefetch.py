"""Reading ahead of the consumer, and work on many images at once, both in threads.

Decoding, checksums and copies leave the interpreter to other threads, so that they run side by side.
"""

import concurrent.futures
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(num_threads(), 'decode')


def num_threads() -> int:
    """How many threads read and decode."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return min(max(cpus, 1), 16)


def map_in_threads(function: Callable, *arguments: Iterable) -> list:
    """`list(map(function, *arguments))` in threads. An exception is raised once all calls have ended."""
    calls = [_pool().submit(function, *args) for args in zip(*arguments, strict=True)]
    concurrent.futures.wait(calls)
    return [call.result() for call in calls]


class _Failure:
    """An exception, or the end, on its way from a reading thread to the consumer."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Work:
    """What the threads of a Prefetcher share; it does not refer to the Prefetcher, which may be dropped."""

    def __init__(self, source: Iterator, function: Callable | None, limit: int) -> None:
        self.source, self.function, self.limit = source, function, limit
        self.lock = threading.Lock()                # Of the source, and of the numbers.
        self.changed = threading.Condition()        # Of what follows; re-entrant.
        self.done = {}                              # Number → result.
        self.taken = self.given = 0
        self.stop = self.ended = False

    def run(self) -> None:
        """Body of the threads."""
        while True:
            with self.lock:
                with self.changed:
                    self.changed.wait_for(lambda: self.stop or self.taken < self.given + self.limit)
                    if self.stop or self.ended:
                        return
                    number, self.taken = self.taken, self.taken + 1
                try:
                    item = next(self.source)
                except BaseException as error:  # Whatever it is, it is raised again where the data is used.
                    self._finish(number, _Failure(error), ended=True)
                    return
            if self.function is not None:
                try:
                    item = self.function(item)
                except BaseException as error:
                    self._finish(number, _Failure(error), ended=True)
                    return
            self._finish(number, item)
            del item    # Not kept while waiting.

    def _finish(self, number: int, result: Any, ended: bool = False) -> None:
        with self.changed:
            self.done[number] = result
            self.ended |= ended
            self.changed.notify_all()

    def cancel(self) -> None:
        """Makes the threads end."""
        with self.changed:
            self.stop = True
            self.changed.notify_all()


class Prefetcher:
    """Iterator that reads ahead of its consumer in background threads. The order is that of the source.

    An exception of the source is raised to the consumer after the items before it. Also a context manager.

    Args:
        source: Iterator; used by the threads alone from now on.
        depth: Most items that wait, ≥ 1.
        function: What is done with each item, by the threads at the same time; None for nothing.
        threads: Number of threads.
    """

    def __init__(self, source: Iterator, depth: int = 2, function: Callable | None = None,
                 threads: int = 1) -> None:
        if depth < 1:
            raise ValueError(f'depth must be 1 or larger; received {depth}')
        self._work = _Work(iter(source), function, depth + threads)
        self._threads = [threading.Thread(target=self._work.run, name='prefetch', daemon=True)
                         for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> 'Prefetcher':
        return self

    def __next__(self) -> Any:
        work = self._work
        with work.changed:
            work.changed.wait_for(lambda: work.stop or work.given in work.done)
            if work.stop:
                raise StopIteration
            item = work.done.pop(work.given)
            work.given += 1
            work.changed.notify_all()
        if isinstance(item, _Failure):
            self.close()
            raise item.error
        return item

    def close(self) -> None:
        """Stops the threads and waits for them; waiting items are dropped. May be called twice."""
        self._work.cancel()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        self._work.done.clear()

    def __enter__(self) -> 'Prefetcher':
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, '_work'):      # Without waiting: at the end of the program the threads may be gone.
            self._work.cancel()
