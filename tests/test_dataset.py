"""Order of images, minibatches, reading ahead, the embedded data set, what happens to reals."""

import threading
import time
import unittest.mock

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError
from tests import testutil
from tests.dataset_testutil import Base, random_images
from training import dataset
from training.context import StepContext


class EmbeddedTest(Base):

    def test_content(self):
        found = dataset.load_dataset()
        self.assertEqual((found.name, found.shape), ('pixelart32', [3, 32, 32]))
        self.assertEqual((found.num_images, len(found)), (4096, 4096))
        images, labels = found.read(np.arange(4096))
        self.assertEqual(labels.shape, (4096, 0))
        self.assertLen({image.tobytes() for image in images}, 4096)
        self.assertEqual(dataset.load_dataset(dataset='pixelart32').fingerprint, found.fingerprint)

    def test_labels(self):
        found = dataset.load_dataset(max_label_size='full')
        self.assertEqual(found.label_size, 8)
        self.assertEqual(sum(found.class_counts().values()), 4096)
        self.assertGreater(min(found.class_counts().values()), 400)
        self.assertIn('#8d5524', found.class_counts())
        self.assertEqual(dataset.load_dataset(max_label_size='full', label_attr='hatVariant').label_size, 11)

    def test_fingerprint(self):
        images = random_images(40, 8)
        prints = [dataset.load_dataset(self.save_npz(images=images)).fingerprint]
        changed = images.copy()
        changed[0, 0, 0, 0] ^= 1
        prints.append(dataset.load_dataset(self.save_npz(images=changed)).fingerprint)
        prints.append(dataset.load_dataset(self.save_npz(images=images[:39])).fingerprint)
        for labels in [np.arange(40) % 2, np.arange(40) % 3]:
            path = self.save_npz(images=images, labels=labels)
            prints.append(dataset.load_dataset(path, max_label_size='full').fingerprint)
        self.assertLen(set(prints), 5)
        path = self.save_npz('other.npz', images=images)
        self.assertEqual(dataset.load_dataset(path).fingerprint, prints[0])

    def test_verbose(self):
        with unittest.mock.patch('builtins.print') as printed:
            dataset.load_dataset(max_label_size='full', verbose=True)
        text = '\n'.join(str(call.args[0]) for call in printed.call_args_list)
        for fragment in ['pixelart32', '4096', '[3, 32, 32]', 'Label size: 8', '#8d5524: 534']:
            self.assertIn(fragment, text)


class SmallSet(Base):
    """37 images whose labels are their indices."""

    def setUp(self):
        super().setUp()
        self.images = random_images(37, 4)
        path = self.save_npz(images=self.images, labels=np.arange(37))
        self.set = dataset.load_dataset(path, max_label_size='full')


class OrderTest(SmallSet):

    def test_epochs_are_permutations(self):
        epochs = self.set.order(0, 37 * 5).reshape(5, 37)
        self.assertAllEqual(np.sort(epochs, axis=1), np.tile(np.arange(37), [5, 1]))
        self.assertLen({tuple(epoch) for epoch in epochs}, 5)
        self.assertNotAllEqual(self.set.order(0, 37, seed=1), epochs[0])
        self.assertAllEqual(self.set.order(0, 37, seed=self.set.seed), epochs[0])
        self.assertEqual(self.set.order(5, 0).shape, (0,))

    def test_does_not_change_between_versions(self):
        # Stored runs continue with this order.
        self.assertAllEqual(self.set.order(35, 6, seed=3), [14, 27, 9, 31, 27, 30])
        self.assertAllEqual(self.set.mirror_flips(4092, 8, seed=3), [0, 1, 0, 0, 0, 1, 0, 1])

    def test_random_access_equals_sequence(self):
        whole = self.set.order(0, 400)
        flips = self.set.mirror_flips(0, 9000)
        random = np.random.RandomState(0)
        for _ in range(50):
            start, count = random.randint(300), random.randint(100)
            self.assertAllEqual(self.set.order(start, count), whole[start:start + count])
            start = random.randint(8900)
            self.assertAllEqual(self.set.mirror_flips(start, count), flips[start:start + count])
        self.assertAllEqual(self.set.mirror_flips(4096 - 8, 8), flips[4088:4096])
        self.assertNear(flips.mean(), 0.5, 0.02)
        self.assertNear(np.mean(flips[:4096] == flips[4096:8192]), 0.5, 0.05)  # No period.
        self.assertNotAllEqual(self.set.mirror_flips(0, 100, seed=1), flips[:100])
        with self.assertRaises(ValueError):
            self.set.order(-1, 2)

    def test_minibatches(self):
        batches = self.set.minibatches(10, 8, seed=5, mirror_augment=True)
        position = 10
        mirrored = 0
        for _ in range(8):
            images, labels = next(batches)
            indices = self.set.order(position, 8, seed=5)
            expected = self.images[indices]
            flips = self.set.mirror_flips(position, 8, seed=5)
            mirrored += flips.sum()
            expected = np.stack([i[:, ::-1] if f else i for i, f in zip(expected, flips, strict=True)])
            self.assertAllEqual(images, expected)
            self.assertAllEqual(labels.argmax(axis=1), indices)
            position += 8
        self.assertBetween(mirrored, 15, 50)
        resumed = next(self.set.minibatches(position, 8, seed=5, mirror_augment=True))
        self.assertAllEqual(resumed[0], next(batches)[0])
        self.assertAllEqual(next(self.set.minibatches(0, 4))[0], self.images[self.set.order(0, 4)])
        self.assertEqual(next(self.set.minibatches(0, 4, lod=1))[0].shape, (4, 2, 2, 3))

    def test_shards_partition_the_minibatch(self):
        whole = self.set.minibatches(30, 12, mirror_augment=True)
        shards = [self.set.minibatches(30, 12, mirror_augment=True, shard=(i, 3)) for i in range(3)]
        for _ in range(4):
            parts = [next(shard) for shard in shards]
            images, labels = next(whole)
            self.assertAllEqual(np.concatenate([part[0] for part in parts]), images)
            self.assertAllEqual(np.concatenate([part[1] for part in parts]), labels)
        with self.assertRaisesRegex(UserError, 'minibatch of 12 .* 5 readers'):
            self.set.minibatches(0, 12, shard=(0, 5))
        with self.assertRaises(ValueError):
            self.set.minibatches(0, 12, shard=(3, 3))

    def test_get_minibatch_np(self):
        images, labels = self.set.get_minibatch_np(5)
        self.assertAllEqual(images, testutil.nchw(self.images[self.set.order(0, 5)]))
        self.assertAllEqual(labels.argmax(axis=1), self.set.order(0, 5))
        self.assertAllEqual(self.set.get_minibatch_np(5)[1].argmax(axis=1), self.set.order(5, 5))

    def test_official_reader(self):
        """What has no effect is accepted; what would have one is answered by what to use instead."""
        found = dataset.load_dataset(self.set.path, class_name='training.dataset.TFRecordDataset',
                                     repeat=True, shuffle_mb=4096, prefetch_mb=2048, buffer_mb=256,
                                     num_threads=2)
        found.configure(3)
        self.assertAllEqual(found.get_minibatch_np(5)[0], self.set.get_minibatch_np(5)[0])
        for arguments in (dict(shuffle_mb=0), dict(repeat=False)):
            with self.assertRaisesRegex(UserError, r'is not supported: .* Dataset\.read\('):
                dataset.load_dataset(self.set.path, **arguments)
            with self.assertRaisesRegex(UserError, 'is not supported'):
                dataset.TFRecordDataset('nowhere', **arguments)
        with self.assertRaisesRegex(UserError, "class_name='my.Dataset' is not supported"):
            dataset.load_dataset(self.set.path, class_name='my.Dataset')
        with self.assertRaisesRegex(TypeError, "'max_image'"):
            dataset.load_dataset(self.set.path, max_image=3)
        with self.assertRaisesRegex(UserError, r'use Dataset\.minibatches\('):
            found.get_minibatch_tf()

    def test_read_checks_its_arguments(self):
        for indices in [[37], [-1]]:
            with self.assertRaises(IndexError):
                self.set.read(indices)
        with self.assertRaises(ValueError):
            self.set.read([0], lod=3)
        self.assertEqual(self.set.read([])[0].shape, (0, 4, 4, 3))


class LabelSamplingTest(Base):

    def test_uniform(self):
        labels = np.array([5] * 30 + [2] * 3 + [0] * 7)
        path = self.save_npz(images=random_images(40, 4), labels=labels)
        drawn = {}
        for kind in ['data', 'uniform']:
            found = dataset.load_dataset(path, max_label_size='full', label_sampling=kind)
            ctx = StepContext(tf.constant([1, 2]), tf.constant(found.label_table))
            drawn[kind] = ctx.random_labels(6000).numpy().mean(axis=0)
            again = StepContext(tf.constant([1, 2]), tf.constant(found.label_table)).random_labels(6000)
            self.assertAllEqual(drawn[kind], again.numpy().mean(axis=0))
        # Four standard deviations. No label that does not occur in the data.
        self.assertAllClose(drawn['data'], [0.175, 0, 0.075, 0, 0, 0.75], rtol=0, atol=0.025)
        self.assertAllClose(drawn['uniform'], [1 / 3, 0, 1 / 3, 0, 0, 1 / 3], rtol=0, atol=0.025)
        self.assert_user_error("'even'", 'data, uniform', dataset=path, label_sampling='even')
        self.assertEqual(dataset.load_dataset(path, label_sampling='uniform').label_table.shape, (40, 0))

    def test_vectors(self):
        labels = np.array([[0, 1], [0.5, 0.5], [0, 1], [0, 1]], np.float32)
        path = self.save_npz(images=random_images(4, 4), labels=labels)
        found = dataset.load_dataset(path, max_label_size='full', label_sampling='uniform')
        self.assertAllEqual(found.label_table, [[0, 1], [0.5, 0.5]])


class KeepOpenTest(Base):

    def test_handed_on_once(self):
        path = self.save_npz(images=random_images(4, 4))
        first = dataset.opened_dataset(dataset=path, seed=1)
        dataset.keep_open(first, dataset=path, seed=1)
        self.assertIsNot(dataset.opened_dataset(dataset=path, seed=2), first)
        self.assertIs(dataset.opened_dataset(seed=1, dataset=path), first)
        self.assertIsNot(dataset.opened_dataset(dataset=path, seed=1), first)


class PrefetchTest(SmallSet):

    def test_equals_direct_reading(self):
        direct = self.set.minibatches(3, 8, mirror_augment=True)
        with self.set.prefetch_minibatches(3, 8, mirror_augment=True) as ahead:
            for _ in range(12):
                expected, actual = next(direct), next(ahead)
                self.assertAllEqual(actual[0], expected[0])
                self.assertAllEqual(actual[1], expected[1])

    def test_reads_ahead_but_not_far(self):
        taken = []
        source = (taken.append(i) or i for i in range(100))
        with dataset.Prefetcher(source, depth=3) as ahead:
            deadline = time.time() + 10
            while len(taken) < 4 and time.time() < deadline:
                time.sleep(0.01)
            time.sleep(0.3)
            self.assertLen(taken, 4)    # Three wait, one is in the hand.
            self.assertEqual([next(ahead) for _ in range(3)], [0, 1, 2])

    def test_several_threads_keep_the_order(self):
        random = np.random.RandomState(0)
        delays = random.rand(200) * 0.002

        def work(number):
            time.sleep(delays[number])
            if number == 150:
                raise UserError('number 150')
            return number
        with dataset.Prefetcher(iter(range(200)), depth=5, function=work, threads=4) as ahead:
            self.assertEqual([next(ahead) for _ in range(150)], list(range(150)))
            with self.assertRaisesRegex(UserError, 'number 150'):
                next(ahead)

    def test_exceptions_arrive(self):
        def source():
            yield 1
            raise UserError('broken file')
        ahead = dataset.Prefetcher(source())
        self.assertEqual(next(ahead), 1)
        with self.assertRaisesRegex(UserError, 'broken file'):
            next(ahead)
        with self.assertRaises(StopIteration):
            next(ahead)
        self.assertEqual(list(dataset.Prefetcher(iter(range(7)))), list(range(7)))
        with self.assertRaises(ValueError):
            dataset.Prefetcher(iter([]), depth=0)

    def test_threads_end(self):
        def threads():
            return [thread for thread in threading.enumerate() if thread.name == 'prefetch']
        before = len(threads())
        closed, dropped = (self.set.prefetch_minibatches(0, 4) for _ in range(2))
        next(closed)
        self.assertLen(threads(), before + 4)
        closed.close()
        closed.close()
        with self.assertRaises(StopIteration):
            next(closed)
        self.assertLen(threads(), before + 2)
        del dropped
        deadline = time.time() + 10
        while len(threads()) > before and time.time() < deadline:
            time.sleep(0.05)
        self.assertLen(threads(), before)


class ProcessRealsTest(tf.test.TestCase):

    def test_golden(self):
        arrays = testutil.load('primitives', 'stylegan2_images.npz')
        reals = testutil.nhwc(arrays['reals_uint8'])
        for lod in [0, 0.4, 1, 1.7, 2.25]:
            expected = testutil.nhwc(arrays[f'process_reals_lod{lod:g}'])
            actual = dataset.process_reals(reals, lod)
            self.assertEqual(actual.dtype, tf.float32)
            testutil.assert_close(self, actual, expected, rtol=0, atol_rel=1e-6, msg=f'lod {lod}')
            traced = tf.function(lambda x, t, f=int(lod): dataset.process_reals(x, t, lod_floor=f))
            actual = traced(tf.constant(reals), tf.constant(lod, tf.float32))
            testutil.assert_close(self, actual, expected, rtol=0, atol_rel=1e-6, msg=f'traced, lod {lod}')
        # The official graph keeps an image where its uniform number is below 1/2.
        actual = dataset.process_reals(reals, mirror=arrays['mirror_u'] >= 0.5)
        expected = testutil.nhwc(arrays['process_reals_mirror_lod0'])
        testutil.assert_close(self, actual, expected, rtol=0, atol_rel=1e-6)

    def test_dynamic_range(self):
        images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
        self.assertAllClose(dataset.process_reals(images, drange_net=(0, 1)), images / 255.0, atol=1e-6)
        self.assertAllClose(dataset.process_reals(images), images / 127.5 - 1, atol=1e-6)

    def test_shapes_in_graphs(self):
        signature = [tf.TensorSpec([None, 8, 8, 3], tf.uint8), tf.TensorSpec([], tf.float32)]

        @tf.function(input_signature=signature)
        def process(images, lod):
            result = dataset.process_reals(images, lod, lod_floor=1)
            self.assertEqual(result.shape.as_list(), [None, 16, 16, 3])
            with self.assertRaisesRegex(ValueError, 'lod_floor'):
                dataset.process_reals(images, lod)
            return result
        images = random_images(2, 8)
        self.assertAllClose(process(images, 1.5), dataset.process_reals(images, 1.5), atol=1e-6)


class ReduceTest(tf.test.TestCase):

    def test_against_formula(self):
        images = random_images(3, 16)
        self.assertIs(dataset.reduce_images(images, 0), images)
        for levels in [1, 2, 3, 4]:
            size = 16 >> levels
            blocks = images.astype(np.float64).reshape(3, size, 1 << levels, size, 1 << levels, 3)
            self.assertAllEqual(dataset.reduce_images(images, levels), np.rint(blocks.mean(axis=(2, 4))))


if __name__ == '__main__':
    tf.test.main()
