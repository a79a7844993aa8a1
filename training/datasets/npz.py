"""Data sets in one .npz file, held in memory; what the kinds of data sets share about files."""

import io
import os
import zipfile
import zlib
from typing import Any

import numpy as np

from dnnlib.util import UserError, gfile, is_remote_path
from training.datasets.base import (
    Dataset,
    check_image_size,
    check_max_label_size,
    check_resolution,
    reduce_images,
)
from training.datasets.labels import check_classes


def read_bytes(path: str) -> bytes:
    """All bytes of a file, local or remote."""
    with (gfile().GFile(path, 'rb') if is_remote_path(path) else open(path, 'rb')) as file:
        return file.read()


def name_of(path: str) -> str:
    """The name of the data set at a path."""
    name = os.path.basename(path.rstrip('/'))
    return name[:-len('.npz')] if name.lower().endswith(('.npz', '.zip')) else name


def limit_images(available: int, max_images: int | None) -> int:
    """How many of the available images are used. Errors: UserError for less than one."""
    if max_images is not None and max_images < 1:
        raise UserError(f'max_images must be 1 or larger; received {max_images}')
    return available if max_images is None else min(available, max_images)


def check_label_rows(labels: np.ndarray, num_images: int, label_path: str, image_path: str) -> None:
    """Errors: UserError unless there is one class, or row of labels, for each image."""
    if labels.ndim not in (1, 2) or len(labels) != num_images:
        raise UserError(f'{label_path} holds labels of shape {list(labels.shape)}, but {image_path} holds '
                        f'{num_images} images; expected [{num_images}, components]. One of the two is cut '
                        'off or from another data set.')


class NpzDataset(Dataset):
    """NPZ file with `images` uint8 [N, H, W, C] or [N, H, W], held in memory.

    Labels come from `labels` (int [N] or one-hot float [N, components]), or from an attribute: `attr/<name>`
    holds indices into `values/<name>`.

    Args:
        path: The file.
        label_attr: Attribute that serves as label; None for the array `labels`.
        resolution, max_label_size, max_images, seed, label_sampling: See `load_dataset`.

    Errors: UserError, naming the file and what is wrong with it.
    """

    def __init__(
        self,
        path: str,
        resolution: int | None = None,
        label_attr: str | None = None,
        max_label_size: int | str = 0,
        max_images: int | None = None,
        seed: int = 0,
        label_sampling: str = 'data',
    ) -> None:
        self.path = path
        self._num_classes = None        # Where labels are classes.
        check_max_label_size(max_label_size)
        try:
            source = io.BytesIO(read_bytes(path)) if is_remote_path(path) else path
            with np.load(source, allow_pickle=False) as file:
                images = self._load_images(file)
                labels = label_names = None
                if max_label_size:
                    labels, label_names = self._load_labels(file, label_attr, len(images))
                attributes = sorted(key.partition('/')[2] for key in file.files if key.startswith('attr/'))
        except UserError:
            raise
        except (ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f'{path} is damaged or not an .npz file: {error}') from error
        levels = check_resolution(resolution, images.shape[1], f'the images in {path},')
        self.full_resolution = images.shape[1]
        count = limit_images(len(images), max_images)
        images = images[:count]
        if levels:
            images = np.concatenate([reduce_images(images[i:i + 256], levels) for i in range(0, count, 256)])
        self._images = images
        how = f'use one of the attributes with label_attr: {", ".join(attributes)}' if attributes else \
            'add an array "labels" with one integer per image'
        super().__init__(
            name_of(path), [images.shape[3], *self._images.shape[1:3]], count,
            None if labels is None else labels[:count], label_names, max_label_size, seed,
            how_to_label=f'For {path}: {how}, or train without labels.', label_sampling=label_sampling,
            num_classes=self._num_classes)

    def _load_images(self, file: Any) -> np.ndarray:
        if 'images' not in file.files:
            raise UserError(f'{self.path} has no array "images"; it has {", ".join(file.files) or "none"}.')
        images = file['images']
        images = images[..., None] if images.ndim == 3 else images
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3, 4):
            raise UserError(f'{self.path}: "images" is {images.dtype} {list(images.shape)}; expected uint8 '
                            '[N, H, W, C] with 1, 3 or 4 channels, or [N, H, W].')
        if not len(images):
            raise UserError(f'{self.path} holds no images.')
        check_image_size(images.shape[2], images.shape[1], f'{self.path}: each image')
        return images

    def _load_labels(
        self, file: Any, attr: str | None, count: int,
    ) -> tuple[np.ndarray | None, list[str] | None]:
        where = f'{self.path}: "attr/{attr}"' if attr else f'{self.path}: "labels"'
        names = None
        if attr is not None:
            if f'attr/{attr}' not in file.files or f'values/{attr}' not in file.files:
                there = sorted(key.partition('/')[2] for key in file.files if key.startswith('attr/'))
                raise UserError(f'{self.path} has no attribute {attr!r}; it has '
                                f'{", ".join(there) or "none"}.')
            labels, names = file[f'attr/{attr}'], [str(value) for value in file[f'values/{attr}']]
        elif 'labels' in file.files:
            labels = file['labels']
        else:
            return None, None
        check_label_rows(labels, count, where, self.path)
        if labels.ndim == 1:
            labels, self._num_classes = check_classes(labels, where, None if names is None else len(names))
        return labels, names

    def _read_images(self, indices: np.ndarray, lod: int) -> np.ndarray:
        return reduce_images(self._images[indices], lod)
