"""A small Hugging Face Hub on this machine: the endpoints that fetching and pushing use, over repositories in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_writing_token_of_the_tests"
OWNER = "me"  # whose token it is
LARGE = (".safetensors", ".parquet", ".tar", ".png")  # kept as LFS objects, as the Hub's .gitattributes says


@dataclass
class Repository:
    """Files by commit, and what branches and tags point to."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], *, revision: str = "main", message: str = "") -> str:
        """Add files to a branch; returns the commit's hash."""
        before = self.commits.get(self.refs.get(revision, ""), {})
        name = hashlib.sha1(f"{len(self.commits)} {id(self)} {message}".encode()).hexdigest()
        self.commits[name] = {**before, **files}
        self.refs[revision], self.messages[name] = name, message
        return name

    def resolved(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit."""
        return revision if revision in self.commits else self.refs.get(revision)


@dataclass
class Hub:
    """The Hub's state and address; `requests` are (method, path, whether a token came along)."""

    url: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, bool]] = field(default_factory=list)
    broken: int | None = None  # the status that everything is answered with

    def clear(self) -> None:
        """Forget everything."""
        self.repositories.clear()
        self.objects.clear()
        self.requests.clear()
        self.broken = None

    def repository(self, name: str, kind: str = "model") -> Repository:
        """The repository of a name, made if need be."""
        return self.repositories.setdefault((kind, name), Repository())

    def upload(self, directory: Path, name: str, kind: str = "model", *, revision: str = "main") -> str:
        """Put a folder's files into a repository, as someone has done before; returns the commit."""
        files = {
            path.relative_to(directory).as_posix(): path.read_bytes()
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }
        return self.repository(name, kind).commit({".gitattributes": b"", **files}, revision=revision)


class _Answer(Exception):
    def __init__(self, status: int, body: Any = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status)
        self.status, self.body, self.headers = status, body, dict(headers or {})


def _error(status: int, code: str, message: str = "") -> _Answer:
    return _Answer(
        status, {"error": message or code}, {"X-Error-Code": code, "X-Error-Message": message or code}
    )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.sent = self._chunks()
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.token is not None))
        try:
            if self.hub.broken:
                raise _Answer(self.hub.broken, {"error": "broken"})
            if self.token not in (None, TOKEN):
                raise _Answer(
                    401,
                    {"error": "Invalid credentials in Authorization header"},
                    {"X-Error-Message": "Invalid credentials in Authorization header"},
                )
            answer = self._routed(path)
        except _Answer as found:
            answer = found
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        if not isinstance(answer.body, bytes):
            self.send_header("Content-Type", "application/json")
        for name, value in {"Content-Length": str(len(body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _routed(self, path: str) -> _Answer:
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+|refs/pr/\d+)/(.+)", path):
            return self._file("dataset" if match[1] else "model", match[2], match[3], match[4])
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch()
        if match := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            assert hashlib.sha256(self.sent).hexdigest() == match[1]
            self.hub.objects[match[1]] = self.sent
            return _Answer(200, {})
        if path == "/api/whoami-v2":
            return (
                _Answer(200, {"type": "user", "name": OWNER, "orgs": []}) if self.token else _error(401, "")
            )
        if path == "/api/validate-yaml":
            return _Answer(200, {"warnings": [], "errors": []})
        if path == "/api/repos/create":
            return self._create()
        if match := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(\w+)(?:/(.+))?)?", path):
            return self._api(match[1], match[2], match[3] or "revision", match[4] or "main")
        return _error(404, "", f"no endpoint {path}")

    def _api(self, kind: str, name: str, what: str, rest: str) -> _Answer:
        repository = self._repository(kind, name, writing=what in ("preupload", "commit", "branch"))
        if what == "branch":
            if rest in repository.refs:
                return _error(409, "", "Reference already exists")
            repository.refs[rest] = repository.refs["main"]
            return _Answer(200, {})
        if what == "preupload":
            self._commit_of(repository, rest)
            files = json.loads(self.sent)["files"]
            modes = {file["path"]: "lfs" if file["path"].endswith(LARGE) else "regular" for file in files}
            told = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
            return _Answer(200, {"files": told})
        if what == "commit":
            return self._commit(repository, rest, name)
        if what == "tree":
            return self._tree(repository, rest)
        commit = self._commit_of(repository, rest)
        files = [{"rfilename": path} for path in repository.commits[commit]]
        return _Answer(200, {
            "id": name, "sha": commit, "private": repository.private, "gated": repository.gated, "siblings": files,
            "tags": [], "downloads": 0, "likes": 0,
        })  # fmt: skip

    def _tree(self, repository: Repository, rest: str) -> _Answer:
        revision = next(
            (r for r in (*repository.refs, *repository.commits) if (rest + "/").startswith(r + "/")), rest
        )
        commit, folder = self._commit_of(repository, revision), rest.removeprefix(revision).strip("/")
        files = [
            {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            | (
                {"lfs": {"oid": _sha256(data), "size": len(data), "pointerSize": 130}}
                if path.endswith(LARGE)
                else {}
            )
            for path, data in repository.commits[commit].items()
            if not folder or path.startswith(f"{folder}/")
        ]
        return _Answer(200, files) if files else _error(404, "EntryNotFound")

    def _file(self, kind: str, name: str, revision: str, path: str) -> _Answer:
        repository = self._repository(kind, name)
        if repository.gated:
            raise _error(403, "GatedRepo")
        commit = self._commit_of(repository, revision)
        data, headers = repository.commits[commit].get(path), {"X-Repo-Commit": commit}
        if data is None:
            return _Answer(404, {}, {**headers, "X-Error-Code": "EntryNotFound"})
        if path.endswith(LARGE):
            headers |= {"X-Linked-Etag": f'"{_sha256(data)}"', "X-Linked-Size": str(len(data))}
        return _Answer(200, data, {**headers, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

    def _batch(self) -> _Answer:
        told = []
        for wanted in json.loads(self.sent)["objects"]:
            found = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                found["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
            told.append(found)
        return _Answer(200, {"transfer": "basic", "objects": told})

    def _create(self) -> _Answer:
        asked = json.loads(self.sent)
        if self.token is None:
            return _error(401, "", "Invalid username or password.")
        if asked["organization"] != OWNER:
            return _error(
                403,
                "",
                f'You don\'t have the rights to create a model under the namespace "{asked["organization"]}"',
            )
        name, kind = f"{asked['organization']}/{asked['name']}", asked.get("type", "model")
        url = {"url": f"{self.hub.url}/{name}"}
        if (kind, name) in self.hub.repositories:
            return _Answer(409, url, {"X-Error-Message": "You already created this model repo"})
        made = self.hub.repository(name, kind)
        made.private = asked.get("visibility") == "private" or bool(asked.get("private"))
        made.commit({".gitattributes": b""}, message="initial commit")
        return _Answer(200, url)

    def _commit(self, repository: Repository, revision: str, name: str) -> _Answer:
        self._commit_of(repository, revision)
        files: dict[str, bytes] = {}
        message = ""
        for line in self.sent.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert item["key"] == "lfsFile", item["key"]
                files[value["path"]] = self.hub.objects[value["oid"]]
        made = repository.commit(files, revision=revision, message=message)
        url = f"{self.hub.url}/{name}/commit/{made}"
        return _Answer(200, {"success": True, "commitOid": made, "commitUrl": url, "hookOutput": ""})

    def _repository(self, kind: str, name: str, *, writing: bool = False) -> Repository:
        repository = self.hub.repositories.get((kind, name))
        if repository is None or (repository.private and self.token is None):
            raise _error(404 if self.token else 401, "RepoNotFound")
        if writing and self.token is None:
            raise _error(401, "", "Invalid username or password.")
        return repository

    def _commit_of(self, repository: Repository, revision: str) -> str:
        commit = repository.resolved(revision)
        if commit is None:
            raise _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub on a port of its own."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def use(hub_url: str, cache: Path, monkeypatch: pytest.MonkeyPatch, *, token: str | None = None) -> None:
    """Let `huggingface_hub` of this process speak to a Hub, with an empty cache: its settings are read once, at import."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub_url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub_url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_URL_HOSTS", frozenset({urlsplit(hub_url).hostname}))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        constants, "HF_HUB_DISABLE_XET", True
    )  # a storage of its own, which this server is not
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)


def environment(hub_url: str, cache: Path, token: str | None = None) -> dict[str, str]:
    """The variables by which another process uses a Hub."""
    found = {
        "HF_ENDPOINT": hub_url,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return found | ({"HF_TOKEN": token} if token else {})
