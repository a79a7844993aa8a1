"""The kinds of data sets: official TFRecord folders, NPZ files, folders of images."""

import concurrent.futures
import fnmatch
import io
import json
import os
import threading
import zipfile
import zlib
from typing import Any

import numpy as np
import PIL.Image
import tqdm

from dnnlib.util import UserError, gfile, is_remote_path
from training.dataset_base import (
    Dataset,
    check_image_size,
    check_max_label_size,
    check_resolution,
    one_hot,
    reduce_images,
)
from training.tfrecord import ImageRecords

IMAGE_EXTENSIONS = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif', '.tif', '.tiff')
_GRAY_MODES = ('1', 'L', 'LA')
_DEEP_MODES = ('I', 'F', 'I;16', 'I;16B', 'I;16L', 'I;16N')
_CACHE_BYTES = 256 << 20    # Decoded images of a folder are kept in memory up to this size.
_CHECKED_ALPHA = 64         # Images with an alpha channel that are decoded at start-up, to fail early.


def _read_bytes(path: str) -> bytes:
    with (gfile().GFile(path, 'rb') if is_remote_path(path) else open(path, 'rb')) as file:
        return file.read()


def _name_of(path: str) -> str:
    name = os.path.basename(path.rstrip('/'))
    return name[:-len('.npz')] if name.lower().endswith('.npz') else name


def _limit(available: int, max_images: int | None) -> int:
    if max_images is not None and max_images < 1:
        raise UserError(f'max_images must be 1 or larger; received {max_images}')
    return available if max_images is None else min(available, max_images)


def _check_label_rows(labels: np.ndarray, num_images: int, label_path: str, image_path: str) -> None:
    if labels.ndim != 2 or len(labels) != num_images:
        raise UserError(f'{label_path} holds labels of shape {list(labels.shape)}, but {image_path} holds '
                        f'{num_images} images; expected [{num_images}, components]. One of the two is cut '
                        'off or from another data set.')


class TFRecordDataset(Dataset):
    """Folder written by the official dataset_tool: `<name>-rNN.tfrecords` per level and `<name>-rxx.labels`.

    Opening reads the first record of each file; images are read where they lie.

    Args:
        tfrecord_dir: The folder.
        resolution: Level to read; None for the largest.
        label_file: NumPy file float32 [N, components]; None for the *.labels file of the folder.
        max_label_size, max_images, seed: See `load_dataset`.
        verify: Checking of the images' checksums, see `tfrecord.RecordFile`.

    Errors: UserError, naming the file, the record and what is wrong with it.
    """

    def __init__(
        self,
        tfrecord_dir: str,
        resolution: int | None = None,
        label_file: str | None = None,
        max_label_size: int | str = 0,
        max_images: int | None = None,
        seed: int = 0,
        verify: bool | str = 'first',
    ) -> None:
        self.tfrecord_dir = tfrecord_dir
        remote = is_remote_path(tfrecord_dir)
        names = sorted(gfile().listdir(tfrecord_dir) if remote else os.listdir(tfrecord_dir))
        levels = {}
        for name in fnmatch.filter(names, '*.tfrecords'):
            if name.startswith('.'):
                continue
            level = ImageRecords(os.path.join(tfrecord_dir, name), verify)
            other = levels.setdefault(level.shape[1], level)
            if other is not level:
                raise UserError(f'{other.path} and {level.path} both hold images of {level.shape[1]} pixels; '
                                'keep one file per resolution.')
        if not levels:
            raise UserError(f'{tfrecord_dir} holds no .tfrecords files.')
        size = resolution or max(levels)
        if size not in levels:
            there = ', '.join(f'{level}x{level}' for level in sorted(levels))
            raise UserError(f'{tfrecord_dir} has no level of {size}x{size} pixels; it has {there}.')
        self._levels = levels
        main = levels[size]
        for level in levels.values():
            if len(level) != len(main) or level.shape[0] != main.shape[0]:
                raise UserError(f'{level.path} holds {len(level)} images of {level.shape[0]} channels, but '
                                f'{main.path} holds {len(main)} of {main.shape[0]}. One of them is cut '
                                'off or from another data set: copy it again or rebuild the data set.')
        labels = self._load_labels(names, label_file, len(main), main.path)
        count = _limit(len(main), max_images)
        super().__init__(
            _name_of(tfrecord_dir), main.shape, count, None if labels is None else labels[:count],
            max_label_size=max_label_size, seed=seed,
            how_to_label=f'Put a *.labels file (NumPy float32 array of {len(main)} rows) into '
                         f'{tfrecord_dir}, or train without labels.')

    def _load_labels(
        self, names: list[str], label_file: str | None, count: int, records: str,
    ) -> np.ndarray | None:
        if label_file is None:
            found = [name for name in fnmatch.filter(names, '*.labels') if not name.startswith('.')]
            if not found:
                return None
            if len(found) > 1:
                raise UserError(f'{self.tfrecord_dir} holds several label files ({", ".join(found)}); '
                                'choose one with label_file.')
            label_file = found[0]
        if is_remote_path(label_file) or os.path.exists(label_file):
            path = label_file
        else:
            path = os.path.join(self.tfrecord_dir, label_file)
        try:
            labels = np.load(io.BytesIO(_read_bytes(path)), allow_pickle=False)
            labels = labels.astype(np.float32)
        except (ValueError, EOFError, AttributeError) as error:
            raise UserError(f'{path} is not a NumPy array file of numbers: {error}') from error
        _check_label_rows(labels, count, path, records)
        return labels

    def close(self) -> None:
        """Releases open files."""
        for level in self._levels.values():
            level.close()

    def _read_images(self, indices: np.ndarray, lod: int) -> np.ndarray:
        level = self._levels.get(self.resolution >> lod)
        if level is not None:
            return level.read(indices)
        return reduce_images(self._levels[self.resolution].read(indices), lod)


class NpzDataset(Dataset):
    """NPZ file with `images` uint8 [N, H, W, C] or [N, H, W], held in memory.

    Labels come from `labels` (int [N] or one-hot float [N, components]), or from an attribute: `attr/<name>`
    holds indices into `values/<name>`.

    Args:
        path: The file.
        label_attr: Attribute that serves as label; None for the array `labels`.
        resolution, max_label_size, max_images, seed: See `load_dataset`.

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
    ) -> None:
        self.path = path
        check_max_label_size(max_label_size)
        try:
            source = io.BytesIO(_read_bytes(path)) if is_remote_path(path) else path
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
        count = _limit(len(images), max_images)
        images = images[:count]
        if levels:
            images = np.concatenate([reduce_images(images[i:i + 256], levels) for i in range(0, count, 256)])
        self._images = images
        how = f'use one of the attributes with label_attr: {", ".join(attributes)}' if attributes else \
            'add an array "labels" with one integer per image'
        super().__init__(
            _name_of(path), [images.shape[3], *self._images.shape[1:3]], count,
            None if labels is None else labels[:count], label_names, max_label_size, seed,
            how_to_label=f'For {path}: {how}, or train without labels.')

    def _load_images(self, file: Any) -> np.ndarray:
        if 'images' not in file.files:
            raise UserError(f'{self.path} has no array "images"; it has {", ".join(file.files) or "none"}.')
        images = file['images']
        images = images[..., None] if images.ndim == 3 else images
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise UserError(f'{self.path}: "images" is {images.dtype} {list(images.shape)}; expected uint8 '
                            '[N, H, W, 3], [N, H, W, 1] or [N, H, W].')
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
        if labels.ndim == 1 and len(labels) == count:
            labels = one_hot(labels, where, None if names is None else len(names))
        _check_label_rows(labels, count, where, self.path)
        return labels.astype(np.float32), names

    def _read_images(self, indices: np.ndarray, lod: int) -> np.ndarray:
        return reduce_images(self._images[indices], lod)


class ImageFolderDataset(Dataset):
    """Folder of image files, in any depth of subfolders, ordered by their names; hidden files are ignored.

    All gray: 1 channel; else everything becomes RGB. Labels come from a file dataset.json,
    {"labels": [[file, class], ...]}, or else from the first level of subfolders: one class each, by name.

    Args:
        path: The folder.
        resolution, max_label_size, max_images, seed: See `load_dataset`.

    Errors: UserError, naming the file and what is wrong with it.
    """

    def __init__(
        self,
        path: str,
        resolution: int | None = None,
        max_label_size: int | str = 0,
        max_images: int | None = None,
        seed: int = 0,
    ) -> None:
        self.path = path
        check_max_label_size(max_label_size)
        self._files = self._find_files()
        if not self._files:
            raise UserError(f'{path} holds no data set: neither .tfrecords files nor images '
                            f'({", ".join(IMAGE_EXTENSIONS)}) in it or its subfolders.')
        labels, names = self._load_labels() if max_label_size else (None, None)
        self._files = self._files[:_limit(len(self._files), max_images)]
        size, gray = self._scan()
        self._mode = 'L' if gray else 'RGB'
        self._native = size
        self._reduce = check_resolution(resolution, size, f'the images in {path},')
        size >>= self._reduce
        count = len(self._files)
        super().__init__(
            _name_of(path), [1 if gray else 3, size, size], count,
            None if labels is None else labels[:count], names, max_label_size, seed,
            how_to_label='Sort all images into one subfolder per class (two or more), add a file '
                         'dataset.json with {"labels": [["image.png", 0], ...]}, or train without labels.')
        self._lock = threading.Lock()
        self._cached = np.zeros(count, bool)
        shape = [count, size, size, self.shape[0]]
        self._cache = np.empty(shape, np.uint8) if np.prod(shape) <= _CACHE_BYTES else None

    def _find_files(self) -> list[str]:
        """Relative paths of all images, with forward slashes, sorted."""
        found = []
        for folder, subfolders, names in (gfile().walk if is_remote_path(self.path) else os.walk)(self.path):
            subfolders[:] = [name for name in subfolders if not name.startswith('.')]
            relative = os.path.relpath(folder, self.path).replace(os.sep, '/')
            prefix = '' if relative == '.' else relative + '/'
            if any(part.startswith('.') for part in prefix.split('/')):
                continue
            found += [prefix + name for name in names
                      if not name.startswith('.') and name.lower().endswith(IMAGE_EXTENSIONS)]
        return sorted(found)

    def _load_labels(self) -> tuple[np.ndarray | None, list[str] | None]:
        json_path = os.path.join(self.path, 'dataset.json')
        if gfile().exists(json_path) if is_remote_path(json_path) else os.path.exists(json_path):
            labels = self._labels_from_json(json_path)
            if labels is not None:
                return labels, None
        folders = sorted({name.partition('/')[0] for name in self._files if '/' in name})
        outside = [name for name in self._files if '/' not in name]
        if not folders or (len(folders) == 1 and not outside):
            return None, None
        if outside:
            raise UserError(f'{self.path}: labels from subfolders need every image in a subfolder; '
                            f'{outside[0]} is not in one ({len(outside)} such images).')
        index = {name: i for i, name in enumerate(folders)}
        classes = np.array([index[name.partition('/')[0]] for name in self._files])
        return one_hot(classes, self.path, len(folders)), folders

    def _labels_from_json(self, json_path: str) -> np.ndarray | None:
        try:
            entries = json.loads(_read_bytes(json_path).decode('utf-8'))['labels']
            if entries is None:
                return None
            by_name = {str(name).replace('\\', '/'): label for name, label in entries}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{json_path} is not of the form {{"labels": [["image.png", 0], ...]}}: '
                            f'{error!r}') from error
        missing = [name for name in self._files if name not in by_name]
        if missing:
            raise UserError(f'{json_path} has no label for {len(missing)} of {len(self._files)} images, for '
                            f'example {missing[0]}.')
        values = [by_name[name] for name in self._files]
        if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            return one_hot(np.array(values), json_path)
        try:
            labels = np.array(values, np.float32)
        except (ValueError, TypeError):
            labels = np.zeros([0])
        if labels.ndim != 2:
            raise UserError(f'{json_path}: expected labels that are all integers, or lists of one length.')
        return labels

    def _file_path(self, name: str) -> str:
        return os.path.join(self.path, *name.split('/'))

    def _scan(self) -> tuple[int, bool]:
        """Reads the headers of all images: (side in pixels, all gray)."""
        first, gray, alpha = None, True, []
        quick = len(self._files) <= 2000
        for i, name in enumerate(tqdm.tqdm(self._files, desc='Checking images', unit='image', disable=quick)):
            path = self._file_path(name)
            with _open_image(path) as image:
                size, mode = image.size, image.mode
                has_alpha = _has_alpha(image)
            if mode in _DEEP_MODES:
                raise UserError(f'{path} has more than 8 bits per channel (mode {mode}); convert it to 8.')
            if first is None:
                check_image_size(*size, path)
                first = (path, size)
            if size != first[1]:
                raise UserError(f'{path} has {size[0]}x{size[1]} pixels, but {first[0]} has '
                                f'{first[1][0]}x{first[1][1]}; expected one size. Crop or resize the images.')
            gray &= mode in _GRAY_MODES
            if has_alpha:
                alpha.append(i)
        self._mode = 'L' if gray else 'RGB'
        for i in alpha[::max(len(alpha) // _CHECKED_ALPHA, 1)]:
            self._decode(self._files[i])
        return first[1][0], gray

    def _decode(self, name: str) -> np.ndarray:
        """uint8 [H, W, C] at the size of the file. Of an animation, the first picture."""
        path = self._file_path(name)
        with _open_image(path) as image:
            try:
                if _has_alpha(image):
                    image = image.convert('RGBA')
                    if image.getextrema()[3][0] < 255:
                        raise UserError(f'{path} has transparent pixels; expected an opaque image. Put it on '
                                        'a background of your choice and save it without the alpha channel.')
                pixels = np.asarray(image.convert(self._mode))
            except UserError:
                raise
            except (OSError, SyntaxError, ValueError) as error:
                raise UserError(f'{path} is damaged: {error}') from error
        return pixels[:, :, None] if pixels.ndim == 2 else pixels

    def _load(self, index: int) -> np.ndarray:
        if self._cache is not None and self._cached[index]:
            return self._cache[index]
        pixels = self._decode(self._files[index])
        if pixels.shape != (self._native, self._native, self.shape[0]):
            raise UserError(f'{self._file_path(self._files[index])} has changed since the start.')
        pixels = reduce_images(pixels[None], self._reduce)[0]
        if self._cache is not None:
            self._cache[index] = pixels
            self._cached[index] = True
        return pixels

    def _read_images(self, indices: np.ndarray, lod: int) -> np.ndarray:
        if self._cache is not None and self._cached[indices].all():
            return reduce_images(self._cache[indices], lod)
        return reduce_images(np.stack(list(self._pool().map(self._load, indices.tolist()))), lod)

    def _pool(self) -> concurrent.futures.ThreadPoolExecutor:
        """Threads that decode; Pillow lets them run side by side."""
        with self._lock:
            if not hasattr(self, '_threads'):
                self._threads = concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1), 'decode')
        return self._threads

    def close(self) -> None:
        """Releases the threads."""
        if hasattr(self, '_threads'):
            self._threads.shutdown()


def _has_alpha(image: PIL.Image.Image) -> bool:
    return image.mode in ('LA', 'La', 'PA', 'RGBA', 'RGBa') or 'transparency' in image.info


def _open_image(path: str) -> PIL.Image.Image:
    """Reads the header of an image file. Errors: UserError, naming the file."""
    try:
        return PIL.Image.open(io.BytesIO(_read_bytes(path)) if is_remote_path(path) else path)
    except (PIL.UnidentifiedImageError, PIL.Image.DecompressionBombError, SyntaxError, ValueError) as error:
        empty = os.path.isfile(path) and not os.path.getsize(path)
        problem = 'is empty' if empty else 'cannot be read as an image'
        raise UserError(f'{path} {problem}; replace or remove it.') from error
