"""The interpreter of `safe_pickle` with the names of PyTorch: see `torch_pickle`, which reads whole files."""

import contextlib
import dataclasses
import math
import pickle
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from dnnlib.util import UserError

from . import safe_pickle

__all__ = ['LEGACY_HEAD', 'LegacyMachine', 'Module', 'Storage', 'TorchMachine']

MAX_RANK = 16
_LEGACY_MAGIC = 0x1950a86a20f9469cfc6c
LEGACY_HEAD = pickle.PROTO + b'\x02\x8a\x0a' + _LEGACY_MAGIC.to_bytes(10, 'little') + pickle.STOP

# Storage class → array type; 'bfloat16' is kept as 16-bit words and widened to float32.
_STORAGES = {
    'DoubleStorage': 'f8', 'FloatStorage': 'f4', 'HalfStorage': 'f2', 'BFloat16Storage': 'bfloat16',
    'LongStorage': 'i8', 'IntStorage': 'i4', 'ShortStorage': 'i2', 'CharStorage': 'i1', 'ByteStorage': 'u1',
    'BoolStorage': '?', 'ComplexFloatStorage': 'c8', 'ComplexDoubleStorage': 'c16', 'UntypedStorage': 'u1',
}
_DTYPES = {
    'float64': 'f8', 'double': 'f8', 'float32': 'f4', 'float': 'f4', 'float16': 'f2', 'half': 'f2',
    'bfloat16': 'bfloat16', 'int64': 'i8', 'long': 'i8', 'int32': 'i4', 'int': 'i4', 'int16': 'i2',
    'short': 'i2', 'int8': 'i1', 'uint8': 'u1', 'uint16': 'u2', 'uint32': 'u4', 'uint64': 'u8', 'bool': '?',
    'complex64': 'c8', 'complex128': 'c16',
}
_KINDS = {
    'storage': tuple(f'{module}.{name}' for name in _STORAGES for module in ('torch', 'torch.cuda',
                                                                            'torch.storage')),
    'torchdtype': tuple(f'torch.{name}' for name in _DTYPES),
    'tensor': ('torch._utils._rebuild_tensor_v2', 'torch._utils._rebuild_tensor'),
    'tensor3': ('torch._utils._rebuild_tensor_v3',),
    'parameter': ('torch._utils._rebuild_parameter', 'torch._utils._rebuild_parameter_with_state'),
    'typed': ('torch._tensor._rebuild_from_type_v2', 'torch.tensor._rebuild_from_type'),
    'frombytes': ('torch.storage._load_from_bytes',),
    'size': ('torch.Size',),
    'device': ('torch.device',),
    'persistent': ('torch_utils.persistence._reconstruct_persistent_obj',),
    'set': ('__builtin__.set', 'builtins.set', '__builtin__.frozenset', 'builtins.frozenset'),
    'list': tuple(f'torch.jit._pickle.build_{kind}list' for kind in ('int', 'double', 'bool', 'tensor')),
    'namespace': ('argparse.Namespace', 'types.SimpleNamespace'),
    'tensorclass': ('torch.Tensor', 'torch._tensor.Tensor', 'torch.nn.parameter.Parameter'),
}
_MODULE_CLASS = re.compile(r'(torch\.nn\.modules|__torch__)(\.\w+)+')
_KEY = re.compile(r'[\w.:-]{1,100}')


@dataclasses.dataclass(eq=False)
class Module:
    """A torch.nn.Module as data: what it was called and what it held.

    Attributes:
        class_name: 'Generator', 'torch.nn.modules.conv.Conv2d', '__torch__.Net', ...
        init_args, init_kwargs: Arguments of the constructor, which the modules of stylegan2-ada-pytorch keep.
        parameters, buffers: {name: array}; those of TorchScript are all among the parameters.
        modules: {name: Module}.
        attributes: Everything else, plain values.
    """

    class_name: str
    init_args: tuple = ()
    init_kwargs: dict = dataclasses.field(default_factory=dict)
    parameters: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    buffers: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    modules: dict[str, 'Module'] = dataclasses.field(default_factory=dict)
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)


class Storage:
    """A torch storage: its type and where its bytes are, once they are known."""

    def __init__(self, spec: str, count: int | None, fetch: Callable[[], memoryview | bytes] | None = None):
        self.spec, self.count, self.fetch = spec, count, fetch
        self.order = '<'
        self.arrays = {}        # Tensors made of it: one for each offset, shape, stride and type.


class _Tensor:
    """A torch tensor under construction."""

    def __init__(self, storage: Storage, offset: int, shape: tuple, stride: tuple, spec: str):
        self.storage, self.offset, self.shape, self.stride, self.spec = storage, offset, shape, stride, spec


class _Object:
    """A module or namespace under construction; `meta` is the dict of a persistent object."""

    def __init__(self, class_name: str, meta: dict | None = None):
        self.class_name, self.meta, self.state = class_name, meta, None


class _Set:
    def __init__(self, items: list):
        self.items = items


class TorchMachine(safe_pickle.Machine):
    """The machine of `safe_pickle`, without networks but with the names of PyTorch."""

    subject = 'PyTorch file'
    names = {path: name for path, name in safe_pickle.Machine.names.items() if name.kind != 'network'}
    names |= safe_pickle.make_names(_KINDS)
    nested = False      # Reads what a tensor of a plain pickle holds?

    def __init__(self, data: bytes, budget: int = 0):
        super().__init__(data)
        self.nested_left = self.instructions_left
        # Of one storage, several tensors may be made; bfloat16 grows.
        self.bytes_left = 4 * max(len(data), budget) + (1 << 20)

    def unknown_name(self, path: str) -> safe_pickle.Name:
        if _MODULE_CLASS.fullmatch(path):
            return safe_pickle.Name('module', path)
        self.refuse_name(path)

    # Constructions that REDUCE, NEWOBJ and BUILD do.

    def new_object(self) -> None:
        args, target = self.stack[-1], self.stack[-2]
        if type(target) is safe_pickle.Name and target.kind in ('module', 'namespace') and args == ():
            self.stack[-2:] = [_Object(target.path)]
        else:
            super().new_object()

    def set_state(self, target: Any, state: Any) -> None:
        if type(target) is _Object and isinstance(state, dict) and target.meta is target.state is None:
            target.state = state
        elif type(target) is _Tensor and state is not None:
            pass        # Attributes of a tensor.
        elif type(target) is dict and isinstance(state, dict):
            pass        # Attributes of an OrderedDict: `_metadata` of a state dict.
        else:
            super().set_state(target, state)

    def tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> _Tensor:
        return self.make_tensor(storage, offset, shape, stride, None)

    def tensor3(self, storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any,
                *_: Any) -> _Tensor:
        if type(dtype) is not safe_pickle.Name or dtype.kind != 'torchdtype':
            raise TypeError
        return self.make_tensor(storage, offset, shape, stride, _DTYPES[dtype.path.rpartition('.')[2]])

    def make_tensor(self, storage, offset, shape, stride, spec) -> _Tensor:
        shape, stride = (tuple(item.items) if type(item) is _Set else item for item in (shape, stride))
        if (type(storage) is not Storage or type(offset) is not int or offset < 0
                or type(shape) is not tuple or type(stride) is not tuple or len(shape) != len(stride)
                or len(shape) > MAX_RANK
                or any(type(size) is not int or not 0 <= size < 1 << 62 for size in shape + stride)):
            raise UserError(f'damaged {self.subject}: a tensor without a valid storage, shape and stride')
        return _Tensor(storage, offset, shape, stride, spec or storage.spec)

    def parameter(self, tensor: Any, *_: Any) -> _Tensor:
        if type(tensor) is not _Tensor:
            raise TypeError
        return tensor

    def typed_tensor(self, construct: Any, _kind: Any, args: Any, *_: Any) -> Any:
        if construct.kind not in ('tensor', 'tensor3', 'parameter'):
            raise TypeError
        return self.constructors[construct.kind](self, *args)

    def storage_from_bytes(self, data: Any) -> Storage:
        if type(data) is str:   # The `str` of Python 2.
            data = data.encode('latin-1')
        if self.nested or type(data) not in (bytes, memoryview):
            raise UserError(f'damaged {self.subject}: a storage within a storage')
        self.charge(len(data))
        machine = LegacyMachine(bytes(data))
        machine.nested, machine.instructions_left = True, self.nested_left
        if not machine.data.startswith(LEGACY_HEAD):
            raise UserError(f'damaged {self.subject}: a storage that is none')
        storage = machine.execute_stream()
        self.nested_left = machine.instructions_left
        if type(storage) is not Storage:
            raise TypeError
        return storage

    def sequence(self, items: Any = ()) -> Any:
        if type(items) not in (list, tuple):
            raise TypeError
        self.values_left -= len(items)
        return items

    def make_set(self, items: Any = ()) -> _Set:
        return _Set(list(self.sequence(items)))

    def add_items(self) -> None:
        items = self.pop_to_mark()
        if type(self.stack[-1]) is not _Set:
            raise TypeError
        self.stack[-1].items.extend(items)

    def device(self, kind: Any, index: Any = None) -> str:
        if type(kind) is not str or (index is not None and type(index) is not int):
            raise UserError(f'damaged {self.subject}: a device without a name')
        return kind if index is None else f'{kind}:{index}'

    def persistent_object(self, meta: Any) -> _Object:
        if not isinstance(meta, dict):
            raise TypeError
        return _Object('', meta)

    def persistent_id(self) -> None:
        self.stack.append(self.storage_of_id(self.stack.pop()))

    def storage_of_id(self, pid: Any) -> Storage:
        del pid
        raise UserError(f'refused: persistent ids outside of a container; {self.subject}s do not need them')

    def parse_id(self, pid: Any) -> tuple[str, str, int, Any]:
        """(array type, key, number of elements, view) of the persistent id of a storage."""
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != 'storage':
            raise UserError(f'damaged {self.subject}: a persistent id that is no storage')
        _, kind, key, _, count, *view = pid
        if type(kind) is not safe_pickle.Name or kind.kind != 'storage':
            raise UserError(f'damaged {self.subject}: a storage without a type')
        key = str(key) if type(key) is int else key
        if type(key) is not str or not _KEY.fullmatch(key) or type(count) is not int or count < 0:
            raise UserError(f'damaged {self.subject}: a storage without a valid key and size')
        return _STORAGES[kind.path.rpartition('.')[2]], key, count, view[0] if view else None

    # What follows turns the constructed into finished values.

    def finished(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is _Tensor:
            return self.make_array(value)
        if kind is Storage:
            return self.make_array(_Tensor(value, 0, (self.count_of(value),), (1,), value.spec))
        if kind is _Set:
            return [self.plain(item, depth + 1) for item in value.items]
        if kind is safe_pickle.Name and value.kind in ('torchdtype', 'tensorclass'):
            return value.path
        if kind is not _Object:
            return super().finished(value, depth)
        if value.meta is not None:
            return self.finish_persistent(self.plain(value.meta, depth + 1))
        if value.state is None:
            raise UserError(f'damaged {self.subject}: a module without a state')
        state = self.plain(dict(value.state), depth + 1)
        return state if not _MODULE_CLASS.fullmatch(value.class_name) else _as_module(value.class_name, state)

    def finish_persistent(self, meta: dict) -> Module:
        if (meta.get('type') != 'class' or not isinstance(meta.get('class_name'), str)
                or not isinstance(meta.get('state'), dict)):
            raise UserError(f'damaged {self.subject}: a persistent object that is no instance of a class')
        return _as_module(meta['class_name'], meta['state'])

    def count_of(self, storage: Storage) -> int:
        return storage.count if storage.count is not None else len(storage.fetch()) // _itemsize(storage.spec)

    def make_array(self, tensor: _Tensor) -> np.ndarray:
        """A checked copy of a tensor's numbers; UserError where they are not within its storage."""
        storage, spec = tensor.storage, tensor.spec
        key = repr((tensor.offset, tensor.shape, tensor.stride, spec))  # Text, whose hash nobody can choose.
        if key in storage.arrays:
            return storage.arrays[key]
        if storage.fetch is None:
            raise UserError(f'damaged {self.subject}: a tensor whose numbers are missing')
        size = _itemsize(spec)
        pairs = list(zip(tensor.shape, tensor.stride, strict=True))
        items = 0 if 0 in tensor.shape else 1 + sum((length - 1) * stride for length, stride in pairs)
        data = storage.fetch()
        if (tensor.offset + items) * size > len(data):
            raise UserError(f'damaged {self.subject}: a tensor of shape {str(tensor.shape):.80} reaches '
                            'beyond its storage')
        self.charge(math.prod(tensor.shape) * max(size, 4 if spec == 'bfloat16' else 1))
        raw = np.dtype('u2' if spec == 'bfloat16' else spec).newbyteorder(storage.order)
        if not items:
            result = np.zeros(tensor.shape, raw.newbyteorder('='))
        else:
            flat = np.frombuffer(data, raw, items, tensor.offset * size)
            strides = [stride * size if length > 1 else 0 for length, stride in pairs]
            view = np.lib.stride_tricks.as_strided(flat, tensor.shape, strides)
            result = np.array(view, raw.newbyteorder('='), order='C')
        if spec == 'bfloat16':
            result = (result.astype(np.uint32) << 16).view(np.float32)
        storage.arrays[key] = result
        return result


_M = TorchMachine
TorchMachine.constructors = {
    **safe_pickle.Machine.constructors,
    'tensor': _M.tensor, 'tensor3': _M.tensor3, 'parameter': _M.parameter, 'typed': _M.typed_tensor,
    'frombytes': _M.storage_from_bytes, 'size': lambda machine, items=(): tuple(machine.sequence(items)),
    'device': _M.device, 'persistent': _M.persistent_object, 'set': _M.make_set,
    'list': lambda machine, items=(): list(machine.sequence(items)),
}
TorchMachine.instructions = {
    **safe_pickle.Machine.instructions,
    pickle.NEWOBJ[0]: _M.new_object,
    pickle.BINPERSID[0]: _M.persistent_id,
    pickle.EMPTY_SET[0]: lambda machine: machine.stack.append(_Set([])),
    pickle.ADDITEMS[0]: _M.add_items,
    pickle.FROZENSET[0]: lambda machine: machine.push_to_mark(_Set),
}


class LegacyMachine(TorchMachine):
    """Reads the stream of pickles that torch.save wrote before PyTorch 1.6, and tensors contain to date."""

    def execute_stream(self) -> Any:
        """The unfinished value of the stream; the numbers of its storages stand behind it."""
        self.storages = {}
        self.pos = len(LEGACY_HEAD)
        if self.next_pickle() != 1001:
            raise UserError('expected version 1001 of the legacy format of PyTorch')
        system = self.next_pickle()
        if type(system) is not dict:
            raise TypeError
        order = '<' if system.get('little_endian', True) else '>'
        value = self.next_pickle()
        for key in self.next_pickle():
            if type(key) is not str:    # The hash of a nest of tuples may take any time.
                raise UserError(f'damaged {self.subject}: a storage without a valid key')
            storage = self.storages[key]
            count = struct.unpack(order + 'q', self.take(8))[0]
            data = self.take(count * _itemsize(storage.spec))
            if storage.count is not None and count < storage.count:
                raise UserError(f'damaged {self.subject}: a storage is shorter than announced')
            storage.order = order
            storage.fetch = lambda data=data: data
        return value

    def next_pickle(self) -> Any:
        self.stack, self.marks, self.memo = [], [], {}
        return self.execute()

    def storage_of_id(self, pid: Any) -> Storage:
        spec, key, count, view = self.parse_id(pid)
        root = self.storages.setdefault(key, Storage(spec, count))
        if root.spec != spec:
            raise UserError(f'damaged {self.subject}: a storage of two types')
        if view is None:
            return root
        _, start, count = view
        if type(start) is not int or type(count) is not int or start < 0 or count < 0:
            raise TypeError
        size = _itemsize(spec)
        part = Storage(spec, count)
        part.fetch = lambda: root.fetch()[start * size:(start + count) * size]
        return part


def _itemsize(spec: str) -> int:
    return 2 if spec == 'bfloat16' else np.dtype(spec).itemsize


def _as_module(class_name: str, state: dict) -> Module:
    """The record of a module from the dict of its attributes."""
    module = Module(class_name)
    others = module.attributes if '_parameters' in state else module.parameters
    state = dict(state)
    with contextlib.suppress(AttributeError):
        module.init_args = tuple(state.pop('_init_args', ()))
        module.init_kwargs = dict(state.pop('_init_kwargs', {}))
    for key, target in ('_parameters', module.parameters), ('_buffers', module.buffers), ('_modules',
                                                                                         module.modules):
        wanted = Module if target is module.modules else np.ndarray
        items = state.pop(key, {})
        if not isinstance(items, dict):
            raise UserError(f'damaged PyTorch file: {key} of a module is no dict')
        target.update((name, value) for name, value in items.items() if isinstance(value, wanted))
    for name, value in state.items():
        if isinstance(value, Module):
            module.modules[name] = value
        elif isinstance(value, np.ndarray):
            others[name] = value
        elif not str(name).startswith('_'):
            module.attributes[name] = value
    return module
