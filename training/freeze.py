"""Which weights of a network stay as they are while the others are trained: fine-tuning and added modules.

The configuration says it by names, `G_freeze` and `D_freeze`. What is frozen gets no gradient and no update;
all else about it is as ever: it is saved, reported and averaged, and gradients flow through it.
"""

import fnmatch
import re
from collections.abc import Sequence
from typing import Any

from dnnlib.util import UserError, did_you_mean

# The layers above 4×4 by resolution; those from RGB of growing networks by their distance from the final one.
_BLOCK = re.compile(r'(\d+)x\1/')
_FROM_RGB = re.compile(r'FromRGB_lod(\d+)/')


def frozen_names(network: Any, freeze: Sequence[str] | int | None, argument: str = 'freeze') -> list[str]:
    """The official names of the trainable variables that are not to be trained.

    Args:
        network: Layer of training.layers with named_trainables().
        freeze: Names of variables, of layers (all beneath them) or of networks in a generator ('G_mapping'),
            with * and ? for any characters, '/' among them. A number, for a discriminator: the layers of that
            many of its highest resolutions, or blocks, from RGB on (Mo et al. 2020, FreezeD).
        argument: What `freeze` is called in messages.

    Errors: UserError for a name that fits no trainable variable, for a number above that of the resolutions,
        and where nothing would be left to train.
    """
    names = list(network.named_trainables())
    frozen = set()
    for pattern in _patterns(names, freeze, argument):
        found = {name for name in names if _fits(name, pattern)}
        if not found:
            layers = dict.fromkeys(name.rpartition('/')[0] or name for name in names)
            parts = dict.fromkeys(part for name in names for part in _parts(name))
            raise UserError(f'{argument}: {pattern!r} fits no trained variable of {network.name}, whose '
                            f'layers are {", ".join(layers)}{did_you_mean(pattern, parts, 1)}')
        frozen |= found
    if frozen and len(frozen) == len(names):
        raise UserError(f'{argument} leaves nothing of {network.name} to train; name fewer layers. '
                        f'Received: {freeze!r}')
    return [name for name in names if name in frozen]


def _patterns(names: list[str], freeze: Any, argument: str) -> list[str]:
    if freeze is None:
        return []
    if isinstance(freeze, int) and not isinstance(freeze, bool):
        return _highest_levels(names, freeze, argument)
    if isinstance(freeze, str) or not isinstance(freeze, Sequence) or \
            not all(isinstance(pattern, str) for pattern in freeze):
        raise UserError(f'{argument}: expected a list of names, or a number of resolutions. '
                        f'Received: {freeze!r}')
    return list(freeze)


def _parts(name: str) -> list[str]:
    """The names of everything that a variable lies in, and its own."""
    parts = name.split('/')
    return ['/'.join(parts[:count]) for count in range(1, len(parts) + 1)]


def _fits(name: str, pattern: str) -> bool:
    """Whether a pattern fits the name of a variable or of something that it lies in."""
    return any(fnmatch.fnmatchcase(part, pattern) for part in _parts(name))


def _highest_levels(names: list[str], count: int, argument: str) -> list[str]:
    """The names of everything at the `count` highest resolutions of a discriminator, from RGB included.

    Where layers are not named after resolutions, as in BigGAN, everything up to the end of so many blocks.
    """
    layers = dict.fromkeys(name.partition('/')[0] for name in names)
    blocks = [layer for layer in layers if layer.startswith('Block')]
    if blocks:
        if not 0 <= count < len(blocks):
            raise UserError(f'{argument}: expected a number of blocks from 0 to {len(blocks) - 1}, or names. '
                            f'Received: {count}')
        return list(layers)[:list(layers).index(blocks[count])]
    sizes = {int(match[1]) for match in map(_BLOCK.match, names) if match}
    levels = sorted(sizes, reverse=True)
    if not 0 <= count <= len(levels):
        raise UserError(f'{argument}: expected a number of resolutions from 0 to {len(levels)} ('
                        f'{", ".join(f"{size}x{size}" for size in levels)}), or names. Received: {count}')
    chosen = {f'{size}x{size}' for size in levels[:count]}
    from_rgb = {layer for layer in layers for match in [_FROM_RGB.match(f'{layer}/')]
                if match and int(match[1]) < count}
    return [layer for layer in layers if layer in chosen | from_rgb]
