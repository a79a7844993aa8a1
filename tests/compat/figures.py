"""Figures in the manner of the StyleGAN paper: uncurated grid, mixed styles, noise detail, truncation."""

# ruff: noqa: B905

import os
import pickle
import sys

import numpy as np
import PIL.Image

import dnnlib.tflib as tflib

network_pkl, result_dir = sys.argv[1:]
synthesis_kwargs = dict(output_transform=dict(func=tflib.convert_images_to_uint8, nchw_to_nhwc=True),
                        minibatch_size=8)
_Gs_cache = {}


def load_Gs(path):
    if path not in _Gs_cache:
        with open(path, 'rb') as f:
            _Gs_cache[path] = pickle.load(f)[-1]
    return _Gs_cache[path]


def draw_uncurated(png, Gs, cx, cy, cw, ch, rows, lods, seed):
    latents = np.random.RandomState(seed).randn(sum(rows * 2 ** lod for lod in lods), Gs.input_shape[1])
    images = Gs.run(latents, None, **synthesis_kwargs)
    canvas = PIL.Image.new('RGB', (sum(cw // 2 ** lod for lod in lods), ch * rows), 'white')
    image_iter = iter(list(images))
    for col, lod in enumerate(lods):
        for row in range(rows * 2 ** lod):
            image = PIL.Image.fromarray(next(image_iter), 'RGB').crop((cx, cy, cx + cw, cy + ch))
            image = image.resize((cw // 2 ** lod, ch // 2 ** lod), PIL.Image.LANCZOS)
            canvas.paste(image, (sum(cw // 2 ** lo for lo in lods[:col]), row * ch // 2 ** lod))
    canvas.save(png)


def draw_mixing(png, Gs, src_seeds, dst_seeds, style_ranges):
    src_latents = np.stack([np.random.RandomState(seed).randn(Gs.input_shape[1]) for seed in src_seeds])
    dst_latents = np.stack([np.random.RandomState(seed).randn(Gs.input_shape[1]) for seed in dst_seeds])
    src_dlatents = Gs.components.mapping.run(src_latents, None)  # [seed, layer, component]
    dst_dlatents = Gs.components.mapping.run(dst_latents, None)
    dst_images = Gs.components.synthesis.run(dst_dlatents, randomize_noise=False, **synthesis_kwargs)
    height, width = Gs.output_shape[2:]
    canvas = PIL.Image.new('RGB', (width * len(src_seeds), height * (len(dst_seeds) + 1)), 'white')
    for row, _ in enumerate(dst_images):
        row_dlatents = np.stack([dst_dlatents[row]] * len(src_seeds))
        row_dlatents[:, style_ranges[row]] = src_dlatents[:, style_ranges[row]]
        row_images = Gs.components.synthesis.run(row_dlatents, randomize_noise=False, **synthesis_kwargs)
        for col, image in enumerate(list(row_images)):
            canvas.paste(PIL.Image.fromarray(image, 'RGB'), (col * width, (row + 1) * height))
    canvas.save(png)
    return row_dlatents, row_images


def draw_noise(png, Gs, seed, ranges):
    Gsc = Gs.clone()
    noise_vars = [var for name, var in Gsc.components.synthesis.vars.items() if name.startswith('noise')]
    noise_pairs = list(zip(noise_vars, tflib.run(noise_vars)))  # [(var, val), ...]
    latents = np.random.RandomState(seed).randn(2, Gs.input_shape[1])
    all_images = []
    for noise_range in ranges:
        tflib.set_vars({var: val * (1 if i in noise_range else 0)
                        for i, (var, val) in enumerate(noise_pairs)})
        range_images = Gsc.run(latents, None, truncation_psi=1, randomize_noise=False, **synthesis_kwargs)
        range_images[0].flat[0] += 1  # The arrays belong to the script.
        all_images.append(range_images)
    many = Gs.run(np.stack([latents[0]] * 6), None, truncation_psi=1, randomize_noise=True,
                  **synthesis_kwargs)
    deviation = np.std(np.mean(many, axis=3), axis=0)
    PIL.Image.fromarray(np.uint8(np.clip(deviation * 4 + 0.5, 0, 255)), 'L').save(png)
    return np.stack(all_images), deviation


def draw_truncation(Gs, seeds, psis):
    latents = np.stack([np.random.RandomState(seed).randn(Gs.input_shape[1]) for seed in seeds])
    dlatents = Gs.components.mapping.run(latents, None)
    dlatent_avg = Gs.get_var('dlatent_avg')  # [component]
    rows = []
    for dlatent in list(dlatents):
        row_dlatents = (dlatent[np.newaxis] - dlatent_avg) * np.reshape(psis, [-1, 1, 1]) + dlatent_avg
        rows.append(Gs.components.synthesis.run(row_dlatents, randomize_noise=False, **synthesis_kwargs))
    return np.stack(rows)


def main():
    tflib.init_tf()
    os.makedirs(result_dir, exist_ok=True)
    Gs = load_Gs(network_pkl)
    size = Gs.output_shape[-1]
    draw_uncurated(os.path.join(result_dir, 'uncurated.png'), Gs, 0, 0, size, size, 2, [0, 1], 6)
    mixed = draw_mixing(os.path.join(result_dir, 'mixing.png'), Gs, [639, 701], [888, 829],
                        [range(0, 2), range(2, 6)])
    noise, deviation = draw_noise(os.path.join(result_dir, 'noise.png'), Gs, 1967,
                                  [range(0, 18), range(0, 0), range(2, 18)])
    truncated = draw_truncation(Gs, [91, 388], [1, 0.7, 0.5, 0, -0.5, -1])
    return mixed, noise, deviation, truncated


if __name__ == '__main__':
    mixed, noise, deviation, truncated = main()
