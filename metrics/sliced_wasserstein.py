"""Sliced Wasserstein distance between small neighbourhoods of pixels, level by level of a Laplacian pyramid
(ProGAN, section 5).
"""

import sys
import tempfile
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import scipy.ndimage

from dnnlib.util import UserError

from .metric_base import MetricBase

if TYPE_CHECKING:
    from .evaluation import Evaluation

BINOMIAL = np.float32([1, 4, 6, 4, 1]) / 16     # Of both filters; its outer product with itself is 5×5.
NHOOD_SIZE = 7              # Width of a neighbourhood.
NHOODS_PER_IMAGE = 128
DIR_REPEATS, DIRS_PER_REPEAT = 4, 128           # Random directions.
MIN_SIZE = 16               # Height of the coarsest level.
DIRS_AT_ONCE = 16
BLOCK = 1 << 14             # Descriptors.
IN_MEMORY = 512 << 20         # Descriptors of more bytes lie in a temporary file.
SCALE = 1e3                 # Official results are thousandths.


# The pyramid.

def _blur(images: np.ndarray, taps: np.ndarray) -> np.ndarray:
    for axis in (2, 3):
        images = scipy.ndimage.convolve1d(images, taps, axis, mode='mirror')
    return images


def pyr_down(images: np.ndarray) -> np.ndarray:
    """Images [N, C, H, W] blurred and halved."""
    return _blur(images, BINOMIAL)[:, :, ::2, ::2]


def pyr_up(images: np.ndarray) -> np.ndarray:
    """Images [N, C, H, W] doubled, with zeros between the pixels, and blurred."""
    n, channels, height, width = images.shape
    spread = np.zeros([n, channels, height * 2, width * 2], images.dtype)
    spread[:, :, ::2, ::2] = images
    return _blur(spread, BINOMIAL * 2)


def laplacian_pyramid(images: np.ndarray, num_levels: int) -> list[np.ndarray]:
    """Levels of images [N, C, H, W], from fine to coarse: what each has that the next one lacks."""
    levels = [np.float32(images)]
    for _ in range(1, num_levels):
        levels.append(pyr_down(levels[-1]))
        levels[-2] = levels[-2] - pyr_up(levels[-1])
    return levels


def level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """(height, width) of the levels, down to 16 pixels. Errors: UserError for images without any."""
    sizes = []
    while min(height, width) >= MIN_SIZE:
        sizes.append((height, width))
        if height % 2 or width % 2:
            break
        height, width = height // 2, width // 2
    if not sizes:
        raise UserError(f'the sliced Wasserstein distance needs images of at least {MIN_SIZE}×{MIN_SIZE}; '
                        f'received {width}×{height}')
    return sizes


# Descriptors.

def descriptors(images: np.ndarray, nhoods_per_image: int, rnd: np.random.RandomState) -> np.ndarray:
    """Random neighbourhoods of images [N, C, H, W]: [N · nhoods_per_image, C, 7, 7]."""
    n, _, height, width = images.shape
    half = NHOOD_SIZE // 2
    count = n * nhoods_per_image
    # Columns are drawn before rows, and a neighbourhood is stored column by column: what was recorded.
    x = rnd.randint(half, width - half, size=count)
    y = rnd.randint(half, height - half, size=count)
    windows = np.lib.stride_tricks.sliding_window_view(images, (NHOOD_SIZE, NHOOD_SIZE), axis=(2, 3))
    chosen = windows[np.arange(count) // nhoods_per_image, :, y - half, x - half]
    return chosen.transpose(0, 1, 3, 2)


class Descriptors:
    """Neighbourhoods of many images, level by level.

    Args:
        num_images: How many images will come.
        shape: [H, W, C] of the images.
    """

    def __init__(self, num_images: int, shape: tuple[int, ...], nhoods_per_image: int = NHOODS_PER_IMAGE):
        height, width, channels = shape
        self.sizes = level_sizes(height, width)
        self._nhoods, self._count = nhoods_per_image, 0
        rows = num_images * nhoods_per_image
        self._levels = [_allocate((rows, channels, NHOOD_SIZE, NHOOD_SIZE)) for _ in self.sizes]

    def add(self, images: np.ndarray, rnd: np.random.RandomState) -> None:
        """Takes images [N, H, W, C] in 0…255."""
        pyramid = laplacian_pyramid(images.transpose(0, 3, 1, 2), len(self.sizes))
        begin, self._count = self._count, self._count + len(images)
        for values, level in zip(self._levels, pyramid, strict=True):
            values[begin * self._nhoods:self._count * self._nhoods] = descriptors(level, self._nhoods, rnd)

    def vectors(self, level: int) -> np.ndarray:
        """The finished vectors of a level, to be asked for once."""
        return finalize(self._levels[level][:self._count * self._nhoods])


def _allocate(shape: tuple[int, ...]) -> np.ndarray:
    """An array float32, in a temporary file if it is large."""
    if 4 * np.prod(shape, dtype=np.int64) <= IN_MEMORY:
        return np.empty(shape, np.float32)
    with tempfile.TemporaryFile(prefix='descriptors-') as file:    # The mapping keeps it.
        return np.memmap(file, np.float32, 'w+', shape=shape)


def finalize(values: np.ndarray) -> np.ndarray:
    """Descriptors [N, C, 7, 7], each channel with zero mean and unit variance, as vectors [N, C · 49].

    Done in place. A channel of one value becomes zero.
    """
    blocks = [values[i:i + BLOCK] for i in range(0, len(values), BLOCK)]
    count = values.size // values.shape[1]
    mean = sum(block.sum(axis=(0, 2, 3), dtype=np.float64) for block in blocks)[:, None, None] / count
    squares = sum(np.square(block - mean).sum(axis=(0, 2, 3)) for block in blocks)[:, None, None]
    std = np.sqrt(squares / count)
    for block in blocks:
        block -= mean.astype(np.float32)
        block /= np.where(std > 0, std, 1).astype(np.float32)
    return values.reshape(len(values), -1)


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, rnd: np.random.RandomState,
                       dir_repeats: int = DIR_REPEATS, dirs_per_repeat: int = DIRS_PER_REPEAT) -> float:
    """How far the sorted projections of two sets of vectors [N, size] on random directions are apart."""
    total = 0.0
    for _ in range(dir_repeats):
        directions = rnd.randn(a.shape[1], dirs_per_repeat)
        directions = (directions / np.linalg.norm(directions, axis=0)).astype(np.float32)
        # A few at a time: the projections on all directions are as large as the descriptors.
        for i in range(0, dirs_per_repeat, DIRS_AT_ONCE):
            projected = [np.sort((x @ directions[:, i:i + DIRS_AT_ONCE]).T) for x in (a, b)]
            total += np.abs(projected[0] - projected[1]).mean(axis=1, dtype=np.float64).sum()
    return total / (dir_repeats * dirs_per_repeat)


class SWD(MetricBase):
    """The distance between reals and fakes at every resolution down to 16, and the mean; in thousandths.

    Results: NAME_1024 … NAME_16 and NAME_avg.

    Args:
        num_images: Of both.
        nhoods_per_image: Neighbourhoods of each at every level.
        dir_repeats, dirs_per_repeat: Random directions.
    """

    def __init__(self, name: str, num_images: int = 1 << 14, nhoods_per_image: int = NHOODS_PER_IMAGE,
                 dir_repeats: int = DIR_REPEATS, dirs_per_repeat: int = DIRS_PER_REPEAT, **kwargs):
        super().__init__(name, **kwargs)
        self.num_images, self.nhoods_per_image = num_images, nhoods_per_image
        self.dir_repeats, self.dirs_per_repeat = dir_repeats, dirs_per_repeat

    def check_images(self, ev: 'Evaluation') -> None:
        """See MetricBase."""
        super().check_images(ev)
        sizes = [tuple(shape[1:]) for shape in (ev.shape, *(source.shape for source in ev.sources.values()))]
        for height, width in sizes:
            if (height, width) != sizes[0]:
                raise UserError(f'{self.name}: expected reals and fakes of one size; there are images of '
                                f'{sizes[0][1]}×{sizes[0][0]} and of {width}×{height} pixels. Folders are '
                                'brought to one by --resolution')
        level_sizes(*sizes[0])

    def _evaluate(self, ev: 'Evaluation') -> None:
        self.check_images(ev)
        streams = {'reals': ev.reals(self.num_images), 'fakes': ev.fakes(self.num_images)}
        count = min(len(stream) for stream in streams.values())     # Sorted numbers pair off.
        if len(streams['reals']) == count < len(streams['fakes']):
            print(f'Warning: {self.name}: there are {count} reals, so that as many fakes are compared; '
                  'compare it only with others of the same count', file=sys.stderr)
        reals, fakes = (self._descriptors(stream, count, ev.rng(f'swd/{kind}'))
                        for kind, stream in streams.items())
        rnd, distances = ev.rng('swd/directions'), []
        with ev.progress('distances', len(reals.sizes), 'levels') as progress:
            for level, (height, _) in enumerate(reals.sizes):
                distances.append(SCALE * sliced_wasserstein(reals.vectors(level), fakes.vectors(level), rnd,
                                                            self.dir_repeats, self.dirs_per_repeat))
                self._report_result(distances[-1], suffix=f'_{height}')
                progress.update(1)
        self._report_result(np.mean(distances), suffix='_avg')
        self.details.update(
            num_images=count, nhoods_per_image=self.nhoods_per_image, nhood_size=NHOOD_SIZE,
            dir_repeats=self.dir_repeats, dirs_per_repeat=self.dirs_per_repeat, scale=SCALE)

    def _descriptors(self, stream: Iterable[np.ndarray], count: int,
                     rnd: np.random.RandomState) -> Descriptors:
        """Neighbourhoods of the first images of a stream."""
        result, done = None, 0
        for images in stream:
            images = images[:count - done]
            result = result or Descriptors(count, images.shape[1:], self.nhoods_per_image)
            result.add(images, rnd)
            done += len(images)
            if done == count:
                break
        return result
