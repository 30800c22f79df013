"""A stand-in for NVIDIA's Transformer Engine on machines without a GPU, in plain torch.

Megatron-Core's Transformer Engine layer specs find here what they use, under the same names and with the same
parameters, so that one model definition, one set of checkpoint keys and one set of parallel code paths serves GPUs and
CPUs. Signatures and behaviour follow Transformer Engine 2.20; what only makes sense on a GPU (FP8, user buffers)
is refused with an error that says so. This directory is put on sys.path by raymb.cpu, and by nothing else.
"""

from transformer_engine import common, pytorch

__version__ = "2.20.2"
__all__ = ["__version__", "common", "pytorch"]
