"""The CUDA kernels as far as a machine without a GPU can check them: results on the CPU, and compiling."""

import contextlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest.mock

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import kernels

from custom_ops import build
from custom_ops.compiler import compile_library, find_compiler, find_nvcc
from tests.gpu import check_kernels, emulated_ops

ROOT = pathlib.Path(__file__).resolve().parent.parent


class EmulationTest(tf.test.TestCase):
    """The kernels compiled for the CPU against NumPy. What depends on real parallelism is left to a GPU."""

    def test_results(self):
        command = [sys.executable, check_kernels.__file__, '--emulate', '--quick', '--json']
        process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        self.assertEqual(process.returncode, 0, process.stdout + process.stderr)
        result = json.loads(process.stdout)
        self.assertEqual(result['failures'], [])
        self.assertGreater(result['checks'], 500)

    def test_operations(self):
        """Tests of the operations, and training steps, with the GPU kernels in place of those of the CPU."""
        with tempfile.TemporaryDirectory() as directory:
            library = os.path.join(directory, 'emulated.so')
            emulated_ops.build_library(library)
            command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:xdist', '-p', 'tests.gpu.emulated_ops',
                       'tests/test_custom_ops.py',
                       'tests/test_filter_noise_bias_act.py::FilterNoiseBiasActTest',
                       'tests/test_training_replay.py::ReplayTest::test_config_f_with_lazy_regularization']
            process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900,
                                     cwd=ROOT, env={**os.environ, 'EMULATED_OPS': library})
        self.assertEqual(process.returncode, 0, process.stdout[-5000:] + process.stderr[-2000:])
        self.assertGreater(int(re.search(r'(\d+) passed', process.stdout)[1]), 50)

    def test_without_nvcc_it_says_so(self):
        with unittest.mock.patch.object(check_kernels, 'find_nvcc', return_value=None), \
                unittest.mock.patch.object(sys, 'argv', ['check_kernels.py']), \
                contextlib.redirect_stdout(io.StringIO()) as output:
            self.assertEqual(check_kernels.main(), 0)
        self.assertIn('no nvcc', output.getvalue())

    def test_comparison_is_strict(self):
        ones = np.ones(3)
        for dtype in check_kernels.DTYPES:
            rounding, _, arithmetic = check_kernels.PRECISION[dtype]
            check_kernels.compare(ones + [0, rounding, 0], ones, ones, dtype)
            for wrong in (1 + 2 * (rounding + arithmetic), np.nan, np.inf):
                with self.assertRaises(check_kernels.CheckError):
                    check_kernels.compare(np.array([1, 1, wrong]), ones, ones, dtype)

    def test_references_agree_with_tensorflow(self):
        rng = np.random.default_rng(1)
        v = rng.normal(size=100) * 3
        functions = {'linear': tf.identity, 'relu': tf.nn.relu, 'lrelu': lambda x: tf.nn.leaky_relu(x, 0.2),
                     'tanh': tf.tanh, 'sigmoid': tf.sigmoid, 'elu': tf.nn.elu, 'selu': tf.nn.selu,
                     'softplus': tf.nn.softplus, 'swish': lambda x: x * tf.sigmoid(x)}
        for act in check_kernels.ACTS:
            got = check_kernels.activation(v, act, 0.2)
            # TensorFlow's leaky_relu has its slope in float32.
            self.assertAllClose(got, functions[act](v), rtol=1e-7, atol=1e-12)
        x, k = rng.normal(size=[1, 6, 7, 1]), rng.normal(size=[3, 2])
        want = tf.nn.conv2d(x, k[::-1, ::-1, None, None], 1, [[0, 0], [2, 0], [1, 0], [0, 0]])
        got = check_kernels.upfirdn(x, k, (1, 1), (1, 1), (2, 1), (6, 7))
        self.assertAllClose(got, want, rtol=1e-12, atol=1e-12)


class CompileTest(tf.test.TestCase):

    def test_compiles_for_every_gpu_and_loads_without_one(self):
        """The GPU part for every architecture that nvcc knows and PTX: some minutes."""
        nvcc = find_nvcc()
        if nvcc is None:
            print('There is no nvcc here: the CUDA kernels were not compiled.')
            return
        plan = build.make_plan(find_compiler(), nvcc)
        sources = [path for path in plan.sources if path.endswith('.cu') or 'gpu_' in os.path.basename(path)]
        self.assertGreaterEqual(len(sources), 3)
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, 'gpu_ops.so')
            text = compile_library(path, sources, plan.compiler, nvcc, [*plan.flags(), *plan.tf_flags],
                                   [*plan.cuda_flags(), '-Xptxas=-v'], plan.tf_link_flags, directory, 1800)
            tf.load_op_library(path)
        self.check_report(text, nvcc.archs)
        for name, in_host_memory in (('StyleganFusedBiasAct', ['constants']), ('StyleganUpFirDn2D', ['k']),
                                     ('StyleganFusedBiasActSums', ['constants']),
                                     ('StyleganFilterNoiseBiasAct', ['k', 'constants']),
                                     ('StyleganFilterNoiseBiasActGrad', ['k', 'constants'])):
            registered = [kernel for kernel in kernels.get_registered_kernels_for_op(name).kernel
                          if kernel.device_type == 'GPU']
            dtypes = {tf.as_dtype(kernel.constraint[0].allowed_values.list.type[0]) for kernel in registered}
            self.assertEqual(dtypes, {tf.float32, tf.float64, tf.float16, tf.bfloat16})
            for kernel in registered:
                self.assertEqual(list(kernel.host_memory_arg), in_host_memory)

    def check_report(self, text, archs):
        """Every kernel is there for every architecture, and none keeps registers in memory."""
        compiled = re.findall(r"Compiling entry function '(\w+)' for 'sm_(\d+)'", text)
        self.assertEqual({int(arch) for _, arch in compiled}, set(archs))
        for name in ('bias_act_kernel', 'pixels_kernel', 'rows_kernel', 'general_kernel', 'forward_kernel',
                     'grad_kernel', 'sum_kernel'):
            for arch in archs:
                self.assertTrue(any(name in function and int(at) == arch for function, at in compiled),
                                (name, arch))
        spills = [int(size) for size in re.findall(r'(\d+) bytes spill stores', text)]
        self.assertGreaterEqual(len(spills), len(compiled))
        self.assertEqual(max(spills), 0, [block for block in text.split('Compiling entry function')
                                          if re.search(r'[1-9]\d* bytes spill', block)][:5])


if __name__ == '__main__':
    tf.test.main()
