"""Progressive growing: the levels that run, and how they fade, against running and cross-fading all."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dnnlib.util import UserError
from tests import testutil
from training.context import Context, StepContext
from training.growing import (
    STRUCTURES,
    Stage,
    check_structure,
    downscale2d,
    grow_images,
    running_stage,
    shrink_images,
    stage_of,
    upscale2d,
)

RES_LOG2 = 5
LODS = (0.0, 0.4, 1.0, 1.75, 2.0, 2.5, 3.0)


class Toy:
    """Functions for the levels of a network with two feature maps, and a count of the levels that ran."""

    def __init__(self):
        self.rng = np.random.RandomState(1)
        self.factors = self.rng.randn(RES_LOG2 + 1, 2)
        self.mixers = self.rng.randn(RES_LOG2 + 1, 2, 3)
        self.const = self.rng.randn(3, 4, 4, 2)
        self.levels = []

    def features(self, x, res):
        self.levels.append(res)
        return tf.constant(self.const) if x is None else tf.tanh(upscale2d(x) * self.factors[res])

    def to_rgb(self, x, res):
        return tf.tensordot(x, self.mixers[res], 1)

    def from_rgb(self, images, res):
        self.levels.append(res)
        return tf.tensordot(images, self.mixers[res].T, 1)

    def block(self, x, res):
        return downscale2d(tf.tanh(x * self.factors[res]))

    def images(self, lod, stage, ctx=None):
        return grow_images(self.features, self.to_rgb, RES_LOG2, tf.constant(lod, tf.float64), stage,
                           ctx or Context())

    def scores(self, images, lod, stage, ctx=None):
        x = shrink_images(images, self.from_rgb, self.block, RES_LOG2, tf.constant(lod, tf.float64), stage,
                          ctx or Context())
        return tf.reduce_sum(x * tf.constant(self.const), axis=[1, 2, 3])


def step_context(lod):
    return StepContext(tf.constant([1, 2]), stage=stage_of(lod))


class GrowingTest(parameterized.TestCase, tf.test.TestCase):

    @parameterized.parameters(*LODS)
    def test_only_the_levels_of_the_stage_run_and_give_what_all_give(self, lod):
        toy = Toy()
        images = toy.images(lod, None)
        self.assertEqual((images.shape, toy.levels), ([3, 32, 32, 3], [2, 3, 4, 5]))
        toy.levels.clear()
        testutil.assert_close(self, toy.images(lod, stage_of(lod)), images, 1e-12, 1e-12)
        top = RES_LOG2 - int(lod)
        self.assertEqual(toy.levels, list(range(2, top + 1)))
        small = toy.images(lod, stage_of(lod), step_context(lod))
        self.assertEqual(small.shape[1], 2 ** top)
        testutil.assert_close(self, upscale2d(small, 2 ** int(lod)), images, 1e-12, 1e-12)

        toy.levels.clear()
        reals = tf.constant(toy.rng.randn(3, 32, 32, 3))
        scores = toy.scores(reals, lod, None)
        self.assertLen(toy.levels, 4)
        toy.levels.clear()
        testutil.assert_close(self, toy.scores(reals, lod, stage_of(lod)), scores, 1e-12, 1e-12)
        self.assertEqual(toy.levels, [top, top - 1] if lod % 1 else [top])
        small = downscale2d(reals, 2 ** int(lod))
        scores = toy.scores(small, lod, stage_of(lod), step_context(lod))
        testutil.assert_close(self, scores, toy.scores(reals, lod, None), 1e-12, 1e-12)

    def test_a_fade_is_linear_between_its_ends(self):
        toy = Toy()
        ends = [toy.images(lod, Stage(1, True)) for lod in (1.0, 2.0)]
        testutil.assert_close(self, ends[0], toy.images(1.0, stage_of(1.0)), 1e-12, 1e-12)
        testutil.assert_close(self, ends[1], toy.images(2.0, stage_of(2.0)), 1e-12, 1e-12)
        testutil.assert_close(self, toy.images(1.25, Stage(1, True)), 0.75 * ends[0] + 0.25 * ends[1],
                              1e-12, 1e-12)

    @parameterized.parameters(*LODS)
    def test_pixel_scale_makes_gradients_of_the_stage_those_of_the_final_resolution(self, lod):
        toy = Toy()
        small = tf.constant(toy.rng.randn(3, 32 >> int(lod), 32 >> int(lod), 3))
        power = []
        for images, stage, ctx in [(upscale2d(small, 2 ** int(lod)), None, Context()),
                                   (small, stage_of(lod), step_context(lod))]:
            with tf.GradientTape() as tape:
                tape.watch(images)
                scores = toy.scores(images, lod, stage, ctx)
            gradient = tape.gradient(scores, images)
            power.append(tf.reduce_sum(tf.square(gradient), axis=[1, 2, 3]) * ctx.pixel_scale)
        testutil.assert_close(self, power[1], power[0], 1e-12, 1e-12)

    def test_stages(self):
        self.assertEqual([stage_of(lod) for lod in (0, 0.01, 1.0, 2.75)],
                         [Stage(0, False), Stage(0, True), Stage(1, False), Stage(2, True)])
        lod, given = tf.Variable(1.5), Context(stage=Stage(3, False))
        self.assertEqual(running_stage('auto', lod, Context()), Stage(1, True))
        self.assertEqual(running_stage('recursive', lod, given), Stage(3, False))
        self.assertEqual(running_stage('fixed', lod, given), Stage(0, False))
        self.assertIsNone(running_stage('linear', lod, given))
        for structure in STRUCTURES:  # In a training step the reals have the size of the stage.
            self.assertEqual(running_stage(structure, lod, step_context(2.5)), Stage(2, True))
        traced = []
        tf.function(lambda: traced.append(running_stage('auto', lod, Context())), autograph=False)()
        self.assertEqual(traced, [None])  # A later value of lod must count too.
        with self.assertRaisesRegex(UserError, "one of auto, fixed, linear, recursive. Received: 'grown'"):
            check_structure('grown')

    def test_scaling(self):
        x = np.random.RandomState(2).randn(2, 4, 4, 3).astype(np.float32)
        up = upscale2d(tf.constant(x), 2, gain=0.5)
        self.assertAllClose(up, 0.5 * np.repeat(np.repeat(x, 2, axis=1), 2, axis=2))
        self.assertAllClose(downscale2d(up, 2, gain=2), x)
        self.assertAllClose(downscale2d(tf.constant(x), 4)[:, 0, 0], x.mean(axis=(1, 2)), rtol=1e-6)


if __name__ == '__main__':
    tf.test.main()
