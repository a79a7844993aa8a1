"""The training configurations by name, as data. Sources: StyleGAN2, tables 1 and 2 and appendix B.

Every config is a nested dict of arguments of `training.training_loop.training_loop`, built by laying a few
changes over a base; train.py lays what the command line says over that.
"""

import copy
from typing import Any

from dnnlib.util import UserError, did_you_mean


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of `base` with `changes` laid over it, nested dicts merged key by key.

    A dict without keys replaces the one in `base` where that is a table of values by resolution (`*_dict`).
    """
    merged = copy.deepcopy(base)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict) and not key.endswith('_dict'):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


# Config F at any resolution: large networks, skip generator, residual discriminator, no growing.
CONFIG_F: dict[str, Any] = dict(
    G_args=dict(func_name='training.networks_stylegan2.G_main', fmap_base=16 << 10),
    D_args=dict(func_name='training.networks_stylegan2.D_stylegan2', fmap_base=16 << 10),
    G_opt_args=dict(beta1=0.0, beta2=0.99, epsilon=1e-8),
    D_opt_args=dict(beta1=0.0, beta2=0.99, epsilon=1e-8),
    G_loss_args=dict(func_name='training.loss.G_logistic_ns_pathreg'),
    D_loss_args=dict(func_name='training.loss.D_logistic_r1', gamma=10),
    sched_args=dict(G_lrate_base=0.002, D_lrate_base=0.002, minibatch_size_base=32, minibatch_gpu_base=4),
    grid_args=dict(size='8k', layout='random'),
    dataset_args=dict(max_label_size=0),
    metric_arg_list=[],
    G_smoothing_kimg=10.0,
    minibatch_repeats=4,
    lazy_regularization=True,
    G_reg_interval=4,
    D_reg_interval=16,
    total_kimg=25000,
    mirror_augment=False,
    image_snapshot_ticks=10,
    network_snapshot_ticks=10,
    seed=1000,
    num_gpus=1,
    strategy='auto',
)


# What makes config E of config F: half the feature maps, another gamma.
CONFIG_E: dict[str, Any] = dict(
    G_args=dict(fmap_base=8 << 10), D_args=dict(fmap_base=8 << 10), D_loss_args=dict(gamma=100))

# A network small enough for two CPU cores; learns the embedded 32x32 data set in minutes.
DEMO: dict[str, Any] = dict(
    G_args=dict(fmap_base=512, fmap_max=128, latent_size=64, dlatent_size=64,
                mapping_fmaps=64, mapping_layers=2),
    D_args=dict(fmap_base=512, fmap_max=128),
    G_loss_args=dict(pl_weight=0.2),
    D_loss_args=dict(gamma=1),
    sched_args=dict(G_lrate_base=0.003, D_lrate_base=0.003, minibatch_size_base=16, minibatch_gpu_base=16,
                    tick_kimg_base=4, tick_kimg_dict={}),
    grid_args=dict(size='16x8'),
    G_smoothing_kimg=2.0,
    mirror_augment=True,
    total_kimg=75,
    image_snapshot_ticks=2,
    network_snapshot_ticks=5,
    keep_snapshots=3,
)

# Name → (one line of description, changes to CONFIG_F).
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    'config-e': ('StyleGAN2 without large networks (Table 1, E)', CONFIG_E),
    'config-f': ('StyleGAN2 (Table 1, F)', {}),
    **{f'config-e-G{G}-D{D}': (f'config-e with {G} generator and {D} discriminator (Table 2)',
                              merge(CONFIG_E, dict(G_args=dict(architecture=G), D_args=dict(architecture=D))))
       for G in ('orig', 'skip', 'resnet') for D in ('orig', 'skip', 'resnet')},
    'demo': ('a small StyleGAN2 for the embedded data set, minutes on two CPU cores', DEMO),
}


def find_config(name: str) -> dict[str, Any]:
    """Arguments of the training loop for a config; UserError for an unknown name."""
    if name not in CONFIGS:
        raise UserError(f'--config: expected one of {", ".join(CONFIGS)}. Received: {name!r}'
                        f'{did_you_mean(name, list(CONFIGS), 1)}')
    return merge(CONFIG_F, CONFIGS[name][1])
