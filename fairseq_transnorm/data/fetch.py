"""Downloads into the user's cache folder: resumed when cut off, checked before the file gets its name."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

# Some mirrors answer 403 to urllib's own name.
_AGENT = "Mozilla/5.0 (compatible; fairseq_transnorm)"
_BLOCK = 1 << 18  # bytes read at a time
_PERMANENT = (400, 401, 403, 404, 405, 410, 451)  # trying again gives the same answer


class FetchError(OSError):
    """A download that did not succeed; the text says which, why and what to do."""


class _CutOff(OSError):
    """The transfer ended early; what arrived is kept and the next try goes on from there."""


def cache_dir() -> Path:
    """Folder of downloads: ``$FAIRSEQ_TRANSNORM_CACHE``, else ``fairseq_transnorm`` in ``$XDG_CACHE_HOME``."""
    if own := os.environ.get("FAIRSEQ_TRANSNORM_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fairseq_transnorm"


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold a lock on ``path`` (a folder, or a lock file that is made); it ends with the process, whatever happens.

    Raises:
        BlockingIOError: another process holds it. ``what`` says what that process is doing.
    """
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"another process is {what} ({path} is locked); wait for it or stop it") from None
        yield
    finally:
        os.close(handle)


def download(
    urls: str | Sequence[str],
    dest: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    tries: int = 4,
    timeout: float = 60,
    pause: float = 1,
) -> Path:
    """Fetch a file to ``dest`` from the first address that delivers it.

    A transfer that was cut off leaves ``dest.part``, and the next one, also of another process, asks the server for
    the rest; a server that ignores the request starts over. ``dest`` appears only when the file is whole and its
    size and checksum are right; a ``dest`` that is there and passes them is not fetched again.

    Args:
        urls: one address or several that hold the same file.
        dest: where to put it; its folder is made.
        size: expected length, in bytes.
        sha256: expected checksum, hexadecimal.
        tries: attempts at one address before the next one is tried.
        timeout: seconds without an answer after which an attempt is given up.
        pause: seconds before the second attempt; doubled for every further one.

    Returns:
        ``dest``.

    Raises:
        FetchError: no address delivered the right file.
    """
    urls = [urls] if isinstance(urls, str) else list(urls)
    dest.parent.mkdir(parents=True, exist_ok=True)
    part = dest.with_name(dest.name + ".part")
    with exclusive(dest.with_name(dest.name + ".lock"), f"downloading {dest.name}"):
        if dest.is_file() and _mismatch(dest, size, sha256) is None:
            return dest
        failures = []
        for url in urls:
            try:
                _persist(lambda url=url: _attempt(url, part, size, sha256, timeout), tries, pause)  # type: ignore[misc]
                os.replace(part, dest)
                return dest
            except OSError as error:  # URLError and FetchError are OSErrors
                failures.append(f"{url}: {_reason(error)}")
    kept = f"; {part.stat().st_size:,} bytes are kept in {part} and a new run goes on from there" if _size(part) else ""
    raise FetchError(f"cannot download {dest.name}: {'; '.join(failures)}{kept}")


def _persist(attempt: Callable[[], None], tries: int, pause: float) -> None:
    """Call ``attempt`` until it succeeds, fails for good or has had its tries."""
    for left in reversed(range(tries)):
        try:
            attempt()
            return
        except FetchError:
            raise
        except urllib.error.HTTPError as error:
            if error.code in _PERMANENT or not left:
                raise
        except (OSError, http.client.HTTPException) as error:
            if not left:
                raise OSError(_reason(error)) from error
        time.sleep(pause)
        pause *= 2


def _attempt(url: str, part: Path, size: int | None, sha256: str | None, timeout: float) -> None:
    """Bring ``part`` to its full length and check it; whatever is wrong with its content removes it."""
    resumed = _size(part)
    try:
        _transfer(url, part, size, timeout)
    except urllib.error.HTTPError as error:
        # 416: nothing lies after what we hold. Either that is all of it, or it is not a beginning of this file.
        if error.code != 416 or not resumed or error.headers.get("Content-Range") != f"bytes */{resumed}":
            if error.code == 416:
                part.unlink(missing_ok=True)
            raise
    wrong = _mismatch(part, size, sha256)
    if wrong is None:
        return
    part.unlink()
    if resumed:
        raise _CutOff(f"{wrong} after resuming")  # the server's file may have changed in between: once more, from 0
    raise FetchError(f"{wrong}; nothing was kept")


def _transfer(url: str, part: Path, size: int | None, timeout: float) -> None:
    done = _size(part)
    headers = {"User-Agent": _AGENT, "Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as reply:
        if done and not (reply.headers.get("Content-Range") or "").startswith(f"bytes {done}-"):
            done = 0  # the server sends everything
        length = reply.headers.get("Content-Length")
        total = done + int(length) if length else None
        if size is not None and total is not None and total != size:
            part.unlink(missing_ok=True)
            raise FetchError(f"the server has {total:,} bytes, but {size:,} are expected")
        with (
            open(part, "ab" if done else "wb") as handle,
            tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=part.stem, disable=None) as bar,
        ):
            while block := reply.read(_BLOCK):
                handle.write(block)
                bar.update(len(block))
            handle.flush()
            os.fsync(handle.fileno())
    if total is not None and _size(part) < total:
        raise _CutOff(f"cut off after {_size(part):,} of {total:,} bytes")


def _mismatch(path: Path, size: int | None, sha256: str | None) -> str | None:
    """What is wrong with the content of ``path``, or None."""
    if size is not None and path.stat().st_size != size:
        return f"it has {path.stat().st_size:,} bytes, but {size:,} are expected"
    if sha256 is not None and (got := file_sha256(path)) != sha256:
        return f"its SHA-256 is {got}, but {sha256} is expected"
    return None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"no connection ({error.reason})"
    return str(error) or type(error).__name__
