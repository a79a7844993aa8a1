"""The pictures and networks that a run leaves in its directory while it trains."""

import json
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from dnnlib.submission import make_run_dir_path
from dnnlib.tflib import legacy
from dnnlib.tflib.network import Network
from dnnlib.util import UserError, atomic_write, gfile, is_remote_path
from training import latents, misc
from training.dataset import Dataset

SNAPSHOT_NAME = 'network-snapshot-%06d.pkl'


def load_networks(path: str) -> tuple[Network, Network, Network]:
    """The networks (G, D, Gs) of a snapshot; UserError where the file holds something else."""
    states = legacy.network_states(legacy.load_pkl(path))
    if len(states) != 3:
        raise UserError(f'{path}: expected a snapshot of the three networks G, D and Gs. Received: '
                        f'{", ".join(state.name for state in states)}')
    G, D, Gs = (Network.from_state(state) for state in states)
    return G, D, Gs


def kimg_of_snapshot(path: str | None) -> float:
    """Progress in kimg that stands in the name of a snapshot, 0 where there is none."""
    match = re.search(r'network-snapshot-(\d+)\.pkl$', path or '')
    return float(match[1]) if match else 0.0


def latest_snapshot(run_dir: str) -> str | None:
    """Path of the snapshot in a run directory that is furthest in training; None where there is none."""
    names = gfile().listdir(run_dir) if is_remote_path(run_dir) else os.listdir(run_dir)
    found = [name for name in names if re.fullmatch(r'network-snapshot-\d+\.pkl', name)]
    return os.path.join(run_dir, max(found, key=kimg_of_snapshot)) if found else None


def _class_names(training_set: Dataset) -> list[str] | None:
    """The names of the classes of a data set, None where they have none but their numbers."""
    names = training_set.label_names if training_set.label_size else []
    is_named = training_set.class_indices is not None and names != [str(i) for i in range(len(names))]
    return list(names) if is_named else None


def name_classes(networks: Sequence[Network], training_set: Dataset) -> None:
    """Puts the names of the classes of a data set into networks of classes, and so into their pickles.

    Networks of other kinds, whose labels are any numbers, are pickled as the official programs pickle them.
    """
    names = _class_names(training_set)
    for network in networks:
        if names is not None and hasattr(network.layer, 'num_classes'):
            network.static_kwargs['class_names'] = list(names)


def save_class_names(training_set: Dataset) -> None:
    """Writes the names of the classes beside the snapshots, where run_generator.py finds them."""
    names = _class_names(training_set)
    if names is not None:
        with atomic_write(make_run_dir_path('class_names.json'), 'w') as file:
            json.dump(names, file, indent=1, ensure_ascii=False)


class ImageSnapshots:
    """The sample sheets of a run: the same latents and labels in every picture.

    Args:
        training_set: Source of the reals and labels.
        grid_args: size and layout of `misc.setup_snapshot_image_grid`.
        latent_size: Size of z.
        seed: Of the choice of reals and of the latents.
        latent_distribution: What the latents are drawn from, see training.latents.
    """

    def __init__(self, training_set: Dataset, grid_args: dict[str, Any], latent_size: int, seed: int,
                 latent_distribution: str = 'normal'):
        self.grid_size, self._reals, self.labels = misc.setup_snapshot_image_grid(
            training_set, seed=seed % 2 ** 32, **grid_args)
        rnd = np.random.RandomState(seed % 2 ** 32)
        self._training_set, self._seed = training_set, seed % 2 ** 32
        self._latents = latents.sample(latent_distribution, rnd, [len(self._reals), latent_size])

    def save_reals(self, name: str = 'reals.png') -> np.ndarray:
        """Writes the sheet of real images to the run directory; returns it as uint8 [H, W, C]."""
        return self._save(self._reals, name, [0, 255])

    def save_reals_by_class(self, name: str = 'reals_by_class.png') -> None:
        """Writes a sheet of some real images of every class to the run directory; nothing without labels."""
        if self._training_set.label_size:
            sheet = misc.class_sheet(self._training_set, seed=self._seed)
            with atomic_write(make_run_dir_path(name), 'wb') as file:
                sheet.save(file, 'PNG')

    def save_fakes(self, Gs: Network, name: str, minibatch_size: int) -> np.ndarray:
        """Writes the sheet of generated images, without truncation, with fixed noise; returns it likewise."""
        fakes = Gs.run(self._latents, self.labels, is_validation=True, randomize_noise=False,
                       minibatch_size=min(minibatch_size, len(self._latents)))
        return self._save(fakes, name, [-1, 1])

    def _save(self, images: np.ndarray, name: str, drange: Sequence[float]) -> np.ndarray:
        misc.save_image_grid(images, make_run_dir_path(name), drange=drange, grid_size=self.grid_size)
        grid = misc.create_image_grid(images, self.grid_size)
        picture = np.asarray(misc.convert_to_pil_image(grid, drange))
        return picture if picture.ndim == 3 else picture[:, :, np.newaxis]


class NetworkSnapshots:
    """The pickles (G, D, Gs) of a run.

    Args:
        networks: (G, D, Gs).
        keep: Number of snapshots to keep besides network-final.pkl. None = all.
        names: Those that an earlier part of the run has written.
        is_chief: False: another worker writes them; here paths are only named.
    """

    def __init__(self, networks: Sequence[Network], keep: int | None, names: Sequence[str] = (),
                 is_chief: bool = True):
        self._networks, self._keep, self.names = tuple(networks), keep, list(names)
        self._is_chief = is_chief

    def add_existing(self, nimg: int) -> None:
        """Counts in the snapshot of this moment, if any: a run that is stopped writes it after its state."""
        name = SNAPSHOT_NAME % (nimg // 1000)
        path = make_run_dir_path(name)
        exists = gfile().exists(path) if is_remote_path(path) else os.path.exists(path)
        if exists and name not in self.names:
            self.names.append(name)

    def save(self, nimg: int) -> str:
        """Writes the snapshot of this moment, then removes what is too many; returns the path."""
        name = SNAPSHOT_NAME % (nimg // 1000)
        path = self.save_as(name)
        self.names = [other for other in self.names if other != name] + [name]
        while self._keep is not None and len(self.names) > self._keep:
            old = self.names.pop(0)
            if self._is_chief:
                _remove(make_run_dir_path(old))
        return path

    def save_as(self, name: str) -> str:
        """Writes the networks to a file of the run directory."""
        path = make_run_dir_path(name)
        if self._is_chief:
            legacy.save_pkl(tuple(network.state() for network in self._networks), path)
        return path


def _remove(path: str) -> None:
    if is_remote_path(path):
        if gfile().exists(path):
            gfile().remove(path)
    elif os.path.exists(path):
        os.remove(path)
