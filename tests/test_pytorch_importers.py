"""What we write, read as the importers of stylegan2-ada-pytorch and StyleGAN3 read official pickles.

Such an importer unpickles with a class of its own in place of `dnnlib.tflib.network.Network`, expects the
tuple (G, D, Gs) of state version 4 or above, refuses keyword arguments that it does not know, collects the
variables of G and its components by name, and fails for every one that it lacks. The importer here does the
same, in our own words; its result goes back through our reader of PyTorch networks, whose agreement with
PyTorch is tested elsewhere, and has to give the images of the network that was written.
"""

import io
import pickle
import re
import unittest

import numpy as np
import tensorflow as tf

from dnnlib import tflib
from dnnlib.tflib import legacy
from dnnlib.tflib.conversion import pytorch
from tests import testutil

# Keyword arguments that the importers know, of G with its components and of D.
G_KWARGS = {
    'num_channels', 'resolution', 'label_size', 'latent_size', 'dlatent_size', 'dlatent_broadcast', 'dtype',
    'mapping_layers', 'mapping_fmaps', 'mapping_lrmul', 'mapping_nonlinearity', 'normalize_latents',
    'truncation_psi', 'truncation_cutoff', 'dlatent_avg_beta', 'style_mixing_prob', 'fmap_base', 'fmap_decay',
    'fmap_min', 'fmap_max', 'randomize_noise', 'architecture', 'nonlinearity', 'use_noise', 'resample_kernel',
    'fused_modconv', 'structure', 'is_training', 'is_validation', 'is_template_graph',
}
D_KWARGS = {
    'num_channels', 'resolution', 'label_size', 'fmap_base', 'fmap_decay', 'fmap_min', 'fmap_max',
    'architecture', 'nonlinearity', 'resample_kernel', 'mbstd_group_size', 'mbstd_num_features', 'dtype',
    'structure', 'is_template_graph',
}
TINY = dict(resolution=16, fmap_base=64, fmap_max=8)


class Stub:
    """Takes a pickled state, whatever it is."""

    def __setstate__(self, state):
        self.__dict__.update(state)


class Importer(pickle.Unpickler):

    def __init__(self, file):
        super().__init__(file)
        self.names = set()

    def find_class(self, module, name):
        self.names.add((module, name))
        if (module, name) == ('dnnlib.tflib.network', 'Network'):
            return Stub
        return super().find_class(module, name)


def collect(net, prefix=''):
    """{name: array} of a stub: components under the keys that the importers use."""
    values = {prefix + name: np.asarray(value) for name, value in net.variables}
    for key, component in net.components.items():
        values |= collect(component, f'{prefix}{key}/')
    return values


def check_kwargs(test, net, known):
    unknown = set(net.static_kwargs) - known
    for component in net.components.values():
        unknown |= set(component.static_kwargs) - known
    test.assertEqual(unknown, set())


def import_generator(test, net):
    """The PyTorch state dict of a pickled G."""
    test.assertGreaterEqual(net.version, 4)
    test.assertLessEqual({'synthesis', 'mapping'}, set(net.components))
    check_kwargs(test, net, G_KWARGS)
    source, result = collect(net), {}

    def modulated(torch, name, flip=False):
        weight = source[f'synthesis/{name}/weight']
        result[f'{torch}.weight'] = (weight[::-1, ::-1] if flip else weight).transpose(3, 2, 0, 1)
        result[f'{torch}.affine.weight'] = source[f'synthesis/{name}/mod_weight'].T
        result[f'{torch}.affine.bias'] = source[f'synthesis/{name}/mod_bias'] + 1
        result[f'{torch}.bias'] = source[f'synthesis/{name}/bias']

    def noisy(torch, name, index, flip=False):
        modulated(torch, name, flip)
        result[f'{torch}.noise_strength'] = source[f'synthesis/{name}/noise_strength']
        result[f'{torch}.noise_const'] = source[f'synthesis/noise{index}'][0, 0]
        result[f'{torch}.resample_filter'] = fir(net)

    result['mapping.w_avg'] = source['dlatent_avg']
    for index in range(net.static_kwargs.get('mapping_layers', 8)):
        result[f'mapping.fc{index}.weight'] = source[f'mapping/Dense{index}/weight'].T
        result[f'mapping.fc{index}.bias'] = source[f'mapping/Dense{index}/bias']
    architecture = net.static_kwargs.get('architecture', 'skip')
    resolution = net.static_kwargs['resolution']
    for log2 in range(2, resolution.bit_length()):
        size = 1 << log2
        block, scope = f'synthesis.b{size}', f'{size}x{size}'
        if size == 4:
            result[f'{block}.const'] = source['synthesis/4x4/Const/const'][0]
            noisy(f'{block}.conv1', '4x4/Conv', 0)
        else:
            noisy(f'{block}.conv0', f'{scope}/Conv0_up', 2 * log2 - 5, flip=True)
            noisy(f'{block}.conv1', f'{scope}/Conv1', 2 * log2 - 4)
            if architecture == 'resnet':
                skip = source[f'synthesis/{scope}/Skip/weight'].transpose(3, 2, 0, 1)
                result[f'{block}.skip.weight'] = skip
        if architecture == 'skip' or size == resolution:
            modulated(f'{block}.torgb', f'{scope}/ToRGB')
    return result


def import_discriminator(test, net):
    """The PyTorch state dict of a pickled D."""
    test.assertGreaterEqual(net.version, 4)
    check_kwargs(test, net, D_KWARGS)
    source, result = collect(net), {}
    places = [(r'(\d+)x\1/FromRGB', r'b\1.fromrgb'), (r'(\d+)x\1/Conv0', r'b\1.conv0'),
              (r'(\d+)x\1/Conv1_down', r'b\1.conv1'), (r'(\d+)x\1/Skip', r'b\1.skip'),
              ('4x4/Conv', 'b4.conv'), ('4x4/Dense0', 'b4.fc'), ('Output', 'b4.out')]
    for name, value in source.items():
        scope, _, kind = name.rpartition('/')
        torch = [re.sub(pattern, new, scope) for pattern, new in places if re.fullmatch(pattern, scope)]
        test.assertLen(torch, 1, name)
        layout = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[value.ndim]
        result[f'{torch[0]}.{kind}'] = value.transpose(layout)
    return result


def fir(net):
    taps = np.asarray(net.static_kwargs.get('resample_kernel', (1, 3, 3, 1)), np.float32)
    taps = np.outer(taps, taps)
    return taps / taps.sum()


def random_network(name, func, seed, **kwargs):
    network = tflib.Network(name, f'training.networks_stylegan2.{func}', **kwargs)
    rnd = np.random.RandomState(seed)
    for key, variable in network.vars.items():
        if key != 'lod':
            scale = 100 if 'Dense' in key and 'mapping' in key and key.endswith('weight') else 1
            network.set_var(key, scale * rnd.randn(*variable.shape))
    return network


class ImportersTest(tf.test.TestCase):

    def round_trip(self, networks):
        """Written, imported as PyTorch's programs do it, and converted back."""
        data = legacy.dumps(tuple(network.state() for network in networks))
        content = Importer(io.BytesIO(data)).load()
        self.assertIsInstance(content, tuple)
        self.assertLen(content, 3)
        G, D, Gs = content
        torch = {'G': import_generator(self, G), 'D': import_discriminator(self, D),
                 'G_ema': import_generator(self, Gs)}
        states, notes = pytorch.to_network_states(torch)
        self.assertEqual(notes, [])
        return torch, [tflib.Network.from_state(states[role]) for role in ('G', 'D', 'Gs')]

    def test_all_variants(self):
        latents = np.random.RandomState(0).randn(4, 8)
        for G_arch, D_arch in ('orig', 'skip'), ('skip', 'resnet'), ('resnet', 'orig'):
            kwargs = dict(TINY, architecture=G_arch, latent_size=8, dlatent_size=6, mapping_fmaps=7,
                          mapping_layers=2)
            made = [random_network('G', 'G_main', 1, **kwargs),
                    random_network('D', 'D_stylegan2', 2, **TINY, architecture=D_arch),
                    random_network('Gs', 'G_main', 3, **kwargs)]
            torch, read = self.round_trip(made)
            images = made[2].run(latents, None, truncation_psi=0.8, randomize_noise=False)
            again = read[2].run(latents, None, truncation_psi=0.8, randomize_noise=False)
            testutil.assert_close(self, again, images, 0, 1e-6, msg=f'{G_arch} {D_arch}')
            testutil.assert_close(self, read[1].run(images, None), made[1].run(images, None), 0, 1e-6)
            for one, other in zip(read, made, strict=True):
                for name, variable in other.vars.items():       # The 1 in the bias costs a rounding.
                    np.testing.assert_allclose(one.get_var(name), variable, rtol=0, atol=3e-7, err_msg=name)
            self.assertEqual(torch['G']['synthesis.b8.conv0.weight'].shape, (8, 8, 3, 3))
            self.assertEqual(torch['D']['b4.fc.weight'].shape, (8, 8 * 16))

    @testutil.needs_golden
    def test_golden(self):
        for name in ('f_uncond_Gskip_Dresnet_32', 'f_uncond_Gskip_Dresnet_64', 'e_Gorig_Dorig_32',
                     'e_Gresnet_Dskip_32'):
            states = legacy.load_pkl(testutil.golden('stylegan2', f'{name}.pkl'))
            _, read = self.round_trip([tflib.Network.from_state(state) for state in states])
            if name != 'e_Gresnet_Dskip_32':      # Of the others, names and shapes are enough.
                continue
            arrays = testutil.load('stylegan2', f'{name}_Gs.npz')
            images = read[2].run(arrays['latents'], None, truncation_psi=1, randomize_noise=False)
            testutil.assert_close(self, images, arrays['image_psi1'])
            arrays = testutil.load('stylegan2', f'{name}_D.npz')
            testutil.assert_close(self, read[1].run(arrays['d_images'], None), arrays['d_scores'])

    def test_names_in_the_pickle(self):
        """Only modules that every NumPy since 1.0 has, only the classes that importers replace."""
        made = [random_network('G', 'G_main', 1, **TINY, latent_size=8, dlatent_size=6, mapping_layers=1),
                random_network('D', 'D_stylegan2', 2, **TINY)]
        data = legacy.dumps((made[0].state(), made[1].state(), made[0].state()))
        importer = Importer(io.BytesIO(data))
        importer.load()
        self.assertEqual(importer.names, {
            ('dnnlib.tflib.network', 'Network'), ('numpy', 'ndarray'), ('numpy', 'dtype'),
            ('numpy.core.multiarray', '_reconstruct'), ('numpy.core.multiarray', 'scalar')})
        self.assertEqual(data[:2], b'\x80\x04')


if __name__ == '__main__':
    unittest.main()
