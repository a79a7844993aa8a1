"""Reading and writing one replica's own copy of a variable.

Under `tf.distribute.MirroredStrategy` and `MultiWorkerMirroredStrategy` every variable has one copy per
replica. Assigning through the variable object needs an aggregation step that is not allowed inside
`tf.cond`; the functions here work on the local copy alone, without communication (and work without any
strategy too). The price: nothing checks that the copies stay equal. The caller guarantees that every
replica assigns the same value.
"""

from typing import Any

import keras
import tensorflow as tf


def unwrap(variable: Any) -> Any:
    """The tf.Variable (or MirroredVariable) inside a keras.Variable; a tf.Variable is returned as it is."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def local_handle(variable: Any) -> tf.Tensor:
    """Resource handle of this replica's copy of `variable`, for the `tf.raw_ops.Resource*` operations.

    Call it outside the branches of `tf.cond`: inside them TensorFlow no longer knows which replica it traces.

    Args:
        variable: keras.Variable or tf.Variable, created under the strategy whose replica context is active.

    Returns: scalar tensor of type resource.
    Raises: ValueError (from TensorFlow) outside replica context if the variable is mirrored.
    """
    return unwrap(variable).handle


def local_read(variable: Any) -> tf.Tensor:
    """Value of this replica's copy of `variable` at this point; no gradient flows to the variable."""
    return tf.raw_ops.ReadVariableOp(resource=local_handle(variable), dtype=unwrap(variable).dtype)


def local_assign(variable: Any, value: Any) -> tf.Operation | None:
    """Sets this replica's copy of `variable`; the caller guarantees that all replicas assign the same value.

    Args:
        variable: keras.Variable or tf.Variable.
        value: tensor or array of the same shape; it is cast to the type of the variable.

    Raises: ValueError if the static shape of the value does not fit.
    """
    inner = unwrap(variable)
    value = tf.cast(value, inner.dtype)
    if not value.shape.is_compatible_with(inner.shape):
        raise ValueError(f'cannot assign shape {value.shape} to {inner.name} of shape {inner.shape}')
    return tf.raw_ops.AssignVariableOp(resource=local_handle(inner), value=value)
