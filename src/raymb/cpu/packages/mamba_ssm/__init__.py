"""A stand-in for the package mamba-ssm on machines without a GPU, in plain torch: what training Mamba 2 layers calls.

Signatures follow mamba-ssm 2.2.6. This directory is put on sys.path by raymb.cpu, and by nothing else.
"""

__version__ = "2.2.6.post3"
