"""Official import path of `custom_ops.fused_bias_act`."""

from custom_ops import activation_funcs, fused_bias_act

__all__ = ['activation_funcs', 'fused_bias_act']
