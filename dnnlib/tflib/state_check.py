"""Arguments of pickled networks that nothing checks before the network runs: refused while it is loaded.

Shapes are checked when a network is built. What is left are arguments that only the graph of a call would
stumble over, with an error of TensorFlow's or by taking any amount of memory.
"""

from typing import Any

from dnnlib.tflib.legacy import NetworkState
from dnnlib.util import UserError

__all__ = ['check_arguments']

MAX_TAPS = 64


def check_arguments(state: NetworkState) -> None:
    """Raises UserError that lists the arguments of a network, components included, that cannot be meant.

    Unknown arguments pass: they are harmless, and kept.
    """
    problems = []
    pending = [state]
    while pending:
        network = pending.pop()
        for key, value in network.static_kwargs.items():
            check, expected = _CHECKS.get(key, (None, '')) if isinstance(key, str) else (None, '')
            if check is not None and not check(value):
                problems.append(f'{key} of {network.name!r:.60} is {repr(value)[:40]}, expected {expected}')
        pending += network.components.values()
    if problems:
        problems = list(dict.fromkeys(problems))
        more = f'; and {len(problems) - 5} more' if len(problems) > 5 else ''
        raise UserError('; '.join(problems[:5]) + more)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and abs(value) < 1 << 31


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and -1e30 < value < 1e30     # Neither nan nor infinite.


def _is_flag(value: Any) -> bool:
    return value is None or isinstance(value, bool) or _is_int(value)


def _is_kernel(value: Any) -> bool:
    """None, taps, or rows of taps; few and finite, with a sum to divide by."""
    if value is None:
        return True
    if not isinstance(value, list | tuple) or not 0 < len(value) <= MAX_TAPS:
        return False
    rows = value if all(isinstance(row, list | tuple) for row in value) else [value]
    if any(len(row) != len(rows[0]) or not 0 < len(row) <= MAX_TAPS for row in rows):
        return False
    taps = [tap for row in rows for tap in row]
    return all(_is_number(tap) for tap in taps) and abs(sum(taps)) > 1e-6 * max(abs(tap) for tap in taps)


def _optional(check):
    return lambda value: value is None or check(value)


_NUMBER = (_optional(_is_number), 'a number or None')
_CUTOFF = (_optional(_is_int), 'a whole number or None')
_FLAG = (_is_flag, 'True or False')
_CHECKS = {
    'resample_kernel': (_is_kernel, f'None or at most {MAX_TAPS} numbers'),
    'blur_filter': (_is_kernel, f'None or at most {MAX_TAPS} numbers'),
    **dict.fromkeys(['truncation_psi', 'truncation_psi_val', 'dlatent_avg_beta', 'style_mixing_prob',
                     'mapping_lrmul'], _NUMBER),
    **dict.fromkeys(['truncation_cutoff', 'truncation_cutoff_val', 'dlatent_broadcast', 'mbstd_group_size',
                     'mbstd_num_features'], _CUTOFF),
    **dict.fromkeys(['randomize_noise', 'is_training', 'is_validation', 'return_dlatents',
                     'normalize_latents', 'use_noise', 'use_styles', 'use_wscale', 'use_pixelnorm',
                     'use_pixel_norm', 'use_instance_norm', 'const_input_layer', 'fused_modconv',
                     'is_template_graph', 'force_clean_graph'], _FLAG),
}
