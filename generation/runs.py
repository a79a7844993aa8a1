"""What the figure commands of run_generator.py do in their run directories."""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import dnnlib
from generation import generator_flags as common

# TensorFlow, and all modules that import it, are imported inside the functions: see generation.commands.

# Arguments that all of them have:
#   network_pkl: pickle with the generator: path, address or alias; network_file: where it was downloaded to.
#   seeds, latents: see generation.latent_sources. truncation_psi: None = 0.5 for seeds, 1 for latents.
#   class_idx: class, for conditional networks; where it may be several, a list. generator: which network of a
#   snapshot. batch_size: pictures at a time. scale: factor on the size of pictures, None = see
#   figures.default_scale. sampling: of BigGAN, arguments of samplers.make_sampler; None for other networks.

def interpolate(
    submit_config: dnnlib.SubmitConfig, network_pkl: str, seeds: Sequence[int] | None = None,
    latents: Sequence[str] | None = None, truncation_psi: float | None = None,
    class_idx: int | Sequence[int | None] | None = None,
    generator: str = 'Gs', batch_size: int = 8, network_file: str | None = None, scale: int | None = None,
    sampling: dict | None = None,
    space: str = 'z',                           # 'z' or 'w'.
    interpolation: str = 'linear',              # See generation.latent_walk.walk.
    loop: bool = False,                         # Go back to the first key?
    frames: int = 60,                           # From one key to the next.
    fps: float = 30,                            # Frames per second.
    grid: Sequence[int] = (1, 1),               # Columns and rows.
    output_frames: bool = False,                # Pictures instead of a video?
    output_sheet: bool = False,                 # A sheet instead of a video?
) -> None:
    """Writes interpolation.mp4, interpolation.png, or frame0000.png and so on, to the run directory."""
    del submit_config
    from generation import latent_walk
    from generation import sampling as drawing
    from generation.video import VideoWriter
    from training import misc
    columns, rows = grid
    network, images, num_times = _walk(
        network_file or network_pkl, seeds, latents, truncation_psi, class_idx, generator, sampling, space,
        columns * rows, frames, loop, interpolation=interpolation, batch_size=batch_size)
    if output_sheet:
        images = drawing.progress(images, num_times * columns * rows)
        _save_cells(latent_walk.sheet_rows(images, columns * rows, frames, loop), network, scale,
                    'interpolation.png')
        return
    frames_shown = drawing.progress(latent_walk.compose(images, columns, rows), num_times, 'frame')
    with contextlib.ExitStack() as stack:
        if not output_frames:
            video = stack.enter_context(VideoWriter(dnnlib.make_run_dir_path('interpolation.mp4'), fps))
        for i, picture in enumerate(frames_shown):
            if output_frames:
                misc.save_image(picture.transpose(2, 0, 1), dnnlib.make_run_dir_path(f'frame{i:04d}.png'),
                                drange=[0, 255])
            else:
                video.add(picture)


def _walk(pickle: str, seeds: Any, latents: Any, truncation_psi: float | None, class_idx: Any, generator: str,
          sampling: dict | None, space: str, num_cells: int, frames: int, loop: bool,
          **options: Any) -> tuple[Any, Any, int]:
    """The network of `interpolate`, the images of the walk, and at how many times there are some."""
    from generation import classes, latent_walk, samplers
    from generation import sampling as drawing
    chosen = list(class_idx) if isinstance(class_idx, list | tuple) else [class_idx]
    network, label = drawing.load_generator(pickle, generator, chosen[0])
    if sampling is not None:
        sampler = samplers.make_sampler(network, **sampling, verbose=True)
        pairs = latent_walk.pair_keys(seeds, chosen)
        keys = list(zip(sampler.seed_latents([seed for seed, _ in pairs]),
                        classes.class_labels(network, [number for _, number in pairs]), strict=True))
    elif space == 'z':
        keys = [drawing.seed_latents(network, seed)[0] for seed in seeds]
    else:
        keys = common.load_sources(network, seeds, latents, truncation_psi, label)
    cells = latent_walk.deal_keys(keys, num_cells)
    times = latent_walk.times(len(cells[0]), frames, loop)
    options['loop'] = loop
    if sampling is not None:
        images = latent_walk.class_frames(sampler, cells, times, **options)
    elif space == 'z':
        images = latent_walk.latent_frames(network, cells, times, common.seed_psi(truncation_psi), label,
                                           **options)
    else:
        images = latent_walk.dlatent_frames(network, cells, times, **options)
    return network, images, len(times)


def truncation_sweep(
    submit_config: dnnlib.SubmitConfig, network_pkl: str, seeds: Sequence[int] | None = None,
    latents: Sequence[str] | None = None, class_idx: int | Sequence[int | None] | None = None,
    generator: str = 'Gs', batch_size: int = 8, network_file: str | None = None, scale: int | None = None,
    sampling: dict | None = None,
    psis: Sequence[float] = (1, 0.7, 0.5, 0, -0.5, -1),     # One column each.
    truncations: Sequence[float | None] | None = None,      # Of BigGAN: one column each; None = off.
) -> None:
    """Writes truncation-sweep.png to the run directory."""
    del submit_config
    from generation import figures, samplers
    from generation import sampling as drawing
    chosen = list(class_idx) if isinstance(class_idx, list | tuple) else [class_idx]
    network, label = drawing.load_generator(network_file or network_pkl, generator, chosen[0])
    if sampling is None:
        sources = common.load_sources(network, seeds, latents, 1.0, label)
        cells = figures.truncation_sweep(network, sources, psis, batch_size)
    else:
        columns = []
        for truncation in drawing.progress(truncations, len(truncations), 'column'):
            sampler = samplers.make_sampler(network, **{**sampling, 'truncation': truncation}, verbose=True)
            images = samplers.class_pictures(network, sampler, chosen, seeds, 1.0, batch_size)
            columns.append([image for _, _, image in images])
        cells = list(zip(*columns, strict=True))
    _save_cells(cells, network, scale, 'truncation-sweep.png')


def noise_detail(
    submit_config: dnnlib.SubmitConfig, network_pkl: str, seeds: Sequence[int] | None = None,
    latents: Sequence[str] | None = None, truncation_psi: float | None = None, class_idx: int | None = None,
    generator: str = 'Gs', batch_size: int = 8, network_file: str | None = None, scale: int | None = None,
    zoom: Sequence[int] | None = None,          # (left, top, width). None = see figures.default_zoom.
    num_realisations: int = 100,                # Of the noise.
    noise_seed: int = 0,                        # Of the noise.
    gain: float | None = None,                  # Factor on deviations. None = see figures.deviation_gain.
) -> None:
    """Writes noise-detail.png and noise-detail.json to the run directory."""
    del submit_config
    import numpy as np

    from generation import figures, sampling
    network, label = sampling.load_generator(network_file or network_pkl, generator, class_idx)
    sources = common.load_sources(network, seeds, latents, truncation_psi, label)
    zoom = list(zoom or figures.default_zoom(network))
    scale = scale or figures.default_scale(network)
    found = figures.noise_detail(network, sources, zoom, num_realisations, noise_seed, scale, batch_size)
    found = list(sampling.progress(found, len(sources), 'row'))
    deviations = [deviation for _, _, deviation in found]
    gain = figures.deviation_gain(deviations) if gain is None else gain
    rows = [[picture, zooms, figures.deviation_map(deviation, gain, len(picture), scale)]
            for picture, zooms, deviation in found]
    numbers = {source.name: {'mean_std': float(deviation.mean()), 'max_std': float(deviation.max())}
               for source, deviation in zip(sources, deviations, strict=True)}
    print(f'Standard deviations, here times {gain:g}, reach {max(map(np.max, deviations)):.3g} of 255')
    _save_cells(rows, network, 1, 'noise-detail.png', range(1, len(rows)), [1, 2], _gap(network, scale))
    save_json('noise-detail.json', {'num_realisations': num_realisations, 'noise_seed': noise_seed,
                                    'zoom': zoom, 'gain': gain, 'images': numbers})


def noise_layers(
    submit_config: dnnlib.SubmitConfig, network_pkl: str, seeds: Sequence[int] | None = None,
    latents: Sequence[str] | None = None, truncation_psi: float | None = None, class_idx: int | None = None,
    generator: str = 'Gs', batch_size: int = 8, network_file: str | None = None, scale: int | None = None,
    fine_from: int | None = None,               # The resolution that fine noise begins with. None = 64.
) -> None:
    """Writes noise-layers.png to the run directory."""
    del submit_config
    from generation import figures, sampling
    network, label = sampling.load_generator(network_file or network_pkl, generator, class_idx)
    sources = common.load_sources(network, seeds, latents, truncation_psi, label)
    fine = fine_from or figures.default_fine(network)
    _save_cells(figures.noise_layers(network, sources, fine, batch_size), network, scale, 'noise-layers.png')


def uncurated(
    submit_config: dnnlib.SubmitConfig, network_pkl: str, truncation_psi: float | None = 0.7,
    class_idx: int | None = None, generator: str = 'Gs', batch_size: int = 8,
    network_file: str | None = None, scale: int | None = None, sampling: dict | None = None,
    seed: int = 0,                              # Of the first picture; the others have the following ones.
    rows: int = 3,                              # Pictures in a column of full size.
    lods: Sequence[int] = (0, 1, 2, 2, 3, 3),   # Each column's level of detail: 1 = half the size.
    truncation_cutoff: int | None = None,       # Layers to truncate. None = as in the network.
) -> None:
    """Writes uncurated.png to the run directory."""
    del submit_config
    from generation import figures, samplers
    from generation import sampling as drawing
    from training import misc
    total = sum(figures.uncurated_counts(rows, lods))
    seeds = range(seed, seed + total)
    if sampling is None:
        network, label = drawing.load_generator(network_file or network_pkl, generator, class_idx)
        images = drawing.generate(network, seeds, truncation_psi, label, batch_size, truncation_cutoff)
        images = (image for _, image in images)
    else:
        import pretrained_networks
        network = pretrained_networks.load_network(network_file or network_pkl, generator)
        sampler = samplers.make_sampler(network, **sampling, verbose=True)
        images = samplers.random_pictures(sampler, seeds, class_idx, batch_size)
    images = drawing.progress(images, total)
    canvas = figures.uncurated(images, rows, lods, scale or figures.default_scale(network))
    next(images, None)      # Past the last picture: progress counts it.
    misc.save_image(canvas, dnnlib.make_run_dir_path('uncurated.png'), drange=[0, 255])


def style_mixing_figure(
    submit_config: dnnlib.SubmitConfig, network_pkl: str,
    row_seeds: Sequence[int] | None = None,     # Sources A.
    row_latents: Sequence[str] | None = None,   # Sources A.
    col_seeds: Sequence[int] | None = None,     # Sources B.
    col_latents: Sequence[str] | None = None,   # Sources B.
    truncation_psi: float | None = None, class_idx: int | None = None, generator: str = 'Gs',
    batch_size: int = 8, network_file: str | None = None, scale: int | None = None,
) -> None:
    """Writes style-mixing.png to the run directory."""
    del submit_config
    from generation import figures, sampling
    network, label = sampling.load_generator(network_file or network_pkl, generator, class_idx)
    rows = common.load_sources(network, row_seeds, row_latents, truncation_psi, label)
    columns = common.load_sources(network, col_seeds, col_latents, truncation_psi, label)
    cells, starts = figures.style_mixing(network, rows, columns, batch_size)
    scale = scale or figures.default_scale(network)
    _save_cells(cells, network, scale, 'style-mixing.png', starts, [1], _gap(network, scale))


def nearest_neighbours(
    submit_config: dnnlib.SubmitConfig, network_pkl: str, seeds: Sequence[int],
    truncation_psi: float | None = None, class_idx: int | Sequence[int | None] | None = None,
    generator: str = 'Gs', batch_size: int = 8, network_file: str | None = None, scale: int | None = None,
    sampling: dict | None = None,
    data_dir: str | None = None,                # Folder of data sets.
    dataset_args: dict | None = None,           # Further arguments of training.dataset.load_dataset.
    num_neighbours: int = 8,                    # Of each picture.
    spaces: Sequence[str] = ('pixels',),        # What distances are measured in, see generation.neighbours.
    weights_dir: str | None = None,             # Where the weights of feature networks are.
) -> None:
    """Writes nearest-<space>.png, <picture>-<space>.png and nearest-neighbours.json to the run directory."""
    del submit_config
    import numpy as np

    from generation import figures, neighbours, samplers
    from generation import sampling as drawing
    from training import misc
    from training.dataset import load_dataset
    chosen = list(class_idx) if isinstance(class_idx, list | tuple) else [class_idx]
    network, _ = drawing.load_generator(network_file or network_pkl, generator, chosen[0])
    sampler = samplers.make_sampler(network, **sampling, verbose=True) if sampling is not None else None
    images = samplers.class_pictures(network, sampler, chosen, seeds, common.seed_psi(truncation_psi),
                                     batch_size)
    drawn = list(drawing.progress(images, len(seeds) * len(chosen)))
    scale = scale or figures.default_scale(network)
    training_set = load_dataset(data_dir, **(dataset_args or {}))
    found: dict[str, dict] = {}
    for space in spaces:
        function = neighbours.space_function(space, weights_dir)
        rows = []
        for number in dict.fromkeys(chosen):
            group = [(seed, image) for other, seed, image in drawn if other == number]
            samples = np.stack([image for _, image in group]).transpose(0, 2, 3, 1)
            indices = neighbours.candidates(training_set, number, num_neighbours)
            what = '' if number is None else f' of class {number} ({training_set.label_names[number]})'
            print(f'{space}: {len(indices)} training images{what}')
            nearest = neighbours.nearest(samples, training_set, indices, num_neighbours, function, 64,
                                         lambda parts, total: drawing.progress(parts, total, 'part'))
            for (seed, image), where, distances in zip(group, *nearest, strict=True):
                close = list(training_set.read(where)[0].transpose(0, 3, 1, 2))
                name = f'seed{seed:04d}' if len(chosen) == 1 else f'class{number:04d}-seed{seed:04d}'
                misc.save_image(neighbours.sheet_of_sample(image, close, scale),
                                dnnlib.make_run_dir_path(f'{name}-{space}.png'), drange=[0, 255])
                rows.append([image, *close])
                found.setdefault(name, {})[space] = {
                    'indices': where.tolist(), 'distances': [round(float(x), 6) for x in distances]}
        _save_cells(rows, network, scale, f'nearest-{space}.png', (), [1], _gap(network, scale))
    training_set.close()
    save_json('nearest-neighbours.json', {'dataset': training_set.path, 'images': found})


def resolution_usage(
    submit_config: dnnlib.SubmitConfig,
    pickles: Sequence[str],                     # Network pickles, in the order of their progress.
    kimg: Sequence[float | None],               # Their progress in thousands of images, where it is known.
    num_samples: int = 1024,                    # Of w.
    seed: int = 0,                              # Of the samples.
    truncation_psi: float = 1.0, class_idx: int | None = None, generator: str = 'Gs', batch_size: int = 8,
) -> None:
    """Writes resolution-usage.png and resolution-usage.json to the run directory."""
    del submit_config
    from generation import plots, sampling
    from generation import resolution_usage as usage
    found = usage.usage_of_snapshots(pickles, generator, class_idx, num_samples, seed, truncation_psi,
                                     batch_size)
    rows, shares = [], {}
    for (names, deviations), pickle, progress in zip(
            sampling.progress(found, len(pickles), 'network'), pickles, kimg, strict=True):
        relative = dict(zip(names, (deviations / deviations.sum()).tolist(), strict=True))
        rows.append({'network': pickle, 'kimg': progress, 'share': relative,
                     'std': dict(zip(names, deviations.tolist(), strict=True))})
    names = dict.fromkeys(name for row in rows for name in row['share'])
    shares = {name: [row['share'].get(name, 0.0) for row in rows] for name in names}
    plots.save_shares(dnnlib.make_run_dir_path('resolution-usage.png'), list(kimg), shares,
                      'Contribution of each resolution to the image',
                      'thousands of images shown' if len(rows) > 1 else 'resolution', 'share')
    save_json('resolution-usage.json', {'num_samples': num_samples, 'seed': seed, 'generator': generator,
                                        'truncation_psi': truncation_psi, 'class': class_idx,
                                        'networks': rows})
    print('  '.join(f'{name} {share:.1%}' for name, share in rows[-1]['share'].items()))


def jacobian(
    submit_config: dnnlib.SubmitConfig, network_pkl: str, truncation_psi: float = 1.0,
    class_idx: int | None = None, generator: str = 'Gs', batch_size: int = 8,
    network_file: str | None = None,
    num_samples: int = 10,                      # Of w.
    seed: int = 0,                              # Of the samples.
) -> None:
    """Writes jacobian.png and jacobian.json to the run directory."""
    del submit_config
    import numpy as np

    import pretrained_networks
    from generation import jacobian as jac
    from generation import plots, sampling
    from generation.resolution_usage import random_dlatents
    network = pretrained_networks.load_network(network_file or network_pkl, generator)
    label = None if class_idx is None else sampling.class_label(network, class_idx)
    dlatents = random_dlatents(network, num_samples, seed, truncation_psi, label)[:, 0]
    function = jac.columns_function(network)
    values = np.stack([jac.singular_values(jac.jacobian(network, w, batch_size, function))
                       for w in sampling.progress(dlatents, num_samples, 'sample')])
    facts = jac.summary(values)
    number = np.arange(1, values.shape[1] + 1)
    plots.save_bands(dnnlib.make_run_dir_path('jacobian.png'), {
        'singular values': (number, facts['mean'], facts['std'])},
        f'Jacobian of w → image: mean and deviation over {num_samples} samples', 'number',
        'singular value / largest one', log_y=True)
    save_json('jacobian.json', {'network': network_pkl, 'num_samples': num_samples, 'seed': seed,
                                'generator': generator, 'truncation_psi': truncation_psi,
                                'class': class_idx, **facts, 'singular_values': values.tolist()})
    print(f'mean logarithm of the relative singular values {facts["mean_log"]:.3f} (0 = orthogonal), '
          f'largest / smallest {facts["condition_number"]:.1f}')


def _save_cells(cells: list, network: Any, scale: int | None, name: str, row_gaps: Sequence[int] = (),
                column_gaps: Sequence[int] = (), gap: int = 0) -> None:
    """Writes rows of images, enlarged, as one picture."""
    from generation import figures
    from training import misc
    factor = scale or figures.default_scale(network)
    cells = [[None if cell is None else figures.enlarge(cell, factor) for cell in row] for row in cells]
    misc.save_image(figures.sheet(cells, row_gaps, column_gaps, gap), dnnlib.make_run_dir_path(name),
                    drange=[0, 255])


def _gap(network: Any, scale: int) -> int:
    return max(network.output_shape[2] * scale // 32, 1)


def save_json(name: str, content: dict) -> None:
    """Writes a file to the run directory."""
    with dnnlib.util.atomic_write(dnnlib.make_run_dir_path(name), 'w') as file:
        json.dump(content, file, indent=1)
        file.write('\n')
