"""Images turned into TFRecords, byte for byte as the official exporter writes them, or PNG or JPEG inside.

A record is a tf.train.Example with the features `data` (bytes), `shape` (3 integers, CHW) and, where `data`
is an encoded picture and not raw pixels, `encoding` (b'png' or b'jpeg'). The messages are put together by
hand: worker processes then need no TensorFlow, whose import takes longer than many a conversion.
"""

import functools
import hashlib
import io
import struct
from collections.abc import Iterator, Sequence

import numpy as np
import PIL.Image

from dnnlib.util import UserError
from training.datasets.crc32c import crc32c, masked_crc32c
from training.datasets.labels import label_chunks
from training.datasets.record_file import FOOTER_BYTES, HEADER_BYTES

FORMATS = ('raw', 'png', 'jpeg')
MIN_LEVEL = 2           # 4×4 pixels, the smallest level of an official data set.
JPEG_QUALITY = 95
SHUFFLE_SEED = 123      # The official one.

_PNG_COMPRESSION = 6    # zlib's; 9 takes three times as long for files one percent smaller.


def image_levels(images: np.ndarray, lowest: int = MIN_LEVEL) -> Iterator[tuple[int, np.ndarray]]:
    """All levels of images, the largest first: averages of 2×2 floats, each level rounded on its own.

    Args:
        images: uint8 [N, H, W, C], H = W = a power of two.
        lowest: log2 of the smallest level.

    Returns: iterator of log2 of the size, and uint8 [N, 2^level, 2^level, C].
    """
    level = images.shape[1].bit_length() - 1
    yield level, images
    values = images
    while level > lowest:
        level -= 1
        # Sums of whole rows are exact in float32: 8 bits, and 2 more for each of at most 8 levels.
        values = values[:, 0::2].astype(np.float32) + values[:, 1::2]
        values = (values[:, :, 0::2] + values[:, :, 1::2]) * np.float32(0.25)
        yield level, np.rint(values).astype(np.uint8)


def choose_shuffled_order(count: int, seed: int = SHUFFLE_SEED) -> np.ndarray:
    """The order in which the official exporter adds images: int64 [count]."""
    order = np.arange(count)
    np.random.RandomState(seed).shuffle(order)
    return order


# Messages.

def _varint(value: int) -> bytes:
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    return bytes([*result, value])


def _field(tag: int, value: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return bytes([tag << 3 | 2]) + _varint(len(value)) + value


def make_example(shape: Sequence[int], data: bytes, encoding: str | None = None) -> bytes:
    """A serialized tf.train.Example with the features in alphabetical order, as official files have them."""
    features = {'data': _field(1, _field(1, data))}
    if encoding:
        features['encoding'] = _field(1, _field(1, encoding.encode()))
    features['shape'] = _field(3, _field(1, b''.join(_varint(int(size)) for size in shape)))
    return _field(1, b''.join(_field(1, _field(1, key.encode()) + _field(2, value))
                              for key, value in features.items()))


def check_channels(channels: int, fmt: str) -> None:
    """Errors: UserError for images that records of this format cannot hold."""
    if fmt != 'raw' and (channels not in (1, 3, 4) or (channels == 4 and fmt == 'jpeg')):
        raise UserError(f'{fmt} records cannot hold images of {channels} channels; use --format='
                        + ('png or raw.' if channels == 4 else 'raw.'))


def encode_picture(image: np.ndarray, fmt: str, quality: int = JPEG_QUALITY) -> bytes:
    """A PNG or JPEG file.

    Args:
        image: uint8 [H, W, C], 1 (gray), 3 (RGB) or, for PNG, 4 (RGBA) channels.
        fmt: 'png' or 'jpeg'.
        quality: Of JPEG, 1 to 100. Colours are kept at full resolution (4:4:4).
    """
    check_channels(image.shape[2], fmt)
    picture = PIL.Image.fromarray(np.ascontiguousarray(image[:, :, 0] if image.shape[2] == 1 else image))
    file = io.BytesIO()
    if fmt == 'png':
        picture.save(file, 'PNG', compress_level=_PNG_COMPRESSION)
    else:
        picture.save(file, 'JPEG', quality=quality, subsampling=0, optimize=True)
    return file.getvalue()


def encode_example(image: np.ndarray, fmt: str = 'raw', quality: int = JPEG_QUALITY) -> bytes:
    """The record of one image uint8 [C, H, W], without its framing."""
    if fmt == 'raw':
        return make_example(image.shape, image.tobytes())
    return make_example(image.shape, encode_picture(image.transpose(1, 2, 0), fmt, quality), fmt)


# Framing.

@functools.lru_cache(maxsize=4096)
def _header(length: int) -> bytes:
    """What precedes the data of a record of that length."""
    data = struct.pack('<Q', length)
    return data + struct.pack('<I', masked_crc32c(np.frombuffer(data, np.uint8)[None])[0])


def frame_rows(rows: np.ndarray) -> bytes:
    """Records of equal length, uint8 [N, bytes], with their framing."""
    count, size = rows.shape
    result = np.empty([count, HEADER_BYTES + size + FOOTER_BYTES], np.uint8)
    result[:, :HEADER_BYTES] = np.frombuffer(_header(size), np.uint8)
    result[:, HEADER_BYTES:-FOOTER_BYTES] = rows
    result[:, -FOOTER_BYTES:] = masked_crc32c(rows).astype('<u4').view(np.uint8).reshape(count, FOOTER_BYTES)
    return result.tobytes()


@functools.lru_cache(maxsize=65536)
def _crc_of_zeros(count: int) -> int:
    return int(crc32c(np.zeros([1, count], np.uint8))[0])


def frame_list(payloads: Sequence[bytes]) -> bytes:
    """Records of any lengths with their framing.

    Checksums are computed side by side, which is many times faster for small records: CRC is linear, so the
    checksum of a row of zeros tells what zeros put in front of a record have changed.
    """
    result = bytearray()
    begin = 0
    while begin < len(payloads):
        end, widest = begin, 0
        while end < len(payloads):
            width = max(widest, len(payloads[end]))
            if end > begin and width * (end + 1 - begin) > 1 << 22:
                break
            end, widest = end + 1, width
        rows = np.zeros([end - begin, widest], np.uint8)
        for row, payload in zip(rows, payloads[begin:end], strict=True):
            row[widest - len(payload):] = np.frombuffer(payload, np.uint8)
        crcs = crc32c(rows)
        for crc, payload in zip(crcs.tolist(), payloads[begin:end], strict=True):
            crc ^= _crc_of_zeros(widest) ^ _crc_of_zeros(len(payload))
            masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
            result += _header(len(payload)) + payload + struct.pack('<I', masked)
        begin = end
    return bytes(result)


def encode_level(
    images: np.ndarray, fmt: str, quality: int = JPEG_QUALITY,
) -> tuple[bytes, list[int], list[bytes]]:
    """The records of images of one level.

    Args:
        images: uint8 [N, H, W, C], N ≥ 1.

    Returns: the bytes for the file; the length of each record with its framing; for each image the SHA-256
        of what it is known by: its pixels in CHW order or, for JPEG, the encoded picture, since decoders
        differ in its pixels.
    """
    shape = images.shape[3], images.shape[1], images.shape[2]
    if fmt == 'raw':
        pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
        digests = [hashlib.sha256(row).digest() for row in pixels]
        before, after = _raw_frame(shape)
        rows = np.empty([len(images), len(before) + pixels.shape[1] + len(after)], np.uint8)
        rows[:, :len(before)] = np.frombuffer(before, np.uint8)
        rows[:, len(before):-len(after)] = pixels
        rows[:, -len(after):] = np.frombuffer(after, np.uint8)
        return frame_rows(rows), [HEADER_BYTES + rows.shape[1] + FOOTER_BYTES] * len(rows), digests
    pictures = [encode_picture(image, fmt, quality) for image in images]
    digests = [picture_digest(image, picture, fmt)
               for image, picture in zip(images, pictures, strict=True)]
    payloads = [make_example(shape, picture, fmt) for picture in pictures]
    lengths = [HEADER_BYTES + len(payload) + FOOTER_BYTES for payload in payloads]
    return frame_list(payloads), lengths, digests


def picture_digest(image: np.ndarray, picture: bytes | None, fmt: str) -> bytes:
    """SHA-256 of what an image uint8 [H, W, C] is known by; `picture` is its JPEG form."""
    return hashlib.sha256(picture if fmt == 'jpeg' else image.transpose(2, 0, 1).tobytes()).digest()


@functools.lru_cache(maxsize=16)
def _raw_frame(shape: tuple[int, int, int]) -> tuple[bytes, bytes]:
    """What stands before and after the pixels in a raw record of that shape."""
    count = int(np.prod(shape))
    example = make_example(shape, bytes(count))
    sizes = b''.join(map(_varint, shape))
    after = len(_field(1, _field(1, b'shape') + _field(2, _field(3, _field(1, sizes)))))
    return example[:len(example) - after - count], example[len(example) - after:]


def fingerprint(shape: Sequence[int], labels: np.ndarray | None, digests: bytes,
                label_size: int | None = None) -> str:
    """Identifies the content of a data set, whatever its name, shards or, but for JPEG, its format.

    Args:
        shape: [C, H, W] of the largest level.
        labels: Classes [N] or rows float32 [N, label_size], or None.
        digests: The SHA-256 of all images in order, see `encode_level`: 32 bytes each.
        label_size: Components of a label; None: as many as the rows have.
    """
    if label_size is None:
        label_size = 0 if labels is None else labels.shape[1]
    count = len(digests) // 32 if labels is None else len(labels)
    digest = hashlib.sha256(repr(([int(size) for size in shape], [count, label_size])).encode())
    for rows in label_chunks(labels, label_size, count):
        digest.update(rows.tobytes())
    digest.update(digests)
    return digest.hexdigest()
