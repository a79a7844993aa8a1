"""Published weights of BigGAN: each form gives the golden images; round trips are exact; mistakes told."""

import io
import json
import pathlib
import tempfile

import numpy as np
import tensorflow as tf

from dnnlib import tflib
from dnnlib.tflib import legacy, torch_pickle, torch_writer
from dnnlib.tflib.conversion import biggan, biggan_export, biggan_import, biggan_sources, config
from dnnlib.util import UserError
from tests import biggan_testutil as golden
from tests import testutil
from tests.test_convert import run
from training import networks_biggan, networks_biggan_deep
from training.layers import unused_initial_values

TORCH = testutil.DATA / 'torch'
TRAINABLE = ('weight', 'bias', 'gain', 'gamma')
TINY = dict(resolution=32, label_size=6, ch=8, latent_size=8, shared_dim=4, attention=[32])


def layer_of(state):
    """The layer of a network."""
    network_class = vars(networks_biggan).get(state.build_func_name) or networks_biggan_deep.G_biggan_deep
    with unused_initial_values():
        layer = network_class(**state.static_kwargs)
    testutil.set_variables(layer, dict(state.variables))
    return layer


def images_of(state, arrays, **options):
    """What a network makes of the inputs of a golden file, NCHW."""
    labels = golden.one_hot(arrays['in/y'], state.static_kwargs['label_size'])
    return testutil.nchw(layer_of(state)(tf.constant(arrays['in/z']), tf.constant(labels), **options).numpy())


def tiny_state(role='G', seed=0, **kwargs):
    """A small network of ours with random values."""
    function = {'G': 'G_biggan', 'Gs': 'G_biggan', 'D': 'D_biggan'}[role]
    kwargs = {**TINY, **kwargs}
    if role == 'D':
        kwargs = {key: kwargs[key] for key in ('resolution', 'label_size', 'ch')}
    rnd = np.random.RandomState(seed)
    values = [(name, rnd.uniform(0.1, 1, shape).astype(np.float32) if shape else np.float32(0.5))
              for name, shape in biggan.network_shapes(function, kwargs).items()]
    return legacy.NetworkState(role, function, kwargs, variables=values)


class Base(tf.test.TestCase):

    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = pathlib.Path(folder.name)

    def write(self, name, arrays):
        """A .pth file with these arrays."""
        with open(self.dir / name, 'wb') as file:
            torch_writer.write_state_dict(arrays, file)
        return str(self.dir / name)

    def load(self, *paths, **options):
        return biggan_import.load([str(path) for path in paths], **options)[0]

    def assert_same(self, state, other):
        self.assertEqual([name for name, _ in state.variables], [name for name, _ in other.variables])
        for name, value in state.variables:
            self.assertAllEqual(value, dict(other.variables)[name], name)

    def assert_error(self, function, *fragments):
        with self.assertRaises(UserError) as caught:
            function()
        self.assertNotIn('\n', str(caught.exception))
        for fragment in fragments:
            self.assertIn(fragment, str(caught.exception))


class TorchTest(Base):

    @golden.needs_golden
    def test_golden(self):
        for name in ('r32_flat', 'r32_hier', 'r128_hier_attn'):
            arrays = golden.load(name)
            with self.subTest(name):
                start = {role: golden.below(arrays, role) for role in 'GD'}
                states = self.load(self.write('G.pth', start['G']), self.write('D.pth', start['D']))
                self.assertEqual(list(states), ['G', 'D', 'Gs'])
                self.check_golden(states, arrays)
                expected = golden.generator_args(arrays)
                for key in ('resolution', 'label_size', 'ch', 'latent_size', 'hierarchical', 'shared_dim',
                            'attention', 'bn_epsilon', 'final_bn_epsilon', 'sn_epsilon'):
                    self.assertEqual(states['G'].static_kwargs[key], expected[key], key)
                self.assertEqual(states['D'].static_kwargs['attention'],
                                 golden.discriminator_args(arrays)['attention'])
                for role in 'GD':   # And back, exactly.
                    exported = biggan_export.to_state_dict(states[role])
                    self.assertEqual(set(exported), set(start[role]))
                    for key, value in start[role].items():
                        self.assertEqual(exported[key].shape, value.shape)
                        if not key.endswith('sv0'):
                            self.assertAllEqual(exported[key], value, key)

    def check_golden(self, states, arrays):
        self.assert_same(states['G'], states['Gs'])
        self.assertAllClose(images_of(states['G'], arrays), arrays['eval/G_images'], rtol=0, atol=2e-5)
        D = layer_of(states['D'])
        for images, labels, scores in [('eval/G_images', 'in/y', 'eval/D_fake'),
                                       ('in/x', 'in/y_real', 'eval/D_real')]:
            found = D(testutil.nhwc(arrays[images]), tf.constant(golden.one_hot(arrays[labels])))
            self.assertAllClose(found, arrays[scores], rtol=1e-4, atol=1e-4)

    @golden.needs_golden
    def test_files_of_torch(self):
        """Both containers, as PyTorch wrote them, in half precision."""
        states = self.load(TORCH / 'biggan_r32_G_legacy.pth', TORCH / 'biggan_r32_D_zip.pth')
        arrays = golden.load('r32_unshared')
        self.check_golden(states, arrays)
        images = tflib.Network.from_state(states['Gs']).run(arrays['in/z'], golden.one_hot(arrays['in/y']))
        self.assertAllClose(images, arrays['eval/G_images'], rtol=0, atol=2e-5)
        self.assertEqual(states['G'].static_kwargs['shared_dim'], 0)
        self.assertEqual({value.dtype.name for state in states.values() for _, value in state.variables},
                         {'float32'})

    @golden.needs_golden
    def test_statistics_that_are_sums(self):
        arrays = golden.load('standing_r32_hier')
        values = {**golden.below(arrays, 'G'), **golden.below(arrays, 'after')}
        values.pop('G_images')
        weights, notes = biggan_import.load([self.write('G_ema.pth', values)])
        self.assertIn('sums of 4 passes', ' '.join(notes))
        self.assertAllClose(images_of(weights['Gs'], arrays), arrays['after/G_images'], rtol=0, atol=5e-5)

    def test_roles(self):
        arrays = biggan_export.to_state_dict(tiny_state('G'))
        other = biggan_export.to_state_dict(tiny_state('G', seed=1))
        d = biggan_export.to_state_dict(tiny_state('D'))
        for name, values in [('G.pth', arrays), ('G_ema.pth', other), ('D.pth', d)]:
            self.write(name, {f'module.{key}': value for key, value in values.items()})    # Of DataParallel.
        states = self.load(self.dir)
        self.assertEqual(list(states), ['G', 'D', 'Gs'])
        self.assert_same(states['G'], tiny_state('G'))
        self.assert_same(states['Gs'], tiny_state('G', seed=1))
        self.assert_same(states['D'], tiny_state('D'))
        self.assertEqual(list(self.load(self.dir / 'G.pth')), ['G'])
        states, notes = biggan_import.load([str(self.dir / 'D.pth'), str(self.dir / 'G_ema.pth')])
        self.assertEqual([state.name for state in states.values()], ['G', 'D', 'Gs'])
        self.assertIn('copy of Gs', ' '.join(notes))
        self.assert_error(lambda: self.load(self.dir, self.dir / 'G.pth'), 'another network G')
        self.write('D.pth', biggan_export.to_state_dict(tiny_state('D', label_size=7)))
        self.assert_error(lambda: self.load(self.dir), 'do not belong together', "'D': 7")

    def test_other_channels(self):
        """Multipliers that are in no table, one class, and gray images."""
        state = tiny_state('G', multipliers=[6, 4, 3, 2], label_size=0, num_channels=1, resolution=32,
                           attention=[])
        found = self.load(self.write('G.pth', biggan_export.to_state_dict(state)))['G']
        self.assert_same(found, state)
        keys = ('multipliers', 'ch', 'label_size', 'num_channels')
        self.assertEqual([found.static_kwargs[key] for key in keys], [[6, 4, 3, 2], 8, 0, 1])

    def test_what_export_loses(self):
        """With the arguments that are told, what was exported comes back as the same network."""
        G = tiny_state('G', bn_epsilon=1e-3)
        lost = biggan_export.lost_arguments(G)
        self.assertEqual(lost, {'sn_epsilon': 1e-4, 'bn_epsilon': 1e-3, 'final_bn_epsilon': 1e-3})
        again = self.load(self.write('G.pth', biggan_export.to_state_dict(G)), **lost)['G']
        self.assertEqual({key: again.static_kwargs[key] for key in lost}, lost)
        self.assertEqual(biggan_export.lost_arguments(tiny_state('D')), {'sn_epsilon': 1e-4})
        again = self.load(self.dir / 'G.pth')['G']
        self.assertEqual(biggan_export.lost_arguments(again), {})

    def test_misfits_are_named_together(self):
        arrays = biggan_export.to_state_dict(tiny_state('G'))
        del arrays['blocks.1.0.conv2.bias']
        arrays['blocks.0.0.bn1.stored_mean'] = np.ones([5], np.float32)
        arrays['blocks.2.0.bn2.stored_var'] = np.full([32], np.nan, np.float32)
        arrays['blocks.9.0.other'] = np.ones([1], np.float32)
        path = self.write('G.pth', arrays)
        self.assert_error(lambda: self.load(path), path, 'missing: blocks.1.0.conv2.bias', '(5,)',
                          'blocks.2.0.bn2.stored_var has values', 'superfluous: blocks.9.0.other')
        full = self.write('G.pth', biggan_export.to_state_dict(tiny_state('G')))
        self.assert_error(lambda: self.load(full, attention=[]), 'superfluous: blocks.2.1.gamma')
        self.assert_error(lambda: self.load(full, attention=[16]), 'missing: blocks.1.1.')
        self.assert_error(lambda: self.load(full, resolution=64), 'multipliers')
        self.assert_error(lambda: self.load(full, ch=7), 'ch = 7')
        arrays = biggan_export.to_state_dict(tiny_state('D'))   # Of which the last three blocks put out 8×8.
        arrays |= {f'blocks.{i}.1.theta.weight': np.ones([1, 8, 1, 1], np.float32) for i in range(4)}
        path = self.write('D.pth', arrays)
        self.assert_error(lambda: self.load(path), path, 'behind the blocks [0, 1, 2, 3], at [16, 8, 8, 8]')

    def test_network_pickle(self):
        path = str(self.dir / 'network.pkl')
        legacy.save_pkl((tiny_state('G'), tiny_state('D'), tiny_state('Gs')), path)
        self.assert_error(lambda: self.load(path), path, 'a network pickle, which needs no conversion')

    def test_other_files(self):
        for name, fragment in (('a', "'a'"), ('blocks.0.0.conv4.weight', 'BigGAN-deep of BigGAN-PyTorch')):
            path = self.write('x.pth', {name: np.zeros(3, np.float32)})
            self.assert_error(lambda path=path: self.load(path), 'x.pth', fragment)
        with open(self.dir / 'b.tar.gz', 'wb') as file:
            file.write(b'\x1f\x8b' + bytes(50))
        self.assert_error(lambda: self.load(self.dir / 'b.tar.gz'), 'unpack')
        for folder in ('empty', 'hub/variables'):
            (self.dir / folder).mkdir(parents=True)
        self.assert_error(lambda: self.load(self.dir / 'empty'), 'found nothing')
        self.assert_error(lambda: self.load(self.dir / 'hub'), 'variables.index')

    def test_damaged_arrays_never_crash(self):
        """Shapes of all kinds in places that the inference looks at."""
        good = biggan_export.to_state_dict(tiny_state('G'))
        rnd = np.random.RandomState(0)
        for key in ('linear.weight', 'shared.weight', 'blocks.0.0.bn1.gain.weight', 'blocks.0.0.conv1.weight',
                    'output_layer.2.weight', 'blocks.2.1.theta.weight', 'blocks.1.0.bn2.bias.u0'):
            for shape in ((), (3, 0), (16, 1, 1, 1)):
                path = self.write('bad.pth', {**good, key: np.asarray(rnd.randn(*shape), np.float32)})
                with self.subTest(f'{key} {shape}'), self.assertRaises(UserError):
                    self.load(path)

    def test_writer(self):
        rnd = np.random.RandomState(0)
        arrays = {f'{kind}.{i}': np.asarray(10 * rnd.randn(*shape)).astype(kind)
                  for kind in ('float32', 'float64', 'float16', 'int64', 'int32', 'uint8')
                  for i, shape in enumerate([(), (1,), (3, 4), (2, 1, 5), (0, 3)])}
        arrays['transposed'] = arrays['float32.2'].T
        file = io.BytesIO()
        torch_writer.write_state_dict(arrays, file)
        found = torch_pickle.loads(file.getvalue())
        self.assertEqual(list(found), list(arrays))
        for key, value in arrays.items():
            self.assertAllEqual(found[key], value)
            self.assertEqual((found[key].dtype, found[key].shape), (value.dtype, value.shape))
        with self.assertRaisesRegex(UserError, 'complex64'):
            torch_writer.write_state_dict({'x': np.zeros(2, np.complex64)}, io.BytesIO())


class HubTest(Base):
    """Folders like those of TF-Hub, written with names that are spelled out here."""

    def names(self, state):
        """{our variable: the module's}."""
        found = {'Embedding/weight': 'linear/w'}
        for leaf, other in (('weight', 'w'), ('bias', 'b'), ('u', 'u0')):
            found[f'Linear/{leaf}'] = f'Generator/G_Z/G_linear/{other}'
            found[f'Output/Conv/{leaf}'] = f'Generator/conv_2d/{other}'
            for i in range(9):
                block = 'Generator/GBlock' + (f'_{i}' if i else '')
                for ours, theirs in (('Conv0', 'conv0'), ('Conv1', 'conv1'), ('Shortcut', 'conv_sc')):
                    found[f'Block{i}/{ours}/{leaf}'] = f'{block}/{theirs}/{other}'
                for j, suffix in enumerate(('', '_1')):
                    found[f'Block{i}/BN{j}/gain/{leaf}'] = f'{block}/HyperBN{suffix}/gamma/{other}'
                    found[f'Block{i}/BN{j}/bias/{leaf}'] = f'{block}/HyperBN{suffix}/beta/{other}'
                    norm = f'{block}/CrossReplicaBN{suffix}'
                    found[f'Block{i}/BN{j}/moving_mean'] = f'{norm}/accumulated_mean'
                    found[f'Block{i}/BN{j}/moving_variance'] = f'{norm}/accumulated_var'
            for size in (32, 64):
                found[f'Attention_{size}x{size}/gamma'] = 'Generator/attention/gamma'
                for ours, theirs in (('theta', 'theta'), ('phi', 'phi'), ('g', 'g'), ('o', 'o_conv')):
                    found[f'Attention_{size}x{size}/{ours}/{leaf}'] = f'Generator/attention/{theirs}/{other}'
        found |= {'Output/BN/gain': 'Generator/ScaledCrossReplicaBN/gamma',
                  'Output/BN/bias': 'Generator/ScaledCrossReplicaBN/beta',
                  'Output/BN/moving_mean': 'Generator/ScaledCrossReplicaBNbn/accumulated_mean',
                  'Output/BN/moving_variance': 'Generator/ScaledCrossReplicaBNbn/accumulated_var'}
        return {ours: found[ours] for ours, _ in state}

    def write_module(self, variables, prefix='', averages=True, count=None):
        """A folder whose variables have these values; {name there: value}."""
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            values, rnd = {}, np.random.RandomState(0)
            for name, value in variables.items():
                trained = name.rpartition('/')[2] in ('w', 'b', 'gamma', 'beta', 'scale', 'offset')
                if trained and averages:
                    values[f'{name}/{averages}'] = value
                    value = rnd.randn(*np.shape(value))         # What the last step left, not the average.
                if name.endswith('/u0'):
                    value = value.reshape(1, -1)
                    values[name.replace('/u0', '/u1')] = rnd.randn(*value.shape)
                if name.endswith('/accumulated_mean') and count is not None:
                    values[name.replace('accumulated_mean', 'accumulation_counter')] = np.float32(count)
                values[name] = value
            for name, value in values.items():
                tf.compat.v1.get_variable(prefix + name, initializer=np.asarray(value, np.float32))
            tf.compat.v1.get_variable('global_step', initializer=np.int64(5))
            session.run(tf.compat.v1.global_variables_initializer())
            (self.dir / 'variables').mkdir(exist_ok=True)
            tf.compat.v1.train.Saver().save(session, str(self.dir / 'variables' / 'variables'),
                                            write_meta_graph=False)
        return self.dir

    @golden.needs_golden
    def test_golden(self):
        epsilons = dict(bn_epsilon=1e-5, final_bn_epsilon=1e-5, sn_epsilon=1e-6)
        for name, prefix in (('r64_hier_attn', 'module/'),):
            arrays = golden.load(name)
            ours = golden.convert('G', golden.below(arrays, 'G'), arrays['config'])
            names = self.names(ours.items())
            folder = self.write_module({names[key]: value for key, value in ours.items()}, prefix,
                                       'ema_b999900', 1)
            with self.subTest(name):
                state = self.load(folder, **epsilons)['Gs']
                self.assertAllClose(images_of(state, arrays), arrays['eval/G_images'], rtol=0, atol=2e-5)
                state = self.load(folder)['Gs']
                self.assertEqual([state.static_kwargs[key] for key in epsilons], [1e-4, None, 1e-4])
                self.assertEqual(state.static_kwargs['truncation_mode'], 'scale')

    def test_sums_of_statistics(self):
        """What the counter says is checked with the first layer, whose variances follow from its weights."""
        state = tiny_state('Gs', attention=[], seed=3)
        values = dict(state.variables)
        rnd = np.random.RandomState(1)
        # The bias is small beside what z adds, so that the variance of z decides.
        w, b = rnd.randn(2, 16 * 32).astype(np.float32), 0.01 * rnd.randn(16 * 32).astype(np.float32)
        u = np.linalg.svd(w)[2][0].astype(np.float32)       # Of the matrix [out, in].
        z = rnd.randn(200000, 2)
        z = z[(np.abs(z) < 2).all(1)]
        h = (z @ (w / np.linalg.svd(w)[1][0]) + b).reshape(-1, 32)
        values |= {'Linear/weight': w, 'Linear/bias': b, 'Linear/u': u,
                   'Block0/BN0/moving_mean': h.mean(0), 'Block0/BN0/moving_variance': h.var(0)}
        names = self.names(values.items())
        moments = [key for key in values if '/moving_' in key]
        for factor, count, note in ((100, 100, 'sums of 100'), (1, 100, 'means of 100'), (9, 100, 'be seen')):
            scaled = values | {key: values[key] * factor for key in moments}
            folder = self.write_module({names[key]: value for key, value in scaled.items()}, averages=False,
                                       count=count)
            states, notes = biggan_import.load([str(folder)])
            self.assertEqual(bool(notes), note is not None)
            self.assertIn(note or '', ' '.join(notes))
            found = dict(states['Gs'].variables)
            for key in moments:
                self.assertAllClose(found[key], values[key] * (9 if factor == 9 else 1), rtol=1e-5)

    def test_damage(self):
        values = dict(tiny_state('Gs', attention=[]).variables)
        names = self.names(values.items())
        folder = self.write_module({name: values[key] for key, name in names.items()
                                    if 'Block1/BN1' not in key}, averages=False)
        self.assert_error(lambda: self.load(folder), 'missing: Generator/GBlock_1/', '/HyperBN_1/gamma/w')
        data = next(folder.glob('variables/*.data-*'))
        data.write_bytes(data.read_bytes()[:-50])
        self.assert_error(lambda: self.load(folder), 'cannot be read')
        (folder / 'variables' / 'variables.index').write_bytes(b'nothing')
        self.assert_error(lambda: self.load(folder), 'cannot be read')


class DeepTest(Base):

    @golden.needs_golden
    def test_golden(self):
        arrays = golden.load('hf_deep_r64')
        self.write('biggan-deep-64-pytorch_model.bin', golden.below(arrays, 'P'))
        with open(self.dir / 'biggan-deep-64-config.json', 'w') as file:
            json.dump(arrays['config'], file)
        state = self.load(self.dir / 'biggan-deep-64-pytorch_model.bin')['Gs']
        # The published code swaps the two weights of an interpolation: 0.424 is what 0.436 should be.
        for truncation, name in ((1, '1.000'), (0.5, '0.500'), (0.436, '0.424'), (0.424, '0.436')):
            self.assertAllClose(images_of(state, arrays, truncation=truncation),
                                arrays[f'out/images_trunc_{name}'], rtol=0, atol=2e-5)
        exported = biggan_export.to_state_dict(state)
        self.assertEqual(set(exported), set(golden.below(arrays, 'P')))
        for key, value in golden.below(arrays, 'P').items():
            self.assertAllEqual(exported[key], value, key)
        self.assertEqual(list(self.load(self.dir)), ['Gs'])
        kwargs = state.static_kwargs
        self.assertEqual(kwargs['truncation_mode'], 'scale')
        self.assertEqual(kwargs['bn_epsilon'], arrays['config']['eps'])
        with open(self.dir / 'biggan-deep-64-config.json', 'w') as file:
            json.dump({**arrays['config'], 'eps': 1e-3}, file)
        self.assertEqual(self.load(self.dir)['Gs'].static_kwargs['bn_epsilon'], 1e-3)

    @golden.needs_golden
    def test_attention_within_a_stage(self):
        """It lies between the two blocks of a resolution: no network here has it there."""
        swapped = {'layers.5.': 'layers.6.', 'layers.6.': 'layers.5.'}
        arrays = {}
        for key, value in golden.below(golden.load('hf_deep_r64'), 'P').items():
            place = next((place for place in swapped if place in key), '')
            arrays[key.replace(place, swapped[place]) if place else key] = value
        path = self.write('swapped.bin', arrays)
        self.assert_error(lambda: self.load(path), 'attention before the blocks [5]')

    @golden.needs_golden
    def test_hub(self):
        """A module of the same weights gives the same network, but for u and v, which follow from its u0."""
        arrays = golden.below(golden.load('hf_deep_r64'), 'P')
        rnd = np.random.RandomState(0)
        for key in [key for key in arrays if key.endswith('weight_u')]:     # The file's have converged.
            u = rnd.randn(*arrays[key].shape)
            arrays[key] = (u / np.linalg.norm(u)).astype(np.float32)
        module, stacks = {}, {}
        for key, value in arrays.items():
            *path, leaf = key.removeprefix('generator.').split('.')
            if leaf == 'weight_v':
                continue
            if path[0] == 'layers':
                index = int(path[1])
                block = index - (index > 6)
                scope = 'attention' if index == 6 else 'GBlock' + f'_{block}' * (block > 0)
                inner = [part.removeprefix('snconv1x1_') for part in path[2:]]
                inner = ['BatchNorm' + part[2:].replace('_0', '') if part.startswith('bn_')
                         else part.replace('conv_', 'conv') if part[-1].isdigit() else part for part in inner]
                path = [scope, *inner]
            else:
                path = {'gen_z': ['GenZ', 'G_linear'], 'bn': ['BatchNorm'], 'conv_to_rgb': ['conv_to_rgb'],
                        'embeddings': []}[path[0]]
            if leaf.startswith('running'):
                number = 32 if path == ['BatchNorm'] else 4 * block + int(key.split('bn_')[1][0])
                stacks[f'stack_{5 * number + (1 if leaf == "running_means" else 3)}'] = value
                continue
            if leaf in ('weight', 'bias') and path == ['BatchNorm']:
                leaf = {'weight': 'scale', 'bias': 'offset'}[leaf]
            leaf = {'weight_orig': 'w', 'weight': 'w', 'bias': 'b', 'weight_u': 'u0'}.get(leaf, leaf)
            name = '/'.join(['Generator', *path, leaf]) if path else 'linear/w'
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T if value.ndim == 2 else value
            module[name] = value.reshape(()) if leaf == 'gamma' else value
        HubTest.write_module(self, module, '', 'ema_0.9999')
        self.write_graph(stacks)
        state = self.load(self.dir)['Gs']

        expected = dict(arrays)     # By a second formula.
        for key in [key for key in arrays if key.endswith('weight_u')]:
            layer = key.removesuffix('weight_u')
            matrix = arrays[f'{layer}weight_orig'].astype(np.float64)
            matrix = matrix.reshape(len(matrix), -1)
            v = arrays[key] @ matrix / np.linalg.norm(arrays[key] @ matrix)
            expected[f'{layer}weight_v'] = v.astype(np.float32)
            expected[key] = (matrix @ v / np.linalg.norm(matrix @ v)).astype(np.float32)
        other = self.load(self.write('other.bin', expected))['Gs']
        self.assertEqual(state.static_kwargs, other.static_kwargs)
        for name, value in state.variables:
            self.assertAllClose(value, dict(other.variables)[name], rtol=1e-5, atol=1e-6, msg=name)
        self.write_graph({})
        self.assert_error(lambda: self.load(self.dir), 'missing: stack_1')

    def write_graph(self, constants):
        from tensorflow.core.protobuf import saved_model_pb2
        model = saved_model_pb2.SavedModel()
        with tf.Graph().as_default() as graph:
            for name, value in constants.items():
                tf.constant(value, name=name)
        model.meta_graphs.add().graph_def.CopyFrom(graph.as_graph_def())
        (self.dir / 'saved_model.pb').write_bytes(model.SerializeToString())


class ClassesTest(Base):

    def test_rows(self):
        for role, shared, tables in (('G', 4, ['Embedding/weight']), ('D', 0, ['Embedding/weight']),
                                     ('G', 0, ['Block0/BN0/gain/weight', 'Block2/BN1/bias/weight'])):
            state = tiny_state(role, shared_dim=shared, latent_size=8)
            state.variables = [(name, value * np.geomspace(1, 1e4, value.shape[1], dtype=np.float32)
                                if name in tables else value) for name, value in state.variables]
            before = dict(state.variables)
            biggan.change_classes(state, [5, None, 0, 5], seed=1)
            self.assertEqual(state.static_kwargs['label_size'], 4)
            after = dict(state.variables)
            for name, value in after.items():
                if name in tables:
                    self.assertAllEqual(value[[0, 2, 3]], before[name][[5, 0, 5]])
                    fresh = (value[1] - before[name].mean(0)) / before[name].std(0)
                    self.assertGreater(np.abs(fresh).min(), 0)
                    self.assertLess(np.abs(fresh).max(), 5)
                elif not name.startswith('Embedding') and 'BN' not in name:
                    self.assertAllEqual(value, before[name])
            if role == 'D':
                self.assertAllClose(np.linalg.norm(after['Embedding/u']), 1)
            self.assertEqual(len(tflib.Network.from_state(state).vars), len(after))
        self.assert_error(lambda: biggan.change_classes(tiny_state('D'), [6]), 'classes 0 to 5', '[6]')

    def test_command_line(self):
        for role, name in (('G', 'G.pth'), ('D', 'D.pth')):
            self.write(name, biggan_export.to_state_dict(tiny_state(role)))
        names = self.dir / 'names.txt'
        names.write_text('cat\ndog\nnewt\n')
        out = self.dir / 'a.pkl'
        status, text, error = run('biggan-to-pickle', self.dir, '--out', out, '--class-map=2,new,0-0',
                                  f'--class-names={names}')
        self.assertEqual((status, error), (0, ''))
        self.assertIn('label_size 3', text)
        G, D, Gs = legacy.load_pkl(out)
        self.assertEqual(G.static_kwargs['class_names'], ['cat', 'dog', 'newt'])
        self.assertAllEqual(dict(Gs.variables)['Embedding/weight'][[0, 2]],
                            dict(tiny_state('G').variables)['Embedding/weight'][[2, 0]])
        self.assertFalse(config.is_trainable('Block0/BN0/moving_mean') or config.is_trainable('Linear/u'))
        for ending in ('pth', 'safetensors'):
            path = self.dir / f'back.{ending}'
            self.assertEqual(run('pickle-to-biggan', out, '--network=D', '--out', path)[0], 0)
            self.assert_same(self.load(path)['D'], D)
        changed = self.dir / 'b.pkl'
        self.assertEqual(run('change-classes', out, '--class-map=2,1', '--out', changed)[0], 0)
        self.assertEqual(legacy.load_pkl(changed)[0].static_kwargs['class_names'], ['newt', 'dog'])
        self.assertIn('G of BigGAN-PyTorch: G_biggan', run('info', self.dir)[1])

        for arguments, fragment in [
                (['biggan-to-pickle', self.dir / 'none'], 'No such file'),
                (['biggan-to-pickle', self.dir, '--class-map=7', f'--out={out}x.pkl'], 'classes 0 to 5'),
                (['biggan-to-pickle', self.dir, '--classes=1', '--class-map=1,2', f'--out={out}x.pkl'],
                 'is for 2'),
                (['biggan-to-pickle', self.dir, f'--class-names={names}', f'--out={out}x.pkl'], '6 classes'),
                (['biggan-to-pickle', self.dir, '--class-map=a'], 'class-map'),
                (['pickle-to-biggan', out, '--out=x.zip'], '.safetensors'),
                (['pickle-to-biggan', testutil.golden('training', 'stylegan2_f_init.pkl'),
                  f'--out={out}.pth'], 'expected a network G_biggan'),
                (['change-classes', out], 'expected --classes')]:
            status, _, error = run(*arguments)
            self.assertEqual((status, error.count('\n')), (2, 1), error)
            self.assertIn(fragment, error)
        self.assertEqual(sorted(path.name for path in self.dir.iterdir()),
                         ['D.pth', 'G.pth', 'a.pkl', 'b.pkl', 'back.pth', 'back.safetensors', 'names.txt'])
        self.assertEqual(biggan_sources.KINDS['torch-D'], 'D of BigGAN-PyTorch')
