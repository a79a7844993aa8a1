"""Trains a linear editor of w while the generator stays as it is: w' = w + Σ strength_k · direction_k.

The module that is added holds one direction per attribute, of the shape of w. It learns them from the images:
an edit of strength s shall change an attribute of the image by s standard deviations, and the others not at
all. Attributes are anything that TensorFlow can differentiate; here brightness, warmth and contrast.
Only the variables that the tape watches and the optimizer holds are trained: that is all it takes to freeze
a generator.
"""

import os
import pathlib
import sys
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # Runs without an installation too.

from dnnlib import UserError, flags
from dnnlib.util import atomic_write

# TensorFlow, and all modules that import it, are imported inside the functions: --help is answered at once.

SHEET_STRENGTHS = (-2, -1, 0, 1, 2)


def measure_attributes(images: Any) -> dict[str, Any]:
    """Attributes of images [N, H, W, C] in [-1, 1] as {name: tensor [N]}."""
    import tensorflow as tf
    gray = tf.reduce_mean(images, axis=3)
    attributes = {'brightness': tf.reduce_mean(gray, axis=[1, 2])}
    if images.shape[3] == 3:
        attributes['warmth'] = tf.reduce_mean(images[..., 0] - images[..., 2], axis=[1, 2])
    attributes['contrast'] = tf.sqrt(tf.math.reduce_variance(gray, axis=[1, 2]) + 1e-8)
    return attributes


def edit(dlatents: Any, strengths: Any, directions: Any) -> Any:
    """The linear editor.

    Args:
        dlatents: w [N, num_layers, dlatent_size].
        strengths: [N, num_attributes], in standard deviations of the attribute.
        directions: [num_attributes, num_layers, dlatent_size].
    """
    import tensorflow as tf
    return dlatents + tf.tensordot(strengths, directions, axes=1)


def draw_dlatents(generator: Any, count: int, rnd: Any, psi: float = 0.7) -> Any:
    """w [count, num_layers, dlatent_size] of random z, and of random classes where the generator has any."""
    import numpy as np
    label_size = generator.input_shapes[1][1]
    labels = np.eye(max(label_size, 1))[rnd.randint(max(label_size, 1), size=count)][:, :label_size]
    dlatents = generator.components.mapping.run(rnd.randn(count, generator.input_shape[1]), labels)
    average = generator.get_var('dlatent_avg')
    return (average + (dlatents - average) * psi).astype(np.float32)


def _synthesize(generator: Any, dlatents: Any) -> Any:
    """Images [N, H, W, C]; their noise is that of the noise variables, so that edits alone make a change."""
    from training.context import Context
    options = {'lod': generator.layer.lod} if generator.layer.grows else {}
    return generator.layer.synthesis(dlatents, ctx=Context(stage=generator.layer.stage()),
                                     randomize_noise=False, **options)


def train_editor(
    generator: Any,                 # Network with mapping and synthesis, as Gs of StyleGAN; not changed.
    steps: int = 300,               # Steps of training.
    batch_size: int = 8,            # Images per step.
    lrate: float = 0.02,            # Learning rate of the directions.
    seed: int = 0,                  # Of all random numbers.
) -> tuple[list[str], Any, list[float]]:
    """Returns the names of the attributes, the directions (see `edit`) and the loss of every step.

    Errors: UserError for a generator without mapping and synthesis network.
    """
    import numpy as np
    import tensorflow as tf

    from training.optimizer import Optimizer
    if not {'mapping', 'synthesis'} <= set(generator.components):
        raise UserError(f'{generator.name} ({type(generator.layer).__name__}) has no w to edit; expected a '
                        'generator of StyleGAN or StyleGAN2')
    rnd = np.random.RandomState(seed)
    measured = measure_attributes(_synthesize(generator, draw_dlatents(generator, 128, rnd)))
    names = list(measured)
    spread = tf.math.reduce_std(tf.stack(list(measured.values()), axis=1), axis=0)
    shape = generator.components.synthesis.input_shape[1:]
    directions = tf.Variable(tf.zeros([len(names), *shape]))
    optimizer = Optimizer('TrainEditor', [directions], beta1=0.9, beta2=0.99)

    @tf.function(autograph=False)
    def step(dlatents, strengths):
        before = tf.stack(list(measure_attributes(_synthesize(generator, dlatents)).values()), axis=1)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(directions)          # The generator's weights are not: they stay as they are.
            images = _synthesize(generator, edit(dlatents, strengths, directions))
            after = tf.stack(list(measure_attributes(images).values()), axis=1)
            loss = tf.reduce_mean(tf.square((after - before) / spread - strengths))
        optimizer.apply(tape.gradient(loss, [directions]), tf.constant(lrate))
        return loss

    losses = []
    for index in range(steps):
        dlatents = draw_dlatents(generator, batch_size, rnd)
        strengths = rnd.randn(batch_size, len(names)).astype(np.float32)
        losses.append(float(step(tf.constant(dlatents), tf.constant(strengths))))
        if (index + 1) % 50 == 0:
            print(f'step {index + 1:<5d} loss {np.mean(losses[-50:]):.4f}', flush=True)
    return names, directions.numpy(), losses


def save_editor(path: str, names: list[str], directions: Any) -> None:
    """Writes an editor as .npz."""
    import numpy as np
    with atomic_write(path) as file:
        np.savez(file, names=np.array(names), directions=directions)


def load_editor(path: str) -> tuple[list[str], Any]:
    """The names of the attributes and the directions."""
    import numpy as np
    with np.load(path) as file:
        return [str(name) for name in file['names']], file['directions']


def save_sheet(path: str, generator: Any, directions: Any, rows: int = 4, seed: int = 1) -> None:
    """One row per image: for every attribute the edits of SHEET_STRENGTHS side by side, 0 = as it was."""
    import numpy as np

    from generation import sampling
    from training import misc
    dlatents = draw_dlatents(generator, rows, np.random.RandomState(seed))
    strengths = [strength * row for row in np.eye(len(directions)) for strength in SHEET_STRENGTHS]
    offsets = [np.tensordot(values, directions, axes=1) for values in strengths]
    edited = np.stack([w + offset for w in dlatents for offset in offsets])
    images = list(sampling.synthesize(generator, edited.astype(np.float32)))
    misc.save_image_grid(images, path, drange=[0, 255], grid_size=(len(strengths), rows))


def make_parser() -> flags.Parser:
    """The command line."""
    parser = flags.Parser('Trains a linear editor of w; the generator stays as it is.', examples=[
        'python examples/linear_latent_editor.py --network=network-final.pkl --result-dir=editor',
    ], prog='linear_latent_editor.py')
    parser.add_flag('network', flags.path, 'pickle with the generator', required=True)
    parser.add_flag('result-dir', flags.path, 'where editor.npz and editor.png go', default='.')
    parser.add_flag('steps', flags.positive_int, 'steps of training', default=300)
    parser.add_flag('batch-size', flags.positive_int, 'images per step', default=8)
    parser.add_flag('seed', flags.nonneg_int, 'of all random numbers', default=0)
    return parser


def run(args: Any) -> int:
    """Trains, and writes editor.npz and editor.png."""
    from pretrained_networks import load_network
    generator = load_network(args.network, 'Gs')
    os.makedirs(args.result_dir, exist_ok=True)
    names, directions, losses = train_editor(generator, args.steps, args.batch_size, seed=args.seed)
    paths = [os.path.join(args.result_dir, name) for name in ('editor.npz', 'editor.png')]
    save_editor(paths[0], names, directions)
    save_sheet(paths[1], generator, directions)
    print(f'Loss {losses[0]:.3f} → {losses[-1]:.3f} for {", ".join(names)}. Wrote {" and ".join(paths)}')
    return 0


if __name__ == '__main__':
    flags.run(run, make_parser)
