"""Console output that also goes to a file."""

import contextlib
import io
import os
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

_ESCAPES = re.compile(r'\x1b\[[0-9;?]*[A-Za-z]')  # Colors and cursor movements of progress bars.


class Logger:
    """Sends what is printed to stdout and stderr also to a file, until closed; a context manager.

    A progress bar redraws its line with carriage returns: of such a line the file receives the final state
    only. Loggers nest: an inner one writes to its own file and to all that the outer one writes to. When the
    file cannot be written (disk full), one warning goes to the console and printing continues; so it does, to
    the file, when the console is gone (a closed terminal, a pipe that nobody reads any more).

    Args:
        file_name: File to write, UTF-8; None: no file.
        file_mode: 'w' begins anew, 'a' appends.
        should_flush: Whether each write reaches the file at once.
    """

    def __init__(
        self,
        file_name: str | os.PathLike | None = None,
        file_mode: str = 'w',
        should_flush: bool = True,
    ):
        self.should_flush = should_flush
        self._lock = threading.RLock()
        self._file = None
        from . import util  # Not at the top: util imports this module.
        if file_name is not None and util.is_remote_path(file_name):
            self._file = util.gfile().GFile(os.fspath(file_name), file_mode)
        elif file_name is not None:
            self._file = open(file_name, file_mode, encoding='utf-8', errors='backslashreplace')
        self.stdout, self.stderr = sys.stdout, sys.stderr  # The streams to restore.
        self._out, self._err = _TeeStream(self, self.stdout), _TeeStream(self, self.stderr)
        sys.stdout, sys.stderr = self._out, self._err

    @property
    def has_file(self) -> bool:
        """Whether there is a file, and it can be written."""
        return self._file is not None

    def __enter__(self) -> 'Logger':
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.close()

    def write(self, text: str) -> None:
        """Prints a text to stdout and the file."""
        self._out.write(text)

    def write_to_file(self, text: str) -> None:
        """Adds a text to the file only."""
        self._to_file(self._err.take_rest() + text)

    def flush(self) -> None:
        """Flushes console and file."""
        self._out.flush()
        self._err.flush()
        self._to_file('', flush=True)

    def close(self) -> None:
        """Restores stdout and stderr and closes the file; a second call does nothing."""
        with self._lock:
            # Somebody may have put another stream in place meanwhile: it stays, and writes through this one.
            if sys.stdout is self._out:
                sys.stdout = self.stdout
            if sys.stderr is self._err:
                sys.stderr = self.stderr
            for stream in (self._out, self._err):
                self._to_file(stream.take_rest())
            if self._file is not None:
                file, self._file = self._file, None
                with contextlib.suppress(OSError):
                    file.close()

    def _to_file(self, text: str, flush: bool = False) -> None:
        with self._lock:
            if self._file is None or not (text or flush):
                return
            try:
                self._file.write(text)
                if flush or self.should_flush:
                    self._file.flush()
            except OSError as error:
                file, self._file = self._file, None
                with contextlib.suppress(OSError):
                    file.close()
                if self.stderr is not None:
                    with contextlib.suppress(OSError):
                        self.stderr.write('Warning: cannot write the log file, going on without it: '
                                          f'{error}\n')


class _TeeStream(io.TextIOBase):
    """Stands for sys.stdout or sys.stderr while a Logger is open; all but writing is the real stream's."""

    def __init__(self, logger: Logger, stream: Any):
        self._logger, self._stream = logger, stream
        self._redrawn = None  # Text since the first carriage return of the line, None before one.
        self._at_start = True  # Whether the file's part of this stream is at the start of a line.

    def write(self, text: str) -> int:
        with self._logger._lock:
            self._logger._to_file(self._filter(text))
        # The real stream is None where there is no console (pythonw, some services).
        stream = self._stream   # Another thread may let go of it.
        if stream is not None:
            with self._console():
                stream.write(text)
                if self._logger.should_flush:
                    stream.flush()
        return len(text)

    @contextlib.contextmanager
    def _console(self) -> Iterator[None]:
        """Lets go of a console that is no longer there, where a file has all that is printed."""
        try:
            yield
        except OSError as error:
            if not self._logger.has_file:
                raise
            self._stream = None
            start = '' if self._at_start else '\n'
            self._logger.write_to_file(f'{start}Warning: cannot write to the console, going on without it: '
                                       f'{error}\n')
            self._at_start = True

    def _filter(self, text: str) -> str:
        """What of a text goes to the file: lines with carriage returns wait until they end."""
        out = []
        for line in _lines(text):
            if self._redrawn is None and '\r' not in line:
                out.append(line)
                self._at_start = line.endswith('\n')
                continue
            self._redrawn = (self._redrawn or '') + line
            if line.endswith('\n'):
                out.append(self.take_rest())
            else:  # Of a long run of updates only the last complete one and the one begun are needed.
                *drawn, begun = self._redrawn.split('\r')
                self._redrawn = next((state for state in reversed(drawn) if state), '') + '\r' + begun
        return ''.join(out)

    def take_rest(self) -> str:
        """Ends a line that carriage returns redrew: returns its final state, or '' when it was wiped."""
        if self._redrawn is None:
            return ''
        ended = self._redrawn.endswith('\n')
        states = [state for state in self._redrawn.rstrip('\n').split('\r') if state]
        final = states[-1].rstrip() if states else ''
        start = '' if self._at_start else '\n'
        self._redrawn, self._at_start = None, True
        if final:
            return f'{start}{final}\n'
        return '\n' if ended or start else ''

    def flush(self) -> None:
        stream = self._stream
        if stream is not None:
            with self._console():
                stream.flush()

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation('fileno')
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Does nothing: the real stream belongs to the interpreter."""

    @property
    def encoding(self) -> str:
        return getattr(self._stream, 'encoding', None) or 'utf-8'

    @property
    def errors(self) -> str | None:
        return getattr(self._stream, 'errors', None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _lines(text: str) -> list[str]:
    """Splits at newlines only (str.splitlines would also split at carriage returns), keeping them."""
    return re.findall(r'[^\n]*\n|[^\n]+', _ESCAPES.sub('', text).replace('\r\n', '\n'))
