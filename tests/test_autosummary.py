"""Curves: what is collected is what TensorBoard's own reader finds in the event file."""

import contextlib
import io
import json
import os
import resource
import tempfile

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from dnnlib.tflib import autosummary
from dnnlib.util import UserError


def read_events(directory):
    reader = event_accumulator.EventAccumulator(directory, size_guidance={event_accumulator.TENSORS: 0})
    return reader.Reload()


def read_scalars(directory):
    """{tag: [(step, value)]} of an event directory."""
    reader = read_events(directory)
    tags = [tag for tag in reader.Tags()['tensors']
            if reader.SummaryMetadata(tag).plugin_data.plugin_name == 'scalars']
    return {tag: [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in reader.Tensors(tag)]
            for tag in tags}


class AutosummaryTestCase(tf.test.TestCase):
    def setUp(self):
        super().setUp()
        autosummary.reset()
        self.addCleanup(autosummary.reset)
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name


class CollectTest(AutosummaryTestCase):
    def test_every_element_counts(self):
        autosummary.autosummary('x', tf.constant([[1.0, 2.0], [3.0, 4.0]]))
        autosummary.autosummary('x', 15)
        autosummary.autosummary('x', np.array([5, 5, 5], np.int32))
        autosummary.autosummary('x', np.zeros([0, 3]))
        autosummary.autosummary('y', tf.Variable(2.0))
        autosummary.autosummary('empty', [])
        autosummary.autosummary('half', tf.constant([1.0, 2.0], tf.bfloat16))
        self.assertEqual(autosummary.get_means(), {'x': 5.0, 'y': 2.0, 'half': 1.5})
        std = np.std([1, 2, 3, 4, 15, 5, 5, 5])
        self.assertAllClose(autosummary.get_stds(), {'x': std, 'y': 0, 'half': 0.5})

    def test_value_comes_back(self):
        value = tf.constant([1.0, float('nan')])
        self.assertIs(autosummary.autosummary('x', value), value)
        self.assertEqual(autosummary.autosummary('x', value, passthru='y'), 'y')

    def test_condition(self):
        autosummary.autosummary('x', 1.0, condition=False)
        self.assertEqual(autosummary.get_state(), {})

    def test_nonfinite_elements_are_left_out_and_counted(self):
        autosummary.autosummary('x', [1.0, np.nan, 3.0, np.inf, -np.inf])
        autosummary.autosummary('bad', tf.constant(float('nan')))
        autosummary.autosummary('fine', 1.0)
        self.assertEqual(autosummary.get_means(), {'x': 2.0, 'fine': 1.0})
        self.assertEqual(autosummary.get_nonfinite_counts(), {'x': 3, 'bad': 1})

    def test_moments_that_overflowed(self):
        autosummary.autosummary_moments('x', 4, np.inf, np.inf, 1)
        autosummary.autosummary_moments('x', 2, 6, 18)
        self.assertEqual(autosummary.get_means(), {'x': 3.0})
        self.assertEqual(autosummary.get_nonfinite_counts(), {'x': 5})

    @hypothesis.given(st.lists(max_size=4, elements=hnp.arrays(
        np.float32, hnp.array_shapes(max_dims=3, max_side=4),
        elements=st.floats(-1e3, 1e3, width=32) | st.just(np.nan))))
    @hypothesis.settings(max_examples=40, deadline=None)
    def test_grouping_does_not_matter(self, arrays):
        reduce_moments = tf.function(autosummary.reduce_moments)
        autosummary.reset()
        for array in arrays:
            autosummary.autosummary('eager', array)
            autosummary.autosummary_moments('graph', *reduce_moments(array).numpy())
        values = np.concatenate([np.zeros(0), *(a.ravel() for a in arrays)]).astype(np.float64)
        finite = values[np.isfinite(values)]
        for name in ['eager', 'graph']:
            if finite.size:
                self.assertAllClose(autosummary.get_means()[name], finite.mean(), rtol=1e-9, atol=1e-9)
                self.assertAllClose(autosummary.get_stds()[name], finite.std(), rtol=1e-4, atol=1e-4)
            else:
                self.assertNotIn(name, autosummary.get_means())
            self.assertEqual(autosummary.get_nonfinite_counts().get(name, 0), values.size - finite.size)

    def test_reduce_moments_has_no_gradient(self):
        x = tf.constant([1.0, 2.0])
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(autosummary.reduce_moments(x))
        self.assertIsNone(tape.gradient(y, x))

    def test_symbolic_tensor(self):
        with self.assertRaisesRegex(UserError, "'Loss/x'.*reduce_moments"):
            tf.function(lambda x: autosummary.autosummary('Loss/x', x), autograph=False)(tf.constant(1.0))

    def test_not_a_number(self):
        for value in ['text', None, 1j, {'a': 1}]:
            with self.assertRaisesRegex(UserError, "'x'"):
                autosummary.autosummary('x', value)


class StateTest(AutosummaryTestCase):
    def test_round_trip_through_json_continues_the_mean(self):
        autosummary.autosummary('x', [1.0, 2.0, np.nan])
        state = json.loads(json.dumps(autosummary.get_state()))
        autosummary.autosummary('x', 100.0)
        autosummary.autosummary('y', 1.0)
        autosummary.set_state(state)
        self.assertEqual(autosummary.get_state(), state)
        autosummary.autosummary('x', 6.0)
        self.assertEqual(autosummary.get_means(), {'x': 3.0})
        self.assertEqual(autosummary.get_nonfinite_counts(), {'x': 1})

    def test_bad_state_changes_nothing(self):
        autosummary.autosummary('x', 1.0)
        with self.assertRaisesRegex(UserError, "'y' has 3 numbers"):
            autosummary.set_state({'x': [1, 2, 4, 0], 'y': [1, 2, 3]})
        self.assertEqual(autosummary.get_means(), {'x': 1.0})


class FileWriterTest(AutosummaryTestCase):
    def test_means_are_read_back(self):
        writer = autosummary.FileWriter(self.directory)
        autosummary.finalize_autosummaries()
        autosummary.autosummary('Loss/scores/fake', np.float32([1, 2, 6]))
        autosummary.autosummary('Progress/tick', 0)
        autosummary.autosummary('Loss/nothing', np.nan)
        means = autosummary.save_summaries(writer, 10)
        self.assertEqual(means, {'Loss/scores/fake': 3.0, 'Progress/tick': 0.0})
        self.assertEqual(autosummary.get_state(), {})
        # Read while the writer is open: a run that is killed here has lost nothing.
        self.assertEqual(read_scalars(self.directory)['Loss/scores/fake'], [(10, 3.0)])
        autosummary.autosummary('Loss/scores/fake', 5.0)
        autosummary.save_summaries(writer, 20)
        writer.close()
        scalars = read_scalars(self.directory)
        self.assertEqual(scalars['Loss/scores/fake'], [(10, 3.0), (20, 5.0)])
        self.assertEqual(scalars['Progress/tick'], [(10, 0.0)])
        self.assertNotIn('Loss/nothing', scalars)

    def test_disk_that_is_full_for_a_while(self):
        """Training goes on; what is written once there is room again is read back, and the values before."""
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
        for size in 1000, 0:    # Of a new file some can be written, or nothing.
            writer = autosummary.FileWriter(os.path.join(self.directory, str(size)))
            with contextlib.redirect_stdout(io.StringIO()) as stdout:
                for step in range(9):
                    if step in (2, 6):
                        resource.setrlimit(resource.RLIMIT_FSIZE, limits if step == 6 else (size, limits[1]))
                    autosummary.autosummary('Loss/a', [step, step])
                    writer.add_images('noise', np.random.randint(0, 256, [16, 16, 3]).astype(np.uint8), step)
                    autosummary.save_summaries(writer, step)
            writer.close()
            self.assertRegex(stdout.getvalue(),
                             r'^(Warning: cannot write TensorBoard events, going on .*\n)+$')
            values = read_scalars(os.path.join(self.directory, str(size)))['Loss/a']
            self.assertContainsSubset([(0, 0.0), (1, 1.0), (7, 7.0), (8, 8.0)], values)
        with self.assertRaisesRegex(UserError, 'TensorBoard events cannot be written'):
            autosummary.FileWriter(os.path.join(os.devnull, 'run'))

    def test_chart_layout_refers_to_existing_curves(self):
        writer = autosummary.FileWriter(self.directory)
        for step in range(2):
            autosummary.autosummary('Loss/scores/fake', [1.0, 3.0])
            autosummary.autosummary('Loss/scores/real', [1.0, 5.0])
            autosummary.autosummary('Loss/pl_lengths', [2.0, 2.0])
            autosummary.autosummary('alone', [2.0, 4.0])
            autosummary.autosummary('Progress/tick', step)
            autosummary.save_summaries(writer, step)
        writer.close()
        events = read_events(self.directory).Tensors('custom_scalars__config__')
        self.assertLen(events, 1)
        layout = layout_pb2.Layout.FromString(tf.make_ndarray(events[0].tensor_proto).item())
        charts = {(group.title, chart.title): chart.margin.series
                  for group in layout.category for chart in group.chart}
        self.assertCountEqual(charts, [('Loss', 'scores'), ('Loss', 'pl_lengths'), ('alone', 'alone')])
        scores = charts['Loss', 'scores']
        self.assertEqual([series.value for series in scores], ['Loss/scores/fake', 'Loss/scores/real'])
        scalars = read_scalars(self.directory)
        for series, mean, std in zip(scores, [2, 3], [1, 2], strict=True):
            actual = [scalars[tag][0][1] for tag in (series.value, series.lower, series.upper)]
            self.assertAllClose(actual, [mean, mean - std, mean + std])

    def test_images_are_read_back(self):
        writer = autosummary.FileWriter(self.directory)
        images = np.random.RandomState(0).randint(0, 256, [5, 4, 6, 3]).astype(np.uint8)
        writer.add_images('fakes', images, 3)
        writer.add_image('grid', images[0, :, :, :1], 4)
        writer.close()
        reader = read_events(self.directory)
        fakes, grid = reader.Tensors('fakes')[0], reader.Tensors('grid')[0]
        self.assertEqual((fakes.step, grid.step), (3, 4))
        decoded = [tf.io.decode_png(png) for png in tf.make_ndarray(fakes.tensor_proto)[2:]]
        np.testing.assert_array_equal(decoded, images)
        decoded = tf.io.decode_png(tf.make_ndarray(grid.tensor_proto)[2])
        np.testing.assert_array_equal(decoded, images[0, :, :, :1])

    def test_wrong_images(self):
        writer = autosummary.FileWriter(self.directory)
        for shape, dtype in [([2, 4, 4, 3], np.float32), ([4, 4], np.uint8), ([2, 3, 4, 7], np.uint8)]:
            with self.assertRaisesRegex(UserError, 'expected uint8'):
                writer.add_images('x', np.zeros(shape, dtype), 0)
        writer.close()

    def test_hyperparameters_as_a_table(self):
        writer = autosummary.FileWriter(self.directory)
        writer.add_text('config', {'gamma': 10, 'G_args': {'fmap_base': 64, 'op': 'a|b'}, 'none': {}})
        writer.close()
        event = read_events(self.directory).Tensors('config')[0]
        text = tf.make_ndarray(event.tensor_proto).item().decode()
        self.assertEqual(text.splitlines(), [
            '| name | value |', '| --- | --- |',
            '| gamma | 10 |', '| G_args.fmap_base | 64 |', '| G_args.op | a\\|b |', '| none | {} |'])
