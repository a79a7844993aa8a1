"""Training schedules of the three generations, lazy regularization, moving average: the official values."""

import json

import tensorflow as tf

from dnnlib.util import UserError
from tests import testutil
from training import schedule


def golden_rows(name: str, section: str = 'training_schedule') -> list[dict]:
    with open(testutil.golden('schedules', name + '.json'), encoding='utf-8') as file:
        return json.load(file)[section]


class GoldenScheduleTest(tf.test.TestCase):
    def check(self, rows, fields, renamed, **defaults):
        self.assertGreater(len(rows), 80)
        for row in rows:
            kwargs = defaults | {renamed.get(key, key): value for key, value in row['kwargs'].items()}
            if 'num_gpus' in row:
                kwargs['num_gpus'] = row['num_gpus']
            result = schedule.training_schedule(row['cur_nimg'], row['resolution_log2'], **kwargs)
            for field in fields:
                message = f'{row["config"]} nimg {row["cur_nimg"]} {field}'
                self.assertEqual(result[renamed.get(field, field)], row[field], message)
            self.assertIsInstance(result.minibatch_size, int)
            self.assertIsInstance(result.resolution, int)
            self.assertEqual(result.minibatch_size % (result.minibatch_gpu * kwargs.get('num_gpus', 1)), 0)

    def test_stylegan2(self):
        fields = ['kimg', 'lod', 'resolution', 'minibatch_size', 'minibatch_gpu', 'G_lrate', 'D_lrate',
                  'tick_kimg']
        self.check(golden_rows('stylegan2'), fields, renamed={})

    @testutil.needs_golden
    def test_stylegan_and_progan(self):
        fields = ['kimg', 'lod', 'resolution', 'minibatch', 'G_lrate', 'D_lrate', 'tick_kimg']
        renamed = {'minibatch': 'minibatch_size', 'minibatch_base': 'minibatch_size_base',
                   'minibatch_dict': 'minibatch_size_dict'}
        for name in ['stylegan', 'progan']:
            self.check(golden_rows(name), fields, renamed, lod_initial_resolution=4, minibatch_size_base=16,
                       minibatch_gpu_base=None, G_lrate_base=0.001, D_lrate_base=0.001, tick_kimg_base=160,
                       tick_kimg_dict=schedule.TICK_KIMG[name])

    def test_lazy_regularization(self):
        for row in golden_rows('stylegan2', 'lazy_regularization'):
            given = [row[key] for key in ['lrate', 'beta1', 'beta2', 'reg_interval']]
            expected = [row[key] for key in ['effective_lrate', 'effective_beta1', 'effective_beta2']]
            self.assertAllClose(schedule.lazy_regularization(*given), expected, rtol=1e-14, atol=0)

    def test_ema_beta(self):
        for row in golden_rows('stylegan2', 'Gs_beta'):
            beta = schedule.ema_beta(row['minibatch_size'], row['G_smoothing_kimg'])
            self.assertAllClose(beta, row['beta'], rtol=1e-7, atol=0)      # The official value is a float32.


class ScheduleTest(tf.test.TestCase):
    def test_growing_from_first_to_last_level(self):
        kwargs = {'lod_initial_resolution': 8, 'lod_training_kimg': 2, 'lod_transition_kimg': 4}
        lods = [schedule.training_schedule(1000 * kimg, 5, **kwargs).lod for kimg in range(0, 15)]
        self.assertAllClose(lods, [2, 2, 2, 1.75, 1.5, 1.25, 1, 1, 1, .75, .5, .25, 0, 0, 0])

    def test_kimg_at_lod_is_where_the_schedule_comes_to_it(self):
        for training, transition in [(10, 20), (0, 5), (7, 0)]:
            kwargs = dict(lod_initial_resolution=8, lod_training_kimg=training,
                          lod_transition_kimg=transition)
            for lod in (3, 2.75, 2, 1.5, 1, 0.125, 0) if transition else (3, 2, 1, 0):
                kimg = schedule.kimg_at_lod(lod, 6, minibatch_size_base=4, **kwargs)
                self.assertAlmostEqual(schedule.training_schedule(kimg * 1000, 6, **kwargs).lod, lod)
                if lod < 3 and transition:  # Not any sooner.
                    self.assertGreater(schedule.training_schedule(kimg * 1000 - 1, 6, **kwargs).lod, lod)
        self.assertEqual(schedule.kimg_at_lod(0, 6), 0)

    def test_shares_are_rounded_down_to_a_multiple(self):
        for num_gpus, size in [(1, 128), (3, 120), (5, 120), (7, 112), (8, 128)]:
            found = schedule.training_schedule(0, 5, num_gpus, minibatch_size_base=128,
                                               minibatch_gpu_base=None, minibatch_gpu_multiple=4)
            self.assertEqual((found.minibatch_size, found.minibatch_gpu), (size, size // num_gpus))
        found = schedule.training_schedule(0, 5, 3, minibatch_size_base=8, minibatch_gpu_base=None,
                                           minibatch_gpu_multiple=4)
        self.assertEqual((found.minibatch_size, found.minibatch_gpu), (6, 2))  # Too few for one multiple.

    def test_integer_and_string_keys_agree(self):
        by_int = schedule.training_schedule(0, 8, minibatch_size_dict={256: 8}, G_lrate_dict={256: 0.5})
        by_str = schedule.training_schedule(0, 8, minibatch_size_dict={'256': 8}, G_lrate_dict={'256': 0.5})
        self.assertEqual(by_int, by_str)
        self.assertEqual((by_int.minibatch_size, by_int.G_lrate, by_int.D_lrate), (8, 0.5, 0.002))

    def test_cap_per_gpu(self):
        result = schedule.training_schedule(0, 6, num_gpus=3, minibatch_size_base=16, minibatch_gpu_base=None,
                                            max_minibatch_per_gpu={'64': 2})
        self.assertEqual((result.minibatch_size, result.minibatch_gpu), (6, 2))

    def test_no_lazy_regularization_changes_nothing(self):
        self.assertEqual(schedule.lazy_regularization(0.002, 0.5, 0.99, None), (0.002, 0.5, 0.99))

    def test_half_life(self):
        self.assertAllClose(schedule.ema_beta(50, 10) ** (10000 / 50), 0.5, rtol=1e-12)

    def test_bad_minibatch_is_refused_before_its_resolution_is_reached(self):
        kwargs = {'num_gpus': 2, 'lod_initial_resolution': 8, 'minibatch_size_dict': {64: 30}}
        with self.assertRaisesRegex(UserError, '30 at resolution 64 must be .* minibatch_gpu 4 × 2 GPUs'):
            schedule.training_schedule(0, 8, **kwargs)

    def test_levels_that_are_never_reached_are_not_checked(self):
        schedule.training_schedule(0, 8, lod_initial_resolution=64, minibatch_size_dict={8: 3, 512: 3})

    def test_bad_arguments(self):
        for kwargs, message in [
            ({'num_gpus': 0}, 'num_gpus'),
            ({'lod_initial_resolution': 12}, 'power of two'),
            ({'lod_initial_resolution': 2}, 'at least 4'),
            ({'minibatch_gpu_base': 0}, 'minibatch_gpu 0'),
            ({'num_gpus': 64, 'minibatch_gpu_base': None}, 'fewer than one image'),
        ]:
            with self.assertRaisesRegex(UserError, message):
                schedule.training_schedule(0, 8, **kwargs)
        with self.assertRaisesRegex(UserError, 'reg_interval'):
            schedule.lazy_regularization(0.002, 0.0, 0.99, 0)


if __name__ == '__main__':
    tf.test.main()
