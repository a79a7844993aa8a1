"""custom_ops.build: one build for all processes, and every way in which compilers and caches fail."""

import contextlib
import ctypes
import dataclasses
import io
import os
import pathlib
import re
import signal
import subprocess
import tempfile
import time
import unittest.mock

from custom_ops import build, cache, compiler
from custom_ops.compiler import BuildError, Compiler
from dnnlib.file_lock import file_lock
from dnnlib.util import UserError
from tests.build_testutil import BuildTestCase, is_running, wait_for

SOURCE = '''
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
REGISTER_OP("StyleganBuildTest").Input("x: float").Output("y: float");
class BuildTestOp : public tensorflow::OpKernel {
 public:
  explicit BuildTestOp(tensorflow::OpKernelConstruction* context) : OpKernel(context) {}
  void Compute(tensorflow::OpKernelContext* context) override { context->set_output(0, context->input(0)); }
};
REGISTER_KERNEL_BUILDER(Name("StyleganBuildTest").Device(tensorflow::DEVICE_CPU), BuildTestOp);
'''


class RealCompilerTest(BuildTestCase):

    def test_garbage_in_the_cache_is_replaced_by_a_library_that_works(self):
        (self.source_dir / 'op.cc').write_text(SOURCE)
        (self.source_dir / 'gpu_op.cc').write_text('#error is for nvcc only\n')
        plan = build.make_plan(compiler.find_compiler())
        path = build.library_path(plan, str(self.cache_dir))
        self.cache_dir.mkdir(parents=True)
        garbage = self.dir / 'garbage'
        garbage.write_bytes(b'no library')
        cache.publish(str(garbage), path, {'ingredients': plan.ingredients()})
        module, printed = self.load_library()
        self.assertAllEqual(module.stylegan_build_test(x=[1., 2.]), [1., 2.])
        self.assertRegex(printed, r'^Building the custom ops \(once, about a minute\)\.\.\.\n'
                                  rf'Custom ops built in \d+ s: {re.escape(path)}\n$')
        self.assertFalse(build.has_gpu_kernels())
        self.assertIsNone(build.unavailable_reason())
        self.assertIs(build.require_library(), module)
        left = {name.rpartition('.')[2] for name in os.listdir(self.cache_dir)}
        self.assertEqual(left, {'so', 'json', 'log', 'lock'})

    def test_cuda_code_loads_where_there_is_no_gpu(self):
        os.environ.pop('CUDACXX')
        nvcc = compiler.find_nvcc()
        if nvcc is None:
            self.skipTest('there is no nvcc')
        self.assertGreater(len(nvcc.archs), 2)
        (self.source_dir / 'op.cc').write_text(
            '#if !STYLEGAN_CUDA\n#error\n#endif\n'
            'extern "C" int gpus();\nextern "C" int call_gpus() { return gpus(); }\n')
        (self.source_dir / 'kernel.cu').write_text(
            '__global__ void add(float* x) { x[threadIdx.x] += 1; }\n'
            'extern "C" int gpus() { int n = 0; add<<<1, 1>>>(0); cudaGetDeviceCount(&n); return n; }\n')
        plan = build.make_plan(compiler.find_compiler(), dataclasses.replace(nvcc, archs=nvcc.archs[-1:]))
        path = str(self.dir / 'library.so')
        self.quiet_build(plan, path)
        self.assertEqual(ctypes.CDLL(path).call_gpus(), 0)
        needed = subprocess.run(['ldd', path], capture_output=True, text=True).stdout
        self.assertNotIn('cudart', needed)
        symbols = subprocess.run(['nm', '-D', '--defined-only', path], capture_output=True, text=True).stdout
        self.assertIn('call_gpus', symbols)
        self.assertNotIn('cudaGetDeviceCount', symbols)  # TensorFlow's library has stubs of these names.


class ProcessesTest(BuildTestCase):

    def test_several_processes_build_once(self):
        stub = self.stub('sleep 1')
        self.cache_dir.mkdir(parents=True)
        children = [self.child(stub) for _ in range(4)]
        results = [child.communicate() for child in children]
        self.assertEqual(sorted(stdout for stdout, _ in results), ['False\n'] * 3 + ['True\n'], results)
        self.assertEqual(self.calls(), 2)  # One source, one link.
        self.assertEqual(sum('Building' in stderr for _, stderr in results), 1)
        self.assertLen(cache.libraries(str(self.cache_dir)), 1)

    def test_a_process_that_dies_leaves_nothing_behind_that_hinders(self):
        started = self.dir / 'started'
        self.cache_dir.mkdir(parents=True)
        child = self.child(self.stub(f'[ -e {started} ] || {{ echo $$ > {started}; exec sleep 60; }}'))
        self.assertTrue(wait_for(lambda: started.exists() and started.read_text()))
        second = self.child(str(self.dir / 'stub-g++'))
        child.kill()
        child.communicate()
        os.kill(int(started.read_text()), signal.SIGKILL)  # Nobody else can: its parent had no time.
        self.assertEqual(second.communicate()[0], 'True\n')
        leftovers = [path for path in self.cache_dir.iterdir() if path.name.startswith(cache.WORK_PREFIX)]
        self.assertLen(leftovers, 1)
        os.utime(leftovers[0], (0, 0))
        cache.remove_leftovers(str(self.cache_dir))
        self.assertFalse(leftovers[0].exists())

    def test_interrupted(self):
        started = self.dir / 'started'
        self.cache_dir.mkdir(parents=True)
        child = self.child(self.stub(f'echo $$ > {started}; sleep 60'))
        self.assertTrue(wait_for(lambda: started.exists() and started.read_text()))
        child.send_signal(signal.SIGINT)
        self.assertIn('KeyboardInterrupt', child.communicate(timeout=20)[1])
        self.assertFalse(is_running(int(started.read_text())))
        self.assertEqual([path.suffix for path in self.cache_dir.iterdir()], ['.lock'])

    def test_waiting_has_an_end(self):
        self.cache_dir.mkdir(parents=True)
        path = str(self.cache_dir / 'x.so')
        with file_lock(str(self.cache_dir / 'x.lock')), contextlib.redirect_stderr(io.StringIO()) as stderr:
            with unittest.mock.patch.object(build, 'LOCK_MARGIN', -0.8):
                with self.assertRaisesRegex(BuildError, 'another process has been building for 0 s'):
                    build.build(None, path, time_limit=1)
        self.assertEqual(stderr.getvalue(), 'Waiting for another process that builds the custom ops...\n')


class FailuresTest(BuildTestCase):

    def one_warning(self, *patterns):
        """load_library gives None with one warning that matches, the second time without."""
        module, printed = self.load_library()
        self.assertIsNone(module)
        warnings = self.warnings(printed)
        self.assertLen(warnings, 1, printed)
        self.assertStartsWith(warnings[0], 'Warning: no custom ops, the reference path takes their place')
        for pattern in patterns:
            self.assertRegex(warnings[0], pattern)
        self.assertEqual(self.load_library(), (None, ''))
        self.assertIn(build.unavailable_reason(), warnings[0])
        with self.assertRaisesRegex(UserError, patterns[0]):
            build.require_library()
        return warnings[0]

    def test_no_compiler(self):
        os.environ['CXX'] = '/nonexistent/g++'
        self.one_warning('CXX=/nonexistent/g\\+\\+ is not there', '--doctor')
        os.environ.pop('CXX')
        with unittest.mock.patch.dict(os.environ, PATH=str(self.dir)):
            self.fresh_process()
            self.one_warning('there is no C\\+\\+ compiler', '--doctor')

    def test_compiler_that_does_not_answer(self):
        path = self.dir / 'g++'
        path.write_text('#!/bin/sh\nsleep 60\n')
        path.chmod(0o755)
        os.environ['CXX'] = str(path)
        with unittest.mock.patch.object(compiler, 'QUERY_LIMIT', 0.3):
            self.one_warning(r'g\+\+ was not ready after 0 s')

    def test_failure_is_explained_and_remembered(self):
        os.environ['CXX'] = self.stub('echo "note: hm"; echo "op.cc:3: error: boom"; exit 4')
        warning = self.one_warning(r'stub-g\+\+ failed with status 4: op\.cc:3: error: boom',
                                   'not tried again', re.escape(build.RETRY))
        log = pathlib.Path(re.search(r'log: (\S+\.log)', warning)[1])
        self.assertEqual(log.parent, self.cache_dir)
        self.assertIn('note: hm', log.read_text())
        self.assertIn(str(self.source_dir / 'op.cc'), log.read_text())
        self.assertEqual(self.calls(), 1)

        self.fresh_process()
        self.one_warning(r'error: boom \(\d{4}-.*not tried again until')
        self.assertEqual(self.calls(), 1)
        status, _, stderr = self.run_command()
        self.assertEqual((status, self.calls()), (1, 2))
        self.assertIn('\nop.cc:3: error: boom\n', stderr)

        (self.source_dir / 'op.cc').write_text('int two() { return 2; }\n')
        self.fresh_process()
        self.one_warning('error: boom')
        self.assertEqual(self.calls(), 3)

        self.loads_anything()
        self.stub()  # The compiler has been mended; it calls itself the same.
        self.fresh_process()
        self.assertIsNone(self.load_library()[0])
        self.assertEqual(self.run_command()[0], 0)
        self.fresh_process()
        self.assertEqual(self.load_library(), ('library\n', ''))

    def test_hanging_compiler_is_killed_with_its_children(self):
        pids = self.dir / 'pids'
        os.environ['CXX'] = self.stub(f'sleep 60 & echo $$ $! > {pids}; wait')
        with unittest.mock.patch.object(build, 'TIME_LIMIT', 0.5):
            start = time.monotonic()
            self.one_warning(r'stub-g\+\+ was not ready after 0 s', 'not tried again')
        self.assertLess(time.monotonic() - start, 10)
        for pid in map(int, pids.read_text().split()):
            self.assertTrue(wait_for(lambda pid=pid: not is_running(pid), 5), pid)

    def test_one_failure_stops_the_others(self):
        pids = self.dir / 'pids'
        (self.source_dir / 'slow.cc').write_text('\n' * 100)
        stub = self.stub(f'case "$*" in *slow.cc*) echo $$ > {pids}; sleep 60 ;; '
                         f'*) while [ ! -s {pids} ]; do sleep 0.05; done; exit 1 ;; esac')
        plan = build.make_plan(Compiler((stub,), 'stub'))
        with unittest.mock.patch.object(compiler, 'cpu_count', lambda: 2):
            with self.assertRaisesRegex(BuildError, 'failed with status 1: it printed nothing'):
                self.quiet_build(plan, str(self.dir / 'x.so'))
        self.assertFalse(is_running(int(pids.read_text())))

    def test_library_that_does_not_load(self):
        os.environ['CXX'] = self.stub()
        self.one_warning('does not load: .*not tried again')
        self.assertEmpty(list(self.cache_dir.glob('*.so')))
        calls = self.calls()
        self.fresh_process()
        self.one_warning('does not load')
        self.assertEqual(self.calls(), calls)

    def test_compiler_that_writes_nothing(self):
        os.environ['CXX'] = self.stub('exit 0')
        self.one_warning(r'stub-g\+\+ wrote no library')

    def test_full_disk_is_not_remembered(self):
        os.environ['CXX'] = self.stub('echo "error: No space left on device"; exit 1')
        self.assertNotIn('not tried again', self.one_warning('No space left'))
        self.fresh_process()
        self.one_warning('No space left')
        self.assertEqual(self.calls(), 2)

    def test_no_sources(self):
        (self.source_dir / 'op.cc').unlink()
        os.environ['CXX'] = self.stub()
        self.one_warning('holds no sources; install the package again')

    def test_cache_that_cannot_be_written(self):
        self.loads_anything()
        (self.dir / 'file').write_text('')
        os.environ.update(CXX=self.stub(), STYLEGAN_CACHE_DIR=str(self.dir / 'file'), TMPDIR=str(self.dir))
        with unittest.mock.patch.object(tempfile, 'tempdir', None):
            module, printed = self.load_library()
        self.assertEqual(module, 'library\n')
        self.assertRegex(printed, f'(?m)^Warning: custom ops cannot be kept in {self.dir}/file/custom_ops '
                                  r'\(Not a directory\): .*STYLEGAN_CACHE_DIR.*$')
        self.assertEqual(printed.count('\n'), 3)
        self.assertEqual(self.load_library(), ('library\n', ''))
        self.assertEmpty(list(self.dir.glob('stylegan-custom-ops-*')))

    def test_directory_of_another_user(self):
        shared = self.dir / 'tmp'
        shared.mkdir()
        shared.chmod(0o1777)
        (shared / 'dnnlib').mkdir()
        cache.prepare(str(shared / 'dnnlib' / 'ops'))
        if os.getuid() == 0:
            os.chown(shared / 'dnnlib', 12345, -1)
        else:
            self.patch(unittest.mock.patch.object(os, 'getuid', lambda: 12345))
        with self.assertRaisesRegex(PermissionError, 'another user'):
            cache.prepare(str(shared / 'dnnlib' / 'ops'))
        shared.chmod(0o755)
        cache.prepare(str(shared / 'dnnlib' / 'ops'))
