"""Infrastructure shared by all scripts. TensorFlow is loaded by `dnnlib.tflib` only."""

from . import submission, util
from .submission import RunContext, SubmitConfig, SubmitTarget, make_run_dir_path, submit_run
from .util import EasyDict, UserError

__all__ = [
    'EasyDict', 'RunContext', 'SubmitConfig', 'SubmitTarget', 'UserError', 'make_run_dir_path', 'submission',
    'submit_run', 'util',
]
