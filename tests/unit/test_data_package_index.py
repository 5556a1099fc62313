"""Packages from a package index on this machine, through pip and without it."""

import hashlib
import io
import sys
import tarfile
import zipfile

import pytest

from fairseq_transnorm.data import package_index
from fairseq_transnorm.data.fetch import FetchError
from tests.data_sources import serve

NAME, VERSION = "made-up-plays", "0.6"
FILE = f"{NAME}-{VERSION}.tar.gz"


def package(setup: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in {"setup.py": setup, "PKG-INFO": f"Name: {NAME}\nVersion: {VERSION}\n"}.items():
            info = tarfile.TarInfo(f"{NAME}-{VERSION}/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def wheel() -> bytes:
    info, buffer = f"made_up_plays-{VERSION}.dist-info", io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("made_up_plays/data/play.txt", "ACT I.")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


WHEEL = f"made_up_plays-{VERSION}-py3-none-any.whl"
GOOD = package(f"from setuptools import setup\nsetup(name={NAME!r}, version={VERSION!r})\n")
GOOD_WHEEL = wheel()
BAD = package("print 'Python 2'\n")


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Serve ``content`` as the only package of the only index that pip knows."""
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_TRUSTED_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    # The index has no setuptools to build with in isolation; the environment's own does.
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")
    monkeypatch.setenv("FAIRSEQ_TRANSNORM_CACHE", str(tmp_path / "cache"))
    with serve({}) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")

        def content(data: bytes, file: str = FILE) -> str:
            sha256 = hashlib.sha256(data).hexdigest()
            link = f'<a href="../../files/{file}#sha256={sha256}">{file}</a>'
            server.files |= {f"files/{file}": data, f"simple/{NAME}/": f"<html>{link}</html>".encode()}
            return sha256

        yield server, content


def test_pip_fetches_once(index, tmp_path, monkeypatch):
    server, content = index
    monkeypatch.delattr(package_index, "index_urls")  # the way without pip
    sha256 = content(GOOD)
    path = package_index.fetch_package(NAME, VERSION, sha256)
    assert path == tmp_path / "cache" / FILE
    assert path.read_bytes() == GOOD
    asked = len(server.requests)
    assert package_index.fetch_package(NAME, VERSION, sha256) == path
    assert len(server.requests) == asked, "from the cache"


def test_package_that_pip_cannot_build_is_read_from_the_same_index(index):
    server, content = index
    sha256 = content(BAD)
    assert package_index.fetch_package(NAME, VERSION, sha256).read_bytes() == BAD
    assert [path for path, _ in server.requests].count(f"/files/{FILE}") == 2, "pip's try, then ours"


def test_without_pip(index, monkeypatch):
    _, content = index
    monkeypatch.setattr(sys, "executable", "/bin/false")  # what a missing pip looks like: status 1, no output
    sha256 = content(BAD)
    assert package_index.fetch_package(NAME, VERSION, sha256).read_bytes() == BAD


@pytest.mark.parametrize("pip", [True, False])
def test_wheel(index, pip, monkeypatch):
    _, content = index
    if pip:
        monkeypatch.delattr(package_index, "index_urls")
    else:
        monkeypatch.setattr(package_index, "_pip_download", lambda *args: "no pip")
    sha256 = content(GOOD_WHEEL, WHEEL)
    path = package_index.fetch_package(NAME, VERSION, sha256, wheel=WHEEL)
    assert path.name == WHEEL
    assert path.read_bytes() == GOOD_WHEEL


def test_wrong_checksum_both_ways(index, tmp_path):
    _, content = index
    content(GOOD)
    with pytest.raises(FetchError, match=r"cannot fetch .*: pip download: .*; http://127.*: .*SHA-256"):
        package_index.fetch_package(NAME, VERSION, "0" * 64)
    assert not (tmp_path / "cache" / FILE).exists()
    assert not list((tmp_path / "cache").glob("tmp*")), "pip's folder is gone"


def test_nothing_there_and_passwords_stay_out(index, monkeypatch):
    server, _ = index
    monkeypatch.setenv("PIP_INDEX_URL", server.url.replace("//", "//user:secret@") + "/simple")
    with pytest.raises(FetchError, match=r"pip download: .*; http://127") as error:
        package_index.fetch_package(NAME, VERSION, "0" * 64)
    assert "secret" not in str(error.value)


def test_settings_of_pip(monkeypatch, tmp_path):
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://one/simple/\nextra-index-url =\n  https://two\n  https://three\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    assert package_index.index_urls() == ["https://one/simple", "https://two", "https://three"]
    monkeypatch.setenv("PIP_INDEX_URL", "https://env/simple")
    assert package_index.index_urls()[0] == "https://env/simple"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert package_index.index_urls() == []
