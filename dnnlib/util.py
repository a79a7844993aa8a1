"""Small helpers for every module: EasyDict, Logger, files and addresses, functions by name, times.

Imports nothing but the standard library; TensorFlow is loaded only when a path such as `gs://bucket/file`
needs its file systems.
"""

import contextlib
import difflib
import errno
import importlib
import math
import os
import pkgutil
import re
import secrets
import stat
import sys
import tempfile
import types
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from .logger import Logger

__all__ = [
    'EasyDict', 'Logger', 'UserError', 'atomic_write', 'call_func_by_name', 'did_you_mean', 'format_time',
    'format_time_brief', 'get_module_from_obj_name', 'get_obj_by_name', 'get_top_level_function_name',
    'gfile', 'is_remote_path', 'is_top_level_function', 'is_url', 'make_cache_dir_path', 'open_url',
    'set_cache_dir',
]


class UserError(ValueError):
    """A mistake of the user, in one line: what was received, what was expected, what to do.

    Command lines print the line on stderr and exit with status 2, without a traceback (`dnnlib.flags.run`).
    """

    # Keras adds the values of all arguments to the message of an exception that passes through a layer,
    # unless it has done so already: this makes it leave the one line alone.
    _keras_call_info_injected = True


class EasyDict(dict):
    """A dict whose items are also attributes: `d.key` is `d['key']`; a missing one raises AttributeError.

    Pickles and deep-copies like a dict. An item named like a method of dict (`keys`, `items`) is reached by
    `d['keys']` only.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f'{type(self).__name__} has no {name!r}') from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f'{type(self).__name__} has no {name!r}') from None


def did_you_mean(name: str, candidates: Iterable[str], count: int = 3) -> str:
    """The tail of an error message, `"; did you mean 'a' or 'b'?"`; empty when nothing is close to `name`."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(name.lower(), list(by_lower), n=count, cutoff=0.6)
    return f'; did you mean {" or ".join(repr(by_lower[match]) for match in matches)}?' if matches else ''


# Times.

def format_time(seconds: int | float) -> str:
    """Seconds as in the official logs: '42s', '3m 05s', '1h 02m 03s', '2d 03h 04m'; '?' if not finite."""
    if not math.isfinite(seconds):
        return '?'
    total = round(abs(float(seconds)))
    sign = '-' if seconds < 0 and total else ''
    minutes, secs = divmod(total, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f'{sign}{days}d {hours:02}h {minutes:02}m'
    if hours:
        return f'{sign}{hours}h {minutes:02}m {secs:02}s'
    if minutes:
        return f'{sign}{minutes}m {secs:02}s'
    return f'{sign}{secs}s'


def format_time_brief(seconds: int | float) -> str:
    """`format_time` with the two largest units only: '42s', '3m 05s', '1h 02m', '2d 03h'."""
    return ' '.join(format_time(seconds).split(' ')[:2])


# Paths and files.

def is_url(obj: Any, allow_file_urls: bool = False) -> bool:
    """Whether `obj` is a string with an http(s) address (or, when allowed, a file:// address)."""
    if not isinstance(obj, str) or '://' not in obj:
        return False
    try:
        parts = urllib.parse.urlparse(obj)
    except ValueError:
        return False
    if parts.scheme == 'file':
        return allow_file_urls and bool(parts.path)
    return parts.scheme in ('http', 'https') and bool(parts.hostname)


def is_remote_path(path: str | os.PathLike) -> bool:
    """Whether a path names another file system ('gs://bucket/file'), to be reached through tf.io.gfile."""
    return re.match(r'[a-zA-Z][a-zA-Z0-9+.-]+://', os.fspath(path)) is not None


def gfile() -> types.ModuleType:
    """The module tf.io.gfile, imported on first use so that local work does not wait for TensorFlow."""
    import tensorflow as tf
    return tf.io.gfile


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = 'wb', **open_kwargs: Any) -> Iterator[IO]:
    """Opens a file that appears under its name only when it is whole.

    Writes to `.<name>.tmp-<pid>-<random>` in the same directory, flushes it to the disk and renames it. When
    the block raises, the temporary file is removed and an older file of that name stays as it was. An
    existing file's permissions are kept; a symbolic link stays a link; a device such as /dev/null is written
    to directly.

    Args:
        path: File to write; its directory must exist. 'gs://...' and the like go through tf.io.gfile.
        mode: 'wb' or 'w' (text is UTF-8 unless `encoding` is given).
        **open_kwargs: Passed on to `open` (local files only).

    Errors: UserError for another mode; OSError as `open` and `os.replace` raise it.
    """
    if mode not in ('w', 'wb', 'wt'):
        raise UserError(f"atomic_write: expected mode 'w' or 'wb', received {mode!r}")
    remote = is_remote_path(path)
    with _atomic_remote(os.fspath(path), mode) if remote else _atomic_local(path, mode, open_kwargs) as file:
        yield file


_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextlib.contextmanager
def _atomic_local(path: str | os.PathLike, mode: str, open_kwargs: dict) -> Iterator[IO]:
    if 'b' not in mode:
        open_kwargs = {'encoding': 'utf-8', **open_kwargs}
    path = os.path.realpath(path)
    try:
        old_mode = os.stat(path).st_mode
    except FileNotFoundError:
        old_mode = None
    if old_mode is not None and not stat.S_ISREG(old_mode):
        with open(path, mode, **open_kwargs) as file:
            yield file
        return
    directory, name = os.path.split(path)
    temp = os.path.join(directory, _temp_name(name))
    try:
        with open(temp, mode.replace('w', 'x'), **open_kwargs) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if old_mode is not None:
            with contextlib.suppress(OSError):
                os.chmod(temp, stat.S_IMODE(old_mode))
        os.replace(temp, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temp)
        if isinstance(error, OSError) and error.errno in _WRITE_ERRORS and error.filename is None:
            error.filename = path  # Writing, unlike opening, does not say where.
        raise
    _fsync_dir(directory)


def _temp_name(name: str) -> str:
    # File systems allow 255 bytes: a long name is cut so that the temporary one still fits.
    return f'.{name[:60] if len(name) > 180 else name}.tmp-{os.getpid()}-{secrets.token_hex(4)}'


def remove_temporaries(directory: str | os.PathLike) -> None:
    """Removes what `atomic_write` has left in a local directory where its process was killed.

    Only for a directory that no other process writes to now.
    """
    for name in os.listdir(directory):
        if re.fullmatch(r'\..+\.tmp-\d+-[0-9a-f]{8}', name):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(directory, name))


def _fsync_dir(directory: str) -> None:
    # Without this a power cut may lose the rename. Some systems (Windows, some network mounts) cannot do it.
    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextlib.contextmanager
def _atomic_remote(path: str, mode: str) -> Iterator[IO]:
    directory, _, name = path.rpartition('/')
    temp = f'{directory}/{_temp_name(name)}'
    files = gfile()
    try:
        with files.GFile(temp, mode.replace('t', '')) as file:
            yield file
        files.rename(temp, path, overwrite=True)
    except BaseException:
        # The file system's own errors while cleaning up must not hide the first one.
        with contextlib.suppress(Exception):
            files.remove(temp)
        raise


_cache_dir = None  # Set by set_cache_dir; None: the environment decides.


def set_cache_dir(path: str | None) -> None:
    """Sets the directory of `make_cache_dir_path`; None returns the choice to the environment."""
    global _cache_dir
    _cache_dir = path


def make_cache_dir_path(*paths: str) -> str:
    """A path below the cache directory, which need not exist yet.

    The directory is the one of `set_cache_dir`, else $STYLEGAN_CACHE_DIR, else $DNNLIB_CACHE_DIR, else
    `dnnlib` in the platform's cache directory ($XDG_CACHE_HOME or ~/.cache, ~/Library/Caches,
    %LOCALAPPDATA%), else `dnnlib` in the temporary directory.
    """
    base = _cache_dir or os.environ.get('STYLEGAN_CACHE_DIR') or os.environ.get('DNNLIB_CACHE_DIR')
    base = os.path.expanduser(base) if base else os.path.join(_platform_cache_dir(), 'dnnlib')
    return os.path.join(base, *paths)


def _platform_cache_dir() -> str:
    home = os.path.expanduser('~')
    if os.name == 'nt' and os.environ.get('LOCALAPPDATA'):
        return os.environ['LOCALAPPDATA']
    if os.environ.get('XDG_CACHE_HOME'):
        return os.environ['XDG_CACHE_HOME']
    if not os.path.isabs(home):  # No home directory is known (some containers).
        return tempfile.gettempdir()
    if sys.platform == 'darwin':
        return os.path.join(home, 'Library', 'Caches')
    return os.path.join(home, '.cache')


def open_url(
    url: str,                       # https://, http:// or file:// address, 'gs://...', or a local path.
    cache_dir: str | None = None,   # Where downloads are kept; None: `downloads` in the cache directory.
    num_attempts: int = 10,         # How often in a row the server may fail.
    verbose: bool = True,           # Whether to print progress and failed attempts on stderr.
    return_filename: bool = False,  # Whether to return the path of the file instead of the open file.
    cache: bool = True,             # Whether to keep the download.
    *,
    sha256: str | None = None,      # What the file has to be; None: what it was when it was first downloaded.
) -> Any:
    """Opens a file by its address for reading, seekable and binary; downloads it unless it is in the cache.

    A download goes on where the connection broke, also in another process, and takes place once if several
    ask for it at a time. Files in the cache are compared with the sha256 that was recorded; those that were
    put there by hand or by the official code (under its name, MD5 sum of the address + '_' + file name) are
    taken as they are. A cache that cannot be written is replaced by the temporary directory.

    Errors: UserError when the file cannot be had; OSError when a local one cannot be opened.
    """
    from . import download  # Not at the top: most programs do without, and it imports this module.
    return download.open_url(url, cache_dir, num_attempts, verbose, return_filename, cache, sha256)


# Functions by name.

_SHORT_MODULES = {'np': 'numpy', 'tf': 'tensorflow'}  # Abbreviations that official configs use.


def get_module_from_obj_name(obj_name: str) -> tuple[types.ModuleType, str]:
    """The module that holds an object, and the object's name inside it; imports the module when needed.

    Args:
        obj_name: Fully qualified name such as 'training.networks_stylegan2.G_main'. Importing runs the
            module's code: never pass a name that comes out of a file of unknown origin.

    Errors: UserError that names close matches when there is no such module or attribute. An error raised
    inside a module while it is imported passes through unchanged.
    """
    parts = obj_name.split('.') if isinstance(obj_name, str) else []
    if not parts or not all(part.isidentifier() for part in parts):
        raise UserError(f"expected a function's full name, 'package.module.name', received {obj_name!r}")
    parts[0] = _SHORT_MODULES.get(parts[0], parts[0])
    for count in range(len(parts), 0, -1):
        module_name = '.'.join(parts[:count])
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # A missing module of another name is a dependency that an existing module lacks: say so as it is.
            if error.name is None or not (module_name + '.').startswith(error.name + '.'):
                raise
            continue
        local_name = '.'.join(parts[count:])
        _get_local(module, local_name, obj_name)
        return module, local_name
    known = {module.name for module in pkgutil.iter_modules()} | set(sys.modules)
    hint = did_you_mean(parts[0], sorted(name for name in known if name[0] != '_' and '.' not in name))
    raise UserError(f'cannot find {obj_name!r}: there is no module {parts[0]!r}{hint}')


def _get_local(module: types.ModuleType, local_name: str, obj_name: str) -> Any:
    obj, path = module, module.__name__
    for part in filter(None, local_name.split('.')):
        if not hasattr(obj, part):
            known = set(dir(obj))
            if isinstance(obj, types.ModuleType) and hasattr(obj, '__path__'):
                known |= {submodule.name for submodule in pkgutil.iter_modules(obj.__path__)}
            hint = did_you_mean(part, (name for name in sorted(known) if not name.startswith('__')))
            raise UserError(f'cannot find {obj_name!r}: {path} has no {part!r}{hint}')
        obj, path = getattr(obj, part), f'{path}.{part}'
    return obj


def get_obj_by_name(name: str) -> Any:
    """The object of a fully qualified name, e.g. 'training.networks_stylegan2.G_main'.

    Errors: UserError with close matches when there is none (see get_module_from_obj_name).
    """
    module, local_name = get_module_from_obj_name(name)
    return _get_local(module, local_name, name)


def call_func_by_name(*args: Any, func_name: str | None = None, **kwargs: Any) -> Any:
    """Calls the function with the fully qualified name `func_name` and returns its result.

    Errors: UserError when the name is missing, unknown or not that of a function or class.
    """
    if func_name is None:
        raise UserError("call_func_by_name: expected func_name='package.module.function', received none")
    func = get_obj_by_name(func_name)
    if not callable(func):
        raise UserError(f'{func_name!r} is a {type(func).__name__}, expected a function or class')
    return func(*args, **kwargs)


def is_top_level_function(obj: Any) -> bool:
    """Whether `obj` is a function or class found by its own name in its module."""
    module = sys.modules.get(getattr(obj, '__module__', None) or '')
    return callable(obj) and module is not None and getattr(module, getattr(obj, '__name__', ''), None) is obj


def get_top_level_function_name(obj: Callable) -> str:
    """The fully qualified name of a top-level function, by which `get_obj_by_name` finds it in any process.

    Errors: UserError for a lambda, a method or a nested function.
    """
    if not is_top_level_function(obj):
        raise UserError(f'expected a function defined at the top level of a module, received {obj!r}')
    module = obj.__module__
    if module == '__main__':
        main = sys.modules[module]
        if not getattr(main, '__file__', None):
            raise UserError(f'{obj.__name__} has no full name when typed at a prompt: define it in a module')
        module = os.path.splitext(os.path.basename(main.__file__))[0]
    return f'{module}.{obj.__name__}'
