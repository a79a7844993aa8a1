"""Times what metrics are made of; see `python -m benchmarks.metrics --help`.

Feature networks: images per second on the way that metrics take (reading, minibatches, transfers, features
as arrays), against the plain forward pass of the same network on one minibatch that is there already. Their
weights are random, which makes no difference to speed. Precision and recall: in blocks, from files, against
whole matrices in NumPy, each in a process of its own, whose peak of memory is shown.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
import unittest.mock
from typing import Any

import numpy as np

from benchmarks.common import machine, measure, peak_memory, print_heading, print_table, write_json
from dnnlib import flags
from dnnlib.startup import load_tensorflow
from dnnlib.util import UserError

NETWORKS = ('inception', 'vgg16', 'efflite0')
MOST_PLAIN = 20000      # Samples of a set whose distances are held as a whole.


def make_parser() -> flags.Parser:
    """The command line."""
    parser = flags.Parser('Times feature networks and precision and recall.', examples=[
        'python -m benchmarks.metrics',
        'python -m benchmarks.metrics --extractors=none --reals=200000 --fakes=50000'],
        prog='benchmarks.metrics')
    parser.add_flag('extractors', _networks, f'feature networks to time: {", ".join(NETWORKS)}, or none',
                    default=','.join(NETWORKS))
    parser.add_flag('resolution', flags.positive_int, 'resolution of the images', default=256)
    parser.add_flag('images', flags.positive_int, 'images of a measurement', default=64)
    parser.add_flag('batch', flags.positive_int, 'images at a time', default=16)
    parser.add_flag('repeats', flags.positive_int, 'measurements; the table shows their median', default=3)
    parser.add_flag('reals', flags.nonneg_int, 'real samples for precision and recall; 0 = left out',
                    default=10000)
    parser.add_flag('fakes', flags.nonneg_int, 'the same of the fakes', default=10000)
    parser.add_flag('features', flags.positive_int, 'numbers of a feature vector', default=4096)
    parser.add_flag('json', help='also write all numbers to this file', metavar='FILE')
    return parser


def _networks(text: str) -> list[str]:
    names = [] if text == 'none' else text.split(',')
    for name in names:
        if name not in NETWORKS:
            raise UserError(f'expected none or some of {", ".join(NETWORKS)}, received {name!r}')
    return names


_networks.metavar = 'NAMES'


def random_weights(entries: Any) -> dict[str, np.ndarray]:
    """Weights for the layers of a feature network, by name."""
    rnd, values = np.random.default_rng(0), {}
    for entry in entries:
        gain = np.float32(np.sqrt(2 / np.prod(entry.shape[1:])))
        values[f'{entry.name}.weight'] = rnd.standard_normal(entry.shape, np.float32) * gain
        values |= {name: np.ones(entry.shape[0], np.float32) for name in entry.vectors.values()}
    return values


def time_network(name: str, resolution: int, num_images: int, batch: int, repeats: int
                 ) -> dict[str, list[float]]:
    """Seconds per image: {'metric': …, 'plain': …}."""
    import tensorflow as tf

    from metrics import feature_nets, weights
    from metrics.evaluation import Evaluation
    from metrics.image_sources import Source

    class Images(Source):
        """Noise."""

        name, num, shape = 'noise', num_images, (3, resolution, resolution)
        pixels = np.random.RandomState(0).randint(0, 256, [num_images, resolution, resolution, 3], np.uint8)

        def read(self, indices):
            return self.pixels[indices]

    def load(self, entries, weights_dir):
        return weights.Weights('', '', random_weights(entries))

    network = type(name, (feature_nets.EXTRACTORS[name],), {'load': load})
    with unittest.mock.patch.dict(feature_nets.EXTRACTORS, {name: network}):
        ev = Evaluation(fakes=Images(), batch=batch)
        extractor = ev.extractor(name)
    images = tf.constant(Images.pixels[:batch])
    seconds = measure({'metric': lambda: ev.features(ev.fakes(num_images), name, keep=False).all()[-1],
                       'plain': lambda: extractor(images)}, repeats)
    return {'metric': [value / num_images for value in seconds['metric']],
            'plain': [value / len(images) for value in seconds['plain']]}


def make_features(path: str, num: int, size: int, seed: int) -> np.memmap:
    """Random features that lie near a surface of 64 dimensions, float32 [num, size] in a file."""
    rnd = np.random.RandomState(0)
    basis = rnd.randn(64, size).astype(np.float32)
    rnd = np.random.RandomState(seed)
    features = np.memmap(path, np.float32, 'w+', shape=(num, size))
    for begin in range(0, num, 1000):
        rows = features[begin:begin + 1000]
        rows[:] = np.maximum(rnd.randn(len(rows), 64).astype(np.float32) @ basis + 1, 0)
    features.flush()
    return features


def plain_precision_recall(reals: np.ndarray, fakes: np.ndarray, k: int = 3) -> tuple[float, float]:
    """(precision, recall) as one writes them down first: whole matrices of distances, sorted."""
    def distances(a, b):
        return np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T

    def radii(a):
        return np.sort(distances(a, a), axis=1)[:, k]
    precision = np.any(distances(fakes, reals) <= radii(reals), axis=1).mean()
    return float(precision), float(np.any(distances(reals, fakes) <= radii(fakes), axis=1).mean())


def _process(kind: str, paths: list[str], shapes: list[tuple[int, int]], queue: Any) -> None:
    """Computes precision and recall and sends seconds, peak of memory, before, result."""
    load_tensorflow()
    from metrics.precision_recall import precision_recall
    arrays = [np.memmap(path, np.float32, 'r', shape=shape)
              for path, shape in zip(paths, shapes, strict=True)]
    if kind == 'plain':
        arrays = [np.array(array) for array in arrays]
    before, start = peak_memory(), time.perf_counter()
    result = (plain_precision_recall if kind == 'plain' else precision_recall)(*arrays)
    queue.put((time.perf_counter() - start, peak_memory(), before, result))


def time_precision_recall(num_reals: int, num_fakes: int, size: int) -> dict[str, dict[str, Any]]:
    """Seconds, memory and results of both forms, {'blocks': …, 'plain': …}; the plain one of few samples."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ('reals', 'fakes')]
        shapes = [(num_reals, size), (num_fakes, size)]
        for seed, (path, (num, _)) in enumerate(zip(paths, shapes, strict=True), 1):
            make_features(path, num, size, seed)
        context = multiprocessing.get_context('spawn')
        for kind in ('blocks', 'plain') if max(num_reals, num_fakes) <= MOST_PLAIN else ('blocks',):
            queue = context.Queue()
            process = context.Process(target=_process, args=(kind, paths, shapes, queue))
            process.start()
            seconds, peak, before, result = queue.get()
            process.join()
            results[kind] = dict(seconds=seconds, peak_gib=peak, before_gib=before, precision=result[0],
                                 recall=result[1])
    return results


def run(args: Any) -> None:
    """Measures, prints, writes."""
    if args.reals and args.fakes and min(args.reals, args.fakes) < 4:
        raise UserError('--reals, --fakes: expected at least 4 samples')
    result: dict[str, Any] = dict(vars(args))
    pairs = args.reals and args.fakes
    if pairs:       # First, as these processes need the memory.
        result['precision_recall'] = time_precision_recall(args.reals, args.fakes, args.features)
    load_tensorflow()
    result |= machine()
    result['networks'] = {name: time_network(name, args.resolution, args.images, args.batch, args.repeats)
                          for name in args.extractors}
    print_heading('Images of {resolution}x{resolution}, batch {batch}, median of {repeats}', result)
    if args.extractors:
        rows = [['', 'metric img/s', 'plain img/s', '']]
        for name, seconds in result['networks'].items():
            metric, plain = (statistics.median(seconds[key]) for key in ('metric', 'plain'))
            rows.append([name, f'{1 / metric:.2f}', f'{1 / plain:.2f}',
                         f'{plain / metric:.0%} of the plain pass'])
        print_table(rows)
    if pairs:
        print(f'\nPrecision and recall of {args.reals} and {args.fakes} samples, {args.features} features\n')
        rows = [['', 'seconds', 'GiB at most', 'precision', 'recall', '']]
        for name, facts in result['precision_recall'].items():
            rows.append([name, f'{facts["seconds"]:.1f}', f'{facts["peak_gib"]:.2f}',
                         f'{facts["precision"]:.4f}', f'{facts["recall"]:.4f}',
                         f'{facts["before_gib"]:.2f} GiB before'])
        print_table(rows)
    if args.json:
        write_json(result, args.json)


def main() -> None:
    """Entry point."""
    flags.run(run, make_parser)


if __name__ == '__main__':
    main()
