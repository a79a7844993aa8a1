"""CIFAR-10 and CIFAR-100, python version: a folder, or the .tar.gz as it is downloaded.

The files are pickles of Python 2. They are read by an interpreter that knows no class or function: the few
names that they mention stand for the objects below, which can do nothing but hold an array's bytes.
"""

import functools
import gzip
import io
import os
import pickle
import pickletools
import tarfile
from typing import Any, NamedTuple

import numpy as np

from dnnlib.util import UserError
from training.datasets.archive_base import ArraySource, BoundedReader

_MAX_PICKLE = 512 << 20     # Bytes; CIFAR-100 has 155 MB in one file.
_MAX_TAR = 1 << 30
_MAX_INSTRUCTIONS = 2_000_000
_TARS = {'cifar10': ('cifar-10-python.tar.gz', 'cifar-10-batches-py'),
         'cifar100': ('cifar-100-python.tar.gz', 'cifar-100-python')}

# What such files consist of, in Python 2 and as Python 3 would write them.
_INSTRUCTIONS = set('''PROTO FRAME STOP MARK POP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINFLOAT
    BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES BINBYTES8
    EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT SETITEM SETITEMS
    BINPUT LONG_BINPUT BINGET LONG_BINGET MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD'''.split())


class _DType:
    """Stands for numpy.dtype('u1'); any other type makes the array unusable."""

    __slots__ = ('spec',)

    def __init__(self, spec: Any) -> None:
        self.spec = spec

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands for an array of bytes under construction."""

    __slots__ = ('value',)

    def __init__(self) -> None:
        self.value = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _make_array(data, shape, dtype, fortran)


def _make_array(data: Any, shape: Any, dtype: Any, fortran: Any) -> np.ndarray:
    if type(dtype) is not _DType or dtype.spec not in ('u1', '|u1', b'u1', b'|u1') or type(data) is not bytes:
        raise ValueError('an array of other values than bytes')
    return np.frombuffer(data, np.uint8).reshape(shape, order='F' if fortran is True else 'C')


class _Call:
    """Stands for a function; has no state that a pickle could change."""

    __slots__ = ('kind',)

    def __init__(self, kind: str) -> None:
        object.__setattr__(self, 'kind', kind)

    def __setattr__(self, *_: Any) -> None:
        raise pickle.UnpicklingError('a state for a function')

    __setstate__ = __setattr__

    def __call__(self, *args: Any) -> Any:
        if self.kind == 'dtype':
            return _DType(args[0])
        if self.kind == 'reconstruct':
            return _Array()
        if self.kind == 'frombuffer':
            array = _Array()
            array.value = _make_array(args[0], args[2], args[1], args[3] == 'F')
            return array
        if self.kind == 'encode' and type(args[0]) is str and args[1] in ('latin1', b'latin1'):
            return args[0].encode('latin-1')
        raise pickle.UnpicklingError(f'a call of {self.kind}')


_NAMES = {('_codecs', 'encode'): 'encode', ('numpy', 'dtype'): 'dtype', ('numpy', 'ndarray'): 'ndarray'}
for _core in ('numpy.core', 'numpy._core'):
    _NAMES[_core + '.multiarray', '_reconstruct'] = 'reconstruct'
    _NAMES[_core + '.numeric', '_frombuffer'] = 'frombuffer'


class _Unpickler(pickle.Unpickler):

    def find_class(self, module: str, name: str) -> _Call:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f'it asks for {module}.{name}')
        return _Call(_NAMES[module, name])

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError('it refers to other files')


def read_pickle(data: bytes, path: str) -> dict[str, Any]:
    """A pickled dict of arrays of bytes, lists and numbers, of Python 2 or 3.

    Returns: the dict; its keys as str, its arrays as uint8 arrays.
    Errors: UserError, naming the file: truncated, damaged, or with anything else in it.
    """
    try:
        _check_instructions(data)
        value = _Unpickler(io.BytesIO(data), encoding='bytes').load()
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(f'{path} is not a batch of CIFAR: {_short(error)}. Nothing in it was executed; '
                        'download it again.') from error
    except Exception as error:  # The unpickler raises anything on damaged data.
        raise UserError(f'{path} is truncated or damaged ({_short(error)}); download it again.') from error
    if type(value) is not dict:
        raise UserError(f'{path} is not a batch of CIFAR: it holds a {type(value).__name__}, not a dict. '
                        'Download it again.')
    return {_text(key): item.value if type(item) is _Array else item for key, item in value.items()}


def _check_instructions(data: bytes) -> None:
    """Refuses what the unpickler should not even see; it fills memory up to the largest memo index."""
    for count, (instruction, argument, _) in enumerate(pickletools.genops(data)):
        if instruction.name not in _INSTRUCTIONS:
            raise pickle.UnpicklingError(f'it has the instruction {instruction.name}')
        if count > _MAX_INSTRUCTIONS or ('PUT' in instruction.name and argument > count):
            raise pickle.UnpicklingError('it has too many instructions')


def _short(error: Exception) -> str:
    return (' '.join(str(error).split()) or type(error).__name__)[:160]


def _text(value: Any) -> str:
    return value.decode('latin-1') if type(value) is bytes else str(value)


class _Files(NamedTuple):
    """Where the files of a data set are: a folder, or a tar archive."""

    path: str
    is_tar: bool

    def location(self, name: str) -> str:
        return f'{self.path}: {name}' if self.is_tar else os.path.join(self.path, name)

    def read(self, names: list[str], optional: tuple[str, ...] = ()) -> dict[str, bytes]:
        """The content of files by name. Errors: UserError that names what is missing or damaged."""
        found = self._read_tar(names) if self.is_tar else self._read_folder(names)
        missing = [name for name in names if name not in found and name not in optional]
        if missing:
            raise UserError(f'{self.path} lacks {", ".join(missing)}; expected the python version of the '
                            'data set, complete. Download it again.')
        return found

    def _read_folder(self, names: list[str]) -> dict[str, bytes]:
        found = {}
        for name in names:
            path = os.path.join(self.path, name)
            if os.path.isfile(path):
                if os.path.getsize(path) > _MAX_PICKLE:
                    raise UserError(f'{path} has {os.path.getsize(path)} bytes, more than a batch of CIFAR.')
                with open(path, 'rb') as file:
                    found[name] = file.read()
        return found

    def _read_tar(self, names: list[str]) -> dict[str, bytes]:
        """Nothing is unpacked to the disk: what paths and links in the archive say does not matter."""
        found = {}
        try:
            with _open_tar(self.path) as file, \
                    tarfile.open(fileobj=BoundedReader(file, _MAX_TAR, self.path), mode='r:') as tar:
                for member in tar:
                    name = os.path.basename(member.name)
                    if not member.isreg() or name not in names:
                        continue
                    if name in found:
                        raise UserError(f'{self.path} holds {name} twice; download it again.')
                    if member.size > _MAX_PICKLE:
                        raise UserError(f'{self.path}: {name} has {member.size} bytes, more than a batch of '
                                        'CIFAR; download it again.')
                    found[name] = tar.extractfile(member).read()
        except UserError:
            raise
        except Exception as error:  # tarfile and gzip raise several kinds on damaged archives.
            raise UserError(f'{self.path} is truncated or damaged ({_short(error)}); download it '
                            'again.') from error
        return found


def _open_tar(path: str) -> io.BufferedIOBase:
    with open(path, 'rb') as file:
        compressed = file.read(2) == b'\x1f\x8b'
    return gzip.open(path) if compressed else open(path, 'rb')


def _find(path: str, kind: str, needed: str) -> _Files:
    """The folder or archive at a path or below it."""
    tar, folder = _TARS[kind]
    if not os.path.exists(path):
        raise UserError(f'there is nothing at {path}; expected {tar}, or the folder {folder} of it.')
    if os.path.isfile(path):
        return _Files(path, True)
    for place in (path, os.path.join(path, folder)):
        if os.path.isfile(os.path.join(place, needed)):
            return _Files(place, False)
    for name in (tar, tar.removesuffix('.gz')):
        if os.path.isfile(os.path.join(path, name)):
            return _Files(os.path.join(path, name), True)
    raise UserError(f'{path} does not hold the python version of {kind}: expected {tar}, or the files of the '
                    f'folder {folder} ({needed}, ...).')


def _load_images(files: _Files, names: list[str]) -> np.ndarray:
    return np.concatenate([images for images, _ in _load(files, files.read(names), names)])


def _load(
    files: _Files, contents: dict[str, bytes], names: list[str], label_key: str = '', num_classes: int = 0,
) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Of each batch: uint8 [N, 32, 32, 3] and int64 [N]."""
    batches = []
    for name in names:
        path = files.location(name)
        batch = read_pickle(contents.pop(name), path)
        data = batch.get('data')
        shape = list(data.shape) if isinstance(data, np.ndarray) else [0]
        if len(shape) != 2 or shape[1] != 3072 or not shape[0]:
            raise UserError(f'{path}: "data" is a {type(data).__name__} of shape {shape}; expected bytes of '
                            'shape [N, 3072]. Download it again.')
        labels = batch.get(label_key)
        if label_key and (type(labels) is not list or len(labels) != shape[0]
                          or any(type(label) is not int or not 0 <= label < num_classes for label in labels)):
            raise UserError(f'{path}: "{label_key}" is not a list of {shape[0]} numbers from 0 to '
                            f'{num_classes - 1}; download it again.')
        images = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        batches.append((images, np.array(labels, np.int64) if label_key else None))
    return batches


def _source(
    path: str, kind: str, names: list[str], label_key: str, meta: str, names_key: str, num_classes: int,
) -> ArraySource:
    files = _find(path, kind, names[0])
    contents = files.read([*names, meta], optional=(meta,))
    label_names = None
    if meta in contents:
        label_names = read_pickle(contents[meta], files.location(meta)).get(names_key)
    if type(label_names) is not list or len(label_names) != num_classes:
        label_names = range(num_classes)
    batches = _load(files, contents, names, label_key, num_classes)
    parts = [(files.location(name), len(batch[0])) for name, batch in zip(names, batches, strict=True)]
    images = np.concatenate([batch[0] for batch in batches])
    return ArraySource(
        kind, functools.partial(_load_images, files, names), parts,
        f'{files.path}: {len(images)} training images of {kind}', images,
        labels=np.concatenate([batch[1] for batch in batches]),
        label_names=[_text(name) for name in label_names])


def cifar10(path: str) -> ArraySource:
    """The 5 training batches of CIFAR-10, in order: [32, 32, 3], 10 classes.

    Args:
        path: The folder with data_batch_1 to data_batch_5, cifar-10-python.tar.gz, or a folder with either.
    """
    names = [f'data_batch_{i}' for i in range(1, 6)]
    return _source(path, 'cifar10', names, 'labels', 'batches.meta', 'label_names', 10)


def cifar100(path: str) -> ArraySource:
    """The training images of CIFAR-100 with their 100 fine classes: [32, 32, 3].

    Args:
        path: The folder with the file `train`, cifar-100-python.tar.gz, or a folder with either.
    """
    return _source(path, 'cifar100', ['train'], 'fine_labels', 'meta', 'fine_label_names', 100)
