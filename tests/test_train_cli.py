"""train.py as it is typed: official flags, configurations, mistakes, and runs from the command line."""

import contextlib
import io
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import PIL.Image
import tensorflow as tf
from absl.testing import parameterized

import train
from dnnlib.submission import SubmitConfig
from dnnlib.util import UserError
from tests import testutil
from tests import training_testutil as util
from training.checkpoint import has_checkpoint
from training.configs import CONFIGS, find_config


def dry_run(*args: str) -> dict:
    """The configuration that --dry-run prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = train.run(train.make_parser().parse_args([*args, '--dry-run']))
    assert status == 0  # noqa: S101
    return json.loads(output.getvalue())


class ConfigTest(parameterized.TestCase):

    def test_script_prints_json_alone(self):
        done = util.run_script('--config=config-e', '--dry-run')
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        self.assertEqual(json.loads(done.stdout)['D_loss_args']['gamma'], 100)

    @parameterized.parameters(
        ('config-e', 100, 8192, None, None),
        ('config-f', 10, 16384, None, None),
        *((f'config-e-G{G}-D{D}', 100, 8192, G, D)
          for G in ('orig', 'skip', 'resnet') for D in ('orig', 'skip', 'resnet')))
    def test_official_values(self, name, gamma, fmap_base, G_architecture, D_architecture):
        kwargs = dry_run(f'--config={name}')
        self.assertEqual(kwargs['G_args'].pop('func_name'), 'training.networks_stylegan2.G_main')
        self.assertEqual(kwargs['D_args'].pop('func_name'), 'training.networks_stylegan2.D_stylegan2')
        for args, architecture in ((kwargs['G_args'], G_architecture), (kwargs['D_args'], D_architecture)):
            expected = {'fmap_base': fmap_base} | ({'architecture': architecture} if architecture else {})
            self.assertEqual(args, expected)
        self.assertEqual(kwargs['G_loss_args'], {'func_name': 'training.loss.G_logistic_ns_pathreg'})
        self.assertEqual(kwargs['D_loss_args'], {'func_name': 'training.loss.D_logistic_r1', 'gamma': gamma})
        for opt_args in (kwargs['G_opt_args'], kwargs['D_opt_args']):
            self.assertEqual(opt_args, {'beta1': 0, 'beta2': 0.99, 'epsilon': 1e-8})
        self.assertEqual(kwargs['sched_args'], {'G_lrate_base': 0.002, 'D_lrate_base': 0.002,
                                                'minibatch_size_base': 32, 'minibatch_gpu_base': 4})
        self.assertEqual(kwargs['grid_args'], {'size': '8k', 'layout': 'random'})
        rest = {
            'lazy_regularization': True,
            'G_reg_interval': 4,
            'D_reg_interval': 16,
            'G_smoothing_kimg': 10,
            'minibatch_repeats': 4,
            'total_kimg': 25000,
            'mirror_augment': False,
            'image_snapshot_ticks': 10,
            'network_snapshot_ticks': 10,
            'num_gpus': 1,
        }
        self.assertEqual({key: kwargs[key] for key in rest}, rest)
        self.assertEqual(kwargs['run_desc'], f'stylegan2-pixelart32-1gpu-{name}')
        self.assertEqual(kwargs['run_dir_root'], 'results')

    def test_every_config_resolves(self):
        for name in CONFIGS:
            self.assertTrue(dry_run(f'--config={name}')['run_desc'].endswith(f'-pixelart32-1gpu-{name}'))
        kwargs = dry_run('--config=demo')
        self.assertEqual(kwargs['G_args']['func_name'], 'training.networks_stylegan2.G_main')
        self.assertLess(kwargs['total_kimg'], 1000)

    @parameterized.parameters(
        '--num-gpus=8 --data-dir=~/datasets --config=config-e --dataset=ffhq --mirror-augment=true '
        '--total-kimg=1000 --gamma=50 --result-dir=out --metrics=none',
        '--num-gpus 8 --data-dir ~/datasets --config config-e --dataset ffhq --mirror-augment true '
        '--total-kimg 1000 --gamma 50 --result-dir out --metrics none',
        '--num_gpus=8 --data_dir=~/datasets --config=config-e --dataset=ffhq --mirror_augment '
        '--total_kimg=1000 --gamma=50 --result_dir=out --metrics=fid50k,ppl_wend')
    def test_official_flags(self, line):
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            kwargs = dry_run(*shlex.split(line))
        self.assertEqual(kwargs['num_gpus'], 8)
        self.assertEqual(kwargs['data_dir'], os.path.expanduser('~/datasets'))
        self.assertEqual(kwargs['dataset_args']['dataset'], 'ffhq')
        self.assertEqual((kwargs['mirror_augment'], kwargs['total_kimg']), (True, 1000))
        self.assertEqual(kwargs['D_loss_args']['gamma'], 50)
        names = line.partition('--metrics')[2].strip(' =').split(',')
        self.assertEqual([args['name'] for args in kwargs['metric_arg_list']],
                         [name for name in names if name != 'none'])
        self.assertEqual(
            (kwargs['run_dir_root'], kwargs['run_desc']), ('out', 'stylegan2-ffhq-8gpu-config-e')
        )
        self.assertEqual(stderr.getvalue(), '')

    def test_flags_of_our_own(self):
        kwargs = dry_run(
            '--seed=7',
            '--minibatch-size=64',
            '--minibatch-gpu=8',
            '--lrate=0.001',
            '--fmap-base=4096',
            '--fmap-max=256',
            '--snap=2',
            '--keep-snapshots=5',
            '--cond',
            '--label-attr=hairColor',
            '--resolution=16',
            '--strategy=mirrored',
            '--dataset=some/images',
            '--weights-dir=some/weights',
        )
        self.assertEqual(kwargs['weights_dir'], os.path.abspath('some/weights'))
        self.assertEqual(kwargs['sched_args'], {'G_lrate_base': 0.001, 'D_lrate_base': 0.001,
                                                'minibatch_size_base': 64, 'minibatch_gpu_base': 8})
        for args in (kwargs['G_args'], kwargs['D_args']):
            self.assertEqual((args['fmap_base'], args['fmap_max']), (4096, 256))
        self.assertEqual(
            kwargs['dataset_args'],
            {
                'max_label_size': 'full',
                'label_attr': 'hairColor',
                'resolution': 16,
                'dataset': os.path.abspath('some/images'),
            },
        )
        rest = {'seed': 7, 'image_snapshot_ticks': 2, 'network_snapshot_ticks': 2, 'keep_snapshots': 5,
                'strategy': 'mirrored'}
        self.assertEqual({key: kwargs[key] for key in rest}, rest)

    def test_labels_imply_cond(self):
        for flag in ('--label-attr=hairColor', '--labels=classes.csv'):
            self.assertEqual(dry_run(flag)['dataset_args']['max_label_size'], 'full', flag)
            with self.assertRaisesRegex(UserError, f'^{flag.partition("=")[0]} goes with --cond'):
                dry_run(flag, '--no-cond')

    def test_flags_of_growing_configs(self):
        kwargs = dry_run('--config=stylegan-f', '--lod-initial-resolution=16', '--lod-training-kimg=20',
                         '--lod-transition-kimg=0', '--minibatch-size=16', '--lrate=0.002', '--gamma=3',
                         '--latent-size=64', '--num-gpus=4', '--tick-kimg=2', '--grid=16x8')
        sched_args = kwargs['sched_args']
        self.assertEqual([sched_args[f'lod_{key}'] for key in (
            'initial_resolution', 'training_kimg', 'transition_kimg')], [16, 20, 0])
        # What is given holds at every resolution.
        self.assertEqual((sched_args['minibatch_size_base'], sched_args['minibatch_size_dict']), (16, {}))
        self.assertEqual((sched_args['G_lrate_base'], sched_args['D_lrate_dict']), (0.002, {}))
        self.assertEqual((sched_args['tick_kimg_base'], sched_args['tick_kimg_dict']), (2, {}))
        self.assertEqual(kwargs['grid_args']['size'], '16x8')
        self.assertEqual(kwargs['D_loss_args']['r1_gamma'], 3)
        self.assertEqual([kwargs['G_args'][key] for key in ('latent_size', 'dlatent_size', 'mapping_fmaps')],
                         [64] * 3)
        self.assertNotIn('latent_size', kwargs['D_args'])
        self.assertEqual(kwargs['run_desc'], 'sgan-pixelart32-4gpu-stylegan-f')
        sizes = dry_run('--config=progan', '--num-gpus=2', '--latent-size=32', '--smoothing-kimg=1')
        self.assertEqual((sizes['G_smoothing_kimg'], sizes['G_smoothing']), (1, None))
        self.assertEqual(sizes['sched_args']['minibatch_size_dict']['256'], 8)
        self.assertEqual(sizes['G_args']['latent_size'], 32)
        self.assertNotIn('dlatent_size', sizes['G_args'])

    def test_flags_of_biggan(self):
        plain = dry_run('--config=biggan-128')
        self.assertEqual(plain['run_desc'], 'biggan-pixelart32-1gpu-biggan-128')
        self.assertEqual(plain['dataset_args'], {'max_label_size': 'auto', 'label_sampling': 'uniform',
                                                 'resolution': 128})
        kwargs = dry_run('--config=biggan-128', '--ch=32', '--latent-size=60', '--d-repeats=1',
                         '--g-lrate=1e-4', '--lrate=3e-4', '--gamma=1', '--label-sampling=data', '--no-cond',
                         '--resolution=64', '--smoothing-kimg=20')
        self.assertEqual((kwargs['G_args']['ch'], kwargs['D_args']['ch'], kwargs['D_repeats']), (32, 32, 1))
        self.assertEqual(kwargs['G_args']['latent_size'], 60)
        self.assertEqual(set(kwargs['G_args']), {'func_name', 'ch', 'latent_size'})
        self.assertEqual((kwargs['sched_args']['G_lrate_base'], kwargs['sched_args']['D_lrate_base']),
                         (1e-4, 3e-4))
        self.assertEqual(kwargs['D_loss_args'], {'func_name': 'training.loss.D_hinge_joint', 'gamma': 1})
        self.assertEqual(kwargs['dataset_args'], {'max_label_size': 0, 'label_sampling': 'data',
                                                  'resolution': 64})
        self.assertEqual((kwargs['G_smoothing_kimg'], kwargs['G_smoothing']), (20, None))
        self.assertEqual(dry_run('--d-lrate=0.1')['sched_args']['G_lrate_base'], 0.002)
        for line, words in (('--config=biggan-128 --fmap-base=512', '--fmap-base .* feature maps .* --ch'),
                            ('--config=config-f --ch=32', '--ch .* maps .* --fmap-base and --fmap-max'),
                            ('--config=stylegan-f --recompute', '--recompute is for BigGAN')):
            with self.assertRaisesRegex(UserError, words):
                dry_run(*line.split())
        kwargs = dry_run('--config=biggan-128', '--recompute')
        self.assertEqual([kwargs[key].pop('recompute') for key in ('G_args', 'D_args')], [True, True])
        self.assertEqual(kwargs, plain)
        self.assertEqual(dry_run('--config=biggan-128', '--recompute=false'), plain)

    def test_flags_of_monitors(self):
        monitors, spectral = 'training.monitors.', 'training.spectral.SigmaClamp'
        plain = dry_run('--config=biggan-demo')
        watch, alarm = plain['hook_args']
        self.assertEqual((watch['func_name'], alarm), (f'{monitors}SpectralMonitor', {
            'func_name': f'{monitors}CollapseAlarm'}))
        self.assertEqual(dry_run('--config=biggan-demo', '--rollback-on-collapse=false', '--keep-best=none'),
                         plain)
        kwargs = dry_run('--config=biggan-demo', '--keep-best=pr_efflite0_1k_recall', '--sigma-clamp=1.25x',
                         '--rollback-on-collapse', '--metrics=fid1k')
        best = {'func_name': f'{monitors}KeepBest', 'metric': 'pr_efflite0_1k_recall'}
        self.assertEqual(kwargs['hook_args'], [watch, {**alarm, 'rollback': True}, best])
        self.assertEqual([args['name'] for args in kwargs['metric_arg_list']], ['fid1k', 'pr_efflite0_1k'])
        self.assertEqual(kwargs['G_update_args'],
                         [*plain['G_update_args'], {'func_name': spectral, 'ratio': 1.25}])
        self.assertEqual(dry_run('--config=biggan-128', '--sigma-clamp=.5')['G_update_args'][-1],
                         {'func_name': spectral, 'sigma': 0.5})
        # Other networks have metrics alone to be watched by; a name that begins like another is another.
        kwargs = dry_run('--config=stylegan-f', '--rollback-on-collapse', '--keep-best=fid5k_full',
                         '--metrics=fid5k')
        self.assertEqual([args['name'] for args in kwargs['metric_arg_list']], ['fid5k', 'fid5k_full'])
        self.assertEqual(kwargs['hook_args'], [
            {'func_name': f'{monitors}KeepBest', 'metric': 'fid5k_full'}, {**alarm, 'rollback': True}])
        for metric, name in (('is5k', 'is5k'), ('is5k_mean', 'is5k'), ('fid1k_class', 'fid1k_class'),
                             ('swd4k_avg', 'swd4k'), ('ls_w', 'ls'), ('ppl_zend', 'ppl_zend'),
                             ('fid5k_mix2', 'fid5k_mix2'), ('kd_efflite0_5k', 'kd_efflite0_5k')):
            found = dry_run(f'--keep-best={metric}')['metric_arg_list']
            self.assertEqual([args['name'] for args in found], [name])

    @parameterized.parameters(
        ('--keep-best=pr5k3', '--keep-best: expected one result of pr5k3, pr5k3_precision or pr5k3_recall.'),
        ('--keep-best=fid5k_mix', '--keep-best: expected one result of fid5k_mix. Received: fid5k_mix'),
        ('--keep-best=swd4k_16', '--keep-best: expected a metric .* Received: swd4k_16'),
        ('--keep-best=pr5k3_recal', '--keep-best: expected a metric .* as fid5k, .* Received: pr5k3_recal'),
        ('--keep-best=is5k_std', '--keep-best: expected a metric of which high or low values are better'),
        ('--keep-best=msssim5k', '--keep-best: expected a metric .* Received: msssim5k'),
        ('--keep-best=fid5k_mean', '--keep-best: expected one result of fid5k, fid5k. Received: fid5k_mean'),
        ('--keep-best=', '--keep-best: expected a metric'),
        ('--config=biggan-demo --sigma-clamp=0', '--sigma-clamp: expected a number above 0, .* received .0'),
        ('--config=biggan-demo --sigma-clamp=-1', '--sigma-clamp: expected a number above 0'),
        ('--config=biggan-demo --sigma-clamp=2y', "as 2.5 or 1.2x, received '2y'"),
        ('--config=biggan-demo --sigma-clamp=nan', "--sigma-clamp: .* received 'nan'"),
        ('--config=biggan-demo --sigma-clamp=' + 400 * '9', '--sigma-clamp: expected'),
        ('--config=biggan-demo --rollback-on-collapse=maybe', '--rollback-on-collapse: expected true'),
        ('--config=stylegan-f --sigma-clamp=2', '--sigma-clamp is for BigGAN'),
        ('--rollback-on-collapse', '--rollback-on-collapse: .* add --metrics or --keep-best'),
        ('--rollback-on-collapse --metrics=none', '--rollback-on-collapse: .* add --metrics or --keep-best'))
    def test_wrong_flags_of_monitors(self, line, message):
        with contextlib.redirect_stderr(io.StringIO()) as stderr, self.assertRaises(SystemExit) as caught, \
                mock.patch.object(sys, 'argv', ['train.py', *line.split(), '--dry-run']):
            train.main()
        self.assertEqual(caught.exception.code, 2)
        self.assertRegex(stderr.getvalue(), rf'^train\.py: error: [^\n]*{message}[^\n]*\n$')

    def test_monitors_of_a_run_that_goes_on(self):
        """Hooks keep their places, and what is judged by is measured; what changes weights stays."""
        stored = json.loads(json.dumps(dry_run('--keep-best=fid1k', '--metrics=is1k')))
        stored = {key: value for key, value in stored.items() if key in find_config('config-f') or key in (
            'hook_args', 'metric_arg_list')}

        def resumed(*args):
            submit_config = SubmitConfig(run_func_kwargs=stored, config='config-f')
            with mock.patch.object(train, 'load_submit_config', return_value=submit_config), \
                    mock.patch('training.checkpoint.has_checkpoint', return_value=True):
                kwargs = train.resumed_run('run', train.make_parser().parse_args(['--resume', *args]))[1]
            return ([hook['func_name'].rpartition('.')[2] for hook in kwargs['hook_args']],
                    [metric['name'] for metric in kwargs['metric_arg_list']], kwargs['hook_args'])
        self.assertEqual(resumed()[:2], (['KeepBest'], ['is1k', 'fid1k']))
        self.assertEqual(resumed('--metrics=none')[:2], (['KeepBest'], ['fid1k']))
        self.assertEqual(resumed('--metrics=kid1k', '--keep-best=none')[:2], ([], ['kid1k']))
        stored['hook_args'].append(dict(func_name='training.monitors.CollapseAlarm', rollback=True))
        names, metrics, hooks = resumed('--keep-best=kid1k', '--rollback-on-collapse=no')
        self.assertEqual((names, metrics), (['KeepBest', 'CollapseAlarm'], ['is1k', 'fid1k', 'kid1k']))
        self.assertEqual((hooks[0]['metric'], hooks[1]['rollback']), ('kid1k', False))
        stored['G_args'] = dict(func_name='training.networks_biggan.G_biggan', ch=4)
        with self.assertRaisesRegex(UserError, 'cannot go on with other settings .*SigmaClamp'):
            resumed('--sigma-clamp=2')

    def test_length_of_a_run_with_annealed_latents(self):
        """It cannot change when the run goes on: the latents at every moment go by it."""
        for distribution in ('annealed_normal', 'normal'):
            stored = find_config('biggan-demo')
            stored['G_args']['latent_distribution'] = distribution
            submit_config = SubmitConfig(run_func_kwargs=stored, config='biggan-demo')
            args = train.make_parser().parse_args(['--resume', '--total-kimg=300'])
            with mock.patch.object(train, 'load_submit_config', return_value=submit_config), \
                    mock.patch('training.checkpoint.has_checkpoint', return_value=True):
                if distribution == 'normal':
                    self.assertEqual(train.resumed_run('run', args)[1]['total_kimg'], 300)
                else:
                    with self.assertRaisesRegex(UserError, 'total_kimg is 200 in the run, 300'):
                        train.resumed_run('run', args)


class MistakeTest(util.RunTest, parameterized.TestCase):
    """Each mistake: one line, and no run directory."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.images = {name: cls.save_images(name) for name in ('mixed', 'unreadable', 'labels')}
        PIL.Image.new('RGB', (16, 16)).save(os.path.join(cls.images['mixed'], 'z.png'))
        pathlib.Path(cls.images['unreadable'], 'z.png').write_bytes(b'no picture')
        pathlib.Path(cls.images['labels'], 'dataset.json').write_text('{"labels": [["0.png", 0]]}')
        cls.tfrecords = os.path.join(cls.root, 'tfrecords')
        os.makedirs(cls.tfrecords)
        path = os.path.join(cls.tfrecords, 'set-r03.tfrecords')
        with tf.io.TFRecordWriter(path) as writer:
            for _ in range(4):
                writer.write(tf.train.Example(features=tf.train.Features(feature={
                    'shape': tf.train.Feature(int64_list=tf.train.Int64List(value=[3, 8, 8])),
                    'data': tf.train.Feature(bytes_list=tf.train.BytesList(value=[bytes(192)])),
                })).SerializeToString())
        os.truncate(path, os.path.getsize(path) - 50)

    @classmethod
    def save_images(cls, name):
        folder = os.path.join(cls.root, name)
        os.makedirs(folder)
        for i in range(4):
            PIL.Image.new('RGB', (8, 8)).save(os.path.join(folder, f'{i}.png'))
        return folder

    @parameterized.parameters(
        ('--dataset={root}/nothing', 'there is no data set at {root}/nothing'),
        ('--data-dir={root} --dataset=nothing', 'there is no data set at {root}/nothing'),
        ('--resolution=64', 'resolution 64 cannot be made from .*32x32'),
        ('--config=biggan-128', 'resolution 128 cannot be made from .*32x32'),
        ('--config=biggan-small --resolution=8', 'for the resolutions 32, .* by --resolution.* Received: 8'),
        ('--config=biggan-demo --resolution=16', 'for 32x32 images; .* Received: 16'),
        ('--config=biggan-demo --minibatch-size=40', 'minibatch_size 40 .* multiple of minibatch_gpu 32'),
        ('--resolution=33', 'resolution 33 cannot be made from .*32x32'),
        ('--config=config-z', "--config: expected one of .*config-f.* Received: 'config-z'"),
        ('--dataset={root}/mixed', '{root}/mixed/z.png has 16x16 pixels, but .* has 8x8'),
        ('--dataset={root}/unreadable', '{root}/unreadable/z.png cannot be read as an image'),
        ('--dataset={root}/tfrecords', r'set-r03.tfrecords: record 3 \(counted from 0\) is cut off'),
        ('--dataset={root}/labels --cond', 'dataset.json has no label for 3 of 4 images'),
        (
            '--dataset={root}/mixed/0.png',
            'expected a folder of .tfrecords files, a folder or zip of images or an .npz file',
        ),
        ('--cond --label-attr=eyeColour', "has no attribute 'eyeColour'; it has .*eyesColor"),
        (
            '--minibatch-size=10 --minibatch-gpu=4',
            'minibatch_size 10 .* must be a multiple of minibatch_gpu 4',
        ),
        ('--lod-training-kimg=3', '--lod-training-kimg: .* do not grow; .* choose one of config-a, '),
        ('--config=', "--config: expected one of .*config-f.* Received: ''"),
        ('--grid=4x', "size is '4x', expected one of"),
        ('--grid=1000000x1000000', "--grid: expected at most 65536 images, received '1000000x1000000'"),
        ('--config=progan --cond', '--cond: the discriminator of ProGAN .* use --config=progan-acgan'),
        ('--config=stylegan-b --cond', '--cond: labels enter the generator through its mapping network'),
        ('--config=stylegan-f --resume={stylegan2}', 'holds G_main, G_synthesis_stylegan2, D_stylegan2; '
         'the configuration is for G_style, .* Choose --config=config-e or config-f'),
        ('--config=progan --gamma=3', '--gamma is the weight of R1, .* D_wgan_gp$'),
        ('--config=stylegan-f --lod-initial-resolution=12', 'power of two, at least 4; received 12'),
        ('--minibatch-size=6 --minibatch-gpu=6', '--minibatch-gpu must be .* group size 4 .* Received: 6'),
        ('--resume=', '--resume: expected a run directory .* received nothing'),
        ('--num-gpus=2 --strategy=none', '--strategy=none is for one device'),
        ('--metrics=fid50m', '--metrics: expected none or some of .*fid50k.* Received: fid50m'),
        ('--metrics=fd_efflite0_class_10', 'fd_efflite0_class_10: there are no classes'),
        ('--resume', '--resume: no run directory with a checkpoint in {results}'),
        ('--resume={root}/nothing', '--resume: expected a run directory or a network-snapshot'),
        ('--resume={root}/nothing.pkl', '--resume: {root}/nothing.pkl does not exist'),
        ('--resume={root}/mixed', '--resume: {root}/mixed holds no checkpoint'),
        ('--resume-kimg=5', '--resume-kimg goes with --resume=network-snapshot'),
    )
    def test_one_line(self, line, pattern):
        results = os.path.join(self.root, 'results')
        names = {'root': self.root, 'results': results,
                 'stylegan2': testutil.golden('training', 'stylegan2_f_init.pkl')}
        args = [*shlex.split(line.format(**names)), f'--result-dir={results}']
        with self.assertRaisesRegex(UserError, pattern.format(**names)) as caught:
            train.run(train.make_parser().parse_args(args))
        self.assertNotIn('\n', str(caught.exception))
        self.assertFalse(os.path.exists(results))

    @parameterized.parameters('--dataset=', '--data-dir=', '--result-dir=')
    def test_variable_that_was_not_set(self, flag):
        with contextlib.redirect_stderr(io.StringIO()) as stderr, self.assertRaises(SystemExit) as caught:
            train.make_parser().parse_args([flag])
        self.assertEqual(caught.exception.code, 2)
        self.assertRegex(stderr.getvalue(), r'^[^\n]*expected a path, received an empty text[^\n]*\n$')

    def test_snapshot_that_does_not_fit(self):
        """Also that is said before there is a run directory."""
        results = os.path.join(self.root, 'results')
        snapshot = os.path.join(self.root, 'network-snapshot-000001.pkl')
        pathlib.Path(snapshot).write_bytes(b'no pickle')
        with self.assertRaises(UserError):
            train.run(train.make_parser().parse_args([f'--resume={snapshot}', f'--result-dir={results}']))
        self.assertFalse(os.path.exists(results))

    def test_status_of_the_script(self):
        done = util.run_script(f'--dataset={self.images["mixed"]}', f'--result-dir={self.root}/results')
        self.assertEqual((done.returncode, done.stdout), (2, ''))
        self.assertRegex(done.stderr, r'^train\.py: error: [^\n]*z\.png has 16x16 pixels[^\n]*\n$')


class RunTest(util.RunTest):

    def test_two_replicas_stop_and_resume(self):
        """An official command line on two logical CPUs: stopped by SIGTERM, resumed, settings changed."""
        results = os.path.join(self.root, 'results')
        command = [
            sys.executable,
            str(testutil.ROOT / 'train.py'),
            *util.SMALL_FLAGS,
            '--minibatch-gpu=4',
            *shlex.split(
                '--num-gpus 2 --mirror-augment true --gamma 1 --metrics none --total-kimg 500 --cond'
            ),
            '--result-dir',
            results,
        ]
        process = subprocess.Popen(
            command,
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, 'CUDA_VISIBLE_DEVICES': '', 'TF_CPP_MIN_LOG_LEVEL': '2'},
        )
        run_dir = os.path.join(results, '00000-stylegan2-pixelart32-2gpu-demo')
        while process.poll() is None and not has_checkpoint(run_dir):
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 128 + signal.SIGTERM, stderr)
        self.assertIn(f'To go on: python train.py --resume={run_dir}', stdout)
        self.assertRegex(stderr, '^\nSIGTERM: stopping as soon as the state is saved\n$')
        self.assertIn('class #8d5524: 534 images', stdout)
        self.assertLen([line for line in stdout.splitlines() if util.TICK_LINE.fullmatch(line)], 1)

        for flags, text in (
            (
                '--gamma=2 --seed=5',
                'D_loss_args.gamma is 1.0 in the run, 2.0 on the command line; seed is 1000 in the '
                'run, 5 on the command line',
            ),
            ('--num-gpus=1', 'num_gpus is 2 in the run, 1 on the command line'),
            ('--config=config-f', "config is 'demo' in the run, 'config-f' on the command line"),
            ('--no-cond', "dataset_args.max_label_size is 'full' in the run, 0 on the command line"),
        ):
            with self.assertRaisesRegex(UserError, text) as caught:
                train.run(train.make_parser().parse_args([f'--resume={run_dir}', *flags.split()]))
            self.assertNotIn('\n', str(caught.exception))

        progress = json.loads(tf.train.load_checkpoint(os.path.join(run_dir, 'checkpoints')).get_tensor(
            'progress/.ATTRIBUTES/VARIABLE_VALUE'))
        kimg = (progress['nimg'] + 64) / 1000
        code = ('from dnnlib.startup import load_tensorflow\n'
                'load_tensorflow()\n'
                'import train\n'
                'from training.trainer import Trainer\n'
                'Trainer.step = lambda *args: []\n'     # What it would learn is not looked at.
                'train.main()\n')
        done = util.run_script(
            '--resume',
            f'--total-kimg={kimg}',
            f'--result-dir={results}',
            '--num-gpus=2',
            '--seed=1000',
            '--metrics=none',
            '--config=demo',
            '--cond',
            cwd=self.root,
            code=code,
        )
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        self.assertEqual(os.listdir(results), [os.path.basename(run_dir)])
        self.assertTrue(os.path.exists(os.path.join(run_dir, '_finished.txt')))
        self.assertIn(f'Resuming at {progress["nimg"] / 1000:.1f} of {kimg} kimg', done.stdout)

    def test_folder_of_images_by_relative_path(self):
        """Classes from subfolders; the run goes on from another directory."""
        rnd = np.random.RandomState(0)
        for i in range(16):
            folder = os.path.join(self.root, 'images', 'ab'[i % 2])
            os.makedirs(folder, exist_ok=True)
            PIL.Image.fromarray(rnd.randint(0, 256, [8, 8, 3]).astype(np.uint8)).save(
                os.path.join(folder, f'{i}.png')
            )
        done = util.run_script(
            *util.SMALL_FLAGS, '--dataset=images', '--cond', '--result-dir=out', cwd=self.root
        )
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        ticks = [
            util.TICK_LINE.fullmatch(line) for line in done.stdout.splitlines() if line.startswith('tick')
        ]
        self.assertEqual([tick[2] for tick in ticks], ['0.0', '0.1'])
        self.assertIn('class a: 8 images', done.stdout)
        run_dir = os.path.join(self.root, 'out', '00000-stylegan2-images-1gpu-demo')
        kwargs = dry_run(f'--resume={run_dir}', '--total-kimg=1')
        self.assertEqual(kwargs['dataset_args']['dataset'], os.path.join(self.root, 'images'))
        self.assertEqual((kwargs['total_kimg'], kwargs['resume_run_dir']), (1, run_dir))

        # With other images it does not go on, and nothing of it is changed: plain --resume still works.
        before = {path: path.read_bytes() for path in pathlib.Path(run_dir).rglob('*') if path.is_file()}
        os.remove(os.path.join(self.root, 'images', 'b', '15.png'))
        with self.assertRaisesRegex(UserError, '--resume: the data set images is not the one that'):
            train.run(train.make_parser().parse_args([f'--resume={run_dir}', '--total-kimg=1']))
        after = {path: path.read_bytes() for path in pathlib.Path(run_dir).rglob('*') if path.is_file()}
        self.assertEqual(after, before)


if __name__ == '__main__':
    tf.test.main()
