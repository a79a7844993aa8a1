"""Times reading of training images; see `python -m benchmarks.data --help`.

Every form in which images can lie on the disk is made from the same pictures, read by the pipeline of
training (random order, checks, NHWC, labels) and, in the same run, by a plain tf.data loop that does nothing
but read the file from front to back, decode and batch. The loop decodes JPEG as training does. It checks the
checksums of all records in every pass, as TensorFlow always does; training does so in the first epoch only,
which has a column of its own. Last comes what consumes the images: training steps of a small network.
"""

import io
import os
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import PIL.Image

from benchmarks.common import machine, measure, print_heading, print_table, write_json
from benchmarks.networks import make_networks, phase_functions
from dnnlib import flags
from dnnlib.startup import load_tensorflow
from dnnlib.util import UserError
from training.configs import DEMO

FORMS = ('raw', 'png', 'jpeg', 'folder', 'zip', 'npz')
PLAIN = ('raw', 'png', 'jpeg')      # Forms that a plain tf.data loop reads as well.
SETS_BYTES = 192 << 20              # Raw size of the images of one measurement; all of it stays in memory.
JPEG_QUALITY = 95
STEP_BATCH = 4
STEP_MINIBATCHES = 3


def make_parser() -> flags.Parser:
    """The command line."""
    parser = flags.Parser('Times reading of training images, against a plain tf.data loop.', examples=[
        'python -m benchmarks.data                                  # everything, about five minutes',
        'python -m benchmarks.data --forms=raw,png --resolutions=1024 --json=data.json',
    ], prog='benchmarks.data')
    parser.add_flag('forms', _forms, 'which forms of data sets', default=','.join(FORMS))
    parser.add_flag('resolutions', _sizes, 'which resolutions', default='64,256,1024')
    parser.add_flag('batch', flags.positive_int, 'images of a minibatch', default=16)
    parser.add_flag('repeats', flags.positive_int, 'measurements; the table shows their median', default=5)
    parser.add_flag('seconds', flags.number(0.01), 'duration of one measurement', default=1.0)
    parser.add_flag('step', bool, 'also time training steps of the networks of --config=demo', default=True)
    parser.add_flag('json', help='also write all numbers to this file', metavar='FILE')
    return parser


def _forms(text: str) -> list[str]:
    names = text.split(',')
    if not set(names) <= set(FORMS):
        raise UserError(f'expected some of {",".join(FORMS)}, received {text!r}')
    return names


def _sizes(text: str) -> list[int]:
    return [flags.positive_int(size) for size in text.split(',')]


_forms.metavar = _sizes.metavar = 'LIST'


def make_images(size: int) -> np.ndarray:
    """uint8 [N, size, size, 3] that compress like photographs: noise at every scale, mostly at large ones."""
    rnd = np.random.RandomState(1)
    images = []
    for _ in range(8):
        picture = np.full([size, size, 3], 128.0)
        for level in range(1, size.bit_length()):
            noise = rnd.randn(2 ** level, 2 ** level, 3).astype(np.float32)
            planes = [PIL.Image.fromarray(plane).resize([size, size], PIL.Image.Resampling.BICUBIC)
                      for plane in noise.transpose(2, 0, 1)]
            picture += np.stack(planes, axis=2) * max(160 / 2 ** level, 1.5)
        images.append(picture.clip(0, 255).astype(np.uint8))
    count = max(SETS_BYTES // (3 * size * size), 16)
    return np.stack([images[i % 8] for i in range(count)])


def encode(image: np.ndarray, form: str) -> bytes:
    """A PNG or JPEG file, or the bytes CHW."""
    if form == 'raw':
        return image.transpose(2, 0, 1).tobytes()
    file = io.BytesIO()
    options = {'quality': JPEG_QUALITY} if form == 'jpeg' else {}
    PIL.Image.fromarray(image).save(file, form.upper(), **options)
    return file.getvalue()


def write_set(folder: str, form: str, images: np.ndarray) -> str:
    """Writes images in the given form; returns the path of the data set."""
    import tensorflow as tf
    folder = os.path.join(folder, form)
    os.makedirs(folder)
    if form == 'npz':
        np.savez(os.path.join(folder, 'set.npz'), images=images)
        return os.path.join(folder, 'set.npz')
    encoding = {'folder': 'png', 'zip': 'png'}.get(form, form)
    encoded = [encode(image, encoding) for image in images[:8]]
    files = [encoded[i % 8] for i in range(len(images))]
    if form == 'folder':
        for i, data in enumerate(files):
            with open(os.path.join(folder, f'{i:06d}.png'), 'wb') as file:
                file.write(data)
        return folder
    if form == 'zip':
        path = os.path.join(folder, 'set.zip')
        with zipfile.ZipFile(path, 'w') as archive:
            for i, data in enumerate(files):
                archive.writestr(f'{i:06d}.png', data)
        return path
    path = os.path.join(folder, f'set-r{images.shape[1].bit_length() - 1:02d}.tfrecords')
    shape = tf.train.Feature(int64_list=tf.train.Int64List(value=np.roll(images.shape[1:], 1)))
    offsets = [0]
    with tf.io.TFRecordWriter(path) as writer:
        for data in files:
            feature = {'shape': shape, 'data': _bytes_feature(data)}
            if form != 'raw':
                feature['encoding'] = _bytes_feature(form.encode())
            example = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
            writer.write(example)
            offsets.append(offsets[-1] + len(example) + 16)
    if form != 'raw':
        with open(f'{path}.index', 'wb') as file:
            np.save(file, np.array(offsets, np.uint64))
    return folder


def _bytes_feature(data: bytes) -> Any:
    import tensorflow as tf
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))


def plain_loop(path: str, form: str, size: int, batch: int) -> Any:
    """The tf.data loop that only reads, decodes and batches, and gives the arrays to Python."""
    import tensorflow as tf

    def parse(record):
        example = tf.io.parse_single_example(record, {
            'shape': tf.io.FixedLenFeature([3], tf.int64), 'data': tf.io.FixedLenFeature([], tf.string)})
        if form == 'raw':
            return tf.reshape(tf.io.decode_raw(example['data'], tf.uint8), [3, size, size])
        if form == 'png':
            return tf.io.decode_png(example['data'], channels=3)
        return tf.io.decode_jpeg(example['data'], channels=3, dct_method='INTEGER_ACCURATE')    # As training.
    names = [os.path.join(path, name) for name in os.listdir(path) if name.endswith('.tfrecords')]
    records = tf.data.TFRecordDataset(names).repeat()
    return (records.map(parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
            .batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE))


def read_for(batches: Iterator, batch: int, seconds: float) -> float:
    """Images per second of an iterator of minibatches."""
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        count += batch
    return count / (time.perf_counter() - start)


def first_epoch(loader: Any, batch: int) -> float:
    """Images per second while checksums are verified, which happens once."""
    batches = loader.prefetch_minibatches(0, batch)
    next(batches)
    count = max(len(loader) // batch - 1, 1)
    begin = time.perf_counter()
    for _ in range(count):
        next(batches)
    speed = count * batch / (time.perf_counter() - begin)
    batches.close()
    return speed


def run_case(form: str, size: int, images: np.ndarray, args: Any) -> dict[str, Any]:
    """Measures one form at one size: images/s of every measurement."""
    from training.dataset import load_dataset
    with tempfile.TemporaryDirectory() as folder:
        path = write_set(folder, form, images)
        begin = time.perf_counter()
        loader = load_dataset(path)
        opened = time.perf_counter() - begin
        makers: dict[str, Callable[[], Iterator]] = {}
        makers['training'] = lambda: loader.prefetch_minibatches(0, args.batch, mirror_augment=False)
        makers['mirrored'] = lambda: loader.prefetch_minibatches(0, args.batch, mirror_augment=True)
        if form in PLAIN:
            loop = plain_loop(path, form, size, args.batch)
            makers['plain'] = loop.as_numpy_iterator
        speeds = {'first epoch': [first_epoch(loader, args.batch)]}
        for _ in range(args.repeats):
            for name, make in makers.items():
                batches = make()
                next(batches)
                speeds.setdefault(name, []).append(read_for(batches, args.batch, args.seconds))
                if hasattr(batches, 'close'):
                    batches.close()
                del batches
        loader.close()
    return dict(form=form, resolution=size, images=len(images), opened_seconds=opened,
                images_per_second=speeds)


def step_speeds(size: int, repeats: int) -> list[float]:
    """Images per second that training consumes: steps of G and D without regularization, the least there is
    to do, of the smallest networks that a config of this project has."""
    networks = make_networks(size, **{name: DEMO['G_args'][name] for name in ('fmap_base', 'fmap_max')})
    phases = phase_functions(networks, ['G', 'D'], STEP_BATCH)
    seconds = measure({'step': lambda: [function() for function in phases.values()]}, repeats)['step']
    return [STEP_BATCH / value for value in seconds]


def rows_of(cases: list[dict[str, Any]], steps: dict[int, list[float]]) -> list[list[str]]:
    """The table: images per second, how many times the plain loop that is, how many times a step needs."""
    rows = [['', 'training', 'mirrored', 'first epoch', 'plain tf.data', 'of plain', 'of a step', '']]
    for case in cases:
        median = {name: statistics.median(values) for name, values in case['images_per_second'].items()}
        plain = median.get('plain')
        cells = [f'{median[name]:.0f}' for name in ('training', 'mirrored', 'first epoch')]
        cells += [f'{plain:.0f}', f'{median["training"] / plain:.2f}'] if plain else ['', '']
        step = steps.get(case['resolution'])
        cells.append(f'{median["training"] / statistics.median(step):.0f}' if step else '')
        rows.append([f'{case["form"]} {case["resolution"]}x{case["resolution"]}', *cells, ''])
    for size, values in steps.items():
        rows.append([f'G + D of demo, {size}x{size}', f'{statistics.median(values):.1f}', *[''] * 6])
    return rows


def run(args: Any) -> None:
    """Measures and prints one table."""
    load_tensorflow()
    cases = []
    for size in args.resolutions:
        images = make_images(size)
        cases += [run_case(form, size, images, args) for form in args.forms]
    steps = {size: step_speeds(size, STEP_MINIBATCHES) for size in args.resolutions} if args.step else {}
    result = dict(cases=cases, steps=steps, batch=args.batch, repeats=args.repeats, seconds=args.seconds,
                  **machine())
    print_heading('images/s, minibatches of {batch}, median of {repeats} times {seconds:g} s', result)
    print_table(rows_of(cases, steps))
    if args.json:
        write_json(result, args.json)


def main() -> None:
    """Entry point."""
    flags.run(run, make_parser)


if __name__ == '__main__':
    main()
