"""The kinds of updates that a training step is made of."""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from training.context import StepContext
from training.optimizer import Optimizer


@dataclasses.dataclass(eq=False)
class Phase:
    """One kind of update: which loss, of which network, how often."""

    name: str                       # 'G', 'G_reg', 'D', 'D_reg'.
    index: int                      # Number of the phase, a part of the random seed.
    network: Any                    # The layer whose weights are trained.
    optimizer: Optimizer
    parts: Callable                 # (ctx, minibatch size, reals, labels) → (loss, reg) of training.loss.
    use_loss: bool                  # Minimize the loss?
    use_reg: bool                   # Minimize the regularization term?
    reg_weight: float               # Factor on the regularization term.
    interval: int                   # Run every so many minibatches.
    needs_reals: bool

    @property
    def role(self) -> str:
        """'G' or 'D'. Phases of one network never overlap and share what they accumulate gradients in."""
        return self.name[0]

    def total(self, ctx: StepContext, minibatch_size: int, reals: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """What this phase minimizes, a scalar."""
        loss, reg = self.parts(ctx, minibatch_size, reals, labels)
        total = tf.reduce_mean(loss()) if self.use_loss else 0.0
        if self.use_reg and reg is not None:
            total += tf.reduce_mean(reg()) * self.reg_weight
        return total


def generator_parts(loss, G, D, kwargs, ctx, minibatch_size, reals, labels):
    """Phase.parts of a generator, but for the first four arguments."""
    return loss(G, D, ctx, minibatch_size, **kwargs)


def discriminator_parts(loss, G, D, kwargs, ctx, minibatch_size, reals, labels):
    """Phase.parts of a discriminator, but for the first four arguments."""
    return loss(G, D, ctx, minibatch_size, reals, labels, **kwargs)
