"""For the tests of custom_ops.build: stub compilers, a cache of one's own, other processes."""

import contextlib
import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import unittest.mock

import tensorflow as tf

from custom_ops import build
from tests import testutil

# A compiler that notes how it is called and writes something as the result.
STUB = '''#!/bin/sh
echo "$@" >> {calls}
case "$1" in
  --version) echo "stub 1.0, release 9.9"; exit 0 ;;
  --list-gpu-arch) echo compute_75; echo compute_100; echo compute_90; exit 0 ;;
  --list-gpu-code) echo sm_75; echo sm_100; echo sm_90; exit 0 ;;
esac
{body}
while [ $# -gt 1 ]; do [ "$1" = -o ] && echo library > "$2"; shift; done
'''

# In another process, without TensorFlow, which takes seconds to load.
CHILD = '''
import sys, types
package = types.ModuleType('custom_ops')
package.__path__ = ['custom_ops']
sys.modules['custom_ops'] = package
from custom_ops import build
from custom_ops.compiler import Compiler
plan = build.Plan(Compiler((sys.argv[1],), 'stub'), None, (sys.argv[2],), 'hash', '2.0', (), ())
print(build.build(plan, build.library_path(plan, sys.argv[3])), flush=True)
'''


class BuildTestCase(tf.test.TestCase):
    """With a directory for stub compilers, sources and the cache, and nothing loaded yet."""

    def setUp(self):
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.dir = pathlib.Path(directory.name).resolve()
        self.calls_path = self.dir / 'calls.txt'
        self.source_dir = self.dir / 'src'
        self.source_dir.mkdir()
        (self.source_dir / 'op.cc').write_text('int one() { return 1; }\n')
        self.cache_dir = self.dir / 'cache' / build.CACHE_NAME
        environment = {'STYLEGAN_CACHE_DIR': str(self.dir / 'cache'), 'CUDACXX': '/nonexistent/nvcc'}
        self.patch(unittest.mock.patch.dict(os.environ, environment))
        for name in ('STYLEGAN_CUSTOM_OPS', 'STYLEGAN_CUSTOM_OPS_DIR', 'CXX'):
            os.environ.pop(name, None)
        self.patch(unittest.mock.patch.object(build, 'SOURCE_DIR', str(self.source_dir)))
        self.fresh_process()

    def patch(self, patcher):
        self.addCleanup(patcher.stop)
        return patcher.start()

    def fresh_process(self):
        """Forgets what has been loaded, as a new process would."""
        self.patch(unittest.mock.patch.object(build, '_loaded', None))
        self.patch(unittest.mock.patch.object(build, '_mode', None))

    def stub(self, body='', name='stub-g++'):
        path = self.dir / name
        path.write_text(STUB.format(calls=self.calls_path, body=body))
        path.chmod(0o755)
        return str(path)

    def calls(self):
        """How often a stub was called to compile or link."""
        lines = self.calls_path.read_text().splitlines() if self.calls_path.exists() else []
        return sum(' -o ' in line for line in lines)

    def loads_anything(self):
        """Lets every library load, also what stubs write."""
        self.patch(unittest.mock.patch.object(build, 'load', lambda path: pathlib.Path(path).read_text()))

    def load_library(self):
        """(what load_library returns, what it prints on stderr)."""
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            return build.load_library(), stderr.getvalue()

    @staticmethod
    def warnings(printed):
        """What was printed, without what is no warning."""
        return [line for line in printed.splitlines() if not re.match('Building|Custom ops built', line)]

    def quiet_build(self, *args, **kwargs):
        with contextlib.redirect_stderr(io.StringIO()):
            return build.build(*args, **kwargs)

    def run_command(self, *args):
        """(exit status, stdout, stderr) of the command line."""
        with contextlib.redirect_stdout(io.StringIO()) as stdout, \
                contextlib.redirect_stderr(io.StringIO()) as stderr:
            status = build.run(build.make_parser().parse_args(args))
        return status, stdout.getvalue(), stderr.getvalue()

    def child(self, stub, cwd=testutil.ROOT):
        return subprocess.Popen(
            [sys.executable, '-c', CHILD, stub, self.source_dir / 'op.cc', self.cache_dir], cwd=cwd,
            env={**os.environ, 'PYTHONPATH': str(testutil.ROOT)}, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)


def is_running(pid):
    try:
        return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()
