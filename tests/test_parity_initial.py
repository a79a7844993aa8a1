"""New networks: the official initial values, and numbers that do not hang on the precision."""

import re

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from training.networks_progan import D_paper, G_paper
from training.networks_stylegan import D_basic, G_style
from training.networks_stylegan2 import D_stylegan, D_stylegan2, G_main

SMALL = dict(num_channels=3, resolution=16, label_size=5, fmap_base=256, fmap_max=32)
SIZES = dict(latent_size=24, dlatent_size=32, mapping_fmaps=32, mapping_layers=3)
GENERATORS = {
    'progan': lambda **kwargs: G_paper(**SMALL, latent_size=24, **kwargs),
    'stylegan': lambda **kwargs: G_style(**SMALL, **SIZES, **kwargs),
    'traditional': lambda **kwargs: G_style(**SMALL, **SIZES, use_styles=False, const_input_layer=False,
                                            **kwargs),
    'revised': lambda **kwargs: G_main(**SMALL, **SIZES, synthesis_func='G_synthesis_stylegan_revised',
                                       **kwargs),
    'stylegan2': lambda **kwargs: G_main(**SMALL, **SIZES, **kwargs),
    'resnet': lambda **kwargs: G_main(**SMALL, **SIZES, architecture='resnet', **kwargs),
}
DISCRIMINATORS = {
    'progan': lambda **kwargs: D_paper(**SMALL, **kwargs),
    'stylegan': lambda **kwargs: D_basic(**SMALL, **kwargs),
    'revised': lambda **kwargs: D_stylegan(**SMALL, **kwargs),
    'stylegan2': lambda **kwargs: D_stylegan2(**SMALL, **kwargs),
}


def deviation(name: str, kind: str) -> float | None:
    """Standard deviation of a variable at the start; 0 for zeros, None for ones."""
    if re.search(r'(^|/)(lod|dlatent_avg|bias|mod_bias|noise_strength|Noise/weight)$', name):
        return 0
    if name.endswith('/const') and kind == 'stylegan':
        return None
    return 100 if re.match(r'G_mapping/Dense\d/weight', name) else 1


class InitialValuesTest(parameterized.TestCase, tf.test.TestCase):

    @parameterized.parameters(*[(key, role) for role, networks in (('G', GENERATORS), ('D', DISCRIMINATORS))
                                for key in networks])
    def test_distributions(self, key, role):
        tf.keras.utils.set_random_seed(1)
        network = (GENERATORS if role == 'G' else DISCRIMINATORS)[key]()
        for name, variable in network.named_variables().items():
            value, expected = variable.numpy(), deviation(name, key)
            if not expected:
                self.assertAllEqual(value, np.full(value.shape, float(expected is None)), name)
                continue
            # Five standard errors of the mean and of the deviation of normal numbers.
            self.assertLess(abs(value.mean()), 5 * expected / value.size ** 0.5, name)
            self.assertLess(abs(value.std() / expected - 1), 5 / (2 * value.size) ** 0.5, name)

    @parameterized.parameters('progan', 'stylegan', 'stylegan2')
    def test_precision(self, key):
        """Where noise is zero and the input constant, as at the start, rounding must not grow."""
        tf.keras.utils.set_random_seed(1)
        rng = np.random.RandomState(0)
        latents, labels = rng.randn(4, 24), np.eye(5)[[0, 3, 4, 3]]
        values, results = {}, {}
        for dtype in ('float32', 'float64', 'mixed_float16'):
            G, D = GENERATORS[key](dtype=dtype), DISCRIMINATORS[key](dtype=dtype)
            for role, network in (('G', G), ('D', D)):
                for name, variable in network.named_variables().items():
                    variable.assign(values.setdefault((role, name), variable.numpy()))
            given = [tf.constant(array, G.compute_dtype) for array in (latents, labels)]
            options = {} if key == 'progan' else dict(randomize_noise=False, truncation_psi=None)
            images = G(*given, **options)
            results[dtype] = [images, tf.nest.flatten(D(images, given[1]))[0]]
        for dtype, tolerance in (('float32', 1e-5), ('mixed_float16', 0.03)):
            for actual, expected in zip(results[dtype], results['float64'], strict=True):
                self.assertAllClose(tf.cast(actual, tf.float64), expected, rtol=0,
                                    atol=tolerance * np.max(np.abs(expected)))


if __name__ == '__main__':
    tf.test.main()
