"""Weights of feature networks for tests: seeded random ones, and the files that users have them in."""

import collections
import io
import pickle
import sys
import types
import unittest.mock
import zipfile

import numpy as np

from metrics import extractor, feature_nets, weights
from tests import testutil

METRICS = testutil.GOLDEN.parent / 'golden_metrics'
DATA = testutil.DATA / 'metrics'


def load(name: str) -> dict[str, np.ndarray]:
    """All arrays of a file of golden_metrics or tests/data/metrics."""
    path = DATA / name if (DATA / name).exists() else METRICS / name
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def random_weights(shapes: dict[str, tuple], base_seed: int) -> dict[str, np.ndarray]:
    """The weights that the golden numbers were computed with (rule of the recipes in golden_metrics).

    Args:
        shapes: PyTorch name → shape of all parameters; kinds are known by the names.
        base_seed: 410000 Inception, 420000 VGG16.
    """
    values = {}
    for index, name in enumerate(sorted(shapes)):
        shape, random = shapes[name], np.random.RandomState(base_seed + index)
        if len(shape) > 1:
            gain = 1 if name == 'fc.weight' else 2
            value = random.standard_normal(shape) * np.sqrt(gain / np.prod(shape[1:]))
        elif name.endswith('running_var'):
            value = random.uniform(0.6, 1.4, shape)
        elif name.endswith('bn.weight'):
            value = 1 + random.uniform(-0.25, 0.25, shape)
        else:
            value = random.standard_normal(shape) * (0.1 if '.bn.' in name else 0.05)
        values[name] = value.astype(np.float32)
    return values


def shapes_of(entries) -> dict[str, tuple]:
    """PyTorch name → shape of all weights of a network."""
    shapes = {}
    for entry in entries:
        shapes[f'{entry.name}.weight'] = entry.shape
        shapes |= dict.fromkeys(entry.vectors.values(), entry.shape[:1])
    return shapes


def entries_of(cls) -> list[weights.Entry]:
    """The layers of an extractor, without its weights."""
    net = extractor.Builder('float32')
    cls.build(cls.__new__(cls), net)
    return net.entries


def vgg16_weights(classifier: bool = False) -> dict[str, np.ndarray]:
    """The random weights of VGG16; those of the classifier are 120 million."""
    shapes = shapes_of(entries_of(feature_nets.VGG16FC))
    shapes |= {'classifier.6.weight': (1000, 4096), 'classifier.6.bias': (1000,)}
    if classifier:
        return random_weights(shapes, 420000)
    # Seeds count from the first name, 'classifier.0.bias', and those of the classifier are six.
    return random_weights({name: shape for name, shape in shapes.items() if 'features' in name}, 420006)


class _Tensor:
    def __init__(self, torch, array, key):
        self.torch, self.array, self.key = torch, np.ascontiguousarray(array, np.float32), key

    def __reduce__(self):
        strides = tuple(stride // 4 for stride in self.array.strides)
        return self.torch._utils._rebuild_tensor_v2, (
            _Storage(self), 0, self.array.shape, strides, False, collections.OrderedDict())


class _Storage:
    def __init__(self, tensor):
        self.tensor = tensor


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if isinstance(obj, _Storage):
            tensor = obj.tensor
            return 'storage', tensor.torch.FloatStorage, tensor.key, 'cpu', tensor.array.size
        return None


def write_torch(path, values: dict[str, np.ndarray], script: bool = False) -> None:
    """Writes a file as torch.save does, without PyTorch: a state dict, or the data of a TorchScript archive.

    Args:
        values: {name: array}; a script has a module for each part of a name before a dot.
    """
    torch, utils, code = (types.ModuleType(name) for name in ('torch', 'torch._utils', '__torch__'))
    torch._utils = utils
    torch.FloatStorage = type('FloatStorage', (), {'__module__': 'torch'})
    code.Net = type('Net', (), {'__module__': '__torch__'})

    def rebuild():
        pass
    rebuild.__module__, rebuild.__qualname__ = 'torch._utils', '_rebuild_tensor_v2'
    utils._rebuild_tensor_v2 = rebuild
    tensors = {name: _Tensor(torch, value, str(i)) for i, (name, value) in enumerate(values.items())}
    content = collections.OrderedDict(tensors)
    if script:
        content = code.Net()
        for name, tensor in tensors.items():
            *modules, name = name.split('.')
            target = content
            for module in modules:
                target = target.__dict__.setdefault(module, code.Net())
            setattr(target, name, tensor)
    stream = io.BytesIO()
    with unittest.mock.patch.dict(sys.modules, {'torch': torch, 'torch._utils': utils, '__torch__': code}):
        _Pickler(stream, protocol=2).dump(content)
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('archive/data.pkl', stream.getvalue())
        for tensor in tensors.values():
            file.writestr(f'archive/data/{tensor.key}', tensor.array.tobytes())


def to_tensorflow(array: np.ndarray) -> np.ndarray:
    """A kernel of PyTorch in the layout of TensorFlow."""
    return np.transpose(array, (2, 3, 1, 0)) if array.ndim == 4 else array.T if array.ndim == 2 else array


def graph_values(entries, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same weights under the names and in the layouts of the frozen graph of Inception-v3."""
    names = {'scale': 'gamma', 'shift': 'beta', 'mean': 'moving_mean', 'variance': 'moving_variance'}
    result = {}
    for entry in entries:
        kernel = to_tensorflow(values[f'{entry.name}.weight'])
        result[f'{entry.graph}/{"conv2d_params" if entry.norm else "weights"}'] = kernel
        for role, name in entry.vectors.items():
            if name in values:
                last = f'batchnorm/{names[role]}' if entry.norm else 'biases'
                result[f'{entry.graph}/{last}'] = values[name]
    return result


def graph_bytes(values: dict[str, np.ndarray]) -> bytes:
    """A serialized GraphDef with constants."""
    import tensorflow as tf
    graph = tf.Graph().as_graph_def()
    node = graph.node.add(name='ExpandDims', op='Placeholder')
    node.attr['dtype'].type = tf.float32.as_datatype_enum
    for name, value in values.items():
        node = graph.node.add(name=name, op='Const')
        node.attr['dtype'].type = tf.float32.as_datatype_enum
        node.attr['value'].tensor.CopyFrom(tf.make_tensor_proto(value))
    return graph.SerializeToString()


def write_network(path, values: dict[str, np.ndarray], **static_kwargs) -> None:
    """Writes a network pickle of dnnlib with variables and arguments, as Python's own pickler does."""
    module = types.ModuleType('dnnlib.tflib.network')
    module.Network = type('Network', (), {'__module__': module.__name__})
    network = module.Network()
    network.__dict__.update(version=4, name='net', static_kwargs=static_kwargs, components={},
                            build_module_src='', build_func_name='build', variables=list(values.items()))
    with unittest.mock.patch.dict(sys.modules, {module.__name__: module}), open(path, 'wb') as file:
        pickle.dump(network, file, protocol=4)
