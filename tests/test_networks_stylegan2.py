"""The StyleGAN2 networks against the official ones: names, shapes, outputs, features, gradients."""

import json

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dnnlib.tflib import legacy
from dnnlib.util import UserError
from tests import testutil
from training import networks_stylegan2
from training.context import Context
from training.networks_stylegan2 import ARCHITECTURES, D_stylegan2, G_main, G_synthesis_stylegan2

SNAPSHOTS = ('f_uncond_Gskip_Dresnet_32', 'f_uncond_Gskip_Dresnet_64', 'f_cond5_Gskip_Dresnet_32',
             'e_Gorig_Dorig_32', 'e_Gresnet_Dskip_32')
TINY = dict(resolution=16, fmap_base=32, fmap_max=8, latent_size=8, dlatent_size=8, mapping_fmaps=8,
            mapping_layers=2)


def own_variables(network) -> dict:
    """The variables that a pickle lists for the network itself, not for its components."""
    components = tuple(f'{component.name}/' for component in network.components.values())
    return {name: variable for name, variable in network.named_variables().items()
            if not (components and name.startswith(components))}


@testutil.needs_golden
class VariableTableTest(tf.test.TestCase):
    """Names, order, shapes, trainability and interface of the official full-size networks."""

    def _check(self, network, row):
        self.assertEqual(type(network).__name__, row['func'])
        self.assertEqual(network.name, row['name'])
        self.assertEqual(list(network.static_kwargs.items()), list(row['static_kwargs'].items()))
        variables = [[name, list(variable.shape), variable.trainable]
                     for name, variable in own_variables(network).items()]
        self.assertEqual(variables, row['variables'])
        for key in ('input_names', 'input_shapes', 'output_names', 'output_shapes'):
            self.assertEqual(getattr(network, key), row[key])
        self.assertEqual(list(network.components), list(row['components']))
        for key, component in network.components.items():
            self._check(component, {'components': {}, **row['components'][key]})

    def test_full_size_networks(self):
        with open(testutil.golden('variables', 'stylegan2_fullsize.json')) as file:
            rows = json.load(file)
        self.assertLen(rows, 10)
        for row in rows:
            with self.subTest(row['config'], role=row['role']):
                network = row['network']
                built = getattr(networks_stylegan2, network['func'])(name=network['name'],
                                                                     **network['static_kwargs'])
                self._check(built, network)
                self.assertEqual(sum(int(np.prod(v.shape)) for v in built.named_trainables().values()),
                                 row['trainable_parameters'])

    def test_static_kwargs_are_those_of_the_pickles(self):
        for snapshot in SNAPSHOTS:
            for state in legacy.load_pkl(testutil.golden('stylegan2', f'{snapshot}.pkl')):
                network = testutil.build_network(state)
                self.assertEqual(list(network.named_variables()), list(state.all_variables()))
                self.assertEqual(list(own_variables(network)), [name for name, _ in state.variables])
                for key, component in state.components.items():
                    self.assertEqual(list(network.components[key].static_kwargs.items()),
                                     list(component.static_kwargs.items()))


@testutil.needs_golden
class GeneratorGoldenTest(parameterized.TestCase, tf.test.TestCase):

    def _load(self, snapshot, role):
        state = legacy.find_network(legacy.load_pkl(testutil.golden('stylegan2', f'{snapshot}.pkl')), role)
        arrays = testutil.load('stylegan2', f'{snapshot}_{role}.npz')
        return testutil.build_network(state), arrays

    def _close(self, actual, arrays, key):
        expected = arrays[key]
        expected = testutil.nhwc(expected) if expected.ndim == 4 else expected
        testutil.assert_close(self, actual, expected, msg=key)

    @parameterized.product(snapshot=SNAPSHOTS, role=('G', 'Gs'))
    def test_outputs(self, snapshot, role):
        G, a = self._load(snapshot, role)
        latents, labels = tf.constant(a['latents']), tf.constant(a['labels'])

        def run(latents, labels, **kwargs):
            return G(latents, labels, randomize_noise=False, return_dlatents=True, **kwargs)

        self._close(G.mapping(latents, labels), a, 'dlatents')
        images, dlatents = run(latents, labels, truncation_psi=1)
        self._close(images, a, 'image_psi1')
        self._close(dlatents, a, 'dlatents')
        self._close(run(latents, labels, truncation_psi=None)[0], a, 'image_psi1')
        truncated = [key.removeprefix('image_') for key in a
                     if key.startswith('image_psi') and '_cutoff' in key]
        self.assertGreaterEqual(len(truncated), 2)
        for key in truncated:
            psi, cutoff = key.removeprefix('psi').split('_cutoff')
            images, dlatents = run(latents, labels, truncation_psi=float(psi),
                                   truncation_cutoff=None if cutoff == 'None' else int(cutoff))
            self._close(images, a, f'image_{key}')
            self._close(dlatents, a, f'dlatents_{key}')
        self._close(run(latents, labels)[0], a, 'image_psi0.5_cutoffNone')
        validated = run(latents, labels, is_validation=True)[0]
        self._close(validated, a, 'image_psi1')
        if (snapshot, role) != ('f_uncond_Gskip_Dresnet_64', 'G'):  # Not recorded there.
            self._close(validated, a, 'image_default_kwargs_val')
        # Validation has arguments of its own; psi may be a tensor in a traced function.
        traced = tf.function(lambda psi, cutoff: run(
            latents, labels, is_validation=True, truncation_psi_val=psi, truncation_cutoff_val=cutoff)[0],
            autograph=False)
        self._close(traced(tf.constant(0.5), None), a, 'image_psi0.5_cutoffNone')
        if role == 'G':
            self._close(traced(tf.constant(0.5), tf.constant(4)), a, 'image_psi0.5_cutoff4')

    @parameterized.product(snapshot=SNAPSHOTS, role=('G', 'Gs'))
    def test_gradients(self, snapshot, role):
        # In float64, a hundred times tighter than float32 allows: an activation within rounding of zero may
        # land on either side of the kink of the leaky ReLU (one does in Gs of e_Gorig_Dorig_32, where float32
        # is off by 1e-3).
        a = testutil.load('stylegan2', f'{snapshot}_{role}.npz')
        state = legacy.find_network(legacy.load_pkl(testutil.golden('stylegan2', f'{snapshot}.pkl')), role)
        G = testutil.build_network(state, dtype='float64')
        latents, labels = tf.constant(a['latents'], tf.float64), tf.constant(a['labels'], tf.float64)
        pl_noise = testutil.nhwc(a['pl_noise_raw'])
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(latents)
            images, dlatents = G(latents, labels, truncation_psi=1, randomize_noise=False,
                                 return_dlatents=True)
            total = tf.reduce_sum(images * testutil.nhwc(a['grad_seed']))
            pl_total = tf.reduce_sum(images * pl_noise) / np.sqrt(np.prod(pl_noise.shape[1:3]))
        testutil.assert_close(self, testutil.nchw(images), a['image_psi1'], 0, 1e-5)
        testutil.assert_close(self, tape.gradient(total, latents), a['dsum_dlatents_z'], 0, 1e-5)
        testutil.assert_close(self, tape.gradient(total, dlatents), a['dsum_ddlatents_w'], 0, 1e-5)
        pl_grads = tape.gradient(pl_total, dlatents)
        testutil.assert_close(self, pl_grads, a['pl_grads'], 0, 1e-5)
        lengths = np.sqrt(np.mean(np.sum(pl_grads.numpy() ** 2, axis=2), axis=1))
        testutil.assert_close(self, lengths, a['pl_lengths'], 1e-5, 0)

    @parameterized.parameters(*[(snapshot, 'G') for snapshot in SNAPSHOTS], (SNAPSHOTS[0], 'Gs'))
    def test_synthesis_of_independent_dlatents(self, snapshot, role):
        G, a = self._load(snapshot, role)
        dlatents = tf.constant(a['wplus'])
        with tf.GradientTape() as tape:
            tape.watch(dlatents)
            images = G.synthesis(dlatents, randomize_noise=False)
            total = tf.reduce_sum(images * testutil.nhwc(a['wplus_grad_seed']))
        self._close(images, a, 'wplus_image')
        testutil.assert_close(self, tape.gradient(total, dlatents), a['wplus_dsum_dw'], 0, 1e-3)

    @parameterized.parameters(*[(snapshot, 'G') for snapshot in SNAPSHOTS], (SNAPSHOTS[0], 'Gs'))
    def test_training_mode(self, snapshot, role):
        G, a = self._load(snapshot, role)
        latents, labels = tf.constant(a['train_latents']), tf.constant(a['train_labels'])
        options = dict(is_training=True, randomize_noise=False, return_dlatents=True)

        self.assertAllEqual(G.dlatent_avg, a['train_dlatent_avg_before'])
        ctx = testutil.RecordedContext()
        images, dlatents = G(latents, labels, style_mixing_prob=None, ctx=ctx, **options)
        testutil.assert_close(self, G.dlatent_avg, a['train_dlatent_avg_after'])
        if snapshot != 'f_uncond_Gskip_Dresnet_64':  # Not recorded there.
            self._close(images, a, 'train_image_nomix')
        self._close(dlatents, a, 'train_dlatents_nomix')

        G.dlatent_avg.assign(a['train_dlatent_avg_before'])
        for uniform in ('0.5', '0.95'):
            ctx = testutil.RecordedContext(normals=[a['train_latents2']], uniforms=[np.float32(uniform)],
                                           integers=[3])
            _, dlatents = G(latents, labels, dlatent_avg_beta=None, ctx=ctx, **options)
            self._close(dlatents, a, f'train_dlatents_mix_u{uniform}_cut3')
            self.assertTrue(ctx.all_used())
        self.assertAllEqual(G.dlatent_avg, a['train_dlatent_avg_before'])

    def test_features(self):
        G, a = self._load(SNAPSHOTS[0], 'G')
        ctx = Context(keep_features=True)
        latents, labels = tf.constant(a['latents'][:2]), tf.constant(a['labels'][:2])
        G(latents, labels, truncation_psi=1, randomize_noise=False, ctx=ctx)
        names = [key.removeprefix('feat/') for key in a if key.startswith('feat/')]
        self.assertLen(names, 15)
        for name in names:
            self._close(ctx.features[name], a, f'feat/{name}')


@testutil.needs_golden
class DiscriminatorGoldenTest(parameterized.TestCase, tf.test.TestCase):

    def _load(self, snapshot):
        state = legacy.find_network(legacy.load_pkl(testutil.golden('stylegan2', f'{snapshot}.pkl')), 'D')
        arrays = testutil.load('stylegan2', f'{snapshot}_D.npz')
        images, labels = tf.constant(testutil.nhwc(arrays['d_images'])), tf.constant(arrays['d_labels'])
        return testutil.build_network(state), arrays, images, labels

    @parameterized.parameters(*SNAPSHOTS)
    def test_scores_and_their_gradients(self, snapshot):
        D, a, images, labels = self._load(snapshot)
        testutil.assert_close(self, D(images, labels), a['d_scores'])
        for count in (1, 2, 3):
            testutil.assert_close(self, D(images[:count], labels[:count]), a[f'd_scores_first{count}'])
        traced = tf.function(D, [tf.TensorSpec([None, *value.shape[1:]]) for value in (images, labels)],
                             autograph=False)
        for batch in (8, 3):
            testutil.assert_close(self, traced(images[:batch], labels[:batch]),
                                  a['d_scores' if batch == 8 else 'd_scores_first3'])
        _, gradients = testutil.gradients(D, lambda: tf.nn.softplus(D(images, labels)))
        testutil.assert_gradients(self, gradients, a, 'dscore_grad', 1e-3)

    @parameterized.parameters(*SNAPSHOTS)
    def test_r1(self, snapshot):
        D, a, images, labels = self._load(snapshot)

        def penalty():
            with tf.GradientTape() as tape:
                tape.watch(images)
                total = tf.reduce_sum(D(images, labels))
            grads = tape.gradient(total, images)
            testutil.assert_close(self, testutil.nchw(grads.numpy()), a['r1_grads'], 0, 1e-3)
            power = tf.reduce_sum(tf.square(grads), axis=[1, 2, 3])
            testutil.assert_close(self, power, a['r1_penalty'], 1e-3, 0)
            return power * 5

        _, gradients = testutil.gradients(D, penalty)
        testutil.assert_gradients(self, gradients, a, 'r1reg_grad', 2e-3)

    def test_features(self):
        D, a, images, labels = self._load(SNAPSHOTS[0])
        ctx = Context(keep_features=True)
        D(images, labels, ctx=ctx)
        names = [key.removeprefix('d_feat/') for key in a if key.startswith('d_feat/')]
        self.assertLen(names, 14)
        for name in names:
            feature = ctx.features[name][:2].numpy()
            feature = testutil.nchw(feature) if feature.ndim == 4 else feature
            testutil.assert_close(self, feature, a[f'd_feat/{name}'], msg=name)


class ShapesTest(parameterized.TestCase, tf.test.TestCase):

    @parameterized.product(resolution=(4, 8), architecture=ARCHITECTURES)
    def test_smallest_resolutions(self, resolution, architecture):
        options = {**TINY, 'resolution': resolution, 'architecture': architecture}
        G, D = G_main(**options), D_stylegan2(**options)
        images = G(tf.random.normal([2, 8]))
        self.assertEqual(images.shape, [2, resolution, resolution, 3])
        self.assertEqual(D(images).shape, [2, 1])
        self.assertAllInSet([bool(np.isfinite(D(images).numpy()).all())], {True})
        self.assertEqual(G.output_shapes, [[None, 3, resolution, resolution]])
        self.assertLen(G.synthesis.noise_inputs, 2 * int(np.log2(resolution)) - 3)

    @parameterized.product(num_channels=(1, 4), architecture=ARCHITECTURES)
    def test_number_of_channels(self, num_channels, architecture):
        options = {**TINY, 'num_channels': num_channels, 'architecture': architecture}
        images = G_main(**options)(tf.random.normal([3, 8]))
        self.assertEqual(images.shape, [3, 16, 16, num_channels])
        self.assertEqual(D_stylegan2(**options)(images).shape, [3, 1])

    def test_images_that_are_not_square(self):
        options = {**TINY, 'resolution': 64, 'base_shape': (4, 3)}
        G, D = G_main(**options), D_stylegan2(**options)
        images = G(tf.random.normal([2, 8]), randomize_noise=False)
        self.assertEqual(images.shape, [2, 64, 48, 3])
        self.assertEqual(G.output_shapes, [[None, 3, 64, 48]])
        self.assertEqual(D.input_shapes[0], [None, 3, 64, 48])
        self.assertEqual(D(images).shape, [2, 1])
        self.assertEqual(D.named_variables()['4x4/Dense0/weight'].shape, (8 * 4 * 3, 8))
        self.assertEqual(G.named_variables()['G_synthesis/4x4/Const/const'].shape, (1, 8, 4, 3))
        self.assertEqual(G.named_variables()['G_synthesis/noise8'].shape, (1, 1, 64, 48))

    def test_without_minibatch_stddev_samples_do_not_depend_on_each_other(self):
        images = tf.random.normal([4, 16, 16, 3])
        for group_size in (0, 1):
            D = D_stylegan2(**TINY, mbstd_group_size=group_size)
            self.assertEqual(D.named_variables()['4x4/Conv/weight'].shape, (3, 3, 8, 8))
            self.assertAllClose(D(images)[:1], D(images[:1]), rtol=1e-4, atol=1e-5)
        D = D_stylegan2(**TINY, mbstd_group_size=2, mbstd_num_features=2)
        self.assertEqual(D.named_variables()['4x4/Conv/weight'].shape, (3, 3, 10, 8))
        self.assertNotAllClose(D(images)[:1], D(images[:1]), rtol=1e-4, atol=1e-5)

    def test_initial_values(self):
        tf.keras.utils.set_random_seed(1)
        G = G_main(resolution=16, fmap_base=1024, fmap_max=64)
        value = {name: variable.numpy() for name, variable in G.named_variables().items()}
        self.assertNear(value['G_synthesis/8x8/Conv1/weight'].std(), 1, 0.02)
        self.assertNear(value['G_synthesis/4x4/Const/const'].std(), 1, 0.1)
        self.assertNear(value['G_mapping/Dense0/weight'].std(), 100, 1)
        for name in ('lod', 'dlatent_avg', 'G_mapping/Dense3/bias', 'G_synthesis/8x8/Conv1/noise_strength',
                     'G_synthesis/8x8/Conv1/mod_bias', 'G_synthesis/8x8/ToRGB/bias'):
            self.assertAllEqual(value[name], np.zeros_like(value[name]))
        self.assertFalse(np.array_equal(value['G_synthesis/8x8/Conv0_up/weight'],
                                        value['G_synthesis/8x8/Conv1/weight']))

    def test_noise(self):
        G = G_main(**TINY)
        latents = tf.random.normal([2, 8])
        G.synthesis.named_variables()['16x16/Conv1/noise_strength'].assign(1.0)
        images = [G(latents, randomize_noise=False) for _ in range(2)]
        self.assertAllEqual(images[0], images[1])
        self.assertNotAllClose(G(latents), G(latents))
        G.synthesis.named_variables()['16x16/Conv1/noise_strength'].assign(0.0)
        self.assertAllClose(G(latents), G(latents, randomize_noise=False), rtol=1e-5, atol=1e-5)

    def test_label_size_needs_no_labels_where_it_is_zero(self):
        G, D = G_main(**TINY), D_stylegan2(**TINY)
        latents = tf.random.normal([2, 8])
        images = G(latents, randomize_noise=False)
        self.assertAllEqual(images, G(latents, tf.zeros([2, 0]), randomize_noise=False))
        self.assertAllEqual(D(images), D(images, tf.zeros([2, 0])))

    def test_mixing_draws_every_cutoff(self):
        G = G_main(**TINY)
        latents = tf.random.normal([1, 8])
        first = G.mapping(latents)[0, 0]
        seen = set()
        for _ in range(60):
            _, dlatents = G(latents, is_training=True, style_mixing_prob=0.7, return_dlatents=True)
            layers = np.all(np.isclose(dlatents[0], first), axis=1)
            self.assertAllEqual(layers, np.sort(layers)[::-1])
            seen.add(int(layers.sum()))
        self.assertEqual(seen, set(range(1, 7)))  # 6 of 6 where styles are not mixed.

    def test_gradients_reach_every_trainable_variable(self):
        for architecture in ARCHITECTURES:
            options = {**TINY, 'label_size': 3, 'architecture': architecture}
            G, D = G_main(**options), D_stylegan2(**options)
            labels = tf.one_hot([0, 2], 3)
            latents = tf.random.normal([2, 8])
            for network in (G, D):
                _, gradients = testutil.gradients(
                    network, lambda G=G, D=D, labels=labels, latents=latents: D(G(latents, labels), labels))
                self.assertEmpty([name for name, value in gradients.items() if value is None])


class Float64Test(tf.test.TestCase):

    def _network(self, network_class, **kwargs):
        options = {**TINY, 'resolution': 8, 'nonlinearity': 'swish', 'dtype': 'float64'}
        network = network_class(**options, **kwargs)
        rng = np.random.RandomState(1)
        for name, variable in network.named_variables().items():
            if name.endswith(('bias', 'noise_strength')):
                variable.assign(0.5 * rng.randn(*variable.shape))
            elif variable.trainable and 'G_mapping' not in name:
                variable.assign(rng.randn(*variable.shape))
        return network

    def test_generator(self):
        latents = np.random.RandomState(0).randn(2, 8)
        for architecture in ARCHITECTURES:
            G = self._network(G_main, architecture=architecture)
            images = G(tf.constant(latents), randomize_noise=False)
            self.assertEqual(images.dtype, tf.float64)
            seed = np.random.RandomState(2).randn(*images.shape)

            def func(z, G=G, seed=seed):
                return tf.reduce_sum(G(z, randomize_noise=False) * seed)

            testutil.assert_derivative(self, func, [latents], rtol=1e-5)

            def of_dlatents(w, G=G, seed=seed):
                return tf.reduce_sum(G.synthesis(w, randomize_noise=False) * seed)

            dlatents = np.random.RandomState(3).randn(2, 4, 8)
            testutil.assert_derivative(self, testutil.gradient_sum(of_dlatents), [dlatents])

    def test_discriminator(self):
        images = np.random.RandomState(0).randn(2, 8, 8, 3)
        for architecture in ARCHITECTURES:
            D = self._network(D_stylegan2, architecture=architecture)
            self.assertEqual(D(tf.constant(images)).dtype, tf.float64)

            def func(x, D=D):
                return tf.reduce_sum(tf.nn.softplus(D(x)))

            testutil.assert_derivative(self, func, [images])
            testutil.assert_derivative(self, testutil.gradient_sum(func), [images])

    def test_training_mode(self):
        G = self._network(G_main)
        images = G(tf.constant(np.random.randn(2, 8)), is_training=True)
        self.assertEqual(images.dtype, tf.float64)


class BadArgumentsTest(tf.test.TestCase):

    def test_messages(self):
        latents, images = tf.zeros([2, 8]), tf.zeros([2, 16, 16, 3])
        G, D = G_main(**TINY, label_size=5), D_stylegan2(**TINY, label_size=5)
        for call, message in [
            (lambda: G(latents), r'labels of shape \[N, 5\]. Received: None$'),
            (lambda: G(latents, tf.zeros([2, 4])), r'labels of shape \[N, 5\]. Received: \(2, 4\)$'),
            (lambda: D(images), r'labels of shape \[N, 5\]. Received: None$'),
            (lambda: D(images, tf.zeros([2, 6])), r'Received: \(2, 6\)$'),
            (lambda: tf.function(lambda: G(latents))(), r'labels of shape \[N, 5\]. Received: None'),
            (lambda: D(tf.zeros([6, 16, 16, 3]), tf.zeros([6, 5])), 'divisible by the group size 4'),
            (lambda: G(latents, tf.zeros([2, 5]), is_training=True, is_validation=True), 'exclude each'),
            (lambda: G_main(**{**TINY, 'architecture': 'alias'}), "orig, skip, resnet. Received: 'alias'$"),
            (lambda: D_stylegan2(**TINY, architecture='alias'), "orig, skip, resnet. Received: 'alias'$"),
            (lambda: G_main(**{**TINY, 'resolution': 48}), 'power of two from 4 up. Received: 48$'),
            (lambda: D_stylegan2(**{**TINY, 'resolution': 48}), 'power of two from 4 up. Received: 48$'),
            (lambda: G_main(**{**TINY, 'mapping_layers': 0}), 'Received: 0$'),
            (lambda: G_synthesis_stylegan2(nonlinearity='gelu', resolution=4), "Received: 'gelu'$"),
        ]:
            with self.assertRaisesRegex(UserError, message) as caught:
                call()
            self.assertNotIn('\n', str(caught.exception).strip()) if '$' in message else None


if __name__ == '__main__':
    tf.test.main()
