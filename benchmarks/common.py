"""What the benchmarks share: taking turns, medians, memory, facts about the machine, tables, JSON."""

import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from dnnlib.util import atomic_write

MIN_SECONDS = 0.2       # Least duration of one measurement: what is shorter is called several times.


def measure(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds per call of each function, `repeats` times.

    Two calls warm up. Then the functions take turns, so that a machine that slows down slows down all of
    them. What a function returns is a tensor, or a structure of them, that is waited for.
    """
    counts = {}
    for name, function in functions.items():
        _wait(function())
        counts[name] = max(math.ceil(MIN_SECONDS / _seconds(function, 1)), 1)
    times = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(_seconds(function, counts[name]))
    return times


def _seconds(function: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        _wait(function())
    return (time.perf_counter() - start) / count


def _wait(result: Any) -> None:
    """Waits for the device, by bringing one number of each tensor to the host."""
    import tensorflow as tf
    for tensor in tf.nest.flatten(result):
        np.asarray(tf.reshape(tensor, [-1])[:1])


def peak_memory() -> float:
    """Peak of the resident memory of this process so far, GiB."""
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2 ** 30


def num_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def machine() -> dict[str, Any]:
    """What the results of a benchmark have to say about where and when they were measured."""
    import tensorflow as tf
    return dict(tensorflow=tf.__version__, python=platform.python_version(), cpus=num_cpus(),
                date=time.strftime('%Y-%m-%d'),
                devices=[device.name for device in tf.config.list_logical_devices()])


def print_heading(title: str, result: dict[str, Any]) -> None:
    """Prints what was measured, with values of the result in braces, and the facts of `machine` in it."""
    print((title + '\nTensorFlow {tensorflow}, Python {python}, {cpus} CPUs, {date}: ').format(**result)
          + ', '.join(result['devices']) + '\n')


def print_table(rows: list[list[str]]) -> None:
    """Prints rows with aligned columns, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for name, *numbers, note in rows:
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True)]
        print('  '.join([name.ljust(widths[0]), *cells, note]).rstrip())


def write_json(result: dict[str, Any], path: str) -> None:
    """Writes all numbers of a benchmark to a file."""
    with atomic_write(path, 'w') as file:
        json.dump(result, file, indent=2)
        file.write('\n')
