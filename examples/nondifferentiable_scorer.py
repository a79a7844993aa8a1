"""Trains a generator towards what a program without gradients likes: a loss with a gradient of our own.

A scorer is any NumPy function that gives each image a number: another library, a count of things, a judge at
the other end of a line. TensorFlow cannot differentiate it, so `tf.custom_gradient` says what its gradient
is: an estimate by evolution strategies (Salimans et al. 2017). The images are disturbed by coarse noise in
both directions, and the noise counts by how much the score goes up along it:

    gradient ≈ mean over ε of (score(x + σε) − score(x − σε)) / 2σ · ε

That is the gradient of the score blurred by σ, which exists even where the score is a staircase.
`G_logistic_ns_pathreg_scored` is an ordinary loss, that a training configuration names:
G_loss_args=dict(func_name='examples.nondifferentiable_scorer.G_logistic_ns_pathreg_scored').
"""

import os
import pathlib
import sys
import zlib
from collections.abc import Callable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # Runs without an installation too.

import numpy as np

from dnnlib import flags
from dnnlib.startup import load_tensorflow
from dnnlib.util import get_obj_by_name

# TensorFlow, and all modules that import it, are imported inside the functions: --help is answered at once.

HERE = 'examples.nondifferentiable_scorer'


# Scorers: images uint8 [N, H, W, C] → one number per image. Neither has a gradient.

def dark_share(images: np.ndarray) -> np.ndarray:
    """The share of the pixels that are dark: a count, flat almost everywhere."""
    return np.mean(images.mean(axis=3) < 96, axis=(1, 2))


def simplicity(images: np.ndarray) -> np.ndarray:
    """How well an image can be compressed: 1 − compressed size / size."""
    return np.array([1 - len(zlib.compress(image.tobytes())) / image.size for image in images])


def coarse_noise(ctx: Any, shape: Any, cells: int, dtype: Any) -> Any:
    """Noise [N, H, W, C] of unit variance per pixel, constant over cells of an image cut in cells × cells.

    The estimate is better by far in the few directions of coarse noise than in those of all pixels.
    """
    import tensorflow as tf
    count, height, width, channels = shape
    cells = min(cells, height, width)
    noise = ctx.normal([count, cells, cells, channels], dtype)
    return tf.repeat(tf.repeat(noise, height // cells, axis=1), width // cells, axis=2)


def estimated_score(images: Any, noise: Any, score: Callable, sigma: float) -> Any:
    """Scores [N] of images [N, H, W, C] by a function of NumPy arrays, with an estimated gradient.

    Args:
        images: What the score is wanted of, and its gradient with respect to.
        noise: [S, N, H, W, C], S disturbances ε of unit variance per image.
        score: Function of an array like `images` that gives [N] numbers.
        sigma: Size of the disturbances.
    """
    import tensorflow as tf
    dtype = images.dtype

    def scores_of(batch):
        values = tf.numpy_function(lambda x: np.asarray(score(x), x.dtype), [batch], dtype)
        return tf.ensure_shape(values, batch.shape[:1])

    @tf.custom_gradient
    def scored(images):
        def gradient(upstream):
            moved = tf.concat([images + sigma * noise, images - sigma * noise], axis=0)   # [2S, N, H, W, C]
            values = tf.reshape(scores_of(tf.reshape(moved, [-1, *images.shape[1:]])), [2, *noise.shape[:2]])
            slopes = (values[0] - values[1]) / (2 * sigma)
            estimate = tf.reduce_mean(slopes[..., tf.newaxis, tf.newaxis, tf.newaxis] * noise, axis=0)
            return upstream[:, tf.newaxis, tf.newaxis, tf.newaxis] * estimate
        return scores_of(images), gradient

    return scored(images)


def _as_uint8(images: np.ndarray) -> np.ndarray:
    return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)


def G_logistic_ns_pathreg_scored(
    G, D, ctx, minibatch_size: int,
    scorer: str = f'{HERE}.dark_share',     # Name of a function images uint8 [N, H, W, C] → numbers [N].
    score_weight: float = 0.3,              # Weight of the score, which is maximized.
    sigma: float = 0.2,                     # Size of the disturbances; images are in [-1, 1].
    samples: int = 8,                       # Disturbances per image, tried in both directions.
    cells: int = 8,                         # Cells of the disturbances along an image's side.
    **kwargs,                               # Of path length regularization.
) -> tuple:
    """The loss of StyleGAN2 minus the score of the fakes. All random numbers come from ctx: runs resume."""
    import tensorflow as tf

    from training.loss import G_logistic_ns_pathreg
    score = get_obj_by_name(scorer)

    def loss():
        labels = ctx.random_labels(minibatch_size)
        latents = ctx.normal([minibatch_size, *G.input_shapes[0][1:]], tf.as_dtype(G.compute_dtype))
        images = G(latents, labels, is_training=True, ctx=ctx)
        judged = ctx.report('Loss/scores/fake', D(images, labels, is_training=True, ctx=ctx))
        noise = tf.stack([coarse_noise(ctx, images.shape, cells, images.dtype) for _ in range(samples)])
        scores = estimated_score(images, noise, lambda x: score(_as_uint8(x)), sigma)
        ctx.report('Loss/scores/extra', scores)
        return tf.nn.softplus(-judged) - score_weight * scores[:, tf.newaxis]

    _, reg = G_logistic_ns_pathreg(G, D, ctx, minibatch_size, **kwargs)
    return loss, reg


G_logistic_ns_pathreg_scored.state = {'pl_mean': 0.0}   # What path length regularization keeps.


def train(network_pkl: str | None, config: str = 'demo', scorer: str = 'dark_share', kimg: float = 4,
          result_dir: str = 'results', **changes: Any) -> Any:
    """Trains with the score, from a snapshot or from scratch; returns the progress of the run."""
    from dnnlib.submission import SubmitConfig, submit_run
    from training.configs import find_config, merge
    from training.training_loop import check_arguments
    loss_args = dict(func_name=f'{HERE}.G_logistic_ns_pathreg_scored',
                     scorer=scorer if '.' in scorer else f'{HERE}.{scorer}')
    get_obj_by_name(loss_args['scorer'])    # Mistakes are said before there is a run directory.
    kwargs = merge(find_config(config), dict(
        G_loss_args=loss_args, total_kimg=kimg, G_smoothing_kimg=kimg / 5, image_snapshot_ticks=1,
        resume_pkl=network_pkl and os.path.abspath(network_pkl), resume_kimg=0.0))
    kwargs = merge(kwargs, changes)
    check_arguments(**kwargs)
    submit_config = SubmitConfig(run_dir_root=result_dir, run_desc=f'scored-{scorer}', config=config)
    return submit_run(submit_config, 'training.training_loop.training_loop', **kwargs)


def make_parser() -> flags.Parser:
    """The command line."""
    parser = flags.Parser('Trains a generator towards a score without gradients.', examples=[
        'python examples/nondifferentiable_scorer.py --network=network-final.pkl --config=demo --kimg=4',
        'python examples/nondifferentiable_scorer.py --network=network-final.pkl --scorer=simplicity',
    ], prog='nondifferentiable_scorer.py')
    parser.add_flag('network', flags.path, 'snapshot (G, D, Gs) to start from (default: from scratch)')
    parser.add_flag('config', help='configuration', default='demo')
    parser.add_flag('scorer', help='dark_share, simplicity, or the full name of a function of images uint8 '
                                   '[N, H, W, C]', default='dark_share')
    parser.add_flag('kimg', flags.nonneg_float, 'length in thousands of images', default=4.0)
    parser.add_flag('result-dir', flags.path, 'where the run directory goes', default='results')
    return parser


def run(args: Any) -> int:
    """Trains; the curve of the score is Loss/scores/extra in TensorBoard."""
    load_tensorflow()
    network = args.network and os.path.expanduser(args.network)
    progress = train(network, args.config, args.scorer, args.kimg, args.result_dir)
    return 128 + progress.stop_signal if progress.stop_signal else 0


if __name__ == '__main__':
    flags.run(run, make_parser)
