"""The training loop: schedule, steps, ticks, snapshots, checkpoints."""

import resource
import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dnnlib import tflib
from dnnlib.submission import RunContext
from dnnlib.tflib import autosummary
from dnnlib.tflib.autosummary import autosummary as report
from dnnlib.util import EasyDict, UserError, format_time, get_obj_by_name
from metrics.evaluation import Evaluation
from metrics.image_sources import DatasetSource
from metrics.metric_base import MetricGroup
from training import memory
from training.checkpoint import TrainingCheckpoint, has_checkpoint
from training.checks import check_arguments, check_networks, check_same_data
from training.dataset import Dataset, describe, opened_dataset
from training.hooks import Hook, Run, make_hooks, variables_of
from training.schedule import ema_beta, kimg_at_lod, training_schedule
from training.snapshots import (
    ImageSnapshots,
    NetworkSnapshots,
    kimg_of_snapshot,
    latest_snapshot,
    load_networks,
    name_classes,
    save_class_names,
)
from training.strategies import any_worker, make_strategy
from training.trainer import Trainer

__all__ = ['check_arguments', 'training_loop']

MAX_SKIPPED = 100       # Updates in a row without finite gradients, after which training counts as diverged.
LARGE = 10 ** 7         # Weights of a generator from which on the memory of a run is estimated.
CHECK_INTERVAL = 50     # Minibatches between two looks at counters on the device, each of which waits for it.


def training_loop(
    submit_config,                          # Of the run, from dnnlib.submit_run.
    G_args: dict,                           # Arguments of the generator, func_name among them.
    D_args: dict,                           # Arguments of the discriminator.
    G_loss_args: dict,                      # Arguments of the generator's loss, func_name among them.
    D_loss_args: dict,                      # Arguments of the discriminator's loss.
    G_opt_args: dict | None = None,         # beta1, beta2, epsilon of the generator's optimizer.
    D_opt_args: dict | None = None,         # ... of the discriminator's.
    dataset_args: dict | None = None,       # Arguments of training.dataset.load_dataset.
    sched_args: dict | None = None,         # Arguments of training.schedule.training_schedule.
    grid_args: dict | None = None,          # size and layout of the image snapshots.
    metric_arg_list: list = (),             # Metrics to run on snapshots.
    weights_dir: str | None = None,         # Directory with the weights of their feature networks.
    data_dir: str | None = None,            # Directory to load data sets from.
    G_smoothing_kimg: float = 10.0,         # Half-life of the moving average of the generator, in kimg.
    G_smoothing: float | None = None,       # Decay of that average per minibatch, instead of the half-life.
    minibatch_repeats: int = 4,             # Minibatches to run before the schedule is looked at again.
    D_first: bool = False,                  # Update D before G, as ProGAN and StyleGAN do?
    D_repeats: int = 1,                     # Updates of D, each on a minibatch of its own, per update of G.
    ema_start: int = 0,                     # First step, from 1 on, in which the average is no mere copy. A
                                            # run that starts from a snapshot goes on with the average there.
    ema_after: str = 'D',                   # The average is taken after each update of 'D', or of 'G'.
    ema_all: bool = False,                  # Average all of its state, as BigGAN-PyTorch does?
    G_update_args: list = (),               # Hooks into the updates of G, see training.hooks.
    D_update_args: list = (),               # ... of D.
    hook_args: list = (),                   # Hooks into the loop.
    reset_opt_for_new_lod: bool = True,     # Reset the optimizers where a layer starts or ends to fade in?
    lazy_regularization: bool = True,       # Evaluate the regularizers less often than the losses?
    G_reg_interval: int | None = 4,         # Minibatches per regularization of G. Ignored unless lazy.
    D_reg_interval: int | None = 16,        # Minibatches per regularization of D. Ignored unless lazy.
    total_kimg: float = 25000,              # Length of the training in thousands of real images.
    mirror_augment: bool = False,           # Flip half of the reals?
    image_snapshot_ticks: int | None = 50,  # Ticks per image snapshot. None = at the end only.
    network_snapshot_ticks: int | None = 50,  # Ticks per network snapshot and checkpoint. None = at the end.
    keep_snapshots: int | None = None,      # Network snapshots to keep besides the final one. None = all.
    resume_pkl: str | None = None,          # Snapshot to start from. None = from scratch.
    resume_kimg: float | None = None,       # Progress to start from. None = as resume_pkl is named, or 0.
    seed: int = 1000,                       # Of initial weights, data order and all random numbers.
    num_gpus: int = 1,                      # Number of replicas.
    strategy: str = 'auto',                 # See training.strategies.make_strategy.
    allow_tf32: bool = False,               # TensorFloat-32 on GPUs that have it?
    G_freeze: list | None = None,           # What of G is not trained: names, see training.freeze.
    D_freeze: list | int | None = None,     # ... of D: names, or a number of its highest resolutions.
) -> EasyDict:
    """Trains a network, writing everything to the run directory.

    Where the run directory holds a checkpoint, the run goes on from it exactly as if it had not stopped.

    Returns: the progress, the run directory and why the run stopped early (stop_reason, stop_signal).
    Errors: UserError for unusable data or arguments (see `check_arguments`), when training has diverged, and
        when the state cannot be saved.
    """
    ctx = RunContext.get()
    is_chief = not submit_config.get('worker')      # The other workers compute the same, and write nothing.
    distribution = make_strategy(num_gpus, strategy)
    tflib.init_tf()
    tf.config.experimental.enable_tensor_float_32_execution(allow_tf32)
    keras.utils.set_random_seed(seed % 2 ** 32)
    training_set = opened_dataset(data_dir=data_dir, seed=seed, **(dataset_args or {}))
    describe(training_set)
    sched_args = dict(sched_args or {}, resolution_log2=training_set.resolution_log2, num_gpus=num_gpus)

    initial_pkl = resume_pkl
    if resume_pkl is not None and has_checkpoint(ctx.run_dir):
        initial_pkl = latest_snapshot(ctx.run_dir) or resume_pkl  # The other file may be gone by now.
    with distribution.scope():
        G, D, Gs = networks = _make_networks(training_set, G_args, D_args, initial_pkl)
        name_classes((G, Gs), training_set)
        label_classes = getattr(training_set, 'label_classes', None)
        trainer = Trainer(distribution, G.layer, D.layer, Gs.layer,
                          *_loss_of(G_loss_args), *_loss_of(D_loss_args),
                          G_opt_args=G_opt_args, D_opt_args=D_opt_args, label_classes=label_classes,
                          labels=training_set.label_table if label_classes is None else None,
                          lazy_regularization=lazy_regularization, G_reg_interval=G_reg_interval,
                          D_reg_interval=D_reg_interval, D_first=D_first, seed=seed, G_freeze=G_freeze,
                          D_freeze=D_freeze, D_repeats=D_repeats, ema_after=ema_after, ema_all=ema_all,
                          ema_start=0 if resume_pkl is not None else ema_start,
                          G_update_args=G_update_args, D_update_args=D_update_args)

    # Everything about the run that is neither a variable nor an argument.
    start_nimg = 0 if has_checkpoint(ctx.run_dir) else int(
        1000 * _start_kimg(resume_pkl, resume_kimg, G, sched_args))
    progress = EasyDict(nimg=start_nimg, step=0, tick=-1, tick_nimg=start_nimg, sched_nimg=start_nimg,
                        total_time=0.0, moments={}, snapshots=[], dataset=training_set.fingerprint, hooks={})
    run = Run(trainer, *networks, training_set=training_set, progress=progress, run_dir=ctx.run_dir,
              is_chief=is_chief, seed=seed)
    hooks = make_hooks(hook_args, Hook, 'hook_args')
    with distribution.scope():
        for hook in hooks.values():
            hook.build(run)
    checkpoint = TrainingCheckpoint(ctx.run_dir, trainer.state() | variables_of(hooks, 'hooks'),
                                    clean=is_chief)
    stored = checkpoint.restore()
    progress.update(stored or {})
    check_same_data(training_set, progress.dataset)
    autosummary.set_state(progress.moments)
    time_before = progress.total_time
    sched = training_schedule(progress.sched_nimg, **sched_args)
    trainer.set_lod(sched.lod)

    images = ImageSnapshots(training_set, _grid_args(grid_args, training_set), G.input_shape[1], seed,
                            getattr(G.layer, 'latent_distribution', 'normal'))
    snapshots = NetworkSnapshots(networks, keep_snapshots, progress.snapshots, is_chief)
    metrics = MetricGroup(metric_arg_list)
    if metrics.metrics and stored is None:      # A run that goes on only warns of metrics that fail.
        metrics.check_images(Evaluation(Gs, DatasetSource(training_set)))
    writer = autosummary.FileWriter(ctx.run_dir if is_chief else None)
    if stored is None:
        G.print_layers()
        D.print_layers()
        _print_frozen(trainer)
        _print_notes(training_set, dataset_args or {}, networks, sched, trainer.num_replicas)
        writer.add_text('Hyperparameters', submit_config.run_func_kwargs or {})
        if is_chief:
            writer.add_images('Images/reals', images.save_reals(), step=progress.nimg)
            images.save_reals_by_class()
            save_class_names(training_set)
            sheet = images.save_fakes(Gs, 'fakes_init.png', sched.minibatch_gpu)
            writer.add_images('Images/fakes', sheet, step=progress.nimg)
        start = f' from {start_nimg / 1000:.1f} kimg on' if start_nimg else ''
        print(f'Training for {total_kimg} kimg{start}...\n')
    else:
        snapshots.add_existing(progress.nimg)
        print(f'Resuming at {progress.nimg / 1000:.1f} of {total_kimg} kimg...\n')

    def save_state() -> None:
        _collect(reports)
        progress.update(moments=autosummary.get_state(), snapshots=snapshots.names,
                        total_time=time_before + ctx.get_time_since_start(),
                        hooks={name: hook.state() for name, hook in hooks.items()})
        if is_chief:
            checkpoint.save(progress, progress.step)

    def call_hooks(event: str, *args: Any) -> None:
        for hook in hooks.values():
            getattr(hook, event)(run, *args)
        if run.rollback is not None:
            _roll_back(run, resume_pkl)

    reports, batches, batch_kind = [], None, None
    run.writer, run.metrics, run.snapshots, run.sched = writer, metrics, snapshots, sched
    for name, hook in hooks.items():
        if name in progress.hooks:
            hook.set_state(progress.hooks[name])
    maintenance_time = ctx.get_time_since_last_update()
    ctx.update(cur_epoch=progress.nimg // 1000, max_epoch=total_kimg)
    done = progress.nimg >= total_kimg * 1000
    try:
        call_hooks('start')
        while not done:
            if any_worker(distribution, ctx.should_stop()):
                ctx.request_stop('another worker')
                break
            # The schedule is looked at every few minibatches; a resumed run must not look at other moments.
            if progress.step % minibatch_repeats == 0:
                progress.sched_nimg = progress.nimg
            sched = training_schedule(progress.sched_nimg, **sched_args)
            stage = trainer.stage
            trainer.set_lod(sched.lod)
            if trainer.stage != stage and reset_opt_for_new_lod:
                trainer.reset_optimizers()
            if batch_kind != (sched.minibatch_size, int(sched.lod)):
                if batches is not None:
                    batches.close()
                batch_kind = batch_size, lod_floor = sched.minibatch_size, int(sched.lod)
                batches = training_set.prefetch_minibatches(progress.nimg, batch_size, seed, mirror_augment,
                                                            shard=trainer.reader, lod=lod_floor)
            try:
                reals, labels = next(batches) if D_repeats == 1 else zip(
                    *(next(batches) for _ in range(D_repeats)), strict=True)
            except (UserError, OSError):    # The data may come back; what was learned would not.
                save_state()
                saved = '; the state is saved' if is_chief else ''
                print(f'\nThe data cannot be read at kimg {progress.nimg / 1000:.1f}{saved}.')
                raise
            beta = G_smoothing
            if beta is None:
                beta = ema_beta(batch_size * (D_repeats if ema_after == 'G' else 1), G_smoothing_kimg)
            run.sched, run.reports = sched, trainer.step(
                progress.step, reals, labels, sched.minibatch_gpu, sched.G_lrate, sched.D_lrate, beta,
                min(progress.nimg / (total_kimg * 1000), 1.0))
            reports += run.reports
            progress.nimg += batch_size * D_repeats
            progress.step += 1
            call_hooks('step')
            done = progress.nimg >= total_kimg * 1000
            if progress.step % CHECK_INTERVAL == 0 or done:
                _collect(reports)
                _check_divergence(trainer)
            is_tick = progress.step % minibatch_repeats == 0 and (
                progress.tick < 0 or progress.nimg >= progress.tick_nimg + sched.tick_kimg * 1000)
            if not (done or is_tick):
                continue

            # A tick: progress, pictures, snapshots.
            progress.tick += 1
            _collect(reports)
            _check_divergence(trainer)
            tick_kimg = (progress.nimg - progress.tick_nimg) / 1000
            progress.tick_nimg = progress.nimg
            tick_time = ctx.get_time_since_last_update()
            _print_tick(progress, sched, trainer, tick_kimg, tick_time, maintenance_time,
                        time_before + ctx.get_time_since_start())
            if is_chief and (done or (image_snapshot_ticks and progress.tick % image_snapshot_ticks == 0)):
                sheet = images.save_fakes(Gs, f'fakes{progress.nimg // 1000:06d}.png', sched.minibatch_gpu)
                writer.add_images('Images/fakes', sheet, progress.nimg)
            call_hooks('tick')
            is_snapshot = done or (network_snapshot_ticks and progress.tick % network_snapshot_ticks == 0)
            if is_snapshot:
                path = snapshots.save(progress.nimg)
                # At the first tick there is nothing to lose yet, and a mistake is seen at once.
                metrics.run(path, run_dir=ctx.run_dir if is_chief else None, keep_going=progress.tick > 0,
                            Gs=Gs, training_set=training_set, mirror_augment=mirror_augment,
                            strategy=distribution, minibatch_gpu=sched.minibatch_gpu,
                            weights_dir=weights_dir, should_stop=ctx.should_stop)
                metrics.update_autosummaries()
                call_hooks('snapshot', path)
            autosummary.save_summaries(writer, progress.nimg)
            if is_snapshot:
                save_state()
            ctx.update(cur_epoch=progress.nimg // 1000, max_epoch=total_kimg)
            maintenance_time = ctx.get_last_update_interval() - tick_time
        if done:
            print(f'\nWrote {snapshots.save_as("network-final.pkl")}')
            ctx.stop_reason = ctx.stop_signal = None  # Asked to stop in the last tick, it finished instead.
        else:
            save_state()
            snapshots.save(progress.nimg)
            print(f'\nStopped at kimg {progress.nimg / 1000:.1f} ({ctx.stop_reason}); the state is saved.')
    finally:
        if batches is not None:
            batches.close()
        writer.close()
        training_set.close()
    return EasyDict(progress, run_dir=ctx.run_dir, stop_reason=ctx.stop_reason, stop_signal=ctx.stop_signal)


def _make_networks(training_set: Dataset, G_args: dict, D_args: dict, resume_pkl: str | None):
    """(G, D, Gs), new or from a snapshot, whose shapes must be those of the data set."""
    if resume_pkl is not None:
        print(f'Loading networks from {resume_pkl}...')
        networks = load_networks(resume_pkl)
        check_networks(networks, training_set, resume_pkl)
        for network, args in zip(networks, (G_args, D_args), strict=False):
            if hasattr(network.layer, 'recompute'):     # A choice of this run, not of the snapshot.
                network.layer.recompute = bool(args.get('recompute'))
        return networks
    print('Constructing networks...')
    shape = dict(num_channels=training_set.shape[0], resolution=training_set.shape[1],
                 label_size=training_set.label_size)
    G = tflib.Network('G', **shape, **G_args)
    D = tflib.Network('D', **shape, **D_args)
    return G, D, G.clone('Gs')


def _start_kimg(resume_pkl: str | None, resume_kimg: float | None, G: tflib.Network,
                sched_args: dict) -> float:
    """Progress at the start of a run: as given, as the snapshot is named, or where its networks belong.

    The networks of a growing run must go on at their level of detail; a name that says nothing, as
    network-final.pkl, or a schedule of another length would throw them back.
    """
    if resume_pkl is None or resume_kimg is not None:
        return resume_kimg or 0.0
    kimg = kimg_of_snapshot(resume_pkl)
    if not G.layer.grows:
        return kimg
    lod = float(G.get_var('lod'))
    # The number in the name is rounded down, and the schedule is looked at every few minibatches.
    if kimg and abs(training_schedule(1000 * kimg, **sched_args).lod - lod) < 0.1:
        return kimg
    belongs = kimg_at_lod(lod, **sched_args)
    print(f'The networks are at level of detail {lod:.2f}: starting at {belongs:.1f} kimg of the schedule '
          '(--resume-kimg sets another)')
    return belongs


def _loss_of(args: dict) -> tuple:
    """The loss function and its keyword arguments."""
    kwargs = dict(args)
    return get_obj_by_name(kwargs.pop('func_name')), kwargs


def _roll_back(run: Run, resume_pkl: str | None) -> None:
    """Goes back to the weights of a snapshot, as a hook has asked for."""
    reason, path = run.rollback
    run.rollback = None
    path = path or latest_snapshot(run.run_dir) or resume_pkl
    if path is None:
        print(f'Warning: {reason}. There is no snapshot yet to go back to; training goes on.')
        return
    run.trainer.load([network.layer for network in load_networks(path)])
    print(f'{reason}. Going back to {path}.', flush=True)


def _grid_args(grid_args: dict | None, training_set: Dataset) -> dict:
    """Size and layout of the sheets; a layout by class becomes 'random' where there are no labels."""
    return dict(grid_args or {}) if training_set.label_size else {**(grid_args or {}), 'layout': 'random'}


def _print_notes(training_set: Dataset, dataset_args: dict, networks: tuple, sched: EasyDict,
                 num_gpus: int) -> None:
    """What users of large or conditional networks should know before they wait."""
    if dataset_args.get('max_label_size') == 'auto' and not training_set.label_size:
        print('The data set has no labels: the networks are unconditional, they have one class.')
    # Where memory may be short: it takes seconds to find out.
    if sum(int(np.prod(variable.shape)) for variable in networks[0].trainables.values()) > LARGE:
        rounds = sched.minibatch_size // (sched.minibatch_gpu * num_gpus)
        print(memory.estimate(networks, sched.minibatch_gpu, rounds))


def _print_frozen(trainer: Trainer) -> None:
    """One line per network of which a part is not trained."""
    for role, network in (('G', trainer.G), ('D', trainer.D)):
        if trainer.frozen[role]:
            layers = dict.fromkeys(name.rpartition('/')[0] or name for name in trainer.frozen[role])
            print(f'Not trained: {len(trainer.frozen[role])} of {len(network.named_trainables())} weights of '
                  f'{role}: {", ".join(layers)}')


def _collect(reports: list[dict]) -> None:
    """Hands what the steps reported to autosummary, and empties the list. Waits for the device."""
    for collected in reports:
        for name, moments in collected.items():
            autosummary.autosummary_moments(name, *np.asarray(moments))
    reports.clear()


def _check_divergence(trainer: Trainer) -> None:
    for role, count in trainer.skipped_in_a_row().items():
        if count >= MAX_SKIPPED:
            raise UserError(
                f'training has diverged: the last {count} updates of {role} had non-finite gradients and '
                'were left out. The last checkpoint and snapshots are from before; try --resume with an '
                'earlier network-snapshot-*.pkl and a higher --gamma or a lower learning rate')


def _print_tick(progress: EasyDict, sched: EasyDict, trainer: Trainer, tick_kimg: float, tick_time: float,
                maintenance_time: float, total_time: float) -> None:
    """The official line of a tick, and the same numbers for TensorBoard under the official names."""
    gpu_memory = _peak_gpu_memory_gb()
    print('tick {:<5d} kimg {:<8.1f} lod {:<5.2f} minibatch {:<4d} time {:<12s} sec/tick {:<7.1f} '
          'sec/kimg {:<7.2f} maintenance {:<6.1f} gpumem {:.1f}'.format(
              report('Progress/tick', progress.tick),
              report('Progress/kimg', progress.nimg / 1000),
              report('Progress/lod', sched.lod),
              report('Progress/minibatch', sched.minibatch_size),
              format_time(report('Timing/total_sec', total_time)),
              report('Timing/sec_per_tick', tick_time),
              report('Timing/sec_per_kimg', tick_time / tick_kimg),
              report('Timing/maintenance_sec', maintenance_time),
              report('Resources/peak_gpu_mem_gb', gpu_memory)), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # In KiB, on macOS in bytes.
    report('Resources/peak_cpu_mem_gb', peak / 2 ** (30 if sys.platform == 'darwin' else 20))
    report('Timing/total_hours', total_time / 3600)
    report('Timing/total_days', total_time / 86400)
    for role, lrate in (('G', sched.G_lrate), ('D', sched.D_lrate)):
        optimizer = trainer.optimizers[role]
        skipped, applied = int(optimizer.num_skipped.numpy()), int(optimizer.num_applied.numpy())
        report(f'Train{role}/learning_rate', trainer.learning_rate(role, lrate))
        report(f'Train{role}/overflow_frequency', skipped / max(skipped + applied, 1))


def _peak_gpu_memory_gb() -> float:
    """Peak memory of the first GPU in GiB, 0 without one."""
    if not tf.config.list_logical_devices('GPU'):
        return 0.0
    return tf.config.experimental.get_memory_info('GPU:0')['peak'] / 2 ** 30
