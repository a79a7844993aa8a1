"""The operations with their GPU kernels compiled for the CPU, see cuda_on_cpu.h, in place of the CPU's own.

    python -m tests.gpu.emulated_ops LIBRARY                            builds them
    EMULATED_OPS=LIBRARY python -m pytest -p tests.gpu.emulated_ops     runs tests on them, as if on a GPU

So the tests of the operations go through everything that a GPU would: checks, launchers and kernels in C++
and CUDA, and what Python does where there is a GPU. What depends on real parallelism is left to one.
"""

import os
import pathlib
import sys
import tempfile

import tensorflow as tf

from custom_ops import build, dispatch, fused_bias_act, upfirdn_2d
from custom_ops.compiler import find_compiler, run

TIME_LIMIT = 900  # Seconds for each of the two steps.


def build_library(path: str) -> None:
    """Compiles the sources, of CUDA too, into a library. Errors: custom_ops.compiler.BuildError."""
    sources = sorted(file for file in pathlib.Path(build.SOURCE_DIR).iterdir()
                     if file.suffix in ('.cc', '.cu'))
    compiler = list(find_compiler().command)
    flags = ['-fPIC', '-w', '-DSTYLEGAN_CUDA_ON_CPU', f'-I{pathlib.Path(__file__).resolve().parent}',
             *tf.sysconfig.get_compile_flags(), '-x', 'c++', '-c']
    with tempfile.TemporaryDirectory() as directory:
        objects, commands = [], []
        for file in sources:
            objects.append(os.path.join(directory, f'{file.name}.o'))
            # The CPU's own kernels are not run: they need not be fast.
            level = '-O0' if file.name.endswith('_op.cc') else '-O1'
            commands.append([*compiler, level, *flags, str(file), '-o', objects[-1]])
        run(commands, directory, TIME_LIMIT)
        link = [*compiler, '-shared', *objects, '-o', path, *tf.sysconfig.get_link_flags()]
        run([link], directory, TIME_LIMIT)


def _take_over(path: str) -> None:
    build._loaded = build._Loaded(tf.load_op_library(path), cuda=True)
    for module in (dispatch, *(sys.modules[func.__module__] for func in (fused_bias_act, upfirdn_2d))):
        module.has_gpu = lambda: True


if __name__ == '__main__':
    build_library(sys.argv[1])
elif 'EMULATED_OPS' in os.environ:
    _take_over(os.environ['EMULATED_OPS'])
