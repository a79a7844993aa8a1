"""Regularizers of weights: hooks into the updates of a network (training.hooks), not terms of its loss."""

import fnmatch
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError
from training.hooks import UpdateHook

# Gradient = factor · strength · ((M Mᵀ) ∘ (1 - I)) M.
FORMS = {'paper': 4.0, 'half': 2.0}


class OrthogonalRegularization(UpdateHook):
    """Pulls the filters of every layer towards right angles, whatever their norms (BigGAN, section 3.1).

    The penalty of a weight with the matrix M [filters, rest] is strength·|(M Mᵀ) ∘ (1 - I)|²; its gradient is
    added to that of the loss before Adam. It works on the raw weights, not on the normalized ones, and leaves
    out vectors, class embeddings and what `exclude` names.

    Args:
        strength: Factor of the penalty.
        form: 'paper' = the penalty above; 'half' = half of it, the gradient that BigGAN-PyTorch adds.
        exclude: More names of weights that are left out, with * and ?.
        tables: Take tables of gains and biases by class in, as BigGAN-PyTorch does, with classes as filters?

    Errors: UserError for an unknown form, or names that fit no weight.
    """

    def __init__(self, strength: float = 1e-4, form: str = 'paper', exclude: Sequence[str] = (),
                 tables: bool = False):
        if form not in FORMS:
            raise UserError(f'orthogonal regularization: form must be one of {", ".join(FORMS)}. '
                            f'Received: {form!r}')
        self.strength, self.form, self.exclude, self.tables = strength, form, tuple(exclude), tables
        self.names: dict[str, bool] = {}    # Name of a weight → are its rows the filters?

    def build(self, network: Any, trained: dict[str, Any]) -> None:
        for pattern in self.exclude:
            if not fnmatch.filter(trained, pattern):
                raise UserError(f'orthogonal regularization: {pattern!r} fits no trained variable of '
                                f'{network.name}')
        layers = network.inner_layers() if hasattr(network, 'inner_layers') else {}
        for name, variable in trained.items():
            layer = layers.get(name.rpartition('/')[0])
            is_table = not getattr(layer, 'normalize', True)
            is_embedding = getattr(layer, 'transposed', False) or is_table and not self.tables
            excluded = any(fnmatch.fnmatch(name, pattern) for pattern in self.exclude)
            if len(variable.shape) >= 2 and not is_embedding and not excluded:
                self.names[name] = is_table

    def gradients(self, ctx, values, gradients):
        added, penalties = dict(gradients), []
        for name, is_table in self.names.items():
            gradient, penalty = correlation(values[name], transposed=is_table)
            gradient = tf.cast(gradient * (FORMS[self.form] * self.strength), gradients[name].dtype)
            added[name] = gradients[name] + gradient
            penalties.append(tf.cast(penalty, tf.float32))
        if penalties:
            ctx.report('Loss/orthogonal', tf.add_n(penalties) * (self.strength * FORMS[self.form] / 4))
        return added


def correlation(weight: tf.Tensor, transposed: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
    """How far the filters of a weight are from right angles.

    Args:
        weight: [..., filters], or [filters, ...] if transposed.

    Returns: ((M Mᵀ) ∘ (1 - I)) M in the shape of the weight, and |(M Mᵀ) ∘ (1 - I)|², for M [filters, rest].
    """
    shape = weight.shape
    weight = tf.cast(weight, tf.float32) if weight.dtype in (tf.float16, tf.bfloat16) else weight
    # Filters in columns.
    flat = tf.transpose(tf.reshape(weight, [shape[0], -1])) if transposed else tf.reshape(
        weight, [-1, shape[-1]])
    rest, filters = int(np.prod(shape)) // flat.shape[1], flat.shape[1]
    if filters <= rest:
        gram = tf.matmul(flat, flat, transpose_a=True)
        gram = tf.linalg.set_diag(gram, tf.zeros([filters], gram.dtype))
        result, power = tf.matmul(flat, gram), tf.reduce_sum(tf.square(gram))
    else:
        # The smaller product of the two: M Mᵀ of BigGAN's first layer would have 24576 × 24576 numbers.
        gram = tf.matmul(flat, flat, transpose_b=True)
        norms = tf.reduce_sum(tf.square(flat), axis=0)
        result = tf.matmul(gram, flat) - flat * norms
        power = tf.reduce_sum(tf.square(gram)) - tf.reduce_sum(tf.square(norms))
    return tf.reshape(tf.transpose(result) if transposed else result, shape), power
