"""Kernels of mamba-ssm."""
