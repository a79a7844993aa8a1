"""Training schedule: level of detail, minibatch, learning rates and tick length after `cur_nimg` images.

One function serves the three generations: Progressive GAN, StyleGAN (both: `minibatch_gpu_base=None`) and
StyleGAN2.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dnnlib.util import EasyDict, UserError

# Length of a tick in thousands of images by resolution; the base holds for resolutions that are not listed.
TICK_KIMG = {
    'stylegan2': {8: 28, 16: 24, 32: 20, 64: 16, 128: 12, 256: 8, 512: 6, 1024: 4},  # base 4
    'stylegan': {4: 160, 8: 140, 16: 120, 32: 100, 64: 80, 128: 60, 256: 40, 512: 30, 1024: 20},  # base 160
    'progan': {4: 160, 8: 140, 16: 120, 32: 100, 64: 80, 128: 60, 256: 40, 512: 20, 1024: 10},  # base 160
}


def training_schedule(
    cur_nimg: int,                                # Real images shown so far.
    resolution_log2: int,                         # log2 of the final resolution.
    num_gpus: int = 1,                            # Number of replicas.
    lod_initial_resolution: int | None = None,    # Resolution at the start; None: no growing.
    lod_training_kimg: float = 600,               # Thousands of images between two fades.
    lod_transition_kimg: float = 600,             # Thousands of images of a fade.
    minibatch_size_base: int = 32,                # Images per update over all replicas.
    minibatch_size_dict: Mapping | None = None,   # The same by resolution.
    minibatch_gpu_base: int | None = 4,           # Images per replica and round; None: its whole share.
    minibatch_gpu_dict: Mapping | None = None,    # The same by resolution.
    G_lrate_base: float = 0.002,                  # Learning rate of the generator.
    G_lrate_dict: Mapping | None = None,          # The same by resolution.
    D_lrate_base: float = 0.002,                  # Learning rate of the discriminator.
    D_lrate_dict: Mapping | None = None,          # The same by resolution.
    lrate_rampup_kimg: float = 0,                 # Learning rates rise from 0 over this many kimg.
    tick_kimg_base: float = 4,                    # Length of a tick in thousands of images.
    tick_kimg_dict: Mapping | None = None,        # The same by resolution; None: those of StyleGAN2.
    max_minibatch_per_gpu: Mapping | None = None, # Most images per update and replica, by resolution.
    minibatch_gpu_multiple: int = 1,              # Shares of at least so many are rounded down to a multiple.
) -> EasyDict:
    """Evaluates the training schedule at one moment.

    Progressive growing (Karras et al. 2018, section 2 and appendix A): the initial resolution is trained
    for `lod_training_kimg`, then the next level fades in over `lod_transition_kimg`, is trained, and so
    on. lod counts from the final resolution (lod 0) downwards; its fraction is the weight of the lower
    resolution while a level fades in. A transition of 0 kimg switches levels at once.

    Dictionaries map a resolution (int, or str as in JSON) to the value that holds there. Two ways to
    state the minibatch: with `minibatch_gpu` (StyleGAN2) an update accumulates minibatch_size /
    (minibatch_gpu·num_gpus) rounds; with `minibatch_gpu_base=None` (StyleGAN, Progressive GAN) it is one
    round, and minibatch_size is capped by `max_minibatch_per_gpu` and rounded down to a multiple of
    num_gpus.

    Returns: EasyDict of kimg, lod (float), resolution, minibatch_size, minibatch_gpu (int), G_lrate, D_lrate,
        tick_kimg.
    Raises: UserError if a value makes no sense, or if the minibatch of any resolution from the first to
        the last does not divide among the replicas: on the first call, not days into a run.
    """
    if num_gpus < 1:
        raise UserError(f'num_gpus must be at least 1; received {num_gpus}')
    first_log2 = _initial_log2(lod_initial_resolution, resolution_log2)
    sizes, sizes_gpu = _int_keys(minibatch_size_dict), _int_keys(minibatch_gpu_dict)
    caps = _int_keys(max_minibatch_per_gpu)
    minibatches = {}
    for res in (2 ** level for level in range(first_log2, resolution_log2 + 1)):
        size, per_gpu = sizes.get(res, minibatch_size_base), sizes_gpu.get(res, minibatch_gpu_base)
        minibatches[res] = _minibatch(res, size, per_gpu, caps.get(res), num_gpus, minibatch_gpu_multiple)

    kimg = cur_nimg / 1000.0
    lod = float(resolution_log2 - first_log2)
    phase_kimg = lod_training_kimg + lod_transition_kimg
    phase = int(np.floor(kimg / phase_kimg)) if phase_kimg > 0 else 0
    lod -= phase
    if lod_transition_kimg > 0:
        lod -= max(kimg - phase * phase_kimg - lod_training_kimg, 0.0) / lod_transition_kimg
    lod = max(lod, 0.0)
    resolution = 2 ** (resolution_log2 - int(np.floor(lod)))

    rampup = min(kimg / lrate_rampup_kimg, 1.0) if lrate_rampup_kimg > 0 else 1.0
    minibatch_size, minibatch_gpu = minibatches[resolution]
    ticks = TICK_KIMG['stylegan2'] if tick_kimg_dict is None else _int_keys(tick_kimg_dict)
    return EasyDict(
        kimg=kimg,
        lod=lod,
        resolution=resolution,
        minibatch_size=minibatch_size,
        minibatch_gpu=minibatch_gpu,
        G_lrate=_int_keys(G_lrate_dict).get(resolution, G_lrate_base) * rampup,
        D_lrate=_int_keys(D_lrate_dict).get(resolution, D_lrate_base) * rampup,
        tick_kimg=ticks.get(resolution, tick_kimg_base),
    )


def kimg_at_lod(
    lod: float, resolution_log2: int, lod_initial_resolution: int | None = None,
    lod_training_kimg: float = 600, lod_transition_kimg: float = 600, **_others: Any
) -> float:
    """Thousands of images after which the schedule with these arguments first comes to a level of detail."""
    levels = max(resolution_log2 - _initial_log2(lod_initial_resolution, resolution_log2) - lod, 0.0)
    phases = int(np.floor(levels))
    kimg = phases * (lod_training_kimg + lod_transition_kimg)
    return kimg + (lod_training_kimg + (levels - phases) * lod_transition_kimg if levels > phases else 0)


def lazy_regularization(
    lrate: float, beta1: float, beta2: float, reg_interval: int | None
) -> tuple[float, float, float]:
    """Adam parameters for a network whose regularizer runs only every `reg_interval`-th minibatch.

    With k = reg_interval there are k + 1 Adam steps where there would be k, so with c = k / (k + 1) the
    learning rate becomes c·lrate and the betas beta1^c, beta2^c (Karras et al. 2020, appendix B, "Lazy
    regularization").

    Returns: (lrate, beta1, beta2); unchanged if reg_interval is None (the regularizer is part of the loss).
    """
    if reg_interval is None:
        return lrate, beta1, beta2
    if reg_interval < 1:
        raise UserError(f'reg_interval must be at least 1, or None to turn it off; received {reg_interval}')
    c = reg_interval / (reg_interval + 1)
    return lrate * c, beta1 ** c, beta2 ** c


def ema_beta(minibatch_size: int, smoothing_kimg: float) -> float:
    """Weight of the old value in the moving average of the generator, per update of `minibatch_size` images.

    The half-life is `smoothing_kimg` thousand images: 0.5^(minibatch_size / (1000·smoothing_kimg)); 0 (the
    average is a copy of the generator) if smoothing_kimg is 0.
    """
    return 0.5 ** (minibatch_size / (smoothing_kimg * 1000.0)) if smoothing_kimg > 0 else 0.0


def _int_keys(values: Mapping | None) -> dict:
    """Resolutions as integers: JSON knows only string keys."""
    return {int(key): value for key, value in (values or {}).items()}


def _initial_log2(lod_initial_resolution: int | None, resolution_log2: int) -> int:
    """log2 of the resolution at the start, at most the final one."""
    if lod_initial_resolution is None:
        return resolution_log2
    if lod_initial_resolution < 4 or lod_initial_resolution & (lod_initial_resolution - 1):
        raise UserError('lod_initial_resolution must be a power of two, at least 4; '
                        f'received {lod_initial_resolution}')
    return min(int(lod_initial_resolution).bit_length() - 1, resolution_log2)


def _minibatch(
    resolution: int, size: int, per_gpu: int | None, cap: int | None, num_gpus: int, multiple: int
) -> tuple[int, int]:
    """(minibatch_size, minibatch_gpu) at one resolution."""
    requested = size
    if cap is not None:
        size = min(size, cap * num_gpus)
    if per_gpu is None:
        size -= size % num_gpus
        if size < 1:
            raise UserError(f'minibatch_size {requested} at resolution {resolution} is fewer than one image '
                            f'for each of {num_gpus} GPUs; raise it or use fewer GPUs')
        share = size // num_gpus
        share -= share % multiple if share >= multiple else 0
        return share * num_gpus, share
    if size < 1 or per_gpu < 1 or size % (per_gpu * num_gpus):
        raise UserError(f'minibatch_size {size} at resolution {resolution} must be a multiple of '
                        f'minibatch_gpu {per_gpu} × {num_gpus} GPUs = {per_gpu * num_gpus}; '
                        'change one of the three')
    return size, per_gpu
