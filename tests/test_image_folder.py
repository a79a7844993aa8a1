"""Folders and zips of images with their labels, and the data sets that come as such: CelebA, CelebA-HQ."""

import contextlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile

import numpy as np
import PIL.Image
import tensorflow as tf

from tests.archive_testutil import ArchiveBase, read_all
from tests.dataset_testutil import random_images
from training.datasets import archives
from training.datasets.image_files import ImageOptions
from training.datasets.image_folder import ImageStore, image_folder, read_labels


class ImageFolderTest(ArchiveBase):

    def make_zip(self, prefix: str = '', extra: dict[str, bytes] | None = None) -> str:
        path = self.path('set.zip')
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
            for folder, _, names in os.walk(self.path('images')):
                for name in names:
                    full = os.path.join(folder, name)
                    archive.write(full, prefix + os.path.relpath(full, self.path('images')))
            for name, data in (extra or {}).items():
                archive.writestr(name, data)
        return path

    def test_folder_and_zip(self):
        images = random_images(4, 16)
        names = ['b/1.png', 'a/2.png', 'b/c/0.bmp', 'a/10.png']
        for name, image in zip(names, images, strict=True):
            self.save(name, image)
        self.save('a/.hidden.png', images[0])
        self.save('.cache/1.png', images[0])
        order = np.argsort(names)
        for path in (self.path('images'), self.make_zip(), self.make_zip('top/'),
                     self.make_zip('top/', {'__MACOSX/top/a/2.png': b'', 'top/notes.txt': b'x'})):
            source = image_folder(path)
            self.check_source(source, images[order])
            self.assertEqual((source.label_names, source.labels.tolist()), (['a', 'b'], [0, 0, 1, 1]))
            self.assertEqual(source.problems, {})
            self.assertIn('a/10.png', source.item_name(0))
        first = image_folder(path, max_images=3)
        self.assertEqual((len(first), first.labels.tolist()), (3, [0, 0, 1]))
        self.assertIsNone(image_folder(path, labels='none').labels)

    def test_links(self):
        self.save('a/1.png', random_images(1, 8)[0])
        os.symlink(self.path('images'), self.path('images', 'a', 'loop'))
        self.save('1.png', random_images(1, 8)[0])
        os.makedirs(self.path('linked'))
        os.symlink(self.path('images', 'a'), self.path('linked', 'b'))
        self.addCleanup(os.remove, self.path('linked', 'b'))     # The removal of test folders trips over it.
        os.symlink('nowhere', self.path('linked', 'broken.png'))
        with contextlib.redirect_stderr(io.StringIO()) as told:
            self.assertEqual(ImageStore(self.path('images')).names, ['1.png', 'a/1.png'])
        self.assertRegex(told.getvalue(), r'Warning: \S*images/a/loop is left out')
        os.remove(self.path('images', 'a', 'loop'))
        source = image_folder(self.path('linked'))
        self.assertEqual(source.store.names, ['b/1.png', 'broken.png'])
        self.assertIn('broken.png', source.problems[1])

    def test_kinds_that_are_not_read(self):
        self.save('0.png', random_images(1, 8)[0])
        self.write('images/notes.txt', b'x')
        with contextlib.redirect_stderr(io.StringIO()) as told:
            image_folder(self.path('images'))
        self.assertEqual(told.getvalue(), '')
        self.write('images/1.HEIC', b'x')
        self.write('images/a/2.tga', b'x')
        for path, first in [(self.path('images'), r'\S*images/1.HEIC'),
                            (self.make_zip(), r'\S*set.zip: 1.HEIC')]:
            with contextlib.redirect_stderr(io.StringIO()) as told:
                self.assertLen(image_folder(path), 1)
            self.assertRegex(told.getvalue(), r'^Warning: \S+: 2 images are left out, of kinds that are '
                             rf'not read \(the first is {first}\); convert them to PNG\n$')

    def test_mixed_channels_and_options(self):
        gray, colour = random_images(1, 16, 1)[0], random_images(1, 16)[0]
        self.save('0.png', gray)
        self.assertAllEqual(image_folder(self.path('images')).read(0), gray)
        self.save('1.png', colour)
        with contextlib.redirect_stderr(io.StringIO()) as told:
            source = image_folder(self.path('images'))
        self.assertRegex(told.getvalue(), r'some images are gray \(1 of 2, .*0\.png.* become RGB')
        self.assertAllEqual(source.read(0), np.repeat(gray, 3, axis=2))
        options = ImageOptions(4, transform='center-crop', width=8, resize_filter='box')
        source = image_folder(self.path('images'), options)
        self.assertEqual(source.read(1).shape, (8, 8, 4))
        self.assertIn('center-crop, 8x8, box', source.description)

    def test_names_that_differ_only_in_case(self):
        for name in ['a/1.png', 'A/1.png', 'b/1.png']:
            self.save(name, random_images(1, 8)[0])
        source = image_folder(self.path('images'))
        self.assertEqual(list(source.problems), [1])
        self.assert_message(source.problems[1], 'a/1.png', 'A/1.png', 'differ only in case')

    def test_headers_that_lie_far_back(self):
        """In a zip only the beginning of a file is read, and more of it where that is not enough."""
        image = random_images(1, 8)[0]
        self.write('set.zip', b'')
        with zipfile.ZipFile(self.path('set.zip'), 'w') as archive:
            for i, size in enumerate([10, 10_000, 60_000]):
                file = io.BytesIO()
                PIL.Image.fromarray(image).save(file, 'JPEG', comment=bytes(size), exif=bytes(60000))
                archive.writestr(f'{i}.jpg', file.getvalue())
        source = image_folder(self.path('set.zip'))
        self.assertEqual((source.problems, source.shape), ({}, [8, 8, 3]))

    def test_problems(self):
        images = random_images(4, 16)
        self.save('0.png', images[0])
        self.save('1.png', images[1][:12])
        self.write('images/2.png', b'no image')
        self.save('3.png', np.concatenate([images[3], images[3][:, :, :1]], axis=2))
        source = image_folder(self.path('images'))
        self.assertEqual(sorted(source.problems), [1, 2, 3])
        for index, fragments in [(1, ('1.png', '16x12', '0.png has 16x16', '--resolution=16')),
                                 (2, ('2.png', 'cannot be read')), (3, ('3.png', '--background'))]:
            self.check_error(source.read, index, fragments=fragments)
            self.assert_message(source.problems[index], *fragments)
        os.remove(self.path('images', '0.png'))
        self.save('0.png', images[0][:8, :8])
        self.check_error(source.read, 0, fragments=('0.png', 'changed'))
        for name in os.listdir(self.path('images')):
            os.remove(self.path('images', name))
        self.check_error(image_folder, self.path('images'), fragments=('no images',))
        self.write('images/2.png', b'no image')
        self.check_error(image_folder, self.path('images'), fragments=('2.png',))
        self.check_error(image_folder, self.path('nothing'), fragments=('nothing',))
        self.check_error(image_folder, self.path('images'), max_images=0, fragments=('max_images',))

    def test_bad_zips(self):
        self.save('0.png', random_images(1, 16)[0])
        path = self.make_zip()
        with open(path, 'rb') as file:
            data = file.read()
        self.write('cut.zip', data[:len(data) // 2])
        self.check_error(image_folder, self.path('cut.zip'), fragments=('cut.zip', 'not a zip'))
        damaged = bytearray(data)
        damaged[80] ^= 255
        self.check_error(image_folder, self.write('flip.zip', bytes(damaged)), fragments=('flip.zip: 0.png',))
        with self.assertWarns(UserWarning), zipfile.ZipFile(path, 'a') as archive:
            archive.writestr('0.png', b'again')
        self.check_error(image_folder, path, fragments=('0.png 2 times',))
        bomb = io.BytesIO()
        with zipfile.ZipFile(bomb, 'w', zipfile.ZIP_DEFLATED) as archive, archive.open('a.png', 'w') as file:
            for _ in range(64):
                file.write(bytes(1 << 20))
        patched = bomb.getvalue().replace(struct.pack('<I', 64 << 20), struct.pack('<I', 3 << 30))
        self.check_error(image_folder, self.write('bomb.zip', patched), fragments=('a.png', 'unpacks to'))


class LabelsTest(ArchiveBase):

    def setUp(self):
        super().setUp()
        for name in ['x/0.png', 'x/1.png', 'y/2.png']:
            self.save(name, random_images(1, 8)[0])
        self.store = ImageStore(self.path('images'))

    def labels(self, name: str, text: str, where: str = 'auto'):
        path = self.write(f'images/{name}', text.encode())
        try:
            return read_labels(ImageStore(self.path('images')), path if where == 'path' else where)
        finally:
            os.remove(path)

    def test_json(self):
        names = ['y/2.png', 'x/0.png', 'x/1.png', 'more.png']
        for values, expected, classes in [
            ([3, 1, 0, 5], [1, 0, 3], None), (['dog', 'cat', 'cat', 'cow'], [0, 0, 1], ['cat', 'dog']),
            ([[.5, 1], [0, 1], [1, 0], [0, 0]], [[0, 1], [1, 0], [.5, 1]], None),
        ]:
            text = json.dumps({'labels': list(zip(names, values, strict=True))})
            for where in ('auto', 'path'):
                labels, found = self.labels('dataset.json', text, where)
                self.assertAllEqual(labels, expected)
                self.assertEqual(found, classes)
        records = json.dumps({'version': 1, 'num_images': 3})       # The other kind of dataset.json.
        self.assertAllEqual(self.labels('dataset.json', records)[0], [0, 0, 1])
        self.check_error(self.labels, 'dataset.json', records, 'path', fragments=('dataset.json',))

    def test_csv(self):
        text = 'x/0.png,cat\nx/1.png,"dog, small"\r\n\n./y/2.png,cat\n'
        for header in ('', 'File,Label\n', '\ufefffile,label\n'):
            labels, names = self.labels('labels.csv', header + text)
            self.assertAllEqual(labels, [0, 1, 0])
            self.assertEqual(names, ['cat', 'dog, small'])
        labels, names = self.labels('labels.csv', 'y\\2.png,7\nx/0.png,1\nx/1.png,0', 'path')
        self.assertAllEqual(labels, [1, 0, 7])
        self.assertIsNone(names)

    def test_errors(self):
        entries = '{"labels": [["x/0.png", %s], ["x/1.png", %s], ["y/2.png", %s]]}'
        for name, text, fragment in [
            ('dataset.json', '{"labels": [["x/0.png", 1]]}', 'no label for 2 of 3'),
            ('dataset.json', '{"labels": [1, 2]}', 'not of the form'),
            ('dataset.json', '{"labels": ' + '[' * 100000, 'not of the form'),
            ('dataset.json', entries % ('1', '"a"', '2'), 'all integers'),
            ('dataset.json', entries % ('-1', '0', '2'), 'from -1'),
            ('dataset.json', entries % ('[NaN]', '[1]', '[1]'), 'numbers'),
            ('labels.csv', 'x/0.png,1\nx/0.png,2\n', 'two labels for x/0.png'),
            ('labels.csv', 'x/0.png,1,2\n', 'line 1'), ('labels.csv', '', 'no label for 3'),
            ('labels.csv', 'x/0.png,1\nx/1.png,999999999\ny/2.png,0', '999999999'),
        ]:
            self.check_error(self.labels, name, text, fragments=(name, fragment))
        self.write('images/labels.csv', b'\xff\xfe\0')
        self.check_error(read_labels, ImageStore(self.path('images')), fragments=('labels.csv', 'text'))
        self.check_error(read_labels, self.store, 'other', fragments=('other',))
        self.check_error(read_labels, self.store, self.path('none.csv'), fragments=('none.csv',))

    def test_folders(self):
        labels, names = read_labels(self.store, 'folders')
        self.assertEqual((labels.tolist(), names), ([0, 0, 1], ['x', 'y']))
        self.save('3.png', random_images(1, 8)[0])
        store = ImageStore(self.path('images'))
        self.assertEqual(read_labels(store), (None, None))
        self.check_error(read_labels, store, 'folders', fragments=('3.png',))


class CelebaTest(ArchiveBase):

    def test_celeba(self):
        pixels = np.random.RandomState(0).randint(0, 256, [5, 218, 178, 3]).astype(np.uint8)
        for i, image in enumerate(pixels):
            self.save(f'img_align_celeba/{i + 1:06d}.png', image)
        folder = self.path('images')
        source = archives.celeba(folder)
        self.check_source(source, pixels[:, 57:185, 25:153])
        self.assertIn('202599', source.description)
        with zipfile.ZipFile(self.path('img_align_celeba.zip'), 'w') as archive:
            for name in sorted(os.listdir(os.path.join(folder, 'img_align_celeba'))):
                archive.write(os.path.join(folder, 'img_align_celeba', name), f'img_align_celeba/{name}')
        moved = archives.celeba(self.folder(), cx=80, cy=100)
        self.check_source(moved, pixels[:, 36:164, 16:144])
        self.check_error(archives.celeba, folder, cx=40, fragments=('cx=40',))
        self.save('img_align_celeba/000003.png', pixels[0, :100, :100])
        self.check_error(archives.celeba(folder).read, 2, fragments=('000003.png', '178x218'))

    def test_celebahq(self):
        random = np.random.RandomState(0)
        small = random.randint(0, 256, [2, 1, 1, 3])
        images = np.broadcast_to(small, [2, 1024, 1024, 3]).astype(np.uint8)
        for i, image in enumerate(images):
            self.save(f'img{i:08d}.png', image)
        self.assertAllEqual(read_all(archives.celebahq(self.path('images'))), images)
        os.makedirs(self.path('arrays'))
        for i, image in enumerate(images):
            np.save(self.path('arrays', f'imgHQ{i:05d}.npy'), image.transpose(2, 0, 1)[None])
        os.makedirs(self.path('celeba', 'img_celeba'))
        source = archives.celebahq(self.path('celeba'), self.path('arrays'))
        self.assertAllEqual(read_all(pickle.loads(pickle.dumps(source))), images)
        np.save(self.path('arrays', 'imgHQ00001.npy'), images[0, :9])
        self.check_error(source.read, 1, fragments=('imgHQ00001.npy', '[3, 1024, 1024]'))
        shutil.rmtree(self.path('arrays'))
        os.makedirs(self.path('arrays'))
        self.write('arrays/deltas00000.zip', b'')
        self.check_error(archives.celebahq, self.path('celeba'), self.path('arrays'),
                         fragments=('1024x1024', 'landmarks', '1 delta file in', 'img_celeba'))
        self.save('img00000001.png', images[0, :64, :64])
        self.save('img00000000.png', images[0, :64, :64])
        self.check_error(archives.celebahq, self.path('images'), fragments=('64x64', '1024x1024'))


if __name__ == '__main__':
    tf.test.main()
