"""CRC-32C, the checksum of TFRecord files, by NumPy at the speed of memory."""

import functools

import numpy as np

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

    x^5685 + x^1362 + x^426 + 1 is a multiple of P (tests/test_tfrecord.py divides it). Squared three times,
    or six times, it is x^(5685·8) + … and x^(5685·64) + …, still a multiple: so a leading byte, or 8-byte
    word, may be dropped when it is added 4323, 5259 and 5685 places further on. That runs at the speed of
    memory.

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


def _skip_bytes(state: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Each register moved over its own number of zero bytes: by powers of two, for all registers at once."""
    for bit in range(int(counts.max(initial=0)).bit_length()):
        mine = (counts >> bit) & 1 == 1
        if mine.any():
            state[mine] = _apply(_skip_tables(1 << bit), state[mine])
    return state


def crc32c(data: np.ndarray, sizes: np.ndarray | None = None) -> np.ndarray:
    """CRC-32C (Castagnoli) of every row.

    The checksum without its initial and final inversion is linear over GF(2). So long rows are folded first,
    then each row is cut into lanes that NumPy advances side by side, two bytes a step, and the lanes are
    joined in pairs by the map "skip that many zero bytes".

    Args:
        data: uint8 [rows, bytes].
        sizes: int [rows], where only so many bytes at the end of each row count and those before are 0.

    Returns:
        uint32 [rows].
    """
    rows, size = data.shape
    sizes = np.full(rows, size) if sizes is None else np.asarray(sizes)
    if rows > 1 and rows * size > 1 << 20:      # Work on what fits into the processor's cache.
        half = rows // 2
        return np.concatenate([crc32c(data[:half], sizes[:half]), crc32c(data[half:], sizes[half:])])
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
    initial = _skip_bytes(np.full(rows, 0xFFFFFFFF, np.uint32), sizes)
    return state ^ initial ^ np.uint32(0xFFFFFFFF)


def masked_crc32c(data: np.ndarray, sizes: np.ndarray | None = None) -> np.ndarray:
    """CRC-32C of the rows of `data` in the masked form of TFRecord files; see `crc32c`."""
    crc = crc32c(data, sizes)
    return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(_MASK_DELTA)


@functools.cache
def _byte_table() -> list[int]:
    return _step_zero_bytes(np.arange(256, dtype=np.uint32), 1).tolist()


def masked_crc32c_of_bytes(data: bytes) -> int:
    """The same for a few bytes: a plain loop, for which no arrays are made."""
    table, state = _byte_table(), 0xFFFFFFFF
    for byte in data:
        state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
    crc = state ^ 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF
