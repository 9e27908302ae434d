"""Local paths and a real GCS server behave alike: complete or absent, whatever happens on the way."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from must import storage
from tests.gcs import Server


@pytest.fixture(params=["local", "remote"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "place")
    return request.getfixturevalue("gcs_server").uri + "/a/prefix"


def test_written_bytes_are_read_back_whole_and_by_range(place: str) -> None:
    uri = storage.join(place, "folder", "file name ü.bin")
    storage.write_bytes(uri, b"0123456789")
    assert storage.exists(uri) and storage.size(uri) == 10
    assert storage.read_bytes(uri) == b"0123456789"
    assert storage.read_bytes(uri, 3, 4) == b"3456"
    assert storage.read_bytes(uri, 8, 100) == b"89"
    assert storage.read_bytes(uri, 7) == b"789"
    assert storage.read_bytes(uri, 10, 5) == b"" and storage.read_bytes(uri, 2, 0) == b""


def test_a_listing_names_files_relative_to_the_folder_and_only_below_it(place: str) -> None:
    for name in ("in/a", "in/b/c", "in/b/line\nbreak", "inside", "x"):
        storage.write_bytes(storage.join(place, name), name.encode())
    listed = sorted(storage.list_files(storage.join(place, "in")))
    assert listed == [("a", 4), ("b/c", 6), ("b/line\nbreak", 15)]


def test_missing_files_are_missing_at_both_places(place: str) -> None:
    uri = storage.join(place, "nothing")
    assert not storage.exists(uri) and storage.generation(uri) is None
    for read in (storage.size, storage.read_bytes):
        with pytest.raises(FileNotFoundError):
            read(uri)
    storage.delete(uri)


def test_moving_takes_the_old_name_away(place: str) -> None:
    source, target = storage.join(place, "source"), storage.join(place, "deep", "target")
    storage.write_bytes(source, b"content")
    storage.move(source, target)
    assert storage.read_bytes(target) == b"content" and not storage.exists(source)


def test_a_block_that_fails_writes_nothing_and_keeps_what_was_there(place: str) -> None:
    uri = storage.join(place, "file")
    storage.write_bytes(uri, b"old")
    with pytest.raises(RuntimeError), storage.open_write(uri) as file:
        file.write(b"half of the n")
        raise RuntimeError
    assert storage.read_bytes(uri) == b"old"
    assert [entry.name for entry in storage.list_files(place)] == ["file"]
    if not storage.is_remote(place):
        assert [path.name for path in Path(place).iterdir()] == ["file"]


def test_upload_refuses_an_object_that_somebody_else_wrote(place: str, tmp_path: Path) -> None:
    mine, uri = tmp_path / "mine", storage.join(place, "lock")
    mine.write_bytes(b"mine")
    storage.upload(mine, uri, if_generation_match=0)
    mine.write_bytes(b"again")
    with pytest.raises(storage.ConflictError):
        storage.upload(mine, uri, if_generation_match=0)
    seen = storage.generation(uri)
    storage.upload(mine, uri, if_generation_match=seen)
    assert storage.read_bytes(uri) == b"again" and storage.generation(uri) != seen


def test_a_large_download_is_complete(gcs_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("must.storage.gcs.RANGE", 1 << 20)
    content = os.urandom((9 << 20) + 17)  # above 8 MiB uploads are resumable ones
    (tmp_path / "source").write_bytes(content)
    storage.upload(tmp_path / "source", gcs_server.uri + "/big")
    gcs_server.faults.plan = ["", "cut", "503", "slow"]
    storage.download(gcs_server.uri + "/big", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    assert gcs_server.faults.done["cut"] > 1


@pytest.mark.parametrize("fault", ["503", "unsent", "lost", "last"])
def test_an_upload_longer_than_our_patience_goes_on_where_it_was(
    gcs_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Patience is with one request, of which a long upload has many."""
    from must.storage import gcs

    monkeypatch.setattr(gcs, "RANGE", 1 << 20)
    monkeypatch.setattr(gcs, "PATIENCE", 1.5)
    data = os.urandom(12 << 20)
    (tmp_path / "state").write_bytes(data)
    place = 13 if fault == "last" else 9  # of the fault among the requests; before it more than 1.5 s have passed
    fault = fault.replace("last", "lost")
    gcs_server.faults.plan = ["late"] * 9 + [""] * (place - 9) + [fault] + [""] * 100
    storage.upload(tmp_path / "state", f"{gcs_server.uri}/step.pt")
    assert (
        gcs_server.faults.done[fault] == 1 and gcs_server.faults.requests <= 12 + 3
    )  # no piece twice but the one that failed
    gcs_server.faults.plan = []
    assert storage.read_bytes(f"{gcs_server.uri}/step.pt") == data


@pytest.mark.parametrize("fault", ["429", "500", "503", "lost", "cut", "slow"])
def test_every_call_survives_a_busy_or_breaking_server(gcs_server: Server, tmp_path: Path, fault: str) -> None:
    gcs_server.faults.plan = [fault, ""]
    place = gcs_server.uri + "/x"
    for number in range(3):
        storage.write_bytes(storage.join(place, f"{number}"), b"content %d" % number)
    assert sorted(storage.list_files(place)) == [("0", 9), ("1", 9), ("2", 9)]
    assert storage.read_bytes(storage.join(place, "1"), 2, 3) == b"nte"
    (tmp_path / "lock").write_bytes(b"who")
    storage.upload(tmp_path / "lock", storage.join(place, "lock"), if_generation_match=0)
    storage.move(storage.join(place, "0"), storage.join(place, "moved"))
    storage.delete(storage.join(place, "2"))
    assert sorted(entry.name for entry in storage.list_files(place)) == ["1", "lock", "moved"]
    assert gcs_server.faults.done[fault] >= 5


def test_a_listing_of_several_pages_is_complete(gcs_server: Server) -> None:
    from concurrent.futures import ThreadPoolExecutor

    names = [f"{number:04d}" for number in range(1003)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: storage.write_bytes(f"{gcs_server.uri}/p/{name}", b"x"), names))
    gcs_server.faults.plan = ["503", ""]
    assert sorted(entry.name for entry in storage.list_files(gcs_server.uri + "/p")) == names


def test_without_credentials_one_line_says_how_to_log_in(tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "NO_GCE_CHECK": "true",
        "GCE_METADATA_TIMEOUT": "1",
    }
    code = "from must import storage\ntry: storage.read_bytes('gs://bucket/x')\nexcept ValueError as e: print(e)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert "gcloud auth application-default login" in done.stdout and done.stdout.count("\n") == 1, done.stderr


def test_without_the_package_one_line_says_what_to_install() -> None:
    code = "import sys; sys.modules['google.cloud'] = None\nfrom must import storage\n"
    code += "try: storage.exists('gs://bucket/x')\nexcept ValueError as e: print(e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "pip install 'must-clip[gcs]'" in done.stdout and done.stdout.count("\n") == 1, done.stderr


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(ValueError, match="s3://"):
        storage.exists("s3://bucket/x")


def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """On a real file system of one megabyte."""
    code = """
import os, sys
from must import storage
try:
    with storage.open_write(sys.argv[1] + "/big") as file:
        for _ in range(40):
            file.write(bytes(1 << 16))
except ValueError as error:
    print(error, os.listdir(sys.argv[1]))
"""
    script = f'mount -t tmpfs -o size=1m none "$1" && "{sys.executable}" -c "$2" "$1"'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh", str(tmp_path), code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode and "must" not in done.stderr:
        pytest.skip(f"no mounting here: {done.stderr.strip()}")
    assert "the disk is full" in done.stdout and done.stdout.strip().endswith("[]"), done.stderr


def test_symbolic_links_in_circles_end(tmp_path: Path) -> None:
    (tmp_path / "root" / "deep").mkdir(parents=True)
    (tmp_path / "root" / "deep" / "file").write_bytes(b"x")
    (tmp_path / "root" / "deep" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "nowhere").symlink_to(tmp_path / "gone")
    problems: list[tuple[str, str]] = []
    listed = list(storage.list_files(tmp_path / "root", lambda *problem: problems.append(problem)))
    assert listed == [("deep/file", 1)]
    assert sorted(problems) == [
        ("deep/up", "symbolic link into a folder above it"),
        ("nowhere", "symbolic link to nowhere"),
    ]


def test_after_a_power_loss_a_file_has_its_name_or_never_had_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes reach the disk before the name, and the folder with the name before the block ends."""
    done: list[tuple[bool, bool]] = []  # of each fsync: was it the folder, was the name there
    fsync = os.fsync

    def note(descriptor: int) -> None:
        fsync(descriptor)
        done.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), (tmp_path / "file").exists()))

    monkeypatch.setattr(os, "fsync", note)
    storage.write_bytes(tmp_path / "file", b"data")
    assert done == [(False, False), (True, True)]
