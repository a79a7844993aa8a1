"""Nearest neighbours of generated images among training images of their class (BigGAN, appendix A)."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dnnlib.util import UserError
from generation import figures

if TYPE_CHECKING:
    from training.dataset import Dataset

PIXELS = 'pixels'
# Networks besides: vgg16 with its layer fc7 and resnet50 with its average pooling are those of the paper.
FEATURES = ('vgg16', 'resnet50', 'efflite0', 'inception', 'random')
_CHUNK_VALUES = 1 << 22     # Values of training images that are compared at a time.


class Neighbours(NamedTuple):
    """The nearest training images of some samples, the closest first."""

    indices: np.ndarray     # int64 [N, k], of the data set.
    distances: np.ndarray   # float64 [N, k], Euclidean.


def default_spaces(weights_dir: str | None) -> list[str]:
    """Pixels, and those of vgg16 and resnet50 that this machine has the weights of, else efflite0."""
    found = [name for name in ('vgg16', 'resnet50') if _has_weights(name, weights_dir)]
    return [PIXELS, *(found or [name for name in ('efflite0',) if _has_weights(name, weights_dir)])]


def _has_weights(name: str, weights_dir: str | None) -> bool:
    from generation import resnet50
    from metrics import weights
    if not (resnet50.find(weights_dir) if name == 'resnet50' else weights.find(name, weights_dir)):
        return False
    try:
        space_function(name, weights_dir)
    except UserError:   # Of vgg16 the convolutions alone.
        return False
    return True


def space_function(space: str, weights_dir: str | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """The function uint8 [N, H, W, C] → float64 [N, d] whose Euclidean distances count.

    Errors: UserError for an unknown space, and where its weights are missing.
    """
    if space == PIXELS:
        return lambda images: images.reshape(len(images), -1).astype(np.float64)
    if space == 'resnet50':
        from generation.resnet50 import ResNet50
        extractor = ResNet50(weights_dir)
    else:
        from metrics import feature_nets
        extractor = feature_nets.find_extractor(space, weights_dir)
    # Of RGBA the colors.
    return lambda images: extractor(images[..., :3]).numpy().astype(np.float64)


def candidates(training_set: 'Dataset', class_idx: int | None, count: int) -> np.ndarray:
    """Indices of the training images of a class, of all where it is None.

    Errors: UserError where there are fewer than `count`.
    """
    if class_idx is None:
        indices = np.arange(len(training_set))
    elif training_set.class_indices is not None:
        indices = np.flatnonzero(training_set.class_indices == class_idx)
    else:
        indices = np.flatnonzero(training_set.labels[:, class_idx] > 0)
    if len(indices) < count:
        what = '' if class_idx is None else f' of class {class_idx}'
        raise UserError(f'data set {training_set.name} has {len(indices)} images{what}; expected at least '
                        f'{count}, as many as neighbours')
    return indices


def check_training_set(training_set: 'Dataset', network: Any) -> None:
    """Errors: UserError for a data set whose images or classes are not those of a network."""
    shape, label_size = network.output_shape[1:], network.input_shapes[1][1] if network.num_inputs > 1 else 0
    if list(training_set.shape) != list(shape):
        raise UserError(f'network {network.name} makes images of shape {list(shape)}, those of data set '
                        f'{training_set.name} have {list(training_set.shape)}')
    if training_set.label_size != label_size:
        raise UserError(f'network {network.name} has {label_size} classes, data set {training_set.name} '
                        f'{training_set.label_size}; expected what the network was trained on')


def nearest(samples: np.ndarray, training_set: 'Dataset', indices: np.ndarray, k: int,
            function: Callable[[np.ndarray], np.ndarray], batch_size: int,
            progress: Callable[[Iterator, int], Iterator] = lambda items, total: items) -> Neighbours:
    """The k nearest of some training images, which are read and compared part by part.

    Args:
        samples: uint8 [N, H, W, C].
        indices: Of the training images to choose from.
        function: See space_function.
        batch_size: Training images at a time.
        progress: Wraps the iterator of parts, of a total number.
    """
    wanted = np.concatenate([function(samples[i:i + batch_size]) for i in range(0, len(samples), batch_size)])
    best = Neighbours(np.zeros([len(samples), 0], np.int64), np.zeros([len(samples), 0]))
    step = max(min(_CHUNK_VALUES // max(wanted.shape[1], samples[0].size), batch_size), 1)
    parts = [indices[i:i + step] for i in range(0, len(indices), step)]
    for part in progress(iter(parts), len(parts)):
        found = function(training_set.read(part)[0])
        # Differences, not products: a copy has distance 0.
        distances = np.stack([np.sqrt(np.sum(np.square(found - row), axis=1)) for row in wanted])
        merged = Neighbours(np.concatenate([best.indices, np.tile(part, [len(samples), 1])], axis=1),
                            np.concatenate([best.distances, distances], axis=1))
        order = np.argsort(merged.distances, axis=1, kind='stable')[:, :k]
        best = Neighbours(*(np.take_along_axis(array, order, axis=1) for array in merged))
    return best


def sheet_of_sample(sample: np.ndarray, neighbours: Sequence[np.ndarray], scale: int) -> np.ndarray:
    """One picture: the sample top left, its neighbours after it, the closest first; images [C, H, W]."""
    cells: list[np.ndarray | None] = [figures.enlarge(image, scale) for image in (sample, *neighbours)]
    columns = math.ceil(math.sqrt(len(cells)))
    cells += [None] * (-len(cells) % columns)
    return figures.sheet([cells[i:i + columns] for i in range(0, len(cells), columns)])
