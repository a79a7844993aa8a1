"""Files by address: downloaded once, resumed where the connection broke, checked, kept under a readable name.

What the cache directory holds for an address with the MD5 sum `m` and a file `name.pkl`:
    m_name.pkl              the file, as the official code names it, which so finds ours, and we its
    .m_name.pkl.json        what was recorded with it: address, sha256, size, ETag, date
    .m_name.pkl.part        the beginning of a download that was broken off,
    .m_name.pkl.part.json   and what tells whether the server still has the same file
    .m_name.pkl.lock        held by the process that downloads; others wait for it

Python's own urllib does the transfers: it knows proxies and certificates of the system, and needs no further
package. Call it as `dnnlib.util.open_url`.
"""

import atexit
import contextlib
import errno
import hashlib
import io
import os
import random
import re
import shutil
import tempfile
import time
import urllib.parse
import urllib.request
from typing import IO, Any

from . import file_lock, util
from .addresses import name_of_url, say, shown, size_text
from .transfer import Download, file_sha256, read_json, remove, write_json
from .util import UserError

LOCK_TIME_LIMIT = 7 * 86400.0

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_checked: set[tuple] = set()            # Files of the cache whose sha256 this process has compared.
_unkept: dict[str, str] = {}            # Address → file, of downloads that the cache could not take.


def open_url(url: str, cache_dir: str | None, num_attempts: int, verbose: bool, return_filename: bool,
             cache: bool, sha256: str | None) -> Any:
    """See `dnnlib.util.open_url`."""
    url = os.fspath(url)
    if num_attempts < 1:
        raise UserError(f'open_url: expected num_attempts from 1 up, received {num_attempts!r}')
    if sha256 is not None and not re.fullmatch('[0-9a-fA-F]{64}', sha256):
        raise UserError(f'open_url: expected sha256 as 64 hexadecimal digits, received {sha256!r:.80}')
    sha256 = sha256 and sha256.lower()
    if not util.is_url(url):
        return _open_file(_local_path(url), return_filename, sha256)
    if cache:
        path_or_file = _cached(_Entry(url, cache_dir), num_attempts, verbose, return_filename, sha256)
        if return_filename or not isinstance(path_or_file, str):
            return path_or_file
        return open(path_or_file, 'rb')
    if return_filename:
        raise UserError('open_url: return_filename goes with cache=True: without, there is no file to name')
    return _download_unnamed(url, num_attempts, verbose, sha256)


def find_cached(url: str, cache_dir: str | None = None) -> str | None:
    """The file in the cache that belongs to an address, unchecked; None where there is none."""
    return _Entry(url, cache_dir).find()


# Files that are here already.

def _local_path(url: str) -> str:
    if re.match('https?:', url, re.IGNORECASE):  # And yet no is_url.
        raise UserError(f'{shown(url)}: expected an address such as https://host/path')
    if not url.lower().startswith('file:'):
        return url if util.is_remote_path(url) else os.path.expanduser(url)
    parts = urllib.parse.urlsplit(url)
    if parts.netloc not in ('', 'localhost') or not parts.path:
        raise UserError(f'{shown(url)}: expected file:///directory/name for a local file')
    return urllib.request.url2pathname(parts.path)


def _open_file(path: str, return_filename: bool, sha256: str | None) -> Any:
    opener = util.gfile().GFile if util.is_remote_path(path) else open
    if sha256 is not None:
        with opener(path, 'rb') as file:
            found = file_sha256(file)
        if found != sha256:
            raise UserError(f'{path}: expected a file with sha256 {sha256}, found {found}')
    return path if return_filename else opener(path, 'rb')


# The cache.

class _Entry:
    """The place of an address in the cache directory."""

    def __init__(self, url: str, directory: str | None):
        self.url = url
        directory = os.fspath(directory or util.make_cache_dir_path('downloads'))
        if util.is_remote_path(directory):
            raise UserError(f'open_url: expected a local directory for the cache, received {directory}')
        self.directory = os.path.abspath(os.path.expanduser(directory))
        md5 = hashlib.md5(url.encode('utf-8', 'surrogateescape'), usedforsecurity=False)
        self.key = md5.hexdigest()
        self.name = name_of_url(url)
        self.path = self.path_for(self.name)

    def path_for(self, name: str) -> str:
        return os.path.join(self.directory, f'{self.key}_{name}')

    def hidden(self, ending: str) -> str:
        # Hidden, so that the official code, which looks for `m_*`, finds the file alone.
        return os.path.join(self.directory, f'.{self.key}_{self.name}.{ending}')

    def record(self) -> dict[str, Any]:
        return read_json(self.hidden('json'))

    def find(self) -> str | None:
        """The file as it was recorded, as it would be named, or as anyone else has named it."""
        try:
            names = [name for name in os.listdir(self.directory) if name.startswith(self.key + '_')]
        except OSError:
            return None
        paths = [os.path.join(self.directory, name) for name in names]
        paths = [path for path in paths if os.path.isfile(path) and os.path.getsize(path)]
        preferred = [os.path.join(self.directory, str(self.record().get('file'))), self.path]
        for path in preferred:
            if path in paths:
                return path
        return max(paths, key=os.path.getmtime, default=None)

    def find_valid(self, sha256: str | None, verbose: bool) -> str | None:
        """The file if it is what it was when it was downloaded, or has the sha256 asked for."""
        path = self.find()
        if path is None:
            return None
        record = self.record()
        if record.get('file') != os.path.basename(path):
            record = {}  # Put there by hand or by the official code: nothing is known about it.
        status = os.stat(path)
        expected = sha256 or record.get('sha256')
        key = (path, status.st_mtime_ns, status.st_size, expected)
        if expected is None or key in _checked:
            return path
        if not sha256 and status.st_size != record.get('size'):
            found = f'it has {status.st_size} bytes instead of {record.get("size")}'
        else:
            with open(path, 'rb') as file:
                found = file_sha256(file)
            if found == expected:
                _checked.add(key)
                return path
            found = f'its sha256 is {found[:16]}… instead of {str(expected)[:16]}…'
        say(f'{path} has changed since it was downloaded ({found}): downloading it again'
             if not sha256 else f'{path} is not the file asked for ({found}): downloading it again', verbose)
        return None


def _cached(entry: _Entry, num_attempts: int, verbose: bool, return_filename: bool,
            sha256: str | None) -> str | IO[bytes]:
    """The file of an address, downloaded if need be; one in memory where no disk takes it."""
    path = entry.find_valid(sha256, verbose)
    if path is not None:
        return path
    if entry.url in _unkept:
        return _unkept[entry.url]

    def tell() -> None:
        say(f'Waiting for another process that downloads {shown(entry.url)}...', verbose)

    try:
        os.makedirs(entry.directory, exist_ok=True)
        with file_lock.file_lock(entry.hidden('lock'), LOCK_TIME_LIMIT, tell):
            path = entry.find_valid(sha256, False)  # The other process may have brought it.
            return path or _download_to_cache(entry, num_attempts, verbose, sha256)
    except file_lock.LockedError:
        raise UserError(f'{shown(entry.url)}: another process has been downloading it for a week; end that '
                        'process') from None
    except OSError as error:
        # Only the disk raises OSError here: those of the connection are dealt with in Download.
        _refuse_if_hopeless(entry, error)
        say(f'Warning: {entry.directory} cannot be written ({error.strerror}): the download is kept for '
             'this process only. STYLEGAN_CACHE_DIR names another directory', verbose)
    try:
        directory = tempfile.mkdtemp(prefix='dnnlib-')
    except OSError as error:
        if return_filename:
            raise UserError(f'{shown(entry.url)}: there is no directory to keep it in: '
                            f'{entry.directory} and the temporary directory cannot be written '
                            f'({error.strerror})') from None
        return _download_unnamed(entry.url, num_attempts, verbose, sha256)
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    try:
        path = _download_to_cache(_Entry(entry.url, directory), num_attempts, verbose, sha256, kept=False)
    except OSError as error:
        raise UserError(f'{shown(entry.url)}: cannot be kept in {directory}: {error.strerror}') from None
    _unkept[entry.url] = path
    return path


def _refuse_if_hopeless(entry: _Entry, error: OSError) -> None:
    """Raises UserError for a full disk, unless the temporary directory is on another one."""
    if error.errno not in _NO_SPACE:
        return
    with contextlib.suppress(OSError):
        if os.stat(tempfile.gettempdir()).st_dev != os.stat(entry.directory).st_dev:
            return
    raise UserError(f'{shown(entry.url)}: no space left in {entry.directory} ({error.strerror}). Make room '
                    '(what has arrived is kept, and resumed), or set STYLEGAN_CACHE_DIR') from None


def _download_to_cache(entry: _Entry, num_attempts: int, verbose: bool, sha256: str | None,
                       kept: bool = True) -> str:
    """Downloads to the part file, checks it and gives it its name; not `kept`: in a directory that goes."""
    locked = file_lock.locks_work(entry.hidden('lock'))
    part = entry.hidden('part' if locked else f'part-{os.getpid()}-{random.randrange(1 << 30):x}')
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, 'O_BINARY', 0), 0o666)
    begin = time.monotonic()
    with contextlib.ExitStack() as stack:
        if not locked:  # Others may be at work on a part of their own; nobody would go on with this one.
            for name in (part, part + '.json'):
                stack.callback(remove, name)
        stack.callback(_remove_if_empty, part)
        file = stack.enter_context(os.fdopen(descriptor, 'r+b'))
        download = Download(entry.url, file, verbose, part + '.json', entry.path if kept else None)
        download.run(num_attempts, sha256)
        name = entry.name
        if download.name and not os.path.splitext(name)[1]:  # 'uc', 'download': the server knows better.
            name = download.name
        path = entry.path_for(name)
        size = os.path.getsize(part)
        os.replace(part, path)
        remove(part + '.json')
    status = os.stat(path)
    with contextlib.suppress(OSError):  # The file is there and whole, even if nothing can be recorded.
        write_json(entry.hidden('json'), {
            'url': shown(entry.url), 'file': os.path.basename(path), 'sha256': download.sha256, 'size': size,
            'etag': download.etag, 'date': time.strftime('%Y-%m-%d %H:%M:%S %z')})
    _checked.add((path, status.st_mtime_ns, status.st_size, download.sha256))
    say(f'Downloaded {size_text(size)} in {util.format_time(time.monotonic() - begin)} to {path}', verbose)
    return path


def _remove_if_empty(path: str) -> None:
    with contextlib.suppress(OSError):
        if not os.path.getsize(path):
            os.remove(path)


def _download_unnamed(url: str, num_attempts: int, verbose: bool, sha256: str | None) -> IO[bytes]:
    """Downloads to a file without a name, or to memory where there is no temporary directory."""
    try:
        file = tempfile.TemporaryFile(prefix='dnnlib-')
    except OSError:
        file = io.BytesIO()
    try:
        Download(url, file, verbose).run(num_attempts, sha256)
    except OSError as error:
        file.close()
        where = tempfile.gettempdir()
        raise UserError(f'{shown(url)}: cannot be kept in {where}: {error.strerror}') from None
    except UserError:
        file.close()
        raise
    file.seek(0)
    return file
