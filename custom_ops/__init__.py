"""The two operations that StyleGAN2 fuses: bias + activation + gain, upsample + FIR filter + downsample."""

from custom_ops.fused_bias_act import activation_funcs, fused_bias_act
from custom_ops.upfirdn_2d import (
    conv_downsample_2d,
    downsample_2d,
    filter_2d,
    upfirdn_2d,
    upsample_2d,
    upsample_conv_2d,
)

__all__ = ['activation_funcs', 'fused_bias_act', 'upfirdn_2d', 'upsample_2d', 'downsample_2d', 'filter_2d',
           'upsample_conv_2d', 'conv_downsample_2d']
