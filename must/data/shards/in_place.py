"""`must index make`: an index of WebDataset shards that another program has written. The tars are not changed.

With the index it writes for each tar the table of offsets and a JSON line per sample: its source, its label, and the
sha256 of its image. Images are those that `must shard --validate header` would accept from the same tars.
"""

import hashlib
import json
import re
import tarfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

import must
from must.base import storage
from must.base.errors import UserError
from must.base.files import INDEX_FILE
from must.base.lock import locked
from must.base.parameters import require
from must.base.processes import cores
from must.base.progress import bar
from must.base.text import encoded
from must.config import ShardConfig
from must.data.format import index
from must.data.format.index import Index, Shard, check_file
from must.data.image import decode as images
from must.data.shards.assemble import Pool
from must.data.shards.build import fresh_folder, show_index
from must.data.shards.chunk import npy, rejection_reason
from must.data.shards.commit import MOST_LABELS, count_splits
from must.data.shards.workdir import SHARDS_LOCK
from must.data.sources.archives import existing_files, tar_members
from must.data.sources.base import ListingReport, kind_of, relative_names, report_damage

MAX_BYTES: int = ShardConfig.max_file_mb * 1_000_000


@dataclass(frozen=True)
class Job:
    """One tar to be read. `prefix` is put before its members' names, as in a source of several archives."""

    uri: str
    name: str
    split: str
    file: str
    prefix: str


@dataclass
class TarContents:
    """What is in one tar."""

    shard: Shard
    labels: set[str]
    files: dict[str, bytes]  # to be written to the folder of the index
    rejected: list[tuple[str, str]] = field(default_factory=list)  # (name, reason)
    skipped: Counter[str] = field(default_factory=Counter)


def make_index(uri: str, output: str = "", split: str = "train", test: str = "", workers: int = 0) -> Index:
    """Writes index.json and its tables for the tars at `uri` to the folder `output`; prints a summary.
    Raises ValueError: no tars or no images, a damaged tar, or other files of these names in the output. Files that were
    written are then deleted.

    Args:
        uri: a folder or a bucket's prefix of tars, one tar, or a range such as x-{000..099}.tar.
        output: "" means the folder of the tars.
        test: more tars, which become the split "test".
        workers: processes; 0 means one per core.
    """
    require(split.isidentifier() and split.islower(), f"--split: {split!r} is no split name")
    require(not test or split != "test", "--test-source: its tars are the split test; give the others another --split")
    jobs: list[Job] = []
    for source, name, option in ((uri, split, "URI"), (test, "test", "--test-source")):
        files = tars(source, option) if source else []
        output = output or (source if not source.endswith(".tar") else files[0][0].rpartition("/")[0] or ".")
        for number, (file, prefix) in enumerate(files):
            jobs.append(Job(file, f"{name}-{number:06d}.tar", name, path_in_index(file, output), prefix))
    for job in jobs:
        check_file(job.file)
    path = storage.join(output, INDEX_FILE)
    remote = [storage.is_remote(job.uri) for job in jobs]
    require(
        all(remote) or not storage.is_remote(output),
        f"--output {output}: an index in a bucket is read on other machines, which do not have these local tars",
    )
    with fresh_folder(output), locked(output, SHARDS_LOCK) as check_lock:
        require(not storage.exists(path), f"{path} is there already; delete it, or choose another --output")
        done: list[TarContents] = []
        written: list[str] = []
        try:
            with Pool(min(workers or cores(), len(jobs))) as pool:
                results = pool.unordered(read_tar, [(job,) for job in jobs])
                for tar in bar(results, total=len(jobs), desc="index", unit="shard"):
                    written += [name for name, data in tar.files.items() if write_if_absent(output, name, data)]
                    tar.files.clear()
                    done.append(tar)
            order = {job.name: number for number, job in enumerate(jobs)}
            done.sort(key=lambda tar: order[tar.shard.name])
            new = index_of(uri, done)
            lines = [{"source": name, "reason": why} for tar in done for name, why in tar.rejected]
            if lines and write_if_absent(
                output, index.REJECTED, b"".join(json.dumps(line).encode() + b"\n" for line in lines)
            ):
                written.append(index.REJECTED)
            check_lock()
            storage.write_bytes(path, new.to_json(), if_generation_match=0)
        except BaseException:
            for name in written:
                with suppress(OSError, ValueError):
                    storage.delete(storage.join(output, name))
            raise
    return show_index(output)


def tars(uri: str, option: str) -> list[tuple[str, str]]:
    """The tars at `uri`, in order, and the prefixes of their members' names, as in `must shard`."""
    if uri.endswith(".tar"):
        files = existing_files(uri, option)
        prefixes = [name + "/" for name in relative_names(files)] if len(files) > 1 else [""]
        return list(zip(files, prefixes, strict=True))
    try:
        names = sorted(entry.name for entry in storage.list_files(uri) if kind_of(entry.name) != "hidden")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{option} {uri}: there is no such folder of tars; give a folder or x-{{000..099}}.tar"
        ) from None
    packed = next((name for name in names if re.search(r"\.(tar\.\w+|tgz)$", name)), None)
    require(
        packed is None, f"{option} {uri}: {packed} is compressed, and cannot be read in place; `must shard` takes it"
    )
    archives = [(storage.join(uri, name), name + "/") for name in names if name.endswith(".tar")]
    require(bool(archives), f"{option} {uri}: no .tar files in there")
    return archives


def path_in_index(file: str, output: str) -> str:
    """The tar's path in the index: relative to the index, so that both can be moved together, or else absolute."""
    if storage.is_remote(file):
        return file.removeprefix(output.rstrip("/") + "/")
    path, folder = storage.local(file).resolve(), storage.local(output).resolve()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def read_tar(job: Job) -> TarContents:
    """Reads a tar; one in a bucket by way of a temporary copy."""
    with storage.local_copy(job.uri) as path:
        rejected: list[tuple[str, str]] = []
        report = ListingReport(lambda name, why: rejected.append((job.prefix + name, why)))
        labels: set[str] = set()
        rows: list[tuple[int, int, int, int]] = []
        texts: list[bytes] = []
        offset = labelled = 0
        with report_damage(job.uri, "tar"):
            members = list(tar_members(str(path), report))
        for name, size, (start, _), label in members:
            if not report.accepts(name):
                continue
            source = job.prefix + name
            try:
                if size > MAX_BYTES:
                    raise UserError(f"more than {MAX_BYTES} bytes")
                data = storage.read_bytes(path, start, size)
                images.identify(data, ShardConfig.max_pixels)
            except (ValueError, OSError) as error:
                rejected.append((source, rejection_reason(error)))
                continue
            text = {"source": source, "label": label, "sha256": hashlib.sha256(data).hexdigest()}
            if job.prefix and len(encoded(name)) > tarfile.LENGTH_NAME:
                text["name"] = name  # the header may be too short for it, and the sample's key is a part of it
            texts.append(json.dumps(text).encode() + b"\n")
            rows.append((start, size, offset, len(texts[-1])))
            offset += len(texts[-1])
            if label is not None:
                labels.add(label)
                labelled += 1
        table, lines = npy(np.array(rows, np.int64).reshape(-1, 4)), b"".join(texts)
        sums = [hashlib.sha256(data).hexdigest() for data in (table, lines)]
        size, checksum = path.stat().st_size, storage.sha256_of(path)
    shard = Shard(job.name, job.split, len(rows), size, checksum, sums[0], labelled, job.file, texts_sha256=sums[1])
    return TarContents(shard, labels, {shard.offsets_name: table, shard.texts_name: lines}, rejected, report.skipped)


def write_if_absent(output: str, name: str, data: bytes) -> bool:
    """Whether the file was written; a killed run may have done so before. Raises ValueError: it has other content."""
    path = storage.join(output, name)
    if storage.exists(path):
        require(
            storage.size(path) == len(data) and storage.read_bytes(path) == data,
            f"{output} holds {name}, which is none of this index's; choose another --output, or move the file away",
        )
        return False
    storage.write_bytes(path, data)
    return True


def index_of(uri: str, done: list[TarContents]) -> Index:
    labels = {label for tar in done for label in tar.labels}
    require(
        len(labels) <= MOST_LABELS,
        f"{uri}: more than {MOST_LABELS} different labels, which the index would name one by one; are these captions?",
    )
    reasons = Counter(re.sub(r"\d+", "N", why) for tar in done for _, why in tar.rejected)
    shards = tuple(tar.shard for tar in done)
    names = tuple(dict.fromkeys(shard.split for shard in shards))
    splits = count_splits(shards, names)
    first = next((f"; {name}: {why}" for tar in done for name, why in tar.rejected), "")
    for name in names:
        require(name in splits, f"{uri}: the tars of the split {name} hold no images{first}")
    sums = hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()
    return Index(
        revision=0,
        created_by=f"must {must.__version__}",
        source={"uri": uri, "fingerprint": sums},
        settings={
            "labels": "csv",
            "resize": 0,
            "validate": "header",
            "max_pixels": ShardConfig.max_pixels,
            "max_bytes": MAX_BYTES,
        },
        shards=shards,
        splits=splits,
        labels=tuple(sorted(labels)),
        rejected=sum(reasons.values()),
        reasons=dict(reasons.most_common()),
        duplicates=0,
        dropped=0,
        skipped=dict(sorted(sum((tar.skipped for tar in done), Counter()).items())),
    )
