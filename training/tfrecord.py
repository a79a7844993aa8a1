"""Random access to TFRecord files of images: framing, masked CRC-32C, and an index without a pass over them.

A record is `uint64 length, uint32 masked crc of the length, data, uint32 masked crc of the data`,
little-endian. Files written by the official data set tools are uncompressed and hold records of one length,
so the place of record i is i times the record size: opening such a file reads a few bytes, whatever its size.
"""

import functools
import os
import threading

import numpy as np

from dnnlib.util import UserError, gfile, is_remote_path
from training.dataset_base import check_image_size

HEADER_BYTES = 12
FOOTER_BYTES = 4
_POLYNOMIAL = np.uint32(0x82F63B78)     # Castagnoli, bits reversed
_MASK_DELTA = 0xA282EAD8
FOLD = (5685, 1362, 426, 0)             # Exponents of a multiple of the polynomial with only four terms.


def _step_zero_bytes(state: np.ndarray, count: int) -> np.ndarray:
    """CRC register after `count` zero bytes, one bit at a time: only for building tables."""
    for _ in range(8 * count):
        state = (state >> np.uint32(1)) ^ (_POLYNOMIAL * (state & np.uint32(1)))
    return state


@functools.cache
def _word_table() -> np.ndarray:
    """What the low 16 bits of the register turn into when two bytes are shifted out. uint32 [65536]."""
    return _step_zero_bytes(np.arange(65536, dtype=np.uint32), 2)


def _apply(tables: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Every register in `state` moved by a linear map, given as its values for each byte: uint32 [4, 256]."""
    result = tables[0][state & np.uint32(0xFF)]
    for byte in range(1, 4):
        result ^= tables[byte][(state >> np.uint32(8 * byte)) & np.uint32(0xFF)]
    return result


@functools.lru_cache(maxsize=512)
def _skip_tables(count: int) -> np.ndarray:
    """The map that moves a register over `count` zero bytes, as `_apply` takes it; by halving `count`."""
    values = np.arange(256, dtype=np.uint32) << (np.uint32(8) * np.arange(4, dtype=np.uint32)[:, None])
    if count <= 1:
        return _step_zero_bytes(values, count)
    half = _skip_tables(count // 2)
    return _apply(_skip_tables(count % 2), _apply(half, half))


def _fold(data: np.ndarray) -> np.ndarray:
    """Shortens rows without changing their remainder modulo the CRC polynomial P, by XOR of whole blocks.

    x^5685 + x^1362 + x^426 + 1 is a multiple of P (tests/test_dataset.py divides it). Squared three times, or
    six times, it is x^(5685·8) + … and x^(5685·64) + …, still a multiple: so a leading byte, or 8-byte word,
    may be dropped when it is added 4323, 5259 and 5685 places further on. That runs at the speed of memory.

    Args:
        data: uint8 [rows, bytes], bytes a multiple of 8; overwritten.
    """
    far, middle, near = FOLD[0], FOLD[0] - FOLD[2], FOLD[0] - FOLD[1]
    for dtype in [np.uint64, np.uint8]:
        words = data.view(dtype)
        drop = words.shape[1] - far
        if drop <= 0:
            continue
        for begin in range(0, drop, near):
            block = words[:, begin:min(begin + near, drop)]
            for shift in [near, middle, far]:
                words[:, begin + shift:begin + shift + block.shape[1]] ^= block
        data = np.ascontiguousarray(words[:, drop:]).view(np.uint8)
    return data


def crc32c(data: np.ndarray) -> np.ndarray:
    """CRC-32C (Castagnoli) of every row.

    The checksum without its initial and final inversion is linear over GF(2). So long rows are folded first,
    then each row is cut into lanes that NumPy advances side by side, two bytes a step, and the lanes are
    joined in pairs by the map "skip that many zero bytes".

    Args:
        data: uint8 [rows, bytes].

    Returns:
        uint32 [rows].
    """
    rows, size = data.shape
    if rows > 1 and rows * size > 1 << 20:      # Work on what fits into the processor's cache.
        half = rows // 2
        return np.concatenate([crc32c(data[:half]), crc32c(data[half:])])
    padding = -size % 8         # Leading zeros do not change a register that is zero.
    folded = np.zeros([rows, padding + size], np.uint8)
    folded[:, padding:] = data
    folded = _fold(folded)
    length = folded.shape[1]
    lanes = 1
    while rows * lanes < 4096 and length // (4 * lanes) >= 16:
        lanes *= 2
    lane_bytes = max(-(-length // (2 * lanes)), 1) * 2
    padded = np.zeros([rows, lanes * lane_bytes], np.uint8)
    padded[:, lanes * lane_bytes - length:] = folded
    words = np.ascontiguousarray(padded.view('<u2').reshape(rows * lanes, lane_bytes // 2).T)
    table = _word_table()
    state = np.zeros(rows * lanes, np.uint32)
    for word in words:
        state = table[(state ^ word) & np.uint32(0xFFFF)] ^ (state >> np.uint32(16))
    while lanes > 1:
        pairs = state.reshape(rows * lanes // 2, 2)
        state = _apply(_skip_tables(lane_bytes), pairs[:, 0]) ^ pairs[:, 1]
        lanes, lane_bytes = lanes // 2, lane_bytes * 2
    initial = _apply(_skip_tables(size), np.array([0xFFFFFFFF], np.uint32))
    return state ^ initial ^ np.uint32(0xFFFFFFFF)


def masked_crc32c(data: np.ndarray) -> np.ndarray:
    """CRC-32C of the rows of uint8 [rows, bytes] in the masked form of TFRecord files: uint32 [rows]."""
    crc = crc32c(data)
    return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(_MASK_DELTA)


def _stored_crc(data: np.ndarray) -> np.ndarray:
    """uint8 [rows, 4] → uint32 [rows]."""
    return np.ascontiguousarray(data).view('<u4')[:, 0]


class RecordFile:
    """One uncompressed TFRecord file, read at random; by `os.preadv`, remote files through `tf.io.gfile`.

    Args:
        path: File.
        verify: Check of the data checksums: 'first' (when a record is read for the first time), True
            (always) or False (never).

    Errors:
        UserError: The file is empty, cut off, corrupt or not a TFRecord file; says which record.
    """

    def __init__(self, path: str, verify: bool | str = 'first') -> None:
        self.path = path
        self._fd = self._remote = None
        self._lock = threading.Lock()
        if is_remote_path(path):
            self._remote = gfile().GFile(path, 'rb')
            self.size = self._remote.size()
        else:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, 'O_CLOEXEC', 0))
            self.size = os.fstat(self._fd).st_size
        self._verify = verify
        self._index()
        self._verified = np.zeros(len(self), bool)

    def __len__(self) -> int:
        return self._num_records

    def close(self) -> None:
        """Releases the file. The object cannot be read afterwards."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if self._remote is not None:
            self._remote.close()
            self._remote = None

    def __del__(self) -> None:
        if getattr(self, '_fd', None) is not None:
            self.close()

    @property
    def uniform(self) -> bool:
        """Whether all records have the same length as far as is known."""
        return self._offsets is None

    def _error(self, record: int, problem: str) -> UserError:
        return UserError(f'{self.path}: record {record} (counted from 0) {problem}. '
                         'Copy the file again or rebuild the data set.')

    def _read_into(self, offset: int, buffer: np.ndarray, record: int) -> None:
        if self._remote is not None:
            with self._lock:
                self._remote.seek(offset)
                data = self._remote.read(buffer.size)
            count = len(data)
            buffer[:count] = np.frombuffer(data, np.uint8)
        elif self._fd is not None:
            count = 0
            while count < buffer.size:
                step = os.preadv(self._fd, [buffer[count:]], offset + count)
                if step == 0:
                    break
                count += step
        else:
            raise ValueError(f'{self.path} has been closed.')
        if count != buffer.size:
            raise self._error(record, f'is cut off: the file ends at byte {offset + count}, the record needs '
                                      f'{offset + buffer.size}')

    def _data_length(self, offset: int, record: int) -> int:
        """Length of the data of the record at `offset`, with its checksum verified."""
        header = np.empty(HEADER_BYTES, np.uint8)
        self._read_into(offset, header, record)
        if masked_crc32c(header[None, :8])[0] != _stored_crc(header[None, 8:])[0]:
            hint = ', or the file is compressed or not a TFRecord file' if record == 0 else ''
            raise self._error(record, f'has a corrupt header (checksum of its length){hint}')
        return int(header[:8].view('<u8')[0])

    def _index(self) -> None:
        """Finds the records: arithmetic where all have one length, else by a scan over the headers."""
        if self.size == 0:
            raise UserError(f'{self.path} is empty. Copy the file again or rebuild the data set.')
        self._record_bytes = HEADER_BYTES + self._data_length(0, 0) + FOOTER_BYTES
        self._num_records, rest = divmod(self.size, self._record_bytes)
        self._offsets = None
        if rest or not self._num_records or not self._plausible(self._num_records - 1):
            self._scan()

    def _plausible(self, record: int) -> bool:
        headers = np.empty([2, HEADER_BYTES], np.uint8)
        self._read_into(0, headers[0], 0)
        self._read_into(record * self._record_bytes, headers[1], record)
        return np.array_equal(headers[0], headers[1])

    def _scan(self) -> None:
        offsets = [0]
        known = {}      # Headers whose checksum is right, nearly always one.
        header = np.empty(HEADER_BYTES, np.uint8)
        while offsets[-1] < self.size:
            record = len(offsets) - 1
            self._read_into(offsets[-1], header, record)
            key = header.tobytes()
            if key not in known:
                known[key] = self._data_length(offsets[-1], record)
            end = offsets[-1] + HEADER_BYTES + known[key] + FOOTER_BYTES
            if end > self.size:
                raise self._error(record, f'is cut off: the file ends at byte {self.size}, '
                                          f'the record needs {end}')
            offsets.append(end)
        self._offsets = np.array(offsets, np.int64)
        self._num_records = len(offsets) - 1

    def _span(self, record: int) -> tuple[int, int]:
        """(offset, bytes) of a record with its framing."""
        if self._offsets is None:
            return record * self._record_bytes, self._record_bytes
        return int(self._offsets[record]), int(self._offsets[record + 1] - self._offsets[record])

    def read(self, records: np.ndarray) -> list[np.ndarray] | np.ndarray:
        """Data of the given records.

        Args:
            records: int [n], in any order.

        Returns:
            uint8 [n, bytes] where all records have one length, else a list of n arrays uint8 [bytes].

        Errors:
            UserError: A record is corrupt.
        """
        records = np.asarray(records, np.int64)
        if not len(records):
            return []
        if self.uniform:
            buffer = np.empty([len(records), self._record_bytes], np.uint8)
            for row, record in zip(buffer, records, strict=True):
                self._read_into(*self._span(int(record))[:1], row, int(record))
            first = np.empty(HEADER_BYTES, np.uint8)
            self._read_into(0, first, 0)
            if (buffer[:, :HEADER_BYTES] == first).all():
                self._check(records, buffer)
                return buffer[:, HEADER_BYTES:-FOOTER_BYTES]
            # A header that differs is damage or a record of another length. The scan tells which.
            count = self._num_records
            self._scan()
            if self._num_records != count:
                raise UserError(f'{self.path} holds {self._num_records} records of different lengths, which '
                                f'looked like {count} equal ones at first. Rebuild the data set.')
        return [self._read_one(int(record)) for record in records]

    def _read_one(self, record: int) -> np.ndarray:
        offset, size = self._span(record)
        buffer = np.empty([1, size], np.uint8)
        self._read_into(offset, buffer[0], record)
        self._check(np.array([record]), buffer)
        return buffer[0, HEADER_BYTES:-FOOTER_BYTES]

    def _check(self, records: np.ndarray, buffer: np.ndarray) -> None:
        """Compares the checksums of the data of records that all have the size of the rows of `buffer`."""
        if self._verify == 'first':
            todo = np.flatnonzero(~self._verified[records])
        else:
            todo = np.arange(len(records)) if self._verify else np.arange(0)
        if not len(todo):
            return
        rows = buffer if len(todo) == len(buffer) else buffer[todo]
        bad = masked_crc32c(rows[:, HEADER_BYTES:-FOOTER_BYTES]) != _stored_crc(rows[:, -FOOTER_BYTES:])
        if bad.any():
            raise self._error(int(records[todo[np.argmax(bad)]]), 'is corrupt (checksum of its data)')
        self._verified[records[todo]] = True


class ImageRecords:
    """One level of a data set: tf.train.Examples with `shape` (3 integers, CHW) and `data` (raw bytes).

    Args:
        path: TFRecord file.
        verify: See `RecordFile`.

    Errors: UserError, naming the file, the record and what is wrong with it.
    """

    def __init__(self, path: str, verify: bool | str) -> None:
        self.path = path
        self._file = RecordFile(path, verify)
        first = self._file.read(np.array([0]))[0]
        self.shape, _ = self._parse(first.tobytes(), 0)
        channels, height, width = self.shape
        check_image_size(width, height, f'{path}: record 0')
        if channels not in (1, 3):
            raise UserError(f'{path}: record 0 has {channels} channels; expected 1 (gray) or 3 (RGB).')
        self._layout = self._find_layout(first)

    def __len__(self) -> int:
        return len(self._file)

    def close(self) -> None:
        """Releases the file."""
        self._file.close()

    def _parse(self, payload: bytes, record: int) -> tuple[list[int], bytes]:
        """(shape, data) of a serialized Example."""
        from google.protobuf.message import DecodeError
        from tensorflow.train import Example
        try:
            feature = Example.FromString(payload).features.feature
        except DecodeError as error:
            raise UserError(
                f'{self.path}: record {record} (counted from 0) is not a tf.train.Example.') from error
        for key in ('shape', 'data'):
            if key not in feature:
                raise UserError(f'{self.path}: record {record} (counted from 0) has no feature {key!r} but '
                                f'{sorted(feature)}; expected a file written by dataset_tool.')
        shape = list(feature['shape'].int64_list.value)
        values = feature['data'].bytes_list.value
        if len(shape) != 3 or len(values) != 1 or len(values[0]) != np.prod(shape):
            raise UserError(f'{self.path}: record {record} (counted from 0) has the shape {shape} and '
                            f'{len(values[0]) if values else 0} bytes of data; expected [channels, height, '
                            'width] and one byte for each value.')
        return shape, values[0]

    def _find_layout(self, payload: np.ndarray) -> tuple[int, bytes, bytes] | None:
        """Where the pixels lie in a record, since parsing costs more than reading.

        Returns: (offset, bytes before, bytes after), or None where that is not certain: bytes before the
        pixels may look like pixels. Inverting them tells.
        """
        raw = payload.tobytes()
        _, data = self._parse(raw, 0)
        offset = raw.find(data)
        end = offset + len(data)
        inverted = bytes(byte ^ 255 for byte in data)
        try:
            shape, parsed = self._parse(raw[:offset] + inverted + raw[end:], 0)
        except UserError:
            return None
        return (offset, raw[:offset], raw[end:]) if shape == self.shape and parsed == inverted else None

    def read(self, indices: np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, C]."""
        payloads = self._file.read(indices)
        images = np.empty([len(indices), int(np.prod(self.shape))], np.uint8)
        todo = np.arange(len(indices))
        if self._layout is not None and isinstance(payloads, np.ndarray):
            offset, before, after = self._layout
            end = offset + images.shape[1]
            if payloads.shape[1] == end + len(after):
                same = (payloads[:, :offset] == np.frombuffer(before, np.uint8)).all(axis=1)
                same &= (payloads[:, end:] == np.frombuffer(after, np.uint8)).all(axis=1)
                if same.all():
                    images, todo = payloads[:, offset:end], todo[:0]
        for i in todo:      # Features may be stored in any order; rare files mix them.
            shape, data = self._parse(payloads[i].tobytes(), int(indices[i]))
            if shape != self.shape:
                raise UserError(f'{self.path}: record {indices[i]} (counted from 0) has the shape {shape}, '
                                f'but record 0 has {self.shape}.')
            images[i] = np.frombuffer(data, np.uint8)
        return np.ascontiguousarray(images.reshape([-1, *self.shape]).transpose(0, 2, 3, 1))
