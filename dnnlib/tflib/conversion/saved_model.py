"""Generators as a SavedModel of plain TensorFlow operations, which TF Serving and others load without us."""

import json
import os
import secrets
import shutil
from typing import Any

import tensorflow as tf

from custom_ops import build
from dnnlib import tflib
from dnnlib.util import UserError
from generation import sampling
from training.context import Context

__all__ = ['export', 'METADATA_NAME']

METADATA_NAME = 'stylegan.json'


class _Sampler(tf.Module):
    """What is saved: the variables and the traced function of a generator."""

    def __init__(self, network: tflib.Network, noise: str):
        super().__init__()
        self.weights = [variable.value for variable in network.layer.weights]
        layer, stage = network.layer, network.layer.stage()
        latent_size = network.input_shape[1]
        label_size = network.input_shapes[1][1] if network.num_inputs > 1 else 0
        options = {'randomize_noise': noise == 'random'} if sampling.noise_vars(network) else {}
        truncates = 'dlatent_avg' in network.vars

        @tf.function(autograph=False, input_signature=[
            tf.TensorSpec([None, latent_size], tf.float32, 'z'),
            tf.TensorSpec([None, label_size], tf.float32, 'label'),
            tf.TensorSpec([], tf.float32, 'truncation_psi')])
        def sample(z, label, truncation_psi):
            inputs = [z, label] if network.num_inputs > 1 else [z]
            psi = {'truncation_psi': truncation_psi} if truncates else {}
            inputs = [tf.cast(value, layer.compute_dtype) for value in inputs]
            images = layer(*inputs, ctx=Context(stage=stage), **options, **psi)
            return {'images': tflib.convert_images_to_uint8(images)}

        self.sample = sample


def export(network: tflib.Network, path: str, noise: str = 'const',
           overwrite: bool = False) -> dict[str, Any]:
    """Writes a generator as a SavedModel.

    Its signature 'serving_default' takes z float32 [N, latent_size], label float32 [N, label_size] and
    truncation_psi float32 [], and returns images uint8 [N, H, W, C].

    Args:
        network: The generator.
        path: Directory to write; it appears when it is whole.
        noise: 'const' = the noise variables of the network, 'random' = new noise in every call.
        overwrite: Whether to replace a SavedModel that is there.

    Returns: The metadata, which are also in the file METADATA_NAME of the directory.
    """
    sampling.check_generator(network)
    path = os.path.abspath(path)
    check_target(path, overwrite)
    mode = build.get_mode()
    temp = os.path.join(os.path.dirname(path), f'.{os.path.basename(path)[:60]}.tmp-{secrets.token_hex(4)}')
    try:
        build.set_mode('ref')
        module = _Sampler(network, noise)
        concrete = module.sample.get_concrete_function()
        # Gradients would be saved with the operations of this process.
        tf.saved_model.save(module, temp, signatures={'serving_default': concrete},
                            options=tf.saved_model.SaveOptions(experimental_custom_gradients=False))
        metadata = _metadata(network, noise, concrete)
        with open(os.path.join(temp, METADATA_NAME), 'w', encoding='utf-8') as file:
            json.dump(metadata, file, indent=1)
        _replace(temp, path)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    finally:
        build.set_mode(mode)
    return metadata


def _metadata(network: tflib.Network, noise: str, concrete: Any) -> dict[str, Any]:
    return {
        'name': network.name, 'function': type(network.layer).__name__,
        'static_kwargs': json.loads(json.dumps(network.static_kwargs, default=str)),
        'signature': {
            'z': ['float32', list(network.input_shape)],
            'label': ['float32', [None, concrete.structured_input_signature[0][1].shape[1]]],
            'truncation_psi': ['float32', []],
            'images': ['uint8', list(concrete.structured_outputs['images'].shape)]},
        'noise': noise if sampling.noise_vars(network) else 'none',
        'truncation': 'dlatent_avg' in network.vars,
        'tensorflow': tf.__version__,
    }


def check_target(path: str, overwrite: bool) -> None:
    """Raises UserError where a SavedModel must not be written."""
    if not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise UserError(f'{path}: the directory that should hold it does not exist')
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise UserError(f'{path} exists; choose another name or add --overwrite')
    # Only what this program wrote is ever removed.
    ours = os.path.isdir(path) and (not os.listdir(path) or os.path.exists(os.path.join(path, METADATA_NAME)))
    if not ours:
        raise UserError(f'{path} is no SavedModel that convert.py wrote; remove it yourself or choose '
                        'another name')


def _replace(temp: str, path: str) -> None:
    """Renames a directory; what was there is removed after it has been replaced."""
    old = None
    if os.path.lexists(path):
        old = f'{temp}-old'
        os.rename(path, old)
    try:
        os.rename(temp, path)
    except OSError:
        if old is not None:
            os.rename(old, path)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
