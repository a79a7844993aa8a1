"""Images on their way to a file: dynamic range, grids, PNG, and which real images the snapshot grid shows;
network pickles under the names that small official scripts call.
"""

import glob
import os
import pathlib
import re
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from dnnlib.util import UserError, atomic_write, open_url

if TYPE_CHECKING:
    from dnnlib.tflib import Network

_PIL_CHANNELS = (1, 3, 4)  # Gray, RGB, RGBA.
_PIL_FORMATS = {'.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG'}

# Size of the picture in pixels, and how few columns and rows a grid in it may have.
_GRID_PICTURES = {
    '1080p': ((1920, 1080), (3, 2)),
    '4k': ((3840, 2160), (7, 4)),
    '8k': ((7680, 4320), (7, 4)),
}
_GRID_MAX = 32

# Columns and rows of a block of images of one class. None = as many as the grid has.
_CLASS_BLOCKS = {'row_per_class': (None, 1), 'col_per_class': (1, None), 'class4x4': (4, 4)}


# The sheet of reals by class: most classes, rows per column, letters of a name, pixels for a line of text.
_SHEET_CLASSES, _SHEET_ROWS, _SHEET_LETTERS, _SHEET_TEXT = 256, 64, 20, 12


class GridSource(Protocol):
    """What `setup_snapshot_image_grid` needs of a training set."""

    shape: Sequence[int]        # [C, H, W].
    num_images: int             # How many images there are.
    label_size: int             # 0 = no labels.
    labels: np.ndarray          # [num_images, label_size].

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [N, H, W, C] and labels [N, label_size]."""


def open_file_or_url(file_or_url: str | os.PathLike) -> IO[bytes]:
    """Opens a local file, 'gs://…' or an https address (kept in the cache) for reading."""
    path = os.fspath(file_or_url)
    if path.startswith('gdrive:'):
        import pretrained_networks
        path = pretrained_networks.get_path_or_url(path)
    return open_url(path)


def load_pkl(file_or_url: str | os.PathLike) -> Any:
    """What a pickle holds, networks as `tflib.Network`; nothing in it is executed.

    Args:
        file_or_url: Path, or address as in `open_file_or_url`.

    Raises: UserError for anything but networks, arrays and plain values; OSError when it cannot be opened.
    """
    from dnnlib.tflib import legacy, network_contents
    with open_file_or_url(file_or_url) as file:
        return network_contents.networks_of(legacy.load_pkl(file))


def save_pkl(obj: Any, filename: str | os.PathLike) -> None:
    """Writes networks, arrays and plain values, or tuples, lists and dicts of them, for `load_pkl`.

    Networks have the official form. The file appears under its name only when it is whole.
    """
    from dnnlib.tflib import legacy, network_contents
    legacy.save_pkl(network_contents.states_of(obj), filename)


def list_network_pkls(run_dir: str | os.PathLike, include_final: bool = True) -> list[str]:
    """Paths of the network pickles in a run directory, in the order in which they were written."""
    paths = sorted(glob.glob(os.path.join(glob.escape(os.fspath(run_dir)), 'network-*.pkl')))
    final = [path for path in paths if os.path.basename(path) == 'network-final.pkl']
    return [path for path in paths if path not in final] + (final if include_final else [])


def locate_network_pkl(run_dir_or_pkl: str | os.PathLike, snapshot: int | str | None = None) -> str:
    """The network pickle of a run directory.

    Args:
        run_dir_or_pkl: Run directory; the path of a pickle is returned as it is.
        snapshot: Progress in kimg; None = the latest, network-final.pkl if it is there.

    Raises: UserError where there is none.
    """
    path = os.fspath(run_dir_or_pkl)
    if snapshot is None and not os.path.isdir(path):
        return path
    found = list_network_pkls(path)
    if snapshot is not None:
        found = [pkl for pkl in found if re.search(rf'-0*{int(snapshot)}\.pkl$', pkl)]
    if not found:
        which = '' if snapshot is None else f' of {snapshot} kimg'
        raise UserError(f'{path}: expected a directory with a network pickle{which}, found none')
    return found[-1]


def load_network_pkl(run_dir_or_pkl: str | os.PathLike, snapshot: int | str | None = None) -> Any:
    """`load_pkl` of `locate_network_pkl`: usually (G, D, Gs)."""
    return load_pkl(locate_network_pkl(run_dir_or_pkl, snapshot))


def random_latents(num_latents: int, G: 'Network', random_state: np.random.RandomState | None = None,
                   ) -> np.ndarray:
    """Normal latents for a generator: float32 [num_latents, latent_size]."""
    draw = (random_state or np.random).randn
    return draw(num_latents, *G.input_shape[1:]).astype(np.float32)


def apply_mirror_augment(minibatch: np.ndarray) -> np.ndarray:
    """Mirrors each image [N, C, H, W] from left to right, or not, with equal probability; a copy."""
    mask = np.random.rand(len(minibatch)) < 0.5
    return np.where(mask[:, np.newaxis, np.newaxis, np.newaxis], minibatch[..., ::-1], minibatch)


def adjust_dynamic_range(data: Any, drange_in: Sequence[float], drange_out: Sequence[float]) -> Any:
    """Maps values linearly so that drange_in becomes drange_out; nothing is clipped.

    Args:
        data: Array or tensor of any shape.
        drange_in: Dynamic range (low, high) of the data.
        drange_out: Dynamic range of the result.

    Returns: `data` itself where the ranges are equal, else floats (float32 for uint8 and float32 data).
    Raises: UserError for an empty `drange_in`.
    """
    if tuple(drange_in) == tuple(drange_out):
        return data
    if drange_in[0] == drange_in[1]:
        raise UserError(f'adjust_dynamic_range: drange_in is {list(drange_in)}, expected two values')
    (in_low, in_high), (out_low, out_high) = np.float32(drange_in), np.float32(drange_out)
    scale = (out_high - out_low) / (in_high - in_low)
    bias = out_low - in_low * scale
    return data * scale + bias


def create_image_grid(images: Any, grid_size: tuple[int, int] | None = None) -> np.ndarray:
    """Puts images side by side, row by row. Cells without an image are zero.

    Args:
        images: [N, C, H, W] or [N, H, W].
        grid_size: (columns, rows). None = as square as possible, wider rather than higher.

    Returns: [C, rows · H, columns · W] or [rows · H, columns · W], dtype of `images`.
    Raises: UserError for another rank, or a grid with fewer cells than images.
    """
    images = np.asarray(images)
    if images.ndim not in (3, 4):
        raise UserError(f'create_image_grid: images have shape {list(images.shape)}, '
                        'expected [N, C, H, W] or [N, H, W]')
    num, height, width = images.shape[0], *images.shape[-2:]
    if grid_size is None:
        columns = max(int(np.ceil(np.sqrt(num))), 1)
        rows = max((num - 1) // columns + 1, 1)
    else:
        columns, rows = (int(size) for size in grid_size)
    if columns * rows < num:
        raise UserError(f'create_image_grid: a grid of {columns} × {rows} does not hold {num} images')
    grid = np.zeros([*images.shape[1:-2], rows * height, columns * width], images.dtype)
    for i, image in enumerate(images):
        y, x = i // columns * height, i % columns * width
        grid[..., y:y + height, x:x + width] = image
    return grid


def convert_to_pil_image(image: Any, drange: Sequence[float] = (0, 1)) -> PIL.Image.Image:
    """One image as a PIL image: values are mapped from `drange` to 0…255, rounded and clipped.

    Args:
        image: [C, H, W] with 1 (gray), 3 (RGB) or 4 (RGBA) channels, or [H, W].
        drange: Dynamic range of `image`.

    Raises: UserError for another shape.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[np.newaxis]
    if image.ndim != 3 or image.shape[0] not in _PIL_CHANNELS:
        raise UserError(f'convert_to_pil_image: the image has shape {list(image.shape)}, '
                        'expected [H, W] or [C, H, W] with 1, 3 or 4 channels')
    pixels = np.rint(adjust_dynamic_range(image, drange, [0, 255])).clip(0, 255).astype(np.uint8)
    pixels = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    return PIL.Image.fromarray(np.ascontiguousarray(pixels))


def save_image(image: Any, filename: str | os.PathLike, drange: Sequence[float] = (0, 1)) -> None:
    """Writes one image [C, H, W] or [H, W] to a PNG (or JPEG) file, which appears only when it is whole.

    Raises: UserError for a name that does not end in .png, .jpg or .jpeg.
    """
    suffix = pathlib.PurePath(filename).suffix.lower()
    if suffix not in _PIL_FORMATS:
        raise UserError(f'save_image: {os.fspath(filename)!r} does not end in .png, .jpg or .jpeg')
    with atomic_write(filename, 'wb') as file:
        convert_to_pil_image(image, drange).save(file, _PIL_FORMATS[suffix])


def save_image_grid(images: Any, filename: str | os.PathLike, drange: Sequence[float] = (0, 1),
                    grid_size: tuple[int, int] | None = None) -> None:
    """Writes images [N, C, H, W] as one picture; see `create_image_grid` and `save_image`."""
    save_image(create_image_grid(images, grid_size), filename, drange)


def setup_snapshot_image_grid(training_set: GridSource, size: str = '1080p', layout: str = 'random',
                              seed: int = 0) -> tuple[tuple[int, int], np.ndarray, np.ndarray]:
    """Chooses the grid of the image snapshots, and the real images and labels that go into it.

    The same arguments choose the same images. A training set or class with too few images repeats them.

    Args:
        training_set: Where the images come from.
        size: '1080p', '4k' or '8k': as many images as fit into such a picture, at most 32 × 32 and not fewer
            than 3 × 2 (7 × 4); or '<columns>x<rows>', for example '8x6'.
        layout: 'random'; or with labels 'row_per_class', 'col_per_class', 'class4x4': each row, column or
            block of 4 × 4 shows one class; after the last class the first one follows.
        seed: Seed of the choice.

    Returns: grid_size (columns, rows); images uint8 [columns · rows, C, H, W] in the order of
        `create_image_grid`; labels [columns · rows, label_size].
    Raises: UserError for an unknown size or layout, or a layout by class without labels.
    """
    columns, rows = snapshot_grid_size(training_set.shape, size)
    rnd = np.random.RandomState(seed)
    if layout == 'random':
        indices = _draw(np.arange(training_set.num_images), columns * rows, rnd)
    elif layout in _CLASS_BLOCKS:
        if not training_set.label_size:
            raise UserError(f'the image grid: layout {layout!r} needs labels, and the training set has none; '
                            "use 'random'")
        indices = _draw_by_class(_pools(training_set), columns, rows, *_CLASS_BLOCKS[layout], rnd)
    else:
        raise UserError(f'the image grid: layout is {layout!r}, expected one of: '
                        f'{", ".join(["random", *_CLASS_BLOCKS])}')
    images, labels = training_set.read(indices)
    return (columns, rows), np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels


def snapshot_grid_size(shape: Sequence[int], size: str) -> tuple[int, int]:
    """(columns, rows) of an image snapshot of images [C, H, W]; UserError for an unknown size."""
    if size in _GRID_PICTURES:
        picture, minimum = _GRID_PICTURES[size]
        _, height, width = shape
        return tuple(int(np.clip(pixels // image, low, _GRID_MAX))
                     for pixels, image, low in zip(picture, (width, height), minimum, strict=True))
    match = re.fullmatch(r'([1-9]\d*)x([1-9]\d*)', size)
    if not match:
        raise UserError(f'the image grid: size is {size!r}, expected one of: {", ".join(_GRID_PICTURES)}, '
                        'or columns and rows such as 8x6')
    return int(match[1]), int(match[2])


def _draw(pool: np.ndarray, count: int, rnd: np.random.RandomState) -> np.ndarray:
    """`count` elements of the pool in random order; all of them once before any of them twice."""
    return np.resize(rnd.permutation(pool), count)


def _pools(training_set: GridSource) -> list[np.ndarray]:
    """Indices of the images of every class that has any; a class is the largest component of a label."""
    classes = getattr(training_set, 'class_indices', None)  # Labels of very many images are kept as these.
    if classes is None:
        classes = np.argmax(training_set.labels, axis=1)
    order = np.argsort(classes, kind='stable')
    return np.split(order, np.flatnonzero(np.diff(classes[order])) + 1)


def _draw_by_class(pools: list[np.ndarray], columns: int, rows: int, block_columns: int | None,
                   block_rows: int | None, rnd: np.random.RandomState) -> np.ndarray:
    """Indices for a grid whose blocks show one class each; classes without an image are left out."""
    block_x = np.arange(columns) // (block_columns or columns)
    block_y = np.arange(rows) // (block_rows or rows)
    blocks = block_y[:, np.newaxis] * (block_x[-1] + 1) + block_x
    cells = (blocks % len(pools)).ravel()
    indices = np.empty(columns * rows, np.int64)
    for i, pool in enumerate(pools):
        mine = cells == i
        indices[mine] = _draw(pool, np.count_nonzero(mine), rnd)
    return indices


def class_sheet(training_set: GridSource, count: int = 8, seed: int = 0) -> PIL.Image.Image:
    """Some real images of every class beside its name, so that wrong labels are seen.

    Args:
        training_set: With labels; label_names, if it has them, are written on the sheet.
        count: Images per class.
        seed: Seed of their choice.

    Returns: an RGB picture; of more than 256 classes every n-th is on it; images above 64×64 are reduced.
    """
    rnd = np.random.RandomState(seed)
    pools = _pools(training_set)
    pools = pools[::-(-len(pools) // _SHEET_CLASSES)]
    lod = max(int(training_set.shape[1]).bit_length() - 7, 0)
    indices = np.concatenate([_draw(pool, count, rnd) for pool in pools])
    images, labels = training_set.read(indices, lod) if lod else training_set.read(indices)
    side = max(images.shape[1], _SHEET_TEXT)
    columns = -(-len(pools) // _SHEET_ROWS)
    rows = -(-len(pools) // columns)
    names = getattr(training_set, 'label_names', None)
    texts = [_class_text(int(np.argmax(label)), names) for label in labels[::count]]
    font = PIL.ImageFont.load_default()
    margin = max(round(font.getlength(text)) for text in texts) + 6
    width = margin + count * images.shape[2]
    sheet = PIL.Image.new('RGB', (columns * width, rows * side), 'white')
    draw = PIL.ImageDraw.Draw(sheet)
    for index, text in enumerate(texts):
        x, y = index // rows * width, index % rows * side
        draw.text((x + 2, y), text, 'black', font)
        of_class = images[index * count:(index + 1) * count].transpose(0, 3, 1, 2)
        row = create_image_grid(of_class, (count, 1))
        sheet.paste(convert_to_pil_image(row, [0, 255]).convert('RGB'), (x + margin, y))
    return sheet


def _class_text(number: int, names: Sequence[str] | None) -> str:
    """The number of a class, and its name where that says more."""
    name = names[number] if names and names[number] != str(number) else ''
    # The font that comes with PIL has Latin letters only.
    return f'{number} {name}'.strip().encode('latin-1', 'replace').decode('latin-1')[:_SHEET_LETTERS]
