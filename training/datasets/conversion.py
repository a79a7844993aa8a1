"""A source of images converted to a folder of TFRecords: by many processes, resumable, all or nothing.

The order of the images, and so every byte of the result, depends on the source and the options alone. To go
on after any kind of end, files are cut back to what the saved state says; what follows is made again.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import PIL
import tqdm

from dnnlib.util import UserError, atomic_write, format_time
from training.datasets import worker_pool
from training.datasets.conversion_task import Options, Result, Source, Task, check_shape
from training.datasets.image_files import LeftOutError
from training.datasets.labels import check_classes, count_labels, find_classes, label_chunks
from training.datasets.workspace import Workspace, check_target, target_folder
from training.datasets.writer import (
    FORMATS,
    MIN_LEVEL,
    check_channels,
    choose_shuffled_order,
    fingerprint,
    make_example,
)

SAVE_SECONDS = 15               # Between two savings of the state: what a sudden end costs at most.
MAX_DENSE_LABELS = 256 << 20    # Of the file of one-hot labels as rows; a larger one would hold classes.
_TASK_BYTES = 4 << 20           # Pixels that a worker handles at a time.
_WORKER_BYTES = 8 << 20         # Pixels that are worth a worker process, unless their number is given.
_CHECKED_AGAIN = 8              # Finished images that are made again before an unfinished conversion goes on.
_INDEX = re.compile(r'\[[^][]*\]$')
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; says what was kept."""


def convert(source: Source, tfrecord_dir: str, options: Options, recipe: dict | None = None) -> dict:
    """Writes a data set; goes on where an earlier call with the same source and options was interrupted.

    Args:
        source: The images.
        tfrecord_dir: Folder to make. Its last part is the name of the data set.
        options: See `Options`.
        recipe: What was done with the images of the source, for dataset.json: transform, resize_filter and
            whatever else is to be the same when an unfinished conversion goes on.

    Returns: what its dataset.json holds.
    Errors: UserError for an image that cannot be used (unless skip_bad), an existing data set, a full disk;
        says what was kept.
    """
    if options.format not in FORMATS:
        raise UserError(f'the format of records must be one of {", ".join(FORMATS)}; '
                        f'received {options.format!r}')
    if not len(source):
        raise UserError(f'{source.description}: there are no images.')
    target = target_folder(tfrecord_dir)
    workspace = Workspace(target)
    with workspace.locked():
        check_target(target, options.overwrite)
        return _Conversion(source, target, workspace, options, recipe or {}).run()


class _Conversion:
    """One run of `convert`, inside the lock."""

    def __init__(self, source: Source, target: str, workspace: Workspace, options: Options,
                 recipe: dict) -> None:
        self._recipe = {**{'transform': None, 'resize_filter': None}, **recipe}
        self._source, self._workspace, self._options = source, workspace, options
        self._name = os.path.basename(target)
        count = len(source)
        order = np.arange(count) if options.shuffle_seed is None else \
            choose_shuffled_order(count, options.shuffle_seed)
        self._order = order[:options.max_images]
        if not 1 <= options.shards <= len(self._order):
            raise UserError(f'--shards must be from 1 to the number of images, {len(self._order)}; '
                            f'received {options.shards}')
        self._check_problems()
        self._labels, self._label_size = self._all_labels()
        self._shape, self._first = self._first_image()
        check_channels(self._shape[0], options.format)
        self._top = self._shape[1].bit_length() - 1
        single = options.format != 'raw' if options.single_resolution is None else options.single_resolution
        self._lowest = self._top if single else MIN_LEVEL
        self._levels = list(range(self._top, self._lowest - 1, -1))
        self._task = Task(source, self._shape, self._first, self._lowest, options)
        self._position = self._kept = 0     # Images dealt with, and images converted.
        self._open_shard = None
        self._skipped: list[list] = []      # [position in the order, name, reason].

    def _check_problems(self) -> None:
        """Fails at once for what the source knows to be bad."""
        problems = getattr(self._source, 'problems', {})
        bad = sorted(set(problems) & set(self._order.tolist()))
        if bad and not self._options.skip_bad:
            raise UserError(f'{problems[bad[0]]} {len(bad)} of {len(self._source)} images cannot be used; '
                            '--skip-bad leaves them out.')

    def _all_labels(self) -> tuple[np.ndarray | None, int]:
        """Classes int32 [N] where labels are one-hot, else float32 [N, components], in the order of the
        source; and the number of components."""
        labels = self._source.labels
        if labels is None:
            return None, 0
        labels = np.asarray(labels)
        if len(labels) != len(self._source):
            raise UserError(f'{self._source.description}: {len(labels)} labels for '
                            f'{len(self._source)} images.')
        if labels.ndim == 1:
            names = self._source.label_names
            return check_classes(labels, f'{self._source.description}: the labels',
                                 len(names) if names else None)
        classes = find_classes(labels)
        return np.ascontiguousarray(labels, np.float32) if classes is None else classes, labels.shape[1]

    def _first_image(self) -> tuple[list[int], str]:
        """Shape [C, H, W] and name of the first image, which decides; of the first good one with skip_bad."""
        for index in range(len(self._source)):
            name = self._source.item_name(index)
            try:
                image = self._source.read(index)
                check_shape(image.shape, name)
                return [int(image.shape[i]) for i in (2, 0, 1)], name
            except UserError as error:
                if not self._options.skip_bad and not isinstance(error, LeftOutError):
                    raise
        raise UserError(f'{self._source.description}: none of the {len(self._source)} images can be used. '
                        'Without --skip-bad, the first one says why.')

    def _job(self) -> dict:
        """What must not change between an interrupted conversion and the one that goes on."""
        labels = None
        if self._labels is not None:
            digest = hashlib.sha256()
            for rows in label_chunks(self._labels, self._label_size, len(self._labels)):
                digest.update(rows.tobytes())
            labels = digest.hexdigest()
        options = self._options
        encoder = {'quality': options.quality} if options.format == 'jpeg' else {}
        if options.format != 'raw':
            encoder['Pillow'] = PIL.__version__
        return {
            'source': self._source.description, 'images': len(self._source), 'labels': labels,
            'shape': self._shape, 'content': _signature(self._source), 'format': options.format, **encoder,
            'levels': self._levels, 'shards': options.shards, 'shuffle_seed': options.shuffle_seed,
            'max_images': options.max_images, **self._recipe, 'version': 1,
        }

    def run(self) -> dict:
        """Converts what is left and finishes."""
        total = len(self._order)
        self._resume_or_start()
        print(f'{self._name}: from {self._source.description}')
        print(f'{self._name}: {total} images, [C, H, W] = {self._shape}, {self._options.format}, '
              f'{_level_names(self._levels)}, {self._options.shards} '
              f'file{"s" * (self._options.shards > 1)} per level', flush=True)
        self._check_space()
        try:
            with worker_pool.Progress(total, self._position, self._name) as progress:
                self._convert(progress)
            info = self._finish()
        except OSError as error:
            if error.errno not in _DISK_ERRORS:
                raise
            raise UserError(
                f'{error.filename or self._workspace.path}: {error.strerror}. {self._kept_part()} Free some '
                'space and give the same command again to go on.') from error
        except UserError as error:
            raise UserError(f'{error} {self._kept_part()}' if self._position else str(error)) from error
        except KeyboardInterrupt as error:
            raise Interrupted(f'interrupted. {self._kept_part()} The same command goes on.') from error
        print(f'{self._name}: done, {info["num_images"]} images in {format_time(progress.seconds)} '
              f'({progress.rate:.0f} images/s)'
              + (f', {len(self._skipped)} left out' if self._skipped else ''))
        return info

    def _kept_part(self) -> str:
        return (f'The finished part ({self._position} of {len(self._order)} images) is kept in '
                f'{self._workspace.path}.')

    def _resume_or_start(self) -> None:
        job = self._job()
        state = self._workspace.load()
        if state is not None:
            differ = [key for key in job if json.loads(json.dumps(job[key])) != state.get('job', {}).get(key)]
            self._skipped = [json.loads(line) for line in self._workspace.read('skipped').splitlines()]
            self._position, self._kept = state['position'], state['kept']
            if not differ and state['skip_bad'] and not self._options.skip_bad:
                differ = ['skip_bad']
            if not differ and not self._same_content():
                differ = ['content']
            if not differ:
                if self._position:
                    print(f'{self._name}: goes on after image {self._position} of {len(self._order)}, where '
                          'an earlier conversion ended')
                self._state = {'job': job}
                return
            print(f'{self._name}: an unfinished conversion had another source or other options '
                  f'({", ".join(differ)}); starting afresh')
            self._position, self._kept, self._skipped = 0, 0, []
        self._workspace.start()
        self._state = {'job': job}
        self._save()

    def _same_content(self) -> bool:
        """Whether some of the finished images still give the same."""
        digests = self._workspace.read('digests')
        skipped = {position for position, _, _ in self._skipped}
        kept = [position for position in range(self._position) if position not in skipped]
        if len(digests) != 32 * self._kept or len(kept) != self._kept:
            return False
        for number in np.unique(np.linspace(0, len(kept) - 1, _CHECKED_AGAIN).astype(int)) if kept else ():
            result = self._task([int(self._order[kept[number]])])
            if result.digests != [digests[32 * number:32 * number + 32]]:
                return False
        return True

    def _save(self) -> None:
        self._workspace.save({**self._state, 'position': self._position, 'kept': self._kept,
                              'skip_bad': self._options.skip_bad and bool(self._skipped)})

    def _check_space(self) -> None:
        if self._options.format != 'raw':
            return
        rest = len(self._order) - self._position
        shapes = [[self._shape[0], 1 << level, 1 << level] for level in self._levels]
        needed = rest * sum(int(np.prod(shape)) + len(make_example(shape, b'')) + 24 for shape in shapes)
        free = shutil.disk_usage(self._workspace.path).free
        if needed > free:
            print(f'Warning: about {needed / 1e9:.1f} GB are needed, but {self._workspace.path} has '
                  f'{free / 1e9:.1f} GB left; --format=png needs less', file=sys.stderr)

    def _tasks(self) -> Iterator[list[int]]:
        """Indices, in order, from the present position on; a task lies in one shard."""
        size = max(1, min(1024, _TASK_BYTES // int(np.prod(self._shape))))
        total, begin = len(self._order), self._position
        while begin < total:
            end = min(begin + size, self._shard_bounds()[self._shard(begin) + 1])
            yield self._order[begin:end].tolist()
            begin = end

    def _shard_bounds(self) -> list[int]:
        return [i * len(self._order) // self._options.shards for i in range(self._options.shards + 1)]

    def _shard(self, position: int) -> int:
        return int(np.searchsorted(self._shard_bounds(), position, side='right')) - 1

    def _file(self, level: int, shard: int) -> str:
        shards = self._options.shards
        suffix = f'-{shard:05}-of-{shards:05}' if shards > 1 else ''
        return f'{self._name}-r{level:02}{suffix}.tfrecords'

    def _convert(self, progress: worker_pool.Progress) -> None:
        tasks = list(self._tasks())
        pixels = (len(self._order) - self._position) * int(np.prod(self._shape))
        worthwhile = min(worker_pool.default_workers(), pixels // _WORKER_BYTES)    # Starting one takes time.
        workers = min(self._options.workers or worthwhile, len(tasks))
        if workers > 1:
            worker_pool.check_picklable(self._source, self._source.description)
        saved = time.monotonic()
        results = worker_pool.ordered_map(self._task, tasks, workers)
        try:
            for task, result in zip(tasks, results, strict=True):
                self._write(task, result)
                progress.add(len(task))
                if time.monotonic() - saved > SAVE_SECONDS:
                    self._save()
                    saved = time.monotonic()
        finally:
            results.close()
            with contextlib.suppress(OSError):      # On a full disk the state before serves as well.
                self._save()

    def _write(self, task: list[int], result: Result) -> None:
        """Appends the result of the task at the present position."""
        shard = self._shard(self._position)
        if shard != self._open_shard:
            self._workspace.close()
            self._open_shard = shard
        stopped = bool(result.bad) and not result.bad[-1][2]
        count = result.bad[-1][0] if stopped else len(task)
        pieces = {}
        for level, (data, lengths) in result.levels.items():
            name = self._file(level, shard)
            pieces[name] = data
            if self._options.format != 'raw':
                pieces[name + '.lengths'] = np.array(lengths, np.uint64).tobytes()
        pieces['digests'] = b''.join(result.digests)
        skipped = [[self._position + place, self._source.item_name(task[place]), reason]
                   for place, reason, skip in result.bad if skip]
        pieces['skipped'] = b''.join(json.dumps(entry).encode() + b'\n' for entry in skipped)
        sizes = dict(self._workspace.sizes)
        for name, data in pieces.items():
            self._workspace.append(name, data)
            sizes[name] = sizes.get(name, 0) + len(data)
        for _, _, reason in skipped:
            tqdm.tqdm.write(f'Left out: {reason}', file=sys.stderr)
        skipped = self._skipped + skipped if skipped else self._skipped
        position, kept = self._position + count, self._kept + result.count
        # One step as far as Ctrl-C is concerned, which Python only lets in between calls.
        self._workspace.sizes = sizes
        self._position = position
        self._kept = kept
        self._skipped = skipped
        if stopped:
            raise UserError(f'{result.bad[-1][1]} --skip-bad leaves such images out.')

    def _finish(self) -> dict:
        """Writes what belongs to the data set besides the records, and moves it to its place."""
        if not self._kept:
            raise UserError(f'{self._source.description}: no image can be used.')
        self._workspace.close()
        shards = self._name_shards()
        for name in list(self._workspace.sizes):
            if name.endswith('.lengths'):
                lengths = np.frombuffer(self._workspace.read(name), np.uint64)
                self._save_array(shards[name.removesuffix('.lengths')] + '.index',
                                 np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint64))
        labels = self._labels
        if labels is not None:
            keep = np.ones(len(self._order), bool)
            keep[[position for position, _, _ in self._skipped]] = False
            labels = np.ascontiguousarray(labels[self._order[keep]])
            self._save_labels(f'{self._name}-rxx.labels', labels)
        info = self._info(labels, len(shards) // len(self._levels))
        with atomic_write(os.path.join(self._workspace.data, 'dataset.json'), 'w') as file:
            json.dump(info, file, indent=1)
            file.write('\n')
        self._workspace.move_to_target()
        return info

    def _name_shards(self) -> dict[str, str]:
        """Final names of the files of records: a shard of which all images were left out does not count."""
        filled = [shard for shard in range(self._options.shards)
                  if self._file(self._top, shard) in self._workspace.sizes]
        final = {}
        for level in self._levels:
            for number, shard in enumerate(filled):
                name = self._file(level, shard)
                suffix = f'-{number:05}-of-{len(filled):05}' if self._options.shards > 1 else ''
                final[name] = f'{self._name}-r{level:02}{suffix}.tfrecords'
                if name != final[name]:
                    os.rename(self._workspace.file(name), self._workspace.file(final[name]))
        return final

    def _save_labels(self, name: str, labels: np.ndarray) -> None:
        """The official array of rows float32 [N, components], or, where that is too large, of classes."""
        if labels.ndim == 1 and 4 * len(labels) * self._label_size <= MAX_DENSE_LABELS:
            labels = np.concatenate(list(label_chunks(labels, self._label_size, len(labels))))
        self._save_array(name, labels)

    def _save_array(self, name: str, array: np.ndarray) -> None:
        with atomic_write(os.path.join(self._workspace.data, name), 'wb') as file:
            np.save(file, array)

    def _info(self, labels: np.ndarray | None, shards: int) -> dict:
        names = getattr(self._source, 'label_names', None)
        counts = None
        if labels is not None:
            numbers = count_labels(labels, self._label_size).tolist()
            names = names if names is not None and len(names) == len(numbers) else None
            counts = dict(zip(names or map(str, range(len(numbers))), numbers, strict=True))
        return {
            'version': 1,
            'name': self._name,
            'num_images': self._kept,
            'shape': self._shape,
            'format': self._options.format,
            'quality': self._options.quality if self._options.format == 'jpeg' else None,
            'levels': sorted(self._levels),
            'shards': shards,
            'label_size': self._label_size,
            'label_names': None if names is None else [str(name) for name in names],
            'class_counts': counts,
            'shuffle_seed': self._options.shuffle_seed,
            **self._recipe,
            'source': self._source.description,
            'skipped': [entry[1:] for entry in self._skipped],
            'fingerprint': fingerprint(self._shape, labels, self._workspace.read('digests'),
                                       self._label_size),
        }


def _level_names(levels: list[int]) -> str:
    return f'level r{levels[0]:02}' if len(levels) == 1 else f'levels r{levels[0]:02} to r{levels[-1]:02}'


def _signature(source: Source) -> str:
    """Changes with the files of a source, as far as their names, sizes and times tell."""
    own: Callable[[], Any] | None = getattr(source, 'signature', None)
    if own is not None:
        return str(own())
    digest, last = hashlib.sha256(), None
    for index in range(len(source)):
        name = source.item_name(index)
        digest.update(name.encode() + b'\0')
        path = _INDEX.sub('', name)     # 'archive.gz[17]' is part of archive.gz, 'a.zip: b.png' of a.zip.
        path = path if os.path.exists(path) else path.partition(': ')[0]
        if path != last:
            last = path
            with contextlib.suppress(OSError):
                stat = os.stat(path)
                digest.update(repr((stat.st_size, stat.st_mtime_ns)).encode())
    return digest.hexdigest()
