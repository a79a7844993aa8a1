"""The variables of a network as `Network.vars` shows them: official names, and the habits of TensorFlow 1."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dnnlib.util import UserError

MOST_NAMES = 8      # Names of a kind that a message lists.


class NetworkVariable(keras.Variable):
    """A Keras variable under its official name, which can be the key of a dictionary.

    It is the variable itself, seen through another class: both share all of their state.
    """

    __slots__ = ('_full_name',)     # The only thing that is not shared.

    @classmethod
    def of(cls, variable: keras.Variable, full_name: str) -> 'NetworkVariable':
        """The view of a variable; always the same one, under the name of the first time."""
        if '_network_view' not in variable.__dict__:
            view = cls.__new__(cls)
            view.__dict__ = variable.__dict__
            view._full_name = full_name
            variable.__dict__['_network_view'] = view
        return variable.__dict__['_network_view']

    @property
    def name(self) -> str:
        """Official name with the network in front, for example 'Gs/G_synthesis/noise0:0'."""
        return self._full_name

    @property
    def shape(self) -> tf.TensorShape:
        """Shape; its `as_list()` is what scripts of TensorFlow 1 use."""
        return tf.TensorShape(self._shape)

    get_shape = shape.fget

    @property
    def dtype(self) -> tf.DType:
        """Type of the elements."""
        return tf.as_dtype(super().dtype)

    def eval(self, session: Any = None) -> np.ndarray:
        """The value; there is no session to name."""
        del session
        return self.numpy()

    def read_value(self) -> tf.Tensor:
        """The value as a tensor."""
        return tf.convert_to_tensor(self)

    # Two variables of equal values are two variables; a comparison by elements would also rule out hashing.
    def __eq__(self, other: Any) -> bool:
        return self is other

    def __ne__(self, other: Any) -> bool:
        return self is not other

    def __hash__(self) -> int:
        return id(self.__dict__)

    def __copy__(self) -> 'NetworkVariable':
        return self

    def __deepcopy__(self, memo: dict) -> 'NetworkVariable':
        return self


def named_views(layer: Any, scope: str) -> dict[str, NetworkVariable]:
    """{official local name: variable} of a network layer whose network is called `scope`."""
    return {name: NetworkVariable.of(variable, f'{scope}/{name}:0')
            for name, variable in layer.named_variables().items()}


def check_values(variables: dict[str, Any], values: dict[str, Any], network: str, complete: bool) -> None:
    """Raises UserError that lists, in one line, which values do not fit the variables of those names.

    Args:
        variables: {name: variable}, something with a shape.
        values: {name: array, tensor or number}.
        network: What the variables belong to, for the message.
        complete: Is a variable without a value a mistake?
    """
    problems = []
    missing = [name for name in variables if name not in values] if complete else []
    unknown = [name for name in values if name not in variables]
    wrong = [_misfit(name, variables[name], value) for name, value in values.items() if name in variables]
    wrong = [text for text in wrong if text]
    for kind, names in (('missing', missing), ('unknown', unknown)):
        if names:
            problems.append(f'{len(names)} {kind}: {shorten(map(quote, names))}')
    if wrong:
        problems.append(f'{len(wrong)} that do not fit: {shorten(wrong)}')
    if problems:
        raise UserError(f'the variables do not match {network}: {"; ".join(problems)}')


def _misfit(name: str, variable: Any, value: Any) -> str | None:
    expected = tuple(variable.shape)
    try:
        array = value if hasattr(value, 'shape') and hasattr(value, 'dtype') else np.asarray(value)
        shape = tuple(array.shape)
    except (TypeError, ValueError):
        return f'{quote(name)} expected shape {expected}, received {type(value).__name__}'
    if shape != expected:
        return f'{quote(name)} expected shape {expected}, received {shape}'
    if isinstance(array, np.ndarray | np.generic) and array.dtype.kind not in 'biuf':
        return f'{quote(name)} expected real numbers, received {array.dtype}'
    return None


def assign_values(variables: dict[str, Any], values: dict[str, Any]) -> None:
    """Assigns checked values."""
    for name, value in values.items():
        if isinstance(value, keras.Variable):
            value = value.value
        variables[name].assign(tf.cast(value, variables[name].dtype))


def moving_average(targets: dict[str, Any], sources: dict[str, Any], beta: Any,
                   beta_nontrainable: Any) -> Callable[[], None]:
    """The function that does target ← lerp(source, target, beta) once, for the names that both have.

    The betas are numbers, or tensors and variables that are read each time; the second one is for variables
    that are not trained. Where it is the number 0, these are copied, whatever they were before.
    """
    targets = {name: target for name, target in targets.items() if name in sources}
    check_values(targets, {name: sources[name] for name in targets}, 'those to be averaged', complete=True)
    copied = isinstance(beta_nontrainable, int | float) and beta_nontrainable == 0

    def average(*betas):
        for name, target in targets.items():
            value = tf.convert_to_tensor(sources[name])
            if target.trainable or not copied:
                value += (target - value) * tf.cast(betas[0 if target.trainable else 1], value.dtype)
            target.assign(value)

    function = tf.function(average, autograph=False)
    return lambda: function(*[tf.cast(rate, tf.float32) for rate in (beta, beta_nontrainable)])


def quote(name: Any) -> str:
    """A name that stands in a file, fit for a message: short, without control characters."""
    text = str(name)
    return text if text.isprintable() and len(text) <= 60 else ascii(text)[:60]


def shorten(items: Iterable[str], most: int = MOST_NAMES) -> str:
    """'a, b, c and 5 more'."""
    items = list(items)
    return ', '.join(items[:most]) + (f' and {len(items) - most} more' if len(items) > most else '')
