"""A Hugging Face hub on this machine that takes what is pushed: what huggingface_hub asks of one, over HTTP."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WritableHub:
    """A hub with one user, ann, whose token is hf_ann.

    Args:
        role: of the token: read, write, or fineGrained with `scopes`.
        orgs: name to the user's role there.

    Attributes:
        repositories: name to {"private": ..., "files": {name: content}}.
        full: whether commits are refused from now on.
        commits: how many were made.
    """

    def __init__(self, role: str = "write", orgs: dict[str, str] | None = None, scopes: list[Any] | None = None):
        self.repositories: dict[str, dict[str, Any]] = {}
        self.full, self.commits, self.objects = False, 0, {}
        token = {"displayName": "laptop", "role": role, "fineGrained": {"scoped": scopes or []}}
        known = [{"name": name, "roleInOrg": given} for name, given in (orgs or {}).items()]
        self.who = {"name": "ann", "type": "user", "orgs": known, "auth": {"accessToken": token}}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.headers["Authorization"] != "Bearer hf_ann":
                    self.say(401, {"error": "Invalid credentials"})
                elif self.path == "/api/whoami-v2":
                    self.say(200, hub.who)
                else:
                    name = "/".join(self.path.split("?")[0].removeprefix("/api/models/").split("/")[:2])
                    there = hub.repositories.get(name)
                    found = there and {"id": name, "private": there["private"], "siblings": [], "sha": "1" * 40}
                    self.say(200 if found else 404, found or {}, "" if found else "RepoNotFound")

            def do_POST(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                self.say(*hub.posted(self.path, self.rfile.read(size) if size else self.chunks()))

            def do_PUT(self) -> None:
                hub.objects[self.path.rpartition("/")[2]] = self.rfile.read(int(self.headers["Content-Length"]))
                self.say(200, {})

            def chunks(self) -> bytes:
                parts = []
                if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
                    while size := int(self.rfile.readline(), 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                return b"".join(parts)

            def say(self, code: int, content: object, error: str = "") -> None:
                body = json.dumps(content).encode()
                self.send_response(code)
                for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                if error:
                    self.send_header("X-Error-Code", error)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *words: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def posted(self, path: str, body: bytes) -> tuple[int, object]:
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given.get('organization') or 'ann'}/{given['name']}"
            there = name in self.repositories
            private = given.get("visibility", "private") == "private" and given.get("private", True)
            self.repositories.setdefault(name, {"private": private, "files": {}})
            return (409 if there else 200), {"url": f"{self.endpoint}/{name}", "error": "exists" if there else None}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.endswith("/preupload/main"):
            files = [one["path"] for one in json.loads(body)["files"]]
            large = [name.endswith((".safetensors", ".png")) for name in files]
            modes = [
                {"path": name, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
                for name, lfs in zip(files, large, strict=True)
            ]
            return 200, {"files": modes}
        if path.endswith("/objects/batch"):
            place = f"{self.endpoint}/objects"
            objects = json.loads(body)["objects"]
            return 200, {
                "transfer": "basic",
                "objects": [{**one, "actions": {"upload": {"href": f"{place}/{one['oid']}"}}} for one in objects],
            }
        if path.endswith("/commit/main"):
            return self.committed("/".join(path.split("/")[3:5]), [json.loads(line) for line in body.splitlines()])
        return 404, {}

    def committed(self, name: str, lines: list[dict[str, Any]]) -> tuple[int, object]:
        if self.full:
            return 403, {"error": "Private repository storage limit reached"}
        for line in lines:
            value, files = line["value"], self.repositories[name]["files"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
        self.commits += 1
        return 200, {"commitUrl": f"{self.endpoint}/{name}/commit/1", "commitOid": "1" * 40}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
