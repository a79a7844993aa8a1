"""Transfers that break off, lie, hang, are refused or redirected; by way of dnnlib.util.open_url."""

import contextlib
import email.utils
import gzip
import hashlib
import os
import pathlib
import socket
import threading
import time
from unittest import mock

import tensorflow as tf
from absl.testing import parameterized

from dnnlib import transfer
from dnnlib.util import open_url
from tests import http_testutil
from tests.download_testutil import BODY, OTHER, DownloadTestCase, Terminal
from tests.http_testutil import Answer


class TroubleTest(DownloadTestCase):
    @parameterized.named_parameters(
        ('short', dict(cut=150_000)),
        ('reset', dict(cut=150_000, reset=True)),
        ('chunked', dict(cut=150_000, chunked=True)),
        ('length_too_large', dict(length=600_000)),
    )
    def test_resumes(self, trouble):
        self.serve(Answer(BODY, **trouble), Answer(BODY, cut=100_000), BODY)
        data, stderr = self.fetch()
        self.assertEqual(data, BODY)
        ranges = self.server.ranges('a.pkl')
        if 'length' in trouble:  # Of the rest, the server says that it is none.
            return
        self.assertEqual(self.server.requests[1][1]['If-Range'], f'"{hashlib.md5(BODY).hexdigest()}"')
        self.assertLen(ranges, 3)
        if 'reset' in trouble:  # It takes away bytes that have arrived already.
            self.assertRegex(ranges[1], r'bytes=\d{2,6}-')
            return
        self.assertEqual(ranges, [None, 'bytes=150000-', 'bytes=250000-'])
        self.assertRegex(stderr, r'a.pkl: the connection (ended|broke off) after 150.0 kB.*; trying again in '
                                 r'.* s \(attempt 2 of 10\)\nResuming .* at 150.0 kB...\n')
        self.assertBetween(self.server.waits[0], 0.5, 1.5)
        self.assertBetween(self.server.waits[1], 1, 3)

    def test_nothing_to_resume_with(self):
        for name, trouble in [
            ('no ranges', dict(ranges=False)), ('no validator', dict(etag='')), ('weak', dict(etag='W/"1"')),
        ]:
            path = name.replace(' ', '') + '.pkl'
            self.serve(Answer(BODY, cut=150_000, **trouble), Answer(BODY, **trouble), name=path)
            self.assertEqual(self.fetch()[0], BODY)
            expected = 'bytes=150000-' if name == 'no ranges' else None
            self.assertEqual(self.server.ranges(path), [None, expected])

    def test_last_modified_serves_too(self):
        date = {'Last-Modified': 'Wed, 21 Oct 2015 07:28:00 GMT'}
        self.serve(Answer(BODY, cut=150_000, etag='', headers=date), Answer(BODY, etag='', headers=date))
        self.assertEqual(self.fetch()[0], BODY)
        self.assertEqual(self.server.ranges('a.pkl'), [None, 'bytes=150000-'])

    def test_the_file_changes_meanwhile(self):
        self.serve(Answer(BODY, cut=150_000), OTHER)
        self.assertEqual(self.fetch()[0], OTHER)
        self.serve(Answer(BODY, cut=150_000), Answer(b'now shorter', etag=''), name='b.pkl')
        self.assertEqual(self.fetch()[0], b'now shorter')
        # A server that ignores If-Range: other ETag, other length.
        for changed in (Answer(OTHER, etag='"x"'), Answer(OTHER[:400_000], etag='')):
            self.serve(Answer(BODY, cut=150_000), changed, name='c.pkl')
            changed.heeds_if_range = False
            self.assertEqual(self.fetch()[0], changed.body)
            self.assertEqual(self.server.ranges('c.pkl'), [None, 'bytes=150000-', None])

    @parameterized.parameters('bytes 0-499999/500000', 'bytes 150000-499999/7', 'nonsense', 'bytes 1-2')
    def test_another_part_than_asked_for(self, content_range):
        self.serve(Answer(BODY, cut=150_000), Answer(BODY, content_range=content_range), BODY)
        self.assertEqual(self.fetch()[0], BODY)
        self.assertEqual(self.server.ranges('a.pkl'), [None, 'bytes=150000-', None])

    def test_not_resumable_any_more(self):
        self.serve(Answer(BODY, cut=150_000), Answer(b'', 416), BODY)
        self.assertEqual(self.fetch()[0], BODY)
        self.assertEqual(self.server.ranges('a.pkl'), [None, 'bytes=150000-', None])

    def test_pieces_that_do_not_fit(self):
        """The server has another file under the same ETag: found by the sha256, then all of it is fetched."""
        self.serve(Answer(BODY, cut=150_000, etag='"1"'), Answer(OTHER, etag='"1"'))
        data, stderr = self.fetch(sha256=hashlib.sha256(OTHER).hexdigest())
        self.assertEqual(data, OTHER)
        self.assertRegex(stderr, 'expected a file with sha256 .* downloading all of it again')
        self.assertEqual(self.server.ranges('a.pkl'), [None, 'bytes=150000-', None])

    def test_lengths(self):
        self.serve(Answer(BODY, chunked=True))
        self.assertEqual(self.fetch()[0], BODY)
        self.serve(Answer(BODY, length='none'), name='b.pkl')
        self.assertEqual(self.fetch()[0], BODY)
        self.serve(Answer(BODY, length='many'), name='c.pkl')
        self.assertEqual(self.fetch()[0], BODY)
        self.serve(b'', name='d.pkl')
        self.fails(r'the server sent an empty file \(3 attempts\)')
        self.serve(Answer(BODY, length=600_000, ranges=False), name='e.pkl')
        self.fails(r'e.pkl: the connection ended after 500.0 kB of 600.0 kB \(10 attempts\)\. If you have')
        self.assertEqual(self.server.count('e.pkl'), 10)
        self.assertLessEqual(max(self.server.waits), 90)

    def test_a_connection_that_breaks_every_megabyte(self):
        body = BODY * 30
        self.serve(Answer(body, cut=1_200_000))
        self.assertEqual(self.fetch(num_attempts=2)[0], body)
        self.assertEqual(self.server.count('a.pkl'), 13)

    def test_busy(self):
        date = email.utils.formatdate(time.time() + 100)
        self.serve(Answer(b'busy', 503), Answer(b'', 429, {'Retry-After': '7'}),
                   Answer(b'', 503, {'Retry-After': date}), Answer(b'', 500, {'Retry-After': 'soon'}), BODY)
        data, stderr = self.fetch()
        self.assertEqual(data, BODY)
        self.assertBetween(self.server.waits[0], 0.5, 1.5)
        self.assertEqual(self.server.waits[1], 7)
        self.assertBetween(self.server.waits[2], 90, 100)
        self.assertBetween(self.server.waits[3], 4, 12)
        self.assertIn('answers 429 Too Many Requests; trying again in 7.0 s (attempt 3 of 10)', stderr)
        self.serve(Answer(b'', 429, {'Retry-After': '3600'}), name='b.pkl')
        self.fails('429 Too Many Requests and asks to come back in 1h 00m 00s')
        self.assertEqual((self.server.count('b.pkl'), self.server.waits), (1, []))
        self.serve(Answer(b'', 503), name='c.pkl')
        self.fails(r'c.pkl: the server answers 503 Service Unavailable \(3 attempts\)', num_attempts=3)
        self.assertEqual(self.server.count('c.pkl'), 3)

    @parameterized.parameters(
        (404, 'there is no such file on the server'), (410, 'the file is gone'), (403, 'refuses access'),
        (401, 'asks for a password'), (407, 'the proxy asks'), (418, 'does not send it'),
        (204, 'the server answers with'), (304, 'redirects in a way'))
    def test_refused(self, status, text):
        self.serve(Answer(b'' if status in (204, 304) else BODY, status))
        message, stderr = self.fails(f'a.pkl: .*{text}.*{status}')
        self.assertEqual((self.server.count('a.pkl'), stderr), (1, ''))
        self.assertIn(f'put it at {os.path.join(self.dir, self.file_name())}', message)

    def test_hanging(self):
        with mock.patch.object(transfer, 'TIMEOUT', 0.1):
            self.serve(Answer(BODY, hang=1.0), BODY)
            data, stderr = self.fetch()
            self.assertEqual(data, BODY)
            self.assertIn('no answer for 0.1 s', stderr)
            self.assertEqual(self.server.ranges('a.pkl'), [None, 'bytes=250000-'])
            with socket.create_server(('127.0.0.1', 0)) as silent:  # Accepts, never answers.
                url = f'http://127.0.0.1:{silent.getsockname()[1]}/a.pkl'
                self.fails(r'no answer for 0.1 s \(2 attempts\)', url, num_attempts=2)

    def test_offline(self):
        self.serve(BODY)
        url = http_testutil.refused_url() + 'a.pkl'
        message, stderr = self.fails(r'cannot be reached \(Connection refused\) \(3 attempts\)', url)
        self.assertEqual(stderr.count('\n'), 2)
        path = os.path.join(self.dir, self.file_name(url))
        self.assertTrue(message.endswith(f'If you have the file: pass its path instead, or put it at {path}'))
        pathlib.Path(path).write_bytes(OTHER)
        self.assertEqual(self.fetch(url), (OTHER, ''))
        with mock.patch.object(socket, 'getaddrinfo', side_effect=socket.gaierror(-2, 'unknown')):
            self.fails(r'host nowhere.invalid is not known here \(no network\?\)', 'https://nowhere.invalid/a')

    def test_addresses_that_lead_nowhere(self):
        self.serve(BODY)
        for host in ('127.0.0.1:99999', '127.0.0.1:port', 'x' * 70 + 'é.invalid', 'a b'):
            self.fails('not an address that can be reached', f'http://{host}/a.pkl')

    def test_answers_that_are_none(self):
        with socket.create_server(('127.0.0.1', 0)) as server:
            url = f'http://127.0.0.1:{server.getsockname()[1]}/a.pkl'
            self.serve()
            answers = [b'', b'SSH-2.0-OpenSSH\r\n', b'HTTP/1.1 200 OK\r\n' + b'A: b\r\n' * 200 + b'\r\n']

            def serve():
                for text in answers:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(1 << 16)
                        connection.sendall(text)
            thread = threading.Thread(target=serve)
            thread.start()
            self.fails(r'the answer of the server is not understood \(HTTPException\) \(3 attempts\)', url,
                       num_attempts=3)
            thread.join()

    def test_pages_instead_of_files(self):
        html = {'Content-Type': 'text/html; charset=utf-8'}
        page = b'<!DOCTYPE html><html><head><title>%s</title></head><body>%s</body></html>'
        for text, headers, pattern in [
            (page % (b'Google Drive - Quota exceeded', b''), html, 'the quota for downloads'),
            (page % (b'Google Drive', b'cannot scan it for viruses'), {}, 'it asks for a confirmation'),
            (page % (b'Log\x1b[2J in', b''), html, "its title is 'Log \\[2J in'"),
            (b'\n<div>Sorry', html, 'it has no title'),
        ]:
            self.serve(Answer(text, headers=headers))
            self.fails(f'a.pkl: the server sent a web page instead of the file: {pattern}')
            self.assertEqual(self.server.count('a.pkl'), 1)
            self.assertEqual(self.names(), [])
        for name in ('a.html', 'page'):  # Who asks for a page gets one.
            self.serve(Answer(text, headers=html), name=name)
            self.assertEqual(self.fetch()[0], text)
        self.serve(Answer(BODY, headers=html))  # Some servers say so of everything.
        self.assertEqual(self.fetch()[0], BODY)

    def test_redirections(self):
        def to(address):
            return Answer(b'', 302, {'Location': address})
        self.serve(Answer(b'', 308, {'Location': '/b c?d=1'}))
        self.server.files['b%20c?d=1'] = [Answer(BODY, cut=150_000), BODY]
        self.assertEqual(self.fetch()[0], BODY)
        self.assertEqual(self.server.ranges('b%20c?d=1'), [None, 'bytes=150000-'])
        self.serve(to('/l.pkl?2'), **{'l.pkl?2': to('/l.pkl')}, name='l.pkl')
        self.fails('redirects in a way that cannot be followed')
        for address in ('file:///etc/passwd', 'ftp://127.0.0.1/a', 'data:,a'):
            self.serve(to(address), name='x.pkl')
            self.fails('the server redirects from http to .*: not followed|in a way that cannot be followed')
        request = mock.Mock(type='https', full_url='https://a/b')
        with self.assertRaisesRegex(transfer._RedirectError, 'from https to http://a/b.*: not followed'):
            transfer._Redirects().redirect_request(request, None, 302, '', {}, 'http://a/b?token=secret')

    def test_encodings(self):
        packed = gzip.compress(BODY[:250_000]) + gzip.compress(BODY[250_000:])
        headers = {'Content-Encoding': 'gzip'}
        self.serve(Answer(packed, cut=150_000, headers=headers), Answer(packed, headers=headers))
        self.assertEqual(self.fetch(sha256=hashlib.sha256(BODY).hexdigest())[0], BODY)
        self.assertEqual(self.server.ranges('a.pkl'), [None, 'bytes=150000-'])
        self.assertEqual(self.server.requests[0][1]['Accept-Encoding'], 'identity')
        self.assertEqual(self.fetch(), (BODY, ''))
        self.serve(Answer(packed, headers=headers), name='a.pkl.gz')
        self.assertEqual(self.fetch()[0], packed)
        for damaged in (packed[:-20], b'no gzip', packed[:200] + b'\0' * 500 + packed[700:]):
            self.serve(Answer(damaged, headers=headers), name='b.pkl')
            self.fails('arrived damaged')
        self.serve(Answer(BODY, headers={'Content-Encoding': 'br'}), name='c.pkl')
        self.fails('packs the file as br')

    def test_secrets_stay_secret(self):
        self.serve(Answer(BODY, cut=10), Answer(BODY, 302, {'Location': '/b.pkl?key=secret'}),
                   **{'b.pkl?key=secret': [Answer(b'', 503), BODY], 'd.pkl?key=secret': Answer(b'', 404)})
        self.server.files['a.pkl?key=secret'] = self.server.files.pop('a.pkl')
        url = self.url.replace('://', '://user:secr%65t@') + '?key=secret'
        data, stderr = self.fetch(url)
        self.assertEqual(data, BODY)
        self.assertIn('/a.pkl?…', stderr)
        message, more = self.fails('no such file', self.server.url + 'd.pkl?key=secret')
        record = pathlib.Path(self.dir, '.' + self.file_name(url) + '.json').read_text()
        for text in (stderr, message, more, record):
            self.assertNotIn('secr', text)
            self.assertNotIn('user', text)
        sent = [headers.get('Authorization') for _, headers in self.server.requests]
        self.assertEqual(sent[:3], ['Basic dXNlcjpzZWNyZXQ=', 'Basic dXNlcjpzZWNyZXQ=', None])

    def test_proxy(self):
        self.serve(BODY)
        self.server.files['http://network.invalid/p.pkl'] = OTHER
        with mock.patch.dict(os.environ, http_proxy=self.server.url, no_proxy='', NO_PROXY=''):
            self.assertEqual(self.fetch('http://network.invalid/p.pkl')[0], OTHER)

    def test_terminal(self):
        self.serve(Answer(BODY, cut=150_000), BODY)
        with contextlib.redirect_stderr(Terminal()) as stderr:
            open_url(self.url, self.dir, return_filename=True)
        self.assertRegex(stderr.getvalue(), r'\ra.pkl:  30%\|.* 150k/500k')

    def test_lines_of_progress(self):
        self.serve(BODY)
        with mock.patch.object(transfer, 'REPORT_INTERVAL', 0.0):
            _, stderr = self.fetch()
        self.assertRegex(stderr, r'\n  \d+%, 0s left\n')


if __name__ == '__main__':
    tf.test.main()
