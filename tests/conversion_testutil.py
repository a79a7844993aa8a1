"""Sources for the tests of conversions, in a module that worker processes import without TensorFlow."""

import os
import signal
import time

import numpy as np

from dnnlib.util import UserError
from training.datasets.image_files import LeftOutError


class FakeSource:
    """Images that follow from their index, some of them bad; `delay` makes reading slow."""

    name, shuffled, label_names = 'fake', True, None

    def __init__(self, count, size=8, channels=3, bad=(), left_out=(), delay=0, classes=5, seed=0):
        self.count, self.size, self.channels, self.delay, self.seed = count, size, channels, delay, seed
        self.bad, self.left_out = set(bad), set(left_out)
        self.description = 'a fake'
        self.labels = np.arange(count) % classes if classes else None

    def __len__(self):
        return self.count

    def read(self, i):
        time.sleep(self.delay)
        if i in self.bad:
            raise UserError(f'{self.item_name(i)} is bad.')
        if i in self.left_out:
            raise LeftOutError(f'{self.item_name(i)} is too small.')
        return np.random.RandomState(self.seed + i).randint(
            0, 256, [self.size, self.size, self.channels]).astype(np.uint8)

    def item_name(self, i):
        return f'fake[{i}]'


class Crash(FakeSource):
    """Reading the image 40 ends the process."""

    def read(self, i):
        if i == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(i)


def square(value):
    if value == 13:
        raise UserError('13 is unlucky')
    return value ** 3 // value
