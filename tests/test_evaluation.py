"""What metrics measure: streams of images and features, random numbers by index, replicas, memory."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

import numpy as np
import PIL.Image
import tensorflow as tf

from dnnlib.util import UserError
from generation.samplers import Sampler
from metrics import progress
from metrics.evaluation import Evaluation, for_training
from metrics.image_sources import DatasetSource, FolderSource, OwnSource
from metrics.image_streams import ImageNoise, philox, rgb, to_rgb
from metrics.metric_base import MetricBase, MetricGroup
from tests import feature_testutil, testutil
from tests.metric_testutil import CountingSet, noisy_generator
from training.datasets.base import Dataset


def numbers(stream):
    """Numbers of the images of a stream of a CountingSet, and whether they are flipped."""
    images = np.concatenate(list(stream))
    left, right = images[:, 0, 0, 0].astype(int), images[:, 0, -1, 0].astype(int)
    return np.minimum(left, right).tolist(), left < right


class RealsTest(tf.test.TestCase):

    def test_wrap_mirror_full(self):
        ev = Evaluation(reals=DatasetSource(CountingSet()), mirror=True)
        order, flipped = numbers(ev.reals(25))      # Two whole rounds and a part of the third.
        self.assertEqual(sorted(order[:10]), list(range(10)))
        self.assertEqual(sorted(order[10:20]), list(range(10)))
        self.assertNotEqual(order[:10], order[10:20])
        self.assertLen(set(order[20:]), 5)
        self.assertBetween(flipped.sum(), 5, 20)
        self.assertEqual(numbers(ev.reals(25))[0], order)
        self.assertEqual(numbers(ev.reals(4))[0], order[:4])
        order, flipped = numbers(ev.reals(None, full=True))
        self.assertEqual((order, flipped.any()), (list(range(10)), False))
        self.assertEqual(ev.reals(50, full=True).num, 10)
        self.assertEqual(ev.reals(50, wrap=False).num, 10)
        self.assertFalse(numbers(ev.reals(25, mirror=False))[1].any())
        ada = Evaluation(reals=DatasetSource(CountingSet()), generation='ada')
        self.assertEqual(ada.reals(25).num, 10)

    def test_batches_do_not_matter(self):
        source = DatasetSource(CountingSet())
        streams = [source.stream(25, True, True), source.stream(25, True, True)]
        one = np.concatenate([images for images, in streams[0].inputs(7)])
        other = np.concatenate([images for images, in streams[1].inputs(25)])
        self.assertAllEqual(one, other)

    def test_classes(self):
        ev = Evaluation(reals=DatasetSource(CountingSet(12, label_size=3)))
        self.assertEqual(sorted(numbers(ev.reals(4, classes=[1]))[0]), [1, 4, 7, 10])
        self.assertEqual(sorted(numbers(ev.reals(8, classes=[1]))[0]), [1, 1, 4, 4, 7, 7, 10, 10])
        self.assertEqual(ev.num_classes, 3)
        only = Evaluation(reals=DatasetSource(CountingSet(12, label_size=3)), class_idx=2)
        self.assertEqual(sorted(numbers(only.reals(None))[0]), [2, 5, 8, 11])
        with self.assertRaisesRegex(UserError, 'has no image of class 7'):
            ev.reals(4, classes=[7])
        with self.assertRaisesRegex(UserError, 'has no classes'):
            Evaluation(reals=DatasetSource(CountingSet())).reals(4, classes=[0])

    def test_none(self):
        with self.assertRaisesRegex(UserError, 'this metric compares with real images'):
            Evaluation(noisy_generator()).reals(5)

    def test_num_images(self):
        ev = Evaluation(noisy_generator(), DatasetSource(CountingSet()), num_images=6)
        self.assertEqual((ev.reals(50).num, ev.fakes(50).num, ev.count(7), ev.reals(50, full=True).num),
                         (6, 6, 6, 10))

    def test_fingerprint(self):
        """Of the pixels: names, labels and paths do not matter, every image of a small set does."""
        class Changed(CountingSet):
            def _read_images(self, indices, lod):
                images = super()._read_images(indices, lod)
                images[indices == 7, 3, 3] ^= 1
                return images
        first = DatasetSource(CountingSet()).fingerprint
        self.assertEqual(DatasetSource(CountingSet(label_size=3)).fingerprint, first)
        for other in (Changed(), CountingSet(11), CountingSet(channels=1)):
            self.assertNotEqual(DatasetSource(other).fingerprint, first)


class FolderTest(tf.test.TestCase):

    def _folder(self, sizes, mode='RGB'):
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        for i, size in enumerate(sizes):
            rnd = np.random.RandomState(i)
            array = rnd.randint(0, 256, [size[1], size[0], 3]).astype(np.uint8)
            PIL.Image.fromarray(array).convert(mode).save(os.path.join(folder, f'{i}.png'))
        return folder

    def test_sizes(self):
        source = FolderSource(self._folder([(12, 8)] * 3))
        self.assertEqual((source.shape, source.resize, source.num), ([3, 8, 12], 'none', 3))
        mixed = FolderSource(self._folder([(12, 8), (16, 16), (16, 16), (30, 10)]))
        self.assertEqual((mixed.shape, mixed.resize), ([3, 16, 16], 'center-crop, lanczos to 16x16'))
        images = mixed.read(np.arange(4))
        self.assertEqual(images.shape, (4, 16, 16, 3))
        self.assertAllEqual(images[1], np.random.RandomState(1).randint(0, 256, [16, 16, 3]))
        forced = FolderSource(self._folder([(12, 8)], 'L'), (4, 4), 'box')
        self.assertEqual((forced.read(np.array([0])).shape, forced.resize),
                         ((1, 4, 4, 3), 'center-crop, box to 4x4'))

    def test_evaluation(self):
        reals, fakes = self._folder([(8, 8)] * 5), self._folder([(8, 8)] * 3)
        ev = Evaluation(reals=FolderSource(reals), fakes=FolderSource(fakes))
        self.assertEqual((ev.reals(50).num, ev.fakes(50).num, ev.reals(2).num), (5, 3, 2))
        self.assertEqual((ev.shape, ev.resolution, ev.label_size, ev.sampler), ([3, 8, 8], 8, 0, None))
        with self.assertRaisesRegex(UserError, 'this metric needs a generator'):
            ev.fakes(5, truncation=0.5)
        self.assertEqual(ev.features(ev.fakes(50), 'random').all().shape, (3, 64))

    def test_classes_by_subfolders(self):
        folder = self._folder([])
        for name in ('cat', 'dog'):
            os.makedirs(os.path.join(folder, name))
            PIL.Image.new('RGB', (4, 4)).save(os.path.join(folder, name, 'x.png'))
        self.assertAllEqual(FolderSource(folder).label_rows(np.arange(2)), np.eye(2))


class OwnGenerator:
    """Images that show their random numbers; counts how it is called."""

    def __init__(self, network=None):
        self.network = network

    def __call__(self, rnd, n):
        return np.repeat(rnd.randint(0, 256, [n, 4, 4, 1]).astype(np.uint8), 3, axis=3)


def wrong_generator():
    return lambda rnd, n: np.zeros([n, 4, 4, 3])


class OwnSourceTest(tf.test.TestCase):

    def test_stream(self):
        name = 'tests.test_evaluation.OwnGenerator'
        one = np.concatenate(list(Evaluation(fakes=OwnSource(name, None, 0)).fakes(70)))
        stream = OwnSource(name, None, 0).stream(70, False, False)
        other = np.concatenate([images for images, in stream.inputs(9)])
        self.assertEqual(one.shape, (70, 4, 4, 3))
        self.assertAllEqual(one, other)
        self.assertGreater(len(np.unique(one.reshape(70, -1), axis=0)), 69)
        with self.assertRaisesRegex(UserError, 'expected 1 images as uint8 .* received float64'):
            OwnSource('tests.test_evaluation.wrong_generator', None, 0)


class FakesTest(tf.test.TestCase):

    @testutil.needs_golden
    def test_golden_uint8(self):
        arrays = feature_testutil.load('formula_arrays.npz')
        self.assertAllEqual(to_rgb(tf.constant(arrays['range_in_nchw'])),
                            testutil.nhwc(arrays['range_uint8_nchw']))
        edges = tf.constant(arrays['edge_in'].reshape(1, 1, 1, -1))
        self.assertAllEqual(to_rgb(edges)[0, 0, :, 0], arrays['edge_uint8'].reshape(-1))

    def test_rgb(self):
        gray = np.arange(8, dtype=np.uint8).reshape(2, 2, 2, 1)
        alpha = np.array([[[[200, 0, 100, 128]]]], np.uint8)
        for convert in (np.asarray, tf.constant):
            self.assertAllEqual(rgb(convert(gray)), np.repeat(gray, 3, 3))
            self.assertAllEqual(rgb(convert(alpha))[0, 0, 0], [227, 127, 177])

    def test_images_are_functions_of_seed_and_index(self):
        """Neither minibatch nor number of images changes an image; seed, name and network do."""
        Gs = noisy_generator()
        images = np.concatenate(list(Evaluation(Gs, batch=4).fakes(300)))
        other = np.concatenate(list(Evaluation(Gs, batch=7).fakes(290)))
        self.assertLess(np.abs(images[:290].astype(int) - other).max(), 2)   # Rounding at a border.
        self.assertLess((images[:290] != other).mean(), 1e-3)
        self.assertLen(np.unique(images.reshape(300, -1), axis=0), 300)
        for changed in (Evaluation(Gs, seed=1).fakes(20), Evaluation(Gs).fakes(20, name='b')):
            self.assertGreater((np.concatenate(list(changed)) != images[:20]).mean(), 0.3)

    def test_against_the_network(self):
        """Without noise, what Network.run draws of the same latents; noise is drawn for each image."""
        Gs = noisy_generator()
        ev = Evaluation(Gs, batch=4)
        latents = np.concatenate([latents for latents, _, _ in ev.fakes(10).inputs(4)])[:, 0]
        expected = Gs.run(latents, randomize_noise=False, truncation_psi=1)
        images = np.concatenate(list(ev.fakes(10, randomize_noise=False)))
        self.assertAllEqual(images, to_rgb(tf.constant(expected)))
        self.assertNotAllEqual(images, np.concatenate(list(ev.fakes(10))))
        seeds = tf.constant([[1, 2], [3, 4], [1, 2]])
        first, second = (ImageNoise(seeds).normal([3, 5, 5, 1]) for _ in range(2))
        self.assertAllEqual(first, second)
        self.assertAllEqual(first[0], first[2])
        self.assertNotAllClose(first[0], first[1])
        noise = ImageNoise(seeds)
        self.assertNotAllClose(noise.normal([3, 5]), noise.normal([3, 5]))
        values = np.random.RandomState(philox('x')).randn(100000)
        self.assertNear(values.mean(), 0, 0.02)
        big = ImageNoise(tf.constant(np.random.RandomState(0).randint(0, 2 ** 31, [400, 2]), tf.int32))
        flat = big.normal([400, 50]).numpy()
        self.assertNear(flat.std(), 1, 0.03)
        self.assertLess(np.abs(np.corrcoef(flat[:40])[~np.eye(40, dtype=bool)]).mean(), 0.15)

    def test_truncation(self):
        Gs = noisy_generator()
        ev = Evaluation(Gs)
        truncated = np.concatenate(list(ev.fakes(8, truncation=0.0, randomize_noise=False)))
        self.assertAllEqual(truncated, np.repeat(truncated[:1], 8, axis=0))
        flat = Evaluation(Gs, truncation=0.0)
        self.assertAllEqual(np.concatenate(list(flat.fakes(8, randomize_noise=False))), truncated)

    def test_clones_of_a_sweep_are_dropped(self):
        """Of networks that samplers clone, the one of all metrics stays and one of a sweep."""
        Gs, made = noisy_generator(), []

        def clone(network, truncation=None, **_):
            made.append(truncation)
            kwargs = {'truncation_psi': truncation or 1.0}
            return Sampler(network.clone('clone'), kwargs, truncation=truncation)
        with mock.patch('generation.samplers.make_sampler', clone):
            ev = Evaluation(Gs, batch=4)
            with ev.group([]):
                for truncation in (None, 0.5, 0.2, 0.1):
                    streams = [ev.fakes(4, truncation=truncation, randomize_noise=False) for _ in range(2)]
                    images = np.concatenate(list(streams[0]))
                    self.assertEqual(streams[0].key, streams[1].key)
                self.assertLen(ev._replicas.functions, 2)
                list(ev.fakes(4, randomize_noise=False))
                self.assertEqual(made, [None, 0.5, 0.2, 0.1])
                self.assertLen(ev._replicas.functions, 2)
            self.assertEqual((len(ev._replicas.functions), ev._samplers), (0, {}))
        expected = np.concatenate(list(Evaluation(Gs, truncation=0.1).fakes(4, randomize_noise=False)))
        self.assertAllEqual(images, expected)

    def test_labels(self):
        """Drawn as the data set has them; given ones; one class."""
        table = np.eye(3, dtype=np.float32)[[0, 0, 0, 2]]
        Gs = noisy_generator(label_size=3)
        ev = Evaluation(Gs, labels=table)
        rows = np.concatenate([labels for _, labels, _ in ev.fakes(400).inputs(32)])
        self.assertAllClose(rows.mean(axis=0), [0.75, 0, 0.25], atol=0.08)
        rows = np.concatenate([labels for _, labels, _ in ev.fakes(40, labels=1).inputs(32)])
        self.assertAllEqual(rows, np.eye(3)[[1] * 40])
        only = Evaluation(Gs, class_idx=2)
        rows = np.concatenate([labels for _, labels, _ in only.fakes(40).inputs(32)])
        self.assertAllEqual(rows, np.eye(3)[[2] * 40])
        self.assertNotAllEqual(np.concatenate(list(ev.fakes(4, labels=0))),
                               np.concatenate(list(ev.fakes(4, labels=1))))
        self.assertAllEqual(Evaluation(Gs).label_table, np.eye(3))
        with self.assertRaisesRegex(UserError, 'has 3 classes, the data set 2'):
            Evaluation(Gs, labels=np.eye(2)).fakes(4).inputs(4).__next__()

    def test_labels_of_large_sets(self):
        """Classes are drawn as often as the data set has them, without a row per image in memory."""
        training_set = CountingSet(12, label_size=3)
        training_set.class_indices = np.array([0] * 9 + [2] * 3, np.int32)
        ev = Evaluation(noisy_generator(label_size=3), DatasetSource(training_set))
        with mock.patch.object(Dataset, 'labels', property(self.fail)):
            rows = np.concatenate([labels for _, labels, _ in ev.fakes(400).inputs(32)])
            self.assertAllClose(rows.mean(axis=0), [0.75, 0, 0.25], atol=0.08)
            self.assertAllClose(ev.random_labels(ev.rng('x'), 400).mean(axis=0), [0.75, 0, 0.25], atol=0.08)
            self.assertAllEqual(ev.distinct_labels, np.eye(3)[[0, 2]])
            self.assertEqual(sorted(numbers(ev.reals(None, classes=[2]))[0]), [9, 10, 11])
        self.assertAllEqual(ev.label_table, np.eye(3)[[0] * 9 + [2] * 3])
        self.assertAllEqual(Evaluation(noisy_generator(label_size=3)).distinct_labels, np.eye(3))

    def test_class_names(self):
        training_set = CountingSet(label_size=3)
        training_set.label_names = ['a', 'b', 'c']
        Gs, names = noisy_generator(label_size=3), ['x', 'y', 'z']
        ev = Evaluation(Gs, DatasetSource(training_set), class_names=names)
        self.assertEqual(ev.class_names, list('abc'))
        self.assertEqual(Evaluation(Gs, class_names=names).class_names, names)
        self.assertIsNone(Evaluation(Gs, class_names=names[:2]).class_names)
        self.assertIsNone(Evaluation(Gs).class_names)

    def test_synthesize(self):
        """A way of one's own to make images: several latents each, keyed by its name."""
        Gs = noisy_generator()
        ev = Evaluation(Gs, batch=4)

        def mean(network, latents, labels, ctx):
            return network.get_output_for(tf.reduce_mean(latents, axis=1), labels, ctx=ctx)
        stream = ev.fakes(6, name='mean', num_latents=3, synthesize=mean)
        latents = np.concatenate([latents for latents, *_ in stream.inputs(6)])
        self.assertEqual(latents.shape, (6, 3, 6))
        self.assertEqual(np.concatenate(list(stream)).shape, (6, 8, 8, 3))
        self.assertNotEqual(stream.key, ev.fakes(6).key)

    def test_replicas_share_the_work(self):
        """Two replicas give what one gives, to the bit."""
        code = '''
import numpy as np, tensorflow as tf
from training.strategies import make_strategy
strategy = make_strategy(2)
from dnnlib import tflib
from metrics.evaluation import Evaluation
from metrics.image_sources import DatasetSource
from tests.metric_testutil import CountingSet, noisy_generator
from dnnlib.tflib.network import Network
first = noisy_generator()
with strategy.scope():
    second = Network.from_state(first.state())
results = []
for Gs, used in ((first, None), (second, strategy)):
    ev = Evaluation(Gs, DatasetSource(CountingSet(30)), batch=4, strategy=used)
    assert ev.num_replicas == (2 if used else 1)
    results.append([np.concatenate(list(ev.fakes(21))), ev.features(ev.fakes(21), 'random').all(),
                    *ev.features(ev.reals(23), 'random').moments()])
for one, other in zip(*results):
    np.testing.assert_array_equal(one, other)
print('equal')
'''
        done = subprocess.run([sys.executable, '-c', code], cwd=testutil.ROOT, capture_output=True, text=True,
                              env={**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'TF_CPP_MIN_LOG_LEVEL': '3'},
                              timeout=300)
        self.assertEqual(done.stdout, 'equal\n', done.stderr)
        self.assertNotIn('retracing', done.stderr)


class TrainingTest(tf.test.TestCase):

    def test_growing_networks_take_fewer_images(self):
        Gs = noisy_generator()
        first = for_training(None, Gs=Gs, training_set=CountingSet(), minibatch_gpu=64, cache_dir=None)
        self.assertEqual(first.batch, 32)
        later = for_training(first, Gs=Gs, training_set=CountingSet(), minibatch_gpu=4, cache_dir=None)
        self.assertIs(later, first)
        self.assertEqual(later.batch, 8)

    def test_asked_to_stop(self):
        """Measuring ends at once, without results of the snapshot before, and leaves nothing half-written."""
        folder, stop = tempfile.mkdtemp(), []
        self.addCleanup(shutil.rmtree, folder)
        kwargs = dict(Gs=noisy_generator(), training_set=CountingSet(), cache_dir=folder, run_dir=folder,
                      should_stop=lambda: bool(stop))
        group = MetricGroup([dict(func_name='metrics.frechet_inception_distance.FID', extractor='random',
                                  name='fd', num_images=4 + i) for i in range(2)])
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            group.run('a.pkl', **kwargs)
        self.assertLen(group.results(), 1)
        before = sorted(os.listdir(folder))
        stop.append(1)
        for i, metric in enumerate(group.metrics):
            metric.num_images = 20 + i
        out = io.StringIO()
        with mock.patch('metrics.replica_map.STOP_EVERY', -1), contextlib.redirect_stdout(out), \
                contextlib.redirect_stderr(io.StringIO()):
            group.run('b.pkl', **kwargs)
        self.assertEqual((group.results(), group.stopped), ({}, True))
        self.assertEqual(out.getvalue(), 'Asked to stop: fd is not measured of b.pkl; run_metrics.py can do '
                                         'it later\n')
        self.assertEqual([name for name in sorted(os.listdir(folder)) if not name.endswith('.lock')],
                         [name for name in before if not name.endswith('.lock')])

    def test_functions_are_traced_once(self):
        """The live generator changes from snapshot to snapshot; what was traced reads its new values."""
        Gs = noisy_generator()
        training_set = CountingSet()
        first = None
        results = []
        for _ in range(3):
            ev = for_training(first, Gs=Gs, training_set=training_set, minibatch_gpu=2, cache_dir=None)
            self.assertEqual(ev.batch, 8)
            self.assertIn(first, (None, ev))
            first = ev
            with ev.group([MetricBase('a', 'random')]):
                results.append(ev.features(ev.fakes(8), 'random').all())
            self.assertLen(ev._replicas.functions, 1)
            for variable in Gs.trainables.values():
                variable.assign(variable.value * 1.3)
        self.assertGreater(np.abs(results[0] - results[1]).max(), 1e-3)
        self.assertEqual(next(iter(ev._replicas.functions.values())).experimental_get_tracing_count(), 1)

    def test_rng(self):
        one, other = Evaluation(seed=3), Evaluation(seed=4)
        self.assertAllEqual(one.rng('a').rand(5), Evaluation(seed=3).rng('a').rand(5))
        self.assertNotAllEqual(one.rng('a').rand(5), one.rng('b').rand(5))
        self.assertNotAllEqual(one.rng('a').rand(5), other.rng('a').rand(5))


class ProgressTest(tf.test.TestCase):

    def test_lines(self):
        out, now = io.StringIO(), [0.0]
        with contextlib.redirect_stdout(out), mock.patch.object(progress.time, 'monotonic', lambda: now[0]), \
                progress.Progress('fid5k: reals', 5000) as bar:
            for _ in range(5):
                now[0] += 10
                bar.update(1000)
        self.assertEqual(out.getvalue().splitlines()[0],
                         'fid5k: reals: 2000/5000 img, 100.0 img/s, 30s left')
        self.assertLen(out.getvalue().splitlines(), 2)

    def test_terminal(self):
        class Terminal(io.StringIO):
            def isatty(self):
                return True
        with contextlib.redirect_stderr(Terminal()) as err, progress.Progress('fakes', 10) as bar:
            bar.update(5)
            bar._bar.refresh()
        self.assertIn('fakes:  50%', err.getvalue())


if __name__ == '__main__':
    tf.test.main()
