"""Networks by the name of their pickle: a file, an address, or one of NVIDIA's published StyleGAN2 networks.

`load_networks` gives the triple (G, D, Gs), `load_network` one of them. As a script, it lists and downloads
the published ones.
"""

import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from dnnlib import flags, startup
from dnnlib.util import UserError, did_you_mean, is_remote_path, is_url, open_url

if TYPE_CHECKING:
    from dnnlib.tflib import Network

ROLES = ('G', 'D', 'Gs')
OFFICIAL_URL = 'https://nvlabs-fi-cdn.nvidia.com/stylegan2/networks/'
LICENCE_URL = 'https://nvlabs.github.io/stylegan2/license.html'

_PREFIX = 'gdrive:networks/'
_FILE_SYSTEMS = ('gs', 's3', 'hdfs', 'viewfs', 'az', 'ram')     # That tf.io.gfile may know.

_cache: dict[Any, 'Network'] = {}
_told_licence = False


def _published() -> list[str]:
    """File names of the 36 published networks."""
    names = [f'stylegan2-{data}-config-{config}.pkl' for data in ('ffhq', 'car') for config in 'abcdef']
    names += [f'stylegan2-{data}-config-{config}.pkl'
              for data in ('cat', 'church', 'horse') for config in 'af']
    kinds = ('orig', 'skip', 'resnet')
    names += [f'table2/stylegan2-{data}-config-e-G{G}-D{D}.pkl'
              for data in ('car', 'ffhq') for G in kinds for D in kinds]
    return names


# Alias → official address.
gdrive_urls = {_PREFIX + name: OFFICIAL_URL + name for name in _published()}


def get_path_or_url(path_or_gdrive_path: str | os.PathLike) -> str:
    """The address behind an alias 'gdrive:networks/…'; a path or address as it is, but for a leading '~'.

    Where $STYLEGAN_NETWORKS_URL is set, the published networks are looked for below it: the address of a
    mirror, or a directory.

    Errors: UserError, with the closest aliases, for an alias that is none.
    """
    name = os.fspath(path_or_gdrive_path)
    if name.startswith('gdrive:'):
        if name not in gdrive_urls:
            hint = did_you_mean(name, gdrive_urls) or '; python pretrained_networks.py list shows them all'
            raise UserError(f'{name}: there is no such published network{hint}')
        mirror = os.environ.get('STYLEGAN_NETWORKS_URL')
        if not mirror:
            return gdrive_urls[name]
        if not is_remote_path(mirror):
            return os.path.join(os.path.expanduser(mirror), name[len(_PREFIX):])
        return f'{mirror.rstrip("/")}/{name[len(_PREFIX):]}'
    return name if is_remote_path(name) else os.path.expanduser(name)


def is_address(path: str | os.PathLike) -> bool:
    """Whether a name stands for something to download: an alias or an http(s) address."""
    return os.fspath(path).startswith('gdrive:') or is_url(os.fspath(path))


def shown(path: str | os.PathLike) -> str:
    """A name as it may be printed: an address without password and query, anything else as it is."""
    from dnnlib import addresses
    name = os.fspath(path)
    return addresses.shown(name) if '://' in name else name


def check_path(path: str | os.PathLike) -> None:
    """Says at once, before TensorFlow is loaded and anything downloaded, when a network cannot be had.

    Raises: UserError for an alias or address that is none; OSError when a local file cannot be read.
    """
    name = get_path_or_url(path)
    scheme = re.match(r'([a-zA-Z][a-zA-Z0-9+.-]*):/', name)
    scheme = scheme[1].lower() if scheme else ''
    if is_url(name) or scheme in _FILE_SYSTEMS:
        return
    known = [f'{other}:' for other in ('https', 'http', 'gdrive', 'file')]
    hint = did_you_mean(f'{scheme}:', known, 1) if len(scheme) > 1 else ''
    if hint and scheme != 'file':
        hint = '' if scheme in ('http', 'https') else hint
        raise UserError(f'{shown(name)}: expected a file, https://host/…, gs://… or gdrive:networks/…{hint}')
    if is_remote_path(name) and scheme != 'file':  # A file system of a plug-in.
        return
    try:
        with open_url(name):
            pass
    except FileNotFoundError:
        if os.fspath(path) in gdrive_urls:
            raise UserError(f'{os.fspath(path)}: STYLEGAN_NETWORKS_URL is a directory that has no such file: '
                            f'{name}') from None
        published = [alias for alias in gdrive_urls if os.path.basename(alias) == os.path.basename(name)]
        if not published:
            raise
        raise UserError(f'{name}: No such file or directory; the published network is '
                        f'{published[0]}') from None


def local_file(path: str | os.PathLike, verbose: bool = True) -> str:
    """A path that can be opened: downloads what is not here and not in the cache.

    Args:
        path: Alias, address, local path, or 'gs://...' and the like, which stay as they are.
        verbose: Whether to print progress and failed attempts on stderr.

    Errors: UserError when the file cannot be had.
    """
    global _told_licence
    name = get_path_or_url(path)
    official = gdrive_urls.get(os.fspath(path))
    if is_url(name):
        from dnnlib import download
        if official is not None and download.find_cached(official):
            name = official  # From before there was a mirror.
        if name.startswith(OFFICIAL_URL) or official is not None:
            if verbose and not _told_licence and not download.find_cached(name):
                _told_licence = True
                print(f"Note: NVIDIA's published networks are for non-commercial use, see {LICENCE_URL}",
                      file=sys.stderr)
    return open_url(name, verbose=verbose, return_filename=True)


def load_networks(path: str | os.PathLike) -> tuple['Network', 'Network', 'Network']:
    """The networks (G, D, Gs) of a snapshot; Gs is the one to draw images with.

    As long as the file does not change, every call returns the same objects: `clone()` what you will alter.

    Args:
        path: Local pickle, 'gs://...' and the like, https://…, or an alias such as
            'gdrive:networks/stylegan2-ffhq-config-f.pkl'. Downloads are kept in the cache directory.

    Raises: UserError for a file that cannot be downloaded, is no pickle of networks or not a snapshot
        (G, D, Gs), or for networks of an unknown kind; OSError when a local file cannot be read.
    """
    return tuple(_load(path, ROLES, single=False))


def load_network(path: str | os.PathLike, role: str = 'Gs') -> 'Network':
    """One network of a pickle, without building the others. See `load_networks`.

    Args:
        role: 'G', 'D' or 'Gs'. A pickle of one network alone gives that one.
    """
    return _load(path, (role,), single=True)[0]


def _load(name: str | os.PathLike, roles: tuple[str, ...], single: bool) -> list['Network']:
    check_path(name)
    path = local_file(name)
    startup.load_tensorflow()
    import tensorflow as tf

    from dnnlib import tflib
    from dnnlib.tflib import legacy

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
        except UserError as error:
            if not is_address(name):
                raise
            raise UserError(f'{error}. Remove this file to download it again') from None
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


# As a script.

def _list_command() -> None:
    from dnnlib import download
    for alias in gdrive_urls:
        urls = [url for url in (gdrive_urls[alias], get_path_or_url(alias)) if is_url(url)]
        here = next(filter(None, map(download.find_cached, urls)), None)
        print(f'{alias}  {here}' if here else alias)


def _download_command(network: str) -> None:
    check_path(network)
    print(local_file(network))


def make_parser() -> flags.Parser:
    """The parser of this command line."""
    parser = flags.Parser("Lists and downloads NVIDIA's published StyleGAN2 networks.", examples=[
        '%(prog)s list', '%(prog)s download --network=gdrive:networks/stylegan2-ffhq-config-f.pkl'])
    parser.add_command('list', _list_command, 'List the names, and the files of those in the cache')
    command = parser.add_command('download', _download_command,
                                 'Download a network to the cache and print the path of the file')
    command.add_flag('network', flags.path, 'gdrive:networks/… or https://…', required=True, metavar='NAME')
    return parser


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point. `argv` begins with the name of the program; default: sys.argv."""
    flags.run(flags.run_command, make_parser, argv)


if __name__ == '__main__':
    main()
