"""What the generators of StyleGAN and StyleGAN2 share: mapping z → w, synthesis w → image, and what is done
to w between the two.

G_style (networks_stylegan) and G_main (networks_stylegan2) differ in their components and defaults only.
"""

from collections.abc import Callable

import tensorflow as tf

from dnnlib.util import UserError, get_obj_by_name
from training.context import Context
from training.layers import Layer, NetworkLayer, check_labels, normal_initializer, normalize_2nd_moment


class StyleGenerator(NetworkLayer):
    """The generator: mapping and synthesis, truncation, style mixing and the moving average of w.

    Call arguments:
        latents_in: z, [N, latent_size].
        labels_in: [N, label_size] or None where label_size is 0.
        ctx: training.context.Context with the random numbers of the pass.
        Any of the arguments below marked (*), to override it for this call; others go to the components
        (randomize_noise, structure).

    Returns images [N, H, W, num_channels], with return_dlatents also w [N, num_layers, dlatent_size].
    """

    def __init__(
        self,
        name: str,
        home: str,                                  # Module that mapping_func and synthesis_func are in.
        *,
        truncation_psi: float | None,               # (*) Style strength of the truncation trick.
                                                    # None = disable.
        truncation_cutoff: int | None,              # (*) Number of layers to truncate. None = see `truncate`.
        truncation_psi_val: float | None = None,    # (*) truncation_psi during validation.
        truncation_cutoff_val: int | None = None,   # (*) truncation_cutoff during validation.
        dlatent_avg_beta: float | None = 0.995,     # (*) Decay of the moving average of w in training.
                                                    # None = disable.
        style_mixing_prob: float | None = 0.9,      # (*) Probability of mixing styles in training.
                                                    # None = disable.
        is_training: bool = False,                  # (*) Training: mixing and average on, truncation off.
        is_validation: bool = False,                # (*) Validation: truncation by the _val arguments.
        return_dlatents: bool = False,              # (*) Return w beside the images?
        mapping_func: str = 'G_mapping',            # Class of the mapping network.
        synthesis_func: str = 'G_synthesis',        # Class of the synthesis network.
        is_template_graph: bool = False,            # Accepted for compatibility.
        **kwargs,                                   # Arguments of mapping and synthesis.
    ):
        super().__init__(name, kwargs.get('dtype', 'float32'))
        self.truncation_psi, self.truncation_cutoff = truncation_psi, truncation_cutoff
        self.truncation_psi_val, self.truncation_cutoff_val = truncation_psi_val, truncation_cutoff_val
        self.dlatent_avg_beta, self.style_mixing_prob = dlatent_avg_beta, style_mixing_prob
        self.is_training, self.is_validation = is_training, is_validation
        self.return_dlatents = return_dlatents

        self.synthesis = self.add_component('synthesis', _resolve(
            synthesis_func, home, 'G_synthesis', kwargs))
        self.grows = self.synthesis.grows
        self.num_layers = self.synthesis.input_shapes[0][1]
        self.dlatent_size = self.synthesis.input_shapes[0][2]
        self.mapping = self.add_component('mapping', _resolve(
            mapping_func, home, 'G_mapping', {'dlatent_broadcast': self.num_layers, **kwargs}))
        received = self.mapping.output_shapes[0][-1]
        if received != self.dlatent_size:
            raise UserError(f'The mapping network must give w of dlatent_size {self.dlatent_size}; without '
                            f'layers of its own it gives the size of its input. Received: {received}')

        # Level of detail of progressive growing; stays 0 where the networks do not grow.
        self.lod = self.add_variable('lod', [], 0.0, trainable=False)
        self.dlatent_avg = self.add_variable('dlatent_avg', [self.dlatent_size], 0.0, trainable=False)
        self.set_interface(dict(zip(self.mapping.input_names, self.mapping.input_shapes, strict=True)),
                           {'images_out': self.synthesis.output_shapes[0]})

    # The options stand one by one because Keras refuses tensors among other values in **dynamic; ... means
    # not given.
    def call(self, latents_in: tf.Tensor, labels_in: tf.Tensor | None = None, ctx: Context | None = None, *,
             truncation_psi=..., truncation_cutoff=..., truncation_psi_val=..., truncation_cutoff_val=...,
             dlatent_avg_beta=..., style_mixing_prob=..., is_training=..., is_validation=...,
             return_dlatents=..., **dynamic):
        ctx = ctx or Context()
        option = dict(
            truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff,
            truncation_psi_val=truncation_psi_val, truncation_cutoff_val=truncation_cutoff_val,
            dlatent_avg_beta=dlatent_avg_beta, style_mixing_prob=style_mixing_prob,
            is_training=is_training, is_validation=is_validation, return_dlatents=return_dlatents)
        option = {name: getattr(self, name) if value is ... else value for name, value in option.items()}
        if option['is_training'] and option['is_validation']:
            raise UserError('is_training and is_validation exclude each other. Received: both')
        dlatents = self.mapping(latents_in, labels_in, ctx=ctx, **dynamic)
        if option['is_training']:
            dlatents = self._train_dlatents(dlatents, latents_in, labels_in, ctx, option, dynamic)
        elif option['is_validation']:
            dlatents = self.truncate(dlatents, option['truncation_psi_val'], option['truncation_cutoff_val'])
        else:
            dlatents = self.truncate(dlatents, option['truncation_psi'], option['truncation_cutoff'])
        if self.grows:  # The generator's level of detail counts, not the one stored in its component.
            dynamic['lod'] = tf.convert_to_tensor(self.lod)
        images = self.synthesis(dlatents, ctx=ctx, **dynamic)
        return (images, dlatents) if option['return_dlatents'] else images

    def _train_dlatents(self, dlatents, latents_in, labels_in, ctx, option, dynamic):
        """Updates the moving average of w, then mixes styles (StyleGAN, section 3.1)."""
        if option['dlatent_avg_beta'] is not None:
            batch_avg = tf.reduce_mean(dlatents[:, 0], axis=0)
            average = ctx.value(self.dlatent_avg)
            ctx.update(self.dlatent_avg, batch_avg + (average - batch_avg) * option['dlatent_avg_beta'])
        prob = option['style_mixing_prob']
        if prob is None or prob <= 0 or self.num_layers < 2:
            return dlatents
        latents2 = ctx.normal(tf.shape(latents_in), latents_in.dtype)
        dlatents2 = self.mapping(latents2, labels_in, ctx=ctx, **dynamic)
        current_layers = self.num_layers - 2 * tf.cast(self.lod, tf.int32)
        mix = ctx.uniform([]) < prob
        cutoff = tf.where(mix, ctx.integers([], 1, current_layers), current_layers)
        return tf.where(self._layer_index() < cutoff, dlatents, dlatents2)

    def truncate(self, dlatents: tf.Tensor, psi, cutoff) -> tf.Tensor:
        """Moves w [N, num_layers, dlatent_size] towards its average (StyleGAN, appendix B); cutoff None = all
        layers.
        """
        if psi is None or (isinstance(psi, int | float) and psi == 1):
            return dlatents
        psi = tf.cast(psi, dlatents.dtype) if tf.is_tensor(psi) else tf.constant(psi, dlatents.dtype)
        coefficient = psi if cutoff is None else tf.where(self._layer_index() < cutoff, psi, 1)
        return self.dlatent_avg + (dlatents - self.dlatent_avg) * coefficient

    def _layer_index(self) -> tf.Tensor:
        return tf.range(self.num_layers)[tf.newaxis, :, tf.newaxis]


class MappingNetwork(NetworkLayer):
    """The mapping network z → w (StyleGAN, section 2).

    Call arguments: latents_in [N, latent_size], labels_in [N, label_size] or None.
    Returns w [N, dlatent_broadcast, dlatent_size], or [N, dlatent_size] where dlatent_broadcast is None.
    """

    def __init__(
        self,
        name: str,
        dense: Callable[[str, int, int], Layer],    # Makes a layer: (name, inputs, outputs) → layer.
        *,
        latent_size: int = 512,             # Size of z.
        label_size: int = 0,                # Size of the labels, 0 if there are none.
        dlatent_size: int = 512,            # Size of w.
        dlatent_broadcast: int | None = None,   # Copies of w to output. None = one, without the axis.
        mapping_layers: int = 8,            # Number of layers.
        mapping_fmaps: int = 512,           # Number of activations of the hidden layers.
        normalize_latents: bool = True,     # Normalize z to unit second moment?
        dtype: str = 'float32',             # Of activations and weights.
        **kwargs,                           # Arguments of other networks, kept for the pickle.
    ):
        super().__init__(name, dtype)
        self.latent_size, self.label_size, self.dlatent_broadcast = latent_size, label_size, dlatent_broadcast
        self.normalize_latents = normalize_latents
        in_features = latent_size
        if label_size:
            # The embedding of the label has no equalized learning rate.
            self.label_concat = self.add_layer(Layer('LabelConcat', dtype))
            self.label_weight = self.label_concat.add_variable('weight', [label_size, latent_size],
                                                               normal_initializer(1))
            in_features += latent_size
        self.layers = []
        for index in range(mapping_layers):
            fmaps = dlatent_size if index == mapping_layers - 1 else mapping_fmaps
            self.layers.append(self.add_layer(dense(f'Dense{index}', in_features, fmaps)))
            in_features = fmaps
        shape = [None, in_features] if dlatent_broadcast is None else [None, dlatent_broadcast, in_features]
        self.set_interface({'latents_in': [None, latent_size], 'labels_in': [None, label_size]},
                           {'dlatents_out': shape})

    def call(self, latents_in: tf.Tensor, labels_in: tf.Tensor | None = None, ctx: Context | None = None,
             **_dynamic):
        ctx = ctx or Context()
        x = latents_in
        if self.label_size:
            x = tf.concat([x, tf.matmul(check_labels(labels_in, self.label_size), self.label_weight)], axis=1)
        if self.normalize_latents:
            x = normalize_2nd_moment(x)
        for layer in self.layers:
            x = ctx.feature(layer.name, layer(x))
        if self.dlatent_broadcast is not None:
            x = tf.tile(x[:, tf.newaxis], [1, self.dlatent_broadcast, 1])
        return x


def _resolve(func, home: str, name: str, static_kwargs: dict) -> NetworkLayer:
    """Builds a component from a class, a name in the module `home` or a dotted name."""
    if isinstance(func, str):
        func = get_obj_by_name(func if '.' in func else f'{home}.{func}')
    if not (isinstance(func, type) and issubclass(func, NetworkLayer)):
        raise UserError(f'{name} must be made by a network class. Received: {func!r}')
    return func(name=name, **static_kwargs)
