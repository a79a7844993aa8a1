"""Official network pickles as plain data: read without running anything, written as the official code writes.

A snapshot of ProGAN, StyleGAN or StyleGAN2 is the tuple (G, D, Gs) of pickled `Network` objects. `load_pkl`
returns each of them as a `NetworkState`: names, keyword arguments and NumPy arrays; the source text that
official pickles carry stays text. `save_pkl` writes the official layout: pickle protocol 4, state version 4,
NumPy 1 module names (which NumPy 2 reads too), scalars as `numpy.float32`.
"""

import dataclasses
import gzip
import io
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from typing import IO, Any, NoReturn

import numpy as np

from dnnlib.util import UserError, atomic_write, gfile, is_remote_path

from . import safe_pickle

__all__ = [
    'NetworkState', 'check_supported', 'dumps', 'find_network', 'load_pkl', 'network_states', 'save_pkl',
]

NETWORK_CLASS = 'dnnlib.tflib.network.Network'  # StyleGAN and StyleGAN2; ProGAN has tfutil.Network
STATE_KEYS = ('version', 'name', 'static_kwargs', 'components', 'build_module_src', 'build_func_name',
              'variables')
SOURCE_PLACEHOLDER = '# Network construction source code omitted.\n'

MAX_BYTES = 4 << 30     # the largest official snapshot has 0.4 GB
GZIP_RATIO = 20         # weights hardly compress: more than this, beyond 64 MiB, is a decompression bomb


@dataclasses.dataclass(eq=False)
class NetworkState:
    """What an official pickle stores of one network.

    `variables` are the network's own, in the official order: (local name, float32 array in the official
    layout, or numpy.float32 for a scalar such as `lod`); those of the components are in the components.
    """

    name: str                               # 'G', 'D', 'Gs', 'G_synthesis', ...
    build_func_name: str                    # 'G_main', 'D_stylegan2', ...
    static_kwargs: dict = dataclasses.field(default_factory=dict)
    components: dict[str, 'NetworkState'] = dataclasses.field(default_factory=dict)
    variables: list[tuple[str, np.ndarray | np.generic]] = dataclasses.field(default_factory=list)
    version: int = 4                        # ProGAN 2, StyleGAN 3, StyleGAN2 4
    build_module_src: str = SOURCE_PLACEHOLDER  # as found; never executed, and not written back
    class_name: str = NETWORK_CLASS
    extra: dict = dataclasses.field(default_factory=dict)   # keys of the state that are not among STATE_KEYS
    key_order: tuple[str, ...] = STATE_KEYS                 # order of the keys in the pickle

    @classmethod
    def from_state(cls, state: dict, class_name: str = NETWORK_CLASS) -> 'NetworkState':
        """From the dict that an official `Network.__getstate__` returns, components being NetworkStates.

        Errors: UserError when a key is missing, unknown in type, or a variable is no array or named twice.
        """
        for key, kind in _STATE_TYPES.items():
            if key not in state and key in ('components', 'build_module_src'):
                continue
            if key not in state or not isinstance(state[key], kind) or isinstance(state[key], bool):
                found = type(state[key]).__name__ if key in state else 'nothing'
                raise UserError(f"a network state must have {key!r} as {kind.__name__}, found {found}")
        name = state['name']
        for key, component in state.get('components', {}).items():
            if not isinstance(component, NetworkState):
                raise UserError(f'component {key!r:.60} of network {name!r:.60} is not a network')
        variables = [_variable(item, name) for item in state['variables']]
        if len(dict(variables)) != len(variables):
            raise UserError(f'network {name!r:.60} has two variables of one name')
        values = {key: value for key, value in state.items() if key in STATE_KEYS}
        values |= {'variables': variables, 'static_kwargs': dict(state['static_kwargs']),
                   'components': dict(state.get('components', {}))}
        extra = {key: value for key, value in state.items() if key not in STATE_KEYS}
        return cls(**values, class_name=class_name, extra=extra, key_order=tuple(state))

    def to_state(self) -> dict:
        """The dict of the official keys, in the official order or in that of the pickle it came from."""
        keys = list(self.key_order)
        if self.components and 'components' not in keys:
            keys.insert(keys.index('static_kwargs') + 1, 'components')
        keys += [key for key in self.extra if key not in keys]
        return {key: getattr(self, key) if key in STATE_KEYS else self.extra[key] for key in keys}

    def all_variables(self) -> dict[str, np.ndarray | np.generic]:
        """Own variables and those of the components under their global names (`G_synthesis/noise0`)."""
        result = dict(self.variables)
        for component in self.components.values():
            for key, value in component.all_variables().items():
                result[f'{component.name}/{key}'] = value
        return result


_STATE_TYPES = dict(zip(STATE_KEYS, (int, str, dict, dict, str, str, list), strict=True))


def _variable(item: Any, network: str) -> tuple[str, np.ndarray | np.generic]:
    """One checked entry of `variables`."""
    if not isinstance(item, tuple | list) or len(item) != 2 or not isinstance(item[0], str):
        raise UserError(f'a variable of network {network!r:.60} is not a pair (name, array)')
    if not isinstance(item[1], np.ndarray | np.generic) or item[1].dtype.kind not in 'biufc':
        raise UserError(f'variable {item[0]!r:.60} of network {network!r:.60} is not an array of numbers')
    return item[0], item[1]


def load_pkl(file: str | os.PathLike | IO[bytes]) -> Any:
    """Reads a pickle of networks without executing anything that it contains.

    Args:
        file: Path (also `gs://...`) or binary file, plain or gzip. A seekable plain file is left behind the
            pickle, so several in a row can be read.

    Returns: What was pickled (usually the tuple (G, D, Gs)), each network as a NetworkState. Pickle
    protocols 2 to 5 are read, those of Python 2 included.

    Errors: UserError, naming the file, for everything that is not a sound pickle of networks, arrays and
    plain values; OSError as `open` raises it.
    """
    if isinstance(file, str | os.PathLike):
        name = os.fspath(file)
        with gfile().GFile(name, 'rb') if is_remote_path(name) else open(name, 'rb') as stream:
            return _load(stream, name)
    return _load(file, str(getattr(file, 'name', 'network pickle')))


def _load(file: IO[bytes], name: str) -> Any:
    try:
        seekable = file.seekable()
        start = file.tell() if seekable else 0
        data, compressed = _read_bytes(file, seekable)
        result, size = safe_pickle.loads(data, NetworkState.from_state)
    except UserError as error:
        raise UserError(f'{name}: {error}') from None
    if seekable and not compressed:
        file.seek(start + size)
    return result


def _read_bytes(file: IO[bytes], seekable: bool) -> tuple[bytes | bytearray, bool]:
    """The uncompressed contents of a file, and whether it was compressed."""
    head = file.read(2)
    if not isinstance(head, bytes):
        raise UserError("expected a binary file: open it with mode 'rb'")
    compressed = head == b'\x1f\x8b'
    if not compressed and head[:1] != pickle.PROTO:
        raise UserError(_not_a_pickle(head + file.read(200)))
    if seekable:
        start = file.tell()
        file.seek(0, os.SEEK_END)
        size = file.tell() - start
        file.seek(start - len(head))
        data = file.read() if size <= MAX_BYTES else _too_large(MAX_BYTES)
    else:
        data = _read_limited(file, bytearray(head), MAX_BYTES)
    if compressed:
        limit = min(MAX_BYTES, max(64 << 20, GZIP_RATIO * len(data)))
        try:
            data = _read_limited(gzip.GzipFile(fileobj=io.BytesIO(data)), bytearray(), limit)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f'damaged gzip file ({error}); download or copy it again') from None
        if data[:1] != pickle.PROTO:
            raise UserError(_not_a_pickle(bytes(data[:200])))
    return data, compressed


def _read_limited(file: IO[bytes], data: bytearray, limit: int) -> bytearray:
    """Appends the rest of a file whose size is not known beforehand."""
    while chunk := file.read(4 << 20):
        data += chunk
        if len(data) > limit:
            _too_large(limit)
    return data


def _too_large(limit: int) -> NoReturn:
    raise UserError(f'expected a network pickle of at most {limit >> 20} MiB, this one holds more')


def _not_a_pickle(head: bytes) -> str:
    """Says what a file that is no pickle seems to be."""
    text = head.lstrip().lower()
    if not head:
        return 'expected a network pickle, found an empty file; download or copy it again'
    if head.startswith(b'PK\x03\x04'):
        return 'expected a TensorFlow network pickle, found a ZIP archive (perhaps a PyTorch checkpoint)'
    if text.startswith((b'<!doctype', b'<html', b'<?xml')):
        return 'expected a network pickle, found a web page; the download went wrong, repeat it'
    if text.startswith(b'version https://git-lfs'):
        return "expected a network pickle, found a Git LFS pointer; fetch the file itself by 'git lfs pull'"
    return 'expected a network pickle (binary, pickle protocol 2 to 5), found something else'


def network_states(obj: Any) -> list[NetworkState]:
    """All top-level networks in what `load_pkl` returned, in order; components stay in their networks."""
    if isinstance(obj, NetworkState):
        return [obj]
    values = obj.values() if isinstance(obj, dict) else obj if isinstance(obj, list | tuple) else ()
    return [state for value in values for state in network_states(value)]


def find_network(obj: Any, role: str = 'Gs') -> NetworkState:
    """Picks one network out of what `load_pkl` returned.

    Args:
        obj: A snapshot (G, D, Gs), a dict of networks, or a single network, which is returned as it is.
        role: 'G', 'D' or 'Gs'; for a dict, a key of it; otherwise the name of the network.

    Errors: UserError when there is no such network.
    """
    states = network_states(obj)
    if len(states) == 1:
        return states[0]
    if isinstance(obj, dict) and isinstance(obj.get(role), NetworkState):
        return obj[role]
    if isinstance(obj, list | tuple) and len(obj) == len(states) == 3 and role in ('G', 'D', 'Gs'):
        return states[('G', 'D', 'Gs').index(role)]
    named = [state for state in states if state.name == role]
    if len(named) != 1:
        raise UserError(f'expected a pickle (G, D, Gs) or one with a network {role!r}, '
                        f'found networks {[state.name for state in states]}')
    return named[0]


def check_supported(state: NetworkState) -> None:
    """Raises UserError for a network, or component, of a later generation than StyleGAN2."""
    if state.version >= 5:
        raise UserError(f'network {state.name!r:.60} has state version {state.version} (StyleGAN2-ADA): its '
                        'functions are not supported; expected a network of StyleGAN2 (4), StyleGAN (3) '
                        'or ProGAN (2)')
    if state.version < 1:
        raise UserError(f'network {state.name!r:.60} has state version {state.version}; expected 1 to 4')
    for component in state.components.values():
        check_supported(component)


def save_pkl(obj: Any, path: str | os.PathLike) -> None:
    """Writes networks as an official pickle; the file appears under its name only when it is whole.

    Args:
        obj: NetworkState, or tuple, list or dict of them (usually the tuple (G, D, Gs)); plain values may
            stand beside them. Source text in a state is replaced by a one-line placeholder.
        path: File to write, also `gs://...`.

    Errors: UserError for a value that such a pickle cannot hold; OSError as `open` raises it.
    """
    with atomic_write(path, 'wb') as file:
        # TensorFlow's files take bytes, but no views of arrays.
        write = (lambda data: file.write(bytes(data))) if is_remote_path(path) else file.write
        _Writer(write).dump(obj)


def dumps(obj: Any) -> bytes:
    """The bytes that `save_pkl` writes."""
    file = io.BytesIO()
    _Writer(file.write).dump(obj)
    return file.getvalue()


class _Global(str):
    """A dotted name written as a reference to that module's attribute."""


_RECONSTRUCT = _Global('numpy.core.multiarray._reconstruct')
_SCALAR = _Global('numpy.core.multiarray.scalar')
_NDARRAY = _Global('numpy.ndarray')
_DTYPE = _Global('numpy.dtype')


class _Writer:
    """Writes pickle protocol 4 with the instructions, memo and frames that Python's own pickler uses.

    Written out by hand because the classes named in the file (`tfutil.Network`, NumPy 1 modules) need not
    exist here, and because large arrays go to the file without a copy.
    """

    FRAME_SIZE = 65536

    def __init__(self, write: Callable[[Any], Any]):
        self.write = write
        self.frame = bytearray()
        self.memo = {}              # id or key → (index, the object, kept so that its id stays taken)
        self.strings = {}           # module and attribute names: equal ones are one object

    def dump(self, obj: Any) -> None:
        self.write(pickle.PROTO + b'\x04')
        self.save(obj)
        self.frame += pickle.STOP
        self.end_frame()

    def end_frame(self) -> None:
        if self.frame:
            self.write(pickle.FRAME + struct.pack('<Q', len(self.frame)))
            self.write(self.frame)
            self.frame = bytearray()

    def memoize(self, obj: Any, key: Any = None) -> None:
        self.memo[id(obj) if key is None else key] = len(self.memo), obj
        self.frame += pickle.MEMOIZE

    def recall(self, key: Any) -> bool:
        """Writes a reference to what was written before under this id or key, if it was."""
        if key not in self.memo:
            return False
        index = self.memo[key][0]
        self.frame += (pickle.BINGET + bytes([index]) if index < 256
                       else pickle.LONG_BINGET + struct.pack('<I', index))
        return True

    def save(self, obj: Any) -> None:
        if len(self.frame) >= self.FRAME_SIZE:
            self.end_frame()
        if isinstance(obj, bool) or obj is None:
            self.frame += {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[obj]
        elif type(obj) is int:
            self.save_int(obj)
        elif type(obj) is float:
            self.frame += pickle.BINFLOAT + struct.pack('>d', obj)
        elif isinstance(obj, np.dtype):
            self.save_dtype(obj)
        elif isinstance(obj, NetworkState):
            self.recall(id(obj)) or self.save_network(obj)
        elif type(obj) is tuple and not obj:
            self.frame += pickle.EMPTY_TUPLE
        elif self.recall(obj if type(obj) is _Global else id(obj)):
            pass
        elif type(obj) is _Global:
            self.save_global(obj)
        elif type(obj) is str:
            data = obj.encode()
            self.save_payload(obj, data, pickle.SHORT_BINUNICODE, pickle.BINUNICODE, pickle.BINUNICODE8)
        elif type(obj) in (bytes, memoryview):
            self.save_payload(obj, obj, pickle.SHORT_BINBYTES, pickle.BINBYTES, pickle.BINBYTES8)
        elif type(obj) is tuple:
            self.save_tuple(obj)
        elif type(obj) is list:
            self.save_batches(obj, pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, obj, 1)
        elif isinstance(obj, dict):
            flat = [item for pair in obj.items() for item in pair]
            self.save_batches(obj, pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS, flat, 2)
        elif isinstance(obj, np.ndarray | np.generic):
            self.save_array(obj)
        else:
            raise UserError('a network pickle holds networks, arrays and plain values, '
                            f'received {type(obj).__name__}')

    def save_int(self, value: int) -> None:
        if 0 <= value < 256:
            self.frame += pickle.BININT1 + struct.pack('<B', value)
        elif 0 <= value < 65536:
            self.frame += pickle.BININT2 + struct.pack('<H', value)
        elif -1 << 31 <= value < 1 << 31:
            self.frame += pickle.BININT + struct.pack('<i', value)
        elif value.bit_length() < 2000:
            size = value.bit_length() // 8 + 1
            self.frame += pickle.LONG1 + bytes([size]) + value.to_bytes(size, 'little', signed=True)
        else:
            raise UserError('a network pickle holds integers of up to 2000 bits, received a larger one')

    def save_payload(self, obj: Any, data: bytes | memoryview, *codes: bytes) -> None:
        """Text or bytes: the code, the size in 1, 4 or 8 bytes, the data."""
        width = 0 if len(data) < 256 else 1 if len(data) < 1 << 32 else 2
        head = codes[width] + struct.pack(('<B', '<I', '<Q')[width], len(data))
        if len(data) < self.FRAME_SIZE:
            self.frame += head + data
        else:
            self.end_frame()
            self.write(head)
            self.write(data)
        self.memoize(obj)

    def save_global(self, path: _Global) -> None:
        module, _, name = path.rpartition('.')
        self.save(self.strings.setdefault(module, module))
        self.save(self.strings.setdefault(name, name))
        self.frame += pickle.STACK_GLOBAL
        self.memoize(path, key=path)

    def save_tuple(self, obj: tuple) -> None:
        if len(obj) > 3:
            self.frame += pickle.MARK
        for item in obj:
            self.save(item)
        self.frame += {1: pickle.TUPLE1, 2: pickle.TUPLE2, 3: pickle.TUPLE3}.get(len(obj), pickle.TUPLE)
        self.memoize(obj)

    def save_batches(self, obj: Any, empty: bytes, one: bytes, many: bytes, items: list, width: int) -> None:
        """A list or dict: empty, then its items (of `width` values each) by the thousand."""
        self.frame += empty
        self.memoize(obj)
        for start in range(0, len(items), 1000 * width):
            batch = items[start:start + 1000 * width]
            self.frame += pickle.MARK if len(items) > width else b''
            for item in batch:
                self.save(item)
            self.frame += many if len(items) > width else one

    def save_dtype(self, dtype: np.dtype) -> None:
        if self.recall(dtype.str):
            return
        self.save(_DTYPE)
        self.save((dtype.str[1:], False, True))
        self.frame += pickle.REDUCE
        self.memoize(dtype, key=dtype.str)
        self.save((3, dtype.str[0], None, None, None, -1, -1, 0))
        self.frame += pickle.BUILD

    def save_array(self, obj: np.ndarray | np.generic) -> None:
        array = np.asarray(obj)
        if array.dtype.kind not in 'biufc' or array.dtype.itemsize > 16:
            raise UserError(f'a network pickle holds arrays of numbers, not of {array.dtype}')
        array = np.asarray(array, dtype=array.dtype.newbyteorder('<'), order='C')
        data = array.reshape(-1).view(np.uint8).data if array.nbytes >= self.FRAME_SIZE else array.tobytes()
        if array.ndim == 0:
            self.save(_SCALAR)
            self.save((array.dtype, data))
            self.frame += pickle.REDUCE
            self.memoize(obj)
        else:
            self.save(_RECONSTRUCT)
            self.save((_NDARRAY, tuple([0]), b'b'))  # a new tuple each time, as NumPy makes it
            self.frame += pickle.REDUCE
            self.memoize(obj)
            self.save((1, array.shape, array.dtype, False, data))
            self.frame += pickle.BUILD

    def save_network(self, net: NetworkState) -> None:
        if net.class_name not in safe_pickle.NETWORK_CLASSES:
            raise UserError(f'network {net.name!r}: expected one of the classes '
                            f'{safe_pickle.NETWORK_CLASSES}, received {net.class_name!r}')
        state = net.to_state()
        state['static_kwargs'] = _plain(net.static_kwargs, f'static_kwargs of network {net.name!r}')
        state['variables'] = [_variable((key, np.asarray(value)), net.name) for key, value in net.variables]
        if 'build_module_src' in state:
            state['build_module_src'] = SOURCE_PLACEHOLDER
        self.save(_Global(net.class_name))
        self.frame += pickle.EMPTY_TUPLE + pickle.NEWOBJ
        self.memoize(net)
        self.save(state)
        self.frame += pickle.BUILD


def _plain(value: Any, where: str) -> Any:
    """Keyword arguments in Python's own types: the reader of the pickle may have neither NumPy nor dnnlib."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in 'biufcSU':
        return value.tolist()
    if isinstance(value, dict):
        return {_plain(key, where): _plain(item, where) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, where) for item in value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise UserError(f'{where}: expected None, bool, int, float, str, list, tuple or dict, '
                    f'received {type(value).__name__}')
