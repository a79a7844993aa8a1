"""The official names of dnnlib.tflib, on TensorFlow 2."""

from dnnlib.tflib import autosummary, network, ops, tfutil  # noqa: F401
from dnnlib.tflib.network import Network  # noqa: F401
from dnnlib.tflib.tfutil import *  # noqa: F403
