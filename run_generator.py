"""Draws pictures with a trained generator: one per seed, or a table of mixed styles."""

import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import dnnlib
from dnnlib import UserError, flags

MAX_SEED = 2 ** 32 - 1              # Of numpy's RandomState.
MAX_SHEET_PIXELS = 1 << 30
DEFAULT_PSI = 0.5                    # The official one.

# TensorFlow, and all modules that import it, are imported inside the functions: --help and most mistakes are
# answered at once.


def generate_images(
    submit_config: dnnlib.SubmitConfig,         # Of the run; not used.
    network_pkl: str,                           # Pickle with the generator: path, address or alias.
    seeds: Sequence[int],                       # One picture each.
    truncation_psi: float = DEFAULT_PSI,                # Truncation trick.
    class_idx: int | None = None,               # Class, for conditional networks.
    generator: str = 'Gs',                      # Which network of a snapshot.
    batch_size: int = 8,                        # Pictures at a time.
    output_grid: str | None = None,             # PNG file for a sheet of all; '' = grid.png of the run.
    network_file: str | None = None,            # File that network_pkl was downloaded to, for the records.
) -> None:
    """Writes seed%04d.png for each seed to the run directory."""
    del submit_config
    network, label = _load_generator(network_file or network_pkl, generator, class_idx)
    from training import misc, sampling
    images = sampling.generate(network, seeds, truncation_psi, label, batch_size)
    sheet = []
    for seed, image in sampling.progress(images, len(seeds)):
        misc.save_image(image, dnnlib.make_run_dir_path(f'seed{seed:04d}.png'), drange=[0, 255])
        if output_grid is not None:
            sheet.append(image)
    if output_grid is not None:
        path = output_grid or dnnlib.make_run_dir_path('grid.png')
        misc.save_image_grid(sheet, path, drange=[0, 255])


def style_mixing_example(
    submit_config: dnnlib.SubmitConfig,         # Of the run; not used.
    network_pkl: str,                           # Pickle with the generator: path, address or alias.
    row_seeds: Sequence[int],                   # Sources of the rows: of all layers but col_styles.
    col_seeds: Sequence[int],                   # Sources of the columns: of the layers col_styles.
    col_styles: Sequence[int],                  # Layers of w to take from the column.
    truncation_psi: float = DEFAULT_PSI,                # Truncation trick.
    class_idx: int | None = None,               # Class, for conditional networks.
    generator: str = 'Gs',                      # Which network of a snapshot.
    batch_size: int = 8,                        # Pictures at a time.
    network_file: str | None = None,            # File that network_pkl was downloaded to, for the records.
) -> None:
    """Writes <row>-<col>.png for each pair, <seed>-<seed>.png (unmixed) and grid.png to the run directory."""
    del submit_config
    network, label = _load_generator(network_file or network_pkl, generator, class_idx)
    import numpy as np

    from training import misc, sampling
    seeds = list(dict.fromkeys([*row_seeds, *col_seeds]))
    w = dict(zip(seeds, sampling.seed_dlatents(network, seeds, truncation_psi, label), strict=True))
    pairs = list(dict.fromkeys([*((seed, seed) for seed in seeds),
                                *((row, col) for row in row_seeds for col in col_seeds)]))
    mixed = np.stack([sampling.mix_styles(w[row], w[col], col_styles) for row, col in pairs])
    images = {}
    progress = sampling.progress(sampling.synthesize(network, mixed, batch_size), len(pairs))
    for (row, col), image in zip(pairs, progress, strict=True):
        images[row, col] = image
        misc.save_image(image, dnnlib.make_run_dir_path(f'{row}-{col}.png'), drange=[0, 255])
    cells = [np.zeros_like(image), *(images[col, col] for col in col_seeds)]
    for row in row_seeds:
        cells += [images[row, row], *(images[row, col] for col in col_seeds)]
    misc.save_image_grid(cells, dnnlib.make_run_dir_path('grid.png'), drange=[0, 255],
                         grid_size=(len(col_seeds) + 1, len(row_seeds) + 1))


def _load_generator(network_pkl: str, generator: str, class_idx: int | None) -> tuple[Any, Any]:
    """The network and the label of the class; UserError where they do not fit."""
    import pretrained_networks
    network = pretrained_networks.load_network(network_pkl, generator)
    from training import sampling
    try:
        sampling.check_generator(network)
        return network, sampling.class_label(network, class_idx)
    except UserError as error:
        raise UserError(f'{pretrained_networks.shown(network_pkl)}: {error}') from None


# What the commands do before there is a run directory: everything that may turn out to be a mistake.

def _generate_images_command(network: str, seeds: list[int], result_dir: str, output_grid: str | None,
                             **options: Any) -> None:
    if output_grid:
        if pathlib.PurePath(output_grid).suffix.lower() != '.png':
            raise UserError(f'--output-grid: expected a name that ends in .png, received {output_grid!r}')
        output_grid = os.path.abspath(os.path.expanduser(output_grid))
        if not os.path.isdir(os.path.dirname(output_grid)):
            raise UserError(f'--output-grid: there is no directory {os.path.dirname(output_grid)}')
    flags.use_custom_ops(options.pop('custom_ops'))
    network_obj, _ = _load_generator(network, options['generator'], options['class_idx'])
    if options['truncation_psi'] != DEFAULT_PSI and 'dlatent_avg' not in network_obj.vars:
        print(f'Warning: network {network_obj.name} has no intermediate latents to truncate; '
              '--truncation-psi has no effect', file=sys.stderr)
    if output_grid is not None:
        _check_sheet(network_obj, len(seeds), '--output-grid', 'leave it out or choose fewer seeds')
    _submit(generate_images, 'generate-images', result_dir, network, seeds=seeds, output_grid=output_grid,
            **options)


def _style_mixing_command(network: str, col_styles: list[int], result_dir: str, **options: Any) -> None:
    flags.use_custom_ops(options.pop('custom_ops'))
    network_obj, _ = _load_generator(network, options['generator'], options['class_idx'])
    _check_sheet(network_obj, (len(options['row_seeds']) + 1) * (len(options['col_seeds']) + 1), 'grid.png',
                 'choose fewer seeds')
    synthesis = network_obj.components.get('synthesis')
    num_layers = synthesis.input_shape[1] if synthesis else 0
    num_layers = 0 if num_layers == 1 else num_layers  # Without styles w is an input like z.
    valid = [layer for layer in col_styles if layer < num_layers]
    if not valid:
        raise UserError(f'--col-styles={_shown(col_styles)}: network {network_obj.name} has '
                        + (f'layers 0-{num_layers - 1}' if num_layers else 'no styles to mix'))
    if len(valid) < len(col_styles):
        print(f'Warning: network {network_obj.name} has layers 0-{num_layers - 1}; of '
              f'--col-styles={_shown(col_styles)} only {_shown(valid)} are mixed', file=sys.stderr)
    _submit(style_mixing_example, 'style-mixing-example', result_dir, network, col_styles=valid, **options)


def _submit(func: Any, name: str, result_dir: str, network: str, **kwargs: Any) -> None:
    config = dnnlib.SubmitConfig(run_dir_root=result_dir, run_desc=name)
    import pretrained_networks
    if pretrained_networks.is_address(network):
        kwargs['network_file'] = os.path.abspath(pretrained_networks.local_file(network, verbose=False))
    elif not dnnlib.util.is_remote_path(network):
        network = os.path.abspath(os.path.expanduser(network))  # For the records of the run.
    dnnlib.submit_run(config, func, network_pkl=network, **kwargs)


def _check_sheet(network: Any, num_images: int, what: str, remedy: str) -> None:
    pixels = num_images * network.output_shape[2] * network.output_shape[3]
    if pixels > MAX_SHEET_PIXELS:
        raise UserError(f'{what} would have {pixels / 1e6:.0f} million pixels, more than '
                        f'{MAX_SHEET_PIXELS / 1e6:.0f}; {remedy}')


def _shown(numbers: Sequence[int]) -> str:
    return ','.join(map(str, numbers[:20])) + (',…' if len(numbers) > 20 else '')


# Flags.

def _network_path(text: str) -> str:
    import pretrained_networks
    try:
        pretrained_networks.check_path(text)
    except OSError as error:
        raise UserError(f'{text}: {error.strerror}') from None
    return text


def _seed_list(text: str) -> list[int]:
    seeds = flags.number_list(text)
    if max(seeds) > MAX_SEED:
        raise UserError(f'expected seeds from 0 to {MAX_SEED}, received {text!r}')
    return seeds


_network_path.metavar = 'FILE.pkl'
_seed_list.metavar = 'LIST'


def make_parser() -> flags.Parser:
    """The parser of this command line."""
    parser = flags.Parser('Draws pictures with a trained generator.', examples=[
        '%(prog)s generate-images --network=network-final.pkl --seeds=0-15 --truncation-psi=0.7',
        '%(prog)s style-mixing-example --network=network-final.pkl --row-seeds=0-3 --col-seeds=4-9',
        '%(prog)s generate-images --network=gdrive:networks/stylegan2-ffhq-config-f.pkl --seeds=6600-6625',
        '%(prog)s generate-images --help',
    ])
    images = parser.add_command(
        'generate-images', _generate_images_command, 'Draw one picture per seed',
        description='Draws one picture per seed, seed0000.png and so on, in a new run directory.',
        examples=[
            '%(prog)s --network=network-final.pkl --seeds=6600-6625',
            '%(prog)s --network=network-final.pkl --seeds=1,5,7-9 \\',
            '    --truncation-psi=1 --class=3 --output-grid=sheet.png',
        ])
    mixing = parser.add_command(
        'style-mixing-example', _style_mixing_command, 'Draw a table of mixed styles',
        description='Draws a table of mixed styles, grid.png, and its pictures, <row>-<col>.png, in a new '
                    'run directory. A picture has the styles of its row, but those of its column in some '
                    'layers.',
        examples=[
            '%(prog)s --network=network-final.pkl \\',
            '    --row-seeds=85,100,75,458,1500 --col-seeds=55,821,1789,293 --col-styles=0-6',
        ])
    for command in (images, mixing):
        command.add_flag('network', _network_path, 'Network pickle: a file, https://…, gs://… or '
                         'gdrive:networks/… (python pretrained_networks.py list)', required=True)
        if command is images:
            command.add_flag('seeds', _seed_list, "Seeds, such as '1,2,3' or '1-3'", required=True)
        else:
            command.add_flag('row-seeds', _seed_list, "Seeds of the rows, such as '1,2,3' or '1-3'",
                             required=True)
            command.add_flag('col-seeds', _seed_list, 'Seeds of the columns', required=True)
            command.add_flag('col-styles', flags.number_list,
                             'Layers whose style comes from the column; 0 is the coarsest', default='0-6')
        command.add_flag('truncation-psi', float, 'Truncation trick: 1 = off, 0 = the average image',
                         default=DEFAULT_PSI)
        command.add_flag('result-dir', help='Where run directories are made', default='results',
                         metavar='DIR')
        command.add_flag('class', flags.nonneg_int, 'Class to draw; conditional networks need one',
                         dest='class_idx')
        command.add_flag('generator', help='Which generator of a snapshot: Gs is the moving average of G',
                         choices=['Gs', 'G'], default='Gs')
        command.add_flag('batch', flags.positive_int, 'Pictures at a time; does not change them', default=8,
                         dest='batch_size')
        flags.add_custom_ops_flag(command)
    images.add_argument('--output-grid', nargs='?', const='', metavar='FILE.png',
                        help='Also draw one sheet of all pictures (without a name: grid.png in the run '
                             'directory)')
    return parser


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point. `argv` begins with the name of the program; default: sys.argv."""
    flags.run(flags.run_command, make_parser, argv)


if __name__ == '__main__':
    main()
