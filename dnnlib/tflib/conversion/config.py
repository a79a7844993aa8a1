"""What a pickle of networks holds besides its arrays, as JSON, and exactly so: the two together give it back.

JSON has one kind of sequence, only text as keys and no infinite numbers. Where a pickle says more, a dict
stands for the value: {"tuple": [...]}, {"items": [[key, value], ...]}, {"float": "inf"}, {"network": {...}},
{"array": name of the tensor, "scalar": true for a numpy scalar}; a dict that could be mistaken for one of
these is written as "items" too.
"""

import math
import re
from typing import Any

import numpy as np

from dnnlib.tflib.legacy import SOURCE_PLACEHOLDER, STATE_KEYS, NetworkState
from dnnlib.util import UserError

__all__ = ['decode', 'encode', 'is_trainable']

FORMAT = 'stylegan-tf2 networks'
MAX_DEPTH = 40
_TAGS = ('tuple', 'items', 'float', 'network', 'array')
_ROLES = ('G', 'D', 'Gs')


def is_trainable(name: str) -> bool:
    """Whether a variable is trainable: all are but noise inputs, the average of w, the level of detail, and
    BigGAN's vectors of the power iteration and statistics."""
    last = name.rpartition('/')[2]
    return re.fullmatch(r'noise\d+|dlatent_avg|lod|u|v|moving_mean|moving_variance', last) is None


def encode(obj: Any) -> tuple[dict, dict[str, np.ndarray]]:
    """What `legacy.load_pkl` returned, as (JSON document, {name: array}).

    Errors: UserError for an array or value that has no counterpart.
    """
    encoder = _Encoder()
    if isinstance(obj, tuple | list) and len(obj) == 3 and all(isinstance(n, NetworkState) for n in obj):
        encoder.names = dict(zip(map(id, obj), _ROLES, strict=True))
    return {'format': FORMAT, 'version': 1, 'content': encoder.encode(obj, '', 0)}, encoder.tensors


class _Encoder:
    def __init__(self):
        self.tensors: dict[str, np.ndarray] = {}
        self.names: dict[int, str] = {}     # Scopes of the networks of a snapshot.

    def encode(self, value: Any, scope: str, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise UserError(f'expected values nested at most {MAX_DEPTH} deep')
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {'float': repr(value)}
        if isinstance(value, NetworkState):
            return {'network': self.network(value, self.names.get(id(value), scope), depth)}
        if isinstance(value, np.ndarray | np.generic):
            return self.array(value, scope or 'array')
        if type(value) in (list, tuple):
            items = [self.encode(item, f'{scope}/{i}'.lstrip('/'), depth + 1) for i, item in enumerate(value)]
            return items if type(value) is list else {'tuple': items}
        if isinstance(value, dict):
            pairs = [(key, self.encode(item, f'{scope}/{key}'.lstrip('/'), depth + 1))
                     for key, item in value.items()]
            plain = all(type(key) is str for key in value) and not any(tag in value for tag in _TAGS)
            return dict(pairs) if plain else {'items': [list(pair) for pair in pairs]}
        raise UserError(f'a value of type {type(value).__name__} cannot be written as JSON')

    def network(self, net: NetworkState, scope: str, depth: int) -> dict:
        scope = scope or net.name
        variables = []
        for name, value in net.variables:
            entry = self.array(value, f'{scope}/{name}')
            variables.append({'name': name, **entry, 'dtype': value.dtype.name, 'shape': list(value.shape),
                              'trainable': is_trainable(name)})
        state = {'name': net.name, 'version': net.version, 'build_func_name': net.build_func_name,
                 'class_name': net.class_name, 'static_kwargs': self.encode(net.static_kwargs, '', depth + 1),
                 'components': [[key, self.network(component, f'{scope}/{component.name}', depth + 1)]
                                for key, component in net.components.items()],
                 'variables': variables}
        if net.key_order != STATE_KEYS:
            state['key_order'] = list(net.key_order)
        if net.extra:
            state['extra'] = self.encode(net.extra, f'{scope}/extra', depth + 1)
        return state

    def array(self, value: np.ndarray | np.generic, name: str) -> dict:
        while name in self.tensors:
            name += "'"
        self.tensors[name] = np.asarray(value, dtype=value.dtype.newbyteorder('='), order='C')
        return {'array': name, 'scalar': True} if isinstance(value, np.generic) else {'array': name}


def decode(document: Any, tensors: dict[str, np.ndarray]) -> Any:
    """The inverse of `encode`. Errors: UserError where document and tensors do not belong together."""
    if not isinstance(document, dict) or document.get('format') != FORMAT or 'content' not in document:
        raise UserError(f'expected a JSON document of format {FORMAT!r}, as convert.py writes it')
    if document.get('version') != 1:
        raise UserError(f'expected version 1 of {FORMAT!r}, found {document.get("version")!r:.40}; '
                        'a newer release may read it')
    decoder = _Decoder(tensors)
    try:
        return decoder.decode(document['content'], 0)
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise UserError(f'damaged JSON document: {type(error).__name__} {str(error)!r:.80}') from None


class _Decoder:
    def __init__(self, tensors: dict[str, np.ndarray]):
        self.tensors = tensors

    def decode(self, value: Any, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise UserError(f'expected values nested at most {MAX_DEPTH} deep')
        if isinstance(value, list):
            return [self.decode(item, depth + 1) for item in value]
        if not isinstance(value, dict):
            return value
        if 'array' in value:
            return self.array(value)
        if len(value) == 1:
            tag, content = next(iter(value.items()))
            if tag == 'tuple':
                return tuple(self.decode(item, depth + 1) for item in content)
            if tag == 'items':
                return {key: self.decode(item, depth + 1) for key, item in content}
            if tag == 'float':
                if content not in ('nan', 'inf', '-inf'):
                    raise UserError(f'damaged JSON document: a float {content!r:.40}')
                return float(content)
            if tag == 'network':
                return self.network(content, depth + 1)
        return {key: self.decode(item, depth + 1) for key, item in value.items()}

    def array(self, entry: dict) -> np.ndarray | np.generic:
        value = self.tensors.get(entry['array'])
        if value is None:
            raise UserError(f'the tensor {entry["array"]!r:.120} is missing')
        if 'shape' in entry and ([*value.shape] != entry['shape'] or value.dtype.name != entry['dtype']):
            raise UserError(f'the tensor {entry["array"]!r:.120} is {value.dtype} {value.shape}, the JSON '
                            f'document says {entry["dtype"]!r:.20} {entry["shape"]!r:.60}')
        return value[()] if entry.get('scalar') is True and value.ndim == 0 else value

    def network(self, entry: dict, depth: int) -> NetworkState:
        if depth > MAX_DEPTH:
            raise UserError(f'expected networks nested at most {MAX_DEPTH} deep')
        order = tuple(entry.get('key_order', STATE_KEYS))
        extra = self.decode(entry.get('extra', {}), depth)
        values = {
            'name': entry['name'], 'version': entry['version'], 'build_func_name': entry['build_func_name'],
            'static_kwargs': self.decode(entry['static_kwargs'], depth),
            'components': {key: self.network(component, depth + 1) for key, component in entry['components']},
            'variables': [(item['name'], self.array(item)) for item in entry['variables']],
            'build_module_src': SOURCE_PLACEHOLDER,
        }
        state = {key: values[key] if key in values else extra[key] for key in order}
        if values['components']:
            state['components'] = values['components']
        return NetworkState.from_state({**state, **extra}, entry['class_name'])
