"""Data sets as their publishers ship them: each function opens one and returns a `Source`.

MNIST and SVHN (and HDF5 files) are read here; the other formats have a module each.
"""

import functools
import gzip
import math
import os
import re
from typing import Any, NamedTuple

import numpy as np

from dnnlib.util import UserError
from training.datasets.archive_base import (
    ArraySource,
    Source,
    check_end,
    find_file,
    missing_extra,
    read_exactly,
)
from training.datasets.archive_celeba import celeba, celebahq
from training.datasets.archive_cifar import cifar10, cifar100
from training.datasets.archive_lsun import lsun, lsun_wide
from training.datasets.image_files import MAX_PIXELS
from training.datasets.image_folder import image_folder

__all__ = ['Source', 'celeba', 'celebahq', 'cifar10', 'cifar100', 'hdf5', 'image_folder', 'lsun', 'lsun_wide',
           'mnist', 'mnist_rgb', 'svhn']

_MAX_IDX = 4 << 30          # Bytes.
_CHUNK_CACHE = 64 << 20     # Bytes; an HDF5 chunk that is not kept is unpacked for each of its images.
_MAX_LINKS = 10000          # Groups and data sets looked at in an HDF5 file.


def _read_idx(path: str, num_dimensions: int) -> np.ndarray:
    """An idx file of bytes, compressed or not: uint8 with this number of dimensions."""
    with open(path, 'rb') as file:
        compressed = file.read(2) == b'\x1f\x8b'
    with gzip.open(path) if compressed else open(path, 'rb') as file:
        head = read_exactly(file, 4, path)
        if head != bytes([0, 0, 8, num_dimensions]):
            raise UserError(f'{path} starts with {head.hex(" ")}; expected an idx file of bytes with '
                            f'{num_dimensions} dimensions (00 00 08 {num_dimensions:02x}).')
        shape = np.frombuffer(read_exactly(file, 4 * num_dimensions, path), '>u4').astype(int).tolist()
        size = math.prod(shape)
        if not 0 < size <= _MAX_IDX:
            raise UserError(f'{path} announces an array of shape {shape}; expected images.')
        data = read_exactly(file, size, path)
        check_end(file, path, f'its array of shape {shape}')
    return np.frombuffer(data, np.uint8).reshape(shape)


def _load_mnist(path: str) -> np.ndarray:
    """uint8 [N, S, S, 1], padded with zeros to a power of two on all sides."""
    images = _read_idx(path, 3)
    side = images.shape[1]
    padding = (1 << (side - 1).bit_length()) - side
    if images.shape[2] != side or side < 3 or side > 1024 or padding % 2:
        raise UserError(f'{path} holds images of {images.shape[2]}x{side} pixels; expected 28x28.')
    return np.pad(images, [(0, 0)] + [(padding // 2, padding // 2)] * 2)[..., None]


def _find_idx(path: str, what: str, dimensions: int) -> str:
    names = [f'train-{what}{dot}idx{dimensions}-ubyte{end}' for dot in '-.' for end in ('.gz', '')]
    return find_file(path, names, f'the {what} of MNIST')


def mnist(path: str) -> ArraySource:
    """MNIST, training images: [32, 32, 1], 28×28 with two pixels of zeros on each side; 10 classes.

    Data sets in the same files (Fashion-MNIST, Kuzushiji-MNIST) work alike.

    Args:
        path: Folder with train-images-idx3-ubyte and train-labels-idx1-ubyte, .gz or not.
    """
    images_path, labels_path = _find_idx(path, 'images', 3), _find_idx(path, 'labels', 1)
    images = _load_mnist(images_path)
    labels = _read_idx(labels_path, 1).astype(np.int64)
    if len(labels) != len(images):
        raise UserError(f'{labels_path} has {len(labels)} labels, but {images_path} has {len(images)} '
                        'images; download them again.')
    count = max(10, int(labels.max()) + 1)
    return ArraySource('mnist', functools.partial(_load_mnist, images_path), [(images_path, len(images))],
                       f'{images_path}: {len(images)} images, padded to {images.shape[2]}x{images.shape[1]}',
                       images, labels=labels, label_names=[str(i) for i in range(count)])


class MnistRgbSource(ArraySource):
    """Triples of random MNIST images as the channels of RGB images; see `mnist_rgb`."""

    def __init__(self, path: str, num_images: int, random_seed: int) -> None:
        gray = mnist(path)
        super().__init__(
            'mnistrgb', gray._load, [(gray._files[0], len(gray))],
            f'{gray.description}, {num_images} random triples (seed {random_seed}) as RGB', gray._opened(),
            shuffled=False)
        self.shape = [*self.shape[:2], 3]
        # All at once gives the same numbers as three for each image in turn.
        random = np.random.RandomState(random_seed)
        self._triples = random.randint(len(gray), size=[num_images, 3], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._triples)

    def read(self, index: int) -> np.ndarray:
        images = self._opened()[self._triples[self._check_index(index)]]
        return np.ascontiguousarray(images[..., 0].transpose(1, 2, 0))

    def item_name(self, index: int) -> str:
        return f'{self._files[0]}[{",".join(map(str, self._triples[index]))}]'


def mnist_rgb(path: str, num_images: int = 1000000, random_seed: int = 123) -> MnistRgbSource:
    """Stacked MNIST, [32, 32, 3]: image after image, three random MNIST images are its channels R, G, B.

    The indices come from RandomState(random_seed), three for each image in turn, with replacement. No labels.
    """
    if not 1 <= num_images <= 100_000_000 or not 0 <= random_seed < 2**32:
        raise UserError('mnist_rgb needs num_images from 1 to 100000000 and random_seed from 0 to 2^32 - 1; '
                        f'received {num_images} and {random_seed}')
    return MnistRgbSource(path, num_images, random_seed)


def _load_svhn(path: str) -> np.ndarray:
    """uint8 [N, 32, 32, 3]."""
    return np.ascontiguousarray(_read_mat(path, 'X').transpose(3, 0, 1, 2))


def _read_mat(path: str, name: str) -> np.ndarray:
    """The array X (images) or y (labels) of an SVHN file."""
    import scipy.io
    try:
        shapes = {key: (shape, kind) for key, shape, kind in scipy.io.whosmat(path)}
        shape, kind = shapes.get(name, ((), 'missing'))
        expected = (32, 32, 3, shape[-1]) if name == 'X' and len(shape) == 4 else (max(shape, default=0), 1)
        if shape != expected or not 0 < shape[0 if name == 'y' else 3] <= 1_000_000 \
                or (kind != 'uint8' and name == 'X'):
            raise UserError(f'{path}: {name} is {kind} {list(shape)}; expected X uint8 [32, 32, 3, N] and y '
                            '[N, 1], the cropped digits (format 2) of SVHN.')
        return scipy.io.loadmat(path, variable_names=[name])[name]
    except UserError:
        raise
    except Exception as error:  # scipy raises anything on damaged files.
        reason = ' '.join(str(error).split())[:160] or type(error).__name__
        raise UserError(f'{path} is damaged or not a MATLAB file of version 5 ({reason}); download it '
                        'again.') from error


def svhn(path: str) -> ArraySource:
    """SVHN, cropped digits for training: [32, 32, 3], classes 0 to 9 (the publisher's 10 is the digit 0).

    Args:
        path: Folder with train_32x32.mat, or that file (or another in its format, such as extra_32x32.mat).
    """
    is_file = os.path.isfile(path) and path.endswith('.mat')
    path = path if is_file else find_file(path, ['train_32x32.mat'], 'SVHN')
    images, labels = _load_svhn(path), _read_mat(path, 'y').reshape(-1)
    if len(labels) != len(images) or labels.dtype.kind not in 'iuf' \
            or not np.isin(labels, np.arange(1, 11)).all():
        raise UserError(f'{path}: y holds {len(labels)} labels; expected {len(images)}, each from 1 to 10.')
    return ArraySource('svhn', functools.partial(_load_svhn, path), [(path, len(images))],
                       f'{path}: {len(images)} training images of SVHN', images,
                       labels=labels.astype(np.int64) % 10, label_names=[str(i) for i in range(10)])


class _Hdf5Data(NamedTuple):
    """A data set of images in an HDF5 file: its name, shape, and whether channels come first."""

    name: str
    shape: tuple[int, ...]
    channels_first: bool


class Hdf5Source(Source):
    """Images of an HDF5 file, read where they lie; see `hdf5`."""

    def __init__(self, path: str) -> None:
        if not os.path.isfile(path):
            raise UserError(f'there is no HDF5 file {path}; check the path.')
        self._path = path
        name = os.path.splitext(os.path.basename(path))[0]
        super().__init__(name, (0, 0, 0), '')
        try:
            self._data = _choose(_list_arrays(self._opened(), path), path)
            count, *shape = self._data.shape
            if len(shape) == 2:
                shape.append(1)
            elif self._data.channels_first:
                shape = [*shape[1:], shape[0]]
            self.shape, self._count = shape, count
            self.labels = self._load_labels()
        except UserError:
            self.close()
            raise
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            self.close()
            raise UserError(f'{path} is damaged: {error}') from error
        self.description = f'{path}: {self._data.name}, {count} images'

    def __len__(self) -> int:
        return self._count

    def _open(self) -> Any:
        try:
            import h5py
        except ImportError as error:
            raise missing_extra('h5py', error) from error
        try:
            return h5py.File(self._path, 'r', rdcc_nbytes=_CHUNK_CACHE)
        except OSError as error:
            raise UserError(f'{self._path} is not an HDF5 file, or it is truncated: {error}') from error

    def item_name(self, index: int) -> str:
        return f'{self._path}: {self._data.name}[{index}]'

    def read(self, index: int) -> np.ndarray:
        index = self._check_index(index)
        try:
            image = self._opened()[self._data.name][index]
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise UserError(f'{self.item_name(index)} cannot be read: {error}') from error
        if image.ndim == 2:
            image = image[:, :, None]
        elif self._data.channels_first:
            image = image.transpose(1, 2, 0)
        return np.ascontiguousarray(image)

    def _load_labels(self) -> np.ndarray | None:
        """<name>-labels.npy beside the file, else the array `labels` in it."""
        path = os.path.splitext(self._path)[0] + '-labels.npy'
        if os.path.exists(path):
            try:
                labels = np.load(path, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise UserError(f'{path} is not a NumPy array file of numbers: {error}') from error
        else:
            path = f'{self._path}: labels'
            arrays = [data for data in _list_arrays(self._opened(), self._path) if data.name == '/labels']
            if not arrays or len(arrays[0].shape) > 2 or arrays[0].shape[0] != self._count:
                return None
            labels = arrays[0][...]
        if not isinstance(labels, np.ndarray) or labels.dtype.kind not in 'iuf' or labels.ndim not in (1, 2) \
                or len(labels) != self._count or (labels.ndim == 1 and labels.dtype.kind == 'f'):
            shape = list(getattr(labels, 'shape', []))
            raise UserError(f'{path} has shape {shape}; expected {self._count} integers or [{self._count}, '
                            'components], as many as images.')
        if labels.ndim == 2:
            return labels.astype(np.float32)
        if labels.min() < 0 or labels.max() >= max(self._count, 10000):
            raise UserError(f'{path} has labels from {labels.min()} to {labels.max()}; expected integers '
                            'from 0.')
        return labels.astype(np.int64)


def _list_arrays(file: Any, path: str) -> list[Any]:
    """All data sets in the file itself; links to other files are not followed."""
    import h5py
    found, groups, seen = [], [file], set()
    for _ in range(_MAX_LINKS):
        if not groups:
            return found
        group = groups.pop()
        if group.id in seen:
            continue
        seen.add(group.id)
        for key in group:
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                continue
            item = group[key]
            if isinstance(item, h5py.Group):
                groups.append(item)
            elif isinstance(item, h5py.Dataset) and not item.external and not item.is_virtual:
                found.append(item)
    raise UserError(f'{path} has more than {_MAX_LINKS} groups; expected a file of images.')


def _choose(arrays: list[Any], path: str) -> _Hdf5Data:
    """The official layout: the largest of data<S>x<S> [N, C, S, S]. Else the one array of images."""
    official = [data for data in arrays if re.fullmatch(r'/data\d+x\d+', data.name) and _is_image(data, 1)]
    if official:
        largest = max(official, key=lambda data: data.shape[3])
        return _Hdf5Data(largest.name, largest.shape, True)
    images = [data for data in arrays if _is_image(data, 1) or _is_image(data, 3) or (
        len(data.shape) == 3 and data.dtype == np.uint8 and data.size > 0
        and math.prod(data.shape[1:]) <= MAX_PIXELS)]
    if len(images) != 1:
        there = [f'{data.name} {data.dtype} {list(data.shape)}' for data in arrays[:8]]
        raise UserError(f'{path} has {len(images)} arrays of images; expected data1024x1024 and the like, or '
                        f'one array uint8 [N, H, W, C], [N, C, H, W] or [N, H, W]. It holds '
                        f'{", ".join(there) or "no arrays"}.')
    data = images[0]
    if len(data.shape) == 4 and _is_image(data, 1) and _is_image(data, 3):
        raise UserError(f'{path}: {data.name} has shape {list(data.shape)}, where the channels may be first '
                        'or last; store it as /data<S>x<S> with channels first.')
    return _Hdf5Data(data.name, data.shape, len(data.shape) == 4 and _is_image(data, 1))


def _is_image(data: Any, axis: int) -> bool:
    return (len(data.shape) == 4 and data.dtype == np.uint8 and data.shape[axis] in (1, 3, 4)
            and data.size > 0 and math.prod(data.shape[1:]) <= 4 * MAX_PIXELS)


def hdf5(path: str) -> Hdf5Source:
    """Images of an HDF5 file: the largest data<S>x<S> [N, C, S, S] as official tools write it, or the one
    array uint8 [N, H, W, C], [N, C, H, W] or [N, H, W]. Labels: <name>-labels.npy beside it, else `labels`
    in it.
    """
    return Hdf5Source(path)
