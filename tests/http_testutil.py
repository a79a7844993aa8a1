"""A web server on 127.0.0.1 that does what is scripted: what the tests of downloads talk to."""

import contextlib
import dataclasses
import hashlib
import http.server
import os
import socket
import struct
import threading
import time
from unittest import mock

from dnnlib import transfer


@dataclasses.dataclass
class Answer:
    """What the server does with one request."""

    body: bytes = b''
    status: int = 200
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    etag: str | None = None         # None: that of the body; '': none.
    ranges: bool = True             # Whether parts can be asked for.
    heeds_if_range: bool = True     # Whether only parts of the file that is meant can be.
    cut: int | None = None          # Close the connection after so many bytes of what it would send.
    reset: bool = False             # Break it off by force then.
    length: int | str | None = None     # A false Content-Length; 'none': no such header.
    chunked: bool = False           # Chunked transfer encoding.
    hang: float = 0.0               # Pause in seconds before the (rest of the) body.
    piece_pause: float = 0.0        # Pause after every 64 KiB.
    content_range: str | None = None    # A false Content-Range.


class Server:
    """A context manager. `files`: path → Answer, a list of them (one per request, the last one stays), bytes,
    or a function of the number of the request. `requests`: (path, headers) as they came."""

    def __init__(self, files: dict | None = None):
        self.files = dict(files or {})
        self.requests: list[tuple[str, dict]] = []
        self._lock = threading.Lock()

    def __enter__(self) -> 'Server':
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def do_GET(self):
                outer._answer(self)

            def log_message(self, *_args):
                pass

        self._server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f'http://127.0.0.1:{self._server.server_address[1]}/'
        return self

    def __exit__(self, *_exc_info) -> None:
        self._server.shutdown()
        self._server.server_close()

    def count(self, path: str) -> int:
        """Number of requests for a path."""
        return sum(requested == path for requested, _ in self.requests)

    def ranges(self, path: str) -> list[str | None]:
        """The Range headers of the requests for a path."""
        return [headers.get('Range') for requested, headers in self.requests if requested == path]

    def _answer(self, handler) -> None:
        path = handler.path.lstrip('/')
        with self._lock:
            number = self.count(path)
            self.requests.append((path, dict(handler.headers)))
        answer = self.files.get(path, Answer(b'not here', 404))
        if callable(answer):
            answer = answer(number)
        if isinstance(answer, list):
            answer = answer[min(number, len(answer) - 1)]
        if isinstance(answer, bytes):
            answer = Answer(answer)
        with contextlib.suppress(ConnectionError):
            self._send(handler, answer)

    def _send(self, handler, answer: Answer) -> None:
        body, status, headers = answer.body, answer.status, dict(answer.headers)
        etag = f'"{hashlib.md5(body).hexdigest()}"' if answer.etag is None else answer.etag
        wanted = handler.headers.get('Range')
        if_range = handler.headers.get('If-Range')
        fits = not answer.heeds_if_range or if_range in (None, etag, headers.get('Last-Modified'))
        if status == 200 and wanted and answer.ranges and fits:
            start = int(wanted.removeprefix('bytes=').rstrip('-'))
            if start >= len(body):
                status, body = 416, b''
            else:
                true_range = f'bytes {start}-{len(body) - 1}/{len(body)}'
                headers['Content-Range'] = answer.content_range or true_range
                status, body = 206, body[start:]
        handler.send_response(status)
        for key, value in headers.items():
            handler.send_header(key, value)
        if etag:
            handler.send_header('ETag', etag)
        if answer.chunked:
            handler.send_header('Transfer-Encoding', 'chunked')
        elif answer.length != 'none':
            handler.send_header('Content-Length', str(len(body) if answer.length is None else answer.length))
        handler.close_connection = True
        handler.send_header('Connection', 'close')
        handler.end_headers()
        end = len(body) if answer.cut is None else answer.cut
        if answer.hang:
            handler.wfile.write(b'' if answer.chunked else body[:end // 2])
            handler.wfile.flush()
            time.sleep(answer.hang)
            return
        for begin in range(0, end, 1 << 16):
            piece = body[begin:min(begin + (1 << 16), end)]
            handler.wfile.write(b'%x\r\n%s\r\n' % (len(piece), piece) if answer.chunked else piece)
            time.sleep(answer.piece_pause)
        if answer.chunked and answer.cut is None:
            handler.wfile.write(b'0\r\n\r\n')
        handler.wfile.flush()
        if answer.reset:
            time.sleep(0.02)  # A reset discards what has not been read yet.
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            handler.connection.close()


def environment(**values: str) -> dict[str, str]:
    """The environment for a process that shall talk to the server itself, whatever proxies there are."""
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith('_proxy')}
    return {**kept, 'NO_PROXY': '*', 'no_proxy': '*', **values}


def start(test, files: dict | None = None) -> Server:
    """A server for one test, in whose process downloads do not wait between attempts.

    The waits that there would have been are in `server.waits`.
    """
    server = Server(files)
    server.waits = []
    stack = contextlib.ExitStack()
    test.addCleanup(stack.close)
    stack.enter_context(mock.patch.dict(os.environ, environment(), clear=True))
    stack.enter_context(mock.patch.object(transfer, '_sleep', server.waits.append))
    return stack.enter_context(server)


def refused_url() -> str:
    """An address that nobody listens at."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return f'http://127.0.0.1:{free.getsockname()[1]}/'
