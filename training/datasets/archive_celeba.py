"""CelebA (aligned and cropped) and CelebA-HQ."""

import io
import os
import re

import numpy as np

from dnnlib.util import UserError
from training.datasets.archive_base import Source
from training.datasets.image_files import ImageOptions, load_image
from training.datasets.image_folder import ImageFolderSource, ImageStore, image_folder

CELEBA_IMAGES = 202599
_PLACES = ('img_align_celeba_png', 'img_align_celeba', 'Img/img_align_celeba_png', 'Img/img_align_celeba',
           'img_align_celeba_png.zip', 'img_align_celeba.zip', 'Img/img_align_celeba.zip')
_CROP = 128


class CelebaSource(Source):
    """Crops of 128×128 pixels from the aligned images of 178×218; see `celeba`."""

    def __init__(self, path: str, cx: int, cy: int) -> None:
        if not (_CROP // 2 <= cx <= 178 - _CROP // 2 and _CROP // 2 <= cy <= 218 - _CROP // 2):
            raise UserError(f'cx and cy must keep the crop of {_CROP}x{_CROP} within 178x218 pixels: cx from '
                            f'64 to 114, cy from 64 to 154; received cx={cx}, cy={cy}.')
        self.store = _find_store(path)
        self._corner = cx - _CROP // 2, cy - _CROP // 2
        count = len(self.store)
        note = '' if count == CELEBA_IMAGES else f' (CelebA has {CELEBA_IMAGES})'
        super().__init__('celeba', (_CROP, _CROP, 3), f'{self.store.path}: {count} images{note}, '
                         f'{_CROP}x{_CROP} around x={cx}, y={cy}')

    def __len__(self) -> int:
        return len(self.store)

    def item_name(self, index: int) -> str:
        return self.store.item_name(index)

    def close(self) -> None:
        self.store.close()

    def read(self, index: int) -> np.ndarray:
        name = self.store.names[self._check_index(index)]
        location = self.store.location(name)
        pixels = load_image(self.store.source(name), location, ImageOptions(channels=3))
        if pixels.shape[:2] != (218, 178):
            raise UserError(f'{location} has {pixels.shape[1]}x{pixels.shape[0]} pixels; the aligned images '
                            'of CelebA have 178x218. For other images use create_from_images.')
        left, top = self._corner
        return np.ascontiguousarray(pixels[top:top + _CROP, left:left + _CROP])


def _find_store(path: str) -> ImageStore:
    if os.path.isdir(path):
        for place in _PLACES:
            found = os.path.join(path, *place.split('/'))
            if os.path.exists(found):
                return ImageStore(found)
    return ImageStore(path)


def celeba(path: str, cx: int = 89, cy: int = 121) -> CelebaSource:
    """CelebA, aligned and cropped: 128×128 pixels around (cx, cy) of each image.

    Args:
        path: img_align_celeba as folder (PNG or JPEG) or zip, or the folder that holds it.
        cx, cy: Centre of the crop.
    """
    return CelebaSource(path, cx, cy)


class NpyFolderSource(Source):
    """A folder of .npy files, each uint8 [3, S, S] or [1, 3, S, S]."""

    def __init__(self, path: str, names: list[str], side: int) -> None:
        super().__init__('celebahq', (side, side, 3), f'{path}: {len(names)} images')
        self._path, self._names = path, names

    def __len__(self) -> int:
        return len(self._names)

    def item_name(self, index: int) -> str:
        return os.path.join(self._path, self._names[self._check_index(index)])

    def read(self, index: int) -> np.ndarray:
        path = self.item_name(index)
        side = self.shape[0]
        size = side * side * 3
        try:
            if os.path.getsize(path) > size + 65536:
                raise UserError(f'{path} has more bytes than an image of {side}x{side} pixels.')
            with open(path, 'rb') as file:
                image = np.load(io.BytesIO(file.read()), allow_pickle=False)
        except UserError:
            raise
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f'{path} cannot be read as a NumPy array: {error}') from error
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.size != size \
                or image.shape[-3:] != (3, side, side):
            raise UserError(f'{path} is no uint8 array of shape [3, {side}, {side}]; replace it.')
        return np.ascontiguousarray(image.reshape(3, side, side).transpose(1, 2, 0))


def celebahq(celeba_dir: str, delta_dir: str | None = None) -> ImageFolderSource | NpyFolderSource:
    """CelebA-HQ from finished images of 1024×1024 pixels: img00000000.png, ... (any image format, or a zip),
    or imgHQ00000.npy, ...

    The images are looked for in celeba_dir and then in delta_dir. Making them from CelebA in the wild and the
    published deltas is not part of this tool: a delta only fits the one sequence of roundings that a certain
    libjpeg and a certain Pillow make, which is why the official recipe checks each step by MD5.

    Errors: UserError that says which files are needed and what was found instead.
    """
    for path in filter(None, (celeba_dir, delta_dir)):
        if not os.path.exists(path):
            raise UserError(f'there is nothing at {path}. {_needed("")}')
    for path in filter(None, (celeba_dir, delta_dir)):
        if os.path.isfile(path):
            return _checked_images(path)
        names = sorted(name for name in os.listdir(path) if not name.startswith('.'))
        arrays = [name for name in names if re.fullmatch(r'(img|imgHQ)[0-9]+\.npy', name)]
        if arrays:
            return NpyFolderSource(path, arrays, 1024)
        if any(re.fullmatch(r'(img)?[0-9]+\.(png|jpe?g|webp)', name.lower()) for name in names):
            return _checked_images(path)
    found = _describe_parts(celeba_dir, delta_dir)
    raise UserError(_needed(found))


def _checked_images(path: str) -> ImageFolderSource:
    source = image_folder(path, ImageOptions(channels=3), labels='none')
    source.name = 'celebahq'
    if source.shape[:2] != [1024, 1024]:
        raise UserError(f'{source.item_name(0)} has {source.shape[1]}x{source.shape[0]} pixels. '
                        f'{_needed(f"{path} holds other images")}')
    return source


def _needed(found: str) -> str:
    found = f' (found: {found})' if found else ''
    return ('CelebA-HQ needs its finished images of 1024x1024 pixels, img00000000.png ... or imgHQ00000.npy '
            f'..., in a folder or zip{found}. Deltas only fit what the official preparation makes of CelebA '
            'in the wild, by their landmarks, with its versions of libjpeg and Pillow: run it, then '
            'give its images here, or its .h5 file to create_from_hdf5.')


def _describe_parts(celeba_dir: str, delta_dir: str | None) -> str:
    parts = []
    for path in filter(None, (celeba_dir, delta_dir)):
        names = os.listdir(path)
        deltas = sum(re.fullmatch(r'deltas?[0-9]+\.(zip|dat)', name) is not None for name in names)
        if deltas:
            parts.append(f'{deltas} delta file{"s" * (deltas > 1)} in {path}')
        for name in ('img_celeba', 'img_celeba.7z', 'image_list.txt', 'Anno'):
            if name in names:
                parts.append(os.path.join(path, name))
        parts += [os.path.join(path, name) for name in names if name.endswith('.h5')]
    return ', '.join(parts)
