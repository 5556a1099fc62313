"""Downloads: resumed, checked, never half a file under the final name. All from a server on this machine."""

import hashlib
import os
import subprocess
import sys

import pytest

from fairseq_transnorm.data.fetch import FetchError, cache_dir, download, exclusive
from tests.data_sources import serve

BODY = bytes(range(256)) * 4000  # 1,024,000 bytes
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server():
    with serve({"file.bin": BODY, "other.bin": BODY[::-1]}) as running:
        yield running


def get(server, dest, name="file.bin", **options):
    return download(f"{server.url}/{name}", dest, **{"pause": 0.01, "timeout": 10} | options)


def test_whole_download_and_reuse(server, tmp_path):
    dest = tmp_path / "new" / "file.bin"
    assert get(server, dest, size=len(BODY), sha256=SHA256) == dest
    assert dest.read_bytes() == BODY
    get(server, dest, sha256=SHA256)
    assert len(server.requests) == 1, "a file that passes is not fetched again"
    dest.write_bytes(b"spoilt")
    get(server, dest, sha256=SHA256)
    assert dest.read_bytes() == BODY


def test_cut_off_transfer_is_resumed_within_a_call(server, tmp_path):
    server.cut_after = [300_000, 200_000]
    assert get(server, tmp_path / "f", sha256=SHA256).read_bytes() == BODY
    assert [wanted for _, wanted in server.requests] == [None, "bytes=300000-", "bytes=500000-"]


def test_cut_off_transfer_is_resumed_by_a_later_call(server, tmp_path):
    dest = tmp_path / "f"
    server.cut_after = [300_000]
    with pytest.raises(FetchError, match=r"cut off after 300,000 of 1,024,000 bytes; 300,000 bytes are kept"):
        get(server, dest, sha256=SHA256, tries=1)
    assert not dest.exists()
    assert (tmp_path / "f.part").read_bytes() == BODY[:300_000]
    assert get(server, dest, sha256=SHA256).read_bytes() == BODY
    assert server.requests[-1][1] == "bytes=300000-"
    assert not (tmp_path / "f.part").exists()


def test_killed_between_transfer_and_rename(server, tmp_path):
    (tmp_path / "f.part").write_bytes(BODY)  # the server answers 416: nothing is left to send
    assert get(server, tmp_path / "f", sha256=SHA256).read_bytes() == BODY
    assert len(server.requests) == 1


def test_server_without_ranges_starts_over(server, tmp_path):
    server.ranges = False
    server.cut_after = [300_000]
    assert get(server, tmp_path / "f", sha256=SHA256).read_bytes() == BODY
    assert server.requests[1][1] == "bytes=300000-"


def test_part_of_another_file_is_replaced(server, tmp_path):
    (tmp_path / "f.part").write_bytes(b"x" * 1000)  # e.g. the server's file has changed since
    assert get(server, tmp_path / "f", sha256=SHA256).read_bytes() == BODY
    (tmp_path / "g.part").write_bytes(b"x" * (len(BODY) + 5))  # longer than the file
    assert get(server, tmp_path / "g", sha256=SHA256).read_bytes() == BODY


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"size": 5}, "the server has 1,024,000 bytes, but 5 are expected"),
        ({"sha256": "0" * 64}, f"its SHA-256 is {SHA256}, but 0{{64}} is expected; nothing was kept"),
    ],
)
def test_wrong_content_leaves_nothing(server, tmp_path, expected, message):
    with pytest.raises(FetchError, match=message):
        get(server, tmp_path / "f", **expected)
    assert {path.name for path in tmp_path.iterdir()} == {"f.lock"}
    assert len(server.requests) == 1, "the same bytes would come again"


def test_size_is_checked_without_a_content_length(server, tmp_path):
    server.length = False
    with pytest.raises(FetchError, match="it has 1,024,000 bytes, but 5 are expected"):
        get(server, tmp_path / "f", size=5)
    assert not (tmp_path / "f").exists()


def test_missing_file_is_told_at_once_and_the_next_mirror_tried(server, tmp_path):
    with pytest.raises(FetchError, match=r"cannot download f: http://127.*/none: HTTP 404"):
        get(server, tmp_path / "f", name="none")
    assert len(server.requests) == 1
    urls = [f"{server.url}/none", f"{server.url}/other.bin", f"{server.url}/file.bin"]
    assert download(urls, tmp_path / "f", sha256=SHA256, pause=0.01).read_bytes() == BODY


def test_busy_server_is_asked_again(server, tmp_path):
    server.statuses = [503, 503]
    assert get(server, tmp_path / "f").read_bytes() == BODY
    server.statuses = [503] * 9
    with pytest.raises(FetchError, match="HTTP 503"):
        get(server, tmp_path / "g", tries=2)


def test_no_network(tmp_path):
    with serve({}) as gone:
        url = f"{gone.url}/file.bin"
    with pytest.raises(FetchError, match=r"cannot download f: .*no connection"):
        download(url, tmp_path / "f", tries=2, pause=0.01)


def test_two_processes_do_not_write_one_file(server, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from fairseq_transnorm.data.fetch import exclusive\n"
        "with exclusive(Path(sys.argv[1]), 'busy'): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "f.lock")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as other:
        try:
            assert other.stdout
            assert other.stdout.readline() == b"held\n"
            with pytest.raises(BlockingIOError, match="another process is downloading f"):
                get(server, tmp_path / "f")
        finally:
            other.kill()
    get(server, tmp_path / "f")  # a lock ends with its process


def test_exclusive_locks_folders_too(tmp_path):
    with exclusive(tmp_path, "busy"), pytest.raises(BlockingIOError), exclusive(tmp_path, "busy"):
        pass
    with exclusive(tmp_path, "busy"):
        pass


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("FAIRSEQ_TRANSNORM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "fairseq_transnorm"
    monkeypatch.setenv("FAIRSEQ_TRANSNORM_CACHE", "~/own")
    assert str(cache_dir()) == os.path.expanduser("~/own")
