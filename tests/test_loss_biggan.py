"""The losses of BigGAN against recorded ones, and what their single pass over fakes and reals means."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests import biggan_testutil as biggan
from tests import testutil
from training import context, loss
from training.networks_biggan import D_biggan, G_biggan


@biggan.needs_golden
class GoldenTest(parameterized.TestCase, tf.test.TestCase):

    def load(self, name):
        self.a = biggan.load(name)
        self.inputs = biggan.inputs(self.a)
        self.G, self.D = biggan.networks(self.a)
        self.batch = len(self.a['in/z'])

    def context(self):
        return testutil.RecordedContext(normals=[self.a['in/z']], labels=[self.inputs['y'].numpy()])

    def check(self, role, found, prefix, tolerance=1e-3):
        expected = biggan.convert(role, biggan.below(self.a, prefix), self.a['config'])
        self.assertNotEmpty(expected)
        for name, value in expected.items():
            self.assertAllClose(found[name], value, rtol=0, atol=tolerance * np.max(np.abs(value)), msg=name)

    @parameterized.parameters('r32_hier', 'r32_unshared', 'r64_hier_attn')
    def test_discriminator(self, name):
        self.load(name)
        ctx = self.context()
        part, reg = loss.D_hinge_joint(self.G, self.D, ctx, self.batch, self.inputs['x'],
                                       self.inputs['y_real'])
        self.assertIsNone(reg)
        value, gradients = testutil.gradients(self.D, part)
        self.assertTrue(ctx.all_used())
        for key in ('real', 'fake'):
            self.assertAllClose(np.mean(ctx.reports[f'Loss/D_{key}']), self.a[f'dstep/loss_{key}'], rtol=1e-4)
            self.assertAllClose(ctx.reports[f'Loss/scores/{key}'], self.a[f'dstep/D_{key}'], 1e-4, 1e-4)
        self.assertAllClose(np.mean(value), self.a['dstep/loss_real'] + self.a['dstep/loss_fake'], rtol=1e-4)
        self.check('D', gradients, 'dstep/grad')
        # Both networks have moved on by one pass.
        for role, network, prefix in (('D', self.D, 'dstep/D_after'), ('G', self.G, 'train/G_after')):
            state = {key: variable.numpy() for key, variable in network.named_variables().items()}
            self.check(role, state, prefix, 1e-4)

    @parameterized.parameters('r32_hier', 'r64_hier_attn')
    def test_r1(self, name):
        """On its own, in a pass over reals alone, and after the loss in the same pass."""
        self.load(name)
        ctx = self.context()
        _, reg = loss.D_hinge_joint(self.G, self.D, ctx, self.batch, self.inputs['x'], self.inputs['y_real'],
                                    gamma=10)
        value, gradients = testutil.gradients(self.D, reg)
        self.assertAllClose(value, 5 * self.a['r1/sq_norm'], rtol=1e-3)
        self.assertAllClose(np.mean(value), self.a['r1/penalty'], rtol=1e-3)
        self.check('D', gradients, 'r1/grad', 2e-3)
        self.assertFalse(ctx.all_used())
        self.load(name)
        parts = loss.D_hinge_joint(self.G, self.D, self.context(), self.batch, self.inputs['x'],
                                   self.inputs['y_real'], gamma=10)
        self.assertAllClose(np.mean(parts[0]()), self.a['dstep/loss_real'] + self.a['dstep/loss_fake'],
                            rtol=1e-4)
        self.assertAllClose(parts[1](), 5 * self.a['r1/sq_norm'], rtol=1e-3)

    @parameterized.parameters('r32_hier', 'r32_unshared', 'r64_hier_attn')
    def test_generator(self, name):
        self.load(name)
        ctx = self.context()
        part, reg = loss.G_hinge(self.G, self.D, ctx, self.batch)
        self.assertIsNone(reg)
        value, gradients = testutil.gradients(self.G, part)
        self.assertAllClose(np.mean(value), self.a['gstep/loss'], rtol=1e-4, atol=1e-6)
        self.assertAllClose(np.mean(ctx.reports['Loss/G']), self.a['gstep/loss'], rtol=1e-4, atol=1e-6)
        self.check('G', gradients, 'gstep/grad')
        state = {key: variable.numpy() for key, variable in self.D.named_variables().items()}
        self.check('D', state, 'gstep/D_after', 1e-4)


class FormulaTest(tf.test.TestCase):

    def setUp(self):
        super().setUp()
        tf.keras.utils.set_random_seed(2)
        shape = dict(resolution=8, label_size=3, num_channels=3, ch=4, multipliers=[2, 2])
        self.G = G_biggan(**shape, latent_size=8, shared_dim=4, latent_distribution='censored_normal')
        self.D = D_biggan(**shape, num_down=1)
        rnd = np.random.RandomState(0)
        self.reals = tf.constant(rnd.randn(4, 8, 8, 3).astype(np.float32))
        self.labels = tf.constant(np.eye(3, dtype=np.float32)[[0, 2, 1, 1]])

    def step_context(self):
        return context.StepContext(tf.constant([5, 6]), context.OneHotLabels([0, 1, 2], 3))

    def test_softplus(self):
        seen = []

        def D(images, labels, **kwargs):
            seen.append((images.numpy(), labels.numpy()))
            return self.D(images, labels, **kwargs)

        for name in ('D_logistic_joint', 'D_hinge_joint'):
            ctx = self.step_context()
            values = getattr(loss, name)(self.G, D, ctx, 4, self.reals, self.labels)[0]()
            (images, labels), = seen
            seen.clear()
            scores = self.D(tf.constant(images), tf.constant(labels)).numpy()
            fake, real_scores = scores[:4], scores[4:]
            expected = (np.log1p(np.exp(fake)) + np.log1p(np.exp(-real_scores))) if 'logistic' in name else (
                np.maximum(0, 1 + fake) + np.maximum(0, 1 - real_scores))
            self.assertAllClose(values, expected, rtol=1e-5)
            self.assertAllEqual(images[4:], self.reals)
            self.assertAllEqual(labels[4:], self.labels)
            # Labels and latents of the fakes are what such a context gives.
            again = self.step_context()
            self.assertAllEqual(labels[:4], again.random_labels(4))
            latents = tf.maximum(again.normal([4, 8]), 0)
            fakes = self.G(latents, tf.constant(labels[:4]), is_training=True, ctx=self.step_context())
            self.assertAllClose(images[:4], fakes, rtol=1e-5, atol=1e-5)

    def test_without_labels(self):
        D = D_biggan(resolution=8, ch=4, multipliers=[2, 2], num_down=1)
        G = G_biggan(resolution=8, ch=4, multipliers=[2, 2], latent_size=8)
        part, _ = loss.D_hinge_joint(G, D, context.StepContext(tf.constant([5, 6])), 4, self.reals,
                                     self.labels[:, :0])
        self.assertEqual(part().shape, (4, 1))

    def test_labels_as_classes_are_labels_as_a_table(self):
        classes = np.random.RandomState(1).randint(0, 7, 50)
        for size in (7, 5):     # Of the components of labels the first ones may be all that is used.
            table = np.eye(7, dtype=np.float32)[classes][:, :size]
            drawn = [context.StepContext(tf.constant([1, 2]), labels).random_labels(40)
                     for labels in (tf.constant(table), context.OneHotLabels(classes, size))]
            self.assertAllEqual(*drawn)
            self.assertEqual(drawn[1].shape, (40, size))


if __name__ == '__main__':
    tf.test.main()
