"""Random access to TFRecord files: framing, checksums, and an index without a pass over the records.

A record is `uint64 length, uint32 masked crc of the length, data, uint32 masked crc of the data`,
little-endian. Files written by the official data set tools are uncompressed and hold records of one length,
so the place of record i is i times the record size: opening such a file reads a few bytes, whatever its size.
Where records have different lengths, `<file>.index` holds their places.
"""

import io
import os
import threading

import numpy as np
import tqdm

from dnnlib.util import UserError, gfile, is_remote_path
from training.datasets.crc32c import masked_crc32c, masked_crc32c_of_bytes

HEADER_BYTES = 12
FOOTER_BYTES = 4
INDEX_SUFFIX = '.index'
_SEARCH_BYTES = 1 << 20     # Piece of a damaged file that is searched for the next record at a time.


class RecordFile:
    """One uncompressed TFRecord file, read at random; by `os.preadv`, remote files through `tf.io.gfile`.

    Args:
        path: File.
        verify: Check of the data checksums: 'first' (when a record is read for the first time), True
            (always) or False (never).
        skip_bad: Open a file that is damaged: a record that is cut off at its end does not count, and after
            a header that makes no sense the search goes on. Reading a damaged record is an error still.
        keep_open: Keep the file open between reads; not for sets of very many files.

    Errors:
        UserError: The file is empty, cut off, corrupt or not a TFRecord file; says which record.
    """

    def __init__(self, path: str, verify: bool | str = 'first', skip_bad: bool = False,
                 keep_open: bool = True) -> None:
        self.path = path
        self._fd = self._remote = None
        self._closed = False
        self._lock = threading.Lock()
        if is_remote_path(path):
            self._remote = gfile().GFile(path, 'rb')
            self.size = self._remote.size()
        else:
            self._fd = self._open()
            self.size = os.fstat(self._fd).st_size
        self._verify, self._skip_bad = verify, skip_bad
        self._index()
        self._verified = np.zeros(len(self), bool)
        if not keep_open:
            self._release()

    def __len__(self) -> int:
        return self._num_records

    def close(self) -> None:
        """Releases the file. The object cannot be read afterwards."""
        self._release()
        self._closed = True
        if self._remote is not None:
            self._remote.close()
            self._remote = None

    def __del__(self) -> None:
        if getattr(self, '_fd', None) is not None:
            self._release()

    def _open(self) -> int:
        return os.open(self.path, os.O_RDONLY | getattr(os, 'O_CLOEXEC', 0))

    def _release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    @property
    def uniform(self) -> bool:
        """Whether all records have the same length as far as is known."""
        return self._offsets is None

    def _error(self, record: int, problem: str) -> UserError:
        return UserError(f'{self.path}: record {record} (counted from 0) {problem}. Copy the file again, '
                         'rebuild the data set, or leave such records out with --skip-bad.')

    def _read_into(self, offset: int, buffer: np.ndarray, record: int) -> None:
        if self._closed:
            raise ValueError(f'{self.path} has been closed.')
        if self._remote is not None:
            with self._lock:
                self._remote.seek(offset)
                data = self._remote.read(buffer.size)
            count = len(data)
            buffer[:count] = np.frombuffer(data, np.uint8)
        else:
            fd = self._open() if self._fd is None else self._fd
            try:
                count = 0
                while count < buffer.size:
                    step = os.preadv(fd, [buffer[count:]], offset + count)
                    if step == 0:
                        break
                    count += step
            finally:
                if fd != self._fd:
                    os.close(fd)
        if count != buffer.size:
            raise self._error(record, f'is cut off: the file ends at byte {offset + count}, the record needs '
                                      f'{offset + buffer.size}')

    def _data_length(self, offset: int, record: int) -> int:
        """Length of the data of the record at `offset`, with its checksum verified."""
        header = np.empty(HEADER_BYTES, np.uint8)
        self._read_into(offset, header, record)
        length = _length_in(header.tobytes())
        if length is None:
            hint = ', or the file is compressed or not a TFRecord file' if record == 0 else ''
            raise self._error(record, f'has a corrupt header (checksum of its length){hint}')
        return length

    def _index(self) -> None:
        """Finds the records: in the index, by arithmetic where all have one length, or by their headers."""
        if self.size == 0:
            raise UserError(f'{self.path} is empty. Copy the file again or rebuild the data set.')
        self._offsets = self._load_index()
        if self._offsets is None:
            try:
                self._record_bytes = HEADER_BYTES + self._data_length(0, 0) + FOOTER_BYTES
                self._num_records, rest = divmod(self.size, self._record_bytes)
                if not rest and self._num_records and self._plausible(self._num_records - 1):
                    return
            except UserError:
                if not self._skip_bad:
                    raise
            self._offsets = self._scan()
        self._num_records = len(self._offsets) - 1

    def _load_index(self) -> np.ndarray | None:
        """int64 [N + 1], or None where there is no index, or one of another file."""
        path = self.path + INDEX_SUFFIX
        try:
            if self._remote is None:
                offsets = np.load(path, allow_pickle=False)
            else:
                if not gfile().exists(path):
                    return None
                with gfile().GFile(path, 'rb') as file:
                    offsets = np.load(io.BytesIO(file.read()), allow_pickle=False)
        except FileNotFoundError:
            return None
        except (ValueError, EOFError, OSError):
            offsets = np.zeros([0])
        usable = offsets.dtype.kind in 'iu' and offsets.ndim == 1 and len(offsets) > 1
        offsets = offsets.astype(np.int64) if usable else offsets
        if not usable or offsets[0] != 0 or offsets[-1] != self.size or (
                np.diff(offsets).min() < HEADER_BYTES + FOOTER_BYTES):
            print(f'{path} does not fit {os.path.basename(self.path)}: reading the headers of its records '
                  'instead.')
            return None
        return offsets

    def _plausible(self, record: int) -> bool:
        headers = np.empty([2, HEADER_BYTES], np.uint8)
        self._read_into(0, headers[0], 0)
        self._read_into(record * self._record_bytes, headers[1], record)
        return np.array_equal(headers[0], headers[1])

    def _scan(self) -> np.ndarray:
        """The places of all records by a pass over their headers: int64 [N + 1]."""
        offsets = [0]
        header = np.empty(HEADER_BYTES, np.uint8)
        with tqdm.tqdm(total=self.size, desc=f'Indexing {os.path.basename(self.path)}', unit='B',
                       unit_scale=True, delay=2, mininterval=1) as bar:
            while offsets[-1] < self.size:
                record = len(offsets) - 1
                try:
                    self._read_into(offsets[-1], header, record)
                    length = _length_in(header.tobytes())
                    if length is None:
                        self._data_length(offsets[-1], record)      # Raises the error.
                    end = offsets[-1] + HEADER_BYTES + length + FOOTER_BYTES
                    if end > self.size:
                        raise self._error(record, f'is cut off: the file ends at byte {self.size}, '
                                                  f'the record needs {end}')
                except UserError as error:
                    if not self._skip_bad:
                        raise
                    end = self._next_record(offsets[-1])
                    if end is None:
                        print(f'Warning: left out: {error}')
                        break
                bar.update(end - offsets[-1])
                offsets.append(end)
        if len(offsets) == 1:
            raise UserError(f'{self.path} holds no usable record. Copy the file again or rebuild the data '
                            'set.')
        return np.array(offsets, np.int64)

    def _next_record(self, offset: int) -> int | None:
        """Where the next record begins, after a damaged header at `offset`; None where no other does."""
        begin = offset + 1
        while begin + HEADER_BYTES <= self.size:
            piece = np.empty(min(_SEARCH_BYTES + HEADER_BYTES, self.size - begin), np.uint8)
            self._read_into(begin, piece, -1)
            windows = np.lib.stride_tricks.sliding_window_view(piece, HEADER_BYTES)
            # Nearly every place is ruled out by a length that would lead beyond the end of the file.
            lengths = windows[:, :8].astype(np.uint64) @ (np.uint64(256) ** np.arange(8, dtype=np.uint64))
            room = np.uint64(self.size - begin - HEADER_BYTES - FOOTER_BYTES + 1)
            for place in np.flatnonzero(lengths < room):
                length = _length_in(windows[place].tobytes())
                end = begin + int(place) + HEADER_BYTES + (length or 0) + FOOTER_BYTES
                if length is not None and end <= self.size:
                    return begin + int(place)
            begin += _SEARCH_BYTES
        return None

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
            length = (self._record_bytes - HEADER_BYTES - FOOTER_BYTES).to_bytes(8, 'little')
            header = length + masked_crc32c_of_bytes(length).to_bytes(4, 'little')
            if (buffer[:, :HEADER_BYTES] == np.frombuffer(header, np.uint8)).all():
                self._check(records, buffer)
                return buffer[:, HEADER_BYTES:-FOOTER_BYTES]
            self._explain_headers(records, buffer)
        return self._read_lengths(records)

    def _explain_headers(self, records: np.ndarray, buffer: np.ndarray) -> None:
        """Raises for headers of records that should all have one length and do not: damage, or a mistake."""
        if not self._skip_bad:
            offsets = self._scan()      # Raises for damage.
            raise UserError(f'{self.path} holds {len(offsets) - 1} records of different lengths, which '
                            f'looked like {self._num_records} equal ones at first. Rebuild the data set.')
        bad = [_length_in(row[:HEADER_BYTES].tobytes()) is None for row in buffer]
        raise self._error(int(records[np.argmax(bad)]), 'has a corrupt header (checksum of its length)')

    def _read_lengths(self, records: np.ndarray) -> list[np.ndarray]:
        """Data of records of different lengths; the rows of one array, whose checksums are taken together."""
        spans = [self._span(int(record)) for record in records]
        sizes = np.array([size for _, size in spans])
        buffer = np.zeros([len(records), sizes.max()], np.uint8)
        for row, record, (offset, size) in zip(buffer, records, spans, strict=True):
            self._read_into(offset, row[-size:], int(record))
            length = _length_in(row[-size:][:HEADER_BYTES].tobytes())
            if length is None:
                raise self._error(int(record), 'has a corrupt header (checksum of its length)')
            if length != size - HEADER_BYTES - FOOTER_BYTES:
                raise self._error(int(record), f'has {length} bytes of data, but {self.path}{INDEX_SUFFIX} '
                                               f'says {size - HEADER_BYTES - FOOTER_BYTES}: remove that file')
            row[:-size + HEADER_BYTES] = 0      # For the checksum.
        self._check(records, buffer, sizes)
        return [row[-size + HEADER_BYTES:-FOOTER_BYTES] for row, size in zip(buffer, sizes, strict=True)]

    def _check(self, records: np.ndarray, buffer: np.ndarray, sizes: np.ndarray | None = None) -> None:
        """Compares the checksums of the data of records, which stand at the end of the rows of `buffer`."""
        if self._verify == 'first':
            todo = np.flatnonzero(~self._verified[records])
        else:
            todo = np.arange(len(records)) if self._verify else np.arange(0)
        if not len(todo):
            return
        rows = buffer if len(todo) == len(buffer) else buffer[todo]
        stored = np.ascontiguousarray(rows[:, -FOOTER_BYTES:]).view('<u4')[:, 0]
        sizes = None if sizes is None else sizes[todo] - HEADER_BYTES - FOOTER_BYTES
        bad = masked_crc32c(rows[:, HEADER_BYTES:-FOOTER_BYTES], sizes) != stored
        if bad.any():
            raise self._error(int(records[todo[np.argmax(bad)]]), 'is corrupt (checksum of its data)')
        self._verified[records[todo]] = True


def _length_in(header: bytes) -> int | None:
    """The length in a header of 12 bytes; None where its checksum is wrong."""
    stored = int.from_bytes(header[8:HEADER_BYTES], 'little')
    return int.from_bytes(header[:8], 'little') if masked_crc32c_of_bytes(header[:8]) == stored else None
