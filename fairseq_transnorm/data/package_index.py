"""Packages as data: fetched through pip, so that the user's index, proxy and certificates count."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path

from .fetch import FetchError, cache_dir, download, exclusive, file_sha256


def fetch_package(name: str, version: str, sha256: str, wheel: str | None = None, timeout: float = 600) -> Path:
    """Source archive ``name-version.tar.gz`` or a wheel, from the cache folder or a package index.

    pip comes first. To name a source archive that it downloads, pip runs the package's ``setup.py``, which a later
    Python may refuse; then the same index is read directly, and nothing of the package is run. The checksum is checked
    on both ways, by pip before it runs anything.

    Args:
        name: of the package on the index.
        version: exact version.
        sha256: of the archive, hexadecimal.
        wheel: file name of the wheel that is wanted instead of the source archive.
        timeout: seconds for pip.

    Returns:
        Path of the archive in the cache folder.

    Raises:
        FetchError: neither way delivered it; the text gives both reasons.
    """
    dest = cache_dir() / (wheel or f"{name}-{version}.tar.gz")
    if dest.is_file() and file_sha256(dest) == sha256:
        return dest
    dest.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(dest.with_name(dest.name + ".pip.lock"), f"downloading {dest.name}"):
        refusal = _pip_download(name, version, sha256, dest, timeout)
    if refusal is None:
        return dest
    failures = [f"pip download: {refusal}"]
    for index in index_urls():
        try:
            return download(_link(index, name, dest.name), dest, sha256=sha256)
        except OSError as error:
            failures.append(f"{index}: {error}")
    reasons = re.sub(r"//[^/@\s]+@", "//", "; ".join(failures))  # an index address may hold a password
    raise FetchError(f"cannot fetch {dest.name} from a package index: {reasons}")


def _pip_download(name: str, version: str, sha256: str, dest: Path, timeout: float) -> str | None:
    """Let pip download the archive to ``dest``; the reason when it cannot, else None."""
    with tempfile.TemporaryDirectory(dir=dest.parent) as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(f"{name}=={version} --hash=sha256:{sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        command += [
            "--only-binary" if dest.suffix == ".whl" else "--no-binary",
            name,
            "--requirement",
            str(wanted),
            "--dest",
            folder,
        ]
        try:
            run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return f"no end after {timeout:g} s"
        if run.returncode:
            errors = [line for line in run.stderr.splitlines() if "error" in line.lower() or "No module" in line]
            return (errors or run.stderr.splitlines() or [f"exit status {run.returncode}"])[-1].strip()
        got = Path(folder) / dest.name
        if not got.is_file() or file_sha256(got) != sha256:
            return f"it did not leave {dest.name} with SHA-256 {sha256}"
        os.replace(got, dest)
    return None


def index_urls() -> list[str]:
    """Package indexes of pip's settings: the default one when none is set, none under ``no-index``."""
    run = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    settings: dict[str, str] = {}
    found = re.findall(r"^(\S*?)((?:extra-)?index-url|no-index)='(.*)'$", run.stdout, re.MULTILINE)
    # The environment counts most; older versions of pip list it first, newer ones last.
    for _, key, value in sorted(found, key=lambda line: line[0] != ":env:."):
        settings.setdefault(key, value)
    if settings.get("no-index", "0").lower() in ("1", "true", "yes", "on"):
        return []
    main = settings.get("index-url") or os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple"
    further = settings.get("extra-index-url", "").replace("\\n", " ")  # so pip shows a list of several lines
    return [url.rstrip("/") for url in f"{main} {further}".split()]


def _link(index: str, package: str, filename: str) -> str:
    """Address of ``filename`` on the page of ``package`` (PEP 503)."""
    page = f"{index}/{re.sub(r'[-_.]+', '-', package).lower()}/"
    with urllib.request.urlopen(page, timeout=60) as reply:
        base, text = reply.url, reply.read().decode("utf-8", "replace")
    for href in re.findall(r"""<a[^>]*\bhref=["']([^"']+)["']""", text):
        url = urllib.parse.urljoin(base, html.unescape(href)).partition("#")[0]
        if urllib.parse.unquote(url.rpartition("/")[2]) == filename:
            return url
    raise FetchError(f"{page} does not list {filename}")
