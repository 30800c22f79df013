"""A Hugging Face hub on this machine: what huggingface_hub asks of one to fetch a model."""

from __future__ import annotations

import collections
import hashlib
import json
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODEL = "some/model"


class Hub:
    """A hub with one model.

    Args:
        commits: the model's files at each commit, by its 40 digits.
        branches: branch or tag to commit; may change while the hub runs.
        token: whoever does not show it is refused, as by a gated model.

    Attributes:
        fetched: how many times each file was sent.
        asked: the addresses of all requests about the model.
    """

    def __init__(self, commits: dict[str, Path], branches: dict[str, str], token: str = ""):
        self.commits, self.branches = commits, branches
        self.fetched: collections.Counter[str] = collections.Counter()
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(False)

            def do_GET(self) -> None:
                self._answer(True)

            def _answer(self, body: bool) -> None:
                path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
                if MODEL in path:
                    hub.asked.append(path)
                words = path.removeprefix("/api/models").removeprefix(f"/{MODEL}").strip("/").split("/")
                if not path.startswith((f"/{MODEL}/", f"/api/models/{MODEL}")):
                    self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
                    return
                revision = words[1] if len(words) > 1 else "main"
                commit = hub.branches.get(revision, revision)
                directory = hub.commits.get(commit)
                if token and self.headers["Authorization"] != f"Bearer {token}":
                    self._send(401, b"", {"X-Error-Code": "GatedRepo"}, body)
                elif directory is None:
                    self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
                elif path.startswith("/api/"):
                    files = sorted(file for file in directory.rglob("*") if file.is_file())
                    names = [file.relative_to(directory).as_posix() for file in files]
                    siblings = [{"rfilename": name} for name in names]
                    entries = [
                        {"type": "file", "path": name, "size": file.stat().st_size, "oid": "2" * 40}
                        for name, file in zip(names, files, strict=True)
                    ]
                    info = entries if words[0] == "tree" else {"id": MODEL, "sha": commit, "siblings": siblings}
                    self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, body)
                elif (file := directory.joinpath(*words[2:])).is_file():
                    content = file.read_bytes()
                    if body:
                        hub.fetched[file.name] += 1
                    etag = hashlib.sha256(content).hexdigest()
                    self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, body)
                else:
                    self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, body)

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

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
