"""Singular values by power iteration, and the remedies against large ones."""

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError
from tests import biggan_testutil as biggan
from tests import test_training_biggan as trainers
from training import spectral
from training.context import StepContext
from training.networks_biggan import D_biggan, G_biggan
from training.networks_progan import G_paper
from training.spectral import SigmaClamp, SigmaPenalty

CASES = ('tall', 'wide', 'conv')


def make_generator(dtype: str = 'float32'):
    return G_biggan(resolution=8, label_size=3, ch=4, multipliers=[2, 2], latent_size=8, shared_dim=4,
                    dtype=dtype, name='G')


def make_hook(hook, network):
    """The hook, built for a network, with the vectors of its weights converged; and the weights."""
    trained = network.named_trainables()
    hook.build(network, trained)
    values = {name: tf.convert_to_tensor(variable) for name, variable in trained.items()}
    for name, layer in hook.layers.items():
        u, _, _ = np.linalg.svd(layer.matrix(values[name]).numpy())
        layer.u.assign(u[:, 0])
        if name in hook.second:
            hook.second[name].assign(u[:, 1])
    return hook, values


def spectra(hook, values) -> dict[str, np.ndarray]:
    """The exact singular values of the weights of a hook."""
    return {name: np.linalg.svd(layer.matrix(values[name]).numpy(), compute_uv=False)
            for name, layer in hook.layers.items()}


def context() -> StepContext:
    return StepContext(tf.constant([1, 2]))


class PowerIterationTest(tf.test.TestCase):

    @biggan.needs_golden
    def test_golden(self):
        a = biggan.load('power_iteration')
        for case in CASES:
            w = a[f'{case}/W'].reshape(len(a[f'{case}/W']), -1)
            for dtype, tolerance in (np.float64, 2e-7), (np.float32, 2e-5):
                matrix, u = tf.constant(w, dtype), tf.constant(a[f'{case}/u_in'], dtype)
                done = 0
                for steps in 1, 2, 100:
                    sigma, u, v = spectral.power_iteration(matrix, u, steps - done)
                    done = steps
                    if steps == 100 and dtype is np.float32:
                        continue    # Vectors of close values turn with every rounding.
                    for found, name in (sigma, 'sv'), (u, 'u'), (v, 'v'):
                        self.assertAllClose(found, a[f'{case}/{name}_after{steps}'], rtol=0,
                                            atol=tolerance * np.abs(w).max() * 10,
                                            msg=f'{case} {name} {steps}')
                self.assertAllClose(sigma, a[f'{case}/sv_after100'], rtol=1e-5)

    @biggan.needs_golden
    def test_clamp_golden(self):
        a = biggan.load('power_iteration')
        for case in CASES:
            w = a[f'{case}/W'].reshape(len(a[f'{case}/W']), -1).astype(np.float64)
            u, s, vt = np.linalg.svd(w)
            found = spectral.clamped(tf.constant(w), s[0], u[:, 0], vt[0], a[f'{case}/sigma_clamp'])
            self.assertAllClose(found, a[f'{case}/W_clamped'], rtol=0, atol=1e-6)

    def test_orthonormalized(self):
        rows = np.random.RandomState(0).normal(size=[3, 7])
        found = spectral.orthonormalized(tf.constant(rows)).numpy()
        self.assertAllClose(found @ found.T, np.eye(3), atol=1e-12)
        # The same as a QR decomposition with a positive diagonal.
        q, r = np.linalg.qr(rows.T)
        self.assertAllClose(found, (q * np.sign(np.diag(r))).T)

    def test_kept(self):
        old = np.eye(3, 4, dtype=np.float32)
        new = np.float32([[0, 0, 0, 1], [0, 0, 0, 0], [np.nan, 1, 0, 0]])
        self.assertAllEqual(spectral.kept(tf.constant(new), old), [new[0], old[1], old[2]])


class RemedyTest(tf.test.TestCase):

    def test_clamp(self):
        for arguments in dict(sigma=0.7), dict(ratio=1.0), dict(sigma=0.7, only=['Block*/Conv?', 'Linear']):
            hook, values = make_hook(SigmaClamp(**arguments), make_generator())
            rnd = np.random.RandomState(0)
            for name in hook.layers:
                values[name] += 0.1 * rnd.normal(size=values[name].shape)
            hook, values = self.rebuilt(hook, values)
            before, ctx = spectra(hook, values), context()
            changed = hook.after_update(ctx, values)
            self.assertEqual(set(changed), set(hook.layers))
            self.assertEqual(set(ctx.reports), {'Spectra/G/clamped_weights'})
            after, count = spectra(hook, changed), 0
            for name, old in before.items():
                limit = arguments.get('sigma', old[1])
                expected = np.sort(np.append(old[1:], min(old[0], limit)))[::-1]
                self.assertAllClose(after[name], expected, atol=2e-4, msg=name)
                count += old[0] > limit
                if old[0] <= limit:
                    self.assertAllEqual(changed[name], values[name])
            self.assertEqual(float(ctx.reports['Spectra/G/clamped_weights'][1]), count)
            self.assertGreaterEqual(count, 3)
        self.assertNotIn('Output/Conv/weight', hook.layers)
        self.assertIn('Linear/weight', hook.layers)

    def rebuilt(self, hook, values):
        """The hook with vectors that fit the values."""
        for name, layer in hook.layers.items():
            layer.weight.assign(values[name])
            u, _, _ = np.linalg.svd(layer.matrix(values[name]).numpy())
            layer.u.assign(u[:, 0])
            if name in hook.second:
                hook.second[name].assign(u[:, 1])
        return hook, values

    def test_penalty_has_the_gradient_of_its_formula(self):
        network = make_generator('float64')
        rnd = np.random.RandomState(1)
        for variable in network.named_trainables().values():
            variable.assign(rnd.normal(size=variable.shape))
        for arguments in dict(sigma=1.5), dict(ratio=1.2):
            hook, values = make_hook(SigmaPenalty(strength=0.3, steps=200, **arguments), network)
            zeros, ctx = {name: tf.zeros_like(value) for name, value in values.items()}, context()
            gradients, total = hook.gradients(ctx, values, zeros), 0
            for name, layer in hook.layers.items():
                singular = np.linalg.svd(layer.matrix(values[name]).numpy(), compute_uv=False)
                target = arguments.get('sigma', 1.2 * singular[1])      # A constant.

                def penalty(weight, layer=layer, target=target):
                    sigma = np.linalg.svd(layer.matrix(weight).numpy(), compute_uv=False)[0]
                    return 0.3 * (sigma - target) ** 2
                direction = rnd.normal(size=values[name].shape)
                step = 1e-6 * direction
                numeric = (penalty(values[name] + step) - penalty(values[name] - step)) / 2e-6
                self.assertAllClose(np.sum(gradients[name] * direction), numeric, rtol=1e-5, atol=1e-6,
                                    msg=name)
                total += penalty(values[name])
            self.assertAllClose(ctx.reports['Loss/sigma_penalty_G'][1], total, rtol=1e-4)
            for name in set(values) - set(hook.layers):
                self.assertAllEqual(gradients[name], zeros[name])
            self.assertIn('Output/Conv/bias', gradients)

    def test_embeddings_of_discriminators(self):
        """The matrix of the embedding is the table as it is; a single score has no second singular value."""
        D = D_biggan(resolution=8, label_size=3, ch=4, multipliers=[2, 2], num_down=1, name='D')
        D.embedding.weight.assign(np.random.RandomState(0).normal(size=D.embedding.weight.shape))
        hook, values = make_hook(SigmaClamp(ratio=1.0), D)
        self.assertNotIn('Linear/weight', hook.layers)
        self.assertNotIn('Linear/weight', hook.after_update(context(), values))
        before = np.linalg.svd(values['Embedding/weight'].numpy(), compute_uv=False)
        after = np.linalg.svd(hook.after_update(context(), values)['Embedding/weight'].numpy(),
                              compute_uv=False)
        self.assertAllClose(after, [before[1], *before[1:]], rtol=1e-4)
        self.assertIn('Linear/weight', make_hook(SigmaClamp(sigma=1.0), D)[0].layers)

    def test_training_stays_within_the_limit(self):
        """Steps of a trainer, in rounds: sigma0 of every weight ends at the limit or below it, u1 moves."""
        def largest(hooks):
            subject = trainers.make_trainer(G_update_args=hooks, epsilon=1e-8)
            trainers.run_steps(subject, 4, steps=4, lrate=0.03)
            layers = subject.G.normalized_layers()
            return subject, {scope: np.linalg.norm(layer.matrix(layer.weight).numpy(), 2)
                             for scope, layer in layers.items()}
        clamp = dict(func_name='training.spectral.SigmaClamp', sigma=1.1, steps=3)
        _, free = largest([])
        _, bounded = largest([clamp])
        self.assertGreater(max(free.values()), 1.25)
        # An update raises more singular values than the largest one.
        self.assertLess(max(bounded.values()), 1.2)
        subject, relative = largest([dict(func_name='training.spectral.SigmaClamp', ratio=1.0, steps=3)])
        linear = 'updates/G/0-SigmaClamp/Linear/weight/u1'
        layer, u1 = subject.G.normalized_layers()['Linear'], subject.state()[linear]
        self.assertNotAllClose(u1, spectral.start_vectors(layer, 1)[0])
        self.assertLess(sum(relative.values()), 0.98 * sum(free.values()))

    def test_wrong_arguments(self):
        for arguments in ({}, dict(sigma=1, ratio=1), dict(sigma=-1), dict(sigma=np.nan),
                          dict(sigma=1, steps=0)):
            with self.assertRaisesRegex(UserError, 'sigma clamp: expected either sigma or ratio'):
                SigmaClamp(**arguments)
        with self.assertRaisesRegex(UserError, 'expected a strength above 0. Received: -1'):
            SigmaPenalty(strength=-1, sigma=1)
        with self.assertRaisesRegex(UserError, "'Lniear' fits none of the .* layers of G"):
            make_hook(SigmaClamp(sigma=1, only='Lniear'), make_generator())
        with self.assertRaisesRegex(UserError, 'fits none of the 0 spectrally normalized layers of G'):
            make_hook(SigmaClamp(sigma=1), G_paper(resolution=8, fmap_base=32, fmap_max=8, latent_size=8,
                                                   name='G'))


if __name__ == '__main__':
    tf.test.main()
