"""Reads every byte of a data set and says what is wrong with it."""

import io
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from dnnlib import startup
from dnnlib.util import UserError
from training.datasets.base import reduce_images
from training.datasets.labels import check_classes
from training.datasets.record_file import INDEX_SUFFIX, RecordFile
from training.datasets.tfrecord import ImageRecords
from training.datasets.worker_pool import Progress, default_workers, ordered_map
from training.datasets.writer import fingerprint, picture_digest

_TASK_BYTES = 16 << 20      # Pixels of the largest level that are checked at a time.
_PARALLEL_BYTES = 1 << 30   # From this size on processes are worth their start.
_MOST_PROBLEMS = 100        # More are counted only.
_INFO = ('num_images', 'shape', 'format', 'levels', 'shards', 'label_size', 'fingerprint')    # Compared.
_SHARD = re.compile(r'(.*)-(\d{5})-of-(\d{5})\.tfrecords')


def record_files(folder: str) -> tuple[dict[str, list[str]], list[str]]:
    """The files of records of each level of a folder, and what is wrong with their names.

    Returns: ({name without shard: paths in order}, problems).
    """
    groups, problems, shards = {}, [], {}
    for name in sorted(os.listdir(folder)):
        if not name.endswith('.tfrecords') or name.startswith('.'):
            continue
        match = _SHARD.fullmatch(name)
        if match:
            shards.setdefault(match[1], {}).setdefault(int(match[3]), set()).add(int(match[2]))
        groups.setdefault(match[1] if match else name.removesuffix('.tfrecords'), []).append(
            os.path.join(folder, name))
    for name, counts in shards.items():
        if len(counts) > 1 or os.path.join(folder, name + '.tfrecords') in groups[name]:
            problems.append(f'{folder}: {name} has files of several data sets: '
                            f'{", ".join(map(os.path.basename, groups[name][:4]))}, ...')
        for count, found in counts.items():
            problems += [f'{folder}: {name}-{shard:05}-of-{count:05}.tfrecords is missing'
                         for shard in range(count) if shard not in found]
    return groups, problems


class _Level(NamedTuple):
    """One level that could be opened."""

    name: str
    paths: list[str]
    shape: list[int]
    encoding: str
    count: int


class _Checked(NamedTuple):
    """What was found out about some images."""

    count: int
    problems: list[str]
    digests: bytes          # Of the largest level, for the fingerprint.
    other: dict[str, int]   # Level → images that are not the average of the largest level.


class _Checker:
    """The work of the worker processes."""

    def __init__(self, levels: list[_Level]) -> None:
        self._levels = levels
        self._records = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_records': None}

    def _open(self) -> None:
        startup.load_tensorflow()
        self._records = {level.name: ImageRecords(level.paths, True) for level in self._levels}
        self._files = [RecordFile(path, False) for path in self._levels[0].paths]

    def close(self) -> None:
        """Releases the files."""
        for file in [*self._records.values(), *self._files] if self._records else ():
            file.close()
        self._records = None

    def __call__(self, span: tuple[int, int]) -> _Checked:
        if self._records is None:
            self._open()
        problems, other, digests = [], {}, b''
        top = None
        for level in self._levels:
            indices = np.arange(span[0], min(span[1], level.count))
            if not len(indices):
                continue
            images, bad = _read_all(self._records[level.name], indices)
            problems += bad
            if top is None:
                top = images
                if level.encoding == 'jpeg' and images is not None:
                    pictures = [stored_picture(self._files, int(index))[0] for index in indices]
                else:
                    pictures = [None] * len(indices)
                if images is not None:
                    digests = b''.join(picture_digest(image, picture, level.encoding)
                                       for image, picture in zip(images, pictures, strict=True))
            elif top is not None and images is not None and level.encoding != 'jpeg':
                halvings = self._levels[0].shape[1].bit_length() - level.shape[1].bit_length()
                count = min(len(top), len(images))
                expected = reduce_images(top[:count], halvings)
                differ = int((expected != images[:count]).any(axis=(1, 2, 3)).sum())
                other[level.name] = differ
        return _Checked(span[1] - span[0], problems, digests, other)


def _read_all(records: ImageRecords, indices: np.ndarray) -> tuple[np.ndarray | None, list[str]]:
    """Images, or None and what is wrong with each of those that cannot be read."""
    try:
        return records.read(indices), []
    except UserError:
        problems = []
        for index in indices:
            try:
                records.read(np.array([index]))
            except UserError as error:
                problems.append(str(error))
        return None, problems


def stored_picture(files: list[RecordFile], index: int) -> tuple[bytes, str, int]:
    """The data of an image as they are stored in the shards, their encoding ('' = raw pixels), the height."""
    from tensorflow.train import Example
    for file in files:
        if index < len(file):
            feature = Example.FromString(bytes(file.read(np.array([index]))[0])).features.feature
            encoding = feature['encoding'].bytes_list.value if 'encoding' in feature else [b'']
            return (feature['data'].bytes_list.value[0], encoding[0].decode(),
                    feature['shape'].int64_list.value[1])
        index -= len(file)
    raise IndexError(f'there is no image {index}')


def check_records(folder: str, record: dict) -> tuple[int, list[str], list[str]]:
    """Checks a folder of records: checksums, shapes, counts, decoding, labels, index files, dataset.json.

    Args:
        folder: The data set.
        record: Its dataset.json, {} where there is none.

    Returns: number of images, problems, remarks.
    """
    startup.load_tensorflow()
    groups, problems = record_files(folder)
    levels, sizes = [], {}
    for name, paths in groups.items():
        level, found = _open_level(name, paths)
        problems += found
        if level is None:
            continue
        if level.shape[1] in sizes:
            problems.append(f'{folder}: {name} and {sizes[level.shape[1]]} both hold images of '
                            f'{level.shape[1]} pixels')
            continue
        sizes[level.shape[1]] = name
        levels.append(level)
    if not levels:
        return 0, problems or [f'{folder} holds no .tfrecords files'], []
    levels.sort(key=lambda level: -level.shape[1])
    top = levels[0]
    for level in levels[1:]:
        if level.count != top.count or level.shape[0] != top.shape[0]:
            problems.append(f'{folder}: {level.name} holds {level.count} images of {level.shape[0]} '
                            f'channels, {top.name} {top.count} of {top.shape[0]}')
    labels, found = _check_labels(folder, top.count)
    problems += found
    bad, digests, other = _check_images(folder, levels)
    remarks = [f'{name}: {count} images are not the averages of those of {top.name}'
               for name, count in other.items() if count]
    if record:
        problems += _check_info(folder, record, levels, labels, digests if not bad else b'')
        lacking = [key for key in _INFO if key not in record]
        if lacking:
            remarks.append(f'{folder}/dataset.json lacks {", ".join(lacking)}: not compared')
    elif os.path.exists(os.path.join(folder, 'dataset.json')):
        remarks.append(f'{folder}/dataset.json says nothing about the records; remove it or copy it again')
    return top.count, problems + bad, remarks


def _open_level(name: str, paths: list[str]) -> tuple[_Level | None, list[str]]:
    problems = []
    for path in paths:
        problems += _check_index(path)
    if problems:
        return None, problems
    try:
        records = ImageRecords(paths, True)
        level = _Level(name, paths, list(records.shape), records.encoding, len(records))
        records.close()
        return level, []
    except UserError as error:
        return None, [str(error)]


def _check_index(path: str) -> list[str]:
    """Problems of one file's framing as far as headers tell, and of its index."""
    offsets = [0]
    try:
        with open(path, 'rb') as file:
            size = os.fstat(file.fileno()).st_size
            if not os.path.exists(path + INDEX_SUFFIX):
                return []
            index = np.load(path + INDEX_SUFFIX, allow_pickle=False)
            while offsets[-1] < size:
                file.seek(offsets[-1])
                offsets.append(offsets[-1] + int.from_bytes(file.read(8), 'little') + 16)
    except (OSError, ValueError, EOFError) as error:
        return [f'{path}{INDEX_SUFFIX}: {error}']
    if not np.array_equal(index, np.array(offsets, np.uint64)):
        return [f'{path}{INDEX_SUFFIX} does not say where the records of the file begin; remove it']
    return []


def _check_labels(folder: str, count: int) -> tuple[np.ndarray | None, list[str]]:
    names = [name for name in sorted(os.listdir(folder))
             if name.endswith('.labels') and not name.startswith('.')]
    if not names:
        return None, []
    path = os.path.join(folder, names[0])
    if len(names) > 1:
        return None, [f'{folder} holds several label files: {", ".join(names)}']
    try:
        with open(path, 'rb') as file:
            labels = np.load(io.BytesIO(file.read()), allow_pickle=False)
    except (ValueError, EOFError) as error:
        return None, [f'{path} is not a NumPy array file of numbers: {error}']
    if labels.dtype.kind in 'iu' and labels.shape == (count,):
        try:
            return check_classes(labels, path)[0], []
        except UserError as error:
            return None, [str(error)]
    if labels.dtype.kind not in 'fiu' or labels.ndim != 2 or len(labels) != count:
        return None, [f'{path} is {labels.dtype} {list(labels.shape)}; expected float32 [{count}, '
                      f'components], or classes int32 [{count}]']
    labels = labels.astype(np.float32)
    if not np.isfinite(labels).all():
        return labels, [f'{path}: row {int(np.argmin(np.isfinite(labels).all(axis=1)))} is not finite']
    return labels, []


def _check_images(folder: str, levels: list[_Level]) -> tuple[list[str], bytes, dict[str, int]]:
    """(problems, digests of the largest level, level → number of images that are no averages)."""
    count = max(level.count for level in levels)
    bytes_each = int(np.prod(levels[0].shape))
    size = int(np.clip(_TASK_BYTES // bytes_each, 1, 1024))
    spans = [(begin, min(begin + size, count)) for begin in range(0, count, size)]
    workers = min(default_workers(), len(spans)) if count * bytes_each >= _PARALLEL_BYTES else 1
    problems, digests, other = [], [], {}
    more = 0
    checker = _Checker(levels)
    try:
        with Progress(count, what='Checking') as progress:
            for checked in ordered_map(checker, spans, workers):
                room = _MOST_PROBLEMS - len(problems)
                problems += checked.problems[:room]
                more += len(checked.problems[room:])
                digests.append(checked.digests)
                for name, number in checked.other.items():
                    other[name] = other.get(name, 0) + number
                progress.add(checked.count)
    finally:
        checker.close()
    return problems + ([f'{folder}: {more} more bad records'] if more else []), b''.join(digests), other


def _check_info(folder: str, record: dict, levels: list[_Level], labels: np.ndarray | None,
                digests: bytes) -> list[str]:
    top = levels[0]
    label_size = 0 if labels is None else labels.shape[-1]
    if labels is not None and labels.ndim == 1:
        least = int(labels.max()) + 1
        label_size = max(record['label_size'], least) if isinstance(record.get('label_size'), int) else least
    actual: dict[str, Any] = {
        'num_images': top.count,
        'shape': top.shape,
        'format': top.encoding or 'raw',
        'levels': sorted(level.shape[1].bit_length() - 1 for level in levels),
        'shards': len(top.paths),
        'label_size': label_size,
    }
    if digests:
        actual['fingerprint'] = fingerprint(top.shape, labels, digests, label_size)
    return [f'{folder}/dataset.json: {key} is {record[key]}, found {value}'
            for key, value in actual.items() if key in record and record[key] != value]


def check_folder(path: str) -> tuple[int, list[str], list[str]]:
    """Reads every image of a folder or zip of images. Returns as `check_records`."""
    from training.datasets.image_folder import image_folder
    source = image_folder(path)
    with Progress(len(source), what='Checking') as progress:
        def problems() -> Iterator[str]:
            for index in range(len(source)):
                try:
                    source.read(index)
                except UserError as error:
                    yield str(error)
                progress.add(1)
        found = list(problems())
    source.close()
    return len(source), found, []
