"""A Hub on this machine: a small HTTP server that answers as the Hugging Face Hub does.

It serves model directories, and the refusals that the real one gives: 401, 403, 404, 503, and
silence. huggingface_hub reads `HF_ENDPOINT` when it is imported, so the commands that talk to this
server run in a process of their own: this file as a program.
"""

from __future__ import annotations

import hashlib
import json
import os
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
NEW_COMMIT = "/new-commit"
"""A request for this makes all models another commit from then on."""


class Handler(BaseHTTPRequestHandler):
    """Answers for the repositories of `models`, and for names that say what they do."""

    protocol_version = "HTTP/1.1"
    models: Mapping[str, Path]
    asked: list[str]
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
            self.describe(self.models[name], rest)
        elif name.endswith("gated"):
            self.refuse(403, "GatedRepo", "Access to this model is restricted")
        else:
            self.send_file(self.models[name] / rest.split("/", 2)[2])

    def do_HEAD(self) -> None:
        self.do_GET()

    def describe(self, directory: Path, rest: str) -> None:
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
                "pipeline_tag": "fill-mask", "private": False, "downloads": 0, "likes": 0,
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
def serving(models: Mapping[str, Path], asked: list[str] | None = None) -> Iterator[str]:
    """Serve model directories by their names on the Hub; yields the endpoint.

    Args:
        models: Their directories.
        asked: Takes the path of every GET.
    """
    settings = {"models": models, "asked": [] if asked is None else asked}
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
        commands: Arguments of `modelexport-optimum`; one that begins with `/` is a request to the
            server.
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
    from typer.testing import CliRunner

    from modelexport_optimum.cli.main import app

    results = []
    for arguments in json.load(sys.stdin):
        started = time.perf_counter()
        if arguments[0].startswith("/"):
            urllib.request.urlopen(os.environ["HF_ENDPOINT"] + arguments[0]).close()
            results.append({})
            continue
        result = CliRunner().invoke(app, arguments)
        results.append(
            {
                "exit": result.exit_code,
                "stdout": result.stdout,
                "stderr": result.stderr,
                "seconds": time.perf_counter() - started,
            }
        )
    print(json.dumps(results))


if __name__ == "__main__":
    _main()
