"""A function over minibatches, shared among the replicas of a strategy."""

import collections
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from training.datasets.prefetch import Prefetcher

from .image_streams import filled, groups
from .metric_base import Stopped

STOP_EVERY = 2          # Seconds between questions whether to stop.
IN_FLIGHT = 2           # Minibatches that are computed while results are used.
KEPT_FUNCTIONS = 32


class ReplicaMap:
    """Runs functions over minibatches, one minibatch per replica at a time.

    Args:
        strategy: tf.distribute strategy.
        should_stop: Asked every few seconds; when it returns True, metric_base.Stopped is raised.

    Attributes:
        functions: Traced functions by key, the latest at the end.
    """

    def __init__(self, strategy: tf.distribute.Strategy, should_stop: Callable[[], bool] | None = None):
        self.strategy, self._should_stop, self._asked = strategy, should_stop, 0.0
        self.num_replicas = strategy.num_replicas_in_sync
        self.functions: collections.OrderedDict = collections.OrderedDict()

    def map(self, function: Callable, batches: Iterable[tuple[np.ndarray, ...]], size: int,
            done: Callable[[int], Any], key: Any = None) -> Iterator[Any]:
        """Results for minibatches, in order.

        Args:
            function: (*tensors) → tensor, or list of tensors, with as many rows; runs within a graph.
            batches: Tuples of arrays with equal numbers of rows, at most `size`.
            size: Rows that minibatches are filled up to: one size needs one trace.
            done: Called with the number of rows of each result.
            key: What the function depends on, so that it is traced once. None = it is traced anew.

        Yields: What the function returned, as arrays.
        """
        traced = self._traced(function, key)
        pending: collections.deque = collections.deque()
        prefetcher = Prefetcher(iter(batches), depth=2 * self.num_replicas)
        try:
            for group in groups(prefetcher, self.num_replicas):
                self._check_stop()
                inputs = self._distributed(group, size)
                pending.append(([len(arrays[0]) for arrays in group], _call(traced, inputs)))
                while len(pending) > IN_FLIGHT:
                    yield from self._collected(*pending.popleft(), done)
            while pending:
                yield from self._collected(*pending.popleft(), done)
        finally:
            prefetcher.close()

    def _check_stop(self) -> None:
        now = time.monotonic()
        if self._should_stop is not None and now - self._asked > STOP_EVERY:
            self._asked = now
            if self._should_stop():
                raise Stopped

    def _traced(self, function: Callable, key: Any) -> Callable:
        traced = self.functions.get(key) if key is not None else None
        if traced is None:
            traced = tf.function(lambda *args: self.strategy.run(function, args), autograph=False)
            if key is not None:
                self.functions[key] = traced
                while len(self.functions) > KEPT_FUNCTIONS:
                    self.functions.popitem(last=False)
        return traced

    def _distributed(self, group: list[tuple[np.ndarray, ...]], size: int) -> list[Any]:
        group = [[filled(array, size) for array in arrays] for arrays in group]
        group += [group[-1]] * (self.num_replicas - len(group))
        if self.num_replicas == 1:
            return [tf.constant(array) for array in group[0]]
        distribute = self.strategy.experimental_distribute_values_from_function
        return [distribute(lambda ctx, i=i: tf.constant(group[ctx.replica_id_in_sync_group][i]))
                for i in range(len(group[0]))]

    def _collected(self, rows: list[int], outputs: Any, done: Callable[[int], Any]) -> Iterator[Any]:
        flat = [self.strategy.experimental_local_results(output) for output in tf.nest.flatten(
            outputs, expand_composites=False)]
        for replica, count in enumerate(rows):
            arrays = [values[replica].numpy()[:count] for values in flat]
            done(count)
            yield arrays if isinstance(outputs, list | tuple) else arrays[0]


def _call(traced: Any, inputs: list[Any]) -> Any:
    """Calls a traced function."""
    # TensorFlow counts the traces of all functions made of one piece of code, and would warn of their number.
    return (traced if tf.config.functions_run_eagerly() else traced.get_concrete_function(*inputs))(*inputs)
