"""run_metrics.py on snapshots and folders, and metrics during training."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
from unittest import mock

import numpy as np
import PIL.Image
import tensorflow as tf
from absl.testing import parameterized

import run_metrics
from dnnlib.tflib import legacy
from dnnlib.util import UserError
from metrics import runs
from metrics.evaluation import Evaluation
from metrics.image_sources import DatasetSource
from metrics.metric_base import MetricGroup, find_metrics
from tests import testutil
from tests import training_testutil as util
from training.dataset import load_dataset
from training.snapshots import load_networks

FD = 'fd_random_40'


def flags_of(*args):
    return run_metrics.make_parser().parse_args(list(args))


def measure(*args):
    """Runs the script in this process; returns (run directory, what it printed)."""
    args = flags_of('--batch=8', *args)      # Less to trace.
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
        run_metrics.run(args)
    return max(pathlib.Path(args.result_dir).iterdir()), out.getvalue()


class RunTest(util.RunTest, parameterized.TestCase):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cache = mock.patch.dict(os.environ, STYLEGAN_CACHE_DIR=os.path.join(cls.root, 'cache'))
        cache.start()
        cls.addClassCleanup(cache.stop)
        metrics = find_metrics(f'{FD},pr_random_30')
        # Without phases for the regularizers there are half as many functions to trace.
        kwargs = dict(total_kimg=0.13, image_snapshot_ticks=None, lazy_regularization=False)
        cls.plain = util.train(os.path.join(cls.root, 'plain'), **kwargs).run_dir
        kwargs['metric_arg_list'] = metrics
        cls.run_dir = util.train(os.path.join(cls.root, 'measured'), **kwargs).run_dir
        cls.snapshots = run_metrics.snapshots_of(cls.run_dir)

    def records(self, run_dir, name=FD):
        text = pathlib.Path(run_dir, f'metric-{name}.jsonl').read_text(encoding='utf-8')
        return [json.loads(line) for line in text.splitlines()]

    def test_training_is_not_disturbed(self):
        """With metrics or without: the same weights, optimizer state and losses, to the bit."""
        plain, measured = util.checkpoint_values(self.plain), util.checkpoint_values(self.run_dir)
        self.assertEqual(set(plain), set(measured))
        for name, value in plain.items():
            np.testing.assert_array_equal(value, measured[name], name)
        plain, measured = util.scalars(self.plain), util.scalars(self.run_dir)
        for name in plain:
            if name.startswith(('Loss/', 'TrainG/', 'TrainD/')):
                self.assertEqual(plain[name], measured[name], name)
        self.assertTrue(any(name.startswith('Loss/') for name in plain))

    def test_training_writes_results(self):
        curve = util.scalars(self.run_dir)[f'Metrics/{FD}']
        records = self.records(self.run_dir)
        self.assertGreaterEqual(len(records), 2)
        self.assertAllClose(list(curve.values()), [record['results'][FD] for record in records], rtol=1e-5)
        self.assertEqual({record['snapshot_pkl'] for record in records}, set(self.snapshots))
        self.assertEqual((records[0]['num_reals'], records[0]['num_fakes']), (40, 40))
        self.assertTrue(records[0]['mirror'])
        self.assertEqual(records[0]['resize_filter']['reals'], '2x2 averages, 32 to 8')
        lines = pathlib.Path(self.run_dir, f'metric-{FD}.txt').read_text(encoding='utf-8').splitlines()
        self.assertRegex(lines[0], rf'^network-snapshot-\d+        time \S+ +{FD} \d+\.\d{{4}}$')
        self.assertIn(lines[0], pathlib.Path(self.run_dir, 'log.txt').read_text(encoding='utf-8'))
        self.assertLen(util.scalars(self.run_dir)['Metrics/pr_random_30_recall'], len(records))

    def test_snapshots_of_a_run(self):
        """The script measures of files what training measured of the live networks, settings included."""
        run_dir = self.folder()
        shutil.copy(os.path.join(self.run_dir, 'submit_config.json'), run_dir)
        shutil.copy(self.snapshots[-1], run_dir)
        networks = load_networks(self.snapshots[-1])
        for variable in networks[2].trainables.values():
            variable.assign(variable.value * 1.1)
        legacy.save_pkl(tuple(network.state() for network in networks),
                        os.path.join(run_dir, 'network-snapshot-000012.pkl'))
        result_dir, out = measure(f'--snapshots={run_dir}', f'--metrics={FD},pr_random_30',
                                  f'--result-dir={self.folder()}')
        records, trained = self.records(result_dir), self.records(self.run_dir)[-1]
        self.assertEqual([pathlib.Path(record['snapshot_pkl']).name for record in records],
                         ['network-snapshot-000000.pkl', 'network-snapshot-000012.pkl'])
        self.assertNear(records[0]['results'][FD], trained['results'][FD], 1e-4 * trained['results'][FD])
        self.assertNotEqual(records[0]['results'], records[1]['results'])
        self.assertEqual(records[1]['reals'], trained['reals'])
        self.assertEqual((records[1]['seed'], records[1]['mirror'], records[1]['num_gpus']), (0, True, 1))
        self.assertTrue({f'metric-{FD}.png', f'metric-{FD}.txt', 'metric-pr_random_30_recall.png',
                         'log.txt', '_finished.txt'} <= set(os.listdir(result_dir)))
        best = min(records, key=lambda record: record['results'][FD])
        self.assertIn(f'{FD}: best is {best["results"][FD]:.4f} of '
                      f'{pathlib.Path(best["snapshot_pkl"]).stem} (the lower the better)', out)

    def test_against_the_formula(self):
        """One number of the script by hand: NumPy moments of features of all that is compared."""
        result_dir, _ = measure(f'--network={self.snapshots[-1]}', f'--metrics={FD}', '--seed=3',
                                '--no-mirror-augment', f'--result-dir={self.folder()}')
        record, = self.records(result_dir)
        ev = Evaluation(seed=3)
        net = ev.extractor('random')
        Gs = runs.load_network(runs.Settings(), self.snapshots[-1])
        training_set = load_dataset(resolution=8, max_label_size='full')
        ev = Evaluation(Gs, DatasetSource(training_set), seed=3)
        fakes, reals = (net(np.concatenate(list(stream))).numpy() for stream in (ev.fakes(40), ev.reals(40)))
        real, fake = (np.cov(np.float64(x), rowvar=False) for x in (reals, fakes))
        root = np.sqrt(np.maximum(np.linalg.eigvals(real @ fake).real, 0)).sum()
        expected = (np.square(np.float64(reals).mean(0) - fakes.mean(0)).sum()
                    + np.trace(real) + np.trace(fake) - 2 * root)
        self.assertNear(record['results'][FD], expected, 1e-3 * expected)
        self.assertEqual((record['seed'], record['mirror']), (3, False))

    def test_options(self):
        """Other seeds, counts, G instead of Gs, truncation, one class: other numbers; names follow counts."""
        def value(*args, name=FD):
            result_dir, _ = measure(f'--network={self.snapshots[-1]}', f'--metrics={FD}', *args,
                                    f'--result-dir={self.folder()}')
            return self.records(result_dir, name)[0]
        first = value()
        self.assertEqual(value('--no-cache')['results'], first['results'])
        for args in (['--seed=1'], ['--truncation=0.3']):
            self.assertNotEqual(value(*args)['results'], first['results'], args)
        other = value('--num-images=20', name='fd_random_20')
        self.assertEqual((other['num_reals'], other['num_fakes']), (20, 20))
        only = value('--class=2')
        self.assertEqual((only['class'], only['reals']['classes']), (2, [2]))

    def test_labels_of_the_data_set(self):
        """Also metrics without reals draw labels as often as the data set has them, as during training."""
        def table(*args):
            settings = runs.Settings(**{'batch': 8, **dict(args)})
            group = MetricGroup(find_metrics('is_random_20'))
            with contextlib.redirect_stderr(io.StringIO()) as stderr:
                (_, ev), = runs._evaluations(network, settings, tf.distribute.get_strategy(), {}, group)
            return ev.label_table, stderr.getvalue()
        network = self.snapshots[-1]
        expected = load_dataset(resolution=8, max_label_size='full').labels
        self.assertAllEqual(table()[0], expected)
        self.assertLen(table(('class_idx', 1))[0], 1)
        network = os.path.join(self.folder(), 'network.pkl')
        shutil.copy(self.snapshots[-1], network)    # Of a training that nobody knows.
        self.assertEqual(table()[1], '')
        self.assertAllEqual(table()[0], np.eye(expected.shape[1]))
        rows, message = table(('dataset', '/nothing'))
        self.assertAllEqual(rows, np.eye(expected.shape[1]))
        self.assertIn('Warning: all classes are drawn equally often', message)

    def test_class_by_class(self):
        result_dir, _ = measure(f'--network={self.snapshots[-1]}', '--metrics=fd_random_8',
                                '--generator=class', f'--result-dir={self.folder()}')
        records = self.records(result_dir, 'fd_random_8')
        self.assertEqual([record['class'] for record in records], list(range(len(records))))
        self.assertGreater(len(records), 3)
        lines = pathlib.Path(result_dir, 'metric-fd_random_8.txt').read_text(encoding='utf-8')
        self.assertIn('-class2 ', lines)

    def _images(self, seed, num=12):
        folder, rnd = self.folder(), np.random.RandomState(seed)
        for i in range(num):
            array = np.uint8(np.clip(rnd.randn(8, 8, 3) * 40 + 128 + 30 * seed, 0, 255))
            PIL.Image.fromarray(array).save(os.path.join(folder, f'{i}.png'))
        return folder

    def test_folders(self):
        """Two folders without any network; equal ones have no distance."""
        first, same, other = self._images(0), self._images(0), self._images(1)
        values = []
        for fakes in (same, other):
            result_dir, _ = measure(f'--reals={first}', f'--fakes={fakes}', f'--metrics={FD}',
                                    f'--result-dir={self.folder()}')
            record, = self.records(result_dir)
            values.append(record['results'][FD])
            self.assertEqual((record['num_reals'], record['num_fakes']), (12, 12))
            self.assertEqual(record['resize_filter'], {'reals': 'none', 'fakes': 'none', 'extractor': 'none'})
        self.assertLess(values[0], 1e-6)
        self.assertGreater(values[1], 1e-2)
        result_dir, _ = measure(f'--reals={first}', f'--fakes={other}', f'--metrics={FD}', '--resolution=16',
                                '--resize=box', f'--result-dir={self.folder()}')
        self.assertEqual(self.records(result_dir)[0]['resize_filter']['fakes'], 'center-crop, box to 16x16')
        larger = self.folder()
        PIL.Image.new('RGB', (16, 16)).save(os.path.join(larger, 'a.png'))
        PIL.Image.new('RGB', (16, 16), 'red').save(os.path.join(larger, 'b.png'))
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            args = flags_of(f'--reals={first}', f'--fakes={larger}', f'--metrics={FD}',
                            f'--result-dir={self.folder()}')
            with contextlib.redirect_stdout(stderr):
                run_metrics.run(args)
        for text in ('images of 16x16', 'of 8x8', '2 generated images instead of 40'):
            self.assertIn(text, stderr.getvalue())
        result_dir, _ = measure('--dataset=pixelart32', f'--fakes={other}', f'--metrics={FD}',
                                f'--result-dir={self.folder()}')
        self.assertEqual(self.records(result_dir)[0]['num_reals'], 40)

    def test_network_that_has_diverged(self):
        """Does not keep others from being measured, but its results are not to be taken for good ones."""
        networks = load_networks(self.snapshots[-1])
        variable = list(networks[2].trainables.values())[-1]
        variable.assign(variable.value * np.nan)
        diverged = os.path.join(self.folder(), 'network-snapshot-000012.pkl')
        legacy.save_pkl(tuple(network.state() for network in networks), diverged)
        for path, text in ((diverged, 'the training has diverged'), (self.snapshots[-1], '')):
            with contextlib.redirect_stderr(io.StringIO()) as err:
                next(runs._evaluations(path, runs.Settings(class_idx=0), tf.distribute.get_strategy(), {},
                                       MetricGroup()))
            self.assertIn(text, err.getvalue())
            self.assertLen(err.getvalue().splitlines(), bool(text))

    def test_without_the_other_machines(self):
        """TF_CONFIG is for training: here nobody is waited for, and what it says does not matter."""
        for text in ('{"cluster": {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}, "task": {"type": "worker", '
                     '"index": 1}}', '{"cluster": '):
            with mock.patch.dict(os.environ, TF_CONFIG=text):
                result_dir, _ = measure(f'--reals={self._images(0)}', f'--fakes={self._images(1)}',
                                        '--metrics=swd12', '--resolution=16', f'--result-dir={self.folder()}')
            self.assertEqual(self.records(result_dir, 'swd12')[0]['num_gpus'], 1)

    def test_own_generator(self):
        name = 'tests.test_evaluation.OwnGenerator'
        result_dir, _ = measure(f'--reals={self._images(0)}', f'--metrics={FD}', f'--generator={name}',
                                f'--result-dir={self.folder()}')
        self.assertEqual(self.records(result_dir)[0]['fakes']['source'], name)

    def test_settings_of_a_run(self):
        found = []
        for name in ('G', 'Gs', 'class'):
            network = runs.load_network(runs.Settings(generator=name), self.snapshots[-1])
            found.append(next(iter(network.trainables.values())).numpy())
        self.assertNotAllEqual(found[0], found[1])
        self.assertAllEqual(found[1], found[2])
        Gs = runs.load_network(runs.Settings(), self.snapshots[-1])
        args = runs.dataset_arguments(runs.Settings(), Gs, self.snapshots[-1])
        self.assertEqual((args['resolution'], args['max_label_size']), (8, 'full'))
        alone = os.path.join(self.folder(), 'network.pkl')
        shutil.copy(self.snapshots[-1], alone)
        self.assertEqual(runs.settings_of_run(alone), {})
        self.assertEqual(runs.dataset_arguments(runs.Settings(), Gs, alone)['max_label_size'], 'full')
        flags = runs.Settings(dataset='x.npz', label_attr='hat', data_dir='/d')
        other = runs.dataset_arguments(flags, Gs, alone)
        self.assertEqual(other, dict(data_dir='/d', dataset='x.npz', label_attr='hat', max_label_size='full',
                                     resolution=8))
        with open(os.path.join(os.path.dirname(alone), 'submit_config.json'), 'w', encoding='utf-8') as file:
            file.write('{"run_func_kwargs": ')
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            self.assertEqual(runs.settings_of_run(alone), {})
        self.assertIn('cannot be read', stderr.getvalue())

    @parameterized.parameters(
        ('--network={snapshot} --metrics=fid5m', 'expected none or some of'),
        ('--network={snapshot} --metrics=none', 'expected at least one metric'),
        ('--metrics=fd_random_40', '--network is required'),
        ('--network={snapshot} --snapshots={root}', '--network and --snapshots: give one of them'),
        ('--snapshots={root}/nothing', 'there is no run directory'),
        ('--snapshots={root}', 'holds no network-snapshot'),
        ('--network={snapshot} --fakes={root}', '--fakes takes the place of a network'),
        ('--fakes={root} --reals={root} --truncation=0.5', '--truncation is for a network'),
        ('--fakes={images} --metrics=fd_random_40', 'there is nothing to compare the images with'),
        ('--network={snapshot} --metrics=fd_random_40 --resolution=16', '--resolution is for folders'),
        ('--network={snapshot} --metrics=fd_random_40 --generator=class --reals={images}', 'has no classes'),
        ('--network={snapshot} --reals={root} --dataset=x', '--reals takes the place'),
        ('--network={snapshot} --class=1 --generator=class', 'leave --class out'),
        ('--network={snapshot} --class=99 --metrics=fd_random_40', 'class'),
        ('--network={snapshot} --metrics=fd_random_40 --dataset=/nothing', 'no data set at /nothing'),
        ('--network={snapshot} --metrics=fd_random_40 --reals={root}/plain/x', 'no folder or zip of images'),
        ('--fakes={images} --reals={images} --metrics=ppl_wend_random', 'needs a network'),
        ('--network={snapshot} --metrics=fid5k --weights-dir={images}', 'metric fid5k needs the weights'),
        ('--reals={images} --metrics=fd_random_40 --generator=no.such.Class', "cannot find 'no.such.Class'"),
        ('--reals={images} --metrics=fd_random_40 --generator=os.path.join', 'called without arguments'),
        ('--network={snapshot} --metrics=fd_random_40 --truncation-mode=scale', 'has no truncation of z'),
        ('--fakes={images} --reals={images} --metrics=fd_random_40 --generator=G', '=G is for a network'),
        # What a later metric needs is looked at before the first one is computed.
        ('--network={snapshot} --metrics=fd_random_40,swd40', 'at least 16×16; received 8×8'),
        ('--network={snapshot} --metrics=fd_random_40,sweep_random_3', 'at least 4 generated images'),
        ('--network={snapshot} --metrics=fd_random_40,fd_random_mix_1', 'at least 2 generated images'),
        ('--network={snapshot} --metrics=fd_random_40,pr40_k3 --weights-dir={damaged}',
         'vgg16.pt: expected a PyTorch file .* found a web page'),
    )
    def test_mistakes(self, line, message):
        """One line, and nothing is written."""
        damaged = pathlib.Path(self.folder())
        damaged.joinpath('vgg16.pt').write_text('<!DOCTYPE html><html>Sign in</html>', encoding='utf-8')
        line = line.format(snapshot=self.snapshots[-1], root=self.root, images=self._images(0),
                           damaged=damaged)
        result_dir = os.path.join(self.root, 'never')
        with self.assertRaisesRegex((UserError, OSError), message) as caught:
            measure(*line.split(), f'--result-dir={result_dir}')
        self.assertNotIn('\n', str(caught.exception))
        self.assertFalse(os.path.exists(result_dir))

    @parameterized.parameters('--seed=-1', '--num-images=1', '--batch=0', '--generator=D', '--resolution=0',
                              '--networks=nothing.pkl', '--generation=stylegan9', '--truncation=nan')
    def test_wrong_values(self, flag):
        with contextlib.redirect_stderr(io.StringIO()) as stderr, self.assertRaises(SystemExit) as caught:
            flags_of(flag)
        self.assertEqual(caught.exception.code, 2)
        self.assertLen(stderr.getvalue().splitlines(), 1)

    def test_script(self):
        """--help and --list without TensorFlow; mistakes with exit status 2."""
        code = 'import sys, run_metrics\ntry:\n    run_metrics.main(sys.argv)\nfinally:\n' \
               '    assert "tensorflow" not in sys.modules'
        for args, status, text in ((['--help'], 0, '--snapshots'), (['--list'], 0, 'ppl2_wend'),
                                   (['--metrics=x'], 2, 'error: --metrics: expected none or some')):
            done = subprocess.run([sys.executable, '-c', code, *args], cwd=testutil.ROOT,
                                  capture_output=True, text=True, timeout=60)
            self.assertEqual(done.returncode, status, done.stderr)
            self.assertIn(text, done.stdout + done.stderr)
            self.assertNotIn('Traceback', done.stderr)

    def test_missing_weights_stop_training_before_it_starts(self):
        from training.training_loop import check_arguments
        with self.assertRaisesRegex(UserError, 'metric fid5k needs the weights of the FID Inception-v3'):
            check_arguments(**util.small_kwargs(metric_arg_list=find_metrics('fid5k')))


if __name__ == '__main__':
    tf.test.main()
