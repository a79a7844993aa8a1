"""One file by HTTP, however often the connection breaks: what `dnnlib.download` keeps in its cache."""

import base64
import contextlib
import email.utils
import errno
import gzip
import hashlib
import http.client
import io
import json
import os
import random
import re
import shutil
import socket
import ssl
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator
from typing import IO, Any, NoReturn

from . import util
from .addresses import name_of_url, printable, safe_name, say, shown, size_text
from .util import UserError

TIMEOUT = 30.0              # Seconds without an answer or a byte: the server hangs.
MAX_RETRY_AFTER = 300.0     # A server that asks for a longer pause is left alone.
MAX_BACKOFF = 60.0
OFFLINE_ATTEMPTS = 3        # A host that cannot be reached at all mostly stays so.
PROGRESS_BYTES = 1 << 20    # This much more than ever before: attempts count anew.
CHUNK = 1 << 18
REPORT_INTERVAL = 30.0      # Seconds between lines about progress where there is no terminal.

_TRANSIENT = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524}
_UNREACHABLE = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN)
_PAGE = re.compile(rb'\s*(<!--.*?-->\s*)?<(!doctype\s+html|html|head|body)\b', re.IGNORECASE | re.DOTALL)
_PAGE_NAMES = ('.html', '.htm', '.xhtml')

_sleep = time.sleep         # Tests put their own in place.


class _RetryError(Exception):
    """An attempt failed in a way that the next one need not. `wait`: seconds, None = backoff."""

    def __init__(self, message: str, wait: float | None = None, limit: int | None = None):
        super().__init__(message)
        self.wait, self.limit = wait, limit


class _RedirectError(Exception):
    """The server redirects to where we do not go."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but not from an encrypted connection to a plain one, nor to other protocols."""

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # Missing in Python 3.10.

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme not in ('http', 'https') or (req.type == 'https' and scheme == 'http'):
            raise _RedirectError(f'the server redirects from {req.type} to {shown(newurl)}: not followed')
        return super().redirect_request(req, fp, 301 if code == 308 else code, msg, headers, newurl)


class Download:
    """One file on its way: what has arrived, and what identifies the rest.

    Args:
        url: Address.
        file: Binary file, readable and writable, which may hold the beginning of an earlier attempt.
        verbose: Whether to print progress and attempts.
        state_path: JSON file about the beginning; None: nothing is remembered between processes.
        final_path: Where the user may put the file by hand, for messages.
    """

    def __init__(self, url: str, file: IO[bytes], verbose: bool, state_path: str | None = None,
                 final_path: str | None = None):
        self.url, self._file, self._verbose = url, file, verbose
        self._state_path, self._final_path = state_path, final_path
        self.name = self.etag = self.sha256 = None
        self._have = file.seek(0, os.SEEK_END)
        state = read_json(state_path) if state_path else {}
        self._validator, self._total = state.get('validator'), state.get('total')
        self._encoding = state.get('encoding') or ''
        self.etag, self.name = state.get('etag'), state.get('name')
        sound = isinstance(self._validator, str) and isinstance(self._total, int | None)
        self.name = safe_name(self.name) if isinstance(self.name, str) else None
        if not sound or (self._total is not None and self._have > self._total):
            self._restart()
        self._digest = hashlib.sha256()
        self._resumed = self._have > 0
        file.seek(0)
        while block := file.read(1 << 20):
            self._digest.update(block)

    def run(self, num_attempts: int, sha256: str | None = None) -> None:
        """Completes the file; then `sha256`, `etag` and `name` (from Content-Disposition) are set.

        Errors: UserError when it cannot be had; OSError when the file cannot be written.
        """
        self._transfer(num_attempts)
        if not self._is_whole(sha256, last=not self._resumed):
            self._restart()
            self._transfer(num_attempts)
            self._is_whole(sha256, last=True)

    def _transfer(self, num_attempts: int) -> None:
        failures, best = 0, self._have
        while self._total is None or self._have < self._total or not self._have:
            try:
                self._attempt()
                return
            except _RetryError as error:
                if self._have >= best + PROGRESS_BYTES:
                    failures, best = 0, self._have
                failures += 1
                limit = min(num_attempts, error.limit or num_attempts)
                if failures >= limit:
                    times = f' ({failures} attempts)' if failures > 1 else ''
                    self._fail(f'{error}{times}')
                wait = error.wait
                if wait is None:
                    wait = min(MAX_BACKOFF, 2.0 ** (failures - 1)) * random.uniform(0.5, 1.5)
                say(f'{shown(self.url)}: {error}; trying again in {wait:.1f} s '
                    f'(attempt {failures + 1} of {limit})', self._verbose)
                _sleep(wait)

    def _is_whole(self, sha256: str | None, last: bool) -> bool:
        """Checks and decodes what has arrived. False: to be fetched again, all of it; UserError if `last`."""
        file = self._file
        with contextlib.suppress(io.UnsupportedOperation):  # Memory has no descriptor.
            os.fsync(file.fileno())
        file.seek(0)
        self.sha256 = file_sha256(file)
        if self.sha256 != self._digest.hexdigest():
            return self._unsound(last, 'the disk has not kept what was written')
        if self._encoding:
            try:
                self._decode()
            except (gzip.BadGzipFile, zlib.error, EOFError):
                return self._unsound(last, 'it arrived damaged: it does not unpack')
        if sha256 is not None and self.sha256 != sha256:
            return self._unsound(last, f'expected a file with sha256 {sha256}, received {self.sha256}')
        return True

    def _unsound(self, last: bool, message: str) -> bool:
        if last:
            self._restart()
            self._fail(message)
        # It came in pieces, which may be of two versions of the file.
        say(f'{shown(self.url)}: {message}; downloading all of it again', self._verbose)
        return False

    def _decode(self) -> None:
        """Takes off the gzip that some servers put on every file."""
        with tempfile.TemporaryFile(dir=os.path.dirname(self._state_path or '') or None) as plain:
            self._file.seek(0)
            with gzip.GzipFile(fileobj=self._file, mode='rb') as unpacked:
                shutil.copyfileobj(unpacked, plain, CHUNK)
            plain.seek(0)
            self.sha256 = file_sha256(plain)
            plain.seek(0)
            # A process killed here leaves a part of no state, which the next one starts anew.
            self._forget()
            self._file.seek(0)
            self._file.truncate()
            shutil.copyfileobj(plain, self._file, CHUNK)
            self._file.flush()
            with contextlib.suppress(io.UnsupportedOperation):
                os.fsync(self._file.fileno())

    def _restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self._have, self._resumed = 0, False
        self._validator = self._total = self.etag = self.name = None
        self._encoding = ''
        self._forget()

    def _forget(self) -> None:
        if self._state_path:
            remove(self._state_path)

    def _attempt(self) -> None:
        """One request; returns when the body is complete."""
        request = self._request()
        if self._have and self._validator:
            request.add_header('Range', f'bytes={self._have}-')
            request.add_header('If-Range', self._validator)
        elif self._have:
            self._restart()
        try:
            response = urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            with error:
                self._refused(error)
        except _RedirectError as error:
            self._fail(str(error))
        except (OSError, http.client.HTTPException, ValueError, OverflowError) as error:
            self._no_connection(error.reason if isinstance(error, urllib.error.URLError) else error)
        with response:
            self._receive(response)

    def _request(self) -> urllib.request.Request:
        parts = urllib.parse.urlsplit(self.url)
        userinfo, _, host = parts.netloc.rpartition('@')
        path, query = (urllib.parse.quote(text, safe="%/:=&?~+!$,;'@()*[]", errors='surrogateescape')
                       for text in (parts.path, parts.query))
        try:
            _ = parts.port  # Raises ValueError if it is none.
            request = urllib.request.Request(
                urllib.parse.urlunsplit((parts.scheme, _ascii(host), path or '/', query, '')),
                headers={'User-Agent': 'stylegan-tf2', 'Accept-Encoding': 'identity'})
        except ValueError as error:
            self._no_connection(error)
        if userinfo:
            secret = base64.b64encode(urllib.parse.unquote(userinfo).encode()).decode()
            request.add_unredirected_header('Authorization', f'Basic {secret}')  # For this host only.
        return request

    def _receive(self, response: Any) -> None:
        headers = response.headers
        etag = headers.get('ETag')
        if response.status == 206 and self._have:
            self._check_range(headers, etag)
        elif response.status == 200:
            self._restart()
            self._begin(response, etag)
        else:
            self._fail(f'the server answers with status {response.status} instead of the file')
        with self._progress() as advance:
            first = self._have == 0
            while True:
                try:
                    block = response.read1(CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    self._no_connection(error)
                if first:
                    self._refuse_page(block, headers)
                    first = False
                if not block:
                    break
                self._file.seek(self._have)
                self._file.write(block)
                self._file.flush()
                self._digest.update(block)
                self._have += len(block)
                advance(len(block))
        if self._total is not None and self._have != self._total:
            raise _RetryError('the connection ended' + self._arrived())
        if not self._have:  # Nobody publishes an empty file; this is what a server in trouble sends.
            raise _RetryError('the server sent an empty file', limit=3)

    def _check_range(self, headers: Any, etag: str | None) -> None:
        """Whether what follows is the rest of what is here; else begins again."""
        match = re.fullmatch(r'bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)', headers.get('Content-Range') or '')
        total = int(match[3]) if match and match[3] != '*' else self._total
        if (not match or int(match[1]) != self._have or (self.etag and etag and etag != self.etag)
                or (self._total is not None and total != self._total)
                or _encoding(headers) != self._encoding):
            self._restart()
            raise _RetryError('the server sent another part than it was asked for; starting again', wait=0)
        self._total = total
        self._resumed = True

    def _begin(self, response: Any, etag: str | None) -> None:
        """Takes down what identifies the file, and looks whether it fits."""
        headers = response.headers
        self.etag, self._total = etag, response.length
        self.name = safe_name(headers.get_filename() or '') or None
        self._encoding = _encoding(headers)
        if self._encoding in ('gzip', 'x-gzip') and name_of_url(self.url).endswith(('gz', '.svgz')):
            self._encoding = ''  # The file is one; some servers say so in this way.
        if self._encoding not in ('', 'gzip', 'x-gzip'):
            self._fail(f'the server packs the file as {printable(self._encoding, 40)}, which was not asked '
                       'for and cannot be unpacked')
        # Other validators do not vouch for every byte.
        strong = etag if etag and not etag.startswith('W/') else headers.get('Last-Modified')
        self._validator = strong if strong and strong.isprintable() else None
        free = _free_space(self._state_path)
        if self._total is not None and free is not None and free < self._total:
            raise OSError(errno.ENOSPC, f'{size_text(self._total)} are needed, {size_text(free)} are free')
        if self._state_path and self._validator:
            write_json(self._state_path, {
                'url': shown(self.url), 'validator': self._validator, 'total': self._total, 'etag': etag,
                'name': self.name, 'encoding': self._encoding})

    def _refuse_page(self, block: bytes, headers: Any) -> None:
        """Raises UserError for a web page where a file was expected."""
        host = urllib.parse.urlsplit(self.url).hostname or ''
        from_drive = host.startswith(('drive.', 'docs.')) and '.google' in host
        ending = os.path.splitext(name_of_url(self.url))[1].lower()
        is_page = _PAGE.match(block) or (
            headers.get_content_type() == 'text/html' and 'Content-Type' in headers
            and block.lstrip()[:1] == b'<')
        if not is_page or (not from_drive and (not ending or ending in _PAGE_NAMES)):
            return
        text = block.decode('utf-8', 'replace').lower()
        self._restart()
        if 'quota' in text:
            reason = 'the quota for downloads of this file is exceeded; try again in a day'
        elif 'virus' in text:
            reason = 'it asks for a confirmation, as it cannot scan a file of this size for viruses'
        elif from_drive:
            reason = 'the file may not be shared with everyone, or the address is that of a page about it'
        else:
            title = re.search(r'<title[^>]*>([^<]*)', block.decode('utf-8', 'replace'), re.IGNORECASE)
            reason = f'its title is {printable(title[1], 80)!r}' if title else 'it has no title'
        self._fail(f'the server sent a web page instead of the file: {reason}')

    def _refused(self, error: urllib.error.HTTPError) -> NoReturn:
        """What to do about an HTTP status that is no success."""
        status = f'{error.code} {printable(error.reason, 80)}'.strip()
        if error.code == 416 and self._have:
            self._restart()
            raise _RetryError('the file on the server has changed; starting again', wait=0)
        if error.code in _TRANSIENT:
            wait = _retry_after(error.headers.get('Retry-After') if error.headers else None)
            if wait is not None and wait > MAX_RETRY_AFTER:
                self._fail(f'the server answers {status} and asks to come back in {util.format_time(wait)}')
            raise _RetryError(f'the server answers {status}', wait)
        reasons = {401: 'the server asks for a password', 403: 'the server refuses access',
                   404: 'there is no such file on the server', 410: 'the file is gone from the server',
                   407: 'the proxy asks for a password'}
        if 300 <= error.code < 400:
            self._fail(f'the server redirects in a way that cannot be followed ({error.code})')
        self._fail(f'{reasons.get(error.code, "the server does not send it")} ({status})')

    def _no_connection(self, error: Any) -> NoReturn:
        """What to do about an error of the connection."""
        host = printable(urllib.parse.urlsplit(self.url).netloc.rpartition('@')[2])
        if isinstance(error, ssl.SSLCertVerificationError):
            self._fail(f'the certificate of the server is not trusted ({printable(error.verify_message)}); '
                       'SSL_CERT_FILE names a file of certificates to trust')
        if isinstance(error, TimeoutError):
            raise _RetryError(f'no answer for {TIMEOUT:g} s')
        if isinstance(error, socket.gaierror):
            raise _RetryError(f'the host {host} is not known here (no network?)', limit=OFFLINE_ATTEMPTS)
        if isinstance(error, OSError) and error.errno in _UNREACHABLE:
            raise _RetryError(f'the host {host} cannot be reached ({os.strerror(error.errno)})',
                              limit=OFFLINE_ATTEMPTS)
        if isinstance(error, ConnectionError | http.client.IncompleteRead | http.client.BadStatusLine):
            raise _RetryError('the connection broke off' + self._arrived())
        if isinstance(error, OSError):
            raise _RetryError(f'the connection failed ({printable(error.strerror or error, 120)})')
        if isinstance(error, http.client.HTTPException) and not isinstance(error, http.client.InvalidURL):
            raise _RetryError(f'the answer of the server is not understood ({type(error).__name__})')
        if isinstance(error, str):
            raise _RetryError(f'the connection failed ({printable(error, 120)})')
        self._fail('not an address that can be reached: expected https://host/path')

    def _arrived(self) -> str:
        if not self._have:
            return ''
        return f' after {size_text(self._have)}' + (f' of {size_text(self._total)}' if self._total else '')

    def _fail(self, message: str) -> NoReturn:
        remedy = ''
        if self._final_path:
            remedy = ('. If you have the file: pass its path instead, or put it at '
                      f'{self._final_path}')
        raise UserError(f'{shown(self.url)}: {message}{remedy}') from None

    @contextlib.contextmanager
    def _progress(self) -> Iterator[Any]:
        """A bar on a terminal, else a line now and then; yields the function to call with the bytes."""
        if not self._verbose or sys.stderr is None:
            yield lambda count: None
            return
        size = f' ({size_text(self._total)})' if self._total is not None else ''
        what = 'Resuming' if self._have else 'Downloading'
        at = f' at {size_text(self._have)}' if self._have else ''
        say(f'{what} {shown(self.url)}{size}{at}...', True)
        if sys.stderr.isatty():
            from tqdm import tqdm
            with tqdm(total=self._total, initial=self._have, unit='B', unit_scale=True, leave=False,
                      desc=name_of_url(self.url), file=sys.stderr, dynamic_ncols=True) as bar:
                yield bar.update
            return
        begin = last = time.monotonic()
        have = self._have

        def advance(_count: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < REPORT_INTERVAL:
                return
            last = now
            if self._total:
                left = (self._total - self._have) * (now - begin) / max(self._have - have, 1)
                say(f'  {100 * self._have // self._total}%, {util.format_time(left)} left', True)
            else:
                say(f'  {size_text(self._have)}', True)
        yield advance


def _encoding(headers: Any) -> str:
    value = (headers.get('Content-Encoding') or '').strip().lower()
    return '' if value == 'identity' else value


def _ascii(host: str) -> str:
    """A host name as it goes over the wire; names in other scripts have an ASCII form."""
    return host if host.isascii() else host.encode('idna').decode()


def _retry_after(text: str | None) -> float | None:
    """Seconds of a Retry-After header, which gives them or a date; None where it says nothing."""
    text = (text or '').strip()
    if re.fullmatch('[0-9]{1,12}', text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _free_space(path: str | None) -> int | None:
    if path is None:
        return None
    with contextlib.suppress(OSError):
        return shutil.disk_usage(os.path.dirname(path)).free
    return None


# Small files.

def read_json(path: str) -> dict[str, Any]:
    """The dict in a file, {} where there is no sound one."""
    try:
        with open(path, encoding='utf-8') as file:
            value = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def write_json(path: str, value: dict[str, Any]) -> None:
    """Writes a dict to a file."""
    with util.atomic_write(path, 'w') as file:
        json.dump(value, file, indent=2)
        file.write('\n')


def remove(path: str) -> None:
    """Removes a file that may not be there."""
    with contextlib.suppress(OSError):
        os.remove(path)


def file_sha256(file: IO[bytes]) -> str:
    """sha256 of the rest of a binary file, in hexadecimal digits."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
