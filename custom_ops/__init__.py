"""The operations that StyleGAN2 fuses.

Bias + activation + gain; upsample + FIR filter + downsample; and, on a CPU, everything that follows a
modulated convolution.
"""

import sys

from dnnlib.startup import load_tensorflow

# `python -m custom_ops.build` imports this package before its own first line: TensorFlow is to be as silent
# there as under every other command line.
if sys.argv[:1] == ['-m']:
    load_tensorflow()

from custom_ops.filter_noise_bias_act import filter_noise_bias_act
from custom_ops.fused_bias_act import activation_funcs, fused_bias_act
from custom_ops.upfirdn_2d import (
    conv_downsample_2d,
    downsample_2d,
    filter_2d,
    unfiltered_upsample_conv_2d,
    upfirdn_2d,
    upsample_2d,
    upsample_conv_2d,
)

__all__ = ['activation_funcs', 'fused_bias_act', 'filter_noise_bias_act', 'upfirdn_2d', 'upsample_2d',
           'downsample_2d', 'filter_2d', 'upsample_conv_2d', 'unfiltered_upsample_conv_2d',
           'conv_downsample_2d']
