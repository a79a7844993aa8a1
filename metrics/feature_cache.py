"""Features and moments of real images on the disk, shared between runs and processes."""

import contextlib
import hashlib
import json
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dnnlib.file_lock import LockedError, file_lock
from dnnlib.util import UserError, atomic_write, make_cache_dir_path

__all__ = ['FORMAT', 'FeatureCache', 'default_directory']

FORMAT = 1              # Goes up when what is stored, or how it is computed, changes.
PATIENCE = 24 * 3600    # Seconds to wait for another process that computes the same.


def default_directory() -> str:
    """Where statistics are kept unless a flag says otherwise."""
    return make_cache_dir_path('metrics')


class FeatureCache:
    """What is known of one set of images under one feature network.

    Two kinds of files: KEY-features.npy with KEY-features.json beside it, which is written last and holds the
    checksum, and KEY-moments.npz. What is damaged is computed again, with a warning.

    Args:
        directory: Where the files lie; made if it is not there.
        fields: Everything that the features depend on.
    """

    def __init__(self, directory: str, fields: dict[str, Any]):
        self._fields = json.loads(json.dumps({'format': FORMAT, **fields}, sort_keys=True))
        text = json.dumps(self._fields, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:32]
        self._directory = directory

    def path(self, suffix: str) -> str:
        """Path of a file."""
        return os.path.join(self._directory, f'{self.key}-{suffix}')

    def features(self, num: int, compute: Callable[[], Iterator[np.ndarray]]) -> np.ndarray | None:
        """All features float32 [num, d], as an array in a file; None where they cannot be kept.

        Args:
            num: Their number.
            compute: Gives them block by block, where they are not there.
        """
        with self._locked('features.lock') as usable:
            if not usable:
                return None
            found = self._read_features(num)
            if found is not None:
                return found
            try:
                self._write_features(num, compute)
                return np.load(self.path('features.npy'), mmap_mode='r', allow_pickle=False)
            except OSError as error:
                _warn(f'statistics of real images are not kept: {error}')
                return None

    def moments(self, num: int, compute: Callable[[], tuple[np.ndarray, np.ndarray]]
                ) -> tuple[np.ndarray, np.ndarray]:
        """(mean, covariance), computed where they are not there."""
        with self._locked('moments.lock') as usable:
            found = self._read_moments(num) if usable else None
            if found is None:
                found = compute()
                if usable:
                    self._write_moments(num, *found)
        return found

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[bool]:
        """Keeps other processes from computing the same; False where the directory cannot be used."""
        with contextlib.ExitStack() as stack:
            try:
                os.makedirs(self._directory, exist_ok=True)
                stack.enter_context(file_lock(self.path(name), PATIENCE, lambda: print(
                    'Waiting for another process that computes the same statistics of real images...',
                    flush=True)))
                usable = True
            except LockedError:
                usable = False
            except OSError as error:
                _warn(f'statistics of real images are not kept: {error}')
                usable = False
            yield usable

    # Features.

    def _read_features(self, num: int) -> np.ndarray | None:
        record, path = self.path('features.json'), self.path('features.npy')
        if not os.path.exists(record):
            return None
        try:
            with open(record, encoding='utf-8') as file:
                facts = json.load(file)
            array = np.load(path, mmap_mode='r', allow_pickle=False)
            if facts['fields'] != self._fields or array.shape != (num, facts['width']) \
                    or array.dtype != np.float32 or _crc32(array) != facts['crc32']:
                raise ValueError('it does not fit its checksum')
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            _warn(f'{path} is damaged and computed again ({error})')
            return None
        return array

    def _write_features(self, num: int, compute: Callable[[], Iterator[np.ndarray]]) -> None:
        path, crc, count, width = self.path('features.npy'), 0, 0, 0
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.path('features.json'))
        with atomic_write(path) as file:
            for block in compute():
                block = np.ascontiguousarray(block, np.float32)
                if not count:
                    width = block.shape[1]
                    np.lib.format.write_array_header_1_0(
                        file, {'descr': '<f4', 'fortran_order': False, 'shape': (num, width)})
                data = block.tobytes()
                crc = zlib.crc32(data, crc)
                count += len(block)
                file.write(data)
            if count != num:
                raise UserError(f'expected {num} images, received {count}')
        with atomic_write(self.path('features.json'), 'w') as file:
            json.dump({'fields': self._fields, 'width': width, 'crc32': crc}, file, indent=1)

    # Moments.

    def _read_moments(self, num: int) -> tuple[np.ndarray, np.ndarray] | None:
        path = self.path('moments.npz')
        if not os.path.exists(path):
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                mean, covariance = file['mean'], file['covariance']
                if json.loads(str(file['fields'])) != self._fields or int(file['num']) != num \
                        or mean.ndim != 1 or covariance.shape != mean.shape * 2 \
                        or mean.dtype != np.float64 or covariance.dtype != np.float64 \
                        or not np.isfinite(mean).all() or not np.isfinite(covariance).all():
                    raise ValueError('it holds something else')
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            _warn(f'{path} is damaged and computed again ({error})')
            return None
        return mean, covariance

    def _write_moments(self, num: int, mean: np.ndarray, covariance: np.ndarray) -> None:
        try:
            with atomic_write(self.path('moments.npz')) as file:
                np.savez(file, mean=mean, covariance=covariance, num=num, fields=json.dumps(self._fields))
        except OSError as error:
            _warn(f'statistics of real images are not kept: {error}')


def _crc32(array: np.ndarray) -> int:
    crc = 0
    for begin in range(0, len(array), 4096):
        crc = zlib.crc32(np.ascontiguousarray(array[begin:begin + 4096]), crc)
    return crc


def _warn(text: str) -> None:
    print(f'Warning: {text}', file=sys.stderr, flush=True)
