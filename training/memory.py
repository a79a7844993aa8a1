"""How much memory a training run takes, estimated before it starts."""

import re
from typing import Any

import numpy as np

_SAMPLES = 4    # Of the pass that Network.list_ops traces.
# Operations whose result lies in the memory of their input, or is read where it is.
_FREE = ('Const', 'Identity', 'Reshape', 'Squeeze', 'ExpandDims', 'ReadVariableOp', 'StopGradient',
         'Placeholder')


def activation_bytes(network: Any) -> float:
    """Bytes per image of all results of a pass through a network: what its gradient may need.

    Of layers that are computed again for the gradient, it is the last result of each and all of the largest.
    """
    scopes = network.layer.recomputed_scopes() if hasattr(network.layer, 'recomputed_scopes') else []
    total, inside = 0, {scope: [] for scope in scopes}
    for operation in network.list_ops():
        if operation.type in _FREE:
            continue
        # TensorFlow numbers the names of operations that it has seen before: G/Block0_1/Conv0_1/Relu.
        parts = [re.sub(r'_\d+$', '', part) for part in operation.name.split('/')]
        found = [scope for scope in scopes if scope in parts]
        for output in operation.outputs:
            shape = output.shape
            if output.dtype.is_floating and shape.rank and shape.is_fully_defined() and shape[0] == _SAMPLES:
                size = int(np.prod(shape)) * output.dtype.size
                if found:
                    inside[found[0]].append(size)
                else:
                    total += size
    kept = sum(sizes[-1] for sizes in inside.values() if sizes)
    return (total + kept + max((sum(sizes[:-1]) for sizes in inside.values()), default=0)) / _SAMPLES


def state_bytes(networks: Any, rounds: int) -> float:
    """Bytes of the weights of (G, D, Gs), the state of Adam and, with rounds, the accumulated gradients."""
    G, D, Gs = (sum(int(np.prod(variable.shape)) for variable in network.trainables.values()) * 4
                for network in networks)
    # Weight, two moments, gradient.
    return (G + D) * (5 if rounds > 1 else 4) + Gs


def estimate(networks: Any, minibatch_gpu: int, rounds: int) -> str:
    """One line for the log.

    Args:
        networks: (G, D, Gs), tflib.Network.
        minibatch_gpu: Images that a GPU processes at a time.
        rounds: How many times per update.
    """
    G, D = (activation_bytes(network) for network in networks[:2])
    # Fakes pass G and D, then D sees fakes and reals at once.
    activations = minibatch_gpu * max(G + D, 2 * D)
    state = state_bytes(networks, rounds)
    return (f'Memory of a GPU, roughly: {_gigabytes(state)} for weights and optimizers, '
            f'{_gigabytes(activations)} for {minibatch_gpu} images at a time (--minibatch-gpu)')


def _gigabytes(count: float) -> str:
    return f'{count / 2 ** 30:.1f} GB'
