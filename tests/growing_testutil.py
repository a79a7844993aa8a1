"""What the tests of the growing networks of all three generations share."""

import contextlib
import json
import os

import numpy as np
import tensorflow as tf

from dnnlib.tflib import Network, legacy
from dnnlib.tflib.network import find_network_class
from tests import testutil
from training.context import Context
from training.growing import downscale2d, stage_of, upscale2d

# Between the forms of one network in float64.
TOLERANCE = 1e-10
LODS = (0.0, 0.4, 1.0, 1.7, 2.0, 2.5, 3.0, 3.4, 5.0)    # 32×32 down to 4×4, below which there is nothing.


def recorded(arrays: dict, prefix: str) -> list[tuple[str, float, np.ndarray]]:
    """(structure, lod, array) of every array named `<prefix>_<structure>_lod<lod>`."""
    found = []
    for key, value in arrays.items():
        structure, _, lod = key.removeprefix(f'{prefix}_').partition('_lod')
        if key.startswith(f'{prefix}_') and structure in ('fixed', 'linear', 'recursive'):
            found.append((structure, float(lod), value))
    return found


def randomized(network, seed: int):
    """The network with random values everywhere, so that nothing is zero as at the start."""
    rng = np.random.RandomState(seed)
    for name, variable in network.named_variables().items():
        if not name.endswith('lod'):
            scale = 100 if name.startswith('G_mapping/') else 1
            variable.assign(scale * rng.randn(*variable.shape))
    return network


def step_context(lod: float) -> testutil.RecordedContext:
    """The context of a training step at that level of detail: images have the size of the stage."""
    return testutil.RecordedContext(stage=stage_of(lod))


class VariableTableChecks:
    """Names, order, shapes, trainability, interface and parameter counts of the official networks."""

    table, version, num_rows = '', 0, 0

    def _check(self, network, row):
        self.assertEqual(type(network).__name__, row['func'])
        self.assertEqual(network.name, row['name'])
        self.assertEqual(dict(network.static_kwargs), row['static_kwargs'])
        facade = Network(network.name, layer=network)
        variables = [[name, list(variable.shape), variable.trainable]
                     for name, variable in facade.own_vars.items()]
        self.assertEqual(variables, row['variables'])
        for key in ('input_names', 'input_shapes', 'output_names', 'output_shapes'):
            self.assertEqual(getattr(network, key), row[key])
        components = row.get('components') or {}
        self.assertEqual(list(network.components), list(components))
        for key, component in network.components.items():
            self._check(component, components[key])

    def test_full_size_networks(self):
        with open(testutil.golden('variables', f'{self.table}_fullsize.json')) as file:
            rows = json.load(file)
        self.assertLen(rows, self.num_rows)
        for row in rows:
            with self.subTest(row['config'], role=row['role']):
                expected = row['network']
                built = find_network_class(expected['func'], self.version)(
                    name=expected['name'], **expected['static_kwargs'])
                self._check(built, expected)
                self.assertEqual(sum(int(np.prod(v.shape)) for v in built.named_trainables().values()),
                                 row['trainable_parameters'])


class PickleChecks:
    """Official pickles behind the facade: NumPy arrays in NCHW."""

    def check_pickle(self, folder: str, case: str, image_prefix: str, class_name: str, version: int,
                     states=None, **options) -> None:
        """Images and scores of every recorded level of detail, and traced ones of what is read again.

        Args: states of (G, D, Gs), None = those of the golden pickle.
        """
        a = testutil.load(folder, f'{case}.npz')
        states = states or legacy.load_pkl(testutil.golden(folder, f'{case}.pkl'))
        networks = [Network.from_state(state) for state in states]
        for network, state in zip(networks, states, strict=True):
            # What is written is the official form: the same keys in the same order.
            written = network.state()
            self.assertEqual((written.version, written.class_name), (version, class_name))
            self.assertEqual(written.key_order, state.key_order)
            self.assertEqual(written.static_kwargs, state.static_kwargs)
            self.assertEqual([name for name, _ in written.variables], [name for name, _ in state.variables])
            self.assertEqual(list(written.all_variables()), list(state.all_variables()))
            self.assertEqual(list(written.components), list(state.components))
        path = os.path.join(self.get_temp_dir(), f'{case}.pkl')
        legacy.save_pkl(tuple(network.state() for network in networks), path)
        again = [Network.from_state(state) for state in legacy.load_pkl(path)]
        labels = [a['d_labels']] if 'd_labels' in a else []
        testutil.run_eagerly(self)
        for (G, D, _), count, mode in ((networks, None, contextlib.nullcontext), (again, 2, testutil.traced)):
            with mode():
                for _, lod, image in recorded(a, image_prefix)[:count]:
                    G.set_var('lod', lod)
                    images = G.run(a['latents'], a['labels'], minibatch_size=3, **options)
                    testutil.assert_close(self, images, image)
                for structure, lod, expected in recorded(a, 'd_scores')[:count]:
                    D.set_var('lod', lod if structure != 'fixed' else 0)
                    outputs = D.run(a['d_images'], *labels, return_as_list=True)
                    testutil.assert_close(self, outputs[0], expected)


class StructureChecks:
    """Structures, traced functions and images of the size of the stage against one another, in float64."""

    def check_generator(self, generate, network, lods=LODS) -> None:
        """Args: generate(ctx, **options) → images of fixed latents; network: what has the variable lod."""
        network.lod.assign(0)
        fixed = generate(Context(), structure='fixed')
        testutil.assert_close(self, fixed, generate(Context(), structure='linear'), 0, TOLERANCE)
        # All levels, where the stage is not known: one graph for every lod.
        all_levels = tf.function(lambda: generate(Context()), autograph=False)
        for lod in lods:
            with self.subTest(lod=lod):
                network.lod.assign(lod)
                stage = stage_of(lod)
                images = generate(Context(), structure='linear')
                self.assertEqual(images.shape, fixed.shape)
                for structure in ('recursive', 'auto', None):
                    actual = generate(Context(), structure=structure)
                    testutil.assert_close(self, actual, images, 0, TOLERANCE)
                testutil.assert_close(self, generate(Context(stage=stage)), images, 0, TOLERANCE)
                testutil.assert_close(self, all_levels(), images, 0, TOLERANCE)
                if lod in lods[1::3]:   # A graph for each takes its time.
                    traced = tf.function(lambda stage=stage: generate(Context(stage=stage)), autograph=False)
                    testutil.assert_close(self, traced(), images, 0, TOLERANCE)
                small = generate(step_context(lod))
                factor = 2 ** min(stage.lod_floor, 3)
                self.assertEqual(small.shape[1], fixed.shape[1] // factor)
                testutil.assert_close(self, upscale2d(small, factor), images, 0, TOLERANCE)
                testutil.assert_close(self, generate(Context(), structure='fixed'), fixed, 0, TOLERANCE)
                self.assertEqual(np.allclose(images, fixed), lod == 0)

    def check_discriminator(self, score, network, images, lods=LODS) -> None:
        """Args: score(images, ctx, **options) → tensor or tuple of them; images [N, 32, 32, C]."""
        all_levels = tf.function(lambda: score(images, Context()), autograph=False)
        for lod in lods:
            with self.subTest(lod=lod):
                network.lod.assign(lod)
                stage = stage_of(lod)
                scores, fixed = (score(images, Context(), structure=s) for s in ('linear', 'fixed'))
                factor = 2 ** min(stage.lod_floor, 3)
                small = downscale2d(images, factor)
                results = [*(score(images, Context(), structure=s) for s in ('recursive', 'auto', None)),
                           score(images, Context(stage=stage)), score(small, step_context(lod)),
                           score(upscale2d(small, factor), Context()), all_levels()]
                if lod in lods[1::3]:
                    results.append(tf.function(
                        lambda stage=stage: score(images, Context(stage=stage)), autograph=False)())
                if lod == 0:
                    results.append(fixed)
                for result in results:
                    pairs = zip(tf.nest.flatten(result), tf.nest.flatten(scores), strict=True)
                    for actual, expected in pairs:
                        testutil.assert_close(self, actual, expected, 0, TOLERANCE)
                self.assertEqual(np.allclose(tf.nest.flatten(fixed)[0], tf.nest.flatten(scores)[0]), lod == 0)
