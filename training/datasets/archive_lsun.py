"""LSUN: LMDB databases whose values are image files (WebP or JPEG)."""

import contextlib
import os
import struct
import threading
import types
from typing import Any

import numpy as np

from dnnlib.util import UserError
from training.datasets.archive_base import Source, missing_extra
from training.datasets.image_files import ImageOptions, LeftOutError, load_image, open_image, oriented_size

_STRIDE = 256               # Every so many keys one is kept in memory.
_MAGIC = 0xBEEFC0DE
_MAX_KEY_BYTES = 64 << 20   # Of the keys kept.
_META = struct.Struct('<IIQQ')          # magic, version, address, size of the map
_TREE = struct.Struct('<IHHQQQQQ')      # page size or padding, flags, depth, pages of 3 kinds, entries, root

# LMDB does not open one database twice in one process: sources of the same file share it. So do forked
# processes, which LMDB takes for the same one; without locks it only reads through a map of the file.
_environments = {}
_environments_lock = threading.Lock()


def _after_fork() -> None:
    global _environments_lock
    _environments_lock = threading.Lock()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_after_fork)


def _database_file(path: str) -> str:
    """The data file of an LMDB folder, checked: liblmdb itself may crash on a file that is cut off."""
    if not os.path.exists(path):
        raise UserError(f'there is no LMDB folder {path}; check the path.')
    file_path = os.path.join(path, 'data.mdb') if os.path.isdir(path) else path
    if not os.path.isfile(file_path):
        raise UserError(f'{path} does not hold data.mdb; expected the folder <category>_lmdb that LSUN ships '
                        'as a .zip. Give that folder, unzipped.')
    size = os.path.getsize(file_path)
    with open(file_path, 'rb') as file:
        head = file.read(1 << 17)
    if head[:2] == b'PK':
        raise UserError(f'{file_path} is a zip archive; unzip it and give the folder with data.mdb.')
    meta = _newest_meta(head)
    if meta is None:
        raise UserError(f'{file_path} is not an LMDB database of this kind of computer, or its start is '
                        'damaged; download it again.')
    page_size, last_page = meta
    if size < (last_page + 1) * page_size:
        raise UserError(f'{file_path} is truncated: it has {size} bytes, expected at least '
                        f'{(last_page + 1) * page_size}; download it again.')
    return file_path


def _newest_meta(head: bytes) -> tuple[int, int] | None:
    """(page size, number of the last page) by the newer of the two meta pages; None if there is none."""
    found, page_size = [], 0
    for index in range(2):
        start = index * page_size + 16
        if len(head) < start + _META.size + 2 * _TREE.size + 16:
            break
        magic, version, _, _ = _META.unpack_from(head, start)
        if magic != _MAGIC or version != 1:
            break
        page_size = _TREE.unpack_from(head, start + _META.size)[0]
        if not 256 <= page_size <= 65536 or page_size & (page_size - 1):
            break
        last_page, transaction = struct.unpack_from('<QQ', head, start + _META.size + 2 * _TREE.size)
        found.append((transaction, page_size, last_page))
    return max(found)[1:] if found else None


def _lmdb() -> types.ModuleType:
    try:
        import lmdb
    except ImportError as error:
        raise missing_extra('lmdb', error) from error
    return lmdb


def _open_environment(file_path: str) -> Any:
    lmdb = _lmdb()
    key = os.path.realpath(file_path)
    with _environments_lock:
        if key not in _environments:
            try:
                environment = lmdb.open(file_path, subdir=False, readonly=True, lock=False, create=False,
                                        readahead=False)
            except lmdb.Error as error:
                raise UserError(f'{file_path} cannot be opened as an LMDB database: {error}') from error
            _environments[key] = [environment, 0]
        _environments[key][1] += 1
        return _environments[key][0]


def _close_environment(file_path: str) -> None:
    key = os.path.realpath(file_path)
    with _environments_lock:
        entry = _environments.get(key)
        if entry is not None:
            entry[1] -= 1
            if not entry[1]:
                del _environments[key]
                entry[0].close()


class LsunSource(Source):
    """Images of an LMDB database, in the order of its keys.

    Keeps every 256th key in memory: some MB for the largest category.

    Args:
        lmdb_dir: The folder with data.mdb.
        options: What is done with each image.
        max_images: Use the first images only.
        at_least: Leave out images smaller than this (width, height).
    """

    def __init__(
        self,
        lmdb_dir: str,
        options: ImageOptions,
        max_images: int | None,
        what: str,
        at_least: tuple[int, int] | None = None,
    ) -> None:
        if max_images is not None and max_images < 1:
            raise UserError(f'max_images must be 1 or larger; received {max_images}')
        self._path = _database_file(os.fspath(lmdb_dir))
        side = max(options.width, options.height or options.width)
        name = os.path.basename(os.path.normpath(os.fspath(lmdb_dir))).removesuffix('_lmdb')
        super().__init__(name, (side, side, 3), '', shuffled=False)
        self._options = options
        self._at_least = at_least
        self._keys, self._count = self._scan_keys(max_images)
        self.description = f'{lmdb_dir}: {self._count} images, {what}'

    def __len__(self) -> int:
        return self._count

    def _open(self) -> Any:
        return _open_environment(self._path)

    def _close(self, handle: Any) -> None:
        _close_environment(self._path)

    @contextlib.contextmanager
    def _cursor(self) -> Any:
        lmdb = _lmdb()
        try:
            with self._opened().begin(buffers=False) as transaction, transaction.cursor() as cursor:
                yield cursor
        except lmdb.Error as error:
            raise UserError(f'{self._path} is damaged: {error}; download it again.') from error

    def _scan_keys(self, max_images: int | None) -> tuple[list[bytes], int]:
        kept, count, size = [], 0, 0
        with self._cursor() as cursor:
            for key in cursor.iternext(keys=True, values=False):
                if count % _STRIDE == 0:
                    kept.append(key)
                    size += len(key)
                    if size > _MAX_KEY_BYTES:
                        raise UserError(f'{self._path} has more keys than any category of LSUN.')
                count += 1
                if count == max_images:
                    break
        if not count:
            raise UserError(f'{self._path} holds no images.')
        return kept, count

    def _entry(self, index: int, value: bool = True) -> tuple[str, bytes]:
        """Key as text, and the value if it is wanted."""
        index = self._check_index(index)
        with self._cursor() as cursor:
            found = cursor.set_key(self._keys[index // _STRIDE])
            for _ in range(index % _STRIDE):
                found = found and cursor.next()
            if not found:
                raise UserError(f'{self._path} has changed since it was opened: image {index} is gone.')
            key = cursor.key()
            return key.decode('ascii', 'backslashreplace'), cursor.value() if value else b''

    def item_name(self, index: int) -> str:
        return f'{self._path}[{self._entry(index, value=False)[0]}]'

    def read(self, index: int) -> np.ndarray:
        key, data = self._entry(index)
        name = f'{self._path}[{key}]'
        try:
            if self._at_least:
                with open_image(data, name) as image:
                    size = oriented_size(image)
                if size[0] < self._at_least[0] or size[1] < self._at_least[1]:
                    raise LeftOutError(f'{name} has {size[0]}x{size[1]} pixels, less than '
                                       f'{self._at_least[0]}x{self._at_least[1]}')
            return load_image(data, name, self._options)
        except LeftOutError:
            raise
        except UserError as error:      # As the official command: such entries are told and left out.
            raise LeftOutError(str(error)) from error


def lsun(lmdb_dir: str, resolution: int = 256, max_images: int | None = None) -> LsunSource:
    """Centre squares of the images, resized to resolution × resolution by Lanczos' filter.

    `read` raises LeftOutError for an entry that is no readable image. max_images counts those too.
    """
    options = ImageOptions(3, (255, 255, 255), 'center-crop', resolution, resolution)
    return LsunSource(lmdb_dir, options, max_images,
                      f'cropped to the centre square, {resolution}x{resolution}, lanczos')


def lsun_wide(
    lmdb_dir: str, width: int = 512, height: int = 384, max_images: int | None = None,
) -> LsunSource:
    """Centres of aspect ratio width:height, resized by Lanczos' filter, black above and below to a square.

    `read` raises LeftOutError for an entry that is no readable image or would have to be enlarged.
    max_images counts those too.
    """
    if height > width:
        raise UserError(f'lsun_wide: height must be at most width; received width {width}, height {height}.')
    options = ImageOptions(3, (255, 255, 255), 'center-crop-wide', width, height)
    return LsunSource(lmdb_dir, options, max_images,
                      f'cropped to {width}:{height}, {width}x{height}, lanczos, padded to {width}x{width}',
                      at_least=(width, height))
