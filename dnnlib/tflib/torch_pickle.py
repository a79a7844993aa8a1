"""PyTorch files as plain data, without PyTorch and without running anything that they contain.

Read are the containers of `torch.save` (a zip archive since PyTorch 1.6, a stream of pickles before),
TorchScript archives (their data, never their code) and plain pickles that hold tensors, among them the
snapshots of stylegan2-ada-pytorch and StyleGAN3. The interpreter is that of `safe_pickle` with a few more
names: tensors become NumPy arrays, modules become `Module` records. What the source text inside, the code of
TorchScript and the hooks of modules say stays unread.
"""

import errno
import io
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from dnnlib.util import UserError, gfile, is_remote_path

from .torch_machine import LEGACY_HEAD, LegacyMachine, Module, Storage, TorchMachine

__all__ = ['Module', 'is_torch_file', 'load_torch', 'loads', 'state_dict']

MAX_BYTES = 8 << 30
ZIP_RATIO = 20          # Weights hardly compress: more than this, beyond 64 MiB, is a decompression bomb.


def load_torch(file: str | os.PathLike) -> Any:
    """Reads a PyTorch file.

    Args:
        file: Path (also 'gs://...') of a `.pth`, `.pt` or `.pkl`.

    Returns: What was saved: dicts, lists and tuples of plain values, tensors as NumPy arrays (C-contiguous,
    writable; bfloat16 as float32), modules as `Module`, sets as lists, torch.Size as tuple, dtypes and
    devices as text. Tensors that were one tensor are one array.

    Errors: UserError, naming the file, for everything else than a sound PyTorch file; OSError as `open`
    raises it.
    """
    name = os.fspath(file)
    with gfile().GFile(name, 'rb') if is_remote_path(name) else open(name, 'rb') as stream:
        try:
            stream.seek(0, os.SEEK_END)
            if stream.tell() > MAX_BYTES:
                raise UserError(f'expected a PyTorch file of at most {MAX_BYTES >> 30} GiB')
            stream.seek(0)
            if stream.read(4) == b'PK\x03\x04':
                return _load_zip(stream)
            stream.seek(0)
            return loads(stream.read())
        except UserError as error:
            raise UserError(f'{name}: {error}') from None


def loads(data: bytes) -> Any:
    """As `load_torch`, from the bytes of a file."""
    if data[:4] == b'PK\x03\x04':
        return _load_zip(io.BytesIO(data))
    if data.startswith(LEGACY_HEAD):
        machine = LegacyMachine(data)
        with machine.guard():
            return machine.plain(machine.execute_stream())
    if data[:1] != pickle.PROTO:
        raise UserError('expected a PyTorch file (.pth, .pt or .pkl), found '
                        + ('a web page; the download went wrong, repeat it'
                           if data[:200].lstrip().lower().startswith((b'<!doctype', b'<html', b'<?xml'))
                           else 'something else' if data else 'an empty file'))
    return TorchMachine(data).load()


def is_torch_file(head: bytes) -> bool:
    """Whether a file that begins so is a zip or legacy container of PyTorch."""
    return head.startswith((b'PK\x03\x04', LEGACY_HEAD))


def state_dict(obj: Any) -> dict[str, np.ndarray]:
    """{name: array} of what `load_torch` returned, under the names of PyTorch's `state_dict()`.

    Args:
        obj: A state dict, a module, or a dict that holds one of them under one of the usual names.

    Errors: UserError when there is none.
    """
    if isinstance(obj, Module):
        return dict(_walk(obj, ''))
    if isinstance(obj, dict):
        arrays = {key: value for key, value in obj.items() if isinstance(value, np.ndarray)}
        if arrays:
            prefixed = all(str(key).startswith('module.') for key in arrays)    # Of DataParallel.
            return {str(key)[len('module.') if prefixed else 0:]: value for key, value in arrays.items()}
        for key in ('state_dict', 'model_state_dict', 'model', 'net', 'params', 'g_ema', 'G_ema'):
            if isinstance(obj.get(key), dict | Module):
                return state_dict(obj[key])
    found = f'a dict with the keys {list(obj)}' if isinstance(obj, dict) else f'a {type(obj).__name__}'
    raise UserError(f'expected a PyTorch state dict or module, found {found:.200}')


def _walk(module: Module, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    for name, value in [*module.parameters.items(), *module.buffers.items()]:
        yield prefix + name, value
    for name, child in module.modules.items():
        yield from _walk(child, f'{prefix}{name}.')


class _ZipMachine(TorchMachine):
    """Reads data.pkl of a zip archive; its tensors come from the entries data/0, data/1, ..."""

    def __init__(self, archive: '_Archive'):
        super().__init__(archive.read('data.pkl'), archive.size)
        self.archive = archive
        self.storages = {}

    def storage_of_id(self, pid: Any) -> Storage:
        spec, key, count, _ = self.parse_id(pid)
        if key not in self.storages:
            storage = Storage(spec, count, lambda: self.archive.read(f'data/{key}'))
            storage.order = self.archive.order
            self.storages[key] = storage
        if self.storages[key].spec != spec:
            raise UserError(f'damaged {self.subject}: a storage of two types')
        return self.storages[key]


class _Archive:
    """The entries of a zip archive below its one folder, each read once, in bounded memory."""

    def __init__(self, file: Any):
        self.size = file.seek(0, os.SEEK_END)
        self.left = max(64 << 20, ZIP_RATIO * self.size)
        self.archive = zipfile.ZipFile(file)
        entries = {info.filename: info for info in self.archive.infolist()}
        found = [name for name in entries if re.fullmatch(r'[^/]+/data\.pkl', name)]
        if len(found) != 1:
            raise UserError('expected a PyTorch archive with one data.pkl, found another ZIP archive')
        self.prefix = found[0].removesuffix('data.pkl')
        self.entries, self.cache = entries, {}
        big = f'{self.prefix}byteorder' in entries and self.read('byteorder') == b'big'
        self.order = '>' if big else '<'

    def read(self, name: str) -> bytes:
        if name not in self.cache:
            info = self.entries.get(self.prefix + name)
            if info is None:
                raise UserError(f'damaged PyTorch file: it has no entry {name!r}')
            self.left -= info.file_size
            if self.left < 0:
                raise UserError('refused: the ZIP archive unfolds to much more data than it holds')
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError('refused: an encrypted or unusually compressed ZIP archive')
            self.cache[name] = self.archive.read(info)
        return self.cache[name]


def _load_zip(file: Any) -> Any:
    try:
        machine = _ZipMachine(_Archive(file))
        return machine.load()
    except UserError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error,
            OverflowError, ValueError, LookupError, AttributeError, MemoryError) as error:
        _damaged_zip(error)
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):     # A seek to where no file has anything.
            raise
        _damaged_zip(error)


def _damaged_zip(error: Exception) -> NoReturn:
    raise UserError(f'damaged PyTorch file ({" ".join(str(error).split()):.80}); '
                    'download or copy it again') from None
