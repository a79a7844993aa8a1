"""Folders and zip files of images, with labels from subfolders, JSON or CSV."""

import concurrent.futures
import csv
import io
import json
import os
import re
import sys
import zipfile
import zlib
from collections import Counter

import numpy as np
import tqdm

from dnnlib.util import UserError, gfile, is_remote_path
from training.datasets import image_files
from training.datasets.archive_base import Source
from training.datasets.base import resize_flags
from training.datasets.image_files import (
    IMAGE_EXTENSIONS,
    OTHER_IMAGES,
    ImageHeader,
    ImageOptions,
    LeftOutError,
    load_image,
    read_header,
)

_MAX_FILE = 1 << 30         # Bytes of one image or label file in a zip.
_HEADER_BYTES = (1 << 12, 1 << 16)  # Of a file in a zip, tried in turn: mostly enough for size and mode.
_SCAN_NAMES = 256           # Files whose headers one thread reads at a time.
_SCAN_THREADS = 16          # They mostly wait for the disk.
_MAX_LINKS = 5              # Links that lead in a circle, told one by one.
_CHECKED_ALPHA = 64         # Images with an alpha channel that are decoded at the start, to fail early.
_ZIP_ERRORS = (OSError, EOFError, ValueError, KeyError, NotImplementedError, RuntimeError, zlib.error,
               zipfile.BadZipFile)


class ImageStore(Source):
    """The image files of a folder (in any depth of subfolders) or zip, ordered by name, but hidden ones.

    `read` gives the pixels as they are in the file.

    Args:
        path: The folder or zip. What a zip holds in one folder counts as if the zip were that folder.

    Attributes:
        names: Relative paths with forward slashes, sorted.
        root: What comes before them in a zip.

    Errors: UserError: nothing there, no images, or one name twice in a zip.
    """

    def __init__(self, path: str) -> None:
        self.path = os.fspath(path)
        self.root = ''
        base = os.path.basename(os.path.normpath(self.path))
        remote = is_remote_path(self.path)
        if gfile().isdir(self.path) if remote else os.path.isdir(self.path):
            self.is_zip = False
            found = self._walk()
        elif not remote and os.path.isfile(self.path):
            self.is_zip = True
            base = base.removesuffix('.zip')
        elif not remote and os.path.exists(self.path):
            raise UserError(f'{self.path} is neither a folder nor a file.')
        else:
            raise UserError(f'there is no folder or zip of images at {self.path}; check the path.')
        super().__init__(base, (0, 0, 0), self.path)
        if self.is_zip:
            found = self._zip_names()
        self._others = {name for name in found if not name.lower().endswith(IMAGE_EXTENSIONS)}
        self.names = sorted(found - self._others)
        if not self.names:
            raise UserError(f'{self.path} holds no images ({", ".join(IMAGE_EXTENSIONS)}), neither in itself '
                            'nor in its subfolders.')
        other = sorted(name for name in self._others if name.lower().endswith(OTHER_IMAGES))
        if other:
            print(f'Warning: {self.path}: {len(other)} image{"s are" if len(other) > 1 else " is"} left out, '
                  f'of kinds that are not read (the first is {self.location(other[0])}); convert them to PNG',
                  file=sys.stderr)

    def __len__(self) -> int:
        return len(self.names)

    def _walk(self) -> set[str]:
        found, visited, circles = set(), set(), []
        remote = is_remote_path(self.path)
        walk = gfile().walk(self.path) if remote else os.walk(self.path, followlinks=True, onerror=_raise)
        for folder, subfolders, names in walk:
            if not remote:
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in visited:   # A link to a folder that was seen already.
                    subfolders.clear()
                    circles.append(folder)
                    continue
                visited.add((status.st_dev, status.st_ino))
            subfolders[:] = sorted(name for name in subfolders if not name.startswith('.'))
            relative = os.path.relpath(folder, self.path).replace(os.sep, '/')
            prefix = '' if relative == '.' else relative + '/'
            if not any(part.startswith('.') for part in prefix.split('/')):
                found.update(prefix + name for name in names if not name.startswith('.'))
        for folder in circles[:_MAX_LINKS]:
            print(f'Warning: {folder} is left out: a link to a folder that is searched already.',
                  file=sys.stderr)
        if len(circles) > _MAX_LINKS:
            print(f'Warning: {len(circles) - _MAX_LINKS} more such links are left out.', file=sys.stderr)
        return found

    def _zip_names(self) -> set[str]:
        counts = Counter()
        for info in self._opened().infolist():
            parts = info.filename.split('/')
            if not info.is_dir() and not any(part.startswith('.') or part == '__MACOSX' for part in parts):
                counts[info.filename] += 1
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise UserError(f'{self.path} holds {twice[0]} {counts[twice[0]]} times ({len(twice)} such '
                            'names); pack it again with each name once.')
        folders = os.path.commonprefix([name.split('/')[:-1] for name in counts])
        self.root = ''.join(folder + '/' for folder in folders)
        return {name[len(self.root):] for name in counts}

    def _open(self) -> zipfile.ZipFile | None:
        if not self.is_zip:
            return None
        try:
            return zipfile.ZipFile(self.path)
        except _ZIP_ERRORS as error:
            raise UserError(f'{self.path} is not a zip archive, or it is cut off ({_one_line(error)}); '
                            'expected a folder or zip of images.') from error

    def location(self, name: str) -> str:
        """What messages call a file."""
        if self.is_zip:
            return f'{self.path}: {self.root}{name}'
        return os.path.join(self.path, *name.split('/'))

    def item_name(self, index: int) -> str:
        return self.location(self.names[self._check_index(index)])

    def source(self, name: str) -> str | bytes:
        """Path or bytes of an image, for `image_files.open_image` and `load_image`."""
        return self.read_bytes(name) if self.is_zip else self.location(name)

    def has(self, name: str) -> bool:
        """Whether there is such a file, image or not."""
        return name in self._others or name in self.names

    def read_bytes(self, name: str, limit: int | None = None) -> bytes:
        """The content of a file, or its first `limit` bytes. Errors: UserError, naming the file."""
        location = self.location(name)
        try:
            if not self.is_zip:
                remote = is_remote_path(location)
                with gfile().GFile(location, 'rb') if remote else open(location, 'rb') as file:
                    return file.read() if limit is None else file.read(limit)
            archive = self._opened()
            size = archive.getinfo(self.root + name).file_size
            if size > _MAX_FILE:
                raise UserError(f'{location} unpacks to {size} bytes; expected at most {_MAX_FILE}.')
            with archive.open(self.root + name) as file:
                return file.read(size if limit is None else min(size, limit))
        except UserError:
            raise
        except _ZIP_ERRORS as error:
            raise UserError(f'{location} cannot be read: {_one_line(error)}') from error

    def read(self, index: int) -> np.ndarray:
        name = self.names[self._check_index(index)]
        return load_image(self.source(name), self.location(name))


def _raise(error: OSError) -> None:
    raise UserError(f'{error.filename} cannot be read: {error.strerror}; check its permissions.') from error


def _one_line(error: Exception) -> str:
    return (' '.join(str(error).split()) or type(error).__name__)[:200]


Labels = tuple[np.ndarray | None, list[str] | None]


def read_labels(store: ImageStore, labels: str | None = 'auto') -> Labels:
    """Labels of all images of a store.

    Args:
        labels: 'none' or None; 'folders': one class per subfolder of the first level, by name; a path of a
            .json or .csv file; 'auto': dataset.json or labels.csv in the store, else the subfolders if there
            are two or more and no image outside, else none.

    JSON is {"labels": [[file, label], ...]}; CSV has lines `file,label`, with or without such a first line.
    A label is an integer from 0, the name of a class, or (in JSON) a list of numbers.

    Returns: int64 [N] or float32 [N, K] and names of the classes (None where they are numbers), or two None.
    Errors: UserError, naming the file and what is wrong with it.
    """
    if labels in (None, 'none'):
        return None, None
    if labels == 'folders':
        return _labels_from_folders(store, required=True)
    if labels == 'auto':
        for name, parse in [('dataset.json', _parse_json), ('labels.csv', _parse_csv)]:
            if store.has(name):
                entries = parse(store.read_bytes(name), store.location(name), required=False)
                if entries is not None:
                    return _match(store, entries, store.location(name))
        return _labels_from_folders(store, required=False)
    parse = {'.json': _parse_json, '.csv': _parse_csv}.get(os.path.splitext(labels)[1].lower())
    if parse is None:
        raise UserError(f'labels must be none, auto, folders, or the path of a .json or .csv file; received '
                        f'{labels!r}')
    try:
        with gfile().GFile(labels, 'rb') if is_remote_path(labels) else open(labels, 'rb') as file:
            content = file.read()
    except FileNotFoundError as error:
        raise UserError(f'there is no file of labels {labels}; check the path.') from error
    except OSError as error:
        raise UserError(f'{labels} cannot be read: {error.strerror}') from error
    return _match(store, parse(content, labels, required=True), labels)


def _labels_from_folders(store: ImageStore, required: bool) -> Labels:
    folders = sorted({name.partition('/')[0] for name in store.names if '/' in name})
    outside = [name for name in store.names if '/' not in name]
    if outside and required:
        raise UserError(f'{store.path}: labels from subfolders need every image in a subfolder; {outside[0]} '
                        f'is not in one ({len(outside)} such images).')
    if outside or len(folders) < 2:
        if required:
            raise UserError(f'{store.path}: labels from subfolders need two or more of them; it has '
                            f'{len(folders)}.')
        return None, None
    index = {name: i for i, name in enumerate(folders)}
    return np.array([index[name.partition('/')[0]] for name in store.names], np.int64), folders


def _parse_json(content: bytes, path: str, required: bool) -> list | None:
    try:
        value = json.loads(content.decode('utf-8-sig'))
        entries = value.get('labels') if isinstance(value, dict) else ()
        if entries is None and not required:
            return None
        return [(str(name), label) for name, label in entries]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f'{path} is not of the form {{"labels": [["image.png", 0], ...]}}: '
                        f'{_one_line(error)}') from error


def _parse_csv(content: bytes, path: str, required: bool) -> list:
    entries = []
    try:
        lines = csv.reader(io.StringIO(content.decode('utf-8-sig'), newline=''))
        for row in lines:
            row = [field.strip() for field in row]
            if not any(row):
                continue
            if len(row) != 2:
                raise UserError(f'{path}, line {lines.line_num}: expected `file,label`, found {len(row)} '
                                'fields.')
            if entries or [field.lower() for field in row] != ['file', 'label']:
                entries.append(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'{path} is not a text file of lines `file,label`: {_one_line(error)}') from error
    if all(re.fullmatch('[0-9]{1,9}', label) for _, label in entries):
        return [(name, int(label)) for name, label in entries]
    return entries


def _match(store: ImageStore, entries: list, path: str) -> Labels:
    """Labels in the order of the images."""
    by_name = {}
    for name, label in entries:
        name = name.replace('\\', '/').removeprefix('./')
        if name in by_name and by_name[name] != label:
            raise UserError(f'{path} has two labels for {name}: {by_name[name]!r} and {label!r}; keep one.')
        by_name[name] = label
    root = store.root
    values, missing = [], []
    for name in store.names:
        found = name if name in by_name else root + name
        if found in by_name:
            values.append(by_name[found])
        else:
            missing.append(name)
    if missing:
        raise UserError(f'{path} has no label for {len(missing)} of {len(store.names)} images, for example '
                        f'{missing[0]}. Add them, or remove the images.')
    return _as_arrays(values, path)


def _as_arrays(values: list, path: str) -> Labels:
    if all(type(value) is int for value in values):
        limit = max(len(values), 10000)     # More classes than images is no classification.
        if min(values) < 0 or max(values) >= limit:
            raise UserError(f'{path} has labels from {min(values)} to {max(values)}; expected integers '
                            f'from 0 to at most {limit - 1}.')
        return np.array(values, np.int64), None
    if all(type(value) is str and value for value in values):
        names = sorted(set(values))
        index = {name: i for i, name in enumerate(names)}
        return np.array([index[value] for value in values], np.int64), names
    try:
        labels = np.array(values, np.float32)
    except (ValueError, TypeError, OverflowError):
        labels = np.zeros([0])
    if labels.ndim != 2 or not labels.shape[1] or not np.isfinite(labels).all():
        raise UserError(f'{path}: expected labels that are all integers, all names of classes, or all lists '
                        'of numbers of one length.')
    return labels, None


class ImageFolderSource(Source):
    """The images of a folder or zip, made to fit by `options`; see `image_folder`."""

    def __init__(self, path: str, options: ImageOptions, labels: str | None, max_images: int | None) -> None:
        image_files.check_options(options)
        if max_images is not None and max_images < 1:
            raise UserError(f'max_images must be 1 or larger; received {max_images}')
        self.store = ImageStore(path)
        values, label_names = read_labels(self.store, labels)
        del self.store.names[max_images or len(self.store.names):]
        values = values if values is None else values[:len(self.store)]
        super().__init__(self.store.name, (0, 0, 0), '', values, label_names)
        self._options = options
        self._scan()
        steps = [f'{len(self.store)} images']
        if options.min_side:
            steps.append(f'shorter side from {options.min_side}')
        if options.transform != 'none':
            steps.append(options.transform)
        if options.width:
            steps.append(f'{self.shape[1]}x{self.shape[0]}, {options.resize_filter}')
        self.description = f'{path}: {", ".join(steps)}'

    def __len__(self) -> int:
        return len(self.store)

    def item_name(self, index: int) -> str:
        return self.store.item_name(index)

    def close(self) -> None:
        self.store.close()

    def _headers(self, names: list[str]) -> list[ImageHeader | UserError]:
        """The headers of some images, with the size that the transform gives; errors in their places."""
        headers = []
        for name in names:
            location = self.store.location(name)
            try:
                header = self._header(name, location)
                least = self._options.min_side
                if least and min(header.size) < least:
                    raise LeftOutError(f'{location} has {header.size[0]}x{header.size[1]} pixels; expected a '
                                       f'shorter side of at least {least}.')
                size = image_files.transformed_size(header.size, location, self._options)
                headers.append(header._replace(size=size))
            except UserError as error:
                headers.append(error)
        return headers

    def _header(self, name: str, location: str) -> ImageHeader:
        if not self.store.is_zip:
            return read_header(location)
        for limit in _HEADER_BYTES:
            data = self.store.read_bytes(name, limit)
            try:
                return read_header(data, location)
            except UserError:
                if len(data) < limit:
                    raise
        return read_header(self.store.read_bytes(name), location)       # The header lies further back.

    def _scan(self) -> None:
        """Finds the shape of all results by the headers, and what does not fit."""
        parts = [self.store.names[begin:begin + _SCAN_NAMES]
                 for begin in range(0, len(self.store), _SCAN_NAMES)]
        headers = []
        with concurrent.futures.ThreadPoolExecutor(_SCAN_THREADS) as pool, \
                tqdm.tqdm(total=len(self.store), desc='Checking images', delay=2, unit=' images') as bar:
            for found in pool.map(self._headers, parts):
                headers += found
                bar.update(len(found))
        headers = self._drop_small(headers)
        good = [i for i, header in enumerate(headers) if not isinstance(header, UserError)]
        self.problems = {i: str(header) for i, header in enumerate(headers) if isinstance(header, UserError)}
        if not good:
            raise UserError(self.problems[0])
        size = headers[good[0]].size
        for i in good:
            if headers[i].size != size:
                first, other = self.item_name(good[0]), headers[i].size
                self.problems[i] = (
                    f'{self.item_name(i)} has {other[0]}x{other[1]} pixels, but {first} has '
                    f'{size[0]}x{size[1]}; expected one size. Give dataset_tool.py '
                    f'create_from_images --transform=center-crop {resize_flags(*size).split()[-1]}.')
        self._find_same_names()
        good = [i for i in good if i not in self.problems]
        channels = self._options.channels or self._channels(headers, good)
        self._options = self._options._replace(channels=channels)
        self.shape = [size[1], size[0], self._options.channels]
        if self._options.background is None and self._options.channels != 4:
            alpha = [i for i in good if headers[i].alpha]
            for i in alpha[::max(len(alpha) // _CHECKED_ALPHA, 1)]:
                try:
                    self.read(i)
                except UserError as error:
                    self.problems[i] = str(error)

    def _drop_small(self, headers: list[ImageHeader | UserError]) -> list[ImageHeader | UserError]:
        """Takes the images that are smaller than options.min_side out of the source."""
        keep = [i for i, header in enumerate(headers) if not isinstance(header, LeftOutError)]
        self.too_small = len(headers) - len(keep)
        if not keep:
            raise UserError(f'{self.store.path}: all {len(headers)} images have a shorter side of less than '
                            f'{self._options.min_side} pixels; give a smaller --min-side.')
        if self.too_small:
            print(f'{self.store.path}: {self.too_small} of {len(headers)} images are left out, whose shorter '
                  f'side is below {self._options.min_side} pixels.', file=sys.stderr)
            self.store.names = [self.store.names[i] for i in keep]
            self.labels = self.labels if self.labels is None else self.labels[keep]
        return [headers[i] for i in keep]

    def _find_same_names(self) -> None:
        """Two names that differ only in case are one file on other systems, and mostly a mistake."""
        lowered = {}
        for i, name in enumerate(self.store.names):
            first = lowered.setdefault(name.lower(), i)
            if first != i:
                self.problems.setdefault(i, f'{self.item_name(i)} and {self.item_name(first)} differ only in '
                                            'case; rename or remove one of them.')

    def _channels(self, headers: list, good: list[int]) -> int:
        """1 if all images are gray, else 3."""
        colour = self._options.background or (0, 0, 0)
        tinted = len(set(colour)) > 1
        gray = [i for i in good if headers[i].gray and not (headers[i].alpha and tinted)]
        if gray and len(gray) < len(good):
            print(f'{self.store.path}: some images are gray ({len(gray)} of {len(good)}, the first is '
                  f'{self.item_name(gray[0])}), others in colour. All become RGB; --channels=1 makes all '
                  'gray.', file=sys.stderr)
        return 1 if len(gray) == len(good) else 3

    def read(self, index: int) -> np.ndarray:
        index = self._check_index(index)
        if index in self.problems:
            raise UserError(self.problems[index])
        name = self.store.names[index]
        location = self.store.location(name)
        pixels = load_image(self.store.source(name), location, self._options)
        if list(pixels.shape) != self.shape:
            raise UserError(f'{location} has changed since the start.')
        return pixels


def image_folder(
    path: str,
    options: ImageOptions | None = None,
    labels: str | None = 'auto',
    max_images: int | None = None,
) -> ImageFolderSource:
    """The images of a folder or zip. With options.channels None: 1 if all images are gray, else 3.

    Opening reads the header of each file. What does not fit is in `problems`, by index; how many were left
    out for options.min_side is in `too_small`.

    Args:
        path: Folder or zip.
        options: What is done with each image.
        labels: See `read_labels`.
        max_images: Use the first images only.

    Errors: UserError if there are no images, if none can be used, or for labels that do not fit them.
    """
    return ImageFolderSource(path, options or ImageOptions(), labels, max_images)
