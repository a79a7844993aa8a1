"""Runs in numbered run directories: SubmitConfig, submit_run, RunContext."""

from .run_context import RunContext
from .submit import (
    SubmitConfig,
    SubmitTarget,
    load_submit_config,
    make_run_dir,
    make_run_dir_path,
    run_number,
    submit_run,
)

__all__ = [
    'RunContext', 'SubmitConfig', 'SubmitTarget', 'load_submit_config', 'make_run_dir', 'make_run_dir_path',
    'run_number', 'submit_run',
]
