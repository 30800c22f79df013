"""What a rule may look at where the sizes of a layout do not say enough."""

from __future__ import annotations

from dataclasses import dataclass

from raymb.model.shape import ModelShape
from raymb.plan.gpus import Gpu
from raymb.plan.sizes import DetailedLayout
from raymb.spec.sections import RunSpec


@dataclass(frozen=True)
class Run:
    """
    Args:
        spec: what the user asked for, with the search's choices in the place of `auto`.
        shape: the model's sizes.
        backend: cuda or cpu; auto where it is not known yet.
        gpu: what the workers have, where somebody knows.
        rows: training rows in the data set, if it has been read.
        layout: that of the most workers; None where every one breaks a rule of layouts.
    """

    spec: RunSpec
    shape: ModelShape
    backend: str = "auto"
    gpu: Gpu | None = None
    rows: int | None = None
    layout: DetailedLayout | None = None
