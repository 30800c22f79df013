"""Where the driver writes metrics: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class JsonLines:
    """metrics.jsonl: one object a line, floats in full precision.

    Args:
        file: kept when it exists; a resumed run goes on in it.
    """

    def __init__(self, file: Path):
        self.file = file

    def restart_after(self, step: int) -> None:
        """Drop the lines of steps that will be done again, so that each step stands in the file once."""
        if not self.file.exists():
            return
        lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, self.file)

    def write(self, record: Record) -> None:
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def close(self) -> None:
        pass


class TensorBoard:
    """Scalars under train/ and validation/, by step."""

    def __init__(self, directory: Path):
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(directory), flush_secs=10)

    def restart_after(self, step: int) -> None:
        pass  # TensorBoard shows the later event of a step

    def write(self, record: Record) -> None:
        for name, value in record.items():
            if name not in ("kind", "step") and isinstance(value, int | float):
                self.writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def close(self) -> None:
        self.writer.close()
