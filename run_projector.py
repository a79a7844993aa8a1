"""Projects images into the latent space of a generator: which latents draw an image like this one?"""

import os
from collections.abc import Sequence
from typing import Any, NoReturn

import dnnlib
from dnnlib import UserError, flags
from generation import generator_flags
from generation.generator_flags import submit

# TensorFlow, and all modules that import it, are imported inside the functions: --help and most mistakes are
# answered at once.


def project_generated_images(
    submit_config: dnnlib.SubmitConfig,         # Of the run; not used.
    network_pkl: str,                           # Pickle with the generator.
    seeds: Sequence[int],                       # One image each.
    truncation_psi: float = 1.0,                # Truncation trick of the target images.
    **options: Any,                             # See _begin.
) -> None:
    """Draws images and finds them again in the latent space of their generator."""
    del submit_config
    from generation import projection
    network, label, options = _begin(network_pkl, **options)
    projection.project(network, label, _draw(network, label, seeds, truncation_psi),
                       [f'seed{seed:04d}' for seed in seeds], options)


def project_real_images(
    submit_config: dnnlib.SubmitConfig,         # Of the run; not used.
    network_pkl: str,                           # Pickle with the generator.
    data_dir: str | None = None,                # Folder of data sets.
    dataset: str | None = None,                 # Data set. None = the embedded one.
    num_images: int = 3,                        # Its first images are projected.
    **options: Any,                             # See _begin.
) -> None:
    """Projects images of a data set."""
    del submit_config
    from generation import projection
    network, label, options = _begin(network_pkl, **options)
    images = _read(network, data_dir, dataset, num_images)
    projection.project(network, label, images, [f'image{i:04d}' for i in range(len(images))], options)


def project_images(
    submit_config: dnnlib.SubmitConfig,         # Of the run; not used.
    network_pkl: str,                           # Pickle with the generator.
    targets: Sequence[str],                     # Image files.
    initial: Sequence[str] | None = None,       # Files of latents to go on from, one for each.
    **options: Any,                             # See _begin.
) -> None:
    """Projects image files, cut to the middle and resized to the size of the network."""
    del submit_config
    from generation import latent_sources, projection
    network, label, options = _begin(network_pkl, **options)
    latents = initial and latent_sources.from_files(network, initial)
    projection.project(network, label, _load_targets(targets, network), _prefixes(targets), options,
                       latents)


def detect(
    submit_config: dnnlib.SubmitConfig,         # Of the run; not used.
    network_pkl: str,                           # Pickle with the generator.
    targets: Sequence[str],                     # Image files.
    data_dir: str | None = None,                # Folder of data sets.
    dataset: str | None = None,                 # What the network was trained on. None = the embedded set.
    num_references: int = 24,                   # Images of each kind to compare with.
    truncation_psi: float = 1.0,                # Truncation trick of the generated ones.
    **options: Any,                             # See _begin.
) -> None:
    """Says of image files whether the network has made them."""
    del submit_config
    from generation import projection
    network, label, options = _begin(network_pkl, num_snapshots=0, **options)
    projection.detect(network, label, _load_targets(targets, network), _prefixes(targets),
                      _draw(network, label, range(num_references), truncation_psi),
                      _read(network, data_dir, dataset, num_references),
                      options)


def _draw(network: Any, label: Any, seeds: Sequence[int], psi: float) -> Any:
    """Images of seeds: uint8 [N, C, H, W]."""
    import numpy as np

    from generation import sampling
    return np.stack([image for _, image in sampling.generate(network, list(seeds), psi, label)])


def _read(network: Any, data_dir: str | None, dataset: str | None, num_images: int) -> Any:
    """The first images of a data set at the resolution of the network: uint8 [N, C, H, W]."""
    import numpy as np

    from training.dataset import load_dataset
    training_set = load_dataset(data_dir, dataset, network.output_shape[2])
    if list(training_set.shape) != list(network.output_shape[1:]):
        raise UserError(f'network {network.name} draws images of shape {network.output_shape[1:]}; those of '
                        f'data set {training_set.name} have {training_set.shape}')
    images, _ = training_set.read(np.arange(min(num_images, len(training_set))))
    return images.transpose(0, 3, 1, 2)


def _begin(
    network_pkl: str,
    class_idx: int | None = None,               # Class, for conditional networks.
    generator: str = 'Gs',                      # Which network of a snapshot.
    network_file: str | None = None,            # File that network_pkl was downloaded to, for the records.
    **options: Any,                             # generation.projection.Options.
) -> tuple[Any, Any, Any]:
    """The generator, the label of the class and the options of a run."""
    from generation import projection, sampling
    network, label = sampling.load_generator(network_file or network_pkl, generator, class_idx)
    return network, label, projection.Options(**options)


def _load_targets(paths: Sequence[str], network: Any, verbose: bool = True) -> Any:
    """Image files as the network would draw them: uint8 [N, C, H, W], the middle of each picture, resized.

    Says of each picture that is not as it is in the file, unless `verbose` is False.
    """
    import numpy as np

    from training.datasets.image_files import ImageOptions, load_image, open_image, oriented_size
    _, channels, height, width = network.output_shape
    options = ImageOptions(channels, background=(255, 255, 255), transform='center-crop', width=width,
                           height=height)
    images = []
    for path in paths:
        size = oriented_size(open_image(path))
        if verbose and size != (width, height):
            side = min(size)
            cut = f'the middle {side}x{side} of ' if size != (side, side) else ''
            print(f'{path}: {cut}{size[0]}x{size[1]} pixels, resized to {width}x{height}')
        images.append(load_image(path, path, options).transpose(2, 0, 1))
    return np.stack(images)


def _find_targets(paths: Sequence[str], flag: str = '--target') -> list[str]:
    """The image files of a list of files and folders, in order, folders by name."""
    from training.datasets.image_files import IMAGE_EXTENSIONS
    found = []
    for path in paths:
        path = os.path.expanduser(path)
        if os.path.isdir(path):
            names = sorted(name for name in os.listdir(path)
                           if not name.startswith('.') and name.lower().endswith(IMAGE_EXTENSIONS))
            if not names:
                raise UserError(f'{flag}: {path} holds no images ({", ".join(IMAGE_EXTENSIONS)})')
            found += [os.path.join(path, name) for name in names]
        elif os.path.isfile(path):
            found.append(path)
        else:
            raise UserError(f'{flag}: there is no file or folder {path}')
    return [os.path.abspath(path) for path in found]


def _prefixes(paths: Sequence[str]) -> list[str]:
    """What the files of each target begin with: its name; numbered where two have one name."""
    return generator_flags.distinct([os.path.splitext(os.path.basename(path))[0] for path in paths])


# What the commands do before there is a run directory: everything that may turn out to be a mistake.

def _check(network: str, options: dict[str, Any]) -> Any:
    network_obj, _ = generator_flags.load(network, options)
    import pretrained_networks
    from projector import check_network
    try:
        check_network(network_obj)
    except UserError as error:
        raise UserError(f'{pretrained_networks.shown(network)}: {error}') from None
    _check_distance(network_obj, options)
    if options['save_video']:
        from generation.video import check_video
        check_video()
    return network_obj


def _check_distance(network: Any, options: dict[str, Any]) -> None:
    """Chooses a distance where none is given, and sees whether its weights are there and sound."""
    import projector
    if options['weights_dir'] is not None and not dnnlib.util.is_remote_path(options['weights_dir']):
        options['weights_dir'] = os.path.abspath(os.path.expanduser(options['weights_dir']))
    options['distance'] = options['distance'] or projector.choose_distance(options['weights_dir'])
    projector.find_distance(options['distance'], options['weights_dir'])
    height, width = network.output_shape[2:]
    if options['distance'] == 'lpips' and min(height, width) < 16:
        raise UserError(f'--distance=lpips: expected images of at least 16×16, network {network.name} draws '
                        f'{width}×{height}; choose efflite0 or l2')


def _generated_command(network: str, result_dir: str, **options: Any) -> None:
    _check(network, options)
    submit(project_generated_images, 'project-generated-images', result_dir, network, **options)


def _real_command(network: str, result_dir: str, **options: Any) -> None:
    _read(_check(network, options), options['data_dir'], options['dataset'], 1)
    submit(project_real_images, 'project-real-images', result_dir, network, **options)


def _images_command(network: str, target: list[str], result_dir: str, **options: Any) -> None:
    options['targets'] = _find_targets(target)
    network_obj = _check(network, options)
    _load_targets(options['targets'], network_obj, verbose=False)
    if options['initial'] is not None:
        from generation.latent_sources import from_files
        sources = from_files(network_obj, options['initial'])
        if len(sources) != len(options['targets']):
            raise UserError(f'--initial: expected latents for each of {len(options["targets"])} images, '
                            f'received {len(sources)}')
        for source in sources:
            if options['space'] == 'w' and (source.dlatents != source.dlatents[0]).any():
                raise UserError(f'--initial: {source.name} has latents of its own for each layer; go on with '
                                '--space=w+')
    submit(project_images, 'project-images', result_dir, network, **options)


def _detect_command(network: str, images: list[str], result_dir: str, **options: Any) -> None:
    options['targets'] = _find_targets(images, '--images')
    network_obj = _check(network, options)
    _load_targets(options['targets'], network_obj, verbose=False)
    if len(_read(network_obj, options['data_dir'], options['dataset'], 2)) < 2:
        raise UserError('--dataset: expected at least 2 images to compare with, found 1')
    submit(detect, 'detect', result_dir, network, **options)


# Flags.

def _file_list(text: str) -> list[str]:
    return [flags.path(part) for part in text.split(',')]


_file_list.metavar = 'FILES|DIR'


def make_parser() -> flags.Parser:
    """The parser of this command line."""
    parser = flags.Parser('Projects images into the latent space of a generator.', examples=[
        '%(prog)s project-generated-images --network=network-final.pkl --seeds=0,1,5',
        '%(prog)s project-real-images --network=network-final.pkl --dataset=~/datasets/ffhq --num-images=3',
        '%(prog)s project-images --network=network-final.pkl --target=me.jpg --space=w+ --save-video',
        '%(prog)s detect --network=network-final.pkl --dataset=~/datasets/ffhq --images=suspects/',
    ])
    generated = parser.add_command(
        'project-generated-images', _generated_command, 'Project images of the generator itself')
    real = parser.add_command('project-real-images', _real_command, 'Project images of a data set')
    images = parser.add_command('project-images', _images_command, 'Project image files')
    detection = parser.add_command(
        'detect', _detect_command, 'Is this image from this network?',
        description='Projects image files, images of the network and real images, and tells by the distances '
                    'whether the network has made the files (StyleGAN2, section 5.1).')
    commands = (generated, real, images, detection)
    for command in commands:
        generator_flags.add_network_flag(command)
    generated.add_flag('seeds', generator_flags.seed_list, "Seeds, such as '1,2,3' or '1-3'", default='0-2')
    for command in (generated, detection):
        command.add_flag('truncation-psi', float, 'Truncation of generated images: 1 = off', default=1.0)
    for command in (real, detection):
        command.add_flag('data-dir', flags.path, 'Folder that holds data sets')
        command.add_flag('dataset', flags.path, 'Data set (default: the embedded one)')
    real.add_flag('num-images', flags.positive_int, 'Its first images are projected', default=3)
    detection.add_flag('num-references', flags.integer(2), 'Generated and real images to compare with, each',
                       default=24)
    for command, name in ((images, 'target'), (detection, 'images')):
        command.add_flag(name, _file_list, 'Image files, separated by commas, or a folder; the middle of '
                         'each is resized to the size of the network', required=True)
    images.add_flag('initial', generator_flags.latents_list, 'Files that --save-latents wrote, one per '
                    'image, to start from instead of the average; the schedule is that of a new projection')
    for command in commands:
        add = command.add_flag
        if command is not detection:
            add('num-snapshots', flags.nonneg_int, 'Pictures on the way, the last one included', default=5)
        add('num-steps', flags.positive_int, 'Steps of the optimization', default=1000)
        add('space', help='w: one latent for all layers; w+: one for each, closer but harder to edit',
            choices=['w', 'w+'], default='w')
        add('distance', help='What is made small: lpips = LPIPS, by weights of VGG16; efflite0 = the same '
            'idea with EfficientNet-Lite0, which a package brings; l2 = mean squared difference of pixels '
            '(default: the first of these that is there)', choices=['lpips', 'efflite0', 'l2'])
        add('weights-dir', flags.path, 'Folder with the weights of VGG16 (default: $STYLEGAN_WEIGHTS_DIR)')
        add('seed', flags.nonneg_int, 'Of the noise', default=0)
        add('save-latents', bool, 'Write <image>-latents.npz: latents, noise, losses', default=False)
        add('save-video', bool, 'Write <image>-video.mp4: the target beside the projection', default=False)
        generator_flags.add_common_flags(command, 'Images at a time; does not change them',
                                         'Class, for conditional networks')
    return parser


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point. `argv` begins with the name of the program; default: sys.argv."""
    flags.run(flags.run_command, make_parser, argv)


if __name__ == '__main__':
    main()
