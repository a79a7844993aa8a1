"""TensorFlow without its start-up chatter: what a command line calls before it first needs it."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# What its libraries print while they load, whatever the log level, on every machine; or because there is no
# GPU (303: no driver, 100: no device). Anything else, such as a driver that does not fit, is passed on.
_CHATTER = re.compile(
    r'WARNING: All log messages before absl::InitializeLog'
    r'|I\d{4} \d\d:\d\d:\d+\.'
    r'|.*cuInit.*(\((303|100)\)|NO_DEVICE|no CUDA-capable device)'
    r'|.*Unable to register cu\w+ (factory|plugin)'
    r'|To enable the following instructions:')


def load_tensorflow() -> None:
    """Imports TensorFlow and lets it look for GPUs, keeping what it prints on stderr meanwhile to problems.

    The log level is 2 (errors) unless $TF_CPP_MIN_LOG_LEVEL says otherwise; 0 shows everything. Scripts call
    this after their flags are parsed, as --help and mistakes should not wait for it. A second call, or one
    after TensorFlow was imported, does nothing.
    """
    if 'tensorflow' in sys.modules:
        return
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    with contextlib.nullcontext() if os.environ['TF_CPP_MIN_LOG_LEVEL'] == '0' else _without_chatter():
        import tensorflow as tf
        tf.config.list_physical_devices()  # Loads the CUDA driver, which talks too.
    if os.environ['TF_CPP_MIN_LOG_LEVEL'] not in ('0', '1'):
        # The part of TensorFlow that is Python does not look at the variable.
        tf.get_logger().setLevel('ERROR')


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Holds back stderr of the whole process, native libraries included; lets through what is no chatter."""
    try:
        stderr = os.dup(2)
    except OSError:  # Closed, as for some services.
        yield
        return
    with tempfile.TemporaryFile() as held:
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if not _CHATTER.match(line.decode(errors='replace')):
                    os.write(2, line)
