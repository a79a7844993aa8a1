"""Singular values by power iteration, and the remedies against large ones."""

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError
from tests import biggan_testutil as biggan
from tests import test_training_biggan as trainers
from tests import testutil
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


def one_step(matrix, first, second):
    """A step of the iteration of two vectors: (u [2, out], singular values [2], v [2, rest])."""
    v = [first @ matrix / np.linalg.norm(first @ matrix)]
    image = second @ matrix
    image -= v[0] * (v[0] @ image)
    v.append(image / np.linalg.norm(image))
    u = [matrix @ v[0] / np.linalg.norm(matrix @ v[0])]
    image = matrix @ v[1]
    image -= u[0] * (u[0] @ image)
    u.append(image / np.linalg.norm(image))
    return np.array(u), np.array([u[index] @ matrix @ v[index] for index in range(2)]), np.array(v)


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
                self.assertAllClose(sigma[0], a[f'{case}/svd_top3'][0], rtol=1e-5)

    @biggan.needs_golden
    def test_clamp_golden(self):
        a = biggan.load('power_iteration')
        for case in CASES:
            w = a[f'{case}/W'].reshape(len(a[f'{case}/W']), -1).astype(np.float64)
            u, s, vt = np.linalg.svd(w)
            found = spectral.clamped(tf.constant(w), s[0], u[:, 0], vt[0], a[f'{case}/sigma_clamp'])
            self.assertAllClose(found, a[f'{case}/W_clamped'], rtol=0, atol=1e-6)

    def test_clamp_of_vectors_that_are_not_converged(self):
        """v is mapped to limit·u, all at right angles to v as before; no singular value grows."""
        rnd = np.random.RandomState(0)
        for shape in (5, 9), (9, 5):
            w = rnd.normal(size=shape)
            (sigma,), (u,), (v,) = (part.numpy() for part in spectral.power_iteration(
                tf.constant(w), tf.constant(rnd.normal(size=[1, shape[0]]))))
            self.assertLess(sigma, 0.99 * np.linalg.norm(w, 2))
            limit = 0.8 * sigma
            found = spectral.clamped(tf.constant(w), sigma, u, v, limit).numpy()
            self.assertAllClose(found @ v, limit * u, atol=1e-12)
            x = rnd.normal(size=shape[1])
            x -= v * (v @ x)
            self.assertAllClose(found @ x, w @ x, atol=1e-12)
            before, after = (np.linalg.svd(matrix, compute_uv=False) for matrix in (w, found))
            self.assertAllLessEqual(after - before, 1e-12)
            self.assertAllEqual(spectral.clamped(tf.constant(w), sigma, u, v, 1.01 * sigma), w)

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
                matrix, clamped = (hook.layers[name].matrix(of[name]).numpy() for of in (values, changed))
                u, _, vt = np.linalg.svd(matrix)
                self.assertAllClose(clamped, matrix - max(0, old[0] - limit) * np.outer(u[:, 0], vt[0]),
                                    atol=2e-4, msg=name)
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
            hook, values = make_hook(SigmaPenalty(strength=0.3, **arguments), network)
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

    def test_explosion(self):
        """Growth along one direction in every update stops at the limit; all other values are as before."""
        name = 'Block0/Conv1/weight'
        for arguments, limit in (dict(sigma=1.5), 1.5), (dict(ratio=1.5), 1.2):
            network = make_generator()
            hook, trained = SigmaClamp(only='Block0/Conv1', **arguments), network.named_trainables()
            hook.build(network, trained)
            self.assertEqual(list(hook.layers), [name])
            layer = hook.layers[name]
            u, _, vt = np.linalg.svd(layer.matrix(layer.weight).numpy(), full_matrices=False)
            start = np.float32([1.0, 0.8, *[0.4] * (u.shape[1] - 2)])
            if limit == 1.5:
                start[1] = 0.2      # Not looked at.
            values = {name: layer.from_matrix(tf.constant((u * start) @ vt))}
            layer.u.assign(u[:, 0])     # The other vector is random.
            largest = []
            for _ in range(40):
                values[name] += layer.from_matrix(tf.constant(0.1 * np.outer(u[:, 0], vt[0])))
                ctx = context()
                values |= hook.after_update(ctx, values)
                for variable, value in ctx.updates:
                    variable.assign(value)
                largest.append(np.linalg.norm(layer.matrix(values[name]).numpy(), 2))
            if 'sigma' in arguments:
                self.assertAllClose(largest, np.minimum(1 + 0.1 * np.arange(1, 41), limit), rtol=1e-5)
            self.assertAllClose(largest[-10:], [limit] * 10, rtol=1e-5)
            matrix = layer.matrix(values[name]).numpy()
            self.assertAllClose(matrix, (u * np.append(limit, start[1:])) @ vt, atol=1e-5)

    def test_in_an_update_of_a_trainer(self):
        """What two hooks do to the gradient and the weights of G: the formulas, by NumPy, in float64."""
        testutil.run_eagerly(self)
        hooks = [dict(func_name='training.spectral.SigmaPenalty', strength=0.5, sigma=0.5),
                 dict(func_name='training.spectral.SigmaClamp', ratio=0.9)]
        images, labels = trainers.make_images(4)
        subject, plain = (trainers.make_trainer(D_repeats=1, G_update_args=args) for args in (hooks, ()))
        before = {name: variable.numpy() for name, variable in subject.state().items()}
        for of in subject, plain:
            phase = {phase.name: phase for phase in of.phases}['G']
            of.run_phase(phase, 0, images, labels, 4, 1, 0.0)
        after, expected, count = subject.state(), plain.state(), 0
        for scope, layer in subject.G.normalized_layers().items():
            name = f'{scope}/weight'
            w = layer.matrix(before[f'G/{name}'].astype(np.float64)).numpy()
            second = before[f'updates/G/1-SigmaClamp/{name}/u1']
            u, s, v = one_step(w, before[f'G/{scope}/u'], second)
            gradient = layer.from_matrix(2 * 0.5 * (s[0] - 0.5) * np.outer(u[0], v[0])).numpy()
            self.assertAllClose(after[f'TrainG/{name}/m'].numpy() - expected[f'TrainG/{name}/m'].numpy(),
                                gradient, atol=1e-4, msg=name)
            # The learning rate is zero.
            clamped = w - max(0, s[0] - 0.9 * s[1]) * np.outer(u[0], v[0])
            self.assertAllClose(layer.matrix(layer.weight), clamped, atol=1e-5, msg=name)
            self.assertAllClose(after[f'updates/G/1-SigmaClamp/{name}/u1'], u[1], atol=1e-4, msg=name)
            count += s[0] > 0.9 * s[1]
        self.assertGreater(count, 3)

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
