"""Distributions that latents are drawn from, in the graph and in NumPy, and how they are truncated.

A distribution has a name, 'normal', or a name with numbers, 'random_scale:0.5,1.5'. All elements are drawn
independently of each other (BigGAN, appendix E). Training draws by `draw`, everything that has a seed by
`sample`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dnnlib.util import UserError, did_you_mean

if TYPE_CHECKING:
    import tensorflow as tf

    from training.context import Context

__all__ = ['DISTRIBUTIONS', 'TRUNCATION_MODES', 'Distribution', 'annealed_sigma', 'check',
           'check_truncation', 'draw', 'sample', 'truncated']

TRUNCATION_MODES = ('resample', 'scale', 'std')
_HUB_BOUND = 2.0    # Where the mode 'scale' cuts the normal distribution before it scales it.


# Sources of random numbers: what a distribution is made of.

class _GraphSource:
    """Random numbers of a context, which are those of a training step."""

    def __init__(self, ctx: 'Context', progress: Any):
        import tensorflow as tf
        self._tf, self._ctx, self.progress = tf, ctx, progress

    def normal(self, shape, deviation=1.0):
        return self._ctx.normal(shape) * deviation

    def uniform(self, shape):
        return self._ctx.uniform(shape)

    def indicator(self, condition):
        return self._tf.cast(condition, self._tf.float32)

    def concat(self, parts):
        return self._tf.concat(parts, axis=-1)

    def floor(self, x):
        return self._tf.floor(x)


class _ArraySource:
    """Random numbers of a RandomState, in float64.

    Normal numbers, whatever their deviation, lie in [-bound, bound] and are multiplied by a factor.
    """

    floor = staticmethod(np.floor)

    def __init__(self, rnd: np.random.RandomState, progress: float, bound: float | None = None,
                 factor: float = 1.0):
        self._rnd, self._bound, self._factor, self.progress = rnd, bound, factor, progress

    def normal(self, shape, deviation=1.0):
        values = self._rnd.randn(*shape)
        if self._bound is not None:
            values = truncated(values, self._bound / deviation)
        return values * deviation * self._factor

    def uniform(self, shape):
        return self._rnd.random_sample(tuple(shape))

    def indicator(self, condition):
        return condition.astype(np.float64)

    def concat(self, parts):
        return np.concatenate(parts, axis=-1)


# The distributions: functions (source, shape, *numbers).

def _normal(source, shape):
    return source.normal(shape)


def _uniform(source, shape):
    return source.uniform(shape) * 2 - 1


def _bernoulli(source, shape):
    return source.indicator(source.uniform(shape) < 0.5)


def _censored_normal(source, shape):
    values = source.normal(shape)
    return values * source.indicator(values > 0)


def _signs(source, shape):
    return _bernoulli(source, shape) * 2 - 1


def _ternary(source, shape):
    return source.floor(source.uniform(shape) * 3) - 1


def _normal_bernoulli(source, shape):
    return source.normal(shape) * _bernoulli(source, shape)


def _half_bernoulli(source, shape):
    *rest, size = shape
    half = (size + 1) // 2
    return source.concat([source.normal([*rest, half]), _bernoulli(source, [*rest, size - half])])


def annealed_sigma(progress: Any, start: float = 2.0, until: float = 0.5) -> Any:
    """The standard deviation of 'annealed_normal': linearly from `start` to 1 at `until`, then 1.

    Args:
        progress: Share of the training that is done, 0 to 1; a number or a tensor.
    """
    left = 1 - progress / until
    return 1 + (start - 1) * (left + abs(left)) / 2


def _annealed_normal(source, shape, start, until):
    return source.normal(shape, annealed_sigma(source.progress, start, until))


def _random_scale(source, shape, low, high):
    scales = source.uniform([*shape[:-1], 1]) * (high - low) + low
    return source.normal(shape, scales)


@dataclasses.dataclass(frozen=True)
class Distribution:
    """One of DISTRIBUTIONS."""

    func: Callable                          # (source, shape, *numbers) → values.
    text: str                               # What it is, for --help.
    bounded: str = 'normal'                 # What truncation bounds: 'normal', 'uniform', '' = nothing.
    numbers: dict[str, float] = dataclasses.field(default_factory=dict)     # Its numbers, with defaults.


DISTRIBUTIONS: dict[str, Distribution] = {
    'normal': Distribution(_normal, 'N(0, 1), the reference'),
    'uniform': Distribution(_uniform, 'uniform in [-1, 1]', 'uniform'),
    'bernoulli': Distribution(_bernoulli, '0 or 1', ''),
    'censored_normal': Distribution(_censored_normal, 'max(N(0, 1), 0)'),
    'signs': Distribution(_signs, '-1 or 1', ''),
    'ternary': Distribution(_ternary, '-1, 0 or 1', ''),
    'normal_bernoulli': Distribution(_normal_bernoulli, 'N(0, 1) times 0 or 1'),
    'half_bernoulli': Distribution(_half_bernoulli, 'the first half N(0, 1), the second half 0 or 1'),
    'annealed_normal': Distribution(
        _annealed_normal, 'N(0, σ²), σ from 2 at the start of the training to 1 in its middle',
        numbers=dict(start=2.0, until=0.5)),
    'random_scale': Distribution(
        _random_scale, 'N(0, σ²), σ of each sample uniform in [low, high]',
        numbers=dict(low=0.5, high=1.5)),
}


def _parse(name: str) -> tuple[Distribution, list[float]]:
    base, colon, rest = name.partition(':') if isinstance(name, str) else ('', '', '')
    found = DISTRIBUTIONS.get(base)
    if found is None:
        raise UserError(f'there is no distribution of latents {name!r}; expected one of '
                        f'{", ".join(DISTRIBUTIONS)}{did_you_mean(base, DISTRIBUTIONS, 1)}')
    if not colon:
        return found, list(found.numbers.values())
    try:
        numbers = [float(part) for part in rest.split(',')]
    except ValueError:
        numbers = []
    if len(numbers) != len(found.numbers) or not np.all(np.isfinite(numbers)) or min(numbers) <= 0:
        wanted = f'{base}:{",".join(found.numbers)} with positive numbers'
        wanted = wanted if found.numbers else f'{base} alone'
        raise UserError(f'latent distribution {name!r}: expected {wanted}')
    return found, numbers


def check(name: str) -> str:
    """The name of a distribution as it is. Errors: UserError, with the known ones, where it is none."""
    _parse(name)
    return name


def draw(distribution: str, ctx: 'Context', shape: Sequence[int], progress: Any = 1.0) -> 'tf.Tensor':
    """Latents in the graph.

    Args:
        distribution: Name, see DISTRIBUTIONS.
        ctx: What gives the random numbers.
        shape: [N, latent_size].
        progress: Share of the training that is done, number or tensor; of 'annealed_normal' only.

    Returns: float32 of that shape.
    """
    found, numbers = _parse(distribution)
    return found.func(_GraphSource(ctx, progress), shape, *numbers)


def truncated(values: np.ndarray, bound: float | np.ndarray) -> np.ndarray:
    """The truncated normal distribution in [-bound, bound], at the quantiles of normal numbers.

    The result is distributed as if numbers outside of the bounds were drawn again until they are inside. But
    one normal number gives one result, which moves towards 0 with the bound: a seed shows one thing at all
    truncations.
    """
    from scipy.special import ndtr, ndtri
    outside = ndtr(-bound)
    # By the lower tail: near 1 a double has no room for small differences.
    quantiles = outside + ndtr(-np.abs(values)) * (1 - 2 * outside)
    return np.copysign(np.clip(-ndtri(quantiles), 0, bound), values)


def sample(
    distribution: str,                      # Name, see DISTRIBUTIONS.
    rnd: np.random.RandomState,             # What gives the random numbers.
    shape: Sequence[int],                   # [N, latent_size].
    truncation: float | None = None,        # None = off.
    mode: str = 'resample',                 # One of TRUNCATION_MODES.
) -> np.ndarray:
    """Latents of a RandomState: float32 of that shape. Those of the end of the training, where they change.

    'resample' bounds the elements to [-t, t] (BigGAN), 'scale' multiplies elements bounded to [-2, 2] by t
    (TensorFlow Hub), 'std' multiplies unbounded ones by t (BigGAN-PyTorch). What is not normal or uniform in
    a distribution, its elements 0 and 1, stays as it is; but t = 0 gives zeros.

    Errors: UserError for a truncation that is negative or that the distribution does not have.
    """
    found, numbers = _parse(distribution)
    check_truncation(distribution, truncation, mode)
    bound, factor = {'resample': (truncation, 1.0), 'scale': (_HUB_BOUND, truncation),
                     'std': (None, truncation)}[mode] if truncation is not None else (None, 1.0)
    values = found.func(_ArraySource(rnd, 1.0, bound, factor), shape, *numbers)
    if found.bounded == 'uniform':
        values = values * factor * (1 if bound is None else min(bound, 1))
    if truncation == 0:
        values = values * 0
    return np.asarray(values + 0.0, np.float32)


def check_truncation(distribution: str, truncation: float | None, mode: str = 'resample') -> None:
    """Errors: UserError for a truncation that is negative or that the distribution does not have."""
    if mode not in TRUNCATION_MODES:
        raise UserError(f'there is no truncation mode {mode!r}; expected one of {", ".join(TRUNCATION_MODES)}'
                        f'{did_you_mean(str(mode), TRUNCATION_MODES, 1)}')
    if truncation is None:
        return
    if not 0 <= truncation < np.inf:
        raise UserError(f'truncation: expected a number from 0 on, received {truncation}')
    if not _parse(distribution)[0].bounded:
        raise UserError(f'latents of the distribution {distribution} have discrete values, which cannot be '
                        'truncated; leave the truncation out')
