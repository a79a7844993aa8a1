"""Settings of the whole test suite."""

import contextlib
import ctypes
import gc
import os
import pathlib
import signal

import pytest

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')
# Nothing that a suite leaves is outside the checkout, not even the compiled custom ops.
os.environ.setdefault('STYLEGAN_CACHE_DIR', str(pathlib.Path(__file__).parents[1] / '.cache'))
# A suite that a script starts in the background has Ctrl-C ignored, and its subprocesses would too.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The files that take longest, in this order: where several processes share the tests, none is left alone
# with one of them at the end. The first two wait for compilers.
LONGEST = ('cuda_kernels', 'custom_ops_dispatch', 'training_growing', 'resume', 'networks_stylegan',
           'networks_stylegan2', 'trainer', 'train_cli', 'training_biggan', 'recompute', 'training_loop',
           'network_pickles', 'loss_growing', 'freeze', 'compat_scripts', 'run_metrics', 'run_generator',
           'projector', 'run_projector', 'examples', 'hooks', 'feature_nets', 'multiworker', 'metrics_demo')


def pytest_sessionstart(session):
    """Compiles the custom ops before any test, so that none finds the messages of a build in its output."""
    if session.config.pluginmanager.has_plugin('dsession'):
        return  # This process only hands out tests to others.
    from custom_ops.build import get_mode, load_library
    if get_mode() != 'ref':
        load_library()


def pytest_collection_modifyitems(items):
    """Drops the empty `test_session` that tf.test.TestCase adds to every class; the longest files first."""
    rank = {f'test_{name}.py': number for number, name in enumerate(LONGEST)}
    items[:] = sorted((item for item in items if item.name != 'test_session'),
                      key=lambda item: rank.get(item.path.name, len(rank)))


def pytest_collection_finish():
    """What has been imported is there to stay: the collector of garbage need not look at it again."""
    gc.freeze()


@pytest.fixture(scope='class', autouse=True)
def _forget_what_a_class_has_made(request):
    """Drops what setUpClass has set: classes, and with them networks of gigabytes, stay for good."""
    before = set(vars(request.cls or object))
    yield
    for name in set(vars(request.cls or object)) - before:
        delattr(request.cls, name)


@pytest.fixture(scope='module', autouse=True)
def _forget_what_a_file_has_made():
    """Gives memory back: TensorFlow keeps all graphs with custom gradients, the C library what was freed."""
    yield
    from tensorflow.python.framework import ops
    registry = ops.gradient_registry._registry
    for name in [name for name in registry if name.startswith('CustomGradient-')]:
        del registry[name]
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):      # Of glibc alone.
        ctypes.CDLL('libc.so.6').malloc_trim(0)
