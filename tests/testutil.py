"""What the tests share: where the golden reference data lies and how to compare with it.

The golden data (numbers computed with the official TensorFlow 1 code) is looked for in `$STYLEGAN_GOLDEN`,
then in `../shared/golden` beside the checkout. The few small files that a clone alone needs are in
`tests/data`.
"""

import contextlib
import json
import os
import pathlib
import unittest

import numpy as np
import tensorflow as tf

from dnnlib.tflib import legacy
from dnnlib.tflib.network import find_network_class
from training.context import Context

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = ROOT / 'tests' / 'data'
GOLDEN = pathlib.Path(os.environ.get('STYLEGAN_GOLDEN', ROOT.parent / 'shared' / 'golden'))

needs_golden = unittest.skipUnless(
    GOLDEN.is_dir(), f'needs the whole golden reference data, which is not at {GOLDEN}')


def golden(*parts: str) -> str:
    """Path of a golden file; a copy in tests/data serves where the golden folder is absent."""
    path = GOLDEN.joinpath(*parts)
    return str(path if path.exists() else DATA.joinpath(*parts))


def load(*parts: str) -> dict[str, np.ndarray]:
    """All arrays of a golden npz file; `meta_json` is returned parsed under the key 'meta'."""
    with np.load(golden(*parts)) as file:
        arrays = {key: file[key] for key in file.files}
    arrays['meta'] = json.loads(str(arrays.pop('meta_json', '{}')))
    return arrays


def cases(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, dict[str, np.ndarray]]:
    """Groups arrays named `prefix/case/array` by case: {case: {array: value}}."""
    groups = {}
    for key, value in arrays.items():
        if key.startswith(prefix + '/'):
            case, _, name = key[len(prefix) + 1:].partition('/')
            groups.setdefault(case, {})[name] = value
    return groups


def nhwc(images: np.ndarray) -> np.ndarray:
    """[N, C, H, W] → [N, H, W, C]."""
    return np.transpose(images, [0, 2, 3, 1])


def nchw(images: np.ndarray) -> np.ndarray:
    """[N, H, W, C] → [N, C, H, W]."""
    return np.transpose(images, [0, 3, 1, 2])


def assert_close(test, actual, expected, rtol: float = 1e-4, atol_rel: float = 1e-4, msg: str = '') -> None:
    """|actual - expected| <= rtol·|expected| + atol_rel·max|expected|, shapes equal."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    test.assertEqual(actual.shape, expected.shape, msg)
    if expected.size:
        atol = atol_rel * float(np.max(np.abs(expected)))
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol, err_msg=msg)


def build_network(state: legacy.NetworkState, **kwargs):
    """The network of a pickle as a layer, its variables set to the pickled values."""
    network = find_network_class(state.build_func_name, state.version)(
        name=state.name, **{**state.static_kwargs, **kwargs})
    set_variables(network, state.all_variables())
    return network


def run_eagerly(test) -> None:
    """Without tracing until the end of the test: it takes most of the time of a run of a few steps."""
    tf.config.run_functions_eagerly(True)
    test.addCleanup(tf.config.run_functions_eagerly, False)


@contextlib.contextmanager
def traced():
    """With tracing, also after `run_eagerly`."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(False)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def load_networks(*parts: str, **kwargs) -> list:
    """The networks of a golden snapshot, (G, D, Gs)."""
    return [build_network(state, **kwargs) for state in legacy.load_pkl(golden(*parts))]


def fix_generator(G):
    """No noise, no mixing and no average of w: the generator calls that the losses were recorded with."""
    if G.components:
        G.synthesis.randomize_noise = False
        G.style_mixing_prob = G.dlatent_avg_beta = None
    return G


def set_lod(networks, lod: float) -> None:
    """Sets the level of detail of growing networks, their components included."""
    for network in networks:
        for name, variable in network.named_variables().items():
            if name.rpartition('/')[2] == 'lod':
                variable.assign(lod)


def set_variables(network, values: dict) -> None:
    """Assigns values {official name: array}, which must be exactly the network's variables."""
    variables = network.named_variables()
    if set(variables) != set(values):
        raise AssertionError(f'{network.name} has other variables: {sorted(set(variables) ^ set(values))}')
    for name, variable in variables.items():
        variable.assign(values[name])


def gradients(network, func) -> tuple:
    """(func(), {official name: gradient of its mean}) by trainable variable of the network; None = unused."""
    trainables = network.named_trainables()
    with tf.GradientTape() as tape:
        result = func()
        mean = tf.reduce_mean(result)
    values = tape.gradient(mean, [variable.value for variable in trainables.values()])
    return result, dict(zip(trainables, values, strict=True))


def assert_gradients(test, actual: dict, arrays: dict, prefix: str, tolerance: float) -> None:
    """Compares gradients with the recorded `<prefix>_names`, `_sum`, `_norm` and complete `<prefix>/...`.

    An error of `tolerance` times the norm is allowed per variable; it bounds what the sum may be off by.
    """
    names = [str(name) for name in arrays[f'{prefix}_names']]
    test.assertEqual(list(actual), names)
    unused = [name for name in names if actual[name] is None]
    actual = {name: np.zeros(1) if value is None else np.asarray(value) for name, value in actual.items()}
    sums, norms = arrays[f'{prefix}_sum'], arrays[f'{prefix}_norm']
    # The absolute part is for gradients that are zero but for rounding, as of a bias without effect.
    tiny = 1e-6 * float(np.max(norms))
    for index, name in enumerate(names):
        norm = float(norms[index])
        allowed = tolerance * norm + tiny
        test.assertNear(float(np.linalg.norm(actual[name])), norm, allowed, f'norm of {name}')
        test.assertNear(float(np.sum(actual[name])), float(sums[index]), allowed * actual[name].size ** 0.5,
                        f'sum of {name}')
        full = f'{prefix}/{name}'
        if full in arrays and name not in unused:
            assert_close(test, actual[name], arrays[full], 0, tolerance + tiny / max(norm, 1e-30), msg=full)


def assert_derivative(test, func, inputs, seed: int = 0, delta: float = 1e-5, rtol: float = 1e-6) -> None:
    """The gradient of a scalar function of float64 arrays, against central differences along a direction."""
    rng = np.random.RandomState(seed)
    inputs = [tf.constant(value, tf.float64) for value in inputs]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = func(*inputs)
    analytic = tape.gradient(y, inputs)
    for index, gradient in enumerate(analytic):
        direction = rng.randn(*inputs[index].shape)
        ends = [func(*(value + step * direction if i == index else value for i, value in enumerate(inputs)))
                for step in (delta, -delta)]
        numeric = float(ends[0] - ends[1]) / (2 * delta)
        scale = float(tf.norm(gradient)) * float(np.linalg.norm(direction)) + 1e-30
        test.assertNear(float(tf.reduce_sum(gradient * direction)), numeric, rtol * scale, f'input {index}')


def gradient_sum(func, seed: int = 0):
    """A scalar function whose gradient is of second order: the gradient of `func` in a fixed weighting."""
    def weighted(*inputs):
        rng = np.random.RandomState(seed)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = func(*inputs)
        return tf.add_n([tf.reduce_sum(g * rng.randn(*g.shape)) for g in tape.gradient(y, inputs)])
    return weighted


class RecordedContext(Context):
    """A context whose random numbers are given arrays, in the order in which they are asked for.

    Args:
        normals: arrays for normal(); each must have the shape asked for.
        uniforms: arrays for uniform(). integers: numbers for integers(). labels: arrays for random_labels().
        loss_state: {name: variable}.
        stage: training.growing.Stage; images of growing networks then have its size, as in training steps.
    """

    def __init__(self, normals=(), uniforms=(), integers=(), labels=(), loss_state=None, stage=None):
        super().__init__(keep_features=True, loss_state=loss_state, stage=stage)
        self.stage_size = stage is not None
        self._queues = {'normal': list(normals), 'uniform': list(uniforms), 'integers': list(integers),
                        'labels': list(labels)}
        self.reports = {}

    def _next(self, kind, shape):
        if not self._queues[kind]:
            raise AssertionError(f'no recorded {kind} left for shape {shape}')
        value = np.asarray(self._queues[kind].pop(0))
        shape = tf.get_static_value(tf.convert_to_tensor(shape))  # Also in a tf.function.
        if list(value.shape) != list(shape):
            raise AssertionError(f'recorded {kind} has shape {value.shape}, asked for {tuple(shape)}')
        return value

    def normal(self, shape, dtype=tf.float32):
        return tf.constant(self._next('normal', shape), dtype)

    def uniform(self, shape, dtype=tf.float32):
        return tf.constant(self._next('uniform', shape), dtype)

    def integers(self, shape, low, high):
        return tf.constant(self._next('integers', shape), tf.int32)

    def random_labels(self, minibatch_size):
        labels = self._queues['labels']
        return tf.constant(labels.pop(0)) if labels else tf.zeros([minibatch_size, 0])

    def report(self, name, values):
        self.reports[name] = values
        return values

    def all_used(self) -> bool:
        """True when every recorded number was asked for."""
        return not any(self._queues.values())
