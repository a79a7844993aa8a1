"""Tests of train_classifiers.py: attributes of data sets, the questions made of them, and their training."""

import contextlib
import filecmp
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
import pytest
import tensorflow as tf
from absl.testing import parameterized

import train_classifiers
from dnnlib.submission import RunContext
from dnnlib.tflib import legacy
from dnnlib.util import UserError
from metrics import classifiers
from tests import testutil
from tests import training_testutil as util
from training import attributes, classifier_loop
from training.attributes import Attribute
from training.checkpoint import has_checkpoint
from training.dataset import load_dataset, reduce_images

SMALL = ('--resolution=4', '--fmap-base=32', '--fmap-max=8', '--minibatch-size=8', '--total-kimg=0.16',
         '--tick-kimg=0.064')


def run(*args: str) -> tuple[int, str]:
    """The status of a command line, and what it prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = train_classifiers.run(train_classifiers.make_parser().parse_args(args))
    return status, output.getvalue()


def run_dir_of(root: str) -> str:
    return os.path.join(root, max(os.listdir(root)))


def results_of(run_dir: str) -> list[dict]:
    """What a run found out, but for the time that it took."""
    results = json.loads(pathlib.Path(run_dir, classifier_loop.RESULTS_FILE).read_text())
    return [{key: value for key, value in result.items() if key != 'seconds'} for result in results]


def at_step(step: int, action):
    """A context in which `action()` is called after the given step, counted from the start of the process."""
    real_step, count = classifier_loop.ClassifierTrainer.step, [0]

    def counted(self, *args):
        moments = real_step(self, *args)
        count[0] += 1
        if count[0] == step:
            action()
        return moments
    return mock.patch.object(classifier_loop.ClassifierTrainer, 'step', counted)


def made_attributes():
    codes = np.array([0, 1, 2, 2, 0, 1])
    return {
        'glasses': Attribute('glasses', ['', 'dark', 'light'], codes),
        'hair': Attribute('hair', ['long1', 'long2', 'short', 'never'], codes),
        'smiling': Attribute('smiling', ['-1', '1'], codes % 2),
        'kind': Attribute('kind', ['cat', 'dog'], codes % 2),
        'same': Attribute('same', ['a', 'b'], codes * 0),
    }


class QuestionTest(parameterized.TestCase, tf.test.TestCase):

    @parameterized.parameters(
        ('glasses', {'glasses': [0, 1, 1, 1, 0, 1]}),
        ('glasses=any', {'glasses': [0, 1, 1, 1, 0, 1]}),
        ('glasses=dark', {'glasses-dark': [0, 1, 0, 0, 0, 1]}),
        ('hair', {'hair-long1': [1, 0, 0, 0, 1, 0], 'hair-long2': [0, 1, 0, 0, 0, 1],
                  'hair-short': [0, 0, 1, 1, 0, 0]}),
        ('hair=long*', {'hair-long': [1, 1, 0, 0, 1, 1]}),
        ('hair=short+long2', {'hair-short+long2': [0, 1, 1, 1, 0, 1]}),
        ('smiling', {'smiling': [0, 1, 0, 0, 0, 1]}),
        ('smiling=-1', {'smiling-1': [1, 0, 1, 1, 1, 0]}),
        ('kind', {'kind-dog': [0, 1, 0, 0, 0, 1]}),
        ('all', {'glasses': [0, 1, 1, 1, 0, 1], 'smiling': [0, 1, 0, 0, 0, 1],
                 'kind-dog': [0, 1, 0, 0, 0, 1]}))
    def test_meaning(self, spec, expected):
        found = attributes.find_questions([spec], made_attributes())
        self.assertEqual({question.name: question.targets.astype(int).tolist() for question in found},
                         expected)

    @parameterized.parameters(
        (['glases'], "no attribute 'glases', but glasses, .*did you mean 'glasses'"),
        (['hair=lonk1'], "hair has no value 'lonk1', but long1, long2, short; did you mean 'long1'"),
        (['hair=never'], "hair has no value 'never'"),
        (['hair=any'], 'every image has one'),
        (['hair='], 'expected a value'),
        (['kind', 'all'], 'kind-dog is asked for twice'),
        (['hair=*'], 'all images are alike'),
        (['same=a'], 'all images are alike'))
    def test_mistakes(self, specs, message):
        with self.assertRaisesRegex(UserError, message):
            attributes.find_questions(specs, made_attributes())

    def test_names_fit_files(self):
        codes = np.array([0, 1])
        found = {'Skin / colour': Attribute('Skin / colour', ['#fff', '../x'], codes)}
        questions = attributes.find_questions(['Skin / colour=#fff', 'Skin / colour=../x'], found)
        self.assertEqual([question.name for question in questions], ['Skin-colour-fff', 'Skin-colour-..-x'])


class AttributeTest(tf.test.TestCase):

    def folder(self, names, files=()):
        """A folder of images of 8×8 pixels with these names, and of other files (name, text)."""
        root = self.enterContext(_temporary())
        for index, name in enumerate(names):
            path = pathlib.Path(root, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(np.full([8, 8, 3], index, np.uint8)).save(path)
        for name, text in files:
            pathlib.Path(root, name).write_text(text)
        return root

    def find(self, path, table=None, **kwargs):
        dataset = load_dataset(dataset=path, max_label_size=0 if table else 'auto', **kwargs)
        found = attributes.find_attributes(dataset, dataset.path, table)
        return {name: [attribute.values[code] for code in attribute.codes]
                for name, attribute in found.items()}

    def write(self, name, text):
        path = os.path.join(self.enterContext(_temporary()), name)
        pathlib.Path(path).write_text(text)
        return path

    def test_embedded(self):
        dataset = load_dataset()
        found = attributes.find_attributes(dataset, dataset.path)
        self.assertLen(found, 16)
        self.assertEqual(found['glassesVariant'].counts[''], 3323)
        question, = attributes.find_questions(['glassesVariant'], found)
        with np.load(dataset.path) as file:
            values = file['values/glassesVariant'][file['attr/glassesVariant']]
            self.assertAllEqual(question.targets, values != '')

    def test_csv(self):
        table = self.write('table.csv', 'name,hat,colour\nb/2.png,yes,red\na/1.png,no,\n'
                                        '"c/3.png",yes,"blue, dark"\n')
        expected = {'hat': ['no', 'yes', 'yes'], 'colour': ['', 'red', 'blue, dark']}
        self.assertEqual(self.find(self.folder(['a/1.png', 'b/2.png', 'c/3.png']), table), expected)
        # By names alone, and without extensions.
        self.assertEqual(self.find(self.folder(['x/1.png', 'x/2.png', 'y/3.png']), table), expected)
        root = self.folder(['1.jpg', '2.jpg', '3.jpg'])
        self.assertEqual(self.find(root, table), expected)
        self.assertEqual(self.find(shutil.make_archive(root, 'zip', root), table), expected)
        os.remove(f'{root}.zip')

    def test_celeba(self):
        table = self.write('list_attr_celeba.txt', '3\nMale Smiling \n000001.jpg -1  1\n000002.jpg  1 -1\n'
                                                   '000003.jpg -1 -1\n')
        self.assertEqual(self.find(self.folder(['000001.png', '000003.png']), table),
                         {'Male': ['-1', '-1'], 'Smiling': ['1', '-1']})

    def test_table_mistakes(self):
        root = self.folder(['1.png', '2.png'])
        for name, text, message in (
                ('a.csv', 'file,hat\n1.png,yes\n', 'several, for 1 of 2 images, for example 2.png'),
                ('a.csv', 'file,hat\n1.png,yes\n2.png,no\n2.png,yes\n', 'for example 2.png'),
                ('a.csv', 'file,hat\n1.png,yes\n2.png\n', 'row 3: expected 2 fields'),
                ('a.csv', '1.png,yes\n2.png,no\n', 'expected a first line'),
                ('a.csv', 'file,hat,hat\n1.png,1,1\n', "different names, found 'hat'"),
                ('a.txt', '2\nMale\n1.png 1\n', 'cut off'),
                ('a.txt', 'Male\n1.png 1\n2.png 1\n', 'list of attributes')):
            with self.assertRaisesRegex(UserError, message):
                self.find(root, self.write(name, text))
        # Two images must not share a row.
        with self.assertRaisesRegex(UserError, 'no row, or several'):
            self.find(self.folder(['x/1.png', 'y/1.png']), self.write('a.csv', 'file,hat\n1.png,yes\n'))

    def test_table_without_names(self):
        path = os.path.join(self.enterContext(_temporary()), 'images.npz')
        np.savez(path, images=np.zeros([3, 8, 8], np.uint8))
        table = self.write('a.csv', 'row,hat\n0,yes\n1,no\n2,no\n')
        self.assertEqual(self.find(path, table), {'hat': ['yes', 'no', 'no']})
        with self.assertRaisesRegex(UserError, 'has 2 rows, but data set images has 3 images'):
            self.find(path, self.write('a.csv', 'row,hat\n0,yes\n1,no\n'))

    def test_labels(self):
        root = self.folder(['1.png', '2.png', '3.png'], [('dataset.json', json.dumps(
            {'labels': [['1.png', [1, -1, 0.5]], ['2.png', [-1, -1, 1]], ['3.png', [1, 1, 3]]]}))])
        self.assertEqual(self.find(root), {'0': ['1', '0', '1'], '1': ['0', '0', '1'],
                                           '2': ['0.5', '1', '3']})
        self.assertEqual(self.find(self.folder(['cat/1.png', 'dog/2.png', 'dog/3.png'])),
                         {'cat': ['1', '0', '0'], 'dog': ['0', '1', '1']})

    def test_split(self):
        dataset = load_dataset()
        found = attributes.find_attributes(dataset, dataset.path)
        questions = attributes.find_questions(['hatVariant', 'glassesVariant'], found)
        train, test = attributes.split(dataset, questions, 0.25, seed=1, max_resolution=8)
        self.assertEqual((len(train), len(test), train.shape), (3072, 1024, [3, 8, 8]))
        self.assertEqual(sorted([*train._indices, *test._indices]), list(range(4096)))
        images, labels = test.read(np.arange(5))
        self.assertAllEqual(images, reduce_images(dataset.read(test._indices[:5])[0], 2))
        self.assertAllEqual(labels[:, 1], questions[1].targets[test._indices[:5]])
        self.assertAllEqual(attributes.split(dataset, questions, 0.25, seed=1)[1]._indices, test._indices)
        self.assertNotAllEqual(attributes.split(dataset, questions, 0.25, seed=2)[1]._indices, test._indices)
        with self.assertRaisesRegex(UserError, 'hatVariant: of the 4 images held out all or none say yes'):
            attributes.split(dataset, questions, 0.001, seed=1)


@contextlib.contextmanager
def _temporary():
    import tempfile
    with tempfile.TemporaryDirectory() as path:
        yield path


class LossTest(tf.test.TestCase):

    def test_loss_is_of_the_probabilities_of_linear_separability(self):
        logits = tf.constant([0.3, -2, 5, 0, -100])
        answers = tf.constant([1.0, 1, 0, 0, 0])
        pairs = tf.stack([logits, -logits], axis=1)
        expected = tf.nn.softmax_cross_entropy_with_logits(tf.stack([answers, 1 - answers], axis=1), pairs)
        self.assertAllClose(classifier_loop.classification_loss(logits, answers), expected)
        probabilities = classifiers.probabilities(logits.numpy())
        self.assertAllClose(expected[:4], -np.log([*probabilities[:2, 0], *probabilities[2:4, 1]]), rtol=1e-5)

    def test_accuracies(self):
        result = classifier_loop.accuracies(np.array([3, -0.1, 0.2, -4, -5, 1]),
                                            np.array([1, 1, 1, 0, 0, 0], bool))
        self.assertAllClose(result, dict(accuracy=4 / 6, balanced_accuracy=4 / 6, confident_accuracy=1,
                                         base_rate=0.5, num_test=6))
        result = classifier_loop.accuracies(np.array([-3.0, -1, -2, -4]), np.array([1, 0, 0, 0], bool))
        self.assertAllClose(result, dict(accuracy=0.75, balanced_accuracy=0.5, confident_accuracy=0.5,
                                         base_rate=0.75, num_test=4))


class RunTest(util.RunTest):

    def test_run(self):
        """Two classifiers of images that are told apart by their brightness."""
        root, data = self.folder(), os.path.join(self.folder(), 'lamps.npz')
        rnd = np.random.RandomState(0)
        on = rnd.randint(2, size=200)
        images = rnd.randint(0, 100, [200, 8, 8, 3]) + 100 * on[:, None, None, None]
        images[..., 2] = np.where(np.arange(200) % 3 == 0, 250, 0)[:, None, None]
        np.savez(data, images=images.astype(np.uint8), **{
            'attr/lamp': on.astype(np.uint8), 'values/lamp': np.array(['off', 'on']),
            'attr/tint': (np.arange(200) % 3).astype(np.uint8), 'values/tint': np.array(['blue', 'a', 'b'])})
        status, output = run(f'--dataset={data}', '--attributes=lamp,tint=blue', f'--result-dir={root}',
                             *SMALL[1:4], '--total-kimg=0.8', '--tick-kimg=0.4', '--keep-snapshots=1',
                             '--mirror-augment')
        self.assertEqual(status, 0)
        run_dir = run_dir_of(root)
        self.assertEndsWith(run_dir, '00000-classifiers-lamps')
        results = results_of(run_dir)
        self.assertEqual([result['name'] for result in results], ['lamp', 'tint-blue'])
        self.assertEqual([result['accuracy'] for result in results], [1, 1])
        self.assertEqual([result['num_test'] for result in results], [20, 20])
        self.assertIn('100.00%', output)
        # What was written is what the metric reads, and positive means yes.
        name, files = classifiers.find_classifiers(run_dir)
        self.assertEqual((name, [file.name for file in files]), ('lamps', ['lamp', 'tint-blue']))
        state = legacy.load_pkl(files[0].path)
        self.assertEqual((state.version, state.build_func_name), (3, 'D_basic'))
        loaded = [classifiers.load_classifier(file) for file in files]
        scores = classifiers.logits(loaded, testutil.nchw(images.astype(np.float32) / 127.5 - 1)).numpy()
        self.assertAllEqual(scores > 0, np.stack([on == 1, np.arange(200) % 3 == 0], axis=1))
        self.assertIn('snapshot-01-tint-blue-000000.pkl', os.listdir(run_dir))
        self.assertEqual(util.scalars(run_dir)['tint-blue/accuracy'][800], 1)
        self.assertIn('_finished.txt', os.listdir(run_dir))
        # Such a run is none of train.py's.
        self.assertFalse(has_checkpoint(run_dir))

    def test_stopping_changes_nothing(self):
        roots = [self.folder(), self.folder()]
        flags = ['--attributes=glassesVariant,hatVariant', *SMALL]
        for root, step in zip(roots, (None, 13), strict=True):
            with at_step(step, lambda: RunContext.get().request_stop('test')):
                run(*flags, f'--result-dir={root}')
        whole, stopped = map(run_dir_of, roots)
        self.assertNotIn(classifier_loop.RESULTS_FILE, os.listdir(stopped))
        # Once more in the middle of the second classifier, killed after its checkpoint.
        def kill():
            raise KeyboardInterrupt
        with at_step(7 + 13, kill), self.assertRaises(KeyboardInterrupt):
            run('--resume', f'--result-dir={roots[1]}')
        status, output = run(f'--resume={stopped}')
        self.assertEqual(status, 0)
        self.assertIn('Resuming at classifier 1', output)
        for name in ('00-glassesVariant', '01-hatVariant'):
            paths = [f'{path}/pixelart32-classifier-{name}.pkl' for path in (whole, stopped)]
            self.assertTrue(filecmp.cmp(*paths, shallow=False), name)
        self.assertEqual(*map(results_of, (whole, stopped)))
        self.assertIn('All classifiers of this run are trained', run(f'--resume={whole}')[1])
        self.assertAllClose(*[util.scalars(path)['hatVariant/loss'] for path in (whole, stopped)])
        for flag, message in (('--lrate=0.1', 'lrate is 0.001 in the run, 0.1'),
                              ('--fmap-max=4', 'D_args is'),
                              ('--attributes=hatVariant', 'attribute_specs is')):
            with self.assertRaisesRegex(UserError, f'cannot go on with other settings .{message}'):
                run(f'--resume={stopped}', flag)
        with self.assertRaisesRegex(UserError, 'holds no checkpoint of train_classifiers.py'):
            run(f'--resume={self.folder()}')

    @pytest.mark.slow
    def test_replicas_compute_the_same(self):
        """Two logical CPUs in a process of their own."""
        roots = [self.folder(), self.folder()]
        flags = ['--attributes=glassesVariant', *SMALL]
        run(*flags, f'--result-dir={roots[0]}')
        done = script(*flags, '--num-gpus=2', f'--result-dir={roots[1]}')
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        values = [legacy.load_pkl(classifiers.find_classifiers(run_dir_of(root))[1][0].path).all_variables()
                  for root in roots]
        self.assertEqual(list(values[0]), list(values[1]))
        for name, value in values[0].items():
            self.assertAllClose(value, values[1][name], rtol=1e-2, atol=1e-3, msg=name)

    def test_mistakes(self):
        root = self.folder()
        for flags, message in (
                (['--attributes=glases'], "no attribute 'glases'"),
                ([], '--attributes is required.*there are accessoriesColor'),
                (['--attributes=hatVariant', '--num-gpus=3'], '--minibatch-size must be a multiple|CPU'),
                (['--attributes=hatVariant', '--resolution=12'], 'resolution 12 cannot be made'),
                (['--attributes=hatVariant', '--holdout=0.001'], 'choose another --holdout'),
                (['--attributes=hatVariant', '--labels=nowhere.csv'], 'there is no file nowhere.csv'),
                (['--attributes=hatVariant', '--dataset=/nowhere'], 'no data set at /nowhere'),
                (['--resume'], 'no run directory of train_classifiers.py'),
                (['--resume', '--name=x'], '--resume goes without --name')):
            with self.assertRaisesRegex(UserError, message):
                run(*flags, f'--result-dir={root}')
        self.assertEqual(os.listdir(root), [])

    def test_dry_run(self):
        _, output = run('--attributes=skinColor=#8d5524', '--dry-run', '--fmap-base=64')
        config = json.loads(output)
        self.assertEqual(config['D_args'], {'func_name': 'training.networks_stylegan.D_basic',
                                            'fmap_base': 64, 'fmap_max': 512})
        # The settings of the paper.
        self.assertEqual([config[key] for key in ('lrate', 'minibatch_size', 'total_kimg', 'max_resolution')],
                         [0.001, 8, 150, 256])
        self.assertEqual(config['classifiers'], {'skinColor-8d5524': {
            'attribute': 'skinColor', 'positive': ['#8d5524'], 'yes': 534, 'no': 3562}})
        _, output = run('--list-attributes')
        self.assertIn('glassesColor: (none) 3323, #191919 111', output)


def script(*args: str) -> subprocess.CompletedProcess:
    env = {**os.environ, 'PYTHONPATH': str(testutil.ROOT), 'TF_CPP_MIN_LOG_LEVEL': '2'}
    return subprocess.run([sys.executable, str(testutil.ROOT / 'train_classifiers.py'), *args], env=env,
                          capture_output=True, text=True, timeout=300)


class ScriptTest(parameterized.TestCase):

    @parameterized.parameters(
        (['--attributes=a,,b'], 'expected attributes such as'),
        (['--total-kimg=0'], 'expected a number from 0.001 up'),
        (['--name=a/b'], 'expected letters'),
        (['--atributes=x'], '--attributes'))
    def test_mistakes_in_one_line(self, args, message):
        error = io.StringIO()
        with contextlib.redirect_stderr(error), self.assertRaises(SystemExit) as ended:
            train_classifiers.make_parser().parse_args(args)
        self.assertEqual(ended.exception.code, 2)
        self.assertIn(message, error.getvalue())
        self.assertEqual(error.getvalue().count('\n'), 1)

    def test_help(self):
        done = script('--help')
        self.assertEqual(done.returncode, 0)
        self.assertIn('--list-attributes', done.stdout)
        self.assertIn('--metrics=ls', done.stdout)


if __name__ == '__main__':
    tf.test.main()
