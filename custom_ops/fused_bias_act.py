"""Bias, activation function and gain in one call: y = act(x + b) · gain (StyleGAN2, appendix B)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError

IMPLEMENTATIONS = ('auto', 'ref')


class Activation(NamedTuple):
    """One row of the official activation table."""

    func: Callable[[tf.Tensor, float | None], tf.Tensor]  # (x, alpha) → y, without gain
    def_alpha: float | None                               # Shape parameter where the caller gives none.
    def_gain: float                                       # Gain that keeps the variance of unit normal input.
    cuda_idx: int                                         # Number of the function in the compiled kernels.
    ref: str                                              # What the derivative is expressed in: 'x' or 'y'.
    zero_2nd_grad: bool                                   # True where the second derivative is 0 everywhere.


def leaky_relu(x: tf.Tensor, alpha: float) -> tf.Tensor:
    """Leaky ReLU whose gradient is taken from the output: the input need not be kept, and TensorFlow can
    fuse convolution, bias and activation in training too. The output has the sign of the input only for
    alpha > 0."""
    if alpha <= 0:
        return tf.nn.leaky_relu(x, alpha)

    @tf.custom_gradient
    def with_gradient(x):
        y = tf.nn.leaky_relu(tf.stop_gradient(x), alpha)
        return y, lambda dy: tf.raw_ops.LeakyReluGrad(gradients=dy, features=y, alpha=alpha)

    return with_gradient(x)


activation_funcs: dict[str, Activation] = {
    'linear':   Activation(lambda x, _: x, None, 1.0, 1, 'y', True),
    'relu':     Activation(lambda x, _: tf.nn.relu(x), None, math.sqrt(2), 2, 'y', True),
    'lrelu':    Activation(lambda x, alpha: leaky_relu(x, alpha), 0.2, math.sqrt(2), 3, 'y', True),
    'tanh':     Activation(lambda x, _: tf.nn.tanh(x), None, 1.0, 4, 'y', False),
    'sigmoid':  Activation(lambda x, _: tf.nn.sigmoid(x), None, 1.0, 5, 'y', False),
    'elu':      Activation(lambda x, _: tf.nn.elu(x), None, 1.0, 6, 'y', False),
    'selu':     Activation(lambda x, _: tf.nn.selu(x), None, 1.0, 7, 'y', False),
    'softplus': Activation(lambda x, _: tf.nn.softplus(x), None, 1.0, 8, 'y', False),
    # x · sigmoid(x) written out: tf.nn.silu has a custom gradient without a second order.
    'swish':    Activation(lambda x, _: x * tf.nn.sigmoid(x), None, math.sqrt(2), 9, 'x', False),
}


def check_impl(impl: str) -> None:
    """Raises UserError unless `impl` names an implementation that this installation has."""
    if impl not in IMPLEMENTATIONS:
        raise UserError(f'impl must be one of {", ".join(IMPLEMENTATIONS)}. Received: {impl!r}')


def find_activation(act: str) -> Activation:
    """The row of the activation table named `act`; UserError for an unknown name."""
    if act not in activation_funcs:
        raise UserError(f'act must be one of {", ".join(activation_funcs)}. Received: {act!r}')
    return activation_funcs[act]


def fused_bias_act(
    x: tf.Tensor,               # Input activations of any shape.
    b: tf.Tensor | None = None, # Bias of shape [x.shape[axis]], or None.
    axis: int = 1,              # The dimension of x that b runs along: 1 for NCHW, 3 for NHWC.
    act: str = 'linear',        # Name of the activation function, a key of activation_funcs.
    alpha: float | None = None, # Shape parameter of the activation, None = its default.
    gain: float | None = None,  # Factor on the result, None = the default of the activation.
    impl: str = 'auto',         # 'ref' = composed of TensorFlow operations, 'auto' = the fastest at hand.
) -> tf.Tensor:
    """Adds a bias, applies an activation function and scales the result.

    Returns a tensor of the shape and dtype of `x`. Differentiable to any order.
    Raises UserError for an unknown activation or implementation and for a bias that does not fit.
    """
    check_impl(impl)
    row = find_activation(act)
    alpha = row.def_alpha if alpha is None else float(alpha)
    gain = row.def_gain if gain is None else float(gain)
    x = tf.convert_to_tensor(x)
    if b is not None:
        b = tf.convert_to_tensor(b, dtype=x.dtype)
        if b.shape.rank != 1 or not -x.shape.rank <= axis < x.shape.rank or not \
                b.shape.is_compatible_with([x.shape[axis]]):
            raise UserError(f'b must be a vector as long as dimension {axis} of x. '
                            f'Received: x.shape={x.shape}, b.shape={b.shape}')
        if axis % x.shape.rank == x.shape.rank - 1:
            x = tf.nn.bias_add(x, b) if x.shape.rank > 1 else x + b
        else:
            shape = np.ones(x.shape.rank, np.int32)
            shape[axis] = -1
            x += tf.reshape(b, shape)
    x = row.func(x, alpha)
    return x if gain == 1 else x * tf.constant(gain, x.dtype)
