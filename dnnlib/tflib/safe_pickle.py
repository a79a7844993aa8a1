"""An interpreter of pickles that can construct networks, arrays and plain values, and nothing else.

Not a filter in front of `pickle.Unpickler` but a small machine of its own: it has no way to import a module
or to call a function. The names that a network pickle mentions (`Network`, `numpy.ndarray`, ...) stand for
the constructions in `Machine`; every other name, and every instruction that snapshots do not consist of, is
refused. Sizes that a pickle declares are checked against its length before memory is taken, and the work and
memory it can cause are bounded by constants and by the size of the file.

`dnnlib.tflib.torch_pickle` teaches a machine of this kind the names of PyTorch.
"""

import contextlib
import math
import pickle
import pickletools
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

import numpy as np

from dnnlib.util import EasyDict, UserError

__all__ = ['NETWORK_CLASSES', 'Machine', 'Name', 'loads', 'make_names']

# An official snapshot has some 20000 instructions, 2000 values and at most 9 networks.
MAX_INSTRUCTIONS = 500_000
MAX_VALUES = 100_000
MAX_DEPTH = 40
MAX_NETWORKS = 200

NETWORK_CLASSES = ('dnnlib.tflib.network.Network', 'tfutil.Network', 'network.Network')

_MULTIARRAY = ('numpy.core.multiarray', 'numpy._core.multiarray')
_NUMERIC = ('numpy.core.numeric', 'numpy._core.numeric')
_KINDS = {
    'network': NETWORK_CLASSES,
    'easydict': ('dnnlib.util.EasyDict', 'dnnlib.EasyDict', 'config.EasyDict', 'util.EasyDict'),
    'ordereddict': ('collections.OrderedDict',),
    'reconstruct': tuple(module + '._reconstruct' for module in _MULTIARRAY),
    'scalar': tuple(module + '.scalar' for module in _MULTIARRAY),
    'frombuffer': tuple(module + '._frombuffer' for module in _NUMERIC),
    'ndarray': ('numpy.ndarray',),
    'dtype': ('numpy.dtype',),
    'encode': ('_codecs.encode',),                          # how Python 3 writes bytes in protocol 2
    'bytes': ('__builtin__.bytes', 'builtins.bytes'),       # the same when there are none
}
_DTYPE = re.compile(r'([<>=|]?)(b1|[iu][1248]|f[248]|c(?:8|16)|[SU][1-9]\d{0,3})')


class Name(NamedTuple):
    """One of the known names that a pickle may mention; it can do nothing by itself."""

    kind: str
    path: str


def make_names(kinds: dict[str, tuple[str, ...]]) -> dict[str, Name]:
    """{dotted path: Name} from {kind: dotted paths}."""
    return {path: Name(kind, path) for kind, paths in kinds.items() for path in paths}


class _EasyDict(dict):
    """An EasyDict under construction."""


class _DType:
    """A numpy.dtype under construction."""

    def __init__(self, spec: str):
        self.spec = spec
        self.order = None


class _Array:
    """A numpy.ndarray under construction."""

    array = None


class _Network:
    """A Network under construction."""

    state = None
    size = 1        # networks in it, itself included

    def __init__(self, class_name: str):
        self.class_name = class_name


def loads(data: bytes | bytearray, make_network: Callable[[dict, str], Any]) -> tuple[Any, int]:
    """Reads one pickle of protocol 2 to 5, written by Python 2 or 3.

    Args:
        data: The pickle; what follows it is ignored.
        make_network: Called as make_network(state, class_name) with the state of each pickled Network, all of
            it finished values (components come first). It raises UserError for a state that it cannot use.

    Returns: The value, and the number of bytes of the pickle. Lists, tuples, dicts and EasyDicts are fresh
    copies, an OrderedDict is a dict, arrays are C-contiguous, writable and native in byte order.

    Errors: UserError for everything else than a sound pickle of networks, arrays and plain values.
    """
    machine = Machine(data, make_network)
    return machine.load(), machine.pos


class Machine:
    """The machine; every effect of an instruction stays inside this object.

    Attributes:
        subject: What the data should be, in the words of the error messages.
        names, constructors, instructions: {dotted path: Name}, {kind: construction that REDUCE does} and
            {code: action}: all that the machine knows.
        pos: The next byte.
        stack: Values since the last MARK.
        marks: The stacks put aside by MARK.
        instructions_left: How many instructions may be carried out until the next STOP.
        values_left: How many more values may be copied into results; what is shared counts each time.
        bytes_left: How many more bytes may be copied: a sound pickle uses each of its bytes once (twice in
            protocol 2, where bytes are first text).
    """

    subject = 'network pickle'
    names: dict[str, Name] = make_names(_KINDS)
    constructors: dict[str, Callable] = {}
    instructions: dict[int, Callable] = {}

    def __init__(self, data: bytes | bytearray, make_network: Callable[[dict, str], Any] | None = None):
        self.data = data
        self.view = memoryview(data)
        self.make_network = make_network
        self.pos = 0
        self.stack = []
        self.marks = []
        self.memo = {}
        self.instructions_left = MAX_INSTRUCTIONS
        self.values_left = MAX_VALUES
        self.bytes_left = 2 * len(data) + 65536

    def load(self) -> Any:
        """The finished value of the pickle."""
        with self.guard():
            return self.plain(self.execute())

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Turns what damaged data can raise inside the machine into one line."""
        try:
            yield
        except UserError:
            raise
        except (LookupError, ValueError, TypeError, AttributeError, OverflowError, struct.error, MemoryError,
                RecursionError):
            raise UserError(f'damaged {self.subject} at byte {self.pos} of {len(self.data)}; '
                            'download or copy it again') from None

    def execute(self) -> Any:
        """Carries out the instructions up to STOP; the value is still unfinished, see `plain`."""
        for count in range(self.instructions_left):
            code = self.data[self.pos]
            self.pos += 1
            if code == pickle.STOP[0]:
                self.instructions_left -= count + 1
                if self.marks or len(self.stack) != 1:
                    raise UserError(f'damaged {self.subject}: it ends within a value; '
                                    'download or copy it again')
                return self.stack.pop()
            self.instructions.get(code, Machine.refuse_instruction)(self)
        raise UserError(f'refused: more than {MAX_INSTRUCTIONS} instructions; {self.subject}s have far fewer')

    def refuse_instruction(self) -> None:
        known = pickletools.code2op.get(chr(self.data[self.pos - 1]))
        if known is None:
            raise UserError(f'damaged {self.subject}: unknown instruction at byte {self.pos - 1}; '
                            'download or copy it again')
        if 'PERSID' in known.name:
            raise UserError('refused: persistent ids, as in PyTorch checkpoints; '
                            'expected a pickle of TensorFlow networks')
        raise UserError(f'refused: the pickle instruction {known.name}; {self.subject}s do not need it')

    # What follows reads bytes.

    def take(self, count: int) -> memoryview:
        """The next `count` bytes, not copied."""
        start, left = self.pos, len(self.data) - self.pos
        if not 0 <= count <= left:
            raise UserError(f'truncated or damaged {self.subject}: byte {start} announces {count} bytes, '
                            f'{left} are left; download or copy it again')
        self.pos += count
        return self.view[start:self.pos]

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self, size_layout: str) -> None:
        self.stack.append(str(self.take(self.number(size_layout)), 'utf-8'))

    def text2(self, size_layout: str) -> None:
        """A `str` of Python 2: text or the bytes of an array, as it turns out."""
        self.stack.append(str(self.take(self.number(size_layout)), 'latin-1'))

    def bytes(self, size_layout: str) -> None:
        self.stack.append(self.take(self.number(size_layout)))

    def line(self) -> str:
        end = self.data.index(b'\n', self.pos, self.pos + 256)
        text = str(self.take(end - self.pos), 'utf-8')
        self.pos += 1
        return text

    def int_line(self) -> None:
        """An integer of Python 2 beyond 32 bits, or a bool."""
        text = self.line()
        self.stack.append(text == '01' if text in ('00', '01') else int(text))

    def proto(self) -> None:
        version = self.number('<B')
        if not 2 <= version <= 5:
            raise UserError(f'expected pickle protocol 2 to 5, found {version}')

    def frame(self) -> None:
        size = self.number('<Q')
        self.take(size)
        self.pos -= size

    # What follows moves values on the stack.

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_to_mark()

    def make_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def push_to_mark(self, make: Callable[[list], Any]) -> None:
        items = self.pop_to_mark()
        self.stack.append(make(items))

    def append(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise TypeError
        target.extend(items)

    def set_items(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, _EasyDict) or len(items) % 2:
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only keys whose hash cannot be chosen at will: many colliding ones take quadratic time.
            if type(key) is not str and not (type(key) is int and abs(key) < 1 << 31):
                raise UserError(f'refused: a dict key of type {type(key).__name__}; expected str or int')
            target[key] = value

    # What follows constructs. Values are not yet checked here: nothing of them may be printed, compared
    # deeply or unfolded, since a few bytes can describe an astronomically large nest of lists.

    def push_name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise TypeError
        path = f'{module}.{name}'
        self.stack.append(self.names.get(path) or self.unknown_name(path))

    def unknown_name(self, path: str) -> Name:
        """What stands for a name that is not in the table. Errors: UserError, unless a subclass knows it."""
        if path.startswith(('torch.', 'torch_utils.')):
            raise UserError(f'refused: {path!r:.120}: this is a PyTorch pickle (stylegan2-ada-pytorch or '
                            'later); expected a pickle of TensorFlow networks, which '
                            "'convert.py pytorch-to-pickle' makes of it")
        self.refuse_name(path)

    def refuse_name(self, path: str) -> NoReturn:
        raise UserError(f'refused: the pickle asks for {path!r:.120}, which no {self.subject} needs; '
                        'nothing of it was executed, do not open it with other programs')

    def reduce(self) -> None:
        args, target = self.stack.pop(), self.stack.pop()
        construct = self.constructors.get(target.kind) if type(target) is Name else None
        if construct is None or type(args) is not tuple:
            path = target.path if type(target) is Name else type(target).__name__
            raise UserError(f'refused: a call of {path!r:.120}; {self.subject}s do not need it')
        self.stack.append(construct(self, *args))

    def new_object(self) -> None:
        args, target = self.stack.pop(), self.stack.pop()
        kind = target.kind if type(target) is Name else None
        if kind not in ('network', 'easydict') or type(args) is not tuple or args:
            raise UserError('refused: an object that is neither a network nor an EasyDict')
        self.stack.append(_Network(target.path) if kind == 'network' else _EasyDict())

    def build(self) -> None:
        state = self.stack.pop()
        self.set_state(self.stack[-1], state)

    def set_state(self, target: Any, state: Any) -> None:
        """Gives an object under construction its state."""
        if type(target) is _DType and target.order is None and type(state) is tuple:
            _, target.order, *rest = state
            if target.order not in ('<', '>', '=', '|') or any(item is not None for item in rest[:3]):
                raise UserError('refused: an array type with fields; expected plain numbers')
        elif type(target) is _Array and target.array is None and type(state) is tuple:
            _, shape, dtype, fortran, data = state
            target.array = self.array(data, dtype, shape, 'F' if fortran is True else 'C')
        elif type(target) is _Network and target.state is None and type(state) in (dict, _EasyDict):
            target.state = self.make_network(dict(self.plain(state)), target.class_name)
            target.size += sum(component.size for component in state.get('components', {}).values())
            if target.size > MAX_NETWORKS:
                raise UserError(f'refused: a network of more than {MAX_NETWORKS} networks')
        else:
            raise UserError('refused: a state for an object that takes none, or a second one')

    def dtype(self, spec: Any, *_: Any) -> _DType:
        if type(spec) is not str or not _DTYPE.fullmatch(spec):
            shown = repr(spec) if type(spec) is str else type(spec).__name__
            raise UserError(f'refused: an array of type {shown:.60}; expected plain numbers')
        return _DType(spec)

    def new_array(self, kind: Any, *_: Any) -> _Array:
        if type(kind) is not Name or kind.kind != 'ndarray':
            raise UserError('refused: an array of an unknown class')
        return _Array()

    def array(self, data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
        """A checked copy of array data, C-contiguous and in the byte order of this machine."""
        if (type(dtype) is not _DType or type(shape) is not tuple or len(shape) > 32
                or any(type(size) is not int or size < 0 for size in shape)):
            raise UserError(f'damaged {self.subject}: an array without a valid shape and type')
        order_mark, spec = _DTYPE.fullmatch(dtype.spec).groups()
        dtype = np.dtype((dtype.order or order_mark) + spec)
        if type(data) not in (memoryview, bytes, str):
            raise UserError(f'refused: an array whose data are a {type(data).__name__}, not bytes')
        if math.prod(shape) * dtype.itemsize != len(data):
            raise UserError(f'damaged {self.subject}: an array of shape {str(shape):.80} and type {dtype} '
                            f'has {len(data)} bytes of data')
        self.charge(len(data))
        if type(data) is str:
            data = data.encode('latin-1')
        flat = np.frombuffer(data, dtype) if len(data) else np.zeros(0, dtype)
        array = np.array(flat.reshape(shape, order=order), dtype=dtype.newbyteorder('='), order='C')
        if dtype.kind == 'U' and array.size and array.reshape(-1).view(np.uint32).max() > 0x10ffff:
            raise UserError(f'damaged {self.subject}: an array of invalid text')
        return array

    def scalar(self, dtype: Any, data: Any) -> np.generic:
        return self.array(data, dtype, (), 'C')[()]

    def from_buffer(self, data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> _Array:
        if type(order) is not str:
            raise TypeError
        result = _Array()
        if order == 'K' and type(axes) is tuple and len(axes) <= 32:
            result.array = self.array(data, dtype, shape, 'C').transpose(axes).copy()
        else:
            result.array = self.array(data, dtype, shape, 'F' if order == 'F' else 'C')
        return result

    def ordered_dict(self, pairs: Any = ()) -> dict:
        if type(pairs) not in (list, tuple):
            raise TypeError
        self.values_left -= len(pairs)
        if self.values_left < 0:
            raise UserError(f'refused: too many values for a {self.subject}')
        self.stack.append({})
        self.set_items([item for key, value in pairs for item in (key, value)])
        return self.stack.pop()

    def encode(self, text: Any, codec: Any) -> bytes:
        if type(text) is not str or codec not in ('latin1', 'latin-1'):
            raise UserError('refused: a text codec other than latin1')
        self.charge(len(text))
        return text.encode('latin-1')

    # What follows turns the constructed into finished values.

    def charge(self, count: int) -> None:
        self.bytes_left -= count
        if self.bytes_left < 0:
            raise UserError('refused: the pickle unfolds to more data than the file holds')

    def plain(self, value: Any, depth: int = 0) -> Any:
        """A finished copy of a value."""
        kind = type(value)
        self.values_left -= value.size if kind is _Network else 1
        if depth > MAX_DEPTH or self.values_left < 0:
            raise UserError(f'refused: values nested too deeply, or too many of them, for a {self.subject}')
        if value is None or kind in (bool, int, float, str) or isinstance(value, np.generic):
            return value
        if kind in (bytes, memoryview):
            self.charge(len(value))
            return bytes(value)
        if kind in (list, tuple):
            return kind(self.plain(item, depth + 1) for item in value)
        if kind in (dict, _EasyDict):
            make = dict if kind is dict else EasyDict
            return make((key, self.plain(item, depth + 1)) for key, item in value.items())
        return self.finished(value, depth)

    def finished(self, value: Any, depth: int) -> Any:
        """The finished form of what only a machine constructs: arrays, networks."""
        del depth
        result = value.array if type(value) is _Array else value.state if type(value) is _Network else None
        if result is None:
            raise UserError(f'refused: an unfinished or bare {type(value).__name__.lstrip("_")}; '
                            'expected networks, arrays and plain values')
        return result


Machine.constructors = {
    'reconstruct': Machine.new_array, 'scalar': Machine.scalar, 'frombuffer': Machine.from_buffer,
    'dtype': Machine.dtype, 'ordereddict': Machine.ordered_dict, 'encode': Machine.encode,
    'bytes': lambda machine: b'',
}


def _global(r: Machine) -> None:
    module = r.line()
    r.push_name(module, r.line())


def _stack_global(r: Machine) -> None:
    name = r.stack.pop()
    r.push_name(r.stack.pop(), name)


def _put(r: Machine, index: int) -> None:
    r.memo[index] = r.stack[-1]


Machine.instructions = {code[0]: action for code, action in {
    pickle.PROTO: Machine.proto,
    pickle.FRAME: Machine.frame,
    pickle.MARK: Machine.mark,
    pickle.POP: Machine.pop,
    pickle.POP_MARK: Machine.pop_to_mark,
    pickle.DUP: lambda r: r.stack.append(r.stack[-1]),
    pickle.NONE: lambda r: r.stack.append(None),
    pickle.NEWTRUE: lambda r: r.stack.append(True),
    pickle.NEWFALSE: lambda r: r.stack.append(False),
    pickle.INT: Machine.int_line,
    pickle.BININT: lambda r: r.stack.append(r.number('<i')),
    pickle.BININT1: lambda r: r.stack.append(r.number('<B')),
    pickle.BININT2: lambda r: r.stack.append(r.number('<H')),
    pickle.LONG1: lambda r: r.stack.append(int.from_bytes(r.take(r.number('<B')), 'little', signed=True)),
    pickle.BINFLOAT: lambda r: r.stack.append(r.number('>d')),
    pickle.SHORT_BINUNICODE: lambda r: r.text('<B'),
    pickle.BINUNICODE: lambda r: r.text('<I'),
    pickle.BINUNICODE8: lambda r: r.text('<Q'),
    pickle.SHORT_BINSTRING: lambda r: r.text2('<B'),
    pickle.BINSTRING: lambda r: r.text2('<i'),
    pickle.SHORT_BINBYTES: lambda r: r.bytes('<B'),
    pickle.BINBYTES: lambda r: r.bytes('<I'),
    pickle.BINBYTES8: lambda r: r.bytes('<Q'),
    pickle.BYTEARRAY8: lambda r: r.bytes('<Q'),
    pickle.EMPTY_TUPLE: lambda r: r.stack.append(()),
    pickle.TUPLE1: lambda r: r.make_tuple(1),
    pickle.TUPLE2: lambda r: r.make_tuple(2),
    pickle.TUPLE3: lambda r: r.make_tuple(3),
    pickle.TUPLE: lambda r: r.push_to_mark(tuple),
    pickle.EMPTY_LIST: lambda r: r.stack.append([]),
    pickle.APPEND: lambda r: r.append([r.stack.pop()]),
    pickle.APPENDS: lambda r: r.append(r.pop_to_mark()),
    pickle.EMPTY_DICT: lambda r: r.stack.append({}),
    pickle.SETITEM: lambda r: r.set_items([r.stack.pop(), r.stack.pop()][::-1]),
    pickle.SETITEMS: lambda r: r.set_items(r.pop_to_mark()),
    pickle.MEMOIZE: lambda r: _put(r, len(r.memo)),
    pickle.BINPUT: lambda r: _put(r, r.number('<B')),
    pickle.LONG_BINPUT: lambda r: _put(r, r.number('<I')),
    pickle.BINGET: lambda r: r.stack.append(r.memo[r.number('<B')]),
    pickle.LONG_BINGET: lambda r: r.stack.append(r.memo[r.number('<I')]),
    pickle.GLOBAL: _global,
    pickle.STACK_GLOBAL: _stack_global,
    pickle.REDUCE: Machine.reduce,
    pickle.NEWOBJ: Machine.new_object,
    pickle.BUILD: Machine.build,
}.items()}
