"""The interface between training and metrics: a group of metrics that is run on a snapshot."""

from collections.abc import Sequence
from typing import Any

from dnnlib.util import UserError, get_obj_by_name

# Name of a metric → keyword arguments of its class, 'func_name' among them.
metric_defaults: dict[str, dict[str, Any]] = {}


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
    """Arguments of the metrics of a comma list; 'none' and '' mean no metric. UserError for an unknown name."""
    names = [name.strip() for name in names.split(',')] if isinstance(names, str) else list(names)
    names = [name for name in names if name and name.lower() != 'none']
    unknown = [name for name in names if name not in metric_defaults]
    if unknown:
        raise UserError(f'--metrics: expected none or some of {", ".join(metric_defaults) or "(no metric yet)"}. '
                        f'Received: {",".join(unknown)}')
    return [metric_defaults[name] for name in names]
