"""Data sets: official files, image folders, NPZ files, the embedded set; order, minibatches, reading ahead."""

import json
import os
import shutil
import threading
import time

import numpy as np
import PIL.Image
import tensorflow as tf

from dnnlib.util import UserError
from tests import testutil
from training import dataset, dataset_base, tfrecord


def random_images(count: int, size: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, [count, size, size, channels]).astype(np.uint8)


def write_record_file(path: str, images: np.ndarray) -> None:
    """NHWC images as an official TFRecord file, written by TensorFlow."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for image in images.transpose(0, 3, 1, 2):
            shape = tf.train.Feature(int64_list=tf.train.Int64List(value=image.shape))
            data = tf.train.Feature(bytes_list=tf.train.BytesList(value=[image.tobytes()]))
            features = tf.train.Features(feature={'shape': shape, 'data': data})
            writer.write(tf.train.Example(features=features).SerializeToString())


class Base(tf.test.TestCase):

    def path(self, *parts: str) -> str:
        path = os.path.join(self.get_temp_dir(), self._testMethodName, *parts)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def save(self, name: str, image: np.ndarray, mode: str | None = None, **options) -> str:
        path = self.path('images', name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        picture = PIL.Image.fromarray(image[:, :, 0] if image.shape[-1] == 1 else image)
        (picture.convert(mode) if mode else picture).save(path, **options)
        return path

    def save_npz(self, name: str = 'set.npz', **arrays: np.ndarray) -> str:
        path = self.path(name)
        np.savez(path, **arrays)
        return path

    def assert_user_error(self, *fragments: str, **arguments) -> None:
        """load_dataset fails with one line that holds all fragments."""
        with self.assertRaises(UserError) as caught:
            dataset.load_dataset(**arguments)
        self.assert_message(caught.exception, *fragments)

    def assert_message(self, error: Exception, *fragments: str) -> None:
        self.assertNotIn('\n', str(error))
        for fragment in fragments:
            self.assertIn(fragment, str(error))


class ChecksumTest(tf.test.TestCase):

    def test_known_values(self):
        for text, value in [(b'123456789', 0xE3069283), (b'', 0), (b'\0' * 32, 0x8A9136AA), (b'\xff' * 32, 0x62A8AB43)]:
            data = np.frombuffer(text, np.uint8)[None]
            self.assertEqual(int(tfrecord.crc32c(data)[0]), value)

    def test_fold_is_a_multiple_of_the_polynomial(self):
        polynomial = (1 << 32) | 0x1EDC6F41
        value = sum(1 << exponent for exponent in tfrecord.FOLD)
        while value.bit_length() > 32:
            value ^= polynomial << (value.bit_length() - 33)
        self.assertEqual(value, 0)

    def test_all_lengths_against_bitwise_formula(self):
        def reference(data: bytes) -> int:
            register = 0xFFFFFFFF
            for byte in data:
                register ^= byte
                for _ in range(8):
                    register = (register >> 1) ^ (0x82F63B78 * (register & 1))
            return register ^ 0xFFFFFFFF
        random = np.random.RandomState(0)
        for size in [*range(1, 40), 127, 1000, 5684, 5685, 5686, 5700, 12345, 50000]:
            data = random.randint(0, 256, [2, size]).astype(np.uint8)
            self.assertAllEqual(tfrecord.crc32c(data), [reference(row.tobytes()) for row in data], f'{size} bytes')

    def test_many_rows_equal_single_rows(self):
        data = np.random.RandomState(0).randint(0, 256, [7, 300001]).astype(np.uint8)
        self.assertAllEqual(tfrecord.crc32c(data), [tfrecord.crc32c(row[None])[0] for row in data])


class TFRecordTest(Base):

    def make(self, count: int = 12, size: int = 16, channels: int = 3, labels: np.ndarray | None = None) -> str:
        folder = self.path('made')
        os.makedirs(folder)
        images = random_images(count, size, channels)
        for level in range(2, size.bit_length()):
            levels = size.bit_length() - 1 - level
            write_record_file(f'{folder}/made-r{level:02d}.tfrecords', dataset.reduce_images(images, levels))
        if labels is not None:
            with open(f'{folder}/made-rxx.labels', 'wb') as file:
                np.save(file, labels)
        return folder

    @testutil.needs_golden
    def test_golden_sets(self):
        for name in ['rgb16', 'gray8']:
            arrays = testutil.load('tfrecords', f'{name}.npz')
            label_size = arrays['read_labels'].shape[1]
            found = dataset.load_dataset(testutil.golden('tfrecords'), name, max_label_size='full' if label_size else 0)
            self.assertIsInstance(found, dataset.TFRecordDataset)
            meta = arrays['meta']
            self.assertEqual(found.shape, meta['shape'])
            self.assertEqual(found.dynamic_range, meta['dynamic_range'])
            self.assertEqual(found.resolution_log2, meta['resolution_log2'])
            self.assertEqual(found.label_size, meta['label_size'])
            self.assertEqual((found.name, found.dtype, found.label_dtype), (name, 'uint8', 'float32'))
            everything = np.arange(len(found))
            for lod in range(meta['resolution_log2'] - 1):
                images, labels = found.read(everything, lod)
                self.assertEqual(images.dtype, np.uint8)
                self.assertAllEqual(testutil.nchw(images), arrays[f'read_images_lod{lod}'])
                self.assertAllEqual(labels, arrays['read_labels'])
                # The lower levels are what averaging the highest one gives.
                reduced = dataset.reduce_images(testutil.nhwc(arrays['read_images_lod0']), lod)
                self.assertAllEqual(images, reduced)
            picks = np.array([7, 0, 7, 3])
            self.assertAllEqual(testutil.nchw(found.read(picks)[0]), arrays['read_images_lod0'][picks])
            self.assertAllEqual(testutil.nchw(found.read(everything)[0]), arrays['images'][arrays['order']])

    @testutil.needs_golden
    def test_resolution_picks_the_level(self):
        arrays = testutil.load('tfrecords', 'rgb16.npz')
        found = dataset.load_dataset(testutil.golden('tfrecords'), 'rgb16', resolution=8)
        self.assertEqual(found.shape, [3, 8, 8])
        self.assertAllEqual(testutil.nchw(found.read(np.arange(24))[0]), arrays['read_images_lod1'])
        self.assert_user_error('no level of 32x32', '4x4, 8x8, 16x16', data_dir=testutil.golden('tfrecords'),
                               dataset='rgb16', resolution=32)

    def test_lod_without_its_level_file(self):
        folder = self.make()
        expected = dataset.load_dataset(folder).read(np.arange(12), lod=1)[0]
        os.remove(f'{folder}/made-r03.tfrecords')
        self.assertAllEqual(dataset.load_dataset(folder).read(np.arange(12), lod=1)[0], expected)

    def test_labels(self):
        labels = dataset_base.one_hot(np.arange(12) % 3, 'labels')
        folder = self.make(labels=labels)
        found = dataset.load_dataset(folder, max_label_size='full')
        self.assertAllEqual(found.read([5, 1])[1], labels[[5, 1]])
        self.assertEqual(found.class_counts(), {'0': 4, '1': 4, '2': 4})
        self.assertAllEqual(dataset.load_dataset(folder, max_label_size=2).labels, labels[:, :2])
        none = dataset.load_dataset(folder)
        self.assertEqual(none.read([1])[1].shape, (1, 0))
        self.assertEqual(none.get_random_labels_np(3).shape, (3, 0))
        drawn = found.get_random_labels_np(200, np.random.RandomState(0))
        self.assertAllEqual(drawn.sum(axis=1), np.ones(200))
        self.assertGreater(drawn.sum(axis=0).min(), 40)
        self.assertEqual(len(dataset.load_dataset(folder, max_label_size='full', max_images=5).labels), 5)

    def test_label_errors(self):
        folder = self.make(labels=np.eye(11, dtype=np.float32))
        self.assert_user_error('made-rxx.labels', '[11, 11]', '12 images', dataset=folder)
        with open(f'{folder}/made-rxx.labels', 'wb') as file:
            file.write(b'nothing')
        self.assert_user_error('made-rxx.labels', 'not a NumPy array', dataset=folder)
        os.remove(f'{folder}/made-rxx.labels')
        self.assert_user_error('labels were asked for', '*.labels', dataset=folder, max_label_size='full')
        for value in [-1, 'all', True, 1.5]:
            self.assert_user_error('max_label_size', repr(value), dataset=folder, max_label_size=value)

    def test_cut_off_in_a_record(self):
        folder = self.make()
        path = f'{folder}/made-r04.tfrecords'
        record = os.path.getsize(path) // 12
        for keep, number in [(12 * record - 1, 11), (5 * record + 100, 5), (3 * record + 4, 3), (record - 1, 0), (7, 0)]:
            os.truncate(shutil.copy(path, self.path('cut', 'x.tfrecords')), keep)
            self.assert_user_error('x.tfrecords', f'record {number} ', 'cut off', dataset=self.path('cut'))
        os.truncate(self.path('cut', 'x.tfrecords'), 0)
        self.assert_user_error('x.tfrecords', 'is empty', dataset=self.path('cut'))

    def test_cut_off_between_records(self):
        folder = self.make(labels=np.eye(12, dtype=np.float32))
        for level in [2, 3, 4]:
            path = f'{folder}/made-r{level:02d}.tfrecords'
            os.truncate(path, os.path.getsize(path) // 12 * 9)
            # Other levels tell while one is whole, the labels once all are cut.
            fragments = ['holds 12', 'holds 9'] if level < 4 else ['.labels', '[12, 12]', '9 images']
            self.assert_user_error(*fragments, dataset=folder)

    def test_damage(self):
        folder = self.make()
        path = f'{folder}/made-r04.tfrecords'
        whole = np.fromfile(path, np.uint8)
        record = len(whole) // 12
        for place, number, problem in [(record * 7 + 300, 7, 'checksum of its data'), (record * 4 + 2, 4, 'header'),
                                       (record * 3 - 2, 2, 'checksum of its data'), (record * 9 + 9, 9, 'header')]:
            damaged = whole.copy()
            damaged[place] ^= 16
            damaged.tofile(path)
            found = dataset.load_dataset(folder)
            for _ in range(2):
                with self.assertRaises(UserError) as caught:
                    found.read([1, number, 5])
                self.assert_message(caught.exception, 'made-r04.tfrecords', f'record {number} ', problem)
            self.assertEqual(found.read([0, 1])[0].shape, (2, 16, 16, 3))
        whole[2] ^= 1
        whole.tofile(path)
        self.assert_user_error('made-r04.tfrecords', 'record 0 ', 'not a TFRecord file', dataset=folder)

    def test_verify_modes(self):
        images = random_images(3, 8)
        path = self.path('x.tfrecords')
        write_record_file(path, images)
        files = {mode: tfrecord.ImageRecords(path, mode) for mode in ['first', True, False]}
        for file in files.values():
            self.assertAllEqual(file.read(np.arange(3)), images)
        with open(path, 'r+b') as file:
            file.seek(os.path.getsize(path) - 40)
            file.write(b'????')
        for mode in ['first', False]:
            self.assertEqual(files[mode].read(np.array([2])).shape, (1, 8, 8, 3))
        with self.assertRaisesRegex(UserError, 'record 2 .*checksum'):
            files[True].read(np.array([2]))

    def test_records_in_other_layouts(self):
        images = random_images(4, 8)
        path = self.path('folder', 'x.tfrecords')
        # Features in both orders, of one length; then one record with an extra feature, of another length.
        def entry(key, value):
            feature = value.SerializeToString()
            body = b'\x0a' + bytes([len(key)]) + key + b'\x12' + varint(len(feature)) + feature
            return b'\x0a' + varint(len(body)) + body

        def varint(value):
            return bytes([value]) if value < 128 else bytes([value & 127 | 128, value >> 7])
        for extra in [False, True]:
            with tf.io.TFRecordWriter(path) as writer:
                for i, image in enumerate(images.transpose(0, 3, 1, 2)):
                    shape = tf.train.Feature(int64_list=tf.train.Int64List(value=image.shape))
                    data = tf.train.Feature(bytes_list=tf.train.BytesList(value=[image.tobytes()]))
                    parts = [entry(b'shape', shape), entry(b'data', data)]
                    parts = parts[::-1] if i % 2 else parts
                    parts += [entry(b'note', shape)] if extra and i == 2 else []
                    body = b''.join(parts)
                    writer.write(b'\x0a' + varint(len(body)) + body)
            found = dataset.load_dataset(os.path.dirname(path))
            self.assertLen(found, 4)
            self.assertAllEqual(found.read([3, 0, 1, 2])[0], images[[3, 0, 1, 2]])

    def test_pixels_that_look_like_their_frame(self):
        # The bytes before the pixels end in the length 0x10 of a 4×4 gray image: all-0x10 pixels are found too early.
        images = random_images(6, 4, 1)
        images[0] = 0x10
        images[2, 3, 3] = 0x10
        path = self.path('folder', 'x.tfrecords')
        write_record_file(path, images)
        self.assertAllEqual(dataset.load_dataset(os.path.dirname(path)).read(np.arange(6))[0], images)

    def test_wrong_content(self):
        path = self.path('folder', 'x.tfrecords')
        write_record_file(path, np.zeros([2, 16, 8, 3], np.uint8))
        self.assert_user_error('x.tfrecords', '8x16', 'power of two', dataset=os.path.dirname(path))
        write_record_file(path, np.zeros([2, 12, 12, 3], np.uint8))
        self.assert_user_error('x.tfrecords', '12x12', 'power of two', dataset=os.path.dirname(path))
        write_record_file(path, np.zeros([2, 8, 8, 4], np.uint8))
        self.assert_user_error('x.tfrecords', '4 channels', dataset=os.path.dirname(path))
        with tf.io.TFRecordWriter(path) as writer:
            writer.write(tf.train.Example().SerializeToString())
        self.assert_user_error('x.tfrecords', "no feature 'shape'", dataset=os.path.dirname(path))
        with tf.io.TFRecordWriter(path, 'GZIP') as writer:
            writer.write(b'x')
        self.assert_user_error('x.tfrecords', 'compressed', dataset=os.path.dirname(path))
        write_record_file(path, np.zeros([2, 8, 8, 3], np.uint8))
        write_record_file(self.path('folder', 'y.tfrecords'), np.zeros([2, 8, 8, 3], np.uint8))
        self.assert_user_error('x.tfrecords', 'y.tfrecords', 'both', dataset=os.path.dirname(path))

    def test_remote_paths(self):
        folder = self.make(labels=np.eye(12, dtype=np.float32))
        local = dataset.load_dataset(folder, max_label_size='full')
        remote = dataset.load_dataset('file://' + folder, max_label_size='full')
        self.assertEqual(remote.fingerprint, local.fingerprint)
        self.assertAllEqual(remote.read([5, 2])[0], local.read([5, 2])[0])
        self.assert_user_error('no data set at file://', dataset='file://' + folder + '/nothing')


class NpzTest(Base):

    def test_read_and_reduce(self):
        images = random_images(5, 16)
        path = self.save_npz(images=images)
        found = dataset.load_dataset(path)
        self.assertEqual((found.shape, len(found), found.name), ([3, 16, 16], 5, 'set'))
        self.assertAllEqual(found.read([4, 0])[0], images[[4, 0]])
        small = dataset.load_dataset(os.path.dirname(path), 'set.npz', resolution=4)
        blocks = images.reshape(5, 4, 4, 4, 4, 3).astype(np.float64).mean(axis=(2, 4))
        self.assertAllEqual(small.read(np.arange(5))[0], np.rint(blocks))
        self.assertAllEqual(found.read(np.arange(5), lod=2)[0], np.rint(blocks))
        for resolution in [32, 12, 2]:
            self.assert_user_error('set.npz', f'resolution {resolution}', '16x16', dataset=path, resolution=resolution)

    def test_reading_does_not_expose_the_store(self):
        images = random_images(4, 8)
        found = dataset.load_dataset(self.save_npz(images=images))
        found.read([1, 2])[0][:] = 0
        self.assertAllEqual(found.read(np.arange(4))[0], images)

    def test_gray(self):
        images = random_images(3, 8, 1)
        found = dataset.load_dataset(self.save_npz(images=images[..., 0]))
        self.assertEqual(found.shape, [1, 8, 8])
        self.assertAllEqual(found.read([2])[0], images[[2]])

    def test_labels(self):
        images = random_images(4, 8)
        path = self.save_npz(images=images, labels=np.array([2, 0, 1, 2]), **{
            'attr/hat': np.array([0, 1, 1, 0], np.uint8), 'values/hat': np.array(['none', 'red', 'blue'])})
        self.assertAllEqual(dataset.load_dataset(path, max_label_size='full').labels, np.eye(3)[[2, 0, 1, 2]])
        hats = dataset.load_dataset(path, max_label_size='full', label_attr='hat')
        self.assertAllEqual(hats.labels, np.eye(3)[[0, 1, 1, 0]])
        self.assertEqual(hats.class_counts(), {'none': 2, 'red': 2, 'blue': 0})
        self.assert_user_error("'shoe'", 'hat', dataset=path, max_label_size=1, label_attr='shoe')
        soft = np.random.RandomState(0).rand(4, 6).astype(np.float32)
        path = self.save_npz('soft.npz', images=images, labels=soft)
        self.assertAllEqual(dataset.load_dataset(path, max_label_size=4).labels, soft[:, :4])

    def test_label_errors(self):
        images = random_images(4, 8)
        for labels, fragment in [(np.array([0, 1, 2]), '[3]'), (np.array([0., 1, 2, 3]), 'float64'),
                                 (np.array([0, -1, 2, 3]), 'from -1'), (np.array([0, 1, 2, 10**9]), '1000000000')]:
            path = self.save_npz(images=images, labels=labels)
            self.assert_user_error('set.npz', fragment, dataset=path, max_label_size='full')
            self.assertEqual(dataset.load_dataset(path).label_size, 0)
        path = self.save_npz('attr.npz', images=images, **{'attr/hat': np.zeros(4, np.uint8), 'values/hat': np.array([''])})
        self.assert_user_error('label_attr: hat', dataset=path, max_label_size='full')

    def test_errors(self):
        self.assert_user_error('"images"', 'pictures', dataset=self.save_npz(pictures=np.zeros([2, 8, 8, 3], np.uint8)))
        for shape, fragment in [([2, 8, 16, 3], '16x8'), ([2, 12, 12, 3], '12x12'), ([2, 8, 8, 4], '[2, 8, 8, 4]'),
                                ([0, 8, 8, 3], 'no images'), ([8, 8], '[8, 8]')]:
            path = self.save_npz(images=np.zeros(shape, np.uint8))
            self.assert_user_error('set.npz', fragment, dataset=path)
        self.assert_user_error('float32', dataset=self.save_npz(images=np.zeros([2, 8, 8, 3], np.float32)))
        path = self.save_npz(images=random_images(2, 8))
        self.assert_user_error('max_images', dataset=path, max_images=0)
        os.truncate(path, 300)
        self.assert_user_error('set.npz', 'damaged', dataset=path)
        with open(path, 'wb') as file:
            np.save(file, np.zeros(3))
        self.assert_user_error('set.npz', 'damaged', dataset=path)


class FolderTest(Base):

    def test_read(self):
        images = random_images(6, 8)
        for i, image in enumerate(images):
            self.save(f'{i // 2}/{"abcdef"[i]}.{"png" if i % 2 else "bmp"}', image)
        self.save('.hidden/x.png', images[0])
        self.save('0/.hidden.png', images[0])
        with open(self.path('images', 'notes.txt'), 'w', encoding='utf-8') as file:
            file.write('not an image')
        found = dataset.load_dataset(self.path(), 'images')
        self.assertEqual((found.shape, len(found), found.name), ([3, 8, 8], 6, 'images'))
        for _ in range(2):      # The second time from memory.
            self.assertAllEqual(found.read([5, 0, 5, 2])[0], images[[5, 0, 5, 2]])
        self.assertAllEqual(dataset.load_dataset(self.path('images'), resolution=4).read(np.arange(6))[0],
                            dataset.reduce_images(images, 1))
        self.assertLen(dataset.load_dataset(self.path('images'), max_images=4), 4)
        self.assertEqual(found.fingerprint, dataset.load_dataset(self.save_npz(images=images)).fingerprint)

    def test_labels_from_subfolders(self):
        images = random_images(5, 8)
        for name, image in zip(['dog/2.png', 'cat/deep/1.png', 'cat/3.png', 'owl/4.png'], images, strict=False):
            self.save(name, image)
        found = dataset.load_dataset(self.path('images'), max_label_size='full')
        self.assertEqual(found.class_counts(), {'cat': 2, 'dog': 1, 'owl': 1})
        self.assertAllEqual(found.labels, np.eye(3)[[0, 0, 1, 2]])
        self.save('5.png', images[4])
        self.assertEqual(dataset.load_dataset(self.path('images')).label_size, 0)
        self.assert_user_error('5.png is not in one', dataset=self.path('images'), max_label_size='full')

    def test_labels_from_json(self):
        for i, image in enumerate(random_images(3, 8)):
            self.save(f'one/{i}.png', image)
        self.assert_user_error('labels were asked for', 'dataset.json', dataset=self.path('images'), max_label_size=1)

        def write(content):
            with open(self.path('images', 'dataset.json'), 'w', encoding='utf-8') as file:
                file.write(content if isinstance(content, str) else json.dumps(content))
        write({'labels': [['one/2.png', 0], ['one\\0.png', 3], ['one/1.png', 1]]})
        found = dataset.load_dataset(self.path('images'), max_label_size='full')
        self.assertAllEqual(found.labels, np.eye(4)[[3, 1, 0]])
        write({'labels': [['one/0.png', [0, 0.5]], ['one/1.png', [1, 0]], ['one/2.png', [2, 2]]]})
        found = dataset.load_dataset(self.path('images'), max_label_size='full')
        self.assertAllEqual(found.labels, [[0, 0.5], [1, 0], [2, 2]])
        for content, fragment in [
            ({'labels': [['one/0.png', 0], ['one/1.png', 0]]}, 'one/2.png'),
            ({'labels': [['one/0.png', 0], ['one/1.png', [1]], ['one/2.png', 0]]}, 'all be integers'),
            ({'labels': [['one/0.png', 0], ['one/1.png', -1], ['one/2.png', 0]]}, 'from -1'),
            ({'label': []}, 'is not of the form'),
            ('{', 'is not of the form'),
            ({'labels': None}, 'labels were asked for'),
        ]:
            write(content)
            self.assert_user_error(fragment, dataset=self.path('images'), max_label_size='full')
            self.assertLen(dataset.load_dataset(self.path('images')), 3)

    def test_modes(self):
        gray = random_images(3, 8, 1)
        for i, image in enumerate(gray):
            self.save(f'{i}.png', image, mode='LA' if i == 1 else None)
        found = dataset.load_dataset(self.path('images'))
        self.assertEqual(found.shape, [1, 8, 8])
        self.assertAllEqual(found.read(np.arange(3))[0], gray)
        color = random_images(2, 8)
        self.save('3.png', color[0], mode='RGBA')       # Opaque.
        color[1] = color[1] // 128 * 255                # Few colours, so that a palette holds them all.
        self.save('4.png', color[1], mode='P', optimize=True)
        found = dataset.load_dataset(self.path('images'))
        self.assertEqual(found.shape, [3, 8, 8])
        images = found.read(np.arange(5))[0]
        self.assertAllEqual(images[:3], np.repeat(gray, 3, axis=3))
        self.assertAllEqual(images[3], color[0])
        with PIL.Image.open(self.path('images', '4.png')) as image:
            self.assertAllEqual(images[4], np.asarray(image.convert('RGB')))

    def test_transparency(self):
        image = np.full([8, 8, 4], 255, np.uint8)
        image[3, 3, 3] = 254
        path = self.save('a.png', image)
        self.assert_user_error(path, 'transparent', dataset=self.path('images'))
        self.save('a.png', random_images(1, 8)[0])
        picture = PIL.Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert('P')
        picture.save(self.path('images', 'b.png'), transparency=3)
        self.assert_user_error('b.png', 'transparent', dataset=self.path('images'))

    def test_errors(self):
        self.assert_user_error('no data set at', 'nowhere', dataset=self.path('nowhere'))
        os.makedirs(self.path('images'))
        self.assert_user_error('images holds no data set', dataset=self.path('images'))
        self.assert_user_error('image_s', 'holds: images', data_dir=self.path(), dataset='image_s')
        first = self.save('a.png', random_images(1, 8)[0])
        second = self.save('b.png', random_images(1, 16)[0])
        self.assert_user_error(first, '8x8', second, '16x16', dataset=self.path('images'))
        with open(second, 'wb'):
            pass
        self.assert_user_error(second, 'is empty', dataset=self.path('images'))
        with open(second, 'wb') as file:
            file.write(b'\x89PNG\r\n nothing of the kind')
        self.assert_user_error(second, 'cannot be read', dataset=self.path('images'))
        PIL.Image.fromarray(np.zeros([8, 8], np.uint16)).save(second)
        self.assert_user_error(second, '8 bits', dataset=self.path('images'))
        os.remove(second)
        self.save('a.png', random_images(1, 12)[0])
        self.assert_user_error(first, '12x12', 'power of two', dataset=self.path('images'))
        self.save('a.png', random_images(1, 16)[0][:8])
        self.assert_user_error(first, '16x8', dataset=self.path('images'))
        self.save('a.png', random_images(1, 16)[0])
        self.assert_user_error('resolution 32', '16x16', dataset=self.path('images'), resolution=32)
        os.truncate(first, os.path.getsize(first) // 2)
        with self.assertRaises(UserError) as caught:    # Only the pixels are missing, the header is there.
            dataset.load_dataset(self.path('images')).read([0])
        self.assert_message(caught.exception, first, 'damaged')
        self.assert_user_error('label_attr', dataset=self.path('images'), label_attr='hat')
        self.assert_user_error('label_file', dataset=self.path('images'), label_file='x.labels')
        self.assert_user_error('is a file', dataset=first)


class EmbeddedTest(Base):

    def test_content(self):
        found = dataset.load_dataset()
        self.assertEqual((found.name, found.shape, found.num_images, len(found)), ('pixelart32', [3, 32, 32], 4096, 4096))
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
        self.assertEqual(dataset.load_dataset(self.save_npz('other.npz', images=images)).fingerprint, prints[0])

    def test_verbose(self):
        with tf.compat.v1.test.mock.patch('builtins.print') as printed:
            dataset.load_dataset(max_label_size='full', verbose=True)
        text = '\n'.join(str(call.args[0]) for call in printed.call_args_list)
        for fragment in ['pixelart32', '4096', '[3, 32, 32]', 'Label size: 8', '#8d5524: 534']:
            self.assertIn(fragment, text)


class OrderTest(Base):

    def setUp(self):
        super().setUp()
        self.images = random_images(37, 4)
        self.set = dataset.load_dataset(self.save_npz(images=self.images, labels=np.arange(37)), max_label_size='full')

    def test_epochs_are_permutations(self):
        epochs = self.set.order(0, 37 * 5).reshape(5, 37)
        self.assertAllEqual(np.sort(epochs, axis=1), np.tile(np.arange(37), [5, 1]))
        self.assertLen({tuple(epoch) for epoch in epochs}, 5)
        self.assertNotAllEqual(self.set.order(0, 37, seed=1), epochs[0])
        self.assertAllEqual(self.set.order(0, 37, seed=self.set.seed), epochs[0])
        self.assertEqual(self.set.order(5, 0).shape, (0,))

    def test_does_not_change_between_versions(self):
        # Stored runs continue with this order.
        self.assertAllEqual(self.set.order(35, 6, seed=3), EXPECTED_ORDER)
        self.assertAllEqual(self.set.mirror_flips(4092, 8, seed=3), EXPECTED_FLIPS)

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

    def test_read_checks_its_arguments(self):
        for indices in [[37], [-1]]:
            with self.assertRaises(IndexError):
                self.set.read(indices)
        with self.assertRaises(ValueError):
            self.set.read([0], lod=3)
        self.assertEqual(self.set.read([])[0].shape, (0, 4, 4, 3))


class PrefetchTest(OrderTest):

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
        self.assertLen(threads(), before + 2)
        closed.close()
        closed.close()
        with self.assertRaises(StopIteration):
            next(closed)
        self.assertLen(threads(), before + 1)
        del dropped
        deadline = time.time() + 10
        while len(threads()) > before and time.time() < deadline:
            time.sleep(0.05)
        self.assertLen(threads(), before)


class ProcessRealsTest(tf.test.TestCase):

    @testutil.needs_golden
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
        @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.uint8), tf.TensorSpec([], tf.float32)])
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
