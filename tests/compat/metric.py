"""A home-made metric: fakes by the thousand, scores of the discriminator, a learning step of the average."""

import pickle
import sys

import numpy as np
import tensorflow as tf

import dnnlib
from dnnlib.tflib import tfutil
from dnnlib.tflib.autosummary import autosummary
from dnnlib.tflib.network import Network

tfutil.init_tf()
num_images, minibatch_size, num_gpus = 20, 8, 1
with open(sys.argv[1], 'rb') as f:
    G, D, Gs = pickle.load(f)
assert isinstance(Gs, Network)

minibatch_per_gpu = (minibatch_size - 1) // num_gpus + 1
Gs_kwargs = dict(is_validation=True, randomize_noise=True, minibatch_size=minibatch_per_gpu,
                 num_gpus=num_gpus)
Gs_clone = Gs.clone(name='Gs_metric')
activations = np.empty([num_images, D.output_shape[1]], dtype=np.float32)
means = []
for begin in range(0, num_images, minibatch_size):
    end = min(begin + minibatch_size, num_images)
    latents = np.random.randn(end - begin, *Gs_clone.input_shape[1:]).astype(np.float32)
    labels = np.zeros([end - begin] + Gs_clone.input_shapes[1][1:], dtype=np.float32)
    images = Gs_clone.run(latents, labels, **Gs_kwargs)
    uint8 = tfutil.convert_images_to_uint8(images)
    activations[begin:end] = D.run(tfutil.run(uint8), labels, input_transform=dict(
        func=lambda x, y: (tfutil.convert_images_from_uint8(x), y)), num_gpus=num_gpus, assume_frozen=True)
    means.append(images.mean(axis=(1, 2, 3)))
    autosummary('Metrics/score', activations[begin:end])
mu, sigma = np.mean(activations, axis=0), np.cov(activations, rowvar=False)

latents = tf.random.normal([4] + Gs_clone.input_shape[1:])
with tfutil.absolute_name_scope('Metric'), tf.name_scope('fakes'):
    fakes = Gs_clone.get_output_for(latents, None, is_validation=True, randomize_noise=False)
    first = D.get_output_for(fakes, None, return_as_list=True)[0]
score = tfutil.run({'score': first, 'parts': [tf.reduce_mean(fakes), Gs.vars['lod']]})

# The moving average of a training loop.
beta = tf.Variable(0.0)
Gs_update_op = Gs.setup_as_moving_average_of(G, beta=beta)
before = {name: Gs.get_var(name) for name in Gs.trainables}
beta.assign(0.75)
tfutil.run([Gs_update_op])
after = {name: Gs.get_var(name) for name in Gs.trainables}
static = dnnlib.EasyDict(Gs.static_kwargs)
table = [(layer_name, layer_output.shape.as_list(), [v.name for v in layer_trainables])
         for layer_name, layer_output, layer_trainables in D.list_layers()]
