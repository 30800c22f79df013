"""A stand-in for the package causal-conv1d on machines without a GPU, in plain torch: what training calls.

Signatures follow causal-conv1d 1.5.3. This directory is put on sys.path by raymb.cpu, and by nothing else.
"""

from causal_conv1d.convolution import causal_conv1d_fn

__version__ = "1.5.3.post1"
__all__ = ["__version__", "causal_conv1d_fn"]
