"""Features of streams of images: block by block, as a whole, or their mean and covariance."""

import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from dnnlib.util import UserError

from .feature_cache import FeatureCache

__all__ = ['FeatureStore', 'FeatureStream', 'Moments']

MAX_MEMORY = 1 << 29        # Bytes of features that are kept in memory; more go to a temporary file.
GATHERED = 512              # Rows that are multiplied at a time.


class Moments:
    """Mean and covariance of rows that come block by block, in float64 and bounded memory."""

    def __init__(self) -> None:
        self.num = 0
        self._shift = self._sum = self._squares = None
        self._waiting: list[np.ndarray] = []

    def add(self, rows: np.ndarray) -> None:
        """Adds rows [n, d]."""
        if rows.ndim != 2:
            raise UserError(f'moments: expected rows of features [n, d], received shape {rows.shape}')
        self._waiting.append(np.asarray(rows, np.float64))
        if sum(map(len, self._waiting)) >= GATHERED:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        rows = np.concatenate(self._waiting)
        self._waiting = []
        if self._shift is None:     # Differences to about the mean lose less to rounding than the features.
            self._shift = rows.mean(axis=0)
            self._sum = np.zeros(rows.shape[1])
            self._squares = np.zeros([rows.shape[1]] * 2)
        rows = rows - self._shift
        self.num += len(rows)
        self._sum += rows.sum(axis=0)
        self._squares += rows.T @ rows

    def result(self, ddof: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """(mean [d], covariance [d, d]) with divisor N - ddof. Errors: UserError for too few rows."""
        self._flush()
        if self.num <= ddof:
            raise UserError(f'a covariance needs at least {ddof + 1} images, received {self.num}')
        mean = self._sum / self.num
        return self._shift + mean, (self._squares - self.num * np.outer(mean, mean)) / (self.num - ddof)


class FeatureStream:
    """Features of a stream of images; iterates float32 blocks [n, d] in order.

    Attributes:
        num: Number of images.
        key: Equal for equal features.
    """

    def __init__(self, store: 'FeatureStore', stream: Any, extractor: Any, output: str, keep: bool = True):
        self.num, self.key = stream.num, (stream.key, extractor.name, extractor.sha256, output)
        self._store, self._stream, self._extractor, self._output = store, stream, extractor, output
        self._keep = keep
        self._array: np.ndarray | None = None
        self._moments: tuple[np.ndarray, np.ndarray] | None = None      # With divisor N.

    def use(self, store: 'FeatureStore', stream: Any) -> None:
        """Computes what is still to be computed by another evaluation of the same images."""
        self._store, self._stream = store, stream

    def __len__(self) -> int:
        return self.num

    def __iter__(self) -> Iterator[np.ndarray]:
        shared = self._keep and self._store.keeps(self._extractor.name)
        if self._array is not None or shared and self._output != 'logits':
            array = self.all()
            yield from (np.asarray(array[i:i + GATHERED]) for i in range(0, self.num, GATHERED))
        else:
            yield from self._computed()

    def _computed(self) -> Iterator[np.ndarray]:
        if self._output == 'logits' and self._keep and self._store.keeps(self._extractor.name):
            # Another metric has, or will want, the features: one pass through the network is enough.
            features = self._store.stream(self._stream, self._extractor.name, 'features')
            return (np.asarray(self._extractor.logits_of(block)) for block in features)
        return self._store.compute(self._stream, self._extractor, self._output)

    def all(self) -> np.ndarray:
        """All features, float32 [num, d]; an array in a file where they are many."""
        if self._array is None:
            cache = self._store.cache(self._stream, self._extractor, self._output)
            found = None if cache is None else cache.features(self.num, self._computed)
            self._array = self._gather() if found is None else found
        return self._array

    def _gather(self) -> np.ndarray:
        array, end = None, 0
        for block in self._computed():
            if array is None:
                array = self._store.space(self.num, block.shape[1])
            array[end:end + len(block)] = block
            end += len(block)
        if end != self.num:
            raise UserError(f'expected {self.num} images, received {end}')
        return array

    def moments(self, ddof: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Mean [d] and covariance [d, d] with divisor num - ddof, in float64.

        Errors: UserError for too few images.
        """
        if self.num <= ddof:
            raise UserError(f'a covariance needs at least {ddof + 1} images, received {self.num}')
        if self._moments is None:
            cache = self._store.cache(self._stream, self._extractor, self._output)
            self._moments = self._measure() if cache is None else cache.moments(self.num, self._measure)
        mean, covariance = self._moments
        return mean, covariance * (self.num / (self.num - ddof))

    def _measure(self) -> tuple[np.ndarray, np.ndarray]:
        moments = Moments()
        for block in self:
            moments.add(block)
        return moments.result(ddof=0)


class FeatureStore:
    """The feature streams of an evaluation: those of one group of metrics are shared.

    Args:
        ev: The evaluation.
        cache_dir: Folder of the disk cache for reals; None = no such cache.
    """

    def __init__(self, ev: Any, cache_dir: str | None):
        self._ev, self._cache_dir = ev, cache_dir
        self._streams: dict[tuple, FeatureStream] = {}
        self.reals: dict[tuple, FeatureStream] = {}     # Kept for the next network.
        self.shared: set[str] = set()       # Extractors that several metrics of the group use.

    def keeps(self, extractor: str) -> bool:
        """Are features kept for other metrics?"""
        return extractor in self.shared

    def stream(self, stream: Any, name: str, output: str, keep: bool = True) -> FeatureStream:
        """See `Evaluation.features`."""
        features = FeatureStream(self, stream, self._ev.extractor(name), output, keep)
        if not keep:
            return features
        known = self._streams if stream.fingerprint is None else self.reals
        features = known.setdefault(features.key, features)
        features.use(self, stream)
        return features

    def clear(self) -> None:
        """Forgets the features of generated images."""
        self._streams.clear()
        self.shared = set()

    def cache(self, stream: Any, extractor: Any, output: str) -> FeatureCache | None:
        """The disk cache of these features; None where there is none."""
        if self._cache_dir is None or stream.fingerprint is None:
            return None
        return FeatureCache(self._cache_dir, {
            **stream.fingerprint, 'extractor': extractor.name, 'extractor_sha256': extractor.sha256,
            'output': output, 'dtype': extractor.dtype})

    def space(self, num: int, width: int) -> np.ndarray:
        """An array float32 [num, width], in a temporary file where it is large."""
        if 4 * num * width <= MAX_MEMORY:
            return np.empty([num, width], np.float32)
        with tempfile.TemporaryFile(prefix='features-', dir=self._temp_dir()) as file:
            # The mapping keeps the file, which has no name, until it is dropped.
            return np.memmap(file, np.float32, 'w+', shape=(num, width))

    def _temp_dir(self) -> str | None:
        return self._cache_dir if self._cache_dir and os.path.isdir(self._cache_dir) else None

    def compute(self, stream: Any, extractor: Any, output: str) -> Iterator[np.ndarray]:
        """Blocks of features, float32 [n, d]."""
        function = getattr(extractor, output)

        def features(*inputs):
            return function(extractor.as_images(stream.images(*inputs)))
        key = stream.function_key and ('features', stream.function_key, extractor.name, output)
        return self._ev.map(features, stream.inputs(self._ev.batch), stream.num,
                            f'{extractor.name} features of {stream.kind}', key)
