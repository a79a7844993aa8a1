"""`Network.run` and `get_output_for`: checked inputs, traced functions, minibatches, transforms."""

import inspect
import sys
import threading
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from dnnlib.util import UserError, did_you_mean, get_obj_by_name

MAX_FUNCTIONS = 64      # Traced functions that a network keeps; each set of arguments of `run` makes one.

# Arguments of the official networks that mean nothing here, or that any of our networks understands.
_UNDERSTOOD = ('ctx', 'randomize_noise', 'structure', 'lod')
_WITHOUT_EFFECT = (
    'is_training', 'is_validation', 'return_dlatents', 'is_template_graph', 'force_clean_graph',
    'fused_modconv', 'components', 'impl', 'dlatent_avg_beta', 'style_mixing_prob', 'truncation_psi',
    'truncation_cutoff', 'truncation_psi_val', 'truncation_cutoff_val')
# Numbers that go into a traced function as inputs, so that a sweep does not trace it again.
_NUMBERS = ('truncation_psi', 'truncation_psi_val')

_warned: set[tuple[str, str]] = set()


class Functions:
    """The traced functions of a network, by their arguments; the least recently used ones are forgotten."""

    def __init__(self):
        self._functions: dict = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._functions)

    def __call__(self, layer: Any, kwargs: Mapping, numbers: Mapping, stage: Any) -> Callable:
        """The function (inputs, numbers) → outputs of a layer with these arguments and names of numbers."""
        key = (stage, freeze(dict(kwargs)), tuple(sorted(numbers)))
        with self._lock:
            function = self._functions.pop(key, None) or _trace(layer, dict(kwargs), numbers, stage)
            self._functions[key] = function
            if len(self._functions) > MAX_FUNCTIONS:
                self._functions.pop(next(iter(self._functions)))
            return function

    def tracing_count(self) -> int:
        """How often the functions that are kept were traced."""
        return sum(function.experimental_get_tracing_count() for function in self._functions.values())


def _trace(layer: Any, kwargs: dict, numbers: Mapping, stage: Any) -> Callable:
    from training.context import Context

    def function(inputs, numbers):
        return evaluate(layer, inputs, {'ctx': Context(stage=stage), **kwargs, **numbers})
    dtype = layer.compute_dtype
    signature = ([tf.TensorSpec([None, *shape[1:]], dtype) for shape in layer.input_shapes],
                 {name: tf.TensorSpec([], dtype) for name in numbers})
    return tf.function(function, autograph=False, input_signature=signature)


def evaluate(layer: Any, inputs: Sequence, kwargs: dict) -> Any:
    """Outputs of a layer (NHWC) for inputs in NCHW, themselves in NCHW; inputs that are None are zeros."""
    if any(x is None for x in inputs):
        count = tf.shape(next(x for x in inputs if x is not None))[0]
        inputs = [tf.zeros([count, *shape[1:]]) if x is None else x
                  for x, shape in zip(inputs, layer.input_shapes, strict=True)]
    inputs = [_transpose(_as_tensor(x, layer.compute_dtype), [0, 2, 3, 1]) for x in inputs]
    outputs = layer(*inputs, **kwargs)
    return tf.nest.map_structure(lambda x: _transpose(x, [0, 3, 1, 2]), outputs)


def _as_tensor(x: Any, dtype: str) -> tf.Tensor:
    if not hasattr(x, 'dtype'):
        x = np.asarray(x)
    return tf.cast(x, dtype) if x.dtype != dtype else tf.convert_to_tensor(x)


def _transpose(x: tf.Tensor, order: list[int]) -> tf.Tensor:
    return tf.transpose(x, order) if x.shape.rank == 4 else x


def run(network: Any, functions: Functions, in_arrays: tuple, transforms: list, minibatch_size: int | None,
        print_progress: bool, kwargs: dict) -> list[np.ndarray]:
    """See `Network.run`. Returns the list of outputs.

    Args:
        functions: Of the network.
        transforms: The first for the inputs, the others, one after the other, for the outputs.
    """
    arrays = _as_arrays(network, in_arrays)
    num_items = len(arrays[0])
    size = _check_size(minibatch_size) or max(num_items, 1)
    layer = network.layer
    if transforms[0] is None:
        _check_arrays(network, arrays)
    if num_items == 0:      # What nothing would look like: none of what one would give.
        arrays = [np.zeros([1, *array.shape[1:]], array.dtype) for array in arrays]
    numbers = {name: value for name, value in kwargs.items() if _is_number(layer, name, value)}
    function = functions(layer, {name: value for name, value in kwargs.items() if name not in numbers},
                         numbers, layer.stage())
    numbers = {name: tf.cast(value, layer.compute_dtype) for name, value in numbers.items()}
    if not tf.config.functions_run_eagerly():
        # TensorFlow counts the traces of all networks together, and would warn of clones as of retracing.
        function = function.get_concrete_function()
    results = []
    with tqdm(total=num_items, unit='img', disable=not print_progress, file=sys.stdout) as progress:
        for begin in range(0, max(num_items, 1), size):
            inputs = [tf.constant(array[begin:begin + size]) for array in arrays]
            if transforms[0] is not None:
                inputs = _check_transformed(network, transforms[0](*inputs))
            _check_group(network, int(inputs[0].shape[0]))
            outputs = tf.nest.flatten(function(inputs, numbers))
            # Transforms are not part of the trace: a function made anew for each call would make a new one.
            for transform in transforms[1:]:
                outputs = outputs if transform is None else transform(*outputs)
            results.append([np.asarray(output) for output in outputs])
            progress.update(min(size, num_items - begin))
    if any(output.ndim == 0 for output in results[0]):
        raise UserError(f'network {network.name}: output_transform should keep the axis of the samples. '
                        'Received: a scalar')
    merged = [np.concatenate(group) for group in zip(*results, strict=True)]
    return merged if num_items else [array[:0] for array in merged]


def check_count(network: Any, inputs: tuple) -> None:
    """Raises UserError unless there is an input, and not more than the network has."""
    if any(isinstance(x, keras.KerasTensor) for x in inputs):
        raise UserError(f'network {network.name}: in a Keras model call its attribute layer (NHWC) instead. '
                        'Received: a KerasTensor')
    if not 0 < len(inputs) <= network.num_inputs or all(x is None for x in inputs):
        received = len([x for x in inputs if x is not None])
        raise UserError(f'network {network.name} has {network.num_inputs} inputs, of which it needs one: '
                        f'{", ".join(network.input_names)}. Received: {received or "none"}')


def _as_arrays(network: Any, in_arrays: tuple) -> list[np.ndarray]:
    """The inputs as arrays of the network's type; those left out or None become zeros, as no labels do."""
    if len(in_arrays) == 1 and isinstance(in_arrays[0], Iterator):
        in_arrays = (list(in_arrays[0]),)
    check_count(network, in_arrays)
    if not tf.executing_eagerly() or any(tf.is_symbolic_tensor(x) for x in in_arrays):
        raise UserError(f'network {network.name}: run takes arrays and gives arrays; in a tf.function call '
                        'get_output_for')
    dtype = network.layer.compute_dtype
    arrays: list[np.ndarray | None] = []
    for name, shape, array in zip(network.input_names, network.input_shapes, padded(in_arrays, network),
                                  strict=True):
        if array is not None:
            try:
                array = np.asarray(list(array) if isinstance(array, Iterator) else array)
            except ValueError:      # Rows of different lengths.
                array = np.asarray(None)
            if array.dtype.kind not in 'biuf' or array.ndim == 0:
                raise UserError(f'network {network.name}: {name} should be an array of numbers of shape '
                                f'{_text(shape)}. Received: {array.dtype} {array.shape}')
            array = array.astype(dtype, copy=False)
        arrays.append(array)
    num_items = next(len(array) for array in arrays if array is not None)
    return [np.zeros([num_items, *shape[1:]], dtype) if array is None else array
            for shape, array in zip(network.input_shapes, arrays, strict=True)]


def padded(in_arrays: tuple, network: Any) -> list:
    """The inputs, None for those left out."""
    return [*in_arrays, *[None] * (network.num_inputs - len(in_arrays))]


def _check_arrays(network: Any, arrays: list) -> None:
    num_items = int(arrays[0].shape[0])
    for name, shape, array in zip(network.input_names, network.input_shapes, arrays, strict=True):
        expected = (num_items, *shape[1:])
        if tuple(array.shape) != expected:
            raise UserError(f'network {network.name}: {name} should be of shape {expected} '
                            f'({_text(shape)}). Received: {tuple(array.shape)}')


def _check_transformed(network: Any, inputs: list) -> list[tf.Tensor]:
    if len(inputs) != network.num_inputs:
        raise UserError(f'network {network.name}: input_transform should return {network.num_inputs} inputs. '
                        f'Received: {len(inputs)}')
    inputs = [_as_tensor(x, network.layer.compute_dtype) for x in inputs]
    _check_arrays(network, inputs)
    return inputs


def _check_size(minibatch_size: Any) -> int | None:
    if minibatch_size is None:
        return None
    if isinstance(minibatch_size, bool) or not isinstance(minibatch_size, int | np.integer) \
            or minibatch_size < 1:
        raise UserError(f'minibatch_size should be an integer of 1 or more. Received: {minibatch_size!r}')
    return int(minibatch_size)


def _check_group(network: Any, count: int) -> None:
    """A minibatch has to divide into the groups of the minibatch standard deviation."""
    group = min(getattr(network.layer, 'mbstd_group_size', 0) or 0, count)
    if group > 1 and count % group:
        raise UserError(f'network {network.name}: a minibatch must be divisible by {group}, the group size '
                        f'of the minibatch standard deviation. Received: {count} samples; pass '
                        f'minibatch_size={group}')


def as_function(transform: Any, name: str) -> Callable[..., list] | None:
    """The function (*tensors) → list of tensors that dict(func=..., **kwargs) stands for."""
    if transform is None:
        return None
    if callable(transform):
        transform = {'func': transform}
    kwargs = dict(transform) if isinstance(transform, Mapping) else {}
    func = kwargs.pop('func', None)
    func = get_obj_by_name(func) if isinstance(func, str) else func
    if not callable(func):
        raise UserError(f'{name} should be a dict such as dict(func=tflib.convert_images_to_uint8, '
                        f'nchw_to_nhwc=True). Received: {transform!r:.100}')
    return lambda *tensors: tf.nest.flatten(func(*tensors, **kwargs))


def scaling(out_mul: float, out_add: float, out_shrink: int, out_dtype: Any) -> Callable[..., list] | None:
    """The function (*tensors) → list of tensors of ProGAN's arguments out_mul, …; None if it does nothing."""
    if (out_mul, out_add, out_shrink, out_dtype) == (1, 0, 1, None):
        return None
    if isinstance(out_shrink, bool) or not isinstance(out_shrink, int | np.integer) or out_shrink < 1:
        raise UserError(f'out_shrink should be an integer of 1 or more. Received: {out_shrink!r}')

    def scale(x):
        x = x * tf.constant(out_mul, x.dtype) + tf.constant(out_add, x.dtype)
        if out_shrink > 1 and x.shape.rank == 4:
            x = tf.nn.avg_pool2d(tf.transpose(x, [0, 2, 3, 1]), out_shrink, out_shrink, 'VALID')
            x = tf.transpose(x, [0, 3, 1, 2])
        if out_dtype is None:
            return x
        return tf.saturate_cast(tf.round(x) if tf.as_dtype(out_dtype).is_integer else x, out_dtype)
    return lambda *tensors: [scale(x) for x in tensors]


def _is_number(layer: Any, name: str, value: Any) -> bool:
    """Does this argument go into the traced function as an input? 1 stays an argument: it computes less."""
    if name not in _NUMBERS or name not in _call_arguments(layer) or isinstance(value, bool):
        return False
    if isinstance(value, int | float | np.integer | np.floating):
        return value != 1
    return getattr(value, 'shape', None) == () and not isinstance(value, str)


def check_dynamic(network: Any, kwargs: dict) -> None:
    """Says which arguments of a call have no effect: those of the construction, and those of no network.

    Officially any name is accepted. One that nobody knows gives a warning, once, because it may be a typing
    error; one that would make another network of this one an error.
    """
    if not kwargs:
        return
    layer = network.layer
    known = {*_call_arguments(layer), *_UNDERSTOOD}
    made_with = None
    for name, value in kwargs.items():
        if name in known or name in _WITHOUT_EFFECT:
            continue
        made_with = made_with or _constructor_arguments(layer)
        if name in made_with:
            present = network.static_kwargs.get(name, made_with[name])
            if freeze(present) != freeze(value) and not _equal(present, value):
                raise UserError(f'network {network.name}: {name} belongs to the construction of the network; '
                                f'use clone({name}={value!r:.40}), which makes another one')
        elif (network.name, name) not in _warned:
            _warned.add((network.name, name))
            warnings.warn(f'network {network.name} does not know the argument {name!r}, it has no effect'
                          f'{did_you_mean(name, sorted(known - {"ctx"}))}', stacklevel=3)


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(np.array_equal(a, b))
    except (TypeError, ValueError):
        return False


def _call_arguments(layer: Any) -> set[str]:
    """Names of the arguments of a layer's call that are not inputs."""
    return {name for name, parameter in inspect.signature(type(layer).call).parameters.items()
            if parameter.kind is not parameter.VAR_KEYWORD} - {'self', *layer.input_names}


def _constructor_arguments(layer: Any) -> dict[str, Any]:
    """{name: default} of all arguments that a layer and its components are made with."""
    found: dict[str, Any] = {}
    for component in layer.components.values():
        found.update(_constructor_arguments(component))
    for cls in reversed(type(layer).__mro__):
        if cls.__module__.startswith('training.'):
            found.update({name: parameter.default
                          for name, parameter in inspect.signature(cls.__init__).parameters.items()
                          if parameter.default is not parameter.empty})
    return found


def freeze(value: Any) -> Hashable:
    """A hashable stand-in, equal only for equal arguments."""
    if isinstance(value, dict):
        return tuple((key, freeze(item)) for key, item in sorted(value.items()))
    if isinstance(value, list | tuple):
        return type(value).__name__, tuple(map(freeze, value))
    if isinstance(value, np.ndarray | np.generic | tf.Tensor | tf.Variable):
        array = np.asarray(value)
        return array.dtype.str, array.shape, array.tobytes()
    # The type keeps 1, 1.0 and True apart.
    return (type(value).__name__, value) if isinstance(value, Hashable) else (id(value), repr(value))


def _text(shape: list) -> str:
    return '(' + ', '.join('?' if size is None else str(size) for size in shape) + ')'
