"""Settings of the whole test suite."""

import os
import signal

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('CUDA_VISIBLE_DEVICES', '')
# A suite that a script starts in the background has Ctrl-C ignored, and its subprocesses would too.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Drops the empty `test_session` that tf.test.TestCase adds to every class."""
    items[:] = [item for item in items if item.name != 'test_session']
