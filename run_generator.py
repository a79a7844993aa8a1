"""Draws pictures with a trained generator: one per seed, tables of mixed styles, figures and videos."""

import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import dnnlib
from dnnlib import UserError, flags
from generation import commands
from generation.generator_flags import (
    add_common_flags,
    add_network_flag,
    add_psi_flag,
    add_sampler_flags,
    add_source_flags,
    check_sheet,
    check_sources,
    distinct,
    load,
    load_classes,
    load_sources,
    seed_psi,
    shown,
    submit,
    warn_without_truncation,
)

# TensorFlow, and all modules that import it, are imported inside the functions: --help and most mistakes are
# answered at once.


def generate_images(
    submit_config: dnnlib.SubmitConfig,         # Of the run; not used.
    network_pkl: str,                           # Pickle with the generator: path, address or alias.
    seeds: Sequence[int] | None = None,         # One picture each, of each class.
    truncation_psi: float | None = None,        # Truncation trick. None = 0.5 for seeds, 1 for latents.
    class_idx: int | Sequence[int | None] | None = None,    # Class or classes, for conditional networks.
    generator: str = 'Gs',                      # Which network of a snapshot.
    batch_size: int = 8,                        # Pictures at a time.
    output_grid: str | None = None,             # PNG file for a sheet of all; '' = grid.png of the run.
    network_file: str | None = None,            # File that network_pkl was downloaded to, for the records.
    latents: Sequence[str] | None = None,       # .npz files of latents; one picture each.
    sampling: dict | None = None,               # Of BigGAN: arguments of generation.samplers.make_sampler.
) -> None:
    """Writes seed%04d.png for each seed, and <name>.png for each file, to the run directory.

    Of several classes: class%04d-seed%04d.png; a sheet has a row for each class.
    """
    del submit_config
    from generation import latent_sources, samplers
    from generation import sampling as drawing
    from training import misc
    chosen = list(class_idx) if isinstance(class_idx, list | tuple) else [class_idx]
    network, label = drawing.load_generator(network_file or network_pkl, generator, chosen[0])
    sheet = []

    def save(images, total):
        for name, image in drawing.progress(images, total):
            misc.save_image(image, dnnlib.make_run_dir_path(f'{name}.png'), drange=[0, 255])
            if output_grid is not None:
                sheet.append(image)

    if seeds:
        sampler = samplers.make_sampler(network, **sampling, verbose=True) if sampling is not None else None
        images = samplers.class_pictures(network, sampler, chosen, seeds, seed_psi(truncation_psi),
                                         batch_size)
        prefix = 'class{:04d}-' if len(chosen) > 1 else ''
        save(((f'{prefix}seed{{:04d}}'.format(*([number] if prefix else []), seed), image)
              for number, seed, image in images), len(seeds) * len(chosen))
    if latents:
        sources = load_sources(network, None, latents, truncation_psi, label)
        images = drawing.synthesize(network, [source.dlatents for source in sources], batch_size,
                                    latent_sources.noises_of(network, sources))
        names = distinct([source.name for source in sources], [f'seed{seed:04d}' for seed in seeds or []])
        save(zip(names, images, strict=True), len(sources))
    if output_grid is not None:
        path = output_grid or dnnlib.make_run_dir_path('grid.png')
        size = (len(seeds), len(chosen)) if len(chosen) > 1 else None
        misc.save_image_grid(sheet, path, drange=[0, 255], grid_size=size)


def style_mixing_example(
    submit_config: dnnlib.SubmitConfig,         # Of the run; not used.
    network_pkl: str,                           # Pickle with the generator: path, address or alias.
    row_seeds: Sequence[int] | None,            # Sources of the rows: of all layers but col_styles.
    col_seeds: Sequence[int] | None,            # Sources of the columns: of the layers col_styles.
    col_styles: Sequence[int],                  # Layers of w to take from the column.
    truncation_psi: float | None = None,        # Truncation trick. None = 0.5 for seeds, 1 for latents.
    class_idx: int | None = None,               # Class, for conditional networks.
    generator: str = 'Gs',                      # Which network of a snapshot.
    batch_size: int = 8,                        # Pictures at a time.
    network_file: str | None = None,            # File that network_pkl was downloaded to, for the records.
    row_latents: Sequence[str] | None = None,   # .npz files of latents: further rows, with their noise.
    col_latents: Sequence[str] | None = None,   # .npz files of latents: further columns.
) -> None:
    """Writes <row>-<col>.png for each pair, <seed>-<seed>.png (unmixed) and grid.png to the run directory."""
    del submit_config
    import numpy as np

    from generation import latent_sources, sampling
    from training import misc
    network, label = sampling.load_generator(network_file or network_pkl, generator, class_idx)
    sources, rows, columns = _mixing_sources(network, label, truncation_psi, row_seeds, row_latents,
                                             col_seeds, col_latents)
    pairs = list(dict.fromkeys([*((name, name) for name in sources),
                                *((row, col) for row in rows for col in columns)]))
    mixed = np.stack([sampling.mix_styles(sources[row].dlatents, sources[col].dlatents, col_styles)
                      for row, col in pairs])
    noises = latent_sources.noises_of(network, [sources[row] for row, _ in pairs])
    images = {}
    progress = sampling.progress(sampling.synthesize(network, mixed, batch_size, noises), len(pairs))
    for (row, col), image in zip(pairs, progress, strict=True):
        images[row, col] = image
        misc.save_image(image, dnnlib.make_run_dir_path(f'{row}-{col}.png'), drange=[0, 255])
    cells = [np.zeros_like(image), *(images[col, col] for col in columns)]
    for row in rows:
        cells += [images[row, row], *(images[row, col] for col in columns)]
    misc.save_image_grid(cells, dnnlib.make_run_dir_path('grid.png'), drange=[0, 255],
                         grid_size=(len(columns) + 1, len(rows) + 1))


def _mixing_sources(network: Any, label: Any, psi: float | None, row_seeds: Sequence[int] | None,
                    row_latents: Sequence[str] | None, col_seeds: Sequence[int] | None,
                    col_latents: Sequence[str] | None) -> tuple[dict[str, Any], list[str], list[str]]:
    """({name: source}, names of the rows, names of the columns); UserError where two have one name."""
    import numpy as np
    rows = load_sources(network, row_seeds, row_latents, psi, label)
    columns = load_sources(network, col_seeds, col_latents, psi, label)
    sources: dict[str, Any] = {}
    for source in [*rows, *columns]:
        known = sources.setdefault(source.name, source)
        if not np.allclose(known.dlatents, source.dlatents, rtol=1e-3, atol=1e-3):
            raise UserError(f'two different sources have the name {source.name}, which their pictures would '
                            'have too; rename the file')
    return sources, [source.name for source in rows], [source.name for source in columns]


# What the commands do before there is a run directory: everything that may turn out to be a mistake.

def _generate_images_command(network: str, result_dir: str, output_grid: str | None, **options: Any) -> None:
    check_sources(options)
    if output_grid:
        if pathlib.PurePath(output_grid).suffix.lower() != '.png':
            raise UserError(f'--output-grid: expected a name that ends in .png, received {output_grid!r}')
        output_grid = os.path.abspath(os.path.expanduser(output_grid))
        if not os.path.isdir(os.path.dirname(output_grid)):
            raise UserError(f'--output-grid: there is no directory {os.path.dirname(output_grid)}')
    network_obj, labels = load_classes(network, options)
    warn_without_truncation(network_obj, options['truncation_psi'])
    if len(labels) > 1 and options['latents']:
        raise UserError('--latents: pictures of files have no class; leave --class out or name one')
    files = load_sources(network_obj, None, options['latents'], options['truncation_psi'], labels[:1])
    if output_grid is not None:
        check_sheet(network_obj, len(options['seeds'] or []) * len(labels) + len(files), '--output-grid',
                    'leave it out or choose fewer seeds')
    if len(labels) == 1:
        options['class_idx'] = options['class_idx'][0]
    submit(generate_images, 'generate-images', result_dir, network, output_grid=output_grid, **options)


def _style_mixing_command(network: str, col_styles: list[int], result_dir: str, **options: Any) -> None:
    for side in ('row_', 'col_'):
        check_sources(options, side)
    network_obj, label = load(network, options)
    synthesis = network_obj.components.get('synthesis')
    num_layers = synthesis.input_shape[1] if synthesis else 0
    num_layers = 0 if num_layers == 1 else num_layers  # Without styles w is an input like z.
    valid = [layer for layer in col_styles if layer < num_layers]
    if not valid:
        raise UserError(f'--col-styles={shown(col_styles)}: network {network_obj.name} has '
                        + (f'layers 0-{num_layers - 1}' if num_layers else 'no styles to mix'))
    rows, columns = (sum(len(options[f'{side}_{kind}'] or []) for kind in ('seeds', 'latents'))
                     for side in ('row', 'col'))
    check_sheet(network_obj, (rows + 1) * (columns + 1), 'grid.png', 'choose fewer seeds')
    _mixing_sources(network_obj, label, options['truncation_psi'],
                    *(options[f'{side}_{kind}'] for side in ('row', 'col') for kind in ('seeds', 'latents')))
    if len(valid) < len(col_styles):
        print(f'Warning: network {network_obj.name} has layers 0-{num_layers - 1}; of '
              f'--col-styles={shown(col_styles)} only {shown(valid)} are mixed', file=sys.stderr)
    submit(style_mixing_example, 'style-mixing-example', result_dir, network, col_styles=valid, **options)


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
        description='Draws one picture per seed, seed0000.png and so on, in a new run directory; or one '
                    'per file of latents. Of several classes: class0000-seed0000.png and so on.',
        examples=[
            '%(prog)s --network=network-final.pkl --seeds=6600-6625',
            '%(prog)s --network=network-final.pkl --seeds=1,5,7-9 \\',
            '    --truncation-psi=1 --class=3 --output-grid=sheet.png',
            '%(prog)s --network=network-final.pkl --latents=me-latents.npz',
            '%(prog)s --network=biggan.pkl --class=0-9 --seeds=0-7 --truncation=0.5 --output-grid',
            '%(prog)s --network=biggan.pkl --class=Sandal,Bag --seeds=0-7 --statistics=running',
        ])
    mixing = parser.add_command(
        'style-mixing-example', _style_mixing_command, 'Draw a table of mixed styles',
        description='Draws a table of mixed styles, grid.png, and its pictures, <row>-<col>.png, in a new '
                    'run directory. A picture has the styles of its row, but those of its column in some '
                    'layers.',
        examples=[
            '%(prog)s --network=network-final.pkl \\',
            '    --row-seeds=85,100,75,458,1500 --col-seeds=55,821,1789,293 --col-styles=0-6',
            '%(prog)s --network=network-final.pkl --row-latents=me-latents.npz --col-seeds=55,821 \\',
            '    --col-styles=0-3',
        ])
    for command in (images, mixing):
        add_network_flag(command)
        if command is images:
            add_source_flags(command)
        else:
            add_source_flags(command, 'row-', ' of the rows')
            add_source_flags(command, 'col-', ' of the columns')
            command.add_flag('col-styles', flags.number_list,
                             'Layers whose style comes from the column; 0 is the coarsest', default='0-6')
        add_psi_flag(command, None)
    add_sampler_flags(images)
    add_common_flags(images, class_help='Classes to draw, numbers, ranges, names or all; a sheet has a row '
                     'for each; conditional networks need at least one', many_classes=True)
    add_common_flags(mixing)
    images.add_argument('--output-grid', nargs='?', const='', metavar='FILE.png',
                        help='Also draw one sheet of all pictures (without a name: grid.png in the run '
                             'directory)')
    commands.add_commands(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point. `argv` begins with the name of the program; default: sys.argv."""
    flags.run(flags.run_command, make_parser, argv)


if __name__ == '__main__':
    main()
