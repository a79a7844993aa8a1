"""Commands of run_generator.py that draw the figures of the papers, and videos."""

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from dnnlib import UserError, flags, startup
from generation import generator_flags as common
from generation import runs

# TensorFlow, and all modules that import it, are imported inside the functions: --help and most mistakes are
# answered at once.


# What the commands do before there is a run directory: everything that may turn out to be a mistake.

def _checked(network: str, check: Any, *args: Any) -> Any:
    """check(*args), whose errors name the file of the network."""
    try:
        return check(*args)
    except UserError as error:
        import pretrained_networks
        raise UserError(f'{pretrained_networks.shown(network)}: {error}') from None


def _check_cells(network: Any, num_cells: float, options: dict[str, Any]) -> None:
    from generation import figures
    scale = options.get('scale') or figures.default_scale(network)
    common.check_sheet(network, num_cells * scale ** 2, 'the picture', 'choose less, or a smaller --scale')


def _sources(network_obj: Any, label: Any, options: dict[str, Any], prefix: str = '') -> int:
    """How many sources there are; that files fit is found by reading them."""
    common.load_sources(network_obj, None, options[f'{prefix}latents'], None, label)
    return sum(len(options[f'{prefix}{kind}'] or []) for kind in ('seeds', 'latents'))


def _interpolate_command(network: str, result_dir: str, **options: Any) -> None:
    common.check_sources(options)
    if options['space'] == 'z' and options['latents']:
        raise UserError('--space=z: files of --latents hold w, not z; leave --space out')
    if options['output_sheet'] and options['output_frames']:
        raise UserError('expected --output-frames or --output-sheet, received both')
    if not options['output_frames'] and not options['output_sheet']:
        from generation.video import check_video
        check_video()
    if options['frames'] is None:
        options['frames'] = 9 if options['output_sheet'] else 60
    network_obj, labels = common.load_classes(network, options)
    from generation import latent_walk, sampling
    is_biggan = options['sampling'] is not None
    if options['space'] == 'w' or options['latents']:
        _checked(network, sampling.check_dlatents, network_obj)
    if options['space'] is None:
        options['space'] = 'w' if options['latents'] else 'z'
    common.warn_without_truncation(network_obj, options['truncation_psi'])
    columns, rows = options['grid']
    if not options['output_sheet']:
        common.check_sheet(network_obj, columns * rows, 'a frame', 'choose a smaller --grid')
    files = common.load_sources(network_obj, None, options['latents'], None, None)
    keys = [*(options['seeds'] or []), *files]
    if is_biggan:
        keys = latent_walk.pair_keys(keys, labels)
    elif len(labels) > 1:
        raise UserError(f'--class: a walk between classes needs a BigGAN; network {network_obj.name} '
                        f'({type(network_obj.layer).__name__}) takes one')
    else:
        options['class_idx'] = options['class_idx'][0]
    latent_walk.deal_keys(keys, columns * rows)
    if options['output_sheet']:
        _check_cells(network_obj, len(keys) * (options['frames'] + 1), options)
    common.submit(runs.interpolate, 'interpolate', result_dir, network, **options)


def _sweep_command(network: str, result_dir: str, **options: Any) -> None:
    common.check_sources(options)
    truncations, psis = options.pop('truncations'), options['psis']
    network_obj, labels = common.load_classes(network, options)
    from generation import samplers, sampling
    if options['sampling'] is None:
        if truncations is not None:
            raise UserError(f'--truncation is for BigGAN, network {network_obj.name} '
                            f'({type(network_obj.layer).__name__}) is another kind; --truncation-psi '
                            'truncates w')
        _checked(network, sampling.check_dlatents, network_obj)
        if len(labels) > 1:
            raise UserError('--class: expected one class, received several')
        options['class_idx'] = options['class_idx'][0]
        options['psis'] = psis or [1, 0.7, 0.5, 0, -0.5, -1]
        num_cells = _sources(network_obj, None, options) * len(options['psis'])
    else:
        if psis is not None:
            raise UserError(f'--truncation-psi is for networks with intermediate latents w, network '
                            f'{network_obj.name} has none; --truncation bounds its z')
        if options['latents']:
            _checked(network, sampling.check_dlatents, network_obj)     # It has none.
        options.pop('psis')
        mode = options['sampling'].get('truncation_mode') or samplers.default_mode(network_obj)
        options['truncations'] = truncations or list(samplers.TRUNCATIONS[mode])
        for truncation in options['truncations']:
            _checked(network, samplers.check_options, network_obj,
                     {**options['sampling'], 'truncation': truncation})
        num_cells = len(options['seeds']) * len(labels) * len(options['truncations'])
    _check_cells(network_obj, num_cells, options)
    common.submit(runs.truncation_sweep, 'truncation-sweep', result_dir, network, **options)


def _noise_detail_command(network: str, result_dir: str, **options: Any) -> None:
    common.check_sources(options)
    network_obj, label = common.load(network, options)
    from generation import figures
    _checked(network, figures.check_noise, network_obj)
    if options['zoom'] is not None:
        figures.zoom_box(network_obj, options['zoom'])
    _check_cells(network_obj, 3 * _sources(network_obj, label, options), options)
    common.submit(runs.noise_detail, 'noise-detail', result_dir, network, **options)


def _noise_layers_command(network: str, result_dir: str, **options: Any) -> None:
    common.check_sources(options)
    network_obj, label = common.load(network, options)
    from generation import figures
    _checked(network, figures.check_noise, network_obj)
    sizes = sorted(set(figures.noise_resolutions(network_obj)))
    fine = options['fine_from']
    if fine is None:
        options['fine_from'] = fine = figures.default_fine(network_obj)
        if fine != 64:
            print(f'Note: network {network_obj.name} has resolutions {_range(sizes)}; fine noise is that '
                  f'from {fine}×{fine} up', file=sys.stderr)
    elif fine not in sizes:
        raise UserError(f'--fine-from={fine}: network {network_obj.name} has the resolutions '
                        f'{", ".join(map(str, sizes))}')
    _check_cells(network_obj, 4 * _sources(network_obj, label, options), options)
    common.submit(runs.noise_layers, 'noise-layers', result_dir, network, **options)


def _uncurated_command(network: str, result_dir: str, **options: Any) -> None:
    network_obj, label = common.load(network, options, free_class=True)
    from generation import figures, sampling
    if options['sampling'] is None:
        if label is None:
            _checked(network, sampling.class_label, network_obj, None)
        common.warn_without_truncation(network_obj, options['truncation_psi'])
        if options['truncation_psi'] is None:
            options['truncation_psi'] = 0.7
    elif options['truncation_cutoff'] is not None:
        raise UserError(f'--truncation-cutoff counts layers of w, network {network_obj.name} has none')
    height = network_obj.output_shape[2] * (options['scale'] or figures.default_scale(network_obj))
    width = network_obj.output_shape[3] * height // network_obj.output_shape[2]
    if min(height, width) >> max(options['lods']) < 1:
        raise UserError(f'--lods={common.shown(options["lods"])}: nothing is left of {width}×{height} pixels')
    total = sum(figures.uncurated_counts(options['rows'], options['lods']))
    if options['seed'] + total - 1 > common.MAX_SEED:
        raise UserError(f'--seed={options["seed"]}: the sheet has {total} pictures with seeds from there on; '
                        f'the last seed is {common.MAX_SEED}')
    _check_cells(network_obj, options['rows'] * sum(0.5 ** lod for lod in options['lods']), options)
    common.submit(runs.uncurated, 'uncurated', result_dir, network, **options)


def _mixing_figure_command(network: str, result_dir: str, **options: Any) -> None:
    for side in ('row_', 'col_'):
        common.check_sources(options, side)
    network_obj, label = common.load(network, options)
    from generation import figures
    groups = _checked(network, figures.style_groups, network_obj)
    rows, columns = (_sources(network_obj, label, options, side) for side in ('row_', 'col_'))
    dealt = figures.deal_rows(rows, len(groups))
    _check_cells(network_obj, (columns + 1) * (sum(map(len, dealt)) + 1), options)
    if groups[-1].resolutions[0] != 64:
        texts = (f'{group.name} styles are those of {_range(group.resolutions)}' for group in groups)
        print(f'Note: network {network_obj.name} has less than 64×64 pixels; {", ".join(texts)}',
              file=sys.stderr)
    common.submit(runs.style_mixing_figure, 'style-mixing-figure', result_dir, network, **options)


def _usage_command(run_dir: str | None, network: str | None, result_dir: str, **options: Any) -> None:
    if (run_dir is None) == (network is None):
        raise UserError('expected either --run-dir, for the snapshots of a run, or --network')
    startup.load_tensorflow()  # Before anything else imports it.
    import pretrained_networks
    from generation import resolution_usage as usage
    snapshots = usage.find_snapshots(os.path.abspath(os.path.expanduser(run_dir))
                                     if run_dir else pretrained_networks.local_file(network))
    for _, path in snapshots:
        pretrained_networks.check_path(path)
    first = snapshots[0][1]
    network_obj, _ = common.load(first, options, free_class=True)
    _checked(first, usage.check_skip_generator, network_obj)
    common.submit(runs.resolution_usage, 'resolution-usage', result_dir, None,
                  pickles=[os.path.abspath(path) for _, path in snapshots],
                  kimg=[kimg for kimg, _ in snapshots], **options)


def _jacobian_command(network: str, result_dir: str, **options: Any) -> None:
    network_obj, _ = common.load(network, options, free_class=True)
    from generation import sampling
    _checked(network, sampling.check_dlatents, network_obj)
    common.submit(runs.jacobian, 'jacobian', result_dir, network, **options)


def _neighbours_command(network: str, result_dir: str, **options: Any) -> None:
    if not options['seeds']:
        raise UserError('--seeds is required, but was not given')
    for name in ('data_dir', 'weights_dir'):
        if options[name] is not None:
            options[name] = os.path.abspath(os.path.expanduser(options[name]))
    network_obj, labels = common.load_classes(network, options)
    from generation import neighbours
    common.warn_without_truncation(network_obj, options['truncation_psi'])
    if options['spaces'] is None:
        options['spaces'] = neighbours.default_spaces(options['weights_dir'])
    for space in options['spaces']:
        try:
            neighbours.space_function(space, options['weights_dir'])
        except UserError as error:
            raise UserError(f'--features={space}: {error}') from None
    arguments = {name: options.pop(name) for name in ('dataset', 'label_file', 'label_attr')}
    if arguments['dataset'] is not None and options['data_dir'] is None:
        arguments['dataset'] = os.path.abspath(os.path.expanduser(arguments['dataset']))
    options['dataset_args'] = {name: value for name, value in arguments.items() if value is not None}
    label_size = network_obj.input_shapes[1][1] if network_obj.num_inputs > 1 else 0
    options['dataset_args'].update(resolution=network_obj.output_shape[2],
                                   max_label_size='full' if label_size else 0,
                                   channels=network_obj.output_shape[1])
    training_set = _open_dataset(options['data_dir'], options['dataset_args'])
    _checked(network, neighbours.check_training_set, training_set, network_obj)
    for number in options['class_idx']:
        neighbours.candidates(training_set, number, options['num_neighbours'])
    training_set.close()
    _check_cells(network_obj, len(options['seeds']) * len(labels) * (options['num_neighbours'] + 1), options)
    if len(labels) == 1:
        options['class_idx'] = options['class_idx'][0]
    common.submit(runs.nearest_neighbours, 'nearest-neighbours', result_dir, network, **options)


def _open_dataset(data_dir: str | None, arguments: dict[str, Any]) -> Any:
    """The data set; only folders of images can be read with other channels."""
    from training.dataset import load_dataset
    try:
        return load_dataset(data_dir, **arguments)
    except UserError as error:
        if not str(error).startswith('channels='):
            raise
        del arguments['channels']
        return load_dataset(data_dir, **arguments)


def _range(sizes: Sequence[int]) -> str:
    return f'{sizes[0]}–{sizes[-1]}' if len(sizes) > 1 else f'{sizes[0]}'


# Flags.

def _grid(text: str) -> tuple[int, int]:
    match = re.fullmatch(r'\s*([1-9]\d{0,3})\s*[x×,]\s*([1-9]\d{0,3})\s*', text)
    if not match:
        raise UserError(f'expected columns and rows such as 3x2, received {text!r}')
    return int(match[1]), int(match[2])


def _zoom(text: str) -> list[int]:
    match = re.fullmatch(r'\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*', text)
    if not match:
        raise UserError(f'expected left,top,width in pixels such as 20,6,8, received {text!r}')
    return [int(number) for number in match.groups()]


def _lods(text: str) -> list[int]:
    lods = flags.number_list(text)
    if max(lods) > 10:
        raise UserError(f'expected levels of detail from 0 to 10, received {text!r}')
    return lods


def _spaces(text: str) -> list[str]:
    known = ('pixels', 'vgg16', 'resnet50', 'efflite0', 'inception', 'random')
    return list(dict.fromkeys(flags.choice(known)(part.strip()) for part in text.split(',')))


_spaces.metavar = 'LIST'
_grid.metavar = 'COLUMNSxROWS'
_zoom.metavar = 'LEFT,TOP,WIDTH'
_lods.metavar = 'LIST'


def add_commands(parser: flags.Parser) -> None:
    """Adds the commands of this module to the parser of run_generator.py."""
    network, biggan = '%(prog)s --network=network-final.pkl', '%(prog)s --network=biggan.pkl'

    walk = parser.add_command(
        'interpolate', _interpolate_command, 'Make a video of a walk through the latent space',
        description='Makes a video, interpolation.mp4, of a walk from key to key: from seed to seed or from '
                    'one file of latents to the next. Noise stays as it is; that of files goes along. BigGAN '
                    'also goes from class to class: as many seeds and classes, or one of either for all '
                    'keys; z and the embedded class run on straight lines.',
        examples=[f'{network} --seeds=0-7 --loop', f'{network} --seeds=0-47 --grid=4x3 --interpolation=cubic',
                  f'{network} --latents=me-latents.npz,you-latents.npz --frames=120 --output-frames',
                  f'{biggan} --seeds=5 --class=3,7 --truncation=0.5 --output-sheet',
                  f'{biggan} --seeds=5,6 --class=3,7 --frames=120'])
    common.add_network_flag(walk)
    common.add_source_flags(walk)
    walk.add_flag('space', help='z: great circles between the latents of seeds; w: straight lines between '
                  'intermediate latents (default: z for seeds, w for files)', choices=['z', 'w'])
    walk.add_flag('interpolation', help='linear: at a constant rate from key to key; cubic: a spline, '
                  'without edges at the keys', choices=['linear', 'cubic'], default='linear')
    walk.add_flag('loop', bool, 'Go on from the last key to the first', default=False)
    walk.add_flag('frames', flags.positive_int, 'From one key to the next (default: 60; 9 of a sheet, with 8 '
                  'pictures in between)')
    walk.add_flag('fps', flags.number(0.1, 1000), 'Frames per second', default=30)
    walk.add_flag('grid', _grid, 'Several walks side by side; each has its share of the keys', default='1x1')
    walk.add_flag('output-frames', bool, 'Write pictures, frame0000.png and so on, instead of a video',
                  default=False)
    walk.add_flag('output-sheet', bool, 'Draw a sheet, interpolation.png, instead of a video: a row from '
                  'each key to the next', default=False)

    sweep = parser.add_command(
        'truncation-sweep', _sweep_command, 'Draw seeds at several strengths of the truncation trick',
        description='Draws a sheet, truncation-sweep.png (StyleGAN, figure 8): a row for each seed, a column '
                    'for each ψ. At 0 there is the average image, below it the opposite of a picture. Of a '
                    'BigGAN (figure 2 there): a column for each truncation of z, a row for each class and '
                    'seed.',
        examples=[f'{network} --seeds=0-3', f'{network} --seeds=0-3 --truncation-psi=1,0.5,0',
                  f'{biggan} --class=3 --seeds=0-3 --truncation=none,2,1,0.5,0.04'])
    sweep.add_flag('truncation-psi', common.numbers, 'Strengths, one column each (default: '
                   '1,0.7,0.5,0,-0.5,-1)', dest='psis')
    sweep.add_flag('truncation', common.truncation_list, 'Truncations of the z of BigGAN, one column each; '
                   'none = off (default: 2,1.5,1,0.5,0.04; 1,0.75,0.5,0.25,0.04 of other modes than '
                   'resample)', dest='truncations')

    detail = parser.add_command(
        'noise-detail', _noise_detail_command, 'Show what noise changes: zoom-ins and standard deviation',
        description='Draws a sheet, noise-detail.png (StyleGAN, figure 4), a row for each seed: the picture, '
                    'a part of it with four realisations of the noise, and the standard deviation of each '
                    'pixel. noise-detail.json has the numbers, in levels of gray from 0 to 255.',
        examples=[f'{network} --seeds=0-2', f'{network} --seeds=3 --zoom=650,180,256 --gain=8'])
    detail.add_flag('zoom', _zoom, 'Part to enlarge, in pixels of the picture (default: a quarter of its '
                    'width)')
    detail.add_flag('num-realisations', flags.integer(5, 1_000_000), 'Of the noise', default=100)
    detail.add_flag('noise-seed', flags.integer(0, common.MAX_SEED), 'Of the noise', default=0)
    detail.add_flag('gain', flags.nonneg_float, 'Factor on the standard deviation, for the eye (default: 4, '
                    'or twice, four times … that, where the map would be dark)')

    layers = parser.add_command(
        'noise-layers', _noise_layers_command, 'Show noise of all, no, fine and coarse layers',
        description='Draws a sheet, noise-layers.png (StyleGAN, figure 5), a row for each seed: with noise '
                    'in all layers, in none, in fine layers only, in coarse layers only.',
        examples=[f'{network} --seeds=0-3'])
    layers.add_flag('fine-from', flags.positive_int, 'Resolution that fine layers begin with (default: 64; '
                    'in smaller networks the upper half)')

    plain = parser.add_command(
        'uncurated', _uncurated_command, 'Draw a sheet of pictures in several sizes',
        description='Draws a sheet, uncurated.png (StyleGAN, figure 2): columns of pictures of decreasing '
                    'size, one picture per seed, none left out.',
        examples=[f'{network}', f'{network} --seed=1000 --rows=2 --lods=0,1,1,2,2,2 --truncation-cutoff=8'])
    common.add_network_flag(plain)
    plain.add_flag('seed', flags.integer(0, common.MAX_SEED), 'Of the first picture; the others have the '
                   'following ones', default=0)
    plain.add_flag('rows', flags.integer(1, 1000), 'Pictures in a column of full size', default=3)
    plain.add_flag('lods', _lods, 'Columns: 0 = full size, 1 = half of it, …', default='0,1,2,2,3,3')
    plain.add_flag('truncation-psi', float, 'Truncation trick: 1 = off, 0 = the average image (default: 0.7)')
    plain.add_flag('truncation-cutoff', flags.nonneg_int, 'Truncate only so many layers, from the coarsest '
                   'on (default: as in the network)')

    mixing = parser.add_command(
        'style-mixing-figure', _mixing_figure_command, 'Draw coarse, middle and fine styles mixed',
        description='Draws a sheet, style-mixing.png (StyleGAN, figure 3): sources B on top, sources A on '
                    'the left; a picture has the styles of A, but the coarse (4–8), in further rows the '
                    'middle (16–32), in the last ones the fine (64 and up) ones of B.',
        examples=[f'{network} --row-seeds=888,829,1898,1733,1614,845 --col-seeds=639,701,687,615,2268'])
    common.add_network_flag(mixing)
    common.add_source_flags(mixing, 'row-', ' of the sources A')
    common.add_source_flags(mixing, 'col-', ' of the sources B')

    near = parser.add_command(
        'nearest-neighbours', _neighbours_command, 'Find the training images that pictures are closest to',
        description='Draws sheets of pictures and the training images of their class that they are '
                    'closest to (BigGAN, appendix A), in pixels and in features of a network: '
                    'nearest-pixels.png with a row for each picture, '
                    'seed0000-pixels.png with the picture top left, and so on; '
                    'nearest-neighbours.json has the numbers of the images and the distances.',
        examples=[f'{biggan} --class=0-9 --seeds=0 --dataset=~/datasets/fashion',
                  f'{network} --seeds=0-5 --dataset=~/datasets/ffhq --features=pixels --num-neighbours=11'])
    common.add_network_flag(near)
    near.add_flag('seeds', common.seed_list, "Seeds, such as '1,2,3' or '1-3'", required=True)
    near.add_flag('data-dir', flags.path, 'Folder that holds data sets')
    near.add_flag('dataset', flags.path, 'Data set that the network was trained on (default: the '
                  'embedded one)')
    near.add_flag('label-file', flags.path, 'Its file of labels, as of train.py')
    near.add_flag('label-attr', help='Its attribute that serves as label, as of train.py')
    near.add_flag('num-neighbours', flags.integer(1, 1000), 'Of each picture', default=8)
    near.add_flag('features', _spaces, 'Where distances are measured: pixels, vgg16 (its layer fc7), '
                  'resnet50 (its average pooling), efflite0 or inception (default: pixels, and vgg16 and '
                  'resnet50, else efflite0, where their weights are here)',
                  dest='spaces')
    near.add_flag('weights-dir', flags.path, 'Folder with weights of feature networks (default: '
                  '$STYLEGAN_WEIGHTS_DIR)')

    for command in (sweep, detail, layers):
        common.add_network_flag(command)
        common.add_source_flags(command)
    for command in (walk, detail, layers, mixing, near):
        common.add_psi_flag(command, None, latents=command is not near)
    for command in (sweep, detail, layers, plain, mixing, near):
        command.add_flag('scale', flags.integer(1, 64), 'Enlarge pictures by this factor (default: small '
                         'ones to about 128 pixels)')
    walk.add_flag('scale', flags.integer(1, 64), 'Enlarge pictures of a sheet by this factor (default: small '
                  'ones to about 128 pixels)')
    for command in (walk, sweep, plain, near):
        common.add_sampler_flags(command, truncation=command is not sweep)
    for command in (walk, sweep):
        common.add_common_flags(command, class_help='Class to draw, number or name, or several of a BigGAN; '
                                'conditional networks need one', many_classes=True)
    common.add_common_flags(near, class_help='Classes to draw, numbers, ranges, names or all; conditional '
                            'networks need at least one', many_classes=True)
    common.add_common_flags(plain, class_help='Class to draw, number or name; conditional networks need one, '
                            'but BigGAN draws random ones')
    for command in (detail, layers, mixing):
        common.add_common_flags(command)

    usage = parser.add_command(
        'resolution-usage', _usage_command, 'Plot how much each resolution contributes to the image',
        description='Plots the share of each ToRGB layer in the image over the snapshots of a run '
                    '(StyleGAN2, figure 8): resolution-usage.png and .json. For skip generators.',
        examples=['%(prog)s --run-dir=results/00000-stylegan2-ffhq-8gpu-config-f',
                  f'{network}'])
    usage.add_flag('run-dir', flags.path, 'Run directory of train.py with network snapshots', metavar='DIR')
    common.add_network_flag(usage, required=False)
    jac = parser.add_command(
        'jacobian', _jacobian_command, 'Measure the singular values of the Jacobian of w → image',
        description='Measures the singular values of the Jacobian of w → image at random w (StyleGAN2, '
                    'figure 17): jacobian.png and .json. The closer they are to each other, the more evenly '
                    'the image changes with w.',
        examples=[f'{network}', f'{network} --num-samples=100 --generator=G'])
    common.add_network_flag(jac)
    for command, samples in ((usage, 1024), (jac, 10)):
        command.add_flag('num-samples', flags.positive_int, 'Samples of w', default=samples)
        command.add_flag('seed', flags.integer(0, common.MAX_SEED), 'Of the samples', default=0)
        common.add_psi_flag(command, 1.0)
        common.add_common_flags(
            command, 'Samples at a time' if command is usage else 'Columns of the Jacobian at a time',
            'Class of the samples (default for conditional networks: random ones)')
