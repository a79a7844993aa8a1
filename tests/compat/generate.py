"""Seeds to pictures and mixed styles, as command-line generators of StyleGAN2 do it."""

# ruff: noqa: B905

import os
import sys

import numpy as np
import PIL.Image

import dnnlib
import dnnlib.tflib as tflib
import pretrained_networks

network_pkl, result_dir = sys.argv[1:]
print(f'Loading networks from "{network_pkl}"...')
_G, _D, Gs = pretrained_networks.load_networks(network_pkl)
os.makedirs(result_dir, exist_ok=True)
noise_vars = [var for name, var in Gs.components.synthesis.vars.items() if name.startswith('noise')]
stored = tflib.run(noise_vars)

Gs_kwargs = dnnlib.EasyDict()
Gs_kwargs.output_transform = dict(func=tflib.convert_images_to_uint8, nchw_to_nhwc=True)
Gs_kwargs.randomize_noise = False
Gs_kwargs.truncation_psi = 0.5

seed_images = {}
for seed in (66, 230):
    rnd = np.random.RandomState(seed)
    z = rnd.randn(1, *Gs.input_shape[1:])  # [minibatch, component]
    tflib.set_vars({var: rnd.randn(*var.shape.as_list()) for var in noise_vars})  # [height, width]
    images = Gs.run(z, None, **Gs_kwargs)  # [minibatch, height, width, channel]
    PIL.Image.fromarray(images[0], 'RGB').save(os.path.join(result_dir, f'seed{seed:04d}.png'))
    seed_images[seed] = images[0]
tflib.set_vars(dict(zip(noise_vars, stored)))

w_avg = Gs.get_var('dlatent_avg')  # [component]
Gs_syn_kwargs = dnnlib.EasyDict(Gs_kwargs, minibatch_size=4)
del Gs_syn_kwargs['truncation_psi']
all_seeds = [85, 100, 75]
all_z = np.stack([np.random.RandomState(seed).randn(*Gs.input_shape[1:]) for seed in all_seeds])
all_w = Gs.components.mapping.run(all_z, None)  # [minibatch, layer, component]
all_w = w_avg + (all_w - w_avg) * 0.5
w_dict = {seed: w for seed, w in zip(all_seeds, list(all_w))}
all_images = Gs.components.synthesis.run(all_w, **Gs_syn_kwargs)
image_dict = {(seed, seed): image for seed, image in zip(all_seeds, list(all_images))}
for row_seed, col_seed in ((85, 75), (100, 75)):
    w = w_dict[row_seed].copy()
    w[range(0, 3)] = w_dict[col_seed][range(0, 3)]
    image_dict[row_seed, col_seed] = Gs.components.synthesis.run(w[np.newaxis], **Gs_syn_kwargs)[0]

canvas = PIL.Image.new('RGB', (Gs.output_shape[3] * 2, Gs.output_shape[2]), 'black')
for i, key in enumerate(((85, 75), (100, 75))):
    canvas.paste(PIL.Image.fromarray(image_dict[key], 'RGB'), (Gs.output_shape[3] * i, 0))
canvas.save(os.path.join(result_dir, 'grid.png'))
