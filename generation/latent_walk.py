"""Ways through the latent space: from key to key on great circles, straight lines or a cubic spline."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dnnlib.util import UserError
from generation import latent_sources, samplers, sampling
from training import misc

if TYPE_CHECKING:
    from dnnlib.tflib import Network

_CHUNK = 256        # Latents that are mapped at a time.


def slerp(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """From a (t = 0) to b (t = 1) on a great circle: direction at a constant rate, length linearly.

    Args:
        a, b: Arrays of one shape, each one vector.
    """
    length_a, length_b = np.linalg.norm(a), np.linalg.norm(b)
    if length_a == 0 or length_b == 0:
        return a + (b - a) * t
    a_unit, b_unit = a / length_a, b / length_b
    angle = np.arccos(np.clip(np.sum(a_unit * b_unit), -1, 1))
    if np.sin(angle) < 1e-6:  # The same direction; or opposite ones, which no circle tells apart.
        return a + (b - a) * t
    direction = (np.sin((1 - t) * angle) * a_unit + np.sin(t * angle) * b_unit) / np.sin(angle)
    return direction * (length_a + (length_b - length_a) * t)


def walk(keys: np.ndarray, spherical: bool, interpolation: str = 'linear',
         loop: bool = False) -> Callable[[float], np.ndarray]:
    """A way through keys [K, …]: a function that gives key k at t = k.

    Args:
        keys: One vector each.
        spherical: Go on great circles, as z asks for, or on straight lines.
        interpolation: 'linear', at a constant rate between two keys; 'cubic', without edges at the keys.
        loop: Is there a way from the last key to the first one, t = K?
    """
    keys = np.asarray(keys, np.float64)
    count = len(keys)
    if loop:
        keys = np.concatenate([keys, keys[:1]])
    if interpolation == 'cubic':
        return _spline(keys, spherical, loop)
    last = len(keys) - 2

    def at(t: float) -> np.ndarray:
        t = t % count if loop else t
        k = min(int(t), last)
        between = slerp if spherical else lambda a, b, t: a + (b - a) * t
        return between(keys[k], keys[k + 1], t - k) if t != k else keys[k]
    return at


def _spline(keys: np.ndarray, spherical: bool, loop: bool) -> Callable[[float], np.ndarray]:
    from scipy.interpolate import CubicSpline
    times = np.arange(len(keys))
    ends = 'periodic' if loop else 'natural'
    way = CubicSpline(times, keys, bc_type=ends)
    if not spherical:
        return lambda t: way(t % times[-1] if loop else t)
    # Between far keys a spline runs inside of the sphere: only its direction counts.
    lengths = np.linalg.norm(keys.reshape(len(keys), -1), axis=1)

    def at(t: float) -> np.ndarray:
        t = t % times[-1] if loop else t
        point = way(t)
        return point * (np.interp(t, times, lengths) / max(np.linalg.norm(point), 1e-12))
    return at


def times(num_keys: int, frames: int, loop: bool) -> list[float]:
    """When the pictures are taken: `frames` from one key to the next; without a loop also at the last key."""
    count = num_keys * frames if loop else (num_keys - 1) * frames + 1
    return [i / frames for i in range(count)]


def deal_keys(keys: Sequence, num_cells: int) -> list[list]:
    """The keys of each cell of a grid, consecutive ones.

    Errors: UserError where they cannot be dealt out, or a cell would have less than two.
    """
    each, rest = divmod(len(keys), num_cells)
    if rest or each < 2:
        raise UserError(f'{len(keys)} keys for {num_cells} {"cells" if num_cells > 1 else "picture"}: '
                        f'expected at least 2{", and as many for each cell" if num_cells > 1 else ""}')
    return [list(keys[i * each:(i + 1) * each]) for i in range(num_cells)]


def latent_frames(
    network: 'Network',
    cells: Sequence[Sequence[np.ndarray]],      # z of the keys of each cell, [latent_size].
    at_times: Sequence[float],                  # See `times`.
    truncation_psi: float = 1.0,                # Truncation trick.
    label: np.ndarray | None = None,            # [1, label_size].
    interpolation: str = 'linear',              # See `walk`.
    loop: bool = False,                         # See `walk`.
    batch_size: int = 8,                        # Images at a time.
) -> Iterator[np.ndarray]:
    """Yields images uint8 [C, H, W] of a walk in Z, for each time those of all cells; noise as stored."""
    ways = [walk(keys, True, interpolation, loop) for keys in cells]
    points = (way(t) for t in at_times for way in ways)
    if not sampling.has_dlatents(network):
        yield from sampling.draw_latents(network, points, label, batch_size)
        return

    def dlatents() -> Iterator[np.ndarray]:
        while chunk := [point for point, _ in zip(points, range(_CHUNK), strict=False)]:
            yield from sampling.map_latents(network, np.stack(chunk), truncation_psi, label)
    yield from sampling.synthesize(network, dlatents(), batch_size)


def pair_keys(seeds: Sequence, classes: Sequence) -> list[tuple]:
    """[(seed, class)] of the keys of a walk; a single seed goes with all classes, one class with all seeds.

    Errors: UserError for two numbers of seeds and classes that do not go together.
    """
    count = max(len(seeds), len(classes))
    if len(seeds) not in (1, count) or len(classes) not in (1, count):
        raise UserError(f'{len(seeds)} seeds and {len(classes)} classes: expected as many of both, or one '
                        'seed or one class for all keys')
    return list(zip(seeds if len(seeds) == count else list(seeds) * count,
                    classes if len(classes) == count else list(classes) * count, strict=True))


def class_frames(
    sampler: 'samplers.Sampler',
    cells: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]],   # z and label of the keys of each cell.
    at_times: Sequence[float],                  # See `times`.
    interpolation: str = 'linear',              # See `walk`.
    loop: bool = False,                         # See `walk`.
    batch_size: int = 8,                        # Images at a time.
) -> Iterator[np.ndarray]:
    """Yields images as latent_frames, of a walk of BigGAN: straight lines of z and of the embedded class.

    A label between two classes stands for the embedding between theirs: the embedding is linear.
    """
    ways = [[walk(values, False, interpolation, loop) for values in zip(*keys, strict=True)]
            for keys in cells]
    latents = (z(t) for t in at_times for z, _ in ways)
    labels = (label(t) for t in at_times for _, label in ways)
    yield from samplers.pictures(sampler, latents, labels, batch_size)


def sheet_rows(images: Iterator[np.ndarray], num_cells: int, frames: int,
               loop: bool) -> list[list[np.ndarray]]:
    """The images of a walk as rows, one from each key to the next, cell by cell.

    Args:
        images: For each time those of all cells.
        frames, loop: See `times`.
    """
    found = list(images)
    columns = [found[i::num_cells] for i in range(num_cells)]
    rows = []
    for column in columns:
        if loop:
            column = [*column, column[0]]
        rows += [column[begin:begin + frames + 1] for begin in range(0, len(column) - 1, frames)]
    return rows


def dlatent_frames(
    network: 'Network',
    cells: Sequence[Sequence[latent_sources.Source]],   # The keys of each cell.
    at_times: Sequence[float],                  # See `times`.
    interpolation: str = 'linear',              # See `walk`.
    loop: bool = False,                         # See `walk`.
    batch_size: int = 8,                        # Images at a time.
) -> Iterator[np.ndarray]:
    """Yields images as latent_frames, of a walk in W. The noise that keys bring goes on great circles."""
    ways = [walk([key.dlatents for key in keys], False, interpolation, loop) for keys in cells]
    dlatents = (way(t) for t in at_times for way in ways)
    noises = None
    if any(key.noises for keys in cells for key in keys):
        all_noises = latent_sources.noises_of(network, [key for keys in cells for key in keys])
        noise_ways = [[walk(layer, True, 'linear', loop) for layer in zip(*keys, strict=True)]
                      for keys in deal_keys(all_noises, len(cells))]
        noises = ([way(t) for way in layers] for t in at_times for layers in noise_ways)
    yield from sampling.synthesize(network, dlatents, batch_size, noises)


def compose(images: Iterator[np.ndarray], columns: int, rows: int) -> Iterator[np.ndarray]:
    """Puts columns × rows successive images into one frame [H, W, C] each."""
    while cells := [image for _, image in zip(range(columns * rows), images, strict=False)]:
        yield misc.create_image_grid(cells, (columns, rows)).transpose(1, 2, 0)
