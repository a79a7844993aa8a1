"""Records and their conversion: official bytes, any number of processes, interruptions, mistakes."""

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
import unittest.mock

import numpy as np
import PIL.Image
import tensorflow as tf

from dnnlib.util import UserError
from tests import testutil
from tests.conversion_testutil import Crash, FakeSource, square
from tests.dataset_testutil import Base, random_images
from training.datasets import base, conversion, tfrecord, worker_pool, workspace, writer
from training.datasets.conversion import Options, convert


def tree(folder):
    """{name: content} of all files in a folder, hidden ones too."""
    found = {}
    for path, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(path, name), 'rb') as file:
                found[os.path.relpath(os.path.join(path, name), folder)] = file.read()
    return found


def quiet(function, *args, **kwargs):
    """The result of a function, and what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        result = function(*args, **kwargs)
    return result, out.getvalue()


class RecordTest(Base):

    def test_levels(self):
        images = random_images(3, 64)
        for level, actual in writer.image_levels(images):
            self.assertAllEqual(actual, base.reduce_images(images, 6 - level))
            self.assertEqual(actual.dtype, np.uint8)
        self.assertEqual([level for level, _ in writer.image_levels(images)], [6, 5, 4, 3, 2])
        self.assertEqual([level for level, _ in writer.image_levels(images, 6)], [6])

    def test_messages_are_protocol_buffers(self):
        for shape, data, encoding in [([3, 4, 4], b'', None), ([1, 256, 1024], b'x' * 70000, None),
                                      ([4, 8, 8], b'\xff' * 200, 'png'),
                                      ([3, 512, 512], b'y' * 127, 'jpeg')]:
            features = {'shape': tf.train.Feature(int64_list=tf.train.Int64List(value=shape)),
                        'data': tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))}
            if encoding:
                value = tf.train.BytesList(value=[encoding.encode()])
                features['encoding'] = tf.train.Feature(bytes_list=value)
            example = tf.train.Example(features=tf.train.Features(feature=features))
            self.assertEqual(writer.make_example(shape, data, encoding),
                             example.SerializeToString(deterministic=True))

    def test_files_are_those_of_tensorflow(self):
        for fmt in writer.FORMATS:
            images = random_images(70, 16, seed=1)
            path = self.path('expected.tfrecords')
            with tf.io.TFRecordWriter(path) as file:
                for image in images:
                    file.write(writer.encode_example(image.transpose(2, 0, 1), fmt, 90))
            data, lengths, digests = writer.encode_level(images, fmt, 90)
            with open(path, 'rb') as file:
                self.assertEqual(data, file.read())
            self.assertEqual(sum(lengths), len(data))
            self.assertLen(set(digests), 70)

    def test_framing_of_different_lengths(self):
        random = np.random.RandomState(0)
        payloads = [random.bytes(int(size)) for size in [0, 1, 5, 3_000_000, 7, 2_500_000, 64, 100, 2000]]
        path = self.path('expected.tfrecords')
        with tf.io.TFRecordWriter(path) as file:
            for payload in payloads:
                file.write(payload)
        with open(path, 'rb') as file:
            self.assertEqual(writer.frame_list(payloads), file.read())

    def test_pictures(self):
        for channels, mode in [(1, 'L'), (3, 'RGB'), (4, 'RGBA')]:
            image = random_images(1, 16, channels)[0]
            with PIL.Image.open(io.BytesIO(writer.encode_picture(image, 'png'))) as picture:
                self.assertEqual((picture.format, picture.mode), ('PNG', mode))
                self.assertAllEqual(np.asarray(picture).reshape(16, 16, channels), image)
        y, x = np.mgrid[:32, :32]
        smooth = np.stack([8 * x, 8 * y, 255 - 8 * x], axis=-1).astype(np.uint8)
        sizes = []
        for quality in [30, 95]:
            data = writer.encode_picture(smooth, 'jpeg', quality)
            sizes.append(len(data))
            with PIL.Image.open(io.BytesIO(data)) as picture:
                self.assertEqual((picture.format, picture.mode), ('JPEG', 'RGB'))
                error = np.abs(np.asarray(picture).astype(int) - smooth).max()
        self.assertLess(error, 6)
        self.assertLess(sizes[0], sizes[1])
        with self.assertRaisesRegex(UserError, '4 channels'):
            writer.encode_picture(random_images(1, 8, 4)[0], 'jpeg')

    def test_fingerprint(self):
        images = random_images(4, 8)

        def value(images, labels=None, fmt='raw'):
            digests = b''.join(writer.encode_level(images, fmt)[2])
            return writer.fingerprint([3, 8, 8], labels, digests)
        self.assertEqual(value(images), value(images, fmt='png'))
        changed = images.copy()
        changed[3, 7, 7, 2] ^= 1
        one, two = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[[1, 0, 2, 3]]
        self.assertLen({value(images), value(changed), value(images[::-1]), value(images[:3]),
                        value(images, one), value(images, two), value(images, fmt='jpeg')}, 7)


class GoldenTest(Base):

    @testutil.needs_golden
    def test_files_of_the_official_exporter(self):
        for name in ['gray8', 'rgb16']:
            arrays = testutil.load('tfrecords', f'{name}.npz')
            self.assertAllEqual(writer.choose_shuffled_order(len(arrays['images'])), arrays['order'])
            source = FakeSource(len(arrays['images']))
            images = testutil.nhwc(arrays['images'])
            source.read = images.__getitem__
            source.labels = arrays['labels_onehot'] if arrays['labels_onehot'].size else None
            quiet(convert, source, self.path(name), Options(workers=1))
            expected = tree(testutil.golden('tfrecords', name))
            actual = tree(self.path(name))
            self.assertEqual({*actual}, {*expected, 'dataset.json'})
            for file, content in expected.items():
                self.assertEqual(actual[file], content, file)


class ConversionTest(Base):

    def setUp(self):
        super().setUp()
        self.enterContext(unittest.mock.patch.object(conversion, '_TASK_BYTES', 8 * 8 * 3 * 10))

    def convert(self, name, source, **options):
        return quiet(convert, source, self.path(name, 'set'), Options(**{'workers': 1, **options}))

    def assert_fails(self, message, name, source, **options):
        with self.assertRaisesRegex(UserError, message) as caught:
            self.convert(name, source, **options)
        self.assert_message(caught.exception)

    def assert_same(self, a, b):
        """Two folders hold the same files."""
        a, b = tree(self.path(a)), tree(self.path(b))
        self.assertEqual({*a}, {*b})
        self.assertEmpty([name for name in a if a[name] != b[name]])

    def images(self, name, level=3):
        folder = self.path(name, 'set')
        paths = sorted(os.path.join(folder, file) for file in os.listdir(folder)
                       if f'-r{level:02}' in file and file.endswith('.tfrecords'))
        records = tfrecord.ImageRecords(paths, True)
        return records.read(np.arange(len(records)))

    def test_content(self):
        source = FakeSource(103)
        info, text = self.convert('a', source)
        order = writer.choose_shuffled_order(103)
        expected = np.stack([source.read(i) for i in order])
        self.assertAllEqual(self.images('a'), expected)
        self.assertAllEqual(self.images('a', 2), base.reduce_images(expected, 1))
        labels = np.load(self.path('a', 'set', 'set-rxx.labels'))
        self.assertAllEqual(labels, np.eye(5, dtype=np.float32)[order % 5])
        self.assertEqual(info, json.loads(tree(self.path('a'))['set/dataset.json']))
        self.assertEqual(info['class_counts'], {'0': 21, '1': 21, '2': 21, '3': 20, '4': 20})
        self.assertEqual((info['num_images'], info['shape'], info['levels']), (103, [3, 8, 8], [2, 3]))
        self.assertIn('103 images', text)
        self.assertEqual(os.listdir(self.path('a')), ['set'])       # Nothing else is left.
        self.convert('b', source, shuffle_seed=None, max_images=7)
        self.assertAllEqual(self.images('b'), np.stack([source.read(i) for i in range(7)]))

    def test_does_not_depend_on_processes_and_shards(self):
        for fmt in ['raw', 'png']:
            source = FakeSource(103, bad=[5, 50])
            options = {'format': fmt, 'skip_bad': True}
            one, _ = self.convert(f'{fmt}1', source, **options)
            self.convert(f'{fmt}2', source, workers=2, **options)
            self.assert_same(f'{fmt}1', f'{fmt}2')
            sharded, _ = self.convert(f'{fmt}3', source, shards=7, single_resolution=False, **options)
            self.assertEqual(sharded['fingerprint'], one['fingerprint'])
            self.assertAllEqual(self.images(f'{fmt}3'), self.images(f'{fmt}1'))
            for level in [2, 3]:
                records = [tree(self.path(f'{fmt}3'))[f'set/set-r{level:02}-{i:05}-of-00007.tfrecords']
                           for i in range(7)]
                self.assertGreater(min(map(len, records)), 0)
            if fmt == 'raw':
                files = tree(self.path('raw3', 'set'))
                self.assertEqual(b''.join(files[f'set-r03-{i:05}-of-00007.tfrecords'] for i in range(7)),
                                 tree(self.path('raw1', 'set'))['set-r03.tfrecords'])

    def test_encoded(self):
        source = FakeSource(30)
        expected = np.stack([source.read(i) for i in writer.choose_shuffled_order(30)])
        info, _ = self.convert('png', source, format='png')
        self.assertAllEqual(self.images('png'), expected)
        self.assertEqual((info['format'], info['levels']), ('png', [3]))
        files = tree(self.path('png', 'set'))
        self.assertEqual({*files}, {'set-r03.tfrecords', 'set-r03.tfrecords.index', 'set-rxx.labels',
                                    'dataset.json'})
        offsets = np.load(io.BytesIO(files['set-r03.tfrecords.index']))
        self.assertEqual((offsets.dtype, len(offsets)), (np.uint64, 31))
        self.assertEqual(offsets[-1], len(files['set-r03.tfrecords']))
        position = 0
        for offset in offsets[:-1]:
            self.assertEqual(offset, position)
            position += 16 + int.from_bytes(files['set-r03.tfrecords'][position:position + 8], 'little')
        info, _ = self.convert('jpeg', source, format='jpeg', quality=80)
        self.assertEqual((info['format'], info['quality']), ('jpeg', 80))
        self.assertEqual(self.images('jpeg').shape, expected.shape)

    def interrupt(self, name, source, after, error=KeyboardInterrupt, **options):
        """Raises in the middle of the writing, as Ctrl-C may."""
        real, calls = conversion.Workspace.append, []

        def append(workspace, file, data):
            calls.append(file)
            real(workspace, file, data[:len(data) // 2] if len(calls) == after else data)
            if len(calls) == after:
                raise error
        with unittest.mock.patch.object(conversion.Workspace, 'append', append):
            with self.assertRaises(error):
                self.convert(name, source, **options)

    def test_goes_on_after_interruptions(self):
        for fmt, shards in [('raw', 1), ('png', 4)]:
            source = FakeSource(103, bad=[5, 50])
            options = {'format': fmt, 'shards': shards, 'skip_bad': True}
            name = f'{fmt}{shards}'
            self.convert(name, source, **options)
            for after in [1, 6, 18, 11]:
                self.interrupt(name + 'x', source, after, **options)
            self.assertEqual(os.listdir(self.path(name + 'x')), ['.set.partial'])
            _, text = self.convert(name + 'x', source, **options)
            self.assertRegex(text, r'goes on after image \d\d of 103')
            self.assert_same(name + 'x', name)

    def test_message_of_an_interruption(self):
        with self.assertRaisesRegex(conversion.Interrupted, r'30 of 103 .*kept in .*same command'):
            with unittest.mock.patch.object(worker_pool.Progress, 'add',
                                            side_effect=[None, None, KeyboardInterrupt]):
                self.convert('a', FakeSource(103))

    def test_changed_source_or_options_start_afresh(self):
        for change, reason in [({'format': 'png'}, 'format'), ({'shards': 2}, 'shards'),
                               ({'source': FakeSource(102)}, 'images'),
                               ({'source': FakeSource(103, seed=1)}, 'content'),
                               ({'source': FakeSource(103, classes=4)}, 'labels'),
                               ({'shuffle_seed': 1}, 'shuffle_seed'), ({'max_images': 50}, 'max_images')]:
            self.interrupt(reason, FakeSource(103), 10)
            source, options = change.pop('source', FakeSource(103)), change
            _, text = self.convert(reason, source, **options)
            self.assertRegex(text, rf'another source or other options \(.*{reason}.*\); starting afresh')
            self.convert(reason + 'x', source, **options)
            self.assert_same(reason, reason + 'x')

    def test_end_right_at_the_end(self):
        """Wherever the last steps are cut short, the same command finishes."""
        source = FakeSource(30)
        self.convert('expected', source)
        for function in ['os.rename', 'os.unlink', 'os.rmdir', 'shutil.rmtree', 'numpy.save']:
            name = function.replace('.', '_')
            with unittest.mock.patch(function, side_effect=KeyboardInterrupt):
                with self.assertRaises(KeyboardInterrupt):
                    self.convert(name, source)
            if os.path.exists(self.path(name, 'set')):      # It was in place already.
                self.assert_fails('exists and holds a data set', name, source)
            else:
                self.convert(name, source)
            self.assert_same(name, 'expected')

    def test_overwriting(self):
        old, new = FakeSource(30), FakeSource(20, seed=1)
        self.convert('a', old)
        before = tree(self.path('a'))
        self.assert_fails(r'set exists and holds a data set .*--overwrite', 'a', new)
        self.assertEqual(tree(self.path('a')), before)
        self.interrupt('a', new, 5, overwrite=True)
        self.assertEqual({name: content for name, content in tree(self.path('a')).items()
                          if name.startswith('set')}, before)     # It stays until the new one is whole.
        self.convert('a', new, overwrite=True)
        self.convert('b', new)
        self.assert_same('a', 'b')
        self.convert('a', old, overwrite=True, format='png', shards=3)
        self.convert('a', new, overwrite=True)
        self.assert_same('a', 'b')

    def test_foreign_files_are_never_touched(self):
        self.convert('a', FakeSource(10))
        with open(self.path('a', 'set', 'notes.txt'), 'w') as file:
            file.write('mine')
        for overwrite in [False, True]:
            self.assert_fails(r'not of a data set \(notes.txt\)', 'a', FakeSource(10), overwrite=overwrite)
        self.assertIn('set/notes.txt', tree(self.path('a')))
        os.makedirs(self.path('b', '.set.partial'))
        with open(self.path('b', '.set.partial', 'data'), 'w') as file:
            file.write('mine')
        self.assert_fails('does not come from a conversion', 'b', FakeSource(10))
        with open(self.path('c', 'set'), 'w') as file:
            file.write('mine')
        self.assert_fails('is a file', 'c', FakeSource(10))
        self.assertEqual(tree(self.path('c')), {'set': b'mine'})
        os.makedirs(self.path('d', 'set'))      # An empty folder may be there.
        self.convert('d', FakeSource(10))
        for path in ['/', os.curdir, self.path('.hidden')]:
            with self.assertRaises(UserError):
                convert(FakeSource(1), path, Options())

    def test_two_at_once(self):
        other = conversion.Workspace(os.path.realpath(self.path('a', 'set')))
        with other.locked():
            self.assert_fails(r'is being made by another process;', 'a', FakeSource(10))
        self.convert('a', FakeSource(10))
        self.assertEqual(os.listdir(self.path('a')), ['set'])

    def test_the_other_process_finishes_meanwhile(self):
        """It removes the folder while this one waits for its lock: that lock is worth nothing."""
        place = workspace.Workspace(os.path.realpath(self.path('a', 'set')))
        file_lock, calls = workspace.file_lock, []

        @contextlib.contextmanager
        def late(path):
            calls.append(path)
            with file_lock(path):
                if len(calls) < 3:
                    os.rmdir(path)
                if len(calls) == 2:
                    os.mkdir(path)
                yield
        with unittest.mock.patch.object(workspace, 'file_lock', late), place.locked():
            self.assertLen(calls, 3)
            with self.assertRaisesRegex(UserError, 'another process'), place.locked():
                pass
        self.assertEqual(os.listdir(self.path('a')), [])

    def test_disk_full(self):
        source = FakeSource(103)
        self.convert('a', source)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard))    # Python ignores the signal.
        try:
            self.assert_fails(r'set-r03.tfrecords: File too large. The finished part \(\d0 of 103 images\) '
                              r'is kept in .*\.set\.partial. Free some space', 'b', source)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        self.convert('b', source)
        self.assert_same('a', 'b')
        with unittest.mock.patch('shutil.disk_usage') as usage:
            usage.return_value.free = 1000
            self.assertRegex(self.convert('c', source)[1], 'Warning: about .* GB are needed')

    def test_bad_images(self):
        source = FakeSource(103, bad=[5, 50])
        order = writer.choose_shuffled_order(103).tolist()
        first = min([5, 50], key=order.index)
        self.assert_fails(rf'fake\[{first}\] is bad\. --skip-bad', 'a', source)
        info, text = self.convert('a', source, skip_bad=True)     # Goes on.
        self.assertIn('goes on after', text)
        self.assertCountEqual(info['skipped'], [[f'fake[{i}]', f'fake[{i}] is bad.'] for i in [5, 50]])
        self.assertIn('Left out: fake[5] is bad.', text)
        self.assertEqual(info['num_images'], 101)
        kept = [i for i in order if i not in (5, 50)]
        self.assertAllEqual(self.images('a'), np.stack([source.read(i) for i in kept]))
        labels = np.load(self.path('a', 'set', 'set-rxx.labels'))
        self.assertAllEqual(labels.argmax(axis=1), np.array(kept) % 5)
        source = FakeSource(103, left_out=[7])        # By the recipe of the data set: no option is needed.
        info, _ = self.convert('b', source)
        self.assertEqual(info['skipped'], [['fake[7]', 'fake[7] is too small.']])
        self.assert_fails('none of the 5 images', 'c', FakeSource(5, bad=range(5)), skip_bad=True)
        source = FakeSource(103, bad=[50])
        source.problems = {50: 'fake[50] is known to be bad.'}
        self.assert_fails(r'known to be bad. 1 of 103 images', 'd', source)
        self.assertEqual(self.convert('d', source, skip_bad=True)[0]['num_images'], 102)

    def test_a_shard_without_images_does_not_count(self):
        source = FakeSource(10, bad=[3])
        info, _ = self.convert('a', source, shards=10, skip_bad=True, shuffle_seed=None, format='png')
        self.assertEqual((info['shards'], info['num_images']), (9, 9))
        self.assertAllEqual(self.images('a'), np.stack([source.read(i) for i in range(10) if i != 3]))
        self.assertIn('set-r03-00008-of-00009.tfrecords.index', tree(self.path('a', 'set')))

    def test_shapes(self):
        for shape, message in [((8, 12, 3), r'fake\[4\] has 12x8 pixels, but fake\[0\] has 8x8'),
                               ((8, 8, 1), r'fake\[4\] has 1 channels \(gray\), but fake\[0\] has 3 .*'
                                           '--channels=3'),
                               ((8, 8, 4), r'fake\[4\] has 4 channels .*--channels=4')]:
            source = FakeSource(10)
            read = source.read
            source.read = lambda i, shape=shape, read=read: np.zeros(shape, np.uint8) if i == 4 else read(i)
            self.assert_fails(message, str(shape), source, shuffle_seed=None)
        for size, message in [(12, '12x12 pixels.*--resolution=8'), (2, '2x2 pixels')]:
            self.assert_fails(r'fake\[0\] has ' + message, str(size), FakeSource(3, size))
        self.assert_fails(r'fake\[0\] has 2 channels', 'two', FakeSource(3, 8, 2))
        self.assert_fails('jpeg records cannot hold images of 4 channels', 'four', FakeSource(3, 8, 4),
                          format='jpeg')
        self.assertEqual([name for name in os.listdir(self.path('four')) if name.endswith('.partial')], [])

    def test_wrong_options(self):
        self.assert_fails('gif', 'a', FakeSource(3), format='gif')
        self.assert_fails('--shards must be from 1 to the number of images, 3', 'a', FakeSource(3), shards=4)
        self.assert_fails('no images', 'a', FakeSource(0, classes=0))
        source = FakeSource(3)
        source.labels = np.arange(2)
        self.assert_fails('2 labels for 3 images', 'a', source)
        with self.assertRaisesRegex(UserError, 'local folders'):
            convert(source, 'gs://bucket/set', Options())
        self.assertEqual(os.listdir(self.path('a')), [])


class ProcessTest(Base):
    """Real processes and real signals."""

    def start(self, delay):
        target = self.path('b', 'set')
        code = ('from training.datasets import conversion as c\n'
                'from tests.conversion_testutil import FakeSource\n'
                'c.SAVE_SECONDS, c._TASK_BYTES = 0.05, 2000\n'
                'if __name__ == "__main__":\n'
                f'    c.convert(FakeSource(400, delay={delay}), {target!r}, c.Options(workers=2))\n')
        script = self.path('script.py')
        with open(script, 'w') as file:
            file.write(code)
        return subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True, env={**os.environ, 'PYTHONPATH': str(testutil.ROOT)})

    def test_kill_and_again(self):
        quiet(convert, FakeSource(400), self.path('a', 'set'), Options(workers=1))
        process = self.start(0.02)
        state = self.path('b', '.set.partial', 'state.json')
        deadline, position = time.time() + 60, 0
        while position < 50 and time.time() < deadline:
            with contextlib.suppress(FileNotFoundError, KeyError), open(state) as file:
                position = json.load(file)['position']
            time.sleep(0.02)
        workers = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(process.pid)], capture_output=True,
                                 text=True).stdout.split()
        process.kill()
        process.communicate()
        self.assertEqual(process.returncode, -signal.SIGKILL)
        self.assertBetween(position, 50, 399)
        self.assertFalse(os.path.exists(self.path('b', 'set')))
        self.assertGreaterEqual(len(workers), 2)
        while any(os.path.exists(f'/proc/{pid}') for pid in workers) and time.time() < deadline:
            time.sleep(0.05)
        self.assertLess(time.time(), deadline)      # The workers have ended by themselves.
        _, text = quiet(convert, FakeSource(400), self.path('b', 'set'), Options(workers=1))
        self.assertGreaterEqual(int(text.split('goes on after image ')[1].split()[0]), position)
        self.assertTrue(tree(self.path('a')) == tree(self.path('b')))

    def test_a_worker_that_dies(self):
        with unittest.mock.patch.object(conversion, '_TASK_BYTES', 2000):
            with self.assertRaisesRegex(UserError, r'ended by signal 9. Mostly memory .* kept in'):
                quiet(convert, Crash(100), self.path('a', 'set'), Options(workers=2, shuffle_seed=None))

    def test_order_and_errors(self):
        results = worker_pool.ordered_map(square, range(1, 20), 2)
        self.assertEqual([next(results) for _ in range(12)], [i * i for i in range(1, 13)])
        with self.assertRaisesRegex(UserError, '13 is unlucky'):
            next(results)
        self.assertEqual(list(worker_pool.ordered_map(square, [2, 3], 1)), [4, 9])
        with self.assertRaisesRegex(RuntimeError, r'(?s)in a worker process.*square.*ZeroDivisionError'):
            list(worker_pool.ordered_map(square, [0, 1], 2))


if __name__ == '__main__':
    tf.test.main()
