"""What a file holds, with networks in the places of their states, and back."""

from collections.abc import Callable
from typing import Any

from dnnlib.tflib.legacy import NetworkState
from dnnlib.tflib.network import Network

__all__ = ['networks_of', 'states_of']


def networks_of(content: Any) -> Any:
    """What `legacy.load_pkl` returned, with Networks, not built yet, in the places of their states."""
    made: dict[int, Network] = {}

    def convert(value):
        if isinstance(value, NetworkState):
            if id(value) not in made:
                made[id(value)] = Network.from_state(value, lazy=True)
            return made[id(value)]
        return _map_items(convert, value)
    return convert(content)


def states_of(content: Any) -> Any:
    """The reverse of `networks_of`: what `legacy.save_pkl` can write."""
    made: dict[int, NetworkState] = {}

    def convert(value):
        if isinstance(value, Network):
            return made.setdefault(id(value), value.state())
        return _map_items(convert, value)
    return convert(content)


def _map_items(func: Callable, value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value)(map(func, value))
    if isinstance(value, dict):
        return type(value)((key, func(item)) for key, item in value.items())
    return value
