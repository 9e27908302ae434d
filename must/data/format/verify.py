"""`must index verify`: reads shards and reports damage."""

import io
import json
import logging
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from must.base import storage
from must.base.errors import UserError
from must.base.names import Headers
from must.base.progress import bar
from must.base.text import printable
from must.data.format.index import Index, Shard, load_index
from must.data.format.samples import load_offsets, load_texts

logger = logging.getLogger(__name__)


def verify(uri: str) -> Index:
    """Checks all files of an index; prints a line for each fault.
    Raises ValueError: there are faults; the message has the number of broken shards and the first fault."""
    index = load_index(uri)
    faults: list[str] = []
    for shard in bar(index.shards, desc="verify", unit="shard"):
        lines = [f"{shard.name}: {fault}" for fault in faults_of(uri, shard)]
        for line in lines:
            with tqdm.external_write_mode(file=sys.stdout):
                logger.info(printable(line))
        faults += lines[:1]
    broken = len(faults)
    for table in index.tables:
        fault = fault_of_table(uri, table)
        if fault:
            logger.info(printable(fault))
            faults.append(fault)
    names = {shard.file or shard.name for shard in index.shards}
    stray = [entry.name for entry in storage.list_files(uri) if entry.name.endswith(".tar") and entry.name not in names]
    if stray:
        logger.info(f"not in the index, and not read by anything: {printable(', '.join(sorted(stray)[:10]))}")
    if faults:
        problem = f"{broken} of {len(index.shards)} shards are broken" if broken else "--append's tables are broken"
        raise UserError(f"{uri}: {problem}; the first fault: {faults[0]}")
    logger.info(f"{uri}: {len(index.shards)} shards, {sum(s.samples for s in index.shards)} images, all whole")
    return index


def fault_of_table(uri: str, table: dict[str, str]) -> str:
    try:
        with storage.local_copy(storage.join(uri, table["name"])) as path:
            unchanged = storage.sha256_of(path) == table["sha256"]
        return "" if unchanged else f"{table['name']}: its bytes have changed (sha256)"
    except FileNotFoundError:
        return f"{table['name']}: missing"


def faults_of(uri: str, shard: Shard) -> Iterator[str]:
    """The faults of one shard: first a different size or checksum, then details."""
    path = shard.location(uri)
    try:
        size = storage.size(path)
    except FileNotFoundError:
        yield "missing"
        return
    if size != shard.bytes:
        yield f"{size} bytes instead of {shard.bytes}"
        return
    with storage.local_copy(path) as local:
        if storage.sha256_of(local) != shard.sha256:
            yield "its bytes have changed (sha256)"
        try:
            offsets = load_offsets(uri, shard)
        except ValueError as error:
            yield str(error)
            return
        yield from faults_in_place(uri, local, offsets, shard) if shard.file else faults_inside(local, offsets, shard)


def faults_inside(path: Path, offsets: np.ndarray, shard: Shard) -> Iterator[str]:
    """Compares the tar's own headers with the table of offsets and the counts of the index."""
    sample, labelled = 0, 0
    try:
        with Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while True:
                image, text = file.next(tar), file.next(tar)
                if image is None or text is None:
                    break
                tar.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps every header
                row = (image.offset_data, image.size, text.offset_data, text.size)
                if sample < len(offsets) and tuple(int(value) for value in offsets[sample]) != row:
                    yield f"sample {sample} ({image.name}) is at {row}, not at {offsets[sample].tolist()}"
                    return
                labelled += has_label(tar, text)
                sample += 1
    except Exception as error:  # tarfile and json raise any class
        yield f"no readable tar after sample {sample}: {str(error) or type(error).__name__}"
        return
    if sample != shard.samples:
        yield f"{sample} samples instead of {shard.samples}"
    if labelled != shard.labelled:
        yield f"{labelled} labelled samples instead of {shard.labelled}"


def has_label(tar: tarfile.TarFile, text: tarfile.TarInfo) -> bool:
    """Whether a sample's json member has a label. Raises the reader's errors, and ValueError: no JSON object."""
    member = tar.extractfile(text)
    content = json.load(io.TextIOWrapper(member)) if member else {}
    if not isinstance(content, dict):
        raise UserError(f"{text.name} is no JSON object")
    return content.get("label") is not None


def faults_in_place(uri: str, path: Path, offsets: np.ndarray, shard: Shard) -> Iterator[str]:
    """Compares another program's tar with the table of offsets and the texts beside the index."""
    try:
        texts = load_texts(uri, shard)
    except ValueError as error:
        yield str(error)
        return
    try:
        with Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            headers = iter(lambda: file.next(tar), None)
            members = {(member.offset_data, member.size): member.name.removeprefix("./") for member in headers}
    except Exception as error:  # tarfile raises any class
        yield f"no readable tar: {str(error) or type(error).__name__}"
        return
    labelled = 0
    for sample, (image, size, start, length) in enumerate(offsets.tolist()):
        name = members.get((image, size))
        text = storage.object_or_none(texts[start : start + length], lambda text: (text["source"], text.get("label")))
        if not text or not name or not isinstance(text[0], str) or not text[0].endswith(name):
            yield f"sample {sample} is not what is at {image} ({name or 'no member'})"
            return
        labelled += text[1] is not None
    if labelled != shard.labelled:
        yield f"{labelled} labelled samples instead of {shard.labelled}"
