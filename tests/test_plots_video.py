"""Plots and videos as files."""

import os
import tempfile
import unittest.mock

import numpy as np
import tensorflow as tf

from dnnlib import UserError
from generation import plots, video
from training.datasets.image_files import open_image


class FilesTestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = os.path.join(folder.name, 'file')

    def pixels(self):
        with open_image(self.path) as image:
            return np.asarray(image)[..., :3].astype(int)

    def assert_only_the_file(self):
        self.assertEqual(os.listdir(os.path.dirname(self.path)), ['file'])


class PlotsTest(FilesTestCase):
    def share(self, color, where):
        """The share of pixels of a color."""
        return float(np.mean(np.abs(where - np.asarray(color)).max(axis=-1) < 8))

    def test_shares_fill_the_plot_in_proportion(self):
        from matplotlib import colormaps
        plots.save_shares(self.path, [0, 1], {'a': [0.25, 0.25], 'b': [0.75, 0.75]})
        picture = self.pixels()
        low, high = (255 * np.asarray(colormaps['viridis'](value)[:3]) for value in (0.05, 0.95))
        column = picture[:, picture.shape[1] // 3]  # Between the grid lines.
        heights = [self.share(color, column) for color in (low, high)]
        self.assertNear(heights[0] / sum(heights), 0.25, 0.02)
        self.assert_only_the_file()

    def test_one_x_gives_bars(self):
        plots.save_shares(self.path, [None], {'a': [0.5], 'b': [0.25], 'c': [0.25]})
        self.assertGreater(self.pixels().std(), 10)

    def test_bands(self):
        x = np.arange(20)
        sizes = []
        for std in (0.1, 0.4):
            plots.save_bands(self.path, {'a': (x, np.ones(20), np.full(20, std)), 'b': (x, x / 20, 0 * x)})
            pixels = self.pixels()
            # The lines' first color, made lighter: red below blue, neither white nor gray.
            sizes.append(np.mean((pixels[..., 2] - pixels[..., 0] > 20) & (pixels.min(axis=-1) > 100)))
        self.assertGreater(sizes[1], 2.5 * sizes[0])

    def test_logarithmic_bands_have_a_lower_end(self):
        plots.save_bands(self.path, {'a': ([1, 2], [1.0, 0.1], [2.0, 1.0])}, log_y=True)
        self.assertGreater(self.pixels().std(), 10)

    def test_curves_and_histograms(self):
        plots.save_curves(self.path, {'a': ([1, 2], [3, 4]), 'b': ([1, 2], [4, 3])}, log_y=True)
        self.assertGreater(self.pixels().std(), 10)
        plots.save_histograms(self.path, {'a': [1, 2, 2], 'b': [3]}, marks={'x': 2.5})
        self.assertGreater(self.pixels().std(), 10)

    def test_the_same_bytes_twice(self):
        contents = []
        for _ in range(2):
            plots.save_curves(self.path, {'a': ([1, 2], [3, 4])})
            with open(self.path, 'rb') as file:
                contents.append(file.read())
        self.assertEqual(contents[0], contents[1])


class VideoTest(FilesTestCase):
    def setUp(self):
        super().setUp()
        self.path += '.mp4'

    def read(self):
        import imageio
        with imageio.get_reader(self.path) as reader:
            return [frame for frame in reader]  # Its length is unknown, which list asks for.

    def test_frames_come_back(self):
        colors = [[255, 0, 0], [0, 255, 0], [40, 40, 200]]
        with video.VideoWriter(self.path, fps=10) as writer:
            for color in colors:
                writer.add(np.full([32, 64, 3], color, np.uint8))
            self.assertFalse(os.path.exists(self.path))
        frames = self.read()
        self.assertEqual([frame.shape for frame in frames], [(128, 256, 3)] * 3)
        for frame, color in zip(frames, colors, strict=True):
            self.assertLess(np.abs(frame.astype(int) - color).max(), 16)

    def test_gray(self):
        with video.VideoWriter(self.path) as writer:
            writer.add(np.full([256, 256, 1], 90, np.uint8))
        self.assertLess(np.abs(self.read()[0].astype(int) - 90).max(), 8)

    def test_nothing_is_left_of_a_video_that_failed(self):
        with self.assertRaisesRegex(RuntimeError, 'stop'), video.VideoWriter(self.path) as writer:
            writer.add(np.zeros([64, 64, 3], np.uint8))
            raise RuntimeError('stop')
        self.assertEqual(os.listdir(os.path.dirname(self.path)), [])

    def test_without_ffmpeg(self):
        with unittest.mock.patch.dict('sys.modules', imageio_ffmpeg=None):
            with self.assertRaisesRegex(UserError, r'pip install "imageio\[ffmpeg\]"'):
                video.VideoWriter(self.path)
