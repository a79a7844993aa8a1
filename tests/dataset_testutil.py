"""What the tests of data sets share: random images, files in a temporary folder, checks of error messages."""

import os

import numpy as np
import PIL.Image
import tensorflow as tf

from dnnlib.util import UserError
from training import dataset


def random_images(count: int, size: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, [count, size, size, channels]).astype(np.uint8)


class Base(tf.test.TestCase):

    def path(self, *parts: str) -> str:
        path = os.path.join(self.get_temp_dir(), self._testMethodName, *parts)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def save(self, name: str, image: np.ndarray, mode: str | None = None, **options) -> str:
        path = self.path('images', name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        picture = PIL.Image.fromarray(image[:, :, 0] if image.shape[-1] == 1 else image)
        (picture.convert(mode) if mode else picture).save(path, **options)
        return path

    def save_npz(self, name: str = 'set.npz', **arrays: np.ndarray) -> str:
        path = self.path(name)
        np.savez(path, **arrays)
        return path

    def assert_user_error(self, *fragments: str, **arguments) -> None:
        """load_dataset fails with one line that holds all fragments."""
        with self.assertRaises(UserError) as caught:
            dataset.load_dataset(**arguments)
        self.assert_message(caught.exception, *fragments)

    def assert_message(self, error: Exception, *fragments: str) -> None:
        self.assertNotIn('\n', str(error))
        for fragment in fragments:
            self.assertIn(fragment, str(error))
