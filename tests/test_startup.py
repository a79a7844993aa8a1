"""dnnlib.startup: TensorFlow is loaded without its chatter, and what matters gets through."""

import os
import subprocess
import sys
import unittest

from dnnlib import startup
from tests import testutil


def run_python(code, **environment):
    env = {key: value for key, value in os.environ.items() if key != 'TF_CPP_MIN_LOG_LEVEL'} | environment
    return subprocess.run([sys.executable, '-c', code], cwd=testutil.ROOT, env=env, capture_output=True,
                          text=True)


class StartupTest(unittest.TestCase):
    def test_nothing_is_printed(self):
        result = run_python('from dnnlib import startup; startup.load_tensorflow()\n'
                            'import tensorflow as tf; print(int(tf.constant(3) + 4))')
        self.assertEqual((result.returncode, result.stdout), (0, '7\n'))
        self.assertEqual(result.stderr, '')

    def test_problems_get_through(self):
        code = ('import os, sys; from dnnlib import startup\n'
                'with startup._without_chatter():\n'
                '    os.write(2, b"I0000 00:00:1795315626.514600 11742 port.cc:153] oneDNN is on\\n")\n'
                '    os.write(2, b"W0000 00:00:1795315626.514600 11742 gpu:7] cannot open libcudnn.so\\n")\n'
                '    print("from Python", file=sys.stderr)\n'
                '    raise KeyError("bug")')
        result = run_python(code)
        self.assertNotIn('oneDNN', result.stderr)
        self.assertRegex(result.stderr, r'^W0000 .* cannot open libcudnn.so\nfrom Python\nTraceback')
        self.assertIn("KeyError: 'bug'", result.stderr)

    def test_what_is_chatter(self):
        cu_init = 'E0000 00:00:1795315628.5677   11742 cuda_platform.cc:52] '
        for line, is_chatter in [
            ('WARNING: All log messages before absl::InitializeLog() is called are written to STDERR', True),
            ('I0000 00:00:1795315626.514980   11742 cudart_stub.cc:31] Could not find cuda drivers', True),
            (cu_init + 'CUDA error: Failed call to cuInit: UNKNOWN ERROR (303)', True),
            (cu_init + 'CUDA error: Failed call to cuInit: CUDA_ERROR_NO_DEVICE: no device', True),
            (cu_init + 'CUDA error: Failed call to cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH', False),
            ('E0000 00:00:1795315628.5677   11742 gpu.cc:52] out of memory', False),
            ('In the end: an ordinary line', False),
        ]:
            self.assertEqual(bool(startup._CHATTER.match(line)), is_chatter, line)
