"""Finds w for a picture by gradient descent: what a TensorFlow 1 projector is once it has a GradientTape."""

# ruff: noqa: B905

import pickle
import sys

import numpy as np
import tensorflow as tf

import dnnlib.tflib as tflib

tflib.init_tf({'rnd.np_random_seed': 1000})
with open(sys.argv[1], 'rb') as f:
    G, D, Gs = pickle.load(f)
Gs = Gs.clone('Gs_projector')

# Statistics of w.
latent_samples = np.random.RandomState(123).randn(64, *Gs.input_shapes[0][1:])
dlatent_samples = Gs.components.mapping.run(latent_samples, None)[:, :1, :]  # [N, 1, component]
dlatent_avg = np.mean(dlatent_samples, axis=0, keepdims=True)
dlatent_std = (np.sum((dlatent_samples - dlatent_avg) ** 2) / len(dlatent_samples)) ** 0.5

noise_vars, noise_init = [], []
while True:
    name = f'noise{len(noise_vars)}'
    if name not in Gs.components.synthesis.vars:
        break
    noise_vars.append(Gs.components.synthesis.vars[name])
    noise_init.append(tf.random.normal(noise_vars[-1].shape))
tflib.set_vars(zip(noise_vars, noise_init))

target = Gs.run(np.random.RandomState(7).randn(1, Gs.input_shape[1]), None, randomize_noise=False,
                truncation_psi=0.5)
dlatents_var = tf.Variable(tf.constant(dlatent_avg, tf.float32))


def loss_of(dlatents_var):
    dlatents_expr = tf.tile(dlatents_var, [1, Gs.components.synthesis.input_shape[1], 1])
    images_expr = Gs.components.synthesis.get_output_for(dlatents_expr, randomize_noise=False)
    proc_images_expr = (images_expr + 1) * (255 / 2)
    if proc_images_expr.shape[2] > 8:
        factor = proc_images_expr.shape[2] // 8
        proc_images_expr = tf.reduce_mean(tf.reshape(
            proc_images_expr, [-1, 3, 8, factor, 8, factor]), axis=[3, 5])
        wanted = tf.reduce_mean(tf.reshape(
            (target + 1) * (255 / 2), [-1, 3, 8, factor, 8, factor]), axis=[3, 5])
    return tf.reduce_mean(tf.square(proc_images_expr - wanted)) / 1e4


opt = tf.keras.optimizers.Adam(0.05, epsilon=1e-8)
losses = []
for _ in range(12):
    with tf.GradientTape() as tape:
        loss = loss_of(dlatents_var)
    variables = [dlatents_var, noise_vars[0]]
    grads = tape.gradient(loss, [dlatents_var])
    opt.apply_gradients(zip(grads, [dlatents_var]))
    losses.append(float(tflib.run(loss)))
with tf.GradientTape() as tape:
    tape.watch(noise_vars[0].value)
    loss = loss_of(dlatents_var)
noise_grad = tape.gradient(loss, noise_vars)[0]
score = tflib.run(D.get_output_for(tf.constant(target), None))
