"""Curves for TensorBoard: means over everything that was reported since the last time they were written.

`autosummary('Loss/scores/fake', scores)` may be called any number of times, with any number of elements; once
per tick `save_summaries` writes the mean of all elements under that name and starts again. What is kept per
name is [count, sum, sum of squares, count of non-finite elements], so means are exact however the values were
grouped, and `get_state` / `set_state` carry a half-full tick across a restart.

Inside a tf.function values are not known yet: reduce them there with `reduce_moments`, return the four
numbers, and hand them to `autosummary_moments` outside. Sums of these numbers over replicas or accumulation
rounds are valid moments too.
"""

import contextlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar_summary

from dnnlib.util import UserError

_MARGIN_PREFIX = 'xCustomScalars/'  # Sorts the helper curves of the margin charts behind all others.

_moments: dict[str, np.ndarray] = {}  # name → [count, sum, sum of squares, non-finite count], float64


def autosummary(name: str, value: Any, passthru: Any = None, condition: bool = True) -> Any:
    """Adds all elements of `value` to the mean that `save_summaries` will write under `name`.

    Non-finite elements are left out of the mean and counted (`get_nonfinite_counts`).

    Args:
        name: Tag in TensorBoard, for example 'Loss/scores/fake'.
        value: Number, array or eager tensor of any shape and real dtype.
        passthru: What to return instead of `value`.
        condition: Nothing is added where this is false.

    Returns: `value` itself, unchanged, or `passthru` where it is given.
    Raises: UserError for a symbolic tensor (see the top of this module) or something that is not numeric.
    """
    if condition:
        array = _to_array(name, value)
        finite = array[np.isfinite(array)]
        nonfinite = array.size - finite.size
        autosummary_moments(name, finite.size, finite.sum(), np.square(finite).sum(), nonfinite)
    return value if passthru is None else passthru


def autosummary_moments(name: str, count: Any, total: Any, total_of_squares: Any, nonfinite: Any = 0) -> None:
    """Adds elements that were already reduced, for example by `reduce_moments` inside a tf.function.

    Args:
        name: Tag in TensorBoard.
        count: Number of finite elements.
        total: Their sum.
        total_of_squares: The sum of their squares.
        nonfinite: Number of elements that were left out because they are not finite.

    Sums that are not finite themselves (overflow) are not added; their elements are counted as non-finite.
    """
    moments = np.array([count, total, total_of_squares, nonfinite], np.float64)
    if not np.isfinite(moments).all():
        moments = np.array([0, 0, 0, np.nansum(moments[[0, 3]])])
    _moments[name] = _moments.get(name, np.zeros(4)) + moments


def reduce_moments(value: Any) -> tf.Tensor:
    """[count, sum, sum of squares, non-finite count] of all elements, float64 [4]; also inside a tf.function.

    `autosummary_moments(name, *moments)` takes the result. No gradient flows through it.
    """
    value = tf.cast(tf.stop_gradient(value), tf.float64)
    finite = tf.math.is_finite(value)
    value = tf.where(finite, value, tf.zeros_like(value))
    count = tf.reduce_sum(tf.where(finite, tf.ones_like(value), tf.zeros_like(value)))
    size = tf.cast(tf.size(value), tf.float64)
    return tf.stack([count, tf.reduce_sum(value), tf.reduce_sum(tf.square(value)), size - count])


def _to_array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, tf.Tensor) and not hasattr(value, 'numpy'):
        raise UserError(f'autosummary: {name!r} received a symbolic tensor; inside a tf.function use '
                        'autosummary.reduce_moments(value), return it, and call autosummary_moments outside')
    array = np.asarray(value)
    if array.dtype.kind not in 'biufV':  # V is what numpy calls bfloat16.
        raise UserError(f'autosummary: {name!r} received {value!r}, expected real numbers')
    return array.astype(np.float64)


def get_means() -> dict[str, float]:
    """Mean of every name that received finite elements since the last `save_summaries`; resets nothing."""
    return {name: float(m[1] / m[0]) for name, m in _moments.items() if m[0] > 0}


def get_stds() -> dict[str, float]:
    """Standard deviation (of the population) of the elements that `get_means` averages."""
    variances = {name: m[2] / m[0] - (m[1] / m[0]) ** 2 for name, m in _moments.items() if m[0] > 0}
    return {name: math.sqrt(max(variance, 0.0)) for name, variance in variances.items()}


def get_nonfinite_counts() -> dict[str, int]:
    """How many infinite or undefined elements each name received since the last `save_summaries`."""
    return {name: int(m[3]) for name, m in _moments.items() if m[3] > 0}


def get_state() -> dict[str, list[float]]:
    """What is accumulated: {name: [count, sum, sum of squares, non-finite count]}, fit for JSON."""
    return {name: m.tolist() for name, m in _moments.items()}


def set_state(state: Mapping[str, Iterable[float]]) -> None:
    """Replaces what is accumulated by an earlier `get_state()`.

    Raises: UserError where an entry does not have four numbers; nothing is changed then.
    """
    loaded = {name: np.array(list(moments), np.float64) for name, moments in state.items()}
    for name, moments in loaded.items():
        if moments.shape != (4,):
            raise UserError(f'autosummary: the state of {name!r} has {moments.size} numbers, expected 4')
    reset()
    _moments.update(loaded)


def reset() -> None:
    """Forgets everything that is accumulated."""
    _moments.clear()


def finalize_autosummaries() -> None:
    """Does nothing. The official one builds graph operations that TensorFlow 2 does not need."""


class FileWriter:
    """Writes one run's TensorBoard event file. A thin wrapper of tf.summary.create_file_writer.

    Where the file cannot be written any more (disk full), a warning says so and nothing is raised; the next
    `flush` tries again with another file.

    Args:
        run_dir: Directory of the event file; made if missing. Remote paths (gs://…) work. None: no file.

    Raises: UserError where no file can be made there.
    """

    def __init__(self, run_dir: str | os.PathLike | None):
        self._run_dir = None if run_dir is None else os.fspath(run_dir)
        self._writer = None
        try:
            if self._run_dir is not None:
                self._writer = tf.summary.create_file_writer(self._run_dir)
        except tf.errors.OpError as error:
            raise UserError(f'{self._run_dir}: TensorBoard events cannot be written '
                            f'({_reason(error)})') from error
        self._charts: set[str] = set()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """The writer as the default one; without a file, what is written is dropped."""
        if self._writer is None:
            # A writer that has failed may have stayed TensorFlow's default one.
            with tf.summary.record_if(False):
                yield
            return
        try:
            with self._writer.as_default():
                yield
        except tf.errors.OpError as error:
            self._writer = None     # The file may end within a record now.
            print(f'Warning: cannot write TensorBoard events, going on without them ({_reason(error)})')

    def add_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Writes {tag: value} at a step."""
        with self._writing():
            for tag, value in scalars.items():
                tf.summary.scalar(tag, value, step=step)

    def add_images(self, tag: str, images: Any, step: int) -> None:
        """Writes images (or one grid of them): uint8 [N, H, W, C] or [H, W, C], with 1, 3 or 4 channels.

        Raises: UserError for another dtype or shape.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] not in (1, 3, 4):
            raise UserError(f'FileWriter.add_images: received {images.dtype} {list(images.shape)}, '
                            'expected uint8 [N, H, W, C] or [H, W, C] with 1, 3 or 4 channels')
        images = images.reshape(-1, *images.shape[-3:])
        with self._writing():
            tf.summary.image(tag, images, step=step, max_outputs=len(images))

    add_image = add_images

    def add_text(self, tag: str, text: str | Mapping[str, Any], step: int = 0) -> None:
        """Writes Markdown text. A dictionary (hyperparameters, possibly nested) becomes a table."""
        if isinstance(text, Mapping):
            text = markdown_table(text)
        with self._writing():
            tf.summary.text(tag, text, step=step)

    def add_margin_charts(self, names: Iterable[str]) -> None:
        """Makes TensorBoard's Custom Scalars page draw these curves with a band of ± standard deviation.

        'Loss/scores/fake' becomes a curve of the chart 'scores' in the group 'Loss'. Names add up over calls.
        """
        charts = self._charts.union(names)
        if charts == self._charts:
            return
        self._charts = charts
        with self._writing():
            summary = custom_scalar_summary.pb(_chart_layout(self._charts))
            tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=0)

    def flush(self) -> None:
        """Puts everything written so far on the disk."""
        if self._writer is not None:
            with self._writing():
                self._writer.flush()
        elif self._run_dir is not None:
            with contextlib.suppress(tf.errors.OpError):    # A warning has been given.
                self._writer, self._charts = tf.summary.create_file_writer(self._run_dir), set()

    def close(self) -> None:
        """Flushes and closes the file. Nothing can be written afterwards."""
        if self._writer is not None:
            with contextlib.suppress(tf.errors.OpError):    # What `flush` has put on the disk stays there.
                self._writer.close()


def _reason(error: tf.errors.OpError) -> str:
    """The first line of an error's message, without the operation."""
    return re.sub(r'\{\{.*?\}\} ?', '', error.message.splitlines()[0])


def save_summaries(file_writer: FileWriter, global_step: int | None = None) -> dict[str, float]:
    """Writes the means since the last call and starts new ones. Names without finite elements are left out.

    Where a name collected several elements, mean ± standard deviation go to the Custom Scalars page too.

    Args:
        file_writer: Where to write.
        global_step: Horizontal position in TensorBoard. None = 0.

    Returns: {name: mean} as written.
    """
    step = 0 if global_step is None else int(global_step)
    means, stds = get_means(), get_stds()
    spread = [name for name in means if _moments[name][0] > 1]
    scalars = dict(means)
    for name in spread:
        lower, upper = _margin_names(name)
        scalars[lower], scalars[upper] = means[name] - stds[name], means[name] + stds[name]
    file_writer.add_scalars(scalars, step)
    file_writer.add_margin_charts(spread)
    file_writer.flush()
    reset()
    return means


def markdown_table(values: Mapping[str, Any]) -> str:
    """A table of names and values in Markdown; nested dictionaries give dotted names."""
    rows = ['| name | value |', '| --- | --- |']
    for name, value in _flatten(values):
        cell = str(value).replace('|', '\\|').replace('\n', ' ')
        rows.append(f'| {name} | {cell} |')
    return '\n'.join(rows)


def _flatten(values: Mapping[str, Any], prefix: str = '') -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f'{prefix}{name}.')
        else:
            yield f'{prefix}{name}', value


def _chart_layout(names: Iterable[str]) -> layout_pb2.Layout:
    groups: dict[str, dict[str, list]] = {}
    for name in sorted(names):
        group, *chart = name.split('/')
        chart = '/'.join(chart[:-1] or chart) or group
        groups.setdefault(group, {}).setdefault(chart, []).append(_margin_series(name))
    return layout_pb2.Layout(category=[
        layout_pb2.Category(title=group, chart=[
            layout_pb2.Chart(title=chart, margin=layout_pb2.MarginChartContent(series=series))
            for chart, series in charts.items()])
        for group, charts in groups.items()])


def _margin_series(name: str) -> layout_pb2.MarginChartContent.Series:
    lower, upper = _margin_names(name)
    return layout_pb2.MarginChartContent.Series(value=name, lower=lower, upper=upper)


def _margin_names(name: str) -> tuple[str, str]:
    return f'{_MARGIN_PREFIX}{name}/margin_lo', f'{_MARGIN_PREFIX}{name}/margin_hi'
