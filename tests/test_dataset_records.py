"""Records beyond the official ones: encoded, sharded, indexed, described, damaged and still used."""

import io
import json
import os
import struct
from unittest import mock

import numpy as np
import PIL.Image
import tensorflow as tf

from dnnlib.util import UserError
from tests.dataset_testutil import Base, random_images
from training import dataset
from training.datasets import crc32c, record_file, records, tfrecord


def smooth_images(count: int, size: int, channels: int, seed: int = 0) -> np.ndarray:
    """Images that JPEG changes little."""
    small = random_images(count, 4, channels, seed)
    return np.stack([np.stack([np.asarray(PIL.Image.fromarray(image[:, :, c]).resize([size, size]))
                               for c in range(channels)], axis=2) for image in small])


def encode(image: np.ndarray, encoding: str) -> bytes:
    """A file as users' tools would write it, by Pillow."""
    file = io.BytesIO()
    picture = PIL.Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    picture.save(file, encoding.upper(), **({'quality': 95} if encoding == 'jpeg' else {}))
    return file.getvalue()


def write_records(path: str, images: np.ndarray, encoding: str = '', index: bool = True) -> list[int]:
    """Writes records by TensorFlow; returns the offsets of them all and the end."""
    def feature(data):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))
    offsets = [0]
    with tf.io.TFRecordWriter(path) as writer:
        for image in images:
            shape = tf.train.Feature(int64_list=tf.train.Int64List(value=np.roll(image.shape, 1)))
            data = encode(image, encoding) if encoding else image.transpose(2, 0, 1).tobytes()
            features = {'shape': shape, 'data': feature(data)}
            if encoding:
                features['encoding'] = feature(encoding.encode())
            example = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
            writer.write(example)
            offsets.append(offsets[-1] + len(example) + 16)
    if index and encoding:
        with open(f'{path}.index', 'wb') as file:
            np.save(file, np.array(offsets, np.uint64))
    return offsets


def flip(path: str, *places: int) -> None:
    """Damages bytes of a file."""
    with open(path, 'r+b') as file:
        for place in places:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 0x55]))


class Records(Base):

    def make(self, images: np.ndarray, encoding: str = '', name: str = 's-r04.tfrecords', **kwargs) -> str:
        self.offsets = write_records(self.path('set', name), images, encoding, **kwargs)
        return self.path('set')

    def printed(self, function, *args, **kwargs):
        with mock.patch('builtins.print') as printed:
            result = function(*args, **kwargs)
        return result, [' '.join(map(str, call.args)) for call in printed.call_args_list]


class EncodedTest(Records):

    def test_round_trip(self):
        for encoding, channels in [('png', 1), ('png', 3), ('png', 4), ('jpeg', 1), ('jpeg', 3)]:
            for size in [16, 128]:
                images = smooth_images(35, size, channels)
                folder = self.make(images, encoding)
                found = dataset.load_dataset(folder)
                self.assertEqual(found.shape, [channels, size, size])
                order = np.random.RandomState(0).permutation(35)    # More than one group of 32.
                read = found.read(order)[0]
                with self.subTest(encoding=encoding, channels=channels, size=size):
                    files = [PIL.Image.open(io.BytesIO(encode(images[i], encoding))) for i in order]
                    expected = np.stack([np.asarray(file).reshape(size, size, channels) for file in files])
                    self.assertAllEqual(read, expected)     # As Pillow decodes, bit for bit.
                    if encoding == 'png':
                        self.assertAllEqual(read, images[order])
                # A single level: the others are averages of it.
                self.assertAllEqual(found.read(order, lod=1)[0], dataset.reduce_images(read, 1))
                small = dataset.load_dataset(folder, resolution=8)
                self.assertAllEqual(small.read(order)[0], dataset.reduce_images(read, size.bit_length() - 4))
                found.close()

    def test_minibatches_resume(self):
        images = random_images(20, 16)
        found = dataset.load_dataset(self.make(images, 'png'))
        batches = found.minibatches(0, 8, seed=1, mirror_augment=True)
        whole = [next(batches)[0] for _ in range(8)]
        with found.prefetch_minibatches(24, 8, seed=1, mirror_augment=True) as ahead:
            for expected in whole[3:]:
                self.assertAllEqual(next(ahead)[0], expected)

    def test_wrong_content(self):
        images = random_images(4, 16)
        folder = self.make(images, 'png')
        path = os.path.join(folder, 's-r04.tfrecords')
        good = tfrecord.decode_images

        def decode_as(encoding):
            with open(path, 'rb') as file:
                data = file.read()
            with open(path, 'wb') as file:
                file.write(data)
            return good([encode(images[0], encoding)], encoding)
        self.assertEqual(decode_as('png').shape, (1, 16, 16, 3))
        for shape, encoding, data, fragment in [
            ([3, 16, 16], 'webp', b'x', "'webp'"),
            ([3, 16, 16], 'png', b'nothing', 'cannot be decoded'),
            ([3, 16, 16], 'png', encode(images[0], 'png')[:-200], 'cannot be decoded'),
            ([3, 16, 16], 'jpeg', encode(images[0], 'jpeg')[:300], 'cannot be decoded'),
            ([3, 16, 16], 'png', encode(images[0][:8, :8], 'png'), '8x8 pixels'),
            ([1, 16, 16], 'png', encode(images[0], 'png'), '3 channels'),
            ([3, 16], 'png', encode(images[0], 'png'), 'expected [channels, height, width]'),
            ([3, 16, 16], '', b'12', '2 bytes'),
        ]:
            feature = {'shape': tf.train.Feature(int64_list=tf.train.Int64List(value=shape)),
                       'data': tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))}
            if encoding:
                feature['encoding'] = tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[encoding.encode()]))
            os.remove(path)
            with tf.io.TFRecordWriter(path) as writer:
                writer.write(tf.train.Example(features=tf.train.Features(feature=feature))
                             .SerializeToString())
            self.assert_user_error('s-r04.tfrecords: record 0 ', fragment, dataset=folder)


class IndexTest(Records):

    def test_index_or_headers(self):
        images = random_images(30, 16)
        images[::3] = 7     # Records of very different lengths.
        folder = self.make(images, 'png')
        path = os.path.join(folder, 's-r04.tfrecords')
        for change in ['good', 'missing', 'stale', 'damaged', 'other']:
            if change == 'missing':
                os.remove(f'{path}.index')
            elif change == 'stale':
                np.save(open(f'{path}.index', 'wb'), np.array(self.offsets[:-1], np.uint64))
            elif change == 'damaged':
                with open(f'{path}.index', 'wb') as file:
                    file.write(b'\x93NUMPY')
            elif change == 'other':
                np.save(open(f'{path}.index', 'wb'), np.zeros([3, 2]))
            with mock.patch.object(record_file.RecordFile, '_scan', autospec=True,
                                   side_effect=record_file.RecordFile._scan) as scan:
                found, lines = self.printed(dataset.load_dataset, folder)
            self.assertEqual(scan.call_count, 0 if change == 'good' else 1, change)
            self.assertLen(lines, 1 if change in ('stale', 'damaged', 'other') else 0)
            self.assertAllEqual(found.read(np.arange(30)[::-1])[0], images[::-1])
            found.close()

    def test_index_of_another_file_with_the_same_size(self):
        images = random_images(6, 16)
        folder = self.make(images, 'png')
        path = os.path.join(folder, 's-r04.tfrecords.index')
        wrong = np.array(self.offsets, np.uint64)
        wrong[3] += 1
        np.save(open(path, 'wb'), wrong)
        found = dataset.load_dataset(folder)
        self.assertAllEqual(found.read([0, 1, 4, 5])[0], images[[0, 1, 4, 5]])
        with self.assertRaisesRegex(UserError, 's-r04.tfrecords: record 2 .*remove that file'):
            found.read([2])

    def test_hundreds_of_gigabytes(self):
        """Only the first and the last record of a huge file exist; the rest is a hole that is not read."""
        image = random_images(1, 1024)
        folder = self.make(image, name='s-r10.tfrecords')
        path = os.path.join(folder, 's-r10.tfrecords')
        record = os.path.getsize(path)
        with open(path, 'rb') as file:
            data = file.read()
        with open(path, 'r+b') as file:
            file.seek(69999 * record)
            file.write(data)
        self.assertGreater(os.path.getsize(path), 200e9)
        read = []
        real = os.preadv

        def counted(fd, buffers, offset):
            read.append(sum(map(len, buffers)))
            return real(fd, buffers, offset)
        with mock.patch.object(os, 'preadv', counted):
            found = dataset.load_dataset(folder)
            self.assertLen(found, 70000)
            self.assertLess(sum(read), 3 * record)
            self.assertAllEqual(found.read([69999])[0], image)
        with self.assertRaisesRegex(UserError, 'record 1 '):
            found.read([1])
        found.close()
        os.remove(path)


class ShardTest(Records):

    def make_shards(self, images: np.ndarray, cuts: list[int], encoding: str = '') -> str:
        parts = np.split(images, cuts)
        for level in [4, 3]:
            for i, part in enumerate(parts):
                name = f's-r{level:02d}-{i:05d}-of-{len(parts):05d}.tfrecords'
                write_records(self.path('set', name), dataset.reduce_images(part, 4 - level), encoding)
        return self.path('set')

    def test_read(self):
        images = random_images(23, 16)
        for encoding in ['', 'png']:
            folder = self.make_shards(images, [3, 4, 15], encoding)
            for limit in [200, 2]:
                with mock.patch.object(records, '_MAX_OPEN', limit):
                    found = dataset.load_dataset(folder)
                order = np.random.RandomState(0).permutation(23)
                self.assertAllEqual(found.read(order)[0], images[order])
                self.assertAllEqual(found.read(order, lod=1)[0], dataset.reduce_images(images[order], 1))
                found.close()

    def test_incomplete_and_mixed(self):
        folder = self.make_shards(random_images(8, 16), [2, 5])
        os.rename(f'{folder}/s-r04-00001-of-00003.tfrecords', f'{folder}/x')
        self.assert_user_error('s-r04-00001-of-00003.tfrecords is missing', '1 of 3', dataset=folder)
        os.rename(f'{folder}/x', f'{folder}/s-r04-00003-of-00003.tfrecords')
        self.assert_user_error('s-r04-00001-of-00003.tfrecords is missing', dataset=folder)
        os.rename(f'{folder}/s-r04-00003-of-00003.tfrecords', f'{folder}/s-r04-00001-of-00004.tfrecords')
        self.assert_user_error('two sets', 'of-00003', 'of-00004', dataset=folder)
        os.rename(f'{folder}/s-r04-00001-of-00004.tfrecords', f'{folder}/s-r04-00001-of-00003.tfrecords')
        write_records(f'{folder}/s-r04.tfrecords', random_images(8, 16))
        self.assert_user_error('both hold images of 16', 'one complete set of shards', dataset=folder)
        os.remove(f'{folder}/s-r04.tfrecords')
        write_records(f'{folder}/s-r04-00002-of-00003.tfrecords', random_images(3, 16, channels=1))
        found = dataset.load_dataset(folder)
        with self.assertRaisesRegex(UserError, r's-r04-00002-of-00003.tfrecords: record 1 .*shape \[1, 16'):
            found.read([6])


class DescriptionTest(Records):

    def describe(self, content) -> None:
        with open(self.path('set', 'dataset.json'), 'w', encoding='utf-8') as file:
            file.write(content if isinstance(content, str) else json.dumps(content))

    def test_checked(self):
        folder = self.make(random_images(6, 16))
        np.save(open(f'{folder}/s-rxx.labels', 'wb'), np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 0, 1]])
        good = dict(version=1, num_images=6, shape=[3, 16, 16], levels=[4], label_size=3,
                    label_names=['cat', 'dog', 'owl'])
        self.describe(good)
        found = dataset.load_dataset(folder, max_label_size='full')
        self.assertEqual(found.class_counts(), {'cat': 3, 'dog': 2, 'owl': 1})
        for change, fragments in [
            (dict(num_images=7), ('dataset.json holds 7', 'holds 6')),
            (dict(shape=[3, 32, 32]), ('[3, 32, 32]', '[3, 16, 16]')),
            (dict(shape=[1, 16, 16]), ('[1, 16, 16]',)),
            (dict(levels=[2, 4]), ('lacks', '4x4')),
            (dict(version=2), ('version 2', 'version 1')),
            (dict(num_images='many'), ('damaged', "num_images is 'many'")),
            (dict(levels=['x']), ('damaged', 'levels')),
            (dict(label_names=[1]), ('damaged', 'label_names')),
        ]:
            self.describe({**good, **change})
            self.assert_user_error(*fragments, dataset=folder)
        for text in ['{"num_images": 6', '[]', '\x00', '[' * 100000]:
            self.describe(text)
            self.assert_user_error('dataset.json is damaged', dataset=folder)
        self.describe({'labels': [['a.png', 0]]})       # A file for images; it says nothing here.
        self.assertLen(dataset.load_dataset(folder), 6)
        self.describe(good)
        os.remove(f'{folder}/s-rxx.labels')
        self.assert_user_error('lacks the .labels file', dataset=folder)


class SkipBadTest(Records):

    def check(self, folder: str, images: np.ndarray, bad: set[int], fragment: str = '') -> None:
        """Minibatches hold the next good image of the order in the place of a bad one, whatever the start."""
        found, lines = self.printed(dataset.load_dataset, folder, skip_bad=True)
        self.assertLen(found, len(images))

        def expected(position):
            while int(found.order(position, 1)[0]) in bad:
                position += 1
            return images[int(found.order(position, 1)[0])]

        def minibatches():
            batches = found.minibatches(0, 5)
            return [next(batches)[0] for _ in range(12)]
        whole, more = self.printed(minibatches)
        for i, batch in enumerate(whole):
            self.assertAllEqual(batch, np.stack([expected(5 * i + k) for k in range(5)]))
        warnings = [line for line in more if line.startswith('Warning')]
        self.assertLen(warnings, len(bad))
        for index in bad:
            self.assertTrue(any(f'record {index} ' in line and fragment in line for line in warnings))
            self.assertNotIn('--skip-bad', ' '.join(warnings))
        self.assertEqual(found.bad_images, bad)
        # Resumed in the middle, by a reader that knows of nothing yet; by threads, and by two workers.
        other, _ = self.printed(dataset.load_dataset, folder, skip_bad=True)
        with other.prefetch_minibatches(35, 5) as ahead:
            self.assertAllEqual(self.printed(next, ahead)[0][0], whole[7])
        parts = [self.printed(next, other.minibatches(0, 10, shard=(i, 2)))[0][0] for i in range(2)]
        self.assertAllEqual(np.concatenate(parts), np.concatenate(whole[:2]))
        # Direct reading takes the next good image.
        read = self.printed(other.read, np.arange(len(images)))[0][0]
        for i in range(len(images)):
            good = next(k % len(images) for k in range(i, i + 99) if k % len(images) not in bad)
            self.assertAllEqual(read[i], images[good])
        self.assertEqual(self.printed(lambda: other.fingerprint)[0], found.fingerprint)
        found.close()
        other.close()

    def test_flipped_bytes(self):
        images = random_images(20, 16)
        images[::3, ::2] = 7
        for encoding, index in [('', True), ('png', True), ('png', False)]:
            for kind in ['data', 'header', 'first']:
                folder = self.make(images, encoding, index=index)
                path = os.path.join(folder, 's-r04.tfrecords')
                if not index and os.path.exists(f'{path}.index'):
                    os.remove(f'{path}.index')
                bad = {'data': {4, 11, 12}, 'header': {7, 8}, 'first': {0, 1, 19}}[kind]
                flip(path, *(self.offsets[i] + (3 if kind == 'header' else 40) for i in bad))
                if kind == 'first':
                    flip(path, 0)
                with self.subTest(encoding=encoding, index=index, kind=kind):
                    if kind == 'header' and not index:
                        # Lengths differ and two headers in a row are lost: the search finds the one after.
                        found, _ = self.printed(dataset.load_dataset, folder, skip_bad=True)
                        self.assertLen(found, 19)
                        self.assertAllEqual(found.read([6, 8, 18])[0], images[[6, 9, 19]])
                        continue
                    self.check(folder, images, bad)
                    with self.assertRaises(UserError):
                        found = dataset.load_dataset(folder)
                        found.read(np.arange(20))

    def test_cut_off(self):
        images = random_images(12, 16)
        for encoding in ['', 'png']:
            folder = self.make(images, encoding)
            path = os.path.join(folder, 's-r04.tfrecords')
            np.save(open(f'{folder}/s-rxx.labels', 'wb'), np.eye(12, dtype=np.float32))
            os.truncate(path, self.offsets[9] + 30)
            self.assert_user_error('record 9 ', 'cut off', '--skip-bad', dataset=folder)
            found, lines = self.printed(dataset.load_dataset, folder, max_label_size='full', skip_bad=True)
            self.assertIn('record 9 ', ' '.join(lines))
            self.assertLen(found, 9)
            self.assertAllEqual(found.read([8, 0])[0], images[[8, 0]])
            self.assertAllEqual(found.read([8, 0])[1].argmax(axis=1), [8, 0])
            found.close()

    def test_levels_of_different_lengths(self):
        images = random_images(12, 16)
        folder = self.make(images)
        write_records(f'{folder}/s-r03.tfrecords', dataset.reduce_images(images[:10], 1))
        self.assert_user_error('holds 10', 'holds 12', '--skip-bad', dataset=folder)
        found, lines = self.printed(dataset.load_dataset, folder, skip_bad=True)
        self.assertLen(found, 10)
        self.assertIn('the first 10', ' '.join(lines))

    def test_bad_in_one_level_only(self):
        images = random_images(12, 16)
        folder = self.make(images)
        write_records(f'{folder}/s-r03.tfrecords', dataset.reduce_images(images, 1))
        flip(f'{folder}/s-r04.tfrecords', self.offsets[5] + 50)
        found = dataset.load_dataset(folder, skip_bad=True)
        self.assertAllEqual(self.printed(found.read, [5])[0][0], images[[6]])
        self.assertAllEqual(found.read([5], lod=1)[0], dataset.reduce_images(images[[5]], 1))

    def test_very_many(self):
        images = random_images(40, 16)
        folder = self.make(images)
        flip(os.path.join(folder, 's-r04.tfrecords'), *(offset + 50 for offset in self.offsets[1:-1]))
        found, _ = self.printed(dataset.load_dataset, folder, skip_bad=True)
        read, lines = self.printed(found.read, np.arange(40))
        self.assertAllEqual(read[0], np.repeat(images[:1], 40, axis=0))
        self.assertLen(lines, 11)
        self.assertIn('only counted', lines[-1])
        self.assertIn('39 bad images', self.printed(found.close)[1][0])
        flip(os.path.join(folder, 's-r04.tfrecords'), self.offsets[0] + 50)
        with self.assertRaises(UserError):      # Not for ever.
            self.printed(dataset.load_dataset, folder, skip_bad=True)

    def test_checksums_that_are_right(self):
        """Damage that the checksum does not tell of: pixels that do not decode, under a good checksum."""
        images = random_images(10, 16)
        folder = self.make(images, 'png')
        path = os.path.join(folder, 's-r04.tfrecords')
        with open(path, 'r+b') as file:
            start, end = self.offsets[3] + 12, self.offsets[4] - 4
            file.seek(start)
            data = bytearray(file.read(end - start))
            place = data.find(b'IDAT') + 20
            data[place:place + 40] = bytes(40)
            file.seek(start)
            file.write(data)
            file.write(struct.pack('<I', crc32c.masked_crc32c_of_bytes(bytes(data))))
        self.check(folder, images, {3}, 'cannot be decoded')


if __name__ == '__main__':
    tf.test.main()
