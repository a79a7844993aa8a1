"""Official pickles: what `load_pkl` reads is what Python reads, `save_pkl` gives the same bytes."""

import collections
import gzip
import io
import os
import pathlib
import pickle
import pickletools
import struct
import sys
import types
import unittest
from unittest import mock

import numpy as np
import tensorflow as tf

from dnnlib.tflib import legacy
from dnnlib.tflib.legacy import NetworkState
from dnnlib.util import EasyDict, UserError
from tests import testutil

FUZZ_FILE = ('training', 'stylegan2_f_init.pkl')


class Network:
    """Stands for the official class when Python's own pickler writes or unpickler reads."""

    __module__ = 'dnnlib.tflib.network'

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


def to_network(state):
    """NetworkState → the object that Python's pickler writes."""
    net = Network()
    net.state = state.to_state() | {'components': {k: to_network(c) for k, c in state.components.items()}}
    return net


def plain_dumps(obj, protocol, pickler=pickle.Pickler):
    fake = types.ModuleType(Network.__module__)
    fake.Network = Network
    file = io.BytesIO()
    with mock.patch.dict(sys.modules, {Network.__module__: fake}):
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


def unframed(data):
    """A pickle without frames, whose lengths an edit would make wrong."""
    positions = [pos for op, _, pos in pickletools.genops(data) if op.name == 'FRAME']
    for pos in reversed(positions):
        data = data[:pos] + data[pos + 9:]
    return data


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
                    progan = path.parent.name == 'progan' or path.name.startswith('progan')
                    self.assertEqual(net.class_name, 'tfutil.Network' if progan else legacy.NETWORK_CLASS)
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
        older = unframed(newer).replace(b'\x16numpy._core.multiarray', b'\x15numpy.core.multiarray')
        for variant in data, newer, older:
            self.assert_network(load(variant), sample())

    def test_written_by_hand_as_by_python(self):
        """The writer emits the instructions that Python's pickler emits for the same value."""
        value = {'a': [1, 255, 256, -1, 65536, 1 << 31, -(1 << 31), 1 << 70, -(1 << 63)], 'b': (),
                 'c': [[], {}], 'd': ('x' * 300, 'é', 1.5, None, True), 'e': list(range(1001)),
                 'f': {str(i): i for i in range(2001)}, 'g': (1,), 'h': ((1, 2), (1, 2, 3), (1, 2, 3, 4)),
                 'i': {'one': 1}, 'j': ['one'], 'k': b'xy'}
        value['again'] = value['c']
        self.assertEqual(instructions(legacy.dumps(value)), instructions(pickle.dumps(value, 4)))
        self.assertEqual(load(legacy.dumps(value)), value)
        self.assertEqual(pickle.loads(legacy.dumps(value)), value)

    def test_array_types(self):
        """Every number type, order of bytes and of elements, in every protocol, against NumPy itself."""
        base = np.arange(24).reshape(2, 3, 4) % 7
        kinds = '?', 'i1', 'u2', '<i4', '>i8', 'f2', '>f4', '<f8', 'c8', 'c16'
        arrays = [base.astype(kind) for kind in kinds]
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
        fake.EasyDict = type('EasyDict', (EasyDict,), {'__module__': 'dnnlib.util'})
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
        net.static_kwargs = EasyDict(a=np.float32(0.5), b=np.arange(3),
                                     c=EasyDict(d=(np.int64(1), np.bool_(1))))
        kwargs = plain_load(legacy.dumps(net)).state['static_kwargs']
        self.assertEqual(kwargs, {'a': 0.5, 'b': [0, 1, 2], 'c': {'d': (1, True)}})
        self.assertEqual([type(kwargs), type(kwargs['a']), type(kwargs['c']), type(kwargs['c']['d'][0])],
                         [dict, float, dict, int])
        net.static_kwargs = {'func': print}
        with self.assertRaisesRegex(UserError, "static_kwargs of network 'G'.*builtin_function"):
            legacy.dumps(net)

    def test_variables_are_written_contiguous(self):
        net = NetworkState('D', 'D_stylegan2', variables=[
            ('a', np.arange(6, dtype='f4').reshape(2, 3).T), ('lod', np.array(2, 'f4')),
            ('b', np.arange(3, dtype='>f4'))])
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
        state = {'name': 'D', 'version': 3, 'static_kwargs': {}, 'color': [1, {'x': 'y'}],
                 'build_module_src': '', 'build_func_name': 'D_basic', 'variables': [('lod', np.float32(0))]}
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
        with self.assertRaisesRegex(UserError, r'StyleGAN2-ADA.*expected a network of StyleGAN2 \(4\)'):
            legacy.check_supported(NetworkState('G', 'G_main', components={'mapping': ada}))
        legacy.check_supported(sample())


if __name__ == '__main__':
    unittest.main()
