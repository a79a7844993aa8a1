"""Official pickles: what `load_pkl` reads equals what Python's own unpickler reads, `save_pkl` gives the same
bytes again, and no file, however hostile or damaged, does anything but load or raise UserError."""

import collections
import gzip
import io
import os
import pathlib
import pickle
import pickletools
import random
import struct
import sys
import time
import tracemalloc
import types
import unittest
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from dnnlib.tflib import legacy
from dnnlib.tflib.legacy import NetworkState
from dnnlib.util import EasyDict, UserError
from tests import testutil

FUZZ_FILE = ('training', 'stylegan2_f_init.pkl')


class Network:
    """Stands for the official class when Python's own pickler writes or unpickler reads."""

    def __getstate__(self):
        return self.state

    def __setstate__(self, state):
        self.state = state


class PlainUnpickler(pickle.Unpickler):
    """Python's own unpickler, to compare with."""

    def find_class(self, module, name):
        return Network if name == 'Network' else super().find_class(module, name)


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes alike as Python 2 writes its `str`."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_str(self, obj):
        data = obj.encode('latin-1') if isinstance(obj, str) else obj
        if len(data) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(data)]) + data)
        else:
            self.write(pickle.BINSTRING + struct.pack('<i', len(data)) + data)
        self.memoize(obj)

    dispatch[str] = dispatch[bytes] = save_str


def plain_load(data, **kwargs):
    return PlainUnpickler(io.BytesIO(data), **kwargs).load()


def official(module='dnnlib.tflib.network'):
    """Lets Python's pickler find `Network` under its official name."""
    fake = types.ModuleType(module)
    fake.Network = Network
    stack = mock.patch.dict(sys.modules, {module: fake})
    attributes = mock.patch.multiple(Network, __module__=module, __qualname__='Network')
    return stack, attributes


def to_network(state):
    """NetworkState → the object that Python's pickler writes."""
    net = Network()
    net.state = state.to_state() | {'components': {k: to_network(c) for k, c in state.components.items()}}
    return net


def plain_dumps(obj, protocol, pickler=pickle.Pickler):
    modules, attributes = official()
    file = io.BytesIO()
    with modules, attributes:
        pickler(file, protocol).dump(obj)
    return file.getvalue()


def load(data):
    return legacy.load_pkl(io.BytesIO(data))


def instructions(data):
    return [(op.name, arg) for op, arg, _ in pickletools.genops(data) if op.name != 'FRAME']


def sample(name='G', seed=0):
    """A small generator with a component, a scalar, an empty and a large array."""
    rnd = np.random.RandomState(seed)
    kwargs = {'num_channels': 3, 'fused': True, 'gamma': 0.5, 'act': 'lrelu', 'none': None,
              'kernel': [1, 3, 3, 1], 'pair': (1, -2), 'many': 70000, 'big': 1 << 40,
              'lrate': {128: 0.0015}}
    mapping = NetworkState('G_mapping', 'G_mapping', {'dlatent_broadcast': 4}, variables=[
        ('Dense0/weight', rnd.randn(8, 16).astype('f4')), ('Dense0/bias', np.zeros(16, 'f4'))])
    return NetworkState(name, 'G_main', kwargs, {'mapping': mapping}, [
        ('lod', np.float32(1.5)), ('dlatent_avg', rnd.randn(16).astype('f4')),
        ('noise0', rnd.randn(1, 1, 4, 4).astype('f4')), ('empty', np.zeros((0, 3), 'f4')),
        ('large', rnd.randn(3, 3, 60, 40).astype('f4'))])


class Base(tf.test.TestCase):

    def assert_array(self, actual, expected):
        self.assertEqual((type(actual), actual.dtype, actual.shape),
                         (type(expected), expected.dtype, expected.shape))
        self.assertEqual(actual.tobytes(), expected.tobytes())

    def assert_network(self, net, expected):
        """NetworkState against Network, or against another NetworkState."""
        state = expected.to_state() if isinstance(expected, NetworkState) else expected.state
        self.assertIsInstance(net, NetworkState)
        self.assertEqual(list(net.to_state()), list(state))
        for key in ('version', 'name', 'static_kwargs', 'build_func_name', 'build_module_src'):
            self.assertEqual(getattr(net, key), state[key])
            self.assertIs(type(getattr(net, key)), type(state[key]))
        self.assertEqual(list(net.static_kwargs), list(state['static_kwargs']))
        self.assertEqual([name for name, _ in net.variables], [name for name, _ in state['variables']])
        for (_, actual), (_, value) in zip(net.variables, state['variables'], strict=True):
            self.assert_array(actual, value)
        components = state.get('components', {})
        self.assertEqual(list(net.components), list(components))
        for key, component in components.items():
            self.assert_network(net.components[key], component)

    def assert_refused(self, data, regex=''):
        """One line of UserError, quickly and in little memory."""
        tracemalloc.start()
        start = time.monotonic()
        try:
            with self.assertRaisesRegex(UserError, regex) as caught:
                load(data)
            self.assertNotIn('\n', str(caught.exception))
            self.assertLess(len(str(caught.exception)), 400)
            self.assertLess(tracemalloc.get_traced_memory()[1], (160 << 20) + 8 * len(data))
        finally:
            tracemalloc.stop()
        self.assertLess(time.monotonic() - start, 15)


@testutil.needs_golden
class GoldenTest(Base):

    def test_same_as_python_and_same_bytes_again(self):
        paths = sorted(testutil.GOLDEN.glob('*/*.pkl'))
        self.assertGreater(len(paths), 30)
        for path in paths:
            with self.subTest(path.name):
                data = path.read_bytes()
                expected, actual = plain_load(data), legacy.load_pkl(path)
                self.assertIs(type(actual), NetworkState if path.name == 'ppl_generator.pkl' else tuple)
                nets = legacy.network_states(actual)
                expected = expected if isinstance(expected, tuple) else (expected,)
                for net, reference in zip(nets, expected, strict=True):
                    self.assert_network(net, reference)
                    self.assertEqual(net.class_name.split('.')[0],
                                     'tfutil' if path.parent.name == 'progan' or 'progan' in path.name else 'dnnlib')
                    legacy.check_supported(net)
                written = legacy.dumps(actual)
                self.assertEqual(instructions(written), instructions(data))
                self.assertEqual(written, data)

    def test_source_text_is_not_written_back(self):
        net = legacy.load_pkl(testutil.golden(*FUZZ_FILE))[2]
        net.components['mapping'].build_module_src = 'import os\nraise SystemExit\n'
        written = legacy.dumps(net)
        self.assertNotIn(b'SystemExit', written)
        source = load(written).components['mapping'].build_module_src
        self.assertStartsWith(source, '#')
        self.assertEqual(source.count('\n'), 1)

    def test_all_variables(self):
        g, d, gs = legacy.load_pkl(testutil.golden(*FUZZ_FILE))
        names = list(g.all_variables())
        self.assertEqual(names[:2], ['lod', 'dlatent_avg'])
        self.assertIn('G_synthesis/noise0', names)
        self.assertEqual(names, list(gs.all_variables()))
        self.assertIs(legacy.find_network((g, d, gs), 'D'), d)


class RoundTripTest(Base):

    def test_protocols(self):
        nets = sample('G'), sample('Gs', 1)
        for protocol in 2, 3, 4, 5:
            with self.subTest(protocol):
                data = plain_dumps(tuple(to_network(net) for net in nets), protocol)
                self.assertEqual(data[1], protocol)
                for actual, net in zip(load(data), nets, strict=True):
                    self.assert_network(actual, net)

    def test_python2(self):
        data = plain_dumps([to_network(sample())], 2, Python2Pickler)
        self.assertNotIn('BINUNICODE', {name for name, _ in instructions(data)})
        reference = plain_load(data, encoding='latin1')[0]
        self.assert_network(load(data)[0], reference)
        self.assert_network(load(data)[0], sample())

    def test_both_numpy_spellings(self):
        data = legacy.dumps(sample())
        self.assertIn(b'numpy.core.multiarray', data)
        self.assertNotIn(b'numpy._core', data)
        newer = plain_dumps(to_network(sample()), 4)
        self.assertIn(b'numpy._core.multiarray' if np.__version__ >= '2' else b'numpy.core.multiarray', newer)
        for variant in data, newer, newer.replace(b'\x16numpy._core.multiarray', b'\x15numpy.core.multiarray'):
            self.assert_network(legacy.load_pkl(io.BytesIO(unframed(variant))), sample())

    def test_written_by_hand_as_by_python(self):
        """The writer emits the instructions that Python's pickler emits for the same value."""
        value = {'a': [1, 255, 256, -1, 65536, 1 << 31, -(1 << 31), 1 << 70, -(1 << 63)], 'b': (), 'c': [[], {}],
                 'd': ('x' * 300, 'é', 1.5, None, True), 'e': list(range(1001)), 'f': {str(i): i for i in range(2001)},
                 'g': (1,), 'h': ((1, 2), (1, 2, 3), (1, 2, 3, 4)), 'i': {'one': 1}, 'j': ['one'], 'k': b'xy'}
        value['again'] = value['c']
        self.assertEqual(instructions(legacy.dumps(value)), instructions(pickle.dumps(value, 4)))
        self.assertEqual(load(legacy.dumps(value)), value)
        self.assertEqual(pickle.loads(legacy.dumps(value)), value)

    def test_array_types(self):
        """Every number type, order of bytes and of elements, in every protocol, against NumPy itself."""
        base = np.arange(24).reshape(2, 3, 4) % 7
        arrays = [base.astype(kind) for kind in ('?', 'i1', 'u2', '<i4', '>i8', 'f2', '>f4', '<f8', 'c8', 'c16')]
        arrays += [arrays[3].T, base.transpose(1, 0, 2), base[:, ::2], np.zeros((), 'f4'), base[:0],
                   np.array(['ab', 'é'])]
        arrays += [np.float32(0.1), np.float64(2), np.int64(-3), np.bool_(True)]
        for protocol in 2, 3, 4, 5:
            for array in arrays:
                actual = load(pickle.dumps(array, protocol))
                self.assertIs(type(actual), type(array))
                self.assertEqual(actual.dtype, array.dtype.newbyteorder('='))
                np.testing.assert_array_equal(actual, array)
                if isinstance(actual, np.ndarray):
                    self.assertTrue(actual.flags.c_contiguous and actual.flags.writeable)
        for array in arrays[:-5]:
            np.testing.assert_array_equal(pickle.loads(legacy.dumps(array)), array)

    def test_easydict_and_ordereddict(self):
        fake = types.ModuleType('dnnlib.util')
        fake.EasyDict = type('EasyDict', (EasyDict,), {'__module__': 'dnnlib.util', '__qualname__': 'EasyDict'})
        for protocol in 2, 4:
            with mock.patch.dict(sys.modules, {'dnnlib.util': fake}):
                data = pickle.dumps({'e': fake.EasyDict(a=1, b=fake.EasyDict(c=[2])),
                                     'o': collections.OrderedDict(z=1, y=2)}, protocol)
            value = load(data)
            self.assertIs(type(value['e']), EasyDict)
            self.assertEqual(value['e'].b.c, [2])
            self.assertEqual(list(value['o'].items()), [('z', 1), ('y', 2)])
        self.assertEqual(load(b'\x80\x02ccollections\nOrderedDict\n](]q\x01(U\x01aK\x01e]r\x02\x00\x00\x00'
                              b'(U\x01bK\x02ee\x85R.'), {'a': 1, 'b': 2})

    def test_kwargs_become_plain_python(self):
        net = sample()
        net.static_kwargs = EasyDict(a=np.float32(0.5), b=np.arange(3), c=EasyDict(d=(np.int64(1), np.bool_(1))))
        kwargs = plain_load(legacy.dumps(net)).state['static_kwargs']
        self.assertEqual(kwargs, {'a': 0.5, 'b': [0, 1, 2], 'c': {'d': (1, True)}})
        self.assertEqual([type(kwargs), type(kwargs['a']), type(kwargs['c']), type(kwargs['c']['d'][0])],
                         [dict, float, dict, int])
        net.static_kwargs = {'func': print}
        with self.assertRaisesRegex(UserError, "static_kwargs of network 'G'.*builtin_function"):
            legacy.dumps(net)

    def test_variables_are_written_contiguous(self):
        net = NetworkState('D', 'D_stylegan2', variables=[
            ('a', np.arange(6, dtype='f4').reshape(2, 3).T), ('lod', np.array(2, 'f4')), ('b', np.arange(3, dtype='>f4'))])
        state = plain_load(legacy.dumps(net)).state
        self.assertEqual(list(state), list(legacy.STATE_KEYS))
        self.assertEqual(state['version'], 4)
        variables = dict(state['variables'])
        np.testing.assert_array_equal(variables['a'], [[0, 3], [1, 4], [2, 5]])
        self.assertTrue(variables['a'].flags.c_contiguous)
        self.assertIs(type(variables['lod']), np.float32)
        self.assertEqual(variables['b'].dtype, np.dtype('<f4'))
        net.variables = [('bad', np.array([None]))]
        with self.assertRaisesRegex(UserError, "variable 'bad' of network 'D'"):
            legacy.dumps(net)

    def test_unknown_keys_and_their_order_survive(self):
        state = {'name': 'D', 'version': 3, 'static_kwargs': {}, 'color': [1, {'x': 'y'}], 'build_module_src': '',
                 'build_func_name': 'D_basic', 'variables': [('lod', np.float32(0))]}
        net = Network()
        net.state = state
        first = load(plain_dumps(net, 4))
        again = plain_load(legacy.dumps(first)).state
        self.assertEqual(list(again), list(state))
        self.assertEqual(again['color'], state['color'])
        self.assertEqual(first.extra, {'color': [1, {'x': 'y'}]})

    def test_files(self):
        directory = pathlib.Path(self.get_temp_dir())
        nets = (sample('G'), sample('D'), sample('Gs'))
        path = directory / 'network.pkl'
        legacy.save_pkl(nets, path)
        self.assertEqual([net.name for net in legacy.load_pkl(str(path))], ['G', 'D', 'Gs'])
        self.assertEqual(path.read_bytes(), legacy.dumps(nets))
        (directory / 'packed.pkl').write_bytes(gzip.compress(path.read_bytes(), 1))
        self.assert_network(legacy.load_pkl(directory / 'packed.pkl')[1], nets[1])
        with self.assertRaises(UserError):
            legacy.save_pkl((nets[0], print), path)
        self.assertEqual(path.read_bytes(), legacy.dumps(nets))
        self.assertEqual(sorted(os.listdir(directory)), ['network.pkl', 'packed.pkl'])
        with self.assertRaises(FileNotFoundError):
            legacy.load_pkl(directory / 'none.pkl')
        legacy.save_pkl(nets, 'ram://network.pkl')
        self.assertLen(legacy.load_pkl('ram://network.pkl'), 3)

    def test_pickles_in_a_row_and_streams(self):
        file = io.BytesIO(b'head' + legacy.dumps(sample('G')) + legacy.dumps(sample('D')))
        file.seek(4)
        self.assertEqual([legacy.load_pkl(file).name, legacy.load_pkl(file).name], ['G', 'D'])
        read, write = os.pipe()
        with open(write, 'wb') as target:
            target.write(legacy.dumps(NetworkState('G', 'G_main')))
        with open(read, 'rb') as source:
            self.assertEqual(legacy.load_pkl(source).name, 'G')

    def test_find_network(self):
        g, d, gs = sample('G'), sample('D'), sample('Gs')
        self.assertIs(legacy.find_network((g, d, gs)), gs)
        self.assertIs(legacy.find_network([d, g, gs], 'G'), d)
        self.assertIs(legacy.find_network(g, 'Gs'), g)
        self.assertIs(legacy.find_network({'G': g, 'G_ema': gs, 'D': d}, 'G_ema'), gs)
        self.assertIs(legacy.find_network((g, d), 'D'), d)
        self.assertEqual(legacy.network_states({'a': [g], 'n': 1, 'b': (d, gs)}), [g, d, gs])
        with self.assertRaisesRegex(UserError, r"'Gs'.*\['G', 'D'\]"):
            legacy.find_network((g, d), 'Gs')

    def test_ada(self):
        ada = NetworkState('Gs', 'G_main', version=5)
        self.assertEqual(load(legacy.dumps(ada)).version, 5)
        with self.assertRaisesRegex(UserError, 'StyleGAN2-ADA'):
            legacy.check_supported(NetworkState('G', 'G_main', components={'mapping': ada}))
        legacy.check_supported(sample())


def unframed(data):
    """A pickle without frames, whose lengths an edit would make wrong."""
    positions = [pos for op, _, pos in pickletools.genops(data) if op.name == 'FRAME']
    for pos in reversed(positions):
        data = data[:pos] + data[pos + 9:]
    return data


class Call:
    """Pickles as a call of `func`."""

    def __init__(self, func, *args):
        self.call = func, args

    def __reduce__(self):
        return self.call


HEAD = b'\x80\x04'
ARRAY = b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n)C\x01btR'
F4 = b'cnumpy\ndtype\n(\x8c\x02f4\x89\x88tR'


def array_state(shape, dtype=F4, data=b'C\x04abcd'):
    return HEAD + ARRAY + b'(K\x01' + pickle.dumps(shape, 2)[2:-1] + dtype + b'\x89' + data + b'tb.'


def network(kwargs=b'}', components=b'}', variables=b']', name=b'\x8c\x01G'):
    return (b'cdnnlib.tflib.network\nNetwork\n)\x81}(\x8c\x07versionK\x04\x8c\x04name' + name
            + b'\x8c\x0dstatic_kwargs' + kwargs + b'\x8c\x0acomponents' + components + b'\x8c\x10build_module_src\x8c\x00'
            + b'\x8c\x0fbuild_func_name\x8c\x06G_main\x8c\x09variables' + variables + b'ub')


def laughs(empty=b']', append=b'a', levels=60):
    """Nested twice per level: 2^levels values in a few hundred bytes."""
    data = empty + b'\x94'
    for level in range(levels):
        data += b'](h%ch%ce\x94' % (level, level)
    return data


class HostileTest(Base):

    def test_code(self):
        target = os.path.join(self.get_temp_dir(), 'executed')
        command = f'touch {target}'
        calls = [
            (Call(os.system, command), r"'posix.system'|'nt.system'"), (Call(eval, f'open({target!r}, "w")'), "builtins.eval"),
            (Call(exec, f'open({target!r}, "w")'), "builtins.exec"), (Call(getattr, np, 'load'), 'builtins.getattr'),
            (Call(__import__, 'os'), '__import__'), (Call(open, target, 'w'), "'_?io.open'"),
            (Call(np.load, target), 'load'), (Call(np.fromfile, target), 'fromfile'),
            (Call(__import__('functools').partial, os.system, command), 'functools.partial'),
            (Call(__import__('subprocess').Popen, command, 0), 'subprocess.Popen'),
            (Call(__import__('importlib').import_module, 'os'), 'import_module'),
            (Call(__import__('operator').attrgetter, 'x'), 'attrgetter'),
            (Call(pickle.loads, b'.'), 'loads'), (Call(bytearray, 1 << 40), 'bytearray'), (Call(bytes, 1 << 40), 'damaged'),
        ]
        for protocol in 2, 4:
            for call, regex in calls:
                for value in call, {'a': (1, [call])}:
                    self.assert_refused(pickle.dumps(value, protocol), regex)
        self.assertFalse(os.path.exists(target))

    def test_message_names_the_file(self):
        path = os.path.join(self.get_temp_dir(), 'evil.pkl')
        pathlib.Path(path).write_bytes(b'\x80\x02cos\nsystem\nU\x02ls\x85R.')
        with self.assertRaisesRegex(UserError, r"evil\.pkl: refused: .*'os\.system'"):
            legacy.load_pkl(path)
        self.assert_refused(b'\x80\x02cos\n\x1b[31m' + b'x' * 200 + b'\n.', r'\\x1b')

    def test_known_names_do_only_what_they_stand_for(self):
        reduce = b'\x8c\x01x\x85R.'
        for data in [
            b'cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.',                  # ndarray(2147483647)
            b'cnumpy\nndarray\n)\x81.',
            b'cdnnlib.tflib.network\nNetwork\n' + reduce,               # Network('x')
            b'cdnnlib.tflib.network\nNetwork\n\x8c\x01x\x85\x81.',
            b'cdnnlib.tflib.network\nNetwork\n)\x81.',                  # without a state
            b'cdnnlib.tflib.network\nNetwork\n.',
            b'cdnnlib.tflib.network\nNetwork.__class__\n.',
            b'cdnnlib.tflib\nnetwork.Network.run\n.',
            b'cnumpy.core.multiarray\n_reconstruct\n(ccollections\nOrderedDict\n)C\x01btR.',
            b'c_codecs\nencode\n\x8c\x01x\x8c\x03hex\x86R.',
            b'c_codecs\ndecode\n\x8c\x01x\x8c\x06latin1\x86R.',
            b'c__builtin__\nbytes\nK\x05\x85R.',
            b'ccopyreg\n_reconstructor\n.', b'ccopy_reg\n__newobj__\n.',
            b'cdnnlib.util\nEasyDict\n)\x81}\x8c\x09__class__K\x01sb.',  # BUILD of an EasyDict
            b'cdnnlib.util\nEasyDict\n)\x81N}\x8c\x01aK\x01s\x86b.',     # the same with slots
            b'cdnnlib.tflib.network\nNetwork\n)\x81N}\x8c\x01aK\x01s\x86b.',
            network() + b'}b.',
            ARRAY + b'.', F4 + b'.', ARRAY + b'}\x8c\x05array]sb.',
            b'}\x8c\x01aK\x01s}b.', b']}b.',                            # BUILD of a dict, a list
            b'K\x01K\x02R.', b'K\x01)R.', b'))R.', b'K\x01)\x81.',
            b')\x8c\x01a\x8c\x01b\x93.'[:0] + b')\x8c\x06system\x93.', b'\x8c\x02os)\x93.',
        ]:
            with self.subTest(data):
                self.assert_refused(HEAD + data)

    def test_instructions_that_are_not_needed(self):
        for data, regex in [
            (b'\x80\x02(ios\nsystem\n.', 'INST'), (b'\x80\x02(cdnnlib.tflib.network\nNetwork\no.', 'OBJ'),
            (b'\x80\x02Pid\n.', 'persistent'), (b'\x80\x02K\x01Q.', 'persistent'), (b'\x80\x02\x82\x01.', 'EXT1'),
            (b'\x80\x02\x83\x01\x00.', 'EXT2'), (b'\x80\x02\x84\x01\x00\x00\x00.', 'EXT4'),
            (HEAD + b'cdnnlib.util\nEasyDict\n)}\x92.', 'NEWOBJ_EX'), (HEAD + b'\x8f.', 'EMPTY_SET'),
            (b'\x80\x05\x97.', 'NEXT_BUFFER'), (b'\x80\x02\x8b\xff\xff\xff\x7f1.', 'LONG4'), (b'\x80\x06N.', 'protocol'),
            (b'\x80\x01N.', 'protocol'),
        ]:
            self.assert_refused(data, regex)

    def test_pytorch(self):
        self.assert_refused(b'\x80\x02ctorch_utils.persistence\n_reconstruct_persistent_obj\n}\x85R.', 'PyTorch')
        self.assert_refused(HEAD + b'\x8c\x0ctorch._utils\x8c\x12_rebuild_tensor_v2\x93.', 'PyTorch')
        self.assert_refused(b'PK\x03\x04archive', 'ZIP')

    def test_other_files(self):
        for data, regex in [(b'', 'empty'), (b'<!DOCTYPE html><html>', 'web page'), (b'hello', 'binary'),
                            (b'version https://git-lfs.github.com/spec/v1', 'git lfs pull'), (b'(lp0\n.', 'binary'),
                            (b'\x1f\x8bxxxxxxxxxxxx', 'gzip'), (gzip.compress(b'hello'), 'pickle'),
                            (gzip.compress(legacy.dumps(sample()))[:-99], 'gzip')]:
            self.assert_refused(data, regex)
        with self.assertRaisesRegex(UserError, "'rb'"):
            legacy.load_pkl(io.StringIO('text'))
        if os.path.exists('/dev/zero'):
            with self.assertRaisesRegex(UserError, 'binary'):
                legacy.load_pkl('/dev/zero')

    def test_sizes(self):
        huge = struct.pack('<Q', 10 << 30)
        for data in [b'\x8e' + huge, b'\x8d' + huge, b'\x96' + huge, b'\x95' + huge, b'B' + huge[:3] + b'\xf0',
                     b'X\xff\xff\xff\xff', b'T\xff\xff\xff\xff', b'T\xff\xff\xff\x7f', b'C\xff', b'\x95' + b'\xff' * 8,
                     b'\x8e' + b'\xff' * 8]:
            self.assert_refused(HEAD + data + b'x' * 99, 'announces')
        for shape in [(10 ** 9, 10 ** 9), (10 << 30,), (-1, -1), (-4,), (2 ** 62, 4, 0), (2 ** 64,), (True,), (1.0,),
                      (1,) * 40, (2 ** 2000,), ()[:0] + (3,), 7, None]:
            self.assert_refused(array_state(shape), 'damaged')
        np.testing.assert_array_equal(load(array_state((1,))), np.frombuffer(b'abcd', '<f4'))
        frombuffer = b'cnumpy._core.numeric\n_frombuffer\n(C\x04abcd' + F4 + pickle.dumps((10 ** 6, 10 ** 6), 2)[2:-1]
        self.assert_refused(HEAD + frombuffer + b'\x8c\x01CtR.', 'shape')

    def test_array_types_refused(self):
        for spec in ['O', 'O8', '|O', 'V8', 'M8[ns]', 'f4,f4', 'float32', 'S0', 'U0', 'S99999', '(9999999,)f4', 'f16', '']:
            data = F4.replace(b'\x02f4', bytes([len(spec)]) + spec.encode())
            self.assert_refused(array_state((1,), data), 'array of type')
        for state in [b'(K\x03\x8c\x01<}NNtb', b'(K\x03\x8c\x01<N\x8c\x01x\x85NtbJ', b'(K\x03\x8c\x01!NNNtb', b'(K\x03]NNNtb']:
            self.assert_refused(array_state((1,), F4 + state), 'type|damaged')
        self.assert_refused(array_state((1,), data=b'](K\x01e'), 'data are a list')
        self.assert_refused(array_state((1,), F4.replace(b'f4', b'U1'), b'C\x04\xff\xff\xff\xff'), 'invalid text')
        object_array = pickle.dumps(np.array([Call(os.getpid), None]), 4)
        self.assert_refused(object_array, "'O8'|getpid")

    def test_nesting(self):
        for nest in laughs(), laughs(b'}'):
            self.assert_refused(HEAD + nest + b'.', 'nested')
            self.assert_refused(HEAD + network(kwargs=b'}\x8c\x01x' + nest + b's') + b'.', 'nested')
            self.assert_refused(HEAD + network(name=nest) + b'.', 'nested')
            self.assert_refused(HEAD + nest + b'\x8c\x01x\x93.')
            self.assert_refused(HEAD + nest + b'\x85R.')
            self.assert_refused(HEAD + b'cnumpy\ndtype\n(' + nest + b'\x89\x88tR.', 'list')
            self.assert_refused(array_state((1,), data=nest), 'list')
            self.assert_refused(HEAD + F4 + b'(K\x03' + nest + b'NNNtb.')
            self.assert_refused(HEAD + b'}' + nest + b'Ns.')
        depth = 100_000
        for data in [b']' * depth + b'a' * (depth - 1), b')' + b'\x85' * depth, b'}' + b'\x8c\x01a}' * depth + b's' * depth,
                     b'(' * depth + b't' * depth, b'(' * depth]:
            self.assert_refused(HEAD + data + b'.')
        self.assert_refused(HEAD + b']\x94h\x00a.', 'nested')                              # contains itself
        self.assert_refused(HEAD + b'cdnnlib.tflib.network\nNetwork\n)\x81\x94}\x8c\x0acomponents}\x8c\x01ah\x00ssb.')

    def test_networks_within_networks(self):
        data = network() + b'\x94'
        for level in range(40):
            data += network(components=b'}(\x8c\x01ah%c\x8c\x01bh%cu' % (level, level)) + b'\x94'
        self.assert_refused(HEAD + data + b'.', 'networks')
        shared = HEAD + network(components=b'}(' + b''.join(b'\x8c\x03%03d' % i + network() for i in range(90)) + b'u')
        self.assert_refused(shared + b'\x94](' + b'h\x00' * 9000 + b'e.', 'too many')
        self.assert_refused(HEAD + b'cdnnlib.tflib.network\nNetwork\n)\x81\x94' + network(
            components=b'}\x8c\x01ah\x00s') + b'.', 'unfinished')

    def test_sharing(self):
        """Small files that mention one large thing many times."""
        blob = b'B' + struct.pack('<I', 1 << 20) + bytes(1 << 20) + b'\x94'
        arrays = (ARRAY + b'(K\x01J\x00\x00\x04\x00\x85' + F4 + b'\x89h\x00tb') * 400
        self.assert_refused(HEAD + blob + b'(' + arrays + b't.', 'unfolds')
        self.assert_refused(HEAD + blob + b'(' + b'h\x00' * 5000 + b't.', 'unfolds')
        text = b'X' + blob[1:]
        self.assert_refused(HEAD + text + b'(' + b'c_codecs\nencode\nh\x00\x8c\x06latin1\x86R' * 5000 + b't.', 'unfolds')
        pairs = b'](' + b'](\x8c\x01aNe' * 20000 + b'e\x94'
        self.assert_refused(HEAD + pairs + b'ccollections\nOrderedDict\n\x94' + b'(h\x01h\x00\x85R1' * 9000 + b'.')
        self.assert_refused(HEAD + b'N' * 600_000 + b'.', 'instructions')
        self.assert_refused(HEAD + b'Nr\xff\xff\xff\xffj\xfe\xff\xff\xff.', 'damaged')       # a memo of 4 billion
        self.assertIsNone(load(HEAD + b'Nr\xff\xff\xff\xff0j\xff\xff\xff\xff.'))
        self.assert_refused(gzip.compress(HEAD + b'B\x00\x00\x00\x0c' + bytes(192 << 20)), 'at most 64 MiB')

    def test_states(self):
        for data, regex in [
            (network(name=b'K\x01'), "'name' as str"), (network(kwargs=b']'), "'static_kwargs' as dict"),
            (network(components=b'N'), "'components' as dict"), (network(components=b'}\x8c\x01aNs'), 'not a network'),
            (network(variables=b'}'), "'variables' as list"), (network(variables=b']Na'), 'not a pair'),
            (network(variables=b']\x8c\x01aK\x01\x86a'), "variable 'a'"),
            (network().replace(b'versionK\x04', b'version\x88'), "'version' as int"),
            (network().replace(b'\x8c\x07version', b'\x8c\x07virsion'), "'version' as int, found nothing"),
        ]:
            self.assert_refused(HEAD + data + b'.', regex)
        scalar = b'\x8c\x03lodcnumpy.core.multiarray\nscalar\n(' + F4 + b'C\x04abcdtR\x86'
        self.assertLen(load(HEAD + network(variables=b'](' + scalar + b'e') + b'.').variables, 1)
        self.assert_refused(HEAD + network(variables=b'](' + scalar * 2 + b'e') + b'.', 'two variables of one name')


class DamageTest(Base):
    """Damaged copies of a pickle load or raise UserError, and nothing else."""

    def setUp(self):
        super().setUp()
        path = testutil.golden(*FUZZ_FILE)
        self.data = pathlib.Path(path).read_bytes() if os.path.exists(path) else legacy.dumps((sample(),) * 3)
        # A copy whose arrays are mostly cut away: mutations hit the structure instead of the weights.
        small = [NetworkState(name, 'G_main', {'a': [1, 2.5, 'x', None]}, {'mapping': NetworkState('m', 'M')},
                              [('lod', np.float32(1)), ('w', np.ones((2, 1), 'f4'))]) for name in ('G', 'D', 'Gs')]
        self.small = legacy.dumps(tuple(small))
        self.variants = [plain_dumps(tuple(to_network(net) for net in small), protocol) for protocol in (2, 3, 5)]

    def check(self, data):
        start = time.monotonic()
        try:
            value = load(data)
        except UserError as error:
            self.assertNotIn('\n', str(error))
            return False
        finally:
            self.assertLess(time.monotonic() - start, 5)
        try:
            legacy.dumps(value)
        except UserError:
            pass
        return True

    def test_truncated(self):
        for end in range(1, len(self.data), 97):
            self.assertFalse(self.check(self.data[:end]), end)
        for data in [self.small, *self.variants]:
            self.assertTrue(self.check(data))
            for end in range(len(data)):
                self.assertFalse(self.check(data[:end]), end)

    def mutate(self, data, rnd):
        data = bytearray(data)
        for _ in range(rnd.choice([1, 1, 1, 2, 5, 20])):
            pos = rnd.randrange(2, len(data))
            kind = rnd.randrange(5)
            if kind == 0:
                data[pos] = rnd.randrange(256)
            elif kind == 1:
                data[pos] ^= 1 << rnd.randrange(8)
            elif kind == 2:
                del data[pos:pos + rnd.randrange(1, 9)]
            elif kind == 3:
                start = rnd.randrange(len(data))
                data[pos:pos] = data[start:start + rnd.randrange(1, 60)]
            else:
                data[pos] = ord(rnd.choice('(.012NRb}]tuesa\x81\x85\x86\x93\x94'))
        return bytes(data)

    def mutations(self, rnd, count, sources):
        loaded = sum(self.check(self.mutate(rnd.choice(sources), rnd)) for _ in range(count))
        self.assertGreater(loaded, 0)
        self.assertLess(loaded, count)

    def test_mutations(self):
        rnd = random.Random(1)
        self.mutations(rnd, 4000, [self.small, unframed(self.small), *self.variants])
        self.mutations(rnd, 300, [self.data])

    @pytest.mark.slow
    def test_many_mutations(self):
        rnd = random.Random(2)
        self.mutations(rnd, 300_000, [self.small, unframed(self.small), *self.variants])
        self.mutations(rnd, 20_000, [self.data])

    def test_noise(self):
        rnd = random.Random(3)
        codes = b''.join(bytes([code]) for code in map(ord, pickletools.code2op))
        for _ in range(3000):
            self.check(HEAD + rnd.randbytes(rnd.randrange(200)))
            self.check(HEAD + bytes(rnd.choices(codes, k=rnd.randrange(60))) + b'.')


if __name__ == '__main__':
    unittest.main()
