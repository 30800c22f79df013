"""Dense bf16 peak rates of GPUs, for MFU. Source: the vendor's datasheets (SXM parts where there are two)."""

from __future__ import annotations

import re

_PEAK_BF16_TFLOPS = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "GH200": 989.4,
    "H200 NVL": 835.5,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.5,
    "H100": 989.4,
    "H20": 148.0,
    "A100": 312.0,
    "L40S": 362.05,
    "L40": 181.05,
    "L4": 121.0,
    "A10G": 70.0,
}


def peak_tflops(device_name: str) -> float | None:
    """Peak dense bf16 rate in TFLOP/s of a device by torch's name for it; None when it is not known.

    The first match wins, so a longer name stands before the shorter one it contains. Only whole words match: an L40
    is no L4.
    """
    return next((peak for chip, peak in _PEAK_BF16_TFLOPS.items() if re.search(rf"\b{chip}\b", device_name)), None)
