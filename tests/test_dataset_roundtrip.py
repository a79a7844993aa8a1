"""Any data set that can be written is read again as it was: random shapes, formats, shards and labels."""

import contextlib
import io
import os
import tempfile

import numpy as np
import PIL.Image
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.dataset_testutil import random_images
from training.dataset import load_dataset
from training.datasets import commands
from training.datasets.conversion import Options, convert
from training.datasets.image_files import ImageOptions
from training.datasets.image_folder import image_folder

quick = settings(max_examples=15, deadline=None)


class _Arrays:
    """Images and labels in memory, as the source of a conversion."""

    name, description, shuffled = 'arrays', 'arrays', True

    def __init__(self, images, labels, label_names):
        self.images, self.labels, self.label_names = images, labels, label_names

    def __len__(self):
        return len(self.images)

    def read(self, i):
        return self.images[i]

    def item_name(self, i):
        return f'arrays[{i}]'


def labels_of(kind, count):
    """Labels as sources have them, and as readers give them."""
    classes = np.arange(count) * 7 % 3
    if kind == 'none':
        return None, None, np.zeros([count, 0])
    if kind == 'vectors':
        vectors = np.random.RandomState(count).randn(count, 5).astype(np.float32)
        return vectors, None, vectors
    size = 3 if kind == 'names' else classes.max() + 1
    return classes, ['a', 'ä b', '2'] if kind == 'names' else None, np.eye(size)[classes]


class RoundTripTest(tf.test.TestCase):

    @quick
    @given(count=st.integers(1, 20), log2=st.integers(2, 6), channels=st.sampled_from([1, 3, 4]),
           fmt=st.sampled_from(['raw', 'png', 'jpeg']), single=st.sampled_from([None, False, True]),
           shards=st.integers(1, 20), seed=st.sampled_from([None, 123, 7]),
           labels=st.sampled_from(['none', 'classes', 'names', 'vectors']), constant=st.booleans())
    def test_arrays(self, count, log2, channels, fmt, single, shards, seed, labels, constant):
        shards = min(shards, count)
        if fmt == 'jpeg':       # Has no transparency, and keeps only constant images (nearly) as they are.
            channels, constant = min(channels, 3), True
        images = random_images(count, 1 if constant else 1 << log2, channels, seed=count + log2)
        images = np.ascontiguousarray(np.broadcast_to(images, [count, 1 << log2, 1 << log2, channels]))
        classes, names, expected_labels = labels_of(labels, count)
        order = np.arange(count)
        if seed is not None:
            np.random.RandomState(seed).shuffle(order)      # As officially.
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            path = os.path.join(folder, 'set')
            convert(_Arrays(images, classes, names), path, Options(
                format=fmt, single_resolution=single, shards=shards, workers=1, shuffle_seed=seed))
            with contextlib.closing(load_dataset(path, max_label_size='auto')) as loaded:
                self.assertEqual(loaded.shape, [channels, 1 << log2, 1 << log2])
                pixels, actual_labels = loaded.read(np.arange(count))
                self.assertAllClose(pixels, images[order], atol=3 if fmt == 'jpeg' else 0, rtol=0)
                self.assertAllEqual(actual_labels, expected_labels[order].astype(np.float32))
                if names:
                    self.assertEqual(loaded.label_names, names)
            self.assertEqual(commands.validate(path), 0)

    @quick
    @given(modes=st.lists(st.sampled_from(['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16']), min_size=1,
                          max_size=6),
           channels=st.sampled_from([None, 1, 3, 4]), background=st.sampled_from([(9, 9, 9), (1, 2, 200)]),
           packed=st.booleans())
    def test_image_files(self, modes, channels, background, packed):
        """Whatever the modes of the files: what was promised by their headers is what is written and read."""
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), \
                contextlib.redirect_stderr(io.StringIO()):
            source_folder, path = os.path.join(folder, 'images'), os.path.join(folder, 'set')
            os.mkdir(source_folder)
            for i, mode in enumerate(modes):
                pixels = random_images(1, 8, 4, seed=i)[0]
                picture = PIL.Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257) if mode == 'I;16' \
                    else PIL.Image.fromarray(pixels).convert(mode)
                picture.save(os.path.join(source_folder, f'{i}.png'))
            options = ImageOptions(channels, background)
            source = image_folder(source_folder, options)
            self.assertEqual(source.problems, {})
            expected = np.stack([source.read(i) for i in range(len(modes))])
            colour = len(set(background)) > 1
            gray = all(mode in ('1', 'L', 'I;16') or mode == 'LA' and not colour for mode in modes)
            self.assertEqual(expected.shape, (len(modes), 8, 8, channels or (1 if gray else 3)))
            convert(source, path, Options(workers=1, shuffle_seed=None))
            if packed:
                again = commands.DatasetSource(path)
                path += '2'
                convert(again, path, Options('png', workers=1, shuffle_seed=None))
                again.close()
            with contextlib.closing(load_dataset(path)) as loaded:
                self.assertAllEqual(loaded.read(np.arange(len(modes)))[0], expected)


if __name__ == '__main__':
    tf.test.main()
