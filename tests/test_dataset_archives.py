"""Archives as their publishers ship them, written here in the same format, and what damaged ones are told."""

import gzip
import io
import os
import pickle
import shutil
import struct
import sys
import tarfile
from unittest import mock

import h5py
import lmdb
import numpy as np
import PIL.Image
import scipy.io
import tensorflow as tf

from dnnlib.util import UserError
from tests.archive_testutil import ArchiveBase, read_all
from tests.dataset_testutil import random_images
from training.datasets import archive_lsun, archives
from training.datasets.archive_cifar import read_pickle
from training.datasets.image_files import LeftOutError


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f'>{array.ndim}I', *array.shape) + array.tobytes()


class MnistTest(ArchiveBase):

    def make(self, count: int = 30) -> tuple[np.ndarray, np.ndarray]:
        images = random_images(count, 28, 1)[..., 0]
        labels = (np.arange(count) * 7 % 10).astype(np.uint8)
        self.write('train-images-idx3-ubyte.gz', gzip.compress(idx(images)))
        self.write('train-labels-idx1-ubyte.gz', gzip.compress(idx(labels)))
        return images, labels

    def test_mnist(self):
        images, labels = self.make()
        source = archives.mnist(self.folder())
        expected = np.zeros([30, 32, 32, 1], np.uint8)
        expected[:, 2:30, 2:30, 0] = images
        self.check_source(source, expected)
        self.assertAllEqual(source.labels, labels)
        self.assertEqual(source.label_names, [str(i) for i in range(10)])
        self.assertTrue(source.shuffled)
        self.assertTrue(source.item_name(17).endswith('train-images-idx3-ubyte.gz[17]'))

    def test_unpacked(self):
        images, labels = self.make()
        for name, array in [('train-images-idx3-ubyte', images), ('train-labels-idx1-ubyte', labels)]:
            os.remove(self.path(name + '.gz'))
            self.write(name, idx(array))
        self.assertAllEqual(archives.mnist(self.folder()).read(3)[2:30, 2:30, 0], images[3])

    def test_rgb(self):
        """The triples are those of drawing them image after image."""
        self.make()
        gray = read_all(archives.mnist(self.folder()))[..., 0]
        random = np.random.RandomState(123)
        expected = np.stack([gray[random.randint(30, size=3)].transpose(1, 2, 0) for _ in range(50)])
        source = archives.mnist_rgb(self.folder(), 50, 123)
        self.check_source(source, expected)
        self.assertIsNone(source.labels)
        self.check_error(archives.mnist_rgb, self.folder(), 0, 1, fragments=('num_images',))

    def test_damage(self):
        images, labels = self.make()
        path = self.path('train-images-idx3-ubyte.gz')
        whole = gzip.compress(idx(images))
        lying = bytes([0, 0, 8, 3]) + struct.pack('>3I', 4000000, 28, 28) + images.tobytes()
        huge = bytes([0, 0, 8, 3]) + struct.pack('>3I', 2**31, 2**31, 2**31)
        corrupt = bytearray(whole)
        corrupt[len(whole) // 2] ^= 255
        bomb = gzip.compress(idx(images) + b'\0' * (1 << 24))
        for data, fragment in [(whole[:-20], 'truncated'), (gzip.compress(lying), 'missing'),
                               (gzip.compress(huge), 'announces'), (bytes(corrupt), 'damaged'),
                               (bomb, 'goes on'), (b'', 'truncated'), (b'<html>', '00 00 08 03'),
                               (gzip.compress(idx(images[:, :20])), '28x28'),
                               (gzip.compress(idx(images[:20])), '30 labels')]:
            self.write('train-images-idx3-ubyte.gz', data)
            self.check_error(archives.mnist, self.folder(), fragments=(path, fragment))
        os.remove(path)
        self.check_error(archives.mnist, self.folder(), fragments=(self.folder(), 'idx3-ubyte'))
        self.check_error(archives.mnist, self.path('none'), fragments=('no folder',))


def pickle_of_python2(value) -> bytes:
    """Protocol 2 as Python 2 and NumPy 1 write a dict of str: all text and bytes are BINSTRING."""
    def put(value) -> bytes:
        if isinstance(value, str | bytes):
            data = value.encode() if isinstance(value, str) else value
            size = b'U' + bytes([len(data)]) if len(data) < 256 else b'T' + struct.pack('<i', len(data))
            return size + data
        if isinstance(value, int):
            return b'K' + bytes([value]) if value < 256 else b'J' + struct.pack('<i', value)
        if isinstance(value, list):
            return b']q\x01(' + b''.join(map(put, value)) + b'e'
        if isinstance(value, dict):
            return b'}q\x02(' + b''.join(put(k) + put(v) for k, v in value.items()) + b'u'
        dtype = (b'cnumpy\ndtype\nq\x03U\x02u1K\x00K\x01\x87Rq\x04(K\x03U\x01|NNN'
                 b'J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb')
        shape = b'J' + struct.pack('<i', value.shape[0]) + b'J' + struct.pack('<i', value.shape[1]) + b'\x86'
        return (b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87Rq\x05(K\x01'
                + shape + dtype + b'\x89' + put(value.tobytes()) + b'tb')
    return b'\x80\x02' + put(value) + b'.'


class CifarTest(ArchiveBase):

    def batch(self, count: int, seed: int, key: str = 'labels', classes: int = 10) -> tuple[dict, np.ndarray]:
        images = random_images(count, 32, seed=seed)
        data = images.transpose(0, 3, 1, 2).reshape(count, -1)
        labels = [int(x) for x in np.random.RandomState(seed).randint(classes, size=count)]
        return {'batch_label': 'training batch', key: labels, 'data': data,
                'filenames': [f'{i}.png' for i in range(count)]}, images

    def make_tar(self, name: str, files: dict[str, bytes]) -> str:
        path = self.path(name)
        with tarfile.open(path, 'w:gz') as tar:
            for key, data in files.items():
                info = tarfile.TarInfo(key)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    def test_cifar10(self):
        batches, images = zip(*[self.batch(6 + i, i) for i in range(5)], strict=True)
        names = [f'class {i}' for i in range(10)]
        files = {f'cifar-10-batches-py/data_batch_{i + 1}': pickle_of_python2(batch)
                 for i, batch in enumerate(batches)}
        files['cifar-10-batches-py/batches.meta'] = pickle_of_python2({'label_names': names})
        files['cifar-10-batches-py/test_batch'] = b'not read'
        path = self.make_tar('cifar-10-python.tar.gz', files)
        for place in (path, self.folder()):
            source = archives.cifar10(place)
            self.assertAllEqual(source.labels, np.concatenate([batch['labels'] for batch in batches]))
            self.assertEqual(source.label_names, names)
            self.assertTrue(source.item_name(7).endswith('data_batch_2[1]'), source.item_name(7))
        self.check_source(source, np.concatenate(images))
        self.assertEqual(os.listdir(self.folder()), ['cifar-10-python.tar.gz'])
        os.remove(path)
        for key, data in files.items():
            self.write(key, data)
        for place in (self.folder(), self.path('cifar-10-batches-py')):
            self.assertAllEqual(read_all(archives.cifar10(place)), np.concatenate(images))
        os.remove(self.path('cifar-10-batches-py', 'data_batch_4'))
        self.check_error(archives.cifar10, self.folder(), fragments=('lacks data_batch_4',))

    def test_cifar100(self):
        batch, images = self.batch(40, 3, 'fine_labels', 100)
        self.write('train', pickle_of_python2(batch))
        source = archives.cifar100(self.folder())
        self.check_source(source, images)
        self.assertAllEqual(source.labels, batch['fine_labels'])
        self.assertLen(source.label_names, 100)
        for protocol in (2, 4):     # As somebody's own Python 3 would write them again.
            self.write('train', pickle.dumps({k.encode(): v for k, v in batch.items()}, protocol))
            self.assertAllEqual(read_all(archives.cifar100(self.folder())), images)
        for change, fragment in [({'fine_labels': [100] * 40}, 'fine_labels'), ({'fine_labels': [1]}, '40'),
                                 ({'data': 'x'}, 'data'), ({'data': batch['data'][:, :30]}, '[40, 30]')]:
            self.write('train', pickle_of_python2({**batch, **change}))
            self.check_error(archives.cifar100, self.folder(), fragments=('train', fragment))

    def test_nothing_is_executed(self):
        marker = self.path('marker')
        command = f'touch {marker}'.encode()
        attacks = [
            b'\x80\x02cposix\nsystem\nU' + bytes([len(command)]) + command + b'\x85R.',
            b'\x80\x02cbuiltins\neval\nU\x04exit\x85R.',
            b"cos\nsystem\n(S'touch " + marker.encode() + b"'\ntR.",
            b'\x80\x02cnumpy\ndtype\n}U\x04kindU\x01xsb.',          # A state for a function.
            b'\x80\x02cnumpy\ndtype\nN}U\x04kindU\x01xs\x86b.',
            b'\x80\x02cnumpy\nload\nU\x01x\x85R.',
            b'\x80\x02(cnumpy\ndtype\nobject\no.',
            b'\x80\x02]r\xff\xff\xff\x7f.',                           # A memo of 32 GB.
            b'\x80\x05\x96' + struct.pack('<Q', 1 << 40) + b'.',
            b'\x80\x02X\xff\xff\xff\xff.', b'\x80\x02U\x01aQ.', b'', b'.', b'\x80\x02]' * 100,
            b'\x80\x02' + b'(' * 100000 + b'.', b'\x80\x02' + b']\x85' * 100000 + b'.',
        ]
        for attack in attacks:
            self.check_error(read_pickle, attack, 'batch', fragments=('batch',))
        self.assertFalse(os.path.exists(marker))
        sound = pickle_of_python2(self.batch(2, 0)[0])
        random = np.random.RandomState(0)
        for _ in range(300):
            data = bytearray(sound)
            for _ in range(random.randint(1, 4)):
                data[random.randint(300 if random.rand() < 0.7 else len(data))] = random.randint(256)
            cut = random.randint(1, len(data) + 1) if random.rand() < 0.3 else len(data)
            try:
                self.assertIsInstance(read_pickle(bytes(data[:cut]), 'batch'), dict)
            except UserError as error:
                self.assert_message(error, 'batch')

    def test_bad_tars(self):
        batch = pickle_of_python2(self.batch(3, 0, 'fine_labels', 100)[0])
        path = self.make_tar('cifar-100-python.tar.gz', {'../../train': batch, '/etc/passwd': b'x'})
        self.assertLen(archives.cifar100(path), 3)          # Nothing is unpacked to the disk.
        data = self.read(path)
        self.write('cifar-100-python.tar.gz', data[:len(data) // 2])
        self.check_error(archives.cifar100, path, fragments=(path, 'truncated or damaged'))
        link = tarfile.TarInfo('train')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
        long_name = tarfile.TarInfo('x')
        long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
        for info, fragment in [(link, 'lacks train'), (long_name, 'unpacks to more')]:
            data = info.tobuf(tarfile.GNU_FORMAT) + bytes(10240)
            self.write('cifar-100-python.tar.gz', gzip.compress(data))
            self.check_error(archives.cifar100, path, fragments=(path, fragment))
        self.check_error(archives.cifar100, self.write('a.tar', b'no tar'), fragments=('a.tar',))
        self.check_error(archives.cifar10, self.folder(), fragments=('cifar-10-python.tar.gz',))

    def read(self, path: str) -> bytes:
        with open(path, 'rb') as file:
            return file.read()


class SvhnTest(ArchiveBase):

    def test_svhn(self):
        images = random_images(12, 32)
        labels = np.array([1, 2, 10, 9, 10, 3, 4, 5, 6, 7, 8, 1], np.uint8)
        path = self.path('train_32x32.mat')
        for compress in (False, True):
            scipy.io.savemat(path, {'X': images.transpose(1, 2, 3, 0), 'y': labels[:, None]},
                             do_compression=compress)
            source = archives.svhn(self.folder())
            self.check_source(source, images)
            self.assertAllEqual(source.labels, labels % 10)
            self.assertLen(source.label_names, 10)
        with open(path, 'rb') as file:
            data = file.read()
        self.write('train_32x32.mat', data[:len(data) // 2])
        self.check_error(archives.svhn, self.folder(), fragments=(path, 'damaged'))
        for arrays, fragment in [({'X': images}, 'X is uint8 [12, 32, 32, 3]'), ({'y': labels}, 'missing'),
                                 ({'X': images.transpose(1, 2, 3, 0), 'y': labels[:5, None]}, '5 labels'),
                                 ({'X': images.transpose(1, 2, 3, 0), 'y': labels[:, None] + 1}, '1 to 10')]:
            scipy.io.savemat(path, arrays)
            self.check_error(archives.svhn, self.folder(), fragments=(path, fragment))


class LsunTest(ArchiveBase):

    def make(self, values: list[bytes], name: str = 'church_train_lmdb') -> str:
        path = self.path(name)
        shutil.rmtree(path, ignore_errors=True)
        with lmdb.open(path, map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
            for i, value in enumerate(values):
                transaction.put(f'{i:040x}'.encode(), value)
        return path

    def image(self, pixels: np.ndarray) -> bytes:
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, 'WEBP', lossless=True)
        return file.getvalue()

    def test_lsun(self):
        """600 entries: more than one of the keys that are kept."""
        random = np.random.RandomState(0)
        pixels = [random.randint(0, 256, [20 + i % 5, 24 - i % 3, 3]).astype(np.uint8) for i in range(600)]
        path = self.make([self.image(p) for p in pixels])
        source = archives.lsun(path, 16)
        expected = []
        for p in pixels:
            side = min(p.shape[:2])
            top, left = (p.shape[0] - side) // 2, (p.shape[1] - side) // 2
            crop = PIL.Image.fromarray(np.ascontiguousarray(p[top:top + side, left:left + side]))
            expected.append(np.asarray(crop.resize((16, 16), PIL.Image.Resampling.LANCZOS)))
        self.check_source(source, np.stack(expected))
        self.assertFalse(source.shuffled)
        self.assertTrue(source.item_name(300).endswith(f'[{300:040x}]'))
        few = archives.lsun(path, 16, max_images=7)     # The same file, open twice.
        self.assertLen(few, 7)
        self.assertAllEqual(few.read(6), expected[6])
        few.close()
        self.assertAllEqual(source.read(6), expected[6])
        source.close()
        data_path = os.path.realpath(self.path('church_train_lmdb', 'data.mdb'))
        self.assertNotIn(data_path, archive_lsun._environments)
        self.check_error(archives.lsun, path, 16, max_images=0, fragments=('max_images',))

    def test_wide(self):
        pixels = random_images(1, 64)[0]
        small = random_images(1, 16)[0]
        path = self.make([self.image(pixels), self.image(small), b'no image', b''])
        source = archives.lsun_wide(path, 32, 24)
        crop = PIL.Image.fromarray(np.ascontiguousarray(pixels[8:56]))
        image = source.read(0)
        self.assertEqual(image.shape, (32, 32, 3))
        self.assertAllEqual(image[4:28], np.asarray(crop.resize((32, 24), PIL.Image.Resampling.LANCZOS)))
        self.assertFalse(image[:4].any() or image[28:].any())
        for index, fragment in [(1, '16x16'), (2, 'cannot be read'), (3, 'empty')]:
            with self.assertRaisesRegex(LeftOutError, f'{index:040x}.*{fragment}'):
                source.read(index)
        source.close()

    def test_damage(self):
        path = self.make([self.image(p) for p in random_images(40, 48)])
        data_path = self.path('church_train_lmdb', 'data.mdb')
        with open(data_path, 'rb') as file:
            data = file.read()
        for damaged, fragment in [(data[:len(data) // 2], 'truncated'), (data[:9000], 'truncated'),
                                  (data[:100], 'not an LMDB'), (b'', 'not an LMDB'),
                                  (b'PK\3\4' + data, 'zip archive'), (bytes(16384), 'not an LMDB')]:
            with open(data_path, 'wb') as file:
                file.write(damaged)
            self.check_error(archives.lsun, path, fragments=(data_path, fragment))
        os.remove(data_path)
        self.check_error(archives.lsun, path, fragments=('data.mdb',))
        self.check_error(archives.lsun, self.path('none'), fragments=('no LMDB folder',))
        self.check_error(archives.lsun, self.make([], 'empty_lmdb'), fragments=('no images',))


class Hdf5Test(ArchiveBase):

    def make(self, **arrays: np.ndarray) -> str:
        path = self.path('set.h5')
        with h5py.File(path, 'w') as file:
            for name, array in arrays.items():
                chunks = (1, *array.shape[1:]) if array.ndim == 4 and array.size else None
                file.create_dataset(name, data=array, chunks=chunks, compression='gzip' if chunks else None)
        return path

    def test_official(self):
        images = random_images(6, 16)
        first = images.transpose(0, 3, 1, 2)
        path = self.make(data16x16=first, data8x8=first[:, :, ::2, ::2], data4x4=first[:, :, ::4, ::4])
        soft = np.random.RandomState(0).rand(6, 5)
        np.save(self.path('set-labels.npy'), soft)
        source = archives.hdf5(path)
        self.check_source(source, images)
        self.assertAllEqual(source.labels, soft.astype(np.float32))
        self.assertEqual(source.item_name(2), f'{path}: /data16x16[2]')
        source.close()
        np.save(self.path('set-labels.npy'), soft[:3])
        self.check_error(archives.hdf5, path, fragments=('set-labels.npy', '6'))

    def test_generic(self):
        images = random_images(6, 16)
        labels = np.array([0, 2, 1, 1, 0, 2])
        source = archives.hdf5(self.make(images=images, labels=labels))
        self.check_source(source, images)
        self.assertAllEqual(source.labels, labels)
        source.close()
        for array, expected in [(images.transpose(0, 3, 1, 2), images), (images[..., 0], images[..., :1])]:
            with archives.hdf5(self.make(**{'a/b': array})) as source:
                self.assertAllEqual(read_all(source), expected)
                self.assertIsNone(source.labels)

    def test_errors(self):
        images = random_images(6, 16)
        for arrays, fragment in [({'a': images, 'b': images}, '2 arrays'), ({'a': images / 255}, '0 arrays'),
                                 ({'a': images[:, :3]}, 'first or last'), ({'a': images[:0]}, '0 arrays')]:
            self.check_error(archives.hdf5, self.make(**arrays), fragments=('set.h5', fragment))
        path = self.make(images=images)
        with open(path, 'rb') as file:
            data = file.read()
        self.write('set.h5', data[:len(data) // 2])
        self.check_error(archives.hdf5, path, fragments=(path,))
        self.write('set.h5', b'no hdf5')
        self.check_error(archives.hdf5, path, fragments=(path, 'not an HDF5'))
        self.check_error(archives.hdf5, self.path('none.h5'), fragments=('no HDF5 file',))
        other = self.path('other.h5')
        with h5py.File(other, 'w') as file:
            file['images'] = images
        with h5py.File(path, 'w') as file:
            file['images'] = h5py.ExternalLink(other, '/images')
            file['loop'] = h5py.SoftLink('/')
        self.check_error(archives.hdf5, path, fragments=('0 arrays',))

    def test_packages_that_are_not_installed(self):
        path = self.make(images=random_images(1, 8))
        database = LsunTest.make(self, [b'x'])
        with mock.patch.dict(sys.modules, {'h5py': None, 'lmdb': None}):
            for function, file, package in [(archives.hdf5, path, 'h5py'),
                                            (archives.lsun, database, 'lmdb')]:
                self.check_error(function, file, fragments=(package, 'pip install stylegan-tf2[data]'))


if __name__ == '__main__':
    tf.test.main()
