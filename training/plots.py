"""Plots as PNG files, by Matplotlib without a window."""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from dnnlib.util import atomic_write


def _save(figure, path: str | os.PathLike) -> None:
    with atomic_write(path) as file:
        figure.savefig(file, format='png')


def _figure(title: str, xlabel: str, ylabel: str) -> tuple:
    from matplotlib.figure import Figure  # No pyplot: nothing global, no display.
    figure = Figure(figsize=(6.4, 4.0), dpi=120, layout='constrained')
    axes = figure.subplots()
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.spines[['top', 'right']].set_visible(False)
    axes.grid(alpha=0.3)
    return figure, axes


def _legend(axes) -> None:
    axes.legend(frameon=False, loc='upper left', bbox_to_anchor=(1, 1))  # Beside the plot, over nothing.


def save_curves(path: str | os.PathLike, curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
                title: str = '', xlabel: str = '', ylabel: str = '', log_y: bool = False) -> None:
    """Writes lines {name: (x, y)} to a PNG file."""
    figure, axes = _figure(title, xlabel, ylabel)
    for name, (x, y) in curves.items():
        axes.plot(x, y, label=name, marker='.' if len(x) < 30 else None)
    if log_y:
        axes.set_yscale('log')
    if len(curves) > 1:
        _legend(axes)
    _save(figure, path)


def save_histograms(path: str | os.PathLike, groups: Mapping[str, Sequence[float]], title: str = '',
                    xlabel: str = '', bins: int = 40, marks: Mapping[str, float] | None = None) -> None:
    """Writes histograms {name: values} over common bins to a PNG file; marks are vertical lines."""
    figure, axes = _figure(title, xlabel, 'count')
    edges = np.histogram_bin_edges(np.concatenate([np.asarray(values) for values in groups.values()]), bins)
    for name, values in groups.items():
        axes.hist(values, edges, alpha=0.6, label=f'{name} ({len(values)})')
    for name, x in (marks or {}).items():
        axes.axvline(x, color='black', linestyle='--', linewidth=1, label=name)
    _legend(axes)
    _save(figure, path)
