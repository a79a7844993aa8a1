"""Attributes of the images of a data set, such as glasses or hair colour, and the yes-or-no questions that
classifiers learn from them.

They come from a table of the user's (a .csv file with one column per attribute, or CelebA's
list_attr_celeba.txt), from the arrays `attr/<name>` of an .npz file, or from the labels of the data set: one
attribute per component.
"""

import csv
import fnmatch
import io
import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dnnlib.util import UserError, did_you_mean
from training.datasets.base import Dataset, check_resolution
from training.datasets.image_files import IMAGE_EXTENSIONS
from training.datasets.image_folder import ImageStore
from training.datasets.npz import read_bytes

ANY = 'any'     # Stands for all values but '' (none).

_MAX_NAME = 100     # Letters in the name of a question: it becomes a part of names of files.

# Pairs of values that say no and yes.
_NO_YES = ({'0', '1'}, {'-1', '1'}, {'false', 'true'}, {'no', 'yes'}, {'n', 'y'}, {'f', 't'}, {'off', 'on'},
           {'absent', 'present'})
_YES = {'1', 'true', 'yes', 'y', 't', 'on', 'present'}


class Attribute(NamedTuple):
    """One property of every image."""

    name: str
    values: list[str]       # What it can be; '' = an image has none.
    codes: np.ndarray       # int [N], indices into `values`.

    @property
    def counts(self) -> dict[str, int]:
        """Value → number of images, of the values that occur."""
        counts = np.bincount(self.codes, minlength=len(self.values))
        return {value: int(count) for value, count in zip(self.values, counts, strict=True) if count}


class Question(NamedTuple):
    """What one classifier tells: whether an attribute has one of some values."""

    name: str                   # For files: letters, digits, '.', '_', '+' and hyphens.
    attribute: str
    positive: tuple[str, ...]   # Values that mean yes.
    targets: np.ndarray         # bool [N].


# Where attributes come from.

def find_attributes(dataset: Dataset, path: str, table: str | None = None) -> dict[str, Attribute]:
    """The attributes of a data set by their names.

    Args:
        dataset: The data set, opened with all its labels if it has any.
        path: Where it lies.
        table: A .csv or .txt file of attributes; see `read_table`.

    Errors: UserError for a table or labels that cannot be used.
    """
    if table is not None:
        return read_table(table, dataset, path)
    found = _npz_attributes(path, len(dataset)) if path.lower().endswith('.npz') else {}
    for name, column in zip(dataset.label_names, np.asarray(dataset.labels).T, strict=True):
        values, codes = np.unique(column, return_inverse=True)
        if len(values) <= 2:    # Otherwise it says how much, not whether.
            values, codes = [0, 1], (column > 0).astype(np.int64)
        found.setdefault(name, Attribute(name, [f'{value:g}' for value in values], codes))
    return found


def _npz_attributes(path: str, num_images: int) -> dict[str, Attribute]:
    found = {}
    try:
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as file:
            for key in file.files:
                kind, _, name = key.partition('/')
                if kind == 'attr' and f'values/{name}' in file.files:
                    codes, values = file[key], [str(value) for value in file[f'values/{name}']]
                    if codes.shape != (num_images,) or codes.dtype.kind not in 'iu' or \
                            codes.min() < 0 or codes.max() >= len(values):
                        raise UserError(f'{path}: "{key}" is {codes.dtype} {list(codes.shape)}; expected '
                                        f'{num_images} indices into the {len(values)} of "values/{name}"')
                    found[name] = Attribute(name, values, codes.astype(np.int64))
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f'{path} is damaged or not an .npz file: {error}') from error
    return found


def read_table(table: str, dataset: Dataset, path: str) -> dict[str, Attribute]:
    """The attributes in a file: one row per image, one column per attribute.

    A .csv file begins with the names of its columns; the first column holds the names of the image files.
    A .txt file is that of CelebA: number of images, names of the attributes, and rows `file 1 -1 …`. An image
    is found by its path, else by its name, else by its name without extension. Data sets without names of
    files (TFRecords, .npz) take a table with one row per image, in their order.

    Errors: UserError for a file of another form, or when images are missing in it.
    """
    names, rows = (_parse_csv if table.lower().endswith('.csv') else _parse_celeba)(table)
    images = _image_names(dataset, path)
    if images is None:
        if len(rows) != len(dataset):
            raise UserError(f'{table} has {len(rows)} rows, but data set {dataset.name} has {len(dataset)} '
                            'images without names of files; expected one row per image, in their order')
        columns = list(zip(*(values for _, values in rows), strict=True))
    else:
        columns = list(zip(*_match(images, rows, table), strict=True))
    found = {}
    for name, column in zip(names, columns, strict=True):
        values, codes = np.unique(np.array(column), return_inverse=True)
        found[name] = Attribute(name, [str(value) for value in values], codes.reshape(-1))
    return found


def _parse_csv(table: str) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """(names of the attributes, [(file, values)])."""
    try:
        lines = csv.reader(io.StringIO(read_bytes(table).decode('utf-8-sig'), newline=''))
        rows = [[field.strip() for field in row] for row in lines if any(field.strip() for field in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'{table} is not a text file of comma-separated values: '
                        f'{" ".join(str(error).split())}') from error
    if len(rows) < 2 or len(rows[0]) < 2 or rows[0][0].lower().endswith(IMAGE_EXTENSIONS):
        raise UserError(f'{table}: expected a first line `file,<attribute>,…` and one line per image')
    return _checked_names(table, rows[0][1:]), _checked_rows(table, rows[1:], len(rows[0]), 2)


def _parse_celeba(table: str) -> tuple[list[str], list[tuple[str, list[str]]]]:
    try:
        lines = [line.split() for line in read_bytes(table).decode('utf-8-sig').splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f'{table} is not a text file: {" ".join(str(error).split())}') from error
    if len(lines) < 3 or len(lines[0]) != 1 or not lines[0][0].isdigit():
        raise UserError(f'{table}: expected a .csv file, or CelebA\'s list of attributes: a line with the '
                        'number of images, one with the names of the attributes, and one per image')
    if int(lines[0][0]) != len(lines) - 2:
        raise UserError(f'{table} is cut off or damaged: it tells of {lines[0][0]} images and has '
                        f'{len(lines) - 2}')
    return _checked_names(table, lines[1]), _checked_rows(table, lines[2:], len(lines[1]) + 1, 3)


def _checked_names(table: str, names: list[str]) -> list[str]:
    bad = [name for i, name in enumerate(names) if not name or name in names[:i]]
    if bad:
        raise UserError(f'{table}: expected attributes with different names, found {bad[0]!r}')
    return names


def _checked_rows(table: str, rows: list[list[str]], width: int, first: int) -> list:
    for number, row in enumerate(rows, first):
        if len(row) != width:
            raise UserError(f'{table}, row {number}: expected {width} fields as in the first, found '
                            f'{len(row)}')
    return [(row[0], row[1:]) for row in rows]


def _image_names(dataset: Dataset, path: str) -> list[str] | None:
    """Names of the image files of a data set in its order; None where images have no names."""
    if os.path.isdir(path):
        if any(name.endswith('.tfrecords') for name in os.listdir(path)):
            return None
    elif not path.lower().endswith('.zip'):
        return None
    store = ImageStore(path)
    store.close()
    if len(store.names) != len(dataset):
        raise UserError(f'{path} holds {len(store.names)} images, of which {len(dataset)} can be used; with '
                        'a table of attributes all must be: mend or remove the others')
    return store.names


def _match(images: list[str], rows: list[tuple[str, list[str]]], table: str) -> list[list[str]]:
    """The values of each image."""
    forms = (lambda name: name.replace('\\', '/').removeprefix('./'), os.path.basename,
             lambda name: os.path.splitext(os.path.basename(name))[0])
    missing = images
    for form in forms:
        by_name, ambiguous = {}, set()
        for name, values in rows:
            name = form(name)
            if by_name.setdefault(name, values) != values:
                ambiguous.add(name)
        wanted = [form(name) for name in images]
        missing = [name for name, key in zip(images, wanted, strict=True)
                   if key not in by_name or key in ambiguous]
        # Different images must not share a row by accident.
        if not missing and (form is forms[0] or len(set(wanted)) == len(wanted)):
            return [by_name[key] for key in wanted]
    raise UserError(f'{table} has no row, or several, for {len(missing) or len(images)} of {len(images)} '
                    f'images, for example {(missing or images)[0]}; add them, or remove the images')


# What is asked of them.

def find_questions(specs: Sequence[str], attributes: dict[str, Attribute]) -> list[Question]:
    """The questions that the words of --attributes mean.

    Args:
        specs: Per attribute: `name`, for all that it has to say (an attribute of two values: one question;
            one that images may not have, as glasses: whether they have it; any other: one question per
            value, against the rest); `name=value` or `name=value+value`: these against the rest, also
            patterns as long*; `name=any`: whether there is one; `all`: every attribute that is one question
            by itself.
        attributes: What there is, by name.

    Errors: UserError for an unknown attribute or value, a question that all images answer in the same way, or
        two of one name.
    """
    found = []
    for spec in specs:
        if spec == 'all':
            found += [question for attribute in attributes.values() if _is_one_question(attribute)
                      for question in _questions(attribute, '')]
            continue
        name, _, values = spec.partition('=')
        if name not in attributes:
            raise UserError(f'there is no attribute {name!r}, but {", ".join(attributes) or "none"}'
                            f'{did_you_mean(name, list(attributes), 1)}')
        if '=' in spec and not values:
            raise UserError(f'{spec}: expected a value of attribute {name} behind the =')
        found += _questions(attributes[name], values)
    if not found:
        raise UserError('no attribute that is one question by itself; name the attributes, of '
                        f'{", ".join(attributes) or "which there are none"}')
    names = [question.name for question in found]
    for question in found:
        if names.count(question.name) > 1:
            raise UserError(f'{question.name} is asked for twice; leave one of them out')
        if question.targets.all() or not question.targets.any():
            raise UserError(f'{question.name}: all images are alike in this; leave it out')
    return found


def _is_one_question(attribute: Attribute) -> bool:
    values = list(attribute.counts)
    return len(values) == 2 or '' in values and len(values) > 1


def _questions(attribute: Attribute, values: str) -> list[Question]:
    present = [value for value in attribute.counts if value]
    if values and values != ANY:
        chosen = []
        for value in values.split('+'):
            value = value.strip()
            matching = [value] if value in present else fnmatch.filter(present, value)
            if not matching:
                raise UserError(f'attribute {attribute.name} has no value {value!r}, but '
                                f'{", ".join(present)}{did_you_mean(value, present, 1)}')
            chosen += matching
        return [_question(attribute, chosen, f'-{values}')]
    if values == ANY and '' not in attribute.counts:
        raise UserError(f'{attribute.name}={ANY}: every image has one; name a value, of {", ".join(present)}')
    if '' in attribute.counts:
        return [_question(attribute, present, '')]
    if len(present) == 2:
        is_yes = {value.lower() for value in present} in _NO_YES
        positive = next(value for value in present if value.lower() in _YES) if is_yes else present[1]
        return [_question(attribute, [positive], '' if is_yes else f'-{positive}')]
    return [_question(attribute, [value], f'-{value}') for value in present]


def _question(attribute: Attribute, positive: list[str], suffix: str) -> Question:
    chosen = [attribute.values.index(value) for value in positive]
    name = re.sub(r'-*\+-*', '+', re.sub(r'[^\w.+]+', '-', attribute.name + suffix))
    name = name[:_MAX_NAME].strip('-+.') or 'attribute'
    return Question(name, attribute.name, tuple(positive), np.isin(attribute.codes, chosen))


# Parts of a data set.

class Part(Dataset):
    """Some images of a data set, with answers as labels.

    Args:
        whole: The data set; whoever opened it closes it.
        indices: int [n], which of its images, in which order.
        questions: One label component each: 1 = yes.
        levels: Halvings of the images.
    """

    def __init__(self, whole: Dataset, indices: np.ndarray, questions: Sequence[Question], levels: int = 0):
        self._whole, self._indices, self._levels = whole, indices, levels
        labels = np.stack([question.targets[indices] for question in questions], axis=1)
        size = whole.resolution >> levels
        super().__init__(whole.name, [whole.shape[0], size, size], len(indices), labels.astype(np.float32),
                         [question.name for question in questions], 'full', whole.seed,
                         skip_bad=whole.skip_bad)

    def _read_images(self, indices: np.ndarray, lod: int) -> np.ndarray:
        return self._whole._read_images(self._indices[indices], lod + self._levels)


def split(whole: Dataset, questions: Sequence[Question], holdout: float, seed: int,
          max_resolution: int | None = None) -> tuple[Part, Part]:
    """(images to train with, images held out), at most of `max_resolution`: smaller by box averages.

    Which images are held out is a function of the seed and their number.

    Errors: UserError when a part would lack one of the two answers to a question.
    """
    resolution = min(whole.resolution, max_resolution or whole.resolution)
    levels = check_resolution(resolution, whole.resolution, f'data set {whole.name}')
    count = max(round(len(whole) * holdout), 1)
    order = whole.order(0, len(whole), seed ^ 0x5eed)
    parts = []
    for indices, what in ((order[count:], 'to train with'), (order[:count], 'held out')):
        for question in questions:
            answers = question.targets[indices]
            if not len(indices) or answers.all() or not answers.any():
                yes = int(question.targets.sum())
                raise UserError(f'{question.name}: of the {len(indices)} images {what} all or none say yes '
                                f'(of all {len(whole)}: {yes}); choose another --holdout or leave it out')
        parts.append(Part(whole, np.sort(indices), questions, levels))
    return parts[0], parts[1]


def listing(attributes: dict[str, Attribute]) -> str:
    """One line per attribute: its values and how many images have them."""
    lines = []
    for attribute in attributes.values():
        counts = [f'{value or "(none)"} {count}' for value, count in attribute.counts.items()]
        more = [f'and {len(counts) - 12} more'] if len(counts) > 12 else []
        lines.append(f'{attribute.name}: {", ".join(counts[:12] + more)}')
    return '\n'.join(lines)
