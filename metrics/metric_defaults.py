"""Metrics by name: what `--metrics` takes, and the arguments of the classes behind the names.

Counts stand in the names: fid50k, fid5k, fid200, kid10k, pr2k3 (2000 images, 3 neighbours), ppl1k_wend.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from dnnlib.util import UserError, did_you_mean

__all__ = ['FAMILIES', 'OFFICIAL_METRICS', 'Family', 'better_of', 'find_metric', 'metric_defaults',
           'metric_of_result']

# The names that official command lines use.
OFFICIAL_METRICS = ('fid50k', 'kid50k', 'is50k', 'ppl_zfull', 'ppl_wfull', 'ppl_zend', 'ppl_wend',
                    'ppl2_wend', 'ls', 'pr50k3', 'fid50k_full', 'kid50k_full', 'pr50k3_full')

_COUNT = r'(?P<count>[1-9]\d*k?)'


class Family(NamedTuple):
    """Metrics that differ in counts and options alone."""

    names: tuple[str, ...]                  # Those that --list shows.
    pattern: str                            # Of all names, a regular expression.
    func_name: str                          # Class.
    description: str                        # One sentence for --list.
    kwargs: Callable[[dict[str, Any], int | None], dict[str, Any]]  # (groups, count) → arguments.
    renamed: str                            # Name with another count: '{count}' and groups stand in it.
    extractor: str | None = None            # Feature network.


def _frechet(groups: dict, count: int | None) -> dict:
    return dict(num_images=count or 50000, full=bool(groups.get('full')))


def _kid(groups: dict, count: int | None) -> dict:
    return dict(num_images=count or 50000, full=bool(groups.get('full')), num_subsets=100,
                max_subset_size=1000)


def _pr(groups: dict, count: int | None) -> dict:
    num_images = count or 50000
    full = bool(groups.get('full'))
    return dict(num_images=num_images, num_reals=200000 if full else num_images, full=full,
                nhood_size=int(groups.get('k') or 3))


def _ppl(groups: dict, count: int | None) -> dict:
    return dict(num_samples=count or 50000, epsilon=1e-4, space=groups['space'], sampling=groups['sampling'],
                crop=not groups.get('two'))


def _mix(groups: dict, count: int | None) -> dict:
    return dict(num_images=count or 50000,
                num_latents=[int(groups['mixed'])] if groups.get('mixed') else [1, 2, 3, 4])


_FID = 'metrics.frechet_inception_distance.FID'
_CLASS_FID = 'metrics.frechet_inception_distance.ClassFID'
_MIXING = 'metrics.style_mixing_fid.MixingFID'
_KID = 'metrics.kernel_inception_distance.KID'
_IS = 'metrics.inception_score.IS'
_PR = 'metrics.precision_recall.PR'
_PPL = 'metrics.perceptual_path_length.PPL'
_SWEEP = 'metrics.truncation_sweep.TruncationSweep'
_NET = r'(?P<net>efflite0|random)'

FAMILIES: tuple[Family, ...] = (
    Family(('fid50k', 'fid50k_full'), rf'fid{_COUNT}(?P<full>_full)?', _FID,
           'Fréchet Inception distance of 50k images to 50k reals, or to all (_full)', _frechet,
           'fid{count}{full}', 'inception'),
    Family(('fd_efflite0', 'fd_efflite0_full', 'fd_efflite0_1k'),
           rf'fd_{_NET}(?P<full>_full)?(_{_COUNT})?', _FID,
           'Fréchet distance with EfficientNet-Lite0 features, no FID; 50k images unless the name says '
           'otherwise', _frechet, 'fd_{net}{full}_{count}'),
    Family(('kid50k', 'kid50k_full'), rf'kid{_COUNT}(?P<full>_full)?', _KID,
           'Kernel Inception distance, unbiased, 100 subsets of up to 1000', _kid, 'kid{count}{full}',
           'inception'),
    Family(('kd_efflite0',), rf'kd_{_NET}(?P<full>_full)?(_{_COUNT})?', _KID,
           'The kernel distance with EfficientNet-Lite0 features', _kid, 'kd_{net}{full}_{count}'),
    Family(('is50k',), rf'is{_COUNT}', _IS, 'Inception score, mean and deviation over 10 splits',
           lambda groups, count: dict(num_images=count or 50000, num_splits=10), 'is{count}', 'inception'),
    Family(('is_efflite0',), rf'is_{_NET}(_{_COUNT})?', _IS,
           'The same score with the classes of EfficientNet-Lite0, no Inception score',
           lambda groups, count: dict(num_images=count or 50000, num_splits=10), 'is_{net}_{count}'),
    Family(('pr50k3', 'pr50k3_full'), r'pr(?P<count>[1-9]\d*k|[1-9]\d*(?=_k))(_k)?(?P<k>[1-9]\d?)'
           r'(?P<full>_full)?', _PR,
           'Precision and recall by 3 neighbours of VGG16 features; _full: up to 200k reals', _pr,
           'pr{count}{sep}{k}{full}', 'vgg16'),
    Family(('pr_efflite0',), rf'pr_{_NET}(?P<full>_full)?(_{_COUNT})?', _PR,
           'Precision and recall with EfficientNet-Lite0 features', _pr, 'pr_{net}{full}_{count}'),
    Family(('ppl_zfull', 'ppl_wfull', 'ppl_zend', 'ppl_wend', 'ppl2_wend', 'ppl2_wend_efflite0'),
           rf'ppl(?P<two>2(?=_))?(_(?=\d))?(?P<count>[1-9]\d*k?)?_(?P<space>[zw])(?P<sampling>full|end)'
           rf'(_{_NET})?', _PPL,
           'Perceptual path length in z or w, over whole paths or at their ends; ppl2: without the crop to '
           'the face', _ppl, 'ppl{two}{ppl_sep}{count}_{space}{sampling}{net_}', 'lpips'),
    Family(('ls',), rf'ls{_COUNT}?', 'metrics.linear_separability.LS',
           'Linear separability of attributes in z and w, by classifiers of 40 attributes',
           lambda groups, count: dict(num_samples=count or 200000, num_keep=(count or 200000) // 2),
           'ls{count}'),
    Family(('swd16k',), rf'swd{_COUNT}', 'metrics.sliced_wasserstein.SWD',
           "ProGAN's sliced Wasserstein distance of patches at every resolution",
           lambda groups, count: dict(num_images=16384 if groups['count'] == '16k' else count), 'swd{count}'),
    Family(('msssim10k',), rf'msssim{_COUNT}', 'metrics.ms_ssim.MSSSIM',
           'Multi-scale structural similarity of pairs of generated images: high = no variety',
           lambda groups, count: dict(num_images=count), 'msssim{count}'),
    Family(('fid50k_class', 'fd_efflite0_class'),
           rf'(fid{_COUNT}_class|fd_{_NET}_class(_(?P<count2>[1-9]\d*k?))?)', _CLASS_FID,
           'FID of every class by itself, and their mean; the count is per class',
           lambda groups, count: dict(num_images=count or 50000), '{class_name}', 'inception'),
    Family(('fid50k_mix', 'fid50k_mix2', 'fd_efflite0_mix'),
           rf'(fid{_COUNT}_mix(?P<mixed>[1-4])?|fd_{_NET}_mix(?P<mixed2>[1-4])?(_(?P<count2>[1-9]\d*k?))?)',
           _MIXING, "FID while 1 to 4 latents are mixed at random crossovers (StyleGAN's Table 2)", _mix,
           '{mix_name}', 'inception'),
    Family(('sweep5k', 'sweep_efflite0'), rf'(sweep{_COUNT}|sweep_{_NET}(_(?P<count2>[1-9]\d*k?))?)', _SWEEP,
           'FID, IS, precision and recall over truncation psi, with a plot',
           lambda groups, count: dict(num_images=count or 5000), '{sweep_name}', 'inception'),
)


def count_of(text: str) -> int:
    """'50k' → 50000."""
    return int(text[:-1]) * 1000 if text.endswith('k') else int(text)


def count_text(count: int) -> str:
    """50000 → '50k', 1234 → '1234'."""
    return f'{count // 1000}k' if count % 1000 == 0 else str(count)


def find_metric(name: str, num_images: int | None = None) -> dict[str, Any]:
    """'func_name' and keyword arguments of a metric by name, 'name' among them.

    Args:
        name: A name that one of the FAMILIES describes.
        num_images: Number of images instead of the one in the name, which changes with it.

    Errors: UserError for an unknown name.
    """
    for family in FAMILIES:
        match = re.fullmatch(family.pattern, name)
        if match:
            return _arguments(family, name, match.groupdict(), num_images)
    known = [known for family in FAMILIES for known in family.names]
    raise UserError(f'--metrics: expected none or some of {", ".join(known)}, with any count, such as fid5k. '
                    f'Received: {name}{did_you_mean(name, known, 1)}')


def _arguments(family: Family, name: str, groups: dict[str, Any], num_images: int | None) -> dict[str, Any]:
    for key in ('count', 'mixed'):
        groups[key] = groups.get(key) or groups.pop(f'{key}2', None)
    count = num_images or (groups['count'] and count_of(groups['count']))
    if num_images:
        groups['count'] = count_text(num_images)
        name = _renamed(family, groups)
    args = dict(func_name=family.func_name, name=name, **family.kwargs(groups, count))
    extractor = groups.get('net') or family.extractor
    return args if extractor is None else dict(args, extractor=extractor)


def _renamed(family: Family, groups: dict[str, Any]) -> str:
    text = {key: value or '' for key, value in groups.items()}
    count, net = text['count'], text.get('net', '')
    text['sep'] = '' if count.endswith('k') else '_k'
    text['ppl_sep'] = '_' if text.get('two') else ''
    text['net_'] = f'_{net}' if net else ''
    text['class_name'] = f'fd_{net}_class_{count}' if net else f'fid{count}_class'
    mixed = text.get('mixed', '')
    text['mix_name'] = f'fd_{net}_mix{mixed}_{count}' if net else f'fid{count}_mix{mixed}'
    text['sweep_name'] = f'sweep_{net}_{count}' if net else f'sweep{count}'
    return family.renamed.format(**text)


def better_of(name: str) -> str:
    """Which values of a result are better: 'low', 'high', or '' where neither is."""
    if re.match(r'is\d|is_|pr\d|pr_', name):
        return '' if name.endswith('_std') else 'high'
    return 'low' if re.match(r'fid|fd_|kid|kd_|ppl|ls|swd', name) else ''


# What a metric with several results can be judged by, by class: suffixes, '' for the one that sums it up.
_JUDGED_BY = {_PR: ('_precision', '_recall'), _IS: ('', '_mean'), _CLASS_FID: ('', '_mean'),
              'metrics.sliced_wasserstein.SWD': ('', '_avg'),
              'metrics.linear_separability.LS': ('_z', '_w')}


def metric_of_result(name: str) -> dict[str, Any]:
    """Arguments of the metric that has this result, one by which networks can be ranked.

    Errors: UserError for what is no such result, as pr5k3, which has two.
    """
    stem, suffix = re.fullmatch(r'(.*?)((?:_precision|_recall|_mean|_avg|_[zw])?)', name).groups()
    try:
        args = find_metric(stem)
    except UserError:
        args = None
    if args is None or not better_of(name):
        raise UserError('expected a metric of which high or low values are better, as fid5k, is5k or '
                        f'pr5k3_recall. Received: {name}')
    one_of_mixing = args['func_name'] != _MIXING or len(args['num_latents']) == 1
    suffixes = _JUDGED_BY.get(args['func_name'], ('',) if one_of_mixing else ())
    if suffix not in suffixes:
        known = [stem + other for other in suffixes]
        raise UserError(f'expected one result of {stem}{", " * bool(known)}{" or ".join(known)}. '
                        f'Received: {name}')
    return args


# Name → arguments, of the names that --list shows.
metric_defaults: dict[str, dict[str, Any]] = {
    name: find_metric(name) for family in FAMILIES for name in family.names}
