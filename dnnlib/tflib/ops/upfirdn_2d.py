"""Official import path of `custom_ops.upfirdn_2d`."""

from custom_ops import (
    conv_downsample_2d,
    downsample_2d,
    filter_2d,
    upfirdn_2d,
    upsample_2d,
    upsample_conv_2d,
)

__all__ = ['upfirdn_2d', 'filter_2d', 'upsample_2d', 'downsample_2d', 'upsample_conv_2d',
           'conv_downsample_2d']
