"""What the published forms of BigGAN call the variables of our networks, and how they lay them out.

A `Form` is one of them. The spectral normalization of all works on matrices [out, rest], so that its vectors
u [out] need nothing but a change of shape, except where the order of the outputs differs.
"""

import re
from collections.abc import Mapping

import numpy as np

__all__ = ['DeepHub', 'DeepTorch', 'Form', 'Hub', 'Torch', 'TorchD']


class Form:
    """One way to store a network: `name` and `save` give what stands for a variable of ours, `load` takes it.

    Args:
        kwargs: Arguments of our network.
        after: {resolution of an attention: index of the block that it follows}.
    """

    leaves: Mapping[str, str] = {}      # Last part of our name → last part of theirs.
    layers: tuple[tuple[str, str], ...] = ()    # (pattern of our layer, its name there).
    separator = '.'
    ignored = ''                        # Pattern of names that have no counterpart here, and need none.

    def __init__(self, kwargs: Mapping, after: Mapping[int, int]):
        self.kwargs, self.after = kwargs, after

    def name(self, ours: str) -> str:
        """Their name of one of our variables."""
        layer, _, leaf = ours.rpartition('/')
        if re.fullmatch(r'.*BN\d*', layer):     # Of the normalization itself: its vectors have other names.
            leaf = f'BN/{leaf}'
        for pattern, template in self.layers:
            match = re.fullmatch(pattern, layer)
            if match:
                return self.separator.join([template.format(*map(self._number, match.groups())),
                                            self.leaves.get(leaf, leaf.removeprefix('BN/'))])
        raise KeyError(ours)

    def _number(self, text: str) -> str | int:
        return int(text) if text.isdigit() else text

    def load(self, ours: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Their array as ours of this shape."""
        return np.ascontiguousarray(value, np.float32).reshape(shape)

    def save(self, ours: str, value: np.ndarray) -> np.ndarray:
        """Our array as theirs, not always of contiguous memory."""
        return value[np.newaxis] if ours.rpartition('/')[2] == 'u' else value


class Torch(Form):
    """G of BigGAN-PyTorch: kernels [out, in, height, width] and [out, in]; the first layer's outputs in the
    order C, H, W; conditions with the class before the latents."""

    leaves = {'u': 'u0', 'BN/moving_mean': 'stored_mean', 'BN/moving_variance': 'stored_var'}
    layers = (
        ('Embedding', 'shared'), ('Linear', 'linear'),
        (r'Block(\d+)/BN0', 'blocks.{}.0.bn1'), (r'Block(\d+)/BN1', 'blocks.{}.0.bn2'),
        (r'Block(\d+)/BN0/(gain|bias)', 'blocks.{}.0.bn1.{}'),
        (r'Block(\d+)/BN1/(gain|bias)', 'blocks.{}.0.bn2.{}'),
        (r'Block(\d+)/Conv0', 'blocks.{}.0.conv1'), (r'Block(\d+)/Conv1', 'blocks.{}.0.conv2'),
        (r'Block(\d+)/Shortcut', 'blocks.{}.0.conv_sc'),
        (r'Attention_(\d+)x\d+', 'attention.{}'), (r'Attention_(\d+)x\d+/(theta|phi|g|o)', 'attention.{}.{}'),
        ('Output/BN', 'output_layer.0'), ('Output/Conv', 'output_layer.2'),
    )
    # sv is what the last pass divided by; _extra of stateful sums is handled where files are read.
    ignored = r'.*\.sv\d+|.*\.u[1-9]\d*|.*\.num_batches_tracked'

    def name(self, ours):
        # Their attention is part of the stage whose block it follows.
        return re.sub(r'^attention\.(\d+)', lambda m: f'blocks.{self.after[int(m[1])]}.1', super().name(ours))

    def load(self, ours, value, shape):
        kind = self._kind(ours, len(shape))
        if kind == 'first':
            value = value.reshape(len(value), -1) if ours.endswith('/weight') else value.reshape(-1, 1)
            width, rest = value.shape
            value = value.reshape(width // 16, 4, 4, rest).transpose(1, 2, 0, 3).reshape(width, rest).T
        elif kind == 'condition':
            value = np.roll(value.T, self._latents(shape[0]), axis=0)
        elif kind == 'dense':
            value = value.T
        elif kind == 'conv':
            value = value.transpose(2, 3, 1, 0)
        return super().load(ours, value, shape)

    def save(self, ours, value):
        kind = self._kind(ours, value.ndim)
        if kind == 'first':
            flat = value.T.reshape(4, 4, value.shape[-1] // 16, -1).transpose(2, 0, 1, 3)
            value = flat.reshape(value.shape[-1], -1) if value.ndim == 2 else flat.reshape(-1)
        elif kind == 'condition':
            value = np.roll(value, -self._latents(value.shape[0]), axis=0).T
        elif kind == 'dense':
            value = value.T
        elif kind == 'conv':
            value = value.transpose(3, 2, 0, 1)
        return super().save(ours, value)

    def _kind(self, ours: str, rank: int) -> str:
        """How a variable of ours differs from theirs; '' for not at all."""
        if ours.startswith('Linear/') and self._first_is_spatial():
            return 'first'
        if rank == 4:
            return 'conv'
        if rank != 2 or ours.startswith('Embedding/'):
            return ''
        if '/BN' in ours:
            return 'condition' if self.kwargs['shared_dim'] else ''
        return 'dense'

    def _first_is_spatial(self) -> bool:
        return True

    def _latents(self, size: int) -> int:
        """How many numbers of a condition are latents."""
        return size - self.kwargs['shared_dim']


class TorchD(Torch):
    """D of BigGAN-PyTorch."""

    layers = (('Embedding', 'embed'), *Torch.layers)

    def _first_is_spatial(self):
        return False


class Hub(Form):
    """G of the TF-Hub modules: layouts as here. The suffixes of averages are gone, see `biggan_sources`."""

    separator = '/'
    leaves = {'weight': 'w', 'bias': 'b', 'u': 'u0', 'BN/moving_mean': 'accumulated_mean',
              'BN/moving_variance': 'accumulated_var', 'BN/gain': 'gamma', 'BN/bias': 'beta'}
    layers = (
        ('Embedding', 'linear'), ('Linear', 'Generator/G_Z/G_linear'),
        (r'Block(\d+)/BN(\d+)/gain', 'Generator/GBlock{}/HyperBN{}/gamma'),
        (r'Block(\d+)/BN(\d+)/bias', 'Generator/GBlock{}/HyperBN{}/beta'),
        (r'Block(\d+)/BN(\d+)', 'Generator/GBlock{}/CrossReplicaBN{}'),
        (r'Block(\d+)/Conv0', 'Generator/GBlock{}/conv0'), (r'Block(\d+)/Conv1', 'Generator/GBlock{}/conv1'),
        (r'Block(\d+)/Shortcut', 'Generator/GBlock{}/conv_sc'),
        (r'Attention_\d+x\d+', 'Generator/attention'),
        (r'Attention_\d+x\d+/o', 'Generator/attention/o_conv'),
        (r'Attention_\d+x\d+/(theta|phi|g)', 'Generator/attention/{}'),
        ('Output/BN', 'Generator/ScaledCrossReplicaBN'), ('Output/Conv', 'Generator/conv_2d'),
    )
    ignored = r'.*/u[1-9]\d*|.*/accumulation_counter|.*global_step|.*/update_accumulat\w*'

    def name(self, ours):
        found = super().name(ours)
        if '/accumulated_' in found:
            found = found.replace('/ScaledCrossReplicaBN/', '/ScaledCrossReplicaBNbn/')
        return found

    def _number(self, text):
        """'GBlock', 'GBlock_1', ...: the first of its kind has no number."""
        return text if not text.isdigit() else '' if text == '0' else f'_{text}'


class DeepTorch(Form):
    """G of BigGAN-deep as Hugging Face has it: kernels [out, in, height, width] and [out, in], tables of
    statistics, both vectors of the spectral normalization; everything else as here."""

    leaves = {'weight': 'weight_orig', 'u': 'weight_u', 'v': 'weight_v', 'BN/moving_mean': 'running_means',
              'BN/moving_variance': 'running_vars', 'BN/gain': 'weight', 'BN/bias': 'bias'}
    layers = (
        ('Embedding', 'embeddings'), ('Linear', 'generator.gen_z'),
        (r'Block(\d+)/BN(\d+)/gain', 'generator.layers.{}.bn_{}.scale'),
        (r'Block(\d+)/BN(\d+)/bias', 'generator.layers.{}.bn_{}.offset'),
        (r'Block(\d+)/BN(\d+)', 'generator.layers.{}.bn_{}'),
        (r'Block(\d+)/Conv(\d+)', 'generator.layers.{}.conv_{}'),
        (r'Attention_(\d+)x\d+', 'attention.{}'),
        (r'Attention_(\d+)x\d+/o', 'attention.{}.snconv1x1_o_conv'),
        (r'Attention_(\d+)x\d+/(theta|phi|g)', 'attention.{}.snconv1x1_{}'),
        ('Output/BN', 'generator.bn'), ('Output/Conv', 'generator.conv_to_rgb'),
    )

    def name(self, ours):
        if ours == 'Embedding/weight':
            return 'embeddings.weight'
        places = sorted(self.after.values())

        def counted(match):     # An attention counts as a layer.
            index = int(match[1])
            return f'generator.layers.{index + sum(place < index for place in places)}'

        def attention(match):
            place = self.after[int(match[1])]
            return f'generator.layers.{place + 1 + sum(other < place for other in places)}'
        found = super().name(ours)
        return re.sub(r'^attention\.(\d+)', attention, found) if found.startswith('attention') else \
            re.sub(r'^generator\.layers\.(\d+)', counted, found)

    def load(self, ours, value, shape):
        leaf = ours.rpartition('/')[2]
        if leaf == 'weight':
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        elif leaf == 'v':
            value = value.reshape(-1, self._taps(ours)).T
        return super().load(ours, value, shape)

    def save(self, ours, value):
        leaf = ours.rpartition('/')[2]
        if leaf == 'weight':
            return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        if leaf == 'v':
            return value.reshape(self._taps(ours), -1).T.reshape(-1)
        return value.reshape(1) if leaf == 'gamma' else value

    def _taps(self, ours: str) -> int:
        """Pixels of the kernel that a vector belongs to."""
        return 9 if re.fullmatch(r'Block\d+/Conv[12]/v|Output/Conv/v', ours) else 1


class DeepHub(Hub):
    """G of the TF-Hub modules BigGAN-deep; v and the statistics are those that `biggan_sources` adds."""

    leaves = {**Hub.leaves, 'BN/gain': 'scale', 'BN/bias': 'offset'}
    layers = (
        ('Embedding', 'linear'), ('Linear', 'Generator/GenZ/G_linear'),
        (r'Block(\d+)/BN(\d+)/gain', 'Generator/GBlock{}/BatchNorm{}/scale'),
        (r'Block(\d+)/BN(\d+)/bias', 'Generator/GBlock{}/BatchNorm{}/offset'),
        (r'Block(\d+)/Conv0', 'Generator/GBlock{}/conv0'), (r'Block(\d+)/Conv1', 'Generator/GBlock{}/conv1'),
        (r'Block(\d+)/Conv2', 'Generator/GBlock{}/conv2'), (r'Block(\d+)/Conv3', 'Generator/GBlock{}/conv3'),
        *(layer for layer in Hub.layers if layer[0].startswith('Attention')),
        ('Output/BN', 'Generator/BatchNorm'), ('Output/Conv', 'Generator/conv_to_rgb'),
    )
    ignored = Hub.ignored + r'|stack(_\d+)?|.*/(moving|accumulated)_\w+'

    def name(self, ours):
        match = re.fullmatch(r'(?:Block(\d+)/BN(\d)|Output/BN)/moving_(mean|variance)', ours)
        if not match:
            return super().name(ours)
        # Five constants for each normalization, of which two are the tables, in the order of the computation.
        index = 4 * int(match[1]) + int(match[2]) if match[1] else 4 * self.kwargs['blocks']
        return f'stack_{5 * index + (1 if match[3] == "mean" else 3)}'
