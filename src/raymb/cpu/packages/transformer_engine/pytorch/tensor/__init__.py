"""Tensor classes that no tensor here is an instance of."""


class QuantizedTensor:
    """The base of FP8 tensors, for isinstance tests."""
