"""Random faces in the manner of Progressive GAN's scripts, whose helpers are in the module tfutil."""

import pickle
import sys

import numpy as np

import tfutil

tfutil.init_tf()
with open(sys.argv[1], 'rb') as file:
    G, D, Gs = pickle.load(file, encoding='latin1')

latents = np.random.RandomState(1000).randn(1000, *Gs.input_shapes[0][1:])  # 1000 random latents
latents = latents[[477, 56, 83, 887, 583, 391, 86, 340, 341, 415]]          # hand-picked top-10
labels = np.zeros([latents.shape[0]] + Gs.input_shapes[1][1:])

images = Gs.run(latents, labels)
pixels = np.clip(np.rint((images + 1.0) / 2.0 * 255.0), 0.0, 255.0).astype(np.uint8)  # [-1,1] => [0,255]
pixels = pixels.transpose(0, 2, 3, 1)  # NCHW => NHWC

grid = Gs.run(latents, labels, minibatch_size=4, num_gpus=1, out_mul=127.5, out_add=127.5, out_shrink=2,
              out_dtype=np.uint8)
scores, labels_out = D.run(images[:8], minibatch_size=4)
lod = tfutil.run(Gs.find_var('lod'))
D.set_var('lod', 1.0)
