"""A picture of a published network: download, unpickle, look at it, run it."""

import os
import pickle
import sys

import numpy as np
import PIL.Image

import dnnlib
import dnnlib.tflib as tflib

url, result_dir = sys.argv[1:]
tflib.init_tf()

with dnnlib.util.open_url(url, cache_dir=os.path.join(result_dir, 'cache')) as f:
    _G, _D, Gs = pickle.load(f)

Gs.print_layers()

rnd = np.random.RandomState(5)
latents = rnd.randn(1, Gs.input_shape[1])

fmt = dict(func=tflib.convert_images_to_uint8, nchw_to_nhwc=True)
images = Gs.run(latents, None, truncation_psi=0.7, randomize_noise=True, output_transform=fmt)

os.makedirs(result_dir, exist_ok=True)
png_filename = os.path.join(result_dir, 'example.png')
PIL.Image.fromarray(images[0], 'RGB').save(png_filename)
