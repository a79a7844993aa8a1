"""What the commands of run_generator.py share: their flags, checks, and how a run begins."""

import os
import sys
from collections.abc import Sequence
from typing import Any

import dnnlib
from dnnlib import UserError, flags, startup
from generation import classes

MAX_SEED = 2 ** 32 - 1              # Of numpy's RandomState.
MAX_SHEET_PIXELS = 1 << 30
DEFAULT_PSI = 0.5                   # The official one, for seeds.
# Flags that are for BigGAN alone.
SAMPLER_FLAGS = ('truncation', 'truncation_mode', 'statistics', 'statistics_passes', 'statistics_batch')

# TensorFlow, and all modules that import it, are imported inside the functions: --help and most mistakes are
# answered at once.


# Values.

def network_path(text: str) -> str:
    """A network pickle that can be opened, or an address."""
    import pretrained_networks
    try:
        pretrained_networks.check_path(flags.path(text))
    except OSError as error:
        raise UserError(f'{text}: {error.strerror}') from None
    return text


def seed_list(text: str) -> list[int]:
    """Seeds: numbers and ranges."""
    seeds = flags.number_list(text)
    if max(seeds) > MAX_SEED:
        raise UserError(f'expected seeds from 0 to {MAX_SEED}, received {text!r}')
    return seeds


def latents_list(text: str) -> list[str]:
    """Files of latents, separated by commas."""
    paths = [os.path.abspath(os.path.expanduser(flags.path(part))) for part in text.split(',')]
    for path in paths:
        try:
            with open(path, 'rb'):
                pass
        except OSError as error:
            raise UserError(f'{path}: {error.strerror}') from None
    return paths


def numbers(text: str | Sequence[float]) -> list[float]:
    """Numbers, separated by commas."""
    return [flags.number()(part) for part in text.split(',')] if isinstance(text, str) else list(text)


def truncation_value(text: str) -> float | None:
    """A truncation of z; 'none' is none."""
    return None if text.strip() == 'none' else flags.nonneg_float(text)


def truncation_list(text: str) -> list[float | None]:
    """Truncations of z, separated by commas; 'none' is none."""
    return [truncation_value(part) for part in text.split(',')]


network_path.metavar = 'FILE.pkl'
seed_list.metavar = 'LIST'
latents_list.metavar = 'FILES.npz'
numbers.metavar = 'NUMBERS'
truncation_value.metavar = 'NUMBER'
truncation_list.metavar = 'NUMBERS'


# Flags.

def add_network_flag(command: flags.Parser, required: bool = True) -> None:
    """Adds --network."""
    command.add_flag('network', network_path, 'Network pickle: a file, https://…, gs://… or '
                     'gdrive:networks/… (python pretrained_networks.py list)', required=required)


def add_source_flags(command: flags.Parser, prefix: str = '', what: str = '') -> None:
    """Adds --seeds and --latents, of which at least one is to be given (`check_sources`)."""
    command.add_flag(f'{prefix}seeds', seed_list, f"Seeds{what}, such as '1,2,3' or '1-3'")
    command.add_flag(f'{prefix}latents', latents_list, f'Latents{what} instead of seeds or after them: .npz '
                     'files of run_projector.py --save-latents, with their noise')


def add_psi_flag(command: flags.Parser, default: float | None, latents: bool = True) -> None:
    """Adds --truncation-psi. None: the default depends on what is drawn, see `seed_psi` and `file_psi`."""
    note = f' (default: {DEFAULT_PSI}{"; 1 for --latents" if latents else ""})' if default is None else ''
    command.add_flag('truncation-psi', float, f'Truncation trick: 1 = off, 0 = the average image{note}',
                     default=default)


def add_sampler_flags(command: flags.Parser, truncation: bool = True) -> None:
    """Adds the flags of BigGAN: --truncation and what batch normalization goes by."""
    if truncation:
        command.add_flag('truncation', truncation_value, 'Truncation of BigGAN: bound of the elements of z, '
                         '0 = z is 0 (default: none)')
    command.add_flag('truncation-mode', help='resample: z from [-t, t] (BigGAN); scale: t times z from [-2, '
                     '2] (TensorFlow Hub); std: t times z (BigGAN-PyTorch) (default: resample, or as the '
                     'network was imported)', choices=['resample', 'scale', 'std'])
    command.add_flag('statistics', help='Of the batch normalizations of BigGAN. standing: over many batches '
                     'of what is drawn, computed once and kept in the cache; running: those of the '
                     'training; batch: of each batch, then --batch changes pictures (default: standing, or '
                     'the table of an imported network)', choices=['standing', 'running', 'batch'])
    command.add_flag('statistics-passes', flags.positive_int, 'Batches of standing statistics (default: 100)')
    command.add_flag('statistics-batch', flags.integer(2), 'Size of a batch of standing statistics (default: '
                     '64)')


def add_common_flags(command: flags.Parser, batch_help: str = 'Pictures at a time; does not change them',
                     class_help: str = 'Class to draw, number or name; conditional networks need one',
                     many_classes: bool = False) -> None:
    """Adds the flags that every command has."""
    command.add_flag('result-dir', flags.path, 'Where run directories are made', default='results')
    command.add_flag('class', classes.class_list if many_classes else classes.one_class, class_help,
                     dest='class_idx')
    command.add_flag('generator', help='Which generator of a snapshot: Gs is the moving average of G',
                     choices=['Gs', 'G'], default='Gs')
    command.add_flag('batch', flags.positive_int, batch_help, default=8, dest='batch_size')
    flags.add_custom_ops_flag(command)


def distinct(names: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    """Names of files, numbered where several would have one name, or one that is taken."""
    result: list[str] = []
    for i, name in enumerate(names):
        while names.count(name) > 1 or name in taken or name in result:
            name = f'{name}-{i}'
        result.append(name)
    return result


def seed_psi(psi: float | None) -> float:
    """--truncation-psi of seeds."""
    return DEFAULT_PSI if psi is None else psi


def file_psi(psi: float | None) -> float:
    """--truncation-psi of files: latents that were found for an image are not truncated of themselves."""
    return 1.0 if psi is None else psi


# Checks before there is a run directory.

def load(network: str, options: dict[str, Any], free_class: bool = False) -> tuple[Any, Any]:
    """The network and the label of --class; takes --custom-ops and the flags of BigGAN out of the options.

    options['class_idx'] becomes a number, options['sampling'] the arguments of samplers.make_sampler for
    BigGAN, None for other networks.

    Args:
        network: Value of --network.
        options: Values of the other flags.
        free_class: Conditional networks need no class: without one the label is None.
    """
    network_obj, labels = load_classes(network, options, free_class)
    if labels is not None:
        options['class_idx'] = options['class_idx'][0]
    return network_obj, None if labels is None else labels[0][None]


def load_classes(network: str, options: dict[str, Any], free_class: bool = False) -> tuple[Any, Any]:
    """As `load`, of several classes: options['class_idx'] becomes a list, each label is [label_size].

    Where no class is given it is [None] for unconditional networks, and labels have no components.
    """
    startup.load_tensorflow()  # Before anything else imports it.
    flags.use_custom_ops(options.pop('custom_ops'))
    import pretrained_networks
    from generation import sampling
    network_obj = pretrained_networks.load_network(network, options['generator'])
    try:
        sampling.check_generator(network_obj)
        take_sampler_flags(network_obj, options)
        tokens = options['class_idx']
        if tokens is None and free_class:
            return network_obj, None
        tokens = tokens if isinstance(tokens, list) else [tokens]
        numbers = [None] if tokens == [None] else classes.resolve(
            tokens, network_obj, classes.class_names(network_obj, pretrained_networks.local_file(network)))
        options['class_idx'] = numbers
        return network_obj, classes.class_labels(network_obj, numbers)
    except UserError as error:
        raise UserError(f'{pretrained_networks.shown(network)}: {error}') from None


def take_sampler_flags(network: Any, options: dict[str, Any]) -> None:
    """Puts the flags of BigGAN into options['sampling']. Errors: UserError for flags of other networks."""
    given = {name: options.pop(name) for name in SAMPLER_FLAGS if name in options}
    has_flags, takes_truncation = bool(given), 'truncation' in given
    given = {name: value for name, value in given.items() if value is not None}
    from generation import samplers
    if not samplers.is_biggan(network):
        if given:
            name = next(iter(given))
            text = ('; --truncation-psi truncates w' if name == 'truncation' and 'dlatent_avg' in network.vars
                    else '')
            raise UserError(f'--{name.replace("_", "-")} is for BigGAN, network {network.name} '
                            f'({type(network.layer).__name__}) is another kind{text}')
        if has_flags:
            options['sampling'] = None
        return
    if not has_flags:
        return
    if options.get('truncation_psi') is not None:
        raise UserError('--truncation-psi is for networks with intermediate latents w, network '
                        f'{network.name} ({type(network.layer).__name__}) has none; --truncation bounds '
                        'its z')
    if 'truncation_mode' in given and 'truncation' not in given and takes_truncation:
        raise UserError('--truncation-mode says how --truncation is meant, which was not given')
    names = {'statistics_passes': 'passes', 'statistics_batch': 'batch'}
    if given.keys() & names.keys() and given.get('statistics', 'standing') != 'standing':
        raise UserError(f'--statistics-passes and --statistics-batch are for standing statistics, received '
                        f'--statistics={given["statistics"]}')
    given = {names.get(name, name): value for name, value in given.items()}
    options['sampling'] = samplers.check_options(network, given)


def check_sources(options: dict[str, Any], prefix: str = '') -> None:
    """Errors: UserError where there are neither seeds nor latents."""
    name = prefix.replace('_', '-')
    if not options[f'{prefix}seeds'] and not options[f'{prefix}latents']:
        raise UserError(f'--{name}seeds is required, but was not given (or --{name}latents)')


def load_sources(network: Any, seeds: Sequence[int] | None, latents: Sequence[str] | None, psi: float | None,
                 label: Any) -> list[Any]:
    """generation.latent_sources.Source of all seeds, then of all files."""
    from generation import latent_sources
    found = []
    if seeds:
        found += latent_sources.from_seeds(network, seeds, seed_psi(psi), label)
    if latents:
        found += latent_sources.from_files(network, latents, file_psi(psi))
    return found


def check_sheet(network: Any, num_images: float, what: str, remedy: str) -> None:
    """Errors: UserError for a sheet of more than MAX_SHEET_PIXELS."""
    pixels = num_images * network.output_shape[2] * network.output_shape[3]
    if pixels > MAX_SHEET_PIXELS:
        raise UserError(f'{what} would have {pixels / 1e6:.0f} million pixels, more than '
                        f'{MAX_SHEET_PIXELS / 1e6:.0f}; {remedy}')


def warn_without_truncation(network: Any, psi: float | None) -> None:
    """Says that --truncation-psi was given to a network that cannot use it."""
    if psi not in (None, DEFAULT_PSI) and 'dlatent_avg' not in network.vars:
        print(f'Warning: network {network.name} has no intermediate latents to truncate; '
              '--truncation-psi has no effect', file=sys.stderr)


def submit(func: Any, name: str, result_dir: str, network: str | None, **kwargs: Any) -> None:
    """Starts a command in a run directory of its own."""
    config = dnnlib.SubmitConfig(run_dir_root=result_dir, run_desc=name)
    if network is not None:
        import pretrained_networks
        if pretrained_networks.is_address(network):
            kwargs['network_file'] = os.path.abspath(pretrained_networks.local_file(network, verbose=False))
        elif not dnnlib.util.is_remote_path(network):
            network = os.path.abspath(os.path.expanduser(network))  # For the records of the run.
        kwargs['network_pkl'] = network
    dnnlib.submit_run(config, func, **kwargs)


def shown(numbers: Sequence[int]) -> str:
    """A list of numbers, not too long."""
    return ','.join(map(str, numbers[:20])) + (',…' if len(numbers) > 20 else '')
