"""Standing statistics: moments of batch normalizations for exactly what is going to be sampled.

The running statistics of a generator belong to weights that were not averaged, and to latents that were not
truncated. Standing ones (BigGAN, appendix C.1) are means over many batches of the latents that will be
sampled. They are kept in the cache directory, by the content of the network and how they were made.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

import dnnlib
from dnnlib.file_lock import LockedError, file_lock
from dnnlib.util import UserError
from training.context import Context

if TYPE_CHECKING:
    from dnnlib.tflib import Network

MEAN, VARIANCE = 'moving_mean', 'moving_variance'
MOST_FILES = 200            # Kept in the cache; the ones that were not used for longest are removed.
_WAIT = 3600                # Seconds to wait for another process that computes the same.
_FORMAT = 1                 # Part of the keys of the cache.
_ANNOUNCE_AFTER = 5         # Seconds after which the first line about the progress is printed,
_ANNOUNCE_EVERY = 30        # and the others.


class MomentsContext(Context):
    """A pass whose batch normalizations hand over the moments of the batch; nothing is updated.

    Attributes:
        found: [(normalization, mean [C], biased variance [C])], in the order of the pass.
    """

    def __init__(self, stage=None):
        super().__init__(stage=stage)
        self.found: list[tuple[Any, tf.Tensor, tf.Tensor]] = []

    def moments(self, norm: Any, mean: tf.Tensor, variance: tf.Tensor) -> None:
        """Called by every batch normalization."""
        self.found.append((norm, mean, variance))

    def update(self, variable, value) -> None:
        del variable, value


def statistics_names(network: 'Network') -> list[str]:
    """Names of the variables that are statistics of batch normalizations."""
    return [name for name in network.vars if name.rpartition('/')[2] in (MEAN, VARIANCE)]


def has_norms(network: 'Network') -> bool:
    """Whether a network has batch normalizations."""
    return bool(statistics_names(network))


def has_table(network: 'Network') -> bool:
    """Whether the statistics are tables, a row for each of several truncations."""
    return any(len(network.vars[name].shape) == 2 for name in statistics_names(network))


def check_running(network: 'Network') -> None:
    """Errors: UserError where training never filled the running statistics."""
    values = {name: network.get_var(name) for name in statistics_names(network)}
    means = [value for name, value in values.items() if name.endswith(MEAN)]
    variances = [value for name, value in values.items() if name.endswith(VARIANCE)]
    if not all(np.all(np.isfinite(value)) for value in values.values()):
        raise UserError(f'network {network.name}: the running statistics are not finite; the training has '
                        'diverged, take an earlier snapshot')
    if not any(map(np.any, means)) and (all(np.all(value == 1) for value in variances)
                                        or not any(map(np.any, variances))):
        raise UserError(f'network {network.name}: the running statistics were never filled, images would be '
                        'nothing but 0 and 1; use standing statistics')


def with_statistics(network: 'Network', values: dict[str, np.ndarray]) -> 'Network':
    """A clone with these statistics."""
    clone = network.clone()
    # Each row of a table, where there is one.
    clone.set_vars({name: np.broadcast_to(value, clone.vars[name].shape) for name, value in values.items()})
    return clone


def compute(network: 'Network', inputs: Iterable[tuple[np.ndarray, np.ndarray]],
            progress: Callable[[int], None] | None = None) -> dict[str, np.ndarray]:
    """Means over batches of their means and of their biased variances.

    Args:
        network: Not changed: the power iteration's vectors stay as they are, too.
        inputs: Latents [N, latent_size] and labels [N, label_size] of each batch.
        progress: Called with the number of batches done.

    Returns: {name of the variable: float32 [C]}.
    Errors: UserError where the moments are not finite.
    """
    names = {id(network.vars[name].__dict__): name for name in statistics_names(network)}
    order: list[str] = []

    def evaluate(latents, labels):
        ctx = MomentsContext(network.layer.stage())
        network.get_output_for(*[latents, labels][:network.num_inputs], ctx=ctx, statistics='batch')
        order[:] = [names[id(getattr(norm, key).__dict__)]
                    for norm, _, _ in ctx.found for key in (MEAN, VARIANCE)]
        return [tf.cast(value, tf.float32) for _, *moments in ctx.found for value in moments]

    traced = None
    sums: dict[str, np.ndarray] = {}
    count = 0
    dtype = network.layer.compute_dtype
    for count, arrays in enumerate(inputs, 1):  # noqa: B007
        batch = [tf.constant(array, dtype) for array in arrays]
        if traced is None:      # A concrete one: TensorFlow would warn of many networks as of retracing.
            traced = tf.function(evaluate, autograph=False).get_concrete_function(*batch)
        values = traced(*batch)
        for name, value in zip(order, values, strict=True):
            sums[name] = sums.get(name, 0) + value.numpy().astype(np.float64)
        if progress is not None:
            progress(count)
    missing = [name for name in names.values() if name not in sums]
    if missing:
        raise RuntimeError(f'network {network.name}: no moments of {missing}')
    found = {name: (value / count).astype(np.float32) for name, value in sums.items()}
    if not all(np.all(np.isfinite(value)) for value in found.values()):
        raise UserError(f'network {network.name} makes values that are not finite; the training has '
                        'diverged, take an earlier snapshot')
    return found


def with_standing_statistics(
    network: 'Network',
    latents: Callable[[np.random.RandomState, int], np.ndarray],    # What is sampled: Sampler.latents.
    truncation: float | None, mode: str, distribution: str,         # What that does, for the cache.
    seed: int, passes: int, batch: int, use_cache: bool, verbose: bool,
) -> 'Network':
    """A clone with standing statistics, from the cache where they are there. See `samplers.make_sampler`."""
    if passes < 1 or batch < 2:
        raise UserError(f'standing statistics need 1 batch or more, of 2 images or more. Received: '
                        f'{passes} of {batch}')
    label_size = network.input_shapes[1][1] if network.num_inputs > 1 else 0

    def inputs():
        rnd = np.random.RandomState(seed)
        for _ in range(passes):
            labels = np.zeros([batch, label_size], np.float32)
            z = latents(rnd, batch)
            if label_size:
                labels[np.arange(batch), rnd.randint(label_size, size=batch)] = 1
            yield z, labels

    def make() -> dict[str, np.ndarray]:
        return compute(network, inputs(), _announcer(passes, batch) if verbose else None)
    if not use_cache:
        return with_statistics(network, make())
    key = cache_key(network, dict(truncation=truncation, mode=None if truncation is None else mode, seed=seed,
                                  distribution=distribution, passes=passes, batch=batch))
    return with_statistics(network, _cached(network, key, make))


def cache_key(network: 'Network', settings: dict[str, Any]) -> str:
    """Name of a file in the cache: a hash of all that standing statistics depend on."""
    digest = hashlib.sha256(json.dumps([_FORMAT, network.func_name, settings], sort_keys=True).encode())
    digest.update(repr(sorted((key, repr(value)) for key, value in network.static_kwargs.items())).encode())
    skipped = set(statistics_names(network))
    for name, variable in network.vars.items():
        if name not in skipped:
            digest.update(f'{name} {tuple(variable.shape)}'.encode())
            digest.update(np.ascontiguousarray(variable.numpy()).tobytes())
    return digest.hexdigest()[:40]


def _announcer(passes: int, batch: int) -> Callable[[int], None]:
    """A function that prints now and then how far it is, when called after each batch."""
    begin = last = None

    def announce(done: int) -> None:
        nonlocal begin, last
        now = time.monotonic()
        if begin is None:   # The first batch takes longer: what is computed is made ready.
            begin = now
            return
        if done < passes and now - (last or begin) >= (_ANNOUNCE_AFTER if last is None else _ANNOUNCE_EVERY):
            last = now
            left = dnnlib.util.format_time((now - begin) / (done - 1) * (passes - done))
            print(f'Standing statistics: {done}/{passes} batches of {batch}, {left} left', flush=True)
    return announce


# The cache.

def _cached(network: 'Network', key: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What make() returns, from the cache or then in it; a cache that cannot be written is done without."""
    folder = dnnlib.util.make_cache_dir_path('standing-statistics')
    path = os.path.join(folder, f'{key}.npz')
    found = _read(network, path)
    if found is not None:
        return found
    try:
        os.makedirs(folder, exist_ok=True)
        with file_lock(os.path.join(folder, f'{key}.lock'), _WAIT):
            found = _read(network, path)    # Another process may have written it meanwhile.
            if found is None:
                found = make()
                with dnnlib.util.atomic_write(path) as file:
                    np.savez(file, **{name.replace('/', '|'): value for name, value in found.items()})
                _prune(folder, path)
    except (OSError, LockedError) as error:
        print(f'Warning: standing statistics are not kept: {error}', file=sys.stderr)
        return make() if found is None else found
    return found


def _read(network: 'Network', path: str) -> dict[str, np.ndarray] | None:
    """The statistics of a file; None where it is not there, damaged or of another network."""
    try:
        with np.load(path, allow_pickle=False) as file:
            values = {name.replace('|', '/'): file[name] for name in file.files}
        os.utime(path)
    except FileNotFoundError:
        return None
    except Exception:   # noqa: BLE001  Whatever a damaged file may bring: it is made anew.
        return None
    names = statistics_names(network)
    fits = set(values) == set(names) and all(
        values[name].shape == tuple(network.vars[name].shape[-1:]) and np.all(np.isfinite(values[name]))
        for name in names)
    return values if fits else None


def _prune(folder: str, newest: str) -> None:
    """Removes all but the MOST_FILES files that were used last, with their locks."""
    files = [entry.path for entry in os.scandir(folder) if entry.name.endswith('.npz')]
    files.sort(key=lambda path: (path == newest, os.path.getmtime(path)))
    for path in files[:-MOST_FILES]:
        os.unlink(path)
        with_lock = path.removesuffix('.npz') + '.lock'
        if os.path.exists(with_lock):
            os.unlink(with_lock)
