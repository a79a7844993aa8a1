"""Converts networks: official pickles to safetensors, Keras weights, a SavedModel; PyTorch's to pickles."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from dnnlib import UserError, flags

# TensorFlow, and all modules that import it, are imported inside the functions: --help and most mistakes are
# answered at once.

_ENDINGS = ('.weights.h5', '.safetensors', '.pkl', '.pickle', '.pt', '.pth', '.gz', '.h5')


# The commands.

def _pickle_to_safetensors(file: str, out: str | None, overwrite: bool) -> None:
    out = _output(file, out, '.safetensors', overwrite, with_config=True)
    from dnnlib.tflib.conversion import tensors
    tensors.write(_load_pickle(file), out)
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
    from dnnlib.tflib import legacy, torch_pickle
    from dnnlib.tflib.conversion import pytorch
    path = _local(file)
    content = torch_pickle.load_torch(path)
    try:
        states, notes = pytorch.to_network_states(content)
        for state in states.values():
            len(tflib.Network.from_state(state).vars)   # What is written can be read.
    except UserError as error:
        raise UserError(f'{path}: {error}') from None
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


def _info(file: str) -> None:
    _check_input(file)
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
            directory: bool = False) -> str:
    """The name of the result; UserError where it cannot, or must not, be written or read."""
    _check_input(file)
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
    if os.path.exists(file) and os.path.exists(out) and os.path.samefile(file, out):
        raise UserError(f'--out: {out} is the file to convert')
    return out


def _report(*paths: str) -> None:
    print(f'Wrote {" and ".join(paths)}')


def _check_input(file: str) -> None:
    import pretrained_networks
    pretrained_networks.check_path(file)


# Flags.

def make_parser() -> flags.Parser:
    """The parser of this command line."""
    parser = flags.Parser(
        'Converts networks from one form into another. A file to convert is a path, an address (https://...) '
        'or the name of a published network (gdrive:networks/...).', examples=[
            '%(prog)s info network-final.pkl',
            '%(prog)s pickle-to-safetensors network-final.pkl',
            '%(prog)s pickle-to-savedmodel network-final.pkl --out=models/gs/1',
            '%(prog)s pytorch-to-pickle ffhq.pkl --out=ffhq-tf.pkl',
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
    for command in (keras, saved):
        command.add_flag('network', choices=['Gs', 'G'] + ['D'] * (command is keras), default='Gs',
                         help='Which network of a snapshot: Gs is the moving average of G')
    add('info', _info, 'Print what a file holds',
        'Prints the networks, arguments and sizes in a pickle, .safetensors, .weights.h5 or PyTorch file.',
        ['%(prog)s network-final.pkl'], 'FILE')
    return parser


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point. `argv` begins with the name of the program; default: sys.argv."""
    flags.run(flags.run_command, make_parser, argv)


if __name__ == '__main__':
    main(sys.argv)
