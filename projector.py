"""Finds the latents and noise with which a generator draws an image (StyleGAN2, section 5, appendix D)."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dnnlib import tflib
from dnnlib.util import EasyDict, UserError
from generation import sampling

__all__ = ['DISTANCES', 'Projector', 'check_network', 'choose_distance', 'find_distance',
           'noise_regularization', 'normalize_noise', 'schedule']

MAX_SIZE = 256      # Images are compared at no more than this size.
W_SEED = 123        # Of the samples of W.


def l2_distance(images: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Mean squared difference of pixels, in units of half the dynamic range: [N, H, W, C], [0, 255] → [N]."""
    return tf.reduce_mean(tf.square((images - targets) / 127.5), axis=[1, 2, 3])


# How far an image is from its target, the official distance first.
DISTANCES = ('lpips', 'efflite0', 'l2')


def find_distance(name: str, weights_dir: str | None = None) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """A distance by name: a function of two tensors [N, H, W, C] in [0, 255] that returns [N].

    Args:
        name: One of DISTANCES.
        weights_dir: Folder with the weights of its feature network; see `metrics.weights.find`.

    Errors: UserError for another name, and where the weights are missing, damaged or others.
    """
    if name not in DISTANCES:
        raise UserError(f'Projector: distance is {name!r}, expected one of {", ".join(DISTANCES)}')
    if name == 'l2':
        return l2_distance
    from metrics.feature_nets import find_extractor
    distance = find_extractor(name, weights_dir).distance
    return lambda images, targets: distance(_on_white(images), _on_white(targets))


def _on_white(images: tf.Tensor) -> tf.Tensor:
    """RGBA images [N, H, W, 4] in [0, 255] before a white ground; others as they are."""
    if images.shape[3] != 4:
        return images
    alpha = images[..., 3:] / 255
    return images[..., :3] * alpha + 255 * (1 - alpha)


def choose_distance(weights_dir: str | None = None) -> str:
    """The best distance that this machine has; prints which one, and why."""
    from metrics import weights
    path = weights.find('vgg16', weights_dir)
    if path is not None:
        print(f'Distance: lpips, with {path}')
        return 'lpips'
    missing = f'there are no weights of VGG16 (such as {weights.SOURCES["vgg16"].files[0][0]}) for lpips'
    if weights.find('efflite0', weights_dir) is not None:
        print(f'Distance: efflite0, since {missing}')
        return 'efflite0'
    print(f'Distance: l2, since {missing}, and the package {weights.SOURCES["efflite0"].package} for '
          'efflite0 is not installed')
    return 'l2'


def schedule(
    step: int,                              # Steps done.
    num_steps: int = 1000,                  # Steps in all.
    initial_learning_rate: float = 0.1,
    initial_noise_factor: float = 0.05,     # Noise added to w, in standard deviations of W.
    lr_rampdown_length: float = 0.25,       # Share of the steps.
    lr_rampup_length: float = 0.05,         # Share of the steps.
    noise_ramp_length: float = 0.75,        # Share of the steps.
) -> tuple[float, float]:
    """(learning rate, noise factor) of a step.

    The rate rises linearly, stays, and falls along a cosine; the noise falls quadratically to zero.
    """
    t = step / num_steps
    noise = initial_noise_factor * max(0.0, 1 - t / noise_ramp_length) ** 2
    fall = min(1.0, (1 - t) / lr_rampdown_length)
    ramp = (0.5 - 0.5 * np.cos(fall * np.pi)) * min(1.0, t / lr_rampup_length)
    return float(initial_learning_rate * ramp), float(noise)


def noise_regularization(noises: Sequence[tf.Tensor]) -> tf.Tensor:
    """How far noise maps are from white: squared autocorrelation at a distance of one pixel, at all scales.

    Each map is compared with itself one pixel to the right and one below, wrapped around, then halved down to
    8×8 by 2×2 averages times two, which keep the variance of white noise (appendix D, L_ij).

    Args:
        noises: Maps [N, H, W, 1].

    Returns: [N].
    """
    total = 0.0
    for noise in noises:
        while True:
            for axis in (2, 1):
                correlation = tf.reduce_mean(noise * tf.roll(noise, 1, axis), axis=[1, 2, 3])
                total += tf.square(correlation)
            if noise.shape[1] <= 8:
                break
            noise = tf.nn.avg_pool2d(noise, 2, 2, 'VALID') * 2
    return total


def normalize_noise(noise: tf.Tensor) -> tf.Tensor:
    """Maps [N, H, W, 1] with mean 0 and variance 1 each; constant ones become 0."""
    noise = noise - tf.reduce_mean(noise, axis=[1, 2, 3], keepdims=True)
    variance = tf.reduce_mean(tf.square(noise), axis=[1, 2, 3], keepdims=True)
    return noise * tf.math.rsqrt(tf.maximum(variance, 1e-30))


def check_network(network: 'tflib.Network') -> None:
    """Errors: UserError for a network that one cannot project into."""
    sampling.check_generator(network)
    synthesis = network.components.get('synthesis')
    if 'mapping' not in network.components or synthesis is None or synthesis.input_shape[1] == 1:
        raise UserError(f'network {network.name} has no intermediate latents w to project into; expected a '
                        'style-based generator')


class Projector:
    """Projects images into the latent space of a generator.

        proj = Projector()
        proj.set_network(Gs)
        proj.start(target_images)           # [N, C, H, W] in [-1, 1]
        while proj.get_cur_step() < proj.num_steps:
            proj.step()
        images, dlatents = proj.get_images(), proj.get_dlatents()

    Images are independent of each other: one has latents and noise of its own, and its projection does not
    depend on those beside it. One traced step serves all of them.

    Attributes, to be set before `set_network`:
        dlatent_avg_samples: samples of W that its mean and standard deviation are taken of.
        label: [1, label_size], the class of conditional networks. None = zeros.
        verbose: print what is found about W?
        clone_net: accepted for official scripts; the network is never changed.

    Attributes, to be set before `start`:
        num_steps, initial_learning_rate, initial_noise_factor, lr_rampdown_length, lr_rampup_length,
            noise_ramp_length: see `schedule`.
        regularize_noise_weight: weight of `noise_regularization`.
        distance: one of DISTANCES, 'auto' for `choose_distance`, or a function as `find_distance` returns.
        weights_dir: folder with the weights of the feature network of the distance.
        space: 'w', one latent for all layers, or 'w+', one for each.
        seed: of the initial noise and the noise added to w.

    `history` has what the steps have measured: {'distance', 'noise_regularization'}, [step][image].
    """

    def __init__(self) -> None:
        self.num_steps = 1000
        self.dlatent_avg_samples = 10000
        self.initial_learning_rate = 0.1
        self.initial_noise_factor = 0.05
        self.lr_rampdown_length = 0.25
        self.lr_rampup_length = 0.05
        self.noise_ramp_length = 0.75
        self.regularize_noise_weight = 1e5
        self.distance: str | Callable = 'auto'
        self.weights_dir: str | None = None
        self.space = 'w'
        self.seed = 0
        self.label: np.ndarray | None = None
        self.verbose = False
        self.clone_net = True
        self.history: dict[str, list[np.ndarray]] = {}
        self._network = None
        self._step_function = None
        self._settings: Any = None
        self._cur_step = 0

    def set_network(self, Gs: 'tflib.Network', minibatch_size: int = 1) -> None:
        """Chooses the generator and measures its W.

        Args:
            Gs: A generator with mapping and synthesis components. It is not changed.
            minibatch_size: Accepted for official scripts: `start` takes any number of images.

        Errors: UserError for another kind of network.
        """
        del minibatch_size
        check_network(Gs)
        self._network, self._synthesis, self._step_function = Gs, Gs.components.synthesis, None
        self._stage = Gs.layer.stage()
        latents = np.random.RandomState(W_SEED).randn(self.dlatent_avg_samples, *Gs.input_shape[1:])
        labels = None if self.label is None else np.repeat(self.label, len(latents), axis=0)
        samples = Gs.components.mapping.run(latents, labels, minibatch_size=1000)[:, 0].astype(np.float64)
        self._dlatent_avg = samples.mean(axis=0)
        self._dlatent_std = float(np.sqrt(np.square(samples - self._dlatent_avg).sum(axis=1).mean()))
        self._info(f'Standard deviation of W: {self._dlatent_std:g}')

    def start(self, target_images: np.ndarray, dlatents: np.ndarray | None = None,
              noises: Sequence[np.ndarray] | None = None) -> None:
        """Begins the projection of images.

        Args:
            target_images: [N, C, H, W] in [-1, 1], of the size and channels of the generator.
            dlatents: [N, 1 or num_layers, dlatent_size] to begin with, in space 'w' the same for all layers.
                None = the average of W.
            noises: Noise maps [N, 1, H, W] to begin with. None = random ones.

        Errors: UserError for images of another shape, latents or noise that do not fit, an unknown distance
            or space.
        """
        if self._network is None:
            raise UserError('Projector.start: call set_network(Gs) first')
        target_images = np.asarray(target_images, np.float32)
        expected = self._network.output_shape[1:]
        if target_images.ndim != 4 or list(target_images.shape[1:]) != list(expected):
            raise UserError(f'Projector.start: target images have shape {list(target_images.shape)}; network '
                            f'{self._network.name} draws [N, {", ".join(map(str, expected))}]')
        num_images = len(target_images)
        self._prepare(num_images)
        shapes = [[num_images, 1, *noise.shape[1:3]] for noise in self._noises]
        if noises is not None and [list(np.shape(noise)) for noise in noises] != shapes:
            raise UserError('Projector.start: noise maps have shapes '
                            f'{[list(np.shape(noise)) for noise in noises]}, expected {shapes}')
        # All images have the same random numbers: how many there are at a time makes no difference to one.
        random = np.random.RandomState(self.seed % 2**32)
        for i, noise in enumerate(self._noises):
            value = random.randn(1, *noise.shape[1:])
            if noises is not None:
                value = np.transpose(noises[i], [0, 2, 3, 1])
            noise.assign(np.broadcast_to(value, noise.shape))
        self._dlatents.assign(np.broadcast_to(
            self._dlatent_avg if dlatents is None else self._check_dlatents(np.asarray(dlatents)),
            self._dlatents.shape))
        self._targets.assign(self._comparable(tf.constant(target_images.transpose(0, 2, 3, 1))))
        for variable in self._optimizer.variables:
            variable.assign(tf.zeros_like(variable))
        self.history = {'distance': [], 'noise_regularization': []}
        self._cur_step = 0

    def _check_dlatents(self, dlatents: np.ndarray) -> np.ndarray:
        """Latents to begin with, of one layer in space 'w'."""
        num_images, num_layers, size = self._dlatents.shape[0], *self._synthesis.input_shape[1:]
        if dlatents.shape not in ((num_images, 1, size), (num_images, num_layers, size)):
            raise UserError(f'Projector.start: dlatents have shape {list(dlatents.shape)}, expected '
                            f'{[num_images, num_layers, size]}')
        if self.space == 'w+':
            return dlatents
        if not np.array_equal(dlatents, np.broadcast_to(dlatents[:, :1], dlatents.shape)):
            raise UserError("Projector.start: dlatents differ from layer to layer; expected space 'w+', "
                            "received 'w'")
        return dlatents[:, :1]

    def _prepare(self, num_images: int) -> None:
        """Variables and the traced step, which another start with the same settings uses again."""
        settings = (num_images, self.space, self.distance, self.weights_dir, self.regularize_noise_weight)
        if self._step_function is not None and settings == self._settings:
            return
        distance = self.distance
        if not callable(distance):
            name = choose_distance(self.weights_dir) if distance == 'auto' else distance
            distance = find_distance(name, self.weights_dir)
        if self.space not in ('w', 'w+'):
            raise UserError(f"Projector: space is {self.space!r}, expected 'w' or 'w+'")
        self._distance, self._settings = distance, settings
        _, num_layers, dlatent_size = self._synthesis.input_shape
        _, channels, height, width = self._network.output_shape
        self._dlatents = keras.Variable(
            np.zeros([num_images, num_layers if self.space == 'w+' else 1, dlatent_size]), dtype='float32')
        self._noises = [keras.Variable(np.zeros([num_images, *var.shape[2:], 1]), dtype='float32')
                        for var in sampling.noise_vars(self._network)]
        size = [side // self._shrink for side in (height, width)]
        self._targets = keras.Variable(np.zeros([num_images, *size, channels]), trainable=False,
                                       dtype='float32')
        self._optimizer = keras.optimizers.Adam(beta_1=0.9, beta_2=0.999, epsilon=1e-8)
        self._optimizer.build([self._dlatents, *self._noises])
        self._step_function = tf.function(self._update, autograph=False)
        self._image_function = tf.function(self._draw, autograph=False)

    @property
    def _shrink(self) -> int:
        return max(self._network.output_shape[2] // MAX_SIZE, 1)

    def _comparable(self, images: tf.Tensor) -> tf.Tensor:
        """Images [N, H, W, C] as they are compared: [0, 255], no larger than MAX_SIZE."""
        images = (images + 1) * (255 / 2)
        return tf.nn.avg_pool2d(images, self._shrink, self._shrink, 'VALID') if self._shrink > 1 else images

    def _synthesize(self, dlatents: tf.Tensor) -> tf.Tensor:
        """Images [N, H, W, C] of [N, 1 or num_layers, dlatent_size] with the noise of the projection."""
        num_layers = self._synthesis.input_shape[1]
        if dlatents.shape[1] != num_layers:
            dlatents = tf.tile(dlatents, [1, num_layers, 1])
        noises = [tf.convert_to_tensor(noise) for noise in self._noises]
        images = sampling.draw_dlatents(self._network, dlatents, noises, self._stage)
        return tf.transpose(images, [0, 2, 3, 1])

    def _update(self, seed: tf.Tensor, learning_rate: tf.Tensor, noise_strength: tf.Tensor) -> tuple:
        """One step: (distances [N], noise regularization [N]) before it."""
        variables = [self._dlatents, *self._noises]
        with tf.GradientTape() as tape:
            dlatents = tf.convert_to_tensor(self._dlatents)
            dlatents += tf.random.stateless_normal([1, *dlatents.shape[1:]], seed) * noise_strength
            images = self._comparable(self._synthesize(dlatents))
            distances = self._distance(images, tf.convert_to_tensor(self._targets))
            noises = [tf.convert_to_tensor(noise) for noise in self._noises]
            regularization = noise_regularization(noises) + tf.zeros_like(distances)
            loss = tf.reduce_sum(distances + regularization * self.regularize_noise_weight)
        gradients = tape.gradient(loss, variables)
        self._optimizer.learning_rate.assign(learning_rate)
        self._optimizer.apply_gradients(zip(gradients, variables, strict=True))
        for noise in self._noises:
            noise.assign(normalize_noise(tf.convert_to_tensor(noise)))
        return distances, regularization

    def _draw(self) -> tf.Tensor:
        return tf.transpose(self._synthesize(tf.convert_to_tensor(self._dlatents)), [0, 3, 1, 2])

    def step(self) -> None:
        """One step of the optimization; does nothing after the last one."""
        if self._cur_step >= self.num_steps:
            return
        learning_rate, noise_factor = schedule(
            self._cur_step, self.num_steps, self.initial_learning_rate, self.initial_noise_factor,
            self.lr_rampdown_length, self.lr_rampup_length, self.noise_ramp_length)
        distances, regularization = self._step_function(
            tf.constant([self.seed % 2 ** 31, self._cur_step], tf.int32),
            tf.constant(learning_rate, tf.float32),
            tf.constant(noise_factor * self._dlatent_std, tf.float32))
        self.history['distance'].append(distances.numpy())
        self.history['noise_regularization'].append(regularization.numpy())
        self._cur_step += 1

    def run(self, target_images: np.ndarray) -> EasyDict:
        """All steps for images [N, C, H, W] in [-1, 1].

        Returns: EasyDict of dlatents, noises and images; see `get_dlatents`, `get_noises`, `get_images`.
        """
        self.start(target_images)
        while self._cur_step < self.num_steps:
            self.step()
        return EasyDict(dlatents=self.get_dlatents(), noises=self.get_noises(), images=self.get_images())

    def get_cur_step(self) -> int:
        """Steps done."""
        return self._cur_step

    def get_dlatents(self) -> np.ndarray:
        """float32 [N, num_layers, dlatent_size]."""
        num_layers = self._synthesis.input_shape[1]
        dlatents = self._dlatents.numpy()
        return np.tile(dlatents, [1, num_layers // dlatents.shape[1], 1])

    def get_noises(self) -> list[np.ndarray]:
        """float32 [N, 1, H, W] for each noise input, in the official order."""
        return [noise.numpy().transpose(0, 3, 1, 2) for noise in self._noises]

    def get_images(self) -> np.ndarray:
        """float32 [N, C, H, W] in [-1, 1]: what the generator draws now, without noise added to w."""
        return self._image_function().numpy()

    def get_distances(self) -> np.ndarray:
        """float32 [N]: distances of these images from their targets."""
        images = self._comparable(tf.constant(self.get_images().transpose(0, 2, 3, 1)))
        return self._distance(images, tf.convert_to_tensor(self._targets)).numpy()

    def _info(self, text: str) -> None:
        if self.verbose:
            print(f'Projector: {text}', flush=True)
