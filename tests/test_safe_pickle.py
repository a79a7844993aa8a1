"""No file, however hostile or damaged, makes `load_pkl` do anything but load it or raise UserError, soon."""

import gzip
import io
import os
import pathlib
import pickle
import pickletools
import random
import resource
import struct
import sys
import time
import tracemalloc
import unittest

import numpy as np
import pytest
import tensorflow as tf

from dnnlib import tflib
from dnnlib.tflib import legacy, state_check
from dnnlib.tflib.legacy import NetworkState
from dnnlib.util import UserError
from tests import testutil
from tests.test_legacy import FUZZ_FILE, load, plain_dumps, sample, to_network, unframed


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
            + b'\x8c\x0dstatic_kwargs' + kwargs + b'\x8c\x0acomponents' + components
            + b'\x8c\x10build_module_src\x8c\x00\x8c\x0fbuild_func_name\x8c\x06G_main'
            + b'\x8c\x09variables' + variables + b'ub')


def laughs(empty=b']', levels=60):
    """Nested twice per level: 2^levels values in a few hundred bytes."""
    data = empty + b'\x94'
    for level in range(levels):
        data += b'0](h%ch%ce\x94' % (level, level)
    return data


class HostileTest(tf.test.TestCase):

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

    def test_code(self):
        target = os.path.join(self.get_temp_dir(), 'executed')
        command = f'touch {target}'
        calls = [
            (Call(os.system, command), r"'(posix|nt)\.system'"),
            (Call(eval, f'open({target!r}, "w")'), r'builtin(s|__).eval'),
            (Call(exec, f'open({target!r}, "w")'), r'builtin(s|__).exec'),
            (Call(getattr, '', 'upper'), r'builtin(s|__).getattr'),
            (Call(__import__, 'os'), '__import__'), (Call(open, target, 'w'), "'_?io.open'"),
            (Call(np.load, target), 'load'), (Call(np.fromfile, target), 'fromfile'),
            (Call(__import__('functools').partial, os.system, command), 'functools.partial'),
            (Call(__import__('subprocess').Popen, command, 0), r'(subprocess|commands)\.Popen'),
            (Call(__import__('importlib').import_module, 'os'), 'import_module'),
            (Call(__import__('operator').attrgetter, 'x'), 'attrgetter'),
            (Call(pickle.loads, b'.'), 'loads'), (Call(bytearray, 1 << 40), 'bytearray'),
            (Call(bytes, 1 << 40), 'damaged'),
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
            b')\x8c\x06system\x93.', b'\x8c\x02os)\x93.',
        ]:
            with self.subTest(data):
                self.assert_refused(HEAD + data)

    def test_instructions_that_are_not_needed(self):
        for data, regex in [
            (b'\x80\x02(ios\nsystem\n.', 'INST'),
            (b'\x80\x02(cdnnlib.tflib.network\nNetwork\no.', 'OBJ'),
            (b'\x80\x02Pid\n.', 'persistent'), (b'\x80\x02K\x01Q.', 'persistent'),
            (b'\x80\x02\x82\x01.', 'EXT1'),
            (b'\x80\x02\x83\x01\x00.', 'EXT2'), (b'\x80\x02\x84\x01\x00\x00\x00.', 'EXT4'),
            (HEAD + b'cdnnlib.util\nEasyDict\n)}\x92.', 'NEWOBJ_EX'), (HEAD + b'\x8f.', 'EMPTY_SET'),
            (b'\x80\x05\x97.', 'NEXT_BUFFER'),
            (b'\x80\x02\x8b\xff\xff\xff\x7f1.', 'LONG4'), (b'\x80\x06N.', 'protocol'),
            (b'\x80\x01N.', 'protocol'),
        ]:
            self.assert_refused(data, regex)

    def test_pytorch(self):
        self.assert_refused(b'\x80\x02ctorch_utils.persistence\n_reconstruct_persistent_obj\n}\x85R.',
                            'PyTorch')
        self.assert_refused(HEAD + b'\x8c\x0ctorch._utils\x8c\x12_rebuild_tensor_v2\x93.', 'PyTorch')
        self.assert_refused(b'PK\x03\x04archive', 'ZIP')

    def test_other_files(self):
        for data, regex in [(b'', 'empty'), (b'<!DOCTYPE html><html>', 'web page'), (b'hello', 'binary'),
                            (b'version https://git-lfs.github.com/spec/v1', 'git lfs pull'),
                            (b'(lp0\n.', 'binary'),
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
        for data in [b'\x8e' + huge, b'\x8d' + huge, b'\x96' + huge, b'\x95' + huge,
                     b'B' + huge[:3] + b'\xf0', b'X\xff\xff\xff\xff', b'T\xff\xff\xff\xff',
                     b'T\xff\xff\xff\x7f', b'C\xff', b'\x95' + b'\xff' * 8, b'\x8e' + b'\xff' * 8]:
            self.assert_refused(HEAD + data + b'x' * 99, 'announces')
        for shape in [(10 ** 9, 10 ** 9), (10 << 30,), (-1, -1), (-4,), (2 ** 62, 4, 0), (2 ** 64,),
                      (True,), (1.0,), (1,) * 40, (2 ** 2000,), (3,), 7, None]:
            self.assert_refused(array_state(shape), 'damaged')
        np.testing.assert_array_equal(load(array_state((1,))), np.frombuffer(b'abcd', '<f4'))
        shape = pickle.dumps((10 ** 6, 10 ** 6), 2)[2:-1]
        frombuffer = b'cnumpy._core.numeric\n_frombuffer\n(C\x04abcd' + F4
        self.assert_refused(HEAD + frombuffer + shape + b'\x8c\x01CtR.', 'shape')

    def test_array_types_refused(self):
        for spec in ['O', 'O8', '|O', 'V8', 'M8[ns]', 'f4,f4', 'float32', 'S0', 'U0', 'S99999',
                     '(9999999,)f4', 'f16', '']:
            data = F4.replace(b'\x02f4', bytes([len(spec)]) + spec.encode())
            self.assert_refused(array_state((1,), data), 'array of type')
        for state in [b'(K\x03\x8c\x01<}NNtb', b'(K\x03\x8c\x01<N\x8c\x01x\x85Ntb',
                      b'(K\x03\x8c\x01!NNNtb', b'(K\x03]NNNtb']:
            self.assert_refused(array_state((1,), F4 + state), 'type|damaged')
        self.assert_refused(array_state((1,), data=b'](K\x01e'), 'data are a list')
        text = F4.replace(b'f4', b'U1')
        self.assert_refused(array_state((1,), text, b'C\x04\xff\xff\xff\xff'), 'invalid text')
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
        tuples = b')' + b'\x94h\x00\x86' + b''.join(b'\x94h%c\x86' % i for i in range(1, 60))
        self.assert_refused(HEAD + b'}' + tuples + b'Ns.', 'a dict key of type tuple')
        prime = sys.hash_info.modulus       # Multiples of it have the same hash.
        numbers = b''.join(b'\x8a\x0a' + (prime * i).to_bytes(10, 'little') + b'N' for i in range(1, 20000))
        self.assert_refused(HEAD + b'}(' + numbers + b'u.', 'a dict key of type int')
        depth = 100_000
        for data in [b']' * depth + b'a' * (depth - 1), b')' + b'\x85' * depth,
                     b'}' + b'\x8c\x01a}' * depth + b's' * depth, b'(' * depth + b't' * depth, b'(' * depth]:
            self.assert_refused(HEAD + data + b'.')
        self.assert_refused(HEAD + b']\x94h\x00a.', 'nested')                              # contains itself
        own_component = b'cdnnlib.tflib.network\nNetwork\n)\x81\x94}\x8c\x0acomponents}\x8c\x01ah\x00ssb.'
        self.assert_refused(HEAD + own_component, 'unfinished')

    def test_networks_within_networks(self):
        data = network() + b'\x94'
        for level in range(40):
            components = b'}(\x8c\x01ah%c\x8c\x01bh%cu' % (level, level)
            data += b'0' + network(components=components) + b'\x94'
        self.assert_refused(HEAD + data + b'.', 'networks')
        many = b''.join(b'\x8c\x03%03d' % i + network() for i in range(90))
        shared = HEAD + network(components=b'}(' + many + b'u')
        self.assert_refused(shared + b'\x940](' + b'h\x00' * 9000 + b'e.', 'too many')
        self.assert_refused(HEAD + b'cdnnlib.tflib.network\nNetwork\n)\x81\x94' + network(
            components=b'}\x8c\x01ah\x00s') + b'.', 'unfinished')

    def test_sharing(self):
        """Small files that mention one large thing many times."""
        blob = b'B' + struct.pack('<I', 1 << 20) + bytes(1 << 20) + b'\x940'
        arrays = (ARRAY + b'(K\x01J\x00\x00\x04\x00\x85' + F4 + b'\x89h\x00tb') * 400
        self.assert_refused(HEAD + blob + b'(' + arrays + b't.', 'unfolds')
        self.assert_refused(HEAD + blob + b'(' + b'h\x00' * 5000 + b't.', 'unfolds')
        text = b'X' + blob[1:]
        encoded = b'c_codecs\nencode\nh\x00\x8c\x06latin1\x86R' * 5000
        self.assert_refused(HEAD + text + b'(' + encoded + b't.', 'unfolds')
        pairs = b'](' + b'](\x8c\x01aNe' * 20000 + b'e\x940'
        pairs += b'ccollections\nOrderedDict\n\x94'
        self.assert_refused(HEAD + pairs + b'h\x01h\x00\x85R0' * 9000 + b'.', 'many')
        self.assert_refused(HEAD + b'N' * 600_000 + b'.', 'instructions')
        self.assert_refused(HEAD + b'Nr\xff\xff\xff\xffj\xfe\xff\xff\xff.', 'damaged')  # memo of 4 billion
        self.assertIsNone(load(HEAD + b'Nr\xff\xff\xff\xff0j\xff\xff\xff\xff.'))
        self.assert_refused(gzip.compress(HEAD + b'B\x00\x00\x00\x0c' + bytes(192 << 20)), 'at most 64 MiB')

    def test_states(self):
        for data, regex in [
            (network(name=b'K\x01'), "'name' as str"), (network(kwargs=b']'), "'static_kwargs' as dict"),
            (network(components=b'N'), "'components' as dict"),
            (network(components=b'}\x8c\x01aNs'), 'not a network'),
            (network(variables=b'}'), "'variables' as list"), (network(variables=b']Na'), 'not a pair'),
            (network(variables=b']\x8c\x01aK\x01\x86a'), "variable 'a'"),
            (network().replace(b'versionK\x04', b'version\x88'), "'version' as int"),
            (network().replace(b'\x8c\x07version', b'\x8c\x07virsion'), "'version' as int, found nothing"),
        ]:
            self.assert_refused(HEAD + data + b'.', regex)
        scalar = b'\x8c\x03lodcnumpy.core.multiarray\nscalar\n(' + F4 + b'C\x04abcdtR\x86'
        self.assertLen(load(HEAD + network(variables=b'](' + scalar + b'e') + b'.').variables, 1)
        twice = network(variables=b'](' + scalar * 2 + b'e')
        self.assert_refused(HEAD + twice + b'.', 'two variables of one name')


class ArgumentsTest(tf.test.TestCase):
    """Arguments of a network that would take all memory, hang or run something are refused in one line."""

    def tiny(self, **kwargs):
        network = tflib.Network('G', 'training.networks_stylegan2.G_main', resolution=4, fmap_base=8,
                                fmap_max=2, latent_size=2, dlatent_size=2, mapping_fmaps=2, mapping_layers=1)
        state = network.state()
        state.static_kwargs.update(kwargs)
        for component in state.components.values():
            component.static_kwargs.update(kwargs)
        return state

    def test_building(self):
        state = self.tiny()
        self.assertEqual(tflib.Network.from_state(state).name, 'G')
        for kwargs in [
            {'resolution': 2 ** 40}, {'resolution': 10 ** 300}, {'resolution': '4'}, {'resolution': [4]},
            {'resolution': float('nan')}, {'fmap_max': 10 ** 12, 'fmap_base': 10 ** 13},
            {'fmap_base': float('inf')}, {'mapping_layers': 10 ** 9}, {'mapping_fmaps': 10 ** 11,
                                                                      'mapping_layers': 2},
            {'latent_size': 10 ** 12}, {'dlatent_size': 10 ** 10}, {'label_size': 10 ** 12},
            {'num_channels': 10 ** 12}, {'base_shape': (10 ** 9, 10 ** 9)}, {'synthesis_func': 'os.system'},
            {'mapping_func': 'subprocess.Popen'}, {'synthesis_func': 'training.networks_stylegan2.np.load'},
            {'synthesis_func': 5}, {'nonlinearity': 'os.system'}, {'dtype': 'object'},
        ]:
            start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            state = self.tiny(**kwargs)
            with self.subTest(kwargs), self.assertRaises(UserError) as caught:
                tflib.Network.from_state(state)
            self.assertNotIn('\n', str(caught.exception))
            self.assertLess(time.monotonic() - start, 20)
            self.assertLess(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, 300 << 10)

    def test_calling(self):
        """What building does not notice."""
        state_check.check_arguments(self.tiny(
            resample_kernel=[1, 3, 3, 1], unknown=[None] * 9, truncation_psi=None, truncation_cutoff=8,
            randomize_noise=True))
        state_check.check_arguments(self.tiny(resample_kernel=[[1, 2], [2, 1]], blur_filter=None))
        for key, values in {
            'resample_kernel': [[1] * 100_000, [1, -1], [], 'abc', [float('nan')], 10 ** 9, [[1] * 100] * 2,
                                [[1], [1, 2]], [0, 0], [10 ** 400], [None]],
            'truncation_psi': ['x', float('nan'), [1], 10 ** 400], 'truncation_cutoff': [0.5, 'x', 10 ** 30],
            'randomize_noise': ['x', [1]], 'dlatent_broadcast': [10 ** 12, 'x'],
            'mbstd_group_size': [float('nan'), 10 ** 12],
        }.items():
            for value in values:
                with self.subTest(f'{key}={value!r:.40}'), self.assertRaisesRegex(UserError, key) as caught:
                    state_check.check_arguments(self.tiny(**{key: value}))
                self.assertLess(len(str(caught.exception)), 400)

    @testutil.needs_golden
    def test_official_networks_pass(self):
        for path in testutil.GOLDEN.glob('*/*.pkl'):
            for state in legacy.network_states(legacy.load_pkl(path)):
                state_check.check_arguments(state)


class DamageTest(tf.test.TestCase):
    """Damaged copies of a pickle load or raise UserError, and nothing else."""

    def setUp(self):
        super().setUp()
        path = testutil.golden(*FUZZ_FILE)
        self.data = pathlib.Path(path).read_bytes() if os.path.exists(path) else legacy.dumps((sample(),) * 3)
        # With next to no weights: mutations hit the structure.
        variables = [('lod', np.float32(1)), ('w', np.ones((2, 1), 'f4'))]
        small = [NetworkState(name, 'G_main', {'a': [1, 2.5, 'x', None]}, {'mapping': NetworkState('m', 'M')},
                              variables) for name in ('G', 'D', 'Gs')]
        self.small = legacy.dumps(tuple(small))
        self.variants = [plain_dumps(tuple(map(to_network, small)), protocol) for protocol in (2, 3, 5)]

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
