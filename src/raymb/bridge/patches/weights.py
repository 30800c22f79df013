"""Which files of a model's directory Bridge reads."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

from raymb.bridge.patches.patch import Patch, upstream
from raymb.model.tensor_files import tensors_by_file

_SOURCE = "megatron.bridge.models.hf_pretrained.state:SafeTensorsStateSource"


def read_only_the_models_files() -> None:
    """Of a directory without an index, which says itself which files they are."""
    cls = upstream(_SOURCE)
    if hasattr(cls, "_raymb_map"):
        return
    cls._raymb_map = cls.key_to_filename_map

    def names(self: Any) -> dict[str, str]:
        if self._key_to_filename_map_cache is None and not self._cached_get_key_to_filename_map(self.path):
            self._key_to_filename_map_cache = tensors_by_file(self.path)
        return cls._raymb_map.fget(self)

    cls.key_to_filename_map = property(names)


def _reads_every_file() -> bool:
    with tempfile.TemporaryDirectory() as directory:
        for name in ("model.safetensors", "another.safetensors"):
            tensor = {name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
            header = json.dumps(tensor).encode()
            Path(directory, name).write_bytes(struct.pack("<Q", len(header)) + header)
        return len(upstream(_SOURCE)(directory).key_to_filename_map) == 2


PATCHES = (
    Patch(
        "the model's files alone",
        "megatron-bridge",
        "0.6.2",
        _SOURCE,
        "beside a model.safetensors every other *.safetensors file is read, too (consolidated.safetensors, adapters, "
        "variants), and of tensors of the same name those of the file that comes last",
        _reads_every_file,
        read_only_the_models_files,
    ),
)
