"""Single image files: any mode, depth and orientation becomes uint8 [H, W, C], cropped, padded, resized."""

import functools
import io
import os
import stat
import warnings
import zlib
from typing import NamedTuple

import numpy as np
import PIL.Image

from dnnlib.util import UserError, gfile, is_remote_path

# What is likely to be an image, but is not read.
OTHER_IMAGES = ('.avif', '.heic', '.heif', '.jp2', '.jxl', '.pgm', '.pnm', '.ppm', '.psd', '.tga')
IMAGE_EXTENSIONS = ('.png', '.jpg', '.jpeg', '.jfif', '.webp', '.bmp', '.gif', '.tif', '.tiff')
TRANSFORMS = ('none', 'center-crop', 'center-crop-wide', 'pad')
RESIZE_FILTERS = ('area', 'box', 'bilinear', 'hamming', 'bicubic', 'lanczos')
MAX_PIXELS = 178_956_970    # Of one image; Pillow's own limit. More is taken for a decompression bomb.

# The others that Pillow knows are never tried: one of them starts a program (Ghostscript). JPEG includes MPO.
_FORMATS = ('PNG', 'JPEG', 'WEBP', 'BMP', 'DIB', 'GIF', 'TIFF')
_GRAY_MODES = ('1', 'L', 'LA', 'La', 'I')
_PLAIN_MODES = ('1', 'L', 'LA', 'La', 'P', 'PA', 'RGB', 'RGBX', 'RGBA', 'RGBa', 'CMYK', 'YCbCr', 'HSV')
_ORIENTATION = 0x0112       # The tag of EXIF and TIFF.
_START_BYTES = 1 << 12      # Of a PNG file: most have their header there, small ones all they are.
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8,), 6: (8, 16)}   # By type of colour.
_PNG_PLAIN_CHUNKS = (b'PLTE', b'gAMA', b'cHRM', b'sRGB', b'sBIT', b'pHYs', b'tIME', b'bKGD', b'hIST', b'iCCP')

# Pillow warns of what is odd in a file without its name: damaged EXIF, many pixels. Such a file is usable, or
# an error names it.
warnings.filterwarnings('ignore', module=r'PIL\.')


class ImageOptions(NamedTuple):
    """How images become pixels of a data set; see `load_image`."""

    channels: int | None = None     # 1 gray, 3 RGB, 4 RGBA; None: 1 for a gray image, 3 for any other.
    background: tuple[int, int, int] | None = None  # Colour behind transparent pixels; None: refused.
    transform: str = 'none'         # One of TRANSFORMS.
    width: int | None = None        # Size of the result in pixels; None: as the transform leaves it.
    height: int | None = None       # None: equal to width (3/4 of it for center-crop-wide).
    resize_filter: str = 'lanczos'  # One of RESIZE_FILTERS; 'area' is the average of the area that a pixel
                                    # covers, 'box' that of the whole pixels in it.
    min_side: int | None = None     # Images with a shorter side than that are left out.


class LeftOutError(UserError):
    """An image that the recipe of a data set leaves out by itself, such as one that is too small: a
    conversion goes on without it and lists it, whether or not it was told to skip bad images."""


def open_image(source: str | bytes, name: str | None = None) -> PIL.Image.Image:
    """Reads the header of an image file.

    Args:
        source: A path, or the bytes of the file.
        name: What messages call it; None for the path.

    Errors: UserError, naming the file: not there, empty, no image of a known format, too large.
    """
    name = name or (source if isinstance(source, str) else 'the image')
    if isinstance(source, str) and is_remote_path(source):
        source = _read_remote(source, name)
    try:
        size = _file_size(source, name) if isinstance(source, str) else len(source)
        if not size:
            raise UserError(f'{name} is empty (0 bytes); replace or remove it.')
        image = PIL.Image.open(source if isinstance(source, str) else io.BytesIO(source), formats=_formats())
    except UserError:
        raise
    except FileNotFoundError as error:
        if isinstance(source, str) and os.path.islink(source):
            raise UserError(f'{name} is a link to a file that does not exist; mend or remove it.') from error
        raise UserError(f'there is no file {name}; check the path.') from error
    except PIL.Image.DecompressionBombError as error:
        raise UserError(f'{name} has more than {MAX_PIXELS} pixels; shrink or remove it.') from error
    except PIL.UnidentifiedImageError as error:
        raise UserError(f'{name} cannot be read as an image; replace or remove it.') from error
    except Exception as error:  # Pillow's readers raise anything on damaged files.
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'{name} cannot be read as an image ({_one_line(reason)}); replace or remove '
                        'it.') from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise UserError(f'{name} has {image.width}x{image.height} pixels, more than {MAX_PIXELS}; shrink or '
                        'remove it.')
    return image


@functools.cache
def _formats() -> tuple[str, ...]:
    PIL.Image.init()
    return tuple(name for name in _FORMATS if name in PIL.Image.OPEN)   # Some builds of Pillow lack WebP.


class ImageHeader(NamedTuple):
    """What `to_array` will make of a file."""

    size: tuple[int, int]   # (width, height), turned as EXIF says.
    gray: bool              # Whether channels=None gives one channel, see `is_gray`.
    alpha: bool             # Whether there may be transparent pixels.


def read_header(source: str | bytes, name: str | None = None) -> ImageHeader:
    """The header of an image file. Arguments and errors: as of `open_image`."""
    header = _png_header(_start(source))    # Takes a fifth of the time of Pillow.
    if header is not None:
        return header
    with open_image(source, name) as image:
        return ImageHeader(oriented_size(image), is_gray(image), has_alpha(image))


def _start(source: str | bytes) -> bytes:
    """The beginning of a file; nothing where it cannot be read, which is for `open_image` to explain."""
    if isinstance(source, bytes):
        return source
    if is_remote_path(source) or not source.lower().endswith('.png'):
        return b''
    try:
        file = os.open(source, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0))
    except OSError:
        return b''
    try:
        return os.read(file, _START_BYTES)
    except OSError:
        return b''
    finally:
        os.close(file)


def _png_header(data: bytes) -> ImageHeader | None:
    """The header of a PNG file where nothing but its first chunk matters; None for all else, damage too."""
    if len(data) < 33 or data[:16] != b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR':
        return None
    width, height = int.from_bytes(data[16:20], 'big'), int.from_bytes(data[20:24], 'big')
    depth, colour = data[24], data[25]
    place = 33
    if depth not in _PNG_DEPTHS.get(colour, ()) or not 0 < width * height <= MAX_PIXELS or data[26] or \
            data[27] or data[28] > 1 or zlib.crc32(data[12:29]) != int.from_bytes(data[29:33], 'big'):
        return None
    while data[place + 4:place + 8] in _PNG_PLAIN_CHUNKS:
        end = place + int.from_bytes(data[place:place + 4], 'big') + 12
        if zlib.crc32(data[place + 4:end - 4]) != int.from_bytes(data[end - 4:end], 'big'):
            return None
        place = end
    if data[place + 4:place + 8] != b'IDAT':
        return None
    return ImageHeader((width, height), colour in (0, 4), colour in (4, 6))


def _file_size(path: str, name: str) -> int:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):    # Opening a pipe would wait for ever.
        raise UserError(f'{name} is no regular file; replace or remove it.')
    return status.st_size


def _read_remote(path: str, name: str) -> bytes:
    try:
        with gfile().GFile(path, 'rb') as file:
            return file.read()
    except Exception as error:  # TensorFlow's file systems have error classes of their own.
        raise UserError(f'{name} cannot be read ({_one_line(error)}); check the path.') from error


def _one_line(error: object) -> str:
    text = ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + '...'


def _orientation(image: PIL.Image.Image) -> int:
    if image.format == 'PNG' and not {'exif', 'xmp', 'XML:com.adobe.xmp'} & set(image.info):
        return 1                # Where the header has none, Pillow decodes the picture to look behind it.
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:           # Damaged EXIF says nothing about the pixels.
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def oriented_size(image: PIL.Image.Image) -> tuple[int, int]:
    """(width, height) that `to_array` gives for an image of which the header was read."""
    # Pillow turns the picture of a TIFF by itself, and says so in its size.
    turned = image.format != 'TIFF' and _orientation(image) >= 5
    return (image.height, image.width) if turned else image.size


def is_gray(image: PIL.Image.Image) -> bool:
    """Whether `to_array` with channels=None gives one channel (on a gray background, where it needs one)."""
    return image.mode in _GRAY_MODES or image.mode.startswith('I;16')


def has_alpha(image: PIL.Image.Image) -> bool:
    """Whether an image may have transparent pixels, by its header."""
    return image.mode in ('LA', 'La', 'PA', 'RGBA', 'RGBa') or 'transparency' in image.info


def to_array(
    image: PIL.Image.Image,
    name: str,
    channels: int | None = None,
    background: tuple[int, int, int] | None = None,
) -> np.ndarray:
    """The pixels of an opened image: of an animation the first picture, turned as its EXIF says.

    16 bits per channel become 8 by v / 257, rounded (Pillow itself reduces 16-bit colour to the upper byte).

    Args:
        image: From `open_image`.
        name: What messages call it.
        channels: 1, 3 or 4; None: 1 for a gray image (on a coloured background 3), 3 for any other.
        background: Colour that shows through transparent pixels, unless channels is 4.

    Returns: uint8 [H, W, channels].
    Errors: UserError, naming the file: damaged, transparent pixels without a background, 32 bits per channel.
    """
    if channels not in (None, 1, 3, 4):
        raise UserError(f'channels must be 1 (gray), 3 (RGB) or 4 (RGBA); received {channels!r}')
    gray = is_gray(image)
    try:
        image.load()
        orientation = _orientation(image)
        pixels, alpha = _eight_bits(image, name)
    except UserError:
        raise
    except Exception as error:  # Pillow's readers raise anything on damaged files.
        raise UserError(f'{name} is damaged: {_one_line(error)}; replace or remove it.') from error
    if channels == 4:
        alpha = np.full_like(pixels[:, :, :1], 255) if alpha is None else alpha
        pixels = np.concatenate([_set_channels(pixels, 3), alpha], axis=2)
    else:
        if alpha is not None and alpha.min() < 255:
            pixels = _composite(pixels, alpha, name, background)
        if channels is None:
            channels = 1 if gray and pixels.shape[2] == 1 else 3
        pixels = _set_channels(pixels, channels)
    return np.ascontiguousarray(_turn(pixels, orientation))


def _eight_bits(image: PIL.Image.Image, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """uint8 [H, W, 1 or 3], gray or RGB, and [H, W, 1], alpha, or None."""
    mode = image.mode
    if mode.startswith('I;16') or (mode == 'I' and image.format == 'PNG'):  # Older Pillow: I for 16-bit PNG.
        values = np.asarray(image).astype(np.uint32)
        alpha = None
        if isinstance(image.info.get('transparency'), int):
            alpha = np.where(values == image.info['transparency'], 0, 255).astype(np.uint8)[:, :, None]
        return ((np.minimum(values, 65535) + 128) // 257).astype(np.uint8)[:, :, None], alpha
    if mode in ('I', 'F'):
        raise UserError(f'{name} has 32 bits per channel (mode {mode}), of unknown range; expected 8 or 16. '
                        'Convert it to 8 bits.')
    if mode not in _PLAIN_MODES:
        raise UserError(f'{name} has colours of mode {mode}; expected gray, RGB, palette or CMYK. Convert it '
                        'to RGB.')
    if mode in ('La', 'RGBa'):
        image = image.convert(mode.upper())
    if has_alpha(image):
        image = image.convert('LA' if mode in _GRAY_MODES else 'RGBA')
        pixels = np.asarray(image)
        return pixels[:, :, :-1], pixels[:, :, -1:]
    pixels = np.asarray(image.convert('L' if mode in _GRAY_MODES else 'RGB'))
    return pixels.reshape(*pixels.shape[:2], -1), None


def _composite(
    pixels: np.ndarray, alpha: np.ndarray, name: str, background: tuple[int, int, int] | None,
) -> np.ndarray:
    """[H, W, 1 or 3] on the background; [H, W, 3] if that is no gray."""
    if background is None:
        raise UserError(f'{name} has transparent pixels; expected an opaque image. Keep them with '
                        '--channels=4, or give dataset_tool.py create_from_images the colour behind them, '
                        '--background=white.')
    if len(set(background)) > 1 or pixels.shape[2] == 3:
        colour = np.array(background, np.int32)
    else:
        colour = np.array(background[:1], np.int32)
    alpha = alpha.astype(np.int32)
    return ((pixels * alpha + colour * (255 - alpha) + 127) // 255).astype(np.uint8)


def _set_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """[H, W, 1 or 3] → [H, W, channels]; gray is the luma of ITU-R 601."""
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    return np.asarray(PIL.Image.fromarray(np.ascontiguousarray(pixels)).convert('L'))[:, :, None]


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes the orientation of EXIF, 1 to 8."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def check_options(options: ImageOptions) -> None:
    """Errors: UserError, naming the option that has an unknown value."""
    if options.channels not in (None, 1, 3, 4):
        raise UserError(f'channels must be 1 (gray), 3 (RGB) or 4 (RGBA); received {options.channels!r}')
    if options.transform not in TRANSFORMS:
        raise UserError(f'transform must be one of {", ".join(TRANSFORMS)}; received {options.transform!r}')
    if options.resize_filter not in RESIZE_FILTERS:
        raise UserError(f'resize_filter must be one of {", ".join(RESIZE_FILTERS)}; received '
                        f'{options.resize_filter!r}')
    for key, value in [('width', options.width), ('height', options.height)]:
        if value is not None and not 1 <= value <= 65536:
            raise UserError(f'{key} must be from 1 to 65536 pixels; received {value!r}')
    if options.min_side is not None and not 1 <= options.min_side <= 65536:
        raise UserError(f'min_side must be from 1 to 65536 pixels; received {options.min_side!r}')
    if options.height is not None and options.width is None:
        raise UserError(f'height={options.height} was given without width; give both.')
    colour = options.background
    if colour is not None and (len(colour) != 3 or not all(0 <= value <= 255 for value in colour)):
        raise UserError(f'background must be three numbers from 0 to 255; received {colour!r}')


def load_image(
    source: str | bytes, name: str | None = None, options: ImageOptions | None = None,
) -> np.ndarray:
    """Reads an image file and makes it fit, in the order: pixels, crop, resize, pad.

    Transforms, for a result of width × height:
    - none: resized; refused where that would stretch it by half a pixel or more.
    - center-crop: the largest centred part of this aspect ratio (without a width: square), resized.
    - center-crop-wide: as center-crop, then padded with black at top and bottom (or at the sides) to a square
      of the longer side. Without a height: 4:3.
    - pad: resized to fit into the frame, padded to it (without a width: to a square). Padding has the colour
      of options.background, else black; in RGBA it is transparent.

    Returns: uint8 [H, W, C].
    Errors: UserError, naming the file and what is wrong with it.
    """
    options = options or ImageOptions()
    check_options(options)
    name = name or (source if isinstance(source, str) else 'the image')
    with open_image(source, name) as image:
        pixels = to_array(image, name, options.channels, options.background)
    return np.require(transform_image(pixels, name, options), requirements='CW')    # Pillow's are read-only.


def transform_image(pixels: np.ndarray, name: str, options: ImageOptions) -> np.ndarray:
    """The part of `load_image` that follows decoding: uint8 [H, W, C] → uint8 [H', W', C]."""
    aspect, fitted, frame = _plan(pixels.shape[1::-1], name, options)
    if aspect:
        pixels = crop_to_aspect(pixels, aspect)
    colour = None if options.transform == 'center-crop-wide' else options.background
    return pad_to(_resize(pixels, fitted, options.resize_filter), frame, colour)


def transformed_size(size: tuple[int, int], name: str, options: ImageOptions) -> tuple[int, int]:
    """(width, height) that `transform_image` makes of an image of this (width, height), and its errors."""
    return _plan(size, name, options)[2]


def _plan(size: tuple, name: str, options: ImageOptions) -> tuple[tuple | None, tuple, tuple]:
    """Aspect ratio to crop to or None, size to resize to, size to pad to; each (width, height)."""
    transform, aspect = options.transform, None
    wide = transform == 'center-crop-wide'
    target = None
    if options.width:
        target = options.width, options.height or (_wide_height(options.width) if wide else options.width)
    if transform == 'none':
        if target:
            _check_unstretched(size, name, target)
        fitted = frame = target or size
    elif transform == 'pad':
        frame = target or (max(size), max(size))
        fitted = fit_inside(size, frame)
    else:
        aspect = target or ((4, 3) if wide else (1, 1))
        fitted = target or crop_size(size, aspect)
        frame = (max(fitted), max(fitted)) if wide else fitted
    if frame[0] * frame[1] > MAX_PIXELS:
        raise UserError(f'{name}: a result of {frame[0]}x{frame[1]} pixels is too large; give a smaller '
                        'width and height.')
    return aspect, fitted, frame


def _wide_height(width: int) -> int:
    return max(round(width * 3 / 4), 1)


def _check_unstretched(size: tuple[int, int], name: str, target: tuple[int, int]) -> None:
    (width, height), (new_width, new_height) = size, target
    # Scaled to one side of the target, the image misses the other side by half a pixel or more.
    if abs(width * new_height - height * new_width) * 2 >= max(size):
        how = f'--resolution={new_width}' if new_width == new_height else \
            f'--width={new_width} --height={new_height}'
        raise UserError(f'{name} has {width}x{height} pixels; {new_width}x{new_height} would stretch it. '
                        f'Give --transform=center-crop {how} or --transform=pad {how}.')


def crop_size(size: tuple[int, int], aspect: tuple[int, int]) -> tuple[int, int]:
    """The largest (width, height) of an aspect ratio width:height within `size`, rounded to pixels."""
    width = min(size[0], round(size[1] * aspect[0] / aspect[1]))
    height = min(size[1], round(size[0] * aspect[1] / aspect[0]))
    return max(width, 1), max(height, 1)


def crop_to_aspect(pixels: np.ndarray, aspect: tuple[int, int]) -> np.ndarray:
    """The centred part of [H, W, C] that has `crop_size`."""
    height, width = pixels.shape[:2]
    new_width, new_height = crop_size((width, height), aspect)
    left, top = (width - new_width) // 2, (height - new_height) // 2
    return pixels[top:top + new_height, left:left + new_width]


def fit_inside(size: tuple[int, int], frame: tuple[int, int]) -> tuple[int, int]:
    """The largest (width, height) of the aspect ratio of `size` that fits into `frame`."""
    if size[0] * frame[1] >= size[1] * frame[0]:
        return frame[0], max(round(size[1] * frame[0] / size[0]), 1)
    return max(round(size[0] * frame[1] / size[1]), 1), frame[1]


def pad_to(pixels: np.ndarray, frame: tuple[int, int], colour: tuple[int, int, int] | None) -> np.ndarray:
    """Puts the image into the centre of a frame (width, height); an odd pixel goes to right or bottom."""
    height, width, channels = pixels.shape
    if (width, height) == frame:
        return np.ascontiguousarray(pixels)
    result = np.zeros([frame[1], frame[0], channels], np.uint8)
    if colour is not None and channels != 4:
        result[:] = _set_channels(np.array([[colour]], np.uint8), channels)
    left, top = (frame[0] - width) // 2, (frame[1] - height) // 2
    result[top:top + height, left:left + width] = pixels
    return result


def _resize(pixels: np.ndarray, size: tuple[int, int], resize_filter: str) -> np.ndarray:
    """uint8 [H, W, C] → [height, width, C] of `size`; colours of RGBA are weighted by their alpha."""
    if pixels.shape[1::-1] == tuple(size):
        return pixels
    if resize_filter == 'area':
        return resize_area(pixels, size)
    flat = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    image = PIL.Image.fromarray(np.ascontiguousarray(flat))
    resized = np.asarray(image.resize(tuple(size), PIL.Image.Resampling[resize_filter.upper()]))
    return resized.reshape(*resized.shape[:2], -1)


def resize_area(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, C] → [height, width, C] of `size` (width, height): each pixel is the average of the area
    that it covers, parts of pixels included, as of tf.image.resize with method 'area'. Colours of RGBA are
    weighted by their alpha."""
    rows, columns = (_coverage(old, new) for old, new in zip(pixels.shape[:2], size[::-1], strict=True))
    values = pixels.astype(np.float32)
    alpha = values[:, :, 3:].copy() if values.shape[2] == 4 else None
    if alpha is not None:
        values[:, :, :3] *= alpha / 255
    values = np.tensordot(columns, np.tensordot(rows, values, 1), (1, 1)).swapaxes(0, 1)
    if alpha is not None:
        values[:, :, :3] /= np.maximum(values[:, :, 3:] / 255, 1e-6)
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _coverage(old: int, new: int) -> np.ndarray:
    """float32 [new, old]: the share of each of `old` pixels of a line in each of `new`; rows sum to 1."""
    edges = np.arange(new + 1) * old / new
    left, right = edges[:-1, None], edges[1:, None]
    pixel = np.arange(old)
    overlap = np.clip(np.minimum(right, pixel + 1) - np.maximum(left, pixel), 0, None)
    return (overlap / overlap.sum(axis=1, keepdims=True)).astype(np.float32)
