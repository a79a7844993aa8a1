"""Singular values of the Jacobian of the synthesis network, w → image (StyleGAN2, appendix C, figure 17)."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

if TYPE_CHECKING:
    from dnnlib.tflib import Network

_BLOCK = 1 << 16        # Rows of the Jacobian that are in memory as float64.


def columns_function(network: 'Network') -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """A traced function: (w [dlatent_size], directions [B, dlatent_size]) → J · directions, [B, H·W·C].

    The images of a batch do not depend on each other: B copies of w give as many columns at once. A product
    J·v is the derivative of the backward pass u → Jᵀu, which is linear, in direction v: every operation of
    the networks has that second derivative, as path length regularization needs it.
    """
    synthesis = network.components.synthesis.layer
    num_layers = synthesis.input_shapes[0][1]
    stage = network.layer.stage()

    def columns(w, directions):
        from training.context import Context
        count = directions.shape[0]
        w = tf.repeat(w[tf.newaxis], count, axis=0)
        options = {'lod': tf.convert_to_tensor(network.layer.lod)} if network.layer.grows else {}
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(w)
                dlatents = tf.tile(w[:, tf.newaxis], [1, num_layers, 1])
                images = synthesis(dlatents, ctx=Context(stage=stage), randomize_noise=False, **options)
            weights = tf.zeros_like(images)
            outer.watch(weights)
            back = inner.gradient(images, w, output_gradients=weights)
        products = outer.gradient(back, weights, output_gradients=directions)
        return tf.reshape(products, [count, -1])
    return tf.function(columns, autograph=False)


def jacobian(network: 'Network', w: np.ndarray, batch_size: int = 8,
             function: Callable | None = None) -> np.ndarray:
    """J [H·W·C, dlatent_size] at one w [dlatent_size], the same for all layers, with the noise as stored.

    Images are in [-1, 1], in the order NHWC.

    Args:
        batch_size: Columns at a time.
        function: columns_function(network), where one is at hand.
    """
    function = function or columns_function(network)
    dtype = network.components.synthesis.layer.compute_dtype
    size = len(w)
    batch_size = min(batch_size, size)
    result = None
    for begin in range(0, size, batch_size):
        numbers = np.minimum(np.arange(begin, begin + batch_size), size - 1)  # One shape, one trace.
        directions = np.zeros([batch_size, size])
        directions[np.arange(batch_size), numbers] = 1
        rows = function(tf.constant(w, dtype), tf.constant(directions, dtype)).numpy()
        if result is None:
            result = np.empty([size, rows.shape[1]], rows.dtype)
        result[numbers] = rows
    return result.T


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """Singular values [L] of a matrix [M, L], the largest first, by the eigenvalues of its L × L products.

    These are summed in float64: the values are exact to about 1e-8 of the largest, which is more than the
    float32 matrix itself has.
    """
    size = matrix.shape[1]
    products = np.zeros([size, size])
    for begin in range(0, len(matrix), _BLOCK):
        block = matrix[begin:begin + _BLOCK].astype(np.float64)
        products += block.T @ block
    return np.sqrt(np.maximum(np.linalg.eigvalsh(products)[::-1], 0))


def summary(values: np.ndarray) -> dict:
    """What figure 17 shows of singular values [N, L]: each sample's, divided by its largest one.

    Returns: mean and standard deviation of the sorted values, [L]; the mean of their logarithms over samples
        and values, 0 for an orthogonal Jacobian; and the median ratio of the largest to the smallest.
    """
    relative = values / values[:, :1]
    smallest = np.maximum(relative, np.finfo(np.float32).eps)
    return {
        'mean': relative.mean(axis=0).tolist(),
        'std': relative.std(axis=0).tolist(),
        'mean_log': float(np.log(smallest).mean()),
        'condition_number': float(np.median(1 / smallest[:, -1])),
    }
