"""Bias, activation function and gain in one call: y = act(x + b) · gain (StyleGAN2, appendix B)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from custom_ops.dispatch import compiled_ops, default_mode, has_gpu, host_constant
from dnnlib.util import UserError

# In graphs on a CPU, TensorFlow makes one operation of these and the bias and activation that follow.
_FUSED_WITH = ('Conv2D', 'MatMul')


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


def float32_value(alpha: float) -> float:
    """alpha as TensorFlow's leaky ReLU has it, in every precision."""
    return float(np.float32(alpha))


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
    impl: str = 'auto',         # 'custom' = compiled, 'ref' = composed of TensorFlow operations,
                                # 'auto' = the fastest at hand.
) -> tf.Tensor:
    """Adds a bias, applies an activation function and scales the result.

    Returns a tensor of the shape and dtype of `x`. Differentiable to any order.
    Raises UserError for an unknown activation or implementation, for a bias that does not fit, and for
    impl='custom' where there is no compiled operation.
    """
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
        axis %= x.shape.rank
    ops = compiled_ops(impl, x.dtype, faster=True)
    # The derivatives of the compiled operation are taken at y / gain, which must have the sign of x.
    if ops and gain != 0 and not (act == 'lrelu' and alpha <= 0):
        only_gradient = impl == 'auto' and default_mode() == 'auto' and _fuses(x)
        return _Compiled(ops, axis, row, alpha, gain, only_gradient).forward(x, b)
    return _composed(x, b, axis, row, alpha, gain)


def _fuses(x: tf.Tensor) -> bool:
    """Whether TensorFlow's fusion with what computes x is faster than the compiled operation. Its gradient is
    not: see the rows conv-bias-act of `python -m benchmarks.ops`, with --impl=custom and --impl=auto."""
    return not has_gpu() and not tf.executing_eagerly() and hasattr(x, 'op') and x.op.type in _FUSED_WITH


def _composed(x: tf.Tensor, b: tf.Tensor | None, axis: int, row: Activation, alpha: float | None,
              gain: float) -> tf.Tensor:
    """fused_bias_act as TensorFlow operations."""
    if b is not None:
        x = _add_bias(x, b, axis)
    x = row.func(x, alpha)
    return x if gain == 1 else x * tf.constant(gain, x.dtype)


def _add_bias(x: tf.Tensor, b: tf.Tensor, axis: int) -> tf.Tensor:
    rank = x.shape.rank
    if axis == rank - 1:
        return tf.nn.bias_add(x, b) if rank > 1 else x + b
    shape = np.ones(rank, np.int32)
    shape[axis] = -1
    return x + tf.reshape(b, shape)


class _Compiled:
    """fused_bias_act by the compiled operation, and its gradients.

    Only what a gradient needs is kept for it: y, or for swish x + b. Where the second derivative is not 0, x
    and b are too, but a graph without second derivatives does not look at them.
    """

    def __init__(self, ops, axis: int, row: Activation, alpha: float | None, gain: float,
                 only_gradient: bool = False):
        self.ops, self.axis, self.row, self.alpha, self.gain = ops, axis, row, alpha, gain
        self.only_gradient = only_gradient  # The forward pass is composed of TensorFlow operations.

    def _call(self, x, b=None, ref=None, grad=0):
        none = tf.constant([], x.dtype)
        return self.ops.stylegan_fused_bias_act(
            x, none if b is None else b, none if ref is None else ref, self._constants(), axis=self.axis,
            act=self.row.cuda_idx, grad=grad)

    def _constants(self):
        return host_constant([float32_value(self.alpha or 0), self.gain])

    def _bias_sum(self, x):
        return tf.reduce_sum(x, axis=[i for i in range(x.shape.rank) if i != self.axis])

    def forward(self, x: tf.Tensor, b: tf.Tensor | None) -> tf.Tensor:
        """act(x + b)·gain."""
        inputs = [x] if b is None else [x, b]

        @tf.custom_gradient
        def operation(*args):
            # What is inside must leave no trace of its own on a gradient tape.
            args = [tf.stop_gradient(arg) for arg in args]
            if self.only_gradient:
                y = _composed(args[0], args[1] if len(args) > 1 else None, self.axis, self.row, self.alpha,
                              self.gain)
            else:
                y = self._call(*args)
            ref = y
            if self.row.ref == 'x':
                ref = args[0] if b is None else _add_bias(*args, self.axis)

            def gradient(dy):
                if not self.row.zero_2nd_grad:
                    dx = self._first(dy, inputs, ref)
                    return dx if b is None else (dx, self._bias_sum(dx))
                return self._scaled([dy], ref) if b is None else self._scaled_and_sum(dy, ref)

            return y, gradient

        return operation(*inputs)

    # Piecewise linear activations: the gradient is a linear operator and the transpose of that operator,
    # which are each other's gradients.

    def _scaled(self, inputs: list, ref: tf.Tensor) -> tf.Tensor:
        """(v + bias)·act'·gain; inputs: [v] or [v, bias]."""
        @tf.custom_gradient
        def operation(*args):
            result = self._call(*[tf.stop_gradient(arg) for arg in args], ref=ref, grad=1)

            def gradient(dy):
                return self._scaled([dy], ref) if len(args) == 1 else self._scaled_and_sum(dy, ref)

            return result, gradient

        return operation(*inputs)

    def _scaled_and_sum(self, v: tf.Tensor, ref: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """v·act'·gain and its sums by bias."""
        @tf.custom_gradient
        def operation(v):
            v = tf.stop_gradient(v)
            if has_gpu() and self.axis != v.shape.rank - 1:  # Not one of its kernels.
                dx = self._call(v, ref=ref, grad=1)
                results = dx, self._bias_sum(dx)
            else:
                results = tuple(self.ops.stylegan_fused_bias_act_sums(
                    v, ref, self._constants(), axis=self.axis, act=self.row.cuda_idx))
            return results, lambda ddx, ddb: self._scaled([ddx, ddb], ref)

        return operation(v)

    # The others. inputs: [x] or [x, b].

    def _first(self, v: tf.Tensor, inputs: list, ref: tf.Tensor) -> tf.Tensor:
        """v·act'(x + b)·gain."""
        @tf.custom_gradient
        def operation(value, *_):
            def gradient(dy):
                dx = self._second(dy * v, inputs, ref)
                return self._first(dy, inputs, ref), dx, *map(self._bias_sum, [dx] * (len(inputs) - 1))

            return self._call(tf.stop_gradient(value), ref=ref, grad=1), gradient

        return operation(v, *inputs)

    def _second(self, v: tf.Tensor, inputs: list, ref: tf.Tensor) -> tf.Tensor:
        """v times the second derivative at x + b, times gain."""
        @tf.custom_gradient
        def operation(value, *_):
            def gradient(dy):
                dx = dy * v * self._third(inputs)
                return self._second(dy, inputs, ref), dx, *map(self._bias_sum, [dx] * (len(inputs) - 1))

            return self._call(tf.stop_gradient(value), ref=ref, grad=2), gradient

        return operation(v, *inputs)

    def _third(self, inputs: list) -> tf.Tensor:
        """The third derivative at x + b, times gain, composed of TensorFlow operations."""
        x = inputs[0] if len(inputs) == 1 else _add_bias(*inputs, self.axis)
        with tf.GradientTape() as third:
            third.watch(x)
            with tf.GradientTape() as second:
                second.watch(x)
                with tf.GradientTape() as first:
                    first.watch(x)
                    y = _composed(x, None, 0, self.row, self.alpha, self.gain)
                derivative = first.gradient(y, x)
            derivative = second.gradient(derivative, x)
        return third.gradient(derivative, x)
