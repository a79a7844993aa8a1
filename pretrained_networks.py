"""Networks by the name of their pickle: `load_networks` for the triple (G, D, Gs), `load_network` for one."""

import os
from typing import TYPE_CHECKING, Any

from dnnlib import startup
from dnnlib.util import UserError, is_remote_path, is_url

if TYPE_CHECKING:
    from dnnlib.tflib import Network

ROLES = ('G', 'D', 'Gs')

_cache: dict[Any, 'Network'] = {}


def check_path(path: str | os.PathLike) -> None:
    """Says at once, before TensorFlow is loaded, when a network cannot be had.

    Raises: UserError for an address; OSError when the local file is missing or unreadable.
    """
    path = os.fspath(path)
    if is_url(path) or path.startswith('gdrive:'):
        raise UserError(f'{path}: downloads are not supported yet; pass the path of a local file')
    if not is_remote_path(path):
        with open(path, 'rb'):
            pass


def load_networks(path: str | os.PathLike) -> tuple['Network', 'Network', 'Network']:
    """The networks (G, D, Gs) of a snapshot; Gs is the one to draw images with.

    As long as the file does not change, every call returns the same objects: `clone()` what you will alter.

    Args:
        path: Local pickle, or 'gs://...' and the like.

    Raises: UserError for an address, a file that is no pickle of networks, one that is not a snapshot
        (G, D, Gs), or networks of an unknown kind; OSError when the file cannot be read.
    """
    return tuple(_load(path, ROLES, single=False))


def load_network(path: str | os.PathLike, role: str = 'Gs') -> 'Network':
    """One network of a pickle, without building the others. See `load_networks`.

    Args:
        role: 'G', 'D' or 'Gs'. A pickle of one network alone gives that one.
    """
    return _load(path, (role,), single=True)[0]


def _load(path: str | os.PathLike, roles: tuple[str, ...], single: bool) -> list['Network']:
    check_path(path)
    startup.load_tensorflow()
    import tensorflow as tf

    from dnnlib import tflib
    from dnnlib.tflib import legacy

    path = os.fspath(path)
    if is_remote_path(path):
        file = (path,)
    else:
        status = os.stat(path)
        file = (os.path.realpath(path), status.st_mtime_ns, status.st_size)
    if any((file, role) not in _cache for role in roles):
        tflib.init_tf()
        try:
            content = legacy.load_pkl(path)
        except tf.errors.OpError as error:  # From the file systems behind tf.io.gfile.
            raise UserError(f'{path}: {error.message}') from None
        states = legacy.network_states(content)
        if not single and len(states) != len(ROLES):
            raise UserError(f'{path}: expected a snapshot (G, D, Gs), found networks '
                            f'{[state.name for state in states]}')
        for role in roles:
            try:
                _cache[file, role] = tflib.Network.from_state(legacy.find_network(content, role))
            except UserError as error:
                raise UserError(f'{path}: {error}') from None
    return [_cache[file, role] for role in roles]
