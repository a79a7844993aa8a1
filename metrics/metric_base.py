"""Metrics and groups of metrics: results, result lines, files, TensorBoard; what runs on snapshots."""

import contextlib
import json
import os
import random
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dnnlib.util import UserError, format_time, get_obj_by_name, gfile, is_remote_path

from .metric_defaults import OFFICIAL_METRICS, find_metric, metric_defaults

if TYPE_CHECKING:
    from .evaluation import Evaluation

__all__ = ['OFFICIAL_METRICS', 'MetricBase', 'MetricGroup', 'Stopped', 'find_metrics', 'metric_defaults']

NAME_WIDTH = 29         # Of a snapshot in a result line.
# Feature network → key of weights.SOURCES, without importing TensorFlow.
WEIGHTS = {'inception': 'inception', 'vgg16': 'vgg16', 'lpips': 'vgg16', 'efflite0': 'efflite0'}


class Stopped(Exception):
    """Measuring was asked to stop."""


class MetricBase:
    """One metric. Subclasses implement `_evaluate`, which calls `_report_result`.

    Args:
        name: Its name, which stands in results and file names.
        extractor: Key of feature_nets.EXTRACTORS; None for metrics without a feature network.
        **kwargs: What a subclass does not know is an error.

    Attributes:
        details: What else a subclass wants to have in the .jsonl file, such as counts.
        results_list: [(suffix, value, format)] of the last run.
    """

    needs_reals = True          # False: generated images alone.
    needs_network = False       # True: folders of images are not enough.
    min_images = 1              # Of each kind.

    def __init__(self, name: str, extractor: str | None = None, **kwargs: Any):
        if kwargs:
            raise UserError(f'metric {name}: {type(self).__name__} does not know {", ".join(kwargs)}')
        self.name, self.extractor = name, extractor
        self.results_list: list[tuple[str, float, str]] = []
        self.details: dict[str, Any] = {}
        self.facts: dict[str, Any] = {}         # Of the last run, for the .jsonl file.
        self._network_name, self._time = '', 0.0

    def check(self, weights_dir: str | None = None) -> None:
        """Looks for what the metric needs, before hours of training. Errors: UserError: what is missing."""
        from . import weights
        kind = WEIGHTS.get(self.extractor)
        if kind is not None and weights.find(kind, weights_dir) is None:
            weights.load(kind, (), weights_dir, f'metric {self.name}')  # Says what is missing.

    def check_extractors(self, ev: 'Evaluation') -> None:
        """Reads the weights of feature networks, which takes seconds. Errors: UserError for unusable ones."""
        if self.extractor:
            ev.extractor(self.extractor)

    def check_images(self, ev: 'Evaluation') -> None:
        """Looks, before anything is computed, for what cannot be measured. Errors: UserError."""
        wanted = getattr(self, 'num_images', None)
        for kind, num in ev.num_available(self.needs_reals).items():
            num = num if wanted is None else min(num, ev.count(wanted))
            if num < self.min_images:
                raise UserError(f'metric {self.name} needs at least {self.min_images} {kind} images, '
                                f'received {num}')

    def _evaluate(self, ev: 'Evaluation') -> None:
        """Computes the metric; to be implemented by subclasses."""
        raise NotImplementedError

    def _report_result(self, value: Any, suffix: str = '', fmt: str = '%-10.4f') -> None:
        """Adds a result; one metric may have several, with a suffix each."""
        self.results_list.append((suffix, float(value), fmt))

    def run(self, ev: 'Evaluation', network_name: str = '') -> None:
        """Evaluates the metric.

        Args:
            ev: What is measured.
            network_name: Path or name of the snapshot, for results.
        """
        self.results_list, self.details = [], {}
        self._network_name = network_name
        start = time.monotonic()
        from .feature_rows import without_tf32
        # Images and features as the official programs have them, which are older than TensorFloat-32; path
        # lengths multiply distances near 1e-8 by 1e8.
        with without_tf32(), ev.measuring(self):
            self._evaluate(ev)
        self._time = time.monotonic() - start
        self.facts = ev.facts(self)

    def results(self) -> dict[str, float]:
        """{name + suffix: value} of the last run."""
        return {self.name + suffix: value for suffix, value, _ in self.results_list}

    def get_result_str(self) -> str:
        """The official result line of the last run."""
        return result_line(self._network_name, self._time, self.name, self.results_list)

    def update_autosummaries(self) -> None:
        """Reports the results to TensorBoard."""
        from dnnlib.tflib.autosummary import autosummary
        for name, value in self.results().items():
            autosummary(f'Metrics/{name}', value)

    def record(self) -> dict[str, Any]:
        """Everything about the last run, for the .jsonl file."""
        return {'results': self.results(), 'metric': self.name, 'total_time': self._time,
                'total_time_str': format_time(self._time), 'snapshot_pkl': self._network_name or None,
                'timestamp': time.time(), **self.facts, **self.details}

    def write(self, run_dir: str) -> None:
        """Appends the results to metric-NAME.txt and metric-NAME.jsonl."""
        _append(os.path.join(run_dir, f'metric-{self.name}.txt'), self.get_result_str())
        _append(os.path.join(run_dir, f'metric-{self.name}.jsonl'), json.dumps(_plain(self.record())))


def result_line(network: str, seconds: float, name: str, results: Sequence[tuple[str, float, str]]) -> str:
    """A line of metric-NAME.txt.

    Args:
        network: Path or name of the snapshot.
        seconds: What the evaluation took.
        name: Name of the metric.
        results: [(suffix, value, format)].
    """
    network = os.path.splitext(os.path.basename(network.rstrip('/')))[0]
    if len(network) > NAME_WIDTH:
        network = '...' + network[3 - NAME_WIDTH:]
    line = f'{network:<30} time {format_time(seconds):<12}'
    for suffix, value, fmt in results:
        line += f' {name}{suffix} {fmt % value}'
    return line.rstrip()


def _append(path: str, line: str) -> None:
    """Adds a line to a file, in one piece: another process may do so at the same time."""
    if is_remote_path(path):
        with gfile().GFile(path, 'a') as file:
            file.write(line + '\n')
        return
    with open(path, 'ab', buffering=0) as file:
        file.write((line + '\n').encode())


def _plain(value: Any) -> Any:
    """A copy for JSON: arrays become lists, and numbers that are not finite texts."""
    from dnnlib.submission.submit import to_plain
    value = to_plain(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value


class MetricGroup:
    """Several metrics that are evaluated together: features that one has computed serve the others.

    Args:
        metric_arg_list: One dict per metric: 'func_name' and keyword arguments of its class.
    """

    def __init__(self, metric_arg_list: Sequence[dict[str, Any]] = ()):
        self.metrics: list[MetricBase] = [
            get_obj_by_name(args['func_name'])(**{key: value for key, value in args.items()
                                                  if key != 'func_name'})
            for args in metric_arg_list]
        self.stopped = False            # Was the last run asked to stop before it was done?
        self.failed: list[str] = []     # Names of those that the last run could not measure.
        self._evaluation: Any = None    # Kept from snapshot to snapshot, with its traced functions.

    def check(self, weights_dir: str | None = None) -> None:
        """Says before hours of training what cannot run after them. Errors: UserError."""
        for metric in self.metrics:
            metric.check(weights_dir)

    def check_images(self, evaluation: 'Evaluation') -> None:
        """Says before anything is computed what cannot be measured of these images. Errors: UserError."""
        for metric in self.metrics:
            metric.check_images(evaluation)

    def run(self, network_pkl: str = '', run_dir: str | None = None, *, log_results: bool = True,
            evaluation: Any = None, keep_going: bool = False, **settings: Any) -> None:
        """Evaluates every metric on a snapshot.

        The random numbers of NumPy and Python are as before when it returns.

        Args:
            network_pkl: The snapshot, for results; the networks are loaded from it where there is no Gs.
            run_dir: Directory of metric-NAME.txt and metric-NAME.jsonl. None = not written.
            log_results: Print and write the results?
            evaluation: What is measured. None = made of the settings.
            keep_going: Only warn of a metric that fails, whatever the reason, and go on with the next one?
            **settings: Arguments of `evaluation.for_training`.
        """
        if not self.metrics:
            return
        self.stopped, self.failed = False, []
        for metric in self.metrics:
            metric.results_list = []    # Nobody is to take those of the last network for this one's.
        with _kept_random_state():
            if evaluation is None:
                from .evaluation import for_training
                evaluation = self._evaluation = for_training(self._evaluation, network_pkl, **settings)
            if not keep_going:
                self.check_images(evaluation)
            try:
                with evaluation.group(self.metrics, run_dir):
                    for metric in self.metrics:
                        try:
                            self._run(metric, evaluation, network_pkl, log_results, run_dir)
                        except Stopped:
                            raise
                        except Exception as error:
                            if not keep_going:
                                raise
                            self._note_failure(metric, error, network_pkl)
            except Stopped:
                self.stopped = True
                print(f'Asked to stop: {metric.name} is not measured of {network_pkl}; run_metrics.py can '
                      'do it later', flush=True)

    def _run(self, metric: MetricBase, evaluation: 'Evaluation', network_pkl: str, log_results: bool,
             run_dir: str | None) -> None:
        metric.check_images(evaluation)
        metric.run(evaluation, network_pkl)
        if log_results:
            print(metric.get_result_str(), flush=True)
            if run_dir is not None:
                metric.write(run_dir)

    def _note_failure(self, metric: MetricBase, error: Exception, network_pkl: str) -> None:
        """Warns of a metric that has failed, with the traceback where the error does not speak for itself."""
        metric.results_list = []
        self.failed.append(metric.name)
        if not isinstance(error, UserError):
            print(traceback.format_exc(), end='')
        line = (str(error).splitlines() or [''])[0]
        print(f'Warning: {metric.name} of {network_pkl} cannot be measured ({type(error).__name__}: {line}). '
              'Going on without it; run_metrics.py can do it later', flush=True)

    def results(self) -> dict[str, float]:
        """{name + suffix: value} of all metrics."""
        return {name: value for metric in self.metrics for name, value in metric.results().items()}

    def get_result_str(self) -> str:
        """Results of all metrics in one line."""
        return ' '.join(metric.get_result_str() for metric in self.metrics)

    def update_autosummaries(self) -> None:
        """Reports the results to TensorBoard."""
        for metric in self.metrics:
            metric.update_autosummaries()


@contextlib.contextmanager
def _kept_random_state() -> Iterator[None]:
    """Gives the generators that belong to nobody back as they were."""
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


def find_metrics(names: str | Sequence[str], num_images: int | None = None) -> list[dict[str, Any]]:
    """Arguments of the metrics of a comma list; 'none' and '' mean no metric.

    Args:
        names: Names, as `metric_defaults.find_metric` knows them.
        num_images: Number of images instead of the one in the name, which changes with it.

    Errors: UserError for an unknown name.
    """
    names = [name.strip() for name in names.split(',')] if isinstance(names, str) else list(names)
    names = [name for name in names if name and name.lower() != 'none']
    found = [find_metric(name, num_images) for name in names]
    return list({args['name']: args for args in found}.values())
