"""training/latents.py: the distributions in the graph and in NumPy, and their truncation."""

import numpy as np
import tensorflow as tf
from scipy import stats

from dnnlib import UserError
from training import latents
from training.context import Context, StepContext

SHAPE = [4000, 8]
# Mean and standard deviation of the elements, by name.
MOMENTS = {
    'normal': (0, 1), 'uniform': (0, np.sqrt(1 / 3)), 'bernoulli': (0.5, 0.5), 'signs': (0, 1),
    'censored_normal': (1 / np.sqrt(2 * np.pi), np.sqrt(0.5 - 1 / (2 * np.pi))),
    'ternary': (0, np.sqrt(2 / 3)), 'normal_bernoulli': (0, np.sqrt(0.5)),
    'half_bernoulli': (0.25, np.sqrt(0.75 - 0.0625)), 'annealed_normal': (0, 1),
    'random_scale': (0, np.sqrt((1.5 ** 3 - 0.5 ** 3) / 3)), 'random_scale:2,4': (0, np.sqrt(56 / 6)),
}
VALUES = {'bernoulli': {0, 1}, 'signs': {-1, 1}, 'ternary': {-1, 0, 1}}


def in_graph(name, **kwargs):
    @tf.function(autograph=False)
    def draw():
        return latents.draw(name, StepContext(tf.constant([1, 2])), SHAPE, **kwargs)
    return draw().numpy()


class DistributionsTest(tf.test.TestCase):
    def test_all_are_tested(self):
        self.assertEqual(set(latents.DISTRIBUTIONS) - set(MOMENTS), set())

    def test_both_ways_have_the_moments(self):
        for name, (mean, deviation) in MOMENTS.items():
            for values in (latents.sample(name, np.random.RandomState(1), SHAPE), in_graph(name)):
                with self.subTest(name=name):
                    self.assertEqual((values.dtype, list(values.shape)), (np.float32, SHAPE))
                    self.assertAllClose(values.mean(), mean, atol=0.04, rtol=0)
                    self.assertAllClose(values.std(), deviation, rtol=0.02)
                    if name in VALUES:
                        self.assertEqual(set(np.unique(values)), VALUES[name])

    def test_elements_of_a_sample_share_their_scale(self):
        for values in (latents.sample('random_scale', np.random.RandomState(0), [200, 2000]),
                       latents.draw('random_scale', Context(), [200, 2000]).numpy()):
            deviations = values.std(axis=1)
            self.assertGreater(deviations.max(), 1.4)
            self.assertLess(deviations.min(), 0.6)
            self.assertGreater(stats.kstest(deviations, stats.uniform(0.5, 1).cdf).pvalue, 0.001)

    def test_halves(self):
        values = latents.sample('half_bernoulli', np.random.RandomState(0), [100, 5])
        self.assertEqual(set(np.unique(values[:, 3:])), {0, 1})
        self.assertGreater(len(np.unique(values[:, :3])), 200)

    def test_annealing(self):
        for progress, sigma in [(0, 2), (0.25, 1.5), (0.5, 1), (1, 1)]:
            self.assertAllClose(latents.annealed_sigma(progress), sigma)
            scaled = in_graph('annealed_normal', progress=tf.constant(progress, tf.float32))
            self.assertAllClose(scaled, in_graph('normal') * sigma, rtol=1e-5)
        self.assertAllClose(latents.annealed_sigma(0.1, 3, 0.2), 2)

    def test_normal_latents_are_those_of_always(self):
        expected = np.random.RandomState(3).randn(7, 5).astype(np.float32)
        self.assertAllEqual(latents.sample('normal', np.random.RandomState(3), [7, 5]), expected)
        seed = tf.constant([1, 2])
        self.assertAllEqual(latents.draw('normal', StepContext(seed), [7, 5]),
                            StepContext(seed).normal([7, 5]))

    def test_mistakes(self):
        for name, message in [('norml', "no distribution of latents 'norml'.*did you mean 'normal'"),
                              ('normal:1', 'expected normal alone'), (None, 'expected one of normal'),
                              ('random_scale:1', 'expected random_scale:low,high with positive numbers'),
                              ('random_scale:1,nan', 'positive'), ('random_scale:a,b', 'positive')]:
            with self.assertRaisesRegex(UserError, message):
                latents.check(name)
        self.assertEqual(latents.check('random_scale:1,2'), 'random_scale:1,2')


class TruncationTest(tf.test.TestCase):
    def sample(self, *args, name='normal', seed=0, shape=(3000, 4)):
        return latents.sample(name, np.random.RandomState(seed), list(shape), *args)

    def test_resample_is_the_truncated_normal_distribution(self):
        for bound in (0.04, 0.5, 1, 2, 6):
            values = self.sample(bound)
            self.assertLessEqual(np.abs(values).max(), np.float32(bound))
            expected = stats.truncnorm(-bound, bound)
            self.assertGreater(stats.kstest(values.ravel().astype(np.float64), expected.cdf).pvalue, 1e-3)

    def test_the_other_modes(self):
        self.assertAllClose(self.sample(0.3, 'scale'), 0.3 * self.sample(2.0))
        self.assertAllClose(self.sample(0.3, 'std'), 0.3 * self.sample())

    def test_limits(self):
        for mode in latents.TRUNCATION_MODES:
            for name in ('normal', 'uniform', 'half_bernoulli'):
                self.assertAllEqual(self.sample(0, mode, name=name), np.zeros([3000, 4]))
        self.assertAllClose(self.sample(30.0), self.sample(), rtol=1e-5)

    def test_a_seed_moves_towards_zero(self):
        values = [np.abs(self.sample(bound)) for bound in (None, 2, 1, 0.5, 0.04)]
        for wider, narrower in zip(values, values[1:], strict=False):
            self.assertTrue(np.all(narrower <= wider + 1e-6))
        self.assertAllEqual(np.sign(self.sample(0.5)), np.sign(self.sample()))

    def test_parts_make_the_whole(self):
        for args in [(), (0.5,), (0.5, 'scale'), (0.5, 'std')]:
            rnd = np.random.RandomState(4)
            parts = [latents.sample('normal', rnd, [count, 3], *args) for count in (1, 5, 2)]
            self.assertAllEqual(np.concatenate(parts), self.sample(*args, seed=4, shape=(8, 3)))

    def test_other_distributions(self):
        self.assertAllClose(self.sample(0.5, name='uniform'), 0.5 * self.sample(name='uniform'))
        self.assertAllEqual(self.sample(3, name='uniform'), self.sample(name='uniform'))
        self.assertAllEqual(self.sample(0.5, name='censored_normal'), np.maximum(self.sample(0.5), 0))
        self.assertLessEqual(np.abs(self.sample(0.5, name='normal_bernoulli')).max(), 0.5)
        # The bound is one of the elements, whatever their deviation.
        for scale in (0.5, 3):
            values = self.sample(1, name=f'random_scale:{scale},{scale}')
            expected = stats.truncnorm(-1 / scale, 1 / scale, scale=scale)
            self.assertGreater(stats.kstest(values.ravel().astype(np.float64), expected.cdf).pvalue, 1e-3)
        self.assertLessEqual(np.abs(self.sample(0.3, name='random_scale')).max(), np.float32(0.3))
        for mode in latents.TRUNCATION_MODES:
            values = self.sample(0.3, mode, name='half_bernoulli')
            self.assertEqual(set(np.unique(values[:, 2:])), {0, 1})
            self.assertAllEqual(np.abs(values[:, :2]), np.abs(self.sample(0.3, mode, shape=(3000, 2))))

    def test_mistakes(self):
        for args, name, message in [((-1,), 'normal', 'from 0 on'), ((float('nan'),), 'normal', 'from 0 on'),
                                    ((1,), 'signs', 'discrete'), ((0,), 'bernoulli', 'discrete'),
                                    ((1, 'scal'), 'normal', "did you mean 'scale'")]:
            with self.assertRaisesRegex(UserError, message):
                self.sample(*args, name=name)
