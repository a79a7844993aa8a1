"""Fidelity and variety over truncation: FID, Inception score, precision and recall at each value (BigGAN,
figure 17; StyleGAN, appendix B).
"""

import csv
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dnnlib.util import UserError, atomic_write

from .frechet_inception_distance import COVARIANCE_DDOF, frechet_distance, warn_if_few
from .inception_score import inception_score, softmax
from .metric_base import MetricBase
from .precision_recall import precision_recall, squared_radii

if TYPE_CHECKING:
    from .evaluation import Evaluation

# None = no truncation.
PSI = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
BOUNDS = (None, 2.0, 1.5, 1.2, 1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.04)
SCALES = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.04)

Point = dict[str, float | None]     # 'truncation', 'distance', 'score', 'score_std', 'precision', 'recall'.


def special_points(curve: Sequence[Point], real_score: float | None) -> dict[str, float]:
    """What is reported of a sweep, by suffix (BigGAN, table 2).

    Args:
        curve: From no truncation to the strongest.
        real_score: Inception score of the reals.

    Returns: 'distance', 'score', 'precision', 'recall' without truncation; 'min_distance' and 'max_score'
        with truncation and score or distance of that point; 'distance_at_real_score', where the score passes
        that of the reals, linear between points. What there is not is left out.
    """
    best = min(curve, key=lambda point: point['distance'])
    found = {key: curve[0][key] for key in ('distance', 'score', 'precision', 'recall')}
    found |= {'min_distance': best['distance'], 'min_distance_truncation': best['truncation'],
              'min_distance_score': best['score']}
    if curve[0]['score'] is not None:
        best = max(curve, key=lambda point: point['score'])
        found |= {'max_score': best['score'], 'max_score_truncation': best['truncation'],
                  'max_score_distance': best['distance']}
        found['distance_at_real_score'] = _distance_at(curve, real_score)
    return {key: value for key, value in found.items() if value is not None}


def _distance_at(curve: Sequence[Point], score: float | None) -> float | None:
    """The distance where the score first passes a value; None if it never does."""
    for a, b in zip(curve, curve[1:], strict=False):
        low, high = sorted((a['score'], b['score']))
        if score is not None and low <= score <= high:
            share = (score - a['score']) / (b['score'] - a['score']) if high > low else 0
            return a['distance'] + share * (b['distance'] - a['distance'])
    return None


class TruncationSweep(MetricBase):
    """Fréchet distance, Inception score, precision and recall over truncation.

    Writes NAME-curve.png and NAME-curve.csv; the .jsonl file has the curve too. Results are `special_points`,
    in whose names a distance is 'fid' and a score 'is' with Inception features, else 'fd' and 'score'.

    Args:
        num_images: Reals at most, and fakes at each truncation.
        extractor: Key of feature_nets.EXTRACTORS, for distance and score.
        pr_extractor: The same for precision and recall. None = 'vgg16' beside 'inception', where its weights
            are, else `extractor`; '' = neither.
        truncations: Values, of which None is no truncation. None = PSI for style-based generators; for BigGAN
            BOUNDS or, in the modes scale and std, SCALES.
        nhood_size: Of precision and recall.
        num_splits: Of the score.
    """

    needs_network = True

    def __init__(self, name: str, num_images: int = 5000, extractor: str = 'inception',
                 pr_extractor: str | None = None, truncations: Sequence[float | None] | None = None,
                 nhood_size: int = 3, num_splits: int = 10, **kwargs: Any):
        super().__init__(name, extractor, **kwargs)
        self.num_images, self.pr_extractor, self.truncations = num_images, pr_extractor, truncations
        self.nhood_size, self.num_splits = nhood_size, num_splits
        self.min_images = 2 if pr_extractor == '' else nhood_size + 1

    def check_images(self, ev: 'Evaluation') -> None:
        """See MetricBase."""
        super().check_images(ev)
        if ev.Gs is not None:
            self._values(ev)

    def check_extractors(self, ev: 'Evaluation') -> None:
        """See MetricBase."""
        for name in filter(None, (self.extractor, self.find_pr(ev))):
            ev.extractor(name)

    def find_pr(self, ev: 'Evaluation') -> str:
        """The feature network of precision and recall; '' where there is none."""
        if self.pr_extractor is not None or self.extractor != 'inception':
            return self.extractor if self.pr_extractor is None else self.pr_extractor
        from . import weights
        return 'vgg16' if weights.find('vgg16', ev.weights_dir) is not None else ''

    def _evaluate(self, ev: 'Evaluation') -> None:
        values = self._values(ev)
        reals = _Reals(self, ev)
        curve = []
        for value in values:
            curve.append(self._measure(ev, reals, value))
            shown = ', '.join(f'{self._public(key)} {number:.4f}' for key, number in curve[-1].items()
                              if number is not None)
            print(f'{self.name}: {shown}', flush=True)
        formats = dict.fromkeys(('precision', 'recall', 'truncation'), '%-6.4f')
        for key, value in special_points(curve, reals.score).items():
            self._report_result(value, '_' + self._public(key), formats.get(key, '%-10.4f'))
        self.details.update(curve=[{self._public(key): value for key, value in point.items()}
                                   for point in curve],
                            real_score=reals.score, pr_extractor=reals.pr_extractor,
                            nhood_size=self.nhood_size, num_splits=self.num_splits,
                            covariance_ddof=COVARIANCE_DDOF[ev.generation])
        if ev.result_dir is not None:
            self._write(os.path.join(ev.result_dir, f'{ev.file_prefix}{self.name}-curve'), curve)

    def _public(self, key: str) -> str:
        """The name of a number for users: what only looks like FID is not called so."""
        names = ('fid', 'is') if self.extractor == 'inception' else ('fd', 'score')
        return key.replace('distance', names[0]).replace('score', names[1])

    def _values(self, ev: 'Evaluation') -> list[float | None]:
        """The truncations, from none to the strongest. Errors: UserError where there is none."""
        from generation import samplers
        Gs = ev.require_network()
        biggan = samplers.is_biggan(Gs)
        if not biggan and 'dlatent_avg' not in Gs.vars:
            raise UserError(f'{self.name}: network {Gs.name} ({type(Gs.layer).__name__}) has no truncation; '
                            'expected a style-based generator or BigGAN')
        values = self.truncations
        mode = biggan and (ev.sampling.get('truncation_mode') or samplers.default_mode(Gs))
        if values is None:
            # Of a scale nothing is above 1; a bound of 1 is far from none.
            values = PSI if not biggan else BOUNDS if mode == 'resample' else SCALES
        if biggan:
            samplers.check_options(Gs, dict(truncation=min(filter(None, values), default=None),
                                            truncation_mode=mode))
        if not values:
            raise UserError(f'{self.name}: expected at least one truncation')
        return sorted(set(values), key=lambda value: -math.inf if value is None else -value)

    def _measure(self, ev: 'Evaluation', reals: '_Reals', value: float | None) -> Point:
        """One point of the curve."""
        stream = ev.fakes(self.num_images, truncation=value)
        features = ev.features(stream, self.extractor, keep=False)
        if reals.pr_extractor == self.extractor or reals.score is not None:
            features.all()      # What else is asked for is made of these.
        moments = features.moments(reals.ddof[1])
        point: Point = dict(truncation=math.inf if value is None else float(value),
                            distance=frechet_distance(reals.moments, moments), score=None, score_std=None,
                            precision=None, recall=None)
        if reals.score is not None:
            logits_of = ev.extractor(self.extractor).logits_of
            point['score'], point['score_std'] = inception_score(
                (softmax(logits_of(block)) for block in features), len(features), self.num_splits)
        if reals.pr_extractor:
            if reals.pr_extractor != self.extractor:
                features = ev.features(stream, reals.pr_extractor, keep=False)
            point['precision'], point['recall'] = precision_recall(
                reals.features, features.all(), self.nhood_size, real_radii=reals.radii)
        return point

    def _write(self, path: str, curve: Sequence[Point]) -> None:
        """Writes the curve as a table and as plots."""
        from generation import plots
        with atomic_write(path + '.csv', 'w', newline='') as file:
            table = csv.writer(file)
            table.writerow([self._public(key) for key in curve[0]])
            table.writerows([['' if value is None else f'{value:.6g}' for value in point.values()]
                             for point in curve])
        plots.save_panels(path + '.png', list(self._panels(curve)), self.name)

    def _panels(self, curve: Sequence[Point]) -> Iterator[dict[str, Any]]:
        """Everything over truncation, and distance over score or recall over precision."""
        column = {key: [point[key] for point in curve] for key in curve[0]}
        x = list(column['truncation'])
        finite = [value for value in x if math.isfinite(value)]
        label = 'truncation'
        if len(finite) < len(x):
            x[0] = 1.25 * max(finite, default=1)
            label += ' (at the right end: none)'
        distance, score = (self._public(key) for key in ('distance', 'score'))
        yield dict(xlabel=label, ylabel=distance, curves={distance: (x, column['distance'])})
        has_score, has_pr = (column[key][0] is not None for key in ('score', 'precision'))
        if has_score:
            yield dict(xlabel=label, ylabel=score, curves={score: (x, column['score'])})
        if has_pr:
            yield dict(xlabel=label, ylabel='share', curves={key: (x, column[key])
                                                             for key in ('precision', 'recall')})
        if has_score:
            yield dict(xlabel=score, ylabel=distance, curves={'': (column['score'], column['distance'])})
        elif has_pr:
            yield dict(xlabel='precision', ylabel='recall', curves={'': (column['precision'],
                                                                         column['recall'])})


class _Reals:
    """What all points of a curve are compared with.

    Attributes:
        moments: (mean, covariance).
        score: Inception score; None without class probabilities.
        features, radii: Of precision and recall.
        pr_extractor: Their feature network; '' = neither.
    """

    def __init__(self, metric: TruncationSweep, ev: 'Evaluation'):
        stream = ev.reals(metric.num_images, wrap=False)
        num_fakes = ev.count(metric.num_images)
        extractor = ev.extractor(metric.extractor)
        warn_if_few(metric.name, extractor.num_features, reals=len(stream), fakes=num_fakes)
        self.ddof = COVARIANCE_DDOF[ev.generation]
        self.moments = ev.features(stream, metric.extractor).moments(self.ddof[0])
        self.score, self.features, self.radii = None, None, None
        if self._has_classes(metric, extractor) and min(len(stream), num_fakes) >= metric.num_splits:
            logits = ev.features(stream, metric.extractor, 'logits')
            self.score = inception_score(map(softmax, logits), len(logits), metric.num_splits)[0]
        self.pr_extractor = metric.find_pr(ev)
        if not self.pr_extractor and metric.pr_extractor is None:
            print(f'Warning: {metric.name}: without precision and recall, as there are no weights of VGG16',
                  file=sys.stderr)
        if self.pr_extractor:
            self.features = ev.features(stream, self.pr_extractor).all()
            self.radii = squared_radii(self.features, metric.nhood_size)

    def _has_classes(self, metric: TruncationSweep, extractor: Any) -> bool:
        try:
            extractor(np.zeros([1, 32, 32, 3], np.uint8), 'logits')
        except UserError as error:
            print(f'Warning: {metric.name}: without Inception score: {error}', file=sys.stderr)
            return False
        return True
