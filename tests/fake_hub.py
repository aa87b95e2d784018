"""A Hub on the loopback: the part of its HTTP API with which huggingface_hub downloads, creates, branches and uploads.

Repositories are folders, one per commit. `HF_ENDPOINT` is read when huggingface_hub is imported, so clients are
processes of their own (see `fresh_python.py`).
"""

import base64
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Refusal:
    """The answer to requests of a method whose path matches, `times` times, after which they are answered as ever.

    Args:
        path: a regular expression.
        status: of the answer; None cuts the connection in the middle of the request's body.
        code: the Hub's name of the error, in `X-Error-Code`.
    """

    method: str
    path: str
    status: int | None
    times: int = 1
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


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
        writers: the tokens of which one must come with all that writes; `None` for anybody.
        private: repositories that only `writers` see.
        gated: repositories whose files only `writers` get.
        refusals: see `Refusal`.
        before_commit: is called when a commit has arrived, and before it is made.
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
        self.writers: set[str] | None = None
        self.private: set[str] = set()
        self.gated: set[str] = set()
        self.refusals: list[Refusal] = []
        self.before_commit: Callable[[], object] = lambda: None
        self.refs: dict[str, dict[str, str]] = {}  # repository -> branch or tag -> commit
        self.requests: list[tuple[str, str]] = []
        self.server = HubServer(("127.0.0.1", 0), type("Handler", (HubHandler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "FakeHub":
        self.thread = Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def commit(
        self, repo: str, files: dict[str, bytes], ref: str = "main", parent: str | None = None, deleted: Any = ()
    ) -> str:
        """A new commit of `repo`: the files of its last one, or of `parent`, and over them these.

        Args:
            deleted: paths of files that it has no longer.
        """
        refs = self.refs.setdefault(repo, {})
        sha = hashlib.sha1(f"{repo} {ref} {len(list(self.root.glob('*/*/*')))}".encode()).hexdigest()
        folder = self.root / repo / sha
        folder.mkdir(parents=True)
        if before := parent or refs.get(ref):
            shutil.copytree(self.root / repo / before, folder, dirs_exist_ok=True)
        for path in deleted:
            (folder / path).unlink()
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
        quoted = urlsplit(self.path).path
        path = unquote(quoted)
        self.hub.requests.append((method, path))
        length = int(self.headers.get("Content-Length", 0))
        for refusal in self.hub.refusals:
            if refusal.times and refusal.method == method and re.search(refusal.path, path):
                refusal.times -= 1
                self.rfile.read(length if refusal.status else length // 2)
                if refusal.status is None:
                    self.close_connection = True
                    return None
                code = {"X-Error-Code": refusal.code} if refusal.code else {}
                return self.answer({"error": f"Refused by {refusal.code}"}, refusal.status, refusal.headers | code)
        self.body = self.rfile.read(length)
        if method == "PUT":
            (self.hub.root / path.rpartition("/")[2]).write_bytes(self.body)  # a large file, under its sha256
            return self.answer(b"")
        if method == "POST" and not self.may_write:
            known = self.headers.get("Authorization")
            return self.answer({"error": "Forbidden" if known else "Unauthorized"}, 403 if known else 401)
        if path == "/api/repos/create":
            return self.create(json.loads(self.body))
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return self.large_files(json.loads(self.body)["objects"])
        # A revision may have slashes, which come quoted.
        found = re.fullmatch(r"/(?:api/models/)?([^/]+/[^/]+)(?:/([a-z]+)(?:/([^/]+)(?:/(.*))?)?)?", quoted)
        if not found or found[1] not in self.hub.refs or (found[1] in self.hub.private and not self.may_write):
            return self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        repo, verb, revision = found[1], found[2] or "revision", unquote(found[3] or "main")
        name = unquote(found[4]) if found[4] else None
        refs = self.hub.refs[repo]
        if verb == "branch":
            refs[revision] = refs["main"]
            return self.answer({})
        if verb == "commit":
            return self.add_commit(repo, revision)
        if verb == "preupload":
            paths = [file["path"] for file in json.loads(self.body)["files"]]
            there = self.hub.files(repo, revision) if revision in refs else {}
            entries = []
            for path in paths:
                entry = {"path": path, "uploadMode": "lfs" if is_lfs(path) else "regular", "shouldIgnore": False}
                if path in there:
                    entry["oid"] = etag_of(path, there[path].read_bytes())
                entries.append(entry)
            return self.answer({"files": entries})
        if revision not in refs and not (self.hub.root / repo / revision).is_dir():
            return self.answer({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"})
        sha, files = refs.get(revision, revision), self.hub.files(repo, revision)
        if verb == "revision":
            siblings = [{"rfilename": path} for path in files]
            return self.answer({"id": repo, "sha": sha, "siblings": siblings, "private": repo in self.hub.private})
        if verb == "tree":
            return self.answer([self.tree_entry(path, file.read_bytes()) for path, file in files.items()])
        assert verb == "resolve" and name is not None, path
        if repo in self.hub.gated and not self.may_write:
            return self.answer({"error": "Access is restricted"}, 403, {"X-Error-Code": "GatedRepo"})
        if name not in files:
            return self.answer({"error": "Not found"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
        if self.hub.tokens and self.headers.get("Authorization", "").removeprefix("Bearer ") not in self.hub.tokens:
            return self.answer({"error": "Unauthorized"}, 401, {"X-Error-Code": "RepoNotFound"})
        self.hub.received.setdefault(name, []).append(self.headers)
        if self.hub.storage and is_lfs(name) and method == "GET":
            return self.answer(b"", 302, {"Location": f"{self.hub.storage}{self.path}"})
        self.send_file(name, files[name].read_bytes(), sha)

    @property
    def may_write(self) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return self.hub.writers is None or token in self.hub.writers

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
            if wanted.get("visibility") == "private":
                self.hub.private.add(repo)
        self.answer({"url": f"{self.hub.endpoint}/{repo}", "name": repo}, status)

    def large_files(self, objects: list[dict]) -> None:
        for entry in objects:
            if (self.hub.root / entry["oid"]).is_file():
                continue  # stored already: nothing to do
            entry["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{entry['oid']}"}}
        self.answer({"transfer": "basic", "objects": objects})

    def add_commit(self, repo: str, ref: str) -> None:
        self.hub.before_commit()
        files, deleted, parent = {}, [], None
        refs = self.hub.refs[repo]
        for operation in map(json.loads, self.body.splitlines()):
            value = operation["value"]
            if operation["key"] == "header":
                parent = value.get("parentCommit")
            elif operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = (self.hub.root / value["oid"]).read_bytes()
            elif operation["key"] == "deletedFile":
                deleted.append(value["path"])
        answer = {}
        if "create_pr=1" in urlsplit(self.path).query:
            parent, number = parent or refs[ref], sum(name.startswith("refs/pr/") for name in refs) + 1
            ref = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.hub.endpoint}/{repo}/discussions/{number}"
        elif parent is not None and parent != refs[ref]:
            return self.answer({"error": "The branch has moved since"}, 412)
        sha = self.hub.commit(repo, files, ref, parent, deleted)
        self.answer({"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{sha}", "commitOid": sha, **answer})

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
