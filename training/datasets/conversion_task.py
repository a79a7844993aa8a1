"""What is converted to a data set, how, and the part of it that worker processes do: images → records."""

from typing import NamedTuple, Protocol

import numpy as np

from dnnlib.util import UserError
from training.datasets.base import check_image_size
from training.datasets.image_files import LeftOutError
from training.datasets.writer import JPEG_QUALITY, SHUFFLE_SEED, encode_level, image_levels


class Source(Protocol):
    """Images to convert, see `archives`. Pickled once per worker process."""

    name: str
    labels: np.ndarray | None           # int [N] or float32 [N, components].
    label_names: list[str] | None
    description: str

    def __len__(self) -> int: ...

    def read(self, i: int) -> np.ndarray:
        """uint8 [H, W, C]. Errors: UserError, naming the file."""

    def item_name(self, i: int) -> str:
        """For messages."""


class Options(NamedTuple):
    """How to write a data set."""

    format: str = 'raw'                     # 'raw', 'png' or 'jpeg'.
    quality: int = JPEG_QUALITY             # Of JPEG.
    single_resolution: bool | None = None   # Only the largest level; None: for png and jpeg.
    shards: int = 1                         # Files per level.
    workers: int | None = None              # Processes; None: as many as there are processors.
    overwrite: bool = False                 # Whether to replace a data set of that name.
    skip_bad: bool = False                  # Whether to leave out images that cannot be used.
    shuffle_seed: int | None = SHUFFLE_SEED     # None: the order of the source.
    max_images: int | None = None           # The first images of that order only.


class Result(NamedTuple):
    """What became of the images of one task."""

    count: int                                  # Images converted, of those in the task.
    levels: dict[int, tuple[bytes, list[int]]]  # log2 of the size → records, their lengths.
    digests: list[bytes]                        # Of the largest level.
    bad: list[tuple[int, str, bool]]            # Place in the task, what is wrong, whether to go on.


class Task:
    """The work of the worker processes: images of a source → records."""

    def __init__(self, source: Source, shape: list[int], first: str, lowest: int, options: Options) -> None:
        self._source, self._shape, self._first, self._lowest = source, shape, first, lowest
        self._format, self._quality, self._skip_bad = options.format, options.quality, options.skip_bad

    def __call__(self, indices: list[int]) -> Result:
        images, bad = [], []
        for place, index in enumerate(indices):
            try:
                image = self._source.read(index)
                self._check(image, index)
                images.append(image)
            except UserError as error:
                skip = self._skip_bad or isinstance(error, LeftOutError)
                bad.append((place, str(error), skip))
                if not skip:
                    break
        levels, digests = {}, []
        if images:
            for level, pixels in image_levels(np.stack(images), self._lowest):
                data, lengths, level_digests = encode_level(pixels, self._format, self._quality)
                levels[level] = data, lengths
                digests = digests or level_digests
        return Result(len(images), levels, digests, bad)

    def _check(self, image: np.ndarray, index: int) -> None:
        channels, height, width = self._shape
        if image.shape == (height, width, channels):
            return
        name = self._source.item_name(index)
        if image.ndim != 3 or image.dtype != np.uint8:
            raise UserError(f'{name}: expected uint8 [H, W, C], received {image.dtype} {list(image.shape)}.')
        if image.shape[2] != channels:
            raise UserError(f'{name} has {_channels(image.shape[2])}, but {self._first} has '
                            f'{_channels(channels)}; expected the same of all. Give '
                            f'--channels={max(image.shape[2], channels)}, or convert them.')
        raise UserError(f'{name} has {image.shape[1]}x{image.shape[0]} pixels, but {self._first} has '
                        f'{width}x{height}; expected one size. Give --transform=center-crop '
                        f'--resolution={width}, or resize them.')


def _channels(count: int) -> str:
    return f'{count} channels' + {1: ' (gray)', 3: ' (RGB)', 4: ' (RGBA)'}.get(count, '')


def check_shape(shape: tuple[int, ...], name: str) -> None:
    """Errors: UserError unless [H, W, C] can be a data set; says what would make it one."""
    height, width, channels = shape
    if channels not in (1, 3, 4):
        raise UserError(f'{name} has {channels} channels; expected 1 (gray), 3 (RGB) or 4 (RGBA).')
    check_image_size(width, height, name, converting=True)
