"""Where monitors, remedies and regularizers of weights take part in a training run.

A `Hook` is called by the training loop, in Python, between steps. An `UpdateHook` becomes part of the traced
update of one network: it changes gradients before the optimizer sees them, or weights after it. Both are
named in the configuration, `hook_args=[dict(func_name=...)]` and `G_update_args`, `D_update_args`; what they
remember lies in the checkpoint, so that a run with hooks resumes exactly.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from dnnlib.util import UserError, get_obj_by_name


@dataclasses.dataclass(eq=False)
class Run:
    """What hooks see of a run."""

    trainer: Any                        # training.trainer.Trainer: layers, optimizers, strategy, phases.
    G: Any                              # tflib.Network, as D and Gs.
    D: Any
    Gs: Any
    training_set: Any                   # training.dataset.Dataset.
    progress: Any                       # EasyDict, kept in the checkpoint: nimg, step, tick ...
    run_dir: str                        # Of several workers only the chief writes there.
    is_chief: bool = True
    snapshots: Any = None               # training.snapshots.NetworkSnapshots.
    metrics: Any = None                 # metrics.metric_base.MetricGroup.
    writer: Any = None                  # dnnlib.tflib.autosummary.FileWriter.
    sched: Any = None                   # The schedule of the latest step, from training_schedule.
    seed: int = 0                       # Seed of the run.
    reports: list = dataclasses.field(default_factory=list)     # What Trainer.step returned last.
    rollback: tuple[str, str | None] | None = None      # (reason, path) that was asked for.

    def request_rollback(self, reason: str, path: str | None = None) -> None:
        """Asks the loop to go back, after this call of the hooks, to the weights of a snapshot.

        The loop loads G, D and Gs from it, resets the optimizers and goes on with new random numbers and new
        reals: the number of images goes on counting.

        Args:
            reason: One line for the log.
            path: The snapshot; None = the latest one of the run.
        """
        self.rollback = reason, path


class Hook:
    """Base class of what the training loop calls; every method may be left as it is.

    Arguments of the constructor are those in `hook_args` besides func_name.
    """

    def build(self, run: Run) -> None:
        """Creates variables, in the scope of the strategy, before a checkpoint is restored."""

    def start(self, run: Run) -> None:
        """Once, before the first step of this process, with everything restored."""

    def step(self, run: Run) -> None:
        """After every step; `run.reports` has what it reported. Waiting for the device makes a run slow."""

    def tick(self, run: Run) -> None:
        """At every tick, before its values are written: what is handed to autosummary now belongs to it."""

    def snapshot(self, run: Run, path: str) -> None:
        """After a network snapshot was written and its metrics were computed (run.metrics)."""

    def variables(self) -> dict[str, tf.Variable]:
        """Variables that a checkpoint has to hold, by a name that is unique in this hook."""
        return {}

    def state(self) -> dict[str, Any]:
        """Everything else that a checkpoint has to hold: plain values that JSON can hold."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state` returned in an earlier part of the run.

        Not called where hook_args had another class, or nothing, at this place then: the hook starts afresh.
        Its arguments may have been others.
        """


class UpdateHook:
    """Base class of what takes part in the updates of one network; every method may be left as it is.

    Both methods are traced by TensorFlow, in replica context, once for each kind of update. All replicas see
    the same values. New values of the hook's own variables go through ctx.update, numbers for TensorBoard
    through ctx.report (training.context). An update that is left out because gradients are not finite leaves
    out what the hook did, too.
    """

    def build(self, network: Any, trained: dict[str, Any]) -> None:
        """Creates variables, in the scope of the strategy.

        Args:
            network: The layer that is updated.
            trained: {official name: variable} of what the optimizer trains.
        """

    def variables(self) -> dict[str, tf.Variable]:
        """Variables that a checkpoint has to hold, by a name that is unique in this hook."""
        return {}

    def gradients(self, ctx: Any, values: dict[str, tf.Tensor], gradients: dict[str, tf.Tensor],
                  ) -> dict[str, tf.Tensor]:
        """The gradients that the optimizer gets, by name; called in updates by the loss only.

        Args:
            ctx: training.context.StepContext.
            values: Raw weights before the update.
            gradients: Their mean over rounds and replicas.
        """
        return gradients

    def after_update(self, ctx: Any, values: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """New values of those weights that are to change once more, by name.

        Args:
            ctx: training.context.StepContext, the one that `gradients` was given.
            values: Weights after the update.
        """
        return {}


def make_hooks(arguments: Sequence[dict[str, Any]] | None, kind: type, argument: str) -> dict[str, Any]:
    """Objects for a list of dicts with func_name and other arguments, by unique stable names.

    Args:
        arguments: As in the configuration; an object of `kind` in place of a dict is taken as it is.
        kind: Hook or UpdateHook.
        argument: What the list is called in messages.

    Errors: UserError for what is no such hook.
    """
    hooks: dict[str, Any] = {}
    for index, given in enumerate(arguments or []):
        hook = given
        if isinstance(given, dict):
            kwargs = dict(given)
            name = kwargs.pop('func_name', None)
            if name is None:
                raise UserError(f'{argument}: every entry needs a func_name. Received: {given!r}')
            hook = get_obj_by_name(name)(**kwargs)
        if not isinstance(hook, kind):
            raise UserError(f'{argument}: expected classes derived from training.hooks.{kind.__name__}. '
                            f'Received: {given!r}')
        hooks[f'{index}-{type(hook).__name__}'] = hook
    return hooks


def variables_of(hooks: dict[str, Any], prefix: str) -> dict[str, tf.Variable]:
    """The variables of all hooks under names for a checkpoint."""
    return {f'{prefix}/{hook_name}/{name}': variable for hook_name, hook in hooks.items()
            for name, variable in hook.variables().items()}
