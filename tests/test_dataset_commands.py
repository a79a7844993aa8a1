"""What dataset_tool.py does with finished data sets: show, describe, compare, check, unpack and pack."""

import contextlib
import io
import json
import os
import shutil
import sys
import unittest.mock
import zipfile

import numpy as np
import PIL.Image
import tensorflow as tf

from dnnlib.util import UserError
from tests import testutil
from tests.conversion_testutil import FakeSource
from tests.dataset_testutil import Base, random_images
from training.dataset import load_dataset
from training.datasets import commands, writer
from training.datasets.conversion import Options, convert


class CommandBase(Base):

    def make(self, name, source=None, **options):
        """A data set of 30 images with 5 classes, in the order of the source."""
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            convert(source or FakeSource(30), self.path(name),
                    Options(**{'workers': 1, 'shuffle_seed': None, **options}))
        return self.path(name)

    def call(self, function, *args, **kwargs):
        """(result, what was printed)."""
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
            result = function(*args, **kwargs)
        return result, out.getvalue()


class DisplayTest(CommandBase):

    def test_sheet(self):
        path = self.make('set')
        self.call(commands.display, path, grid='4x3')
        with PIL.Image.open(path + '-display.png') as sheet:
            pixels = np.asarray(sheet)
        self.assertEqual(pixels.shape, (24, 32, 3))
        for i in range(12):
            y, x = i // 4 * 8, i % 4 * 8
            self.assertAllEqual(pixels[y:y + 8, x:x + 8], FakeSource(30).read(i))
        self.call(commands.display, path, output=self.path('all.png'))
        with PIL.Image.open(self.path('all.png')) as sheet:
            self.assertEqual(sheet.size, (32 * 8, 8))       # No rows without images.
        self.call(commands.unpack, path, self.path('packed.zip'))
        self.call(commands.display, self.path('packed.zip'))
        self.assertTrue(os.path.isfile(self.path('packed-display.png')))

    def test_by_class(self):
        path = self.make('set')
        self.call(commands.display, path, output=self.path('a.png'), grid='4x5', layout='row_per_class')
        images = {FakeSource(30).read(i).tobytes(): i for i in range(30)}
        with PIL.Image.open(self.path('a.png')) as sheet:
            pixels = np.asarray(sheet)
        for row in range(5):
            for column in range(4):
                cell = pixels[8 * row:8 * row + 8, 8 * column:8 * column + 8]
                self.assertEqual(images[cell.tobytes()] % 5, row)

    def test_window_never_fails(self):
        path = self.make('set')
        with unittest.mock.patch.dict(os.environ, {'DISPLAY': 'nowhere:77'}), \
                unittest.mock.patch.dict(sys.modules, {'tkinter': None}):
            _, text = self.call(commands.display, path)
        self.assertIn('No window: ', text)
        with self.assertRaisesRegex(UserError, '--grid=9999x9999'):
            self.call(commands.display, path, grid='9999x9999')


class InfoTest(CommandBase):

    def test_info(self):
        labels = np.array([0] * 20 + [1] * 9 + [3])
        source = FakeSource(30, bad=[2])
        source.labels, source.label_names = labels, ['cat', 'dog', 'cow', 'hen']
        path = self.make('set', source, format='png', shards=2, skip_bad=True)
        _, text = self.call(commands.info, path, histogram=True)
        for fragment in ['images:', ' 29\n', '[3, 8, 8]', 'png', 'a fake',
                         'left out fake[2]: fake[2] is bad.', 'Warning: no image has the label cow']:
            self.assertIn(fragment, text)
        bars = {line.split()[0]: line.count('█') for line in text.splitlines() if line[:2] == '  '}
        self.assertEqual(bars, {'cat': 50, 'dog': 24, 'cow': 0, 'hen': 3})
        self.assertNotIn('█', self.call(commands.info, path)[1])

    def test_other_kinds(self):
        _, text = self.call(commands.info, 'pixelart32')
        self.assertIn('4096', text)
        self.assertIn('#8d5524 534', text)
        self.save('a/x.png', random_images(1, 8)[0])
        self.save('b/y.png', random_images(1, 8)[0])
        _, text = self.call(commands.info, self.path('images'))
        self.assertIn('classes: 2', text)
        with self.assertRaisesRegex(UserError, 'nowhere'):
            commands.info(self.path('nowhere'))


class CompareTest(CommandBase):

    def test_compare(self):
        a = self.make('a')
        for name, options, images, labels in [
                ('same', {'format': 'png', 'shards': 4}, 30, 30),
                ('pixel', {'source': FakeSource(30, bad=[7]), 'skip_bad': True}, 7, 7),     # All move up.
                ('labels', {'source': FakeSource(30, classes=4)}, 30, 0),
                ('fewer', {'max_images': 12}, 12, 12)]:
            status, text = self.call(commands.compare, a, self.make(name, **options))
            self.assertEqual(status, 0 if name == 'same' else 1)
            self.assertRegex(text, rf'Identical images: {images} / 30\n')
            self.assertRegex(text, rf'Identical labels: {labels} / 30\n')
        self.assertEqual(self.call(commands.compare, a, self.path('labels'), ignore_labels=True)[0], 0)
        status, text = self.call(commands.compare, a, self.make('large', FakeSource(30, 16)))
        self.assertEqual(status, 1)
        self.assertIn('Different shapes: [3, 8, 8] and [3, 16, 16]', text)


class ExportTest(CommandBase):

    def assert_same(self, a, b):
        a, b = (load_dataset(dataset=path, max_label_size='full') for path in (a, b))
        self.assertEqual((a.shape, len(a)), (b.shape, len(b)))
        self.assertAllEqual(a.read(np.arange(len(a)))[0], b.read(np.arange(len(b)))[0])
        self.assertAllEqual(a.labels, b.labels)

    def test_extract(self):
        path = self.make('set', FakeSource(30, channels=1))
        self.call(commands.extract, path, self.path('out'))
        self.assertCountEqual(os.listdir(self.path('out')),
                              ['dataset.json', *(f'img{i:08}.png' for i in range(30))])
        with PIL.Image.open(self.path('out', 'img00000017.png')) as image:
            self.assertEqual(image.mode, 'L')
            self.assertAllEqual(np.asarray(image), FakeSource(30, channels=1).read(17)[:, :, 0])
        with open(self.path('out', 'dataset.json')) as file:
            labels = json.load(file)['labels']
        self.assertEqual(labels[17], ['img00000017.png', 2])
        self.assert_same(path, self.path('out'))
        with self.assertRaisesRegex(UserError, 'exists and is not empty'):
            commands.extract(path, self.path('out'))
        without = self.make('without', FakeSource(3, classes=0))
        self.call(commands.extract, without, self.path('plain'))
        self.assertEqual(load_dataset(dataset=self.path('plain')).label_size, 0)

    def test_nothing_half_appears(self):
        path = self.make('set')
        for output in ['folder', 'file.zip']:
            error = OSError('full')
            with unittest.mock.patch.object(commands, 'encode_picture', side_effect=[b'x', error]), \
                    self.assertRaisesRegex(OSError, 'full'):
                self.call(commands.unpack, path, self.path('new', output))
            self.assertEqual(os.listdir(self.path('new')), [])

    def test_unpack_and_pack(self):
        original = self.make('set')
        for kind in ['out', 'out.zip']:
            self.call(commands.unpack, original, self.path(kind))
            self.assert_same(original, self.path(kind))
        encoded = self.make('jpeg', format='jpeg', quality=50, shards=3)
        self.call(commands.unpack, encoded, self.path('jpeg.zip'))
        with zipfile.ZipFile(self.path('jpeg.zip')) as archive:
            self.assertEqual(archive.read('img00000029.jpg'),
                             writer.encode_picture(FakeSource(30).read(29), 'jpeg', 50))
        self.assert_same(encoded, self.path('jpeg.zip'))

    def test_records_again(self):
        """Another form of a data set, and back: the same bytes."""
        original = self.make('set', FakeSource(30, 16))
        png = self.make('png', commands.DatasetSource(original), format='png', shards=3)
        os.rename(original, self.path('first'))
        again = self.make('set', commands.DatasetSource(png))
        for name in os.listdir(self.path('first')):
            if name != 'dataset.json':
                with open(os.path.join(self.path('first'), name), 'rb') as a, \
                        open(os.path.join(again, name), 'rb') as b:
                    self.assertEqual(a.read(), b.read(), name)
        self.assertEqual(commands.load_info(png)['fingerprint'], commands.load_info(again)['fingerprint'])

    @testutil.needs_golden
    def test_official_data_sets(self):
        for name in ['gray8', 'rgb16']:
            golden = testutil.golden('tfrecords', name)
            path = self.make(name, commands.DatasetSource(golden))
            self.assertEqual(self.call(commands.compare, golden, path)[0], 0)
            self.assertEqual(self.call(commands.validate, golden)[0], 0)
            for file in os.listdir(golden):
                with open(os.path.join(golden, file), 'rb') as a, open(os.path.join(path, file), 'rb') as b:
                    self.assertEqual(a.read(), b.read(), file)


class ValidateTest(CommandBase):

    def validate(self, path):
        return self.call(commands.validate, path)

    def test_good(self):
        for options in [{}, {'format': 'png', 'shards': 4}, {'format': 'jpeg', 'single_resolution': False},
                        {'source': FakeSource(9, channels=4, classes=0), 'format': 'png'}]:
            path = self.make('-'.join(map(str, options)) or 'raw', **options)
            status, text = self.validate(path)
            self.assertEqual((status, text.count('\n')), (0, 1), text)
            self.assertIn('all right', text)
        self.save('x.png', random_images(1, 8)[0])
        self.assertEqual(self.validate(self.path('images'))[0], 0)
        self.assertEqual(self.validate('pixelart32')[0], 0)
        for change, remark in [({'fingerprint': None, 'levels': None}, 'lacks levels, fingerprint'),
                               ({'num_images': None}, 'says nothing about the records')]:
            with open(os.path.join(path, 'dataset.json'), encoding='utf-8') as file:
                info = json.load(file)
            with open(os.path.join(path, 'dataset.json'), 'w', encoding='utf-8') as file:
                json.dump({key: value for key, value in info.items() if key not in change}, file)
            status, text = self.validate(path)
            self.assertEqual((status, remark in text), (0, True), text)

    def test_damage(self):
        def flip(path, position):
            with open(path, 'r+b') as file:
                file.seek(position)
                byte = file.read(1)
                file.seek(position)
                file.write(bytes([byte[0] ^ 1]))

        def rewrite(path, change):
            with open(os.path.join(path, 'dataset.json')) as file:
                content = json.load(file)
            change(content)
            with open(os.path.join(path, 'dataset.json'), 'w') as file:
                json.dump(content, file)
        good = self.make('good')
        png = self.make('png', format='png', shards=3)
        record = os.path.getsize(os.path.join(good, 'good-r03.tfrecords')) // 30
        for i, (which, damage, messages) in enumerate([
                (good, lambda p: [flip(p + '/good-r03.tfrecords', record * n + 100) for n in (7, 29)],
                 [r'good-r03.tfrecords: record 7 .*checksum', r'good-r03.tfrecords: record 29 ']),
                (good, lambda p: flip(p + '/good-r02.tfrecords', 5),
                 ['good-r02.tfrecords: record 0 .*header']),
                (good, lambda p: os.truncate(p + '/good-r03.tfrecords', record * 30 - 9),
                 ['good-r03.tfrecords: record 29 .*cut off']),
                (good, lambda p: os.truncate(p + '/good-r03.tfrecords', record * 29),
                 ['good-r02 holds 30 images', 'num_images is 30, found 29']),
                (good, lambda p: os.unlink(p + '/good-r02.tfrecords'), [r'levels is \[2, 3\], found \[3\]']),
                (good, lambda p: np.save(open(p + '/good-rxx.labels', 'wb'), np.eye(30)[:29]),
                 [r'good-rxx.labels is float64 \[29, 30\]; expected float32 \[30,']),
                (good, lambda p: np.save(open(p + '/good-rxx.labels', 'wb'), np.ones([30, 5], np.float32)),
                 ['fingerprint is']),
                (good, lambda p: rewrite(p, lambda c: c.update(num_images=31, format='png')),
                 ['num_images is 31, found 30', 'format is png, found raw']),
                (good, lambda p: open(p + '/dataset.json', 'w').close(), ['dataset.json is damaged']),
                (png, lambda p: os.unlink(p + '/png-r03-00001-of-00003.tfrecords'),
                 ['png-r03-00001-of-00003.tfrecords is missing']),
                (png, lambda p: flip(p + '/png-r03-00001-of-00003.tfrecords.index', 150),
                 ['00001-of-00003.tfrecords.index does not say']),
                (png, lambda p: shutil.copy(good + '/good-r02.tfrecords', p),
                 [r'levels is \[3\], found \[2, 3\]'])]):
            path = self.path(f'bad{i}')
            shutil.copytree(which, path)
            damage(path)
            status, text = self.validate(path)
            self.assertEqual(status, 1)
            for message in messages:
                self.assertRegex(text, message)

    def test_a_picture_that_cannot_be_decoded(self):
        """All checksums are right, but one record holds no picture."""
        path = self.make('set', format='png')
        name = os.path.join(path, 'set-r03.tfrecords')
        payloads = [record.numpy() for record in tf.data.TFRecordDataset(name)]
        payloads[11] = writer.make_example([3, 8, 8], b'nonsense', 'png')
        with open(name, 'wb') as file:
            file.write(writer.frame_list(payloads))
        os.unlink(name + '.index')
        status, text = self.validate(path)
        self.assertEqual(status, 1)
        self.assertRegex(text, r'set-r03.tfrecords: record 11 .*cannot be decoded')

    def test_levels_that_are_no_averages_are_remarked(self):
        path = self.make('set')
        other = self.make('other/set', FakeSource(30, seed=1))
        shutil.copy(other + '/set-r02.tfrecords', path)
        status, text = self.validate(path)
        self.assertEqual(status, 0)
        self.assertRegex(text, r'Remark: set-r02: 30 images are not the averages')

    def test_bad_images_of_a_folder(self):
        for i in range(5):
            self.save(f'{i}.png', random_images(1, 8, seed=i)[0])
        os.truncate(self.path('images', '3.png'), 80)
        status, text = self.validate(self.path('images'))
        self.assertEqual(status, 1)
        self.assertRegex(text, '3.png is damaged')


if __name__ == '__main__':
    tf.test.main()
