"""Layers of BigGAN: spectral normalization, batch normalization, self-attention. Activations are NHWC.

The weight of a spectrally normalized layer stays the variable that the optimizer changes; a pass divides it
by an estimate of its largest singular value, which one step of the power iteration improves (Miyato et al.,
"Spectral Normalization for Generative Adversarial Networks"). What a pass leaves behind - the vectors of the
iteration and the running statistics of the batch normalization - goes through its `Context`.
"""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from custom_ops import conv_downsample_2d, fused_bias_act, upsample_conv_2d
from dnnlib.util import UserError
from training.context import Context
from training.layers import Layer, full_precision, normal_initializer

INITS = ('orthogonal', 'normal', 'xavier')
STATISTICS = ('running', 'batch')
MIN_ATTENTION = 8           # Least number of channels that attention works on.
MAX_SCORES = 1 << 22        # Scores of an image that attention computes at a time, 16 MiB of float32.


class Orthogonal(keras.initializers.Initializer):
    """Random orthogonal matrices [rest, out] (Saxe et al. 2013): orthonormal rows or columns, the fewer."""

    def __call__(self, shape, dtype=None):
        dtype = tf.as_dtype(dtype or 'float32')
        rows, columns = int(np.prod(shape[:-1])), shape[-1]
        seed = keras.random.SeedGenerator().next(ordered=False)
        matrix = tf.random.stateless_normal([max(rows, columns), min(rows, columns)],
                                            tf.cast(seed, tf.int32), dtype=tf.float64)
        q = _orthonormal(matrix, tf.float64 if dtype == tf.float64 else tf.float32)
        return tf.cast(tf.reshape(q if rows >= columns else tf.transpose(q), shape), dtype)


def _orthonormal(matrix: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Q of the decomposition matrix = Q·R with a positive diagonal of R: of normal numbers, all orthogonal
    matrices are equally likely. Not fewer rows than columns."""
    rows, columns = matrix.shape
    if rows >= 2 * columns:
        # The matrix is well-conditioned, and R of its Gram matrix costs a small part of LAPACK's.
        matrix = tf.cast(matrix, dtype)
        triangle = tf.linalg.cholesky(tf.matmul(matrix, matrix, transpose_a=True))
        return tf.matmul(matrix, tf.linalg.triangular_solve(triangle, tf.eye(columns, dtype=dtype)),
                         transpose_b=True)
    q, r = np.linalg.qr(matrix.numpy())
    return tf.constant(q * np.where(np.diag(r) < 0, -1, 1), dtype)


def weight_initializer(init: str) -> keras.initializers.Initializer:
    """The initializer of that name: 'orthogonal', 'normal' = N(0, 0.02²), 'xavier' = Glorot uniform."""
    if init == 'orthogonal':
        return Orthogonal()
    if init == 'normal':
        return normal_initializer(0.02)
    if init == 'xavier':
        return keras.initializers.GlorotUniform()
    raise UserError(f'init must be one of {", ".join(INITS)}. Received: {init!r}')


@dataclasses.dataclass(frozen=True)
class Options:
    """What all layers of a network have in common."""

    init: str = 'orthogonal'        # Name of the initializer of the weights, see weight_initializer.
    sn_epsilon: float = 1e-4        # Least norm that the power iteration divides by.
    store_v: bool = False           # Keep both vectors of the iteration? Inference then does not iterate.
    bn_epsilon: float = 1e-4        # Summand of variances.
    bn_momentum: float = 0.9        # Decay of the running statistics.
    bn_unbiased: bool = True        # Do unbiased variances enter the running ones?
    bn_table: int = 0               # Rows of a table of statistics for truncations 0, ..., 1; 0 = no table.
    dtype: str = 'float32'          # Of activations and weights.


@dataclasses.dataclass(frozen=True)
class Pass:
    """What a pass through a network hands to its layers."""

    ctx: Context
    is_training: bool = False
    statistics: str = 'running'     # 'running' = stored ones, 'batch' = those of the batch; training: batch.
    truncation: Any = 1.0           # Where in a table of statistics.
    # Tensors to take instead of trained variables, see BigGANLayer.values_read.
    given: dict[int, tf.Tensor] = dataclasses.field(default_factory=dict)

    def read(self, variable: Any) -> tf.Tensor:
        """The value of a trained variable."""
        found = self.given.get(id(variable))
        return tf.convert_to_tensor(variable) if found is None else found


class BigGANLayer(Layer):
    """A layer that knows its scope in the network, under which it shows its output.

    Its variables are read as they are: in half precision what needs float32 is computed in float32.
    """

    def __init__(self, name: str, dtype: str):
        super().__init__(name, dtype)
        self.scope = name

    def add_weight(self, *args, **kwargs):
        return super().add_weight(*args, autocast=False, **kwargs)

    def set_scopes(self, scope: str) -> None:
        """Tells all layers inside where they are; '' for a network."""
        self.scope = scope
        for child in self._children.values():
            child.set_scopes(f'{scope}/{child.name}' if scope else child.name)

    def values_read(self, run: Pass) -> dict[int, tf.Tensor]:
        """All that a pass computes of trained variables alone, here and inside, for Pass.given."""
        found = {id(variable): tf.convert_to_tensor(variable) for variable in self._own_variables.values()
                 if variable.trainable}
        for child in self._children.values():
            found |= child.values_read(run)
        return found

    def inner_layers(self) -> dict[str, 'BigGANLayer']:
        """{scope: layer} of all layers inside."""
        found = {}
        for name, child in self._children.items():
            found[name] = child
            found.update({f'{name}/{key}': layer for key, layer in child.inner_layers().items()})
        return found


def add_residual(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """x + y. TensorFlow fails to fuse a plain sum with the ReLU behind it, and says so in every log."""
    return tf.add_n([x, y])


def normalized(x: tf.Tensor, epsilon: float) -> tf.Tensor:
    """x / max(|x|, epsilon), for a vector."""
    return x / tf.maximum(tf.norm(x), tf.constant(epsilon, x.dtype))


class SpectralLayer(BigGANLayer):
    """A layer with a spectrally normalized weight.

    Variables: weight; u [out], the vector of the power iteration, in training replaced by the next one in
    every pass; v [rest] with Options.store_v.
    """

    transposed = False      # Is the weight [out, rest] instead of [rest, out]?

    def __init__(self, name: str, shape, options: Options, use_bias: bool = True, normalize: bool = True):
        super().__init__(name, options.dtype)
        self.epsilon, self.normalize = options.sn_epsilon, normalize
        self.weight = self.add_variable('weight', shape, weight_initializer(options.init))
        self.bias = self.add_variable('bias', [shape[-1]], 0.0) if use_bias else None
        self.u = self.v = None
        if normalize:
            out = shape[0] if self.transposed else shape[-1]
            self.u = self.add_variable('u', [out], normal_initializer(1), trainable=False)
            if options.store_v:
                self.v = self.add_variable('v', [int(np.prod(shape)) // out], normal_initializer(1),
                                           trainable=False)

    def matrix(self, weight: Any) -> tf.Tensor:
        """The weight, or something of its shape, as the matrix [out, rest] whose norm counts."""
        if self.transposed:
            return tf.convert_to_tensor(weight)
        return tf.transpose(self._flat(tf.convert_to_tensor(weight)))

    def from_matrix(self, matrix: tf.Tensor) -> tf.Tensor:
        """The reverse of `matrix`."""
        return matrix if self.transposed else tf.reshape(tf.transpose(matrix), self.weight.shape)

    def _flat(self, weight: tf.Tensor) -> tf.Tensor:
        return tf.reshape(weight, [-1, weight.shape[-1]])

    def sigma(self, run: Pass) -> tf.Tensor:
        """Estimate of the largest singular value; gradients go through the weight alone."""
        return self._sigma(full_precision(self.weight), run)

    def _sigma(self, weight: tf.Tensor, run: Pass) -> tf.Tensor:
        flat, swap = self._flat(weight), self.transposed
        u = full_precision(run.ctx.value(self.u))
        stored = self.v is not None and not run.is_training
        if stored:
            v = full_precision(run.ctx.value(self.v))
        else:
            v = normalized(tf.linalg.matvec(tf.stop_gradient(flat), u, transpose_a=swap), self.epsilon)
        image = tf.linalg.matvec(flat, v, transpose_a=not swap)
        if not stored:
            u = normalized(tf.stop_gradient(image), self.epsilon)
        if run.is_training:
            run.ctx.update(self.u, u)
            if self.v is not None:
                run.ctx.update(self.v, v)
        return tf.tensordot(image, u, 1)    # u and v are constants.

    def values_read(self, run: Pass) -> dict[int, tf.Tensor]:
        found = super().values_read(run)
        del found[id(self.weight)]
        return found | {id(self): self.normalized_weight(run)}

    def normalized_weight(self, run: Pass) -> tf.Tensor:
        """weight / sigma, in the precision of the activations."""
        if id(self) in run.given:
            return run.given[id(self)]
        weight = full_precision(self.weight)
        if self.normalize:
            weight /= self._sigma(weight, run)
        return tf.cast(weight, self.compute_dtype)

    def finish(self, x: tf.Tensor, act: str, run: Pass) -> tf.Tensor:
        """Adds the bias and applies the activation, 'linear' or 'relu'."""
        bias = None if self.bias is None else tf.cast(run.read(self.bias), x.dtype)
        if bias is not None or act != 'linear':
            x = fused_bias_act(x, bias, axis=x.shape.rank - 1, act=act, gain=1)
        return run.ctx.feature(self.scope, x)


class Dense(SpectralLayer):
    """x [N, in] → [N, fmaps]."""

    def __init__(self, name: str, in_features: int, fmaps: int, options: Options, use_bias: bool = True,
                 normalize: bool = True):
        super().__init__(name, [in_features, fmaps], options, use_bias, normalize)

    def call(self, x: tf.Tensor, *, run: Pass) -> tf.Tensor:
        return self.finish(tf.matmul(x, self.normalized_weight(run)), 'linear', run)


class Embedding(SpectralLayer):
    """Labels [N, classes] → [N, size]: a row of the table for a one-hot label, a mean of rows for soft ones.

    The matrix that is normalized is the table as it is, [classes, size].
    """

    transposed = True

    def __init__(self, name: str, classes: int, size: int, options: Options, normalize: bool = True):
        super().__init__(name, [classes, size], options, use_bias=False, normalize=normalize)

    def call(self, labels: tf.Tensor, *, run: Pass) -> tf.Tensor:
        return self.finish(tf.matmul(labels, self.normalized_weight(run)), 'linear', run)


class Conv2D(SpectralLayer):
    """SAME convolution of x [N, H, W, in], with nearest upsampling before it or average pooling after it."""

    def __init__(self, name: str, in_fmaps: int, fmaps: int, kernel: int, options: Options,
                 use_bias: bool = True, act: str = 'linear', up: bool = False, down: bool = False):
        super().__init__(name, [kernel, kernel, in_fmaps, fmaps], options, use_bias)
        self.act, self.up, self.down = act, up, down

    def call(self, x: tf.Tensor, *, run: Pass) -> tf.Tensor:
        w = self.normalized_weight(run)
        # Both fold the resampling into a strided convolution with a quarter of the operations.
        if self.up:
            x = upsample_conv_2d(x, w, data_format='NHWC')
        elif self.down:
            x = conv_downsample_2d(x, w, data_format='NHWC')
        else:
            x = tf.nn.conv2d(x, w, strides=1, padding='SAME')
        return self.finish(x, self.act, run)


class BatchNorm(BigGANLayer):
    """Batch normalization over all replicas, then ReLU; the gain is centered at 1.

    Variables: moving_mean and moving_variance, [C], or [rows, C] for a table over truncations, which training
    does not change; gain and bias, [C]. `modulation` is what subclasses replace.
    """

    def __init__(self, name: str, fmaps: int, options: Options, epsilon: float | None = None):
        super().__init__(name, options.dtype)
        self.epsilon = options.bn_epsilon if epsilon is None else epsilon
        self.momentum, self.unbiased, self.rows = options.bn_momentum, options.bn_unbiased, options.bn_table
        self.add_modulation(fmaps, options)
        shape = [self.rows, fmaps] if self.rows else [fmaps]
        self.moving_mean = self.add_variable('moving_mean', shape, 0.0, trainable=False)
        self.moving_variance = self.add_variable('moving_variance', shape, 1.0, trainable=False)

    def add_modulation(self, fmaps: int, options: Options) -> None:
        """Creates what gain and bias are made of."""
        self.gain = self.add_variable('gain', [fmaps], 1.0)
        self.bias = self.add_variable('bias', [fmaps], 0.0)

    def modulation(self, condition: tf.Tensor | None, run: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        """Gain and bias of every sample, [N or 1, C]."""
        gain, bias = (full_precision(run.read(variable)) for variable in (self.gain, self.bias))
        return gain[tf.newaxis], bias[tf.newaxis]

    def call(self, x: tf.Tensor, condition: tf.Tensor | None = None, *, run: Pass) -> tf.Tensor:
        mean, variance = self._moments(x, run)
        gain, bias = self.modulation(condition, run)
        scale = full_precision(gain) * tf.math.rsqrt(variance + tf.constant(self.epsilon, variance.dtype))
        shift = full_precision(bias) - mean * scale
        scale, shift = (tf.cast(value, x.dtype)[:, tf.newaxis, tf.newaxis] for value in (scale, shift))
        return run.ctx.feature(self.scope, tf.nn.relu(x * scale + shift))

    def _moments(self, x: tf.Tensor, run: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        """The mean and the variance [C] to normalize with."""
        if not run.is_training and run.statistics == 'running':
            return self._stored(self.moving_mean, run), self._stored(self.moving_variance, run)
        mean, variance, count = batch_moments(full_precision(x))
        if hasattr(run.ctx, 'moments'):
            run.ctx.moments(self, mean, variance)
        if run.is_training and not self.rows:
            factor = count / tf.maximum(count - 1, 1) if self.unbiased else 1
            for variable, value in [(self.moving_mean, mean), (self.moving_variance, variance * factor)]:
                old, value = full_precision(run.ctx.value(variable)), tf.stop_gradient(value)
                run.ctx.update(variable, value + (old - value) * tf.constant(self.momentum, value.dtype))
        return mean, variance

    def _stored(self, variable: Any, run: Pass) -> tf.Tensor:
        values = full_precision(run.ctx.value(variable))
        if not self.rows:
            return values
        position = tf.clip_by_value(tf.cast(run.truncation, values.dtype), 0, 1) * (self.rows - 1)
        row = tf.minimum(tf.cast(tf.floor(position), tf.int32), max(self.rows - 2, 0))
        weight = position - tf.cast(row, values.dtype)
        below, above = values[row], values[tf.minimum(row + 1, self.rows - 1)]
        return below + (above - below) * weight


class ConditionalBatchNorm(BatchNorm):
    """Batch normalization whose gain and bias depend on the sample: 1 + condition·gain, condition·bias.

    The weights gain/weight and bias/weight are spectrally normalized projections of a shared embedding, or
    plain tables [classes, C] whose condition is the label.
    """

    def __init__(self, name: str, fmaps: int, condition_size: int, options: Options, plain: bool = False):
        self.condition_size, self.plain = condition_size, plain
        super().__init__(name, fmaps, options)

    def add_modulation(self, fmaps: int, options: Options) -> None:
        self.gain, self.bias = (
            self.add_layer(Dense(name, self.condition_size, fmaps, options, use_bias=False,
                                 normalize=not self.plain)) for name in ('gain', 'bias'))

    def modulation(self, condition, run):
        return 1 + full_precision(self.gain(condition, run=run)), self.bias(condition, run=run)


def batch_moments(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Mean and biased variance [C] over all but the last axis and all replicas, and the number of values."""
    context = tf.distribute.get_replica_context()
    axes = list(range(x.shape.rank - 1))
    if context is None or context.num_replicas_in_sync == 1:
        count = tf.cast(tf.size(x) // x.shape[-1], x.dtype)
        mean = tf.reduce_mean(x, axes)
        return mean, tf.reduce_mean(tf.math.squared_difference(x, mean), axes), count
    # Two steps, because a sum of squares is no good for a small variance around a large mean.
    count = tf.cast(tf.size(x) // x.shape[-1], x.dtype)
    sums = context.all_reduce('SUM', tf.concat([tf.reduce_sum(x, axes), [count]], 0))
    mean, count = sums[:-1] / sums[-1], tf.stop_gradient(sums[-1])
    squares = context.all_reduce('SUM', tf.reduce_sum(tf.math.squared_difference(x, mean), axes))
    return mean, squares / count, count


class Attention(BigGANLayer):
    """Self-attention (Zhang et al., "Self-Attention Generative Adversarial Networks").

    x [N, H, W, C] → x + gamma·o(attention), gamma starts at 0. `chunk` is the number of pixels whose scores
    are computed at a time, 0 = all of them, None = as many as MAX_SCORES allows.
    """

    def __init__(self, name: str, fmaps: int, options: Options, chunk: int | None = None):
        super().__init__(name, options.dtype)
        if fmaps < MIN_ATTENTION:
            raise UserError(f'attention needs at least {MIN_ATTENTION} channels, {name} has {fmaps}; use a '
                            'larger ch or attention=[]')
        self.chunk = chunk
        self.theta, self.phi, self.g = (
            self.add_layer(Conv2D(name, fmaps, fmaps // part, 1, options, use_bias=False))
            for name, part in (('theta', 8), ('phi', 8), ('g', 2)))
        self.o = self.add_layer(Conv2D('o', fmaps // 2, fmaps, 1, options, use_bias=False))
        self.gamma = self.add_variable('gamma', [], 0.0)

    def call(self, x: tf.Tensor, *, run: Pass) -> tf.Tensor:
        height, width = x.shape[1:3]

        def pixels(y):
            return tf.reshape(y, [-1, y.shape[1] * y.shape[2], y.shape[3]])

        def pooled(y):
            return pixels(tf.nn.max_pool2d(y, 2, 2, 'VALID'))
        chunk = max(MAX_SCORES // max(height * width // 4, 1), 1) if self.chunk is None else self.chunk
        y = attend(pixels(self.theta(x, run=run)), pooled(self.phi(x, run=run)), pooled(self.g(x, run=run)),
                   chunk)
        y = self.o(tf.reshape(y, [-1, height, width, y.shape[2]]), run=run)
        return run.ctx.feature(self.scope, x + tf.cast(run.read(self.gamma), x.dtype) * y)


def attend(queries: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, chunk: int = 0) -> tf.Tensor:
    """softmax(queries·keysᵀ)·values.

    Args:
        queries [N, Q, D], keys [N, K, D], values [N, K, C].
        chunk: Number of queries at a time; 0 = all. A chunk's scores are computed again for its gradient, so
            that those of one chunk are all that is ever held.

    Returns [N, Q, C].
    """
    count = queries.shape[1]
    if not 0 < chunk < count:
        return tf.matmul(_weights(queries, keys), values)
    begins = range(0, count, chunk)

    @tf.custom_gradient
    def chunked(queries, keys, values):
        parts = []
        for begin in begins:
            with tf.control_dependencies(parts[-1:]):       # One after the other.
                parts.append(tf.matmul(_weights(tf.identity(queries[:, begin:begin + chunk]), keys), values))

        def gradient(dy):
            sums, done = [], []
            with tf.control_dependencies([dy]):
                for begin in begins:
                    with tf.control_dependencies(done[-1:]):
                        part = tf.identity(queries[:, begin:begin + chunk])
                        sums.append(_attend_gradients(part, keys, values, dy[:, begin:begin + chunk]))
                        done.append(sums[-1][0])
                dqueries, dkeys, dvalues = zip(*sums, strict=True)
                return tf.concat(dqueries, 1), tf.add_n(dkeys), tf.add_n(dvalues)
        return tf.concat(parts, 1), gradient
    return chunked(queries, keys, values)


def _weights(queries: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """softmax(queries·keysᵀ), at least in float32 on the way."""
    scores = full_precision(tf.matmul(queries, keys, transpose_b=True))
    return tf.cast(tf.nn.softmax(scores), queries.dtype)


def _attend_gradients(queries, keys, values, dy) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Gradients of `attend` in operations that have gradients themselves."""
    weights = _weights(queries, keys)
    dweights = full_precision(tf.matmul(dy, values, transpose_b=True))
    full = full_precision(weights)
    dscores = full * (dweights - tf.reduce_sum(full * dweights, axis=-1, keepdims=True))
    dscores = tf.cast(dscores, queries.dtype)
    return (tf.matmul(dscores, keys), tf.matmul(dscores, queries, transpose_a=True),
            tf.matmul(weights, dy, transpose_a=True))
