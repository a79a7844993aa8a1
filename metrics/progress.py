"""Progress of long computations: a bar with the time left on a terminal, lines now and then elsewhere."""

import sys
import time
from typing import Any

from tqdm import tqdm

from dnnlib.util import format_time_brief

LINE_EVERY = 20         # Seconds between lines where there is no terminal.


class Progress:
    """A context manager with `update(count)`.

    Args:
        label: What is done.
        total: Number of steps.
        unit: Their name.
    """

    def __init__(self, label: str, total: int, unit: str = 'img'):
        self._label, self._total, self._unit = label, total, unit
        self._count, self._bar = 0, None

    def __enter__(self) -> 'Progress':
        self._start = self._last = time.monotonic()
        if sys.stderr is not None and sys.stderr.isatty():
            self._bar = tqdm(total=self._total, desc=self._label, unit=self._unit, file=sys.stderr,
                             leave=False)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int = 1) -> None:
        """Counts steps."""
        self._count += count
        if self._bar is not None:
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._last >= LINE_EVERY:
            self._last = now
            speed = self._count / (now - self._start)
            left = format_time_brief(max(self._total - self._count, 0) / speed)
            print(f'{self._label}: {self._count}/{self._total} {self._unit}, {speed:.1f} {self._unit}/s, '
                  f'{left} left', flush=True)
