"""dataset_tool.py: every command on small archives in their publishers' formats, flags, mistakes, Ctrl-C."""

import contextlib
import gzip
import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import tarfile
import time

import h5py
import lmdb
import numpy as np
import PIL.Image
import scipy.io
import tensorflow as tf

import dataset_tool
from dnnlib import UserError, flags
from tests import testutil
from tests.dataset_testutil import Base, random_images
from training.dataset import load_dataset
from training.datasets.writer import choose_shuffled_order

COMMANDS = ['display', 'extract', 'compare', 'info', 'validate', 'create_mnist', 'create_mnistrgb',
            'create_cifar10', 'create_cifar100', 'create_svhn', 'create_lsun', 'create_lsun_wide',
            'create_celeba', 'create_celebahq', 'create_from_images', 'create_from_hdf5', 'pack', 'unpack']


class ToolBase(Base):

    def run_tool(self, *args):
        """What the command line does, in this process: (exit status, what it printed)."""
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
            status = flags.run_command(dataset_tool.make_parser().parse_args([str(arg) for arg in args]))
        return status or 0, out.getvalue()

    def create(self, command, *args):
        """Makes the data set 'new' and checks it; returns images, labels and dataset.json."""
        target = self.path('new')
        status, text = self.run_tool(command, target, *args)
        self.assertEqual(status, 0, text)
        self.assertEqual(self.run_tool('validate', target)[0], 0)
        labelled = os.path.exists(os.path.join(target, 'new-rxx.labels'))
        found = load_dataset(dataset=target, max_label_size='full' if labelled else 0)
        labels = found.labels.argmax(axis=1) if labelled else None
        with open(os.path.join(target, 'dataset.json')) as file:
            return found.read(np.arange(len(found)))[0], labels, json.load(file)

    def exit_of(self, *args):
        """(exit status, stdout, stderr) of a command line that argparse ends."""
        with contextlib.redirect_stdout(io.StringIO()) as out, \
                contextlib.redirect_stderr(io.StringIO()) as err, self.assertRaises(SystemExit) as caught:
            dataset_tool.make_parser().parse_args(args)
        return caught.exception.code, out.getvalue(), err.getvalue()


class CreateTest(ToolBase):

    def idx(self, name, array):
        with gzip.open(self.path('source', name), 'wb') as file:
            file.write(bytes([0, 0, 8, array.ndim]) + struct.pack(f'>{array.ndim}I', *array.shape)
                       + array.tobytes())

    def test_mnist(self):
        digits, labels = random_images(20, 28, 1)[..., 0], np.arange(20, dtype=np.uint8) % 10
        self.idx('train-images-idx3-ubyte.gz', digits)
        self.idx('train-labels-idx1-ubyte.gz', labels)
        images, classes, info = self.create('create_mnist', self.path('source'))
        order = choose_shuffled_order(20)
        self.assertAllEqual(images[:, 2:-2, 2:-2, 0], digits[order])
        self.assertEqual(images.sum(), digits.sum(dtype=int))
        self.assertAllEqual(classes, labels[order])
        self.assertEqual((info['levels'], info['shuffle_seed']), ([2, 3, 4, 5], 123))
        images, classes, info = self.create('create_mnistrgb', self.path('source'), '--num_images', '33',
                                            '--random_seed', '5', '--overwrite')
        triples = np.random.RandomState(5).randint(20, size=[33, 3])
        self.assertAllEqual(images[:, 2:-2, 2:-2], digits[triples].transpose(0, 2, 3, 1))
        self.assertIsNone(classes)

    def test_cifar(self):
        random = np.random.RandomState(0)
        batches = [f'data_batch_{i}' for i in range(1, 6)]
        for command, names, key, count in [('create_cifar10', batches, 'labels', 10),
                                           ('create-cifar100', ['train'], 'fine_labels', 100)]:
            folder = {10: 'cifar-10-batches-py', 100: 'cifar-100-python'}[count]
            pixels, labels = [], []
            path = self.path(command, f'cifar-{count}-python.tar.gz')
            with tarfile.open(path, 'w:gz') as tar:
                for name in names:
                    pixels.append(random.randint(0, 256, [6, 3072]).astype(np.uint8))
                    labels.append(random.randint(0, count, 6).tolist())
                    data = pickle.dumps({'data': pixels[-1], key: labels[-1]}, protocol=2)
                    member = tarfile.TarInfo(f'{folder}/{name}')
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
            images, classes, _ = self.create(command, os.path.dirname(path), '--overwrite')
            order = choose_shuffled_order(6 * len(names))
            self.assertAllEqual(classes, np.concatenate(labels)[order])
            expected = np.concatenate(pixels).reshape(-1, 3, 32, 32)[order]
            self.assertAllEqual(images, testutil.nhwc(expected))

    def test_svhn(self):
        digits, labels = random_images(12, 32), np.arange(12) % 10 + 1
        scipy.io.savemat(self.path('source', 'train_32x32.mat'),
                         {'X': digits.transpose(1, 2, 3, 0), 'y': labels[:, None].astype(np.uint8)})
        images, classes, info = self.create('create_svhn', self.path('source'))
        self.assertAllEqual(images, digits[choose_shuffled_order(12)])
        self.assertAllEqual(classes, labels[choose_shuffled_order(12)] % 10)
        self.assertEqual(info['label_size'], 10)

    def test_lsun(self):
        def fill(path, count):
            with lmdb.open(path, map_size=1 << 24) as database, database.begin(write=True) as transaction:
                for i in range(count):
                    file = io.BytesIO()
                    picture = np.full([48, 64, 3], 20 * i, np.uint8)
                    PIL.Image.fromarray(picture).save(file, 'WEBP', lossless=True)
                    transaction.put(b'%04d' % i, file.getvalue())
        fill(self.path('bedroom_lmdb'), 9)
        images, classes, info = self.create('create_lsun', self.path('bedroom_lmdb'), '--resolution', '32',
                                            '--max_images', '7')
        self.assertEqual(images.shape, (7, 32, 32, 3))
        self.assertAllEqual(images[:, 5, 5, 0], 20 * np.arange(7))      # Not shuffled, as officially.
        self.assertIsNone(classes)
        images, _, _ = self.create('create_lsun_wide', self.path('bedroom_lmdb'), '--width=32', '--height=24',
                                   '--overwrite')
        self.assertEqual(images.shape, (9, 32, 32, 3))
        self.assertAllEqual(images[:, 16, 16, 1], 20 * np.arange(9))
        self.assertEqual(images[:, [0, 3, 28, 31]].max(), 0)

    def test_celeba(self):
        pictures = np.random.RandomState(0).randint(0, 256, [5, 218, 178, 3]).astype(np.uint8)
        for i, picture in enumerate(pictures):
            PIL.Image.fromarray(picture).save(self.path('img_align_celeba', f'{i + 1:06}.png'))
        images, _, _ = self.create('create_celeba', self.path('img_align_celeba'), '--cx', '80',
                                   '--cy', '100')
        self.assertAllEqual(images, pictures[choose_shuffled_order(5), 36:164, 16:144])

    def test_celebahq(self):
        random = np.random.RandomState(0)
        pictures = [np.kron(random.randint(0, 256, [16, 16, 3]), np.ones([64, 64, 1])).astype(np.uint8)
                    for _ in range(2)]
        for i, picture in enumerate(pictures):
            PIL.Image.fromarray(picture).save(self.path('hq', f'img{i:08}.png'), compress_level=1)
        images, _, info = self.create('create_celebahq', self.path('hq'), '--num_threads', '1',
                                      '--num_tasks', '2', '--format=png')
        self.assertAllEqual(images, np.stack(pictures)[choose_shuffled_order(2)])
        self.assertEqual(info['levels'], [10])
        os.makedirs(self.path('deltas'))
        with self.assertRaisesRegex(UserError, 'CelebA-HQ|1024'):
            self.run_tool('create_celebahq', self.path('other'), self.path('deltas'), self.path('deltas'))

    def test_hdf5(self):
        pictures = random_images(8, 16)
        with h5py.File(self.path('source.h5'), 'w') as file:
            file['data16x16'] = testutil.nchw(pictures)
            file['data8x8'] = testutil.nchw(pictures[:, ::2, ::2])
        np.save(self.path('source-labels.npy'), np.eye(4)[np.arange(8) % 4])
        images, classes, info = self.create('create_from_hdf5', self.path('source.h5'), '--shuffle', '0')
        self.assertAllEqual(images, pictures)
        self.assertAllEqual(classes, np.arange(8) % 4)
        self.assertIsNone(info['shuffle_seed'])
        images, _, _ = self.create('create_from_hdf5', self.path('source.h5'), '--shuffle=1', '--overwrite')
        self.assertAllEqual(images, pictures[choose_shuffled_order(8)])

    def test_images(self):
        pictures = random_images(10, 8)
        for i, picture in enumerate(pictures):
            self.save(f'{"ab"[i % 2]}/{i}.png', picture)
        in_order = pictures[[0, 2, 4, 6, 8, 1, 3, 5, 7, 9]]
        status, text = self.run_tool('create_from_images', self.path('first'), self.path('images'))
        self.assertRegex(text, r'classes: 2\n  a 5\n  b 5\n')
        images, classes, info = self.create('create_from_images', self.path('images'), '--shuffle', '0')
        self.assertAllEqual(images, in_order)
        self.assertAllEqual(classes, [0] * 5 + [1] * 5)
        self.assertEqual((info['label_names'], info['resize_filter']), (['a', 'b'], None))
        images, classes, _ = self.create('create_from_images', self.path('images'), '--labels=none',
                                         '--overwrite', '--max-images=4')
        self.assertAllEqual(images, in_order[choose_shuffled_order(10)[:4]])
        self.assertIsNone(classes)
        with open(self.path('labels.csv'), 'w') as file:
            file.writelines(f'{"ab"[i % 2]}/{i}.png,{i % 3}\n' for i in range(10))
        images, classes, info = self.create(
            'create_from_images', self.path('images'), '--shuffle=0', '--overwrite', '--channels=1',
            '--format=jpeg', f'--labels={self.path("labels.csv")}', '--resolution=4', '--resize-filter=box',
            '--transform=pad')
        self.assertEqual(images.shape, (10, 4, 4, 1))
        self.assertAllEqual(classes, np.array([0, 2, 4, 6, 8, 1, 3, 5, 7, 9]) % 3)
        self.assertEqual((info['resize_filter'], info['transform'], info['channels']), ('box', 'pad', 1))

    def test_transparent_images(self):
        picture = random_images(1, 8, 4)[0]
        self.save('x.png', picture)
        with self.assertRaisesRegex(UserError, 'x.png.*--background'):
            self.run_tool('create_from_images', self.path('new'), self.path('images'))
        for colour in ['white', '#ffffff', '255,255,255']:
            images, _, info = self.create('create_from_images', self.path('images'), f'--background={colour}',
                                          '--overwrite')
            alpha = picture[..., 3:] / 255
            self.assertAllClose(images[0], picture[..., :3] * alpha + 255 * (1 - alpha), atol=1)
        self.assertEqual(info['background'], [255, 255, 255])
        images, _, _ = self.create('create_from_images', self.path('images'), '--channels=4', '--format=png',
                                   '--overwrite')
        self.assertAllEqual(images[0], picture)

    def test_pack(self):
        pictures = random_images(6, 8)
        np.savez(self.path('set.npz'), images=pictures, labels=np.arange(6) % 2)
        images, classes, info = self.create('pack', self.path('set.npz'), '--format=png', '--shards=2')
        self.assertAllEqual(images, pictures)
        self.assertAllEqual(classes, np.arange(6) % 2)
        self.assertEqual(self.run_tool('unpack', self.path('new'), self.path('set.zip'))[0], 0)
        os.rename(self.path('new'), self.path('before'))
        images, classes, _ = self.create('pack', self.path('set.zip'), '--format=png', '--shards=2')
        self.assertAllEqual(images, pictures)
        self.assertEqual(self.run_tool('compare', self.path('before'), self.path('new'))[0], 0)
        with self.assertRaisesRegex(UserError, '--resolution is for folders and zips'):
            self.run_tool('pack', self.path('other'), self.path('before'), '--resolution=4')


class CommandLineTest(ToolBase):

    def test_help(self):
        for command in COMMANDS:
            for name in [command, command.replace('_', '-')]:
                status, text, _ = self.exit_of(name, '--help')
                self.assertEqual(status, 0)
            self.assertRegex(text, rf'\Ausage: .* {command}( [A-Z0-9_\[\]]+)+ \[flags\]\n')
            self.assertRegex(text, rf'(?s)examples:\n  .*{command} ')
            if command.startswith('create') or command == 'pack':
                self.assertRegex(text, r'(?s)--format .*--shards .*--workers .*--overwrite .*--skip-bad ')
        status, text, _ = self.exit_of('--help')
        for command in COMMANDS:
            self.assertRegex(text, rf'\n  {command} +[A-Z]')

    def test_official_lines(self):
        """What users type; only their parsing is tested here."""
        for line, expected in [
            ('display d', {'tfrecord_dir': 'd'}),
            ('extract d out', {'tfrecord_dir': 'd', 'output_dir': 'out'}),
            ('compare a b --ignore_labels 1', {'tfrecord_dir_a': 'a', 'tfrecord_dir_b': 'b'}),
            ('compare a b --ignore_labels 1', {'ignore_labels': True}),
            ('compare a b --ignore_labels 0', {'ignore_labels': False}),
            ('create_mnist d m', {'tfrecord_dir': 'd', 'mnist_dir': 'm'}),
            ('create_mnistrgb d m', {'num_images': 1000000, 'random_seed': 123}),
            ('create_cifar10 d c', {'cifar10_dir': 'c'}),
            ('create_cifar100 d c', {'cifar100_dir': 'c'}),
            ('create_svhn d s', {'svhn_dir': 's'}),
            ('create_lsun d l', {'lmdb_dir': 'l', 'resolution': 256, 'max_images': None}),
            ('create_lsun_wide d l --max_images 5', {'width': 512, 'height': 384, 'max_images': 5}),
            ('create_celeba d c', {'celeba_dir': 'c', 'cx': 89, 'cy': 121}),
            ('create_celebahq d c x --num_threads 4 --num_tasks 100', {'delta_dir': 'x', 'num_threads': 4}),
            ('create_from_images d i --shuffle 1', {'image_dir': 'i', 'shuffle': True}),
            ('create_from_images d i', {'shuffle': True}),
            ('create_from_images d i --shuffle 0', {'shuffle': False}),
            ('create_from_hdf5 d h --shuffle 1', {'hdf5_filename': 'h', 'shuffle': True}),
        ]:
            args = vars(dataset_tool.make_parser().parse_args(line.split()))
            self.assertEqual({key: args[key] for key in expected}, expected, line)

    def test_mistakes(self):
        for args, message in [
            ([], 'expected a command: display, extract'),
            (['create_minst', 'a', 'b'], "unknown command 'create_minst'; did you mean 'create_mnist'"),
            (['create_mnist', 'a'], 'arguments are required: MNIST_DIR'),
            (['create_mnist', 'a', 'b', 'c'], "expected no argument 'c'"),
            (['create_mnist', '', 'b'], 'TFRECORD_DIR: expected a path, received an empty text'),
            (['create_mnist', 'a', 'b', '--format=gif'],
             "--format: expected one of raw, png, jpeg; received 'gif'"),
            (['create_mnist', 'a', 'b', '--shards=0'], '--shards: expected an integer from 1'),
            (['create_mnist', 'a', 'b', '--quality=101'], '--quality: expected an integer from 1 to 100'),
            (['create_mnist', 'a', 'b', '--resolution=3'], 'unknown flag --resolution'),
            (['create_from_images', 'a', 'b', '--background=beautiful'], '--background: expected a colour'),
            (['create_from_images', 'a', 'b', '--background=1,2,256'], '--background: expected a colour'),
        ]:
            status, _, text = self.exit_of(*args)
            self.assertEqual(status, 2)
            self.assertIn(message, text)
            self.assertEqual(text.count('\n'), 1)
        self.save('x.png', random_images(1, 12)[0])
        for args, message in [
            (['create_mnist', self.path('a'), self.path('none')], 'none'),
            (['create_from_images', self.path('a'), self.path('images')], r'x.png.* 12x12 .*--resolution=8'),
            (['create_from_images', self.path('a'), self.path('images'), '--resolution=8', '--width=8'],
             '--resolution is --width and --height'),
            (['info', self.path('none')], 'there is no data set'),
            (['validate', self.path('none')], 'none'),
        ]:
            with self.assertRaisesRegex(UserError, message) as caught:
                self.run_tool(*args)
            self.assert_message(caught.exception)
            self.assertFalse(os.path.exists(self.path('.a.partial')))

    def test_existing_data_set_is_told_at_once(self):
        """Before an archive is read."""
        os.makedirs(self.path('a'))
        with open(self.path('a', 'dataset.json'), 'w') as file:
            file.write('{}')
        for command in ['create_mnist', 'create_celebahq', 'create_from_images', 'create_from_hdf5', 'pack']:
            with self.assertRaisesRegex(UserError, 'exists and holds a data set'):
                self.run_tool(command, self.path('a'), self.path('none'))


class ProcessTest(ToolBase):

    def start(self, code):
        return subprocess.Popen([sys.executable, '-c', code], cwd=testutil.ROOT, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True, start_new_session=True)

    def test_interruption(self):
        """Ctrl-C reaches all processes of a terminal; one line comes, and the same command goes on."""
        for i in range(60):
            self.save(f'{i:02}.png', random_images(1, 32, seed=i)[0])
        args = ['create_from_images', self.path('new'), self.path('images'), '--format=png',
                '--workers=2']
        code = ('import sys, time\n'
                'from training.datasets import conversion, worker_pool\n'
                'import dataset_tool\n'
                'conversion._TASK_BYTES = 1\n'
                'worker_pool.Progress.add = lambda *_: time.sleep(0.1)\n'
                f'sys.argv = {["dataset_tool.py", *args]}\n'
                'dataset_tool.main()\n')
        process = self.start(code)
        deadline = time.time() + 60
        records = os.path.join(self.path('.new.partial'), 'data', 'new-r05.tfrecords')
        while not (os.path.exists(records) and os.path.getsize(records)) and time.time() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate()
        self.assertEqual(process.returncode, 130, out + err)
        self.assertRegex(err, r'\Adataset_tool.py: interrupted. The finished part \(\d+ of 60 images\) '
                              r'is kept in .*\. The same command goes on\.\n\Z')
        status, text = self.run_tool(*args)
        self.assertEqual(status, 0)
        self.assertIn('goes on after image', text)
        whole = self.path('whole', 'new')
        self.run_tool('create_from_images', whole, *args[2:])
        for name in os.listdir(whole):
            with open(os.path.join(whole, name), 'rb') as a, open(self.path('new', name), 'rb') as b:
                self.assertTrue(a.read() == b.read(), name)

    def test_script(self):
        script = [sys.executable, testutil.ROOT / 'dataset_tool.py']
        result = subprocess.run(script, capture_output=True, text=True)
        self.assertEqual((result.returncode, result.stderr), (0, ''))
        self.assertIn('commands:\n  display ', result.stdout)
        result = subprocess.run([*script, 'create_mnist', self.path('a'), self.path('none')],
                                capture_output=True, text=True)
        self.assertEqual((result.returncode, result.stdout), (2, ''))
        self.assertRegex(result.stderr, r'\Adataset_tool.py: error: .*none.*\n\Z')
        code = 'import sys, dataset_tool\ntry: dataset_tool.main(["x", "pack", "--help"])\n' \
               'finally: print(sorted({"tensorflow", "numpy", "PIL"} & set(sys.modules)))'
        result = subprocess.run([sys.executable, '-c', code], cwd=testutil.ROOT, capture_output=True,
                                text=True)
        self.assertTrue(result.stdout.endswith('\n[]\n'))


if __name__ == '__main__':
    tf.test.main()
