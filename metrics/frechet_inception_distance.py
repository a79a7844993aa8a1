"""Fréchet distance of features (Heusel et al. 2017, arXiv:1706.08500): FID with Inception-v3.

With the features of another network it is a Fréchet distance too, but no FID, and has another name here.
"""

import contextlib
import re
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.linalg

from dnnlib.util import UserError

from .metric_base import MetricBase

if TYPE_CHECKING:
    from .evaluation import Evaluation

# Who divides covariances by N − 1 (1) or N (0): of the reals, of the fakes.
COVARIANCE_DDOF = {'stylegan2': (1, 1), 'ada': (0, 1), 'ada-pytorch': (0, 0)}


def _factor(cov: np.ndarray, which: str) -> np.ndarray:
    """A with A·Aᵀ = cov, [d, rank], by a Cholesky decomposition with pivoting, which stops at the rank."""
    if not np.isfinite(cov).all():
        raise UserError(f'the features of the {which} are not all finite; expected those of ordinary images')
    limit = max(np.max(np.diagonal(cov)), 0) * len(cov) * np.finfo(np.float64).eps
    lower, pivots, rank, _ = scipy.linalg.lapack.dpstrf((cov + cov.T) / 2, tol=limit, lower=1)
    if limit == 0:
        rank = 0
    factor = np.empty([len(cov), rank])
    factor[pivots - 1] = np.tril(lower)[:, :rank]
    return factor


def frechet_distance(real: tuple[np.ndarray, np.ndarray], fake: tuple[np.ndarray, np.ndarray]) -> float:
    """‖Δμ‖² + tr(Σr + Σf − 2·(Σr·Σf)^½), never negative, also for covariances without full rank.

    The eigenvalues of Σr·Σf are the squares of the singular values of ArᵀAf where Σ = A·Aᵀ. So no root of
    something that is not symmetric is taken, there are no complex numbers, and no root magnifies rounding.

    Args:
        real, fake: (mean [d], covariance [d, d]).
    """
    (mean_real, cov_real), (mean_fake, cov_fake) = ([np.asarray(x, np.float64) for x in y]
                                                    for y in (real, fake))
    if mean_real.shape != mean_fake.shape:
        raise UserError(f'expected features of one network, received {len(mean_real)} numbers for the reals '
                        f'and {len(mean_fake)} for the fakes')
    product = _factor(cov_real, 'reals').T @ _factor(cov_fake, 'fakes')
    root = np.linalg.svd(product, compute_uv=False).sum() if product.size else 0.0
    squared = np.sum(np.square(mean_real - mean_fake))
    return max(float(squared + np.trace(cov_real) + np.trace(cov_fake) - 2 * root), 0.0)


def moments(features: np.ndarray, ddof: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(mean [d], covariance [d, d]) of features [N, d], in float64."""
    features = np.asarray(features, np.float64)
    return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False, ddof=ddof))


def warn_if_few(name: str, num_features: int, **counts: int) -> bool:
    """Warns when there are fewer samples than dimensions: the distance is then far too high or undefined.

    Args:
        counts: Number of samples of each set, by its name.

    Returns: whether it did.
    Raises: UserError for fewer than two samples, which have no covariance.
    """
    which = min(counts, key=lambda key: counts[key])
    if counts[which] < 2:
        raise UserError(f'{name}: covariances are compared: expected at least 2 {which}, received '
                        f'{counts[which]}')
    if counts[which] <= num_features:
        print(f'Warning: {name}: {counts[which]} {which} for features of {num_features} numbers: covariances '
              f'have no full rank, the distance is biased upwards; compare it only with others of the same '
              'counts', file=sys.stderr)
    return counts[which] <= num_features


class FID(MetricBase):
    """Fréchet distance of reals and fakes.

    Args:
        num_images: Fakes, and reals where `full` is not set.
        full: All reals once, unflipped?
        extractor: Key of feature_nets.EXTRACTORS; with another than 'inception' it is no FID.
    """

    min_images = 2

    def __init__(self, name: str, num_images: int = 50000, full: bool = False, extractor: str = 'inception',
                 **kwargs: Any):
        super().__init__(name, extractor, **kwargs)
        self.num_images, self.full = num_images, full

    def _evaluate(self, ev: 'Evaluation') -> None:
        reals = ev.features(ev.reals(None if self.full else self.num_images, full=self.full), self.extractor)
        fakes = ev.features(ev.fakes(self.num_images), self.extractor)
        warn_if_few(self.name, ev.extractor(self.extractor).num_features, reals=len(reals), fakes=len(fakes))
        ddof = COVARIANCE_DDOF[ev.generation]
        self._report_result(frechet_distance(reals.moments(ddof[0]), fakes.moments(ddof[1])))
        self.details['covariance_ddof'] = ddof


class ClassFID(MetricBase):
    """Fréchet distance of every class by itself.

    Results: NAME_mean, and NAME_CLASS of each class unless they are very many, by its name where it has one,
    else its number. The .jsonl file has all of them.

    Args:
        num_images: Fakes of each class; reals at most, none of them twice.
        extractor: Key of feature_nets.EXTRACTORS; with another than 'inception' it is no FID.
    """

    min_images = 2
    max_shown = 100     # Classes in a result line and in TensorBoard.

    def __init__(self, name: str, num_images: int = 50000, extractor: str = 'inception', **kwargs: Any):
        super().__init__(name, extractor, **kwargs)
        self.num_images = num_images

    def check_images(self, ev: 'Evaluation') -> None:
        """See MetricBase."""
        super().check_images(ev)
        if not ev.num_classes:
            raise UserError(f'{self.name}: there are no classes; expected a conditional network, or folders '
                            'with a subfolder for each class')
        names = None
        for source in ev.sources.values():
            if source.label_size != ev.num_classes:
                raise UserError(f'{self.name}: expected images of {ev.num_classes} classes; {source.name} '
                                f'has {source.label_size or "none"}')
            # Where names differ, the same number is another class.
            names = names or source.class_names
            if source.class_names not in (None, names):
                raise UserError(f'{self.name}: expected the same classes of reals and fakes; {source.name} '
                                'has others, name the subfolders alike')

    def _evaluate(self, ev: 'Evaluation') -> None:
        self.check_images(ev)
        names = ev.class_names or [str(i) for i in range(ev.num_classes)]
        classes = range(ev.num_classes) if ev.class_idx is None else [ev.class_idx]
        counts, distances = {}, {}
        for index in classes:
            with contextlib.suppress(_NoImages):
                counts[index], distances[index] = self._measure(ev, index)
        if not distances:
            raise UserError(f'{self.name}: no class has 2 real images or more')
        warn_if_few(self.name, ev.extractor(self.extractor).num_features,
                    **{key: min(count[key] for count in counts.values()) for key in ('reals', 'fakes')})
        if left_out := [names[index] for index in classes if index not in distances]:
            print(f'Warning: {self.name}: left out for lack of real images: {", ".join(left_out)}',
                  file=sys.stderr)
        self._report_result(np.mean(list(distances.values())), '_mean')
        if len(distances) <= self.max_shown:
            suffixes = {index: re.sub(r'[^\w.-]+', '-', names[index]) for index in distances}
            taken = ['mean', *suffixes.values()]
            for index, distance in distances.items():
                # Names that look alike then, and one that the mean has, get their numbers.
                is_taken = taken.count(suffixes[index]) > 1
                self._report_result(distance, f'_{suffixes[index]}' + (f'-{index}' if is_taken else ''))
        self.details.update(covariance_ddof=COVARIANCE_DDOF[ev.generation], classes=[
            dict(index=index, name=names[index], distance=distance, **counts[index])
            for index, distance in distances.items()])

    def _measure(self, ev: 'Evaluation', index: int) -> tuple[dict[str, int], float]:
        """(numbers of images, distance) of a class. Errors: _NoImages."""
        try:
            reals = ev.reals(self.num_images, classes=[index], wrap=False)
        except UserError as error:
            if 'no image of class' not in str(error):
                raise
            raise _NoImages from None
        if len(reals) < 2:
            raise _NoImages
        fakes = ev.fakes(self.num_images, labels=index)
        warn_if_few(self.name, 0, fakes=len(fakes))
        ddof = COVARIANCE_DDOF[ev.generation]
        # Not kept for other metrics: a thousand classes would fill the memory.
        moments = [ev.features(stream, self.extractor, keep=False).moments(ddof[i])
                   for i, stream in enumerate((reals, fakes))]
        return dict(reals=len(reals), fakes=len(fakes)), frechet_distance(*moments)


class _NoImages(Exception):
    """A class has too few real images."""
