"""Kernels that are written in Triton, and here in plain torch."""
