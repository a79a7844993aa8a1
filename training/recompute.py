"""Gradient checkpointing: results that are not kept for the gradient, but computed again when it needs them.

Memory then holds the results between the parts, and those inside of one part at a time (Chen et al.,
"Training Deep Nets with Sublinear Memory Cost"), at the price of one more pass forward. It is for traced
functions: without tracing the tapes hold all results as ever, and only the numbers are the same.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

# What a context answers; in the second evaluation the answers are those of the first.
_ANSWERS = ('normal', 'uniform', 'integers', 'random_labels', 'state', 'value')
# What it is told, once, and the position of what it gives back.
_TOLD = {'update': None, 'moments': None, 'report': 1, 'feature': 1}


def recomputed(function: Callable[..., Any], *tensors: tf.Tensor) -> Any:
    """function(*tensors), which gradients of any order evaluate again instead of keeping its results.

    Args:
        function: Gives a tensor or a list of them, the same ones each time. It must not read trained
            variables, but be given their values.
    """
    @tf.custom_gradient
    def forward(*inputs):
        def gradient(*dys):
            # The same goes for second derivatives.
            return recomputed(functools.partial(_gradients, function, len(dys)), *dys, *tensors)
        return function(*inputs), gradient
    return forward(*tensors)


def _gradients(function: Callable, count: int, *tensors: tf.Tensor) -> list[tf.Tensor]:
    """Gradients of `function`; the first `count` tensors are those of its results, the others its inputs."""
    dys, inputs = list(tensors[:count]), tensors[count:]
    # Not before it is needed; and what has other inputs is not taken for the same operation as before.
    with tf.control_dependencies(dys):
        inputs = [tf.identity(tensor) for tensor in inputs]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(inputs)
        results = tf.nest.flatten(function(*inputs))
    return tape.gradient(results, inputs, dys, unconnected_gradients=tf.UnconnectedGradients.ZERO)


class _Repeated:
    """Stands for a context in several evaluations of a function, of which only the first one counts.

    Args:
        ctx: The context.
        answers: A list that the first evaluation fills, and later ones read.
        first: Is it the first evaluation?
    """

    def __init__(self, ctx: Any, answers: list, first: bool):
        self._ctx, self._answers, self._first, self._position = ctx, answers, first, 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ctx, name)
        if name in _ANSWERS:
            return functools.partial(self._answer, found)
        if name in _TOLD and not self._first:
            return lambda *args: None if _TOLD[name] is None else args[_TOLD[name]]
        return found

    def _answer(self, ask: Callable, *args: Any, **kwargs: Any) -> Any:
        if self._first:
            self._answers.append(ask(*args, **kwargs))
        self._position += 1
        return self._answers[self._position - 1]


def call_layer(layer: Any, tensors: Sequence[tf.Tensor], run: Any) -> tf.Tensor:
    """layer(*tensors, run=run) with results that are computed again for the gradient.

    Its normalized weights are not: an evaluation would take one more step of the power iteration. Where the
    outputs of all layers are asked for, or outside training, nothing is computed again.

    Args:
        layer: training.layers_biggan.BigGANLayer.
        run: training.layers_biggan.Pass.
    """
    if not run.is_training or getattr(run.ctx, 'features', None) is not None:
        return layer(*tensors, run=run)
    given = layer.values_read(run)
    answers: list = []
    evaluations = [True]

    def function(*values):
        ctx = _Repeated(run.ctx, answers, bool(evaluations) and evaluations.pop())
        inside = dataclasses.replace(run, ctx=ctx, given=dict(zip(given, values[len(tensors):], strict=True)))
        y = layer(*values[:len(tensors)], run=inside)
        # Behind a bare sum TensorFlow's fusion of operations fails, and says so in the log.
        return tf.ensure_shape(y, y.shape)
    return recomputed(function, *tensors, *given.values())
