"""Starts a function in a run directory of its own, which records how it was started and what it printed."""

import contextlib
import copy
import getpass
import importlib.metadata
import json
import os
import pickle
import platform
import pprint
import random
import re
import shlex
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .. import util
from ..file_lock import LockedError, file_lock
from ..util import EasyDict, UserError
from .run_context import RunContext

_RUN_NAME = re.compile(r'(\d{5,7})(-|$)')  # Not eight digits: those are dates.
# What a damaged pickle raises, depending on which of its bytes are wrong.
_DAMAGE = (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, AttributeError, TypeError,
           OverflowError, MemoryError)
_PACKAGES = ('tensorflow', 'tensorflow-cpu', 'keras', 'numpy')


class SubmitTarget:
    """Where a run takes place. There is one place; official scripts name it."""

    LOCAL = 1


class SubmitConfig(EasyDict):
    """How and where to run a function. Keyword arguments replace the defaults below.

    Set by the user:
        run_dir_root: Directory in which run directories are made.
        run_desc: Description, the part of the run directory's name after the number.
        num_gpus: For the run function.
        print_info: Whether to print this configuration at the start.
        resume: Whether to go on in the existing directory `run_dir` instead of making a new one.
        submit_target, local: Accepted for official scripts.

    Set by submit_run:
        run_func_name, run_func_kwargs: The function and its keyword arguments.
        run_id, run_name, run_dir: Number, name and path of the run directory.
        host_name, user_name, task_name: Who runs it, and where.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(
            run_dir_root='results',
            run_desc='',
            num_gpus=1,
            print_info=False,
            resume=False,
            submit_target=SubmitTarget.LOCAL,
            local=EasyDict(do_not_copy_source_files=True),
            run_func_name=None,
            run_func_kwargs=None,
            run_id=None,
            run_name=None,
            run_dir=None,
            host_name=None,
            user_name=None,
            task_name=None,
        )
        self.update(*args, **kwargs)


def make_run_dir_path(*paths: str) -> str:
    """A path in the run directory of the run that is going on; without one, in the current directory."""
    context = RunContext.get() if RunContext.is_initialized() else None
    if context is None or context.run_dir is None:
        return os.path.join(os.getcwd(), *paths)
    return os.path.join(context.run_dir, *paths)


def run_number(name: str) -> int | None:
    """The number of a run directory, from its name ('00012-desc' → 12); None for a name of another form."""
    match = _RUN_NAME.match(name)
    return int(match[1]) if match else None


def make_run_dir(submit_config: SubmitConfig) -> None:
    """Makes the directory of a new run, for the `submit_run` that follows with this configuration."""
    _create_run_dir(submit_config)
    submit_config.run_dir_made = True


def submit_run(submit_config: SubmitConfig, run_func_name: str | Callable, **run_func_kwargs: Any) -> Any:
    """Calls a function, with the SubmitConfig of the run first, in a run directory, and returns its result.

    Makes the directory `NNNNN-<run_desc>` with the next free number and records in it:
        submit_config.txt/.json/.pkl: The configuration as plain values.
        run.txt: Function, arguments, machine, command line and versions; one part per start.
        log.txt: What the function prints, and the traceback when it raises.
        _finished.txt: Only when the function returned without having been asked to stop.

    With `submit_config.resume`, goes on in `submit_config.run_dir`: log.txt and run.txt are continued,
    abort.txt, _finished.txt and half-written files of the earlier start are removed.

    Of several processes that work together, those with a `submit_config.worker` above 0 take part in the run
    of the first one: they write nothing to `submit_config.run_dir` but a log-worker<number>.txt.

    Args:
        submit_config: Where to run; not changed, the function receives a completed copy.
        run_func_name: Full name of the function, such as 'training.training_loop.training_loop', or a
            top-level function.
        **run_func_kwargs: Its keyword arguments.

    Errors: UserError for an unknown function, a directory to resume that is none, or one that another process
    is at work in; whatever the function raises.
    """
    if callable(run_func_name):
        run_func_name = util.get_top_level_function_name(run_func_name)
    if not callable(util.get_obj_by_name(run_func_name)):  # Before a directory is made.
        raise UserError(f'expected the name of a function to run, received {run_func_name!r}')
    config = copy.deepcopy(submit_config)
    config.update(run_func_name=run_func_name, run_func_kwargs=EasyDict(run_func_kwargs))
    config.update(host_name=socket.gethostname(), user_name=_get_user_name())
    if config.get('worker'):
        if not util.is_remote_path(config.run_dir):
            os.makedirs(config.run_dir, exist_ok=True)  # Where the chief's is not seen.
        return _run(config, f'log-worker{config.worker}.txt')
    if config.get('resume'):
        _reopen_run_dir(config)
    elif not config.pop('run_dir_made', False):
        _create_run_dir(config)
    config.task_name = '-'.join(filter(None, [config.user_name, config.run_name]))
    with _only_process(config.run_dir):
        if config.get('resume'):
            _remove_marks(config.run_dir)
            if not util.is_remote_path(config.run_dir):
                util.remove_temporaries(config.run_dir)
        _write_records(config)
        return _run(config, 'log.txt')


def _run(config: SubmitConfig, log_name: str) -> Any:
    log = os.path.join(config.run_dir, log_name)
    with util.Logger(log, file_mode='a' if config.get('resume') else 'w') as logger:
        context = RunContext(config, take_signals=False)
        try:
            if config.get('print_info'):
                print(pprint.pformat(to_plain(config)), flush=True)
            print(f'Run directory: {config.run_dir}')
            print(f'dnnlib: Running {config.run_func_name}() on {config.host_name}...')
            result = util.call_func_by_name(config, func_name=config.run_func_name, **config.run_func_kwargs)
            spent = util.format_time(context.get_time_since_start())
            if context.stop_reason is None:
                print(f'dnnlib: Finished {config.run_func_name}() in {spent}.')
                if not config.get('worker'):
                    _write(config.run_dir, '_finished.txt', f'{_now()}\n')
            else:
                print(f'dnnlib: Stopped {config.run_func_name}() after {spent}: {context.stop_reason}.')
        except BaseException:
            # The console gets the traceback, or one line, from whoever catches the exception.
            logger.write_to_file(traceback.format_exc())
            raise
        finally:
            context.close_all()
    return result


def load_submit_config(run_dir: str) -> SubmitConfig:
    """The SubmitConfig recorded in a run directory, with `run_dir` set to where the directory is now.

    Errors: UserError when there is none or it is damaged. The file can hold plain values only: no code of it
    runs.
    """
    path = os.path.join(run_dir, 'submit_config.pkl')
    try:
        with util.gfile().GFile(path, 'rb') if util.is_remote_path(path) else open(path, 'rb') as file:
            values = _PlainUnpickler(file).load()
    except FileNotFoundError:
        raise UserError(f'{run_dir}: not a run directory, it has no submit_config.pkl') from None
    except _DAMAGE as error:
        raise UserError(f'{path}: cannot be read ({error}); start a new run') from None
    if not isinstance(values, dict):
        raise UserError(f'{path}: expected a dict, received {type(values).__name__}; start a new run')
    config = SubmitConfig(values)
    config.local = EasyDict(config.local or {})
    config.run_func_kwargs = EasyDict(config.run_func_kwargs or {})
    config.run_dir = os.fspath(run_dir)
    return config


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f'expected plain values, found {module}.{name}')


def to_plain(value: Any) -> Any:
    """A copy of a configuration made of plain Python values only.

    dict, list, tuple, str, bytes, bool, int, float and None stay (subclasses become these); numpy scalars and
    arrays become numbers and lists, sets sorted lists, functions their names, and anything else its `str`.
    """
    if value is None or isinstance(value, bool):
        return value
    if hasattr(value, 'dtype') and hasattr(value, 'tolist'):
        return to_plain(value.tolist())
    for kind in (int, float, str, bytes):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {_plain_key(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(to_plain(item) for item in value)
    if isinstance(value, list):
        return [to_plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((to_plain(item) for item in value), key=repr)
    if util.is_top_level_function(value):
        return f'{value.__module__}.{value.__name__}'
    return str(value)


def _plain_key(key: Any) -> Any:
    key = to_plain(key)
    return key if key is None or isinstance(key, str | bool | int | float) else str(key)


# The run directory.

def _create_run_dir(config: SubmitConfig) -> None:
    """Makes the directory of a new run. No two runs get the same number, even when they start at once."""
    root = os.fspath(config.run_dir_root)
    desc = re.sub(r'[^\w.+=,@-]+', '-', config.get('run_desc') or '')[:150].strip('-')
    remote = util.is_remote_path(root)
    root = root.rstrip('/') if remote else os.path.abspath(os.path.expanduser(root))
    if remote:
        util.gfile().makedirs(root)
    else:
        os.makedirs(root, exist_ok=True)
    while True:
        run_id = max(_numbers(root), default=-1) + 1
        name = f'{run_id:05d}-{desc}' if desc else f'{run_id:05d}'
        path = os.path.join(root, name)
        if remote:
            util.gfile().makedirs(path)
            break
        try:
            os.mkdir(path)
        except FileExistsError:
            continue
        # Between our listing and our mkdir another run may have made a directory with this number and another
        # description. Whoever sees two gives way; of two that come at once, at least one sees both.
        if _numbers(root).count(run_id) == 1:
            break
        os.rmdir(path)
        time.sleep(random.uniform(0, 0.05))
    config.update(run_id=run_id, run_name=name, run_dir=path)


def _numbers(root: str) -> list[int]:
    """The numbers of the run directories in `root`."""
    names = util.gfile().listdir(root) if util.is_remote_path(root) else os.listdir(root)
    numbers = (run_number(name.rstrip('/')) for name in names)
    return [number for number in numbers if number is not None]


def _reopen_run_dir(config: SubmitConfig) -> None:
    """Prepares the directory of an earlier run for going on."""
    if not config.get('run_dir'):
        raise UserError('resume: expected a run directory to go on in (submit_config.run_dir), received none')
    path = os.fspath(config.run_dir)
    remote = util.is_remote_path(path)
    path = path.rstrip('/') if remote else os.path.abspath(os.path.expanduser(path))
    if not (util.gfile().isdir(path) if remote else os.path.isdir(path)):
        raise UserError(f'resume: {path} is not an existing run directory')
    name = os.path.basename(path)
    config.update(run_id=run_number(name), run_name=name, run_dir=path)


@contextlib.contextmanager
def _only_process(run_dir: str) -> Iterator[None]:
    """Keeps a second process out of a run directory, whose files two would mix up (not of a remote one)."""
    with contextlib.ExitStack() as stack:
        try:
            if not util.is_remote_path(run_dir):
                stack.enter_context(file_lock(run_dir))
        except LockedError:
            raise UserError(f'{run_dir}: another process is at work in this run directory; wait for it, or '
                            'stop it by a file abort.txt there') from None
        yield


def _remove_marks(run_dir: str) -> None:
    """Removes what would say of the run that goes on that it has ended or should end."""
    remote = util.is_remote_path(run_dir)
    for name in ('_finished.txt', 'abort.txt'):
        stale = os.path.join(run_dir, name)
        if remote and util.gfile().exists(stale):
            util.gfile().remove(stale)
        elif not remote and os.path.lexists(stale):
            os.remove(stale)


def _write_records(config: SubmitConfig) -> None:
    plain = to_plain(config)
    _write(config.run_dir, 'submit_config.txt', pprint.pformat(plain, width=110) + '\n')
    _write(config.run_dir, 'submit_config.json', json.dumps(plain, indent=2, default=str) + '\n')
    with util.atomic_write(os.path.join(config.run_dir, 'submit_config.pkl'), 'wb') as file:
        pickle.dump(plain, file, protocol=4)

    facts = {
        'time': _now(),
        'function': plain['run_func_name'],
        'arguments': pprint.pformat(plain['run_func_kwargs'], width=110),
        'directory': config.run_dir,
        'resumed': bool(config.get('resume')),
        'host': config.host_name,
        'user': config.user_name,
        'command': shlex.join([sys.executable or 'python', *sys.argv]),
        'system': platform.platform(),
        'python': platform.python_version(),
        **_get_versions(),
    }
    lines = [f'{key}: {value}'.replace('\n', '\n    ') for key, value in facts.items()]
    earlier = _read(config.run_dir, 'run.txt') if config.get('resume') else ''
    _write(config.run_dir, 'run.txt', (earlier + '\n' if earlier else '') + '\n'.join(lines) + '\n')


def _write(run_dir: str, name: str, text: str) -> None:
    with util.atomic_write(os.path.join(run_dir, name), 'w') as file:
        file.write(text)


def _read(run_dir: str, name: str) -> str:
    """The text of a file in the run directory, '' when there is none."""
    path = os.path.join(run_dir, name)
    if util.is_remote_path(path):
        files = util.gfile()
        if not files.exists(path):
            return ''
        with files.GFile(path, 'r') as file:
            return file.read()
    try:
        with open(path, encoding='utf-8', errors='replace') as file:
            return file.read()
    except FileNotFoundError:
        return ''


def _get_versions() -> dict[str, str]:
    # From the packages' metadata: importing TensorFlow takes seconds and may not be needed.
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _get_user_name() -> str:
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # A container whose user has no name.
        return 'unknown'


def _now() -> str:
    return time.strftime('%Y-%m-%d %H:%M:%S %z')
