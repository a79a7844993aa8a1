"""Networks as Keras weights files, '.weights.h5', and back.

In Python, `load(network, path)` fills a `tflib.Network` of the same architecture; `as_model(network.layer)`
is a Keras model whose own `load_weights` and `save_weights` read and write the same files.
"""

import math
import os
import tempfile
from typing import Any

import keras
import numpy as np

from dnnlib.tflib.conversion import config, tensors
from dnnlib.tflib.legacy import NetworkState
from dnnlib.tflib.network import Network
from dnnlib.util import UserError, atomic_write

__all__ = ['as_model', 'load', 'read', 'save']


class _NetworkModel(keras.Model):
    """A network as a Keras model; calls go to the layer."""

    def __init__(self, layer: Any):
        super().__init__()
        self.network = layer
        self.built = True

    def call(self, *inputs, **kwargs):
        return self.network(*inputs, **kwargs)


def as_model(layer: Any) -> keras.Model:
    """A keras.Model around the layer of a network (`Network.layer`), for save_weights and load_weights."""
    return _NetworkModel(layer)


def save(network: Network, path: str) -> None:
    """Writes the weights of a network; `path` ends in '.weights.h5'."""
    _check_name(path)
    with tempfile.TemporaryDirectory() as folder, atomic_write(path) as file:
        name = os.path.join(folder, 'network.weights.h5')
        as_model(network.layer).save_weights(name)
        with open(name, 'rb') as source:
            while chunk := source.read(4 << 20):
                file.write(chunk)


def load(network: Network, path: str) -> None:
    """Gives a network the weights of a file that `save` wrote for one of the same architecture.

    Errors: UserError where they do not fit.
    """
    _check_name(path)
    with open(path, 'rb') as file:
        if file.read(8) != b'\x89HDF\r\n\x1a\n':
            raise UserError(f'{path}: expected a Keras weights file (HDF5), found something else')
    try:
        as_model(network.layer).load_weights(path)
    except (ValueError, KeyError, TypeError, OSError, RuntimeError, AttributeError) as error:
        raise UserError(f'{path}: the weights do not fit network {network.name} or are damaged '
                        f'({" ".join(str(error).split()):.160})') from None


def read(path: str) -> NetworkState:
    """The network of a weights file and the JSON document beside it, as it is pickled."""
    _check_name(path)
    document = tensors.read_config(path)
    try:
        state = config.decode(document, Zeros(document))
        if not isinstance(state, NetworkState):
            raise UserError('expected the JSON document of one network')
        network = Network.from_state(state)
    except UserError as error:
        raise UserError(f'{tensors.config_path(path)}: {error}') from None
    load(network, path)
    values = {name: np.asarray(variable) for name, variable in network.vars.items()}

    def fill(net: NetworkState, prefix: str) -> None:
        net.variables = [(name, values.get(prefix + name, old).astype(old.dtype)[()] if np.ndim(old) == 0
                          else values.get(prefix + name, old).astype(old.dtype))
                         for name, old in net.variables]
        for component in net.components.values():
            fill(component, f'{prefix}{component.name}/')

    fill(state, '')
    return state


class Zeros(dict):
    """Arrays of zeros for the variables that a JSON document declares, within bounds."""

    MAX_ITEMS = 1 << 31

    def __init__(self, document: Any):
        super().__init__()
        pending, total = [document], 0
        while pending:
            value = pending.pop()
            if isinstance(value, dict) and isinstance(value.get('shape'), list) and 'array' in value:
                shape = value['shape']
                if (len(shape) > 8 or any(type(size) is not int or size < 0 for size in shape)
                        or value.get('dtype') not in ('float16', 'float32', 'float64', 'int32', 'int64')):
                    raise UserError(f'a variable of shape {shape!r:.80}')
                total += math.prod(shape)
                if total > self.MAX_ITEMS:
                    raise UserError('the variables together are too large')
                self[value['array']] = np.zeros(shape, value['dtype'])
            elif isinstance(value, dict | list):
                pending += value.values() if isinstance(value, dict) else value


def _check_name(path: str) -> None:
    if not path.endswith('.weights.h5'):
        raise UserError(f"expected a name that ends in '.weights.h5', received {path!r}")
