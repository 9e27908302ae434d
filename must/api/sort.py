"""The stage `must sort`: a folder for each class, with links to the images, or copies."""

import csv
import io
import logging
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.program import bar
from must.base.text import NONE_OF_THESE, counted, printable, uncell
from must.config import SortConfig
from must.config.work import PREDICTIONS_FILE, RECORD_FILE, WORDS
from must.data.loading.reader import ShardReader

logger = logging.getLogger(__name__)

SPLIT = "train"


def sort(config: SortConfig) -> dict[str, int]:
    """Puts each image of the labels into OUTPUT/CLASS, under its name; returns the number of images of each class.

    An image is linked to the file on this machine that `must adapt` was given; without one its bytes are taken from the
    shards. Raises UserError: there is something at OUTPUT."""
    target = storage.local(config.output).absolute()
    is_free = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    require(is_free, f"--output {config.output}: is there already; delete it, or choose another one")
    table = storage.join(config.labels, PREDICTIONS_FILE)
    try:
        rows = list(csv.DictReader(io.StringIO(storage.read_bytes(table).decode(), newline="")))
        labels = [(uncell(row["image"]), uncell(row["class"]) or NONE_OF_THESE) for row in rows]
    except (OSError, KeyError, AttributeError, ValueError, csv.Error):
        raise UserError(f"{table}: is missing or damaged; must refine writes it") from None
    photos, reader = find_photos(config.model), ShardReader(config.shards, SPLIT)
    packed = {name: number for number, name in enumerate(reader.sources(range(len(reader))))}
    half = target.with_name(f"{target.name}.part")
    with suppress(FileNotFoundError):
        shutil.rmtree(half)  # of a call that was killed
    for name, label in bar(labels, unit="img", desc="sort"):
        file = half / as_folder(label) / as_path(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        photo = photos / name if photos else None
        if photo and photo.is_file() and photos in photo.resolve().parents:
            shutil.copyfile(photo, file) if config.copy else file.symlink_to(photo.absolute())
        else:
            require(name in packed, f"{name}: is in the labels, and not in --shards {config.shards}")
            file.write_bytes(reader.image(packed[name]))
    with suppress(FileNotFoundError):
        target.rmdir()
    half.rename(target)
    counts = Counter(label for _, label in labels)
    logger.info(printable(f"{counted(len(labels), 'image')} of {len(counts)} classes -> {target}"))
    return dict(counts)


def find_photos(model: str) -> Path | None:
    """The folder of images that `must adapt` was given; None if there is none on this machine."""
    record = Path(model).parent / RECORD_FILE
    words = storage.read_json(str(record), "adapt").get(WORDS) if record.is_file() else None
    photos = str((words or {}).get("images") or "")
    return Path(photos).resolve() if photos and "://" not in photos and Path(photos).is_dir() else None


def as_folder(label: str) -> str:
    """A class name as the name of a folder."""
    name = label.replace("/", "-").replace("\0", "")
    return f"-{name}" if name in ("", ".", "..") else name


def as_path(name: str) -> str:
    """An image's name as a path below a folder."""
    parts = [part for part in name.replace("\0", "").split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "image"
