"""What all data sets share: labels, the order of images, minibatches, images that are left out."""

import functools
import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dnnlib.util import UserError
from training.datasets.labels import count_labels, expand_classes, label_chunks, split_labels
from training.datasets.labels import one_hot as one_hot
from training.datasets.prefetch import Prefetcher

EMBEDDED_NAME = 'pixelart32'    # The data set that comes with the project.

LABEL_SAMPLING = ('data', 'uniform')    # See `Dataset.label_table`.

_MAX_WARNINGS = 10          # Bad images that are told one by one.
_READ_THREADS = 2           # Minibatches that are read at the same time; large images have more threads each.
# Of the official reader, which had buffers to set.
_READER_ARGUMENTS = ('class_name', 'repeat', 'shuffle_mb', 'prefetch_mb', 'buffer_mb', 'num_threads')
_MIRROR_BLOCK = 4096        # Positions whose mirror bits come from one generator.
_MIRROR_STREAM = 1 << 63    # Keeps the keys of mirror bits apart from the keys of epochs.


def reduce_images(images: np.ndarray, levels: int) -> np.ndarray:
    """Halves images `levels` times by 2×2 averages of floats, rounded once at the end, as official tools do.

    Args:
        images: uint8 [N, H, W, C].
        levels: Number of halvings; H and W must be divisible by 2^levels.

    Returns: uint8 [N, H / 2^levels, W / 2^levels, C].
    """
    if levels == 0:
        return images
    values = images.astype(np.float32)
    for _ in range(levels):
        values = values[:, 0::2] + values[:, 1::2]
        values = (values[:, :, 0::2] + values[:, :, 1::2]) * 0.25
    return np.rint(values).astype(np.uint8)


def check_max_label_size(value: Any) -> int | str:
    """Returns `value` if it is 'full', 'auto' or an integer ≥ 0. Errors: UserError otherwise."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if value in ('full', 'auto') or is_count:
        return value
    raise UserError("max_label_size must be 0 (no labels), a number of label components, 'full' or 'auto'; "
                    f'received {value!r}')


def check_reader_arguments(arguments: dict[str, Any]) -> None:
    """Accepts what official scripts say about reading as long as it has no effect on what is read.

    Errors: UserError where another order or class was asked for; TypeError for other arguments.
    """
    for name, value in arguments.items():
        if name not in _READER_ARGUMENTS:
            raise TypeError(f'a data set has no argument {name!r}')
        if name in ('repeat', 'shuffle_mb') and not value:
            raise UserError(f'{name}={value!r} is not supported: minibatches are shuffled and have no end. '
                            'Leave it out; images in the order of the files are given by '
                            'Dataset.read(range(first, last))')
        if name == 'class_name' and value not in (None, 'training.dataset.TFRecordDataset'):
            raise UserError(f'class_name={value!r} is not supported: what lies at the path decides how it is '
                            'read. Leave it out, or make a Dataset of your own')


def resize_flags(width: int, height: int) -> str:
    """The flags of dataset_tool.py that make a square with a power of two as its side out of an image."""
    side = max(1 << (min(width, height).bit_length() - 1), 4)
    return ('' if width == height else '--transform=center-crop ') + f'--resolution={side}'


def check_image_size(width: int, height: int, what: str, converting: bool = False) -> None:
    """Errors: UserError unless the images are square with a side that is a power of two, 4 or larger; says
    what would mend it, to somebody who is `converting` them or to somebody who wants to use them."""
    if width != height or width < 4 or width & (width - 1):
        mend = resize_flags(width, height)
        mend = f'Give {mend}.' if converting else (
            f'Make such a data set: python dataset_tool.py create_from_images NEW_DATASET IMAGES {mend}')
        raise UserError(f'{what} has {width}x{height} pixels; expected a square with a side that is a power '
                        f'of two, 4 or larger. {mend}')


def check_resolution(resolution: int | None, available: int, what: str) -> int:
    """Number of halvings that lead from `available` to `resolution`. Errors: UserError where none does."""
    if resolution is None:
        return 0
    for levels in range(available.bit_length()):
        if available >> levels == resolution and resolution >= 4:
            return levels
    raise UserError(f'resolution {resolution} cannot be made from {what} of {available}x{available} pixels; '
                    f'expected a power of two between 4 and {available}.')


def _philox(seed: int, stream: int) -> np.random.Philox:
    """The bit generator of a seed and a stream, each taken modulo 2^64."""
    # An explicit type: NumPy turns a list with a number from 2^63 up into floats, which merges neighbours.
    return np.random.Philox(key=np.array([seed % 2**64, stream % 2**64], np.uint64))


class Dataset:
    """Base class: uint8 images at one resolution with optional labels, read at random.

    Subclasses implement `_read_images(indices, lod)`, and hand everything else to this constructor.

    Args:
        name: Name shown to users and used in run directories.
        shape: [channels, height, width], the official order.
        num_images: Number of images.
        labels: float32 [num_images, components]; or classes, integers [num_images] below num_classes; or
            None. One-hot rows are kept as classes.
        label_names: One name per component, or None for '0', '1', ...
        max_label_size: 0 = no labels, 'full' = all components, 'auto' = all if there are any, n = the first
            n components.
        seed: Default seed of the order of images.
        how_to_label: Advice for the user who asked for labels where there are none.
        label_sampling: 'data' or 'uniform', see `label_table`.
        skip_bad: Put another image in the place of one that cannot be read.
        num_classes: Of labels that are classes; None: the largest + 1.

    Attributes:
        class_indices: int32 [num_images], where labels are one-hot: their classes; else None.
        num_classes: label_size where labels are one-hot, else 0.
        full_resolution: That of the images before `resolution` reduced them.

    Errors: UserError for labels that are missing or do not fit the images.
    """

    full_resolution = 0         # Set by subclasses that reduce.

    def __init__(
        self,
        name: str,
        shape: list[int],
        num_images: int,
        labels: np.ndarray | None = None,
        label_names: list[str] | None = None,
        max_label_size: int | str = 0,
        seed: int = 0,
        how_to_label: str = 'Train without labels.',
        label_sampling: str = 'data',
        skip_bad: bool = False,
        num_classes: int | None = None,
    ) -> None:
        max_label_size = check_max_label_size(max_label_size)
        if label_sampling not in LABEL_SAMPLING:
            raise UserError(f'label_sampling must be one of {", ".join(LABEL_SAMPLING)}; received '
                            f'{label_sampling!r}')
        if max_label_size == 'auto':
            max_label_size = 0 if labels is None else 'full'
        if labels is not None and labels.ndim == 1:
            size = num_classes or int(labels.max(initial=-1)) + 1
        else:
            size = 0 if labels is None else labels.shape[1]
        if max_label_size and not size:
            raise UserError(f'data set {name}: labels were asked for (max_label_size={max_label_size!r}), '
                            f'but there are none. {how_to_label}')
        if max_label_size != 'full':
            size = min(size, max_label_size)
        self.name = name
        self.path = name            # Where it lies; `load_dataset` knows.
        self.shape = [int(size) for size in shape]
        self.resolution = self.shape[1]
        self.full_resolution = self.full_resolution or self.resolution
        self.resolution_log2 = self.resolution.bit_length() - 1
        self.num_images = int(num_images)
        self.dynamic_range = [0, 255]
        self.dtype = 'uint8'
        self.label_size = size
        self.class_indices, self._dense_labels = split_labels(labels, size)
        if self._dense_labels is not None and not np.isfinite(self._dense_labels).all():
            row = int(np.argwhere(~np.isfinite(self._dense_labels))[0, 0])
            raise UserError(f'{name}: the label of image {row} is not finite; expected numbers. Make the '
                            'labels again, or train without them.')
        self.num_classes = 0 if self.class_indices is None else size
        self.label_dtype = 'float32'
        self.label_names = [str(i) for i in range(self.label_size)]
        if label_names is not None:
            self.label_names = [str(label) for label in label_names[:self.label_size]]
        self.label_sampling = label_sampling
        self.skip_bad = skip_bad
        self.bad_images = set()     # Indices of all that could not be read.
        self._bad_at = {}           # lod → those that cannot be read there: levels may be files of their own.
        self._bad_lock = threading.Lock()
        self.seed = seed
        self._random = np.random.RandomState(seed % 2**32)
        self._cursor = 0
        self._orders = {}
        self._order_lock = threading.Lock()

    def __len__(self) -> int:
        return self.num_images

    def close(self) -> None:
        """Releases open files."""
        if len(self.bad_images) > _MAX_WARNINGS:
            print(f'{len(self.bad_images)} bad images of data set {self.name} were left out.')

    def _read_images(self, indices: np.ndarray, lod: int) -> np.ndarray:
        raise NotImplementedError

    def read(self, indices: np.ndarray, lod: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels of the given indices, in that order.

        Args:
            indices: int [n], each in [0, len(self)).
            lod: Level of detail: images come 2^lod times smaller (2×2 averages).

        Returns: images uint8 [n, H, W, C], which may be read-only, labels float32 [n, label_size].
        Errors: IndexError for an index out of range, UserError for a damaged file. With skip_bad, the next
            good image takes the place of one that cannot be read.
        """
        indices = np.asarray(indices, np.int64).reshape(-1)
        return self._read(indices, lod, lambda i, attempt: int(indices[i] + attempt) % self.num_images)

    def _read(self, indices: np.ndarray, lod: int, replacement: Callable[[int, int], int]):
        """`read`, where replacement(i, attempt) is what to take if attempts for the i-th image failed."""
        if indices.size and (indices.min() < 0 or indices.max() >= self.num_images):
            raise IndexError(f'data set {self.name} holds images 0 to {self.num_images - 1}; '
                             f'received indices from {indices.min()} to {indices.max()}')
        if not 0 <= lod <= self.resolution_log2:
            raise ValueError(f'lod must be in [0, {self.resolution_log2}]; received {lod}')
        if not indices.size:
            size = self.resolution >> lod
            return np.zeros([0, size, size, self.shape[0]], np.uint8), self.label_rows(indices)
        if not self.skip_bad:
            return self._read_images(indices, int(lod)), self.label_rows(indices)
        images, indices = self._read_good(indices, int(lod), replacement)
        return images, self.label_rows(indices)

    def _read_good(self, indices: np.ndarray, lod: int, replacement: Callable[[int, int], int]):
        """Images without the bad ones, and the indices that they have.

        What is bad depends on the files alone, not on what was read before, and so does the result.
        """
        bad = self._bad_at.setdefault(lod, set())
        indices, attempts = indices.copy(), [0] * len(indices)
        while True:
            for i in range(len(indices)):
                while int(indices[i]) in bad:
                    if len(bad) >= self.num_images:
                        raise UserError(f'data set {self.name}: none of its {self.num_images} images can be '
                                        'read; see the warnings above.')
                    attempts[i] += 1
                    indices[i] = replacement(i, attempts[i])
            try:
                return self._read_images(indices, lod), indices
            except UserError as error:
                if not self._find_bad(indices, lod):
                    raise error

    def _find_bad(self, indices: np.ndarray, lod: int) -> int:
        """Looks for the bad ones among some images, of which there is at least one; returns their number."""
        found = 0
        for index in np.unique(indices).tolist():
            try:
                self._read_images(np.array([index]), lod)
            except UserError as error:
                found += 1
                with self._bad_lock:
                    self._bad_at[lod].add(index)
                    if index not in self.bad_images:
                        self.bad_images.add(index)
                        self._warn(f'left out: {error}', len(self.bad_images))
        return found

    def _warn(self, text: str, count: int) -> None:
        """Tells of the `count`-th bad image."""
        text = text.replace(', or leave such records out with --skip-bad', '')
        if count <= _MAX_WARNINGS:
            print(f'Warning: {text}')
        if count == _MAX_WARNINGS:
            print('Warning: more bad images are only counted, not named.')
        elif count in (100, 1000, 10000, 100000):
            print(f'Warning: {count} bad images of data set {self.name} were left out so far.')

    def _kept_labels(self) -> np.ndarray | None:
        """Classes [N], or rows [N, label_size] where they are not one-hot, or None."""
        return self._dense_labels if self.class_indices is None else self.class_indices

    def label_rows(self, indices: np.ndarray) -> np.ndarray:
        """Labels of the images at some indices: float32 [n, label_size]."""
        if self.class_indices is None:
            return np.zeros([len(indices), 0], np.float32) if self._dense_labels is None else \
                self._dense_labels[indices]
        return expand_classes(self.class_indices[indices], self.label_size)

    @property
    def labels(self) -> np.ndarray:
        """Labels of all images, float32 [num_images, label_size]. Where they are one-hot, this array is made
        in every call, and may be large; see `class_indices` and `label_rows`."""
        return self.label_rows(np.arange(self.num_images))

    @functools.cached_property
    def label_classes(self) -> np.ndarray | None:
        """The rows of `label_table` as classes, int32 [rows]; None where labels are not one-hot."""
        if self.class_indices is None or self.label_sampling == 'data':
            return self.class_indices
        return np.unique(self.class_indices)[::-1].copy()       # Rows in the order that np.unique gives them.

    @property
    def label_table(self) -> np.ndarray:
        """Labels that a generator draws from, each row as likely as any other.

        With label_sampling 'data', those of all images: classes are as frequent as in the data, as
        officially. With 'uniform', every label that occurs stands there once.

        Returns: float32 [rows, label_size], made in every call, see `label_classes`.
        """
        if self.label_classes is not None:
            return expand_classes(self.label_classes, self.label_size)
        if self.label_sampling == 'data' or not self.label_size:
            return self.labels
        return np.unique(self.labels, axis=0)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the content that does not depend on paths or file formats: the number of images, their
        shape, all labels in use and 16 images. Two data sets that differ elsewhere only share it."""
        known = self.num_images, self.shape, (self.num_images, self.label_size)
        digest = hashlib.sha256(repr(known).encode())
        for rows in label_chunks(self._kept_labels(), self.label_size, self.num_images):
            digest.update(rows.tobytes())
        sample = np.unique(np.linspace(0, self.num_images - 1, 16).astype(np.int64))
        digest.update(self.read(sample)[0].tobytes())
        return digest.hexdigest()

    def class_counts(self) -> dict[str, int]:
        """Number of images of each label component, by its name. Empty without labels."""
        counts = count_labels(self._kept_labels(), self.label_size)
        return {name: int(count) for name, count in zip(self.label_names, counts, strict=True)}

    def get_random_labels_np(self, n: int, random_state: np.random.RandomState | None = None) -> np.ndarray:
        """Labels of n images drawn with replacement: float32 [n, label_size]."""
        if not self.label_size:
            return np.zeros([n, 0], np.float32)
        random_state = self._random if random_state is None else random_state
        return self.label_rows(random_state.randint(self.num_images, size=n))

    def get_minibatch_np(self, minibatch_size: int, lod: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The next minibatch in the order of `self.seed`, as in the official class.

        Returns: images uint8 [n, C, H, W], labels float32 [n, label_size].
        """
        images, labels = self.read(self.order(self._cursor, minibatch_size), lod)
        self._cursor += minibatch_size
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels

    def configure(self, minibatch_size: int, lod: int = 0) -> None:
        """Does nothing: `get_minibatch_np` is told both. For official scripts."""

    def get_minibatch_tf(self) -> None:
        """Errors: UserError: there are no graphs to put data into."""
        raise UserError('get_minibatch_tf belongs to TensorFlow 1; use Dataset.minibatches(0, '
                        'minibatch_size), an iterator of arrays, or get_minibatch_np(minibatch_size)')

    def _epoch_order(self, epoch: int, seed: int) -> np.ndarray:
        """A permutation of all indices, a function of (seed, epoch). NumPy promises that the raw numbers of
        a bit generator never change, which it does not for `permutation`: so a run resumes exactly on any
        version."""
        key = (seed, epoch)
        with self._order_lock:
            order = self._orders.get(key)
            if order is None:
                raw = _philox(seed, epoch).random_raw(self.num_images)
                order = np.argsort(raw, kind='stable')
                if len(self._orders) >= 2:      # A minibatch may lie across the border of two epochs.
                    self._orders = {k: v for k, v in self._orders.items() if k == (seed, epoch - 1)}
                self._orders[key] = order
        return order

    def order(self, position: int, n: int, seed: int | None = None) -> np.ndarray:
        """Indices of the images at positions position, ..., position + n - 1 of the whole training.

        Position p belongs to epoch p // len(self); each epoch is a permutation of its own. Nothing is
        remembered from call to call: the position alone is the state of the data.

        Args:
            position: Number of images shown before, ≥ 0.
            n: How many indices.
            seed: Seed of the order; None for `self.seed`.

        Returns: int64 [n].
        """
        if position < 0 or n < 0:
            raise ValueError(f'position and n must be 0 or larger; received {position} and {n}')
        seed = self.seed if seed is None else seed
        parts = [np.zeros([0], np.int64)]
        end = position + n
        while position < end:
            epoch, first = divmod(position, self.num_images)
            part = self._epoch_order(epoch, seed)[first:first + end - position]
            parts.append(part)
            position += len(part)
        return np.concatenate(parts)

    def mirror_flips(self, position: int, n: int, seed: int | None = None) -> np.ndarray:
        """Whether to mirror the images at positions position, ..., position + n - 1: bool [n], each with
        probability 1/2, a function of seed and position alone."""
        seed = self.seed if seed is None else seed
        first, last = position // _MIRROR_BLOCK, (position + n) // _MIRROR_BLOCK
        raw = [_philox(seed, _MIRROR_STREAM + block).random_raw(_MIRROR_BLOCK)
               for block in range(first, last + 1)]
        skip = position - first * _MIRROR_BLOCK
        return (np.concatenate(raw)[skip:skip + n] >> np.uint64(63)).astype(bool)

    def minibatches(
        self,
        start: int,
        minibatch_size: int,
        seed: int | None = None,
        mirror_augment: bool = False,
        shard: tuple[int, int] = (0, 1),
        lod: int = 0,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Endless minibatches from position `start` on.

        With skip_bad, the image at the next position of the order takes the place of one that cannot be
        read, mirrored as the one that it replaces: still a function of seed and position alone.

        Args:
            start: Number of images shown before; continues a run exactly.
            minibatch_size: Size of the minibatch over all shards.
            seed: Seed of order and mirroring; None for `self.seed`.
            mirror_augment: Mirror half of the images from left to right.
            shard: (index, count): give the index-th of `count` equal parts of each minibatch.
            lod: Level of detail, see `read`.

        Returns: iterator of images uint8 [m, H, W, C] and labels float32 [m, label_size], where m is
        minibatch_size / count.
        Errors: UserError if the shards do not divide the minibatch.
        """
        part = self._shard_size(minibatch_size, shard)
        starts = itertools.count(start + shard[0] * part, minibatch_size)
        return (self._minibatch(position, part, seed, mirror_augment, lod) for position in starts)

    def _shard_size(self, minibatch_size: int, shard: tuple[int, int]) -> int:
        index, count = shard
        if minibatch_size < 1 or count < 1 or minibatch_size % count:
            raise UserError(f'a minibatch of {minibatch_size} images cannot be split evenly over {count} '
                            'readers; choose a multiple.')
        if not 0 <= index < count:
            raise ValueError(f'shard must be (index, count) with 0 <= index < count; received {shard}')
        return minibatch_size // count

    def _minibatch(self, position: int, size: int, seed: int | None, mirror_augment: bool, lod: int):
        """Images and labels at the given positions of the training."""
        images, labels = self._read(self.order(position, size, seed), lod,
                                    lambda i, attempt: int(self.order(position + i + attempt, 1, seed)[0]))
        if mirror_augment:
            images = np.require(images, requirements='W')
            for i in np.flatnonzero(self.mirror_flips(position, size, seed)):
                for channel in range(images.shape[3]):      # Much faster than all channels at once.
                    images[i, :, :, channel] = images[i, :, ::-1, channel]
        return images, labels

    def prefetch_minibatches(
        self,
        start: int,
        minibatch_size: int,
        seed: int | None = None,
        mirror_augment: bool = False,
        shard: tuple[int, int] = (0, 1),
        lod: int = 0,
        depth: int = 2,
    ) -> Prefetcher:
        """`minibatches` in the same order, read up to `depth` ahead by threads. Close it when done.

        Threads with random access are the whole pipeline: measured by benchmarks/data.py, they feed what a
        tf.data loop does that only reads and decodes in the order of the files. A tf.data pipeline would hold
        the order in its own state, in buffers of shuffled images; here a position is the state.
        """
        part = self._shard_size(minibatch_size, shard)

        def load(position):
            return self._minibatch(position, part, seed, mirror_augment, lod)
        starts = itertools.count(start + shard[0] * part, minibatch_size)
        return Prefetcher(starts, depth, load, _READ_THREADS)

