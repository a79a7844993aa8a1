"""`Network`: the official face of a network. NumPy in and out, NCHW, official names; Keras layers inside."""

import importlib
import sys
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from dnnlib.tflib.legacy import STATE_KEYS, NetworkState, check_supported
from dnnlib.util import EasyDict, UserError, get_obj_by_name

# Modules to look in for the function name of a pickle, by state version. StyleGAN's program can train the
# networks of ProGAN, and StyleGAN2's config A keeps those of StyleGAN.
_MODULES = {
    2: ['training.networks_progan'],
    3: ['training.networks_stylegan', 'training.networks_progan'],
    4: ['training.networks_stylegan2', 'training.networks_stylegan'],
}

# State versions that networks made here are written with; 4 where the module is not named here.
_VERSIONS = {'training.networks_progan': 2, 'training.networks_stylegan': 3}
# What a pickle of ProGAN's own program has different.
_PROGAN_FORM = dict(class_name='tfutil.Network',
                    key_order=tuple(key for key in STATE_KEYS if key != 'components'))

MAX_FUNCTIONS = 64      # Traced functions that a network keeps; each set of arguments of `run` makes one.


class Network:
    """A generator, a discriminator or a component of one.

    Args:
        name: Name of the network ('G', 'D', 'Gs', …). None = the name of the function.
        func_name: Network class by full name ('training.networks_stylegan2.G_main') or the class itself.
        static_kwargs: Keyword arguments of the class.

    Attributes:
        layer: the Keras layer that does the work (NHWC).
        static_kwargs, components: as in an official pickle; components are Networks that share their layers.
        input_names, input_shapes, output_names, output_shapes: official ones, NCHW, None = batch.
        vars, own_vars, trainables: {official name: keras.Variable}.
        version: state version that it is written with: that of its generation, or of the pickle it came from.
    """

    def __init__(self, name: str | None = None, func_name: Any = None, *, layer: Any = None, **static_kwargs):
        if layer is None:
            build = get_obj_by_name(func_name) if isinstance(func_name, str) else func_name
            if build is None:
                raise UserError('Network expects func_name, for example '
                                "'training.networks_stylegan2.G_main'. Received: None")
            from training.layers import NetworkLayer
            if not (isinstance(build, type) and issubclass(build, NetworkLayer)):
                raise UserError(f'Network expects the name or class of a network. Received: {func_name!r}')
            layer = build(name=_layer_name(name or build.__name__), **static_kwargs)
        self.layer = layer
        self.name = name or layer.name
        self.func_name = f'{type(layer).__module__}.{type(layer).__name__}'
        self.static_kwargs = EasyDict(layer.static_kwargs)
        self.components = EasyDict({key: Network(component.name, layer=component)
                                    for key, component in layer.components.items()})
        self.input_names, self.input_shapes = list(layer.input_names), list(layer.input_shapes)
        self.output_names, self.output_shapes = list(layer.output_names), list(layer.output_shapes)
        self.num_inputs, self.num_outputs = len(self.input_names), len(self.output_names)
        self.input_shape, self.output_shape = self.input_shapes[0], self.output_shapes[0]
        self.version = _VERSIONS.get(type(layer).__module__, 4)
        self._functions: dict = {}

    @property
    def vars(self) -> dict[str, keras.Variable]:
        """All variables, those of the components under 'component name/local name'."""
        return self.layer.named_variables()

    @property
    def own_vars(self) -> dict[str, keras.Variable]:
        """The variables that are in no component."""
        prefixes = tuple(f'{component.name}/' for component in self.layer.components.values())
        return {name: value for name, value in self.vars.items()
                if not prefixes or not name.startswith(prefixes)}

    @property
    def trainables(self) -> dict[str, keras.Variable]:
        """The trainable variables among vars."""
        return self.layer.named_trainables()

    def find_var(self, name: str) -> keras.Variable:
        """The variable of that official name; UserError where there is none."""
        if name not in self.vars:
            raise UserError(f'network {self.name} has no variable {name!r}; print_layers() lists the layers')
        return self.vars[name]

    def get_var(self, name: str) -> np.ndarray:
        """Value of a variable."""
        return self.find_var(name).numpy().copy()

    def set_var(self, name: str, value: Any) -> None:
        """Gives a variable a new value of the same shape."""
        self.set_vars({name: value})

    def set_vars(self, values: dict[str, Any]) -> None:
        """Gives several variables new values. Nothing changes unless all names and shapes fit."""
        own = self.vars
        wrong = [f'{name}: not in {self.name}' if name not in own else
                 f'{name}: expected {tuple(own[name].shape)}, received {np.shape(value)}'
                 for name, value in values.items()
                 if name not in own or tuple(own[name].shape) != np.shape(value)]
        if wrong:
            raise UserError(f'{len(wrong)} variables do not fit network {self.name}: {_shorten(wrong)}')
        for name, value in values.items():
            own[name].assign(np.asarray(value))

    def copy_vars_from(self, other: 'Network') -> None:
        """Copies every variable that both networks have."""
        own = self.vars
        self.set_vars({name: value for name, value in other.vars.items() if name in own})

    def clone(self, name: str | None = None, **new_static_kwargs) -> 'Network':
        """A network of its own with the same arguments and values; arguments can be changed."""
        other = Network(name or self.name, type(self.layer), **{**self.static_kwargs, **new_static_kwargs})
        other.copy_vars_from(self)
        other._take_versions(self)
        return other

    def get_output_for(self, *inputs: tf.Tensor, **dynamic_kwargs) -> Any:
        """Output tensors for input tensors, NCHW. Differentiable."""
        if len(inputs) > self.num_inputs:
            raise UserError(f'network {self.name} has {self.num_inputs} inputs: '
                            f'{", ".join(self.input_names)}. Received: {len(inputs)}')
        outputs = self.layer(*[_transpose(x, [0, 2, 3, 1]) for x in inputs], **dynamic_kwargs)
        return tf.nest.map_structure(lambda x: _transpose(x, [0, 3, 1, 2]), outputs)

    def run(
        self,
        *in_arrays: np.ndarray | None,          # One array per input, NCHW; None = zeros of the right width.
        input_transform: dict | None = None,    # dict(func=..., **kwargs) applied to the inputs.
        output_transform: dict | None = None,   # dict(func=..., **kwargs) applied to the outputs.
        return_as_list: bool = False,           # Return a list even of a single output?
        print_progress: bool = False,           # Show a progress bar?
        minibatch_size: int | None = None,      # Samples at a time. None = all at once.
        num_gpus: int = 1,                      # Accepted for compatibility.
        assume_frozen: bool = False,            # Accepted for compatibility.
        **dynamic_kwargs,                       # Arguments of the network for this call.
    ) -> Any:
        """Runs the network on NumPy arrays, minibatch by minibatch, and returns NumPy arrays."""
        del num_gpus, assume_frozen
        arrays = self._check_inputs(in_arrays)
        num_items = arrays[0].shape[0]
        size = min(minibatch_size or num_items, num_items) or 1
        function = self._function(input_transform, output_transform, dynamic_kwargs, self.layer.stage())
        results = []
        with tqdm(total=num_items, unit='img', disable=not print_progress, file=sys.stdout) as progress:
            for begin in range(0, max(num_items, 1), size):
                parts = [array[begin:begin + size] for array in arrays]
                count = len(parts[0])
                # The last minibatch is filled up, so that one traced function serves all.
                padded = [np.concatenate([part, np.repeat(part[-1:], size - count, axis=0)])
                          if 0 < count < size else part for part in parts]
                outputs = function(*[tf.constant(part) for part in padded])
                results.append([np.asarray(output)[:count] for output in tf.nest.flatten(outputs)])
                progress.update(count)
        merged = [np.concatenate(group) for group in zip(*results, strict=True)]
        return merged if return_as_list or len(merged) > 1 else merged[0]

    def _check_inputs(self, in_arrays) -> list[np.ndarray]:
        """The inputs as arrays; those left out or None become zeros (labels of an unconditional network)."""
        if len(in_arrays) > self.num_inputs or not in_arrays or in_arrays[0] is None:
            raise UserError(f'network {self.name} has {self.num_inputs} inputs, the first is needed: '
                            f'{", ".join(self.input_names)}. Received: {len(in_arrays)}')
        num_items = len(in_arrays[0])
        dtype = self.layer.compute_dtype
        arrays = []
        for index, (name, shape) in enumerate(zip(self.input_names, self.input_shapes, strict=True)):
            array = in_arrays[index] if index < len(in_arrays) else None
            array = np.zeros([num_items, *shape[1:]], dtype) if array is None else np.asarray(array)
            expected = [num_items, *shape[1:]]
            fits = array.ndim == len(shape) and all(
                size in (None, given) for size, given in zip(expected, array.shape, strict=True))
            if not fits or array.dtype.kind not in 'biuf':
                raise UserError(f'network {self.name}: {name} should be numbers of shape '
                                f'{_batch_shape(expected)}. Received: {array.dtype} {array.shape}')
            array = array.astype(dtype, copy=False)
            arrays.append(array)
        return arrays

    def _function(self, input_transform, output_transform, dynamic_kwargs, stage) -> Callable:
        """The traced function for these arguments; the same arguments give the same one."""
        key = (stage, _freeze((input_transform, output_transform, dynamic_kwargs)))
        if key not in self._functions:
            from training.context import Context

            def evaluate(*inputs):
                inputs = _apply_transform(input_transform, inputs)
                outputs = self.get_output_for(*inputs, **{'ctx': Context(stage=stage), **dynamic_kwargs})
                return _apply_transform(output_transform, tf.nest.flatten(outputs))
            if len(self._functions) >= MAX_FUNCTIONS:
                self._functions.pop(next(iter(self._functions)))
            self._functions[key] = tf.function(evaluate, autograph=False)
        return self._functions[key]

    def list_layers(self) -> list[tuple[str, tuple, dict[str, keras.Variable]]]:
        """[(layer name, output shape NCHW, trainable variables of the layer)] in order of evaluation."""
        if self.components:
            return [(f'{component.name}/{name}', shape,
                     {f'{component.name}/{key}': var for key, var in params.items()})
                    for component in reversed(self.components.values())
                    for name, shape, params in component.list_layers()]
        # Networks are described with what runs them; dnnlib stands alone.
        from training.context import Context
        ctx = Context(keep_features=True)

        def trace():
            inputs = [tf.zeros(_nhwc_shape([4, *shape[1:]]), self.layer.compute_dtype)
                      for shape in self.input_shapes]
            self.layer(*inputs, ctx=ctx)

        tf.function(trace, autograph=False).get_concrete_function()
        trainables = self.trainables
        layers, shown = [], set()
        for name, value in ctx.features.items():
            params = {key: var for key, var in trainables.items() if key.rpartition('/')[0] == name}
            shown.update(params)
            shape = [None, *value.shape[1:]]
            layers.append((name, tuple(_nchw_shape(shape)), params))
        for name in dict.fromkeys(key.rpartition('/')[0] for key in trainables if key not in shown):
            params = {key: var for key, var in trainables.items() if key.rpartition('/')[0] == name}
            layers.insert(0, (name, (), params))
        return layers

    def print_layers(self, title: str | None = None, hide_layers_with_no_params: bool = False) -> None:
        """Prints a table of the layers: parameters, output shape, weight shape."""
        rows = [[title or self.name, 'Params', 'OutputShape', 'WeightShape'], ['---'] * 4]
        rows += [[name, '-', str(_batch_shape(shape)), '-']
                 for name, shape in zip(self.input_names, self.input_shapes, strict=True)]
        total = sum(int(np.prod(var.shape)) for var in self.trainables.values())
        for name, shape, params in self.list_layers():
            if params or not hide_layers_with_no_params:
                weight = [var for key, var in params.items() if key.endswith('/weight')]
                num_params = sum(int(np.prod(var.shape)) for var in params.values())
                rows.append([name, str(num_params) if params else '-',
                             str(_batch_shape(shape)) if shape else '-',
                             str(tuple(weight[0].shape)) if weight else '-'])
        rows += [['---'] * 4, ['Total', str(total), '', '']]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        print()
        for row in rows:
            cells = [cell + ' ' * (width - len(cell)) for cell, width in zip(row, widths, strict=True)]
            print('  '.join(cells).rstrip())
        print()

    def state(self) -> NetworkState:
        """What an official pickle holds of this network."""
        variables = []
        for name, var in self.own_vars.items():
            value = var.numpy().astype(np.float32)
            variables.append((name, np.float32(value) if value.ndim == 0 else value))
        return NetworkState(name=self.name, build_func_name=type(self.layer).__name__,
                            static_kwargs=dict(self.static_kwargs), variables=variables, version=self.version,
                            components={key: component.state() for key, component in self.components.items()},
                            **(_PROGAN_FORM if self.version == 2 else {}))

    @classmethod
    def from_state(cls, state: NetworkState) -> 'Network':
        """The network of an official pickle; UserError that lists what does not match."""
        check_supported(state)
        _check_function_names(state)
        network_class = find_network_class(state.build_func_name, state.version)
        try:
            layer = network_class(**{**state.static_kwargs, 'name': _layer_name(state.name)})
        except UserError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f'network {state.name!r:.60}: its arguments do not fit {state.build_func_name} '
                            f'({str(error).splitlines()[0]})') from error
        network = cls(state.name, layer=layer)
        network.load_state(state)
        network._take_versions(state)
        return network

    def _take_versions(self, other: 'Network | NetworkState') -> None:
        """A network is written with the version that it was read with, its components too."""
        self.version = other.version
        for key, component in self.components.items():
            if key in other.components:
                component._take_versions(other.components[key])

    def load_state(self, state: NetworkState) -> None:
        """Copies all variables of a pickled network of the same structure; nothing changes unless all fit."""
        values = state.all_variables()
        missing = [name for name in self.vars if name not in values]
        if missing:
            raise UserError(f'the pickled network {state.name} ({state.build_func_name}) lacks '
                            f'{len(missing)} variables of {self.name} ({type(self.layer).__name__}): '
                            f'{_shorten(missing)}')
        self.set_vars(values)


def find_network_class(build_func_name: str, version: int = 4) -> type:
    """The network class that a pickle of that state version calls by its function name.

    The name comes from a file: nothing but a network class of the module of that generation is ever returned.
    """
    from training.layers import NetworkLayer
    for module in _MODULES.get(version, []):
        found = vars(importlib.import_module(module)).get(build_func_name)
        if isinstance(found, type) and issubclass(found, NetworkLayer) and found.__module__ == module:
            return found
    raise UserError(f'network function {build_func_name!r:.60} of state version {version} is unknown; here '
                    'are those of ProGAN (state version 2 or 3: G_paper, D_paper), StyleGAN (3 or 4: '
                    'G_style, D_basic) and StyleGAN2 (4: G_main, D_stylegan, D_stylegan2) and their '
                    'components')


def _check_function_names(state: NetworkState) -> None:
    """Refuses a pickle whose arguments would make us import or call anything but a network of ours."""
    for key, value in state.static_kwargs.items():
        if key.endswith('_func') and value is not None:
            module, _, name = value.rpartition('.') if isinstance(value, str) else ('', '', '')
            if not name.isidentifier() or module not in ('', *sum(_MODULES.values(), [])):
                raise UserError(f'network {state.name!r:.60}: {key} is {value!r:.60}, '
                                'expected the name of a network')
    for component in state.components.values():
        _check_function_names(component)


def _freeze(value: Any) -> Any:
    """A hashable stand-in, equal only for equal arguments."""
    if isinstance(value, dict):
        return tuple((key, _freeze(item)) for key, item in sorted(value.items()))
    if isinstance(value, list | tuple):
        return type(value).__name__, tuple(map(_freeze, value))
    if isinstance(value, np.ndarray | np.generic | tf.Tensor):
        array = np.asarray(value)
        return array.dtype.str, array.shape, array.tobytes()
    # The type keeps 1, 1.0 and True apart.
    return (type(value).__name__, value) if isinstance(value, Hashable) else (id(value), repr(value))


def _layer_name(name: str) -> str:
    return name.replace('/', '_')


def _transpose(x, order):
    return tf.transpose(x, order) if isinstance(x, tf.Tensor) and x.shape.rank == 4 else x


def _nhwc_shape(shape):
    return [shape[0], *shape[2:], shape[1]] if len(shape) == 4 else shape


def _nchw_shape(shape):
    return [shape[0], shape[3], *shape[1:3]] if len(shape) == 4 else shape


def _batch_shape(shape) -> str:
    return '(' + ', '.join('?' if size is None else str(size) for size in shape) + ')'


def _shorten(items: Iterable[str], most: int = 8) -> str:
    items = list(items)
    return '; '.join(items[:most]) + (f'; and {len(items) - most} more' if len(items) > most else '')


def _apply_transform(transform: dict | None, tensors):
    """Applies dict(func=..., **kwargs) to tensors; func takes them as positional arguments."""
    if transform is None:
        return tensors
    kwargs = dict(transform)
    func = kwargs.pop('func')
    return tf.nest.flatten(func(*tensors, **kwargs))
