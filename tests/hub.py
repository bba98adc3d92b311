"""A Hub on this machine: a small HTTP server that answers as the Hugging Face Hub does.

It serves model directories, takes uploads as huggingface_hub 0.36 makes them (a repository, the
files' kinds, large files by the LFS protocol, a commit), and gives the refusals that the real one
gives: 401, 403, 404, 503, and silence. huggingface_hub reads `HF_ENDPOINT` when it is imported, so
the commands that talk to this server run in a process of their own: this file as a program.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = COMMIT[::-1]
SILENCE_SECONDS = 300
OUT_OF_ORDER = "/out-of-order"
"""A request for this makes the server answer 503 from then on."""
LARGE_BYTES = 10_000
"""A file of so many bytes is uploaded by the LFS protocol, and the card never is."""
READ_ONLY = "hf_read"
"""A token that may not write."""
NEW_COMMIT = "/new-commit"
"""A request for this makes all models another commit from then on."""


class Handler(BaseHTTPRequestHandler):
    """Answers for the repositories of `models`, and for names that say what they do."""

    protocol_version = "HTTP/1.1"
    models: dict[str, Path]
    asked: list[str]
    uploads: Path
    private: dict[str, bool]
    large: dict[str, bytes]
    commit = COMMIT
    out_of_order = False

    def do_GET(self) -> None:
        if self.command == "GET":
            self.asked.append(self.path)
        if self.path == NEW_COMMIT:
            type(self).commit = OTHER_COMMIT
            self.answer(200, b"", {})
            return
        if self.path == OUT_OF_ORDER:
            type(self).out_of_order = True
            self.answer(200, b"", {})
            return
        path = self.path.partition("?")[0].strip("/")
        api = path.startswith("api/models/")
        name = "/".join(path.removeprefix("api/models/").split("/")[:2])
        rest = path.removeprefix("api/models/").removeprefix(name).strip("/")
        if name == "team/silent":
            time.sleep(SILENCE_SECONDS)
        elif name == "team/broken" or self.out_of_order:
            self.refuse(503, "", "Service Unavailable")
        elif name == "team/private":
            self.refuse(401, "", "Invalid username or password.")
        elif name == "team/forbidden":
            self.refuse(403, "", "Forbidden")
        elif name not in self.models:
            self.refuse(404, "RepoNotFound", "Repository not found")
        elif "/nosuch" in f"/{rest}/" or rest.startswith("resolve/nosuch"):
            self.refuse(404, "RevisionNotFound", "Invalid rev id: nosuch")
        elif api:
            self.describe(name, rest)
        elif name.endswith("gated"):
            self.refuse(403, "GatedRepo", "Access to this model is restricted")
        else:
            self.send_file(self.models[name] / rest.split("/", 2)[2])

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(f"POST {self.path}")
        path = self.path.partition("?")[0]
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("hf_secret", READ_ONLY):
            self.refuse(401, "", "Invalid username or password.")
        elif path == "/api/validate-yaml":
            self.answer_json({"errors": [], "warnings": []})
        elif token == READ_ONLY or "/team/forbidden" in path:
            self.refuse(403, "", "You have no rights to write here")
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path.endswith("/objects/batch"):
            self.take_large(json.loads(body)["objects"])
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path):
            if found[2] == "preupload":
                self.tell_kinds(json.loads(body)["files"])
            elif "lost" in found[1]:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            else:
                self.commit_files(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self.refuse(404, "", "Not found")

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        assert hashlib.sha256(content).hexdigest() == self.path.rpartition("/")[2]
        self.large[self.path.rpartition("/")[2]] = content
        self.answer(200, b"", {})

    def create(self, wanted: Mapping[str, Any]) -> None:
        name = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        if name == "team/forbidden":
            self.refuse(403, "", "You have no rights to create a model here")
            return
        status = 409 if name in self.models else 200
        if status == 200:
            self.models[name] = self.uploads / name
            self.models[name].mkdir(parents=True)
            self.private[name] = wanted.get("private", False)
        self.answer_json({"url": f"{self.endpoint}/{name}", "name": name}, status)

    def tell_kinds(self, files: Sequence[Mapping[str, Any]]) -> None:
        kinds = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= LARGE_BYTES else "regular",
                "shouldIgnore": False,
            }
            for file in files
        ]
        self.answer_json({"files": kinds})

    def take_large(self, objects: Sequence[Mapping[str, Any]]) -> None:
        wanted = [
            {**one, "actions": {"upload": {"href": f"{self.endpoint}/large/{one['oid']}"}}}
            for one in objects
        ]
        self.answer_json({"transfer": "basic", "objects": wanted})

    def commit_files(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                continue
            path = self.models[name] / value["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "file":
                path.write_bytes(base64.b64decode(value["content"]))
            else:
                assert len(self.large[value["oid"]]) == value["size"]
                path.write_bytes(self.large[value["oid"]])
        url = f"{self.endpoint}/{name}/commit/{self.commit}"
        self.answer_json({"commitUrl": url, "commitOid": self.commit})

    @property
    def endpoint(self) -> str:
        return f"http://{self.headers['Host']}"

    def answer_json(self, document: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def describe(self, name: str, rest: str) -> None:
        directory = self.models[name]
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        if rest.startswith("tree/"):
            listed: Any = [
                {
                    "type": "file",
                    "path": str(path.relative_to(directory)),
                    "oid": self.commit,
                    "size": 1,
                }
                for path in files
            ]
        else:
            names = [{"rfilename": str(path.relative_to(directory))} for path in files]
            listed = {
                "id": directory.name, "sha": self.commit, "siblings": names, "tags": [],
                "pipeline_tag": "fill-mask", "downloads": 0, "likes": 0,
                "private": self.private.get(name, False),
            }  # fmt: skip
        self.answer(200, json.dumps(listed).encode(), {"Content-Type": "application/json"})

    def send_file(self, path: Path) -> None:
        if not path.is_file():
            self.refuse(404, "EntryNotFound", "Entry not found")
            return
        content = path.read_bytes()
        tag = hashlib.sha256(content).hexdigest()
        self.answer(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": self.commit})

    def refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.answer(status, json.dumps({"error": message}).encode(), headers)

    def answer(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(
    models: Mapping[str, Path],
    asked: list[str] | None = None,
    *,
    uploads: Path | None = None,
    private: dict[str, bool] | None = None,
) -> Iterator[str]:
    """Serve model directories by their names on the Hub; yields the endpoint.

    Args:
        models: Their directories.
        asked: Takes the path of every GET, and POST before that of every POST.
        uploads: Where repositories are created.
        private: Takes of each repository that is created whether it is private.
    """
    settings = {
        "models": dict(models),
        "asked": [] if asked is None else asked,
        "uploads": uploads,
        "private": {} if private is None else private,
        "large": {},
    }
    handler = type("Serving", (Handler,), settings)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def run_commands(
    commands: Sequence[Sequence[str]], directory: Path, endpoint: str, **variables: str
) -> list[dict[str, Any]]:
    """Run command lines one after the other in one new process, in a directory.

    Args:
        commands: Arguments of `modelexport-optimum`, which may follow environment variables as
            in a shell; one that begins with `/` is a request to the server.
        directory: Current directory; the Hub's cache is in it, too.
        endpoint: The server.
        **variables: Further environment variables.

    Returns:
        For each the exit status, stdout, stderr and seconds.
    """
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(directory / "cache"),
        "HF_HUB_ETAG_TIMEOUT": "2",
        "HF_TOKEN": "hf_secret",
        **variables,
    }
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(commands),
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results


def _main() -> None:
    from multiprocessing import util

    from forked_python import spawn_copy
    from typer.testing import CliRunner

    from modelexport_optimum.cli.main import app

    util.spawnv_passfds = spawn_copy  # type: ignore[attr-defined]
    results = []
    for arguments in json.load(sys.stdin):
        started = time.perf_counter()
        if arguments[0].startswith("/"):
            urllib.request.urlopen(os.environ["HF_ENDPOINT"] + arguments[0]).close()
            results.append({})
            continue
        variables = [word for word in arguments if re.match("[A-Z_]+=", word)]
        environment = dict(word.split("=", 1) for word in variables)
        result = CliRunner().invoke(app, arguments[len(variables) :], env=environment)
        results.append(
            {
                "exit": result.exit_code,
                "stdout": result.stdout,
                "stderr": result.stderr,
                "seconds": time.perf_counter() - started,
            }
        )
    print(json.dumps(results), flush=True)
    os._exit(0)  # Python would free each object of the libraries


if __name__ == "__main__":
    _main()
