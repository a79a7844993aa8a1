"""Data sets in folders or zip files of images, without conversion."""

import os

import numpy as np

from dnnlib.util import UserError, is_remote_path
from training.datasets.base import (
    Dataset,
    check_image_size,
    check_max_label_size,
    check_resolution,
    reduce_images,
)
from training.datasets.image_files import ImageOptions
from training.datasets.image_folder import image_folder, read_labels
from training.datasets.labels import check_classes
from training.datasets.npz import limit_images, name_of
from training.datasets.prefetch import map_in_threads

_CACHE_BYTES = 256 << 20    # Decoded images are kept in memory up to this size.


class ImageFolderDataset(Dataset):
    """Folder or zip of image files, in any depth of subfolders, ordered by their names.

    All gray: 1 channel; else everything becomes RGB, unless `channels` says more. Labels come from
    dataset.json or labels.csv in the folder, or else from the first level of subfolders: one class each.

    Args:
        path: The folder or zip.
        label_file: File of labels, .json or .csv; None to look in the folder.
        channels: 1, 3 or 4; None to look at the files. Transparent images need 4.
        resolution, max_label_size, max_images, seed, label_sampling, skip_bad: See `load_dataset`.

    Errors: UserError, naming the file and what is wrong with it.
    """

    def __init__(
        self,
        path: str,
        resolution: int | None = None,
        label_file: str | None = None,
        max_label_size: int | str = 0,
        max_images: int | None = None,
        seed: int = 0,
        label_sampling: str = 'data',
        skip_bad: bool = False,
        channels: int | None = None,
    ) -> None:
        self.path = path
        check_max_label_size(max_label_size)
        limit_images(1, max_images)
        where = _label_source(path, label_file) if max_label_size else 'none'
        self._source = image_folder(path, ImageOptions(channels=channels), where, max_images)
        self._items = self._usable(skip_bad)
        height, width, channels = self._source.shape
        check_image_size(width, height, self._source.item_name(int(self._items[0])))
        self._reduce = check_resolution(resolution, height, f'the images in {path},')
        self.full_resolution, size = height, height >> self._reduce
        labels = self._source.labels
        names = self._source.store.names
        if max_label_size and labels is None and any('/' in name for name in names):
            if any('/' not in name for name in names):
                read_labels(self._source.store, 'folders')      # Says which image is not in a subfolder.
        num_classes = None
        if labels is not None:
            labels = labels[self._items]
            if labels.ndim == 1:
                names = self._source.label_names
                labels, num_classes = check_classes(labels, path, None if names is None else len(names))
        count = len(self._items)
        super().__init__(
            name_of(path), [channels, size, size], count, labels, self._source.label_names, max_label_size,
            seed,
            how_to_label='Sort all images into one subfolder per class (two or more), add a file '
                         'dataset.json with {"labels": [["image.png", 0], ...]} or labels.csv with lines '
                         '`image.png,0`, or train without labels.',
            label_sampling=label_sampling, skip_bad=skip_bad, num_classes=num_classes)
        self._cached = np.zeros(count, bool)
        shape = [count, size, size, channels]
        self._cache = np.empty(shape, np.uint8) if np.prod(shape) <= _CACHE_BYTES else None

    def _usable(self, skip_bad: bool) -> np.ndarray:
        """Numbers of the images whose name and header show nothing wrong. Errors: UserError for others."""
        problems = self._source.problems
        if problems and not skip_bad:
            more = len(problems) - 1
            raise UserError(problems[min(problems)] + (
                f' ({more} more such {"images" if more > 1 else "image"}; --skip-bad leaves them out.)'
                if more else ' (--skip-bad leaves it out.)'))
        for i, index in enumerate(sorted(problems)):
            self._warn(f'left out: {problems[index]}', i + 1)
        if problems:
            print(f'{len(problems)} of {len(self._source)} images of {self.path} are left out.')
        items = np.array([i for i in range(len(self._source)) if i not in problems], np.int64)
        if not len(items):
            raise UserError(f'none of the {len(self._source)} images of {self.path} can be used; see the '
                            'warnings above.')
        return items

    def _load(self, index: int) -> np.ndarray:
        if self._cache is not None and self._cached[index]:
            return self._cache[index]
        pixels = reduce_images(self._source.read(int(self._items[index]))[None], self._reduce)[0]
        if self._cache is not None:
            self._cache[index] = pixels
            self._cached[index] = True
        return pixels

    def _read_images(self, indices: np.ndarray, lod: int) -> np.ndarray:
        if self._cache is not None and self._cached[indices].all():
            return reduce_images(self._cache[indices], lod)
        return reduce_images(np.stack(map_in_threads(self._load, indices.tolist())), lod)

    def close(self) -> None:
        """Releases open files."""
        super().close()
        self._source.close()


def _label_source(path: str, label_file: str | None) -> str:
    """What `image_folder.read_labels` is to read."""
    if label_file is None:
        return 'auto'
    inside = os.path.join(path, label_file)
    return label_file if is_remote_path(label_file) or not os.path.exists(inside) else inside
