"""Metrics by name, result lines, result files, groups."""

import contextlib
import io
import json
import os
import random
import tempfile
from unittest import mock

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dnnlib.tflib import autosummary
from dnnlib.util import UserError, format_time
from metrics import metric_base
from metrics.metric_base import OFFICIAL_METRICS, MetricBase, MetricGroup, find_metrics, metric_defaults
from metrics.metric_defaults import FAMILIES, better_of, find_metric
from tests import feature_testutil, testutil


class Toy(MetricBase):
    """Two results, one of which is no number; draws from generators that belong to nobody."""

    needs_reals = False

    def __init__(self, name, value=1.0, **kwargs):
        super().__init__(name, **kwargs)
        self.value = value

    def _evaluate(self, ev):
        np.random.rand(), random.random()
        self.details['home'] = {'made': np.float32(2), 'shape': (1, np.int64(2))}
        self._report_result(self.value, '_mean')
        self._report_result(float('nan'), '_std', '%-12.8f')


TOY = 'tests.test_metric_base.Toy'


class FakeEvaluation:
    """As much of an Evaluation as a toy needs."""

    def __init__(self):
        self.groups = 0

    @contextlib.contextmanager
    def group(self, metrics, run_dir):
        self.groups += 1
        yield

    @contextlib.contextmanager
    def measuring(self, metric):
        yield

    def num_available(self, with_reals):
        return {'generated': np.inf}

    def facts(self, metric):
        return {'seed': 5, 'extractor': metric.extractor}


class NameTest(tf.test.TestCase, parameterized.TestCase):

    @parameterized.parameters(
        ('fid50k', dict(num_images=50000, full=False, extractor='inception')),
        ('fid5k_full', dict(num_images=5000, full=True)),
        ('fid200', dict(num_images=200)),
        ('kid10k', dict(num_images=10000, num_subsets=100, max_subset_size=1000)),
        ('is5k', dict(num_images=5000, num_splits=10)),
        ('pr2k3', dict(num_images=2000, num_reals=2000, nhood_size=3, extractor='vgg16')),
        ('pr50k3_full', dict(num_images=50000, num_reals=200000, full=True)),
        ('pr500_k5', dict(num_images=500, nhood_size=5)),
        ('ppl_wend', dict(num_samples=50000, space='w', sampling='end', crop=True, epsilon=1e-4)),
        ('ppl1k_zfull', dict(num_samples=1000, space='z', sampling='full', crop=True)),
        ('ppl2_wend', dict(num_samples=50000, crop=False)),
        ('ppl2_1k_wend', dict(num_samples=1000, crop=False)),
        ('ppl2k_wend', dict(num_samples=2000, crop=True)),
        ('ls', dict(num_samples=200000, num_keep=100000)),
        ('fd_efflite0', dict(num_images=50000, extractor='efflite0')),
        ('fd_efflite0_1k', dict(num_images=1000)),
        ('pr_efflite0_300', dict(num_images=300, extractor='efflite0')),
        ('fid5k_class', dict(num_images=5000)),
        ('fd_efflite0_mix2_1k', dict(num_images=1000, num_latents=[2])),
        ('fid50k_mix', dict(num_latents=[1, 2, 3, 4])),
        ('swd16k', dict(num_images=16384)),
        ('swd2k', dict(num_images=2000)),
        ('msssim10k', dict(num_images=10000)),
    )
    def test_arguments(self, name, expected):
        args = find_metric(name)
        self.assertEqual(args['name'], name)
        self.assertEqual({key: args[key] for key in expected}, expected)

    @parameterized.parameters(
        ('fid50k', 5000, 'fid5k'), ('fid50k_full', 123, 'fid123_full'), ('pr50k3', 2000, 'pr2k3'),
        ('pr50k3', 250, 'pr250_k3'), ('ppl_wend', 100, 'ppl100_wend'), ('ppl2_wend', 2000, 'ppl2_2k_wend'),
        ('ppl2_wend_efflite0', 2000, 'ppl2_2k_wend_efflite0'), ('fd_efflite0', 70, 'fd_efflite0_70'),
        ('fid50k_mix3', 100, 'fid100_mix3'), ('fd_efflite0_class', 10, 'fd_efflite0_class_10'),
        ('ls', 4000, 'ls4k'), ('sweep_efflite0', 100, 'sweep_efflite0_100'), ('swd16k', 64, 'swd64'))
    def test_other_count(self, name, count, renamed):
        """--num-images changes the name with the count; the new name means the same by itself."""
        args = find_metric(name, count)
        self.assertEqual(args['name'], renamed)
        self.assertIn(count, args.values())
        self.assertEqual(find_metric(renamed), args)

    def test_all_official_names_are_known(self):
        self.assertLen(find_metrics(','.join(OFFICIAL_METRICS)), len(OFFICIAL_METRICS))
        self.assertEqual(find_metrics('none'), [])
        self.assertEqual(find_metrics(''), [])
        self.assertLen(find_metrics('fid5k, fid5k,none'), 1)
        self.assertContainsSubset(set(OFFICIAL_METRICS) - {'fid50k_full'}, set(metric_defaults))

    @parameterized.parameters('fid50m', 'fid', 'fid0k', 'fid05k', 'pr50', 'fd_resnet', 'ppl_xend',
                              'fid50k_mix5', 'fid50k;x', 'FID50k')
    def test_unknown(self, name):
        with self.assertRaisesRegex(UserError, f'expected none or some of .*fid50k.*Received: {name}'):
            find_metrics(f'is5k,{name}')

    def test_classes_take_the_arguments(self):
        """Every name of --list makes a metric, and no class is left without one."""
        for family in FAMILIES:
            for name in family.names:
                metric, = MetricGroup(find_metrics(name)).metrics
                self.assertEqual((metric.name, metric.extractor), (name, find_metric(name).get('extractor')))

    def test_better(self):
        self.assertEqual([better_of(name) for name in ('fid50k', 'pr50k3_recall', 'is50k_mean', 'is50k_std',
                                                       'ls_z', 'msssim10k', 'kid50k', 'ppl_wend')],
                         ['low', 'high', 'high', '', 'low', '', 'low', 'low'])


class ResultTest(tf.test.TestCase):

    @testutil.needs_golden
    def test_golden_lines(self):
        with open(feature_testutil.METRICS / 'result_lines.json', encoding='utf-8') as file:
            golden = json.load(file)
        for seconds, text in golden['time_format']:
            self.assertEqual(format_time(seconds), text)
        for case in golden['cases']:
            results = [(suffix, value, fmt) for (suffix, value), fmt in zip(
                case['results'], case['formats'], strict=True)]
            line = metric_base.result_line(case['network_pkl'], case['seconds'], case['metric'], results)
            self.assertEqual(line, case['line_stripped'])
        self.assertGreater(len(golden['cases']), 10)

    def test_full_precision(self):
        """On GPUs, where TensorFlow else rounds float32 to 10 bits, for the time of a metric alone."""
        enabled, seen = tf.config.experimental.tensor_float_32_execution_enabled, []
        before = enabled()
        with mock.patch.object(Toy, '_evaluate', lambda metric, ev: seen.append(enabled())):
            Toy('toy').run(FakeEvaluation())
        self.assertEqual((seen, enabled()), ([False], before))

    def test_files(self):
        group = MetricGroup([dict(func_name=TOY, name='toy', value=2), dict(func_name=TOY, name='other')])
        ev, folder, out = FakeEvaluation(), tempfile.mkdtemp(), io.StringIO()
        states = random.getstate(), np.random.get_state()[1].tolist()
        with contextlib.redirect_stdout(out):
            for kimg in (1, 2):
                group.run(f'/runs/x/network-snapshot-00000{kimg}.pkl', folder, evaluation=ev)
        self.assertEqual((random.getstate(), np.random.get_state()[1].tolist()), states)
        self.assertEqual(ev.groups, 2)
        with open(os.path.join(folder, 'metric-toy.txt'), encoding='utf-8') as file:
            lines = file.read().splitlines()
        self.assertEqual(lines, [f'network-snapshot-00000{kimg}        time 0s           toy_mean 2.0000     '
                                 'toy_std nan' for kimg in (1, 2)])
        self.assertEqual(out.getvalue().splitlines()[0::2], lines)
        with open(os.path.join(folder, 'metric-toy.jsonl'), encoding='utf-8') as file:
            records = [json.loads(line, parse_constant=self.fail) for line in file]
        self.assertEqual(records[1]['results'], {'toy_mean': 2, 'toy_std': 'nan'})
        self.assertEqual(records[1]['snapshot_pkl'], '/runs/x/network-snapshot-000002.pkl')
        self.assertEqual((records[0]['seed'], records[0]['home']), (5, {'made': 2, 'shape': [1, 2]}))
        self.assertEqual(records[0]['total_time_str'], '0s')
        self.assertGreater(records[0]['timestamp'], 1.7e9)
        self.assertEqual(sorted(os.listdir(folder)), [
            f'metric-{name}.{end}' for name in ('other', 'toy') for end in ('jsonl', 'txt')])
        self.assertEqual(group.get_result_str(), f'{lines[1]} {out.getvalue().splitlines()[-1]}')
        autosummary.reset()
        group.update_autosummaries()
        self.assertEqual(autosummary.get_means(), {'Metrics/toy_mean': 2, 'Metrics/other_mean': 1})
        autosummary.reset()

    def test_random_numbers_after_an_error(self):
        group = MetricGroup([dict(func_name=TOY, name='toy', value='no number')])
        state = np.random.get_state()[1].tolist()
        with self.assertRaises(ValueError):
            group.run('x.pkl', evaluation=FakeEvaluation())
        self.assertEqual(np.random.get_state()[1].tolist(), state)

    def test_going_on_without_one_that_fails(self):
        """In training: the others are measured, and nothing is left of the last snapshot's value."""
        group = MetricGroup([dict(func_name=TOY, name=name) for name in ('first', 'bad', 'last')])
        group.run('a.pkl', evaluation=FakeEvaluation(), log_results=False)
        self.assertLen(group.results(), 6)
        for error, traceback in ((UserError('no images'), 0), (OSError(28, 'No space left'), 1)):
            run_dir = tempfile.mkdtemp()
            with (mock.patch.object(group.metrics[1], '_evaluate', side_effect=error),
                  contextlib.redirect_stdout(io.StringIO()) as stdout):
                with self.assertRaises(type(error)):
                    group.run('b.pkl', evaluation=FakeEvaluation(), log_results=False)
                group.run('b.pkl', run_dir, evaluation=FakeEvaluation(), keep_going=True)
            self.assertEqual(list(group.results()), ['first_mean', 'first_std', 'last_mean', 'last_std'])
            self.assertEqual(group.failed, ['bad'])
            self.assertEqual({name.partition('.')[0] for name in os.listdir(run_dir)},
                             {'metric-first', 'metric-last'})
            lines = stdout.getvalue()
            self.assertEqual(lines.count('Traceback'), traceback)
            self.assertRegex(lines, rf'Warning: bad of b.pkl cannot be measured \({type(error).__name__}: ')

    def test_unknown_argument(self):
        with self.assertRaisesRegex(UserError, 'metric toy: Toy does not know colour'):
            MetricGroup([dict(func_name=TOY, name='toy', colour=1)])


class WeightsTest(tf.test.TestCase):

    def test_missing(self):
        """What is missing is said at once: the file, where it is from, what runs without."""
        with tempfile.TemporaryDirectory() as folder, mock.patch.dict(
                os.environ, {'STYLEGAN_CACHE_DIR': folder, 'STYLEGAN_WEIGHTS_DIR': folder}):
            for name, texts in (
                    ('fid5k', ('metric fid5k', 'inception-2015-12-05', 'pytorch-fid', 'fd_efflite0')),
                    ('ppl_wend', ('metric ppl_wend', 'vgg16-397923af.pth', 'torchvision'))):
                with self.assertRaises(UserError) as caught:
                    MetricGroup(find_metrics(name)).check()
                for text in texts:
                    self.assertIn(text, str(caught.exception))
                self.assertNotIn('\n', str(caught.exception))
            MetricGroup(find_metrics('fd_random,swd16k,msssim10k')).check()
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, 'inception-2015-12-05.pt'), 'wb'):
                MetricGroup(find_metrics('fid5k')).check(folder)


if __name__ == '__main__':
    tf.test.main()
