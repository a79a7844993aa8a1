"""Adam as in the official code, for one network under any tf.distribute strategy."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from dnnlib.util import UserError
from training.replica import local_handle, unwrap

EPSILON_FORMS = ('tf', 'pytorch')


class Optimizer:
    """Adam (Kingma and Ba 2015) with the epsilon outside the bias correction, as TensorFlow 1 computes it.

        m ← β1·m + (1 − β1)·g,  v ← β2·v + (1 − β2)·g²,  x ← x − lr·√(1 − β2^t) / (1 − β1^t) · m / (√v + ε)

    with β1^t and β2^t as running products in the type of the variables. With epsilon_form='pytorch', ε is
    added to the corrected root, √v / √(1 − β2^t) + ε, as in PyTorch and in algorithm 1 of the paper: the ε of
    the formula above is multiplied by √(1 − β2^t).

    One step is one fused kernel per variable. The main update and the regularization update of a network
    (Karras et al. 2020, appendix B) are two `apply` calls of one Optimizer: they share m and v, and both
    advance t.

    An update whose averaged gradient holds a NaN, an infinity or a value whose square is one is skipped on
    every replica: only the counters change.

    Attributes:
        num_applied, num_skipped: int64 variables, updates applied and skipped since the optimizer was made.
        skipped_in_a_row: int64 variable, updates skipped since the last one applied.
    """

    def __init__(
        self,
        name: str,                                    # Names the slots, for example 'TrainG'.
        variables: Sequence[Any],                     # The trainables of one network (keras or tf).
        beta1: float = 0.0,                           # Decay of the first moment.
        beta2: float = 0.99,                          # Decay of the second moment.
        epsilon: float = 1e-8,                        # Added to √v.
        variable_names: Sequence[str] | None = None,  # Keys of `state`; None: the paths of the variables.
        epsilon_form: str = 'tf',                     # 'tf', or 'pytorch': where epsilon is added.
    ):
        """Makes the slots. Call it under the scope of the strategy under which the variables were created.

        Raises: UserError if there is no variable, one is not of floating type or belongs to another
            strategy, two have the same name, a beta is outside [0, 1), or the form of epsilon is unknown.
        """
        self.name = name
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon
        self.epsilon_form = epsilon_form
        self.variables = list(variables)
        names = map(_path, self.variables) if variable_names is None else variable_names
        self._names = list(names)
        self._check()

        inner = [unwrap(v) for v in self.variables]
        power_dtype = inner[0].dtype
        self._m = [self._moment(v, f'{n}/m') for v, n in zip(inner, self._names, strict=True)]
        self._v = [self._moment(v, f'{n}/v') for v, n in zip(inner, self._names, strict=True)]
        self._beta1_power = self._slot(tf.constant(beta1, power_dtype), 'beta1_power')
        self._beta2_power = self._slot(tf.constant(beta2, power_dtype), 'beta2_power')
        self.num_applied = self._slot(tf.zeros([], tf.int64), 'num_applied')
        self.num_skipped = self._slot(tf.zeros([], tf.int64), 'num_skipped')
        self.skipped_in_a_row = self._slot(tf.zeros([], tf.int64), 'skipped_in_a_row')

    @property
    def names(self) -> list[str]:
        """The names of the variables, in their order."""
        return list(self._names)

    def average(self, gradients: Sequence[Any]) -> list[tf.Tensor]:
        """The mean of the gradients over the replicas, in the types of the variables; see `apply`."""
        return self._average(self._dense(gradients))

    def apply(self, gradients: Sequence[Any], learning_rate: Any, averaged: bool = False) -> tf.Tensor:
        """One Adam step with the mean of the gradients over the replicas.

        Call it in replica context (inside `strategy.run`, or without any strategy), outside tf.cond and
        tf.while_loop.

        Args:
            gradients: one per variable, in the order of the variables; None counts as zeros.
            learning_rate: scalar, equal on all replicas; already adjusted for lazy regularization. In a
                tf.function it should be a tensor: a Python number is traced anew for each value.
            averaged: The gradients are those that `average` has returned, or made of them.

        Returns: bool scalar tensor: True if the step was made, False if it was skipped for a non-finite
            gradient.
        Raises: ValueError if the number or the shapes of the gradients do not fit the variables.
        """
        gradients = self._dense(gradients) if averaged else self.average(gradients)
        # By the sum of squares: a gradient whose square overflows would leave v infinite for good.
        finite = tf.math.is_finite(tf.add_n([tf.cast(tf.nn.l2_loss(g), tf.float64) for g in gradients]))
        if not tf.is_tensor(learning_rate):
            learning_rate = tf.constant(learning_rate, tf.float64)  # The variables may be float64 too.
        learning_rate = tf.convert_to_tensor(learning_rate)         # A variable is read here, not in tf.cond.

        # The handles are taken here because a branch of tf.cond does not know which replica it belongs to.
        handles = [[local_handle(v) for v in group] for group in (self.variables, self._m, self._v)]
        powers = [local_handle(self._beta1_power), local_handle(self._beta2_power)]
        num_applied, num_skipped, in_a_row = [
            local_handle(v) for v in (self.num_applied, self.num_skipped, self.skipped_in_a_row)]
        one = tf.ones([], tf.int64)

        def step() -> tf.Tensor:
            dtype = self._beta1_power.dtype
            beta_powers = [tf.raw_ops.ReadVariableOp(resource=handle, dtype=dtype) for handle in powers]
            epsilon = tf.constant(self.epsilon, dtype)
            if self.epsilon_form == 'pytorch':
                epsilon *= tf.sqrt(1 - beta_powers[1])
            for var, m, v, gradient in zip(*handles, gradients, strict=True):
                tf.raw_ops.ResourceApplyAdam(
                    var=var,
                    m=m,
                    v=v,
                    beta1_power=tf.cast(beta_powers[0], gradient.dtype),
                    beta2_power=tf.cast(beta_powers[1], gradient.dtype),
                    lr=tf.cast(learning_rate, gradient.dtype),
                    beta1=tf.constant(self.beta1, gradient.dtype),
                    beta2=tf.constant(self.beta2, gradient.dtype),
                    epsilon=tf.cast(epsilon, gradient.dtype),
                    grad=gradient,
                )
            for handle, power, beta in zip(powers, beta_powers, (self.beta1, self.beta2), strict=True):
                tf.raw_ops.AssignVariableOp(resource=handle, value=power * tf.constant(beta, dtype))
            tf.raw_ops.AssignAddVariableOp(resource=num_applied, value=one)
            tf.raw_ops.AssignVariableOp(resource=in_a_row, value=tf.zeros_like(one))
            return tf.constant(True)

        def skip() -> tf.Tensor:
            tf.raw_ops.AssignAddVariableOp(resource=num_skipped, value=one)
            tf.raw_ops.AssignAddVariableOp(resource=in_a_row, value=one)
            return tf.constant(False)

        return tf.cond(finite, step, skip)

    def reset(self) -> None:
        """Zero moments and t = 0, as when a new level of a growing network fades in; the counters stay.

        Call it outside `strategy.run`; every replica's copy is set.
        """
        for slot in self._m + self._v:
            slot.assign(tf.zeros(slot.shape, slot.dtype))
        self._beta1_power.assign(self.beta1)
        self._beta2_power.assign(self.beta2)

    def state(self) -> dict[str, tf.Variable]:
        """Everything that a checkpoint must hold apart from the trained variables themselves.

        Returns: variables by key: '<variable name>/m', '<variable name>/v', beta1_power, beta2_power,
            num_applied, num_skipped, skipped_in_a_row.
        """
        slots = {f'{name}/m': slot for name, slot in zip(self._names, self._m, strict=True)}
        slots |= {f'{name}/v': slot for name, slot in zip(self._names, self._v, strict=True)}
        return slots | {
            'beta1_power': self._beta1_power,
            'beta2_power': self._beta2_power,
            'num_applied': self.num_applied,
            'num_skipped': self.num_skipped,
            'skipped_in_a_row': self.skipped_in_a_row,
        }

    def _check(self) -> None:
        """Raises UserError if the constructor's arguments make no optimizer."""
        if not self.variables:
            raise UserError(f'optimizer {self.name} received no variables; build the network first')
        if len(self._names) != len(self.variables):
            raise UserError(f'optimizer {self.name} received {len(self._names)} names '
                            f'for {len(self.variables)} variables')
        duplicates = sorted({name for name in self._names if self._names.count(name) > 1})
        if duplicates:
            raise UserError(f'optimizer {self.name} received several variables of the same name: '
                            f'{", ".join(duplicates)}; pass unique variable_names')
        for beta in (self.beta1, self.beta2):
            if not 0.0 <= beta < 1.0:
                raise UserError(f'optimizer {self.name}: beta1 and beta2 must be in [0, 1); received {beta}')
        if self.epsilon_form not in EPSILON_FORMS:
            raise UserError(f'optimizer {self.name}: epsilon_form must be one of {", ".join(EPSILON_FORMS)}; '
                            f'received {self.epsilon_form!r}')
        scope = tf.distribute.get_strategy().extended
        for name, variable in zip(self._names, self.variables, strict=True):
            if not unwrap(variable).dtype.is_floating:
                raise UserError(f'optimizer {self.name}: variable {name} has type '
                                f'{unwrap(variable).dtype.name}, expected a floating type; '
                                'pass trainable variables only')
            if not scope.variable_created_in_scope(unwrap(variable)):
                raise UserError(f'optimizer {self.name}: variable {name} was created under another strategy '
                                'than the active one; make network and optimizer under one strategy.scope()')

    def _slot(self, initial: tf.Tensor, name: str) -> tf.Variable:
        return tf.Variable(initial, trainable=False, name=f'{self.name}/{name}')

    def _moment(self, variable: tf.Variable, name: str) -> tf.Variable:
        """Zeros on the device of the variable: the fused kernel wants all three in one place."""
        zeros = tf.zeros(variable.shape, variable.dtype)
        with tf.distribute.get_strategy().extended.colocate_vars_with(variable):
            return self._slot(zeros, name)

    def _dense(self, gradients: Sequence[Any]) -> list[tf.Tensor]:
        """Gradients in the type of their variables, zeros for None."""
        if len(gradients) != len(self.variables):
            raise ValueError(f'optimizer {self.name} has {len(self.variables)} variables; '
                             f'received {len(gradients)} gradients')
        dense = []
        for name, variable, gradient in zip(self._names, map(unwrap, self.variables), gradients, strict=True):
            if gradient is None:
                dense.append(tf.zeros(variable.shape, variable.dtype))
                continue
            gradient = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
            if not gradient.shape.is_compatible_with(variable.shape):
                raise ValueError(f'optimizer {self.name}: gradient of {name} has shape {gradient.shape}, '
                                 f'expected {variable.shape}')
            dense.append(gradient)
        return dense

    def _average(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        """Mean over the replicas, the same on each; what is non-finite on one of them is so in the mean."""
        context = tf.distribute.get_replica_context()
        if context is None:
            raise RuntimeError(f'optimizer {self.name}: call apply in replica context, inside strategy.run')
        if context.num_replicas_in_sync == 1:
            return gradients
        return list(context.all_reduce(tf.distribute.ReduceOp.MEAN, gradients))


def _path(variable: Any) -> str:
    """Name of a variable without the ':0' that tf.Variable appends."""
    return variable.path if isinstance(variable, keras.Variable) else variable.name.split(':')[0]
