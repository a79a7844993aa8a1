"""Everything that follows a modulated convolution, in one pass over memory (StyleGAN2, figure 2d):

    y = act(filter(x)·factor + noise·strength + b)·gain

Each of these steps costs a pass over the activations, and memory is slow. There is one compiled operation for
all of them, and one for the gradient; without them it is composed of upfirdn_2d, TensorFlow's operations and
fused_bias_act.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from custom_ops.dispatch import compiled_ops, host_constant
from custom_ops.fused_bias_act import activation_funcs, find_activation, float32_value, fused_bias_act
from custom_ops.upfirdn_2d import fits_compiled, upfirdn_2d
from dnnlib.util import UserError

# The activations that the compiled operation knows. The others follow it.
_PIECEWISE_LINEAR = ('linear', 'relu', 'lrelu')


class _Inputs(NamedTuple):
    """What is differentiated by; None where there is none. noise includes its strength."""

    x: tf.Tensor
    factor: tf.Tensor | None = None
    noise: tf.Tensor | None = None
    b: tf.Tensor | None = None


def filter_noise_bias_act(
    x: tf.Tensor,                       # Input [N, inH, inW, C].
    k=None,                             # FIR filter [kh, kw], array-like of constants. None = no filter.
    pads: tuple = (0, 0, 0, 0),         # Of the filter: (pady0, pady1, padx0, padx1), see upfirdn_2d.
    factor: tf.Tensor | None = None,    # Demodulation [N, C], or None.
    noise: tf.Tensor | None = None,     # [N or 1, outH, outW, 1], or None.
    strength: tf.Tensor | None = None,  # Scalar that the noise is multiplied by. None = 1.
    b: tf.Tensor | None = None,         # Bias [C], or None.
    act: str = 'linear',                # Name of the activation function, a key of activation_funcs.
    alpha: float | None = None,         # Shape parameter of the activation, None = its default.
    gain: float | None = None,          # Factor on the result, None = the default of the activation.
    impl: str = 'auto',                 # 'custom' = compiled, 'ref' = composed of TensorFlow operations,
                                        # 'auto' = the fastest at hand.
) -> tf.Tensor:
    """Filters, scales, adds noise and bias, applies an activation function and scales the result.

    Returns [N, outH, outW, C], outH = inH + pady0 + pady1 - kh + 1, or inH without a filter. Differentiable
    to any order by all tensors. Raises UserError where the arguments do not fit.
    """
    row = find_activation(act)
    alpha = row.def_alpha if alpha is None else float(alpha)
    gain = row.def_gain if gain is None else float(gain)
    x = tf.convert_to_tensor(x)
    k = None if k is None else np.asarray(k)
    _check_images(x, k, pads)
    factor, noise, strength, b = [None if value is None else tf.convert_to_tensor(value, x.dtype)
                                  for value in (factor, noise, strength, b)]
    _check_shapes(x, k, pads, factor, noise, strength, b)
    ops = _find_ops(impl, x, k, factor, noise)
    # The derivative of the compiled operation is taken at y / gain, which must have the sign of its argument.
    if ops is None or gain == 0 or (act == 'lrelu' and alpha <= 0):
        return _composed(x, k, pads, factor, noise, strength, b, act, alpha, gain, impl)
    if noise is not None and strength is not None:
        noise *= strength
    if act in _PIECEWISE_LINEAR:
        return _Compiled(ops, k, pads, act, alpha, gain).forward(_Inputs(x, factor, noise, b))
    x = _Compiled(ops, k, pads).forward(_Inputs(x, factor, noise, b))
    return fused_bias_act(x, act=act, alpha=alpha, gain=gain, impl=impl)


def _check_images(x: tf.Tensor, k: np.ndarray | None, pads: tuple) -> None:
    if x.shape.rank != 4 or None in x.shape[1:]:
        raise UserError('x must have shape [N, H, W, C], of which only N may be unknown. '
                        f'Received: {x.shape}')
    if len(pads) != 4 or k is None and any(pads):
        raise UserError('pads must be (pady0, pady1, padx0, padx1), all 0 without a filter. '
                        f'Received: {tuple(pads)}')
    if k is not None and (k.ndim != 2 or k.size == 0 or min(_output_size(x, k, pads)) < 1):
        raise UserError('k must have rank 2 and fit into the padded image. '
                        f'Received: k {k.shape}, x {x.shape}, pads {tuple(pads)}')


def _output_size(x: tf.Tensor, k: np.ndarray | None, pads: tuple) -> tuple[int, int]:
    """Height and width of the filtered image."""
    if k is None:
        return x.shape[1], x.shape[2]
    return (x.shape[1] + pads[0] + pads[1] - k.shape[0] + 1, x.shape[2] + pads[2] + pads[3] - k.shape[1] + 1)


def _check_shapes(x, k, pads, factor, noise, strength, b) -> None:
    batch, channels = x.shape[0], x.shape[3]
    one = noise is not None and noise.shape.rank == 4 and noise.shape[0] == 1
    expected = {'factor': (factor, [batch, channels]), 'b': (b, [channels]), 'strength': (strength, []),
                'noise': (noise, [1 if one else batch, *_output_size(x, k, pads), 1])}
    for name, (value, shape) in expected.items():
        if value is not None and not (value.shape.rank == len(shape)
                                      and value.shape.is_compatible_with(shape)):
            raise UserError(f'{name} must have shape {tuple(shape)} for x of shape {x.shape}. '
                            f'Received: {value.shape}')


def _find_ops(impl: str, x: tf.Tensor, k, factor, noise):
    """The compiled operations if they are to be taken."""
    fits = k is None or fits_compiled(k, impl)
    ops = compiled_ops(impl, x.dtype, faster=True)
    # Without factor and noise it is no more than fused_bias_act, which leaves to TensorFlow what it fuses.
    alone = impl == 'auto' and k is None and factor is None and noise is None
    return ops if fits and not alone else None


def _composed(x, k, pads, factor, noise, strength, b, act, alpha, gain, impl) -> tf.Tensor:
    if k is not None:
        pady0, pady1, padx0, padx1 = pads
        x = upfirdn_2d(x, k, padx0=padx0, padx1=padx1, pady0=pady0, pady1=pady1, impl=impl)
    if factor is not None:
        x *= factor[:, tf.newaxis, tf.newaxis]
    if noise is not None:
        x += noise if strength is None else noise * strength
    return fused_bias_act(x, b, axis=3, act=act, alpha=alpha, gain=gain, impl=impl)


class _Compiled:
    """The compiled operation and its gradient.

    The operation is linear but for the activation, and its gradient is the transpose. Both are multilinear,
    so their gradients consist of them again: every order exists.
    """

    def __init__(self, ops, k, pads: tuple, act: str = 'linear', alpha: float | None = None, gain: float = 1):
        self.ops, self.act = ops, act
        pady0, pady1, padx0, padx1 = pads
        self.options = dict(act=activation_funcs[act].cuda_idx, padx0=padx0, padx1=padx1, pady0=pady0,
                            pady1=pady1)
        self.k = np.zeros([0, 0]) if k is None else k
        self.constants = [float32_value(alpha or 0), gain]

    def _call(self, op, tensors: list, dtype: tf.DType, **options):
        """Calls a compiled operation; tensors[0] comes before k. None = empty."""
        tensors = [tf.constant([], dtype) if value is None else value for value in tensors]
        return op(tensors[0], host_constant(self.k), *tensors[1:], host_constant(self.constants),
                  **self.options, **options)

    def forward(self, inputs: _Inputs, ref: tf.Tensor | None = None) -> tf.Tensor:
        """The operation; with `ref`, an output of it, the derivative of the activation there is a factor."""
        given = [value is not None for value in inputs]

        @tf.custom_gradient
        def operation(*values):
            # What is inside must leave no trace of its own on a gradient tape.
            values = iter([tf.stop_gradient(value) for value in values])
            tensors = [next(values) if there else None for there in given]
            y = self._call(self.ops.stylegan_filter_noise_bias_act, [*tensors, ref], inputs.x.dtype,
                           grad=0 if ref is None else 1)
            at = y if ref is None and self.act != 'linear' else ref

            def gradient(dy):
                x = None if inputs.factor is None else inputs.x
                dx, dfactor, dnoise, db = self._transposed(dy, x, inputs.factor, at, given[2])
                if dnoise is not None:
                    dnoise = _sum_like(dnoise, inputs.noise)
                results = (dx, dfactor, dnoise, db)
                return [value for value, there in zip(results, given, strict=True) if there]

            return y, gradient

        return operation(*[value for value in inputs if value is not None])

    def _transposed(self, v: tf.Tensor, x: tf.Tensor | None, factor: tf.Tensor | None, ref: tf.Tensor | None,
                    noise: bool) -> tuple[tf.Tensor, tf.Tensor | None, tf.Tensor | None, tf.Tensor]:
        """(dx, dfactor, dnoise, db) of a gradient v; x and factor are both given or both None."""
        has_factor = factor is not None

        @tf.custom_gradient
        def operation(*values):
            value, x_value, factor_value = [*map(tf.stop_gradient, values), None, None][:3]
            results = self._call(self.ops.stylegan_filter_noise_bias_act_grad,
                                 [value, x_value, factor_value, ref], v.dtype, noise=noise)
            dx, dfactor, dnoise, db = results

            def gradient(*upstream):
                ddx, *others, ddb = upstream
                ddfactor = others.pop(0) if has_factor else None
                ddnoise = others.pop() if noise else None
                dv = self.forward(_Inputs(ddx, factor, ddnoise, ddb), ref)
                if not has_factor:
                    return dv
                dv += self.forward(_Inputs(x, ddfactor), ref)
                return dv, *self._transposed(v, ddx, ddfactor, ref, False)[:2]

            return [dx, *([dfactor] if has_factor else []), *([dnoise] if noise else []), db], gradient

        results = operation(*([v, x, factor] if has_factor else [v]))
        dx, *others, db = results
        return dx, others.pop(0) if has_factor else None, others.pop() if noise else None, db


def _sum_like(x: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Sums x [N, ...] over the batch if `like`, of which it is the gradient, was one for all."""
    if like.shape[0] == 1:
        return tf.reduce_sum(x, axis=0, keepdims=True)
    if like.shape[0] is not None:
        return x
    # Only known when it runs: N is a multiple of what there was.
    repeats = tf.shape(x)[0] // tf.maximum(tf.shape(like)[0], 1)
    return tf.reduce_sum(tf.reshape(x, tf.concat([[repeats], tf.shape(like)], axis=0)), axis=0)
