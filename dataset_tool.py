"""Makes data sets for training from images and from what publishers ship; shows, checks and unpacks them."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from dnnlib import UserError, flags

FILTERS = ('area', 'box', 'bilinear', 'hamming', 'bicubic', 'lanczos')

# The modules that do the work are imported inside the functions: --help and most mistakes are answered at
# once.


# Commands that write a data set. `options` are the flags of _add_record_flags.

def _create(source: Any, tfrecord_dir: str, options: dict, shuffle: bool | None = None,
            recipe: dict | None = None) -> int:
    """Converts a source; shuffle=None is as the official command of the source does it."""
    from training.datasets.commands import convert_and_report
    from training.datasets.conversion import Interrupted, Options
    from training.datasets.writer import SHUFFLE_SEED
    shuffle = source.shuffled if shuffle is None else shuffle
    options = Options(**options, shuffle_seed=SHUFFLE_SEED if shuffle else None)
    try:
        convert_and_report(source, tfrecord_dir, options, recipe)
    except Interrupted as error:
        print(f'{os.path.basename(sys.argv[0])}: {error}', file=sys.stderr)
        return 130
    return 0


def _archive(name: str, folder: str) -> Any:
    """The function of a command that converts what lies in `folder` by `archives.<name>`."""
    def command(tfrecord_dir: str, **kwargs: Any) -> int:
        from training.datasets import archives
        options = {key: kwargs.pop(key) for key in _RECORD_FLAGS}
        _check_target(tfrecord_dir, options['overwrite'])
        if not name.startswith('lsun'):     # Those are too large to be listed just to leave most of them out.
            options['max_images'] = kwargs.pop('max_images', None)
        return _create(getattr(archives, name)(kwargs.pop(folder), **kwargs), tfrecord_dir, options)
    return command


def _create_celebahq(tfrecord_dir: str, celeba_dir: str, delta_dir: str | None, num_threads: int | None,
                     num_tasks: int | None, **options: Any) -> int:
    from training.datasets import archives
    del num_tasks       # The number of tasks at a time follows from that of the processes.
    _check_target(tfrecord_dir, options['overwrite'])
    options['workers'] = options['workers'] or num_threads
    return _create(archives.celebahq(celeba_dir, delta_dir), tfrecord_dir, options)


def _create_from_hdf5(tfrecord_dir: str, hdf5_filename: str, shuffle: bool, **options: Any) -> int:
    from training.datasets import archives
    _check_target(tfrecord_dir, options['overwrite'])
    return _create(archives.hdf5(hdf5_filename), tfrecord_dir, options, shuffle)


def _create_from_images(tfrecord_dir: str, image_dir: str, shuffle: bool, labels: str, transform: str,
                        width: int | None, height: int | None, resolution: int | None, resize_filter: str,
                        channels: str | None, background: Any, min_side: int | None, **options: Any) -> int:
    from training.datasets.image_files import ImageOptions
    from training.datasets.image_folder import image_folder
    if resolution and (width or height):
        raise UserError('--resolution is --width and --height in one; give it or them')
    image_options = ImageOptions(
        channels=int(channels) if channels else None, background=background, transform=transform,
        width=resolution or width, height=resolution or height, resize_filter=resize_filter,
        min_side=min_side)
    _check_target(tfrecord_dir, options['overwrite'])
    resized = image_options.width is not None or image_options.height is not None
    recipe = {**image_options._asdict(), 'resize_filter': resize_filter if resized else None}
    source = image_folder(image_dir, image_options, labels)
    if min_side:
        recipe['too_small'] = source.too_small
    return _create(source, tfrecord_dir, options, shuffle, recipe)


def _pack(tfrecord_dir: str, source: str, **kwargs: Any) -> int:
    from training.datasets.commands import DatasetSource, is_records
    if not (is_records(source) or source.lower().endswith('.npz') or source == 'pixelart32'):
        return _create_from_images(tfrecord_dir, source, **kwargs)
    defaults = {name: default for name, _, _, default in _IMAGE_FLAGS}
    for name, default in defaults.items():
        if kwargs.pop(name) != default:
            raise UserError(f'--{name.replace("_", "-")} is for folders and zips of images; {source} is a '
                            'data set')
    shuffle = kwargs.pop('shuffle')
    _check_target(tfrecord_dir, kwargs['overwrite'])
    return _create(DatasetSource(source), tfrecord_dir, kwargs, shuffle)


def _check_target(tfrecord_dir: str, overwrite: bool) -> None:
    """Before archives are read, which takes a while: UserError where the data set cannot be put."""
    from training.datasets.workspace import check_target, target_folder
    check_target(target_folder(tfrecord_dir), overwrite)


# Commands that read one.

def _reader(name: str) -> Any:
    """The function of a command of `training.datasets.commands`."""
    def command(**kwargs: Any) -> Any:
        from training.datasets import commands
        return getattr(commands, name)(**kwargs)
    return command


# Flags.

def _colour(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r'\s*([0-9]{1,3})\s*,\s*([0-9]{1,3})\s*,\s*([0-9]{1,3})\s*', text)
    values = tuple(int(value) for value in match.groups()) if match else None
    if values is None:
        from PIL import ImageColor
        try:
            values = ImageColor.getrgb(text.strip())[:3]
        except ValueError:
            values = (256, 256, 256)
    if max(values) > 255:
        raise UserError(f"expected a colour such as white, '#c0c0c0' or 192,192,192; received {text!r}")
    return values


_colour.metavar = 'COLOUR'
_RECORD_FLAGS = ('format', 'quality', 'single_resolution', 'shards', 'workers', 'overwrite', 'skip_bad')
_IMAGE_FLAGS = [
    ('labels', flags.path, "File of labels, dataset.json or CSV of `file,label`; 'folders' = the subfolders "
     "are classes; 'none'; 'auto' = what there is", 'auto'),
    ('transform', ('none', 'center-crop', 'center-crop-wide', 'pad'), 'Before resizing: cut out the largest '
     'square in the middle; the largest 4:3 picture, padded to a square; or pad to a square', 'none'),
    ('width', flags.positive_int, 'Width of the images in pixels', None),
    ('height', flags.positive_int, 'Height', None),
    ('resolution', flags.positive_int, 'Width and height in one', None),
    ('resize_filter', FILTERS, 'Filter for resizing; area averages what a pixel covers, box the whole pixels '
     'in it', 'lanczos'),
    ('min_side', flags.positive_int, 'Leave out images whose shorter side has fewer pixels', None),
    ('channels', ('1', '3', '4'), 'Convert to 1 = gray, 3 = RGB, 4 = RGBA (default: gray if all are gray, '
     'else RGB)', None),
    ('background', _colour, 'Colour behind transparent pixels, which are a mistake without it', None),
]


def _add_record_flags(command: flags.Parser, max_images: bool = True) -> None:
    command.add_flag('format', choices=['raw', 'png', 'jpeg'], default='raw', help=(
        'What a record holds: raw pixels, as official tools read; or a PNG (the same pixels) or JPEG file'))
    command.add_flag('quality', flags.integer(1, 100), 'Quality of JPEG', default=95)
    command.add_flag('single-resolution', bool, (
        'Write the full resolution only, for configs that do not grow; smaller ones are then made while '
        'training (default: true for png and jpeg, false for raw)'))
    command.add_flag('shards', flags.positive_int, 'Files per level', default=1)
    command.add_flag('workers', flags.positive_int, 'Processes (default: one per processor, at most 16)')
    command.add_flag('overwrite', bool, 'Replace a data set of that name', default=False)
    command.add_flag('skip-bad', bool, 'Leave out images that cannot be used, and list them', default=False)
    if max_images:
        command.add_flag('max-images', flags.positive_int, 'Use that many images only')


def _path(text: str) -> str:
    try:
        return flags.path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _command(parser: flags.Parser, name: str, func: Any, help: str, positional: dict[str, str],
             examples: Sequence[str] = (), **kwargs: Any) -> flags.Parser:
    """Adds a command with positional arguments {name: help}."""
    examples = [f'%(prog)s {line}' if line[0] != ' ' else line for line in examples]
    command = parser.add_command(name, func, help, examples=examples, **kwargs)
    for argument, text in positional.items():
        command.add_argument(argument, metavar=argument.upper(), type=_path, help=text)
    return command


_TARGET = {'tfrecord_dir': 'Data set to make, a new folder'}
_SET = {'tfrecord_dir': 'Data set: a folder of TFRecords or images, a zip of images or an .npz file'}


def make_parser() -> flags.Parser:
    """The parser of this command line."""
    parser = flags.Parser(
        'Makes data sets for training, and shows, checks and unpacks them. Names of commands and flags may '
        'be typed with underscores or hyphens. A conversion that was interrupted goes on when the same '
        'command is given again.',
        examples=['%(prog)s create_from_images datasets/cats ~/pictures/cats \\',
                  '    --transform=center-crop --resolution=256 --format=png',
                  '%(prog)s create_mnist datasets/mnist ~/downloads/mnist',
                  '%(prog)s info datasets/mnist --histogram',
                  '%(prog)s create_from_images --help'])
    _add_reading_commands(parser)
    _add_archive_commands(parser)
    _add_image_commands(parser)
    return parser


def _add_reading_commands(parser: flags.Parser) -> None:
    command = _command(
        parser, 'display', _reader('display'), 'Draw a sheet of images, and show it where there is a display',
        _SET, ['datasets/mnist', 'datasets/mnist --layout=row_per_class --output=mnist.png'])
    command.add_flag('output', flags.path, 'PNG file (default: the name of the data set with -display.png)')
    command.add_flag('grid', default='1080p',
                     help="Size of the sheet: 1080p, 4k, 8k, or columns and rows as in '8x6'")
    command.add_flag('layout', choices=['first', 'random', 'row_per_class', 'col_per_class', 'class4x4'],
                     default='first', help='Which images')
    command.add_flag('seed', flags.nonneg_int, 'Seed of the choice', default=0)
    command.add_flag('window', bool, 'Open a window where there is a display', default=True)

    _command(parser, 'extract', _reader('extract'), 'Write all images as PNG files, labels in dataset.json',
             {**_SET, 'output_dir': 'Folder to make'}, ['datasets/mnist images/mnist'])

    command = _command(
        parser, 'compare', _reader('compare'), 'Compare two data sets image by image',
        {'tfrecord_dir_a': 'Data set', 'tfrecord_dir_b': 'The other one'},
        ['datasets/mnist datasets/mnist-png'],
        description='Compares two data sets image by image, in order. Exit status: 0 if all are equal, else '
                    '1.')
    command.add_flag('ignore-labels', bool, 'Compare the images only', default=False)

    command = _command(
        parser, 'info', _reader('info'), 'Print what a data set is: size, shape, format, classes', _SET,
        ['datasets/mnist --histogram'])
    command.add_flag('histogram', bool, 'Show the number of images of each class as bars', default=False)

    _command(parser, 'validate', _reader('validate'), 'Read all of a data set and name what is wrong', _SET,
             ['datasets/mnist'],
             description='Reads all of a data set: checksums, shapes, counts, decoding, labels, '
                         'dataset.json. Names each file and record that is wrong. Exit status: 0 if all is '
                         'right, else 1.')


def _add_archive_commands(parser: flags.Parser) -> None:
    def add(name: str, what: str, folder: str, folder_help: str, max_images: bool = True) -> flags.Parser:
        command = _command(
            parser, f'create_{name}', _archive({'mnistrgb': 'mnist_rgb'}.get(name, name), folder),
            f'Make a data set of {what}', {**_TARGET, folder: folder_help},
            [f'datasets/{name} downloads/{name}'])
        _add_record_flags(command, max_images)
        return command

    files = 'Folder with the files as published: '
    add('mnist', 'MNIST (28×28 padded to 32×32, gray), or Fashion-MNIST', 'mnist_dir',
        files + 'train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz')
    command = add('mnistrgb', 'three random MNIST digits as red, green and blue', 'mnist_dir',
                  files + 'train-images-idx3-ubyte.gz', max_images=False)
    command.add_flag('num-images', flags.positive_int, 'Number of images', default=1000000)
    command.add_flag('random-seed', flags.nonneg_int, 'Seed of the digits', default=123)
    add('cifar10', 'CIFAR-10', 'cifar10_dir', files + 'cifar-10-python.tar.gz, or what it unpacks to')
    add('cifar100', 'CIFAR-100', 'cifar100_dir', files + 'cifar-100-python.tar.gz, or what it unpacks to')
    add('svhn', 'SVHN', 'svhn_dir', files + 'train_32x32.mat')
    lmdb = 'LMDB folder of a category, such as bedroom_train_lmdb'
    command = add('lsun', 'an LSUN category: the middle square, resized', 'lmdb_dir', lmdb)
    command.add_flag('resolution', flags.positive_int, 'Width and height in pixels', default=256)
    command = add('lsun_wide', 'an LSUN category: not square, padded with black', 'lmdb_dir', lmdb)
    command.add_flag('width', flags.positive_int, 'Width in pixels, that of the padded square too',
                     default=512)
    command.add_flag('height', flags.positive_int, 'Height without the padding', default=384)
    command = add('celeba', 'CelebA: 128×128 pixels out of the aligned images', 'celeba_dir',
                  'Folder with img_align_celeba, or its zip')
    command.add_flag('cx', int, 'Middle of the square, from the left', default=89)
    command.add_flag('cy', int, 'Middle of the square, from above', default=121)
    command = _command(
        parser, 'create_celebahq', _create_celebahq, 'Make a data set of CelebA-HQ',
        {**_TARGET, 'celeba_dir': 'Folder with the finished images'}, ['datasets/celebahq celeba-hq'],
        description='Makes a data set of CelebA-HQ from its finished images of 1024×1024 pixels '
                    '(img00000000.png, ... in any format, a zip of them, or imgHQ00000.npy, ...). The '
                    'published deltas alone are not enough: they only fit what one version of libjpeg and '
                    'Pillow makes of CelebA in the wild.')
    command.add_argument('delta_dir', metavar='[DELTA_DIR]', type=_path, nargs='?',
                         help='Second place to look for them (official argument)')
    command.add_flag('num-threads', flags.positive_int, 'Official name of --workers')
    command.add_flag('num-tasks', flags.positive_int, 'Has no effect; for official command lines')
    _add_record_flags(command)


def _add_image_commands(parser: flags.Parser) -> None:
    command = _command(
        parser, 'create_from_images', _create_from_images, 'Make a data set of your own images',
        {**_TARGET, 'image_dir': 'Folder of images, with subfolders, or a zip of one'},
        ['datasets/cats pictures/cats --shuffle 0',
         'datasets/cats pictures.zip --labels=classes.csv \\',
         '    --transform=center-crop --resolution=256',
         'datasets/imagenet512 ILSVRC2012/train --transform=center-crop \\',
         '    --resize-filter=area --resolution=512 --min-side=400 --format=png'])
    command.add_flag('shuffle', bool, 'Shuffle the images (seed 123)', default=True)
    _add_image_flags(command)

    command = _command(
        parser, 'create_from_hdf5', _create_from_hdf5, 'Make a data set of an HDF5 file of the ProGAN tools',
        {**_TARGET, 'hdf5_filename': 'File with data4x4 … or data2 …; labels lie beside it in '
         '<name>-labels.npy'}, ['datasets/celebahq celebahq-1024x1024.h5'])
    command.add_flag('shuffle', bool, 'Shuffle the images (seed 123)', default=True)
    _add_record_flags(command)

    command = _command(
        parser, 'pack', _pack, 'Make records of any data set: folder, zip, .npz, or other records',
        {**_TARGET, 'source': 'Folder or zip of images, .npz file, or a folder of TFRecords to write in '
         'another form'},
        ['datasets/ffhq-png datasets/ffhq --format=png --shards=64', 'datasets/cats cats.zip'],
        description='Makes records of any data set, in its order: a folder or zip of images, an .npz file, '
                    'or TFRecords that are to have another format, other shards or other levels.')
    command.add_flag('shuffle', bool, 'Shuffle the images (seed 123)', default=False)
    _add_image_flags(command)

    _command(parser, 'unpack', _reader('unpack'),
             'Write all images to a folder or zip, labels in dataset.json',
             {**_SET, 'output': 'Folder or .zip file to make'},
             ['datasets/mnist mnist.zip', 'datasets/mnist images/mnist'],
             description='Writes all images to a folder or a zip, from which training can read as well. PNG '
                         'and JPEG come out as they are stored, bit for bit; raw pixels become PNG.')


def _add_image_flags(command: flags.Parser) -> None:
    for name, kind, help, default in _IMAGE_FLAGS:
        choices = {'choices': kind} if isinstance(kind, tuple) else {'type': kind}
        command.add_flag(name, help=help, default=default, **choices)
    _add_record_flags(command)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point. `argv` begins with the name of the program; default: sys.argv."""
    argv = list(sys.argv if argv is None else argv)
    flags.run(flags.run_command, make_parser, argv if len(argv) > 1 else [*argv, '--help'])


if __name__ == '__main__':
    main()
