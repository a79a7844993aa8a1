"""Labels that are classes stay numbers until a minibatch needs rows; images too small are dropped."""

import json
import os
import tracemalloc
from unittest import mock

import numpy as np

import dataset_tool
from dnnlib.util import UserError
from tests.dataset_testutil import Base, random_images
from training import dataset
from training.datasets import base, conversion
from training.datasets.image_folder import image_folder


class Counted(base.Dataset):
    """Gray images that are their index."""

    def _read_images(self, indices, lod):
        size = self.resolution >> lod
        return np.broadcast_to(indices[:, None, None, None].astype(np.uint8), [len(indices), size, size, 1])


def tool(*args):
    """Exit status of dataset_tool.py."""
    try:
        dataset_tool.main(['dataset_tool.py', *map(str, args)])
    except SystemExit as error:
        return error.code or 0
    return 0


class ClassesTest(Base):

    def test_same_as_rows(self):
        """Everything that users see is what it was with rows of floats."""
        rnd = np.random.RandomState(0)
        classes = rnd.randint(0, 6, 500)
        rows = np.eye(7, dtype=np.float32)[classes]
        soft = rows.copy()
        soft[3] = 0.5
        for labels, given in ((rows, {}), (classes, {'num_classes': 7}), (soft, {})):
            for sampling in base.LABEL_SAMPLING:
                expected = rows if labels.ndim == 1 else labels
                found = Counted('x', [1, 4, 4], 500, labels, None, 'full', label_sampling=sampling, **given)
                self.assertAllEqual(found.labels, expected)
                self.assertEqual((found.labels.dtype, found.label_size), (np.float32, 7))
                table = expected if sampling == 'data' else np.unique(expected, axis=0)
                self.assertAllEqual(found.label_table, table)
                if labels is soft:
                    self.assertIsNone(found.class_indices)
                    self.assertIsNone(found.label_classes)
                    self.assertEqual(found.num_classes, 0)
                else:
                    self.assertEqual((found.class_indices.dtype, found.num_classes), (np.int32, 7))
                    self.assertAllEqual(found.class_indices, classes)
                    self.assertAllEqual(np.eye(7)[found.label_classes], table)
                self.assertAllEqual(found.read([5, 3, 499])[1], expected[[5, 3, 499]])
                self.assertEqual(list(found.class_counts().values()), (expected > 0).sum(axis=0).tolist())
                drawn = np.random.RandomState(2).randint(500, size=9)
                self.assertAllEqual(found.get_random_labels_np(9, np.random.RandomState(2)), expected[drawn])
        cut = Counted('x', [1, 4, 4], 500, rows, None, 3)       # Some rows have no component left.
        self.assertIsNone(cut.class_indices)
        self.assertAllEqual(cut.labels, rows[:, :3])
        self.assertEqual(Counted('x', [1, 4, 4], 500, rows).label_size, 0)

    def test_fingerprint_is_the_same(self):
        classes = np.arange(30) % 4
        prints = {Counted('x', [1, 4, 4], 30, labels, None, 'full').fingerprint
                  for labels in (classes, np.eye(4)[classes], np.eye(4, dtype=np.float32)[classes])}
        self.assertLen(prints, 1)
        other = Counted('x', [1, 4, 4], 30, np.roll(classes, 1), None, 'full').fingerprint
        self.assertNotIn(other, prints)

    def test_memory(self):
        """ImageNet's labels as rows would take 5 GB."""
        count = 1_281_167
        classes = np.random.RandomState(0).randint(0, 1000, count).astype(np.int32)
        tracemalloc.start()
        found = Counted('x', [1, 4, 4], count, classes, None, 'full', num_classes=1000)
        images, labels = next(found.minibatches(0, 64, seed=1))
        counts = found.class_counts()
        self.assertLess(tracemalloc.get_traced_memory()[1], 100 << 20)
        tracemalloc.stop()
        self.assertEqual(labels.shape, (64, 1000))
        self.assertEqual(sum(counts.values()), count)
        self.assertAllEqual(labels.argmax(axis=1), classes[found.order(0, 64, 1)])

    def test_files_of_classes(self):
        """Labels that would be too large as rows are a file of classes; everything else is the same."""
        for i in range(12):
            self.save(f'{"abc"[i % 3]}/{i}.png', random_images(1, 8, seed=i)[0])
        sets = {}
        for name, limit in (('rows', conversion.MAX_DENSE_LABELS), ('classes', 0)):
            sets[name] = self.path(name)
            with mock.patch.object(conversion, 'MAX_DENSE_LABELS', limit):
                self.assertEqual(tool('create_from_images', sets[name], self.path('images')), 0)
        arrays = [np.load(os.path.join(path, f'{name}-rxx.labels')) for name, path in sets.items()]
        self.assertEqual([(a.dtype, a.shape) for a in arrays], [(np.float32, (12, 3)), (np.int32, (12,))])
        opened = [dataset.load_dataset(path, max_label_size='full') for path in sets.values()]
        self.assertAllEqual(opened[0].labels, opened[1].labels)
        self.assertEqual(opened[1].label_names, ['a', 'b', 'c'])
        self.assertEqual(opened[0].fingerprint, opened[1].fingerprint)
        described = [json.load(open(os.path.join(path, 'dataset.json'))) for path in sets.values()]
        self.assertEqual(described[0]['fingerprint'], described[1]['fingerprint'])
        self.assertEqual(described[1]['class_counts'], {'a': 4, 'b': 4, 'c': 4})
        self.assertEqual([tool('validate', path) for path in sets.values()], [0, 0])
        self.assertEqual(tool('compare', *sets.values()), 0)
        np.save(open(os.path.join(sets['classes'], 'classes-rxx.labels'), 'wb'), np.full(12, -1, np.int32))
        self.assert_user_error('-1', data_dir=sets['classes'], max_label_size='full')
        self.assertEqual(tool('validate', sets['classes']), 1)


class SmallImagesTest(Base):

    def test_min_side(self):
        sizes = {'a/0.png': (40, 60), 'a/1.png': (39, 80), 'b/2.png': (64, 40), 'b/3.png': (10, 10),
                 'c/4.png': (20, 90)}
        for seed, (name, size) in enumerate(sizes.items()):
            self.save(name, random_images(1, 90, seed=seed)[0][:size[0], :size[1]])
        target = self.path('set')
        status = tool('create_from_images', target, self.path('images'), '--transform=center-crop',
                      '--resize-filter=area', '--resolution=32', '--min-side=40', '--shuffle=0')
        self.assertEqual(status, 0)
        described = json.load(open(os.path.join(target, 'dataset.json')))
        self.assertEqual([described[key] for key in ('num_images', 'min_side', 'too_small', 'resize_filter')],
                         [2, 40, 3, 'area'])
        self.assertEqual(described['class_counts'], {'a': 1, 'b': 1, 'c': 0})
        found = dataset.load_dataset(target, max_label_size='full')
        self.assertAllEqual(found.class_indices, [0, 1])
        with mock.patch('builtins.print') as printed:
            self.assertEqual(tool('info', target), 0)
        lines = [' '.join(map(str, call.args)) for call in printed.call_args_list]
        self.assertTrue(any(line.split() == ['too', 'small:', '3'] for line in lines), lines)
        with self.assertRaisesRegex(UserError, 'all 5 images'):
            image_folder(self.path('images'), base_options(min_side=1000))
        self.assertEqual(tool('create_from_images', self.path('x'), self.path('images'), '--min-side=0'), 2)


def base_options(**kwargs):
    from training.datasets.image_files import ImageOptions
    return ImageOptions(transform='center-crop', width=32, **kwargs)
