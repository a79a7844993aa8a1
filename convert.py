"""Converts networks: pickles to safetensors, Keras weights, a SavedModel; others' weights to pickles."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from dnnlib import UserError, flags

# TensorFlow, and all modules that import it, are imported inside the functions: --help and most mistakes are
# answered at once.

_ENDINGS = ('.weights.h5', '.safetensors', '.pkl', '.pickle', '.pt', '.pth', '.bin', '.gz', '.h5')
_STATE_DICTS = ('.pth', '.bin', '.safetensors')     # What pickle-to-biggan writes.


# The commands.

def _pickle_to_safetensors(file: str, out: str | None, overwrite: bool) -> None:
    out = _output(file, out, '.safetensors', overwrite, with_config=True)
    content = _load_pickle(file)
    from dnnlib.tflib.conversion import tensors
    tensors.write(content, out)
    _report(out, tensors.config_path(out))


def _safetensors_to_pickle(file: str, out: str | None, overwrite: bool) -> None:
    out = _output(file, out, '.pkl', overwrite)
    _load_tensorflow()
    from dnnlib.tflib import legacy
    from dnnlib.tflib.conversion import tensors
    legacy.save_pkl(tensors.read(_local(file)), out)
    _report(out)


def _pickle_to_keras(file: str, out: str | None, overwrite: bool, network: str) -> None:
    out = _output(file, out, '.weights.h5', overwrite, with_config=True)
    state, built = _load_network(file, network)
    import json

    from dnnlib.tflib.conversion import config, keras_weights, tensors
    document, _ = config.encode(state)
    keras_weights.save(built, out)
    tensors.write_config(json.dumps(document, indent=1, allow_nan=False), out)
    _report(out, tensors.config_path(out))


def _keras_to_pickle(file: str, out: str | None, overwrite: bool) -> None:
    out = _output(file, out, '.pkl', overwrite)
    _load_tensorflow()
    from dnnlib.tflib import legacy
    from dnnlib.tflib.conversion import keras_weights
    legacy.save_pkl(keras_weights.read(_local(file)), out)
    _report(out)


def _pickle_to_savedmodel(file: str, out: str | None, overwrite: bool, network: str, noise: str) -> None:
    out = _output(file, out, '', overwrite, directory=True)
    _, built = _load_network(file, network)
    from dnnlib.tflib.conversion import saved_model
    os.makedirs(os.path.dirname(out) or '.', exist_ok=True)  # TensorFlow Serving wants models/NAME/1.
    metadata = saved_model.export(built, out, noise, overwrite)
    if not metadata['truncation']:
        print(f'Note: network {built.name} has no intermediate latents; truncation_psi has no effect')
    for name, (dtype, shape) in metadata['signature'].items():
        print(f'{"returns" if name == "images" else "takes  "} {name}: {dtype} '
              f'[{", ".join("N" if size is None else str(size) for size in shape)}]')
    _report(out)


def _pytorch_to_pickle(file: str, out: str | None, overwrite: bool) -> None:
    out = _output(file, out, '.pkl', overwrite)
    _load_tensorflow()
    from dnnlib import tflib
    from dnnlib.tflib import torch_pickle
    from dnnlib.tflib.conversion import pytorch
    path = _local(file)
    content = torch_pickle.load_torch(path)
    try:
        states, notes = pytorch.to_network_states(content)
        for state in states.values():
            len(tflib.Network.from_state(state).vars)   # What is written can be read.
    except UserError as error:
        raise UserError(f'{path}: {error}') from None
    _save_states(states, notes, out)


def _save_states(states: dict[str, Any], notes: Sequence[str], out: str) -> None:
    """Writes networks that were converted: a snapshot where all three are there."""
    from dnnlib.tflib import legacy
    for note in notes:
        print(f'Note: {note}')
    if set(states) == {'G', 'D', 'Gs'}:
        content = states['G'], states['D'], states['Gs']
    else:
        print(f'Note: expected the networks G, D and G_ema, found {", ".join(states)}; training cannot go on '
              'from the pickle')
        content = next(iter(states.values())) if len(states) == 1 else states
    legacy.save_pkl(content, out)
    _report(out)


def _biggan_to_pickle(files: list[str], out: str | None, overwrite: bool, class_names: str | None,
                      **options: Any) -> None:
    for file in files:
        _check_input(file, folder=True)
    out = _output(files[0], out, '.pkl', overwrite, folder=True)
    _load_tensorflow()
    from dnnlib import tflib
    from dnnlib.tflib.conversion import biggan_import
    from training.datasets.labels import read_names
    names = read_names(class_names) if class_names else None
    paths = [file if os.path.isdir(file) else _local(file) for file in files]
    states, notes = biggan_import.load(paths, class_names=names, **options)
    for state in states.values():
        len(tflib.Network.from_state(state).vars)   # What is written can be read.
        print(f'{state.name}: {state.build_func_name}, '
              + ', '.join(f'{key} {state.static_kwargs[key]}' for key in ('resolution', 'label_size', 'ch')))
    _save_states(states, notes, out)


def _change_classes(file: str, out: str | None, overwrite: bool, class_names: str | None,
                    **options: Any) -> None:
    if options['num_classes'] is None and options['class_map'] is None and class_names is None:
        raise UserError('expected --classes, --class-map or --class-names; received none of them')
    out = _output(file, out, '.pkl', overwrite)
    content = _load_pickle(file)
    from dnnlib.tflib import legacy
    from dnnlib.tflib.conversion import biggan_import
    from training.datasets.labels import read_names
    names = read_names(class_names) if class_names else None
    states = {state.name: state for state in legacy.network_states(content)}
    for note in biggan_import.apply_classes(states, class_names=names, **options):
        print(f'Note: {note}')
    legacy.save_pkl(content, out)
    _report(out)


def _pickle_to_biggan(file: str, out: str | None, overwrite: bool, network: str) -> None:
    ending = os.path.splitext(out or '')[1]
    if out is not None and ending not in _STATE_DICTS:
        raise UserError(f'--out: expected a name that ends in {", ".join(_STATE_DICTS)}; received {out!r}')
    out = _output(file, out or {'G': 'G.pth', 'D': 'D.pth', 'Gs': 'G_ema.pth'}[network], ending or '.pth',
                  overwrite)
    content = _load_pickle(file)
    from dnnlib.tflib import legacy
    from dnnlib.tflib.conversion import biggan_export
    try:
        state = legacy.find_network(content, network)
        biggan_export.write(state, out)
    except UserError as error:
        raise UserError(f'{file}: {error}') from None
    lost = biggan_export.lost_arguments(state)
    if lost:
        print('Note: the file does not hold what biggan-to-pickle needs to make the same network of it: '
              + ' '.join(f'--{key.replace("_", "-")}={value:g}' for key, value in lost.items())
              + " (BigGAN-PyTorch's scripts: --BN_eps, --SN_eps)")
    _report(out)


def _info(file: str) -> None:
    _check_input(file, folder=True)
    if os.path.isdir(file):
        _load_tensorflow()
        from dnnlib.tflib.conversion import biggan_import
        for line in biggan_import.describe(file):
            print(line)
        return
    path = _local(file)
    with open(path, 'rb') as stream:
        head = stream.read(64)
    _load_tensorflow()
    from dnnlib.tflib.conversion import report
    print(f'{file}: {os.path.getsize(path) / 1e6:.1f} MB')
    for line in report.describe(path, head):
        print(line)


# What the commands share.

def _load_tensorflow() -> None:
    from dnnlib.startup import load_tensorflow
    load_tensorflow()


def _local(file: str) -> str:
    """The file itself, downloaded where need be."""
    import pretrained_networks
    return pretrained_networks.local_file(file)


def _load_pickle(file: str) -> Any:
    path = _local(file)
    _load_tensorflow()
    from dnnlib.tflib import legacy
    content = legacy.load_pkl(path)
    if not legacy.network_states(content):
        raise UserError(f'{file}: expected a pickle of networks, found a {type(content).__name__}')
    return content


def _load_network(file: str, role: str) -> tuple[Any, Any]:
    """One network of a pickle: as it is pickled, and built."""
    from dnnlib import tflib
    from dnnlib.tflib import legacy
    content = _load_pickle(file)
    try:
        state = legacy.find_network(content, role)
        return state, tflib.Network.from_state(state)
    except UserError as error:
        raise UserError(f'{file}: {error}') from None


def _output(file: str, out: str | None, ending: str, overwrite: bool, with_config: bool = False,
            directory: bool = False, folder: bool = False) -> str:
    """The name of the result; UserError where it cannot, or must not, be written or read."""
    _check_input(file, folder)
    if out is None:
        stem = os.path.basename(file.rstrip('/'))
        while stem.lower().endswith(_ENDINGS):
            stem = stem[:-len(next(e for e in _ENDINGS if stem.lower().endswith(e)))]
        out = (stem or 'network') + (ending or '-savedmodel')
    out = os.path.expanduser(out)
    if not out.endswith(ending) or not os.path.basename(out):
        raise UserError(f'--out: expected a name that ends in {ending}, received {out!r}')
    if not directory and not os.path.isdir(os.path.dirname(out) or '.'):
        raise UserError(f'--out: there is no directory {os.path.dirname(out)}')
    for path in (out, out.removesuffix(ending) + '.json') if with_config else (out,):
        if os.path.isdir(path) and not directory:
            raise UserError(f'--out: {path} is a directory')
        if os.path.lexists(path) and not overwrite:
            raise UserError(f'{path} exists; choose another name by --out or add --overwrite')
    if os.path.exists(out) and os.path.exists(file) and os.path.samefile(file, out):
        raise UserError(f'--out: {out} is the file to convert')
    return out


def _report(*paths: str) -> None:
    print(f'Wrote {" and ".join(paths)}')


def _check_input(file: str, folder: bool = False) -> None:
    import pretrained_networks
    if folder and os.path.isdir(file):
        return
    pretrained_networks.check_path(file)


# Flags.

def _class_map(text: str) -> list[int | None]:
    """'207,new,0-2' → [207, None, 0, 1, 2]."""
    result = []
    for part in text.split(','):
        result += [None] if part.strip().lower() == 'new' else flags.number_list(part)
    return result


_class_map.metavar = 'LIST'


def _resolutions(text: str) -> list[int]:
    """'64,32' → [64, 32]; 'none' → []."""
    return [] if text.strip().lower() == 'none' else flags.number_list(text)


_resolutions.metavar = 'LIST'


def _add_class_flags(command: flags.Parser) -> None:
    command.add_flag('classes', flags.positive_int, 'Number of classes of the result, for fine-tuning on '
                     'others; without --class-map all of them are new', dest='num_classes')
    command.add_flag('class-map', _class_map, 'For each class of the result the class that it takes over, or '
                     "'new', such as 207,250-252,new")
    command.add_flag('class-names', flags.path, 'Names of the classes of the result: lines of a text, a JSON '
                     'list, or the dataset.json of a data set')
    command.add_flag('seed', flags.nonneg_int, 'Seed of the weights of new classes', default=0)


def _add_biggan_commands(parser: flags.Parser) -> None:
    command = parser.add_command(
        'biggan-to-pickle', _biggan_to_pickle, 'Published weights of BigGAN to a pickle', examples=[
            '%(prog)s G_ema.pth', '%(prog)s G.pth D.pth G_ema.pth --out=biggan.pkl',
            '%(prog)s biggan-128_2/ --out=biggan-128.pkl',
            '%(prog)s biggan-deep-256-pytorch_model.bin',
            '%(prog)s G.pth D.pth --class-map=207-212,new,new --out=dogs.pkl'],
        description='Writes a pickle of the weights of BigGAN-PyTorch (G.pth, D.pth, G_ema.pth), a folder of '
                    'them, the unpacked folder of a TF-Hub module biggan-* or biggan-deep-*, or the .bin '
                    'file of BigGAN-deep of Hugging Face. With D, training can go on from the pickle. '
                    'Nothing that the files contain is executed. Sizes are inferred; flags override that.')
    command.add_argument('files', metavar='FILE', nargs='+', help='Files or folders to convert')
    command.add_flag('out', metavar='PATH', help='What to write (default: in the current directory, under '
                     'the name of the first input)')
    command.add_flag('overwrite', bool, 'Replace what is there already', default=False)
    for name, kind, help in (
            ('resolution', flags.positive_int, 'Width and height of the images'),
            ('ch', flags.positive_int, 'Factor on the numbers of channels'),
            ('latent-size', flags.positive_int, 'Size of z'),
            ('attention', _resolutions, 'Resolutions with attention in G, such as 64; none'),
            ('d-attention', _resolutions, 'The same for D'),
            ('bn-epsilon', flags.nonneg_float, "Of the batch normalization (default: that of the form's "
             'authors, 1e-5 for BigGAN-PyTorch, 1e-4 for the others)'),
            ('final-bn-epsilon', flags.nonneg_float, 'Of the last one'),
            ('sn-epsilon', flags.nonneg_float, 'Of the spectral normalization (default: 1e-6 or 1e-4)')):
        command.add_flag(name, kind, help)
    _add_class_flags(command)

    command = parser.add_command(
        'pickle-to-biggan', _pickle_to_biggan, 'Pickle of BigGAN to a state dict of BigGAN-PyTorch',
        examples=['%(prog)s network-final.pkl --network=Gs --out=G_ema.pth',
                  '%(prog)s network-final.pkl --network=D --out=D.safetensors'],
        description='Writes one network under the names of BigGAN-PyTorch (BigGAN-deep: of Hugging Face), as '
                    'a file that torch.load reads, or as .safetensors.')
    command.add_argument('file', metavar='FILE.pkl', help='File to convert')
    command.add_flag('out', metavar='PATH', help='A .pth, .bin or .safetensors file (default: G.pth, D.pth '
                     'or G_ema.pth)')
    command.add_flag('overwrite', bool, 'Replace what is there already', default=False)
    command.add_flag('network', choices=['Gs', 'G', 'D'], default='Gs',
                     help='Which network of a snapshot: Gs is the moving average of G')

    command = parser.add_command(
        'change-classes', _change_classes, 'Give networks of BigGAN other classes', examples=[
            '%(prog)s biggan.pkl --class-map=207-212,new --out=dogs.pkl',
            '%(prog)s biggan.pkl --classes=10 --class-names=datasets/mine/dataset.json --out=mine.pkl'],
        description='Writes a pickle whose classes are others, to fine-tune it on another data set: classes '
                    'that take over the weights of old ones, and new ones with random weights like those.')
    command.add_argument('file', metavar='FILE.pkl', help='File to convert')
    command.add_flag('out', metavar='PATH', help='What to write (default: in the current directory, under '
                     'the name of the input)')
    command.add_flag('overwrite', bool, 'Replace what is there already', default=False)
    _add_class_flags(command)


def make_parser() -> flags.Parser:
    """The parser of this command line."""
    parser = flags.Parser(
        'Converts networks from one form into another. A file to convert is a path, an address (https://...) '
        'or the name of a published network (gdrive:networks/...).', examples=[
            '%(prog)s info network-final.pkl',
            '%(prog)s pickle-to-safetensors network-final.pkl',
            '%(prog)s pickle-to-savedmodel network-final.pkl --out=models/gs/1',
            '%(prog)s pytorch-to-pickle ffhq.pkl --out=ffhq-tf.pkl',
            '%(prog)s biggan-to-pickle G.pth D.pth G_ema.pth --out=biggan.pkl',
            '%(prog)s pickle-to-keras --help',
        ])

    def add(name: str, func: Callable, help: str, description: str, examples: Sequence[str],
            metavar: str) -> flags.Parser:
        command = parser.add_command(name, func, help, examples=examples, description=description)
        command.add_argument('file', metavar=metavar,
                             help='File to convert' if name != 'info' else 'File to describe')
        if name != 'info':
            command.add_flag('out', metavar='PATH', help='What to write (default: in the current directory, '
                             'under the name of the input with another ending)')
            command.add_flag('overwrite', bool, 'Replace what is there already', default=False)
        return command

    add('pickle-to-safetensors', _pickle_to_safetensors, 'Official pickle to .safetensors and .json',
        'Writes the arrays of all networks of a pickle as NAME.safetensors and everything else as NAME.json: '
        'names, arguments, versions, the order of the variables, which of them are trainable.',
        ['%(prog)s network-final.pkl',
         '%(prog)s gdrive:networks/stylegan2-ffhq-config-f.pkl --out=f.safetensors'],
        'FILE.pkl')
    add('safetensors-to-pickle', _safetensors_to_pickle, '.safetensors back to an official pickle',
        'Writes the pickle that a .safetensors file was made from: same names, order, arguments and arrays. '
        'Of the .json beside it, edited or not, it takes the arguments.',
        ['%(prog)s network-final.safetensors --out=copy.pkl'], 'FILE.safetensors')
    keras = add('pickle-to-keras', _pickle_to_keras, 'Official pickle to Keras .weights.h5',
                'Writes the weights of one network as NAME.weights.h5 and its arguments as NAME.json. In '
                'Python, dnnlib.tflib.conversion.keras_weights.load(network, path) fills a network of the '
                'same arguments with them.',
                ['%(prog)s network-final.pkl --network=Gs --out=gs.weights.h5'], 'FILE.pkl')
    add('keras-to-pickle', _keras_to_pickle, 'Keras .weights.h5 back to an official pickle',
        'Writes a pickle of one network from NAME.weights.h5 and NAME.json.',
        ['%(prog)s gs.weights.h5 --out=gs.pkl'], 'FILE.weights.h5')
    saved = add('pickle-to-savedmodel', _pickle_to_savedmodel, 'Official pickle to a SavedModel',
                'Writes a generator as a SavedModel of plain TensorFlow operations, which TF Serving loads. '
                'Its signature serving_default takes z [N, latent_size], label [N, label_size] and '
                'truncation_psi [], all float32, and returns images, uint8 [N, height, width, channels].',
                ['%(prog)s network-final.pkl --out=models/gs/1',
                 '%(prog)s network-final.pkl --out=gs-random --noise=random'], 'FILE.pkl')
    saved.add_flag('noise', choices=['const', 'random'], default='const',
                   help='const = the noise of the network, the same in every picture; random = new noise')
    add('pytorch-to-pickle', _pytorch_to_pickle, 'stylegan2-ada-pytorch snapshot to an official pickle',
        'Writes the networks of a snapshot of stylegan2-ada-pytorch, or of StyleGAN3 with --cfg=stylegan2, '
        'as an official pickle. Needs no PyTorch; nothing that the file contains is executed.',
        ['%(prog)s network-snapshot-001000.pkl --out=network.pkl'], 'FILE')
    _add_biggan_commands(parser)
    for command in (keras, saved):
        command.add_flag('network', choices=['Gs', 'G'] + ['D'] * (command is keras), default='Gs',
                         help='Which network of a snapshot: Gs is the moving average of G')
    add('info', _info, 'Print what a file holds',
        'Prints the networks, arguments and sizes in a pickle, .safetensors, .weights.h5 or PyTorch file, or '
        "in a folder of BigGAN's weights.",
        ['%(prog)s network-final.pkl'], 'FILE')
    return parser


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point. `argv` begins with the name of the program; default: sys.argv."""
    flags.run(flags.run_command, make_parser, argv)


if __name__ == '__main__':
    main(sys.argv)
