"""dnnlib.flags: values, spellings of flags, commands, --help, one-line errors and exit statuses."""

import contextlib
import errno
import io
import os
import signal
import subprocess
import sys
import tempfile
import textwrap

import tensorflow as tf
from absl.testing import parameterized

from dnnlib import UserError, flags
from tests import testutil

SCRIPT = textwrap.dedent('''
    import json, os, sys, time
    import dnnlib
    from dnnlib import flags

    def make_parser():
        parser = flags.Parser('Trains.', examples=['%(prog)s --dataset=ffhq --num-gpus=4'])
        parser.add_flag('dataset', help='Data set', required=True)
        parser.add_flag('num-gpus', flags.positive_int, 'Number of GPUs', default=1)
        parser.add_flag('mirror-augment', bool, 'Flip 50% of the images', default=False)
        parser.add_flag('do', help='What to do')
        return parser

    def work(args):
        if args.do == 'user':
            raise dnnlib.UserError('first line\\n    second line')
        if args.do == 'missing':
            open('/no/such/file')
        if args.do == 'full':
            raise OSError(28, 'No space left on device')
        if args.do == 'bug':
            raise KeyError('a bug')
        if args.do == 'interrupt':
            raise KeyboardInterrupt
        if args.do == 'wait':
            print('waiting', flush=True)
            time.sleep(60)
        if args.do == 'status':
            return 5
        if args.do == 'true':
            return True
        if args.do == 'long':
            for i in range(100000):
                print(i)
        print(json.dumps([args.dataset, args.num_gpus, args.mirror_augment]))

    def main():
        flags.run(work, make_parser)

    if __name__ == '__main__':
        main()
''')


def make_parser():
    parser = flags.Parser('Does things.', prog='train.py')
    parser.add_flag('dataset')
    parser.add_flag('num-gpus', flags.positive_int, default=1)
    parser.add_flag('mirror-augment', bool, default=False)
    parser.add_flag('gamma', float)
    parser.add_flag('seeds', flags.number_list, default='0-2')
    parser.add_flag('config', choices=['config-a', 'config-f'], default='config-f')
    parser.add_flag('truncation_psi', flags.number(0, 1), dest='psi', default=0.5)
    return parser


def make_command_parser():
    parser = flags.Parser('Does things.', prog='gen.py')
    command = parser.add_command('generate-images', lambda **kwargs: ('images', kwargs), 'Generates images.')
    command.add_flag('network', required=True, dest='network_pkl')
    command.add_flag('shuffle', bool, default=False)
    command = parser.add_command('style-mixing', lambda **kwargs: ('mixing', kwargs), 'Mixes styles.')
    command.add_flag('row-seeds', flags.number_list)
    command.add_argument('folder')
    return parser


class FlagsTestCase(parameterized.TestCase, tf.test.TestCase):
    def fails(self, parser, args):
        """The one line on stderr of a wrong command line."""
        stderr = io.StringIO()
        with contextlib.redirect_stderr(stderr), self.assertRaises(SystemExit) as caught:
            parser.parse_args(args)
        self.assertEqual(caught.exception.code, 2)
        line, end = stderr.getvalue()[:-1], stderr.getvalue()[-1:]
        self.assertEqual(end, '\n')
        self.assertNotIn('\n', line)
        self.assertStartsWith(line, f'{parser.prog}')
        self.assertIn(': error: ', line)
        return line

    def help(self, parser, args, columns):
        stdout = io.StringIO()
        environ = {**os.environ, 'COLUMNS': str(columns)}
        with contextlib.redirect_stdout(stdout), self.assertRaises(SystemExit) as caught, \
                tf.compat.v1.test.mock.patch.dict(os.environ, environ):
            parser.parse_args(args)
        self.assertFalse(caught.exception.code)
        return stdout.getvalue()


class ValuesTest(parameterized.TestCase, tf.test.TestCase):
    @parameterized.parameters(
        ('3', [3]), ('1,3-5', [1, 3, 4, 5]), ('3-5', [3, 4, 5]), ('5,1', [5, 1]), (' 1 , 2 - 3 ', [1, 2, 3]),
        ('4-4', [4]), ('1,1', [1, 1]), ('007', [7]), ([1, 2], [1, 2]), ((), []),
    )
    def test_number_list(self, text, expected):
        self.assertEqual(flags.number_list(text), expected)

    @parameterized.parameters(
        '', ' ', '5-3', 'x', '1,', ',1', '1-', '-1', '1--3', '1-2-3', '1.5', '1;2', '0-99999999999')
    def test_number_list_errors(self, text):
        with self.assertRaisesRegex(UserError, 'expected .*received'):
            flags.number_list(text)

    def test_boolean(self):
        for text in ('true', 'TRUE', 'True', '1', 'yes', 't', 'y', 'on'):
            self.assertIs(flags.boolean(text), True)
        for text in ('false', 'FALSE', '0', 'no', 'f', 'n', 'off'):
            self.assertIs(flags.boolean(text), False)
        for text in ('', 'maybe', '2', 'none'):
            with self.assertRaisesRegex(UserError, 'expected true or false, received'):
                flags.boolean(text)

    def test_numbers(self):
        self.assertEqual(flags.integer()('-3'), -3)
        self.assertEqual(flags.positive_int('1'), 1)
        self.assertEqual(flags.nonneg_int('0'), 0)
        self.assertEqual(flags.nonneg_float('1e-3'), 1e-3)
        for convert, text, message in (
            (flags.positive_int, '0', "expected an integer from 1 up, received '0'"),
            (flags.positive_int, 'x', "expected an integer from 1 up, received 'x'"),
            (flags.positive_int, '1.5', "expected an integer from 1 up, received '1.5'"),
            (flags.integer(2, 5), '6', "expected an integer from 2 to 5, received '6'"),
            (flags.integer(maximum=5), '6', "expected an integer up to 5, received '6'"),
            (flags.integer(), '1_0', "expected an integer, received '1_0'"),
            (flags.nonneg_float, '-0.1', "expected a number from 0 up, received '-0.1'"),
            (flags.number(), 'nan', "expected a number, received 'nan'"),
            (flags.number(), 'inf', "expected a number, received 'inf'"),
            (flags.number(), '', "expected a number, received ''"),
        ):
            with self.assertRaises(UserError) as caught:
                convert(text)
            self.assertEqual(str(caught.exception), message)


class ParserTest(FlagsTestCase):
    @parameterized.parameters(
        ('--num-gpus=8', 'num_gpus', 8), ('--num_gpus=8', 'num_gpus', 8), ('--num-gpus 8', 'num_gpus', 8),
        ('--num_gpus 8', 'num_gpus', 8), ('--num-gpus=2 --num_gpus=3', 'num_gpus', 3),
        ('--mirror-augment', 'mirror_augment', True), ('--mirror_augment', 'mirror_augment', True),
        ('--mirror-augment true', 'mirror_augment', True), ('--mirror_augment=TRUE', 'mirror_augment', True),
        ('--mirror-augment=1', 'mirror_augment', True), ('--mirror-augment no', 'mirror_augment', False),
        ('--mirror-augment False', 'mirror_augment', False),
        ('--mirror-augment --no-mirror-augment', 'mirror_augment', False),
        ('--mirror-augment --nomirror_augment', 'mirror_augment', False),
        ('--mirror-augment --dataset=x', 'mirror_augment', True),
        ('--gamma=-1e-3', 'gamma', -1e-3), ('--gamma -1e-3', 'gamma', -1e-3), ('--gamma -.5', 'gamma', -0.5),
        ('--seeds 5,7-8', 'seeds', [5, 7, 8]), ('', 'seeds', [0, 1, 2]), ('', 'gamma', None),
        ('', 'psi', 0.5),
        ('--truncation-psi=1', 'psi', 1.0), ('--dataset=a_b-c=d', 'dataset', 'a_b-c=d'),
        ('--dataset=--x_y', 'dataset', '--x_y'),
    )
    def test_spellings(self, line, name, expected):
        self.assertEqual(getattr(make_parser().parse_args(line.split()), name), expected)

    @parameterized.parameters(
        ('--num-gpus=x', "--num-gpus: expected an integer from 1 up, received 'x'"),
        ('--num_gpus=0', "--num-gpus: expected an integer from 1 up, received '0'"),
        ('--num-gpus', '--num-gpus: expected a value'),
        ('--num-gpsu=3', 'unknown flag --num-gpsu; did you mean --num-gpus?'),
        ('--num-gpsu 3', 'unknown flag --num-gpsu; did you mean --num-gpus?'),
        ('--num=3', 'unknown flag --num; did you mean --num-gpus?'),  # No abbreviations.
        ('-num-gpus=3', 'unknown flag -num-gpus; did you mean --num-gpus?'),
        ('--xyzzy', 'unknown flag --xyzzy (see'),
        ('stray', "'stray'"),
        ('--mirror-augment maybe', "--mirror-augment: expected true or false, received 'maybe'"),
        ('--mirror-augment=', "--mirror-augment: expected true or false, received ''"),
        ('--no-mirror-augment=1', '--no-mirror-augment: expected no value'),
        ('--no-num-gpus', 'unknown flag --no-num-gpus'),
        ('--seeds=5-3', "--seeds: expected a range from the smaller to the larger number, '3-5', received"),
        ('--config=config-g', "--config: expected one of config-a, config-f; received 'config-g'"),
        ('--truncation-psi=2', "--truncation-psi: expected a number from 0 to 1, received '2'"),
        ('--verbosity=x', '--verbosity'),  # One of absl's.
        ('--flagfile=/no/such/file', '/no/such/file'),
    )
    def test_errors(self, line, message):
        self.assertIn(message, self.fails(make_parser(), line.split()))

    def test_error_ends_with_advice(self):
        self.assertEndsWith(self.fails(make_parser(), ['--num-gpus=x']), '(see train.py --help)')

    def test_required(self):
        parser = make_parser()
        parser.add_flag('result-dir', required=True)
        self.assertIn('--result-dir is required', self.fails(parser, []))
        # The misspelled flag, not the one that is missing because of it.
        line = self.fails(parser, ['--resultdir=x'])
        self.assertIn('unknown flag --resultdir; did you mean --result-dir?', line)
        self.assertEqual(parser.parse_args(['--result_dir=x']).result_dir, 'x')

    def test_absl_flags(self):
        args = make_parser().parse_args(['--verbosity=-1', '--num-gpus=2', '--undefok=new', '--new=3'])
        self.assertEqual(args.num_gpus, 2)
        with tempfile.NamedTemporaryFile('w', suffix='.txt') as file:
            file.write('--num_gpus=3\n--mirror-augment\n')
            file.flush()
            args = make_parser().parse_args([f'--flagfile={file.name}'])
        self.assertEqual((args.num_gpus, args.mirror_augment), (3, True))

    def test_help(self):
        parser = flags.Parser('A description of many words, ' * 8, ['%(prog)s  --rate=50%'], prog='t.py')
        parser.add_flag('num-gpus', flags.positive_int, 'Number of GPUs', default=1)
        parser.add_flag('rate', float, 'Uses 50% of ' + 'all the many images ' * 8, required=True)
        parser.add_flag('mirror', bool, 'Flip', default=False)
        parser.add_flag('gamma', float, 'Weight of R1')
        parser.add_flag('config', help='Which', choices=['a', 'f'], default='f')
        parser.add_flag('names', str, ', '.join(['config-e-Gskip-Dresnet'] * 20))
        for columns in (50, 80, 160):
            text = self.help(parser, ['--help'], columns)
            self.assertLessEqual(max(map(len, text.split('\n'))), columns)
            flat = ' '.join(text.split())
            self.assertStartsWith(flat, 'usage: t.py [flags] A description of many words,')
            self.assertIn('--num-gpus INT Number of GPUs (default: 1)', flat)
            self.assertIn('Uses 50% of all the many images', flat)
            self.assertIn('(required)', flat)
            self.assertIn('--mirror [BOOL] Flip (default: false)', flat)
            self.assertIn('--gamma NUMBER Weight of R1 --config {a,f} Which (default: f)', flat)
            self.assertIn('\nexamples:\n  t.py  --rate=50%\n', text)
            self.assertNotIn('verbosity', text)
            self.assertEqual(text.count('config-e-Gskip-Dresnet'), 20)      # No name is broken at a hyphen.
        self.assertIn('verbosity', self.help(parser, ['--helpfull'], 80))


class CommandsTest(FlagsTestCase):
    @parameterized.parameters('generate-images', 'generate_images')
    def test_names(self, name):
        args = make_command_parser().parse_args([name, '--network=a.pkl'])
        self.assertEqual(args.command, 'generate-images')
        self.assertEqual(flags.run_command(args), ('images', {'network_pkl': 'a.pkl', 'shuffle': False}))

    def test_boolean_before_an_argument(self):
        args = make_command_parser().parse_args(['style_mixing', '--row_seeds', '1-2', 'folder'])
        self.assertEqual(flags.run_command(args), ('mixing', {'row_seeds': [1, 2], 'folder': 'folder'}))

    @parameterized.parameters(
        ([], 'expected a command: generate-images, style-mixing (see gen.py --help)'),
        (['generate-image'], "unknown command 'generate-image'; did you mean 'generate-images'?"),
        (['xyzzy'], "unknown command 'xyzzy'; expected generate-images, style-mixing"),
        (['generate-images'], 'gen.py generate-images: error: --network is required'),
        (['generate-images', '--netwrok=x'], 'unknown flag --netwrok; did you mean --network?'),
        (['generate-images', '--netwrok=x'], '(see gen.py generate-images --help)'),
        (['generate-images', '--shuffle=5'], '--shuffle: expected true or false'),
        (['style-mixing'], 'folder'),
    )
    def test_errors(self, args, message):
        self.assertIn(message, self.fails(make_command_parser(), args))

    def test_help(self):
        text = self.help(make_command_parser(), ['--help'], 80)
        self.assertIn('usage: gen.py <command> [flags]', text)
        self.assertRegex(text, r'generate-images +Generates images\.')
        self.assertNotIn('generate_images', text)
        text = self.help(make_command_parser(), ['style_mixing', '--help'], 80)
        self.assertIn('usage: gen.py style-mixing folder [flags]', text)
        self.assertIn('--row-seeds LIST', text)


class RunTest(parameterized.TestCase, tf.test.TestCase):
    def setUp(self):
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.script = os.path.join(folder.name, 'train.py')
        with open(self.script, 'w') as file:
            file.write(SCRIPT)
        self.env = {**os.environ, 'PYTHONPATH': str(testutil.ROOT)}

    def run_script(self, *args):
        return subprocess.run(
            [sys.executable, self.script, *args], env=self.env, capture_output=True, text=True, timeout=60)

    def start_script(self, *args):
        return subprocess.Popen([sys.executable, self.script, *args], env=self.env, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def test_runs(self):
        done = self.run_script('--dataset=x', '--num_gpus', '4', '--mirror-augment', 'true')
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, '["x", 4, true]\n', ''))

    @parameterized.parameters(
        (['--dataset=x', '--num-gpus=x'], 2,
         "train.py: error: --num-gpus: expected an integer from 1 up, received 'x' (see train.py --help)\n"),
        ([], 2, 'train.py: error: --dataset is required, but was not given (see train.py --help)\n'),
        (['--dataset=x', '--do=user'], 2, 'train.py: error: first line second line\n'),
        (['--dataset=x', '--do=missing'], 2, 'train.py: error: /no/such/file: No such file or directory\n'),
        (['--dataset=x', '--do=full'], 2, f'train.py: error: {os.strerror(errno.ENOSPC)}\n'),
        (['--dataset=x', '--do=interrupt'], 130, 'train.py: interrupted\n'),
        (['--dataset=x', '--do=status'], 5, ''),
        (['--dataset=x', '--do=true'], 0, ''),
    )
    def test_exit_status(self, args, status, stderr):
        done = self.run_script(*args)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (status, '', stderr))

    def test_bug_keeps_its_traceback(self):
        done = self.run_script('--dataset=x', '--do=bug')
        self.assertEqual(done.returncode, 1)
        self.assertIn('Traceback', done.stderr)
        self.assertIn("KeyError: 'a bug'", done.stderr)

    def test_help(self):
        done = self.run_script('--help')
        self.assertEqual((done.returncode, done.stderr), (0, ''))
        self.assertIn('Flip 50% of the images', done.stdout)
        self.assertIn('train.py --dataset=ffhq --num-gpus=4', done.stdout)

    def test_console_entry_point(self):
        code = "import sys; sys.argv[0] = '/usr/bin/stylegan-train'; import train; sys.exit(train.main())"
        paths = [os.path.dirname(self.script), self.env['PYTHONPATH']]
        env = {**self.env, 'PYTHONPATH': os.pathsep.join(paths)}
        for args, status, text in ((['--dataset=x'], 0, '["x", 1, false]\n'),
                                   ([], 2, 'stylegan-train: error: --dataset is required')):
            command = [sys.executable, '-c', code, *args]
            # Not from the checkout, which has a train.py of its own.
            done = subprocess.run(command, env=env, cwd=os.path.dirname(self.script), capture_output=True,
                                  text=True)
            self.assertEqual(done.returncode, status)
            self.assertStartsWith(done.stdout + done.stderr, text)

    def test_ctrl_c(self):
        with self.start_script('--dataset=x', '--do=wait') as process:
            self.assertEqual(process.stdout.readline(), 'waiting\n')
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=30)
        self.assertEqual((process.returncode, stderr), (130, 'train.py: interrupted\n'))

    def test_closed_pipe(self):
        with self.start_script('--dataset=x', '--do=long') as process:
            process.stdout.readline()
            process.stdout.close()
            stderr = process.stderr.read()
            process.wait(timeout=30)
        self.assertEqual((process.returncode, stderr), (141, ''))
