"""The presets against the official schedules, and against what the papers and official programs state."""

import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from dnnlib import tflib
from dnnlib.util import UserError, call_func_by_name, get_obj_by_name
from tests import testutil
from tests.test_schedule import golden_rows
from training import checks
from training.configs import (
    CONFIG_F,
    CONFIGS,
    find_config,
    find_preset,
    gamma_argument,
    growing_configs,
    merge,
)
from training.layers import planned_variables
from training.schedule import training_schedule


class MergeTest(tf.test.TestCase):

    def test_arguments_of_another_function_and_tables_are_replaced_as_a_whole(self):
        base = {'D_loss_args': {'func_name': 'a', 'gamma': 1},
                'sched_args': {'lrate_dict': {8: 1}, 'base': 2}}
        self.assertEqual(merge(base, {'D_loss_args': {'func_name': 'b'}})['D_loss_args'], {'func_name': 'b'})
        self.assertEqual(merge(base, {'D_loss_args': {'func_name': 'a', 'x': 3}})['D_loss_args'],
                         {'func_name': 'a', 'gamma': 1, 'x': 3})
        self.assertEqual(merge(base, {'D_loss_args': {'gamma': 2}})['D_loss_args'],
                         {'func_name': 'a', 'gamma': 2})
        self.assertEqual(merge(base, {'sched_args': {'lrate_dict': {16: 3}}})['sched_args'],
                         {'lrate_dict': {16: 3}, 'base': 2})


class PresetTest(tf.test.TestCase, parameterized.TestCase):

    @testutil.needs_golden
    @parameterized.parameters(
        ('stylegan', 'paper_8gpu', 'stylegan-f', 8), ('stylegan', 'paper_1gpu', 'stylegan-f', 1),
        ('progan', 'preset_v2_1gpu_fp32', 'progan', 1), ('progan', 'preset_v2_8gpus', 'progan', 8),
        ('stylegan2', 'configs_A_to_D', 'config-b', 1))
    def test_schedule_is_the_official_one(self, generation, official, name, num_gpus):
        rows = [row for row in golden_rows(generation) if row['config'] == official]
        self.assertGreater(len(rows), 15)
        sched_args = find_config(name, num_gpus)['sched_args']
        for row in rows:
            found = training_schedule(row['cur_nimg'], row['resolution_log2'], num_gpus, **sched_args)
            for field in ('lod', 'resolution', 'G_lrate', 'D_lrate', 'tick_kimg'):
                self.assertEqual(found[field], row[field], f'{name} {row["cur_nimg"]} {field}')
            self.assertEqual(found.minibatch_size, row.get('minibatch_size', row.get('minibatch')))
            if 'minibatch_gpu' in row:
                self.assertEqual(found.minibatch_gpu, row['minibatch_gpu'])

    def test_minibatch_divides_for_every_number_of_gpus(self):
        for name in growing_configs():
            for num_gpus in (1, 2, 4, 8):
                for res_log2 in range(3, 11):
                    for lod in range(res_log2 - 2):
                        sched_args = merge(find_config(name, num_gpus)['sched_args'],
                                           {'lod_initial_resolution': 2 ** (res_log2 - lod)})
                        found = training_schedule(0, res_log2, num_gpus, **sched_args)
                        self.assertEqual(found.minibatch_size % (found.minibatch_gpu * num_gpus), 0)

    @parameterized.parameters((3, (252, 84), (12, 4)), (5, (240, 48), (15, 3)), (6, (240, 40), (12, 2)),
                              (7, (252, 36), (14, 2)))
    def test_other_numbers_of_gpus_round_the_minibatch_down(self, num_gpus, at_8, at_128):
        """256 images at 8x8, 16 at 128x128: to a multiple of 4 per GPU, where it has as many."""
        sched_args = find_config('stylegan-f', num_gpus)['sched_args']
        for resolution, expected in ((8, at_8), (128, at_128)):
            found = training_schedule(0, 7, num_gpus, **{**sched_args, 'lod_initial_resolution': resolution})
            self.assertEqual((found.minibatch_size, found.minibatch_gpu), expected)

    def test_minibatches_and_learning_rates_by_number_of_gpus(self):
        """As the official programs list them; the golden schedules are those of 1 and 8 GPUs alone."""
        sizes = {
            1: (4, {4: 128, 8: 128, 16: 128, 32: 64, 64: 32, 128: 16, 256: 8, 512: 4}),
            2: (8, {4: 256, 8: 256, 16: 128, 32: 64, 64: 32, 128: 16, 256: 8}),
            4: (16, {4: 512, 8: 256, 16: 128, 32: 64, 64: 32, 128: 16}),
            8: (32, {4: 512, 8: 256, 16: 128, 32: 64, 64: 32}),
        }
        stylegan = {128: 0.0015, 256: 0.002, 512: 0.003, 1024: 0.003}
        progan = {
            1: {1024: 0.0015},
            2: {512: 0.0015, 1024: 0.002},
            4: {256: 0.0015, 512: 0.002, 1024: 0.003},
            8: {128: 0.0015, 256: 0.002, 512: 0.003, 1024: 0.003},
        }
        for num_gpus, (base, table) in sizes.items():
            for name, lrates in [('stylegan-f', stylegan), ('stylegan-b', stylegan),
                                 ('progan', progan[num_gpus]), ('progan-acgan', progan[num_gpus])]:
                sched_args = find_config(name, num_gpus)['sched_args']
                expected = dict(
                    minibatch_size_base=base, minibatch_size_dict=table, minibatch_gpu_base=None,
                    G_lrate_base=0.001, G_lrate_dict=lrates, D_lrate_base=0.001, D_lrate_dict=lrates)
                self.assertEqual({key: sched_args[key] for key in expected}, expected, (name, num_gpus))

    def test_stylegan2_table_1(self):
        rows = {}
        for letter in 'abcdef':
            config = find_config(f'config-{letter}')
            rows[letter] = (
                config['G_args']['func_name'].rpartition('.')[2], config['G_args'].get('synthesis_func'),
                config['D_args']['func_name'].rpartition('.')[2], config['G_args']['fmap_base'],
                config['D_args']['fmap_base'], config['G_loss_args']['func_name'].rpartition('.')[2],
                config['D_loss_args'], config['lazy_regularization'],
                config['sched_args'].get('lod_initial_resolution'))

        def r1(gamma):
            return {'func_name': 'training.loss.D_logistic_r1', 'gamma': gamma}

        revised = ('G_main', 'G_synthesis_stylegan_revised', 'D_stylegan', 8192, 8192)
        stylegan2 = ('G_main', None, 'D_stylegan2')
        self.assertEqual(rows, {
            'a': ('G_style', None, 'D_basic', 8192, 8192, 'G_logistic_ns', r1(10), False, 8),
            'b': (*revised, 'G_logistic_ns', r1(10), False, 8),
            'c': (*revised, 'G_logistic_ns', r1(10), True, 8),
            'd': (*revised, 'G_logistic_ns_pathreg', r1(10), True, 8),
            'e': (*stylegan2, 8192, 8192, 'G_logistic_ns_pathreg', r1(100), True, None),
            'f': (*stylegan2, 16384, 16384, 'G_logistic_ns_pathreg', r1(10), True, None)})

    def test_stylegan_tables(self):
        def arguments(name):
            args = dict(find_config(name)['G_args'])
            self.assertEqual(args.pop('func_name'), 'training.networks_stylegan.G_style')
            self.assertEqual(args.pop('fmap_base'), 8192)
            return args

        e = {'style_mixing_prob': 0}
        d = {**e, 'use_noise': False}
        c = {**d, 'const_input_layer': False}
        b = {**c, 'use_styles': False, 'use_pixel_norm': True, 'use_instance_norm': False,
             'mapping_layers': 0, 'truncation_psi': None}
        expected = {'b': b, 'c': c, 'd': d, 'e': e, 'f': {}, 'wgangp': {},
                    'mix0': {'style_mixing_prob': 0}, 'mix50': {'style_mixing_prob': 0.5},
                    'mix100': {'style_mixing_prob': 1}, 'traditional-0': b,
                    'traditional-8': {**b, 'mapping_layers': 8}, 'stylebased-0': {'mapping_layers': 0},
                    'stylebased-1': {'mapping_layers': 1}, 'stylebased-2': {'mapping_layers': 2}}
        self.assertEqual({f'stylegan-{name}' for name in expected},
                         {name for name in CONFIGS if name.startswith('stylegan-')})
        for name, args in expected.items():
            self.assertEqual(arguments(f'stylegan-{name}'), args, name)
        wgangp, lrates = find_config('stylegan-wgangp', 8), {128: 0.0015, 256: 0.002, 512: 0.002, 1024: 0.002}
        self.assertEqual(wgangp['sched_args']['D_lrate_dict'], lrates)
        self.assertEqual(wgangp['D_loss_args'], {'func_name': 'training.loss.D_wgan_gp'})

    def test_programs(self):
        stylegan, progan, acgan = (find_config(name) for name in ('stylegan-f', 'progan', 'progan-acgan'))
        self.assertEqual((stylegan['total_kimg'], progan['total_kimg']), (25000, 12000))
        self.assertEqual((stylegan['sched_args']['lod_initial_resolution'],
                          progan['sched_args']['lod_initial_resolution']), (8, 4))
        self.assertEqual((stylegan.get('G_smoothing'), progan['G_smoothing']), (None, 0.999))
        self.assertEqual((stylegan['D_loss_args']['func_name'], stylegan['D_loss_args']['r1_gamma']),
                         ('training.loss.D_logistic_simplegp', 10))
        self.assertEqual((acgan['G_loss_args']['func_name'], acgan['dataset_args']['max_label_size']),
                         ('training.loss.G_wgan_acgan', 'full'))
        for config in (stylegan, progan, acgan):
            self.assertTrue(config['D_first'])
            self.assertFalse(config['lazy_regularization'])
            self.assertEqual(config['minibatch_repeats'], 4)
            self.assertEqual((config['image_snapshot_ticks'], config['network_snapshot_ticks']), (1, 10))
            self.assertEqual(config['grid_args'], {'size': '4k', 'layout': 'random'})
        self.assertFalse(find_config('config-a').get('D_first', False))
        self.assertEqual([find_preset(name).family for name in ('config-a', 'stylegan-b', 'progan')],
                         ['stylegan2', 'sgan', 'pgan'])

    def test_biggan(self):
        """Row 8 of table 1 of the paper, and the scripts of BigGAN-PyTorch."""
        def values(name):
            config = find_config(name)
            sched = training_schedule(0, config['dataset_args']['resolution'].bit_length() - 1,
                                      **config['sched_args'])
            ortho = [args['strength'] for args in config['G_update_args'] if 'strength' in args]
            return (config['G_args']['ch'], config['D_args']['ch'], sched.minibatch_size, config['D_repeats'],
                    sched.G_lrate, sched.D_lrate, ortho, config['ema_start'], config['ema_all'] if 'ema_all'
                    in config else False, config['G_opt_args'].get('epsilon_form'))

        for resolution, ch in ((32, 64), (64, 64), (128, 96), (256, 96), (512, 96)):
            self.assertEqual(values(f'biggan-{resolution}'),
                             (ch, ch, 2048, 2, 5e-5, 2e-4, [1e-4], 20000, False, None))
        for name, ch in (('64', 64), ('128', 96), ('256', 96), ('128-ch64', 64)):
            self.assertEqual(values(f'biggan-{name}-bs256x8'),
                             (ch, ch, 2048, 1, 1e-4, 4e-4, [], 20000, True, 'pytorch'))
        self.assertEqual(values('biggan-cifar10'),
                         (64, 64, 50, 4, 2e-4, 2e-4, [], 1000, True, 'pytorch'))
        for name in CONFIGS:
            if name.startswith('biggan'):
                config = find_config(name)
                self.assertEqual((config['G_opt_args']['beta1'], config['G_opt_args']['beta2'],
                                  config['D_opt_args']['beta2']), (0, 0.999, 0.999))
                self.assertEqual((config['D_first'], config['ema_after'], config['lazy_regularization']),
                                 (True, 'G', False))
                self.assertEqual((config['dataset_args']['label_sampling'],
                                  config['dataset_args']['max_label_size']), ('uniform', 'auto'))
                self.assertEqual(config['grid_args']['layout'], 'row_per_class')
                self.assertEqual(gamma_argument(config), 'gamma')
                self.assertEqual(find_preset(name).family, 'biggan')

    def test_biggan_has_the_published_number_of_weights(self):
        """1000 classes, as in table 1 (plus the shared embedding) and in BigGAN-PyTorch's CIFAR script."""
        counts = {'biggan-128': (1000, 70433988, 87982370), 'biggan-256': (1000, 82097604, 99225890),
                  'biggan-512': (1000, 82468068, 99401282), 'biggan-128-ch64-bs256x8': (
                      1000, 31978628, 39448258), 'biggan-cifar10': (10, 4.30e6, 4.21e6)}
        for name, (classes, *expected) in counts.items():
            config = find_config(name)
            shape = dict(label_size=classes, resolution=config['dataset_args']['resolution'], num_channels=3)
            with planned_variables():
                found = [sum(int(np.prod(variable.shape)) for variable in call_func_by_name(
                    **shape, **config[key]).named_trainables().values()) for key in ('G_args', 'D_args')]
            self.assertAllClose(found, expected, rtol=2e-3 if name == 'biggan-cifar10' else 0, atol=0)

    def test_every_name_in_a_preset_exists(self):
        for name in CONFIGS:
            config = find_config(name)
            for args in [*(config[key] for key in ('G_args', 'D_args', 'G_loss_args', 'D_loss_args')),
                         *config.get('G_update_args', ())]:
                self.assertTrue(callable(get_obj_by_name(args['func_name'])), f'{name} {args}')
        self.assertNotIn('lod_initial_resolution', CONFIG_F['sched_args'])
        self.assertEqual(set(CONFIGS) - set(growing_configs()),
                         {name for name in CONFIGS if name.startswith(('config-e', 'config-f', 'biggan-'))}
                         | {'demo'})

    def test_configs_for_a_snapshot(self):
        """Of the many for networks of one kind some are named."""
        shape = dict(resolution=8, ch=2, multipliers=[2, 2])
        G = tflib.Network('G', 'training.networks_biggan.G_biggan', latent_size=8, **shape)
        D = tflib.Network('D', 'training.networks_biggan.D_biggan', num_down=1, **shape)
        with self.assertRaisesRegex(UserError, r'a\.pkl holds G_biggan, D_biggan; the configuration is for '
                                    r'G_paper, D_paper\. Choose --config=biggan-32 or .*-512 or another of '
                                    r'\d+$'):
            checks._check_config((G, D, G), find_config('progan'), 'a.pkl')
        checks._check_config((G, D, G), find_config('biggan-128'), 'a.pkl')

    def test_gamma_is_the_weight_of_r1(self):
        self.assertEqual(gamma_argument(find_config('config-b')), 'gamma')
        self.assertEqual(gamma_argument(find_config('stylegan-f')), 'r1_gamma')
        with self.assertRaisesRegex(UserError, '--gamma .* D_wgan_gp'):
            gamma_argument(find_config('progan'))


if __name__ == '__main__':
    tf.test.main()
