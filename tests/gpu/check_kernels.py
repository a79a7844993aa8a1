#!/usr/bin/env python3
"""Checks the CUDA kernels of custom_ops/src against NumPy, and times them; needs no TensorFlow.

    python tests/gpu/check_kernels.py               builds with nvcc; checks and times on the GPU
    python tests/gpu/check_kernels.py --emulate     builds for the CPU; the same checks, no times

Without a GPU it compiles and says so (exit status 0); without nvcc it says so. Exit status 1: a wrong result.
The emulation runs a block's threads one after the other: it finds wrong indices and formulas and most missing
barriers, but not what depends on real parallelism, nor errors of nvcc.
"""

import argparse
import contextlib
import ctypes
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
SOURCES = HERE.parent.parent / 'custom_ops' / 'src'
DTYPES = ('float32', 'float16', 'bfloat16', 'float64')  # In the order of StyleganDType.
SIZES = {'float32': 4, 'float16': 2, 'bfloat16': 2, 'float64': 8}
# Relative rounding of a stored number, smallest step, and error of the arithmetic in between.
PRECISION = {'float32': (2 ** -24, 0, 2e-6), 'float16': (2 ** -11, 2 ** -24, 2e-6),
             'bfloat16': (2 ** -8, 0, 2e-6), 'float64': (2 ** -53, 0, 2e-14)}
ACTS = ('linear', 'relu', 'lrelu', 'tanh', 'sigmoid', 'elu', 'selu', 'softplus', 'swish')
COPY, COPY_KERNEL, BIAS_ACT, UPFIRDN, EPILOGUE, EPILOGUE_GRAD = range(6)  # What harness_run takes.
GUARD = 256                                             # Bytes before and behind every buffer.


class CheckError(Exception):
    """A wrong result or a failed call."""


class BiasActArgs(ctypes.Structure):
    """StyleganFusedBiasAct of kernels.h."""

    _fields_ = [*((name, ctypes.c_void_p) for name in ('x', 'b', 'ref', 'y')),
                *((name, ctypes.c_int64) for name in ('size', 'bias_size', 'bias_step')),
                *((name, ctypes.c_int32) for name in ('act', 'grad', 'dtype')),
                ('alpha', ctypes.c_double), ('gain', ctypes.c_double)]


class UpFirDnArgs(ctypes.Structure):
    """StyleganUpFirDn2D of kernels.h."""

    _fields_ = [('x', ctypes.c_void_p), ('y', ctypes.c_void_p), ('k', ctypes.c_double * 256),
                *((name, ctypes.c_int32) for name in ('kh', 'kw', 'upx', 'upy', 'downx', 'downy', 'padx0',
                                                      'pady0')),
                *((name, ctypes.c_int64) for name in ('major', 'in_h', 'in_w', 'minor', 'out_h', 'out_w')),
                ('dtype', ctypes.c_int32)]


class EpilogueArgs(ctypes.Structure):
    """StyleganFilterNoiseBiasAct of kernels.h."""

    _fields_ = [('filter', UpFirDnArgs),
                *((name, ctypes.c_void_p) for name in ('factor', 'noise', 'bias', 'ref')),
                ('noise_major', ctypes.c_int64), ('act', ctypes.c_int32), ('grad', ctypes.c_int32),
                ('alpha', ctypes.c_double), ('gain', ctypes.c_double)]


class EpilogueGradArgs(ctypes.Structure):
    """StyleganNoiseBiasActGrad of kernels.h."""

    _fields_ = [*((name, ctypes.c_void_p) for name in ('v', 'x', 'factor', 'ref', 'dx', 'dfactor', 'dnoise',
                                                       'dbias', 'workspace')),
                *((name, ctypes.c_int64) for name in ('major', 'pixels', 'minor')),
                ('act', ctypes.c_int32), ('dtype', ctypes.c_int32),
                ('alpha', ctypes.c_double), ('gain', ctypes.c_double)]


class CopyArgs(ctypes.Structure):
    """CopyParams of harness.cu."""

    _fields_ = [('source', ctypes.c_void_p), ('target', ctypes.c_void_p), ('count', ctypes.c_int64)]


# Building.

def build(directory: str, emulate: bool, sanitize: bool = False) -> str:
    """Compiles kernels and harness into a library in `directory`; returns its path."""
    sources = [*sorted(map(str, SOURCES.glob('*.cu'))), str(HERE / 'harness.cu')]
    path = os.path.join(directory, 'kernels.so')
    if emulate:
        flags = ['-x', 'c++', '-std=c++17', '-O1', '-g', '-fPIC', '-w', '-DSTYLEGAN_CUDA_ON_CPU', f'-I{HERE}']
        if sanitize:
            flags += ['-fsanitize=address,undefined', '-fno-sanitize-recover=all', '-fno-omit-frame-pointer']
        compiler = os.environ.get('CXX', 'g++').split()
        link = [*compiler, '-shared', *(flag for flag in flags if 'sanitize' in flag)]
    else:
        flags = ['-O3', '-std=c++17', '-Xcompiler=-fPIC', f'-arch={"native" if has_gpu() else "all-major"}']
        compiler = [find_nvcc()]
        link = [*compiler, *flags, '-shared']
    objects = [os.path.join(directory, os.path.basename(source) + '.o') for source in sources]
    commands = [[*compiler, *flags, f'-I{SOURCES}', '-c', source, '-o', target]
                for source, target in zip(sources, objects, strict=True)]
    running = [subprocess.Popen(command) for command in commands]
    if any([process.wait() for process in running]):
        raise CheckError('the kernels do not compile')
    subprocess.run([*link, *objects, '-o', path], check=True)
    return path


def find_nvcc() -> str | None:
    """The path of nvcc, None where there is none."""
    homes = [os.environ.get(name) for name in ('CUDA_HOME', 'CUDA_PATH')] + ['/usr/local/cuda']
    return shutil.which('nvcc') or next(filter(None, (shutil.which('nvcc', path=os.path.join(home, 'bin'))
                                                      for home in homes if home)), None)


def has_gpu() -> bool:
    """Whether the driver lists a GPU."""
    if shutil.which('nvidia-smi') is None:
        return os.path.exists('/dev/nvidia0')
    listed = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and 'GPU' in listed.stdout


def rerun_with_sanitizer() -> None:
    """Starts this script again in a process in which the address sanitizer was loaded first."""
    library = subprocess.run([*os.environ.get('CXX', 'g++').split(), '-print-file-name=libasan.so'],
                             capture_output=True, text=True, check=True).stdout.strip()
    environment = {**os.environ, 'LD_PRELOAD': library, 'ASAN_OPTIONS': 'detect_leaks=0:halt_on_error=1'}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


# Numbers.

def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """float64 → the nearest numbers of `dtype` as stored (bfloat16: uint16)."""
    if dtype != 'bfloat16':
        return values.astype(dtype)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7fff + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7fff), rounded)


def decode(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Stored numbers → float64."""
    if dtype == 'bfloat16':
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return stored.astype(np.float64)


def compare(got: np.ndarray, want: np.ndarray, magnitude: np.ndarray, dtype: str) -> None:
    """CheckError unless got is want, rounded. magnitude: the size of the terms that were added up."""
    rounding, step, arithmetic = PRECISION[dtype]
    allowed = 1.01 * rounding * np.abs(want) + step + arithmetic * magnitude
    finite = np.isfinite(want)
    with np.errstate(invalid='ignore'):
        close = np.abs(got - want) <= allowed
    wrong = ~np.where(finite, close, (got == want) | (np.isnan(got) & np.isnan(want)))
    if wrong.any():
        at = tuple(int(i[0]) for i in np.nonzero(wrong))
        raise CheckError(f'{wrong.sum()} of {wrong.size} numbers are wrong, the first at {at}: '
                         f'got {got[at]:.9g}, expected {want[at]:.9g} ± {allowed[at]:.2g}')


# References, in float64.

def activation(v: np.ndarray, act: str, alpha: float) -> np.ndarray:
    """The activation function without gain."""
    scale, slope = 1.0507009873554805, 1.6732632423543772
    return {
        'linear': lambda: v,
        'relu': lambda: np.maximum(v, 0),
        'lrelu': lambda: np.where(v < 0, v * alpha, v),
        'tanh': lambda: np.tanh(v),
        'sigmoid': lambda: 1 / (1 + np.exp(-v)),
        'elu': lambda: np.where(v < 0, np.expm1(np.minimum(v, 0)), v),
        'selu': lambda: scale * np.where(v < 0, slope * np.expm1(np.minimum(v, 0)), v),
        'softplus': lambda: np.logaddexp(v, 0),
        'swish': lambda: v / (1 + np.exp(-v)),
    }[act]()


def argument(y: np.ndarray, act: str, alpha: float) -> np.ndarray:
    """The inverse of `activation`, where the derivative there depends on it."""
    selu = 1.0507009873554805 * 1.6732632423543772
    with np.errstate(all='ignore'):
        return {
            'linear': lambda: y,
            'relu': lambda: np.where(y > 0, y, -1),
            'lrelu': lambda: np.where(y > 0, y, y / alpha),
            'tanh': lambda: np.arctanh(y),
            'sigmoid': lambda: -np.log(1 / y - 1),
            'elu': lambda: np.where(y < 0, np.log1p(y), y),
            'selu': lambda: np.where(y < 0, np.log1p(y / selu), y),
            'softplus': lambda: np.log(np.expm1(y)),
            'swish': lambda: y,  # Is the argument already.
        }[act]()


def derivative(v: np.ndarray, act: str, alpha: float, order: int) -> np.ndarray:
    """The first or second derivative of `activation` at v, by differences where it is smooth."""
    if act in ('linear', 'relu', 'lrelu') and order == 2:
        return np.zeros_like(v)
    step = 1e-3
    # Not across the kink at 0, to either side of which the functions are smooth.
    center = np.where(v < 0, np.minimum(v, -4 * step), np.maximum(v, 4 * step)) if act != 'swish' else v
    near = [activation(center + i * step, act, alpha) for i in range(-3, 4)]
    if order == 1:
        rates = [-1 / 60, 3 / 20, -3 / 4, 0, 3 / 4, -3 / 20, 1 / 60]
    else:
        rates = [1 / 90, -3 / 20, 3 / 2, -49 / 18, 3 / 2, -3 / 20, 1 / 90]
    return sum(rate * value for rate, value in zip(rates, near, strict=True)) / step ** order


def upfirdn(x: np.ndarray, k: np.ndarray, up: tuple, down: tuple, pad0: tuple, out: tuple) -> np.ndarray:
    """upfirdn_2d of x [major, h, w, minor] as it is defined; up, down, pad0, out: (along y, along x)."""
    major, h, w, minor = x.shape
    zeros = np.zeros([major, h * up[0], w * up[1], minor])
    zeros[:, ::up[0], ::up[1]] = x
    y = np.zeros([major, *out, minor])
    sizes = [(out[i] - 1) * down[i] + k.shape[i] for i in range(2)]
    padded = np.zeros([major, *sizes, minor])
    first = [max(pad, 0) for pad in pad0]
    zeros = zeros[:, max(-pad0[0], 0):, max(-pad0[1], 0):]
    zeros = zeros[:, :max(sizes[0] - first[0], 0), :max(sizes[1] - first[1], 0)]
    padded[:, first[0]:first[0] + zeros.shape[1], first[1]:first[1] + zeros.shape[2]] = zeros
    for i, j in np.ndindex(*k.shape):
        rows = slice(k.shape[0] - 1 - i, sizes[0] - i, down[0])
        columns = slice(k.shape[1] - 1 - j, sizes[1] - j, down[1])
        y += k[i, j] * padded[:, rows, columns]
    return y


def upfirdn_adjoint(dy: np.ndarray, k: np.ndarray, up: tuple, down: tuple, pad0: tuple,
                    shape: tuple) -> np.ndarray:
    """The gradient of upfirdn for its input of `shape`: every output gives to what it came from."""
    dx = np.zeros(shape)
    for i, j in np.ndindex(*k.shape):
        rows = np.arange(dy.shape[1]) * down[0] + k.shape[0] - 1 - i - pad0[0]
        columns = np.arange(dy.shape[2]) * down[1] + k.shape[1] - 1 - j - pad0[1]
        inside = [(at % factor == 0) & (at >= 0) & (at < size * factor)
                  for at, factor, size in ((rows, up[0], shape[1]), (columns, up[1], shape[2]))]
        to = np.ix_(range(shape[0]), rows[inside[0]] // up[0], columns[inside[1]] // up[1])
        dx[to] += k[i, j] * dy[:, inside[0]][:, :, inside[1]]
    return dx


# Running.

class Device:
    """The library with its device memory."""

    def __init__(self, path: str):
        self.library = ctypes.CDLL(path)
        name, capability, free = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int64()
        self.call('device', name, ctypes.byref(capability), ctypes.byref(free))
        self.name, self.capability, self.free_bytes = name.value.decode(), capability.value, free.value

    def call(self, name: str, *args) -> None:
        """harness_<name>(...); CheckError with its error."""
        function = getattr(self.library, f'harness_{name}')
        function.restype = ctypes.c_char_p
        error = function(*args)
        if error is not None:
            raise CheckError(error.decode())

    def copy(self, to: int, source: int, size: int, direction: int) -> None:
        """direction: 0 = to the device, 1 = from it, 2 = within it."""
        self.call('copy', ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_int64(size), direction)

    def run(self, what: int, args: ctypes.Structure) -> None:
        self.call('run', what, ctypes.byref(args))

    def workspace(self, args: EpilogueGradArgs) -> int:
        """Bytes that the gradient needs besides its outputs."""
        size = ctypes.c_int64()
        self.call('workspace', ctypes.byref(args), ctypes.byref(size))
        return size.value

    def time(self, what: int, args: ctypes.Structure, repeats: int = 20) -> float:
        """Median seconds."""
        ms = (ctypes.c_float * repeats)()
        self.call('time', what, ctypes.byref(args), repeats, ms)
        return float(np.median(ms)) / 1e3


class Buffer:
    """Device memory between two guard zones; used as a context. shift: bytes from a 16-byte boundary."""

    def __init__(self, device: Device, content: np.ndarray | int, shift: int = 0):
        self.device, self.content = device, content
        self.size = content if isinstance(content, int) else content.nbytes
        self.shift = shift
        self.base = ctypes.c_void_p()

    def __enter__(self) -> 'Buffer':
        self.device.call('alloc', ctypes.byref(self.base), ctypes.c_int64(self.size + self.shift + 2 * GUARD))
        # NaN in every type: what is read outside, and what is not written, shows.
        self.device.call('fill', self.base, 0xff, ctypes.c_int64(self.size + self.shift + 2 * GUARD))
        if not isinstance(self.content, int):
            content = np.ascontiguousarray(self.content)
            self.device.copy(self.address, content.ctypes.data, self.size, 0)
        return self

    def __exit__(self, *_) -> None:
        self.device.call('free', self.base)

    @property
    def address(self) -> int:
        return self.base.value + GUARD + self.shift

    def read(self, dtype: str) -> np.ndarray:
        """The content as float64; CheckError when a guard zone was written."""
        return decode(self.check_guards().view(np.uint16 if dtype == 'bfloat16' else dtype), dtype)

    def check_guards(self) -> np.ndarray:
        """The content as bytes; CheckError when a guard zone was written."""
        raw = np.empty(self.size + self.shift + 2 * GUARD, np.uint8)
        self.device.copy(raw.ctypes.data, self.base.value, raw.size, 1)
        if (raw[:GUARD + self.shift] != 0xff).any() or (raw[GUARD + self.shift + self.size:] != 0xff).any():
            raise CheckError('numbers before or behind the output were overwritten')
        return raw[GUARD + self.shift:GUARD + self.shift + self.size].copy()


def run_upfirdn(device: Device, x: np.ndarray, k: np.ndarray, up: tuple, down: tuple, pad0: tuple, out: tuple,
                dtype: str, shift: int = 0) -> np.ndarray:
    """upfirdn_2d by the kernels; x: stored numbers."""
    args = UpFirDnArgs(kh=k.shape[0], kw=k.shape[1], upy=up[0], upx=up[1], downy=down[0], downx=down[1],
                       pady0=pad0[0], padx0=pad0[1], major=x.shape[0], in_h=x.shape[1], in_w=x.shape[2],
                       minor=x.shape[3], out_h=out[0], out_w=out[1], dtype=DTYPES.index(dtype))
    args.k[:k.size] = k.ravel().tolist()
    shape = [x.shape[0], *out, x.shape[3]]
    size = int(np.prod(shape)) * SIZES[dtype]
    with Buffer(device, x, shift) as source, Buffer(device, size, shift) as target:
        args.x, args.y = source.address, target.address
        device.run(UPFIRDN, args)
        return target.read(dtype).reshape(shape)


# Cases.

def filters(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The filters of StyleGAN and one of every other class."""
    bilinear = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16
    return {
        '4x4': bilinear, '3x3': np.outer([1, 2, 1], [1, 2, 1]) / 16, '2x2': np.ones([2, 2]),
        '1x1': np.full([1, 1], 1.5),
        '4x4 outer': np.outer(rng.normal(size=4), rng.normal(size=4)), '4x4 any': rng.normal(size=[4, 4]),
        '4x1': rng.normal(size=[4, 1]), '2x3': rng.normal(size=[2, 3]), '5x6': rng.normal(size=[5, 6]),
        '12x12': rng.normal(size=[12, 12]),
    }


def upfirdn_cases(rng: np.random.Generator, quick: bool) -> Iterator[tuple[str, Callable]]:
    """(description, check(device)) of upfirdn_2d."""
    factors = [((1, 1), (1, 1)), ((2, 2), (1, 1)), ((1, 1), (2, 2)), ((3, 2), (1, 1)), ((2, 1), (1, 3)),
               ((2, 2), (2, 2))]
    # [major, h, w, minor]: NCHW of small, odd and larger images; pixels of whole vectors and of others.
    shapes = [(3, 5, 7, 1), (67, 4, 4, 1), (2, 33, 131, 1), (1, 70, 264, 1), (2, 9, 11, 8), (1, 35, 37, 16),
              (2, 17, 19, 40), (1, 6, 5, 136), (2, 21, 23, 3), (1, 13, 70, 5), (2, 8, 8, 17), (2, 1, 1, 8),
              (3, 1, 1, 1)]
    all_filters = filters(rng)
    cases = list(itertools.product(DTYPES, shapes, factors, all_filters))
    rng.shuffle(cases)
    if quick:  # Every dtype with every kind of shape and with every filter, each with all factors.
        first = {}
        for case in cases:
            dtype, shape, factor, name = case
            first.setdefault((dtype, shape[3] % 8, factor), case)
            first.setdefault((dtype, shape[3] == 1, factor if factor in factors[:3] else None, name), case)
        cases = list(first.values())
    for dtype, shape, (up, down), name in cases:
        k = all_filters[name].astype(np.float32).astype(np.float64)
        pad0 = tuple(int(p) for p in rng.integers(-3, 5, size=2))
        pad1 = tuple(int(p) for p in rng.integers(-2, 4, size=2))
        padded = [shape[1 + i] * up[i] + pad0[i] + pad1[i] for i in range(2)]
        out = tuple((size - taps) // d + 1 if size >= taps else 1
                    for size, taps, d in zip(padded, k.shape, down, strict=True))
        shift = SIZES[dtype] * int(rng.integers(1, 4)) if rng.random() < 0.2 else 0
        yield (f'upfirdn_2d {dtype} {shape} k {name} up {up} down {down} pad0 {pad0} → {out}, '
               f'{shift} bytes off',
               lambda device, a=(shape, k, up, down, pad0, out, dtype, shift): check_upfirdn(device, rng, *a))
    shapes = [(2, 9, 10, 1), (1, 9, 10, 8), (1, 9, 10, 3)]
    for dtype, shape, (up, down) in itertools.product(DTYPES, shapes, factors[:3]):
        yield (f'upfirdn_2d {dtype} {shape} up {up} down {down}, infinite input',
               lambda device, a=(shape, up, down, dtype): check_infinite(device, rng, *a))


def check_upfirdn(device, rng, shape, k, up, down, pad0, out, dtype, shift) -> None:
    """Forward, gradient, gradient of the gradient."""
    x = encode(rng.normal(size=shape), dtype)
    y = run_upfirdn(device, x, k, up, down, pad0, out, dtype, shift)
    values = decode(x, dtype)
    compare(y, upfirdn(values, k, up, down, pad0, out),
            upfirdn(abs(values), abs(k), up, down, pad0, out), dtype)
    # The gradient is the operation with up and down exchanged, the filter flipped and other pads.
    back = tuple(k.shape[i] - 1 - pad0[i] for i in range(2))
    flipped = k[::-1, ::-1]
    dy = encode(rng.normal(size=[shape[0], *out, shape[3]]), dtype)
    dx = run_upfirdn(device, dy, flipped, down, up, back, shape[1:3], dtype, shift)
    values = decode(dy, dtype)
    compare(dx, upfirdn_adjoint(values, k, up, down, pad0, shape),
            upfirdn_adjoint(abs(values), abs(k), up, down, pad0, shape), dtype)
    # Twice the gradient is the operation again: <d, gradient(dy)> = <forward(d), dy>.
    d = encode(rng.normal(size=shape), dtype)
    again = tuple(k.shape[i] - 1 - back[i] for i in range(2))
    twice = run_upfirdn(device, d, flipped[::-1, ::-1], up, down, again, out, dtype, shift)
    left, right = np.sum(decode(d, dtype) * dx), np.sum(twice * values)
    scale = np.sqrt(np.sum(dx ** 2) + np.sum(twice ** 2)) * PRECISION[dtype][0] * 8 + PRECISION[dtype][2] * (
        np.sum(abs(decode(d, dtype) * dx)) + np.sum(abs(twice * values)))
    if not abs(left - right) <= scale:
        raise CheckError(f'the gradient is not the adjoint: {left:.9g} and {right:.9g}')


def check_infinite(device, rng, shape, up, down, dtype) -> None:
    """An infinite input reaches the outputs of its own taps and no other: filters are not padded by 0·∞."""
    k = rng.uniform(0.5, 1, size=[3, 2]).astype(np.float32).astype(np.float64)
    values = rng.normal(size=shape)
    values[:, 4, 5] = np.inf
    x = encode(values, dtype)
    out = tuple((shape[1 + i] * up[i] + 3 - k.shape[i]) // down[i] + 1 for i in range(2))
    y = run_upfirdn(device, x, k, up, down, (2, 1), out, dtype)
    hit = upfirdn(np.isinf(values).astype(np.float64), k, up, down, (2, 1), out) > 0
    want = upfirdn(np.where(np.isinf(values), 0, decode(x, dtype)), k, up, down, (2, 1), out)
    compare(y, np.where(hit, np.inf, want), np.where(hit, 1, abs(want) + 4), dtype)


def bias_act_cases(rng: np.random.Generator, quick: bool) -> Iterator[tuple[str, Callable]]:
    """(description, check(device)) of fused_bias_act: (size, bias_size, bias_step), 0 = no bias."""
    layouts = [(1, 0, 1), (7, 7, 1), (4096 * 3 + 5, 0, 1), (64 * 40, 40, 1), (33 * 9 * 3, 3, 1),
               (5 * 16 * 24, 24, 16), (5 * 7 * 9, 7, 9), (3 * 3 * 20000, 3, 20000), (2 * 4099 * 4, 4099, 4),
               (6 * 1027, 6, 1027)]
    for dtype, (number, act), grad in itertools.product(DTYPES, enumerate(ACTS, 1), range(3)):
        chosen = rng.permutation(len(layouts))[:3] if quick else range(len(layouts))
        for layout in (layouts[i] for i in chosen):
            shift = SIZES[dtype] if rng.random() < 0.2 else 0
            gain = float(rng.choice([1, 2 ** 0.5, 0.5, -1.25]))
            in_place = bool(rng.random() < 0.3)
            text = (f'fused_bias_act {dtype} {act} grad {grad} size, bias_size, bias_step {layout} '
                    f'gain {gain:.3g}, {shift} bytes off{", in place" if in_place else ""}')
            case = number, grad, layout, gain, dtype, shift, in_place
            yield text, lambda device, case=case: check_bias_act(device, rng, *case)


def check_bias_act(device, rng, number, grad, layout, gain, dtype, shift, in_place) -> None:
    size, bias_size, bias_step = layout
    act, alpha = ACTS[number - 1], 0.2
    x, b = encode(rng.normal(size=size) * 2, dtype), encode(rng.normal(size=bias_size), dtype)
    if bias_size and grad == 0:
        x[::5] = 0  # Also arguments of exactly the bias.
    v = decode(x, dtype)
    if bias_size:
        v = v + decode(b, dtype)[np.arange(size) // bias_step % bias_size]
    point = rng.normal(size=size) * 2
    ref = encode(point if act == 'swish' else activation(point, act, alpha) * gain, dtype)
    if grad == 0:
        want = activation(v, act, alpha) * gain
    else:
        at = decode(ref, dtype)
        at = argument(at if act == 'swish' else at / gain, act, alpha)
        usable = np.isfinite(at)  # Outputs that are rounded to the end of the range have no argument.
        want = np.where(usable, v * derivative(np.where(usable, at, 0), act, alpha, grad) * gain, np.nan)
    args = BiasActArgs(size=size, bias_size=bias_size, bias_step=bias_step, act=number, grad=grad,
                       dtype=DTYPES.index(dtype), alpha=alpha, gain=gain)
    with Buffer(device, x, shift) as source, Buffer(device, b) as bias, \
            Buffer(device, ref, shift) as at_ref, Buffer(device, x.nbytes, shift) as target:
        args.x, args.y = source.address, (source if in_place else target).address
        args.b, args.ref = bias.address if bias_size else None, at_ref.address if grad else None
        device.run(BIAS_ACT, args)
        y = (source if in_place else target).read(dtype)
    magnitude = (abs(v) + 1) * (abs(gain) + abs(1 / gain))
    if grad == 0:
        compare(y, want, magnitude, dtype)
        return
    if not np.isfinite(y).all():
        raise CheckError('an output was not written or is not finite')
    # Not next to a kink, nor where the output says little of the argument; differences are less exact.
    usable &= (abs(at) > 5e-3) & (abs(at) < 12)
    compare(y[usable], want[usable], magnitude[usable] * (1e6 if dtype == 'float64' else 1), dtype)


def epilogue_cases(rng: np.random.Generator, quick: bool) -> Iterator[tuple[str, Callable]]:
    """(description, check(device)) of filter_noise_bias_act and of its gradient."""
    # [major, h, w, minor]: few and many pixels and channels, vectors and not; several tiles, warps, chunks.
    shapes = [(2, 9, 11, 8), (3, 5, 7, 40), (1, 35, 37, 16), (2, 6, 5, 136), (1, 3, 4, 520), (2, 2, 3, 1100),
              (2, 13, 7, 3), (1, 70, 90, 4), (5, 1, 1, 64), (2, 8, 9, 17), (1, 4, 3, 300), (2, 1, 70, 256)]
    all_filters = {'none': None, **{name: k for name, k in filters(rng).items() if name in
                                    ('4x4', '4x4 any', '3x3', '5x6')}}
    cases = list(itertools.product(DTYPES, shapes, all_filters, ACTS[:3], (0, 1)))
    rng.shuffle(cases)
    if quick:
        first = {}
        for case in cases:
            dtype, shape, name, act, grad = case
            first.setdefault((dtype, shape, name in ('none', '4x4') and name), case)
            first.setdefault((dtype, name, act, grad), case)
        cases = list(first.values())
    for dtype, shape, name, act, grad in cases:
        k = all_filters[name]
        k = None if k is None else k.astype(np.float32).astype(np.float64)
        given = {part: bool(rng.random() < 0.75) for part in ('factor', 'noise', 'bias')}
        options = {'one_noise': bool(rng.random() < 0.3),
                   'gain': float(rng.choice([1, 2 ** 0.5, 0.5, -1.25])),
                   'shift': SIZES[dtype] if rng.random() < 0.15 else 0}
        text = f'filter_noise_bias_act {dtype} {shape} k {name} {act} grad {grad} {given} {options}'
        yield text, lambda device, a=(dtype, shape, k, act, grad, given), o=options: check_epilogue(
            device, rng, *a, **o)
        text = f'noise_bias_act_grad {dtype} {shape} {act} {given} {options}'
        yield text, lambda device, a=(dtype, shape, act, given), o=options: check_epilogue_grad(
            device, rng, *a, **o)


def check_epilogue(device, rng, dtype, shape, k, act, grad, given, one_noise, gain, shift) -> None:
    major, h, w, minor = shape
    pad0 = (0, 0) if k is None else tuple(int(p) for p in rng.integers(-1, 4, size=2))
    out = (h, w) if k is None else tuple(max(edge + pad + int(rng.integers(0, 3)) - taps + 1, 1)
                                         for edge, pad, taps in zip((h, w), pad0, k.shape, strict=True))
    numbers = {'x': shape, 'factor': (major, minor), 'noise': (1 if one_noise else major, *out, 1),
               'bias': (minor,), 'ref': (major, *out, minor)}
    stored = {name: encode(rng.normal(size=size), dtype) for name, size in numbers.items()}
    value = {name: decode(content, dtype) for name, content in stored.items()}
    same = ((1, 1), (1, 1), pad0, out)
    v, size = value['x'], abs(value['x'])
    if k is not None:
        v, size = upfirdn(v, k, *same), upfirdn(size, abs(k), *same)
    if given['factor']:
        v, size = v * value['factor'][:, None, None], size * abs(value['factor'][:, None, None])
    for name in ('noise', 'bias'):
        if given[name]:
            v, size = v + value[name], size + abs(value[name])
    alpha = 0.2
    slope = {'linear': 1, 'relu': 0, 'lrelu': alpha}[act]
    if grad:
        want = v * np.where(value['ref'] / gain > 0, 1, slope) * gain
    else:
        want = activation(v, act, alpha) * gain
    args = EpilogueArgs(noise_major=1 if one_noise else major, act=ACTS.index(act) + 1, grad=grad,
                        alpha=alpha, gain=gain)
    f = args.filter
    f.upx = f.upy = f.downx = f.downy = 1
    f.pady0, f.padx0 = pad0
    f.major, f.in_h, f.in_w, f.minor, f.out_h, f.out_w = major, h, w, minor, *out
    f.dtype = DTYPES.index(dtype)
    if k is not None:
        f.kh, f.kw = k.shape
        f.k[:k.size] = k.ravel().tolist()
    with contextlib.ExitStack() as stack:
        at = {name: stack.enter_context(Buffer(device, content, shift)).address
              for name, content in stored.items()}
        target = stack.enter_context(Buffer(device, want.size * SIZES[dtype], shift))
        f.x, f.y = at['x'], target.address
        for name in ('factor', 'noise', 'bias'):
            setattr(args, name, at[name] if given[name] else None)
        args.ref = at['ref'] if grad and act != 'linear' else None
        device.run(EPILOGUE, args)
        y = target.read(dtype).reshape(want.shape)
    compare(y, want, size * abs(gain), dtype)


def check_epilogue_grad(device, rng, dtype, shape, act, given, one_noise, gain, shift) -> None:
    major, h, w, minor = shape
    numbers = {'v': shape, 'x': shape, 'factor': (major, minor), 'ref': shape}
    stored = {name: encode(rng.normal(size=size), dtype) for name, size in numbers.items()}
    value = {name: decode(content, dtype) for name, content in stored.items()}
    slope = {'linear': 1, 'relu': 0, 'lrelu': 0.2}[act]
    g = value['v'] * np.where(value['ref'] / gain > 0, 1, slope) * gain
    wanted = {'dx': (g * (value['factor'][:, None, None] if given['factor'] else 1), abs(g)),
              'dfactor': ((g * value['x']).sum(axis=(1, 2)), abs(g * value['x']).sum(axis=(1, 2))),
              'dnoise': (g.sum(axis=3), abs(g).sum(axis=3)),
              'dbias': (g.sum(axis=(0, 1, 2)), abs(g).sum(axis=(0, 1, 2)))}
    wants = {name: given.get(name[1:], True) for name in wanted}
    args = EpilogueGradArgs(major=major, pixels=h * w, minor=minor, act=ACTS.index(act) + 1,
                            dtype=DTYPES.index(dtype), alpha=0.2, gain=gain)
    with contextlib.ExitStack() as stack:
        at = {name: stack.enter_context(Buffer(device, content, shift)).address
              for name, content in stored.items()}
        targets = {name: stack.enter_context(Buffer(device, want.size * SIZES[dtype], shift))
                   for name, (want, _) in wanted.items()}
        args.v, args.ref = at['v'], at['ref'] if act != 'linear' else None
        args.x, args.factor = (at[name] if given['factor'] else None for name in ('x', 'factor'))
        for name, target in targets.items():
            setattr(args, name, target.address if wants[name] else None)
        workspace = stack.enter_context(Buffer(device, device.workspace(args)))
        args.workspace = workspace.address
        device.run(EPILOGUE_GRAD, args)
        for name, (want, magnitude) in wanted.items():
            if wants[name]:
                try:
                    compare(targets[name].read(dtype).reshape(want.shape), want, magnitude, dtype)
                except CheckError as error:
                    raise CheckError(f'{name}: {error}') from None
        workspace.check_guards()


def check_huge(device: Device, rng: np.random.Generator) -> str:
    """More than 2^31 elements: a period of random numbers, many times over, gives a period of outputs."""
    period, repeats = 8 * 67 * 69 * 8, (2 ** 31 + 2 ** 28) // (8 * 67 * 69 * 8)
    needed = 2 * 2 * period * repeats + 2 ** 30
    if device.free_bytes < needed:
        return f'needs {needed / 2 ** 30:.0f} GiB of memory'
    x, b = encode(rng.normal(size=period), 'float16'), encode(rng.normal(size=8), 'float16')
    values = decode(x, 'float16')
    with Buffer(device, x.nbytes * repeats) as source, Buffer(device, x.nbytes * repeats) as target, \
            Buffer(device, b) as bias:
        device.copy(source.address, x.ctypes.data, x.nbytes, 0)
        done = 1
        while done < repeats:
            count = min(done, repeats - done)
            device.copy(source.address + done * x.nbytes, source.address, count * x.nbytes, 2)
            done += count

        def check(want: np.ndarray, magnitude: np.ndarray) -> None:
            y = np.empty_like(x)
            for at in (0, 2 ** 30 // period, 2 ** 31 // period, repeats - 1):
                device.copy(y.ctypes.data, target.address + at * y.nbytes, y.nbytes, 1)
                compare(decode(y, 'float16'), want.ravel(), magnitude.ravel(), 'float16')
            device.call('fill', ctypes.c_void_p(target.address), 0xff, ctypes.c_int64(target.size))

        args = BiasActArgs(x=source.address, b=bias.address, y=target.address, size=period * repeats,
                           bias_size=8, bias_step=1, act=3, grad=0, dtype=1, alpha=0.2, gain=1.5)
        device.run(BIAS_ACT, args)
        v = values + np.tile(decode(b, 'float16'), period // 8)
        check(activation(v, 'lrelu', 0.2) * 1.5, abs(v) + 1)
        # As pixels of vectors, as rows, by the general kernel; outputs as large as inputs.
        for minor, taps in ((8, 4), (1, 4), (8, 5), (1, 5)):
            k = rng.normal(size=[taps, taps]).astype(np.float32).astype(np.float64)
            x4 = values.reshape(-1, 67, 69, minor)
            args = UpFirDnArgs(kh=taps, kw=taps, upx=1, upy=1, downx=1, downy=1, padx0=2, pady0=2,
                               major=len(x4) * repeats, in_h=67, in_w=69, minor=minor, out_h=67, out_w=69,
                               x=source.address, y=target.address, dtype=1)
            args.k[:k.size] = k.ravel().tolist()
            device.run(UPFIRDN, args)
            same = ((1, 1), (1, 1), (2, 2), (67, 69))
            check(upfirdn(x4, k, *same), upfirdn(abs(x4), abs(k), *same))
    return ''


# Times.

def timing_cases() -> Iterator[tuple[str, str, dict]]:
    """(layout, dtype, what) of sizes that fill a GPU."""
    for dtype, layout in itertools.product(DTYPES[:3], ('NHWC', 'NCHW')):
        n = 32 if SIZES[dtype] == 2 else 16
        for name, act, grad in (('bias lrelu', 3, 0), ('bias lrelu grad', 3, 1), ('bias swish', 9, 0),
                                ('bias tanh', 4, 0)):
            yield layout, dtype, {'name': name, 'act': act, 'grad': grad, 'shape': (n, 256, 256, 64)}
        for name, shape, up, down, pad in (
                ('blur 4x4', (n, 257, 257, 64), 1, 1, (1, 1)),
                ('its gradient', (n, 256, 256, 64), 1, 1, (2, 2)),
                ('up 2', (n, 128, 128, 64), 2, 1, (2, 1)), ('down 2', (n, 256, 256, 64), 1, 2, (1, 1)),
                ('up 2 RGB', (n * 2, 512, 512, 3), 2, 1, (2, 1)),
                ('down 2 RGB', (n * 2, 1024, 1024, 3), 1, 2, (1, 1))):
            yield layout, dtype, {'name': name, 'shape': shape, 'up': up, 'down': down, 'pad': pad}
    for dtype, (name, what, blur) in itertools.product(DTYPES[:3], (
            ('factor noise bias lrelu', EPILOGUE, False), ('blur factor noise bias lrelu', EPILOGUE, True),
            ('gradient of all but blur', EPILOGUE_GRAD, False))):
        n = 32 if SIZES[dtype] == 2 else 16
        yield 'NHWC', dtype, {'name': name, 'epilogue': what, 'blur': blur, 'shape': (n, 256, 256, 64)}


def time_cases(device: Device, rng: np.random.Generator) -> list[dict]:
    """One row per case: time, bandwidth, share of the copy bandwidth; PyTorch's time where it is there."""
    torch = import_torch()
    copies = {}
    with Buffer(device, 2 ** 29) as source, Buffer(device, 2 ** 29) as target:
        args = CopyArgs(source=source.address, target=target.address, count=2 ** 25)
        for name, what in (('cudaMemcpy', COPY), ('copy kernel', COPY_KERNEL)):
            copies[name] = 2 ** 30 / device.time(what, args)
    rows = [{'name': name, 'GB/s': speed / 1e9, '% of copy': 100 * speed / max(copies.values())}
            for name, speed in copies.items()]
    noise = rng.normal(size=2 ** 20)
    for layout, dtype, case in timing_cases():
        n, h, w, c = case['shape']
        data = encode(np.resize(noise, n * h * w * c), dtype)
        time_case = time_epilogue if 'epilogue' in case else time_bias_act if 'act' in case else time_upfirdn
        seconds, moved = time_case(device, layout, dtype, case, data)
        row = {'name': case['name'], 'layout': layout, 'dtype': dtype,
               'shape': 'x'.join(map(str, (n, h, w, c))), 'us': seconds * 1e6, 'GB/s': moved / seconds / 1e9,
               '% of copy': 100 * moved / seconds / max(copies.values())}
        if torch is not None:
            try:
                row['PyTorch us'] = time_torch(torch, layout, dtype, case) * 1e6
            except RuntimeError as error:  # Out of memory, a type that it does not do.
                row['PyTorch us'] = str(error).partition('\n')[0][:40]
        rows.append(row)
    return rows


def time_bias_act(device: Device, layout: str, dtype: str, case: dict,
                  data: np.ndarray) -> tuple[float, int]:
    """(median seconds, bytes moved)."""
    _, h, w, c = case['shape']
    args = BiasActArgs(size=data.size, bias_size=c, bias_step=1 if layout == 'NHWC' else h * w,
                       act=case['act'], grad=case['grad'], dtype=DTYPES.index(dtype), alpha=0.2,
                       gain=2 ** 0.5)
    with Buffer(device, data) as x, Buffer(device, data.nbytes) as y, Buffer(device, data[:c]) as b:
        args.x, args.b, args.y = x.address, b.address, y.address
        if case['grad']:  # Of three arrays.
            args.x, args.b, args.ref = y.address, None, x.address
        return device.time(BIAS_ACT, args), data.nbytes * (3 if case['grad'] else 2)


def time_upfirdn(device: Device, layout: str, dtype: str, case: dict,
                 data: np.ndarray) -> tuple[float, int]:
    """(median seconds, bytes moved)."""
    n, h, w, c = case['shape']
    up, down, pad = case['up'], case['down'], case['pad']
    out = tuple((edge * up + sum(pad) - 4) // down + 1 for edge in (h, w))
    args = UpFirDnArgs(upx=up, upy=up, downx=down, downy=down, padx0=pad[0], pady0=pad[0], major=n, in_h=h,
                       in_w=w, minor=c, out_h=out[0], out_w=out[1], dtype=DTYPES.index(dtype))
    if layout == 'NCHW':
        args.major, args.minor = n * c, 1
    set_blur(args, up)
    size = n * c * out[0] * out[1] * SIZES[dtype]
    with Buffer(device, data) as x, Buffer(device, size) as y:
        args.x, args.y = x.address, y.address
        return device.time(UPFIRDN, args), data.nbytes + size


def set_blur(args: UpFirDnArgs, up: int = 1) -> None:
    args.kh = args.kw = 4
    args.k[:16] = (np.outer([1, 3, 3, 1], [1, 3, 3, 1]) * up ** 2 / 64).ravel().tolist()


def time_epilogue(device: Device, _: str, dtype: str, case: dict,
                  data: np.ndarray) -> tuple[float, int]:
    """(median seconds, bytes moved), those of noise, factors and sums left out."""
    n, h, w, c = case['shape']
    options = dict(act=3, alpha=0.2, gain=2 ** 0.5)
    with contextlib.ExitStack() as stack:
        x, factor, noise, bias = (stack.enter_context(Buffer(device, part)).address for part in (
            data, data[:n * c], data[:n * h * w], data[:c]))
        y = stack.enter_context(Buffer(device, data.nbytes)).address
        if case['epilogue'] == EPILOGUE:
            args = EpilogueArgs(factor=factor, noise=noise, bias=bias, noise_major=n, **options)
            f = args.filter
            f.x, f.y, f.upx, f.upy, f.downx, f.downy, f.dtype = x, y, 1, 1, 1, 1, DTYPES.index(dtype)
            f.major, f.in_h, f.in_w, f.minor, f.out_h, f.out_w = n, h, w, c, h, w
            if case['blur']:
                f.padx0 = f.pady0 = 2
                set_blur(f)
            return device.time(EPILOGUE, args), 2 * data.nbytes
        v = stack.enter_context(Buffer(device, data)).address
        ref = stack.enter_context(Buffer(device, data)).address
        sums = [stack.enter_context(Buffer(device, size * SIZES[dtype])).address
                for size in (n * c, n * h * w, c)]
        args = EpilogueGradArgs(v=v, x=x, factor=factor, ref=ref, dx=y, dfactor=sums[0], dnoise=sums[1],
                                dbias=sums[2], major=n, pixels=h * w, minor=c, dtype=DTYPES.index(dtype),
                                **options)
        args.workspace = stack.enter_context(Buffer(device, device.workspace(args))).address
        return device.time(EPILOGUE_GRAD, args), 4 * data.nbytes


def import_torch():
    """PyTorch if it is there and sees a GPU, else None."""
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def time_torch(torch, layout: str, dtype: str, case: dict) -> float:
    """Median seconds of the same operation composed in PyTorch."""
    n, h, w, c = case['shape']
    functional = torch.nn.functional
    x = torch.randn(n, c, h, w, device='cuda').to(getattr(torch, dtype))
    if layout == 'NHWC':
        x = x.to(memory_format=torch.channels_last)
    b, ref = torch.randn(1, c, 1, 1, device='cuda').to(x.dtype), torch.randn_like(x)
    taps = torch.tensor([1., 3., 3., 1.], device='cuda')
    weight = (taps[:, None] * taps * (case.get('up', 1) ** 2 / 64)).to(x.dtype).repeat(c, 1, 1, 1)
    if 'epilogue' in case:
        factor = torch.randn(n, c, 1, 1, device='cuda').to(x.dtype)
        noise = torch.randn(n, 1, h, w, device='cuda').to(x.dtype)
        if case['epilogue'] == EPILOGUE:
            def run():
                v = x
                if case['blur']:
                    v = functional.conv2d(functional.pad(x, [2, 1, 2, 1]), weight, groups=c)
                return functional.leaky_relu(v * factor + noise + b, 0.2) * 2 ** 0.5
        else:
            def run():
                g = torch.where(ref > 0, x, x * 0.2) * 2 ** 0.5
                return g * factor, (g * ref).sum([2, 3]), g.sum(1), g.sum([0, 2, 3])
    elif 'act' in case:
        act = {3: lambda v: functional.leaky_relu(v, 0.2), 4: torch.tanh, 9: functional.silu}[case['act']]
        if case['grad']:
            def run():
                return torch.where(ref > 0, x, x * 0.2) * 2 ** 0.5
        else:
            def run():
                return act(x + b) * 2 ** 0.5
    else:
        pad = [*case['pad'], *case['pad']]

        def run():
            v = x
            if case['up'] == 2:
                v = torch.zeros(n, c, 2 * h, 2 * w, dtype=x.dtype, device='cuda').to(
                    memory_format=torch.channels_last if layout == 'NHWC' else torch.contiguous_format)
                v[:, :, ::2, ::2] = x
            return functional.conv2d(functional.pad(v, pad), weight, groups=c, stride=case['down'])
    times = []
    with torch.no_grad():
        for _ in range(13):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
    return float(np.median(times[3:]))


def print_table(rows: list[dict]) -> None:
    """Rows as one aligned table."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names] + [[f'{row[name]:.1f}' if isinstance(row.get(name), float) else str(row.get(name, ''))
                        for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    for line in cells:
        print('  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


# Command line.

def check_all(device: Device, seed: int, quick: bool) -> tuple[int, list[str]]:
    """Runs all cases; returns their number and what failed."""
    rng = np.random.default_rng(seed)
    count, failures = 0, []
    for text, check in itertools.chain(bias_act_cases(rng, quick), upfirdn_cases(rng, quick),
                                       epilogue_cases(rng, quick)):
        count += 1
        try:
            check(device)
        except CheckError as error:
            failures.append(f'{text}: {error}')
            print(f'FAILED {failures[-1]}', flush=True)
            if len(failures) == 20:
                break
    return count, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--emulate', action='store_true', help='run the kernels on the CPU')
    add('--sanitize', action='store_true', help='the same, with address and undefined behaviour sanitizers')
    add('--quick', action='store_true', help='fewer cases')
    add('--no-times', action='store_true', help='only the checks')
    add('--seed', type=int, default=int.from_bytes(os.urandom(4), 'little'), help='of the random inputs')
    add('--json', action='store_true', help='print the result as JSON')
    args = parser.parse_args()
    args.emulate |= args.sanitize
    if args.sanitize and 'libasan' not in os.environ.get('LD_PRELOAD', ''):
        rerun_with_sanitizer()
    if not args.emulate and find_nvcc() is None:
        print('There is no nvcc here: nothing was compiled or checked (--emulate checks on the CPU).')
        return 0
    result = {'seed': args.seed}
    with tempfile.TemporaryDirectory() as directory:
        try:
            path = build(directory, args.emulate, args.sanitize)
        except (CheckError, OSError, subprocess.CalledProcessError) as error:
            print(f'FAILED {error}')
            return 1
        if not args.emulate and not has_gpu():
            print('The kernels compile. There is no GPU here: nothing was run (--emulate checks on the CPU).')
            return 0
        device = Device(path)
        result |= {'device': device.name, 'capability': device.capability}
        result['checks'], result['failures'] = check_all(device, args.seed, args.quick)
        if not args.emulate:
            try:
                result['huge'] = check_huge(device, np.random.default_rng(args.seed)) or 'passed'
            except CheckError as error:
                result['failures'].append(f'more than 2^31 elements: {error}')
            if not args.no_times:
                result['times'] = time_cases(device, np.random.default_rng(args.seed))
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print(f'{result["device"]}: {result["checks"]} checks, {len(result["failures"])} failed '
              f'(--seed {args.seed})')
        if 'huge' in result:
            print(f'More than 2^31 elements: {result["huge"]}')
        for failure in result['failures']:
            print(f'FAILED {failure}')
        if 'times' in result:
            print_table(result['times'])
    return 1 if result['failures'] else 0


if __name__ == '__main__':
    sys.exit(main())
