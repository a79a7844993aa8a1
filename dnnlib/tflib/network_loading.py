"""From what a pickle says about a network to the Keras layers that do it, with nothing of the pickle run."""

import importlib
from typing import Any

import keras
import tensorflow as tf

from dnnlib.tflib.legacy import NetworkState, check_supported
from dnnlib.tflib.network_variables import assign_values, check_values, quote, shorten
from dnnlib.tflib.state_check import check_arguments
from dnnlib.util import UserError, get_obj_by_name

# Modules to look in for the function name of a pickle, by state version. StyleGAN's program can train the
# networks of ProGAN, and StyleGAN2's config A keeps those of StyleGAN.
MODULES = {
    2: ['training.networks_progan'],
    3: ['training.networks_stylegan', 'training.networks_progan'],
    4: ['training.networks_stylegan2', 'training.networks_stylegan', 'training.networks_biggan',
        'training.networks_biggan_deep'],
}

OLD_MODULES = {'networks': 'training.networks_progan'}      # Where ProGAN's program has its networks.

KNOWN = ('here are those of ProGAN (state version 2 or 3: G_paper, D_paper), StyleGAN (3 or 4: G_style, '
         'D_basic), StyleGAN2 (4: G_main, D_stylegan, D_stylegan2) and their components, and BigGAN (4: '
         'G_biggan, D_biggan, G_biggan_deep, D_biggan_deep)')


def find_function(func_name: Any) -> type:
    """The network class of that name, or the class itself."""
    from training.layers import NetworkLayer
    if func_name is None:
        raise UserError("Network expects func_name, for example 'training.networks_stylegan2.G_main'. "
                        'Received: None')
    build = func_name
    if isinstance(func_name, str):
        module, _, name = func_name.rpartition('.')
        build = get_obj_by_name(f'{OLD_MODULES[module]}.{name}' if module in OLD_MODULES else func_name)
    if not (isinstance(build, type) and issubclass(build, NetworkLayer)):
        raise UserError('Network expects the name or class of a network (a training.layers.NetworkLayer; a '
                        f'function that builds a TensorFlow 1 graph is none). Received: {func_name!r:.100}')
    return build


def find_network_class(build_func_name: str, version: int = 4) -> type:
    """The network class that a pickle of that state version calls by its function name.

    The name comes from a file: nothing but a network class of the module of that generation is ever returned.
    """
    found = _network_class(build_func_name, version)
    if found is None:
        raise UserError(f'network function {build_func_name!r:.60} of state version {version} is unknown; '
                        f'{KNOWN}')
    return found


def _network_class(build_func_name: str, version: int) -> type | None:
    from training.layers import NetworkLayer
    for module in MODULES.get(version, []):
        found = vars(importlib.import_module(module)).get(build_func_name)
        if isinstance(found, type) and issubclass(found, NetworkLayer) and found.__module__ == module:
            return found
    return None


def check_state(state: NetworkState) -> None:
    """Raises UserError for a pickled network that is of no generation we have, or names other functions.

    Nothing but a network of ours may be imported or called for the sake of a file.
    """
    check_supported(state)
    check_arguments(state)
    unknown, odd = [], []
    pending = [state]
    while pending:
        network = pending.pop()
        if _network_class(network.build_func_name, network.version) is None:
            unknown.append(f'{network.build_func_name!r:.60} of {quote(network.name)} '
                           f'(state version {network.version})')
        for key, value in network.static_kwargs.items():
            if isinstance(key, str) and key.endswith('_func') and value is not None:
                module, _, name = value.rpartition('.') if isinstance(value, str) else ('', '', '')
                if not name.isidentifier() or module not in ('', *sum(MODULES.values(), [])):
                    odd.append(f'{quote(key)} of {quote(network.name)} is {value!r:.60}, '
                               'expected the name of a network')
        pending += network.components.values()
    problems = [f'unknown network functions: {shorten(unknown)}'] if unknown else []
    problems += [shorten(odd)] if odd else []
    if problems:
        raise UserError('; '.join([*problems, KNOWN]))


def build_layer(state: NetworkState, name: str | None = None) -> Any:
    """The layer of a pickled network, filled with its values; UserError that lists what does not match."""
    from training.layers import planned_variables, unused_initial_values
    check_state(state)
    network_class = find_network_class(state.build_func_name, state.version)
    values = state.all_variables()
    where = f'{quote(state.name)} ({network_class.__module__}.{network_class.__name__})'
    # First without memory: arguments out of a file could ask for any amount of it.
    with planned_variables(_Limit(len(values))):
        plan = _construct(network_class, state, name)
        check_values(plan.named_variables(), values, where, complete=True)
        _check_components(plan, state)
    with unused_initial_values():
        layer = _construct(network_class, state, name)
    assign_values(layer.named_variables(), values)
    return layer


class _Limit:
    """Ends the construction of a network that goes far beyond what its pickle holds."""

    def __init__(self, num_values: int):
        self.left = 2 * num_values + 200

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise UserError('the arguments of the network ask for far more variables than the pickle has')


def _construct(network_class: type, state: NetworkState, name: str | None) -> Any:
    try:
        return network_class(**{**state.static_kwargs, 'name': layer_name(name or state.name)})
    except UserError as error:
        raise UserError(f'network {quote(state.name)}: {error}') from None
    except (TypeError, ValueError, OverflowError, ArithmeticError, KeyError, IndexError, AttributeError,
            MemoryError, RecursionError, tf.errors.OpError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f'network {quote(state.name)}: its arguments do not fit {state.build_func_name} '
                        f'({reason:.200})') from error


def _check_components(layer: Any, state: NetworkState) -> None:
    """Raises UserError where a component was made by another function than its parent's arguments say."""
    wrong = [f'{quote(key)} is {component.build_func_name}, expected '
             f'{type(layer.components[key]).__name__ if key in layer.components else "no such component"}'
             for key, component in state.components.items()
             if key not in layer.components
             or type(layer.components[key]).__name__ != component.build_func_name]
    wrong += [f'{key} is missing' for key in layer.components if key not in state.components]
    if wrong:
        raise UserError(f'the components of network {quote(state.name)} do not match its arguments: '
                        f'{shorten(wrong)}')


def layer_name(name: str) -> str:
    """The name of a network as Keras takes it."""
    return name.replace('/', '_') or 'network'


def initial_values(layer: Any) -> dict[str, keras.Variable]:
    """Variables of a new layer of the same class and arguments, with their initial values."""
    fresh = type(layer)(**{**layer.static_kwargs, 'name': layer.name})
    return fresh.named_variables()
