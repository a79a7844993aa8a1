"""Losses of ProGAN and StyleGAN: the official numbers, and the same from images of the size of the stage."""

import functools

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dnnlib.util import get_obj_by_name
from tests import testutil
from training import loss
from training.growing import downscale2d, stage_of

# Case of the loss files → (function, arguments).
STYLEGAN_CASES = {
    'G_wgan': ('G_wgan', {}),
    'G_logistic_saturating': ('G_logistic_saturating', {}),
    'G_logistic_nonsaturating': ('G_logistic_nonsaturating', {}),
    'D_wgan': ('D_wgan', {}),
    'D_hinge': ('D_hinge', {}),
    'D_logistic': ('D_logistic', {}),
    'D_wgan_gp': ('D_wgan_gp', dict(wgan_target=1.5)),
    'D_hinge_gp': ('D_hinge_gp', {}),
    'D_logistic_simplegp_r1': ('D_logistic_simplegp', dict(r1_gamma=10, r2_gamma=0)),
    'D_logistic_simplegp_r1r2': ('D_logistic_simplegp', dict(r1_gamma=3, r2_gamma=5)),
}
PROGAN_CASES = {
    'G_wgan_acgan': ('G_wgan_acgan', {}),
    'D_wgangp_acgan': ('D_wgangp_acgan', {}),
    'G_wgan_acgan_cond0.5': ('G_wgan_acgan', dict(cond_weight=0.5)),
    'D_wgangp_acgan_cond0.5': ('D_wgangp_acgan', dict(cond_weight=0.5)),
}
CASES = {'stylegan': STYLEGAN_CASES, 'progan': PROGAN_CASES}
SNAPSHOTS = [('stylegan', 'f_default_uncond_32'), ('stylegan', 'f_cond5_32'),
             ('progan', 'paper_uncond_32'), ('progan', 'paper_label10_32')]


@functools.cache
def golden_networks(generation, snapshot):
    # In float64: on which side of a leaky ReLU's kink an activation lies is no matter of rounding then.
    G, D, _ = testutil.load_networks(generation, f'{snapshot}.pkl', dtype='float64')
    if snapshot == 'paper_label10_32':
        # One activation of the fakes, channel 14 of this layer, is 3e-8 of the others, below rounding:
        # the recorded gradient is one of either side of the kink. This puts it on that side: gradients then
        # agree to 3e-6 instead of 3e-3.
        bias = D.named_variables()['32x32/Conv1_down/bias']
        bias.assign_add(1e-6 * np.eye(32)[14])
    return testutil.fix_generator(G), D


@testutil.needs_golden
class GoldenTest(parameterized.TestCase, tf.test.TestCase):

    @parameterized.parameters(*[(*snapshot, case) for snapshot in SNAPSHOTS for case in CASES[snapshot[0]]])
    def test_loss(self, generation, snapshot, case):
        G, D = golden_networks(generation, snapshot)
        a = testutil.load(generation, f'{snapshot}_losses.npz')
        self.assertEqual(set(testutil.cases(a, 'loss')), set(CASES[generation]))
        testutil.set_lod([G, D], float(a['lod']))
        func, kwargs = CASES[generation][case]
        ctx = testutil.RecordedContext([a['loss_latents']], [a['loss_mixing_factors']],
                                       labels=[np.float64(a['loss_random_labels'])])
        data = () if func.startswith('G_') else (tf.constant(testutil.nhwc(a['loss_reals']), tf.float64),
                                                 tf.constant(a['loss_labels'], tf.float64))
        part, reg = getattr(loss, func)(G, D, ctx, 4, *data, **kwargs)
        parts = []

        def total():
            parts.extend([part(), reg() if reg else tf.zeros([4], tf.float64)])
            return sum(map(tf.reduce_mean, parts))

        value, gradients = testutil.gradients(G if func.startswith('G_') else D, total)
        testutil.assert_close(self, value, a[f'loss/{case}/mean'])
        testutil.assert_gradients(self, gradients, a, f'loss/{case}/grad', 1e-3 if reg is None else 2e-3)

        # The official sums broadcast [N, 1] with the [N] of penalties and label terms to [N, N].
        self.assertEqual([values.shape for values in parts], [[4, 1], [4]])
        terms = [ctx.reports[name] * kwargs.get('cond_weight', 1)
                 for name in ('Loss/label_penalty_reals', 'Loss/label_penalty_fakes') if name in ctx.reports]
        column, row = parts[0] - sum(terms), parts[1] + sum(term[:, 0] for term in terms)
        expected = a[f'loss/{case}/loss']
        self.assertEqual(expected.shape[1], 4 if reg or terms else 1)
        testutil.assert_close(self, column + row if reg or terms else column, expected, 1e-3)
        count = 0 if 'acgan' not in func or 'uncond' in snapshot else 1 if func.startswith('G_') else 2
        self.assertLen(terms, count)


# Networks and losses that go together.
GENERATIONS = {
    'progan': ('training.networks_progan.G_paper', 'training.networks_progan.D_paper',
               ('D_wgangp_acgan', 'D_wgan_gp')),
    'stylegan': ('training.networks_stylegan.G_style', 'training.networks_stylegan.D_basic',
                 ('D_logistic_simplegp', 'D_wgan_gp', 'D_hinge_gp')),
    'stylegan2': ('training.networks_stylegan2.G_main', 'training.networks_stylegan2.D_stylegan',
                  ('D_logistic_r1', 'D_logistic_r2', 'D_wgan_gp', 'D_hinge_gp')),
}
D_CASES = [(name, loss_name) for name, (*_, loss_names) in GENERATIONS.items() for loss_name in loss_names]
G_CASES = [('progan', 'G_wgan_acgan'), ('stylegan', 'G_logistic_nonsaturating'),
           ('stylegan2', 'G_logistic_ns')]
ARGUMENTS = {'D_logistic_simplegp': dict(r1_gamma=3.0, r2_gamma=5.0), 'D_wgan_gp': dict(wgan_target=1.5)}
LODS = (0.0, 0.4, 1.0, 1.7, 2.0)


@functools.cache
def tiny_networks(generation):
    """(G, D) of 16×16 images and 3 labels in float64."""
    options = dict(resolution=16, num_channels=3, label_size=3, fmap_base=32, fmap_max=8, latent_size=8,
                   dlatent_size=8, mapping_fmaps=8, mapping_layers=2, dtype='float64')
    if generation == 'stylegan2':
        options['synthesis_func'] = 'G_synthesis_stylegan_revised'
    networks = [get_obj_by_name(name)(**options) for name in GENERATIONS[generation][:2]]
    rng = np.random.RandomState(5)
    for network in networks:
        for name, variable in network.named_variables().items():
            if not name.endswith('lod') and 'G_mapping' not in name:
                variable.assign(rng.randn(*variable.shape))
    return testutil.fix_generator(networks[0]), networks[1]


class StageSizeTest(parameterized.TestCase, tf.test.TestCase):
    """With images of the size of the stage losses are those that the official code has, at full size."""

    def setUp(self):
        super().setUp()
        rng = np.random.RandomState(0)
        self.latents, self.factors = rng.randn(4, 8), rng.rand(4, 1, 1, 1)
        self.labels = tf.one_hot([0, 2, 1, 1], 3, dtype=tf.float64)
        self.reals = tf.constant(rng.randn(4, 16, 16, 3))

    def _results(self, generation, func, lod, structure, stage=None):
        """(loss, reg or zeros, {variable: gradient of the sum of their means}, reports)."""
        G, D = tiny_networks(generation)
        testutil.set_lod([G, D], lod)
        for network in (G.synthesis if G.components else G, D):
            network.structure = structure
        ctx = testutil.RecordedContext([self.latents], [self.factors], labels=[self.labels], stage=stage)
        data = ()
        if func.startswith('D_'):
            data = downscale2d(self.reals, 2 ** stage.lod_floor if stage else 1), self.labels
        part, reg = getattr(loss, func)(G, D, ctx, 4, *data, **ARGUMENTS.get(func, {}))
        values = []

        def total():
            values.extend([part(), reg() if reg else tf.zeros([4], tf.float64)])
            return sum(map(tf.reduce_mean, values))

        _, gradients = testutil.gradients(D if data else G, total)
        return *values, gradients, ctx.reports

    def _assert_same(self, first, second):
        for index in (0, 1):
            self.assertAllClose(first[index], second[index], rtol=1e-9, atol=1e-12)
        for name, gradient in first[2].items():
            expected = second[2][name]
            # Variables of other stages have no gradient or, where all levels run, one of 0.
            gradient = np.zeros(1) if gradient is None else gradient
            expected = np.zeros(1) if expected is None else expected
            scale = float(np.max(np.abs(gradient)))
            self.assertAllClose(gradient + np.zeros_like(expected), expected + np.zeros_like(gradient),
                                rtol=0, atol=1e-9 * scale + 1e-9, msg=name)

    @parameterized.parameters(*D_CASES, *G_CASES)
    def test_losses(self, generation, func):
        # Of a further loss of the same networks only what may depend on the loss.
        is_first = func in (GENERATIONS[generation][2][0], *dict(G_CASES).values())
        for lod in LODS if is_first else LODS[2:4]:
            with self.subTest(lod=lod):
                full = self._results(generation, func, lod, 'linear')
                if is_first:
                    self._assert_same(self._results(generation, func, lod, 'recursive'), full)
                small = self._results(generation, func, lod, 'auto', stage_of(lod))
                self._assert_same(small, full)
                self.assertEqual(small[3].keys(), full[3].keys())
                for name, values in full[3].items():
                    self.assertAllClose(small[3][name], values, rtol=1e-9, atol=1e-9, msg=name)

    def test_traced_losses(self):
        """As the training loop runs them: lod is a variable of the graph."""
        for lod in (1.0, 1.4):
            expected = self._results('stylegan', 'D_logistic_simplegp', lod, 'linear')
            traced = tf.function(lambda lod=lod: self._results(
                'stylegan', 'D_logistic_simplegp', lod, 'auto', stage_of(lod))[:2], autograph=False)
            for value, other in zip(traced(), expected, strict=False):
                self.assertAllClose(value, other, rtol=1e-9)

    def test_path_length(self):
        """Noise of the size of the stage stands for what noise of full size adds up to under each pixel."""
        G, D = tiny_networks('stylegan2')
        G.synthesis.structure = 'auto'
        noise = np.random.RandomState(1).randn(4, 16, 16, 3)
        for lod in LODS:
            testutil.set_lod([G, D], lod)
            stage = stage_of(lod)
            factor = 2 ** stage.lod_floor
            # The sum over factor × factor independent numbers, divided by factor, has unit variance again.
            summed = downscale2d(tf.constant(noise), factor) * factor
            results = []
            for numbers, at in [(noise, None), (summed, stage)]:
                mean = tf.Variable(0.35, dtype=tf.float64)
                ctx = testutil.RecordedContext([self.latents, numbers], labels=[self.labels],
                                               loss_state={'pl_mean': mean}, stage=at)
                _, reg = loss.G_logistic_ns_pathreg(G, D, ctx, 4, pl_minibatch_shrink=1)
                penalty, gradients = testutil.gradients(G, reg)
                results.append((penalty, mean, gradients, {}))
                self.assertTrue(ctx.all_used())
            self._assert_same(*results)


class LabelsTest(tf.test.TestCase):
    """The AC-GAN terms without recorded numbers."""

    def _parts(self, func, D, labels, **kwargs):
        G = tiny_networks('progan')[0]
        rng = np.random.RandomState(2)
        self.reals = tf.constant(rng.randn(4, 16, 16, 3))
        self.ctx = testutil.RecordedContext([rng.randn(4, 8)], [rng.rand(4, 1, 1, 1)], labels=[labels])
        data = (self.reals, labels) if func.startswith('D_') else ()
        return getattr(loss, func)(G, D, self.ctx, 4, *data, **kwargs)

    def setUp(self):
        super().setUp()
        self.labels = tf.one_hot([0, 2, 1, 1], 3, dtype=tf.float64)
        testutil.set_lod(tiny_networks('progan'), 0)

    def test_cross_entropy(self):
        D = tiny_networks('progan')[1]
        part, _ = self._parts('D_wgangp_acgan', D, self.labels, cond_weight=2.0)
        value = part()
        logits = D(self.reals)[1].numpy()
        expected = np.log(np.sum(np.exp(logits), axis=1)) - np.sum(logits * self.labels.numpy(), axis=1)
        self.assertAllClose(self.ctx.reports['Loss/label_penalty_reals'][:, 0], expected)
        without = self._parts('D_wgangp_acgan', D, self.labels, cond_weight=0.0)[0]()
        fakes = self.ctx.reports['Loss/label_penalty_fakes'][:, 0]
        self.assertAllClose((value - without)[:, 0], 2 * (expected + fakes))
        part, reg = self._parts('G_wgan_acgan', D, self.labels, cond_weight=3.0)
        self.assertIsNone(reg)
        self.assertAllClose(part()[:, 0], 3 * fakes - self.ctx.reports['Loss/scores/fake'][:, 0])

    def test_discriminators_without_label_output(self):
        """AC-GAN losses are those of WGAN-GP where D gives no label logits, or none of any size."""
        D = tiny_networks('progan')[1]
        for output in (lambda scores, logits: scores, lambda scores, logits: (scores, logits[:, :0])):
            def scorer(images, labels, output=output, **kwargs):
                return output(*D(images, labels, **kwargs))
            for func, plain in [('D_wgangp_acgan', 'D_wgan_gp'), ('G_wgan_acgan', 'G_wgan')]:
                part, reg = self._parts(func, scorer, self.labels)
                expected, expected_reg = self._parts(plain, D, self.labels)
                self.assertAllEqual(part(), expected())
                if reg is not None:
                    self.assertAllEqual(reg(), expected_reg())
                self.assertNotIn('Loss/label_penalty_fakes', self.ctx.reports)

    def test_every_loss_takes_the_scores_of_a_discriminator_with_labels(self):
        G, D = tiny_networks('progan')
        for name in dir(loss):
            if name.startswith(('G_', 'D_')) and name != 'G_logistic_ns_pathreg':  # Its G needs w.
                part, reg = self._parts(name, D, self.labels)
                self.assertEqual(part().shape, [4, 1], name)
                self.assertEqual(None if reg is None else reg().shape, None if reg is None else [4], name)


class SimpleGradientPenaltyTest(tf.test.TestCase):

    def test_terms_without_weight_are_left_out(self):
        G, D = tiny_networks('stylegan')
        testutil.set_lod([G, D], 0)
        rng = np.random.RandomState(3)
        latents, reals = rng.randn(4, 8), tf.constant(rng.randn(4, 16, 16, 3))
        labels = tf.one_hot([0, 2, 1, 1], 3, dtype=tf.float64)

        def run(func, **kwargs):
            ctx = testutil.RecordedContext([latents])
            part, reg = getattr(loss, func)(G, D, ctx, 4, reals, labels, **kwargs)
            return part(), None if reg is None else reg(), ctx.reports

        part, reg, _ = run('D_logistic_simplegp', r1_gamma=0, r2_gamma=0)
        self.assertIsNone(reg)
        self.assertAllEqual(part, run('D_logistic')[0])
        _, r1, reports = run('D_logistic_simplegp')
        self.assertAllEqual(r1, run('D_logistic_r1')[1])
        self.assertNotIn('Loss/r2_penalty', reports)
        _, r2, reports = run('D_logistic_simplegp', r1_gamma=0.0, r2_gamma=7.0)
        self.assertAllEqual(r2, run('D_logistic_r2', gamma=7.0)[1])
        self.assertNotIn('Loss/r1_penalty', reports)
        _, both, reports = run('D_logistic_simplegp', r2_gamma=7.0)
        self.assertAllClose(both, r1 + r2)
        self.assertAllClose(5 * reports['Loss/r1_penalty'], r1)

    def test_what_loss_and_regularizer_share_is_computed_once(self):
        G, D = tiny_networks('stylegan')
        passes = []

        def counted(images, labels, **kwargs):
            passes.append(len(images))
            return D(images, labels, **kwargs)

        latents, reals = np.random.randn(4, 8), tf.constant(np.random.randn(4, 16, 16, 3))
        ctx = testutil.RecordedContext([latents])
        labels = tf.one_hot([0, 2, 1, 1], 3, dtype=tf.float64)
        part, reg = loss.D_logistic_simplegp(G, counted, ctx, 4, reals, labels, r2_gamma=1.0)
        with tf.GradientTape():
            part(), reg()
        self.assertEqual(passes, [4, 4])


if __name__ == '__main__':
    tf.test.main()
