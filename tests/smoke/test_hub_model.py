"""A model of a hub on this machine: its weights are fetched once, not by every rank, by huggingface_hub's locks."""

from __future__ import annotations

import collections
import hashlib
import json
import os
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.smoke.conftest import MAIN_FLAGS, read_metrics, words_of

pytestmark = [pytest.mark.smoke, pytest.mark.slow, pytest.mark.timeout(600)]
MODEL, COMMIT = "some/model", "1" * 40


class Hub:
    """What huggingface_hub asks of a hub to fetch a repository, for one model.

    Args:
        directory: its files.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.fetched: collections.Counter[str] = collections.Counter()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(False)

            def do_GET(self) -> None:
                self._answer(True)

            def _answer(self, body: bool) -> None:
                path = urllib.parse.urlparse(self.path).path
                file = directory / path.rpartition("/")[2]
                if path.startswith(f"/api/models/{MODEL}"):
                    siblings = [{"rfilename": one.name} for one in sorted(directory.iterdir())]
                    entries = [
                        {"type": "file", "path": one.name, "size": one.stat().st_size, "oid": "2" * 40}
                        for one in sorted(directory.iterdir())
                    ]
                    info = entries if "/tree/" in path else {"id": MODEL, "sha": COMMIT, "siblings": siblings}
                    self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
                elif path.startswith(f"/{MODEL}/resolve/") and file.is_file():
                    content = file.read_bytes()
                    if body:
                        hub.fetched[file.name] += 1
                    etag = hashlib.sha256(content).hexdigest()
                    self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body)
                else:
                    self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, body)

            def _send(self, code: int, content: bytes, headers: dict[str, str], body: bool) -> None:
                self.send_response(code)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def log_message(self, *words: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub(tiny_qwen2: Path) -> Iterator[Hub]:
    hub = Hub(tiny_qwen2)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def test_the_weights_are_fetched_once(hub: Hub, rows: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"hf_model_path": MODEL, "dataset": rows, "storage_path": tmp_path, "num_workers": 4}
    given |= {"experiment_name": "run", "train_iters": 2, "tensor_parallel_size": 2}
    done = subprocess.run(
        [sys.executable, "-m", "raymb", "finetune", *words_of({**MAIN_FLAGS, **given})],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "PYTHONPATH": "src", "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf-home")},
    )
    print(done.stderr, dict(hub.fetched))
    assert done.returncode == 0, done.stderr
    assert [record["step"] for record in read_metrics(tmp_path / "run")] == [1, 2]
    assert hub.fetched["model.safetensors"] == 1
    assert (tmp_path / "run" / "hf" / "model.safetensors").exists()
