"""Small TensorFlow helpers under their official names: start-up, images, interpolation, variable access.

TensorFlow 2 has no session. What only makes sense with one (`create_session`, feed dictionaries) raises an
error that names its replacement; everything else works as it did.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import keras
import numpy as np
import tensorflow as tf

from dnnlib.util import UserError

__all__ = [
    'Optimizer', 'TfExpression', 'TfExpressionEx', 'Update', 'absolute_name_scope', 'absolute_variable_scope',
    'assert_tf_initialized', 'convert_images_from_uint8', 'convert_images_to_uint8',
    'create_session', 'create_var_with_large_initial_value', 'exp2', 'flatten', 'get_plugin', 'init_tf',
    'init_uninitialized_vars', 'is_tf_expression', 'lerp', 'lerp_clip', 'log2', 'run', 'set_vars',
    'shape_to_list',
]

TfExpression = tf.Tensor | tf.Variable | tf.Operation
TfExpressionEx = TfExpression | int | float | np.ndarray    # What can stand where a tensor is expected.

_DEFAULT_CONFIG = {
    'rnd.np_random_seed': None,        # Seed of numpy's global generator. None = leave it as it is.
    'rnd.tf_random_seed': 'auto',      # Seed of TensorFlow's. 'auto' = drawn from numpy's. None = leave it.
    'env.TF_CPP_MIN_LOG_LEVEL': '1',   # 0 = print everything, 1 = warnings and errors, 2 = errors.
    'gpu_options.allow_growth': True,  # Take GPU memory as it is needed instead of all at once.
    'gpu_options.allow_tf32': False,   # TensorFloat-32: multiply with 10 of the 23 bits, where GPUs can.
}

_initialized = False


def init_tf(config_dict: Mapping[str, Any] | None = None) -> None:
    """Prepares TensorFlow: random seeds, memory and precision of GPUs, log level. Only the first call acts.

    Args:
        config_dict: Overrides of the official option names. `rnd.np_random_seed`, `rnd.tf_random_seed`,
            `env.<VARIABLE>`, `gpu_options.allow_growth` and `gpu_options.allow_tf32` act; options of a
            session have no effect.
    """
    global _initialized
    if _initialized:
        return
    config = {**_DEFAULT_CONFIG, **(config_dict or {})}
    for key, value in config.items():
        if key.startswith('env.'):
            os.environ.setdefault(key.removeprefix('env.'), str(value))
    if config['rnd.np_random_seed'] is not None:
        np.random.seed(config['rnd.np_random_seed'])
    tf_seed = config['rnd.tf_random_seed']
    if tf_seed == 'auto':
        tf_seed = np.random.randint(1 << 31)
    if tf_seed is not None:
        tf.random.set_seed(int(tf_seed))
    if config['gpu_options.allow_growth']:
        for gpu in tf.config.list_physical_devices('GPU'):
            try:
                tf.config.experimental.set_memory_growth(gpu, True)
            except RuntimeError:
                break  # The GPUs are in use already, with the memory policy that their first user chose.
    tf.config.experimental.enable_tensor_float_32_execution(config['gpu_options.allow_tf32'])
    _initialized = True


def assert_tf_initialized() -> None:
    """Calls `init_tf()` if the script has not. (The official one raises, for want of a session.)"""
    init_tf()


def create_session(*_args, **_kwargs) -> NoReturn:
    """Not available. Raises: UserError that says what to do instead."""
    raise UserError('create_session is not available: TensorFlow 2 has no session; leave the call out, '
                    'or call tflib.init_tf() to set seeds and GPU memory growth')


def init_uninitialized_vars(target_vars: Iterable | None = None) -> None:
    """Does nothing: a TensorFlow 2 variable has its value from the moment it is made."""


def get_plugin(*_args, **_kwargs) -> NoReturn:
    """Not available. Raises: UserError that says what to do instead."""
    raise UserError('get_plugin is not available: `custom_ops` compiles and loads its operations itself; '
                    'import fused_bias_act, upfirdn_2d, … from dnnlib.tflib.ops or custom_ops')


class Optimizer:
    """Not available. Making one raises UserError that says what to use instead."""

    def __init__(self, *_args, **_kwargs):
        raise UserError('tflib.Optimizer is not available: it registers gradients in a graph; use '
                        'training.optimizer.Optimizer, the same Adam with one apply per step, with gradients '
                        'of a tf.GradientTape, or an optimizer of keras.optimizers')


class Update:
    """Something that happens whenever it is called, or passed to `run`: an operation of TensorFlow 1.

    Args:
        func: Does it.
        name: What it is, for people.
    """

    def __init__(self, func: Callable[[], Any], name: str):
        self._func, self.name = func, name

    def __call__(self) -> None:
        self._func()

    def __repr__(self) -> str:
        return f'<Update {self.name!r}>'


@contextlib.contextmanager
def absolute_name_scope(scope: str) -> Iterator[str]:
    """Names of operations made inside begin with `scope`, whatever scope is open outside."""
    with tf.name_scope(f'{scope.rstrip("/")}/') as name:
        yield name


@contextlib.contextmanager
def absolute_variable_scope(scope: str, **_kwargs) -> Iterator[str]:
    """As `absolute_name_scope`. Variables have the names they are made with; other arguments do nothing."""
    with absolute_name_scope(scope) as name:
        yield name


def create_var_with_large_initial_value(initial_value: np.ndarray, *args, **kwargs) -> tf.Variable:
    """A variable with that initial value, however large."""
    return tf.Variable(initial_value, *args, **kwargs)


def is_tf_expression(x: Any) -> bool:
    """True for a tensor, a variable (of TensorFlow or Keras) or an operation."""
    return isinstance(x, TfExpression | keras.Variable | keras.KerasTensor)


def shape_to_list(shape: Iterable) -> list[int | None]:
    """A tf.TensorShape, or any sequence of dimensions, as a list of integers; unknown ones are None."""
    return [None if dim is None else int(dim) for dim in (getattr(d, 'value', d) for d in shape)]


def flatten(x: Any) -> tf.Tensor:
    """All elements in one axis: [...] → [count]."""
    return tf.reshape(x, [-1])


def log2(x: Any) -> tf.Tensor:
    """Logarithm to base 2, in the precision of `x`."""
    x = tf.convert_to_tensor(x)
    return tf.math.log(x) * tf.constant(1 / np.log(2), x.dtype)


def exp2(x: Any) -> tf.Tensor:
    """2 to the power of `x`, in the precision of `x`."""
    x = tf.convert_to_tensor(x)
    return tf.exp(x * tf.constant(np.log(2), x.dtype))


def lerp(a: Any, b: Any, t: Any) -> Any:
    """Linear interpolation, `a` at t = 0 and `b` at t = 1, of tensors, arrays or numbers. Extrapolates."""
    return a + (b - a) * t


def lerp_clip(a: Any, b: Any, t: Any) -> tf.Tensor:
    """Linear interpolation with t limited to [0, 1]."""
    return a + (b - a) * tf.clip_by_value(t, 0.0, 1.0)


def convert_images_from_uint8(images: Any, drange: Sequence[float] = (-1, 1),
                              nhwc_to_nchw: bool = False) -> tf.Tensor:
    """Maps uint8 images to float32 so that 0 becomes drange[0] and 255 becomes drange[1].

    Args:
        images: [N, C, H, W], or [N, H, W, C] where `nhwc_to_nchw` is set. Any real dtype.
        drange: Dynamic range of the result.
        nhwc_to_nchw: Also transpose from NHWC to NCHW.
    """
    images = tf.cast(images, tf.float32)
    if nhwc_to_nchw:
        images = tf.transpose(images, [0, 3, 1, 2])
    return images * ((drange[1] - drange[0]) / 255) + drange[0]


def convert_images_to_uint8(images: Any, drange: Sequence[float] = (-1, 1), nchw_to_nhwc: bool = False,
                            shrink: int = 1) -> tf.Tensor:
    """Maps float images to uint8 so that drange[0] becomes 0 and drange[1] becomes 255; saturates beyond.

    Truncates after adding one half: with the default range an image value x becomes x · 127.5 + 128.

    Args:
        images: [N, C, H, W], any real dtype.
        drange: Dynamic range of `images`.
        nchw_to_nhwc: Return [N, H, W, C] instead of [N, C, H, W].
        shrink: Reduce height and width by this integer factor, averaging shrink × shrink boxes of pixels;
            rows and columns that do not fill a box are left out.

    Raises: UserError for a `shrink` below 1 or an image that is not of rank 4.
    """
    images = tf.cast(images, tf.float32)
    if images.shape.rank != 4:
        raise UserError(f'convert_images_to_uint8: images have shape {images.shape}, expected [N, C, H, W]')
    if shrink != int(shrink) or shrink < 1:
        raise UserError(f'convert_images_to_uint8: shrink is {shrink}, expected an integer of 1 or more')
    if nchw_to_nhwc or shrink > 1:
        images = tf.transpose(images, [0, 2, 3, 1])  # Pooling runs on CPUs in NHWC only.
    if shrink > 1:
        images = tf.nn.avg_pool2d(images, int(shrink), int(shrink), 'VALID')
        if not nchw_to_nhwc:
            images = tf.transpose(images, [0, 3, 1, 2])
    scale = 255 / (drange[1] - drange[0])
    return tf.saturate_cast(images * scale + (0.5 - drange[0] * scale), tf.uint8)


def set_vars(var_to_value_dict: Mapping[Any, Any] | Iterable[tuple[Any, Any]]) -> None:
    """Assigns new values to variables.

    Args:
        var_to_value_dict: {variable: value} with variables of a Network, {variable.ref(): value} for a
            tf.Variable, which has no hash of its own, or an iterable of (variable, value). Values are arrays,
            tensors, variables or numbers.

    Raises: UserError where a value's shape is not the variable's; no variable is changed then.
    """
    items = var_to_value_dict.items() if isinstance(var_to_value_dict, Mapping) else var_to_value_dict
    pairs = [(key.deref() if hasattr(key, 'deref') else key, _value_of(value)) for key, value in items]
    for variable, value in pairs:
        if not isinstance(variable, keras.Variable | tf.Variable):
            raise UserError('set_vars: expected variables, such as those of Gs.vars, '
                            f'received {variable!r:.60}')
        if tuple(np.shape(value)) != tuple(variable.shape):
            raise UserError(f'set_vars: the value for {variable.name} has shape {list(np.shape(value))}, '
                            f'expected {list(variable.shape)}')
    for variable, value in pairs:
        variable.assign(tf.cast(value, variable.dtype))


def _value_of(x: Any) -> Any:
    # Read before anything is assigned, so that variables can swap their values.
    return tf.convert_to_tensor(x) if isinstance(x, keras.Variable | tf.Variable) else x


def run(fetches: Any, feed_dict: Mapping | None = None, options: Any = None, run_metadata: Any = None) -> Any:
    """Values of eager tensors and variables as numpy arrays, in the same structure (nested lists, tuples,
    dictionaries); an `Update` happens and gives None.

    Operations have run already when they get here, and what is no tensor is returned unchanged. Options and
    metadata of a session are ignored.

    Raises: UserError for a feed dictionary or a symbolic tensor, which need a session.
    """
    del options, run_metadata
    if feed_dict:
        raise UserError('tflib.run: feed_dict is not available, TensorFlow 2 has no placeholders; '
                        'call the network with the values, for example Gs.run(latents, labels)')
    if isinstance(fetches, Mapping):    # tf.nest sorts the keys, which variables do not allow.
        return type(fetches)((key, run(value)) for key, value in fetches.items())
    if isinstance(fetches, list | tuple) and not hasattr(fetches, '_fields'):
        return type(fetches)(run(value) for value in fetches)
    return tf.nest.map_structure(_evaluate, fetches)


def _evaluate(x: Any) -> Any:
    if isinstance(x, Update):
        return x()
    if not is_tf_expression(x):
        return x
    if isinstance(x, tf.Operation | keras.KerasTensor) or not hasattr(x, 'numpy'):
        raise UserError(f'tflib.run: {x.name!r} is symbolic and has no value; '
                        'return it from its tf.function and use the result of the call')
    value = x.numpy()
    return value.copy() if isinstance(value, np.ndarray) else value     # Not a window on the memory of x.
