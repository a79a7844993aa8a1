"""`Network`: the official face of a network. NumPy in and out, NCHW, official names; Keras layers inside."""

import copy
import os
import threading
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dnnlib.tflib import legacy, network_report, network_run
from dnnlib.tflib.legacy import STATE_KEYS, NetworkState
from dnnlib.tflib.network_loading import (
    build_layer,
    check_state,
    find_function,
    find_network_class,
    initial_values,
    layer_name,
)
from dnnlib.tflib.network_variables import (
    NetworkVariable,
    assign_values,
    check_values,
    moving_average,
    named_views,
)
from dnnlib.tflib.tfutil import Update
from dnnlib.util import EasyDict, UserError, did_you_mean

__all__ = ['Network', 'find_network_class']

# State versions that networks made here are written with; 4 where the module is not named here.
_VERSIONS = {'training.networks_progan': 2, 'training.networks_stylegan': 3}
# What a pickle of ProGAN's own program has different.
_PROGAN_FORM = dict(class_name='tfutil.Network',
                    key_order=tuple(key for key in STATE_KEYS if key != 'components'))
# What only a graph and a session can have, and what to do instead.
_GONE = {
    'input_templates': 'call get_output_for(tensors); input_names and input_shapes describe the inputs',
    'output_templates': 'call get_output_for(tensors); output_names and output_shapes describe the outputs',
    'static_kwargs_template': 'read static_kwargs',
}


class _GoneError(UserError, AttributeError):
    """So that hasattr and getattr with a default work for what is gone."""


class Network:
    """A generator, a discriminator or a component of one.

    Args:
        name: Name of the network ('G', 'D', 'Gs', …). None = the name of the function.
        func_name: Network class by full name ('training.networks_stylegan2.G_main') or the class itself.
        static_kwargs: Keyword arguments of the class; `func` is what ProGAN's scripts call func_name.

    Attributes:
        layer: the Keras layer that does the work (NHWC). That of a pickle is built when it is needed first.
        static_kwargs, components: as in an official pickle; components are Networks that share their layers.
        input_names, input_shapes, output_names, output_shapes: official ones, NCHW, None = batch.
        vars, own_vars, trainables, own_trainables: {official name: NetworkVariable}.
        version: state version that it is written with: that of its generation, or of the pickle it came from.
    """

    def __init__(self, name: str | None = None, func_name: Any = None, *, layer: Any = None, **static_kwargs):
        if layer is None:
            build = find_function(static_kwargs.pop('func', None) if func_name is None else func_name)
            layer = build(name=layer_name(name or build.__name__), **static_kwargs)
        components = {key: Network(component.name, layer=component)
                      for key, component in layer.components.items()}
        self._set_up(name or layer.name, EasyDict(layer.static_kwargs), components,
                     version=_VERSIONS.get(type(layer).__module__, 4))
        self._form = dict(_PROGAN_FORM) if self.version == 2 else {}
        self._attach(layer)

    def _set_up(self, name: str, static_kwargs: dict, components: dict, version: int) -> None:
        self.name, self.static_kwargs, self.version = name, static_kwargs, version
        self._layer = self._pending = self._parent = None
        self._form: dict = {}       # What else stood in its pickle, and in which order.
        self._functions = network_run.Functions()
        self._views: dict[str, NetworkVariable] | None = None
        self._lock = threading.RLock()
        self.components = EasyDict(components)
        for component in self.components.values():
            component._parent = self

    # Pickles.

    @classmethod
    def from_state(cls, state: NetworkState, lazy: bool = False) -> 'Network':
        """The network of an official pickle.

        Args:
            state: What `legacy.load_pkl` returns for a network.
            lazy: Check names and versions only, build the layers when they are needed first.

        Raises: UserError that lists what does not match (lazily: when it is needed first).
        """
        check_state(state)
        network = cls.__new__(cls)
        network._take_state(state, {key: cls.from_state(component, lazy=True)
                                    for key, component in state.components.items()})
        if not lazy:
            network._build()
        return network

    def _take_state(self, state: NetworkState, components: dict[str, 'Network']) -> None:
        self._set_up(state.name, EasyDict(state.static_kwargs), components, state.version)
        # With the very strings of the pickle, what is written again is the same to the byte.
        self._form = dict(class_name=state.class_name, key_order=state.key_order, extra=state.extra,
                          names=[name for name, _ in state.variables], func=state.build_func_name)
        self._pending = state

    def _attach(self, layer: Any) -> None:
        """Gives the network and its components their layers."""
        for key, component in self.components.items():
            component._attach(layer.components[key])
        self._layer, self._pending = layer, None

    def _build(self) -> None:
        with self._lock:
            if self._layer is None and self._parent is not None:
                self._parent._build()
            elif self._layer is None:
                self._attach(build_layer(self._pending, self.name))

    def __getstate__(self) -> dict[str, Any]:
        state = self.state().to_state()
        if 'components' in state:
            state['components'] = dict(self.components)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        # What Python's own unpickler calls. Source text in the state stays text.
        if not isinstance(state, dict):
            raise UserError(f'the state of a pickled network should be a dict. Received: {type(state)}')
        components = state.get('components') or {}
        if not isinstance(components, dict):
            raise UserError('the components of a pickled network should be a dict. '
                            f'Received: {type(components)}')
        components = dict(components)
        for key, component in components.items():
            if not isinstance(component, Network):
                raise UserError(f'component {key!r:.60} of a pickled network is not a network')
            # One that is in use elsewhere (copied, or part of two networks) stays what it is there.
            if component._parent is not None or component._layer is not None:
                components[key] = Network.from_state(component.state(), lazy=True)
        if 'components' in state:
            state = {**state, 'components': {key: net.state() for key, net in components.items()}}
        loaded = NetworkState.from_state(state)
        check_state(loaded)
        self._take_state(loaded, components)
        if self.version == 2:
            self._form['class_name'] = _PROGAN_FORM['class_name']

    def __copy__(self) -> 'Network':
        return self.clone()

    def __deepcopy__(self, memo: dict) -> 'Network':
        return self.clone()

    def state(self) -> NetworkState:
        """What an official pickle holds of this network."""
        components = {key: component.state() for key, component in self.components.items()}
        if self._layer is None:
            variables, func = self._pending.variables, self._pending.build_func_name
        else:
            own, names = self.own_vars, self._form.get('names', ())
            variables = [(name, _pickled(own[name])) for name in (names if set(names) == set(own) else own)]
            func = type(self._layer).__name__
            func = self._form['func'] if self._form.get('func') == func else func
        form = {key: value for key, value in self._form.items() if key not in ('names', 'func')}
        return NetworkState(name=self.name, build_func_name=func, static_kwargs=dict(self.static_kwargs),
                            variables=list(variables), version=self.version, components=components, **form)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the network alone as an official pickle."""
        legacy.save_pkl(self.state(), path)

    @staticmethod
    def load(path: str | os.PathLike, role: str = 'Gs') -> 'Network':
        """The network of a pickle that holds it alone, or G, D or Gs of a snapshot."""
        return Network.from_state(legacy.find_network(legacy.load_pkl(path), role))

    # Description.

    @property
    def layer(self) -> Any:
        """The Keras layer."""
        if self._layer is None:
            self._build()
        return self._layer

    input_names = property(lambda self: list(self.layer.input_names))
    input_shapes = property(lambda self: [list(shape) for shape in self.layer.input_shapes])
    output_names = property(lambda self: list(self.layer.output_names))
    output_shapes = property(lambda self: [list(shape) for shape in self.layer.output_shapes])
    input_shape = property(lambda self: self.input_shapes[0])
    output_shape = property(lambda self: self.output_shapes[0])
    num_inputs = property(lambda self: len(self.layer.input_names))
    num_outputs = property(lambda self: len(self.layer.output_names))

    @property
    def func_name(self) -> str:
        """Full name of the class that does the work."""
        func = type(self._layer) if self._layer is not None else find_network_class(
            self._pending.build_func_name, self.version)
        return f'{func.__module__}.{func.__name__}'

    @property
    def scope(self) -> str:
        """What stands before the names of its variables, for example 'Gs/G_synthesis'."""
        return self.name if self._parent is None else f'{self._parent.scope}/{self.name}'

    def __repr__(self) -> str:
        if self._layer is None:
            return f'<Network {self.name!r}: {self.func_name}, not built yet>'
        shapes = [', '.join(f'{name} {network_report.batch_shape(shape)}'
                            for name, shape in zip(names, shapes, strict=True))
                  for names, shapes in ((self.input_names, self.input_shapes),
                                        (self.output_names, self.output_shapes))]
        return f'<Network {self.name!r}: {self.func_name}, {" → ".join(shapes)}>'

    def __getattr__(self, name: str) -> Any:
        if name in _GONE:
            raise _GoneError(f'Network.{name} is not available, TensorFlow 2 has no graph of templates; '
                             f'{_GONE[name]}')
        hint = '' if name.startswith('_') else did_you_mean(name, dir(type(self)))
        raise AttributeError(f'{type(self).__name__} has no {name!r}{hint}')

    # Variables.

    @property
    def vars(self) -> dict[str, NetworkVariable]:
        """All variables, those of the components under 'component name/local name'."""
        if self._views is None:
            self.layer                      # noqa: B018  The names of the variables are those of the root.
            if self._parent is not None:
                self._parent.vars           # noqa: B018
            self._views = named_views(self.layer, self.scope)
        return EasyDict(self._views)

    @property
    def own_vars(self) -> dict[str, NetworkVariable]:
        """The variables that are in no component."""
        prefixes = tuple(f'{component.name}/' for component in self.layer.components.values())
        return EasyDict({name: value for name, value in self.vars.items()
                         if not prefixes or not name.startswith(prefixes)})

    @property
    def trainables(self) -> dict[str, NetworkVariable]:
        """The trainable variables among vars."""
        return EasyDict({name: var for name, var in self.vars.items() if var.trainable})

    @property
    def own_trainables(self) -> dict[str, NetworkVariable]:
        """The trainable variables among own_vars."""
        return EasyDict({name: var for name, var in self.own_vars.items() if var.trainable})

    @property
    def var_global_to_local(self) -> dict[str, str]:
        """{'Gs/G_synthesis/noise0': 'G_synthesis/noise0', …}."""
        return EasyDict({f'{self.scope}/{name}': name for name in self.vars})

    def get_var_local_name(self, var_or_global_name: Any) -> str:
        """Name of a variable, given as such or by its global name, within this network."""
        name = getattr(var_or_global_name, 'name', var_or_global_name)
        local = self.var_global_to_local.get(str(name).partition(':')[0])
        if local is None:
            raise UserError(f'network {self.name} has no variable of the global name {str(name)!r:.80}')
        return local

    def find_var(self, var_or_local_name: str | keras.Variable) -> NetworkVariable:
        """The variable of that official name; a variable is returned as it is."""
        if not isinstance(var_or_local_name, str):
            return var_or_local_name
        variables = self.vars
        if var_or_local_name not in variables:
            inside = [name for name in variables if name.endswith(f'/{var_or_local_name}')]
            hint = f'; did you mean {inside[0]!r}?' if inside else did_you_mean(var_or_local_name, variables)
            raise UserError(f'network {self.name} has no variable {var_or_local_name!r:.80}{hint}'
                            '; print_layers() lists the layers')
        return variables[var_or_local_name]

    def get_var(self, var_or_local_name: str | keras.Variable) -> np.ndarray:
        """Value of a variable."""
        return self.find_var(var_or_local_name).numpy().copy()

    def set_var(self, var_or_local_name: str | keras.Variable, new_value: Any) -> None:
        """Gives a variable a new value (array, tensor, variable or number) of the same shape."""
        if isinstance(var_or_local_name, str):
            self.set_vars({var_or_local_name: new_value})
        else:
            check_values({'it': var_or_local_name}, {'it': new_value}, f'variable {var_or_local_name.name}',
                         complete=True)
            assign_values({'it': var_or_local_name}, {'it': new_value})

    def set_vars(self, values: dict[str, Any]) -> None:
        """Gives several variables new values. Nothing changes unless all names and shapes fit."""
        own = self.vars
        check_values(own, values, f'network {self.name}', complete=False)
        assign_values(own, values)

    def load_state(self, state: NetworkState) -> None:
        """Copies all variables of a pickled network of the same structure; nothing changes unless all fit."""
        values = state.all_variables()
        check_values(self.vars, values, f'network {self.name} ({self.func_name})', complete=True)
        self.set_vars(values)

    def copy_vars_from(self, src_net: 'Network') -> None:
        """Copies every variable that both networks have."""
        self._copy(self.vars, src_net)

    def copy_own_vars_from(self, src_net: 'Network') -> None:
        """Copies every own variable that both networks have."""
        self._copy(self.own_vars, src_net)

    def copy_trainables_from(self, src_net: 'Network') -> None:
        """Copies every trainable variable that both networks have."""
        self._copy(self.trainables, src_net)

    def _copy(self, targets: dict[str, NetworkVariable], src_net: 'Network') -> None:
        sources = src_net.vars
        self.set_vars({name: sources[name] for name in targets if name in sources})

    def reset_vars(self) -> None:
        """Gives all variables new initial values."""
        self.set_vars(initial_values(self.layer))

    def reset_own_vars(self) -> None:
        """Gives the own variables new initial values."""
        values, own = initial_values(self.layer), self.own_vars
        self.set_vars({name: value for name, value in values.items() if name in own})

    def reset_trainables(self) -> None:
        """Gives the trainable variables new initial values."""
        values, trainables = initial_values(self.layer), self.trainables
        self.set_vars({name: value for name, value in values.items() if name in trainables})

    # Other networks.

    def clone(self, name: str | None = None, **new_static_kwargs) -> 'Network':
        """A network of its own with the same arguments and values; arguments can be changed.

        Variables that only the new network has keep their initial values.
        """
        other = self._variant(type(self.layer), name, new_static_kwargs)
        other._take_form(self)
        return other

    def _variant(self, func: type, name: str | None, new_static_kwargs: dict) -> 'Network':
        from training.layers import unused_initial_values
        static_kwargs = copy.deepcopy({**self.static_kwargs, **new_static_kwargs})
        name = name or self.name
        with unused_initial_values():
            # Arguments of a pickle may be called like ours.
            other = Network(name, layer=func(**{**static_kwargs, 'name': layer_name(name)}))
        other.static_kwargs = EasyDict(static_kwargs)
        other.copy_vars_from(self)
        if other.vars.keys() - self.vars.keys():
            fresh = initial_values(other.layer)
            other.set_vars({key: value for key, value in fresh.items() if key not in self.vars})
        return other

    def convert(self, new_func_name: Any = None, new_name: str | None = None,
                **new_static_kwargs) -> 'Network':
        """A network of another function, or with other arguments, that takes over the variables both have.

        Args:
            new_func_name: As func_name of the constructor. None = the same function.
            new_name: Its name. None = the same.
            new_static_kwargs: Arguments beside the present ones.

        Raises: UserError where variables of one name have different shapes.
        """
        func = type(self.layer) if new_func_name is None else find_function(new_func_name)
        return self._variant(func, new_name, new_static_kwargs)

    def _take_form(self, other: 'Network') -> None:
        """A network is written with the version and form that it was read with, its components too."""
        self.version, self._form = other.version, dict(other._form)
        for key, component in self.components.items():
            if key in other.components:
                component._take_form(other.components[key])

    def setup_as_moving_average_of(self, src_net: 'Network', beta: Any = 0.99,
                                   beta_nontrainable: Any = 0.0) -> Update:
        """An update that moves this network towards another one: var ← lerp(src, var, beta).

        Args:
            src_net: Network with variables of the same names; others stay as they are.
            beta: Of the trainable variables: a number, or a tensor or variable that is read at each update.
            beta_nontrainable: Of the others; 0 = copies.

        Returns: the update. `update()` and `tflib.run(update)` do it once.
        """
        update = moving_average(self.vars, src_net.vars, beta, beta_nontrainable)
        return Update(update, f'{self.name}: moving average of {src_net.name}')

    # Evaluation.

    def get_output_for(self, *in_expr: Any, return_as_list: bool = False, **dynamic_kwargs) -> Any:
        """Output tensors for input tensors, NCHW. Differentiable.

        Args:
            in_expr: Tensors, variables or arrays; those left out or None are zeros, as no labels are.
            return_as_list: Return a list even of a single output?
            dynamic_kwargs: Arguments of the network for this call.
        """
        network_run.check_count(self, in_expr)
        network_run.check_dynamic(self, dynamic_kwargs)
        outputs = network_run.evaluate(self.layer, network_run.padded(in_expr, self), dynamic_kwargs)
        return list(tf.nest.flatten(outputs)) if return_as_list else outputs

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
        out_mul: float = 1,                     # ProGAN's way to transform outputs: factor,
        out_add: float = 0,                     # summand,
        out_shrink: int = 1,                    # width of the boxes of pixels to average,
        out_dtype: Any = None,                  # type to round and convert to.
        **dynamic_kwargs,                       # Arguments of the network for this call.
    ) -> Any:
        """Runs the network on NumPy arrays, minibatch by minibatch, and returns NumPy arrays.

        One traced function serves every size of the minibatch and every truncation_psi.
        """
        del num_gpus, assume_frozen
        network_run.check_dynamic(self, dynamic_kwargs)
        transforms = [network_run.as_function(input_transform, 'input_transform'),
                      network_run.scaling(out_mul, out_add, out_shrink, out_dtype),
                      network_run.as_function(output_transform, 'output_transform')]
        results = network_run.run(self, self._functions, in_arrays, transforms, minibatch_size,
                                  print_progress, dynamic_kwargs)
        if return_as_list:
            return results
        return results[0] if len(results) == 1 else tuple(results)

    # Reports.

    def list_layers(self) -> list[tuple[str, 'network_report.LayerOutput', list[NetworkVariable]]]:
        """[(layer name, its output with name, shape (NCHW) and dtype, its trainable variables)] in order."""
        return network_report.list_layers(self)

    def list_ops(self) -> list[tf.Operation]:
        """The TensorFlow operations of one traced pass of the network."""
        return network_report.list_ops(self)

    def print_layers(self, title: str | None = None, hide_layers_with_no_params: bool = False) -> None:
        """Prints a table of the layers: parameters, output shape, weight shape."""
        print(network_report.layer_table(self, title, hide_layers_with_no_params))

    def setup_weight_histograms(self, title: str | None = None) -> Callable[..., None]:
        """Makes a function that writes a histogram of every trainable variable to TensorBoard.

        TensorFlow 2 has no collection of summaries that are written by themselves: call what is returned with
        the autosummary.FileWriter (or a tf.summary writer) and the step, wherever histograms are wanted.

        Args:
            title: First part of their names. None = the name of the network.
        """
        return network_report.weight_histograms(self, title)


def _pickled(var: keras.Variable) -> np.ndarray | np.float32:
    value = var.numpy().astype(np.float32)
    return np.float32(value) if value.ndim == 0 else value
