"""Linear separability: how well a plane in latent space tells images with an attribute from those without
(StyleGAN, section 4.2).

`LS` is the metric; the functions in front of it are its definition. The score is 2^Σ H(target | prediction)
in bits over the attributes: 1 = separable, and it grows with the number of attributes, so that only scores of
the same classifiers compare.
"""

import concurrent.futures
import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError
from training.datasets.prefetch import num_threads

from . import classifiers as nets
from .metric_base import MetricBase

if TYPE_CHECKING:
    from .evaluation import Evaluation

MIN_SAMPLES = 10    # Per dimension of the latents; 2 or fewer can be separated whatever their classes are.
MAX_THREADS = 4     # Planes that are fitted at the same time: each has a copy of the latents.


def conditional_entropy(table: np.ndarray) -> float:
    """H(column | row) in bits: what is not known about the column when the row is; never below 0.

    Args:
        table: Joint probabilities or counts, [rows, columns].
    """
    table = np.asarray(table, np.float64)
    table = table / table.sum()
    return max(_entropy(table) - _entropy(table.sum(axis=1)), 0.0)


def _entropy(probabilities: np.ndarray) -> float:
    positive = probabilities[probabilities > 0]
    return float(-np.sum(positive * np.log2(positive)))


def separability_score(entropies: Sequence[float]) -> float:
    """2 to the sum of conditional entropies in bits."""
    return float(2.0 ** np.sum(np.asarray(entropies, np.float64)))


def most_confident(scores: np.ndarray, num_keep: int) -> tuple[np.ndarray, np.ndarray]:
    """The samples that a classifier is sure about.

    Args:
        scores: [N], positive = yes.
        num_keep: How many to keep.

    Returns: their indices, the surest first, equally sure ones in their order; and their classes, 0 = yes,
        1 = no.
    """
    probabilities = nets.probabilities(scores)
    kept = np.argsort(-probabilities.max(axis=1), kind='stable')[:num_keep]
    return kept, probabilities[kept].argmax(axis=1)


def attribute_entropy(latents: np.ndarray, targets: np.ndarray, seed: int = 0) -> tuple[float, bool]:
    """What is not known about the classes when one knows on which side of the fitted plane a latent lies.

    Where a class is missing there is no plane; perfect prediction is assumed then.

    Args:
        latents: [N, size], finite.
        targets: Classes, int [N].
        seed: Of the solver, where it draws at all.

    Returns: conditional entropy in bits, and whether the solver converged.
    """
    predictions, converged = targets, True
    if len(np.unique(targets)) > 1:
        svm = linear_svc()(random_state=seed)
        svm.fit(latents, targets)
        predictions, converged = svm.predict(latents), bool(np.max(svm.n_iter_) < svm.max_iter)
    table = np.zeros([2, 2])
    np.add.at(table, (predictions, targets), 1)
    return conditional_entropy(table), converged


def linear_svc() -> Callable[..., Any]:
    """The class sklearn.svm.LinearSVC. Errors: UserError where scikit-learn is missing."""
    try:
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise UserError('metric ls fits its planes with scikit-learn, which is missing here '
                        f'({" ".join(str(error).split())}): pip install scikit-learn') from None
    return LinearSVC


class LS(MetricBase):
    """Linear separability in z (suffix _z) and, where there is one, in w (suffix _w).

    Args:
        num_samples: Generated images.
        num_keep: The most confident ones of each attribute that are kept.
        attrib_indices: Numbers of the classifiers. None = all of the set.
        classifiers: Name of the set of classifiers, or a folder; see metrics.classifiers.find_classifiers.
        minibatch_per_gpu: Accepted for compatibility.
    """

    needs_reals = False
    needs_network = True

    def __init__(self, name: str = 'ls', num_samples: int = 200000, num_keep: int = 100000,
                 attrib_indices: Sequence[int] | None = None, classifiers: str | None = None,
                 minibatch_per_gpu: int | None = None, **kwargs: Any):
        super().__init__(name, **kwargs)
        del minibatch_per_gpu
        if not 1 <= num_keep <= num_samples:
            raise UserError(f'metric {name}: num_keep must be from 1 to num_samples={num_samples}. Received: '
                            f'{num_keep}')
        self.num_samples, self.num_keep = int(num_samples), int(num_keep)
        self.attrib_indices, self.classifiers = attrib_indices, classifiers
        self._loaded: dict[tuple, list[nets.Classifier]] = {}

    def check(self, weights_dir: str | None = None) -> None:
        """Looks for what is needed before hours of training. Errors: UserError."""
        linear_svc()
        nets.find_classifiers(weights_dir, self.classifiers, self.attrib_indices)

    def check_images(self, ev: 'Evaluation') -> None:
        """See MetricBase."""
        super().check_images(ev)
        if ev.Gs is not None and not self._loaded:
            _, files = nets.find_classifiers(ev.weights_dir, self.classifiers, self.attrib_indices)
            self._check_input(ev, nets.load_classifier(files[0]))

    def _check_input(self, ev: 'Evaluation', classifier: nets.Classifier) -> None:
        """Errors: UserError for a generator whose images the classifier does not take."""
        nets.classifier_input(tf.zeros([0, *ev.shape]), classifier.network.input_shape[1:],
                              os.path.basename(classifier.file.path))

    def _evaluate(self, ev: 'Evaluation') -> None:
        ev.require_network()
        linear_svc()
        classifiers = self._load(ev)
        latents, scores = self._sample(ev, classifiers)
        num_keep = max(self.num_keep * len(scores) // self.num_samples, 1)
        self.details.update(num_samples=len(scores), num_keep=num_keep)
        names = [classifier.file.name for classifier in classifiers]
        # Where all of these agree, as for a rare attribute, the plane is taken as perfect and says nothing.
        kept = [most_confident(column, num_keep)[1] for column in scores.T]
        self.details['kept_positive'] = {name: int(np.sum(targets == 0))
                                         for name, targets in zip(names, kept, strict=True)}
        size = latents['_z'].shape[1]
        if num_keep < MIN_SAMPLES * size:
            print(f'Warning: metric {self.name} fits planes to {num_keep} latents of {size} numbers, which '
                  f'is too easy; the value is too low. Use {2 * MIN_SAMPLES * size} images or more',
                  file=sys.stderr)
        for suffix, values in latents.items():
            entropies = self._entropies(values, scores, num_keep, ev, suffix)
            self.details[f'conditional_entropy{suffix}'] = dict(zip(names, entropies, strict=True))
            self._report_result(separability_score(entropies), suffix=suffix)

    def _load(self, ev: 'Evaluation') -> list[nets.Classifier]:
        """The classifiers, read once."""
        name, files = nets.find_classifiers(ev.weights_dir, self.classifiers, self.attrib_indices)
        if name == nets.OFFICIAL_SET and self.attrib_indices is None and len(files) < nets.OFFICIAL_COUNT:
            print(f'Warning: metric {self.name} uses {len(files)} of the {nets.OFFICIAL_COUNT} classifiers '
                  f'{name}; its values do not compare with published ones', file=sys.stderr)
        # A file that has changed between two snapshots is read again.
        key = tuple((file.path, os.stat(file.path).st_mtime_ns) for file in files)
        if key not in self._loaded:
            with ev.strategy.scope():
                self._loaded = {key: [nets.load_classifier(file) for file in files]}
        loaded = self._loaded[key]
        for classifier in loaded:       # Errors before anything is generated.
            self._check_input(ev, classifier)
        digest = hashlib.sha256(''.join(classifier.sha256 for classifier in loaded).encode()).hexdigest()
        self.details.update(classifiers=name, classifiers_sha256=digest, num_attributes=len(loaded))
        return loaded

    def _sample(self, ev: 'Evaluation', classifiers: list[nets.Classifier],
                ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """({suffix: latents [N, size]}, scores [N, attributes]) of generated images."""
        from .evaluation import ImageNoise
        stream = ev.fakes(self.num_samples)
        sampler = ev.sampler
        network, stage = sampler.network, sampler.network.layer.stage()
        mapping = network.components.get('mapping') if 'synthesis' in network.components else None

        def sample(latents, labels, seeds):
            z = latents[:, 0]
            images = ev.run_generator(z, labels, ImageNoise(seeds, stage))
            outputs = [z, nets.logits(classifiers, images)]
            if mapping is not None:
                outputs.append(mapping.get_output_for(*[z, labels][:mapping.num_inputs])[:, -1])
            return [tf.cast(output, tf.float32) for output in outputs]

        key = ('ls', stream.function_key, *(id(classifier.network) for classifier in classifiers))
        parts = list(ev.map(sample, stream.inputs(ev.batch), stream.num, 'generated images', key=key))
        z, scores, *w = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return {'_z': z, **({'_w': w[0]} if w else {})}, scores

    def _entropies(self, latents: np.ndarray, scores: np.ndarray, num_keep: int, ev: 'Evaluation',
                   suffix: str) -> list[float]:
        """Conditional entropy of each attribute; NaN where a diverged generator gave no numbers."""
        seed = int(ev.rng('ls solver').randint(2 ** 31))
        unconverged = []
        finite = np.isfinite(latents).all(axis=1)

        def entropy(index: int) -> float:
            if not (finite.all() and np.isfinite(scores[:, index]).all()):
                return float('nan')
            kept, targets = most_confident(scores[:, index], num_keep)
            value, converged = attribute_entropy(latents[kept], targets, seed)
            if not converged:
                unconverged.append(index)
            return value

        count = scores.shape[1]
        threads = min(num_threads(), MAX_THREADS, count)
        with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(threads) as pool, \
                ev.progress(f'planes in {suffix[1:]}', count, 'planes') as progress:
            warnings.simplefilter('ignore')     # The solver stops after 1000 rounds, as officially.
            entropies = []
            for value in pool.map(entropy, range(count)):
                entropies.append(value)
                progress.update(1)
        self.details[f'not_converged{suffix}'] = sorted(unconverged)
        return entropies
