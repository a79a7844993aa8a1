"""What a network is made of: its layers, as list and as table, its operations, histograms of its weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError


class LayerOutput(tuple):
    """Shape [N, C, H, W] or [N, C] of what a layer gives, None = batch, with the attributes of a tensor."""

    def __new__(cls, name: str, shape: Any, dtype: Any):
        output = super().__new__(cls, shape)
        output.name, output.dtype = name, tf.as_dtype(dtype)
        return output

    @property
    def shape(self) -> tf.TensorShape:
        """The same as a tf.TensorShape."""
        return tf.TensorShape(tuple(self))


def list_layers(network: Any) -> list[tuple[str, LayerOutput, list]]:
    """See `Network.list_layers`."""
    if network.components:
        layers = [(f'{component.name}/{name}', output, params)
                  for component in reversed(network.components.values())
                  for name, output, params in list_layers(component)]
        return [(name, LayerOutput(name, output, output.dtype), params) for name, output, params in layers]
    ctx, _ = _traced(network)
    trainables = network.trainables
    by_layer: dict[str, list] = {}
    for name, var in trainables.items():
        by_layer.setdefault(name.rpartition('/')[0], []).append(var)
    layers = [(name, LayerOutput(name, _nchw([None, *value.shape[1:]]), value.dtype), by_layer.pop(name, []))
              for name, value in ctx.features.items()]
    dtype = network.layer.compute_dtype
    # Layers whose output is not kept, as that of the embedding of labels, come first.
    return [(name, LayerOutput(name, (), dtype), params) for name, params in by_layer.items()] + layers


def list_ops(network: Any) -> list[tf.Operation]:
    """See `Network.list_ops`."""
    return _traced(network)[1].graph.get_operations()


def _traced(network: Any) -> tuple[Any, Any]:
    """A pass with 4 samples: the context, which has the outputs of the layers, and the traced function."""
    from training.context import Context
    ctx = Context(keep_features=True)
    dtype = network.layer.compute_dtype

    def trace():
        shapes = [[4, *shape[1:]] for shape in network.layer.input_shapes]
        return network.layer(*[tf.zeros([s[0], *s[2:], s[1]] if len(s) == 4 else s, dtype) for s in shapes],
                             ctx=ctx)
    return ctx, tf.function(trace, autograph=False).get_concrete_function()


def layer_table(network: Any, title: str | None = None, hide_layers_with_no_params: bool = False) -> str:
    """The table of `Network.print_layers`."""
    rows = [[title or network.name, 'Params', 'OutputShape', 'WeightShape'], ['---'] * 4]
    rows += [[name, '-', batch_shape(shape), '-']
             for name, shape in zip(network.input_names, network.input_shapes, strict=True)]
    total = sum(_size(var) for var in network.trainables.values())
    for name, shape, params in list_layers(network):
        if params or not hide_layers_with_no_params:
            weights = [var for var in params if var.name.endswith('/weight:0')]
            rows.append([name, str(sum(map(_size, params))) if params else '-',
                         batch_shape(shape) if shape else '-',
                         str(tuple(weights[0].shape)) if weights else '-'])
    rows += [['---'] * 4, ['Total', str(total), '', '']]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
             for row in rows]
    return '\n'.join(['', *lines, ''])


def weight_histograms(network: Any, title: str | None) -> Callable[..., None]:
    """See `Network.setup_weight_histograms`."""
    title = title or network.name

    def write(writer: Any, step: int) -> None:
        inner = getattr(writer, '_writer', writer)  # That of an autosummary.FileWriter, or one itself.
        if not hasattr(inner, 'as_default'):
            raise UserError('setup_weight_histograms: expected an autosummary.FileWriter or the result of '
                            f'tf.summary.create_file_writer. Received: {type(writer).__name__}')
        with inner.as_default():
            for name, var in network.trainables.items():
                tf.summary.histogram(f'{title}_{name}' if '/' not in name else f'{title}/{name}',
                                     tf.convert_to_tensor(var), step=int(step))
    return write


def batch_shape(shape: Any) -> str:
    """(?, 3, 8, 8)."""
    return '(' + ', '.join('?' if size is None else str(size) for size in shape) + ')'


def _size(var: Any) -> int:
    return int(np.prod(var.shape.as_list()))


def _nchw(shape: list) -> tuple:
    return tuple([shape[0], shape[3], *shape[1:3]] if len(shape) == 4 else shape)
