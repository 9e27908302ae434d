"""Local paths and real servers of three protocols behave alike: complete or absent, whatever happens on the way."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from must.base import storage
from must.base.storage import s3
from tests import zoo
from tests.stores import Server, empty_bucket

STORES = ["gs", "s3", pytest.param("az", marks=pytest.mark.slow)]


@pytest.fixture(params=STORES)
def remote(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Server:
    return empty_bucket(request, monkeypatch, request.param)


@pytest.fixture(params=["local", *STORES])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "local":
        return str(tmp_path / "place")
    return empty_bucket(request, monkeypatch, request.param).uri + "/a/prefix"


def test_what_a_kill_left_is_removed_once_nobody_can_be_writing_it(tmp_path):
    zoo.put(tmp_path / "a", dict.fromkeys((".tmp-old", ".tmp-young", ".tmp-folder/weights", "whole"), b"x"))
    for name in (".tmp-old", ".tmp-folder/weights", ".tmp-folder", "whole"):
        os.utime(tmp_path / "a" / name, (0, 0))
    storage.remove_leftovers(tmp_path)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [".tmp-young", "whole"]


def test_written_bytes_are_read_back_whole_and_by_range_and_moved(place):
    uri = storage.join(place, "folder", "file name ü.bin")
    storage.write_bytes(uri, b"0123456789")
    assert storage.exists(uri) and storage.size(uri) == 10
    assert storage.read_bytes(uri) == b"0123456789"
    assert storage.read_bytes(uri, 3, 4) == b"3456"
    assert storage.read_bytes(uri, 8, 100) == b"89"
    assert storage.read_bytes(uri, 7) == b"789"
    assert storage.read_bytes(uri, 10, 5) == b"" and storage.read_bytes(uri, 2, 0) == b""
    target = storage.join(place, "deep", "target")
    storage.move(uri, target)
    assert storage.read_bytes(target) == b"0123456789" and not storage.exists(uri)


def test_a_listing_names_files_relative_to_the_folder_and_only_below_it(place):
    odd = "line?&break" if place.startswith("s3://") else "line\nbreak"  # moto finds no name with a line break
    for name in ("in/a", "in/b/c", f"in/b/{odd}", "inside", "x"):
        storage.write_bytes(storage.join(place, name), name.encode())
    if storage.is_remote(place):
        storage.write_bytes(storage.join(place, "in/folder/"), b"")  # as a console makes one
    listed = sorted(entry[:2] for entry in storage.list_files(storage.join(place, "in")))
    assert listed == [("a", 4), ("b/c", 6), (f"b/{odd}", 5 + len(odd))]


def test_missing_files_are_missing_everywhere(place):
    uri = storage.join(place, "nothing")
    assert not storage.exists(uri) and storage.find_generation(uri) is None
    for read in (storage.size, storage.read_bytes):
        with pytest.raises(FileNotFoundError):
            read(uri)
    storage.delete(uri)


def test_a_block_that_fails_writes_nothing_and_keeps_what_was_there(place):
    uri = storage.join(place, "file")
    storage.write_bytes(uri, b"old")
    with pytest.raises(RuntimeError), storage.open_write(uri) as file:
        file.write(b"half of the n")
        raise RuntimeError
    assert storage.read_bytes(uri) == b"old"
    assert [entry.name for entry in storage.list_files(place)] == ["file"]
    if not storage.is_remote(place):
        assert [path.name for path in Path(place).iterdir()] == ["file"]


def test_writing_refuses_an_object_that_somebody_else_wrote(place):
    uri = storage.join(place, "lock")
    storage.write_bytes(uri, b"mine", if_generation_match=0)
    with pytest.raises(storage.ConflictError):
        storage.write_bytes(uri, b"again", if_generation_match=0)
    for content in (b"again", b"and again", b"once more"):  # at once: within one tick of the clock
        _, seen = storage.read_versioned(uri)
        storage.write_bytes(uri, content, if_generation_match=seen)
        assert storage.read_bytes(uri) == content
        with pytest.raises(storage.ConflictError):
            storage.write_bytes(uri, b"late", if_generation_match=seen)
    _, seen = storage.read_versioned(uri)
    storage.delete(uri)
    with pytest.raises(storage.ConflictError):
        storage.write_bytes(uri, b"of an object that is gone", if_generation_match=seen)
    assert storage.read_versioned(uri) == (None, 0)


def test_a_large_download_is_complete(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(storage.find_store(remote.uri), "RANGE", 1 << 20)
    content = os.urandom((9 << 20) + 17)  # above 8 MiB uploads are resumable ones
    (tmp_path / "source").write_bytes(content)
    storage.upload(tmp_path / "source", remote.uri + "/big")
    remote.faults.plan = ["", "cut", "503", "slow"]
    storage.download(remote.uri + "/big", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    assert remote.faults.done["cut"] > 1


def test_a_download_is_of_a_single_version(remote, monkeypatch):
    monkeypatch.setattr(storage.find_store(remote.uri), "RANGE", 1 << 18)  # the least for Google's client
    uri, found = remote.uri + "/object", []
    storage.write_bytes(uri, b"a" * 300_000)

    class Overwriting:
        def write(self, data):
            found.append(data)
            storage.write_bytes(uri, b"b" * 300_000)
            return len(data)

    with pytest.raises(ValueError, match="was overwritten while it was read, after 262144 of 300000 bytes"):
        storage.copy(uri, Overwriting())
    assert found == [b"a" * (1 << 18)]


def test_an_object_above_what_one_request_copies_moves_whole(remote, monkeypatch):
    monkeypatch.setattr(storage.find_store(remote.uri), "LARGEST_COPY", 6 << 20, raising=False)  # S3 alone has a limit
    content = os.urandom((12 << 20) + 17)
    storage.write_bytes(remote.uri + "/chunk.tar", content)
    storage.move(remote.uri + "/chunk.tar", remote.uri + "/shard.tar")
    assert storage.read_bytes(remote.uri + "/shard.tar") == content
    assert not storage.exists(remote.uri + "/chunk.tar")
    if remote.uri.startswith("s3://"):
        assert str(storage.find_generation(remote.uri + "/shard.tar")).strip('"').endswith("-3"), (
            "the ETag of three parts"
        )


@pytest.mark.parametrize("fault", ["503", *(pytest.param(one, marks=pytest.mark.slow) for one in ("unsent", "lost"))])
def test_an_upload_longer_than_our_patience_goes_on_where_it_was(remote, tmp_path, monkeypatch, fault):
    """Patience is with one request, of which a long upload has many; the last one's answer is lost, besides."""
    monkeypatch.setattr(storage.find_store(remote.uri), "RANGE", 1 << 20)
    monkeypatch.setattr("must.base.storage.store.RETRY_TIMEOUT", 1.5)
    data = os.urandom(12 << 20)
    (tmp_path / "state").write_bytes(data)
    pieces = 12 + 1 + remote.uri.startswith("s3://")  # one begins it; S3 and Azure end it with one more
    # of the requests the ninth fails, when more than 1.5 s have passed, and then the last
    remote.faults.plan = ["late"] * 9 + [fault] + [""] * (pieces - 9) + ["lost"] + [""] * 100
    storage.upload(tmp_path / "state", f"{remote.uri}/step.pt")
    assert remote.faults.done[fault] + remote.faults.done["lost"] == (4 if fault == "lost" else 2)
    assert remote.faults.requests <= pieces + 4  # no piece twice but those that failed
    remote.faults.plan = []
    assert storage.read_bytes(f"{remote.uri}/step.pt") == data


def test_the_parts_of_an_upload_that_fails_are_deleted(request, monkeypatch, tmp_path):
    server = empty_bucket(request, monkeypatch, "s3")
    monkeypatch.setattr(storage.find_store(server.uri), "RANGE", 1 << 10)
    (tmp_path / "file").write_bytes(bytes(5 << 10))
    server.faults.plan = ["", "", "", "403"]  # of the requests the third, which sends the second part
    with pytest.raises(ValueError, match="no permission"):
        storage.upload(tmp_path / "file", f"{server.uri}/file")
    assert "Uploads" not in s3.client().list_multipart_uploads(Bucket=server.uri.removeprefix("s3://"))


@pytest.mark.parametrize("fault", ["429", "500", "503", "lost", "cut", "slow"])
def test_every_call_survives_a_busy_or_breaking_server(remote, tmp_path, fault):
    remote.faults.plan = [fault, ""]
    place = remote.uri + "/x"
    for number in range(3):
        storage.write_bytes(storage.join(place, f"{number}"), b"content %d" % number)
    assert sorted(entry[:2] for entry in storage.list_files(place)) == [("0", 9), ("1", 9), ("2", 9)]
    assert storage.read_bytes(storage.join(place, "1"), 2, 3) == b"nte"
    (tmp_path / "lock").write_bytes(b"who")
    storage.upload(tmp_path / "lock", storage.join(place, "lock"))
    storage.move(storage.join(place, "0"), storage.join(place, "moved"))
    storage.delete(storage.join(place, "2"))
    assert sorted(entry.name for entry in storage.list_files(place)) == ["1", "lock", "moved"]
    assert remote.faults.done[fault] >= 5


def test_a_listing_of_several_pages_is_complete(remote, monkeypatch):
    monkeypatch.setattr(storage.find_store(remote.uri), "PAGE", 5)
    names = [f"{number:04d}" for number in range(13)]
    for name in names:
        storage.write_bytes(f"{remote.uri}/p/{name}", b"x")
    remote.faults.plan, remote.faults.requests = ["503", ""], 0
    assert sorted(entry.name for entry in storage.list_files(remote.uri + "/p")) == names
    assert remote.faults.requests >= 3


@pytest.mark.parametrize(
    "store, package, hint",
    [
        ("gs", "", "gcloud auth application-default login"),
        ("gs", "google.cloud", "pip install 'must-clip[gcs]'"),
        ("s3", "boto3", "pip install 'must-clip[s3]'"),
        ("az", "azure.storage", "pip install 'must-clip[azure]'"),
    ],
)
def test_without_credentials_or_the_package_one_line_says_what_to_do(tmp_path, store, package, hint):
    code = f"import sys; sys.modules['{package}'] = None\nfrom must.base import storage\n"
    code += f"try: storage.exists('{store}://bucket/x')\nexcept ValueError as e: print(e)"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}  # no credentials of whoever runs this
    environment |= {"NO_GCE_CHECK": "true", "GCE_METADATA_TIMEOUT": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert hint in done.stdout and done.stdout.count("\n") == 1, done.stderr


def test_a_full_disk_is_said_in_one_line_and_leaves_nothing(tmp_path):
    """On a real file system of one megabyte."""
    code = """
import os, sys
from must.base import storage
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


def test_circles_of_links_and_folders_without_end_are_named(tmp_path):
    zoo.put(tmp_path / "deep", {"file": b"x"})
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "/".join("a" * 210)).mkdir(parents=True)
    problems: dict[str, str] = {}
    assert [entry[:2] for entry in storage.list_files(tmp_path, problems.__setitem__)] == [("deep/file", 1)]
    assert problems.pop("/".join("a" * 201)) == "more than 200 folders deep"
    assert problems == {"deep/up": "symbolic link into a folder above it", "nowhere": "symbolic link to nowhere"}


def test_after_a_power_loss_a_file_has_its_name_or_none(tmp_path, monkeypatch):
    """The bytes reach the disk before the name, and the folder with the name before the block ends."""
    done: list[tuple[bool, bool]] = []  # of each fsync: was it the folder, was the name there
    fsync = os.fsync

    def note(descriptor: int) -> None:
        fsync(descriptor)
        done.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), (tmp_path / "file").exists()))

    monkeypatch.setattr(os, "fsync", note)
    storage.write_bytes(tmp_path / "file", b"data")
    assert done == [(False, False), (True, True)]


KILLED = """
import os, signal, sys
from must.base import storage
with storage.open_write(sys.argv[1]) as file:
    file.write(b"half" * 100_000)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_file_whose_writer_is_killed_is_what_it_was(tmp_path):
    (tmp_path / "there").write_bytes(b"before")
    for name in ("there", "new"):
        assert subprocess.run([sys.executable, "-c", KILLED, tmp_path / name], check=False).returncode == -9
    assert [entry.name for entry in storage.list_files(tmp_path)] == ["there"]
    assert (tmp_path / "there").read_bytes() == b"before" and not (tmp_path / "new").exists()


def test_a_file_that_is_whole_may_be_read_by_others(tmp_path):
    before = os.umask(0o027)
    try:
        storage.write_bytes(tmp_path / "file", b"text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_no_file_takes_the_place_of_a_device_or_pipe(tmp_path):
    """As root, `--output /dev/null` would end the machine's /dev/null."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to("/dev/null")
    (tmp_path / "stdout").symlink_to("/proc/self/status")  # what /dev/stdout is when it goes to a file
    for name in ("pipe", "null", "stdout"):
        with pytest.raises(OSError, match="a pipe, socket or device, no file"):
            storage.write_bytes(tmp_path / name, b"text")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "null").is_symlink() and (tmp_path / "stdout").is_symlink()
