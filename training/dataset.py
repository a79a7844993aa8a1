"""Data sets: TFRecord folders, folders or zips of images, NPZ files, the embedded one; see `load_dataset`."""

import os
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError, gfile, is_remote_path
from training.datasets.base import EMBEDDED_NAME, Dataset, check_reader_arguments, reduce_images
from training.datasets.folder import ImageFolderDataset
from training.datasets.npz import NpzDataset
from training.datasets.prefetch import Prefetcher
from training.datasets.records import TFRecordDataset

__all__ = ['Dataset', 'ImageFolderDataset', 'NpzDataset', 'Prefetcher', 'TFRecordDataset', 'describe',
           'keep_open', 'load_dataset', 'opened_dataset', 'process_reals', 'reduce_images']

EMBEDDED_LABEL_ATTR = 'skinColor'


def load_dataset(
    data_dir: str | None = None,
    dataset: str | None = None,
    resolution: int | None = None,
    max_label_size: int | str = 0,
    seed: int = 0,
    verbose: bool = False,
    *,
    tfrecord_dir: str | None = None,
    label_file: str | None = None,
    label_attr: str | None = None,
    max_images: int | None = None,
    label_sampling: str = 'data',
    skip_bad: bool = False,
    channels: int | None = None,
    **reader: Any,
) -> Dataset:
    """Opens a data set by its path.

    The path is data_dir/dataset, or the one of them that is given. With neither, or with dataset
    'pixelart32' alone, it is the embedded data set: 4096 RGB images of 32×32 pixels. What lies at the path
    decides: a folder with *.tfrecords files, another folder or a .zip file (searched for images in all its
    subfolders), or an .npz file.

    Args:
        data_dir: Folder that holds data sets.
        dataset: Name of the data set in that folder.
        resolution: Side of the images; smaller than the data: 2×2 averages. None: that of the data.
        max_label_size: 0 = no labels, 'full' = all label components, 'auto' = all if there are any, n = the
            first n components.
        seed: Default seed of the order of images.
        verbose: Print what was found.
        tfrecord_dir: Official name of `dataset`.
        label_file: Labels of a TFRecord folder, if not its only *.labels file; a .csv or .json file with the
            labels of images, if not labels.csv or dataset.json beside them.
        label_attr: Attribute of an .npz file that serves as label ('attr/<name>' there).
        max_images: Use the first images only.
        label_sampling: Labels that the generator is trained with: 'data' as frequent as in the data set,
            'uniform' each label that occurs as often as any other.
        skip_bad: Leave out records and images that are damaged or do not fit, with a warning, instead of
            stopping. What is found out at the start does not count at all; later the next good image of the
            order takes the place of a bad one, so that a run still resumes exactly.
        channels: Of a folder or zip of images: 1 (gray), 3 (RGB) or 4 (RGBA). None: 1 if all are gray,
            else 3.
        **reader: Official arguments about reading, see `base.check_reader_arguments`.

    Errors: UserError, naming the file and what is wrong with it.
    """
    check_reader_arguments(reader)
    dataset = tfrecord_dir if dataset is None else dataset
    options = dict(resolution=resolution, max_label_size=max_label_size, max_images=max_images, seed=seed,
                   label_sampling=label_sampling)
    path = _find(data_dir, dataset)
    if path is None:
        path = str(pathlib.Path(__file__).parent / 'data' / f'{EMBEDDED_NAME}.npz')
        label_attr = label_attr or EMBEDDED_LABEL_ATTR
    is_dir, names = _list(path)
    is_npz = not is_dir and path.lower().endswith('.npz')
    is_zip = not is_dir and path.lower().endswith('.zip')
    is_tfrecord = is_dir and any(name.endswith('.tfrecords') for name in names)
    if label_attr and not is_npz:
        raise UserError(f'label_attr={label_attr!r} needs an .npz file with attributes; {path} is not one.')
    if label_file and is_npz:
        raise UserError(f'label_file={label_file!r} goes with a folder or zip; {path} has labels inside, see '
                        'label_attr.')
    if channels and (is_npz or is_tfrecord):
        raise UserError(f'channels={channels} goes with a folder or zip of images; {path} has the channels '
                        'that it was written with.')
    if is_tfrecord:
        found = TFRecordDataset(path, label_file=label_file, skip_bad=skip_bad, **options)
    elif is_dir or is_zip:
        found = ImageFolderDataset(path, label_file=label_file, skip_bad=skip_bad, channels=channels,
                                   **options)
    elif is_npz:
        found = NpzDataset(path, label_attr=label_attr, **options)
    else:
        advice = 'give the folder that holds it' if path.endswith('.tfrecords') else 'unpack or convert it'
        raise UserError(f'{path} is a file; expected a folder of .tfrecords files, a folder or zip of images '
                        f'or an .npz file: {advice}.')
    found.path = path
    if verbose:
        describe(found)
    return found


# A data set that was opened to look at it, for the run that follows: a folder of very many images takes its
# time to look through. (arguments, data set).
_kept: list[tuple[str, Dataset]] = []


def keep_open(opened: Dataset, /, **arguments: Any) -> None:
    """Leaves an open data set to the next call of `opened_dataset` with the same arguments."""
    for _, other in _kept:
        if other is not opened:
            other.close()
    _kept[:] = [(repr(sorted(arguments.items())), opened)]


def opened_dataset(**arguments: Any) -> Dataset:
    """`load_dataset`, or the data set that was kept open with these arguments; it is the caller's then."""
    key = repr(sorted(arguments.items()))
    for kept, opened in _kept:
        if kept == key:
            _kept.clear()
            return opened
    return load_dataset(**arguments)


def _find(data_dir: str | None, dataset: str | None) -> str | None:
    """Path of the data set, without a slash at its end; None for the embedded one."""
    if not data_dir and dataset in (None, '', EMBEDDED_NAME):
        return None
    parts = [os.path.expanduser(os.fspath(part)) for part in (data_dir, dataset) if part]
    return os.path.join(*parts).rstrip('/') or '/'


def _list(path: str) -> tuple[bool, list[str]]:
    """(is a directory, names in it). Errors: UserError if nothing is there."""
    files = gfile() if is_remote_path(path) else None
    is_dir = files.isdir(path) if files else os.path.isdir(path)
    if is_dir:
        return True, [name.rstrip('/') for name in (files.listdir(path) if files else os.listdir(path))]
    if not (files.exists(path) if files else os.path.exists(path)):
        parent = os.path.dirname(path)
        there = ''
        if not files and os.path.isdir(parent):
            names = sorted(name for name in os.listdir(parent) if not name.startswith('.'))
            names = names[:10] + ['...'] * (len(names) > 10)
            there = f' {parent} holds: {", ".join(names)}.' if names else ''
        raise UserError(f'there is no data set at {path}. Check the path.{there}')
    return False, []


def describe(dataset: Dataset) -> None:
    """Prints what a data set holds, the number of images of every class among it."""
    print(f'Data set {dataset.name} from {dataset.path}')
    print(f'Images: {len(dataset)}, shape [C, H, W] = {dataset.shape}, dynamic range {dataset.dynamic_range}')
    print(f'Label size: {dataset.label_size}')
    if dataset.label_size and dataset.label_sampling != 'data':
        print(f'Labels of generated images: {dataset.label_sampling}, one of {len(dataset.label_table)}')
    for name, count in dataset.class_counts().items():
        print(f'  class {name}: {count} images')


def process_reals(
    images: tf.Tensor | np.ndarray,
    lod: float | tf.Tensor = 0.0,
    mirror: tf.Tensor | np.ndarray | None = None,
    drange_net: tuple[float, float] = (-1, 1),
    lod_floor: int | None = None,
) -> tf.Tensor:
    """What happens to real images before the discriminator sees them (Progressive GAN, section 2, figure 2).

    Images are taken to be at level of detail floor(lod) already. Dynamic range [0, 255] → `drange_net`;
    mirroring; cross-fade with the 2×2 averages by the fraction of lod; nearest-neighbour upscaling by
    2^floor(lod).

    Args:
        images: uint8 [N, H, W, C].
        lod: Level of detail. A tensor lets one traced function serve all fractions; it needs `lod_floor`.
        mirror: bool [N], images to mirror from left to right, or None.
        drange_net: Dynamic range of the networks.
        lod_floor: floor(lod), for a tensor `lod`.

    Returns: float32 [N, H·2^floor(lod), W·2^floor(lod), C].
    Errors: ValueError for a tensor `lod` without `lod_floor`.
    """
    static_lod = tf.get_static_value(lod) if tf.is_tensor(lod) else lod
    if lod_floor is None:
        if static_lod is None:
            raise ValueError('process_reals: a symbolic lod needs lod_floor, which decides the output shape')
        lod_floor = int(np.floor(static_lod))
    scale = (drange_net[1] - drange_net[0]) / 255
    x = tf.cast(images, tf.float32) * scale + float(drange_net[0])
    if mirror is not None:
        x = tf.where(tf.reshape(mirror, [-1, 1, 1, 1]), tf.reverse(x, axis=[2]), x)
    if static_lod is None or static_lod != lod_floor:
        coarse = _upscale(tf.nn.avg_pool2d(x, 2, 2, 'VALID'), 2)
        x = x + (coarse - x) * tf.cast(lod - lod_floor, tf.float32)
    return _upscale(x, 2 ** lod_floor)


def _upscale(x: tf.Tensor, factor: int) -> tf.Tensor:
    """Nearest neighbour, [N, H, W, C]."""
    return x if factor == 1 else tf.repeat(tf.repeat(x, factor, axis=1), factor, axis=2)
