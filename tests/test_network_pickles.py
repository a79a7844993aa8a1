"""Networks and pickles: Python's own pickler, when layers are built, what does not match, hostile files."""

import copy
import io
import os
import pickle
import re
import tempfile
import threading

import numpy as np
import tensorflow as tf

import pretrained_networks
from dnnlib import tflib
from dnnlib.tflib import legacy, network
from dnnlib.tflib.network_contents import networks_of, states_of
from dnnlib.util import UserError
from tests import testutil
from tests.test_network import TINY, discriminator, generator

SNAPSHOTS = [('training', 'stylegan2_f_init.pkl'), ('training', 'stylegan_init.pkl'),
             ('training', 'progan_label4_init.pkl')]


def read(path):
    """By Python's own unpickler, as scripts do."""
    with open(path, 'rb') as file:
        return pickle.load(file)


class PickleTest(tf.test.TestCase):

    def test_official_pickle_to_ours_to_pickle_is_the_same_to_the_byte(self):
        paths = [testutil.golden(*parts) for parts in SNAPSHOTS]
        paths += sorted(map(str, testutil.GOLDEN.glob('*/*.pkl')))
        for path in dict.fromkeys(paths):
            with self.subTest(os.path.basename(path)):
                with open(path, 'rb') as file:
                    data = file.read()
                content = read(path)
                self.assertEqual(legacy.dumps(states_of(content)), data)    # Nothing is built.
                if '_after' in path:    # The same networks as in _init.
                    continue
                for net in tf.nest.flatten(content)[-2:]:
                    self.assertIsNone(net._layer)
                    net.layer                                                       # noqa: B018
                self.assertEqual(legacy.dumps(states_of(content)), data)    # D and Gs are built.
                # The same by Python's pickler, in every protocol.
                for protocol in (2, pickle.HIGHEST_PROTOCOL):
                    again = pickle.loads(pickle.dumps(content, protocol))
                    self.assertEqual(legacy.dumps(states_of(again)), data)
                restricted = legacy.load_pkl(io.BytesIO(pickle.dumps(content)))
                for ours, theirs in zip(legacy.network_states(restricted),
                                        legacy.network_states(states_of(content)), strict=True):
                    self._assert_equal(ours, theirs)

    def _assert_equal(self, state, expected):
        self.assertEqual((state.key_order, state.static_kwargs, state.version, list(state.components)),
                         (expected.key_order, expected.static_kwargs, expected.version,
                          list(expected.components)))
        for (name, value), (other, array) in zip(state.variables, expected.variables, strict=True):
            self.assertEqual((name, type(value), value.dtype), (other, type(array), array.dtype))
            self.assertAllEqual(value, array)
        for key, component in state.components.items():
            self._assert_equal(component, expected.components[key])

    @testutil.needs_golden
    def test_golden_outputs(self):
        """Every golden pickle by plain pickle.load, as scripts do, and by load_networks."""
        testutil.run_eagerly(self)      # Each is called once or twice; the tests of networks trace.
        compared = 0
        for path in sorted(testutil.GOLDEN.glob('*/*.pkl')):
            with self.subTest(path.name):
                networks = read(path)
                networks = [networks] if isinstance(networks, tflib.Network) else list(networks)
                if '_after' not in path.name:       # The same networks as in _init.
                    loaded = (pretrained_networks.load_networks(path) if len(networks) == 3
                              else [pretrained_networks.load_network(path)])
                    for ours, net in zip(loaded, networks, strict=True):
                        self.assertIsNotNone(ours._layer)
                        self._assert_equal(ours.state(), net.state())
                compared += self._compare_with_golden(path, networks)
        # Of StyleGAN2 w and two images each of G and Gs, and the scores; of networks that grow fewer.
        self.assertEqual(compared, 5 * 7 + 6 * 3 + 3 * 3 + 2)

    def _compare_with_golden(self, path, networks):
        """How many arrays it compared. Those of a training have none recorded: they are run."""
        folder, case = path.parent.name, path.stem
        if folder in ('training', 'metrics'):
            G = networks[0]
            images = G.get_output_for(*[np.ones([1, *shape[1:]]) for shape in G.input_shapes])
            self.assertTrue(np.isfinite(images).all() and np.std(images) > 0.01)
            return 0
        grows = os.path.exists(testutil.golden(folder, f'{case}.npz'))
        count = 0
        for net in networks:
            if grows and net.name == 'Gs':      # What was recorded is of G.
                continue
            for name in net.vars:
                if name.rpartition('/')[2] == 'lod':
                    net.set_var(name, 0)
            a = testutil.load(folder, f'{case}.npz' if grows else f'{case}_{net.name}.npz')
            prefix, *keys = (['d_', 'd_images', 'd_labels'] if net.name == 'D'
                             else ['', 'latents', 'labels'])
            inputs = [a[key] for key in keys if key in a]
            if prefix:
                outputs = net.run(*inputs, return_as_list=True)
                expected = [a[key] for key in ('d_scores', 'd_scores_linear_lod0', 'd_labels_out_linear_lod0')
                            if key in a]
            else:
                keys = [key for key in a if re.fullmatch(
                    'dlatents|image(_psi1|_psi0.6|_psi0.5_cutoffNone)?(_linear_lod0)?', key)]
                outputs = [self._golden_output(net, key, inputs) for key in keys]
                expected = [a[key] for key in keys]
            for actual, target in zip(outputs, expected, strict=True):
                testutil.assert_close(self, actual, target)
            count += len(expected)
        return count

    def _golden_output(self, G, key, inputs):
        if key == 'dlatents':
            return G.components.mapping.run(*inputs)
        psi = re.search('_psi([0-9.]+)', key)
        return G.run(*inputs, minibatch_size=3, randomize_noise=False,
                     **(dict(truncation_psi=float(psi[1])) if psi else {}))

    def test_layers_are_built_when_they_are_needed(self):
        G, D, Gs = read(testutil.golden(*SNAPSHOTS[0]))
        self.assertRegex(repr(Gs), "'Gs': training.networks_stylegan2.G_main, not built yet")
        self.assertEqual((Gs.name, Gs.static_kwargs.resolution, list(Gs.components), Gs.version),
                         ('Gs', 16, ['synthesis', 'mapping'], 4))
        self.assertRegex(repr(Gs.components.mapping), 'G_mapping, not built yet')
        results = []
        threads = [threading.Thread(target=lambda net=net: results.append(net.layer))
                   for net in (Gs, Gs.components.mapping, Gs.components.synthesis, Gs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertLen(results, 4)
        self.assertIs(Gs.components.mapping.layer, Gs.layer.mapping)
        self.assertIs(Gs.components.synthesis.vars['noise0'], Gs.vars['G_synthesis/noise0'])
        self.assertIsNone(G._layer)
        self.assertNotIn('not built', repr(Gs.components.mapping))

    def test_components_stand_on_their_own(self):
        Gs = generator('Gs')
        z = np.random.RandomState(0).randn(2, 8)
        w = Gs.components.mapping.run(z, None)
        images = Gs.components.synthesis.run(w, randomize_noise=False)
        synthesis, whole, mapping = pickle.loads(pickle.dumps((Gs.components.synthesis, Gs,
                                                               Gs.components.mapping)))
        self.assertIs(synthesis, whole.components.synthesis)
        self.assertAllEqual(mapping.run(z, None), w)
        self.assertAllEqual(synthesis.run(w, randomize_noise=False), images)
        alone = pickle.loads(pickle.dumps(Gs.components.synthesis))
        self.assertAllEqual(alone.run(w, randomize_noise=False), images)
        whole.set_var('G_synthesis/noise0', np.zeros([1, 1, 4, 4]))
        self.assertAllEqual(synthesis.get_var('noise0'), np.zeros([1, 1, 4, 4]))
        self.assertNotAllEqual(alone.get_var('noise0'), np.zeros([1, 1, 4, 4]))

    def test_copies_are_networks_of_their_own(self):
        for make in (lambda net: net, lambda net: pickle.loads(pickle.dumps(net))):
            for copied in (copy.copy, copy.deepcopy):
                Gs = make(generator('Gs'))
                other = copied(Gs)
                self.assertEqual((other.name, other.static_kwargs), (Gs.name, Gs.static_kwargs))
                self.assertAllEqual(other.get_var('dlatent_avg'), Gs.get_var('dlatent_avg'))
                other.set_var('dlatent_avg', np.full(6, 9))
                other.components.mapping.set_var('Dense0/bias', np.full(8, 9))
                self.assertNotAllEqual(Gs.get_var('dlatent_avg'), np.full(6, 9))
                self.assertNotAllEqual(Gs.get_var('G_mapping/Dense0/bias'), np.full(8, 9))
                self.assertAllEqual(other.get_var('G_mapping/Dense0/bias'), np.full(8, 9))
        state = Gs.__getstate__()
        twin = network.Network.__new__(network.Network)
        twin.__setstate__(state)    # Components that belong to another network stay with it.
        self.assertIsNot(twin.components.mapping, Gs.components.mapping)
        self.assertIs(Gs.components.mapping.layer, Gs.layer.mapping)

    def test_copies_are_written_as_what_they_were_copied_from(self):
        # Config A of StyleGAN2 has networks of StyleGAN, but the state version of its own program.
        state = legacy.find_network(legacy.load_pkl(testutil.golden(*SNAPSHOTS[1])), 'Gs')
        for each in (state, *state.components.values()):
            each.version, each.extra, each.key_order = 4, {'more': 1}, (*each.key_order[::-1], 'more')
        Gs = network.Network.from_state(state)
        for copied in (Gs.clone('Other'), copy.deepcopy(Gs)):
            written = copied.state()
            for ours, theirs in ((written, state), (written.components['mapping'],
                                                    state.components['mapping'])):
                self.assertEqual((ours.version, ours.extra, ours.key_order),
                                 (4, {'more': 1}, theirs.key_order))

    def test_save_and_load(self):
        Gs = generator('Gs', odd_argument=[1, {'a': 2}])
        path = os.path.join(self.get_temp_dir(), 'Gs.pkl')
        Gs.save(path)
        other = tflib.Network.load(path)
        self.assertEqual(other.static_kwargs, Gs.static_kwargs)
        z = np.random.RandomState(0).randn(2, 8)
        self.assertAllEqual(other.run(z, None, randomize_noise=False), Gs.run(z, None, randomize_noise=False))
        self.assertAllEqual(read(path).run(z, None, randomize_noise=False),
                            Gs.run(z, None, randomize_noise=False))
        self.assertEqual(tflib.Network.load(testutil.golden(*SNAPSHOTS[0]), 'D').name, 'D')

    def test_a_network_of_float64_stays_one(self):
        Gs = generator('Gs', dtype='float64')
        other = copy.deepcopy(Gs)
        self.assertAllEqual(other.get_var('dlatent_avg'), Gs.get_var('dlatent_avg'))
        self.assertEqual(other.run(np.zeros([1, 8])).dtype, np.float64)

    def test_content_of_files_with_several_networks(self):
        G = discriminator()
        content = networks_of(legacy.load_pkl(io.BytesIO(pickle.dumps(
            {'a': [G, (G, 1)], 'b': G, 'c': np.arange(3)}))))
        self.assertIs(content['a'][0], content['b'])
        self.assertIs(content['a'][1][0], content['b'])
        self.assertAllEqual(content['c'], np.arange(3))


class MismatchTest(tf.test.TestCase):

    def _message(self, state):
        with self.assertRaises(UserError) as caught:
            network.Network.from_state(state)
        message = str(caught.exception)
        self.assertNotIn('\n', message)
        # By Python's unpickler the same is said, at once or when the network is needed.
        with self.assertRaises(UserError):
            loaded = networks_of(state)
            self.assertNotIn('training', repr(loaded.layer))
        return message

    def test_all_that_does_not_match_is_listed(self):
        state = generator().state()
        synthesis = state.components['synthesis']
        synthesis.variables = [(name, value) for name, value in synthesis.variables if 'noise0' not in name]
        synthesis.variables += [(f'128x128/Conv{i}/weight', np.zeros(1, 'f4')) for i in range(12)]
        state.variables[1] = ('dlatent_avg', np.zeros(7, 'f4'))
        message = self._message(state)
        for part in ('1 missing: G_synthesis/noise0;', '12 unknown: G_synthesis/128x128/Conv0/weight',
                     'and 4 more',
                     '1 that do not fit: dlatent_avg expected shape (6,), received (7,)'):
            self.assertIn(part, message)
        self.assertNotIn('Conv9', message)

    def test_unknown_functions_are_listed(self):
        state = generator().state()
        state.build_func_name = 'G_mine'
        state.components['mapping'].build_func_name = 'M_mine'
        self.assertRegex(self._message(state),
                         "unknown network functions: 'G_mine' of G .*'M_mine' of G_mapping")
        state = generator().state()
        state.components['mapping'].build_func_name = 'G_synthesis_stylegan2'
        self.assertRegex(self._message(state), 'mapping is G_synthesis_stylegan2, expected G_mapping')
        state = generator().state()
        del state.components['mapping']
        self.assertRegex(self._message(state), 'missing: G_mapping/Dense0/weight')

    def test_harmless_arguments_are_kept(self):
        state = generator().state()
        state.static_kwargs.update(func_name='x', layer='y', name='z', color=(1, [2.5, None]))
        again = network.Network.from_state(state)
        self.assertEqual(list(again.state().static_kwargs.items()), list(state.static_kwargs.items()))
        self.assertEqual(again.clone().state().static_kwargs['color'], (1, [2.5, None]))

    def test_later_generations(self):
        state = generator().state()
        state.version = state.components['mapping'].version = 5
        self.assertRegex(self._message(state), r'state version 5 \(StyleGAN2-ADA\)')
        data = pickle.dumps(generator()).replace(b'\x8c\x07version\x94K\x04', b'\x8c\x07version\x94K\x05')
        with self.assertRaisesRegex(UserError, r'state version 5 \(StyleGAN2-ADA\)'):
            pickle.loads(data)

    def test_arguments_for_more_memory_than_there_is(self):
        for kwargs in (dict(fmap_max=1 << 20, fmap_base=1 << 40), dict(resolution=1 << 60),
                       dict(base_shape=[1 << 20, 1 << 20]), dict(mapping_layers=10 ** 7),
                       dict(latent_size=10 ** 15), dict(mapping_fmaps=10 ** 9), dict(label_size=10 ** 12),
                       dict(fmap_max=-3), dict(resolution=10 ** 400), dict(dtype='float99')):
            with self.subTest(kwargs):
                state = generator().state()
                state.static_kwargs.update(kwargs)
                self._message(state)


class HostilePickleTest(tf.test.TestCase):

    def _refused(self, message, **changes):
        state = generator().state()
        for key, value in changes.items():
            setattr(state, key, value)
        state = legacy.load_pkl(io.BytesIO(legacy.dumps(state)))
        with self.assertRaisesRegex(UserError, message) as caught:
            tflib.Network.from_state(state)
        self.assertNotIn('\n', str(caught.exception))

    def test_nothing_is_called(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'written')
            arguments = dict(filename=path, contents='owned')
            self._refused('unknown', build_func_name='tf.io.write_file', static_kwargs=arguments)
            for module in ('tensorflow.io.write_file', 'training.networks_stylegan2.tf.io.write_file',
                           'os.system'):
                for key in ('synthesis_func', 'mapping_func'):
                    self._refused('expected the name of a network',
                                  static_kwargs={**TINY, key: module, **arguments})
            self._refused('unknown', build_func_name='get_obj_by_name', static_kwargs={'name': 'os.system'})
            self._refused('network class', static_kwargs={**TINY, 'synthesis_func': 'fmaps_by_stage'})
            self.assertFalse(os.path.exists(path))

    def test_source_text_is_not_run(self):
        G = generator()
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, 'written')
            state = {**G.__getstate__(), 'build_module_src': f'open({path!r}, "w").close()\n' * 3}
            twin = network.Network.__new__(network.Network)
            twin.__setstate__(state)
            twin.run(np.zeros([1, 8]))
            self.assertFalse(os.path.exists(path))
            self.assertNotIn('open(', twin.__getstate__()['build_module_src'])

    def test_states_that_are_none(self):
        good = generator().__getstate__()
        for state in (None, [], {}, {**good, 'components': {'mapping': print}}, {**good, 'components': 3},
                      {**good, 'components': [1]}, {**good, 'variables': 3}, {**good, 'version': 'new'},
                      {**good, 'static_kwargs': None}):
            with self.assertRaises(UserError) as caught:
                network.Network.__new__(network.Network).__setstate__(state)
            self.assertNotIn('\n', str(caught.exception))

    def test_arguments_that_do_not_fit(self):
        self._refused('do not fit|must be', static_kwargs={**TINY, 'resolution': 'big'})
        self._refused('do not fit|power of two', static_kwargs={**TINY, 'resolution': [4]})
        self._refused('16 missing', static_kwargs={**TINY, 'resolution': 16})


if __name__ == '__main__':
    tf.test.main()
