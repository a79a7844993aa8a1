"""Whole projections: many images through the projector, what is written of them, and what they tell."""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import dnnlib
from dnnlib import tflib
from dnnlib.tflib import autosummary
from generation import latent_sources, plots, sampling
from generation.generator_flags import distinct
from generation.runs import save_json
from projector import Projector
from training import misc

VIDEO_FRAMES = 250      # About; ten seconds.


class Options(NamedTuple):
    """How to project, and what to write of it."""

    num_steps: int = 1000           # Steps of the optimization.
    space: str = 'w'                # 'w' or 'w+'.
    distance: str = 'l2'            # See projector.DISTANCES.
    weights_dir: str | None = None  # Where the weights of the distance are.
    seed: int = 0                   # Of the noise.
    batch_size: int = 8             # Images at a time.
    num_snapshots: int = 5          # Pictures of a projection on its way.
    save_latents: bool = False      # Write <name>-latents.npz?
    save_video: bool = False        # Write <name>-video.mp4?


def project(
    network: 'tflib.Network',               # The generator.
    label: np.ndarray,                      # [1, label_size].
    images: np.ndarray,                     # uint8 [N, C, H, W].
    names: Sequence[str],                   # What the files of each image begin with, all different.
    options: Options,
    initial: Sequence[latent_sources.Source] | None = None,     # One for each image, to go on from.
) -> dict[str, float]:
    """Projects images batch by batch and writes pictures and what else is asked for to the run directory.

    Returns: {name: distance at the end}; also in distances.json. The way there: losses.png and TensorBoard.
    """
    proj = Projector()
    proj.num_steps, proj.space, proj.seed, proj.label = options.num_steps, options.space, options.seed, label
    proj.distance, proj.weights_dir = options.distance, options.weights_dir
    print('Measuring the latent space...', flush=True)
    proj.set_network(network)
    size = min(options.batch_size, len(images))
    noises = initial and latent_sources.noises_of(network, initial)
    distances, curves = {}, {}
    for begin in range(0, len(images), size):
        batch = names[begin:begin + size]
        # The last batch is filled up, so that one traced step serves all.
        indices = np.minimum(np.arange(begin, begin + size), len(images) - 1)
        targets = misc.adjust_dynamic_range(images[indices], [0, 255], [-1, 1])
        print(f'Projecting {", ".join(batch)}...', flush=True)
        with _Recorder(batch, proj, targets, options) as recorder:
            proj.start(
                targets, initial and np.stack([initial[i].dlatents for i in indices]),
                noises and [np.stack(maps) for maps in zip(*(noises[i] for i in indices), strict=True)])
            for _ in sampling.progress(range(options.num_steps), options.num_steps, 'step'):
                proj.step()
                recorder.step()
        history = np.stack(proj.history['distance'], axis=1)
        for name, value, curve in zip(batch, proj.get_distances(), history, strict=False):
            distances[name] = float(value)
            curves[name] = (np.arange(len(curve)), curve)
            print(f'{name}: distance {value:.5f}')
        if options.save_latents:
            _save_latents(proj, batch)
        save_json('distances.json', {**options._asdict(), 'images': distances})
    _write_losses(curves, options)
    return distances


def _write_losses(curves: dict[str, tuple], options: Options) -> None:
    few = dict(list(curves.items())[:10])   # More could not be told apart.
    title = 'Projection' + (f' of the first {len(few)} images' if len(few) < len(curves) else '')
    plots.save_curves(dnnlib.make_run_dir_path('losses.png'), few, title=title, xlabel='step',
                      ylabel=f'distance ({options.distance})', log_y=True)
    writer = autosummary.FileWriter(dnnlib.make_run_dir_path())
    for step in range(options.num_steps):
        writer.add_scalars({f'Projection/{name}': values[step] for name, (_, values) in curves.items()}, step)
    writer.close()


def snapshot_steps(num_steps: int, num_snapshots: int) -> set[int]:
    """Steps after which a picture is written, evenly spaced, the last one among them (official rule)."""
    return {int(num_steps - step)
            for step in np.linspace(0, num_steps, num_snapshots, endpoint=False, dtype=int)}


class _Recorder:
    """Pictures and videos of a projection that goes on. A context manager, which finishes the videos."""

    def __init__(self, names: Sequence[str], proj: Projector, targets: np.ndarray, options: Options) -> None:
        self._names, self._proj, self._targets = names, proj, targets
        self._snapshots = snapshot_steps(options.num_steps, options.num_snapshots)
        self._every = max(options.num_steps // VIDEO_FRAMES, 1)
        self._videos: list[Any] = []
        self._stack = contextlib.ExitStack()
        if options.num_snapshots:
            self._save(targets, 'target.png')
        if options.save_video:
            from generation.video import VideoWriter
            with contextlib.ExitStack() as stack:   # Where one cannot be opened, closes the others.
                self._videos = [stack.enter_context(VideoWriter(_path(name, 'video.mp4')))
                                for name in names]
                self._stack = stack.pop_all()

    def __enter__(self) -> '_Recorder':
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def step(self) -> None:
        """Writes what is due after a step."""
        step = self._proj.get_cur_step()
        snapshot = step in self._snapshots
        frame = bool(self._videos) and (step % self._every == 0 or step == self._proj.num_steps)
        images = self._proj.get_images() if snapshot or frame else None
        if snapshot:
            self._save(images, f'step{step:04d}.png')
        if frame:
            pairs = np.concatenate([self._targets, images], axis=3).transpose(0, 2, 3, 1)
            pairs = np.rint((pairs + 1) * 127.5).clip(0, 255).astype(np.uint8)
            for video, pair in zip(self._videos, pairs, strict=False):
                video.add(pair)

    def _save(self, images: np.ndarray, name: str) -> None:
        for prefix, image in zip(self._names, images, strict=False):
            misc.save_image(image, _path(prefix, name), drange=[-1, 1])


def _path(prefix: str, name: str) -> str:
    return dnnlib.make_run_dir_path(f'{prefix}-{name}')


def _save_latents(proj: Projector, names: Sequence[str]) -> None:
    """Writes <name>-latents.npz: dlatents [num_layers, dlatent_size], noise0 … [1, H, W], and the losses."""
    dlatents, noises = proj.get_dlatents(), proj.get_noises()
    history = {key: np.stack(values, axis=1) for key, values in proj.history.items()}
    for i, name in enumerate(names):
        with dnnlib.util.atomic_write(_path(name, 'latents.npz')) as file:
            np.savez(file, dlatents=dlatents[i], **{f'noise{k}': noise[i] for k, noise in enumerate(noises)},
                     **{f'history/{key}': values[i] for key, values in history.items()})


# Is this image from this network? (StyleGAN2, section 5.1)

def best_threshold(generated: Sequence[float], real: Sequence[float]) -> float:
    """The distance below which an image counts as generated: that with the smallest mean of both error rates.

    Between two neighbouring distances it is their geometric mean: distances differ by factors.
    """
    values = np.unique(np.concatenate([generated, real]))
    middles = np.sqrt(values[1:] * values[:-1])
    candidates = [values[0] * 0.5, *middles, values[-1] * 2]
    errors = [error_rate(generated, real, threshold) for threshold in candidates]
    best = np.flatnonzero(np.isclose(errors, min(errors)))
    return float(candidates[best[len(best) // 2]])


def error_rate(generated: Sequence[float], real: Sequence[float], threshold: float) -> float:
    """Mean of the share of generated images above and that of real images below the threshold."""
    return float((np.mean(np.asarray(generated) >= threshold) + np.mean(np.asarray(real) < threshold)) / 2)


def cross_validated_error(generated: Sequence[float], real: Sequence[float]) -> float:
    """Error rate where the threshold for each image is found without it (leave one out)."""
    generated, real = np.asarray(generated), np.asarray(real)
    missed = [generated[i] >= best_threshold(np.delete(generated, i), real) for i in range(len(generated))]
    false = [real[i] < best_threshold(generated, np.delete(real, i)) for i in range(len(real))]
    return float((np.mean(missed) + np.mean(false)) / 2)


def detect(
    network: 'tflib.Network',       # The generator.
    label: np.ndarray,              # [1, label_size].
    images: np.ndarray,             # uint8 [N, C, H, W]: was this one made by the network?
    names: Sequence[str],           # Of the images.
    generated: np.ndarray,          # uint8 [N, C, H, W]: images that the network has drawn.
    real: np.ndarray,               # uint8 [N, C, H, W]: images of the data that it was trained on.
    options: Options,
) -> dict[str, Any]:
    """Tells images of the network from others by how well they project (StyleGAN2, section 5.1, figure 9).

    Writes detection.json and histograms.png to the run directory and prints the verdicts.

    Returns: What is in detection.json: threshold, error_rate (of the reference images, each judged without
    itself), distances of the references, and for each image its distance and whether it counts as generated.
    """
    groups = {'generated': generated, 'real': real, 'images': images}
    labels = {'generated': [f'generated{i:04d}' for i in range(len(generated))],
              'real': [f'real{i:04d}' for i in range(len(real))]}
    labels['images'] = names = distinct(names, [*labels['generated'], *labels['real']])
    found = project(network, label, np.concatenate(list(groups.values())), sum(labels.values(), []), options)
    distances = {group: [found[name] for name in labels[group]] for group in groups}
    threshold = best_threshold(distances['generated'], distances['real'])
    error = cross_validated_error(distances['generated'], distances['real'])
    verdicts = {name: {'distance': found[name], 'generated': found[name] < threshold} for name in names}
    result = {'network': network.name, **options._asdict(), 'threshold': threshold, 'error_rate': error,
              'generated': distances['generated'], 'real': distances['real'], 'images': verdicts}
    save_json('detection.json', result)
    plots.save_histograms(
        dnnlib.make_run_dir_path('histograms.png'),
        {f'{group}': np.log10(values) for group, values in distances.items() if values},
        title='Distance between image and projection', xlabel=f'log10 of the distance ({options.distance})',
        marks={'threshold': np.log10(threshold)})
    print(f'Threshold {threshold:.5f}; {100 * error:.1f}% of the references are taken for the other kind.')
    for name, verdict in verdicts.items():
        kind = 'made by this network' if verdict['generated'] else 'not made by this network'
        print(f'{name}: distance {verdict["distance"]:.5f}, {kind}')
    return result
