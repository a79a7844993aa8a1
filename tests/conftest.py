"""Settings of the whole test suite."""

import os
import pathlib
import signal

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')
# Nothing that a suite leaves is outside the checkout, not even the compiled custom ops.
os.environ.setdefault('STYLEGAN_CACHE_DIR', str(pathlib.Path(__file__).parents[1] / '.cache'))
# A suite that a script starts in the background has Ctrl-C ignored, and its subprocesses would too.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart():
    """Compiles the custom ops before any test, so that none finds the messages of a build in its output."""
    from custom_ops.build import get_mode, load_library
    if get_mode() != 'ref':
        load_library()


def pytest_collection_modifyitems(items):
    """Drops the empty `test_session` that tf.test.TestCase adds to every class."""
    items[:] = [item for item in items if item.name != 'test_session']
