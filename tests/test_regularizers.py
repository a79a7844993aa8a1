"""Orthogonal regularization against the recorded gradients, its formula, and its numeric derivative."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dnnlib.util import UserError
from tests import biggan_testutil as biggan
from training.context import StepContext
from training.hooks import UpdateHook, make_hooks
from training.networks_biggan import G_biggan
from training.networks_stylegan2 import D_stylegan2
from training.regularizers import OrthogonalRegularization, correlation


def added(hook: OrthogonalRegularization, network) -> dict[str, np.ndarray]:
    """What the hook adds to gradients, by name."""
    trained = network.named_trainables()
    hook.build(network, trained)
    values = {name: tf.convert_to_tensor(variable) for name, variable in trained.items()}
    zeros = {name: tf.zeros_like(value) for name, value in values.items()}
    result = hook.gradients(StepContext(tf.constant([1, 2])), values, zeros)
    return {name: value.numpy() for name, value in result.items()}


class OrthogonalTest(parameterized.TestCase, tf.test.TestCase):

    @parameterized.parameters('r32_flat', 'r32_hier', 'r32_unshared', 'r64_hier_attn', 'r128_hier_attn')
    @biggan.needs_golden
    def test_recorded_gradients(self, name):
        """Some in full, the norm of every one."""
        a = biggan.load(name)
        config = a['config']
        G, _ = biggan.networks(a)
        found = added(OrthogonalRegularization(1e-4, 'half', tables=True), G)
        for key, value in biggan.convert('G', biggan.below(a, 'ortho/grad'), config).items():
            self.assertAllClose(found[key], value, rtol=0, atol=1e-5 * np.max(np.abs(value)) + 1e-12, msg=key)
        start = biggan.below(a, 'G')
        names = [list(biggan.convert('G', {key: start[key]}, config))[0] for key in a['names/G_params']]
        self.assertEqual(set(names), set(found))
        norms = [np.linalg.norm(found[key]) for key in names]
        self.assertAllClose(norms, a['ortho/grad_l2'], rtol=1e-4, atol=1e-9)

    def test_tables_and_embedding_are_left_out(self):
        shape = dict(resolution=8, label_size=5, ch=4, multipliers=[2, 2], latent_size=8)
        for shared_dim in (0, 4):
            found = added(OrthogonalRegularization(1.0), G_biggan(**shape, shared_dim=shared_dim))
            moved = {name for name, value in found.items() if np.any(value)}
            expected = {name for name in found if name.endswith('weight') and name != 'Embedding/weight'
                        and (shared_dim or not name.endswith(('gain/weight', 'bias/weight')))}
            # A new weight is orthogonal where it has no more filters than inputs.
            expected = {name for name in expected if np.prod(found[name].shape[:-1]) < found[name].shape[-1]}
            self.assertGreaterEqual(moved, expected)
            self.assertNotIn('Embedding/weight', moved)
            self.assertEmpty([name for name in moved if name.endswith('bias')])
            if not shared_dim:
                self.assertEmpty([name for name in moved if 'gain' in name or '/bias/' in name])

    @parameterized.parameters(([5, 3], False), ([3, 7], False), ([3, 3, 2, 6], False), ([1, 1, 4, 9], False),
                              ([4, 6], True), ([9, 2], True))
    def test_gradient_is_that_of_the_penalty(self, shape, transposed):
        """4·correlation = the derivative of the sum of squares of M Mᵀ off its diagonal; forms and report."""
        weight = tf.constant(np.random.RandomState(1).randn(*shape))
        with tf.GradientTape() as tape:
            tape.watch(weight)
            m = weight if transposed else tf.transpose(tf.reshape(weight, [-1, shape[-1]]))
            gram = tf.matmul(m, m, transpose_b=True)
            penalty = tf.reduce_sum(tf.square(gram * (1 - tf.eye(m.shape[0], dtype=tf.float64))))
        result, power = correlation(weight, transposed)
        self.assertAllClose(4 * result, tape.gradient(penalty, weight), rtol=1e-10, atol=1e-10)
        self.assertAllClose(power, penalty, rtol=1e-10)

    def test_forms_report_and_exclusion(self):
        D = D_stylegan2(resolution=8, label_size=0, num_channels=3, fmap_base=32, fmap_max=8)
        paper, half = (added(OrthogonalRegularization(0.3, form), D) for form in ('paper', 'half'))
        fewer = added(OrthogonalRegularization(0.3, exclude=['8x8/*', 'Output/weight']), D)
        for name, value in paper.items():
            self.assertAllClose(value, 2 * half[name], rtol=1e-6, atol=1e-9)
            self.assertAllClose(fewer[name], 0 * value if name.startswith('8x8/') or name == 'Output/weight'
                                else value)
        self.assertTrue(np.any(paper['8x8/Conv0/weight']))
        hook, weight = OrthogonalRegularization(0.3), tf.constant([[1.0, 2.0], [0.0, 1.0]])
        hook.names = {'w': False}
        ctx = StepContext(tf.constant([1, 2]))
        gradients = hook.gradients(ctx, {'w': weight}, {'w': tf.ones([2, 2])})
        # M = [[1, 0], [2, 1]]: the product of the filters is 2, twice off the diagonal.
        self.assertAllClose(ctx.reports['Loss/orthogonal'][1], 0.3 * 8)
        self.assertAllClose(gradients['w'], 1 + 4 * 0.3 * np.array([[4.0, 2.0], [2.0, 0.0]]))

    def test_errors(self):
        with self.assertRaisesRegex(UserError, "form must be one of paper, half. Received: 'full'"):
            OrthogonalRegularization(form='full')
        G = G_biggan(resolution=8, ch=2, multipliers=[2, 2], latent_size=8)
        with self.assertRaisesRegex(UserError, "'Conv7' fits no trained variable"):
            OrthogonalRegularization(exclude=['Conv7']).build(G, G.named_trainables())
        with self.assertRaisesRegex(UserError, 'G_update_args: expected classes derived from .*UpdateHook'):
            make_hooks([dict(func_name='training.context.Context')], UpdateHook, 'G_update_args')
        with self.assertRaisesRegex(UserError, 'every entry needs a func_name'):
            make_hooks([dict(strength=1)], UpdateHook, 'G_update_args')


if __name__ == '__main__':
    tf.test.main()
