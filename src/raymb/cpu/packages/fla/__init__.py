"""A stand-in for the package flash-linear-attention on machines without a GPU, in plain torch: what training layers
with the gated delta rule calls.

Signatures follow flash-linear-attention 0.4. This directory is put on sys.path by raymb.cpu, and by nothing else.
"""

__version__ = "0.4.1"
