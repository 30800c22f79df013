"""Models and the hub, with a hub on this machine that answers as the real one does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from raymb.doctor import hub
from raymb.doctor.finding import Finding

ANSWERS = {
    "/api/models/open/model/auth-check": (200, {}),
    "/api/models/gated/model/auth-check": (403, {"X-Error-Code": "GatedRepo"}),
    "/api/models/no/model/auth-check": (404, {"X-Error-Code": "RepoNotFound"}),
    "/api/models?limit=1": (200, {}),
}


class Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        code, headers = ANSWERS.get(self.path, (404, {"X-Error-Code": "RepoNotFound"}))
        self.send_response(code)
        for name, value in {**headers, "Content-Length": "2"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")


def last(model: str | None) -> Finding:
    return list(hub.check_hub(model))[-1]


@pytest.mark.parametrize(
    ("model", "status", "said"),
    [
        (None, "ok", "answers (without a token)"),
        ("open/model", "ok", "open/model can be fetched"),
        ("gated/model", "error", "gated/model is gated, and closed to this user (without a token)"),
        ("no/model", "error", "there is no model no/model"),
        ("not a name/x", "error", "there is no model not a name/x"),
    ],
)
def test_the_hub_answers(online: None, model: str | None, status: str, said: str) -> None:
    found = last(model)
    assert found.status == status and said in found.said
    assert bool(found.fix) == (status == "error")


def test_no_network(unreachable: None, shape_only_model_dir: Path) -> None:
    assert last(None).status == "warning" and "cannot be reached" in last(None).said
    assert last("open/model").status == "error" and "not in the cache" in last("open/model").said
    local = last(str(shape_only_model_dir))
    assert local.status == "ok" and "Qwen2ForCausalLM" in local.said and "no hub needed" in local.said


def test_a_model_in_the_cache_needs_no_network(unreachable: None, tmp_path: Path, monkeypatch) -> None:
    snapshot = tmp_path / "hub/models--open--model/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"")
    refs = tmp_path / "hub/models--open--model/refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    assert last("open/model").status == "warning" and "is in the cache" in last("open/model").said
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert last("open/model").status == "ok"
    assert last("gated/model").status == "error" and "HF_HUB_OFFLINE" in last("gated/model").said


def test_a_directory_without_a_model(unreachable: None, tmp_path: Path) -> None:
    found = last(str(tmp_path))
    assert found.status == "error" and str(tmp_path) in found.said and found.fix


def test_a_home_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/proc/nowhere")
    first = next(hub.check_hub("sample"))
    assert first.status == "error" and "HF_HOME" in first.fix
