"""What a running function knows about its run: times, progress, and whether it was asked to stop."""

import contextlib
import os
import signal
import threading
import time
from typing import Any

from .. import util

# SIGHUP: the terminal was closed. Not on Windows.
_SIGNALS = tuple(getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP') if hasattr(signal, name))


class RunContext:
    """The state of the run in this process; a context manager, one at a time.

    A file `abort.txt` in the run directory, Ctrl-C, SIGTERM, SIGHUP (a closed terminal) or `request_stop`
    make `should_stop()` true, so that the loop can save its state and return. A second Ctrl-C raises
    KeyboardInterrupt at once. The signals keep their usual effect in functions that never look: they are
    taken over when the function itself opens a RunContext or calls `should_stop()` for the first time, in the
    main thread only, and handed back by `close()`.

    Opening a RunContext for the run that is going on (as `submit_run` has already done) returns the same
    object.

    Args:
        submit_config: SubmitConfig of the run; its `run_dir` may be None (nothing is looked for then).
        max_epoch: Number of epochs to do, if known.
        take_signals: Whether to take over Ctrl-C and the like at once; False: at the first `should_stop()`.

    Errors: RuntimeError when another run is going on.
    """

    _current = None

    def __new__(cls, submit_config: dict, max_epoch: int | float | None = None, take_signals: bool = True):
        current = RunContext._current
        if current is None:
            return super().__new__(cls)
        if current.run_dir != submit_config.get('run_dir'):
            raise RuntimeError(f'a run is going on in {current.run_dir}: close its RunContext first')
        return current

    def __init__(self, submit_config: dict, max_epoch: int | float | None = None, take_signals: bool = True):
        if RunContext._current is self:
            self._depth += 1
            self.max_epoch = self.max_epoch if max_epoch is None else max_epoch
        else:
            self._depth = 1
            self.submit_config = submit_config
            self.run_dir = submit_config.get('run_dir')
            self.cur_epoch = None
            self.max_epoch = max_epoch
            self.loss = None
            self.stop_reason = None  # Why the run is to stop: 'abort.txt', 'SIGTERM', ...; None: it is not.
            self.stop_signal = None  # The signal that asked for it.
            self._start_time = self._update_time = time.monotonic()
            self._update_interval = 0.0
            self._old_handlers = {}
            RunContext._current = self
        if take_signals:
            self._take_signals()

    def __enter__(self) -> 'RunContext':
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()

    @staticmethod
    def get() -> 'RunContext':
        """The RunContext of this process. Errors: RuntimeError when no run is going on."""
        if RunContext._current is None:
            raise RuntimeError('no run is going on: call this from a function started by submit_run, '
                               'or open a RunContext first')
        return RunContext._current

    @staticmethod
    def is_initialized() -> bool:
        """Whether a run is going on in this process."""
        return RunContext._current is not None

    def close(self) -> None:
        """Ends the run for whoever opened it; the outermost call hands the signals back."""
        self._depth -= 1
        if self._depth <= 0:
            self.close_all()

    def close_all(self) -> None:
        """Ends the run, however often it was opened."""
        self._depth = 0
        if RunContext._current is self:
            RunContext._current = None
            self._release_signals()

    # Progress.

    def update(
        self,
        loss: Any = None,
        cur_epoch: int | float | None = None,
        max_epoch: int | float | None = None,
    ) -> None:
        """Notes the progress of the run and the time of this update; prints nothing."""
        now = time.monotonic()
        self._update_interval, self._update_time = now - self._update_time, now
        self.loss = self.loss if loss is None else loss
        self.cur_epoch = self.cur_epoch if cur_epoch is None else cur_epoch
        self.max_epoch = self.max_epoch if max_epoch is None else max_epoch

    def get_time_since_start(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._start_time

    def get_time_since_last_update(self) -> float:
        """Seconds since the last `update`, or since the start."""
        return time.monotonic() - self._update_time

    def get_last_update_interval(self) -> float:
        """Seconds between the last `update` and the one before it, or the start; 0 before the first."""
        return self._update_interval

    def get_cur_epoch(self) -> int | float | None:
        """The epoch of the last `update`."""
        return self.cur_epoch

    def get_max_epoch(self) -> int | float | None:
        """Number of epochs to do, None when unknown."""
        return self.max_epoch

    # Stopping.

    def should_stop(self) -> bool:
        """Whether the run was asked to stop, by abort.txt, a signal or `request_stop` (see `stop_reason`)."""
        self._take_signals()
        if self.stop_reason is None and self.run_dir is not None:
            path = os.path.join(self.run_dir, 'abort.txt')
            if util.gfile().exists(path) if util.is_remote_path(path) else os.path.exists(path):
                self.request_stop('abort.txt')
        return self.stop_reason is not None

    def request_stop(self, reason: str) -> None:
        """Makes `should_stop()` true; the first reason given is kept."""
        if self.stop_reason is None:
            self.stop_reason = reason

    def _take_signals(self) -> None:
        if self._old_handlers or threading.current_thread() is not threading.main_thread():
            return
        if RunContext._current is not self:
            return
        for number in _SIGNALS:
            # Ignored from the start (`nohup`, background jobs): stays ignored.
            if signal.getsignal(number) != signal.SIG_IGN:
                self._old_handlers[number] = signal.signal(number, self._on_signal)

    def _release_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number, handler in self._old_handlers.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._old_handlers = {}

    def _on_signal(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT and self.stop_signal is not None:
            raise KeyboardInterrupt
        name = signal.Signals(number).name
        if self.stop_signal is None:
            self.stop_signal = number
            self.request_stop(name)
            hint = ' (Ctrl-C again: at once)' if number == signal.SIGINT else ''
            # Not print: the signal may have come in the middle of another one.
            with contextlib.suppress(OSError):
                os.write(2, f'\n{name}: stopping as soon as the state is saved{hint}\n'.encode())
