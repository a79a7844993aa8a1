"""PyTorch files read without PyTorch: what PyTorch saved comes out, whatever else is in a file is refused."""

import io
import os
import pathlib
import pickle
import random
import struct
import time
import tracemalloc
import unittest
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from dnnlib.tflib.torch_machine import LEGACY_HEAD
from dnnlib.tflib.torch_pickle import Module, load_torch, loads, state_dict
from dnnlib.util import UserError
from tests import testutil

DATA = testutil.DATA / 'torch'
HEAD = b'\x80\x02'
LEGACY = LEGACY_HEAD + b'\x80\x02M\xe9\x03.' + b'\x80\x02}X\x0d\x00\x00\x00little_endian\x88s.'
F4 = b'ctorch\nFloatStorage\n'


def archive(data, entries=(), compression=zipfile.ZIP_STORED, folder='archive'):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', compression) as out:
        out.writestr(f'{folder}/data.pkl', data)
        for name, content in dict(entries).items():
            out.writestr(f'{folder}/{name}', content)
    return file.getvalue()


def repacked(data, change):
    """A zip container whose data.pkl went through `change`."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        names = {name.partition('/')[2]: old.read(name) for name in old.namelist()}
    return archive(change(names.pop('data.pkl')), names)


def storage_id(key=b'0', kind=F4, count=4):
    return b'(X\x07\x00\x00\x00storage' + kind + b'U' + bytes([len(key)]) + key + b'U\x03cpuK' + bytes(
        [count]) + b'tQ'


def tensor(storage, offset=b'K\x00', shape=b'K\x04\x85', stride=b'K\x01\x85'):
    return b'ctorch._utils\n_rebuild_tensor_v2\n(' + storage + offset + shape + stride + b'\x89}tR'


def stored(storage_data=bytes(range(16)), count=4, kind=F4):
    """The bytes that torch.storage._load_from_bytes takes."""
    return (LEGACY + HEAD + storage_id(kind=kind, count=count) + b'.' + b'\x80\x02]U\x010a.'
            + struct.pack('<q', count) + storage_data)


def from_bytes(data):
    return b'ctorch.storage\n_load_from_bytes\nB' + struct.pack('<I', len(data)) + data + b'\x85R'


class FilesTest(tf.test.TestCase):

    def assert_arrays(self, actual, expected):
        self.assertEqual(set(actual), set(expected))
        for key, value in expected.items():
            self.assertEqual((actual[key].dtype, actual[key].shape), (value.dtype, value.shape), key)
            self.assertEqual(actual[key].tobytes(), np.ascontiguousarray(value).tobytes(), key)
            self.assertTrue(actual[key].flags.c_contiguous and actual[key].flags.writeable, key)

    def expected(self, name):
        with np.load(DATA / name) as file:
            return {key: file[key] for key in file.files if not key.startswith('__')}

    def test_containers(self):
        expected = self.expected('tiny_expected.npz')
        for name in 'tiny_zip.pth', 'tiny_legacy.pth':
            content = load_torch(DATA / name)
            self.assertIsInstance(content, dict)
            self.assert_arrays(content, expected)
            self.assert_arrays(state_dict(content), expected)
        nested = load_torch(DATA / 'tiny_nested_zip.pth')
        self.assert_arrays(state_dict(nested), expected)
        self.assertEqual((nested['epoch'], nested['best'], nested['names']), (3, 0.5, ['a', 'b']))

    def test_torchscript(self):
        content = load_torch(DATA / 'tiny_torchscript.pt')
        expected = {key: value for key, value in self.expected('tiny_expected.npz').items()
                    if key.startswith(('conv.', 'bn.', 'fc.'))}
        self.assert_arrays(state_dict(content), expected)
        self.assertEqual(content.class_name, '__torch__.Net')
        self.assertEqual(content.modules['conv'].class_name, '__torch__.Conv')

    def test_plain_pickles(self):
        for name in 'plain_p2.pkl', 'plain_p4.pkl':
            content = load_torch(DATA / name)
            self.assert_arrays(content['tensors'], self.expected('plain.npz'))
            self.assertIs(content['again'], content['tensors']['f32'])
            self.assertEqual(content['size'], (2, 3))
            self.assertEqual((content['dtype'], content['device']), ('torch.float16', 'cpu'))
            self.assertEqual((content['names'], content['epoch']), (['a'], 3))

    def test_modules_and_checkpoints(self):
        module = load_torch(DATA / 'module.pth')
        self.assert_arrays(state_dict(module), self.expected('module.npz'))
        self.assertEqual(module.class_name, 'torch.nn.modules.container.Sequential')
        self.assertEqual(module.modules['0'].attributes['kernel_size'], (1, 1))
        checkpoint = load_torch(DATA / 'checkpoint.pt')
        self.assertEqual(checkpoint['args'], {'lr': 0.1})
        self.assert_arrays(state_dict(checkpoint), self.expected('module.npz'))

    def test_persistent_modules(self):
        """The source in these pickles ends the process when it is run."""
        content = load_torch(DATA / 'ada_skip_resnet.pkl')
        self.assertEqual(list(content), ['training_set_kwargs', 'G', 'D', 'G_ema', 'augment_pipe'])
        G = content['G']
        self.assertEqual((G.class_name, G.init_args, G.init_kwargs['z_dim']), ('Generator', (), 8))
        self.assertEqual(G.modules['synthesis'].modules['b8'].modules['conv0'].attributes['up'], 2)
        self.assertEqual(G.modules['mapping'].modules['fc0'].parameters['weight'].shape, (7, 8))
        names = list(state_dict(G))
        self.assertIn('synthesis.b16.torgb.affine.weight', names)
        self.assertIn('synthesis.b8.conv0.noise_const', names)
        self.assertIn('mapping.w_avg', names)
        self.assertIn('b4.fc.weight', state_dict(content['D']))

    def test_state_dict(self):
        array = np.zeros(2)
        self.assertEqual(list(state_dict({'module.a': array, 'module.b': array})), ['a', 'b'])
        self.assertEqual(list(state_dict({'x': 1, 'model': {'a': array}})), ['a'])
        child = Module('C', parameters={'w': array}, buffers={'b': array})
        self.assertEqual(list(state_dict(Module('M', modules={'c': child}))), ['c.w', 'c.b'])
        for value in [], {'a': 1}, 3, {}:
            with self.assertRaisesRegex(UserError, 'expected a PyTorch state dict'):
                state_dict(value)


class HostileTest(tf.test.TestCase):

    def assert_refused(self, data, regex='refused|damaged|truncated', wrap=True):
        """One line, soon and in little memory; also inside each container."""
        variants = [data]
        if wrap:
            variants += [archive(data), LEGACY + data + b'\x80\x02].',
                         HEAD + from_bytes(LEGACY + data) + b'.']
        for variant in variants:
            start = time.monotonic()
            tracemalloc.start()
            try:
                with self.assertRaisesRegex(UserError, regex) as caught:
                    loads(variant)
                self.assertLess(tracemalloc.get_traced_memory()[1], (160 << 20) + 8 * len(variant))
            finally:
                tracemalloc.stop()
            self.assertNotIn('\n', str(caught.exception))
            self.assertLess(time.monotonic() - start, 15)

    def test_code(self):
        target = os.path.join(self.get_temp_dir(), 'executed')
        text = f'touch {target}'.encode()
        call = b'(U' + bytes([len(text)]) + text + b'tR.'
        for name in [b'cos\nsystem\n', b'cposix\nsystem\n', b'cbuiltins\neval\n', b'cbuiltins\nexec\n',
                     b'ctorch\nload\n', b'ctorch.hub\nload\n', b'ctorch.jit\nload\n',
                     b'ctorch.utils.cpp_extension\nload\n', b'cdnnlib.util\ncall_func_by_name\n',
                     b'cbuiltins\ngetattr\n', b'c__torch__\nos.system\n', b'ctorch.serialization\nload\n']:
            self.assert_refused(HEAD + name + call)
        for data in [b'ctorch\nFloatStorage\n' + call, b'ctorch.nn.modules.linear\nLinear\n' + call,
                     b'ctorch.nn.parameter\nParameter\n' + call, b'ctorch\nfloat32\n' + call,
                     b'cargparse\nNamespace\n' + call,
                     b'cdnnlib.tflib.network\nNetwork\n)\x81}b.',
                     b'ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\ncos\nsystem\n)}tR.',
                     b'ctorch._tensor\n_rebuild_from_type_v2\n(ctorch.nn.modules.linear\nLinear\nNU\x02ls\x85}tR.',
                     b'\x82\x01.', b'(ios\nsystem\n.', b'Pid\n.']:
            self.assert_refused(HEAD + data)
        self.assertFalse(os.path.exists(target))

    def test_tensors_beyond_their_storage(self):
        good = tensor(from_bytes(stored()))
        self.assertEqual(loads(HEAD + good + b'.').tobytes(), bytes(range(16)))
        huge = b'\x8a\x08' + struct.pack('<q', 1 << 60)
        for bad in [tensor(from_bytes(stored()), offset=b'K\x01'),
                    tensor(from_bytes(stored()), shape=b'K\x05\x85'),
                    tensor(from_bytes(stored()), stride=b'K\x02\x85'),
                    tensor(from_bytes(stored()), offset=b'J\xff\xff\xff\xff'),
                    tensor(from_bytes(stored()), stride=b'J\xff\xff\xff\xff\x85'),
                    tensor(from_bytes(stored()), shape=huge + b'\x85'),
                    tensor(from_bytes(stored()), shape=huge + b'\x85', stride=b'K\x00\x85'),    # expanded
                    tensor(from_bytes(stored()), shape=huge + huge + b'\x86', stride=b'K\x00K\x00\x86'),
                    tensor(from_bytes(stored()), shape=b'K\x04K\x01\x86'),
                    tensor(from_bytes(stored()), shape=b']'), tensor(b'N'), tensor(b'K\x04'),
                    tensor(from_bytes(stored(bytes(8)))),
                    tensor(from_bytes(stored(count=5))),
                    tensor(from_bytes(from_bytes(stored()))),
                    tensor(from_bytes(LEGACY + HEAD + from_bytes(stored()) + b'.\x80\x02].')),
                    ]:
            self.assert_refused(HEAD + bad + b'.', wrap=False)

    def test_zip(self):
        pid = HEAD + tensor(storage_id()) + b'.'
        self.assertEqual(loads(archive(pid, {'data/0': bytes(16)})).shape, (4,))
        big = np.arange(4, dtype='>f4')
        self.assertAllEqual(loads(archive(pid, {'data/0': big.tobytes(), 'byteorder': b'big'})), np.arange(4))
        for data, regex in [
            (archive(pid), "no entry 'data/0'"), (archive(pid, {'data/0': bytes(12)}), 'beyond its storage'),
            (archive(HEAD + tensor(storage_id(b'../../x')) + b'.'), 'valid key'),
            (archive(pid, {'data/0': bytes(300 << 20)}, zipfile.ZIP_DEFLATED), 'unfolds'),
            (archive(pid)[:40], 'damaged'), (b'PK\x03\x04' + bytes(100), 'damaged'),
            (archive(pid, folder='a/b'), 'another ZIP'), (b'', 'empty'), (b'<html>', 'web page'),
            (b'hello', 'something else'),
            (archive(HEAD + storage_id(kind=b'ctorch\nfloat32\n') + b'.', {'data/0': b''}), 'without a type'),
        ]:
            self.assert_refused(data, regex, wrap=False)

    def test_floods(self):
        """Small files that describe much work or memory."""
        inner = LEGACY + HEAD + b'N0' * 30000 + storage_id() + b'.\x80\x02].'
        shared = b'B' + struct.pack('<I', len(inner)) + inner + b'q\x000'
        call = b'ctorch.storage\n_load_from_bytes\nq\x010'
        self.assert_refused(HEAD + shared + call + b'h\x01h\x00\x85R0' * 2000 + b'.', wrap=False)
        blob = stored(bytes(200), 50)
        one = tensor(from_bytes(blob), shape=b'K\x64K\x64K\x64\x87', stride=b'K\x00K\x00K\x00\x87')
        self.assert_refused(HEAD + b'(' + one * 20 + b't.', 'unfolds', wrap=False)
        nest = b']q\x00' + b''.join(b'0](h%ch%ceq%c' % (i, i, i + 1) for i in range(60))
        self.assert_refused(HEAD + nest + b'.', 'nested', wrap=False)
        self.assert_refused(HEAD + nest + b'.')
        for name in b'ctorch\ndevice\n', b'ctorch\nSize\n', b'cbuiltins\nset\n':
            self.assert_refused(HEAD + nest + name + b'h\x3c\x85R.')
        tuples = b')q\x00' + b''.join(b'0(h%ch%ctq%c' % (i, i, i + 1) for i in range(60))
        self.assert_refused(LEGACY + HEAD + b'N.' + HEAD + tuples + b'0h\x3c\x85.', 'valid key', wrap=False)
        self.assert_refused(HEAD + b']' * 100_000 + b'a' * 99_999 + b'.', wrap=False)
        self.assert_refused(HEAD + b'\x8fq\x00(h\x00\x90.', 'nested', wrap=False)      # a set in itself
        self.assert_refused(HEAD + b'\x8f' + b'q\x000\x8f(h\x00h\x00\x90' * 60 + b'.', 'nested', wrap=False)

    def test_damaged_modules(self):
        persistent = b'ctorch_utils.persistence\n_reconstruct_persistent_obj\n'
        named = persistent + b'}(U\x04typeU\x05classU\x0aclass_nameU\x01GU\x05state'
        for data in [persistent + b'N\x85R.', persistent + b'}\x85R.',
                     persistent + b'}U\x04typeU\x05classs\x85R.', named + b']u\x85R.',
                     named + b'}U\x0b_parameters]su\x85R.', b'ctorch.nn.modules.linear\nLinear\n)\x81.',
                     b'ctorch.nn.modules.linear\nLinear\n)\x81]b.']:
            self.assert_refused(HEAD + data)


class DamageTest(tf.test.TestCase):
    """Damaged copies load or raise UserError, and nothing else."""

    def check(self, data):
        start = time.monotonic()
        try:
            loads(data)
            return True
        except UserError as error:
            self.assertNotIn('\n', str(error))
            return False
        finally:
            self.assertLess(time.monotonic() - start, 5)

    def mutate(self, data, rnd):
        data = bytearray(data)
        for _ in range(rnd.choice([1, 1, 2, 5])):
            pos = rnd.randrange(2, len(data))
            kind = rnd.randrange(4)
            if kind == 0:
                data[pos] = rnd.randrange(256)
            elif kind == 1:
                del data[pos:pos + rnd.randrange(1, 9)]
            elif kind == 2:
                start = rnd.randrange(len(data))
                data[pos:pos] = data[start:start + rnd.randrange(1, 60)]
            else:
                data[pos] = ord(rnd.choice('(.012NRQb}]tuesa\x81\x85\x86\x8f\x90\x93\x94'))
        return bytes(data)

    def mutations(self, count, seed):
        rnd = random.Random(seed)
        files = [path.read_bytes() for path in sorted(DATA.iterdir())
                 if path.suffix in ('.pth', '.pt', '.pkl') and path.stat().st_size < 20000]
        loaded = 0
        for index in range(count):
            data = files[index % len(files)]
            if data.startswith(b'PK') and index % 4:
                loaded += self.check(repacked(data, lambda content: self.mutate(content, rnd)))
            else:
                loaded += self.check(self.mutate(data, rnd))
        self.assertBetween(loaded, 1, count - 1)

    def test_mutations(self):
        self.mutations(1200, 1)

    @pytest.mark.slow
    def test_many_mutations(self):
        self.mutations(100_000, 2)

    def test_truncated(self):
        for name in 'tiny_zip.pth', 'tiny_legacy.pth', 'plain_p4.pkl':
            data = pathlib.Path(DATA / name).read_bytes()
            for end in range(1, len(data), 23):
                self.assertFalse(self.check(data[:end]), (name, end))

    def test_message_names_the_file(self):
        path = os.path.join(self.get_temp_dir(), 'bad.pth')
        pathlib.Path(path).write_bytes(pickle.dumps(os.system))
        with self.assertRaisesRegex(UserError, r"bad\.pth: refused: .* asks for '(posix|nt)\.system'"):
            load_torch(path)


if __name__ == '__main__':
    unittest.main()
