"""Where compiled libraries are kept: files named by a key, manifests, remembered failures.

A library NAME.so counts when NAME.json is there and fits it, so that nothing cut off or damaged is ever
loaded. NAME.log has the compilers' words, NAME.failed says why there is no library, NAME.lock is held by the
process that builds.
"""

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import time
from collections.abc import Sequence
from typing import Any

from dnnlib.util import atomic_write

WORK_PREFIX = '.build-' # Of the directories in which compilers work.

# Names in /proc/cpuinfo of what a compiler may use; the others are for the operating system.
_X86_FEATURES = re.compile(
    r'pni|ssse3|sse4|avx|fma|f16c|bmi|abm|movbe|popcnt|v?aes|v?pclmul|gfni|adx|sha|rdrand|rdseed|rdpid|xsave|'
    r'lahf_lm|cx16|fsgsbase|clflushopt|clwb|clzero|amx')

# What the portable levels of x86-64 (the values of -march) ask of a CPU.
_V2 = ('cx16', 'lahf_lm', 'pni', 'popcnt', 'sse4_1', 'sse4_2', 'ssse3')
_V3 = (*_V2, 'abm', 'avx', 'avx2', 'bmi1', 'bmi2', 'f16c', 'fma', 'movbe', 'xsave')
CPU_LEVELS = {'x86-64-v2': _V2, 'x86-64-v3': _V3,
              'x86-64-v4': (*_V3, 'avx512bw', 'avx512cd', 'avx512dq', 'avx512f', 'avx512vl')}


def cpu_features(cpuinfo: str = '/proc/cpuinfo') -> tuple[str, ...]:
    """The instruction sets of this machine's CPU, which decide what -march=native means."""
    try:
        with open(cpuinfo, encoding='utf-8', errors='replace') as file:
            match = re.search(r'^(flags|Features)\s*:(.*)$', file.read(), re.MULTILINE)
    except OSError:
        match = None
    if match is None:
        return (platform.processor() or 'unknown',)
    words = set(match[2].split())
    return tuple(sorted(filter(_X86_FEATURES.match, words) if match[1] == 'flags' else words))


def hash_sources(directory: str) -> str:
    """SHA-256 of the names and contents of all files in a directory."""
    digest = hashlib.sha256()
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        if os.path.isfile(path) and re.search(r'\.(cc|cu|cuh|h|hpp|inc)$', name):
            with open(path, 'rb') as file:
                digest.update(f'{name}\0{hashlib.sha256(file.read()).hexdigest()}\0'.encode())
    return digest.hexdigest()


# Libraries and their manifests.

def name_of(ingredients: dict[str, Any]) -> str:
    """The name, without its ending, of the library that is made of these ingredients."""
    text = json.dumps(ingredients, sort_keys=True)
    return f'{"cuda" if ingredients["cuda"] else "cpu"}-{hashlib.sha256(text.encode()).hexdigest()[:20]}'


def publish(library: str, path: str, manifest: dict[str, Any]) -> None:
    """Moves a library to its place, on the same file system; it counts once its manifest is there."""
    manifest = {**manifest, 'size': os.path.getsize(library), 'sha256': _hash_file(library)}
    os.replace(library, path)
    write_json(_beside(path, '.json'), manifest)


def discard(path: str) -> None:
    """Removes a library."""
    for name in (_beside(path, '.json'), path):
        with contextlib.suppress(OSError):
            os.unlink(name)


def read_manifest(path: str) -> dict[str, Any] | None:
    """The manifest of a library; None unless both are there and whole."""
    manifest = read_json(_beside(path, '.json'))
    try:
        # A library that is cut off would not fail to load, but end the process (SIGBUS).
        whole = (isinstance(manifest, dict) and manifest.get('size') == os.path.getsize(path)
                 and manifest.get('sha256') == _hash_file(path))
    except OSError:
        whole = False
    return manifest if whole else None


def _beside(path: str, ending: str) -> str:
    return os.path.splitext(path)[0] + ending


def _hash_file(path: str) -> str:
    with open(path, 'rb') as file:
        return hashlib.sha256(file.read()).hexdigest()


def libraries(directory: str) -> list[tuple[str, dict[str, Any]]]:
    """(path, manifest) of all whole libraries of a directory, the latest first."""
    try:
        paths = [os.path.join(directory, name) for name in os.listdir(directory) if name.endswith('.so')]
    except OSError:
        return []
    found = [(path, read_manifest(path)) for path in sorted(paths)]
    return sorted(((path, manifest) for path, manifest in found if manifest),
                  key=lambda item: item[1].get('time', 0), reverse=True)


def misfits(manifest: dict[str, Any], ingredients: dict[str, Any], gpus: Sequence[int]) -> list[str]:
    """Why a library of another compiler, machine or -march cannot stand in for the one of `ingredients`.

    gpus: compute capabilities of the GPUs that it is for.
    """
    made_of = manifest.get('ingredients') or {}
    result = []
    if made_of.get('tensorflow') != ingredients['tensorflow']:
        version = (made_of.get('tensorflow') or {}).get('version')
        result.append(f'made for TensorFlow {version}, this is {ingredients["tensorflow"]["version"]}')
    if made_of.get('sources') != ingredients['sources']:
        result.append('made of other sources')
    if made_of.get('machine') != ingredients['machine']:
        result.append(f'made for {made_of.get("machine")}')
    missing = sorted(set(made_of.get('cpu') or ['?']) - set(cpu_features()))
    if missing:
        result.append(f'made for a CPU with {", ".join(missing[:4])}')
    cuda = ' '.join(made_of.get('cuda') or [])
    result += [f'made without sm_{gpu}' for gpu in gpus if cuda and not _has_code_for(cuda, gpu)]
    return result


def _has_code_for(flags: str, gpu: int) -> bool:
    """Whether these flags of nvcc give code for a GPU: binary of its generation, or PTX of an older one."""
    codes = [(kind, int(arch)) for kind, arch in re.findall(r'code=(sm|compute)_([0-9]+)', flags)]
    return not gpu or any(arch <= gpu and (kind == 'compute' or arch // 10 == gpu // 10)
                          for kind, arch in codes)


def read_json(path: str) -> Any:
    """The contents of a JSON file; None when it is not there or damaged."""
    try:
        with open(path, encoding='utf-8') as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def write_json(path: str, values: dict[str, Any]) -> None:
    """Writes a JSON file that appears when it is whole."""
    with atomic_write(path, 'w') as file:
        json.dump(values, file, indent=1)
        file.write('\n')


# Directories.

def prepare(directory: str) -> None:
    """Makes a directory for libraries; OSError where it cannot be used."""
    os.makedirs(directory, mode=0o755, exist_ok=True)
    path = os.path.realpath(directory)
    while path != os.path.dirname(path):
        # /tmp/dnnlib of another user: whatever is in there could be loaded into this process.
        parent = os.path.dirname(path)
        if os.stat(parent).st_mode & stat.S_IWOTH and os.stat(path).st_uid not in (0, os.getuid()):
            raise PermissionError(errno.EACCES, 'It belongs to another user', path)
        path = parent
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, 'Permission denied', directory)


def remove_leftovers(directory: str) -> None:
    """Removes what a build left that was killed a day ago or more."""
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        with contextlib.suppress(OSError):
            if name.startswith(WORK_PREFIX) and time.time() - os.path.getmtime(path) > 86400:
                shutil.rmtree(path, ignore_errors=True)
