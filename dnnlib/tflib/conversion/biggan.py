"""Published weights of BigGAN as our networks: what they are is inferred from their names and shapes."""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dnnlib.tflib.conversion import biggan_names
from dnnlib.tflib.conversion.biggan_sources import KINDS, Weights
from dnnlib.tflib.legacy import NetworkState
from dnnlib.util import UserError

__all__ = ['OVERRIDES', 'change_classes', 'make_form', 'network_shapes', 'to_state']

# Arguments of our networks that users may state instead of having them inferred.
OVERRIDES = ('resolution', 'ch', 'latent_size', 'attention', 'bn_epsilon', 'final_bn_epsilon', 'sn_epsilon')
MAX_BLOCKS = 12
_NAMED = 12             # Names of a kind that a message lists.


class _Plan(NamedTuple):
    """What a file was found to be."""

    function: str               # Our network, and
    kwargs: dict[str, Any]      # its arguments.
    form: biggan_names.Form


def to_state(weights: Weights, role: str, **overrides: Any) -> tuple[NetworkState, list[str]]:
    """One network of ours.

    Args:
        weights: What `biggan_sources.read` returned.
        role: 'G', 'D' or 'Gs', the name of the network.
        **overrides: Values for OVERRIDES; None = inferred.

    Returns: the network, and notes for the user.
    Errors: UserError that lists all that is missing, superfluous or of another shape.
    """
    notes = list(weights.notes)
    overrides = {key: value for key, value in overrides.items() if value is not None}
    try:
        plan = _infer(weights, overrides)
        values = _fill(plan, network_shapes(plan.function, plan.kwargs), weights, notes)
    except UserError as error:
        raise UserError(f'{weights.path}: {error}') from None
    return NetworkState(role, plan.function, plan.kwargs, variables=list(values.items())), notes


def _infer(weights: Weights, overrides: dict[str, Any]) -> _Plan:
    try:
        return _PLANS[weights.kind](weights, overrides)
    except UserError:
        raise
    except (LookupError, ZeroDivisionError, ValueError, TypeError) as error:
        reason = f'{type(error).__name__} {error}'
        raise UserError(f'the tensors are not those of {KINDS[weights.kind]} ({reason:.120})') from None


def network_shapes(function: str, kwargs: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the variables of one of our networks; takes no memory for them."""
    from training import networks_biggan, networks_biggan_deep
    from training.layers import planned_variables
    network_class = vars(networks_biggan).get(function) or vars(networks_biggan_deep)[function]
    with planned_variables():
        network = network_class(**{**kwargs, 'name': 'plan'})
        return {name: tuple(variable.shape) for name, variable in network.named_variables().items()}


def make_form(function: str, kwargs: Mapping[str, Any], kind: str) -> biggan_names.Form:
    """The form of that kind (of KINDS) for one of our networks."""
    forms = {'torch-G': biggan_names.Torch, 'torch-D': biggan_names.TorchD, 'hub': biggan_names.Hub,
             'hub-deep': biggan_names.DeepHub, 'hf-deep': biggan_names.DeepTorch}
    resolutions = kwargs['attention']
    if function == 'D_biggan':
        sizes = [kwargs['resolution'] >> min(index + 1, kwargs['num_down'])
                 for index in range(len(kwargs['multipliers']))]
        after = {size: sizes.index(size) for size in resolutions}
    else:
        blocks = {size: size.bit_length() - 4 for size in resolutions}
        deep = function == 'G_biggan_deep'
        after = {size: 2 * block + 1 if deep else block for size, block in blocks.items()}
        kwargs = {**kwargs, 'blocks': (len(kwargs['multipliers']) - 1) * (1 + deep)}
    return forms[kind](kwargs, after)


# Inference. Every function raises some LookupError or ValueError where the tensors are of another network.

def _count(names: Any, pattern: str) -> int:
    """How many of pattern.format(0), pattern.format(1), ... there are."""
    count = 0
    while count < MAX_BLOCKS * 2 and pattern.format(count) in names:
        count += 1
    return count


def _channels(fmaps: Sequence[int], known: Sequence[int], ch: int | None) -> tuple[int, list[int]]:
    """ch and the multipliers that give these numbers of channels; where it can be, those of the paper."""
    if ch is None:
        ch = fmaps[0] // known[0] if known else 0
        if not ch or [ch * factor for factor in known] != list(fmaps):
            ch = functools.reduce(np.gcd, fmaps)
    if any(count % ch for count in fmaps):
        raise UserError(f'ch = {ch} does not divide the numbers of channels, {list(fmaps)}')
    return int(ch), [int(count) // int(ch) for count in fmaps]


def _known(function: str, resolution: int) -> tuple[int, ...]:
    """The multipliers of our own table."""
    from training import networks_biggan, networks_biggan_deep
    table = networks_biggan_deep.ARCHITECTURES if 'deep' in function else networks_biggan.ARCHITECTURES
    row = table.get(resolution)
    return () if row is None else row.D if function.startswith('D') else row.G


def _plan(function: str, kind: str, kwargs: dict[str, Any], fmaps: Sequence[int], overrides: dict) -> _Plan:
    kwargs = {**kwargs, **{key: value for key, value in overrides.items()
                           if key in kwargs and key not in ('ch',)}}
    sizes = [kwargs.get(key, 1) for key in ('num_channels', 'label_size', 'latent_size')]
    if min([*fmaps, *sizes]) < 1 or kwargs['resolution'] < 8:
        raise ValueError(f'sizes {sizes}, channels {list(fmaps)}')
    ch, multipliers = _channels(fmaps, _known(function, kwargs['resolution']), overrides.get('ch'))
    kwargs |= {'ch': ch, 'multipliers': multipliers}
    if kwargs['label_size'] == 1:
        kwargs['label_size'] = 0
    return _Plan(function, kwargs, make_form(function, kwargs, kind))


def _torch_generator(weights: Weights, overrides: dict) -> _Plan:
    arrays = weights.values
    count = _count(arrays, 'blocks.{}.0.conv1.weight')
    width, part = arrays['linear.weight'].shape
    fmaps = [width // 16] + [arrays[f'blocks.{i}.0.conv1.weight'].shape[0] for i in range(count)]
    gain = arrays['blocks.0.0.bn1.gain.weight']
    shared = arrays.get('shared.weight')
    hierarchical = shared is not None and gain.shape[1] > shared.shape[1]
    return _plan('G_biggan', 'torch-G', {
        'num_channels': arrays['output_layer.2.weight'].shape[0], 'resolution': 4 << count,
        'label_size': gain.shape[0] if shared is None else shared.shape[0],
        'latent_size': part * (count + 1) if hierarchical else part, 'hierarchical': hierarchical,
        'shared_dim': 0 if shared is None else shared.shape[1],
        'attention': [8 << i for i in range(count) if f'blocks.{i}.1.theta.weight' in arrays],
        'bn_epsilon': 1e-5, 'final_bn_epsilon': 1e-5, 'sn_epsilon': 1e-6}, fmaps, overrides)


def _torch_discriminator(weights: Weights, overrides: dict) -> _Plan:
    arrays = weights.values
    count = _count(arrays, 'blocks.{}.0.conv1.weight')
    resolution = overrides.get('resolution', 2 << count)
    fmaps = [arrays[f'blocks.{i}.0.conv1.weight'].shape[0] for i in range(count)]
    # 32×32 images are halved twice only; all else ends at 4×4 (one block does not halve).
    num_down = 2 if resolution == 32 else count - 1
    sizes = [resolution >> min(i + 1, num_down) for i in range(count)]
    places = [i for i in range(count) if f'blocks.{i}.1.theta.weight' in arrays]
    attention = [sizes[i] for i in places]
    if len(set(attention)) < len(attention):    # As its option --D_attn 16 for 32×32 images makes it.
        raise UserError(f'it has attention behind the blocks {places}, at {attention} pixels; D here has one '
                        'attention for each resolution. G can be read without D')
    return _plan('D_biggan', 'torch-D', {
        'num_channels': arrays['blocks.0.0.conv1.weight'].shape[1], 'resolution': resolution,
        'label_size': arrays['embed.weight'].shape[0], 'num_down': num_down,
        'attention': sorted(attention), 'sn_epsilon': 1e-6}, fmaps, overrides)


def _hub_generator(weights: Weights, overrides: dict) -> _Plan:
    arrays = weights.values
    names = ['Generator/GBlock'] + [f'Generator/GBlock_{i}' for i in range(1, MAX_BLOCKS)]
    blocks = [name for name in names if f'{name}/conv0/w' in arrays]
    part, width = arrays['Generator/G_Z/G_linear/w'].shape
    fmaps = [width // 16] + [arrays[f'{name}/conv0/w'].shape[-1] for name in blocks]
    resolution = 4 << len(blocks)
    return _plan('G_biggan', 'hub', {
        'num_channels': arrays['Generator/conv_2d/w'].shape[-1], 'resolution': resolution,
        'label_size': arrays['linear/w'].shape[0], 'latent_size': part * (len(blocks) + 1),
        'hierarchical': True, 'shared_dim': arrays['linear/w'].shape[1],
        'attention': _hub_attention(arrays, fmaps[1:], resolution, overrides),
        'bn_epsilon': 1e-4, 'final_bn_epsilon': None, 'sn_epsilon': 1e-4,
        'truncation_mode': 'scale'}, fmaps, overrides)


def _hub_attention(arrays: Mapping, outputs: Sequence[int], resolution: int, overrides: dict) -> list[int]:
    """Where the one attention is: its name does not say it, its channels mostly do."""
    from training.networks_biggan import ARCHITECTURES
    if 'Generator/attention/theta/w' not in arrays:
        return []
    size = arrays['Generator/attention/theta/w'].shape[-2]
    places = [8 << i for i, count in enumerate(outputs) if count == size]
    usual = ARCHITECTURES[resolution].G_attention if resolution in ARCHITECTURES else ()
    if len(places) != 1 and 'attention' not in overrides:
        places = [place for place in places if place in usual]
        if len(places) != 1:
            raise UserError(f'its attention has {size} channels, which does not say at which resolution it '
                            'is; give --attention')
    return places


def _deep_hub(weights: Weights, overrides: dict) -> _Plan:
    arrays = weights.values
    names = ['Generator/GBlock'] + [f'Generator/GBlock_{i}' for i in range(1, 2 * MAX_BLOCKS)]
    blocks = [name for name in names if f'{name}/conv3/w' in arrays]
    condition, width = arrays['Generator/GenZ/G_linear/w'].shape
    fmaps = [width // 16] + [arrays[f'{name}/conv3/w'].shape[-1] for name in blocks[1::2]]
    resolution = 4 << len(blocks) // 2
    attention = _hub_attention(arrays, fmaps[1:], resolution, {'attention': ()})
    if len(attention) > 1:
        attention = [64] if 64 in attention else attention[:1]
    _add_vectors(arrays)
    return _plan('G_biggan_deep', 'hub-deep', {
        'num_channels': 3, 'resolution': resolution, 'label_size': arrays['linear/w'].shape[0],
        'latent_size': condition - arrays['linear/w'].shape[1], 'shared_dim': arrays['linear/w'].shape[1],
        'attention': attention, 'output_fmaps': arrays['Generator/conv_to_rgb/w'].shape[-1],
        'num_statistics': len(arrays['stack_1']) if 'stack_1' in arrays else 51, 'store_v': True,
        'bn_epsilon': 1e-4, 'final_bn_epsilon': None, 'sn_epsilon': 1e-4,
        'truncation_mode': 'scale'}, fmaps, overrides)


def _add_vectors(arrays: dict[str, np.ndarray]) -> None:
    """The module iterates once from u0 where others have both vectors: v = n(u0 W), u = n(W v)."""
    for name in [name for name in arrays if name.endswith('/u0')]:
        layer = name.removesuffix('/u0')
        if f'{layer}/w' not in arrays:
            continue
        matrix = arrays[f'{layer}/w']
        matrix = matrix.reshape(-1, matrix.shape[-1]).astype(np.float64)    # [rest, out]
        if arrays[name].size != matrix.shape[1]:
            continue        # Is told as a misfit.
        v = matrix @ arrays[name].reshape(-1)
        v /= max(np.linalg.norm(v), 1e-4)
        u = v @ matrix
        arrays[f'{layer}/v'] = v.astype(np.float32)
        arrays[name] = (u / max(np.linalg.norm(u), 1e-4)).astype(np.float32)[np.newaxis]


def _deep_torch(weights: Weights, overrides: dict) -> _Plan:
    arrays, config = weights.values, weights.config
    layers = 0
    while layers < 3 * MAX_BLOCKS and any(f'generator.layers.{layers}.{name}' in arrays for name in
                                          ('conv_0.weight_orig', 'snconv1x1_theta.weight_orig')):
        layers += 1
    blocks = [i for i in range(layers) if f'generator.layers.{i}.conv_3.weight_orig' in arrays]
    places = [sum(block < i for block in blocks) for i in range(layers) if i not in blocks]
    if any(place % 2 or not place for place in places):
        raise UserError(f'it has attention before the blocks {places}; expected an even number of blocks '
                        'before it')
    width, condition = arrays['generator.gen_z.weight_orig'].shape
    shared, classes = arrays['embeddings.weight'].shape
    fmaps = [arrays[f'generator.layers.{i}.conv_3.weight_orig'].shape[0] for i in blocks[1::2]]
    fmaps.insert(0, width // 16)
    epsilon = config.get('eps', 1e-4)
    return _plan('G_biggan_deep', 'hf-deep', {
        'num_channels': 3, 'resolution': 4 << len(blocks) // 2, 'label_size': classes,
        'latent_size': condition - shared, 'shared_dim': shared, 'attention': [4 << p // 2 for p in places],
        'output_fmaps': arrays['generator.conv_to_rgb.weight_orig'].shape[0],
        'num_statistics': len(arrays['generator.bn.running_means']), 'store_v': True,
        'bn_epsilon': float(epsilon) if isinstance(epsilon, int | float) else 1e-4, 'final_bn_epsilon': None,
        'sn_epsilon': 1e-4, 'truncation_mode': 'scale'}, fmaps, overrides)


_PLANS = {'torch-G': _torch_generator, 'torch-D': _torch_discriminator, 'hub': _hub_generator,
          'hub-deep': _deep_hub, 'hf-deep': _deep_torch}


# Filling.

def _fill(plan: _Plan, shapes: dict[str, tuple[int, ...]], weights: Weights,
          notes: list[str]) -> dict[str, np.ndarray]:
    """The variables of our network, in its order."""
    result, missing, misfits, used = {}, [], [], set()
    for ours, shape in shapes.items():
        name = plan.form.name(ours)
        used.add(name)
        value = weights.values.get(name)
        if value is None:
            missing.append(name)
            continue
        expected = plan.form.save(ours, np.broadcast_to(np.float32(0), shape)).shape
        if value.dtype.kind != 'f' or _squeezed(value.shape) != _squeezed(expected):
            misfits.append(f'{name} is {value.dtype} {value.shape}, expected {expected}')
            continue
        if not np.isfinite(value).all():
            misfits.append(f'{name} has values that are not finite')
            continue
        value = _statistics(plan, weights, name, value.reshape(expected), notes)
        value = plan.form.load(ours, value, shape)
        result[ours] = value if shape else np.float32(value)
    extra = [name for name in weights.values if name not in used
             and not re.fullmatch(plan.form.ignored or '(?!)', name)]
    found = {'missing': missing, 'of another shape': misfits, 'superfluous': extra}
    problems = [f'{what}: {_shorten(names)}' for what, names in found.items() if names]
    if problems:
        known = ', '.join(f'{key} {plan.kwargs[key]}' for key in ('resolution', 'ch', 'attention'))
        raise UserError(f'does not fit {KINDS[weights.kind]} with {known}; {"; ".join(problems)}')
    return result


def _shorten(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ', '.join(names[:_NAMED]) + (f' and {more} more' if more > 0 else '')


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _statistics(plan: _Plan, weights: Weights, name: str, value: np.ndarray, notes: list[str]) -> np.ndarray:
    """Statistics of batch normalization that were written as sums, divided by the number of passes."""
    key = re.sub(r'_var$', '_mean', name)
    count = weights.counters.get(key, 0)
    if count <= 1 or not re.search(r'(stored|accumulated)_(mean|var)$', name):
        return value
    if weights.kind == 'hub':
        ratio = _sum_or_mean(weights.values, count)
        if ratio is None:
            note = (f'its statistics are of {count:.0f} passes, and it cannot be seen whether they are sums '
                    'or means; taken as means. Sample with new standing statistics')
        else:
            note = f'its statistics are {"sums" if ratio else "means"} of {count:.0f} passes'
        if note not in notes:
            notes.append(note)
        return value / np.float32(count) if ratio else value
    note = f'its statistics are sums of {count:.0f} passes'
    if note not in notes:
        notes.append(note)
    return value / np.float32(count)


def _sum_or_mean(arrays: Mapping[str, np.ndarray], count: float) -> bool | None:
    """Whether the module's statistics are sums over passes; None where that cannot be seen.

    The first normalization follows a linear layer of normal numbers: its variances are known.
    """
    w = arrays['Generator/G_Z/G_linear/w'].astype(np.float64)
    u = arrays['Generator/G_Z/G_linear/u0'].reshape(-1).astype(np.float64)
    b = arrays['Generator/G_Z/G_linear/b'].reshape(16, -1).astype(np.float64)
    found = arrays['Generator/GBlock/CrossReplicaBN/accumulated_var'].reshape(-1).astype(np.float64)
    v = w @ u
    sigma = np.linalg.norm(v @ w) / max(np.linalg.norm(v), 1e-12)
    part = np.square(w / max(sigma, 1e-12)).sum(0).reshape(16, -1).mean(0)      # Of z with variance 1.
    expected = 0.774 * part + b.var(0)      # z is normal, cut off at 2.
    ratio = np.median(found / np.maximum(expected, 1e-12))
    if 0.5 < ratio < 2:
        return False
    return True if 0.5 < ratio / count < 2 else None


# Classes.

def change_classes(state: NetworkState, classes: Sequence[int | None], seed: int = 0) -> None:
    """Makes a network one of other classes, for fine-tuning.

    Args:
        state: G_biggan, D_biggan or G_biggan_deep.
        classes: For each new class the class whose weights it takes over, or None: random weights with the
            mean and the standard deviation of those of all old classes.
        seed: Of the random weights.

    Errors: UserError for a class that the network does not have.
    """
    if not re.fullmatch('[GD]_biggan(_deep)?', state.build_func_name):
        raise UserError(f'network {state.name} is {state.build_func_name}; expected one of BigGAN')
    old = max(state.static_kwargs.get('label_size', 0), 1)
    wrong = [c for c in classes if c is not None and not 0 <= c < old]
    if wrong or not classes:
        raise UserError(f'network {state.name} has the classes 0 to {old - 1}; received '
                        f'{wrong[:5] or "none"}')
    rnd = np.random.RandomState(seed)
    tables = r'Embedding/(weight|u)' + ('' if state.static_kwargs.get('shared_dim', 1) else
                                        r'|Block\d+/BN\d/(gain|bias)/weight')
    for i, (name, value) in enumerate(state.variables):
        if re.fullmatch(tables, name):
            shape = value.shape[1:]
            if name.endswith('/u'):
                fresh = np.full([len(classes)], 1 / np.sqrt(old))
            else:
                fresh = rnd.randn(len(classes), *shape) * value.std(axis=0) + value.mean(axis=0)
            for j, c in enumerate(classes):
                if c is not None:
                    fresh[j] = value[c]
            if name.endswith('/u'):
                fresh /= max(np.linalg.norm(fresh), 1e-12)
            state.variables[i] = name, fresh.astype(np.float32)
    kwargs = state.static_kwargs
    if kwargs.get('class_names'):
        kwargs['class_names'] = [f'new {i}' if c is None else kwargs['class_names'][c]
                                 for i, c in enumerate(classes)]
    kwargs['label_size'] = len(classes) if len(classes) > 1 else 0
