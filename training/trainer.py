"""What changes during training - networks, optimizers, moving averages - and the steps that change it.

A minibatch is processed in phases: G, G_reg, D, D_reg, or D first; after D, or after G, the moving average of
the weights. With D_repeats above 1 a step has as many minibatches: each goes through the phases of D, while G
is updated once. Each phase is one traced function that runs on every replica: `rounds` pieces of
`minibatch_gpu` samples are drawn, their gradients are averaged over rounds and replicas, and one Adam step is
taken. The random numbers of a piece depend on the seed, the number of the minibatch, the phase and the number
of the piece in the minibatch alone. So a run can be resumed exactly, and N replicas compute what one replica
computes in N rounds; but batch normalization takes its moments over all replicas, not over rounds.

A forward pass may also give state variables new values. Averages that losses and networks of StyleGAN keep
become the mean over rounds and replicas; what SEQUENTIAL_STATE names - singular vectors of weights, running
moments - is moved by every pass in turn, as if each round were a minibatch of its own. Running moments are
averaged along with the weights (AVERAGED_STATE), all other state is copied.

An update whose gradient is not finite is left out, with the new state that goes with it. Only what rounds
have moved on stays so, as far as it is finite: it does not depend on gradients, and the weights are as they
were.

Weights that are frozen (see `training.freeze`) get no gradient and no slots of the optimizer; the moving
average treats them like all others.

Growing networks have traced functions of their own for every stage (see `training.growing`); what fades is a
variable, `lod`. Images then have the size of the stage: nothing is enlarged only to be averaged again.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError
from training.context import OneHotLabels, StepContext
from training.dataset import process_reals
from training.freeze import frozen_names
from training.growing import Stage, stage_of
from training.hooks import UpdateHook, make_hooks, variables_of
from training.optimizer import Optimizer
from training.phases import Phase, discriminator_parts, generator_parts
from training.replica import local_assign, local_handle, local_read, unwrap
from training.schedule import lazy_regularization

__all__ = ['Phase', 'Trainer']

# State variables, by the last part of their names, that every forward pass moves on; see above.
SEQUENTIAL_STATE = ('u', 'v', 'moving_mean', 'moving_variance')
# ... of which the moving average of G has averages, too.
AVERAGED_STATE = ('moving_mean', 'moving_variance')

_UPDATE = 1000  # In the place of the number of a piece, for random numbers of update hooks.


class Trainer:
    """Networks, optimizers and state of a training run, and one method per thing that happens to them.

    Args are given in the constructor; everything is created in the scope of `strategy`, in which the networks
    must have been created too.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        G, D, Gs,                               # Layers: generator, discriminator, moving average of G.
        G_loss: Callable, G_loss_args: dict,    # Function of training.loss and its keyword arguments.
        D_loss: Callable, D_loss_args: dict,
        G_opt_args: dict | None = None,         # beta1, beta2, epsilon.
        D_opt_args: dict | None = None,
        labels: np.ndarray | None = None,       # Label of every image of the data set [N, label_size].
        lazy_regularization: bool = True,       # Evaluate the regularizers less often than the losses?
        G_reg_interval: int | None = 4,         # Minibatches per regularization of G.
        D_reg_interval: int | None = 16,        # Minibatches per regularization of D.
        D_first: bool = False,                  # Update D before G, as ProGAN and StyleGAN do?
        seed: int = 1000,
        G_freeze: Sequence[str] | None = None,  # What of G is not trained, see training.freeze.frozen_names.
        D_freeze: Sequence[str] | int | None = None,    # ... of D.
        D_repeats: int = 1,                     # Updates of D, each on a minibatch of its own, per one of G.
        label_classes: np.ndarray | None = None,    # Instead of `labels`: int [N], classes of one-hot labels.
        ema_start: int = 0,                     # First step, from 1 on, in which the average is no copy.
        ema_after: str = 'D',                   # The average is taken after each update of 'D', or of 'G'.
        ema_all: bool = False,                  # Average all state of G, singular vectors included?
        G_update_args: Sequence[dict] | None = None,    # Hooks into the updates of G, see training.hooks.
        D_update_args: Sequence[dict] | None = None,    # ... of D.
    ):
        if G.grows != D.grows:
            raise UserError('G and D must both be growing networks, or neither. '
                            f'Received: {type(G).__name__} and {type(D).__name__}')
        if D_repeats < 1:
            raise UserError(f'D_repeats must be at least 1. Received: {D_repeats}')
        if ema_after not in ('G', 'D'):
            raise UserError(f"ema_after must be 'G' or 'D'. Received: {ema_after!r}")
        self.D_repeats, self.D_first = D_repeats, D_first
        self.ema_start, self.ema_after, self.ema_all = ema_start, ema_after, ema_all
        self.stage: Stage | None = None
        self._lod: float | None = None
        self.strategy, self.G, self.D, self.Gs, self.seed = strategy, G, D, Gs, int(seed)
        self.lazy = lazy_regularization
        self.num_replicas = strategy.num_replicas_in_sync
        self.label_table = _label_table(labels, label_classes, G)
        self._sequential = {id(unwrap(variable)) for network in (G, D)
                            for name, variable in network.named_variables().items()
                            if not variable.trainable and _local(name) in SEQUENTIAL_STATE}
        self.intervals = {'G': G_reg_interval, 'D': D_reg_interval}
        self.frozen = {'G': frozen_names(G, G_freeze, 'G_freeze'), 'D': frozen_names(D, D_freeze, 'D_freeze')}
        with strategy.scope():
            self.loss_state = {name: tf.Variable(value, dtype=tf.float32, trainable=False)
                               for loss in (G_loss, D_loss)
                               for name, value in getattr(loss, 'state', {}).items()}
            self.optimizers = {role: self._make_optimizer(role, network, args or {})
                               for role, network, args in [('G', G, G_opt_args), ('D', D, D_opt_args)]}
            self.update_hooks = {'G': self._make_update_hooks('G', G, G_update_args),
                                 'D': self._make_update_hooks('D', D, D_update_args)}
        G_parts = functools.partial(generator_parts, G_loss, G, D, G_loss_args)
        D_parts = functools.partial(discriminator_parts, D_loss, G, D, D_loss_args)
        phases = [self._make_phases('G', G, G_parts, 0, needs_reals=False),
                  self._make_phases('D', D, D_parts, 2, needs_reals=True)]
        self.phases: list[Phase] = sum(reversed(phases) if D_first else phases, [])
        self._progress = tf.constant(1.0)
        self._functions: dict = {}
        self._accumulators: dict[str, list] = {}
        self._updated: dict[str, list] = {}

    def _lazy_ratio(self, role: str) -> int | None:
        return self.intervals[role] if self.lazy else None

    def _make_optimizer(self, role: str, network, args: dict) -> Optimizer:
        beta1, beta2 = args.get('beta1', 0.0), args.get('beta2', 0.99)
        _, beta1, beta2 = lazy_regularization(1.0, beta1, beta2, self._lazy_ratio(role))
        named = {name: variable for name, variable in network.named_trainables().items()
                 if name not in self.frozen[role]}
        return Optimizer(f'Train{role}', list(named.values()), beta1=beta1, beta2=beta2,
                         epsilon=args.get('epsilon', 1e-8), variable_names=list(named),
                         epsilon_form=args.get('epsilon_form', 'tf'))

    def _make_update_hooks(self, role: str, network, arguments) -> dict[str, UpdateHook]:
        hooks = make_hooks(arguments, UpdateHook, f'{role}_update_args')
        optimizer = self.optimizers[role]
        for hook in hooks.values():
            hook.build(network, dict(zip(optimizer.names, optimizer.variables, strict=True)))
        return hooks

    def _make_phases(self, role, network, parts, index, needs_reals) -> list[Phase]:
        common = dict(network=network, optimizer=self.optimizers[role], parts=parts, needs_reals=needs_reals)
        interval = self._lazy_ratio(role)
        if interval is None:
            return [Phase(role, index, use_loss=True, use_reg=True, reg_weight=1, interval=1, **common)]
        phases = [Phase(role, index, use_loss=True, use_reg=False, reg_weight=0, interval=1, **common)]
        # Whether there is a regularizer is known without running anything: the parts are closures.
        ctx = StepContext(tf.zeros([2], tf.int32))
        if parts(ctx, 1, tf.zeros([1, 1, 1, 1]), tf.zeros([1, 0]))[1] is not None:
            phases.append(Phase(f'{role}_reg', index + 1, use_loss=False, use_reg=True, reg_weight=interval,
                                interval=interval, **common))
        return phases

    def learning_rate(self, role: str, lrate: float) -> float:
        """The learning rate adjusted for lazy regularization (StyleGAN2, appendix B)."""
        return lazy_regularization(lrate, 0.0, 0.0, self._lazy_ratio(role))[0]

    def set_lod(self, lod: float) -> None:
        """Sets the level of detail of growing networks; `step` expects reals at floor(lod) from then on.

        Errors: UserError for a lod other than 0 where the networks do not grow.
        """
        if not self.G.grows:
            if lod != 0:
                raise UserError(f'the networks {type(self.G).__name__} and {type(self.D).__name__} do not '
                                f'grow; take a config without lod_initial_resolution. Received: lod {lod}')
            return
        if lod == self._lod:
            return
        self._lod = lod
        for network in (self.G, self.D, self.Gs):
            for name, variable in network.named_variables().items():
                if name.rpartition('/')[2] == 'lod':
                    unwrap(variable).assign(lod)
        if self.stage != stage_of(lod):
            self.stage = stage_of(lod)
            # The functions of earlier stages are not needed again.
            self._functions = {key: value for key, value in self._functions.items() if key == 'average'}

    def reset_optimizers(self) -> None:
        """Forgets the state of Adam of both networks, as at every new layer of a growing run."""
        for optimizer in self.optimizers.values():
            optimizer.reset()

    @functools.cached_property
    def reader(self) -> tuple[int, int]:
        """(index, count): which of `count` equal parts of each minibatch this process reads.

        Of several workers each reads what its own replicas process; without them it is (0, 1).
        """
        if self.num_replicas == 1:
            return 0, 1
        local = []

        def of_replica(ctx):
            local.append(ctx.replica_id_in_sync_group)
            return tf.zeros([])
        self.strategy.experimental_distribute_values_from_function(of_replica)
        return min(local) // len(local), self.num_replicas // len(local)

    def step(self, step: int, images: np.ndarray | Sequence[np.ndarray],
             labels: np.ndarray | Sequence[np.ndarray], minibatch_gpu: int, G_lrate: float, D_lrate: float,
             ema_beta: float, progress: float = 1.0) -> list[dict]:
        """One update of G and D_repeats of D: all phases that are due, in order, and the moving average.

        Args:
            step: Number of steps before this one.
            images: uint8 [N, H, W, C], the reals of the discriminator, at the level floor(lod); of several
                workers, this one's part of the minibatch (see `reader`). With D_repeats above 1, a list of as
                many minibatches.
            labels: float32 [N, label_size], or a list likewise.
            minibatch_gpu: Samples that one replica processes at a time.
            G_lrate, D_lrate: Learning rates before the adjustment for lazy regularization.
            ema_beta: Decay of the moving average of G.
            progress: Share of the training that is done.

        Returns one {name: moments} per call of a traced function, to be summed up (`training.context`).
        """
        batches = [(images, labels)] if self.D_repeats == 1 else list(zip(images, labels, strict=True))
        if len(batches) != self.D_repeats:
            raise UserError(f'a step takes {self.D_repeats} minibatches. Received: {len(batches)}')
        minibatch_size = len(batches[0][0]) * self.reader[1]
        rounds, rest = divmod(minibatch_size, minibatch_gpu * self.num_replicas)
        if rest or not rounds:
            raise UserError('minibatch_size must be a multiple of minibatch_gpu times the number of '
                            f'replicas, {minibatch_gpu} x {self.num_replicas}. Received: {minibatch_size}')
        lrates = {'G': self.learning_rate('G', G_lrate), 'D': self.learning_rate('D', D_lrate)}
        ema_beta = 0.0 if step + 1 < self.ema_start else ema_beta
        self._progress = tf.constant(progress, tf.float32)
        reports = []
        for role in 'DG' if self.D_first else 'GD':
            repeats = self.D_repeats if role == 'D' else 1
            # Intervals and random numbers go by the number of minibatches that this network has seen.
            for number, batch in enumerate(batches[:repeats], step * repeats):
                for phase in self.phases:
                    if phase.role == role and number % phase.interval == 0:
                        reports += self.run_phase(phase, number, *batch, minibatch_gpu, rounds, lrates[role])
                    if phase.name == role == self.ema_after:
                        # After D, whose fakes have moved the average of w that is copied here.
                        self.update_average(ema_beta)
        return reports

    def run_phase(self, phase: Phase, step: int, images, labels, minibatch_gpu: int, rounds: int,
                  lrate: float) -> list[dict]:
        """One update of a network: one traced call or, with several rounds, one per round and a last one."""
        seed = tf.constant([self.seed % 2 ** 31, step % 2 ** 31], tf.int32)
        lrate = tf.constant(lrate, tf.float32)
        images, labels = np.asarray(images), np.asarray(labels)
        if not phase.needs_reals:
            images, labels = images[:, :0, :0], labels[:, :0]
        if rounds == 1:
            reals = self._distribute(images, labels, minibatch_gpu, 1, 0)
            whole = self._function(phase, 'whole', minibatch_gpu)
            return [whole(seed, tf.constant(0), tf.constant(1), *reals, lrate, self._progress)]
        self._make_accumulators(phase)
        reports = []
        for index in range(rounds):
            reals = self._distribute(images, labels, minibatch_gpu, rounds, index)
            reports.append(self._function(phase, 'accumulate', minibatch_gpu)(
                seed, tf.constant(index), tf.constant(rounds), *reals, lrate, self._progress))
        of_hooks = self._function(phase, 'apply', minibatch_gpu)(seed, lrate, self._progress)
        return [*reports, of_hooks] if of_hooks else reports

    def _distribute(self, images, labels, minibatch_gpu, rounds, index):
        """The piece of the minibatch that each replica processes in round `index`."""
        first = self.reader[0] * self.num_replicas // self.reader[1]

        def piece(array):
            def of_replica(ctx):
                begin = ((ctx.replica_id_in_sync_group - first) * rounds + index) * minibatch_gpu
                return tf.convert_to_tensor(array[begin:begin + minibatch_gpu])
            if self.num_replicas == 1:
                return tf.convert_to_tensor(array[index * minibatch_gpu:(index + 1) * minibatch_gpu])
            return self.strategy.experimental_distribute_values_from_function(of_replica)
        return piece(images), piece(labels)

    def _function(self, phase: Phase, kind: str, minibatch_gpu: int) -> Callable:
        """The traced function of a phase; `kind` is 'whole', 'accumulate' or 'apply'."""
        key = (phase.name, kind, minibatch_gpu)
        if key not in self._functions:
            body = {'whole': functools.partial(self._whole, phase, minibatch_gpu),
                    'accumulate': functools.partial(self._accumulate, phase, minibatch_gpu),
                    'apply': functools.partial(self._apply, phase)}[kind]
            # A partial: TensorFlow takes functions with the same code for one that is traced again and again,
            # and warns of it.
            traced = functools.partial(self._on_replicas, body)
            self._functions[key] = tf.function(traced, autograph=False)
        return self._functions[key]

    def _on_replicas(self, body: Callable, *args) -> dict:
        """What a function reports, summed up over the replicas that it runs on."""
        reports = self.strategy.run(body, args=args)
        if self.num_replicas == 1:
            return reports
        return {name: self.strategy.reduce('SUM', moments, axis=None) for name, moments in reports.items()}

    def _gradients(self, phase: Phase, minibatch_gpu: int, seed, index, rounds, images, labels, progress):
        """Gradients, state updates and reports of one piece of the minibatch."""
        piece = tf.distribute.get_replica_context().replica_id_in_sync_group * rounds + index
        for number in (phase.index, piece):
            seed = tf.random.experimental.stateless_fold_in(seed, number)
        ctx = StepContext(seed, self.label_table, self.loss_state, self.stage, progress)
        reals = self._process_reals(images) if phase.needs_reals else None
        sources = [unwrap(variable) for variable in phase.optimizer.variables]
        # What is not trained, the other network included, is not even recorded.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            total = phase.total(ctx, minibatch_gpu, reals, labels)
        gradients = tape.gradient(total, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        return gradients, ctx.updates, ctx.reports

    def _process_reals(self, images):
        """Reals at the size of the stage, faded like the networks."""
        if self.stage is None or not self.stage.fading:
            return process_reals(images)
        fraction = local_read(self.D.lod) - self.stage.lod_floor
        return process_reals(images, fraction, lod_floor=0)

    def _whole(self, phase: Phase, minibatch_gpu: int, seed, index, rounds, images, labels, lrate,
               progress) -> dict:
        gradients, updates, reports = self._gradients(
            phase, minibatch_gpu, seed, index, rounds, images, labels, progress)
        return reports | self._update(phase, gradients, updates, seed, lrate, progress)

    def _accumulate(self, phase: Phase, minibatch_gpu: int, seed, index, rounds, images, labels, _lrate,
                    progress) -> dict:
        gradients, updates, reports = self._gradients(
            phase, minibatch_gpu, seed, index, rounds, images, labels, progress)
        self._assign_state([(variable, value) for variable, value in updates
                            if id(unwrap(variable)) in self._sequential], tf.constant(True))
        updates = [(variable, value) for variable, value in updates
                   if id(unwrap(variable)) not in self._sequential]
        accumulators = self._accumulators[phase.role]
        self._updated[phase.name] = [variable for variable, _ in updates]
        values = [*gradients, *[value for _, value in updates]]
        sums = [*accumulators[:len(gradients)],
                *[accumulators[len(gradients) + self._state_index(variable)] for variable, _ in updates]]
        for variable, value in zip(sums, values, strict=True):
            part = tf.cast(value, variable.dtype) / tf.cast(rounds, variable.dtype)
            tf.raw_ops.AssignAddVariableOp(resource=local_handle(variable), value=part)
        return reports

    def _apply(self, phase: Phase, seed, lrate, progress) -> dict:
        accumulators = self._accumulators[phase.role]
        count = len(phase.optimizer.variables)
        updates = [(variable, local_read(accumulators[count + self._state_index(variable)]))
                   for variable in self._updated[phase.name]]
        gradients = [local_read(variable) for variable in accumulators[:count]]
        reports = self._update(phase, gradients, updates, seed, lrate, progress)
        for variable in accumulators:
            local_assign(variable, tf.zeros(variable.shape, variable.dtype))
        return reports

    def _update(self, phase: Phase, gradients, updates, seed, lrate, progress) -> dict:
        """One step of the optimizer with what hooks make of it, then the new state; what hooks report."""
        hooks, optimizer = self.update_hooks[phase.role].values(), phase.optimizer
        if not hooks:
            self._assign_state(updates, optimizer.apply(gradients, lrate))
            return {}
        for number in (phase.index, _UPDATE):
            seed = tf.random.experimental.stateless_fold_in(seed, number)
        ctx = StepContext(seed, stage=self.stage, progress=progress)
        variables = dict(zip(optimizer.names, optimizer.variables, strict=True))
        gradients = optimizer.average(gradients)
        if phase.use_loss:
            named = dict(zip(optimizer.names, gradients, strict=True))
            values = _values(variables)
            for hook in hooks:
                named = hook.gradients(ctx, values, named)
            gradients = [named[name] for name in optimizer.names]
        finite = optimizer.apply(gradients, lrate, averaged=True)
        for hook in hooks:
            changed = hook.after_update(ctx, _values(variables))
            self._assign_state([(variables[name], value) for name, value in changed.items()], finite)
        self._assign_state([*updates, *ctx.updates], finite)
        return ctx.reports

    def _assign_state(self, updates, finite) -> None:
        """New values of the moving averages and the like: means over replicas, kept out when not finite."""
        ctx = tf.distribute.get_replica_context()
        for variable, value in updates:
            value = tf.cast(value, unwrap(variable).dtype)
            usable = finite
            if value.dtype.is_floating:
                if self.num_replicas > 1:
                    value = ctx.all_reduce(tf.distribute.ReduceOp.MEAN, value)
                usable = tf.logical_and(finite, tf.reduce_all(tf.math.is_finite(value)))
            local_assign(variable, tf.where(usable, value, local_read(variable)))

    def _state_variables(self) -> list:
        """Variables that a forward pass may update and whose values are averaged over rounds.

        Not the noise inputs, which are large.
        """
        own = [variable for network in (self.G, self.D)
               for name, variable in network.named_variables().items()
               if not variable.trainable and id(unwrap(variable)) not in self._sequential
               and not _local(name).startswith('noise')]
        return [*own, *self.loss_state.values()]

    def _state_index(self, variable) -> int:
        return next(index for index, other in enumerate(self._state_variables())
                    if unwrap(other) is unwrap(variable))

    def _make_accumulators(self, phase: Phase) -> None:
        if phase.role not in self._accumulators:
            with self.strategy.scope():
                self._accumulators[phase.role] = [
                    tf.Variable(tf.zeros(variable.shape, variable.dtype), trainable=False)
                    for variable in [*phase.optimizer.variables, *self._state_variables()]]

    def update_average(self, beta: float) -> None:
        """Gs ← lerp(G, Gs, beta) for the trainables and AVERAGED_STATE; everything else is copied, unless
        ema_all says otherwise (ProGAN, appendix A)."""
        if 'average' not in self._functions:
            def average(beta):
                sources, targets = self.G.named_variables(), self.Gs.named_variables()
                for name, target in targets.items():
                    value = local_read(sources[name])
                    if target.trainable or _local(name) in AVERAGED_STATE or (
                            self.ema_all and value.dtype.is_floating):
                        value += (local_read(target) - value) * tf.cast(beta, value.dtype)
                    local_assign(target, value)
            self._functions['average'] = tf.function(
                lambda beta: self.strategy.run(average, args=(beta,)), autograph=False)
        self._functions['average'](tf.constant(beta, tf.float32))

    def skipped_in_a_row(self) -> dict[str, int]:
        """Number of updates left out since the last good one, because gradients were not finite."""
        return {role: int(optimizer.skipped_in_a_row.numpy()) for role, optimizer in self.optimizers.items()}

    def state(self) -> dict[str, tf.Variable]:
        """Every variable that a checkpoint has to hold, under a stable name."""
        state = {f'{role}/{name}': unwrap(variable)
                 for role, network in [('G', self.G), ('D', self.D), ('Gs', self.Gs)]
                 for name, variable in network.named_variables().items()}
        for role, optimizer in self.optimizers.items():
            state.update({f'Train{role}/{name}': variable for name, variable in optimizer.state().items()})
        state.update({f'loss/{name}': variable for name, variable in self.loss_state.items()})
        for role, hooks in self.update_hooks.items():
            state.update(variables_of(hooks, f'updates/{role}'))
        return state

    def load(self, networks: Sequence[Any]) -> None:
        """Takes the values of all variables of other layers (G, D, Gs) of the same kind; Adam starts anew."""
        for target, source in zip((self.G, self.D, self.Gs), networks, strict=True):
            values = source.named_variables()
            for name, variable in target.named_variables().items():
                unwrap(variable).assign(values[name].numpy())
        lod, self._lod = self._lod, None    # The schedule says where growing networks are, not the snapshot.
        if lod is not None:
            self.set_lod(lod)
        self.reset_optimizers()


def _values(variables: dict[str, Any]) -> dict[str, tf.Tensor]:
    """This replica's values of variables, by name."""
    return {name: tf.ensure_shape(local_read(variable), variable.shape)
            for name, variable in variables.items()}


def _local(name: str) -> str:
    """The last part of an official name."""
    return name.rpartition('/')[2]


def _label_table(labels, classes, G) -> tf.Tensor | OneHotLabels | None:
    """What labels of fakes are drawn from, None without labels."""
    if classes is not None and G.input_shapes[1][1]:
        return OneHotLabels(classes, G.input_shapes[1][1])
    return tf.constant(labels, tf.float32) if labels is not None and labels.shape[1] else None
