"""What dataset_tool.py does with finished data sets: show, describe, compare, check and unpack them."""

import concurrent.futures
import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dnnlib import startup
from dnnlib.util import UserError, atomic_write
from training import misc
from training.datasets.conversion import Options, convert
from training.datasets.labels import LABEL_CHUNK
from training.datasets.record_file import RecordFile
from training.datasets.validation import check_folder, check_records, record_files, stored_picture
from training.datasets.worker_pool import Progress, default_workers
from training.datasets.writer import encode_picture

_BATCH_BYTES = 32 << 20     # Pixels in memory at a time.
_BAR_WIDTH = 50
_MAX_SHEET_PIXELS = 1 << 28


def open_dataset(path: str) -> Any:
    """Opens any data set that training can use, with its labels if it has some."""
    startup.load_tensorflow()
    from training.dataset import load_dataset
    return load_dataset(dataset=path, max_label_size='auto')


def _batches(dataset: Any) -> Iterator[np.ndarray]:
    """All indices, in pieces that fit into memory."""
    size = int(np.clip(_BATCH_BYTES // np.prod(dataset.shape), 1, 1024))
    for begin in range(0, len(dataset), size):
        yield np.arange(begin, min(begin + size, len(dataset)))


def class_labels(dataset: Any) -> list | None:
    """Labels of all images as a label file has them: classes where they are one-hot, else lists."""
    if not dataset.label_size:
        return None
    return (dataset.labels if dataset.class_indices is None else dataset.class_indices).tolist()


# display

def display(
    tfrecord_dir: str,              # Data set.
    output: str | None = None,      # PNG file; None: beside the data set.
    grid: str = '1080p',            # See misc.snapshot_grid_size.
    layout: str = 'first',          # 'first', 'random' or by class, see misc.setup_snapshot_image_grid.
    seed: int = 0,                  # Of the choice.
    window: bool = True,            # Whether to open a window where there is a display.
) -> None:
    """Writes a sheet of images and shows it."""
    dataset = open_dataset(tfrecord_dir)
    try:
        size = misc.snapshot_grid_size(dataset.shape, grid)
        if size[0] * size[1] * dataset.shape[1] * dataset.shape[2] > _MAX_SHEET_PIXELS:
            raise UserError(f'--grid={grid} makes a sheet of more than {_MAX_SHEET_PIXELS} pixels; choose a '
                            'smaller one.')
        if layout == 'first':
            count = min(size[0] * size[1], len(dataset))
            images = dataset.read(np.arange(count))[0].transpose(0, 3, 1, 2)
            size = size[0], -(-count // size[0])
        else:
            size, images, _ = misc.setup_snapshot_image_grid(dataset, f'{size[0]}x{size[1]}', layout, seed)
    finally:
        dataset.close()
    output = output or re.sub(r'\.(npz|zip)$', '', os.path.abspath(tfrecord_dir)) + '-display.png'
    misc.save_image_grid(images, output, drange=[0, 255], grid_size=size)
    print(f'{len(images)} of {len(dataset)} images: {output}')
    if window:
        _show(output)


def _show(path: str) -> None:
    """Opens a window where that is possible."""
    if sys.platform not in ('darwin', 'win32') and not (
            os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
        return
    try:
        import tkinter

        import PIL.Image
        import PIL.ImageTk
        root = tkinter.Tk()
        root.title(path)
        with PIL.Image.open(path) as image:
            image.thumbnail((root.winfo_screenwidth() * 9 // 10, root.winfo_screenheight() * 9 // 10))
            picture = PIL.ImageTk.PhotoImage(image)
        tkinter.Label(root, image=picture).pack()
        root.bind('<Key>', lambda _: root.destroy())
        root.mainloop()
    except Exception as error:      # The sheet is written; whatever a window lacks is no failure.
        print(f'No window: {error}')


# info

def info(tfrecord_dir: str, histogram: bool = False) -> None:
    """Prints what a data set is: size, shape, format, where it comes from, classes."""
    dataset = open_dataset(tfrecord_dir)
    try:
        record = load_info(tfrecord_dir)
        rows = {
            'name': dataset.name,
            'images': len(dataset),
            'shape [C, H, W]': list(dataset.shape),
            'label size': dataset.label_size,
        }
        if os.path.exists(tfrecord_dir):
            rows['on disk'] = _bytes_text(_disk_size(tfrecord_dir))
        for key in ('format', 'quality', 'levels', 'shards', 'shuffle_seed', 'transform', 'resize_filter',
                    'min_side', 'too_small', 'source', 'fingerprint'):
            if record.get(key) is not None:
                rows[key.replace('_', ' ')] = record[key]
        if record.get('skipped'):
            rows['left out'] = len(record['skipped'])
        width = max(map(len, rows))
        for key, value in rows.items():
            print(f'{key + ":":{width + 1}} {value}')
        if record and record.get('num_images') != len(dataset):
            print(f'Warning: dataset.json counts {record.get("num_images")} images; see the command validate',
                  file=sys.stderr)
        print_classes(dataset.class_counts(), histogram)
        for name, reason in record.get('skipped') or []:
            print(f'left out {name}: {reason}')
    finally:
        dataset.close()


def print_classes(counts: dict[str, int], histogram: bool = False) -> None:
    """Prints the number of images of each class, as text bars with `histogram`."""
    if not counts:
        return
    print(f'classes: {len(counts)}')
    names, digits = max(map(len, counts)), len(str(max(counts.values())))
    most = max(*counts.values(), 1)
    for name, count in counts.items():
        bar = '█' * round(_BAR_WIDTH * count / most) or ('▏' if count else '')
        print(f'  {name:{names}} {count:{digits}}' + (f' {bar}' if histogram else ''))
    empty = [name for name, count in counts.items() if not count]
    if empty:
        print(f'Warning: no image has the label {", ".join(empty[:5])}' + ', …' * (len(empty) > 5),
              file=sys.stderr)


def load_info(path: str) -> dict:
    """dataset.json of a folder of records; {} where there is none, or it is one with labels of images."""
    try:
        with open(os.path.join(path, 'dataset.json'), encoding='utf-8') as file:
            record = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise UserError(f'{path}/dataset.json is damaged: {error}') from error
    return record if isinstance(record, dict) and 'num_images' in record else {}


def _disk_size(path: str) -> int:
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(folder, name))
               for folder, _, names in os.walk(path) for name in names)


def _bytes_text(count: float) -> str:
    for unit in ['bytes', 'kB', 'MB', 'GB']:
        if count < 1000:
            return f'{count:.4g} {unit}'
        count /= 1000
    return f'{count:.4g} TB'


# validate

def validate(tfrecord_dir: str) -> int:
    """Reads all of a data set and says what is wrong with it, one line each.

    Returns: exit status, 0 where all is right, else 1.
    """
    record = {}
    if is_records(tfrecord_dir):
        problems = []
        try:
            record = load_info(tfrecord_dir)
        except UserError as error:
            problems.append(str(error))
        count, found, remarks = check_records(tfrecord_dir, record)
        problems += found
    elif os.path.isdir(tfrecord_dir) or tfrecord_dir.lower().endswith('.zip'):
        count, problems, remarks = check_folder(tfrecord_dir)
    else:
        dataset = open_dataset(tfrecord_dir)    # An .npz file is read whole.
        count, problems, remarks = len(dataset), [], []
        dataset.close()
    for problem in problems:
        print(problem)
    for remark in remarks:
        print(f'Remark: {remark}')
    if problems:
        print(f'{tfrecord_dir}: {len(problems)} problem{"s" * (len(problems) > 1)}')
        return 1
    print(f'{tfrecord_dir}: {count} images, all right' + ('' if record or not is_records(tfrecord_dir) else
          ' (counts and fingerprint were not compared, for lack of a dataset.json)'))
    return 0


# compare

def compare(tfrecord_dir_a: str, tfrecord_dir_b: str, ignore_labels: bool = False) -> int:
    """Compares images and labels one by one, in order.

    Returns: exit status, 0 where all are equal, else 1.
    """
    a, b = open_dataset(tfrecord_dir_a), open_dataset(tfrecord_dir_b)
    with contextlib.closing(a), contextlib.closing(b):
        if a.shape != b.shape:
            print(f'Different shapes: {list(a.shape)} and {list(b.shape)}')
            return 1
        count = min(len(a), len(b))
        labels = not ignore_labels
        if labels and a.label_size != b.label_size:
            print(f'Different labels: {a.label_size} and {b.label_size} components')
        same_images = np.zeros(count, bool)
        with Progress(count, what='Comparing') as progress:
            for indices in _batches(a):
                indices = indices[indices < count]
                same_images[indices] = (a.read(indices)[0] == b.read(indices)[0]).all(axis=(1, 2, 3))
                progress.add(len(indices))
        print(f'Identical images: {same_images.sum()} / {max(len(a), len(b))}')
        same = same_images.all() and len(a) == len(b)
        if len(a) != len(b):
            print(f'Different numbers of images: {len(a)} and {len(b)}')
        if not same_images.all():
            print(f'First different image: {int(np.argmin(same_images))}')
        if labels:
            same_labels = np.zeros(count, bool)
            if a.label_size == b.label_size:
                for begin in range(0, count, LABEL_CHUNK):
                    rows = np.arange(begin, min(begin + LABEL_CHUNK, count))
                    same_labels[rows] = (a.label_rows(rows) == b.label_rows(rows)).all(axis=1)
            print(f'Identical labels: {same_labels.sum()} / {max(len(a), len(b))}')
            same = same and same_labels.all()
        return 0 if same else 1


# extract, unpack

def extract(tfrecord_dir: str, output_dir: str) -> None:
    """Writes all images of a data set as img00000000.png and so on, labels in dataset.json."""
    _export(tfrecord_dir, output_dir, keep_encoding=False)


def unpack(tfrecord_dir: str, output: str) -> None:
    """Writes all images to a folder or a zip; encoded ones come out as they are stored, bit for bit."""
    _export(tfrecord_dir, output, keep_encoding=True)


def _export(path: str, output: str, keep_encoding: bool) -> None:
    output = os.path.abspath(os.path.expanduser(output))
    if os.path.lexists(output) and not (os.path.isdir(output) and not os.listdir(output)):
        raise UserError(f'{output} exists' + (' and is not empty' if os.path.isdir(output) else '')
                        + '; give a new one.')
    dataset = open_dataset(path)
    with contextlib.closing(dataset), _new_folder_or_zip(output) as write:
        pictures = _stored_pictures(path) if keep_encoding else None
        names = []
        labels = class_labels(dataset)
        with Progress(len(dataset), what='Writing') as progress, \
                concurrent.futures.ThreadPoolExecutor(default_workers()) as threads:
            for indices in _batches(dataset):
                if pictures is not None:
                    files = [stored_picture(pictures, int(index))[:2] for index in indices]
                else:
                    images = dataset.read(indices)[0]
                    files = [(data, 'png') for data in threads.map(_png, images)]
                for index, (data, encoding) in zip(indices, files, strict=True):
                    names.append(f'img{index:08}.' + {'png': 'png', 'jpeg': 'jpg'}[encoding])
                    write(names[-1], data)
                progress.add(len(indices))
        content = {'labels': labels and [list(pair) for pair in zip(names, labels, strict=True)]}
        names = getattr(dataset, 'label_names', None)
        if labels is not None and names != [str(i) for i in range(dataset.label_size)]:
            content['label_names'] = names
        write('dataset.json', json.dumps(content).encode())
    print(f'{len(dataset)} images: {output}')


def _png(image: np.ndarray) -> bytes:
    return encode_picture(image, 'png')


@contextlib.contextmanager
def _new_folder_or_zip(output: str) -> Iterator[Callable[[str, bytes], None]]:
    """A function (name, data) that adds a file; all of them appear at the end, or none."""
    parent, name = os.path.split(output)
    os.makedirs(parent, exist_ok=True)
    if output.lower().endswith('.zip'):
        with atomic_write(output, 'wb') as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
            # One time for all files: the same data set gives the same bytes.
            yield lambda name, data: archive.writestr(zipfile.ZipInfo(name), data)
        return
    folder = tempfile.mkdtemp(prefix=f'.{name[:60]}.partial-', dir=parent)

    def write(name: str, data: bytes) -> None:
        path = os.path.join(folder, name)
        try:
            with open(path, 'wb') as file:
                file.write(data)
        except OSError as error:
            error.filename = path
            raise
    try:
        yield write
        os.chmod(folder, 0o777 & ~_umask())     # mkdtemp makes it private.
        os.rename(folder, output)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _stored_pictures(path: str) -> list[RecordFile] | None:
    """The files of the largest level where that is encoded; None where pixels are stored raw."""
    if not is_records(path):
        return None
    groups, _ = record_files(path)
    opened = {}
    for paths in groups.values():
        files = [RecordFile(file) for file in paths]
        example = stored_picture(files, 0)
        opened[example[2]] = example[1], files
    encoding, files = opened[max(opened)]
    return files if encoding else None


# pack

class DatasetSource:
    """Any data set that training can use, as the source of another one."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._opened = None
        dataset = self._dataset()
        self.name = dataset.name
        self.shuffled = False
        self.description = f'data set {path}'
        self.labels = None
        if dataset.label_size:
            self.labels = dataset.labels if dataset.class_indices is None else dataset.class_indices
        self.label_names = dataset.label_names if dataset.label_size else None
        self._count = len(dataset)

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_opened': None}

    def _dataset(self) -> Any:
        if self._opened is None:
            self._opened = open_dataset(self._path)
        return self._opened

    def __len__(self) -> int:
        return self._count

    def read(self, i: int) -> np.ndarray:
        """uint8 [H, W, C]."""
        return self._dataset().read([i])[0][0]

    def item_name(self, i: int) -> str:
        """For messages."""
        return f'{self._path}[{i}]'

    def signature(self) -> str:
        """Changes with the content, as far as 16 images tell."""
        return self._dataset().fingerprint

    def close(self) -> None:
        """Releases open files."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None


def is_records(path: str) -> bool:
    """Whether a path is a folder of TFRecords."""
    return os.path.isdir(path) and any(name.endswith('.tfrecords') and not name.startswith('.')
                                       for name in os.listdir(path))


def convert_and_report(source: Any, tfrecord_dir: str, options: Options,
                       recipe: dict | None = None) -> None:
    """`convert`, and the number of images of each class."""
    try:
        record = convert(source, tfrecord_dir, options, recipe)
    finally:
        close = getattr(source, 'close', None)
        if close is not None:
            close()
    print_classes(record['class_counts'] or {})
