"""Statistics of real images on the disk: keys, damage, several processes."""

import contextlib
import errno
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import tensorflow as tf

from dnnlib.file_lock import file_lock
from dnnlib.util import UserError
from metrics.evaluation import Evaluation
from metrics.feature_cache import FeatureCache, default_directory
from metrics.image_sources import DatasetSource
from metrics.metric_base import MetricBase
from tests import testutil
from tests.test_evaluation import CountingSet

FIELDS = dict(images='abc', count=5, mirror=True)
ROWS = np.arange(10, dtype=np.float32).reshape(5, 2)


class CacheTest(tf.test.TestCase):

    def setUp(self):
        super().setUp()
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.calls = 0

    def blocks(self):
        self.calls += 1
        yield ROWS[:3]
        yield ROWS[3:]

    def pair(self):
        self.calls += 1
        return np.arange(2.0), np.eye(2)

    def cache(self, **changes):
        return FeatureCache(self.folder, {**FIELDS, **changes})

    def test_features(self):
        self.assertAllEqual(self.cache().features(5, self.blocks), ROWS)
        again = self.cache().features(5, self.blocks)
        self.assertAllEqual(again, ROWS)
        self.assertIsInstance(again, np.memmap)
        self.assertEqual((again.dtype, self.calls), (np.float32, 1))
        for changes in (dict(count=6), dict(mirror=False), dict(images='abd'), dict(extractor='x')):
            self.cache(**changes).features(5, self.blocks)
        self.assertEqual(self.calls, 5)

    def test_moments(self):
        for _ in range(2):
            mean, covariance = self.cache().moments(5, self.pair)
            self.assertAllEqual(mean, [0, 1])
            self.assertAllEqual(covariance, np.eye(2))
        self.assertEqual(self.calls, 1)

    def test_every_damage_is_noticed(self):
        """Any cut and any changed byte gives a warning and the right numbers, or changes nothing."""
        self.cache().features(5, self.blocks)
        self.cache().moments(5, self.pair)
        names = [name for name in os.listdir(self.folder) if not name.endswith('.lock')]
        self.assertLen(names, 3)
        rnd = np.random.RandomState(0)
        for name in names:
            path = os.path.join(self.folder, name)
            with open(path, 'rb') as file:
                good = file.read()
            damages = [b'', good[:len(good) // 2], good[:-1], b'{}', b'null', b'[]']
            for place in rnd.randint(len(good), size=10):
                damages.append(good[:place] + bytes([good[place] ^ 1 + rnd.randint(255)]) + good[place + 1:])
            for damage in damages:
                with open(path, 'wb') as file:
                    file.write(damage)
                with contextlib.redirect_stderr(io.StringIO()) as stderr:
                    self.assertAllEqual(self.cache().features(5, self.blocks), ROWS)
                    mean, covariance = self.cache().moments(5, self.pair)
                self.assertAllEqual(mean, [0, 1])
                self.assertAllEqual(covariance, np.eye(2))
                if stderr.getvalue():
                    self.assertRegex(stderr.getvalue(), '^Warning: .* is damaged and computed again .*\n$')
                with open(path, 'wb') as file:
                    file.write(good)

    def test_failure_leaves_nothing(self):
        def fails():
            yield ROWS[:3]
            raise UserError('no more')
        with self.assertRaisesRegex(UserError, 'no more'):
            self.cache().features(5, fails)
        with self.assertRaisesRegex(UserError, 'expected 5 images, received 3'):
            self.cache().features(5, lambda: iter([ROWS[:3]]))
        self.assertEqual([name for name in os.listdir(self.folder) if not name.endswith('.lock')], [])
        self.assertAllEqual(self.cache().features(5, self.blocks), ROWS)

    def test_directory_that_cannot_be_used(self):
        path = os.path.join(self.folder, 'file')
        with open(path, 'w', encoding='utf-8'):
            pass
        cache = FeatureCache(os.path.join(path, 'below'), FIELDS)
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            self.assertIsNone(cache.features(5, self.blocks))
            self.assertAllEqual(cache.moments(5, self.pair)[0], [0, 1])
        self.assertIn('Warning: statistics of real images are not kept', stderr.getvalue())

    def test_full_disk(self):
        def full():
            yield ROWS
            raise OSError(errno.ENOSPC, 'No space left on device')
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            self.assertIsNone(self.cache().features(5, full))
        self.assertIn('No space left', stderr.getvalue())
        self.assertEqual([name for name in os.listdir(self.folder) if not name.endswith('.lock')], [])

    def test_processes_compute_once(self):
        """Of several at a time one computes, the others wait and read; one that is killed frees the lock."""
        code = f'''
import sys, time, numpy as np
from metrics.feature_cache import FeatureCache
def blocks():
    print('computing', flush=True)
    time.sleep(1)
    yield np.arange(10, dtype=np.float32).reshape(5, 2)
array = FeatureCache({self.folder!r}, {FIELDS!r}).features(5, blocks)
assert array.sum() == 45
print('done')
'''
        started = [subprocess.Popen([sys.executable, '-c', code], cwd=testutil.ROOT, stdout=subprocess.PIPE,
                                    text=True) for _ in range(3)]
        output = ''.join(process.communicate(timeout=60)[0] for process in started)
        self.assertEqual((output.count('computing\n'), output.count('done')), (1, 3), output)
        self.assertIn('Waiting for another process', output)

    def test_lock_of_another(self):
        cache, start = self.cache(), time.monotonic()
        with file_lock(os.path.join(self.folder, f'{cache.key}-features.lock')):
            cache.moments(5, self.pair)     # Has a lock of its own.
        self.assertLess(time.monotonic() - start, 5)

    def test_default_directory(self):
        self.assertEqual(os.path.basename(default_directory()), 'metrics')


class KeyTest(tf.test.TestCase):
    """What the key of an evaluation depends on."""

    def _keys(self, source, **options):
        with tempfile.TemporaryDirectory() as folder:
            ev = Evaluation(reals=source, cache_dir=folder, **{'mirror': True, **options})
            output = options.pop('output', 'features')
            ev.features(ev.reals(8), 'random', output).moments()
            return {name for name in os.listdir(folder) if name.endswith('.npz')}

    def test_key(self):
        first = self._keys(DatasetSource(CountingSet()))
        self.assertLen(first, 1)
        # Neither names, paths and labels nor seeds of generated images and minibatches matter.
        same = CountingSet(label_size=3)
        same.name = same.path = 'other'
        self.assertEqual(self._keys(DatasetSource(same), seed=5, batch=3, num_images=8), first)
        for other in (self._keys(DatasetSource(CountingSet(11))),
                      self._keys(DatasetSource(CountingSet(size=16))),
                      self._keys(DatasetSource(CountingSet()), mirror=False),
                      self._keys(DatasetSource(CountingSet()), num_images=9),
                      self._keys(DatasetSource(CountingSet(label_size=3)), class_idx=1)):
            self.assertNotEqual(other, first)

    def test_weights_and_output(self):
        """Another file of weights, another output: other features."""
        with tempfile.TemporaryDirectory() as folder:
            ev = Evaluation(reals=DatasetSource(CountingSet()), cache_dir=folder)
            ev.features(ev.reals(8), 'random').all()
            ev.features(ev.reals(8), 'random', 'logits').all()
            ev.extractor('random').sha256 = 'another'
            ev.features(ev.reals(8), 'random').all()
            records = [name for name in os.listdir(folder) if name.endswith('.json')]
            self.assertLen(records, 3)
            with open(os.path.join(folder, records[0]), encoding='utf-8') as file:
                fields = json.load(file)['fields']
            self.assertContainsSubset({'images', 'count', 'mirror', 'shape', 'seed', 'extractor', 'output',
                                       'extractor_sha256', 'format'}, fields)

    def test_cached_equal_to_computed(self):
        """With the cache filled, with it read, and without: the same numbers."""
        with tempfile.TemporaryDirectory() as folder:
            results = []
            for cache_dir, shared in ((None, False), (folder, False), (folder, True), (folder, True)):
                ev = Evaluation(reals=DatasetSource(CountingSet(40)), cache_dir=cache_dir, mirror=True)
                with ev.group([MetricBase(name, 'random') for name in ('a', 'b')[:1 + shared]]):
                    features = ev.features(ev.reals(100), 'random')
                    results.append((*features.moments(), features.all()))
            for other in results[1:]:
                for one, value in zip(results[0], other, strict=True):
                    self.assertAllClose(one, value, rtol=1e-12, atol=1e-12)


if __name__ == '__main__':
    tf.test.main()
