"""Names that no tool of the tables has, and that people write all the same."""

from __future__ import annotations

from raymb.spec.other_tools.record import Tool, key

OTHERS = Tool(
    "others",
    "another tool",
    keys=(
        key("num_gpus world_size", "num_workers num_workers"),
        key("source_dir", "working_dir", "of SageMaker"),
        key("hf_dataset_revision", "dataset", "`?revision=` of the hub id"),
    ),
)
