"""Plots as PNG files, by Matplotlib without a window."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

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


def save_panels(path: str | os.PathLike, panels: Sequence[Mapping[str, Any]], title: str = '') -> None:
    """Writes several plots of lines, two in a row, to a PNG file.

    Args:
        panels: 'curves' as of `save_curves`, 'xlabel', 'ylabel' of each.
    """
    from matplotlib.figure import Figure
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(6.4 * min(len(panels), 2), 4.0 * rows), dpi=120, layout='constrained')
    figure.suptitle(title)
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(rows, min(len(panels), 2), index + 1)
        axes.set(xlabel=panel['xlabel'], ylabel=panel['ylabel'])
        axes.spines[['top', 'right']].set_visible(False)
        axes.grid(alpha=0.3)
        for name, (x, y) in panel['curves'].items():
            axes.plot(x, y, label=name, marker='.' if len(x) < 30 else None)
        if len(panel['curves']) > 1:
            axes.legend(frameon=False)
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


def save_bands(path: str | os.PathLike, curves: Mapping[str, tuple], title: str = '', xlabel: str = '',
               ylabel: str = '', log_y: bool = False) -> None:
    """Writes lines {name: (x, mean, std)} with a band of one deviation around each to a PNG file."""
    figure, axes = _figure(title, xlabel, ylabel)
    for name, (x, mean, std) in curves.items():
        mean, std = np.asarray(mean), np.asarray(std)
        line, = axes.plot(x, mean, label=name)
        # On a logarithmic axis the band ends above zero.
        low = np.maximum(mean - std, mean * 0.1) if log_y else mean - std
        axes.fill_between(x, low, mean + std, alpha=0.25, color=line.get_color(), linewidth=0)
    if log_y:
        axes.set_yscale('log')
    if len(curves) > 1:
        axes.legend(frameon=False)
    _save(figure, path)


def save_shares(path: str | os.PathLike, x: Sequence[float], shares: Mapping[str, Sequence[float]],
                title: str = '', xlabel: str = '', ylabel: str = '') -> None:
    """Writes shares of a whole, {name: share at each x}, as areas that fill the plot, to a PNG file.

    One x alone gives bars.
    """
    from matplotlib import colormaps
    figure, axes = _figure(title, xlabel, ylabel)
    colors = colormaps['viridis'](np.linspace(0.05, 0.95, len(shares)))
    if len(x) == 1:
        axes.set_axisbelow(True)
        axes.bar(list(shares), [values[0] for values in shares.values()], color=colors)
    else:
        axes.stackplot(x, list(shares.values()), labels=list(shares), colors=colors)
        axes.set(xlim=(min(x), max(x)), ylim=(0, 1))
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], loc='center left', bbox_to_anchor=(1, 0.5), frameon=False)
    axes.yaxis.set_major_formatter('{x:.0%}')
    _save(figure, path)
