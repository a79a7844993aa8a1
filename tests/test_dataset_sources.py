"""NPZ files and folders of images as data sets: what is read, and what each mistake is told."""

import io
import json
import os
import warnings
import zipfile
from unittest import mock

import numpy as np
import PIL.Image
import tensorflow as tf

from dnnlib.util import UserError
from tests.dataset_testutil import Base, random_images
from training import dataset


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
            self.assert_user_error('set.npz', f'resolution {resolution}', '16x16', dataset=path,
                                   resolution=resolution)

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
                                 (np.array([0, -1, 2, 3]), 'from -1'),
                                 (np.array([0, 1, 2, 10**9]), '1000000000')]:
            path = self.save_npz(images=images, labels=labels)
            self.assert_user_error('set.npz', fragment, dataset=path, max_label_size='full')
            self.assertEqual(dataset.load_dataset(path).label_size, 0)
        soft = np.random.RandomState(0).rand(4, 2).astype(np.float32)
        for bad in (np.nan, np.inf):
            soft[2, 1] = bad
            path = self.save_npz(images=images, labels=soft)
            self.assert_user_error('set', 'label of image 2 is not finite', dataset=path,
                                   max_label_size='full')
            self.assertEqual(dataset.load_dataset(path).label_size, 0)
        attributes = {'attr/hat': np.zeros(4, np.uint8), 'values/hat': np.array([''])}
        path = self.save_npz('attr.npz', images=images, **attributes)
        self.assert_user_error('label_attr: hat', dataset=path, max_label_size='full')

    def test_errors(self):
        path = self.save_npz(pictures=np.zeros([2, 8, 8, 3], np.uint8))
        self.assert_user_error('"images"', 'pictures', dataset=path)
        for shape, fragment in [([2, 8, 16, 3], '16x8'), ([2, 12, 12, 3], '12x12'),
                                ([2, 8, 8, 2], '[2, 8, 8, 2]'),
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
        names = ['dog/2.png', 'cat/deep/1.png', 'cat/3.png', 'owl/4.png']
        for name, image in zip(names, images, strict=False):
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
        self.assert_user_error('labels were asked for', 'dataset.json', dataset=self.path('images'),
                               max_label_size=1)

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
            ({'labels': [['one/0.png', 0], ['one/1.png', [1]], ['one/2.png', 0]]}, 'all integers'),
            ({'labels': [['one/0.png', 0], ['one/1.png', -1], ['one/2.png', 0]]}, 'from -1'),
            ({'label': []}, 'labels were asked for'),
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
        self.assert_user_error('images holds no images', dataset=self.path('images'))
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
        PIL.Image.fromarray(np.full([8, 8], 40 * 257, np.uint16)).save(second)
        self.assertAllEqual(dataset.load_dataset(self.path('images')).read([1])[0], np.full([1, 8, 8, 3], 40))
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
        self.assert_user_error('.json or .csv', dataset=self.path('images'), label_file='x.labels',
                               max_label_size='full')
        self.assert_user_error('label_file', dataset=self.save_npz(images=random_images(2, 8)),
                               label_file='x.csv')
        self.assert_user_error('is a file', dataset=first)

    def test_csv_and_label_files(self):
        images = random_images(3, 8)
        for i, image in enumerate(images):
            self.save(f'{i}.png', image)
        with open(self.path('images', 'labels.csv'), 'w', encoding='utf-8') as file:
            file.write('file,label\n2.png,owl\n0.png,cat\n1.png,owl\n')
        with open(self.path('other.csv'), 'w', encoding='utf-8') as file:
            file.write('2.png,0\n0.png,2\n1.png,1\n')
        found = dataset.load_dataset(self.path('images'), max_label_size='full')
        self.assertEqual(found.class_counts(), {'cat': 1, 'owl': 2})
        self.assertAllEqual(found.labels.argmax(axis=1), [0, 1, 1])
        for name in [self.path('other.csv'), '../other.csv']:
            found = dataset.load_dataset(self.path('images'), max_label_size='full', label_file=name)
            self.assertAllEqual(found.labels.argmax(axis=1), [2, 1, 0])
        self.assertEqual(dataset.load_dataset(self.path('images'), label_file='x.csv').label_size, 0)
        self.assert_user_error('x.csv', dataset=self.path('images'), max_label_size=1, label_file='x.csv')

    def test_rgba(self):
        images = random_images(3, 8, channels=4)
        for i, image in enumerate(images):
            self.save(f'{i}.png', image)
        self.assert_user_error('0.png', 'transparent', '--channels=4', dataset=self.path('images'))
        found = dataset.load_dataset(self.path('images'), channels=4)
        self.assertEqual(found.shape, [4, 8, 8])
        self.assertAllEqual(found.read([2, 0])[0], images[[2, 0]])
        self.assert_user_error('channels', dataset=self.path('images'), channels=2)
        self.assert_user_error('channels=3', dataset=self.save_npz(images=images), channels=3)

    def test_skip_bad(self):
        images = random_images(9, 8)
        for i, image in enumerate(images):
            self.save(f'{i // 3}/{i}.png', image)
        with open(self.path('images', '0', '1.png'), 'wb'):
            pass
        self.save('1/4.png', random_images(1, 16)[0])
        self.save('2/X.png', images[0])
        self.save('2/x.PNG', images[0], format='PNG')
        os.symlink('nowhere', self.path('images', '2', 'z.png'))
        with open(self.path('images', '2', '7.png'), 'r+b') as file:    # Pixels that do not unpack.
            file.seek(60)
            file.write(bytes(40))
        self.assert_user_error('1.png', 'is empty', '3 more such images', '--skip-bad',
                               dataset=self.path('images'))
        for max_label_size in [0, 'full']:
            with mock.patch('builtins.print') as printed:
                found = dataset.load_dataset(self.path('images'), max_label_size=max_label_size,
                                             skip_bad=True)
                read, labels = found.read(np.arange(len(found)))
            lines = '\n'.join(str(call.args[0]) for call in printed.call_args_list)
            self.assertLen(found, 8)
            for fragment in ['0/1.png is empty', '1/4.png has 16x16', 'differ only in case', '2/z.png',
                             '4 of 12 images', '2/7.png is damaged']:
                self.assertIn(fragment, lines)
            self.assertAllEqual(read, images[[0, 2, 3, 5, 6, 8, 8, 0]])
            if max_label_size:
                self.assertAllEqual(labels.argmax(axis=1), [0, 0, 1, 1, 2, 2, 2, 2])
        with self.assertRaisesRegex(UserError, '7.png is damaged'):
            dataset.load_dataset(self.path('images', '2'), max_images=2).read([1])


class ZipTest(Base):

    def make(self, compression: int, prefix: str = '') -> str:
        path = self.path('photos.zip')
        with zipfile.ZipFile(path, 'w', compression) as archive:
            for i, image in enumerate(self.images):
                file = io.BytesIO()
                PIL.Image.fromarray(image).save(file, 'PNG')
                archive.writestr(f'{prefix}{i // 10}/{i}.png', file.getvalue())
                archive.writestr(f'__MACOSX/{prefix}{i // 10}/._{i}.png', b'junk')
            archive.writestr(f'{prefix}.hidden.png', b'junk')
        return path

    def setUp(self):
        super().setUp()
        self.images = random_images(30, 16)

    def test_read(self):
        for compression in [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]:
            for prefix in ['', 'photos/']:
                found = dataset.load_dataset(self.make(compression, prefix), max_label_size='full')
                self.assertEqual((found.name, len(found), found.label_names), ('photos', 30, ['0', '1', '2']))
                order = np.array([29, 3, 3, 17, 0])
                names = sorted(f'{i // 10}/{i}.png' for i in range(30))
                by_name = np.array([int(name[2:-4]) for name in names])
                self.assertAllEqual(found.read(order)[0], self.images[by_name[order]])
                # Several threads read from one archive.
                with found.prefetch_minibatches(0, 8, seed=3) as ahead:
                    for i in range(20):
                        expected = self.images[by_name[found.order(8 * i, 8, seed=3)]]
                        self.assertAllEqual(next(ahead)[0], expected)
                found.close()

    def test_damage(self):
        path = self.make(zipfile.ZIP_DEFLATED)
        with zipfile.ZipFile(path) as archive:
            place = archive.getinfo('1/12.png').header_offset
        with open(path, 'r+b') as file:
            file.seek(place + 200)
            file.write(bytes(20))
        self.assert_user_error('photos.zip', '1/12.png', '--skip-bad', dataset=path)
        with mock.patch('builtins.print'):
            self.assertLen(dataset.load_dataset(path, skip_bad=True), 29)
        os.truncate(path, os.path.getsize(path) // 2)
        self.assert_user_error('photos.zip', 'cut off', dataset=path)
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('readme.txt', 'nothing')
        self.assert_user_error('photos.zip', 'no images', dataset=path)
        with zipfile.ZipFile(path, 'w') as archive, warnings.catch_warnings():
            warnings.simplefilter('ignore')
            archive.writestr('a.png', 'x')
            archive.writestr('a.png', 'y')
        self.assert_user_error('photos.zip', 'a.png 2 times', dataset=path)


if __name__ == '__main__':
    tf.test.main()
