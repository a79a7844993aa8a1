"""convert.py: what it writes is the same network when read; mistakes and damaged files give one line."""

import contextlib
import io
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import unittest

import numpy as np
from safetensors.numpy import load_file, safe_open

import convert
import run_generator
from dnnlib import tflib
from dnnlib.tflib import legacy, torch_pickle
from dnnlib.tflib.conversion import config, keras_weights, pytorch, saved_model, tensors
from dnnlib.util import UserError
from tests import testutil
from tests.test_legacy import Base, sample

TORCH = testutil.DATA / 'torch'
SNAPSHOT = testutil.golden('training', 'stylegan2_f_init.pkl')

# Loads a SavedModel with TensorFlow alone.
SERVE = '''
import json, sys
import numpy as np, tensorflow as tf
result = {}
for name, folder in json.loads(sys.argv[1]).items():
    data = np.load(folder + '.npz')
    sample = tf.saved_model.load(folder).signatures['serving_default']
    def run(count):
        images = sample(z=tf.constant(data['z'][:count]), label=tf.constant(data['label'][:count]),
                        truncation_psi=tf.constant(data['psi']))
        assert list(images) == ['images'] and images['images'].dtype == tf.uint8
        return images['images'].numpy()
    images = run(None)
    assert images.shape == data['images'].shape, images.shape
    result[name] = [int(np.abs(images.astype(int) - data['images']).max()),
                    float((images != data['images']).mean()),
                    int(np.abs(run(1).astype(int) - images[:1]).max()), int((run(None) != images).any())]
assert not any(name.split('.')[0] in ('dnnlib', 'training', 'custom_ops') for name in sys.modules)
print(json.dumps(result))
'''


def run(*args, main=convert.main):
    """(status, stdout, stderr) of a command line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(['convert.py', *map(str, args)])
            status = 0
        except SystemExit as exit:
            status = exit.code or 0
    return status, out.getvalue(), err.getvalue()


class ConvertBase(Base):

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = pathlib.Path(folder.name)

    def converted(self, *args):
        status, out, err = run(*args)
        self.assertEqual((status, err), (0, ''), err)
        return out

    def assert_fails(self, regex, *args, main=convert.main):
        status, _, err = run(*args, main=main)
        self.assertEqual(status, 2, err)
        self.assertRegex(err, regex)
        self.assertEqual(err.count('\n'), 1, err)
        self.assertNotIn('Traceback', err)

    def assert_same_content(self, actual, expected):
        self.assertIs(type(actual), type(expected))
        for one, other in zip(legacy.network_states(actual), legacy.network_states(expected), strict=True):
            self.assert_network(one, other)
            self.assertEqual(one.class_name, other.class_name)


class ConvertTest(ConvertBase):

    def test_safetensors(self):
        files = [('training', 'stylegan2_f_init.pkl'), ('stylegan', 'f_cond5_32.pkl'),
                 ('progan', 'paper_label10_32.pkl'), ('stylegan2', 'bcd_revised_uncond_32.pkl')]
        files = [path for path in (testutil.golden(*parts) for parts in files) if os.path.exists(path)]
        for path in files:
            out, back = self.dir / 'x.safetensors', self.dir / 'x.pkl'
            self.converted('pickle-to-safetensors', path, f'--out={out}', '--overwrite')
            self.converted('safetensors-to-pickle', out, f'--out={back}', '--overwrite')
            content = legacy.load_pkl(path)
            self.assert_same_content(legacy.load_pkl(back), content)
            (self.dir / 'x.json').unlink()
            self.assert_same_content(tensors.read(str(out)), content)   # From the header alone.
            arrays = load_file(out)
            names = {f'{role}/{key}' for role, state in zip(('G', 'D', 'Gs'), content, strict=True)
                     for key in state.all_variables()}
            self.assertEqual(set(arrays), names)

    def test_trainable_flags(self):
        for name, kwargs in [('stylegan2.G_main', {}), ('stylegan.G_style', {}), ('stylegan.D_basic', {}),
                             ('stylegan2.D_stylegan2', {}), ('progan.G_paper', {})]:
            network = tflib.Network('N', f'training.networks_{name}', resolution=8, fmap_base=32, fmap_max=4,
                                    **kwargs)
            trainable = {key for key in network.vars if config.is_trainable(key)}
            self.assertEqual(trainable, set(network.trainables))

    def test_values_that_json_lacks(self):
        state = sample()
        state.static_kwargs |= {'tuple': (1, (2,)), 'nan': float('nan'), 'inf': [float('-inf')],
                                'ints': {1: 'a'},
                                'tag': {'array': 'x'}, 'float': {'float': 1}, 'small': 5e-324,
                                'big': 10 ** 40}
        state.extra = {'more': np.arange(3), 'key': [1]}
        state.key_order = (*state.key_order[::-1], 'more', 'key')
        for content in state, [state, state], {'a': state, 'b': (1, 2.5)}, (state,):
            document, arrays = config.encode(content)
            back = config.decode(json.loads(json.dumps(document, allow_nan=False)), arrays)
            self.assertIs(type(back), type(content))
            one, other = legacy.network_states(back)[0], state
            self.assertEqual(repr(one.static_kwargs), repr(other.static_kwargs))
            self.assertEqual((one.key_order, list(one.extra)), (other.key_order, list(other.extra)))
            self.assert_network(one.components['mapping'], other.components['mapping'])

    def test_keras(self):
        out = self.dir / 'gs.weights.h5'
        self.converted('pickle-to-keras', SNAPSHOT, f'--out={out}')
        state = legacy.find_network(legacy.load_pkl(SNAPSHOT), 'Gs')
        network = tflib.Network.from_state(state)
        other = network.clone()
        for variable in other.vars.values():
            variable.assign(variable * 0 - 1)
        keras_weights.load(other, str(out))
        self.assertEqual(len(other.vars), len(network.vars))
        for key in network.vars:
            self.assertAllEqual(other.get_var(key), network.get_var(key))
        model = keras_weights.as_model(other.layer)
        model.load_weights(out)                                 # Keras' own.
        self.converted('keras-to-pickle', out, f'--out={self.dir / "back.pkl"}')
        self.assert_network(legacy.load_pkl(self.dir / 'back.pkl'), state)
        out_flag = f'--out={self.dir}/y.pkl'
        self.assert_fails('do not fit', 'keras-to-pickle', self.damaged_config(out), out_flag)
        (self.dir / 'bad.weights.h5').write_bytes(out.read_bytes()[:2000])
        shutil.copy(self.dir / 'gs.json', self.dir / 'bad.json')
        self.assert_fails('damaged', 'keras-to-pickle', self.dir / 'bad.weights.h5', out_flag)

    def damaged_config(self, weights):
        """A copy of a weights file beside the JSON document of a discriminator."""
        copy = self.dir / 'copy.weights.h5'
        shutil.copy(weights, copy)
        document, _ = config.encode(legacy.find_network(legacy.load_pkl(SNAPSHOT), 'D'))
        (self.dir / 'copy.json').write_text(json.dumps(document))
        return copy

    def test_savedmodel(self):
        cases = {'stylegan2': ('stylegan2_f_init.pkl', 'const'),
                 'progan': ('progan_label4_init.pkl', 'const'),
                 'random': ('stylegan_init.pkl', 'random')}
        earlier = self.dir / 'random'       # A SavedModel of an earlier call.
        earlier.mkdir()
        for name in saved_model.METADATA_NAME, 'saved_model.pb', 'old':
            (earlier / name).write_text('x')
        self.assert_fails('exists', 'pickle-to-savedmodel', SNAPSHOT, f'--out={earlier}')
        folders = {}
        for name, (file, noise) in cases.items():
            path = testutil.golden('training', file)
            folder = earlier if name == 'random' else self.dir / 'models' / name / '1'   # With its parents.
            out = self.converted('pickle-to-savedmodel', path, f'--out={folder}', f'--noise={noise}',
                                 '--overwrite')
            self.assertIn('takes   z: float32 [N, 16]', out)
            self.assertEqual('no intermediate latents' in out, name == 'progan')
            network = tflib.Network.from_state(legacy.find_network(legacy.load_pkl(path), 'Gs'))
            z = np.random.RandomState(1).randn(5, network.input_shape[1]).astype('f4')
            label_size = network.input_shapes[1][1]
            label = np.eye(max(label_size, 1), dtype='f4')[[0] * 5][:, :label_size]
            options = {} if name == 'progan' else dict(truncation_psi=0.6, randomize_noise=False)
            images = network.run(z, label, output_transform=dict(
                func=tflib.convert_images_to_uint8, nchw_to_nhwc=True), **options)
            self.assertGreater(images.std(), 1)
            np.savez(f'{folder}.npz', z=z, label=label, psi=np.float32(0.6), images=images)
            folders[name] = str(folder)
        self.assertFalse((earlier / 'old').exists())
        self.assertCountEqual(os.listdir(self.dir), ['random', 'random.npz', 'models'])
        for name in os.listdir(self.dir / 'models'):
            self.assertCountEqual(os.listdir(self.dir / 'models' / name), ['1', '1.npz'])
        env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
        process = subprocess.run([sys.executable, '-P', '-c', SERVE, json.dumps(folders)], cwd='/',
                                 capture_output=True, text=True, env=env)
        self.assertEqual(process.returncode, 0, process.stderr[-2000:])
        result = json.loads(process.stdout)
        for name in 'stylegan2', 'progan':
            most, changed, single, again = result[name]
            self.assertLessEqual(most, 1, name)             # Rounding of another batch size or function.
            self.assertLess(changed, 0.01, name)
            self.assertLessEqual(single, 1, name)
            self.assertEqual(again, 0, name)
        self.assertGreater(result['random'][3], 0)

    def test_savedmodel_removes_nothing_of_others(self):
        other = self.dir / 'mine'
        other.mkdir()
        (other / 'thesis.txt').write_text('x')
        self.assert_fails('no SavedModel', 'pickle-to-savedmodel', SNAPSHOT, f'--out={other}', '--overwrite')
        self.assertTrue((other / 'thesis.txt').exists())

    def test_pytorch(self):
        for name in 'ada_skip_resnet', 'ada_resnet_skip':
            out = self.dir / f'{name}.pkl'
            self.converted('pytorch-to-pickle', TORCH / f'{name}.pkl', f'--out={out}')
            with np.load(TORCH / f'{name}.npz') as file:
                expected = dict(file)
            G, D, Gs = (tflib.Network.from_state(state) for state in legacy.load_pkl(out))
            for network, role in (G, 'G'), (Gs, 'Gs'):
                for psi, suffix in ((1, ''), (0.6, '_psi0.6'))[:2 if role == 'Gs' else 1]:
                    target = expected[f'{role}_image{suffix}']
                    images, w = network.run(expected['z'][:len(target)], None, truncation_psi=psi,
                                            randomize_noise=False, return_dlatents=True)
                    testutil.assert_close(self, images, target, 0, 5e-6, msg=f'{name} {role} {psi}')
                    if psi == 1:
                        testutil.assert_close(self, w[:2, 0], expected[f'{role}_w'][:2], 0, 2e-6)
            scores = D.run(expected['Gs_image'], None)
            testutil.assert_close(self, scores, expected['scores'], 0, 5e-6)
            for network in G, D:    # Same variables in the same order as networks made here.
                state, made = network.state(), tflib.Network('N', network.func_name, **network.static_kwargs)
                self.assertEqual(list(made.vars), list(network.vars))
                self.assertEqual(list(state.all_variables()), list(made.state().all_variables()))
            status, text, _ = run('info', TORCH / f'{name}.pkl')
            self.assertEqual(status, 0)
            self.assertIn('G_ema: Generator', text)

    def test_pytorch_refused(self):
        for name, regex in [('ada_conditional.pkl', 'conditional'), ('tiny_zip.pth', 'other names'),
                            ('tiny_torchscript.pt', 'other names'),
                            ('plain_p4.pkl', 'state dict|other names')]:
            self.assert_fails(regex, 'pytorch-to-pickle', TORCH / name, f'--out={self.dir}/x.pkl')
        self.assert_fails('Network', 'pytorch-to-pickle', SNAPSHOT, f'--out={self.dir}/x.pkl')
        self.assertEqual(os.listdir(self.dir), [])

    def test_pytorch_damaged(self):
        """Each tensor missing or of another shape: refused, or left to the check of the whole network."""
        content = torch_pickle.load_torch(TORCH / 'ada_resnet_skip.pkl')
        arrays = {key: torch_pickle.state_dict(content[key]) for key in ('G', 'D')}
        for key, own in arrays.items():
            for name in own:
                for value in (None, np.float32(1), np.zeros([0, 3], 'f4'), np.zeros(3, int), np.ones(9, 'f4'),
                              np.ones([2] * 5, 'f4'), np.full([4, 4], np.nan, 'f4')):
                    changed = {item: array for item, array in own.items() if item != name}
                    if value is not None:
                        changed[name] = np.asarray(value)
                    try:
                        states, _ = pytorch.to_network_states({**arrays, key: changed})
                    except UserError as error:
                        self.assertNotIn('\n', str(error))
                    else:
                        self.assertEqual(set(states), {'G', 'D'})

    def test_later_generation(self):
        content = legacy.load_pkl(SNAPSHOT)
        for state in content:
            state.version = 5
        path = self.dir / 'ada.pkl'
        legacy.save_pkl(content, path)
        out = f'--out={self.dir}/x'
        for args in ['pickle-to-keras', path, f'{out}.weights.h5'], ['pickle-to-savedmodel', path, out]:
            self.assert_fails('StyleGAN2-ADA', *args)
        self.assert_fails('StyleGAN2-ADA', 'generate-images', f'--network={path}', '--seeds=1',
                          main=run_generator.main)

    def test_info(self):
        text = self.converted('info', SNAPSHOT)
        for line in ('Gs: G_main, state version 4 (StyleGAN2)', 'G_synthesis: G_synthesis_stylegan2',
                     'resolution'):
            self.assertIn(line, text)
        self.converted('pickle-to-safetensors', SNAPSHOT, f'--out={self.dir / "a.safetensors"}')
        self.assertIn('D: D_stylegan2', self.converted('info', self.dir / 'a.safetensors'))
        self.converted('pickle-to-keras', SNAPSHOT, f'--out={self.dir / "a.weights.h5"}', '--overwrite')
        self.assertIn('Gs: G_main', self.converted('info', self.dir / 'a.weights.h5'))
        self.assertIn('float16', self.converted('info', TORCH / 'tiny_zip.pth'))
        self.assert_fails('expected', 'info', TORCH / 'module.npz')

    def test_mistakes(self):
        pkl = self.dir / 'in.pkl'
        shutil.copy(SNAPSHOT, pkl)
        (self.dir / 'taken.pkl').write_bytes(b'mine')
        (self.dir / 'taken.json').write_bytes(b'mine')
        for regex, *args in [
            ('expected a command',), ('did you mean', 'pickle-to-safetensor'),
            ('FILE', 'pickle-to-safetensors'),
            ('No such file', 'info', self.dir / 'none.pkl'),
            ('No such file', 'pickle-to-keras', self.dir / 'none.pkl'),
            ('ends in .safetensors', 'pickle-to-safetensors', pkl, f'--out={self.dir}/x.pkl'),
            ('no directory', 'pickle-to-safetensors', pkl, f'--out={self.dir}/no/x.safetensors'),
            ('exists', 'pytorch-to-pickle', pkl, f'--out={self.dir}/taken.pkl'),
            ('exists', 'pickle-to-safetensors', pkl, f'--out={self.dir}/taken.safetensors'),
            ('file to convert', 'safetensors-to-pickle', pkl, f'--out={pkl}', '--overwrite'),
            ('one of', 'pickle-to-savedmodel', pkl, '--noise=some'),
            ('one of', 'pickle-to-savedmodel', pkl, '--network=D'),
            ('expected a safetensors file', 'safetensors-to-pickle', pkl, f'--out={self.dir}/x.pkl'),
            ('weights.h5', 'keras-to-pickle', pkl, f'--out={self.dir}/x.pkl'),
            ('PyTorch', 'pickle-to-safetensors', TORCH / 'ada_skip_resnet.pkl',
             f'--out={self.dir}/x.safetensors'),
        ]:
            self.assert_fails(regex, *args)
        self.assertEqual(sorted(os.listdir(self.dir)), ['in.pkl', 'taken.json', 'taken.pkl'])
        self.assertEqual((self.dir / 'taken.json').read_bytes(), b'mine')

    def test_default_names(self):
        with contextlib.chdir(self.dir):
            self.assertIn('stylegan2_f_init.safetensors and stylegan2_f_init.json',
                          self.converted('pickle-to-safetensors', SNAPSHOT))
            self.converted('safetensors-to-pickle', 'stylegan2_f_init.safetensors')
            self.assert_fails('--overwrite', 'safetensors-to-pickle', 'stylegan2_f_init.safetensors')
        self.assertLen(os.listdir(self.dir), 3)

    def test_script_says_nothing_of_tensorflow(self):
        process = subprocess.run(
            [sys.executable, 'convert.py', 'pickle-to-safetensors', SNAPSHOT,
             f'--out={self.dir}/a.safetensors'], cwd=testutil.ROOT, capture_output=True, text=True)
        self.assertEqual((process.returncode, process.stderr), (0, ''))

    def test_help_without_tensorflow(self):
        code = 'import sys, convert\ntry: convert.main(["convert.py", *sys.argv[1:]])\n' \
               'except SystemExit: assert "tensorflow" not in sys.modules'
        for args in ['--help'], ['pickle-to-savedmodel', '--help'], ['info', 'none.pkl'], []:
            process = subprocess.run([sys.executable, '-c', code, *args], cwd=testutil.ROOT,
                                     capture_output=True, text=True)
            self.assertEqual(process.returncode, 0, process.stderr)
            if args[-1:] == ['--help']:
                self.assertIn('examples:', process.stdout)


class DamagedTest(ConvertBase):
    """Damaged files on command lines, all in one process."""

    def damaged(self, data, count, seed):
        rnd = random.Random(seed)
        yield b''
        yield data[:len(data) // 2]
        yield rnd.randbytes(1000)
        yield b'\x80\x04cos\nsystem\n\x8c\x02ls\x85R.'
        for _ in range(count):
            changed = bytearray(data)
            for _ in range(20):
                changed[rnd.randrange(min(len(data), 3000))] = rnd.randrange(256)
            yield bytes(changed)

    def check(self, main, *args):
        status, _, err = run(*args, main=main)
        self.assertIn(status, (0, 2), err)
        if status:
            self.assertEqual(err.count('\n'), 1, err)
            self.assertNotIn('Traceback', err)
        return status

    def test_damaged_files(self):
        path = self.dir / 'bad.pkl'
        statuses = []
        for data in self.damaged(pathlib.Path(SNAPSHOT).read_bytes(), 20, 1):
            path.write_bytes(data)
            statuses += [
                self.check(convert.main, 'info', path),
                self.check(convert.main, 'pickle-to-safetensors', path, f'--out={self.dir}/a.safetensors',
                           '--overwrite'),
                self.check(convert.main, 'pytorch-to-pickle', path, f'--out={self.dir}/b.pkl', '--overwrite'),
                self.check(run_generator.main, 'generate-images', f'--network={path}', '--seeds=1',
                           f'--result-dir={self.dir}/results')]
        for name in 'ada_skip_resnet.pkl', 'tiny_zip.pth', 'tiny_legacy.pth':
            for data in self.damaged((TORCH / name).read_bytes(), 12, 2):
                path.write_bytes(data)
                statuses += [self.check(convert.main, 'info', path),
                             self.check(convert.main, 'pytorch-to-pickle', path, f'--out={self.dir}/b.pkl',
                                        '--overwrite')]
        self.assertGreater(statuses.count(2), len(statuses) // 2)

    def test_damaged_safetensors(self):
        good = self.dir / 'good.safetensors'
        tensors.write(sample(), str(good))
        text = (self.dir / 'good.json').read_text()
        with safe_open(good, 'np') as file:
            self.assertEqual(json.loads(file.metadata()['config']), json.loads(text))
        bad = self.dir / 'bad.safetensors'
        for data in self.damaged(good.read_bytes(), 30, 3):
            bad.write_bytes(data)
            self.check(convert.main, 'safetensors-to-pickle', bad, f'--out={self.dir}/x.pkl', '--overwrite')
            self.check(convert.main, 'info', bad)
        shutil.copy(good, bad)
        rnd = random.Random(4)
        documents = ['', '[]', '{}', 'null', '[' * 100000, text.replace('"version": 1', '"version": 2', 1),
                     text.replace('"float32"', '"float16"', 1), text.replace('"array": "', '"array": "no'),
                     text.replace('"components"', '"x"'), text.replace('"variables": [', '"variables": [5,')]
        for _ in range(30):
            changed = list(text)
            for _ in range(3):
                changed[rnd.randrange(len(changed))] = rnd.choice('[]{}",:1a ')
            documents.append(''.join(changed))
        for document in documents:
            (self.dir / 'bad.json').write_text(document)
            self.check(convert.main, 'safetensors-to-pickle', bad, f'--out={self.dir}/x.pkl', '--overwrite')
        with self.assertRaisesRegex(UserError, r'bad\.safetensors'):
            (self.dir / 'bad.json').write_text('{}')
            tensors.read(str(bad))


if __name__ == '__main__':
    unittest.main()
