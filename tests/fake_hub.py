"""A Hub on the loopback: the part of its HTTP API with which huggingface_hub downloads, creates and uploads.

Repositories are folders, one per commit. `HF_ENDPOINT` is read when huggingface_hub is imported, so clients are
processes of their own (see `fresh_python.py`).
"""

import base64
import hashlib
import json
import re
import shutil
import sys
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit


@dataclass
class Fault:
    """What goes wrong with downloads of the files whose path ends with `path`, `times` times from the `after`th on.

    Args:
        status: that is answered instead, with these `headers`.
        cut_after: bytes of the body after which the connection is closed.
        content_range: header that is sent instead of the true one.
    """

    path: str
    times: int = 1
    after: int = 0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    content_range: str | None = None


class FakeHub:
    """Serves while it is used as a context manager.

    Args:
        requests: a log of `(method, path)`.
        sent: the number of bytes of each file that were sent, by its path in the repository.
        has_ranges: whether requests for ranges are answered with them, and not with the whole file.
        tokens: those of which one must come with every download; `None` for a public repository.
        faults: see `Fault`.
        listed_sizes: of files, by path, where the listing shall say another size than the true one.
        storage: the endpoint to which downloads of large files are sent on, as the Hub's are; `None` for this one.
        received: the headers of all downloads, by the file's path.
    """

    def __init__(self, root: Path):
        self.root = root
        self.sent: dict[str, int] = {}
        self.has_ranges = True
        self.tokens: set[str] | None = None
        self.faults: list[Fault] = []
        self.listed_sizes: dict[str, int] = {}
        self.storage: str | None = None
        self.received: dict[str, list[Message]] = {}
        self.refs: dict[str, dict[str, str]] = {}  # repository -> branch or tag -> commit
        self.requests: list[tuple[str, str]] = []
        self.server = HubServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "FakeHub":
        self.thread = Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def commit(self, repo: str, files: dict[str, bytes], ref: str = "main") -> str:
        """A new commit of `repo`: the files of its last one and, over them, these."""
        refs = self.refs.setdefault(repo, {})
        sha = hashlib.sha1(f"{repo} {ref} {len(list(self.root.glob('*/*/*')))}".encode()).hexdigest()
        folder = self.root / repo / sha
        folder.mkdir(parents=True)
        if ref in refs:
            shutil.copytree(self.root / repo / refs[ref], folder, dirs_exist_ok=True)
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        refs[ref] = sha
        return sha

    def files(self, repo: str, revision: str = "main") -> dict[str, Path]:
        folder = self.root / repo / self.refs[repo].get(revision, revision)
        return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


class HubServer(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # a client may go away at any time
            super().handle_error(request, client_address)


def is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".bin"))


def etag_of(path: str, content: bytes) -> str:
    """As on the Hub: sha256 of what is in large file storage, git's blob id of the rest."""
    if is_lfs(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits for an acknowledgement
    hub: FakeHub

    def do_HEAD(self):
        self.route("HEAD")

    def do_GET(self):
        self.route("GET")

    def do_POST(self):
        self.route("POST")

    def do_PUT(self):
        self.route("PUT")

    def log_message(self, *args):
        pass

    def route(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((method, path))
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if method == "PUT":
            (self.hub.root / path.rpartition("/")[2]).write_bytes(self.body)  # a large file, under its sha256
            return self.answer(b"")
        if path == "/api/repos/create":
            return self.create(json.loads(self.body))
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return self.large_files(json.loads(self.body)["objects"])
        if not (
            found := re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+)(?:/([a-z]+)(?:/([^/]+)(?:/(.*))?)?)?", path)
        ) or (found[1] not in self.hub.refs):
            return self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        repo, verb, revision, name = found[1], found[2] or "revision", found[3] or "main", found[4]
        refs = self.hub.refs[repo]
        if verb == "commit":
            return self.add_commit(repo, revision)
        if verb == "preupload":
            paths = [file["path"] for file in json.loads(self.body)["files"]]
            modes = {path: "lfs" if is_lfs(path) else "regular" for path in paths}
            return self.answer(
                {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]}
            )
        if revision not in refs and not (self.hub.root / repo / revision).is_dir():
            return self.answer({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
        sha, files = refs.get(revision, revision), self.hub.files(repo, revision)
        if verb == "revision":
            return self.answer({"id": repo, "sha": sha, "siblings": [{"rfilename": path} for path in files]})
        if verb == "tree":
            return self.answer([self.tree_entry(path, file.read_bytes()) for path, file in files.items()])
        assert verb == "resolve", path
        if name not in files:
            return self.answer({"error": "Not found"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        if self.hub.tokens and self.headers.get("Authorization", "").removeprefix("Bearer ") not in self.hub.tokens:
            return self.answer({"error": "Unauthorized"}, 401, {"X-Error-Code": "RepoNotFound"})
        self.hub.received.setdefault(name, []).append(self.headers)
        if self.hub.storage and is_lfs(name) and method == "GET":
            return self.answer(b"", 302, {"Location": f"{self.hub.storage}{self.path}"})
        self.send_file(name, files[name].read_bytes(), sha)

    def send_file(self, name: str, content: bytes, sha: str) -> None:
        headers = {"ETag": f'"{etag_of(name, content)}"', "X-Repo-Commit": sha}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        status, body = 200, content
        if asked and self.hub.has_ranges:
            start, stop = int(asked[1]), min(int(asked[2]) + 1, len(content))
            if start >= len(content):
                return self.answer(b"", 416, {"Content-Range": f"bytes */{len(content)}"})
            status, body = 206, content[start:stop]
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        for fault in self.hub.faults if self.command == "GET" else ():
            if name.endswith(fault.path) and fault.times:
                if fault.after:
                    fault.after -= 1
                    continue
                fault.times -= 1
                if fault.status:
                    return self.answer(b"", fault.status, fault.headers)
                if fault.content_range:
                    headers["Content-Range"] = fault.content_range
                if fault.cut_after is not None:
                    self.send_head(status, {**headers, "Content-Length": str(len(body))})
                    self.send_body(name, body[: fault.cut_after])
                    self.close_connection = True
                    return None
        self.send_head(status, {**headers, "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.send_body(name, body)

    def send_body(self, name: str, body: bytes) -> None:
        for start in range(0, len(body), 2**14):
            try:
                self.wfile.write(body[start : start + 2**14])
            except ConnectionError:  # the client has what it wants
                self.close_connection = True
                return
            self.hub.sent[name] = self.hub.sent.get(name, 0) + len(body[start : start + 2**14])

    def tree_entry(self, path: str, content: bytes) -> dict:
        size = self.hub.listed_sizes.get(path, len(content))
        entry = {"type": "file", "path": path, "size": size, "oid": etag_of("", content)}
        if is_lfs(path):
            entry["lfs"] = {"oid": etag_of(path, content), "size": size, "pointerSize": 134}
        return entry

    def create(self, wanted: dict) -> None:
        repo = f"{wanted['organization']}/{wanted['name']}"
        status = 409 if repo in self.hub.refs else 200
        if status == 200:
            self.hub.commit(repo, {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self.answer({"url": f"{self.hub.endpoint}/{repo}", "name": repo}, status)

    def large_files(self, objects: list[dict]) -> None:
        for entry in objects:
            entry["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{entry['oid']}"}}
        self.answer({"transfer": "basic", "objects": objects})

    def add_commit(self, repo: str, ref: str) -> None:
        files = {}
        for operation in map(json.loads, self.body.splitlines()):
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = (self.hub.root / value["oid"]).read_bytes()
        sha = self.hub.commit(repo, files, ref)
        self.answer({"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{sha}", "commitOid": sha})

    def answer(self, content: bytes | dict | list, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_head(status, {**(headers or {}), "Content-Length": str(len(content))})
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
