"""The interface between training and metrics: a group of metrics that is run on a snapshot."""

import sys
from collections.abc import Sequence
from typing import Any

from dnnlib.util import UserError, did_you_mean, get_obj_by_name

# Name of a metric → keyword arguments of its class, 'func_name' among them.
metric_defaults: dict[str, dict[str, Any]] = {}

# The names that official command lines use: those that are not available are left out with a warning, not an
# error.
OFFICIAL_METRICS = ('fid50k', 'kid50k', 'is50k', 'ppl_zfull', 'ppl_wfull', 'ppl_zend', 'ppl_wend',
                    'ppl2_wend', 'ls', 'pr50k3', 'fid50k_full', 'kid50k_full', 'pr50k3_full')


class MetricGroup:
    """Several metrics that are evaluated together.

    Args:
        metric_arg_list: One dict per metric: 'func_name' and keyword arguments of its class.
    """

    def __init__(self, metric_arg_list: Sequence[dict[str, Any]] = ()):
        self.metrics = [get_obj_by_name(args['func_name'])(**{key: value for key, value in args.items()
                                                              if key != 'func_name'})
                        for args in metric_arg_list]

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Evaluates every metric on a snapshot."""
        for metric in self.metrics:
            metric.run(*args, **kwargs)

    def get_result_str(self) -> str:
        """Results of all metrics in one line."""
        return ' '.join(metric.get_result_str() for metric in self.metrics)

    def update_autosummaries(self) -> None:
        """Reports the results to TensorBoard."""
        for metric in self.metrics:
            metric.update_autosummaries()


def find_metrics(names: str | Sequence[str]) -> list[dict[str, Any]]:
    """Arguments of the metrics of a comma list; 'none' and '' mean no metric.

    Official metrics that this version does not have are left out, with one warning on stderr.

    Errors: UserError for an unknown name.
    """
    names = [name.strip() for name in names.split(',')] if isinstance(names, str) else list(names)
    names = [name for name in names if name and name.lower() != 'none']
    known = list(dict.fromkeys([*metric_defaults, *OFFICIAL_METRICS]))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f'--metrics: expected none or some of {", ".join(known)}. '
                        f'Received: {",".join(unknown)}{did_you_mean(unknown[0], known, 1)}')
    missing = [name for name in names if name not in metric_defaults]
    if missing:
        print(f'Warning: --metrics: not available in this version and left out: {", ".join(missing)}',
              file=sys.stderr)
    return [metric_defaults[name] for name in names if name in metric_defaults]
