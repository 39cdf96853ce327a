"""A small hub: what huggingface_hub asks of one to push files and to take them back."""

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

TOKEN = "hf_of_me"
OWNER = "me"


class Hub(http.server.ThreadingHTTPServer):
    """Repositories in memory: names to files, of the only commit that is kept."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.commits = 0
        self.large_files: dict[str, bytes] = {}  # by their sha256, as LFS knows them

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def commit(self) -> str:
        return f"{self.commits:040x}"


class _Request(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if path == "/api/whoami-v2":
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                return self.answer(401, {"error": "Invalid user token."})
            return self.answer(200, {"name": OWNER, "type": "user", "orgs": []})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+)?", path):
            if match[1] not in self.server.repositories:
                return self.answer(404, {"error": "Repository not found"})
            files = self.server.repositories[match[1]]
            siblings = [{"rfilename": name} for name in files]
            about = {"id": match[1], "sha": self.server.commit, "siblings": siblings, "tags": []}
            return self.answer(200, about | {"private": False, "downloads": 0, "likes": 0})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/.+", path):
            rows = []
            for name, content in self.server.repositories.get(match[1], {}).items():
                row = {"type": "file", "path": name, "size": len(content), "oid": _oid(content)}
                rows.append(row)
            return self.answer(200, rows)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            files = self.server.repositories.get(match[1], {})
            if match[2] not in files:
                return self.answer(404, {"error": "Entry not found"})
            content = files[match[2]]
            headers = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": self.server.commit}
            return self.answer(200, content, headers)
        return self.answer(404, {"error": f"no such page: {path}"})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(self.path.partition("?")[0])
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or OWNER}/{asked['name']}"
            if not name.startswith(f"{OWNER}/"):
                return self.answer(403, {"error": "You don't have the rights to create a model"})
            self.server.repositories.setdefault(name, {})
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(name)
            return self.answer(
                200, {"url": f"{self.server.address}/{name}", "id": "1", "name": name}
            )
        if path.endswith("/preupload/main"):
            modes = []
            for file in json.loads(body)["files"]:
                mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
                modes.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
            return self.answer(200, {"files": modes})
        if path.endswith("/info/lfs/objects/batch"):
            objects = []
            for row in json.loads(body)["objects"]:
                upload = {"href": f"{self.server.address}/upload/{row['oid']}"}
                objects.append({**row, "actions": {"upload": upload}})
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._take_commit(self.server.repositories[match[1]], body)
            address = f"{self.server.address}/{match[1]}/commit/{self.server.commit}"
            about = {"commitUrl": address, "commitOid": self.server.commit, "success": True}
            return self.answer(200, about | {"hookOutput": ""})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        return self.answer(404, {"error": f"no such page: {path}"})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        oid = hashlib.sha256(content).hexdigest()
        assert self.path == f"/upload/{oid}"
        self.server.large_files[oid] = content
        return self.answer(200, b"")

    def _take_commit(self, files: dict[str, bytes], body: bytes) -> None:
        self.server.commits += 1
        for line in body.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if row["key"] == "lfsFile":
                files[value["path"]] = self.server.large_files[value["oid"]]

    def answer(self, code: int, content: object, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        self.send_header("Content-Type", kind)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def hub_server() -> Iterator[Hub]:
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True).start()
        yield hub
        hub.shutdown()
