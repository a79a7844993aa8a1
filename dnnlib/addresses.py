"""Addresses, sizes and foreign texts in a form that may be printed or be the name of a file."""

import os
import re
import sys
import urllib.parse
from typing import Any


def shown(url: str) -> str:
    """An address as it may be printed: without user, password and query, which may hold secrets."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return 'the address'
    if not parts.netloc:
        return printable(url)
    host = parts.netloc.rpartition('@')[2]
    return printable(f'{parts.scheme}://{host}{parts.path}') + ('?…' if parts.query else '')


def printable(text: Any, limit: int = 300) -> str:
    """A text of foreign origin on one line: it must not move the cursor or fill the screen."""
    text = ''.join(char if char.isprintable() else ' ' for char in str(text))
    return ' '.join(text.split())[:limit]


def name_of_url(url: str) -> str:
    """The name of the file that an address leads to, fit for every file system."""
    return safe_name(urllib.parse.unquote(urllib.parse.urlsplit(url).path)) or 'download'


def safe_name(path: str) -> str:
    """The last part of a path with only characters that every file system takes, at most 150 of them."""
    name = re.sub(r'[^0-9A-Za-z._-]', '_', re.split(r'[/\\]', path)[-1])
    stem, ending = os.path.splitext(name)
    return stem[:150 - len(ending)] + ending if len(ending) < 30 else name[:150]


def size_text(count: int) -> str:
    """A number of bytes as '381.7 MB'."""
    for unit, size in (('GB', 10 ** 9), ('MB', 10 ** 6), ('kB', 10 ** 3)):
        if count >= size:
            return f'{count / size:.1f} {unit}'
    return f'{count} bytes'


def say(message: str, verbose: bool) -> None:
    """Prints a line on stderr, if verbose."""
    if verbose and sys.stderr is not None:
        print(message, file=sys.stderr, flush=True)
