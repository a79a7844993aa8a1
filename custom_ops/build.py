"""Builds the compiled operations at first use, keeps them in the cache directory and loads them.

    python -m custom_ops.build             # Builds ahead of time.
    python -m custom_ops.build --doctor    # What was found on this machine, and what is missing.

Without a library everything runs all the same, composed of TensorFlow operations ('ref').
"""

import contextlib
import dataclasses
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
import types
from collections.abc import Sequence
from typing import Any

from custom_ops import cache
from custom_ops.cache import CPU_LEVELS
from custom_ops.compiler import (
    DOCTOR,
    RETRY,
    BuildError,
    Compiler,
    Nvcc,
    compile_library,
    find_compiler,
    nvcc_command,
    nvcc_for,
)
from dnnlib import flags
from dnnlib.file_lock import LockedError, file_lock
from dnnlib.startup import load_tensorflow
from dnnlib.util import UserError, atomic_write, make_cache_dir_path

MODES = ('auto', 'custom', 'ref')
SOURCE_DIR = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'src')
TIME_LIMIT = 600                    # Seconds for one build.
LOCK_MARGIN = 60                    # Seconds more that others wait for the one that builds.
CPP_FLAGS = ('-O3', '-fPIC', '-DNDEBUG', '-Wno-deprecated-declarations')
CUDA_FLAGS = ('-O3', '-std=c++17', '-Xcompiler=-fPIC', '-Wno-deprecated-gpu-targets', '-DNDEBUG')
CUDA_DEFINE = '-DSTYLEGAN_CUDA=1'   # For all sources of a library with GPU kernels.
CACHE_NAME = 'custom_ops'           # Below the cache directory.
NO_GPU_KERNELS = 'custom ops without GPU kernels, GPUs take the slower reference path'


# What impl='auto' means.

_mode = None  # Set by set_mode; None: the environment decides.


def set_mode(mode: str | None) -> None:
    """What impl='auto' means in this process; None returns the choice to $STYLEGAN_CUSTOM_OPS.

    Args:
        mode: 'auto' = the compiled operations where they are there and faster, 'custom' = always, 'ref' =
            never; nothing is built then.
    """
    global _mode
    _mode = None if mode is None else _check_mode(mode, 'mode')


def get_mode() -> str:
    """'auto', 'custom' or 'ref': see `set_mode`. UserError where $STYLEGAN_CUSTOM_OPS is something else."""
    return _mode or _check_mode(os.environ.get('STYLEGAN_CUSTOM_OPS') or 'auto', 'STYLEGAN_CUSTOM_OPS')


def _check_mode(mode: str, name: str) -> str:
    if mode not in MODES:
        raise UserError(f'{name} must be one of {", ".join(MODES)}. Received: {mode!r}')
    return mode


# Loading.

@dataclasses.dataclass
class _Loaded:
    """The outcome of the one attempt to load that a process makes."""

    module: types.ModuleType | None = None      # From tf.load_op_library.
    cuda: bool = False                          # Whether it has GPU kernels.
    problems: list[str] = dataclasses.field(default_factory=list)
    warned: bool = False


_loaded = None
_loading = threading.RLock()  # Replicas of a distribution strategy trace in threads.


def load_library() -> types.ModuleType | None:
    """The compiled operations, built now where no library fits; None without them or in mode 'ref'.

    The first call of a process that cannot have all of them prints one warning.
    """
    if get_mode() == 'ref':
        return None
    loaded = _load()
    with _loading:
        if loaded.problems and not loaded.warned:
            loaded.warned = True
            print(f'Warning: {"; ".join(loaded.problems)}', file=sys.stderr, flush=True)
    return loaded.module


def require_library() -> types.ModuleType:
    """The compiled operations in every mode; UserError with the reason where they cannot be had."""
    loaded = _load()
    if loaded.module is None:
        raise UserError(f'the custom ops were asked for, but {"; ".join(loaded.problems)}')
    return loaded.module


def has_gpu_kernels() -> bool:
    """Whether the library that is loaded runs on GPUs too."""
    return _loaded is not None and _loaded.cuda


def unavailable_reason() -> str | None:
    """Why `load_library` gives None, in one line; None where it gives the operations."""
    if get_mode() == 'ref':
        return "they are switched off (mode 'ref')"
    loaded = _load()
    return None if loaded.module else '; '.join(loaded.problems)


def _load() -> _Loaded:
    global _loaded
    with _loading:
        if _loaded is None:
            _loaded = _load_now()
        return _loaded


def _load_now() -> _Loaded:
    problems = []
    gpus = gpu_capabilities()
    try:
        module, cuda = _load_prebuilt(problems, gpus) or _load_or_build(problems, gpus)
        return _Loaded(module, cuda, problems)
    except BuildError as error:
        problems.append(f'no custom ops, the reference path takes their place, slower: {error}')
        return _Loaded(problems=problems)


def _load_prebuilt(problems: list[str], gpus: Sequence[int]) -> tuple[types.ModuleType, bool] | None:
    """A library of $STYLEGAN_CUSTOM_OPS_DIR."""
    directory = os.environ.get('STYLEGAN_CUSTOM_OPS_DIR')
    if not directory:
        return None
    try:
        return _load_fitting(os.path.expanduser(directory), problems, gpus)
    except BuildError as error:
        problems.append(f'STYLEGAN_CUSTOM_OPS_DIR is of no use: {error}')
        return None


def _load_or_build(problems: list[str], gpus: Sequence[int]) -> tuple[types.ModuleType, bool]:
    directory = make_cache_dir_path(CACHE_NAME)
    try:
        compiler = find_compiler()
    except BuildError as error:
        with contextlib.suppress(BuildError):
            return _load_fitting(directory, problems, gpus)
        raise BuildError(f'{error}; {DOCTOR}') from None
    if gpus:
        try:
            return load_plan(make_plan(compiler, nvcc_for(gpus)), directory, problems), True
        except BuildError as error:
            problems.append(f'{NO_GPU_KERNELS}: {error}')
    return load_plan(make_plan(compiler), directory, problems), False


def _load_fitting(directory: str, problems: list[str],
                  gpus: Sequence[int]) -> tuple[types.ModuleType, bool]:
    """A library of a directory that runs here, whatever compiler made it; BuildError where there is none."""
    path = find_fitting(directory, gpus)
    module = load(path)
    if gpus and not is_cuda(path):
        problems.append(f'{NO_GPU_KERNELS}: {path} was built without')
    return module, is_cuda(path)


def find_fitting(directory: str, gpus: Sequence[int]) -> str:
    """The path of a library that fits TensorFlow, sources, CPU and GPUs; one with GPU kernels if need be."""
    wanted = make_plan(Compiler((), '')).ingredients()
    found = [(path, cache.misfits(manifest, wanted, gpus)) for path, manifest in cache.libraries(directory)]
    fitting = [path for path, misfits in found if not misfits]
    if not fitting:
        closest = min((misfits for _, misfits in found), key=len, default=['there is none'])
        raise BuildError(f'no library in {directory} fits ({", ".join(closest)})', remember=False)
    return min(fitting, key=lambda path: is_cuda(path) != bool(gpus))


def is_cuda(path: str) -> bool:
    """Whether a library has GPU kernels."""
    return os.path.basename(path).startswith('cuda-')


def gpu_capabilities() -> list[int]:
    """The compute capabilities (75, 80, ...) of the GPUs that TensorFlow sees; 0 = it does not say."""
    import tensorflow as tf
    if not tf.test.is_built_with_cuda():
        return []
    gpus = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices('GPU'))
    versions = [details.get('compute_capability', (0, 0)) for details in gpus]
    return [10 * major + minor for major, minor in versions]


# Building.

@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that decides what a library is; the name of its file is made of it."""

    compiler: Compiler
    nvcc: Nvcc | None           # None: CPU only.
    sources: tuple[str, ...]    # Paths of what is compiled.
    source_hash: str            # Of the headers too.
    tf_version: str
    tf_flags: tuple[str, ...]
    tf_link_flags: tuple[str, ...]
    cpu: str = 'native'         # Value of -march.

    def ingredients(self) -> dict[str, Any]:
        """What the name of the library depends on; where TensorFlow lies is not part of it."""
        return {
            'tensorflow': {'version': self.tf_version, 'flags': [
                flag for flag in self.tf_flags + self.tf_link_flags if not flag.startswith(('-I', '-L'))]},
            'compiler': [*self.compiler.command[1:], self.compiler.version],
            'flags': self.flags(),
            'machine': f'{platform.system()} {platform.machine()}',
            'cpu': list(self.cpu_features()),
            'cuda': self.nvcc and [self.nvcc.version, *self.cuda_flags(), *self.nvcc.flags()],
            'sources': self.source_hash,
        }

    def flags(self) -> list[str]:
        """For the C++ compiler, besides TensorFlow's."""
        return [*CPP_FLAGS, f'-march={self.cpu}', *([CUDA_DEFINE] if self.nvcc else [])]

    def cuda_flags(self) -> list[str]:
        """For nvcc; a compiler chosen with $CXX compiles its host code too."""
        chosen = os.environ.get('CXX', '').strip() and len(self.compiler.command) == 1
        return [*CUDA_FLAGS, CUDA_DEFINE, *([f'-ccbin={self.compiler.command[0]}'] if chosen else [])]

    def cpu_features(self) -> Sequence[str]:
        """The instruction sets that a CPU needs to run the library."""
        return CPU_LEVELS.get(self.cpu) or cache.cpu_features()


def make_plan(compiler: Compiler, nvcc: Nvcc | None = None, cpu: str = 'native',
              source_dir: str | None = None) -> Plan:
    """The plan for the sources as they are now; BuildError where they are missing.

    Sources of GPU kernels are *.cu and gpu_*.cc.
    """
    import tensorflow as tf
    if sys.platform != 'linux':
        raise BuildError('they are built on Linux only')
    source_dir = source_dir or SOURCE_DIR
    names = sorted(os.listdir(source_dir)) if os.path.isdir(source_dir) else []
    names = [name for name in names if name.endswith('.cc') and not name.startswith('gpu_')
             or nvcc and name.endswith(('.cc', '.cu'))]
    if not names:
        raise BuildError(f'{source_dir} holds no sources; install the package again')
    return Plan(compiler, nvcc, tuple(os.path.join(source_dir, name) for name in names),
                cache.hash_sources(source_dir), tf.__version__, tuple(tf.sysconfig.get_compile_flags()),
                tuple(tf.sysconfig.get_link_flags()), cpu)


def load_plan(plan: Plan, directory: str, problems: list[str]) -> types.ModuleType:
    """Loads the library of a plan from a directory, built there now if need be.

    Where the directory cannot be written, the library is built in a temporary one and lives as long as the
    process; `problems` gets a line about it. Errors: BuildError.
    """
    path = library_path(plan, directory)
    if cache.read_manifest(path):
        with contextlib.suppress(BuildError):
            return load(path)
        cache.discard(path)  # Whole, yet of no use: it is built once more.
    try:
        cache.prepare(directory)
    except OSError as error:
        problems.append(f'custom ops cannot be kept in {directory} ({error.strerror}): each process builds '
                        'its own; set STYLEGAN_CACHE_DIR to a directory that can be written')
        directory = tempfile.mkdtemp(prefix='stylegan-custom-ops-')
        module = build_and_load(plan, library_path(plan, directory))
        shutil.rmtree(directory, ignore_errors=True)  # Not after a failure: the log is there.
        return module
    return build_and_load(plan, path)


def build_and_load(plan: Plan, path: str, **options: Any) -> types.ModuleType:
    """`build`, then `load`; a library that does not load is removed and remembered as a failure."""
    build(plan, path, **options)
    try:
        return load(path)
    except BuildError as error:
        cache.discard(path)
        with contextlib.suppress(OSError), open(os.path.splitext(path)[0] + '.log', encoding='utf-8') as file:
            error.log = file.read()
        raise _failed(path, error) from None


def library_path(plan: Plan, directory: str) -> str:
    """Where the library of a plan is, or will be, in a directory."""
    return os.path.join(directory, cache.name_of(plan.ingredients()) + '.so')


def load(path: str) -> types.ModuleType:
    """Loads a library into the process; BuildError with what the system says where that fails."""
    import tensorflow as tf
    try:
        return tf.load_op_library(path)
    except (tf.errors.OpError, RuntimeError, OSError) as error:
        raise BuildError(f'{path} does not load: {" ".join(str(error).split())[:300]}') from None


def build(plan: Plan, path: str, time_limit: float | None = None, retry: bool = False,
          force: bool = False) -> bool:
    """Builds a library unless it is there; returns whether it has been built now.

    One process builds, others that want the same wait for it.

    Args:
        path: The library; its directory exists.
        time_limit: Seconds for compiling, after which the compilers are killed; None = TIME_LIMIT.
        retry: Whether to build although the last attempt has failed.
        force: Whether to build although the library is there.

    Errors: BuildError.
    """
    base = os.path.splitext(path)[0]
    time_limit = time_limit or TIME_LIMIT
    try:
        with file_lock(base + '.lock', time_limit + LOCK_MARGIN, _tell_to_wait):
            if not force and cache.read_manifest(path):
                return False
            failure = None if retry or force else cache.read_json(base + '.failed')
            if isinstance(failure, dict):
                raise BuildError(_explained(path, failure), failure.get('log', ''))
            _build_now(plan, path, time_limit)
            return True
    except LockedError as error:
        raise BuildError(f'another process has been building for {time_limit + LOCK_MARGIN:.0f} s, '
                         f'it holds {error.path}', remember=False) from None
    except OSError as error:  # The disk is full, for instance.
        raise BuildError(f'{error.filename or path}: {error.strerror}', remember=False) from None


def _tell_to_wait() -> None:
    print('Waiting for another process that builds the custom ops...', file=sys.stderr, flush=True)


def _build_now(plan: Plan, path: str, time_limit: float) -> None:
    """Compiles into a directory beside the library and moves the result to its place."""
    print('Building the custom ops (once, about a minute)...', file=sys.stderr, flush=True)
    base = os.path.splitext(path)[0]
    start = time.monotonic()
    cache.remove_leftovers(os.path.dirname(path))
    with tempfile.TemporaryDirectory(prefix=cache.WORK_PREFIX, dir=os.path.dirname(path)) as directory:
        library = os.path.join(directory, 'library.so')
        try:
            text = compile_library(
                library, plan.sources, plan.compiler, plan.nvcc, [*plan.flags(), *_quiet(plan.tf_flags)],
                plan.cuda_flags(), plan.tf_link_flags, directory, time_limit)
        except BuildError as error:
            raise _failed(path, error) from None
        seconds = time.monotonic() - start
        with atomic_write(base + '.log', 'w') as file:
            file.write(text)
        cache.publish(library, path, {'ingredients': plan.ingredients(), 'seconds': round(seconds, 1),
                                      'time': time.time()})
    with contextlib.suppress(FileNotFoundError):
        os.unlink(base + '.failed')
    print(f'Custom ops built in {seconds:.0f} s: {path}', file=sys.stderr, flush=True)


def _quiet(flags: Sequence[str]) -> list[str]:
    """Flags by which the log keeps our warnings, without the thousand of TensorFlow's headers."""
    return [flag.replace('-I', '-isystem', 1) if flag.startswith('-I') else flag for flag in flags]


def _failed(path: str, error: BuildError) -> BuildError:
    """Keeps the log of a failure and, where that makes sense, remembers it; returns the error to raise."""
    base = os.path.splitext(path)[0]
    failure = {'message': str(error), 'date': time.strftime('%Y-%m-%d %H:%M'), 'log': error.log[-100_000:]}
    with contextlib.suppress(OSError):
        with atomic_write(base + '.log', 'w') as file:
            file.write(f'{error.log}\n{error}\n')
        if error.remember:
            cache.write_json(base + '.failed', failure)
    return BuildError(_explained(path, failure), error.log, error.remember)


def _explained(path: str, failure: dict[str, Any]) -> str:
    """What a failure says to the user."""
    base = os.path.splitext(path)[0]
    remembered = f'not tried again until `{RETRY}` is run or sources or compilers change'
    return (f'{failure.get("message")} ({failure.get("date")}, log: {base}.log'
            f'{"; " + remembered if os.path.exists(base + ".failed") else ""})')


# Command line.

def make_parser() -> flags.Parser:
    """The command line of `python -m custom_ops.build`."""
    parser = flags.Parser(
        'Builds the custom ops ahead of time: for images of containers, for clusters without a compiler.',
        prog=RETRY, examples=[
            '%(prog)s             # what the first use on this machine would build',
            '%(prog)s --doctor    # what is there and what is missing',
            '%(prog)s --gpu=yes --cpu=x86-64-v3 --output-dir=/opt/ops',
            'STYLEGAN_CUSTOM_OPS_DIR=/opt/ops python train.py   # uses it, on other machines too',
        ])
    add = parser.add_flag
    add('gpu', help='GPU kernels: auto = for the GPUs of this machine, yes = for all that nvcc knows',
        choices=['auto', 'yes', 'no'], default='auto')
    add('cpu', help='instruction set: native is the fastest, the others run on more machines',
        choices=['native', *CPU_LEVELS], default='native')
    add('output-dir', flags.path, 'where the library goes; programs look there where '
                                  'STYLEGAN_CUSTOM_OPS_DIR names it (default: the cache directory)')
    add('time-limit', flags.positive_int, 'seconds after which the compilers are stopped', default=TIME_LIMIT)
    add('force', bool, 'build although the library is there', default=False)
    add('doctor', bool, 'only look what is there, and print it', default=False)
    return parser


def run(args: Any) -> int:
    """Builds or examines; the exit status."""
    load_tensorflow()
    if args.doctor:
        from custom_ops import doctor
        print(doctor.report())
        return 0
    directory = os.path.abspath(os.path.expanduser(args.output_dir or make_cache_dir_path(CACHE_NAME)))
    if args.output_dir:
        os.makedirs(directory, exist_ok=True)
    else:
        cache.prepare(directory)
    try:
        _build_ahead(args, directory)
        return 0
    except BuildError as error:
        print(*error.log.splitlines()[-20:], f'{RETRY}: error: {error}', sep='\n', file=sys.stderr)
        return 1


def _build_ahead(args: Any, directory: str) -> None:
    compiler = find_compiler()
    gpus = gpu_capabilities()
    if args.gpu == 'yes' or args.gpu == 'auto' and gpus:
        try:
            nvcc = nvcc_for(gpus if args.gpu == 'auto' else [])
            return _build_one(make_plan(compiler, nvcc, args.cpu), directory, args)
        except BuildError as error:
            if args.gpu == 'yes':
                raise
            print(f'Warning: no GPU kernels: {error}', file=sys.stderr)
    elif args.gpu == 'auto' and nvcc_command():
        print('There is no GPU here: building for the CPU only (--gpu=yes compiles GPU kernels all the same)')
    return _build_one(make_plan(compiler, cpu=args.cpu), directory, args)


def _build_one(plan: Plan, directory: str, args: Any) -> None:
    path = library_path(plan, directory)
    options = {'time_limit': args.time_limit, 'retry': True}
    start = time.monotonic()
    there = not args.force and cache.read_manifest(path) is not None
    if set(plan.cpu_features()) <= set(cache.cpu_features()):
        try:
            build_and_load(plan, path, force=args.force, **options)
        except BuildError:
            if not there:
                raise
            build_and_load(plan, path, **options)  # What was there did not load.
            there = False
    else:
        build(plan, path, force=args.force, **options)
    took = 'was there (--force builds it anew)' if there else f'built in {time.monotonic() - start:.0f} s'
    print(f'{path}: {took}; for {"GPUs and CPUs" if plan.nvcc else "CPUs"}')


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `python -m custom_ops.build`."""
    flags.run(run, make_parser, argv)


if __name__ == '__main__':
    main()
