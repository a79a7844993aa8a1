"""Classifiers of image attributes: NVIDIA's for CelebA-HQ, or those of train_classifiers.py; finding, reading
and asking them.

A set of classifiers is the files `<set>-classifier-<NN>-<attribute>.pkl` in one folder. Each holds one
network in the official pickle form: a discriminator without minibatch standard deviation, whose score is
positive for yes.
"""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import numpy as np
import tensorflow as tf

from dnnlib.tflib import legacy
from dnnlib.tflib.network import Network
from dnnlib.transfer import file_sha256
from dnnlib.util import UserError, did_you_mean
from training.context import Context
from training.growing import Stage

from . import weights

OFFICIAL_SET, OFFICIAL_COUNT = 'celebahq', 40

# In the cache of downloads, the md5 sum of the address stands before the name.
_FILE = re.compile(r'(?:[0-9a-f]{32}_)?(?P<set>.+)-classifier-(?P<index>\d{2,})-(?P<name>.+)\.pkl')


class ClassifierFile(NamedTuple):
    """Where a classifier lies."""

    index: int
    name: str       # Of the attribute.
    path: str


class Classifier(NamedTuple):
    """A classifier that was read."""

    file: ClassifierFile
    network: Network
    stage: Stage | None     # Of a growing network: its level of detail.
    sha256: str


def find_classifiers(weights_dir: str | None = None, which: str | None = None,
                     indices: Sequence[int] | None = None) -> tuple[str, list[ClassifierFile]]:
    """A set of classifiers: its name, and its files in the order of their numbers.

    Searched are the folder given, else $STYLEGAN_WEIGHTS_DIR; then `weights` and `downloads` of the cache
    directory. The first of them that has classifiers counts.

    Args:
        which: Name of the set, where a folder has several; or a folder to search instead.
        indices: Numbers of the classifiers to use. None = all that there are.

    Errors: UserError where there are none, or which are meant is not clear.
    """
    if which is not None and os.path.isdir(os.path.expanduser(which)):
        directories, which = [os.path.abspath(os.path.expanduser(which))], None
    else:
        directories = weights.directories(weights_dir)
    seen: list[str] = []
    for directory in directories:
        sets = _sets_in(directory)
        seen += sets
        if which in sets if which is not None else sets:
            break
    else:
        _report_missing(directories, which, seen)
    if which is None and len(sets) > 1:
        raise UserError(f'{directory} holds several sets of classifiers, {", ".join(sorted(sets))}; choose '
                        'one by its name, or keep each in a folder of its own')
    name = which or next(iter(sets))
    files = sets[name]
    if indices is not None:
        missing = sorted(set(indices) - {file.index for file in files})
        if missing:
            raise UserError(f'{directory} holds {len(files)} classifiers {name}; missing: those numbered '
                            f'{", ".join(map(str, missing))}')
        files = [file for file in files if file.index in indices]
    return name, files


def _sets_in(directory: str) -> dict[str, list[ClassifierFile]]:
    try:
        names = sorted(os.listdir(directory), key=lambda name: (len(name), name))
    except OSError:
        return {}
    found: dict[str, dict[tuple[int, str], ClassifierFile]] = {}
    for name in names:
        match = _FILE.fullmatch(name)
        if match and os.path.isfile(os.path.join(directory, name)):
            key = int(match['index']), match['name']
            found.setdefault(match['set'], {}).setdefault(
                key, ClassifierFile(*key, os.path.join(directory, name)))
    return {name: [files[key] for key in sorted(files)] for name, files in found.items()}


def _report_missing(directories: Sequence[str], which: str | None, seen: Sequence[str]) -> NoReturn:
    searched = [path for path in directories if os.path.isdir(path)] or list(directories[:1])
    hint = did_you_mean(which, seen, 1) if which else ''
    raise UserError(
        f'metric ls needs classifiers of attributes: found no {which or "*"}-classifier-NN-*.pkl in '
        f'{", ".join(searched)}{hint}; put NVIDIA\'s celebahq-classifier-00-male.pkl to '
        'celebahq-classifier-39-wearing-necktie.pkl (of StyleGAN) into the folder of --weights-dir or '
        '$STYLEGAN_WEIGHTS_DIR, or train own ones for your images by train_classifiers.py')


def load_classifier(file: ClassifierFile) -> Classifier:
    """Reads a classifier. Nothing in the file is executed.

    Errors: UserError for a damaged file or a network that is no classifier; OSError.
    """
    with open(file.path, 'rb') as opened:
        sha256 = file_sha256(opened)
    try:
        states = legacy.network_states(legacy.load_pkl(file.path))
        if len(states) != 1:
            raise UserError(f'expected one network, found {len(states)}')
        network = Network.from_state(_without_minibatch_stddev(states[0]))
        _check(network)
    except UserError as error:
        message = str(error).removeprefix(f'{file.path}: ')
        raise UserError(f'{file.path}: {message} (read as a classifier)') from None
    return Classifier(file, network, network.layer.stage(), sha256)


def _without_minibatch_stddev(state: legacy.NetworkState) -> legacy.NetworkState:
    """A discriminator whose source text turned the layer off, not its arguments, says so by its shapes."""
    conv = state.all_variables().get('4x4/Conv/weight')
    if 'mbstd_group_size' not in state.static_kwargs and conv is not None and conv.ndim == 4 and \
            conv.shape[2] == conv.shape[3]:
        state.static_kwargs['mbstd_group_size'] = 0
    return state


def _check(network: Network) -> None:
    images, *other_inputs = network.input_shapes
    scores, *other_outputs = network.output_shapes
    if len(images) != 4 or list(scores[1:]) != [1]:
        raise UserError('expected a network from images to scores, found '
                        f'{type(network.layer).__name__} from {images} to {scores}')
    if any(shape[1] for shape in [*other_inputs, *other_outputs]):
        raise UserError('expected a discriminator without labels')
    if getattr(network.layer, 'mbstd_group_size', 0) > 1:
        raise UserError('expected a discriminator without minibatch standard deviation (mbstd_group_size 0), '
                        'which looks at each image by itself; a discriminator of a GAN is no classifier')


def classifier_input(images: tf.Tensor, shape: Sequence[int], name: str = 'classifier') -> tf.Tensor:
    """Generated images as a classifier wants them: larger ones box-averaged, gray ones as RGB.

    Args:
        images: [N, C, H, W] in [-1, 1], neither clamped nor rounded.
        shape: [C, H, W] of the classifier.

    Errors: UserError for images that are too small, or of other channels.
    """
    channels, height, width = (int(size) for size in shape)
    found = [int(size) for size in images.shape[1:]]
    factor = found[1] // height
    if factor < 1 or [height * factor, width * factor] != found[1:] or \
            channels not in (found[0], 3 if found[0] in (1, 4) else found[0]):
        raise UserError(f'{name} is for images {[channels, height, width]} and larger ones, the generator '
                        f'makes {found}; train classifiers for its images by train_classifiers.py')
    images = tf.cast(images, tf.float32)
    if factor > 1:
        images = tf.reduce_mean(tf.reshape(
            images, [-1, found[0], height, factor, width, factor]), axis=[3, 5])
    if found[0] == 4 and channels == 3:
        return images[:, :3]
    return tf.repeat(images, channels, axis=1) if found[0] != channels else images


def logits(classifiers: Sequence[Classifier], images: tf.Tensor) -> tf.Tensor:
    """Scores [N, number of classifiers] of images [N, C, H, W], within a graph or eagerly."""
    columns, inputs = [], {}
    for classifier in classifiers:
        network = classifier.network
        shape = tuple(network.input_shape[1:])
        if shape not in inputs:
            inputs[shape] = classifier_input(images, shape, os.path.basename(classifier.file.path))
        scores = network.get_output_for(inputs[shape], ctx=Context(stage=classifier.stage))
        columns.append(scores[0] if isinstance(scores, list | tuple) else scores)
    return tf.cast(tf.concat(columns, axis=1), tf.float32)


def probabilities(scores: np.ndarray) -> np.ndarray:
    """softmax([score, -score]) of scores [...], in float32: [..., 2], of yes and of no."""
    pair = np.stack([scores, -scores], axis=-1).astype(np.float32)
    odds = np.exp(pair - pair.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)
