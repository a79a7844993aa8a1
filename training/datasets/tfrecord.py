"""Images in TFRecord files, raw or encoded, in one file or in shards; read at random."""

import functools
import re
from collections.abc import Callable, Sequence

import numpy as np

from dnnlib.util import UserError
from training.datasets.base import check_image_size
from training.datasets.crc32c import FOLD, crc32c, masked_crc32c
from training.datasets.record_file import FOOTER_BYTES, HEADER_BYTES, INDEX_SUFFIX, RecordFile

__all__ = ['FOLD', 'FOOTER_BYTES', 'HEADER_BYTES', 'INDEX_SUFFIX', 'ImageRecords', 'RecordFile', 'crc32c',
           'decode_images', 'masked_crc32c']

CHANNELS = (1, 3, 4)        # Gray, RGB, RGBA.
_FIRST_RECORDS = 100        # Among so many there must be a good one, which tells the shape.
_ENCODINGS = ('png', 'jpeg')
_GROUP = 32                 # Most images that are decoded in one call.


class ImageRecords:
    """One level of a data set: tf.train.Examples with `shape` (3 integers, CHW) and `data`, in one file or
    in shards. `data` holds raw bytes or, where there is a feature `encoding`, a PNG or JPEG file.

    Args:
        paths: TFRecord file, or the shards in their order.
        verify, skip_bad, keep_open: See `RecordFile`.

    Errors: UserError, naming the file, the record and what is wrong with it.
    """

    def __init__(self, paths: str | Sequence[str], verify: bool | str, skip_bad: bool = False,
                 keep_open: bool = True) -> None:
        paths = [paths] if isinstance(paths, str) else list(paths)
        self.path = paths[0]
        self._files = [RecordFile(path, verify, skip_bad, keep_open) for path in paths]
        self._starts = np.cumsum([0] + [len(file) for file in self._files])
        first, payload = self._first_good(skip_bad)
        self.shape, _, self.encoding = self._parse(payload.tobytes(), 0, first)
        channels, height, width = self.shape
        check_image_size(width, height, f'{self.path}: record {first}')
        if channels not in CHANNELS:
            raise UserError(f'{self.path}: record {first} has {channels} channels; expected 1 (gray), '
                            '3 (RGB) or 4 (RGBA).')
        self._layout = None if self.encoding else self._find_layout(payload, first)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def close(self) -> None:
        """Releases the files."""
        for file in self._files:
            file.close()

    def item_name(self, index: int) -> str:
        """Where an image lies, for messages: 'set-r05.tfrecords: record 3'."""
        shard = int(np.searchsorted(self._starts, index, side='right')) - 1
        return f'{self._files[shard].path}: record {index - self._starts[shard]}'

    def _first_good(self, skip_bad: bool) -> tuple[int, np.ndarray]:
        """Number and data of the first record that can be used."""
        for record in range(min(len(self._files[0]), _FIRST_RECORDS if skip_bad else 1)):
            try:
                payload = self._files[0].read(np.array([record]))[0]
                self._load([payload], 0, [record])
                return record, payload
            except UserError as caught:
                error = caught
        raise error

    def _error(self, shard: int, record: int, problem: str) -> UserError:
        return UserError(f'{self._files[shard].path}: record {record} (counted from 0) {problem}')

    def _parse(self, payload: bytes, shard: int, record: int) -> tuple[list[int], bytes, str]:
        """(shape, data, encoding) of a serialized Example; the encoding of raw bytes is ''."""
        from google.protobuf.message import DecodeError
        from tensorflow.train import Example
        try:
            feature = Example.FromString(payload).features.feature
        except DecodeError as error:
            raise self._error(shard, record, 'is not a tf.train.Example.') from error
        for key in ('shape', 'data'):
            if key not in feature:
                raise self._error(shard, record, f'has no feature {key!r} but {sorted(feature)}; expected a '
                                                 'file written by dataset_tool.')
        shape = list(feature['shape'].int64_list.value)
        values = feature['data'].bytes_list.value
        encoding = ''
        if 'encoding' in feature:
            encoding = b','.join(feature['encoding'].bytes_list.value).decode('utf-8', 'replace')
            if encoding not in _ENCODINGS:
                raise self._error(shard, record, f'has the encoding {encoding!r}; expected one of: '
                                                 f'{", ".join(_ENCODINGS)}.')
        elif len(values) == 1 and len(shape) == 3 and len(values[0]) != np.prod(shape):
            values = []
        if len(shape) != 3 or len(values) != 1 or min(shape) < 1:
            count = sum(map(len, feature['data'].bytes_list.value))
            raise self._error(shard, record, f'has the shape {shape} and {count} bytes of data; expected '
                                             '[channels, height, width] and one byte for each value.')
        return shape, values[0], encoding

    def _load(self, payloads: Sequence[np.ndarray], shard: int, records: Sequence[int]) -> np.ndarray:
        """Records of any layout as uint8 [n, H, W, C]."""
        parsed = [self._parse(payload.tobytes(), shard, record)
                  for payload, record in zip(payloads, records, strict=True)]
        expected = getattr(self, 'shape', parsed[0][0])     # The first record tells the shape.
        for (shape, _, _), record in zip(parsed, records, strict=True):
            if shape != expected:
                raise self._error(shard, record, f'has the shape {shape}, but record 0 of {self.path} has '
                                                 f'{expected}.')
        kinds = sorted({encoding for _, _, encoding in parsed})
        if len(kinds) > 1:      # Of no use, but not wrong.
            return np.concatenate([self._load([payload], shard, [record])
                                   for payload, record in zip(payloads, records, strict=True)])
        files = [data for _, data, _ in parsed]
        if not kinds[0]:
            return to_nhwc(np.frombuffer(b''.join(files), np.uint8).reshape([len(files), -1]), expected)
        return self._decode(files, kinds[0], [*expected[1:], expected[0]], shard, records)

    def _decode(self, files: list[bytes], encoding: str, shape: Sequence[int], shard: int,
                records: Sequence[int]) -> np.ndarray:
        """uint8 [n, H, W, C] of encoded records, of which `shape` tells [H, W, C]."""
        try:
            images = decode_images(files, encoding)
            if images.shape[1:] != tuple(shape):
                raise ValueError('it is an image of {1}x{0} pixels with {2} channels, but its shape says '
                                 '{4}x{3} with {5}'.format(*images.shape[1:], *shape))
            return images
        except ValueError as error:
            if len(files) == 1:
                raise self._error(shard, records[0], f'cannot be decoded ({error}). Rebuild the data set, or '
                                                     'leave such records out with --skip-bad.') from error
        for file, record in zip(files, records, strict=True):
            self._decode([file], encoding, shape, shard, [record])
        raise ValueError(f'{self._files[shard].path}: records {list(records)} decode one by one only')

    def _find_layout(self, payload: np.ndarray, record: int) -> tuple[int, bytes, bytes] | None:
        """Where the pixels lie in a record, since parsing costs more than reading.

        Returns: (offset, bytes before, bytes after), or None where that is not certain: bytes before the
        pixels may look like pixels. Inverting them tells.
        """
        raw = payload.tobytes()
        _, data, _ = self._parse(raw, 0, record)
        offset = raw.find(data)
        end = offset + len(data)
        inverted = (~np.frombuffer(data, np.uint8)).tobytes()
        try:
            shape, parsed, _ = self._parse(raw[:offset] + inverted + raw[end:], 0, record)
        except UserError:
            return None
        return (offset, raw[:offset], raw[end:]) if shape == self.shape and parsed == inverted else None

    def read(self, indices: np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, C]."""
        channels, height, width = self.shape
        indices = np.asarray(indices, np.int64)
        if len(self._files) == 1:
            return self._read_shard(0, indices)
        images = np.empty([len(indices), height, width, channels], np.uint8)
        shards = np.searchsorted(self._starts, indices, side='right') - 1
        for shard in np.unique(shards):
            mine = np.flatnonzero(shards == shard)
            images[mine] = self._read_shard(int(shard), indices[mine] - self._starts[shard])
        return images

    def _read_shard(self, shard: int, records: np.ndarray) -> np.ndarray:
        payloads = self._files[shard].read(records)
        pixels = self._raw_pixels(payloads)
        if pixels is None:
            return self._load(payloads, shard, records.tolist())
        return to_nhwc(pixels, self.shape)

    def _raw_pixels(self, payloads: list | np.ndarray) -> np.ndarray | None:
        """The pixels of raw records, [n, bytes]; None where they do not all look like the first record."""
        if self._layout is None or not isinstance(payloads, np.ndarray):
            return None
        offset, before, after = self._layout
        end = payloads.shape[1] - len(after)
        if end - offset != np.prod(self.shape):
            return None
        same = (payloads[:, :offset] == np.frombuffer(before, np.uint8)).all()
        same &= (payloads[:, end:] == np.frombuffer(after, np.uint8)).all()
        return payloads[:, offset:end] if same else None


def to_nhwc(pixels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """uint8 [n, C·H·W] in the order CHW → [n, H, W, C]."""
    channels, height, width = shape
    images = np.empty([len(pixels), height * width, channels], np.uint8)
    for channel in range(channels):     # Four times as fast as one transposition by NumPy.
        images[:, :, channel] = pixels[:, channel * height * width:(channel + 1) * height * width]
    return images.reshape([-1, height, width, channels])


def decode_images(files: Sequence[bytes], encoding: str) -> np.ndarray:
    """Encoded images of one size as uint8 [N, H, W, C].

    TensorFlow decodes a group of them in one call, side by side on all processors. (Pillow, called by Python
    threads, takes 1.4 times as long at 256×256, and more for smaller images; the pixels are the same.)

    Args:
        files: PNG or JPEG files.
        encoding: 'png' or 'jpeg'.

    Returns: an array that may be read-only.

    Errors: ValueError where one of them is damaged or of another size.
    """
    import tensorflow as tf
    parts, done = [], 0
    while done < len(files):
        count = min(_GROUP, 1 << (len(files) - done).bit_length() - 1)     # A function for each power of two.
        try:
            with tf.device('CPU:0'):
                images = _decoder(encoding, count)(tf.constant(files[done:done + count]))
                parts.append(np.asarray(memoryview(images)))    # Not copied: that takes 1/7 of decoding.
        except tf.errors.OpError as error:
            raise ValueError(re.sub(r'\{\{.*?\}\} ?|[\n\t].*', '', error.message)) from error
        done += count
    try:
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
    except ValueError:
        raise ValueError('the images have several sizes') from None


@functools.cache
def _decoder(encoding: str, count: int) -> Callable:
    import tensorflow as tf
    decode = {'png': tf.io.decode_png,      # As exactly as Pillow decodes, too.
              'jpeg': functools.partial(tf.io.decode_jpeg, dct_method='INTEGER_ACCURATE')}[encoding]

    def function(files):
        with tf.device('CPU:0'):
            return tf.stack([decode(file) for file in tf.unstack(files)])
    return tf.function(function, input_signature=[tf.TensorSpec([count], tf.string)], autograph=False)
