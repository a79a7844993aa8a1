"""Image grids, dynamic range, PNG files, and which real images a snapshot grid shows."""

import os
import tempfile

import hypothesis
import hypothesis.strategies as st
import numpy as np
import PIL.Image
import tensorflow as tf

from dnnlib.util import UserError
from tests import testutil
from training import misc


class FakeTrainingSet:
    """Images whose every pixel is their index; classes in turn."""

    def __init__(self, num_images, label_size=0, shape=(3, 4, 6)):
        self.shape = list(shape)
        self.num_images = num_images
        self.label_size = label_size
        self.labels = np.zeros([num_images, label_size], np.float32)
        if label_size:
            self.labels[np.arange(num_images), np.arange(num_images) % label_size] = 1

    def read(self, indices):
        c, h, w = self.shape
        images = np.broadcast_to(np.asarray(indices, np.uint8)[:, None, None, None], [len(indices), h, w, c])
        return images, self.labels[indices]


class GoldenTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.golden = testutil.load('primitives', 'stylegan2_images.npz')

    def test_grids(self):
        images = self.golden['float_images']
        for grid, grid_size in [('image_grid_auto', None), ('image_grid_3x2', (3, 2))]:
            actual = misc.create_image_grid(images, grid_size)
            self.assertEqual(actual.dtype, self.golden[grid].dtype)
            np.testing.assert_array_equal(actual, self.golden[grid])

    def test_pil_images(self):
        color = misc.convert_to_pil_image(self.golden['image_grid_auto'], [-1, 1])
        np.testing.assert_array_equal(np.asarray(color), self.golden['pil_image'])
        gray = misc.convert_to_pil_image(self.golden['float_images'][0, :1], [-1, 1])
        self.assertEqual(gray.mode, 'L')
        np.testing.assert_array_equal(np.asarray(gray), self.golden['pil_image_gray'])

    def test_adjust_dynamic_range(self):
        actual = misc.adjust_dynamic_range(self.golden['reals_uint8'].astype(np.float32), [0, 255], [-1, 1])
        self.assertEqual(actual.dtype, np.float32)
        np.testing.assert_array_equal(actual, self.golden['adjust_dynamic_range_0_255_to_m1_1'])


class DynamicRangeTest(tf.test.TestCase):
    def test_ends_and_middle(self):
        actual = misc.adjust_dynamic_range(np.float32([-1, 0, 1, 3]), [-1, 1], [0, 255])
        self.assertAllClose(actual, [0, 127.5, 255, 510])

    def test_equal_ranges_return_the_data(self):
        data = np.arange(3)
        self.assertIs(misc.adjust_dynamic_range(data, [0, 1], (0, 1)), data)

    def test_tensor(self):
        actual = misc.adjust_dynamic_range(tf.constant([0.0, 255.0]), [0, 255], [-1, 1])
        self.assertIsInstance(actual, tf.Tensor)
        self.assertAllClose(actual, [-1, 1])

    def test_empty_range(self):
        with self.assertRaisesRegex(UserError, r'\[1, 1\]'):
            misc.adjust_dynamic_range(np.zeros(3), [1, 1], [0, 255])


class GridTest(tf.test.TestCase):
    @hypothesis.given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 4))
    @hypothesis.settings(max_examples=40, deadline=None)
    def test_every_image_is_found_again(self, num, height, width):
        images = np.arange(num * 2 * height * width).reshape([num, 2, height, width]) + 1
        grid = misc.create_image_grid(images)
        columns, rows = grid.shape[2] // width, grid.shape[1] // height
        cells = grid.reshape([2, rows, height, columns, width]).transpose([1, 3, 0, 2, 4])
        cells = cells.reshape([-1, 2, height, width])
        np.testing.assert_array_equal(cells[:num], images)
        self.assertFalse(cells[num:].any())
        self.assertLess(len(cells) - num, columns)
        self.assertIn(columns - rows, [0, 1])

    def test_images_without_channels(self):
        grid = misc.create_image_grid(np.arange(8).reshape([2, 2, 2]), (2, 1))
        self.assertAllEqual(grid, [[0, 1, 4, 5], [2, 3, 6, 7]])

    def test_too_many_images(self):
        with self.assertRaisesRegex(UserError, '2 × 2 does not hold 5'):
            misc.create_image_grid(np.zeros([5, 3, 2, 2]), (2, 2))

    def test_wrong_rank(self):
        with self.assertRaisesRegex(UserError, r'\[2, 2\]'):
            misc.create_image_grid(np.zeros([2, 2]))


class SaveTest(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name

    def test_png_round_trip(self):
        rnd = np.random.RandomState(0)
        for channels, mode in [(1, 'L'), (3, 'RGB'), (4, 'RGBA')]:
            images = rnd.randint(0, 256, [6, channels, 5, 7]).astype(np.uint8)
            path = os.path.join(self.directory, f'{mode}.png')
            misc.save_image_grid(images, path, [0, 255], (2, 3))
            with PIL.Image.open(path) as file:
                self.assertEqual(file.mode, mode)
                pixels = np.asarray(file).reshape([15, 14, channels])
            np.testing.assert_array_equal(pixels.transpose(2, 0, 1), misc.create_image_grid(images, (2, 3)))
        self.assertCountEqual(os.listdir(self.directory), ['L.png', 'RGB.png', 'RGBA.png'])

    def test_values_are_rounded_and_clipped(self):
        image = np.float32([[-2.0, -1.0, -1 + 1.4 / 127.5, -1 + 1.6 / 127.5, 1.0, 2.0]])
        self.assertAllEqual(np.asarray(misc.convert_to_pil_image(image, [-1, 1])), [[0, 0, 1, 2, 255, 255]])

    def test_failure_keeps_the_old_file(self):
        path = os.path.join(self.directory, 'grid.png')
        misc.save_image_grid(np.ones([1, 3, 2, 2]), path)
        with open(path, 'rb') as file:
            before = file.read()
        with self.assertRaisesRegex(UserError, r'\[2, 2, 2\]'):
            misc.save_image_grid(np.ones([1, 2, 2, 2]), path)
        with open(path, 'rb') as file:
            self.assertEqual(file.read(), before)
        self.assertEqual(os.listdir(self.directory), ['grid.png'])

    def test_unknown_suffix(self):
        with self.assertRaisesRegex(UserError, 'grid.bmp'):
            misc.save_image(np.ones([3, 2, 2]), 'grid.bmp')


class SnapshotGridTest(tf.test.TestCase):
    def test_sizes(self):
        expected = {  # Columns × rows of square images of a side.
            ('1080p', 32): (32, 32), ('1080p', 64): (30, 16), ('1080p', 256): (7, 4), ('1080p', 1024): (3, 2),
            ('4k', 256): (15, 8), ('4k', 1024): (7, 4), ('8k', 256): (30, 16), ('8k', 1024): (7, 4),
            ('8k', 512): (15, 8), ('5x3', 1024): (5, 3),
        }
        for (size, side), grid_size in expected.items():
            training_set = FakeTrainingSet(5, shape=[1, side, side])
            training_set.read = lambda indices: (np.zeros([len(indices), 1, 1, 1], np.uint8), None)
            self.assertEqual(misc.setup_snapshot_image_grid(training_set, size)[0], grid_size, (size, side))

    def test_random_shows_each_image_once_and_repeats_itself(self):
        training_set = FakeTrainingSet(12)
        grid_size, images, labels = misc.setup_snapshot_image_grid(training_set, '4x3', seed=5)
        self.assertEqual(grid_size, (4, 3))
        self.assertEqual(images.shape, (12, 3, 4, 6))
        self.assertEqual(images.dtype, np.uint8)
        self.assertEqual(labels.shape, (12, 0))
        self.assertEqual(sorted(images[:, 0, 0, 0]), list(range(12)))
        np.testing.assert_array_equal(images, misc.setup_snapshot_image_grid(training_set, '4x3', seed=5)[1])
        self.assertNotAllEqual(images, misc.setup_snapshot_image_grid(training_set, '4x3', seed=6)[1])

    def test_few_images_are_repeated(self):
        _, images, _ = misc.setup_snapshot_image_grid(FakeTrainingSet(5), '4x3')
        counts = np.bincount(images[:, 0, 0, 0], minlength=5)
        self.assertAllInRange(counts, 2, 3)

    def test_class_layouts(self):
        training_set = FakeTrainingSet(90, label_size=3)
        expected = {
            'row_per_class': [[0] * 8, [1] * 8, [2] * 8, [0] * 8, [1] * 8],
            'col_per_class': [[0, 1, 2, 0, 1, 2, 0, 1]] * 5,
            'class4x4': [[0] * 4 + [1] * 4] * 4 + [[2] * 4 + [0] * 4],
        }
        for layout, classes in expected.items():
            _, images, labels = misc.setup_snapshot_image_grid(training_set, '8x5', layout)
            self.assertAllEqual(np.argmax(labels, axis=1).reshape([5, 8]), classes, layout)
            self.assertAllEqual(images[:, 0, 0, 0] % 3, np.argmax(labels, axis=1))
            self.assertLen(np.unique(images[:, 0, 0, 0]), 40)

    def test_sheet_by_class(self):
        """Every row shows images of its class beside its name; of very many classes every n-th is there.

        The column of the names is as wide as the widest of them.
        """
        margins = []
        for count, names in ((3, ['a', 'b', 'WW' * 20]), (3, ['a', 'b', 'c']), (70, None), (300, None)):
            training_set = FakeTrainingSet(600, count, shape=(1, 16, 16))
            training_set.read = lambda indices, of=training_set: (
                np.tile((indices % 251).astype(np.uint8)[:, None, None, None], [1, 16, 16, 1]),
                of.labels[indices])
            training_set.label_names = names
            sheet = np.asarray(misc.class_sheet(training_set, count=2))
            shown = range(0, count, 2 if count == 300 else 1)
            columns = -(-len(shown) // 64)
            rows = -(-len(shown) // columns)
            width = sheet.shape[1] // columns
            margin = width - 32
            margins.append(margin)
            self.assertEqual(sheet.shape, (16 * rows, columns * width, 3))
            for index, number in enumerate(shown):
                x, y = index // rows * width, index % rows * 16
                of_class = np.arange(number, 600, count) % 251
                for cell in 0, 1:
                    pixels = sheet[y:y + 16, x + margin + 16 * cell:x + margin + 16 + 16 * cell]
                    self.assertIn(pixels[0, 0, 0], of_class)
                    self.assertAllEqual(pixels, np.full_like(pixels, pixels[0, 0, 0]))
                self.assertLess(np.min(sheet[y:y + 12, x:x + margin]), 128)     # There is something written,
                self.assertAllEqual(sheet[y:y + 16, x + margin - 2:x + margin], np.full([16, 2, 3], 255))
        self.assertGreater(margins[0], 100)
        self.assertLess(max(margins[1:]), 32)       # ... which needs no more room.

    def test_classes_in_place_of_labels(self):
        """A data set that keeps classes instead of labels gives the same grid."""
        training_set = FakeTrainingSet(90, label_size=3)
        grids = [misc.setup_snapshot_image_grid(training_set, '8x5', 'row_per_class')[1]]
        training_set.class_indices = np.argmax(training_set.labels, axis=1)
        whole = training_set.labels
        training_set.labels = None
        training_set.read = lambda indices: (FakeTrainingSet.read(
            FakeTrainingSet(90, label_size=3), indices)[0], whole[indices])
        grids.append(misc.setup_snapshot_image_grid(training_set, '8x5', 'row_per_class')[1])
        self.assertAllEqual(*grids)

    def test_class_without_images_is_left_out(self):
        training_set = FakeTrainingSet(20, label_size=2)
        training_set.labels = np.eye(4, dtype=np.float32)[np.arange(20) % 2 * 3]
        _, _, labels = misc.setup_snapshot_image_grid(training_set, '2x4', 'row_per_class')
        self.assertAllEqual(np.argmax(labels, axis=1), [0, 0, 3, 3, 0, 0, 3, 3])

    def test_bad_arguments(self):
        with self.assertRaisesRegex(UserError, "^the image grid: size is '16k'.*8k"):
            misc.setup_snapshot_image_grid(FakeTrainingSet(5), '16k')
        with self.assertRaisesRegex(UserError, "'rows'.*row_per_class"):
            misc.setup_snapshot_image_grid(FakeTrainingSet(5, 2), '2x2', 'rows')
        with self.assertRaisesRegex(UserError, 'needs labels'):
            misc.setup_snapshot_image_grid(FakeTrainingSet(5), '2x2', 'row_per_class')
