"""custom_ops.build: the cache's keys, GPU kernels, modes, the command line and --doctor."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import unittest.mock

import tensorflow as tf

import train
from custom_ops import build, cache, doctor
from custom_ops.compiler import Compiler, Nvcc
from dnnlib import flags
from dnnlib.util import UserError
from tests import testutil
from tests.build_testutil import BuildTestCase


class CacheTest(BuildTestCase):

    def plan(self, **changes):
        plan = build.Plan(Compiler(('g++',), 'g++ 1'), None, (), 'hash', '2.0', ('-DA', '-I/here'), ('-lb',))
        return dataclasses.replace(plan, **changes)

    def test_every_ingredient_is_in_the_name(self):
        nvcc = Nvcc(('nvcc',), 'nvcc: release 13.0', (75, 90))
        names = [cache.name_of(self.plan(**changes).ingredients()) for changes in [
            {}, {'compiler': Compiler(('g++',), 'g++ 2')}, {'compiler': Compiler(('g++', '-m32'), 'g++ 1')},
            {'source_hash': 'other'}, {'tf_version': '2.1'}, {'tf_flags': ('-DB', '-I/here')},
            {'tf_link_flags': ('-lc',)}, {'cpu': 'x86-64-v3'}, {'nvcc': nvcc},
            {'nvcc': dataclasses.replace(nvcc, version='nvcc: release 13.1')},
            {'nvcc': dataclasses.replace(nvcc, archs=(75, 90, 100))},
        ]]
        for module, name, value in [
                (build, 'CPP_FLAGS', ('-O2',)), (build.platform, 'machine', lambda: 'arm'),
                (cache, 'cpu_features', lambda: ('avx9',))]:
            with unittest.mock.patch.object(module, name, value):
                names.append(cache.name_of(self.plan().ingredients()))
        self.assertLen(set(names), len(names))
        self.assertEqual(cache.name_of(self.plan(tf_flags=('-DA', '-I/there')).ingredients()), names[0])
        self.assertEqual([name.startswith('cuda-') for name in names[7:12]], [False, True, True, True, False])

    def test_hash_of_sources(self):
        hashes = [cache.hash_sources(str(self.source_dir))]
        for name, text in [('op.cc', 'int two();'), ('op.h', ''), ('op.h', 'int x;'), ('kernel.cu', '')]:
            (self.source_dir / name).write_text(text)
            hashes.append(cache.hash_sources(str(self.source_dir)))
        self.assertLen(set(hashes), 5)
        (self.source_dir / 'op.cc~').write_text('')
        (self.source_dir / '__pycache__').mkdir()
        self.assertEqual(cache.hash_sources(str(self.source_dir)), hashes[-1])
        os.rename(self.source_dir / 'kernel.cu', self.source_dir / 'kernels.cu')
        self.assertNotIn(cache.hash_sources(str(self.source_dir)), hashes)

    def test_cpu_features(self):
        path = self.dir / 'cpuinfo'
        path.write_text('model name\t: X\nflags\t\t: fpu avx2 md_clear fma\n\nflags\t\t: fpu\n')
        self.assertEqual(cache.cpu_features(str(path)), ('avx2', 'fma'))
        path.write_text('Features\t: fp asimd sve\n')
        self.assertEqual(cache.cpu_features(str(path)), ('asimd', 'fp', 'sve'))
        self.assertLen(cache.cpu_features(str(self.dir / 'none')), 1)

    def test_damaged_files_are_built_again(self):
        plan = build.make_plan(Compiler((self.stub(),), 'stub'))
        path = pathlib.Path(build.library_path(plan, str(self.dir)))
        self.assertTrue(self.quiet_build(plan, str(path)))
        self.assertFalse(self.quiet_build(plan, str(path)))
        manifest = path.with_suffix('.json')
        for damage in [lambda: path.write_text('lib'), lambda: path.write_text('libRARY\n'), path.unlink,
                       manifest.unlink, lambda: manifest.write_text('{'), lambda: manifest.write_text('[]')]:
            damage()
            self.assertIsNone(cache.read_manifest(str(path)))
            self.assertTrue(self.quiet_build(plan, str(path)))
            self.assertEqual(path.read_text(), 'library\n')
        self.assertTrue(self.quiet_build(plan, str(path), force=True))

    def test_library_of_another_machine(self):
        self.loads_anything()
        os.environ['CXX'] = self.stub()
        prebuilt = self.dir / 'prebuilt'
        status, stdout, _ = self.run_command(f'--output-dir={prebuilt}')
        self.assertEqual(status, 0)
        self.assertRegex(stdout, rf'^{prebuilt}/cpu-\w+\.so: built in \d+ s; for CPUs\n$')
        self.assertFalse(self.cache_dir.exists())
        os.environ.update(CXX='/nonexistent/g++', STYLEGAN_CUSTOM_OPS_DIR=str(prebuilt))
        self.assertEqual(self.load_library(), ('library\n', ''))

        manifest = next(prebuilt.glob('*.json'))
        good = json.loads(manifest.read_text())
        for key, value, message in [
                ('tensorflow', {'version': '1.15', 'flags': []},
                 f'made for TensorFlow 1.15, this is {tf.__version__}'),
                ('cpu', ['avx9'], 'made for a CPU with avx9'), ('machine', 'Linux arm', 'made for Linux arm'),
                ('sources', 'x', 'made of other sources')]:
            manifest.write_text(json.dumps({**good, 'ingredients': {**good['ingredients'], key: value}}))
            self.fresh_process()
            module, printed = self.load_library()
            self.assertIsNone(module)
            self.assertRegex(printed, '^Warning: STYLEGAN_CUSTOM_OPS_DIR is of no use: no library in '
                                      rf'{prebuilt} fits \({message}\); no custom ops, .*--doctor.*\n$')
        # Made by another compiler, or for less than this CPU: no obstacle.
        changes = {'cpu': list(good['ingredients']['cpu'][:1]), 'compiler': []}
        manifest.write_text(json.dumps({**good, 'ingredients': {**good['ingredients'], **changes}}))
        self.fresh_process()
        self.assertEqual(self.load_library(), ('library\n', ''))

    def test_no_compiler_but_a_library_in_the_cache(self):
        self.loads_anything()
        os.environ['CXX'] = self.stub()
        self.assertEqual(self.run_command()[0], 0)
        os.environ['CXX'] = '/nonexistent/g++'
        self.assertEqual(self.load_library(), ('library\n', ''))


class CudaTest(BuildTestCase):

    def setUp(self):
        super().setUp()
        self.loads_anything()
        (self.source_dir / 'gpu_ops.cc').write_text('')
        (self.source_dir / 'kernels.cu').write_text('')
        os.environ['CXX'] = self.stub()
        os.environ['CUDACXX'] = self.stub(name='stub-nvcc')

    def see_gpus(self, *capabilities):
        self.patch(unittest.mock.patch.object(build, 'gpu_capabilities', lambda: list(capabilities)))

    def test_gpu_kernels_where_there_is_a_gpu(self):
        self.see_gpus(120, 92, 92)
        module, printed = self.load_library()
        self.assertEqual((module, printed.count('\n')), ('library\n', 2))
        self.assertTrue(build.has_gpu_kernels())
        nvcc_call, = (line for line in self.calls_path.read_text().splitlines() if 'kernels.cu -o' in line)
        codes = re.findall(r'-gencode=arch=compute_(\d+),code=(\w+)', nvcc_call)
        self.assertEqual(codes, [('90', 'sm_90'), ('100', 'sm_100'), ('100', 'compute_100')])
        self.assertIn('-DSTYLEGAN_CUDA=1', nvcc_call)
        link = self.calls_path.read_text().splitlines()[-1].split()
        self.assertLess(link.index('-lcudart_static'), link.index('-l:libtensorflow_framework.so.2'))
        self.assertIn('-Wl,--exclude-libs,ALL', link)

    def test_without_a_gpu_only_on_request(self):
        self.see_gpus()
        self.load_library()
        self.assertFalse(build.has_gpu_kernels())
        self.assertNotIn('kernels.cu', self.calls_path.read_text())
        self.assertNotIn('gpu_ops.cc', self.calls_path.read_text())
        status, stdout, _ = self.run_command('--gpu=yes')
        self.assertEqual(status, 0)
        self.assertRegex(stdout, r'/cuda-\w+\.so: built in \d+ s; for GPUs and CPUs\n$')
        for arch in ('75,code=sm_75', '90,code=sm_90', '100,code=sm_100', '100,code=compute_100'):
            self.assertIn(f' -gencode=arch=compute_{arch} ', self.calls_path.read_text())
        self.assertRegex(self.run_command('--gpu=no')[1], r'/cpu-\w+\.so: was there .*; for CPUs\n$')
        self.assertIn('no GPU here', self.run_command()[1])

    def warns_and_has_cpu_kernels(self, *patterns):
        module, printed = self.load_library()
        self.assertEqual(module, 'library\n')
        self.assertFalse(build.has_gpu_kernels())
        warnings = self.warnings(printed)
        self.assertLen(warnings, 1, printed)
        for pattern in ('^Warning: custom ops without GPU kernels, GPUs take the slower', *patterns):
            self.assertRegex(warnings[0], pattern)
        self.assertIsNone(build.unavailable_reason())

    def test_nvcc_fails(self):
        self.see_gpus(90)
        self.stub('echo "error: no host compiler"; exit 1', name='stub-nvcc')
        self.warns_and_has_cpu_kernels('stub-nvcc failed with status 1: error: no host compiler',
                                       'not tried again')
        calls = self.calls()
        self.fresh_process()
        self.warns_and_has_cpu_kernels('no host compiler')
        self.assertEqual(self.calls(), calls)
        status, stdout, stderr = self.run_command()
        self.assertEqual(status, 0)
        self.assertRegex(stderr, '(?m)^Warning: no GPU kernels: stub-nvcc failed')
        self.assertIn('for CPUs', stdout)
        self.assertEqual(self.run_command('--gpu=yes')[0], 1)

    def test_no_nvcc(self):
        self.see_gpus(90)
        os.environ['CUDACXX'] = '/nonexistent/nvcc'
        self.warns_and_has_cpu_kernels('there is no nvcc; .*--doctor')
        self.assertEqual(self.run_command('--gpu=yes')[0], 1)

    def test_old_gpu(self):
        self.see_gpus(70)
        self.warns_and_has_cpu_kernels(r'nvcc 9\.9 does not compile for a GPU as old as this one \(sm_70\)')


    def test_library_of_a_machine_with_other_gpus(self):
        prebuilt = str(self.dir / 'prebuilt')
        self.see_gpus(90)
        self.run_command(f'--output-dir={prebuilt}')
        os.environ.update(CXX='/nonexistent/g++', STYLEGAN_CUSTOM_OPS_DIR=prebuilt)
        for gpu, loads in [(90, True), (92, True), (120, True), (0, True), (89, False), (75, False)]:
            self.see_gpus(gpu)
            self.fresh_process()
            module, printed = self.load_library()
            self.assertEqual(module is not None, loads, gpu)
            if not loads:
                self.assertIn(f'(made without sm_{gpu})', printed)
        self.see_gpus()
        self.fresh_process()
        self.assertEqual(self.load_library(), ('library\n', ''))


class ModeTest(BuildTestCase):

    def test_modes(self):
        self.assertEqual(build.get_mode(), 'auto')
        os.environ['STYLEGAN_CUSTOM_OPS'] = 'ref'
        self.assertEqual(build.get_mode(), 'ref')
        build.set_mode('custom')
        self.assertEqual(build.get_mode(), 'custom')
        with self.assertRaisesRegex(UserError, "mode must be one of auto, custom, ref. Received: 'cuda'"):
            build.set_mode('cuda')
        self.assertEqual(build.get_mode(), 'custom')
        build.set_mode(None)
        os.environ['STYLEGAN_CUSTOM_OPS'] = 'yes'
        with self.assertRaisesRegex(UserError, "STYLEGAN_CUSTOM_OPS must be .*'yes'"):
            build.get_mode()

    def test_ref_never_builds(self):
        self.loads_anything()
        os.environ['CXX'] = self.stub()
        build.set_mode('ref')
        self.assertEqual(self.load_library(), (None, ''))
        self.assertIn("mode 'ref'", build.unavailable_reason())
        self.assertFalse(self.calls_path.exists())
        self.assertFalse(self.cache_dir.exists())
        build.set_mode('auto')
        self.assertEqual(self.load_library()[0], 'library\n')

    def test_flag(self):
        for mode in build.MODES:
            parser = flags.Parser('Test.')
            flags.add_custom_ops_flag(parser)
            self.assertEqual(parser.parse_args([f'--custom-ops={mode}']).custom_ops, mode)
        flags.use_custom_ops(None)
        self.assertEqual(build.get_mode(), 'auto')
        flags.use_custom_ops('ref')
        self.assertEqual(build.get_mode(), 'ref')
        os.environ['CXX'] = '/nonexistent/g++'
        with self.assertRaisesRegex(UserError, 'the custom ops were asked for, but .*CXX=/nonexistent'):
            flags.use_custom_ops('custom')
        build.set_mode(None)
        os.environ['STYLEGAN_CUSTOM_OPS'] = 'maybe'
        with self.assertRaisesRegex(UserError, 'STYLEGAN_CUSTOM_OPS'):
            flags.use_custom_ops(None)

    def test_training_takes_it(self):
        seen = []

        def submit_run(config, name, **kwargs):
            del config, name
            seen.append((build.get_mode(), [key for key in kwargs if 'custom' in key]))
            return unittest.mock.Mock(stop_reason=None, stop_signal=0)

        with unittest.mock.patch.object(train, 'submit_run', submit_run):
            for args in (['--config=demo'], ['--config=demo', '--custom-ops=ref']):
                train.run(train.make_parser().parse_args([*args, f'--result-dir={self.dir}']))
        self.assertEqual(seen, [('auto', []), ('ref', [])])


class CommandLineTest(BuildTestCase):

    def test_exit_statuses(self):
        os.environ['CXX'] = self.stub('exit 3')
        for args, status, pattern in [
                (['--gpu=maybe'], 2, 'error: --gpu: expected one of auto, yes, no'),
                (['--gpu=no'], 1, 'error: stub-g.. failed with status 3')]:
            with contextlib.redirect_stderr(io.StringIO()) as stderr, self.assertRaises(SystemExit) as caught:
                build.main(['build', *args])
            self.assertEqual(caught.exception.code, status, stderr.getvalue())
            self.assertRegex(stderr.getvalue().splitlines()[-1], f'^[^:]+: {pattern}')

    def test_mistake_in_a_process_of_its_own(self):
        """Neither TensorFlow nor Python's runpy has anything to say beside the one line."""
        done = subprocess.run([sys.executable, '-m', 'custom_ops.build', '--output-dir=/dev/null/x'],
                              cwd=self.dir, text=True, capture_output=True,
                              env={**os.environ, 'PYTHONPATH': str(testutil.ROOT)})
        self.assertEqual((done.returncode, done.stderr), (
            2, 'python -m custom_ops.build: error: /dev/null/x: Not a directory\n'))

    def test_doctor(self):
        os.environ['CXX'] = self.stub()
        status, text, _ = self.run_command('--doctor')
        self.assertEqual(status, 0)
        for row in [r'C\+\+ compiler +\S+stub-g\+\+: stub 1\.0', 'nvcc +none',
                    rf'TensorFlow +{tf.__version__}, built', 'GPUs of TensorFlow +none',
                    rf'Cache +{self.cache_dir} \(writable\)', ' +holds +no library',
                    'Library for CPU +not built yet', 'The library is built at first use; `python -m']:
            self.assertRegex(text, f'(?m)^{row}')
        self.assertEqual(self.calls(), 0)

        self.loads_anything()
        self.run_command()
        text = doctor.report()
        self.assertRegex(text, r'(?m)^ +holds +cpu-\w+\.so: .* MB, TensorFlow 2\..*, CPU, built in .* s$')
        self.assertRegex(text, r'(?m)^Library for CPU +cpu-\w+\.so, built$')
        self.assertEndsWith(text, '\nNothing is missing.')

    def test_doctor_gives_advice(self):
        smi = self.dir / 'nvidia-smi'
        smi.write_text('#!/bin/sh\n[ $# = 0 ] && echo "| CUDA Version: 8.0 |" || echo "390.1, GTX"\n')
        smi.chmod(0o755)
        (self.dir / 'file').write_text('')
        os.environ.update(PATH=f'{self.dir}:{os.environ["PATH"]}', CUDA_VISIBLE_DEVICES='-1')
        nvcc = self.stub(name='stub-nvcc')
        device = tf.config.PhysicalDevice('/physical_device:GPU:0', 'GPU')
        failing = self.stub('echo "error: boom"; exit 1')
        self.run_command()
        for environment, gpu, advice in [
                ({'CXX': '/nonexistent/g++'}, None, 'Install a C++ compiler'),
                ({}, None, 'There is a GPU, but TensorFlow sees none: CUDA_VISIBLE_DEVICES=-1 hides it.'),
                ({'STYLEGAN_CACHE_DIR': str(self.dir / 'file')}, None, 'Set STYLEGAN_CACHE_DIR to'),
                ({'STYLEGAN_CUSTOM_OPS': 'ref'}, None, 'STYLEGAN_CUSTOM_OPS=ref switches the custom'),
                ({'STYLEGAN_CUSTOM_OPS': 'x'}, None, 'Unset STYLEGAN_CUSTOM_OPS'),
                ({'STYLEGAN_CUSTOM_OPS_DIR': '/nonexistent'}, None, 'Build into STYLEGAN_CUSTOM_OPS_DIR'),
                ({'CUDACXX': '/bin/false'}, None, 'nvcc does not answer'),
                ({}, (9, 0), 'Install the CUDA toolkit (nvcc)'),
                ({'CUDACXX': nvcc}, (9, 0), 'nvcc 9.9 is too new for the driver (CUDA 8.0)'),
                ({'CUDACXX': nvcc}, (7, 0), 'nvcc 9.9 does not compile for a GPU as old as this one (sm_70)'),
                ({'CXX': failing}, None, 'The last build has failed: see')]:
            details = {'compute_capability': gpu, 'device_name': 'GTX'}
            with unittest.mock.patch.dict(os.environ, environment), \
                    unittest.mock.patch.object(tf.test, 'is_built_with_cuda', lambda: True), \
                    unittest.mock.patch.object(tf.config, 'list_physical_devices',
                                               lambda kind, gpu=gpu: [device] if gpu else []), \
                    unittest.mock.patch.object(tf.config.experimental, 'get_device_details',
                                               lambda _, details=details: details):
                if environment.get('CXX') == failing:
                    self.run_command('--gpu=no')
                text = doctor.report()
            self.assertLen([line for line in text.splitlines() if line.startswith(advice)], 1, text)
            self.assertNotIn('Nothing is missing', text)
            if gpu:
                self.assertRegex(text, rf'(?m)^GPUs of TensorFlow +GTX \(sm_{gpu[0]}{gpu[1]}\)$')
            self.assertRegex(text, r'(?m)^NVIDIA driver +390\.1, GTX$')


class PathsTest(tf.test.TestCase):

    def test_official_import_paths(self):
        import custom_ops
        from dnnlib.tflib.ops import fused_bias_act, upfirdn_2d
        for module in (fused_bias_act, upfirdn_2d):
            for name in module.__all__:
                self.assertIs(getattr(module, name), getattr(custom_ops, name))
        ours = {'filter_noise_bias_act', 'unfiltered_upsample_conv_2d'}  # Not official.
        self.assertEqual({*fused_bias_act.__all__, *upfirdn_2d.__all__}, set(custom_ops.__all__) - ours)

    def test_suite_keeps_to_its_checkout(self):
        # Unless the caller has chosen a place of his own.
        directory = pathlib.Path(os.environ['STYLEGAN_CACHE_DIR'])
        if directory.is_relative_to(testutil.ROOT):
            done = subprocess.run(['git', 'check-ignore', '-q', directory / 'x'], cwd=testutil.ROOT)
            self.assertIn(done.returncode, (0, 128))  # 128: not a checkout.
