"""Classes on the command line: numbers, ranges and names."""

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dnnlib import flags
from dnnlib.util import UserError, did_you_mean, is_remote_path
from training.datasets.labels import read_names

if TYPE_CHECKING:
    from dnnlib.tflib import Network

ALL = 'all'
# Files beside a network that name its classes, one name per line or a JSON list.
NAME_FILES = ('class_names.json', 'class_names.txt', 'classes.txt')


def class_list(text: str) -> list[int | str]:
    """Classes, separated by commas: numbers, ranges such as 0-9, names, or 'all'."""
    found: list[int | str] = []
    for part in map(str.strip, text.split(',')):
        if re.fullmatch(r'\d+(\s*-\s*\d+)?', part):
            found += flags.number_list(part)
        elif not part or re.fullmatch(r'-[\d.]+|[\d.]+', part):
            flags.nonneg_int(part)      # Says what is wrong.
        else:
            found.append(part)
    return found


class_list.metavar = 'CLASSES'


def one_class(text: str) -> int | str:
    """A class: a number or a name."""
    found = class_list(text)
    if len(found) != 1 or found == [ALL]:
        raise UserError(f'expected one class, received {text!r}')
    return found[0]


one_class.metavar = 'CLASS'


def class_names(network: 'Network', network_pkl: str | os.PathLike | None = None) -> list[str] | None:
    """The names of a network's classes, from its arguments or a file beside it; None where there are none."""
    size = network.input_shapes[1][1] if network.num_inputs > 1 else 0
    names = network.static_kwargs.get('class_names')
    if not names and network_pkl is not None and not is_remote_path(network_pkl):
        folder = os.path.dirname(os.path.abspath(os.path.expanduser(os.fspath(network_pkl))))
        paths = (os.path.join(folder, name) for name in NAME_FILES)
        names = next((read_names(path) for path in paths if os.path.isfile(path)), None)
    return [str(name) for name in names] if names and len(names) == size else None


def resolve(tokens: Sequence[int | str], network: 'Network', names: Sequence[str] | None) -> list[int]:
    """The numbers of classes.

    Args:
        tokens: What class_list returns.
        network: Its number of classes decides what 'all' is; that numbers fit is checked by class_label.
        names: Those of all classes, see class_names.

    Errors: UserError for a name that there is not.
    """
    size = network.input_shapes[1][1] if network.num_inputs > 1 else 0
    found: list[int] = []
    for token in tokens:
        if isinstance(token, int):
            found.append(token)
        elif not size:
            raise UserError(f'network {network.name} is unconditional; leave --class={token} out')
        elif token == ALL and ALL not in (names or ()):
            found += range(size)
        elif names is None:
            raise UserError(f'--class={token}: the names of the classes of network {network.name} are not '
                            f'known; give numbers from 0 to {size - 1}, or put a file {NAME_FILES[1]} with '
                            'one name per line beside the network')
        else:
            found.append(_find(token, names, network.name))
    return found


def _find(token: str, names: Sequence[str], network: str) -> int:
    lower = [name.lower() for name in names]
    matches = [i for i, name in enumerate(names) if name == token] or [
        i for i, name in enumerate(lower) if name == token.lower()]
    if len(matches) != 1:
        hint = did_you_mean(token, names) if not matches else f'; classes {matches} have it'
        raise UserError(f'--class={token}: network {network} has {"no" if not matches else "more than one"} '
                        f'class of that name{hint}')
    return matches[0]


def class_labels(network: 'Network', classes: Sequence[int | None]) -> list[np.ndarray]:
    """Labels [label_size] of classes, each checked as sampling.class_label does it."""
    from generation import sampling
    return [sampling.class_label(network, number)[0] for number in classes]


def shown(number: int | None, names: Sequence[str] | None) -> str:
    """A class as it may be printed."""
    return '' if number is None else f'{number}' if names is None else f'{number} ({names[number]})'
