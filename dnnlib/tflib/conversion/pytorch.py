"""Networks of stylegan2-ada-pytorch, and the StyleGAN2 networks of its successors, as ours.

The definitions are the same up to layouts, with three exceptions. PyTorch's convolution that upsamples is a
true convolution, ours a correlation: its kernel is flipped. The bias of PyTorch's style holds the 1 that ours
adds. Where labels enter, the two normalize differently: conditional networks cannot be converted.
"""

from typing import Any

import numpy as np

from dnnlib.tflib.legacy import NetworkState
from dnnlib.tflib.torch_pickle import Module, state_dict
from dnnlib.util import UserError

__all__ = ['to_network_states']

_ROLES = {'G': ('G', 'g'), 'D': ('D', 'd'), 'Gs': ('G_ema', 'g_ema', 'Gs', 'G_avg')}
MAX_LOG2 = 14


def to_network_states(obj: Any) -> tuple[dict[str, NetworkState], list[str]]:
    """Our networks of what `torch_pickle.load_torch` returned.

    Args:
        obj: A snapshot (dict with G, D, G_ema), or one network as a module or a state dict.

    Returns: {'G', 'D' or 'Gs': network} of those that are there, and notes on what has no counterpart here.

    Errors: UserError for a network that is not StyleGAN2's, or that is conditional.
    """
    notes = []
    networks = {}
    if isinstance(obj, dict) and not _kind(obj):
        for role, keys in _ROLES.items():
            value = next((obj[key] for key in keys if isinstance(obj.get(key), Module | dict)), None)
            if value is not None:
                networks[role] = value
    if not networks:
        arrays = state_dict(obj)
        kind = _kind(arrays)
        if kind is None:
            raise _foreign(arrays)
        networks = {'Gs' if kind == 'G' else 'D': obj}
    try:
        states = {role: _convert(value, role, notes) for role, value in networks.items()}
    except (LookupError, ZeroDivisionError, TypeError) as error:     # Shapes beyond all expectation.
        raise UserError(f'the tensors are not those of StyleGAN2 ({type(error).__name__} {error})') from None
    return states, list(dict.fromkeys(notes))


def _kind(arrays: dict) -> str | None:
    """'G' or 'D' by the names of a state dict."""
    return 'G' if 'synthesis.b4.const' in arrays else 'D' if 'b4.fc.weight' in arrays else None


def _foreign(arrays: dict) -> UserError:
    if any(str(name).startswith('synthesis.input.') for name in arrays):
        return UserError('this is a network of StyleGAN3, which has no counterpart here; expected one of '
                         'StyleGAN2 (stylegan2-ada-pytorch, or --cfg=stylegan2 of StyleGAN3)')
    return UserError('expected networks of stylegan2-ada-pytorch, found tensors of other names: '
                     f'{list(arrays)[:3]!r:.160}')


def _convert(value: Any, role: str, notes: list[str]) -> NetworkState:
    arrays = state_dict(value)
    kind = 'D' if role == 'D' else 'G'
    if _kind(arrays) != kind:
        raise _foreign(arrays)
    source = _Source(arrays, value if isinstance(value, Module) else None, role, notes)
    network = _generator(source) if kind == 'G' else _discriminator(source)
    source.check_all_used()
    return network


class _Source:
    """The tensors of one network; every one of them has to be used."""

    def __init__(self, arrays: dict[str, np.ndarray], module: Module | None, role: str, notes: list[str]):
        self.arrays, self.module, self.role, self.notes = arrays, module, role, notes
        self.used = set()
        if module is not None:
            self._check_attributes(module)

    def has(self, name: str) -> bool:
        return name in self.arrays

    def take(self, name: str, rank: int | None = None) -> np.ndarray:
        """A tensor as float32; UserError where it is missing or of another rank."""
        if name not in self.arrays:
            raise UserError(f'network {self.role}: the tensor {name} is missing')
        self.used.add(name)
        array = self.arrays[name]
        if array.dtype.kind != 'f' or (rank is not None and array.ndim != rank) or 0 in array.shape:
            raise UserError(f'network {self.role}: expected {name} to hold floating point numbers'
                            f'{"" if rank is None else f" in {rank} dimensions"}, '
                            f'found {array.dtype} {array.shape}')
        return array.astype(np.float32)

    def check_all_used(self) -> None:
        rest = [name for name in self.arrays if name not in self.used]
        if rest:
            raise UserError(f'network {self.role} has {len(rest)} tensors that StyleGAN2 does not have, such '
                            f'as {rest[:3]!r:.160}; it cannot be converted')

    def attribute(self, path: str, name: str, default: Any) -> Any:
        """An attribute of a submodule ('mapping.fc0'); the default where only a state dict is known."""
        module = self.module
        for part in path.split('.'):
            module = module and module.modules.get(part)
        return default if module is None else module.attributes.get(name, default)

    def _check_attributes(self, module: Module) -> None:
        """Refuses what the tensors do not show; notes what only concerns speed or precision."""
        if module.attributes.get('activation', 'lrelu') not in ('lrelu', 'linear'):
            raise UserError(f'network {self.role}: the activation {module.attributes["activation"]!r:.40} is '
                            'not that of StyleGAN2')
        if module.attributes.get('use_fp16') is True:
            self.notes.append('half precision (use_fp16) is not carried over; networks run in float32')
        if module.attributes.get('conv_clamp') is not None:
            self.notes.append(f'the limit on activations (conv_clamp {module.attributes["conv_clamp"]!r:.9}) '
                              'is not carried over; it hardly ever acts')
        for child in module.modules.values():
            self._check_attributes(child)

    def resample_kernel(self) -> list[float]:
        """The taps of the resampling filter, which all layers share."""
        filters = [self.take(name) for name in self.arrays if name.endswith('resample_filter')]
        if not filters:
            return [1, 3, 3, 1]
        if any(f.ndim not in (1, 2) or not np.isfinite(f).all() or abs(f.sum()) < 1e-6 for f in filters):
            raise UserError(f'network {self.role}: a resampling filter without sound numbers')
        taps = [f.astype(np.float64).sum(axis=0) if f.ndim == 2 else f.astype(np.float64) for f in filters]
        k = taps[0] / np.min(np.abs(taps[0][taps[0] != 0]), initial=1)
        same = all(t.shape == k.shape and np.allclose(t / t.sum(), k / k.sum(), atol=1e-6) for t in taps)
        square = all(f.ndim == 1 or np.allclose(f, np.outer(f.sum(0), f.sum(0)) / f.sum(), atol=1e-6)
                     for f in filters)
        if not (same and square and np.allclose(k, k[::-1])) or len(k) > 32:
            raise UserError(f'network {self.role}: its resampling filter is not one that is used here '
                            '(separable, symmetric, the same in all layers)')
        return [int(round(t)) if abs(t - round(t)) < 1e-4 else float(t) for t in k]


def _generator(source: _Source) -> NetworkState:
    if source.has('mapping.embed.weight'):
        raise UserError(f'network {source.role} is conditional: stylegan2-ada-pytorch normalizes labels in '
                        'another way than StyleGAN2, such networks cannot be converted')
    const = source.take('synthesis.b4.const', 3)
    sizes = _resolutions(source, 'synthesis.b{}.conv1.weight')
    if not sizes:
        raise UserError(f'network {source.role}: the tensor synthesis.b4.conv1.weight is missing')
    last = sizes[-1]
    if const.shape[1:] != (4, 4):
        raise UserError(f'network {source.role}: expected a constant input of 4x4 pixels, found '
                        f'{const.shape[1:]}')
    with_rgb = [size for size in sizes if source.has(f'synthesis.b{size}.torgb.weight')]
    with_skip = [size for size in sizes if source.has(f'synthesis.b{size}.skip.weight')]
    architecture = _architecture(source, sizes, with_rgb, with_skip)
    fmaps = {size: source.arrays[f'synthesis.b{size}.conv1.bias'].shape[0] for size in sizes
             if source.has(f'synthesis.b{size}.conv1.bias')}

    noises, variables = [], []
    for size in sizes:
        torch, scope = f'synthesis.b{size}', f'{size}x{size}'
        if size == 4:
            variables.append(('4x4/Const/const', const[np.newaxis]))
            variables += _modulated(source, f'{torch}.conv1', f'{scope}/Conv', noises, size)
        else:
            variables += _modulated(source, f'{torch}.conv0', f'{scope}/Conv0_up', noises, size, flip=True)
            variables += _modulated(source, f'{torch}.conv1', f'{scope}/Conv1', noises, size)
            if architecture == 'resnet':
                variables.append((f'{scope}/Skip/weight', _kernel(source, f'{torch}.skip', flip=True)))
        if size in with_rgb:
            variables += _modulated(source, f'{torch}.torgb', f'{scope}/ToRGB')
    layers = 0
    mapping = []
    while source.has(f'mapping.fc{layers}.weight'):
        mapping += _dense(source, f'mapping.fc{layers}', f'Dense{layers}')
        layers += 1
    average = source.take('mapping.w_avg', 1)
    if not layers:
        raise UserError(f'network {source.role}: its mapping network has no layers')
    kwargs = {
        'num_channels': int(source.arrays[f'synthesis.b{last}.torgb.bias'].shape[0]), 'resolution': last,
        'label_size': 0, **_fmap_kwargs(source, fmaps), 'architecture': architecture,
        'resample_kernel': source.resample_kernel(), 'latent_size': int(mapping[0][1].shape[0]),
        'dlatent_size': int(average.shape[0]), 'mapping_layers': layers,
        'mapping_fmaps': int(mapping[0][1].shape[1]) if layers > 1 else 512,
        'mapping_lrmul': _number(source.attribute('mapping.fc0', 'bias_gain', 0.01), 0.01),
        'dlatent_avg_beta': _number(source.attribute('mapping', 'w_avg_beta', 0.995), 0.995),
    }
    synthesis = NetworkState('G_synthesis', 'G_synthesis_stylegan2', dict(kwargs),
                             variables=[(f'noise{i}', noise) for i, noise in enumerate(noises)] + variables)
    mapping = NetworkState('G_mapping', 'G_mapping', {'dlatent_broadcast': 2 * len(sizes), **kwargs},
                           variables=mapping)
    return NetworkState(source.role, 'G_main', kwargs, {'synthesis': synthesis, 'mapping': mapping},
                        [('lod', np.float32(0)), ('dlatent_avg', average)])


def _discriminator(source: _Source) -> NetworkState:
    if any(name.startswith('mapping.') for name in source.arrays):
        raise UserError(f'network {source.role} is conditional: stylegan2-ada-pytorch uses labels in another '
                        'way than StyleGAN2, such networks cannot be converted')
    sizes = [4, *_resolutions(source, 'b{}.conv0.weight', first=8)]
    with_rgb = [size for size in sizes if source.has(f'b{size}.fromrgb.weight')]
    with_skip = [size for size in sizes if source.has(f'b{size}.skip.weight')]
    architecture = _architecture(source, sizes, with_rgb, with_skip)
    fmaps, variables = {}, []
    for size in sizes[:0:-1]:
        torch, scope = f'b{size}', f'{size}x{size}'
        if size in with_rgb:
            variables += _conv(source, f'{torch}.fromrgb', f'{scope}/FromRGB')
        variables += _conv(source, f'{torch}.conv0', f'{scope}/Conv0')
        fmaps[size] = variables[-1][1].shape[0]
        variables += _conv(source, f'{torch}.conv1', f'{scope}/Conv1_down')
        if architecture == 'resnet':
            variables.append((f'{scope}/Skip/weight', _kernel(source, f'{torch}.skip')))
    if 4 in with_rgb:
        variables += _conv(source, 'b4.fromrgb', '4x4/FromRGB')
    conv = _conv(source, 'b4.conv', '4x4/Conv')
    fmaps[4] = conv[1][1].shape[0]
    new_features = conv[0][1].shape[2] - fmaps[4]
    output = _dense(source, 'b4.out', 'Output')
    variables += [*conv, *_dense(source, 'b4.fc', '4x4/Dense0'), *output]
    if output[1][1].shape != (1,):
        raise UserError(f'network {source.role} has {output[1][1].shape[0]} outputs: it is conditional, and '
                        'cannot be converted')
    group = source.attribute('b4.mbstd', 'group_size', 4)
    kwargs = {
        'num_channels': int(source.arrays[f'b{max(with_rgb)}.fromrgb.weight'].shape[1]),
        'resolution': sizes[-1], 'label_size': 0, **_fmap_kwargs(source, fmaps),
        'architecture': architecture, 'resample_kernel': source.resample_kernel(),
        'mbstd_group_size': (group if isinstance(group, int) else 1 << 30) if new_features else 1,
        'mbstd_num_features': max(new_features, 1),
    }
    return NetworkState(source.role, 'D_stylegan2', kwargs, variables=variables)


def _resolutions(source: _Source, pattern: str, first: int = 4) -> list[int]:
    sizes = []
    while len(sizes) < MAX_LOG2 and source.has(pattern.format(first << len(sizes))):
        sizes.append(first << len(sizes))
    return sizes


def _architecture(source: _Source, sizes: list[int], with_rgb: list[int], with_skip: list[int]) -> str:
    """'orig', 'skip' or 'resnet', by the layers that are there."""
    if with_rgb == sizes and not with_skip:
        return 'skip'
    if with_rgb == sizes[-1:] and with_skip in ([], sizes[1:]):
        return 'resnet' if with_skip else 'orig'
    raise UserError(f'network {source.role} has layers to or from RGB at {with_rgb} and skips at {with_skip} '
                    f'of the resolutions {sizes}; that is none of the architectures orig, skip and resnet')


def _fmap_kwargs(source: _Source, fmaps: dict[int, int]) -> dict[str, int]:
    """fmap_base and fmap_max that give these numbers of feature maps: min(2·fmap_base / size, fmap_max)."""
    most = fmaps[4]
    reduced = {size: count for size, count in fmaps.items() if count < most}
    base = max([most * 2, *(count * size // 2 for size, count in (reduced or fmaps).items())])
    expected = {size: min(2 * base // size, most) for size in fmaps}
    if expected != fmaps:
        raise UserError(f'network {source.role} has {fmaps} feature maps by resolution, which no fmap_base '
                        'and fmap_max of StyleGAN2 give; it cannot be converted')
    return {'fmap_base': int(base), 'fmap_max': int(most)}


def _number(value: Any, default: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default


def _dense(source: _Source, torch: str, scope: str) -> list[tuple[str, np.ndarray]]:
    return [(f'{scope}/weight', source.take(f'{torch}.weight', 2).T.copy()),
            (f'{scope}/bias', source.take(f'{torch}.bias', 1))]


def _kernel(source: _Source, torch: str, flip: bool = False) -> np.ndarray:
    """[out, in, kh, kw] → [kh, kw, in, out]."""
    kernel = source.take(f'{torch}.weight', 4)
    return (kernel[:, :, ::-1, ::-1] if flip else kernel).transpose(2, 3, 1, 0).copy()


def _conv(source: _Source, torch: str, scope: str) -> list[tuple[str, np.ndarray]]:
    return [(f'{scope}/weight', _kernel(source, torch)), (f'{scope}/bias', source.take(f'{torch}.bias', 1))]


def _modulated(source: _Source, torch: str, scope: str, noises: list | None = None, size: int = 0,
               flip: bool = False) -> list[tuple[str, np.ndarray]]:
    """A modulated convolution; with noise, unless `noises` (of the network) is None."""
    variables = [(f'{scope}/weight', _kernel(source, torch, flip)),
                 (f'{scope}/mod_weight', source.take(f'{torch}.affine.weight', 2).T.copy()),
                 (f'{scope}/mod_bias', source.take(f'{torch}.affine.bias', 1) - 1)]
    if noises is not None:
        strength = np.float32(0)
        noise = np.zeros([1, 1, size, size], np.float32)
        if source.has(f'{torch}.noise_strength'):
            strength = np.float32(source.take(f'{torch}.noise_strength', 0))
            given = source.take(f'{torch}.noise_const', 2)
            if given.shape != (size, size):
                raise UserError(f'network {source.role}: {torch}.noise_const is {given.shape}, expected '
                                f'{(size, size)}')
            noise[0, 0] = given
        variables.append((f'{scope}/noise_strength', strength))
        noises.append(noise)
    return [*variables, (f'{scope}/bias', source.take(f'{torch}.bias', 1))]
