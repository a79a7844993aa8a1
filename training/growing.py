"""Progressive growing: which levels of a network run, and how two of them fade (ProGAN, section 2, figure 2).

The level of detail `lod` counts from the final resolution (lod 0) downwards: at lod 2 a 1024×1024 network
works at 256×256; at lod 1.3 it works at 512×512, faded by 0.3 with what it gives at 256×256. For whoever uses
a network its images have the final resolution; in a training step they stay small (`Context.stage_size`).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError
from training.context import Context

STRUCTURES = ('auto', 'fixed', 'linear', 'recursive')


class Stage(NamedTuple):
    """Which part of a growing network runs: known at tracing time, while the fraction of lod is a tensor."""

    lod_floor: int      # floor(lod): the level that is trained, or fades in.
    fading: bool        # Does lod have a fraction?


def stage_of(lod: float) -> Stage:
    """The stage at a level of detail."""
    lod_floor = int(np.floor(lod))
    return Stage(lod_floor, bool(lod != lod_floor))


def check_structure(structure: str) -> None:
    """Raises UserError unless `structure` is one of STRUCTURES."""
    if structure not in STRUCTURES:
        raise UserError(f'structure must be one of {", ".join(STRUCTURES)}. Received: {structure!r}')


def running_stage(structure: str, lod: tf.Tensor, ctx: Context) -> Stage | None:
    """The stage that a network runs in this pass; None = all levels, which is right for every lod.

    Args:
        structure: 'fixed' = the final resolution whatever lod says; 'linear' = all levels; 'recursive' and
            'auto' = only the levels that lod needs, where it is known: in a training step, in `Network.run`
            and outside of traced functions.
        lod: scalar, the level of detail.
    """
    check_structure(structure)
    if ctx.stage_size:  # The reals have the size of the stage; so must the fakes.
        return ctx.stage
    if structure == 'fixed':
        return Stage(0, False)
    if structure == 'linear':
        return None
    if ctx.stage is not None:
        return ctx.stage
    return stage_of(float(tf.convert_to_tensor(lod))) if tf.executing_eagerly() else None


def upscale2d(x: tf.Tensor, factor: int = 2, gain: float = 1) -> tf.Tensor:
    """Nearest-neighbour upscaling of x [N, H, W, C] by an integer factor; gain is a factor on the values."""
    if gain != 1:
        x *= tf.constant(gain, x.dtype)
    if factor == 1:
        return x
    height, width, channels = x.shape[1:]
    x = tf.tile(tf.reshape(x, [-1, height, 1, width, 1, channels]), [1, 1, factor, 1, factor, 1])
    return tf.reshape(x, [-1, height * factor, width * factor, channels])


def downscale2d(x: tf.Tensor, factor: int = 2, gain: float = 1) -> tf.Tensor:
    """Box averages of x [N, H, W, C] over factor × factor pixels; gain is a factor on the values."""
    if gain != 1:
        x *= tf.constant(gain, x.dtype)
    return x if factor == 1 else tf.nn.avg_pool2d(x, factor, factor, 'VALID')


def grow_images(
    features: Callable[[tf.Tensor | None, int], tf.Tensor],     # (x at res - 1 or None, res) → x at res.
    to_rgb: Callable[[tf.Tensor, int], tf.Tensor],              # (x, res) → image at res.
    resolution_log2: int,                                       # log2 of the final resolution.
    lod: tf.Tensor,                                             # Level of detail, scalar.
    stage: Stage | None,                                        # See running_stage.
    ctx: Context,
) -> tf.Tensor:
    """The image [N, H, W, C] of a growing generator. Levels are numbered by log2: 4×4 is `res` 2."""
    if stage is None:
        x = features(None, 2)
        images = to_rgb(x, 2)
        for res in range(3, resolution_log2 + 1):
            x = features(x, res)
            level = resolution_log2 - res
            images = ctx.feature(f'Grow_lod{level}',
                                 _lerp_clip(to_rgb(x, res), upscale2d(images), lod - level))
        return images
    top, fading = _top_level(resolution_log2, stage)
    x = below = None
    for res in range(2, top + 1):
        below, x = x, features(x, res)
    images = to_rgb(x, top)
    if fading:
        images += (upscale2d(to_rgb(below, top - 1)) - images) * _fraction(lod, stage, images.dtype)
    return images if ctx.stage_size else upscale2d(images, 2 ** (resolution_log2 - top))


def shrink_images(
    images: tf.Tensor,                                      # [N, H, W, C], or of the size of the stage.
    from_rgb: Callable[[tf.Tensor, int], tf.Tensor],        # (image at res, res) → x at res.
    block: Callable[[tf.Tensor, int], tf.Tensor],           # (x at res, res) → x at res - 1.
    resolution_log2: int,                                   # log2 of the final resolution.
    lod: tf.Tensor,                                         # Level of detail, scalar.
    stage: Stage | None,                                    # See running_stage.
    ctx: Context,
) -> tf.Tensor:
    """The features of a growing discriminator at 4×4, before its last block. Numbers as in grow_images."""
    if stage is None:
        x = from_rgb(images, resolution_log2)
        for res in range(resolution_log2, 2, -1):
            x = block(x, res)
            images = downscale2d(images)
            level = resolution_log2 - res
            x = ctx.feature(f'Grow_lod{level}', _lerp_clip(x, from_rgb(images, res - 1), lod - level))
        return x
    top, fading = _top_level(resolution_log2, stage)
    if not ctx.stage_size:
        images = downscale2d(images, 2 ** (resolution_log2 - top))
    x = from_rgb(images, top)
    for res in range(top, 2, -1):
        x = block(x, res)
        if res == top and fading:
            x += (from_rgb(downscale2d(images), top - 1) - x) * _fraction(lod, stage, x.dtype)
    return x


def _top_level(resolution_log2: int, stage: Stage) -> tuple[int, bool]:
    """(log2 of the resolution that a stage works at, whether it fades): nothing is below 4×4."""
    top = resolution_log2 - stage.lod_floor
    return max(top, 2), stage.fading and top > 2


def _fraction(lod: tf.Tensor, stage: Stage, dtype: tf.DType) -> tf.Tensor:
    return tf.cast(lod - stage.lod_floor, dtype)


def _lerp_clip(a: tf.Tensor, b: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
    return a + (b - a) * tf.cast(tf.clip_by_value(t, 0.0, 1.0), a.dtype)
