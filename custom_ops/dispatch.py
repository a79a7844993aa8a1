"""Which implementation an operation takes: the compiled one, or one composed of TensorFlow operations."""

import types

import tensorflow as tf
from tensorflow.python.framework import ops
from tensorflow.python.ops import control_flow_util

from dnnlib.util import UserError

IMPLEMENTATIONS = ('auto', 'custom', 'ref', 'cuda')
COMPILED_DTYPES = (tf.float16, tf.bfloat16, tf.float32, tf.float64)


def _build() -> types.ModuleType:
    """custom_ops.build, imported late: `python -m custom_ops.build` imports the package before it runs."""
    from custom_ops import build
    return build


def default_mode() -> str:
    """What impl='auto' means in this process: 'auto', 'custom' or 'ref', see custom_ops.build.set_mode."""
    return _build().get_mode()


def check_impl(impl: str) -> None:
    """Raises UserError unless `impl` names an implementation."""
    if impl not in IMPLEMENTATIONS:
        raise UserError(f'impl must be one of {", ".join(IMPLEMENTATIONS)}. Received: {impl!r}')


def compiled_ops(impl: str, dtype: tf.DType, faster: bool) -> types.ModuleType | None:
    """The compiled operations if they are to be taken, None for what is composed of TensorFlow's.

    Args:
        impl: 'custom' = always, UserError if they cannot be had; 'ref' = never; 'auto', officially 'cuda' =
            as the mode of the process says, see custom_ops.build.set_mode, but never where XLA compiles, and
            on a GPU only if they have been seen to give the right results.
        dtype: of the activations.
        faster: whether the compiled operation is faster on a CPU (measured: `python -m benchmarks.ops`).
    """
    check_impl(impl)
    build = _build()
    if impl == 'custom':
        if dtype not in COMPILED_DTYPES:
            names = ', '.join(supported.name for supported in COMPILED_DTYPES)
            raise UserError(f"impl='custom' works on {names}. Received: {dtype.name}")
        return build.require_library()
    mode = build.get_mode()
    if impl == 'ref' or mode == 'ref' or dtype not in COMPILED_DTYPES or in_xla():
        return None
    if mode == 'custom':
        return build.require_library()
    if has_gpu():
        from custom_ops import self_check
        library = build.load_library()
        return library if build.has_gpu_kernels() and self_check.passed() else None
    return build.load_library() if faster else None


def host_constant(value) -> tf.Tensor:
    """A float64 constant in host memory, where the compiled operations want their parameters.

    Left to itself TensorFlow puts it on the GPU, and each call would wait for its copy to come back.
    """
    with tf.device('CPU:0'):
        return tf.constant(value, tf.float64)


def in_xla() -> bool:
    """Whether the function being traced is compiled by XLA, which knows no operations of others.

    A function that was traced outside before, and is now called by a compiled one, is not traced again: such
    a function has to be called with impl='ref'.
    """
    return control_flow_util.GraphOrParentsInXlaContext(ops.get_default_graph())


def has_gpu() -> bool:
    """Whether TensorFlow sees a GPU, which then does the work."""
    return bool(tf.config.list_logical_devices('GPU'))
