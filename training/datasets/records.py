"""Data sets in folders of TFRecords: levels, shards, labels, and the description in dataset.json."""

import fnmatch
import io
import json
import os
import re
from typing import Any

import numpy as np

from dnnlib.util import UserError, gfile, is_remote_path
from training.datasets.base import Dataset, check_reader_arguments, check_resolution, reduce_images
from training.datasets.labels import check_classes
from training.datasets.npz import check_label_rows, limit_images, name_of, read_bytes
from training.datasets.tfrecord import ImageRecords

DESCRIPTION = 'dataset.json'
VERSION = 1             # Of the description.
_SHARD = re.compile(r'(.*)-(\d{5,})-of-(\d{5,})\.tfrecords')
_MAX_OPEN = 200         # Files that are kept open; of more, each is opened where it is read.


class TFRecordDataset(Dataset):
    """Folder written by dataset_tool: `<name>-rNN.tfrecords` per level and `<name>-rxx.labels`.

    A level may be cut into shards, `<name>-rNN-00003-of-00064.tfrecords`. Levels that are not there are made
    from the largest one. Opening reads the first record of each level; images are read where they lie.

    Args:
        tfrecord_dir: The folder.
        resolution: Level to read; None for the largest.
        label_file: NumPy file, float32 [N, components] or classes int32 [N]; None for the *.labels
            file of the folder.
        max_label_size, max_images, seed, label_sampling, skip_bad: See `load_dataset`.
        verify: Checking of the images' checksums, see `record_file.RecordFile`.
        **reader: Official arguments about reading, see `base.check_reader_arguments`.

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
        label_sampling: str = 'data',
        skip_bad: bool = False,
        verify: bool | str = 'first',
        **reader: Any,
    ) -> None:
        check_reader_arguments(reader)
        self.tfrecord_dir = tfrecord_dir
        remote = is_remote_path(tfrecord_dir)
        names = sorted(gfile().listdir(tfrecord_dir) if remote else os.listdir(tfrecord_dir))
        self.description = self._load_description() if DESCRIPTION in names else {}
        self._levels = self._open_levels(names, verify, skip_bad)
        self.full_resolution = max(self._levels)
        size = resolution or self.full_resolution
        if size not in self._levels:
            there = ', '.join(f'{level}x{level}' for level in sorted(self._levels))
            if size > max(self._levels):
                raise UserError(f'{tfrecord_dir} has no level of {size}x{size} pixels; it has {there}.')
            self._levels[size] = _Reduced(self._levels[max(self._levels)], check_resolution(
                size, max(self._levels), f'{tfrecord_dir} with the levels {there}'))
        main = self._levels[size]
        count = self._check_counts(main, skip_bad)
        labels = label_names = num_classes = None
        if max_label_size or not skip_bad:
            labels, num_classes = self._load_labels(names, label_file, main, skip_bad)
            label_names = self.description.get('label_names')
        count = limit_images(count, max_images)
        super().__init__(
            name_of(tfrecord_dir), main.shape, count, None if labels is None else labels[:count], label_names,
            max_label_size, seed,
            how_to_label=f'Put a *.labels file (NumPy float32 array of {len(main)} rows) into '
                         f'{tfrecord_dir}, or train without labels.',
            label_sampling=label_sampling, skip_bad=skip_bad, num_classes=num_classes)

    def _open_levels(self, names: list[str], verify: bool | str, skip_bad: bool) -> dict[int, ImageRecords]:
        """The levels by their resolution."""
        found = [name for name in fnmatch.filter(names, '*.tfrecords') if not name.startswith('.')]
        if not found:
            raise UserError(f'{self.tfrecord_dir} holds no .tfrecords files.')
        levels = {}
        for group in self._group_shards(found):
            paths = [os.path.join(self.tfrecord_dir, name) for name in group]
            level = ImageRecords(paths, verify, skip_bad, keep_open=len(found) <= _MAX_OPEN)
            other = levels.setdefault(level.shape[1], level)
            if other is not level:
                raise UserError(f'{other.path} and {level.path} both hold images of {level.shape[1]} pixels; '
                                'keep one file, or one complete set of shards, per resolution.')
        missing = [level for level in self.description.get('levels', []) if 2 ** level not in levels]
        if missing:
            raise UserError(f'{self.tfrecord_dir} lacks the .tfrecords file of {2 ** missing[0]}x'
                            f'{2 ** missing[0]} pixels that its {DESCRIPTION} tells of. Copy the data set '
                            'again.')
        return levels

    def _group_shards(self, names: list[str]) -> list[list[str]]:
        """Names of files that belong together, in the order of their records."""
        groups: dict[tuple[str, str], dict[int, str]] = {}
        for name in names:
            match = _SHARD.fullmatch(name)
            key = (match[1], match[3]) if match else (name, '')
            groups.setdefault(key, {})[int(match[2]) if match else 0] = name
        for (stem, count), shards in groups.items():
            others = [other for other in groups if other[0] == stem and other[1] != count]
            if others:
                names = [min(shards.values()), min(groups[others[0]].values())]
                raise UserError(f'{self.tfrecord_dir} holds shards of two sets, {names[0]} and {names[1]}; '
                                'keep those of one.')
            expected = int(count) if count else 1
            missing = [i for i in range(expected) if i not in shards]
            if missing or len(shards) != expected or not expected:
                name = f'{stem}-{missing[0]:05d}-of-{count}.tfrecords' if missing else max(shards.values())
                raise UserError(f'{self.tfrecord_dir}: the shard {name} is missing ({len(missing)} of '
                                f'{expected} are). Copy the data set again.' if missing else
                                f'{self.tfrecord_dir}: {name} is one more shard than its name tells of.')
        return [[shards[i] for i in sorted(shards)] for shards in groups.values()]

    def _load_description(self) -> dict[str, Any]:
        """What dataset.json says; nothing where that is a file of labels for images."""
        path = os.path.join(self.tfrecord_dir, DESCRIPTION)
        try:
            found = json.loads(read_bytes(path).decode('utf-8'))
            if not isinstance(found, dict):
                raise ValueError('expected an object')
            if 'num_images' not in found:
                return {}
            if not isinstance(found.get('version', VERSION), int) or found.get('version', VERSION) > VERSION:
                raise UserError(f'{path} has version {found["version"]}; this program knows version '
                                f'{VERSION}. Update it.')
            kinds = dict(num_images=int, shape=list, levels=list, label_size=int)
            for key, kind in kinds.items():
                if not isinstance(found.get(key, kind()), kind):
                    raise ValueError(f'{key} is {found[key]!r}')
            if not all(isinstance(level, int) and 0 <= level < 32 for level in found.get('levels', [])):
                raise ValueError(f'levels is {found["levels"]!r}')
            names = found.get('label_names')
            if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
                raise ValueError(f'label_names is {names!r}')
            return found
        except UserError:
            raise
        except (ValueError, RecursionError) as error:
            raise UserError(f'{path} is damaged ({" ".join(str(error).split())}). Copy it again; without it '
                            'the data set can be read, too.') from error

    def _check_counts(self, main: ImageRecords, skip_bad: bool) -> int:
        """Number of images that all levels have."""
        counts = {level.path: len(level) for level in self._levels.values()}
        if 'num_images' in self.description:
            counts[os.path.join(self.tfrecord_dir, DESCRIPTION)] = self.description['num_images']
        for level in self._levels.values():
            if level.shape[0] != main.shape[0]:
                raise UserError(f'{level.path} holds images of {level.shape[0]} channels, but {main.path} of '
                                f'{main.shape[0]}. One of them is from another data set: copy it again or '
                                'rebuild the data set.')
        shape = self.description.get('shape')
        if shape and (shape[:1] != main.shape[:1] or shape[1:] != [max(self._levels)] * 2):
            raise UserError(f'{self.tfrecord_dir}/{DESCRIPTION} tells of images of shape {shape}, but '
                            f'{main.path} holds {main.shape}. One of them is from another data set.')
        for path, count in counts.items():
            if count != len(main) and not skip_bad:
                raise UserError(f'{path} holds {count} images, but {main.path} holds {len(main)}. One of '
                                'them is cut off or from another data set: copy it again, rebuild the data '
                                'set, or use the common ones with --skip-bad.')
        if len(set(counts.values())) > 1:
            told = ', '.join(f'{os.path.basename(path)} {count}' for path, count in counts.items())
            print(f'Warning: {self.tfrecord_dir} has files with different numbers of images ({told}); only '
                  f'the first {min(counts.values())} are used.')
        return min(counts.values())

    def _load_labels(self, names: list[str], label_file: str | None, main: ImageRecords,
                     skip_bad: bool) -> tuple[np.ndarray | None, int | None]:
        """Rows float32 [N, components], or classes int32 [N] and their number."""
        own = label_file is None
        if own:
            found = [name for name in fnmatch.filter(names, '*.labels') if not name.startswith('.')]
            if not found:
                if self.description.get('label_size'):
                    raise UserError(f'{self.tfrecord_dir} lacks the .labels file that its {DESCRIPTION} '
                                    'tells of. Copy the data set again.')
                return None, None
            if len(found) > 1:
                raise UserError(f'{self.tfrecord_dir} holds several label files ({", ".join(found)}); '
                                'choose one with label_file.')
            label_file = found[0]
        is_path = is_remote_path(label_file) or os.path.exists(label_file)
        path = label_file if is_path else os.path.join(self.tfrecord_dir, label_file)
        try:
            # Rows of very many images are read, and become classes, part by part.
            labels = np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) if is_remote_path(path) else \
                np.load(path, mmap_mode='r', allow_pickle=False)
            if labels.dtype.kind not in 'fiub':
                raise ValueError(f'it holds {labels.dtype}')
        except FileNotFoundError:
            raise UserError(f'there is no file of labels {label_file}, neither here nor in '
                            f'{self.tfrecord_dir}; check the path.') from None
        except (ValueError, EOFError, AttributeError) as error:
            raise UserError(f'{path} is not a NumPy array file of numbers: {error}') from error
        # An incomplete file of images has more labels than it needs.
        if not (skip_bad and labels.ndim in (1, 2) and len(labels) >= len(main)):
            check_label_rows(labels, len(main), path, main.path)
        if labels.ndim == 2:
            return labels, None
        known = self.description.get('label_size') if own else None
        return check_classes(labels, path, known or None)

    def close(self) -> None:
        """Releases open files."""
        super().close()
        for level in self._levels.values():
            level.close()

    def _read_images(self, indices: np.ndarray, lod: int) -> np.ndarray:
        level = self._levels.get(self.resolution >> lod)
        if level is not None:
            return level.read(indices)
        return reduce_images(self._levels[self.resolution].read(indices), lod)


class _Reduced:
    """A level that is made from a larger one."""

    def __init__(self, level: ImageRecords, halvings: int) -> None:
        self.path = level.path
        self.shape = [level.shape[0], *(side >> halvings for side in level.shape[1:])]
        self._level, self._halvings = level, halvings

    def __len__(self) -> int:
        return len(self._level)

    def read(self, indices: np.ndarray) -> np.ndarray:
        return reduce_images(self._level.read(indices), self._halvings)

    def close(self) -> None:
        pass    # The other level is closed by itself.
