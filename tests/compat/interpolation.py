"""A walk in w and a truncation sweep, frame by frame, of a network chosen by its position in a snapshot."""

import pickle
import sys

import numpy as np

from dnnlib import EasyDict, tflib
from training import misc

snapshot, seed = sys.argv[1], int(sys.argv[2])
tflib.init_tf({'gpu_options.allow_growth': True, 'gpu_options.per_process_gpu_memory_fraction': 0.9})
Gs = misc.load_pkl(snapshot)[2]
with open(snapshot, 'rb') as f:
    same = pickle.load(f, encoding='latin1')[2]


def slerp(a, b, t):
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    omega = np.arccos(np.clip(np.dot(a, b), -1, 1))
    return (np.sin((1 - t) * omega) * a + np.sin(t * omega) * b) / np.sin(omega)


rnd = np.random.RandomState(seed)
z0, z1 = rnd.randn(2, Gs.input_shape[1])
ends = Gs.components.mapping.run(np.stack([z0, z1]), np.zeros([2, Gs.input_shapes[1][1]]))[:, :1]
num_layers = Gs.components.synthesis.input_shape[1]
frames = []
for t in np.linspace(0.0, 1.0, 7):
    w = np.tile(tflib.lerp(ends[0:1], ends[1:2], t), [1, num_layers, 1])
    frame = Gs.components.synthesis.run(
        w, randomize_noise=False, minibatch_size=1,
        output_transform=dict(func=lambda images: tflib.convert_images_to_uint8(images)))
    frames.append(frame[0].transpose(1, 2, 0))

kw = EasyDict(randomize_noise=False, is_validation=False, minibatch_size=4, num_gpus=1, print_progress=False)
walk = Gs.run(np.stack([slerp(z0, z1, t) for t in np.linspace(0, 1, 6)]), None, **kw)
sweep = np.concatenate([Gs.run(z0[np.newaxis], None, truncation_psi=psi, **kw)
                        for psi in np.linspace(-1, 1, 9)])
untruncated = same.run(z0[np.newaxis], None, truncation_psi=None, **kw)
images, dlatents = Gs.run(z0[np.newaxis], None, truncation_psi=1, return_dlatents=True, **kw)
