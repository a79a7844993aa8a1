"""The training configurations by name, as data.

Sources: StyleGAN2 (Karras et al. 2020), tables 1 and 2 and appendix B; StyleGAN (Karras et al. 2019), tables
1, 2 and 4 and appendix C; ProGAN (Karras et al. 2018), appendix A; the defaults of their official programs.
BigGAN (Brock et al. 2018), section 3 and appendices B to D; the scripts of BigGAN-PyTorch, by its author.

Every config is a nested dict of arguments of `training.training_loop.training_loop`, built by laying a few
changes over a base; train.py lays what the command line says over that.
"""

import copy
from typing import Any, NamedTuple

from dnnlib.util import UserError, did_you_mean
from training.schedule import TICK_KIMG


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of `base` with `changes` laid over it, nested dicts merged key by key.

    Two kinds of dict replace the one in `base` as a whole: tables of values by resolution (`*_dict`), and the
    arguments of another function (`func_name`), to which those of the first mean nothing.
    """
    merged = copy.deepcopy(base)
    for key, value in changes.items():
        before = merged.get(key)
        if isinstance(value, dict) and isinstance(before, dict) and not key.endswith('_dict') \
                and value.get('func_name') in (None, before.get('func_name')):
            merged[key] = merge(before, value)
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

# Learning rates by resolution of all growing configs on 8 GPUs.
LRATES = {128: 0.0015, 256: 0.002, 512: 0.003, 1024: 0.003}

# Growing in StyleGAN2's program: from 8x8, 600 kimg per level and 600 per fade.
GROWING: dict[str, Any] = dict(
    sched_args=dict(
        lod_initial_resolution=8,
        G_lrate_base=0.001, G_lrate_dict=LRATES, D_lrate_base=0.001, D_lrate_dict=LRATES,
        minibatch_size_base=32, minibatch_size_dict={8: 256, 16: 128, 32: 64, 64: 32},
        minibatch_gpu_base=4, minibatch_gpu_dict={8: 32, 16: 16, 32: 8, 64: 4}))

# Configs D, C, B and A, each by what it lacks of the one before (StyleGAN2, table 1).
CONFIG_D = merge(merge(CONFIG_E, GROWING), dict(
    G_args=dict(synthesis_func='G_synthesis_stylegan_revised'),
    D_args=dict(func_name='training.networks_stylegan2.D_stylegan', fmap_base=8 << 10),
    D_loss_args=dict(gamma=10)))
CONFIG_C = merge(CONFIG_D, dict(G_loss_args=dict(func_name='training.loss.G_logistic_ns')))
CONFIG_B = merge(CONFIG_C, dict(lazy_regularization=False))
CONFIG_A = merge(merge(CONFIG_E, GROWING), dict(
    G_args=dict(func_name='training.networks_stylegan.G_style', fmap_base=8 << 10),
    D_args=dict(func_name='training.networks_stylegan.D_basic', fmap_base=8 << 10),
    G_loss_args=dict(func_name='training.loss.G_logistic_ns'),
    D_loss_args=dict(gamma=10),
    lazy_regularization=False))


def _by_gpus(base: int, sizes: dict[int, int], lrates: dict[int, float] | None = None) -> dict[str, Any]:
    """Minibatches, and learning rates where given, for a number of GPUs. Each GPU takes its share at once."""
    sched_args: dict[str, Any] = dict(minibatch_size_base=base, minibatch_size_dict=sizes)
    if lrates is not None:
        sched_args.update(G_lrate_dict=lrates, D_lrate_dict=lrates)
    return dict(sched_args=sched_args)


# The minibatch sizes of StyleGAN and ProGAN by number of GPUs.
SIZES: dict[int, tuple[int, dict[int, int]]] = {
    1: (4, {4: 128, 8: 128, 16: 128, 32: 64, 64: 32, 128: 16, 256: 8, 512: 4}),
    2: (8, {4: 256, 8: 256, 16: 128, 32: 64, 64: 32, 128: 16, 256: 8}),
    4: (16, {4: 512, 8: 256, 16: 128, 32: 64, 64: 32, 128: 16}),
    8: (32, {4: 512, 8: 256, 16: 128, 32: 64, 64: 32}),
}
STYLEGAN_GPUS = {num_gpus: _by_gpus(*sizes) for num_gpus, sizes in SIZES.items()}
PROGAN_GPUS = {
    1: _by_gpus(*SIZES[1], {1024: 0.0015}),
    2: _by_gpus(*SIZES[2], {512: 0.0015, 1024: 0.002}),
    4: _by_gpus(*SIZES[4], {256: 0.0015, 512: 0.002, 1024: 0.003}),
    8: _by_gpus(*SIZES[8], LRATES),
}

# StyleGAN's own program, config F of its table 1. Laid over CONFIG_F of StyleGAN2.
STYLEGAN: dict[str, Any] = dict(
    G_args=dict(func_name='training.networks_stylegan.G_style', fmap_base=8 << 10),
    D_args=dict(func_name='training.networks_stylegan.D_basic', fmap_base=8 << 10),
    G_loss_args=dict(func_name='training.loss.G_logistic_nonsaturating'),
    D_loss_args=dict(func_name='training.loss.D_logistic_simplegp', r1_gamma=10),
    sched_args=dict(
        lod_initial_resolution=8, lod_training_kimg=600, lod_transition_kimg=600,
        G_lrate_base=0.001, G_lrate_dict=LRATES, D_lrate_base=0.001, D_lrate_dict=LRATES,
        minibatch_gpu_base=None, minibatch_gpu_multiple=4,  # Groups of the minibatch standard deviation.
        tick_kimg_base=160, tick_kimg_dict=TICK_KIMG['stylegan']),
    grid_args=dict(size='4k'),
    D_first=True,
    lazy_regularization=False,
    image_snapshot_ticks=1,
)

# ... and with the loss of ProGAN, as it was trained on CelebA-HQ.
LRATES_WGANGP = {128: 0.0015, 256: 0.002, 512: 0.002, 1024: 0.002}
STYLEGAN_WGANGP: dict[str, Any] = merge(STYLEGAN, dict(
    G_loss_args=dict(func_name='training.loss.G_wgan'),
    D_loss_args=dict(func_name='training.loss.D_wgan_gp'),
    sched_args=dict(G_lrate_dict=LRATES_WGANGP, D_lrate_dict=LRATES_WGANGP)))

# What configs E to B of StyleGAN's table 1 change in the generator of F, and the rows of table 4.
STYLEGAN_E: dict[str, Any] = dict(style_mixing_prob=0.0)
STYLEGAN_D: dict[str, Any] = dict(STYLEGAN_E, use_noise=False)
STYLEGAN_C: dict[str, Any] = dict(STYLEGAN_D, const_input_layer=False)
STYLEGAN_B: dict[str, Any] = dict(STYLEGAN_C, use_styles=False, use_pixel_norm=True, use_instance_norm=False,
                                  mapping_layers=0, truncation_psi=None)


def _stylegan(**G_args: Any) -> dict[str, Any]:
    return merge(STYLEGAN, dict(G_args=G_args))


# ProGAN, trained by StyleGAN's program: config A of StyleGAN's table 1.
PROGAN: dict[str, Any] = merge(STYLEGAN, dict(
    G_args=dict(func_name='training.networks_progan.G_paper', fmap_base=8 << 10),
    D_args=dict(func_name='training.networks_progan.D_paper', fmap_base=8 << 10),
    G_loss_args=dict(func_name='training.loss.G_wgan'),
    D_loss_args=dict(func_name='training.loss.D_wgan_gp'),
    sched_args=dict(lod_initial_resolution=4, tick_kimg_dict=TICK_KIMG['progan']),
    G_smoothing=0.999,
    total_kimg=12000,
))

# ProGAN's own program on a data set with labels.
PROGAN_ACGAN: dict[str, Any] = merge(PROGAN, dict(
    G_loss_args=dict(func_name='training.loss.G_wgan_acgan'),
    D_loss_args=dict(func_name='training.loss.D_wgangp_acgan'),
    dataset_args=dict(max_label_size='full')))


ORTHOGONAL: dict[str, Any] = dict(func_name='training.regularizers.OrthogonalRegularization', strength=1e-4,
                                  form='paper')

# Watching BigGAN costs next to nothing; they are training.monitors.
GRADIENT_NORMS: dict[str, Any] = dict(func_name='training.monitors.GradientNorms')
MONITORS: list[dict[str, Any]] = [dict(func_name='training.monitors.SpectralMonitor'),
                                  dict(func_name='training.monitors.CollapseAlarm')]

# BigGAN: row 8 of its table 1, 150,000 iterations. Labels if the data has any, classes drawn uniformly.
BIGGAN: dict[str, Any] = dict(
    G_args=dict(func_name='training.networks_biggan.G_biggan', ch=96),
    D_args=dict(func_name='training.networks_biggan.D_biggan', ch=96),
    G_opt_args=dict(beta1=0.0, beta2=0.999, epsilon=1e-8),
    D_opt_args=dict(beta1=0.0, beta2=0.999, epsilon=1e-8),
    G_loss_args=dict(func_name='training.loss.G_hinge'),
    D_loss_args=dict(func_name='training.loss.D_hinge_joint'),
    G_update_args=[GRADIENT_NORMS, ORTHOGONAL],
    D_update_args=[GRADIENT_NORMS],
    hook_args=MONITORS,
    sched_args=dict(G_lrate_base=5e-5, D_lrate_base=2e-4, minibatch_size_base=2048, minibatch_gpu_base=32,
                    tick_kimg_base=2048, tick_kimg_dict={}),
    grid_args=dict(size='4k', layout='row_per_class'),
    dataset_args=dict(max_label_size='auto', label_sampling='uniform'),
    G_smoothing=0.9999,
    ema_start=20000,
    ema_after='G',
    D_repeats=2,
    D_first=True,
    lazy_regularization=False,
    total_kimg=614400,
    image_snapshot_ticks=1,
    network_snapshot_ticks=2,
    keep_snapshots=10,
)


def _biggan(resolution: int, ch: int, minibatch_gpu: int, **changes: Any) -> dict[str, Any]:
    size = dict(G_args=dict(ch=ch), D_args=dict(ch=ch), dataset_args=dict(resolution=resolution),
                sched_args=dict(minibatch_gpu_base=minibatch_gpu))
    return merge(merge(BIGGAN, size), changes)


# BigGAN-PyTorch's recipe for eight GPUs with 16 GB: 8 rounds of 256 images per update, one update of D per
# update of G with twice the learning rates, no orthogonal regularization.
BS256X8: dict[str, Any] = dict(
    G_args=dict(bn_epsilon=1e-5, sn_epsilon=1e-6),
    D_args=dict(sn_epsilon=1e-6),
    G_opt_args=dict(epsilon=1e-6, epsilon_form='pytorch'),
    D_opt_args=dict(epsilon=1e-6, epsilon_form='pytorch'),
    G_update_args=[GRADIENT_NORMS],
    sched_args=dict(G_lrate_base=1e-4, D_lrate_base=4e-4),
    D_repeats=1,
    ema_all=True,
    total_kimg=307200,
)

# BigGAN-PyTorch's script for CIFAR-10: tables of gains and biases by class, 500 epochs.
BIGGAN_CIFAR10: dict[str, Any] = _biggan(
    32, 64, 50,
    G_args=dict(latent_size=128, hierarchical=False, shared_dim=0, init='normal', bn_epsilon=1e-5,
                sn_epsilon=1e-8),
    D_args=dict(init='normal', sn_epsilon=1e-8),
    G_opt_args=dict(epsilon_form='pytorch'),
    D_opt_args=dict(epsilon_form='pytorch'),
    G_update_args=[GRADIENT_NORMS],
    sched_args=dict(G_lrate_base=2e-4, D_lrate_base=2e-4, minibatch_size_base=50, tick_kimg_base=50),
    grid_args=dict(size='10x10'),
    D_repeats=4,
    ema_start=1000,
    ema_all=True,
    total_kimg=25000,
    image_snapshot_ticks=5,
    network_snapshot_ticks=25,
)

# For thousands instead of millions of images, on one GPU: narrow, small minibatches, R1 against collapse.
BIGGAN_SMALL: dict[str, Any] = merge(BIGGAN, dict(
    G_args=dict(ch=32), D_args=dict(ch=32),
    D_loss_args=dict(gamma=1.0),
    sched_args=dict(G_lrate_base=1e-4, D_lrate_base=2e-4, minibatch_size_base=128, tick_kimg_base=64),
    G_smoothing=0.999,
    ema_start=1000,
    mirror_augment=True,
    total_kimg=10000,
    image_snapshot_ticks=2,
    network_snapshot_ticks=10,
))

# Small enough for two CPU cores; classes of 32x32 images can be told apart after some 16 kimg.
BIGGAN_DEMO: dict[str, Any] = merge(BIGGAN, dict(
    dataset_args=dict(resolution=32),
    G_args=dict(ch=16, multipliers=[8, 8, 4, 2], latent_size=64, shared_dim=32),
    D_args=dict(ch=16, multipliers=[2, 4, 8, 8], num_down=2),
    D_loss_args=dict(gamma=0.1),
    sched_args=dict(G_lrate_base=4e-4, D_lrate_base=4e-4, minibatch_size_base=32, minibatch_gpu_base=32,
                    tick_kimg_base=4),
    grid_args=dict(size='10x10'),
    D_repeats=1,
    G_smoothing=0.995,
    ema_start=200,
    total_kimg=200,
    image_snapshot_ticks=2,
    network_snapshot_ticks=5,
    keep_snapshots=3,
))


class Preset(NamedTuple):
    """A training configuration."""

    description: str
    changes: dict[str, Any]             # Laid over CONFIG_F.
    by_gpus: dict[int, dict] = {}       # More changes, by the least number of GPUs that they are for.
    family: str = 'stylegan2'           # What the names of its run directories begin with.


def _stylegan_preset(description: str, changes: dict[str, Any]) -> Preset:
    return Preset(description, changes, STYLEGAN_GPUS, 'sgan')


def _biggan_preset(description: str, changes: dict[str, Any]) -> Preset:
    return Preset(description, changes, family='biggan')


CONFIGS: dict[str, Preset] = {
    'config-a': Preset('the networks of StyleGAN (StyleGAN2, Table 1, A)', CONFIG_A),
    'config-b': Preset('growing, weight demodulation (Table 1, B)', CONFIG_B),
    'config-c': Preset('... and lazy regularization (Table 1, C)', CONFIG_C),
    'config-d': Preset('... and path length regularization (Table 1, D)', CONFIG_D),
    'config-e': Preset('no growing: StyleGAN2 without large networks (Table 1, E)', CONFIG_E),
    'config-f': Preset('StyleGAN2 (Table 1, F)', {}),
    **{f'config-e-G{G}-D{D}': Preset(
        f'config-e with {G} generator and {D} discriminator (Table 2)',
        merge(CONFIG_E, dict(G_args=dict(architecture=G), D_args=dict(architecture=D))))
       for G in ('orig', 'skip', 'resnet') for D in ('orig', 'skip', 'resnet')},
    'stylegan-b': _stylegan_preset('tuned ProGAN baseline (StyleGAN, Table 1, B)', _stylegan(**STYLEGAN_B)),
    'stylegan-c': _stylegan_preset('... with mapping network and styles (Table 1, C)',
                                   _stylegan(**STYLEGAN_C)),
    'stylegan-d': _stylegan_preset('... with a constant input (Table 1, D)', _stylegan(**STYLEGAN_D)),
    'stylegan-e': _stylegan_preset('... with noise inputs (Table 1, E)', _stylegan(**STYLEGAN_E)),
    'stylegan-f': _stylegan_preset('StyleGAN (Table 1, F; mixing 90 % in Table 2)', STYLEGAN),
    **{f'stylegan-mix{percent}': _stylegan_preset(
        f'stylegan-f with {percent} % style mixing (Table 2)', _stylegan(style_mixing_prob=percent / 100))
       for percent in (0, 50, 100)},
    **{f'stylegan-traditional-{layers}': _stylegan_preset(
        f'stylegan-b with {layers} mapping layers (Table 4)',
        _stylegan(**dict(STYLEGAN_B, mapping_layers=layers))) for layers in (0, 8)},
    **{f'stylegan-stylebased-{layers}': _stylegan_preset(
        f'stylegan-f with {layers} mapping layers (Table 4)', _stylegan(mapping_layers=layers))
       for layers in (0, 1, 2)},
    'stylegan-wgangp': _stylegan_preset('stylegan-f with WGAN-GP, as for CelebA-HQ', STYLEGAN_WGANGP),
    'progan': Preset('Progressive GAN with WGAN-GP (StyleGAN, Table 1, A)', PROGAN, PROGAN_GPUS, 'pgan'),
    'progan-acgan': Preset('Progressive GAN on labels, with the losses of AC-GAN', PROGAN_ACGAN, PROGAN_GPUS,
                           'pgan'),
    'biggan-32': _biggan_preset('BigGAN at 32x32 with the settings of the paper', _biggan(32, 64, 128)),
    'biggan-64': _biggan_preset('BigGAN at 64x64', _biggan(64, 64, 64)),
    'biggan-128': _biggan_preset('BigGAN at 128x128 (BigGAN, Table 1, row 8)', _biggan(128, 96, 32)),
    'biggan-256': _biggan_preset('BigGAN at 256x256', _biggan(256, 96, 16)),
    'biggan-512': _biggan_preset('BigGAN at 512x512', _biggan(512, 96, 8)),
    **{f'biggan-{resolution}-bs256x8': _biggan_preset(
        f'biggan-{resolution} by the smaller recipe of BigGAN-PyTorch',
        _biggan(resolution, ch, minibatch_gpu, **BS256X8))
       for resolution, ch, minibatch_gpu in [(64, 64, 32), (128, 96, 32), (256, 96, 16)]},
    'biggan-128-ch64-bs256x8': _biggan_preset('... with 64 instead of 96 channels',
                                              _biggan(128, 64, 32, **BS256X8)),
    'biggan-cifar10': _biggan_preset("BigGAN-PyTorch's settings for CIFAR-10", BIGGAN_CIFAR10),
    'biggan-small': _biggan_preset('a narrow BigGAN for small data sets of any resolution', BIGGAN_SMALL),
    'biggan-demo': _biggan_preset('a small BigGAN for 32x32 images, an hour on two CPU cores',
                                  BIGGAN_DEMO),
    'demo': Preset('a small StyleGAN2 for the embedded data set, minutes on two CPU cores', DEMO),
}


def find_preset(name: str) -> Preset:
    """The preset of that name; UserError for an unknown one."""
    if name not in CONFIGS:
        raise UserError(f'--config: expected one of {", ".join(CONFIGS)}. Received: {name!r}'
                        f'{did_you_mean(name, list(CONFIGS), 1)}')
    return CONFIGS[name]


# The synthesis networks of generators whose arguments name none.
_SYNTHESIS = {'G_main': 'G_synthesis_stylegan2', 'G_style': 'G_synthesis'}


def network_names(config: dict[str, Any]) -> tuple[str | None, ...]:
    """Names of the functions of G, of its synthesis network (None without) and of D, without modules."""
    G, D = (config[key]['func_name'].rpartition('.')[2] for key in ('G_args', 'D_args'))
    synthesis = config['G_args'].get('synthesis_func') or _SYNTHESIS.get(G)
    return G, synthesis and synthesis.rpartition('.')[2], D


def configs_with(names: tuple[str | None, ...]) -> list[str]:
    """The configs that have networks of these names."""
    return [name for name in CONFIGS if network_names(find_config(name)) == names]


def growing_configs() -> list[str]:
    """The names of the configs that start at a low resolution."""
    return [name for name, preset in CONFIGS.items()
            if 'lod_initial_resolution' in preset.changes.get('sched_args', {})]


def gamma_argument(config: dict[str, Any]) -> str:
    """The argument of the discriminator's loss that is the weight of R1; UserError where it has none."""
    function = config['D_loss_args']['func_name'].rpartition('.')[2]
    names = {'D_logistic_r1': 'gamma', 'D_logistic_r2': 'gamma', 'D_logistic_simplegp': 'r1_gamma',
             'D_hinge_joint': 'gamma', 'D_logistic_joint': 'gamma'}
    if function not in names:
        raise UserError('--gamma is the weight of R1, which the loss of this config does not have. '
                        f'Leave it out. The loss is {function}')
    return names[function]


def find_config(name: str, num_gpus: int = 1) -> dict[str, Any]:
    """Arguments of the training loop for a config on that many GPUs; UserError for an unknown name."""
    preset = find_preset(name)
    config = merge(CONFIG_F, preset.changes)
    fitting = [count for count in preset.by_gpus if count <= num_gpus]
    return merge(config, preset.by_gpus[max(fitting)]) if fitting else config
