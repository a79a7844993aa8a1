"""Where images that are measured come from: data sets, folders and zips of images."""

import collections
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dnnlib.util import UserError, get_obj_by_name
from training.datasets.image_files import ImageOptions, load_image, read_header
from training.datasets.image_folder import ImageStore
from training.datasets.prefetch import map_in_threads

from .image_streams import ImageStream, philox, rgb

__all__ = ['REALS_SEED', 'DatasetSource', 'FolderSource', 'OwnSource']

REALS_SEED = 0          # Of the choice and flips of reals: the same for all networks, or nothing were cached.
READ = 32               # Images at a time.
FULL_HASH_BYTES = 1 << 28   # Pixels of a source whose fingerprint looks at all of them;
SAMPLED = 256               # of larger ones it looks at so many images.


class Source:
    """Images with random access.

    Attributes:
        name: For results.
        shape: [channels, height, width].
        num: Number of images.
        label_size: Number of label components; 0 = no labels.
        classes: Integers [num], where labels are one-hot; else None.
        resize: What was done to the images before.
        class_names: Names of the label components, or None.
        wraps: May a metric that wants more images than there are begin again?
    """

    name = ''
    shape: Sequence[int] = ()
    num = 0
    label_size = 0
    classes: np.ndarray | None = None
    resize = 'none'
    wraps = False
    class_names: list[str] | None = None
    _fingerprint: str | None = None

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Images, uint8 [n, H, W, C]."""
        raise NotImplementedError

    def label_rows(self, indices: np.ndarray) -> np.ndarray:
        """Labels of images: float32 [n, label_size]."""
        raise NotImplementedError

    def order(self, position: int, n: int, num: int) -> np.ndarray:
        """Numbers below `num` at some positions of an endless order of all of them."""
        epochs = range(position // num, (position + max(n, 1) - 1) // num + 1)
        parts = [np.argsort(philox('order', REALS_SEED, epoch, num).random_raw(num), kind='stable')
                 for epoch in epochs]
        return np.concatenate(parts)[position - epochs[0] * num:][:n]

    @property
    def fingerprint(self) -> str:
        """Hash of the pixels: of all of them, or of evenly spread images of large sources. Paths and formats
        of files do not matter."""
        if self._fingerprint is None:
            digest = hashlib.sha256(repr((self.num, tuple(map(int, self.shape)))).encode())
            count = self.num if self.num * np.prod(self.shape) <= FULL_HASH_BYTES else SAMPLED
            sample = np.unique(np.linspace(0, self.num - 1, count).astype(np.int64))
            for begin in range(0, len(sample), READ):
                digest.update(np.ascontiguousarray(self.read(sample[begin:begin + READ])))
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def has_class(self, number: int) -> bool:
        """Is there an image of a class?"""
        if self.classes is not None:
            return bool((self.classes == number).any())
        return bool((np.argmax(self.label_rows(np.arange(self.num)), axis=1) == number).any())

    def indices_of(self, classes: Sequence[int]) -> np.ndarray:
        """Indices of the images of some classes. Errors: UserError where there are none."""
        if not self.label_size:
            raise UserError(f'{self.name} has no classes; give a data set with labels')
        if self.classes is not None:
            found = np.flatnonzero(np.isin(self.classes, list(classes)))
        else:
            labels = self.label_rows(np.arange(self.num))
            found = np.flatnonzero(np.isin(np.argmax(labels, axis=1), list(classes)) & labels.any(axis=1))
        if not len(found):
            raise UserError(f'{self.name} has no image of class {", ".join(map(str, classes))}')
        return found

    def stream(self, num: int | None, mirror: bool, wrap: bool,
               classes: Sequence[int] | None = None) -> ImageStream:
        """A stream of `num` images (None = all), chosen and flipped at random.

        Args:
            mirror: Flip half of them?
            wrap: Begin again when all have been seen?
            classes: Of these classes only.
        """
        chosen = None if classes is None else self.indices_of(classes)
        available = self.num if chosen is None else len(chosen)
        count = available if num is None else num if wrap else min(num, available)
        selection = None if chosen is None else hashlib.sha256(chosen.tobytes()).hexdigest()
        in_order = count == available and not mirror    # A set does not depend on its order.

        def inputs(size: int) -> Iterator[tuple[np.ndarray]]:
            for begin in range(0, count, size):
                n = min(size, count - begin)
                indices = np.arange(begin, begin + n) if in_order else self.order(begin, n, available)
                images = rgb(self.read(indices if chosen is None else chosen[indices]))
                if mirror:
                    flips = self.flips(begin, n)
                    images = np.where(flips.reshape(-1, 1, 1, 1), images[:, :, ::-1], images)
                yield (images,)
        facts = {'count': count, 'available': available, 'mirror': bool(mirror), 'resize': self.resize,
                 'source': self.name, 'fingerprint': self.fingerprint}
        if classes is not None:
            facts['classes'] = [int(index) for index in classes]
        # The fingerprint is of the pixels after resizing.
        cache_key = {'images': self.fingerprint, 'shape': [int(size) for size in self.shape],
                     'count': count, 'mirror': bool(mirror), 'seed': REALS_SEED,
                     'order': 'index' if in_order else 'random', 'selection': selection}
        return ImageStream(count, ('reals', *(repr(value) for value in cache_key.values())), inputs=inputs,
                           function_key='reals', fingerprint=cache_key, facts=facts, kind='reals')

    def flips(self, position: int, n: int) -> np.ndarray:
        """Whether to flip the images at some positions: bool [n]."""
        first, last = position // 4096, (position + n) // 4096
        raw = [philox('flips', REALS_SEED, block).random_raw(4096) for block in range(first, last + 1)]
        return (np.concatenate(raw)[position - first * 4096:][:n] >> np.uint64(63)).astype(bool)


def reduced(dataset: Any) -> str:
    """What was done to the images of a training.dataset.Dataset before: 'none', or how they were reduced."""
    available = dataset.full_resolution
    return 'none' if available == dataset.resolution else f'2x2 averages, {available} to {dataset.resolution}'


class DatasetSource(Source):
    """The images of a training.dataset.Dataset; a metric may want more than there are, as officially."""

    wraps = True

    def __init__(self, dataset: Any, resize: str = 'none'):
        self._dataset, self.name, self.resize = dataset, dataset.name, resize
        self.shape, self.num = dataset.shape, len(dataset)
        self.label_size, self.classes = dataset.label_size, dataset.class_indices
        self.class_names = dataset.label_names if dataset.label_size else None

    def label_rows(self, indices):
        return self._dataset.label_rows(indices)

    def read(self, indices):
        parts = [self._dataset.read(indices[i:i + READ])[0] for i in range(0, len(indices), READ)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class FolderSource(Source):
    """The images of a folder (in any depth) or zip; subfolders are classes.

    Args:
        path: The folder or zip.
        size: (width, height) that all are brought to: the middle of each, resized. None = as they are, or
            the most frequent size where they differ.
        resize_filter: One of image_files.RESIZE_FILTERS.
    """

    def __init__(self, path: str, size: tuple[int, int] | None = None, resize_filter: str = 'lanczos'):
        self._store = ImageStore(path)
        self.name, self.num = path, len(self._store.names)
        names = self._store.names
        headers = map_in_threads(
            lambda name: read_header(self._store.source(name), self._store.location(name)), names)
        self.sizes = collections.Counter(header.size for header in headers)
        target = size or max(self.sizes, key=lambda other: (self.sizes[other], other))
        self._options = ImageOptions(3, background=(255, 255, 255))
        if set(self.sizes) != {target}:
            self._options = self._options._replace(transform='center-crop', width=target[0], height=target[1],
                                                   resize_filter=resize_filter)
            self.resize = f'center-crop, {resize_filter} to {target[0]}x{target[1]}'
        self.shape = [3, target[1], target[0]]
        folders = sorted({name.split('/')[0] for name in names if '/' in name})
        if len(folders) > 1 and all('/' in name for name in names):
            self.class_names = folders
            numbers = {folder: number for number, folder in enumerate(folders)}
            self.classes = np.array([numbers[name.split('/')[0]] for name in names])
            self.label_size = len(folders)

    def label_rows(self, indices):
        return np.eye(self.label_size, dtype=np.float32)[self.classes[indices]]

    def read(self, indices):
        names = [self._store.names[index] for index in indices]
        return np.stack(map_in_threads(self._load, names))

    def _load(self, name: str) -> np.ndarray:
        location = self._store.location(name)
        return load_image(self._store.source(name), location, self._options)


class OwnSource(Source):
    """Images of a user's own generator, of which there are as many as one wants.

    Args:
        func_name: Full name of a class (or function that returns an object). It is called without arguments,
            or with the network where there is one; what it returns is called with a
            numpy.random.RandomState and a number n, and returns uint8 [n, H, W, 1, 3 or 4].
        network: A tflib.Network, or None.
        seed: Of the random numbers.
    """

    BLOCK = 32      # Images that share a generator of random numbers.

    def __init__(self, func_name: str, network: Any, seed: int):
        self.name, self._seed = func_name, seed
        make, how = get_obj_by_name(func_name), 'without arguments' if network is None else 'with a network'
        try:
            self._generate = make(*[] if network is None else [network])
        except TypeError as error:
            raise UserError(f'{func_name}: expected a class to be called {how} ({error})') from None
        if not callable(self._generate):
            raise UserError(f'{func_name}: expected objects to be called with a RandomState and a number, '
                            f'received {type(self._generate).__name__}')
        height, width, channels = self._block(0, 1).shape[1:]
        self.shape = [channels, height, width]

    def _block(self, number: int, n: int) -> np.ndarray:
        rnd = np.random.RandomState(philox('own', self._seed, number))
        images = np.asarray(self._generate(rnd, n))
        fits = images.ndim == 4 and len(images) == n and images.shape[3] in (1, 3, 4)
        if images.dtype != np.uint8 or not fits:
            raise UserError(f'{self.name}: expected {n} images as uint8 [{n}, H, W, 1, 3 or 4], received '
                            f'{images.dtype} {list(images.shape)}')
        return images

    def stream(self, num, mirror, wrap, classes=None):
        if classes is not None:
            raise UserError(f'{self.name}: classes are for networks and data sets')

        def inputs(size: int) -> Iterator[tuple[np.ndarray]]:
            waiting, number, end = np.zeros([0, *self.shape[1:], 3], np.uint8), 0, 0
            while end < num:
                n = min(size, num - end)
                while len(waiting) < n:
                    waiting = np.concatenate([waiting, rgb(self._block(number, self.BLOCK))])
                    number += 1
                yield (waiting[:n],)
                waiting, end = waiting[n:], end + n
        facts = {'count': num, 'resize': 'none', 'source': self.name}
        return ImageStream(num, ('own', self.name, self._seed, num), inputs=inputs, function_key='own',
                           facts=facts, kind='generated images')
