"""What `python -m custom_ops.build --doctor` prints: what was found, and one line of advice per lack."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

from custom_ops import build, cache
from custom_ops.compiler import BuildError, find_compiler, find_nvcc, nvcc_command, nvcc_for
from dnnlib.util import UserError, make_cache_dir_path

_WITH_CUDA = "pip install 'tensorflow[and-cuda]'"


def report() -> str:
    """The table and the advice, as text. Builds nothing."""
    advice = []
    rows = [row for part in (_machine, _compilers, _tensorflow, _gpus, _storage) for row in part(advice)]
    width = max(len(name) for name, _ in rows)
    lines = [f'{name:<{width}}  {value}' for name, value in rows]
    return '\n'.join([*lines, '', *(advice or ['Nothing is missing.'])])


def _machine(advice: list[str]) -> Iterator[tuple[str, str]]:
    yield 'System', (f'{platform.system()} {platform.release()}, {platform.machine()}, '
                     f'Python {platform.python_version()}')
    if sys.platform != 'linux':
        advice.append('The custom ops are built on Linux only (Windows: inside WSL2). All else works.')
    features = cache.cpu_features()
    known = [name for name in ('avx', 'avx2', 'fma', 'avx512f', 'asimd', 'sve') if name in features]
    yield 'CPU', f'{os.cpu_count()} CPUs, {" ".join(known) or "no known vector instructions"}'
    try:
        mode = build.get_mode()
    except UserError as error:
        mode = str(error)
        advice.append('Unset STYLEGAN_CUSTOM_OPS, or set it to auto, custom or ref.')
    yield 'Mode', mode
    if mode == 'ref':
        advice.append('STYLEGAN_CUSTOM_OPS=ref switches the custom ops off; unset it to use them.')


def _compilers(advice: list[str]) -> Iterator[tuple[str, str]]:
    try:
        compiler = find_compiler()
        yield 'C++ compiler', f'{" ".join(compiler.command)}: {compiler.version}'
    except BuildError as error:
        yield 'C++ compiler', str(error)
        advice.append('Install a C++ compiler (apt install g++; conda install gxx) or name one with CXX; or '
                      f'build elsewhere: `{build.RETRY} --output-dir=DIR`, then set '
                      'STYLEGAN_CUSTOM_OPS_DIR=DIR.')
    try:
        nvcc = find_nvcc()
        yield 'nvcc', f'{nvcc.command[0]}: release {nvcc.release}' if nvcc else 'none'
        if nvcc:
            yield 'nvcc compiles for', ' '.join(f'sm_{arch}' for arch in nvcc.archs)
    except BuildError as error:
        yield 'nvcc', str(error)
        advice.append('nvcc does not answer as it should: install the CUDA toolkit again, or name another '
                      'with CUDACXX.')


def _tensorflow(advice: list[str]) -> Iterator[tuple[str, str]]:
    import tensorflow as tf
    info = tf.sysconfig.get_build_info()
    cuda = f'for CUDA {info.get("cuda_version")}' if info.get('is_cuda_build') else 'for CPUs only'
    yield 'TensorFlow', (f'{tf.__version__}, built {cuda}, with {tf.version.COMPILER_VERSION}, C++ ABI '
                         f'{tf.sysconfig.CXX11_ABI_FLAG}')
    if not os.path.isdir(tf.sysconfig.get_include()):
        advice.append('The headers of TensorFlow are missing: install it again from its wheel.')


def _gpus(advice: list[str]) -> Iterator[tuple[str, str]]:
    import tensorflow as tf
    seen = build.gpu_capabilities()
    names = [tf.config.experimental.get_device_details(gpu).get('device_name', 'unknown')
             for gpu in tf.config.list_physical_devices('GPU')]
    yield 'GPUs of TensorFlow', ', '.join(
        f'{name} (sm_{arch})' for name, arch in zip(names, seen, strict=False)) or ', '.join(names) or 'none'
    driver, newest = _nvidia_driver()
    yield 'NVIDIA driver', driver or 'none'
    if driver and not names:
        hidden = os.environ.get('CUDA_VISIBLE_DEVICES')
        advice.append('There is a GPU, but TensorFlow sees none: ' + (
            f'CUDA_VISIBLE_DEVICES={hidden} hides it.' if hidden in ('', '-1') else
            f'{_WITH_CUDA}, then look at what it prints with TF_CPP_MIN_LOG_LEVEL=0.'))
    if names and nvcc_command() is None:
        advice.append('Install the CUDA toolkit (nvcc) or set CUDA_HOME to where it is: without it the '
                      'custom ops have no GPU kernels.')
    if not seen:
        return
    try:
        nvcc = nvcc_for(seen)
        # A program of nvcc 13 needs a driver that knows CUDA 13; releases of the same number go together.
        if newest and _major(nvcc.release) > _major(newest):
            advice.append(f'nvcc {nvcc.release} is too new for the driver (CUDA {newest}): install a newer '
                          f'driver or CUDA toolkit {newest}.')
    except BuildError as error:
        if nvcc_command():
            advice.append(f'{error}.')


def _major(version: str) -> int:
    match = re.match('[0-9]+', version)
    return int(match[0]) if match else 0


def _nvidia_driver() -> tuple[str | None, str | None]:
    """(what nvidia-smi says of driver and GPUs, the newest CUDA that the driver knows); None if unknown."""
    if shutil.which('nvidia-smi') is None:
        return None, None
    try:
        query = ['--query-gpu=driver_version,name', '--format=csv,noheader']
        driver, table = (subprocess.run(['nvidia-smi', *arguments], capture_output=True, text=True,
                                        timeout=30) for arguments in (query, []))
    except (OSError, subprocess.TimeoutExpired) as error:
        return f'nvidia-smi cannot be run ({type(error).__name__})', None
    match = re.search(r'CUDA Version: ([0-9.]+)', table.stdout)
    text = '; '.join(driver.stdout.split('\n')).strip('; ') if driver.returncode == 0 else None
    return text, match[1] if match else None


def _storage(advice: list[str]) -> Iterator[tuple[str, str]]:
    prebuilt = os.environ.get('STYLEGAN_CUSTOM_OPS_DIR')
    if prebuilt:
        prebuilt = os.path.expanduser(prebuilt)
        try:
            yield 'Prebuilt library', build.find_fitting(prebuilt, build.gpu_capabilities())
        except BuildError as error:
            yield 'Prebuilt library', str(error)
            advice.append('Build into STYLEGAN_CUSTOM_OPS_DIR again: '
                          f'`{build.RETRY} --output-dir={prebuilt}`.')
    directory = make_cache_dir_path(build.CACHE_NAME)
    try:
        cache.prepare(directory)
        yield 'Cache', f'{directory} (writable)'
    except OSError as error:
        yield 'Cache', f'{directory} ({error.strerror})'
        advice.append('Set STYLEGAN_CACHE_DIR to a directory that can be written.')
    found = cache.libraries(directory)
    for path, manifest in found:
        ingredients = manifest.get('ingredients') or {}
        version = (ingredients.get('tensorflow') or {}).get('version')
        yield '  holds', (f'{os.path.basename(path)}: {manifest["size"] / 1e6:.1f} MB, TensorFlow {version}, '
                          f'{"GPU and CPU" if build.is_cuda(path) else "CPU"}, '
                          f'built in {manifest.get("seconds")} s')
    if not found:
        yield '  holds', 'no library'
    yield from _needed(directory, advice)


def _needed(directory: str, advice: list[str]) -> Iterator[tuple[str, str]]:
    """What a first use here would load: whether it is there, or why it could not be built."""
    try:
        compiler = find_compiler()
    except BuildError:
        return  # Has been said.
    plans = [('CPU', lambda: build.make_plan(compiler))]
    gpus = build.gpu_capabilities()
    if gpus:
        plans.insert(0, ('GPU and CPU', lambda: build.make_plan(compiler, nvcc_for(gpus))))
    for name, make in plans:
        try:
            path = build.library_path(make(), directory)
        except BuildError as error:
            yield f'Library for {name}', str(error)
            continue
        failure = cache.read_json(os.path.splitext(path)[0] + '.failed')
        if cache.read_manifest(path):
            yield f'Library for {name}', f'{os.path.basename(path)}, built'
            return
        yield f'Library for {name}', ('not built yet' if not isinstance(failure, dict) else
                                      f'failed on {failure.get("date")}: {failure.get("message")}')
        if isinstance(failure, dict):
            advice.append(f'The last build has failed: see {os.path.splitext(path)[0]}.log; `{build.RETRY}` '
                          'tries again.')
        else:
            advice.append(f'The library is built at first use; `{build.RETRY}` does it now.')
            return
