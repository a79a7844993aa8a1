"""Singular values of weights, and remedies against those that explode (BigGAN, section 4.1 and appendix F).

The matrix of a weight, [out, rest], is that of the spectral normalization (training.layers_biggan). Its
largest singular values and vectors come from a few steps of a power iteration that keeps several vectors
orthogonal, each time from where it was before. `SigmaClamp` and `SigmaPenalty` are hooks into the updates of
a network (training.hooks).
"""

import fnmatch
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError
from training.hooks import UpdateHook
from training.layers import full_precision
from training.layers_biggan import SpectralLayer

EPSILON = 1e-12     # Least norm that the iteration divides by.


def orthonormalized(rows: tf.Tensor) -> tf.Tensor:
    """The rows [k, n], one after the other at right angles to those before it (Gram-Schmidt), at length 1."""
    result: list[tf.Tensor] = []
    for row in tf.unstack(rows):
        for other in result:
            row -= other * tf.tensordot(other, row, 1)
        result.append(row / tf.maximum(tf.norm(row), tf.constant(EPSILON, row.dtype)))
    return tf.stack(result)


def power_iteration(matrix: tf.Tensor, u: tf.Tensor, steps: int = 1,
                    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Steps towards the k largest singular values and their vectors.

    Args:
        matrix: [out, rest].
        u: Where to start, [k, out].
        steps: Number of steps.

    Returns: the singular values [k], which are sorted only in the end, u [k, out] and v [k, rest].
    """
    for _ in range(steps):
        v = orthonormalized(tf.matmul(u, matrix))
        images = tf.matmul(v, matrix, transpose_b=True)
        u = orthonormalized(images)
    return tf.reduce_sum(images * u, axis=1), u, v


def clamped(matrix: tf.Tensor, sigma: tf.Tensor, u: tf.Tensor, v: tf.Tensor, limit: Any) -> tf.Tensor:
    """matrix - max(0, sigma - limit)·u·vᵀ (BigGAN, appendix F).

    Of the largest singular value this leaves `limit`; the second one may be above that, and stays. Where the
    vectors are not converged, but matrix·v = sigma·u, as after any step of the iteration, v is mapped to
    limit·u instead, and no singular value grows.

    Args:
        matrix: [out, rest].
        sigma, u, v: The largest singular value, a scalar, and its vectors [out] and [rest].
    """
    return matrix - tf.maximum(sigma - tf.cast(limit, sigma.dtype), 0) * outer(u, v)


def outer(u: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
    """u·vᵀ, for u [out] and v [rest]: the gradient of a singular value with respect to the matrix."""
    return u[:, tf.newaxis] * v[tf.newaxis]


def kept(new: tf.Tensor, old: tf.Tensor) -> tf.Tensor:
    """New vectors [..., n] of an iteration, but old ones where they are no longer of length 1 or finite.

    A weight that is zero or NaN for a moment would stop the iteration for good.
    """
    return tf.where(tf.norm(new, axis=-1, keepdims=True) > 0.5, new, tf.cast(old, new.dtype))


def normalized_layers(network: Any) -> dict[str, SpectralLayer]:
    """{scope: layer} of the spectrally normalized layers of a network; empty where it has none."""
    return network.normalized_layers() if hasattr(network, 'normalized_layers') else {}


def matrix_shape(layer: SpectralLayer) -> tuple[int, int]:
    """(out, rest) of the matrix of a layer."""
    out = int(layer.u.shape[0])
    return out, int(np.prod(layer.weight.shape)) // out


def start_vectors(layer: SpectralLayer, count: int, seed: int = 0) -> np.ndarray:
    """Random vectors float32 [count, out] to start an iteration of a layer from."""
    return np.random.RandomState(seed % 2 ** 32).normal(size=[count, matrix_shape(layer)[0]]).astype(
        np.float32)


class _SigmaRemedy(UpdateHook):
    """Does something about the largest singular value sigma0 of the normalized weights of a network.

    Args:
        sigma: What sigma0 is compared with.
        ratio: Or: how many times the second singular value. One of the two must be given.
        only: Names of layers, with * and ?, as Linear or Block*/Conv0; all by default.
        steps: Steps of the power iteration per update; the vectors go on from where they were.

    Errors: UserError for other arguments, and for a network without such layers.
    """

    title = ''

    def __init__(self, sigma: float | None = None, ratio: float | None = None, only: Sequence[str] = ('*',),
                 steps: int = 1):
        given = [value for value in (sigma, ratio) if value is not None]
        if len(given) != 1 or not 0 < given[0] < np.inf or steps < 1:
            raise UserError(f'{self.title}: expected either sigma or ratio above 0, and at least one step. '
                            f'Received: sigma {sigma}, ratio {ratio}, steps {steps}')
        self.sigma, self.ratio, self.steps = sigma, ratio, steps
        self.only = [only] if isinstance(only, str) else list(only)
        self.layers: dict[str, SpectralLayer] = {}      # By the name of the weight.
        self.second: dict[str, tf.Variable] = {}        # The vector of the second singular value, likewise.
        self.network_name = ''

    def build(self, network: Any, trained: dict[str, Any]) -> None:
        layers = normalized_layers(network)
        for pattern in self.only:
            if not fnmatch.filter(layers, pattern):
                raise UserError(f'{self.title}: {pattern!r} fits none of the {len(layers)} spectrally '
                                f'normalized layers of {network.name}')
        self.network_name = network.name
        for scope, layer in layers.items():
            name, wanted = f'{scope}/weight', any(fnmatch.fnmatch(scope, pattern) for pattern in self.only)
            # A matrix of one row has no second singular value.
            if wanted and name in trained and (self.ratio is None or min(matrix_shape(layer)) > 1):
                self.layers[name] = layer
                if self.ratio is not None:
                    self.second[name] = tf.Variable(start_vectors(layer, 1)[0], trainable=False)

    def variables(self) -> dict[str, tf.Variable]:
        return {f'{name}/u1': variable for name, variable in self.second.items()}

    def spectrum(self, ctx: Any, name: str, matrix: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """sigma0 of a weight, what it is compared with, and its vectors u and v."""
        u = tf.cast(ctx.value(self.layers[name].u), matrix.dtype)[tf.newaxis]
        if self.ratio is not None:
            second = ctx.value(self.second[name])
            u = tf.concat([u, tf.cast(second, matrix.dtype)[tf.newaxis]], axis=0)
        sigma, u, v = power_iteration(matrix, u, self.steps)
        if self.ratio is None:
            return sigma[0], tf.constant(self.sigma, matrix.dtype), u[0], v[0]
        ctx.update(self.second[name], kept(u[1], second))
        return sigma[0], sigma[1] * self.ratio, u[0], v[0]


class SigmaClamp(_SigmaRemedy):
    """Takes from the largest singular value of every weight, after each update, what is above a limit.

    The limit is `sigma`, or `ratio` times the second singular value. One direction per update, by vectors
    that follow the weight: this stops an explosion, which is growth along one direction for many updates,
    but no value has to be below the limit at any moment. In the paper it kept the spectra of the generator
    from exploding, but did not keep the training from collapsing.
    """

    title = 'sigma clamp'

    def after_update(self, ctx, values):
        changed, counts = {}, []
        for name, layer in self.layers.items():
            matrix = layer.matrix(full_precision(values[name]))
            sigma, limit, u, v = self.spectrum(ctx, name, matrix)
            weight = layer.from_matrix(clamped(matrix, sigma, u, v, limit))
            # Weights within the limit keep every bit.
            changed[name] = tf.where(sigma > limit, tf.cast(weight, values[name].dtype), values[name])
            counts.append(tf.cast(sigma > limit, tf.float32))
        if counts:
            ctx.report(f'Spectra/{self.network_name}/clamped_weights', tf.add_n(counts))
        return changed


class SigmaPenalty(_SigmaRemedy):
    """Pulls the largest singular value of every weight towards a target: strength·(sigma0 - target)².

    The target is `sigma`, or `ratio` times the second singular value, through which no gradient flows. The
    gradient of the penalty is added to that of the loss before Adam.
    """

    title = 'sigma penalty'

    def __init__(self, strength: float = 1e-2, **kwargs: Any):
        super().__init__(**kwargs)
        if not 0 < strength < np.inf:
            raise UserError(f'{self.title}: expected a strength above 0. Received: {strength}')
        self.strength = strength

    def gradients(self, ctx, values, gradients):
        added, penalties = dict(gradients), []
        for name, layer in self.layers.items():
            matrix = layer.matrix(full_precision(values[name]))
            sigma, target, u, v = self.spectrum(ctx, name, matrix)
            gradient = layer.from_matrix(2 * self.strength * (sigma - target) * outer(u, v))
            added[name] = gradients[name] + tf.cast(gradient, gradients[name].dtype)
            penalties.append(tf.cast(self.strength * tf.square(sigma - target), tf.float32))
        if penalties:
            ctx.report(f'Loss/sigma_penalty_{self.network_name}', tf.add_n(penalties))
        return added
