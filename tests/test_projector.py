"""The projector: its formulas, its independence of the batch, and whole projections."""

import contextlib
import io
import unittest.mock

import numpy as np
import tensorflow as tf

import projector
from dnnlib.tflib import Network
from dnnlib.util import UserError
from generation import sampling
from metrics import weights
from metrics.feature_nets import find_extractor
from tests import testutil

SMALL = dict(resolution=16, num_channels=3, fmap_base=64, fmap_max=16, latent_size=8, dlatent_size=8,
             mapping_fmaps=8, mapping_layers=2)


def small_network(**kwargs):
    """A StyleGAN2 generator with random weights, its average w that of its mapping network."""
    tf.keras.utils.set_random_seed(5)
    network = Network('Gs', 'training.networks_stylegan2.G_main', **{**SMALL, **kwargs})
    for name, var in network.vars.items():
        if name.endswith('noise_strength'):
            var.assign(0.02)
    return network


def draw(network, seeds):
    """Images [N, C, H, W] in [-1, 1], of noise that is not that of the variables."""
    images = [image for _, image in sampling.generate(network, seeds, 1.0)]
    return np.float32(images) / 127.5 - 1


def projected(proj, images):
    """The projector after all its steps."""
    proj.run(images)
    return proj


class FormulasTest(tf.test.TestCase):
    def test_schedule(self):
        # (step, learning rate, noise factor) of 1000 steps, by hand from appendix D.
        expected = [(0, 0.0, 0.05), (25, 0.05, 0.05 * (29 / 30) ** 2), (50, 0.1, 0.05 * (14 / 15) ** 2),
                    (375, 0.1, 0.0125), (750, 0.1, 0.0), (875, 0.05, 0.0), (1000, 0.0, 0.0)]
        for step, rate, noise in expected:
            self.assertAllClose(projector.schedule(step), (rate, noise), atol=1e-9)
        self.assertAllClose(projector.schedule(20, 40), projector.schedule(500))
        self.assertAllClose(projector.schedule(990)[0], 0.05 * (1 - np.cos(np.pi * 10 / 250)))

    def test_noise_regularization(self):
        rnd = np.random.RandomState(1)
        maps = [rnd.randn(3, size, size) + 0.3 * rnd.randn(3, 1, size) for size in (4, 8, 16, 32)]
        expected = np.zeros(3)
        for noise in maps:
            while True:
                size = noise.shape[1]
                for dy, dx in ((0, 1), (1, 0)):
                    total = np.zeros(3)
                    for y in range(size):
                        for x in range(size):
                            total += noise[:, y, x] * noise[:, y - dy, x - dx]
                    expected += (total / size ** 2) ** 2
                if size <= 8:
                    break
                noise = noise.reshape(3, size // 2, 2, size // 2, 2).sum(axis=(2, 4)) / 4 * 2
        result = projector.noise_regularization([tf.constant(noise[..., np.newaxis]) for noise in maps])
        self.assertAllClose(result, expected, rtol=1e-12)

    def test_normalize_noise(self):
        noise = np.random.RandomState(2).rand(4, 8, 8, 1) * 7 + 3
        mean, std = (f(noise, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.std))
        self.assertAllClose(projector.normalize_noise(tf.constant(noise)), (noise - mean) / std, rtol=1e-12)
        self.assertAllEqual(projector.normalize_noise(tf.ones([1, 8, 8, 1])), tf.zeros([1, 8, 8, 1]))

    def test_l2(self):
        images = np.random.RandomState(3).rand(2, 4, 4, 3) * 255
        targets = np.random.RandomState(4).rand(2, 4, 4, 3) * 255
        expected = [np.mean((a / 127.5 - b / 127.5) ** 2) for a, b in zip(images, targets, strict=True)]
        self.assertAllClose(projector.l2_distance(tf.constant(images), tf.constant(targets)), expected)


class ProjectorTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.network = small_network()
        cls.images = draw(cls.network, [1, 2, 3])

    def projector(self, num_steps=60, network=None, **attributes):
        proj = projector.Projector()
        proj.num_steps, proj.dlatent_avg_samples, proj.distance = num_steps, 500, 'l2'
        for name, value in attributes.items():
            setattr(proj, name, value)
        proj.set_network(network or self.network)
        return proj

    def test_statistics_of_w(self):
        proj = projector.Projector()
        proj.set_network(self.network)
        latents = np.random.RandomState(123).randn(10000, 8)
        samples = self.network.components.mapping.run(latents, None)[:, 0].astype(np.float64)
        self.assertAllClose(proj._dlatent_avg, samples.mean(axis=0), atol=1e-6)
        deviation = np.sqrt(np.mean(np.sum((samples - samples.mean(axis=0)) ** 2, axis=1)))
        self.assertAllClose(proj._dlatent_std, deviation, rtol=1e-6)

    def test_statistics_of_w_of_a_class(self):
        testutil.run_eagerly(self)
        network = small_network(label_size=3)
        proj = self.projector(1, network, label=np.float32([[0, 0, 1]]))
        latents = np.random.RandomState(123).randn(500, 8)
        samples = network.components.mapping.run(latents, np.tile(np.float32([[0, 0, 1]]), [500, 1]))[:, 0]
        self.assertAllClose(proj._dlatent_avg, samples.mean(axis=0), atol=1e-5)
        self.assertNotAllClose(proj._dlatent_avg, self.projector(1, network)._dlatent_avg, atol=1e-2)

    def test_an_image_of_the_network_is_found_again(self):
        before = {name: var.numpy() for name, var in self.network.vars.items()}
        proj = projected(self.projector(250), self.images)
        history = np.stack(proj.history['distance'])
        self.assertEqual(history.shape, (250, 3))
        # Random weights leave local minima: not every image is found as well as those of a trained network.
        ratios = history[0] / proj.get_distances()
        self.assertGreater(np.median(ratios), 10)
        self.assertGreater(ratios.min(), 2)
        for name, var in self.network.vars.items():
            self.assertAllEqual(var.numpy(), before[name])
        for noise in proj.get_noises():
            self.assertAllClose(noise.mean(axis=(1, 2, 3)), np.zeros(3), atol=1e-5)
            self.assertAllClose(noise.std(axis=(1, 2, 3)), np.ones(3), atol=1e-4)

    def test_what_is_found_draws_the_images(self):
        testutil.run_eagerly(self)
        proj = self.projector(10)
        result = proj.run(self.images)
        dlatents, noises = proj.get_dlatents(), proj.get_noises()
        self.assertAllEqual(result.dlatents, dlatents)
        self.assertAllEqual(result.images, proj.get_images())
        for noise, other in zip(result.noises, noises, strict=True):
            self.assertAllEqual(noise, other)
        self.assertEqual(dlatents.shape, (3, 6, 8))
        clone = self.network.clone()
        for i, image in enumerate(proj.get_images()):
            for var, noise in zip(sampling.noise_vars(clone), noises, strict=True):
                var.assign(noise[i:i + 1])
            drawn = clone.components.synthesis.run(dlatents[i:i + 1], randomize_noise=False)[0]
            self.assertAllClose(image, drawn, atol=1e-4)
            difference = np.mean((drawn - self.images[i]) ** 2)
            self.assertAllClose(proj.get_distances()[i], difference, rtol=1e-3)

    def test_images_at_a_time_make_no_difference(self):
        together = projected(self.projector(20), self.images)
        alone = self.projector(20)
        for i in range(3):
            alone.run(self.images[i:i + 1])
            self.assertAllClose(alone.get_dlatents()[0], together.get_dlatents()[i], atol=1e-4)
            self.assertAllClose(alone.get_images()[0], together.get_images()[i], atol=1e-3)
        # The second start has used the traced step of the first again.
        self.assertEqual(alone._step_function.experimental_get_tracing_count(), 1)
        other = projected(self.projector(20, seed=1), self.images[:1])
        self.assertNotAllClose(other.get_dlatents(), together.get_dlatents()[:1], atol=1e-4)

    def test_the_first_steps_by_a_second_formula(self):
        # Adam by hand, with a numeric derivative of a loss in plain NumPy and runs of the network.
        proj = self.projector(4, initial_noise_factor=0.0, regularize_noise_weight=0.0, lr_rampup_length=1e-9)
        proj.start(self.images[:1])
        dlatents, noises = proj._dlatents.numpy().astype(np.float64), [n.numpy() for n in proj._noises]
        proj.step()
        delta = proj._dlatents.numpy() - dlatents
        # The learning rate of step 0 is 0; that of the first step with one is its size in every component.
        self.assertAllEqual(delta, np.zeros_like(delta))
        # Of one gradient g, Adam with its default betas keeps 0.1 g and 0.001 g².
        first, second = (next(var.numpy() for var in proj._optimizer.variables
                              if kind in var.path and var.shape == (1, 1, 8))
                         for kind in ('momentum', 'velocity'))
        self.assertGreater(np.abs(first).max(), 1e-4)
        self.assertAllClose(second, 0.1 * np.square(first), rtol=1e-4)
        proj.step()
        step = proj._dlatents.numpy() - dlatents
        for noise, var in zip(noises, proj._noises, strict=True):
            var.assign(noise)
        slopes = []
        for k in range(8):
            values = []
            for sign in (1, -1):
                moved = dlatents.copy()
                moved[0, 0, k] += sign * 1e-2
                proj._dlatents.assign(moved)
                values.append(proj.get_distances()[0])
            slopes.append(values[0] - values[1])
        clear = np.abs(slopes) > 1e-5
        self.assertGreater(clear.sum(), 3)
        self.assertAllEqual(np.sign(step[0, 0][clear]), -np.sign(slopes)[clear])

    def test_noise_carries_no_signal(self):
        ends = []
        for weight in (0.0, 1e5):
            proj = projected(self.projector(60, regularize_noise_weight=weight), self.images[:2])
            history = np.stack(proj.history['noise_regularization'])
            noises = [tf.constant(noise.transpose(0, 2, 3, 1)) for noise in proj.get_noises()]
            ends.append((history[0], projector.noise_regularization(noises).numpy()))
        self.assertAllClose(ends[0][0], ends[1][0])     # The same random numbers.
        self.assertAllGreater(ends[0][1], 0.3 * ends[0][0].min())
        self.assertAllLess(ends[1][1], 0.01 * ends[1][0].min())

    def test_noise_on_w(self):
        testutil.run_eagerly(self)
        proj = self.projector(4, seed=7)
        proj.start(self.images[:1])
        noise = tf.random.stateless_normal([1, 1, 8], [7, 0]) * (0.05 * proj._dlatent_std)
        moved = proj.get_dlatents()[:, :1] + noise
        before = proj.get_distances()
        maps = proj.get_noises()
        proj.step()
        seen = proj.history['distance'][0]
        self.assertNotAllClose(before, seen, rtol=1e-3)
        proj.start(self.images[:1], moved, maps)
        self.assertAllClose(proj.get_distances(), seen, rtol=1e-4)

    def test_w_plus(self):
        proj = projected(self.projector(30, space='w+'), self.images[:1])
        dlatents = proj.get_dlatents()[0]
        self.assertGreater(np.abs(dlatents - dlatents[:1]).max(), 1e-3)
        again = self.projector(1, space='w+')
        again.start(self.images[:1], proj.get_dlatents(), proj.get_noises())
        self.assertAllClose(again.get_images(), proj.get_images(), atol=1e-5)

    def test_going_on_in_w(self):
        testutil.run_eagerly(self)
        proj = projected(self.projector(5), self.images[:2])
        again = self.projector(1)
        again.start(self.images[:2], proj.get_dlatents(), proj.get_noises())
        self.assertAllClose(again.get_images(), proj.get_images(), atol=1e-5)
        self.assertEqual(again._dlatents.shape, (2, 1, 8))

    def test_networks_that_grow(self):
        network = Network('Gs', 'training.networks_stylegan.G_style', **SMALL)
        network.set_var('lod', 1)   # What it draws is 8×8 pixels, enlarged; so is what is projected.
        image = network.run(np.random.RandomState(1).randn(1, 8), None, randomize_noise=False)
        self.assertAllClose(image, image[:, :, ::2, ::2].repeat(2, axis=2).repeat(2, axis=3), atol=1e-5)
        proj = projected(self.projector(100, network), image)
        found = proj.get_images()
        self.assertAllClose(found, found[:, :, ::2, ::2].repeat(2, axis=2).repeat(2, axis=3), atol=1e-5)
        self.assertLess(proj.get_distances()[0], proj.history['distance'][0][0] / 2)

    def test_a_distance_of_the_users(self):
        proj = self.projector(40, distance=lambda x, y: tf.reduce_mean(tf.abs(x - y), axis=[1, 2, 3]))
        proj.run(self.images[:1])
        self.assertLess(proj.get_distances()[0], proj.history['distance'][0][0])
        difference = np.abs(proj.get_images() - self.images[:1]).mean() * 127.5
        self.assertAllClose(proj.get_distances()[0], difference, rtol=1e-4)

    def test_large_images_are_compared_at_256(self):
        network = small_network(resolution=512, fmap_base=64, fmap_max=2)
        proj = self.projector(1, network)
        image = np.random.RandomState(0).uniform(-1, 1, [1, 3, 512, 512]).astype(np.float32)
        proj.start(image)
        drawn = proj.get_images()
        small = [x.reshape(3, 256, 2, 256, 2).mean(axis=(2, 4)) for x in (drawn[0], image[0])]
        self.assertAllClose(proj.get_distances()[0], np.mean((small[0] - small[1]) ** 2), rtol=1e-4)

    def test_mistakes(self):
        with self.assertRaisesRegex(UserError, r'call set_network'):
            projector.Projector().start(self.images)
        for attributes, message in [(dict(space='z'), "space is 'z'"), (dict(distance='fid'), "is 'fid'")]:
            with self.assertRaisesRegex(UserError, message):
                self.projector(1, **attributes).start(self.images)
        with self.assertRaisesRegex(UserError, r'shape \[1, 3, 8, 8\]; network Gs draws \[N, 3, 16, 16\]'):
            self.projector(1).start(np.zeros([1, 3, 8, 8]))
        with self.assertRaisesRegex(UserError, r'dlatents have shape \[1, 5, 8\]'):
            self.projector(1).start(self.images[:1], np.zeros([1, 5, 8]))
        with self.assertRaisesRegex(UserError, "differ from layer to layer; expected space 'w\\+'"):
            self.projector(1).start(self.images[:1], np.arange(48).reshape(1, 6, 8))
        with self.assertRaisesRegex(UserError, r'noise maps have shapes \[\], expected \[\[1, 1, 4, 4\]'):
            self.projector(1).start(self.images[:1], noises=[])
        with self.assertRaisesRegex(UserError, 'no intermediate latents'):
            self.projector(1, Network('G', 'training.networks_progan.G_paper', resolution=8, fmap_base=32,
                                      fmap_max=8, latent_size=8))


class DistancesTest(tf.test.TestCase):
    def test_efflite0(self):
        network = small_network()
        proj = projector.Projector()
        proj.dlatent_avg_samples, proj.num_steps, proj.distance = 500, 40, 'efflite0'
        proj.set_network(network)
        image = draw(network, [1])
        proj.start(image)
        first = proj.get_images()
        while proj.get_cur_step() < proj.num_steps:
            proj.step()
        last = proj.get_distances()[0]
        self.assertLess(last, 0.7 * proj.history['distance'][0][0])
        distance = find_extractor('efflite0').distance
        for drawn, value in ((first, proj.history['distance'][0]), (proj.get_images(), proj.get_distances())):
            pair = [(x.transpose(0, 2, 3, 1) + 1) * 127.5 for x in (drawn, image)]
            # The first has noise added to its w.
            self.assertAllClose(distance(*pair), value, rtol=0.3 if drawn is first else 1e-3)

    def test_transparent_images_are_compared_on_white(self):
        rnd = np.random.RandomState(0)
        images, targets = rnd.uniform(0, 255, [2, 1, 32, 32, 4]).astype(np.float32)
        solid = [x[..., :3] * x[..., 3:] / 255 + 255 - x[..., 3:] for x in (images, targets)]
        distance = projector.find_distance('efflite0')
        self.assertAllClose(distance(tf.constant(images), tf.constant(targets)),
                            distance(*map(tf.constant, solid)), rtol=1e-3)
        images[..., 3] = 0
        self.assertAllClose(distance(tf.constant(images), tf.fill([1, 32, 32, 3], 255.0)), [0], atol=1e-6)

    def test_choice(self):
        for found, name in [({'vgg16', 'efflite0'}, 'lpips'), ({'efflite0'}, 'efflite0'), (set(), 'l2')]:
            def find(kind, weights_dir, found=found):
                self.assertEqual(weights_dir, 'folder')
                return kind if kind in found else None
            with unittest.mock.patch.object(weights, 'find', find), \
                    contextlib.redirect_stdout(io.StringIO()) as out:
                self.assertEqual(projector.choose_distance('folder'), name)
            self.assertRegex(out.getvalue(), f'^Distance: {name}, .*\n$')
            if name != 'lpips':
                self.assertIn('since there are no weights of VGG16 (such as vgg16-397923af.pth)',
                              out.getvalue())


if __name__ == '__main__':
    tf.test.main()
