"""Published weights of BigGAN as what a pickle of ours holds: one network, or a snapshot (G, D, Gs)."""

import copy
import os
from collections.abc import Iterator, Sequence
from typing import Any

from dnnlib.tflib.conversion import biggan, biggan_sources
from dnnlib.tflib.legacy import NetworkState
from dnnlib.util import UserError

__all__ = ['apply_classes', 'describe', 'load']


def load(
    paths: Sequence[str],                           # Files and folders, see biggan_sources.read.
    num_classes: int | None = None,                 # Of the result; None: as many as there are.
    class_map: Sequence[int | None] | None = None,  # New class → the class it takes over, None = a new one.
    class_names: Sequence[str] | None = None,       # Names of the classes of the result.
    seed: int = 0,                                  # Of the weights of new classes.
    d_attention: Sequence[int] | None = None,       # Resolutions with attention in D; None: inferred.
    **overrides: Any,                               # See biggan.OVERRIDES; None: inferred.
) -> tuple[dict[str, NetworkState], list[str]]:
    """Reads networks: {'G', 'D' or 'Gs': network}, and notes for the user.

    What is named G_ema, and generators that were published as averages, are Gs. Where D is there, the result
    is complete: a missing G or Gs is a copy of the other one.

    Errors: UserError, naming the file and what is wrong with it.
    """
    states: dict[str, NetworkState] = {}
    notes: list[str] = []
    for weights in (found for path in paths for found in biggan_sources.read(path)):
        role = _role(weights)
        if role in states:
            raise UserError(f'{weights.path}: there is another network {role} already; give one of each')
        options = {**overrides, 'attention': d_attention} if role == 'D' else overrides
        states[role], found = biggan.to_state(weights, role, **options)
        notes += found
    sizes = {role: state.static_kwargs['label_size'] for role, state in states.items()}
    shapes = {role: state.static_kwargs['resolution'] for role, state in states.items()}
    if len(set(sizes.values())) > 1 or len(set(shapes.values())) > 1:
        raise UserError(f'the networks do not belong together: classes {sizes}, resolutions {shapes}')
    if 'D' in states and len(states) == 2:
        own, other = ('G', 'Gs') if 'G' in states else ('Gs', 'G')
        states[other] = copy.deepcopy(states[own])
        states[other].name = other
        notes.append(f'there is no {other}; it is a copy of {own}')
    notes += apply_classes(states, num_classes, class_map, class_names, seed)
    return {role: states[role] for role in ('G', 'D', 'Gs') if role in states}, notes


def _role(weights: biggan_sources.Weights) -> str:
    if weights.kind == 'torch-D':
        return 'D'
    name = os.path.basename(weights.path).lower()
    return 'Gs' if weights.kind != 'torch-G' or 'ema' in name or 'gs' in name.split('.') else 'G'


def apply_classes(states: dict[str, NetworkState], num_classes: int | None,
                  class_map: Sequence[int | None] | None, class_names: Sequence[str] | None,
                  seed: int) -> list[str]:
    """Gives the networks of a snapshot other classes, see `load`; returns notes."""
    notes = []
    old = max(next(iter(states.values())).static_kwargs.get('label_size', 0), 1)
    classes = None if class_map is None else list(class_map)
    if num_classes is not None and (classes is not None or num_classes != old):
        if classes is None:
            notes.append(f'all {num_classes} classes are new; a map of classes lets them take over the '
                         'weights of old ones')
        classes = classes or []
        if num_classes < len(classes):
            raise UserError(f'the map of classes is for {len(classes)}; received {num_classes} classes')
        classes += [None] * (num_classes - len(classes))
    if classes is not None:
        for state in states.values():
            biggan.change_classes(state, classes, seed)
    count = old if classes is None else len(classes)
    if class_names is not None:
        if len(class_names) != count:
            raise UserError(f'expected the names of {count} classes, received {len(class_names)}')
        for state in states.values():
            state.static_kwargs['class_names'] = list(class_names)
    return notes


def describe(path: str) -> Iterator[str]:
    """Lines about files and folders of BigGAN's weights."""
    for weights in biggan_sources.read(path):
        state, notes = biggan.to_state(weights, _role(weights))
        count = sum(value.size for value in weights.values.values())
        yield (f'{biggan_sources.KINDS[weights.kind]}: {state.build_func_name}, {len(weights.values)} '
               f'tensors, {count:,} numbers')
        for key, value in state.static_kwargs.items():
            yield f'    {key} = {value!r:.100}'
        for note in notes:
            yield f'    {note}'
