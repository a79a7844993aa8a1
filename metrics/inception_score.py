"""Inception score (Salimans et al. 2016, arXiv:1606.03498): are images of clear and of many classes?"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from dnnlib.util import UserError

from .metric_base import MetricBase

if TYPE_CHECKING:
    from .evaluation import Evaluation


def softmax(logits: np.ndarray) -> np.ndarray:
    """Class probabilities of logits [N, classes], in float64."""
    logits = np.asarray(logits, np.float64)
    probs = np.exp(logits - logits.max(axis=1, keepdims=True))
    return probs / probs.sum(axis=1, keepdims=True)


def _plogp(probs: np.ndarray) -> float:
    """Σ p·log p; 0·log 0 is 0, its limit."""
    return float(np.sum(probs * np.log(np.where(probs > 0, probs, 1))))


def inception_score(blocks: Iterable[np.ndarray], count: int, num_splits: int = 10) -> tuple[float, float]:
    """(mean, population standard deviation) over splits of exp(mean KL(p(y|x) ‖ p(y))).

    Args:
        blocks: Class probabilities [n, classes], `count` in all; only sums of them are kept.
        num_splits: Split i has the images from count·i // num_splits to count·(i + 1) // num_splits.

    Raises: UserError for fewer images than splits.
    """
    if count < num_splits:
        raise UserError(f'the Inception score needs an image in each of its {num_splits} splits, received '
                        f'{count} in all')
    ends = [count * (i + 1) // num_splits for i in range(num_splits)]
    scores, done, size, total, plogp = [], 0, 0, 0.0, 0.0
    for block in blocks:
        block = np.asarray(block, np.float64)
        while len(block) and done < count:
            part = block[:ends[len(scores)] - done]
            block = block[len(part):]
            done, size = done + len(part), size + len(part)
            total, plogp = total + part.sum(axis=0), plogp + _plogp(part)
            if done == ends[len(scores)]:
                scores.append(np.exp(plogp / size - _plogp(total / size)))
                size, total, plogp = 0, 0.0, 0.0
    if done < count:
        raise UserError(f'the Inception score expected {count} images, received {done}')
    return float(np.mean(scores)), float(np.std(scores))


class IS(MetricBase):
    """Inception score; results NAME_mean and NAME_std.

    Args:
        num_images: Fakes.
        num_splits: Contiguous splits, whose scores are averaged.
        extractor: Key of feature_nets.EXTRACTORS; with another than 'inception' it is no Inception score.
    """

    needs_reals = False

    def __init__(self, name: str, num_images: int = 50000, num_splits: int = 10, extractor: str = 'inception',
                 **kwargs: Any):
        super().__init__(name, extractor, **kwargs)
        self.num_images, self.num_splits = num_images, num_splits
        self.min_images = num_splits

    def check_extractors(self, ev: 'Evaluation') -> None:
        """See MetricBase."""
        extractor = ev.extractor(self.extractor)
        extractor.logits_of(np.zeros([1, extractor.num_features], np.float32))

    def _evaluate(self, ev: 'Evaluation') -> None:
        logits = ev.features(ev.fakes(self.num_images), self.extractor, 'logits')
        mean, std = inception_score(map(softmax, logits), len(logits), self.num_splits)
        self._report_result(mean, '_mean')
        self._report_result(std, '_std')
        self.details['num_splits'] = self.num_splits
