"""generation/samplers.py and standing_statistics.py: how each kind of network is sampled."""

import contextlib
import io
import os
import tempfile
import threading
import time
import unittest.mock

import numpy as np
import pytest
import tensorflow as tf

import dnnlib
from dnnlib import UserError, file_lock, tflib
from generation import samplers
from generation import standing_statistics as standing
from tests import biggan_testutil
from training import latents

TINY = dict(resolution=8, label_size=3, ch=4, multipliers=[2, 2], latent_size=6, shared_dim=4)
FEW = dict(passes=3, batch=4)


def tiny_biggan(name='Gs', seed=1, **kwargs):
    """A small generator whose variables differ from their initial values, its images by latents and class."""
    network = tflib.Network(name, 'training.networks_biggan.G_biggan', **{**TINY, **kwargs})
    rnd = np.random.RandomState(seed)
    network.set_vars({key: var.numpy() + (0.25 if 'moving' in key else 0.5) * (rnd.rand(*var.shape) - 0.5)
                      for key, var in network.vars.items()})
    return network


def values(network):
    return {name: var.numpy() for name, var in network.vars.items()}


class SamplerTestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(dnnlib.util.set_cache_dir, None)
        dnnlib.util.set_cache_dir(folder.name)
        self.folder = os.path.join(folder.name, 'standing-statistics')

    def files(self):
        found = os.listdir(self.folder) if os.path.exists(self.folder) else []
        return sorted(name for name in found if name.endswith('.npz'))

    def assert_statistics(self, network, expected):
        for name, value in expected.items():
            self.assertAllClose(network.get_var(name), value, rtol=1e-4, atol=1e-6, msg=name)


@contextlib.contextmanager
def recorded_inputs(norms):
    """Gives a dict that gets the input of each of the normalizations {path: layer} under its path."""
    seen = {}

    def recorder(path, norm):
        def moments(x, run):
            seen[path] = x.numpy()
            return type(norm)._moments(norm, x, run)
        return moments
    for path, norm in norms.items():
        norm.__dict__['_moments'] = recorder(path, norm)
    try:
        yield seen
    finally:
        for norm in norms.values():
            del norm.__dict__['_moments']


class StandingTest(SamplerTestCase):
    def expected(self, network, truncation, passes, batch, seed):
        """Means of the moments of each batch, from what goes into the normalizations of a plain pass."""
        rnd, sums = np.random.RandomState(seed), {}
        norms = network.layer.batch_norms()
        for _ in range(passes):
            z = latents.sample('normal', rnd, [batch, 6], truncation)
            y = np.eye(3, dtype=np.float32)[rnd.randint(3, size=batch)]
            with recorded_inputs(norms) as seen:
                network.layer(z, y, statistics='batch')
            for path, x in seen.items():
                x = x.astype(np.float64)
                for key, value in [('moving_mean', x.mean(axis=(0, 1, 2))),
                                   ('moving_variance', x.var(axis=(0, 1, 2)))]:
                    sums[f'{path}/{key}'] = sums.get(f'{path}/{key}', 0) + value / passes
        return sums

    def test_they_are_means_of_batch_moments(self):
        network = tiny_biggan()
        before = values(network)
        for truncation in (None, 0.5):
            sampler = samplers.make_sampler(network, truncation, seed=7, **FEW)
            expected = self.expected(network, truncation, seed=7, **FEW)
            self.assertEqual(set(expected), set(standing.statistics_names(network)))
            self.assert_statistics(sampler.network, expected)
            after = values(sampler.network)
            for name in set(before) - set(expected):    # u among them.
                self.assertAllEqual(after[name], before[name])
        for name, value in before.items():
            self.assertAllEqual(network.get_var(name), value)

    @biggan_testutil.needs_golden
    def test_golden(self):
        arrays = biggan_testutil.load('standing_r32_hier')
        layer, _ = biggan_testutil.networks(arrays)
        network = tflib.Network('G', layer=layer)
        vectors = {id(var.__dict__): var for name, var in network.vars.items() if name.endswith('/u')}

        class Moving(standing.MomentsContext):  # The recorded passes moved u.
            def update(self, variable, value):
                if id(variable.__dict__) in vectors:
                    variable.assign(value)

        class Training:
            def __getattr__(self, name):
                return getattr(network, name)

            def get_output_for(self, *inputs, ctx, statistics):
                del statistics
                return network.get_output_for(*inputs, ctx=ctx, is_training=True)

        inputs = zip(arrays['in/z_passes'], biggan_testutil.one_hot(arrays['in/y_passes']), strict=True)
        with unittest.mock.patch.object(standing, 'MomentsContext', Moving):
            found = standing.compute(Training(), inputs)
        after = biggan_testutil.below(arrays, 'after')
        images = after.pop('G_images')
        after = biggan_testutil.convert('G', after, arrays['config'])
        for name, value in found.items():
            expected = after[name] / 4
            self.assertLess(np.abs(value - expected).max(), 1e-5 * max(np.abs(expected).max(), 1), name)
        clone = standing.with_statistics(network, found)
        found = clone.run(arrays['in/z'], biggan_testutil.one_hot(arrays['in/y']))
        self.assertLess(np.abs(found - images).max(), 2e-5)

    def test_kept_by_all_that_matters(self):
        network = tiny_biggan()
        first = samplers.make_sampler(network, 0.5, **FEW)
        self.assertLen(self.files(), 1)
        with unittest.mock.patch.object(standing, 'compute', side_effect=AssertionError('computed again')):
            again = samplers.make_sampler(network.clone('other'), 0.5, **FEW)
            running = network.clone()
            running.set_var('Output/BN/moving_mean', running.get_var('Output/BN/moving_mean') + 1)
            samplers.make_sampler(running, 0.5, **FEW)      # What it replaces does not matter.
        self.assert_statistics(again.network, {name: first.network.get_var(name)
                                               for name in standing.statistics_names(network)})
        changed = network.clone()
        changed.set_var('Linear/bias', changed.get_var('Linear/bias') + 1e-3)
        made = {name: first.network.get_var(name) for name in standing.statistics_names(network)}
        with unittest.mock.patch.object(standing, 'compute', return_value=made) as compute:
            for i, (other, kwargs) in enumerate([
                    (network, dict(truncation=0.6)), (network, dict(truncation=None)),
                    (network, dict(seed=1)),
                    (network, dict(truncation_mode='std')), (network, dict(passes=2)),
                    (network, dict(batch=5)), (changed, {}),
                    (network.convert(bn_epsilon=1e-2), {})], 1):
                samplers.make_sampler(other, **{'truncation': 0.5, **FEW, **kwargs})
                self.assertEqual((compute.call_count, len(self.files())), (i, i + 1))
            samplers.make_sampler(network, 0.7, use_cache=False, **FEW)
            self.assertEqual((compute.call_count, len(self.files())), (9, 9))

    def test_what_a_cache_may_be(self):
        network = tiny_biggan()
        made = {name: network.get_var(name) + 1 for name in standing.statistics_names(network)}
        patch = unittest.mock.patch.object(standing, 'compute', return_value=made)
        compute = patch.start()
        self.addCleanup(patch.stop)
        expected = values(samplers.make_sampler(network, **FEW).network)
        path = os.path.join(self.folder, self.files()[0])
        with open(path, 'rb') as file:
            content = file.read()
        with io.BytesIO() as other:
            np.savez(other, **{'Output|BN|moving_mean': np.zeros(3)})
            others = other.getvalue()
        for count, damaged in enumerate((b'junk', content[:len(content) // 2], others), 2):
            with open(path, 'wb') as file:
                file.write(damaged)
            self.assert_statistics(samplers.make_sampler(network, **FEW).network, expected)
            self.assertEqual(compute.call_count, count)
            with open(path, 'rb') as file:
                self.assertLen(file.read(), len(content))
        file_in_the_way = os.path.join(self.folder, 'file')
        with open(file_in_the_way, 'wb'):
            pass
        dnnlib.util.set_cache_dir(file_in_the_way)
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            self.assert_statistics(samplers.make_sampler(network, **FEW).network, expected)
        self.assertRegex(stderr.getvalue(), '^Warning: standing statistics are not kept: .*file')

    def test_one_of_two_computes(self):
        network = tiny_biggan()
        made = {name: network.get_var(name) for name in standing.statistics_names(network)}
        calls, found = [], []

        def make():
            calls.append(1)
            time.sleep(0.5)
            return made
        threads = [threading.Thread(target=lambda: found.append(standing._cached(network, 'key', make)))
                   for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual((len(calls), len(found)), (1, 3))
        for values_found in found:
            self.assertAllClose(values_found, made)
        # Whoever holds the lock for too long is not waited for.
        with file_lock.file_lock(os.path.join(self.folder, 'other.lock')), \
                unittest.mock.patch.object(standing, '_WAIT', 0), \
                contextlib.redirect_stderr(io.StringIO()) as stderr:
            self.assertAllClose(standing._cached(network, 'other', make), made)
        self.assertIn('another process holds', stderr.getvalue())

    def test_old_files_go(self):
        network = tiny_biggan()
        made = {name: network.get_var(name) for name in standing.statistics_names(network)}
        with unittest.mock.patch.object(standing, 'MOST_FILES', 2), \
                unittest.mock.patch.object(standing, 'compute', return_value=made):
            for seed in range(4):
                samplers.make_sampler(network, seed=seed, **FEW)
        self.assertLen(os.listdir(self.folder), 4)      # Two, with their locks.

    def test_not_finite(self):
        network = tiny_biggan()
        network.set_var('Linear/bias', np.full(network.vars['Linear/bias'].shape, np.nan))
        with self.assertRaisesRegex(UserError, 'not finite; the training has diverged'):
            samplers.make_sampler(network, **FEW)
        self.assertEmpty(self.files())


class SamplersTest(SamplerTestCase):
    def test_style_based_networks_are_run_as_they_are(self):
        network = tflib.Network('Gs', 'training.networks_stylegan2.G_main', resolution=8, fmap_base=32,
                                fmap_max=4, latent_size=4, dlatent_size=4, mapping_fmaps=4, mapping_layers=1,
                                label_size=2)
        sampler = samplers.make_sampler(network, 0.7)
        self.assertIs(sampler.network, network)
        self.assertEqual(sampler.run_kwargs, {'truncation_psi': 0.7, 'randomize_noise': True})
        self.assertEqual(samplers.make_sampler(network).run_kwargs['truncation_psi'], 1)
        z = sampler.latents(np.random.RandomState(5), 3)
        self.assertAllEqual(z, np.random.RandomState(5).randn(3, 4).astype(np.float32))
        self.assertEqual(sampler.network.run(z, sampler.labels(np.random, 3), **sampler.run_kwargs).shape,
                         (3, 3, 8, 8))
        self.assertEqual(sampler.describe(), dict(latent_distribution='normal', truncation=0.7,
                                                  truncation_mode='psi', statistics=None))
        for kwargs, message in [(dict(statistics='batch'), 'no batch normalization'),
                                (dict(truncation_mode='std'), 'no truncation of z')]:
            with self.assertRaisesRegex(UserError, message):
                samplers.make_sampler(network, **kwargs)

    def test_networks_without_truncation(self):
        network = tflib.Network('Gs', 'training.networks_progan.G_paper', resolution=8, fmap_base=32,
                                fmap_max=4)
        sampler = samplers.make_sampler(network)
        self.assertEqual((sampler.run_kwargs, sampler.label_size), ({}, 0))
        self.assertEqual(sampler.labels(np.random, 2).shape, (2, 0))
        with self.assertRaisesRegex(UserError, 'has no truncation; leave truncation=0.5 out'):
            samplers.make_sampler(network, 0.5)

    def test_modes_of_biggan(self):
        network = tiny_biggan(latent_distribution='uniform')
        standing_one = samplers.make_sampler(network, 0.3, **FEW)
        self.assertIsNot(standing_one.network, network)
        self.assertEqual(standing_one.run_kwargs, {})
        self.assertEqual(standing_one.describe(), dict(
            latent_distribution='uniform', truncation=0.3, truncation_mode='resample', statistics='standing',
            statistics_seed=0, statistics_passes=3, statistics_batch=4))
        rnd = np.random.RandomState
        self.assertAllEqual(standing_one.latents(rnd(1), 6),
                            latents.sample('uniform', rnd(1), [6, 6], 0.3))
        running = samplers.make_sampler(network, statistics='running')
        self.assertIs(running.network, network)
        imported = samplers.make_sampler(tiny_biggan(truncation_mode='scale'), 0.3, statistics='running')
        self.assertEqual(imported.truncation_mode, 'scale')
        self.assertAllEqual(imported.latents(rnd(1), 6),
                            latents.sample('normal', rnd(1), [6, 6], 0.3, 'scale'))
        batch = samplers.make_sampler(network, statistics='batch')
        z, y = batch.latents(rnd(0), 4), batch.labels(rnd(0), 4)
        self.assertAllEqual(np.sum(y, axis=1), np.ones(4))
        images = [one.network.run(z, y, **one.run_kwargs) for one in (standing_one, running, batch)]
        self.assertGreater(np.abs(images[0] - images[1]).max(), 1e-3)
        self.assertGreater(np.abs(images[1] - images[2]).max(), 1e-3)
        # With stored statistics an image is a matter of its own latents.
        for one, expected in zip((standing_one, running), images, strict=False):
            self.assertAllClose(one.network.run(z[2:3], y[2:3]), expected[2:3], atol=2e-6)
        alone = batch.network.run(z[2:3], y[2:3], **batch.run_kwargs)
        self.assertGreater(np.abs(alone - images[2][2:3]).max(), 1e-3)

    def test_empty_statistics_are_refused(self):
        network = tflib.Network('Gs', 'training.networks_biggan.G_biggan', **TINY)
        with self.assertRaisesRegex(UserError, 'never filled.*use standing'):
            samplers.make_sampler(network, statistics='running')
        samplers.make_sampler(network, **FEW)

    def test_mistakes(self):
        network = tiny_biggan()
        for kwargs, message in [
                (dict(truncation=-1), 'from 0 on'), (dict(truncation=float('nan')), 'finite number'),
                (dict(truncation=1, truncation_mode='psi'), 'expected one of resample'),
                (dict(statistics='standin'), "did you mean 'standing'"),
                (dict(passes=0), '1 batch or more'), (dict(batch=1), '2 images or more')]:
            with self.assertRaisesRegex(UserError, message):
                samplers.make_sampler(network, **kwargs)
        discriminator = tflib.Network('D', 'training.networks_biggan.D_biggan', resolution=16, ch=4,
                                      multipliers=[2, 2], num_down=2)
        with self.assertRaisesRegex(UserError, 'is no generator'):
            samplers.make_sampler(discriminator)

    def test_tables_are_for_one_mode(self):
        network = tflib.Network('Gs', 'training.networks_biggan_deep.G_biggan_deep', resolution=8, ch=4,
                                label_size=3, latent_size=4, shared_dim=4, multipliers=[2, 2],
                                num_statistics=3)
        rnd = np.random.RandomState(0)
        network.set_vars({key: var.numpy() + 0.1 * rnd.rand(*var.shape) for key, var in network.vars.items()})
        for statistics, name in [(None, 'table'), ('running', 'running')]:
            sampler = samplers.make_sampler(network, 0.5, statistics=statistics)
            self.assertEqual((sampler.statistics, sampler.truncation_mode, sampler.run_kwargs['truncation']),
                             (name, 'scale', 0.5))
            with self.assertRaisesRegex(UserError, 'from 0 to 1, received 1.5'):
                samplers.make_sampler(network, 1.5, statistics=statistics)
        self.assertEqual(samplers.make_sampler(network).run_kwargs, {'truncation': 1})
        with self.assertRaisesRegex(UserError, 'for the truncation mode scale, received resample'):
            samplers.make_sampler(network, 0.5, 'resample', statistics='running')
        self.assertEqual(samplers.make_sampler(network, 0.5, 'resample', **FEW).statistics, 'standing')

    @pytest.mark.slow
    @biggan_testutil.needs_golden
    def test_tables_of_statistics(self):
        arrays = biggan_testutil.load('hf_deep_r64')
        network = tflib.Network('Gs', layer=biggan_testutil.deep_generator(arrays))
        size = network.input_shapes[1][1]
        # The second one is recorded with swapped weights of the rows.
        for truncation, recorded in [(None, '1.000'), (0.436, '0.424')]:
            sampler = samplers.make_sampler(network, truncation)
            self.assertEqual((sampler.statistics, sampler.truncation_mode), ('table', 'scale'))
            images = sampler.network.run(arrays['in/z'], biggan_testutil.one_hot(arrays['in/y'], size),
                                         **sampler.run_kwargs)
            self.assertLess(np.abs(images - arrays[f'out/images_trunc_{recorded}']).max(), 2e-5)
        self.assertLessEqual(np.abs(sampler.latents(np.random.RandomState(0), 50)).max(), 2 * 0.436)
        with self.assertRaisesRegex(UserError, 'from 0 to 1, received 1.5'):
            samplers.make_sampler(network, 1.5)
        sampler = samplers.make_sampler(network, 0.5, 'resample', passes=1, batch=2)
        self.assertEqual(sampler.statistics, 'standing')
        table = sampler.network.get_var('Output/BN/moving_mean')
        self.assertAllEqual(table, np.tile(table[:1], [len(table), 1]))


class PicturesTest(SamplerTestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.network = tiny_biggan()

    def test_batches_do_not_matter(self):
        sampler = samplers.make_sampler(self.network, 0.5, use_cache=False, **FEW)
        z, y = sampler.seed_latents([3, 4, 5]), np.eye(3, dtype=np.float32)
        expected = np.round(127.5 * (sampler.network.run(z, y) + 1)).clip(0, 255)
        for batch in (1, 2, 8):
            found = np.stack(list(samplers.pictures(sampler, z, y, batch)))
            self.assertEqual(found.dtype, np.uint8)
            self.assertLessEqual(np.abs(found - expected).max(), 1)
        self.assertAllEqual(sampler.seed_latents([4]), z[1:2])

    def test_batch_statistics_of_a_last_batch_are_its_own(self):
        sampler = samplers.make_sampler(self.network, statistics='batch')
        z, y = sampler.seed_latents([3, 4, 5, 6, 7]), np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
        found = np.stack(list(samplers.pictures(sampler, z, y, 3)))
        expected = np.concatenate([sampler.network.run(z[part], y[part], statistics='batch')
                                   for part in (slice(0, 3), slice(3, 5))])
        self.assertLessEqual(np.abs(found - np.round(127.5 * (expected + 1)).clip(0, 255)).max(), 1)

    def test_random_classes(self):
        sampler = samplers.make_sampler(self.network, statistics='running')
        found = list(samplers.random_pictures(sampler, [8, 9], None, 2))
        rnd = np.random.RandomState(9)
        z, y = sampler.latents(rnd, 1), sampler.labels(rnd, 1)
        self.assertAllEqual(found[1], next(samplers.pictures(sampler, z, y)))
        self.assertAllEqual(next(samplers.random_pictures(sampler, [9], int(np.argmax(y)), 1)), found[1])


