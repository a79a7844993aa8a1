"""TFRecord data sets: official files, checksums, damage, unusual layouts."""

import os
import shutil

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError
from tests import testutil
from tests.dataset_testutil import Base, random_images
from training import dataset
from training.datasets import base, crc32c, tfrecord


def write_record_file(path: str, images: np.ndarray) -> None:
    """NHWC images as an official TFRecord file, written by TensorFlow."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for image in images.transpose(0, 3, 1, 2):
            shape = tf.train.Feature(int64_list=tf.train.Int64List(value=image.shape))
            data = tf.train.Feature(bytes_list=tf.train.BytesList(value=[image.tobytes()]))
            features = tf.train.Features(feature={'shape': shape, 'data': data})
            writer.write(tf.train.Example(features=features).SerializeToString())


class ChecksumTest(tf.test.TestCase):

    def test_known_values(self):
        for text, value in [(b'123456789', 0xE3069283), (b'', 0),
                            (b'\0' * 32, 0x8A9136AA), (b'\xff' * 32, 0x62A8AB43)]:
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
            expected = [reference(row.tobytes()) for row in data]
            self.assertAllEqual(tfrecord.crc32c(data), expected, f'{size} bytes')

    def test_short_data_and_rows_of_several_sizes(self):
        random = np.random.RandomState(1)
        rows = [random.randint(0, 256, size).astype(np.uint8) for size in [8, 1, 900, 20000, 5685 * 9]]
        padded = np.stack([np.pad(row, [60000 - len(row), 0]) for row in rows])
        masked = tfrecord.masked_crc32c(padded, np.array([len(row) for row in rows]))
        self.assertAllEqual(masked, [tfrecord.masked_crc32c(row[None])[0] for row in rows])
        self.assertEqual(crc32c.masked_crc32c_of_bytes(rows[0].tobytes()), int(masked[0]))

    def test_many_rows_equal_single_rows(self):
        data = np.random.RandomState(0).randint(0, 256, [7, 300001]).astype(np.uint8)
        self.assertAllEqual(tfrecord.crc32c(data), [tfrecord.crc32c(row[None])[0] for row in data])


class TFRecordTest(Base):

    def make(self, count: int = 12, size: int = 16, labels: np.ndarray | None = None) -> str:
        folder = self.path('made')
        os.makedirs(folder)
        images = random_images(count, size)
        for level in range(2, size.bit_length()):
            levels = size.bit_length() - 1 - level
            write_record_file(f'{folder}/made-r{level:02d}.tfrecords', dataset.reduce_images(images, levels))
        if labels is not None:
            with open(f'{folder}/made-rxx.labels', 'wb') as file:
                np.save(file, labels)
        return folder

    def test_golden_sets(self):
        for name in ['rgb16', 'gray8']:
            arrays = testutil.load('tfrecords', f'{name}.npz')
            label_size = arrays['read_labels'].shape[1]
            max_label_size = 'full' if label_size else 0
            found = dataset.load_dataset(testutil.golden('tfrecords'), name, max_label_size=max_label_size)
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
        labels = base.one_hot(np.arange(12) % 3, 'labels')
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
        for keep, number in [(12 * record - 1, 11), (5 * record + 100, 5), (3 * record + 4, 3),
                             (record - 1, 0), (7, 0)]:
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
        for place, number, problem in [(record * 7 + 300, 7, 'checksum of its data'),
                                       (record * 3 - 2, 2, 'checksum of its data'),
                                       (record * 4 + 2, 4, 'header'), (record * 9 + 9, 9, 'header')]:
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
        # A 4×4 gray image has 0x10 pixels, and that is the byte before them: 0x10s are found one too early.
        images = random_images(6, 4, 1)
        images[0] = 0x10
        images[2, 3, 3] = 0x10
        path = self.path('folder', 'x.tfrecords')
        write_record_file(path, images)
        found = dataset.load_dataset(os.path.dirname(path))
        for indices in [[0], [2], [0, 2], np.arange(6)]:
            self.assertAllEqual(found.read(indices)[0], images[indices])

    def test_wrong_content(self):
        path = self.path('folder', 'x.tfrecords')
        write_record_file(path, np.zeros([2, 16, 8, 3], np.uint8))
        self.assert_user_error('x.tfrecords', '8x16', 'power of two', dataset=os.path.dirname(path))
        write_record_file(path, np.zeros([2, 12, 12, 3], np.uint8))
        self.assert_user_error('x.tfrecords', '12x12', 'power of two', dataset=os.path.dirname(path))
        write_record_file(path, np.zeros([2, 8, 8, 2], np.uint8))
        self.assert_user_error('x.tfrecords', '2 channels', dataset=os.path.dirname(path))
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


if __name__ == '__main__':
    tf.test.main()
