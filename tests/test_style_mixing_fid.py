"""FID of mixed styles: where the crossovers are, what is drawn, and the metric on a generator."""

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError
from metrics import style_mixing_fid as mixing
from metrics.evaluation import Evaluation, ImageStream
from metrics.frechet_inception_distance import frechet_distance, moments
from metrics.metric_base import MetricGroup, find_metrics
from tests import testutil
from training import misc
from training.context import Context


class CrossoverTest(tf.test.TestCase):
    def test_latent_of_layer(self):
        uniform = tf.constant([[0.5, 0.1, 0.9, 0.3, 0.7]])
        for num_latents, expected in [(1, [0, 0, 0, 0, 0, 0]), (2, [0, 0, 1, 1, 1, 1]),
                                      (3, [0, 0, 1, 1, 2, 2]), (4, [0, 1, 2, 2, 3, 3])]:
            self.assertAllEqual(mixing.latent_of_layer(uniform, num_latents), [expected])

    def test_distribution(self):
        """All latents are used, in order; every crossover is as likely as any other."""
        uniform = np.random.RandomState(0).uniform(size=[6000, 9]).astype(np.float32)
        for num_latents in (2, 3, 4):
            chosen = mixing.latent_of_layer(tf.constant(uniform), num_latents).numpy()
            self.assertAllEqual(chosen[:, 0], np.zeros(6000))
            self.assertAllEqual(chosen[:, -1], np.full(6000, num_latents - 1))
            steps = np.diff(chosen, axis=1)
            self.assertAllInSet(steps, [0, 1])
            share = (num_latents - 1) / 9
            self.assertAllClose(steps.mean(axis=0), np.full(9, share), atol=4 * np.sqrt(share / 6000))


class GivenUniform(Context):
    """Noise as it comes, crossovers as given."""

    def __init__(self, uniform):
        super().__init__()
        self._uniform = uniform

    def uniform(self, shape, dtype=tf.float32):
        return tf.constant(self._uniform, dtype)

    def normal(self, shape, dtype=tf.float32):
        return tf.zeros(shape, dtype)


@testutil.needs_golden
class MixingTest(tf.test.TestCase):
    def test_images(self):
        """Against NumPy indexing of w, with labels and truncation; for growing networks too."""
        for path in ('stylegan2/f_cond5_Gskip_Dresnet_32.pkl', 'stylegan/f_cond5_32.pkl'):
            _, _, Gs = misc.load_pkl(testutil.golden(path))
            if Gs.layer.grows:
                self.assertNotEqual(float(Gs.get_var('lod')), 0)
                # What the component says of itself must not matter.
                Gs.components.synthesis.set_var('lod', 3.0)
            rnd = np.random.RandomState(0)
            latents = rnd.randn(3, 4, *Gs.input_shapes[0][1:]).astype(np.float32)
            labels = np.eye(5, dtype=np.float32)[[1, 0, 4]]
            uniform = rnd.uniform(size=[3, 7]).astype(np.float32)
            images = mixing.mixed_images(Gs, tf.constant(latents), tf.constant(labels), GivenUniform(uniform),
                                         truncation_psi=0.7)
            for i in range(3):
                w = Gs.components.mapping.run(latents[i], np.repeat(labels[i:i + 1], 4, axis=0))
                begins = np.sort(np.argsort(uniform[i])[:3]) + 1
                which = np.searchsorted(begins, np.arange(8), side='right')
                mixed = w[which, np.arange(8)]
                cutoff = Gs.layer.truncation_cutoff
                psi = np.where(np.arange(8) < (8 if cutoff is None else cutoff), 0.7, 1)[:, np.newaxis]
                mixed = Gs.get_var('dlatent_avg') + (mixed - Gs.get_var('dlatent_avg')) * psi
                options = dict(lod=tf.constant(Gs.get_var('lod'))) if Gs.layer.grows else {}
                expected = Gs.components.synthesis.get_output_for(
                    tf.constant(mixed[np.newaxis], tf.float32), ctx=GivenUniform(None), randomize_noise=True,
                    **options)
                testutil.assert_close(self, images[i:i + 1], expected)

    def evaluate(self, name, Gs, **kwargs):
        class WithReals(Evaluation):
            def reals(self, num=None, **_):
                images = np.random.RandomState(0).randint(0, 256, [num, 32, 32, 3]).astype(np.uint8)
                return ImageStream(num, ('images', num), lambda: iter(np.array_split(images, 3)))
        ev = WithReals(Gs, batch=16, **kwargs)
        group = MetricGroup(find_metrics(name))
        group.run(evaluation=ev)
        return group.metrics[0], ev

    def test_metric(self):
        _, _, Gs = misc.load_pkl(testutil.golden('stylegan2', 'f_uncond_Gskip_Dresnet_32.pkl'))
        metric, ev = self.evaluate('fd_random_mix_40', Gs)
        results = metric.results()
        self.assertEqual(list(results), [f'fd_random_mix_40_{i}' for i in range(1, 5)])
        self.assertEqual(len(set(results.values())), 4)
        # One latent: the plain distance. Two: of images mixed of the latents that the stream draws.
        real = moments(ev.features(ev.reals(40), 'random').all())
        fake = moments(ev.features(ev.fakes(40), 'random').all())
        self.assertAllClose(results['fd_random_mix_40_1'], frechet_distance(real, fake), rtol=1e-4)
        images = np.concatenate(list(metric._fakes(ev, 2, None)))
        fake = moments(np.asarray(ev.extractor('random')(images)))
        self.assertAllClose(results['fd_random_mix_40_2'], frechet_distance(real, fake), rtol=1e-3)
        single, _ = self.evaluate('fd_random_mix2_40', Gs)
        self.assertAllClose(single.results(), {'fd_random_mix2_40': results['fd_random_mix_40_2']})

    def test_errors(self):
        _, _, progan = misc.load_pkl(testutil.golden('progan', 'paper_uncond_32.pkl'))
        with self.assertRaisesRegex(UserError, 'G_paper. has no styles that could be mixed'):
            self.evaluate('fd_random_mix_40', progan)
        _, _, traditional = misc.load_pkl(testutil.golden('stylegan', 'b_tuned_baseline_32.pkl'))
        with self.assertRaisesRegex(UserError, 'has 1 style layer; expected 4 or more'):
            self.evaluate('fd_random_mix_40', traditional)
        with self.assertRaisesRegex(UserError, r'expected 1 to 4 latents, received \[5\]'):
            mixing.MixingFID('fid50k_mix', num_latents=[5])
