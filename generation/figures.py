"""Figures of the StyleGAN paper: sheets of pictures, uint8 [C, H, W], of a trained generator."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import PIL.Image

from dnnlib.util import UserError
from generation import latent_sources, sampling
from generation.latent_sources import Source

if TYPE_CHECKING:
    from dnnlib.tflib import Network

WHITE = 255
SHOWN_HEIGHT = 128      # Small pictures are enlarged by whole factors up to this height.
ZOOMS = 4               # Zoom-ins per picture of noise_detail.
GAIN = 4.0              # Factor on standard deviations, for the eye.


class StyleGroup(NamedTuple):
    """The styles of neighbouring resolutions."""

    name: str               # 'coarse', 'middle' or 'fine'.
    resolutions: list[int]
    layers: list[int]       # Their layers of w.


# Sheets.

def default_scale(network: 'Network') -> int:
    """How many times pictures of this network are enlarged in a sheet."""
    return max(SHOWN_HEIGHT // network.output_shape[2], 1)


def enlarge(image: np.ndarray, factor: int) -> np.ndarray:
    """An image [C, H, W] with pixels of factor × factor."""
    return image.repeat(factor, axis=1).repeat(factor, axis=2)


def sheet(cells: Sequence[Sequence[np.ndarray | None]], row_gaps: Sequence[int] = (),
          column_gaps: Sequence[int] = (), gap: int = 0) -> np.ndarray:
    """Puts rows of images of one size on white; None stays empty.

    Args:
        cells: Rows of images [C, H, W].
        row_gaps, column_gaps: Numbers of the rows and columns that a gap comes before.
        gap: Its size in pixels.
    """
    channels, height, width = next(cell for row in cells for cell in row if cell is not None).shape
    tops = [i * height + gap * sum(k <= i for k in row_gaps) for i in range(len(cells))]
    lefts = [i * width + gap * sum(k <= i for k in column_gaps) for i in range(len(cells[0]))]
    canvas = np.full([channels, tops[-1] + height, lefts[-1] + width], WHITE, np.uint8)
    for top, row in zip(tops, cells, strict=True):
        for left, cell in zip(lefts, row, strict=True):
            if cell is not None:
                canvas[:, top:top + height, left:left + width] = cell
    return canvas


def _resize(image: np.ndarray, height: int, width: int, resample: int) -> np.ndarray:
    """An image uint8 [C, H, W] resized channel by channel."""
    return np.stack([np.asarray(PIL.Image.fromarray(channel).resize((width, height), resample))
                     for channel in image])


# Figure 2.

def uncurated_counts(rows: int, lods: Sequence[int]) -> list[int]:
    """How many pictures each column of an uncurated sheet has."""
    return [rows * 2 ** lod for lod in lods]


def uncurated(images: Iterator[np.ndarray], rows: int, lods: Sequence[int], scale: int) -> np.ndarray:
    """Columns of pictures of decreasing size (StyleGAN, figure 2): the height of a column never changes.

    Args:
        images: As many images [C, H, W] as uncurated_counts says, column by column.
        rows: Pictures in a column of full size.
        lods: Each column's level of detail: 1 = half the size.
        scale: Factor on the full size.
    """
    canvas, left = None, 0
    for lod, count in zip(lods, uncurated_counts(rows, lods), strict=True):
        for i in range(count):
            image = next(images)
            channels, height, width = (size * factor for size, factor in
                                       zip(image.shape, (1, scale, scale), strict=True))
            if canvas is None:
                total = sum(width >> level for level in lods)
                canvas = np.full([channels, rows * height, total], WHITE, np.uint8)
            height, width = height >> lod, width >> lod
            resample = PIL.Image.NEAREST if height > image.shape[1] else PIL.Image.BOX
            canvas[:, i * height:(i + 1) * height, left:left + width] = _resize(
                image, height, width, resample)
        left += width
    return canvas


# Figure 3.

def style_groups(network: 'Network') -> list[StyleGroup]:
    """Coarse (4–8), middle (16–32) and fine (64 and up) styles, as in the paper.

    Networks of less than 64×64 deal what they have to three groups, 8×8 to two.

    Errors: UserError for a network with a single resolution or without styles.
    """
    sampling.check_dlatents(network, styles=True)
    levels = network.components.synthesis.input_shape[1] // 2
    sizes = {1: None, 2: (1, 0, 1), 3: (1, 1, 1), 4: (2, 1, 1)}.get(levels, (2, 2, levels - 4))
    if sizes is None:
        raise UserError(f'network {network.name} has a single resolution: its styles are neither coarse nor '
                        'fine; expected 8×8 or more')
    groups, level = [], 0
    for name, size in zip(('coarse', 'middle', 'fine'), sizes, strict=True):
        if size:
            groups.append(StyleGroup(name, [4 << i for i in range(level, level + size)],
                                     list(range(2 * level, 2 * (level + size)))))
        level += size
    return groups


def deal_rows(num_rows: int, num_groups: int) -> list[list[int]]:
    """Which rows show which group of styles: 3, 2 and 1 of six, as in the paper; few rows show all groups."""
    if num_rows < num_groups:
        return [list(range(num_rows))] * num_groups
    fine = max(num_rows // 6, 1) if num_groups == 3 else num_rows // 2
    middle = max(round(num_rows / 3), 1) if num_groups == 3 else 0
    ends = [num_rows - fine - middle, num_rows - fine, num_rows]
    parts = [list(range(begin, end)) for begin, end in zip([0, *ends[:2]], ends, strict=True)]
    return [part for part in parts if part]


def style_mixing(network: 'Network', rows: Sequence[Source], columns: Sequence[Source], batch_size: int,
                 ) -> tuple[list[list[np.ndarray | None]], list[int]]:
    """Sources B on top, A on the left; each row has the styles of A but one group of B's (figure 3).

    Returns: rows of cells, of which the first is that of the sources B; and the rows that begin a group.
    """
    groups = style_groups(network)
    dealt = deal_rows(len(rows), len(groups))
    starts = np.cumsum([1, *map(len, dealt)])[:-1].tolist()
    plan = [(source, source, []) for source in columns]
    for group, numbers in zip(groups, dealt, strict=True):
        for number in numbers:
            plan.append((rows[number], rows[number], []))
            plan += [(rows[number], column, group.layers) for column in columns]
    mixed = [sampling.mix_styles(a.dlatents, b.dlatents, layers) for a, b, layers in plan]
    noises = latent_sources.noises_of(network, [a for a, _, _ in plan])
    images = list(sampling.progress(sampling.synthesize(network, mixed, batch_size, noises), len(plan)))
    width = len(columns) + 1
    images.insert(0, None)
    return [images[i:i + width] for i in range(0, len(images), width)], starts


# Figure 4.

def default_zoom(network: 'Network') -> tuple[int, int, int]:
    """(left, top, width) of the part that noise_detail enlarges: a quarter, right of the upper middle."""
    _, _, height, width = network.output_shape
    return int(width * 0.63), int(height * 0.18), max(width // 4, 1)


def zoom_box(network: 'Network', zoom: Sequence[int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of (left, top, width), in the proportions of the picture.

    Errors: UserError for a box that is not in the picture.
    """
    _, _, height, width = network.output_shape
    left, top, size = zoom
    right, bottom = left + size, top + max(round(size * height / width), 1)
    if size < 1 or right > width or bottom > height:
        raise UserError(f'the zoom box {left},{top},{size} is not in the picture of {width}×{height} pixels; '
                        'expected left,top,width')
    return left, top, right, bottom


def realisation(network: 'Network', noise_seed: int, index: int) -> list[np.ndarray]:
    """The noise of a realisation, [1, H, W] for each noise variable: a function of seed and number alone."""
    random = np.random.RandomState([noise_seed, index])
    return [random.randn(*var.shape)[0] for var in sampling.noise_vars(network)]


def noise_detail(
    network: 'Network',
    sources: Sequence[Source],          # Their own noise is not used.
    zoom: Sequence[int],                # (left, top, width), see zoom_box.
    num_realisations: int = 100,        # Of the noise.
    noise_seed: int = 0,                # See realisation.
    scale: int = 1,                     # Factor on the size.
    batch_size: int = 8,                # Images at a time.
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """How far noise changes the picture of each source (figure 4).

    Yields: the picture (realisation 0) and 2×2 zoom-ins (1 to 4), uint8 [C, H, W]; and the standard
        deviation of each pixel's gray value in 0…255, float64 [H, W].
    """
    noises = (realisation(network, noise_seed, i) for _ in sources for i in range(num_realisations))
    dlatents = [source.dlatents for source in sources for _ in range(num_realisations)]
    images = sampling.synthesize(network, dlatents, batch_size, noises, as_uint8=False)
    for _ in sources:
        yield _noise_detail(network, itertools.islice(images, num_realisations), zoom, scale)


def _noise_detail(network: 'Network', images: Iterable[np.ndarray], zoom: Sequence[int],
                  scale: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What noise_detail yields, of the float images [C, H, W] of one source."""
    left, top, right, bottom = zoom_box(network, zoom)
    channels, height, width = network.output_shape[1:]
    height, width = height * scale, width * scale
    zooms = np.full([channels, height, width], WHITE, np.uint8)
    mean = squares = 0.0
    for i, image in enumerate(images):
        pixels = _as_uint8(image)
        if i == 0:
            picture = enlarge(pixels, scale)
        elif i <= ZOOMS:
            row, column = divmod(i - 1, 2)
            cut = _resize(pixels[:, top:bottom, left:right], height // 2, width // 2, PIL.Image.NEAREST)
            zooms[:, row * (height // 2):(row + 1) * (height // 2),
                  column * (width // 2):(column + 1) * (width // 2)] = cut
        # Welford's update: the pictures differ little, and their squares would drown that.
        gray = image[:3].astype(np.float64).mean(axis=0) * 127.5
        delta = gray - mean
        mean = mean + delta / (i + 1)
        squares = squares + delta * (gray - mean)
    return picture, zooms, np.sqrt(squares / (i + 1))


def deviation_gain(deviations: Sequence[np.ndarray]) -> float:
    """The factor on maps of standard deviations: GAIN, or where they would stay dark a power of two above."""
    brightest = max(float(deviation.max()) for deviation in deviations)
    gain = GAIN
    while 0 < brightest * gain < WHITE / 2:
        gain *= 2
    return gain


def deviation_map(deviation: np.ndarray, gain: float, channels: int, scale: int) -> np.ndarray:
    """A map of standard deviations [H, W] times a factor, as uint8 [channels, H · scale, W · scale]."""
    shown = np.clip(np.rint(deviation * gain), 0, WHITE).astype(np.uint8)
    stacked = np.repeat(shown[np.newaxis], channels, axis=0)
    if channels == 4:
        stacked[3] = WHITE  # Opaque.
    return enlarge(stacked, scale)


def _as_uint8(image: np.ndarray) -> np.ndarray:
    """As tflib.convert_images_to_uint8."""
    return np.clip(np.floor(image * 127.5 + 128), 0, 255).astype(np.uint8)


# Figure 5.

def check_noise(network: 'Network') -> None:
    """Errors: UserError for a network without noise inputs."""
    sampling.check_dlatents(network)
    if not sampling.noise_vars(network):
        raise UserError(f'network {network.name} has no noise inputs')


def noise_resolutions(network: 'Network') -> list[int]:
    """The resolution that each noise input belongs to, 4 and up."""
    heights = [var.shape[2] for var in sampling.noise_vars(network)]
    return [4 * height // heights[0] for height in heights]


def default_fine(network: 'Network') -> int:
    """The resolution that fine noise begins with: 64 as in the paper; in smaller networks the upper half."""
    levels = sorted(set(noise_resolutions(network)))
    return 64 if levels[-1] >= 64 else levels[(len(levels) + 1) // 2] if len(levels) > 1 else levels[0]


def noise_layers(network: 'Network', sources: Sequence[Source], fine: int,
                 batch_size: int = 8) -> list[list[np.ndarray]]:
    """A row for each source: noise in all layers, in none, in those from `fine` up, in those below."""
    resolutions = noise_resolutions(network)
    chosen = [lambda _: True, lambda _: False, lambda size: size >= fine, lambda size: size < fine]
    stored = latent_sources.stored_noise(network)
    variants = [[noise if keep(size) else np.zeros_like(noise)
                 for noise, size in zip(source.noises or stored, resolutions, strict=True)]
                for source in sources for keep in chosen]
    dlatents = [source.dlatents for source in sources for _ in chosen]
    images = list(sampling.progress(sampling.synthesize(network, dlatents, batch_size, variants),
                                    len(dlatents)))
    return [images[i:i + len(chosen)] for i in range(0, len(images), len(chosen))]


# Figure 8.

def truncation_sweep(network: 'Network', sources: Sequence[Source], psis: Sequence[float], batch_size: int,
                     ) -> list[list[np.ndarray]]:
    """A row of pictures for each source, one for each ψ (figure 8)."""
    plan = [(source, psi) for source in sources for psi in psis]
    dlatents = [sampling.truncate(network, source.dlatents, psi) for source, psi in plan]
    noises = latent_sources.noises_of(network, [source for source, _ in plan])
    images = list(sampling.progress(sampling.synthesize(network, dlatents, batch_size, noises), len(plan)))
    return [images[i:i + len(psis)] for i in range(0, len(images), len(psis))]
