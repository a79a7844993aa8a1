"""The compilers of the custom ops: which there are, what they can do, running them within a time limit."""

import dataclasses
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence

QUERY_LIMIT = 30        # Seconds that a compiler may take to tell its version.
_POLL = 0.05            # Seconds between two looks at the running compilers.
RETRY = 'python -m custom_ops.build'
DOCTOR = f'`{RETRY} --doctor` says what is missing'
_CUDA_DIRS = ('CUDA_HOME', 'CUDA_PATH', 'CUDA_ROOT')


class BuildError(Exception):
    """Why there is no library: one line, without a full stop.

    `log` is the text of the compilers where they ran; `remember` says whether the next process should not
    even try.
    """

    def __init__(self, message: str, log: str = '', remember: bool = True):
        super().__init__(message)
        self.log = log
        self.remember = remember


@dataclasses.dataclass(frozen=True)
class Compiler:
    """A C++ compiler: how it is called and what it says of itself."""

    command: tuple[str, ...]
    version: str


@dataclasses.dataclass(frozen=True)
class Nvcc:
    """The CUDA compiler, and the GPU architectures it knows: (75, 80, ...) means sm_75, sm_80, ..."""

    command: tuple[str, ...]
    version: str
    archs: tuple[int, ...]

    @property
    def release(self) -> str:
        """'13.0'; all of its text where that says no release."""
        match = re.search(r'release ([0-9.]+)', self.version)
        return match[1] if match else self.version

    def flags(self) -> list[str]:
        """Code for every architecture, and PTX of the newest, which drivers compile for later ones."""
        return [*(f'-gencode=arch=compute_{arch},code=sm_{arch}' for arch in self.archs),
                f'-gencode=arch=compute_{self.archs[-1]},code=compute_{self.archs[-1]}']


# Finding.

def compiler_command() -> tuple[str, ...]:
    """The C++ compiler: $CXX (arguments allowed), else g++, c++ or clang++; BuildError when there is none."""
    chosen = os.environ.get('CXX', '').strip()
    for words in [shlex.split(chosen)] if chosen else [['g++'], ['c++'], ['clang++']]:
        path = shutil.which(words[0])
        if path:
            return path, *words[1:]
    raise BuildError(f'CXX={chosen} is not there' if chosen else 'there is no C++ compiler', remember=False)


def find_compiler() -> Compiler:
    """The C++ compiler; BuildError when there is none or it does not answer."""
    command = compiler_command()
    return Compiler(command, _query([*command, '--version']).partition('\n')[0].strip())


def nvcc_command() -> tuple[str, ...] | None:
    """The CUDA compiler: $CUDACXX, else nvcc of the search path, of $CUDA_HOME or of /usr/local/cuda."""
    if os.environ.get('CUDACXX', '').strip():
        words = shlex.split(os.environ['CUDACXX'])
        return (shutil.which(words[0]), *words[1:]) if shutil.which(words[0]) else None
    directories = [os.environ.get(name) for name in _CUDA_DIRS] + ['/usr/local/cuda']
    places = [shutil.which('nvcc'), *(os.path.join(path, 'bin', 'nvcc') for path in directories if path)]
    return next(((path,) for path in places if path and os.access(path, os.X_OK)), None)


def find_nvcc() -> Nvcc | None:
    """The CUDA compiler, None when there is none; BuildError when it does not answer."""
    command = nvcc_command()
    if command is None:
        return None
    version = ' '.join(_query([*command, '--version']).split())
    found = [set(map(int, re.findall(rf'\b{prefix}_([0-9]+)\b', _query([*command, flag]))))
             for prefix, flag in (('compute', '--list-gpu-arch'), ('sm', '--list-gpu-code'))]
    archs = tuple(sorted(found[0] & found[1]))
    if not archs:
        raise BuildError(f'{command[0]} names no GPU architecture', remember=False)
    return Nvcc(command, version, archs)


def nvcc_for(gpus: Sequence[int]) -> Nvcc:
    """The CUDA compiler with the architectures that these GPUs (their compute capabilities) need.

    Without GPUs, or with one that does not tell what it is (0), it has all. Errors: BuildError where there
    is no nvcc, or none for such old GPUs.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise BuildError(f'there is no nvcc; {DOCTOR}', remember=False)
    if not all(gpus):
        return nvcc
    needed = {max((arch for arch in nvcc.archs if arch <= gpu), default=gpu) for gpu in gpus}
    old = needed - set(nvcc.archs)
    if old:
        raise BuildError(f'nvcc {nvcc.release} does not compile for a GPU as old as this one '
                         f'(sm_{min(old)}); an older CUDA does', remember=False)
    return dataclasses.replace(nvcc, archs=tuple(sorted(needed)) or nvcc.archs)


def _query(command: Sequence[str]) -> str:
    """What a compiler prints when asked; BuildError when it fails or hangs."""
    with tempfile.TemporaryDirectory() as directory:
        return run([command], directory, QUERY_LIMIT).partition('\n')[2]


# Running.

def cpu_count() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def run(commands: Sequence[Sequence[str]], directory: str, time_limit: float) -> str:
    """Runs commands side by side, one per CPU; returns each command line and what it printed, in their order.

    Each is the leader of a process group: when one fails, when the time is over or at Ctrl-C, all of them go
    with everything they have started. Their temporary files are made in `directory`, which is also where
    they run. Errors: BuildError.
    """
    deadline = time.monotonic() + time_limit
    waiting, running, texts = list(enumerate(commands)), {}, {}
    environment = {**os.environ, 'LC_ALL': 'C', 'TMPDIR': directory}
    try:
        while waiting or running:
            while waiting and len(running) < cpu_count():
                index, command = waiting.pop(0)
                running[index] = _start(command, directory, environment)
            for index, (process, output) in list(running.items()):
                if process.poll() is not None:
                    texts[index] = _text(commands[index], output)
                    del running[index]
                    output.close()
                    if process.returncode:
                        raise BuildError(_failure(commands[index], process.returncode, texts[index]),
                                         texts[index], 'No space left on device' not in texts[index])
            if running and time.monotonic() > deadline:
                index, (_, output) = next(iter(running.items()))
                raise BuildError(f'{os.path.basename(commands[index][0])} was not ready after '
                                 f'{time_limit:.0f} s', _text(commands[index], output))
            if running:
                time.sleep(_POLL)
    finally:
        for process, output in running.values():
            _kill(process)
            output.close()
    return '\n'.join(texts[index] for index in sorted(texts))


def _start(command: Sequence[str], directory: str, environment: dict[str, str]) -> tuple:
    output = tempfile.TemporaryFile(dir=directory)  # Not a pipe: what a killed child leaves open would hang.
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                   cwd=directory, env=environment, start_new_session=True)
    except OSError as error:
        output.close()
        raise BuildError(f'{command[0]} cannot be run: {error.strerror}', remember=False) from None
    return process, output


def _kill(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _text(command: Sequence[str], output) -> str:
    output.seek(0)
    return f'$ {shlex.join(command)}\n{output.read().decode(errors="replace")}'


def _failure(command: Sequence[str], status: int, text: str) -> str:
    """One line: which compiler, how it ended, and the first error that it reports."""
    ending = f'was killed by signal {-status}' if status < 0 else f'failed with status {status}'
    lines = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    errors = [line for line in lines if re.search(r'\berror\b|\bfatal\b|cannot find', line)]
    reported = (errors or lines[-1:] or ['it printed nothing'])[0]
    return f'{os.path.basename(command[0])} {ending}: {reported[:200]}'


# Compiling.

def compile_library(
    path: str,                      # Library to write.
    sources: Sequence[str],         # .cc and .cu files.
    compiler: Compiler,
    nvcc: Nvcc | None,              # None where there are no .cu files.
    flags: Sequence[str],           # For the C++ compiler, with those of TensorFlow.
    cuda_flags: Sequence[str],      # For nvcc.
    link_flags: Sequence[str],      # TensorFlow's.
    directory: str,                 # For object files.
    time_limit: float,              # Seconds for everything.
) -> str:
    """Compiles every source into an object file, side by side, and links them; returns the compilers' text.

    The .cu files see no header of TensorFlow, so that any nvcc goes with any TensorFlow. The CUDA runtime is
    linked statically, before TensorFlow's library, and its symbols are kept inside: the stubs of the same
    names in TensorFlow's own would be taken otherwise, and fail. Errors: BuildError.
    """
    deadline = time.monotonic() + time_limit
    objects, commands = [], []
    for number, source in enumerate(sources):
        objects.append(os.path.join(directory, f'{number}-{os.path.basename(source)}.o'))
        if source.endswith('.cu'):
            command = [*nvcc.command, *cuda_flags, *nvcc.flags(), f'--threads={cpu_count()}']
        else:
            command = [*compiler.command, *flags]
        commands.append([*command, '-c', source, '-o', objects[-1]])
    commands.sort(key=lambda command: -os.path.getsize(command[-3]))  # The longest first.
    text = run(commands, directory, time_limit)
    link = [*compiler.command, '-shared', *objects, '-o', path]
    if nvcc:
        link += [*_cuda_library_dirs(nvcc, directory), '-lcudart_static', '-ldl', '-lrt', '-lpthread']
    link += [*link_flags, '-Wl,--exclude-libs,ALL']
    text += run([link], directory, max(deadline - time.monotonic(), 1))
    if not os.path.isfile(path):
        raise BuildError(f'{os.path.basename(compiler.command[0])} wrote no library', text)
    return text


def _cuda_library_dirs(nvcc: Nvcc, directory: str) -> list[str]:
    """-L flags for the CUDA runtime, from nvcc itself: every kind of installation has another place."""
    source = os.path.join(directory, 'empty.cu')
    with open(source, 'w', encoding='utf-8'):
        pass
    text = run([[*nvcc.command, '--dryrun', '-c', source]], directory, QUERY_LIMIT)
    line = re.search(r'^#\$ LIBRARIES=(.*)$', text, re.MULTILINE)
    return [word for word in shlex.split(line[1]) if word.startswith('-L')] if line else []
