"""Files of weights: each kind gives the same arrays, nothing in them runs, messages say what is missing."""

import hashlib
import json
import os
import sys
import tempfile
import unittest.mock

import numpy as np
import tensorflow as tf

from dnnlib.util import UserError
from metrics import feature_nets, weights
from metrics.weights import Entry
from tests import feature_testutil as util
from tests import testutil

# A network of the form of Inception: normalizations, two layers of one shape, classes.
SMALL = (
    Entry('first.conv', (4, 3, 3, 3), 'first.bn', 'conv'),
    Entry('block.one.conv', (5, 4, 1, 7), 'block.one.bn', 'mixed/tower/conv'),
    Entry('block.two.conv', (5, 5, 3, 3), 'block.two.bn', 'mixed/tower/conv_1'),
    Entry('block.three.conv', (5, 5, 3, 3), 'block.three.bn', 'mixed/conv'),
    Entry('fc', (6, 5), None, 'softmax', True))
# Of the form of VGG16.
PLAIN = (Entry('features.0', (4, 3, 3, 3)), Entry('features.2', (4, 4, 3, 3)), Entry('classifier.0', (7, 36)))


def expected(entries):
    return util.random_weights(util.shapes_of(entries), 1)


class TestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = folder.name
        # No file of the user of this machine counts.
        patch = unittest.mock.patch.dict(os.environ, STYLEGAN_CACHE_DIR=os.path.join(self.dir, 'cache'))
        patch.start()
        self.addCleanup(patch.stop)
        os.environ.pop('STYLEGAN_WEIGHTS_DIR', None)

    def path(self, *names):
        return os.path.join(self.dir, *names)

    def write(self, name, data=b''):
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), 'wb') as file:
            file.write(data)
        return self.path(name)


class KindsTest(TestCase):
    def assert_weights(self, path, entries, values):
        result = weights.fit(weights.read(path), entries)
        self.assertEqual(sorted(result), sorted(values))
        for name, value in values.items():
            self.assertEqual(result[name].dtype, np.float32)
            self.assertAllEqual(result[name], value, name)

    def test_pytorch(self):
        for entries in (SMALL, PLAIN):
            values = expected(entries)
            util.write_torch(self.path('x.pth'), values)
            self.assert_weights(self.path('x.pth'), entries, values)
            util.write_torch(self.path('x.pt'), values, script=True)
            self.assert_weights(self.path('x.pt'), entries, values)

    def test_torchscript_with_names_of_the_graph(self):
        values = expected(SMALL)
        last = {'weight': 'weight', 'bias': 'beta', 'running_mean': 'mean', 'running_var': 'var'}
        # Out of order, and without scales, as in the graph that these are from.
        named = {}
        for entry in reversed(SMALL):
            named[f'layers.{entry.graph.replace("/", ".")}.weight'] = values[f'{entry.name}.weight']
            for name in entry.vectors.values():
                if not name.endswith('bn.weight'):
                    key = last[name.rpartition('.')[2]]
                    named[f'layers.{entry.graph.replace("/", ".")}.{key}'] = values[name]
        util.write_torch(self.path('x.pt'), named, script=True)
        self.assert_weights(self.path('x.pt'), SMALL, {
            name: value for name, value in values.items() if not name.endswith('bn.weight')})

    def test_order(self):
        values = expected(PLAIN)
        heads = {'heads.lin0': np.ones([1, 4, 1, 1])}
        named = {f'layers.{name}': value for name, value in values.items()}     # Sorted: another order.
        ordered = {}
        for i, entry in enumerate(PLAIN):
            ordered[f'conv{i}.bias'] = named[f'layers.{entry.name}.bias']
            ordered[f'conv{i}.weight'] = named[f'layers.{entry.name}.weight']
        util.write_torch(self.path('x.pt'), {**heads, **ordered}, script=True)
        self.assert_weights(self.path('x.pt'), PLAIN, values)

    def test_graph(self):
        values = expected(SMALL)
        for path in (self.path('x.pb'), self.path('y.PB')):
            with open(path, 'wb') as file:
                file.write(util.graph_bytes(util.graph_values(SMALL, values)))
            self.assert_weights(path, SMALL, values)
        # A constant of equal numbers may be stored as one.
        values['first.bn.weight'] = np.ones([4], np.float32)
        data = util.graph_bytes(util.graph_values(SMALL, values))
        graph = tf.compat.v1.GraphDef.FromString(data)
        for node in graph.node:
            if node.name == 'conv/batchnorm/gamma':
                node.attr['value'].tensor.ClearField('tensor_content')
                node.attr['value'].tensor.float_val.append(1)
        self.write('z.pb', graph.SerializeToString())
        self.assert_weights(self.path('z.pb'), SMALL, values)

    def test_saved_model(self):
        values = expected(SMALL)
        constants = util.graph_values(SMALL, values)

        class Model(tf.Module):
            @tf.function(input_signature=[tf.TensorSpec([], tf.float32)], autograph=False)
            def __call__(self, x):
                return tf.add_n([x] + [tf.reduce_sum(tf.constant(value, name=f'model/{name}'))
                                       for name, value in constants.items()])
        tf.saved_model.save(Model(), self.dir)
        self.assert_weights(self.path('saved_model.pb'), SMALL, values)
        self.assertEqual(weights.find('inception', self.dir), self.path('saved_model.pb'))

    def test_network_pickles(self):
        values = expected(PLAIN)
        variables = {}
        for i, entry in enumerate(PLAIN):
            for last in ('weight', 'bias'):
                variables[f'layer{i}/{last}'] = util.to_tensorflow(values[f'{entry.name}.{last}'])
        util.write_network(self.path('x.pkl'), variables, num_outputs=7)
        self.assert_weights(self.path('x.pkl'), PLAIN, values)
        values = expected(SMALL)
        graph = util.graph_bytes(util.graph_values(SMALL, values))
        util.write_network(self.path('y.pkl'), {}, options={'graph': [graph]})
        self.assert_weights(self.path('y.pkl'), SMALL, values)
        util.write_network(self.path('z.pkl'), {}, options={'graph': graph[:-7]})
        with self.assertRaisesRegex(UserError, 'z.pkl: expected a frozen TensorFlow graph'):
            weights.read(self.path('z.pkl'))

    def test_dense_layer_as_convolution(self):
        values = expected(PLAIN)
        wide = {**values, 'classifier.0.weight': values['classifier.0.weight'].reshape(7, 4, 3, 3)}
        util.write_torch(self.path('x.pth'), wide)
        self.assert_weights(self.path('x.pth'), PLAIN, values)

    def test_classes_may_be_missing(self):
        values = {name: value for name, value in expected(SMALL).items() if not name.startswith('fc.')}
        util.write_torch(self.path('x.pth'), values)
        self.assert_weights(self.path('x.pth'), SMALL, values)

    @testutil.needs_golden
    def test_heads_of_lpips(self):
        heads = weights.read(str(util.METRICS / 'pth_formats' / 'lpips_v0.1_vgg.pth'))
        shipped = util.load(feature_nets.HEADS_FILE)
        self.assertEqual(sorted(heads), sorted(shipped))
        for name, value in shipped.items():
            self.assertAllEqual(heads[name], value)
            self.assertAllGreaterEqual(value, 0)

    @testutil.needs_golden
    def test_names_of_inception(self):
        with open(util.METRICS / 'inception_graphdef_names.json') as file:
            names = json.load(file)['convolutions']
        with open(util.METRICS / 'inception_weights_recipe.json') as file:
            shapes = {row['name']: tuple(row['shape']) for row in json.load(file)['parameters']}
        entries = util.entries_of(feature_nets.Inception)
        self.assertEqual({entry.graph: entry.name.removesuffix('.conv') for entry in entries[:-1]}, names)
        self.assertEqual(util.shapes_of(entries), shapes)


class HostileTest(TestCase):
    def assert_refused(self, name, data, message, entries=SMALL):
        path = self.write(name, data)
        with self.assertRaisesRegex(UserError, message) as caught:
            weights.fit(weights.read(path), entries)
        self.assertNotIn('\n', str(caught.exception))
        return str(caught.exception)

    def test_damaged_files(self):
        graph = util.graph_bytes(util.graph_values(SMALL, expected(SMALL)))
        for name in ('x.pb', 'x.pth', 'x.pt', 'x.pkl'):
            for data, message in [(b'', 'empty|another network'),
                                  (b'<html>not found</html>', 'web page|graph'),
                                  (b'\x80\x02}q\x00.', 'expected|no.*network'), (graph[:-7], 'expected')]:
                if (name, data) != ('x.pb', b'\x80\x02}q\x00.'):
                    self.assert_refused(name, data, message)
        util.write_torch(self.path('y.pth'), expected(SMALL))
        with open(self.path('y.pth'), 'rb') as file:
            self.assert_refused('z.pth', file.read()[:2000], 'z.pth: damaged')

    def test_code(self):
        for name in ('x.pth', 'x.pt', 'x.pkl', 'x.pb'):
            data = b'\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.'
            self.assert_refused(name, data, 'refused|expected')

    def test_graphs_that_unfold(self):
        for shape, numbers in [((1 << 20, 1 << 20), [1.0]), ((1 << 17,), [1.0]), ((-1,), [1.0]),
                               ((4,), [1.0, 2.0]), ((1 << 40,), [])]:
            graph = tf.compat.v1.GraphDef()
            node = graph.node.add(name='conv', op='Const')
            tensor = node.attr['value'].tensor
            tensor.dtype = tf.float32.as_datatype_enum
            tensor.float_val.extend(numbers)
            for size in shape:
                tensor.tensor_shape.dim.add(size=size)
            self.assert_refused('x.pb', graph.SerializeToString(), "damaged graph: node 'conv'")

    def test_mutations(self):
        data = util.graph_bytes(util.graph_values(SMALL[:2], expected(SMALL[:2])))
        rnd = np.random.RandomState(0)
        for _ in range(300):
            changed = np.frombuffer(data, np.uint8).copy()
            where = rnd.randint(0, len(changed), rnd.randint(1, 5))
            changed[where] = rnd.randint(0, 256, len(where))
            path = self.write('x.pb', changed[:rnd.randint(1, len(changed) + 1)].tobytes())
            try:
                weights.fit(weights.read(path), SMALL[:2])
            except UserError:
                pass

    def test_other_networks(self):
        values = expected(SMALL)
        for change, message in [
                ({'block.two.bn.running_var': None}, 'a part of one: it has no block.two.bn.running_var'),
                ({'block.two.conv.weight': None}, 'a part of one: it has no block.two.conv'),
                ({'first.bn.bias': np.zeros(5)}, r'first.bn.bias has shape \(5,\), expected \(4,\)'),
                ({'fc.bias': np.full([6], np.nan)}, 'fc.bias has values that are not finite')]:
            changed = {name: value for name, value in {**values, **change}.items() if value is not None}
            with self.assertRaisesRegex(UserError, message):
                weights.fit(changed, SMALL)
        with self.assertRaisesRegex(UserError, r'expected 5 kernels, the first of shape \(4, 3, 3, 3\); '
                                               r'found 3, the first of shape \(7, 36\)'):
            weights.fit(expected(PLAIN), SMALL)
        for value in (np.zeros([7, 0, 3, 3]), np.zeros([0, 4, 3, 3]), np.zeros([7, 4, 9]), np.float32(1)):
            with self.assertRaisesRegex(UserError, 'holds another network'):
                weights.fit({**expected(PLAIN), 'classifier.0.weight': value}, PLAIN)
        # Two layers that have changed places: the shapes tell.
        one, two, three = (f'{name}.weight' for name in ('features.0', 'features.2', 'classifier.0'))
        plain = expected(PLAIN)
        swapped = {'a.weight': plain[two], 'b.weight': plain[one], 'c.weight': plain[three]}
        with self.assertRaisesRegex(UserError, 'another network'):
            weights.fit(swapped, PLAIN)


class FindTest(TestCase):
    def test_order_of_places(self):
        names = [name for name, _ in weights.SOURCES['vgg16'].files]
        self.assertIsNone(weights.find('vgg16'))
        md5 = hashlib.md5(b'x').hexdigest()
        paths = [self.write(f'cache/downloads/{md5}_{names[3]}')]
        self.write(f'cache/downloads/x{md5}_{names[0]}')
        self.write(f'cache/downloads/{md5}_{names[0]}.part')
        self.assertEqual(weights.find('vgg16'), paths[0])
        paths.append(self.write(f'cache/weights/{names[2]}'))
        self.assertEqual(weights.find('vgg16'), paths[1])
        paths.append(self.write(f'environment/{names[1]}'))
        with unittest.mock.patch.dict(os.environ, STYLEGAN_WEIGHTS_DIR=self.path('environment')):
            self.assertEqual(weights.find('vgg16'), paths[2])
            os.makedirs(self.path('empty'))
            self.assertEqual(weights.find('vgg16', self.path('empty')), paths[1])
            given = self.write(f'set/{names[0]}')
            self.assertEqual(weights.find('vgg16', os.path.dirname(given)), given)
        os.makedirs(self.path('folder', names[0]))      # No file.
        self.assertEqual(weights.find('vgg16', self.path('folder')), paths[1])

    def test_no_such_folder(self):
        with self.assertRaisesRegex(UserError, f'--weights-dir: expected a local folder .* {self.dir}/none'):
            weights.find('vgg16', self.path('none'))
        with unittest.mock.patch.dict(os.environ, STYLEGAN_WEIGHTS_DIR='gs://x'):
            with self.assertRaisesRegex(UserError, r'\$STYLEGAN_WEIGHTS_DIR: expected a local folder .* gs://x'):
                weights.find('inception')

    def test_package_is_not_run(self):
        name = f'weights_package_{os.getpid()}'
        self.write(f'{name}/__init__.py', b'raise SystemExit("was run")')
        path = self.write(f'{name}/models/some.pth')
        source = weights.SOURCES['efflite0']._replace(module=name, module_file='models/some.pth')
        with unittest.mock.patch.dict(weights.SOURCES, efflite0=source), \
                unittest.mock.patch.object(sys, 'path', [*sys.path, self.dir]):
            self.assertEqual(weights.find('efflite0'), path)
            os.remove(path)
            self.assertIsNone(weights.find('efflite0'))

    def test_messages(self):
        with self.assertRaises(UserError) as caught:
            feature_nets.find_extractor('lpips', self.dir)
        text = str(caught.exception)
        for part in ('the LPIPS distance needs the weights of VGG16', 'vgg16-397923af.pth (of torchvision)',
                     f'in {self.dir};', '--weights-dir', 'Without: pr_efflite0'):
            self.assertIn(part, text)
        self.assertNotIn('\n', text)
        with self.assertRaisesRegex(UserError, 'FID, KID, IS.*pt_inception-2015.*Without: fd_efflite0'):
            feature_nets.find_extractor('inception')
        path = self.write('vgg16.pt', b'PK\x03\x04 and no more')
        with self.assertRaisesRegex(UserError, f'{path}: damaged .* \\(read as the weights of VGG16\\)'):
            feature_nets.find_extractor('lpips', self.dir)
        util.write_torch(path, expected(SMALL))
        with self.assertRaisesRegex(UserError, f'{path}: holds another network'):
            feature_nets.find_extractor('lpips', self.dir)

    def test_hash(self):
        path = self.path('vgg16.pt')
        util.write_torch(path, expected(PLAIN), script=True)
        found = weights.load('vgg16', PLAIN, self.dir)
        with open(path, 'rb') as file:
            self.assertEqual((found.file, found.sha256), (path, hashlib.sha256(file.read()).hexdigest()))


if __name__ == '__main__':
    tf.test.main()
