"""The module that ProGAN's scripts and pickles call `tfutil`: the helpers and `Network` of `dnnlib.tflib`."""

from typing import Any

from dnnlib.tflib.autosummary import (  # noqa: F401
    autosummary,
    finalize_autosummaries,
    save_summaries,
)
from dnnlib.tflib.network import Network  # noqa: F401
from dnnlib.tflib.tfutil import *  # noqa: F403
from dnnlib.tflib.tfutil import init_uninitialized_vars as init_uninited_vars  # noqa: F401
from dnnlib.util import call_func_by_name as _call_func_by_name
from dnnlib.util import get_obj_by_name as import_obj  # noqa: F401


def call_func_by_name(*args: Any, func: str, **kwargs: Any) -> Any:
    """Calls the function with the fully qualified name `func`, as ProGAN's program names it."""
    return _call_func_by_name(*args, func_name=func, **kwargs)
