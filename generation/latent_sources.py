"""Where pictures begin: w of seeds, or latents and noise of the files of run_projector.py --save-latents."""

import dataclasses
import os
import zipfile
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dnnlib.util import UserError
from generation import sampling
from generation.generator_flags import distinct

if TYPE_CHECKING:
    from dnnlib.tflib import Network

_KEYS = ('dlatents', 'w')               # The second is that of other projectors.
_SUFFIXES = ('-latents', '-dlatents')   # Of file names; pictures are named without them.


@dataclasses.dataclass
class Source:
    """What a picture is made of."""

    name: str                               # A seed, or the name of a file.
    dlatents: np.ndarray                    # w, [num_layers, dlatent_size].
    noises: list[np.ndarray] | None = None  # [1, H, W] for each noise variable. None = as stored.


def from_seeds(network: 'Network', seeds: Sequence[int], truncation_psi: float,
               label: np.ndarray | None = None) -> list[Source]:
    """The sources of seeds: truncated w, and noise as stored."""
    dlatents = sampling.seed_dlatents(network, seeds, truncation_psi, label)
    return [Source(str(seed), w) for seed, w in zip(seeds, dlatents, strict=True)]


def from_files(network: 'Network', paths: Sequence[str], truncation_psi: float = 1.0) -> list[Source]:
    """The sources of .npz files: 'dlatents' or 'w', [num_layers, dlatent_size] or several of them; noise0, …

    A w of one layer serves all layers. Files without noise take that of the network.

    Errors: UserError for a file that is none or does not fit the network, or a network without w; OSError for
        a file that is not there.
    """
    sampling.check_dlatents(network)
    sources = []
    for path, name in zip(paths, _names(paths), strict=True):
        try:
            dlatents, noises = _read(network, path)
        except UserError:  # A ValueError, too.
            raise
        except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError):
            raise UserError(f'{path}: expected an .npz file of latents, as run_projector.py --save-latents '
                            'writes it; found something else') from None
        dlatents = sampling.truncate(network, dlatents, truncation_psi)
        for i, w in enumerate(dlatents):
            sources.append(Source(name if len(dlatents) == 1 else f'{name}-{i}', w,
                                  noises and [noise[i % len(noise)] for noise in noises]))
    for source, name in zip(sources, distinct([source.name for source in sources]), strict=True):
        source.name = name
    return sources


def noises_of(network: 'Network', sources: Sequence[Source]) -> list[list[np.ndarray]] | None:
    """The noise of each source, that of the network where it brings none; None where none of them does."""
    if all(source.noises is None for source in sources):
        return None
    stored = stored_noise(network)
    return [stored if source.noises is None else source.noises for source in sources]


def stored_noise(network: 'Network') -> list[np.ndarray]:
    """The values of the noise variables, [1, H, W] each."""
    return [var.numpy()[0] for var in sampling.noise_vars(network)]


def _read(network: 'Network', path: str) -> tuple[np.ndarray, list[np.ndarray] | None]:
    """w [N, num_layers, dlatent_size] and the noise [1 or N, 1, H, W] of a file."""
    with open(path, 'rb') as file:
        arrays = np.load(file, allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise UserError(f'{path}: expected an .npz file with an array dlatents, received one array alone')
        key = next((key for key in _KEYS if key in arrays), None)
        if key is None:
            raise UserError(f'{path}: expected an array dlatents, found {", ".join(arrays) or "none"}')
        dlatents = arrays[key]
        noises = {name: arrays[name] for name in arrays if name.startswith('noise') and name[5:].isdecimal()}
    _, num_layers, dlatent_size = network.components.synthesis.input_shape
    w = dlatents[np.newaxis] if dlatents.ndim == 2 else dlatents
    if w.ndim != 3 or w.shape[1] not in (1, num_layers) or w.shape[2] != dlatent_size or not len(w):
        raise UserError(f'{path}: {key} has shape {list(dlatents.shape)}; network {network.name} expects '
                        f'[{num_layers}, {dlatent_size}]')
    if w.dtype.kind not in 'fiu' or not np.all(np.isfinite(w)):
        raise UserError(f'{path}: {key} holds values that are no finite numbers')
    w = np.broadcast_to(w, [len(w), num_layers, dlatent_size])
    return w, _check_noises(network, path, noises, len(w)) if noises else None


def _check_noises(network: 'Network', path: str, noises: dict[str, np.ndarray],
                  count: int) -> list[np.ndarray]:
    result = []
    for i, var in enumerate(sampling.noise_vars(network)):
        noise, size = noises.get(f'noise{i}'), list(var.shape[2:])
        if noise is None:
            raise UserError(f'{path}: noise{i} is missing; network {network.name} has noise0 to '
                            f'noise{len(sampling.noise_vars(network)) - 1}')
        if (list(noise.shape[-2:]) != size or noise.size // np.prod(size) not in (1, count)
                or noise.dtype.kind not in 'fiu' or not np.all(np.isfinite(noise))):
            raise UserError(f'{path}: noise{i} has type {noise.dtype} and shape {list(noise.shape)}; network '
                            f'{network.name} expects finite numbers of shape {[1, *size]}')
        result.append(noise.reshape(-1, 1, *size))
    return result


def _names(paths: Sequence[str]) -> list[str]:
    """What pictures of the files are called; numbered where two would have one name."""
    names = [os.path.splitext(os.path.basename(path))[0] for path in paths]
    for suffix in _SUFFIXES:
        names = [name.removesuffix(suffix) or name for name in names]
    return distinct(names)
