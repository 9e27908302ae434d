"""Inputs from Python: images become a source that `must shard` reads, class names the entries of a class file."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.text import compose, make_printable
from must.data.format import parse_hashes
from must.data.image.decode import decode, identify, read_orientation, rotate_upright
from must.data.image.preprocess import Levels, is_transparent, to_rgb
from must.data.shards.listing import open_source
from must.data.sources.files import Folder, ListingReport, Manifest, describe_no_images, resolve_beside
from must.model.classifier import BUNDLED_SET, DEFAULT_TEMPLATE, ClassSet, load_class_set, make_class_set

ACCEPTED = (
    "a folder, a list or a Series of paths, PIL images or arrays, a datasets.Dataset with an image column, or a torch "
    "Dataset of images or (image, label) pairs"
)
MANIFEST, FOLDER = "images.jsonl", "images"  # as images of a program are written
FOLDER_NAMES = "folders"  # the value of `classes` for the names of the folders of images
MOST_SHOWN = 20  # names of folders
PARTS_OF_A_SET = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}  # in small letters


class ImageSource(NamedTuple):
    """`source`: what `must shard` reads; `key`: of images that were in memory; "": they are files."""

    source: str
    key: str = ""


def to_source(images: Any, folder: Path) -> ImageSource:
    """The images as a source. Those that are in memory are written to a new folder in `folder` as PNG files, without
    their labels, and paths to a table there."""
    if isinstance(images, str | os.PathLike):
        return ImageSource(os.fspath(images))
    items, paths = list_items(images), list[Path]()
    for item in items:
        if not isinstance(item, str | os.PathLike):
            convert_image(
                item, f"images: number {len(paths)}"
            )  # if it is none, the files before it need not be decoded
            return write_images(chain(paths, [item], items), folder / FOLDER)
        paths.append(Path(item).absolute())
        require(paths[-1].is_file(), f"images: {paths[-1]}: no such file")
    require(len(paths) > 0, "images: there are none")
    table = folder / MANIFEST
    storage.write_bytes(str(table), "".join(json.dumps({"path": str(path)}) + "\n" for path in paths).encode())
    return ImageSource(str(table))


class Fingerprint(NamedTuple):
    """`key` changes when the images change: names, sizes and times of the files on this machine that a source reads,
    and the content of a manifest; wherever they are. A bucket's is its URI; "" that of no source."""

    key: str
    files: np.ndarray = np.empty(0, np.uint64)  # [files of a folder]: a hash of name, size and time of each, sorted


def fingerprint_source(source: ImageSource, label: str, exclude: str, fewest: int = 0) -> Fingerprint:
    """`exclude`: a folder that is not read. Raises UserError: in a folder or a manifest on this machine are fewer than
    `fewest` images."""
    if not source.source or storage.is_remote(source.source):
        return Fingerprint(source.source)
    path, problems = storage.local(source.source), ListingReport(lambda _name, _reason: None)
    uri = source.source.removeprefix("file://")
    listing = open_source(uri, "none", label, exclude)
    base = storage.join(uri, "") if path.is_dir() else resolve_beside(uri, "")
    names = sorted(name.removeprefix(base) for name in listing.files(problems))
    if isinstance(listing, Folder | Manifest):
        where = label if path.name in (MANIFEST, FOLDER) else f"{label} {source.source}"
        require(len(names) > 0 or not fewest, f"{where}: {describe_no_images(problems.skipped)}")
        enough = f"at least {fewest} are needed, and hundreds are better"
        require(len(names) >= fewest, f"{where}: too few images ({len(names)}); {enough}")
    if source.key:
        return Fingerprint(source.key)
    digest, hashes = hashlib.sha256(path.read_bytes() if isinstance(listing, Manifest) else b""), bytearray()
    for name in names:
        with suppress(OSError, ValueError):
            status = Path(base, name).stat()
            line = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape")
            digest.update(line)
            hashes += hashlib.blake2b(line, digest_size=8).digest()
    files = np.sort(parse_hashes(hashes)) if isinstance(listing, Folder) else Fingerprint("").files
    return Fingerprint(digest.hexdigest(), files)


def identify_model(model: str) -> str:
    """The name of a model or of weights; of a folder or a file the sha256 of its content, wherever it is."""
    path = Path(model)
    if not model or not path.exists():
        return model
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    names = "".join(f"{file.relative_to(path)}\0{storage.compute_sha256(file)}\n" for file in files)
    return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()


def list_items(images: Any) -> Iterator[Any]:
    """The images of a collection, also of (image, label) pairs or of mappings with an image in them."""
    require(images is not None and not isinstance(images, bytes), f"images: expected {ACCEPTED}")
    if hasattr(images, "column_names"):
        images = find_image_column(images)
    elif hasattr(images, "columns"):
        example = next((f", such as images=table[{str(name)!r}]" for name in images.columns), "")
        raise UserError(f"images: a table; give one of its columns{example}")
    elif not isinstance(images, Iterable) and hasattr(images, "__len__") and hasattr(images, "__getitem__"):
        images = map(images.__getitem__, range(len(images)))
    require(isinstance(images, Iterable), f"images: {type(images).__name__} is none of those known: {ACCEPTED}")
    for item in images:
        image = item[0] if isinstance(item, tuple | list) and item else item
        yield image["image"] if isinstance(image, dict) and "image" in image else image


def find_image_column(dataset: Any) -> Iterator[Any]:
    """The image column of a Hugging Face dataset."""
    require(
        not hasattr(dataset, "keys"),
        f"images: a dataset of several splits ({', '.join(map(str, dataset.column_names))}); give one of them",
    )
    features = getattr(dataset, "features", None) or {}
    columns = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    require(len(columns) > 0, f"images: the dataset has no column of images; it has: {', '.join(dataset.column_names)}")
    return (row[columns[0]] for row in dataset.select_columns([columns[0]]))


def write_images(items: Iterable[Any], folder: Path) -> ImageSource:
    """Writes each image as a PNG file; the key is a sha256 of the pixels."""
    digest = hashlib.sha256()
    for number, item in enumerate(items):
        image = convert_image(item, f"images: number {number}", deep=True)
        path = folder / f"{number // 10_000:04d}" / f"{number:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, compress_level=1)
        digest.update(f"{image.mode}{image.size}".encode() + image.tobytes())
    return ImageSource(str(folder), digest.hexdigest())


def convert_image(item: Any, where: str, levels: Levels = (), deep: bool = False) -> Image.Image:
    """An RGB or grey image as a viewer shows it: upright, transparent pixels on white.
    `item`: a PIL image; an array uint8 [H, W] or [H, W, 1|3|4]; a tensor [1|3, H, W], uint8, or float from 0 to 1; a
    path; or the bytes of a file, by themselves or as {"bytes": ...}. `where` begins the message of an error; `levels`:
    of images with more than 8 bits; `deep`: grey ones of 16 bits stay as they are."""
    if isinstance(item, dict):  # a Hugging Face image that is not decoded
        item = item.get("bytes") or item.get("path")
    try:
        if isinstance(item, str | os.PathLike):
            item = Path(item).read_bytes()
        if isinstance(item, bytes):
            header = identify(item)
            grey = header.mode == "L" and not is_transparent(header) and read_orientation(header) == 1
            keep = deep and header.mode == "I;16"
            item = header if keep else decode(item, levels=levels).convert("L" if grey else "RGB")
        elif hasattr(item, "detach"):
            item = item.detach().cpu().numpy()
            item = item.transpose(1, 2, 0) if item.ndim == 3 else item
            if item.dtype.kind == "f":
                require(float(item.min()) >= 0 and float(item.max()) <= 1, "numbers outside of 0 to 1")
                item = np.round(item * 255).astype(np.uint8)
        if isinstance(item, np.ndarray):
            require(item.dtype == np.uint8, f"an array of {item.dtype}, not of uint8")
            shape = " x ".join(map(str, item.shape))
            require(item.ndim == 2 or item.shape[2:] in ((1,), (3,), (4,)), f"an array of {shape} is no image")
            item = Image.fromarray(item[..., 0] if item.ndim == 3 and item.shape[2] == 1 else item)
        require(isinstance(item, Image.Image), f"{type(item).__name__} is no image")
        item.load()  # the orientation of a TIFF is known only after loading
        rotation = read_orientation(item)
        plain = item.mode in ("L", "RGB", *["I;16"] * deep) and not is_transparent(item) and rotation == 1
        return item if plain else rotate_upright(to_rgb(item, levels), rotation)
    except Exception as error:  # Pillow raises anything for a damaged file
        raise UserError(f"{where}: {' '.join(str(error).split()) or type(error).__name__}") from None


class ClassNames(NamedTuple):
    """Of a class file. For names and prompts from Python `file` is '' and `content` is that of a class file with them;
    `names` is () for the bundled set. `key` is equal for the same names and prompts."""

    file: str
    content: bytes
    key: str
    names: tuple[str, ...] = ()

    def list_names(self) -> tuple[str, ...]:
        """Also those of the bundled set, which imports torch."""
        return self.names or load_class_set(self.file).names


def read_classes(classes: Any, images: Any = "", exclude: str = "") -> ClassNames:
    """`images`, `exclude`: for FOLDER_NAMES."""
    if isinstance(classes, str) and classes == FOLDER_NAMES:
        classes = list_folder_names(images, exclude)
    if isinstance(classes, str | os.PathLike):
        file = os.fspath(classes)
        if file == BUNDLED_SET:
            return ClassNames(file, b"", file)
        class_set = load_class_set(file)
        if storage.exists(file):
            return ClassNames(file, storage.read_bytes(file), hash_classes(class_set), class_set.names)
        classes = list(class_set.names)  # cat,dog,horse
    entries = make_entries(classes)
    class_set = make_class_set(entries, [DEFAULT_TEMPLATE], "classes")
    content = yaml.safe_dump({"classes": entries}, sort_keys=False, allow_unicode=True).encode()
    return ClassNames("", content, hash_classes(class_set), class_set.names)


def rename_classes(classes: Any, rename: dict[str, str], images: Any) -> Any:
    """The names, or those of the prompts, with new ones, {old: new}; a file, or the folders of `images`, have them
    already. Raises UserError: they have not."""

    def find(name: Any) -> Any:
        return rename.get(compose(str(name)), name)

    named = classes.tolist() if hasattr(classes, "tolist") else classes
    if isinstance(named, str) and named not in SETS_OF_NAMES and not storage.exists(named):
        named = [name.strip() for name in named.split(",")]
    if isinstance(named, dict):
        named = {find(name): prompts for name, prompts in named.items()}
    elif isinstance(named, list | tuple):
        named = list(dict.fromkeys(map(find, named)))
    elif isinstance(classes, str | os.PathLike):
        old = min(set(rename) & set(read_classes(classes, images).list_names()), default="")
        folder = f"the folder {old!r} has the old name; rename it, too, to {rename.get(old)!r}"
        file = f"{classes} names {old!r}; write its new name there, too"
        require(not old, f"--rename: {folder if classes == FOLDER_NAMES else file}")
    return named


def hash_classes(class_set: ClassSet) -> str:
    return hashlib.sha256(repr(class_set).encode(errors="surrogateescape")).hexdigest()


def make_entries(classes: Any) -> list[Any]:
    """Classes from Python as entries of a class file, which `make_class_set` checks."""
    if isinstance(classes, dict):
        prompts = {name: [entry] if isinstance(entry, str) else entry for name, entry in classes.items()}
        return [{"name": convert_scalars(name), "prompts": convert_scalars(entry)} for name, entry in prompts.items()]
    if hasattr(classes, "tolist"):  # a numpy array or a pandas Series
        classes = classes.tolist()
    require(isinstance(classes, list | tuple), "classes: expected a list of names, a dictionary, or a file")
    return convert_scalars(classes)


def list_folder_names(images: Any, exclude: str = "") -> list[str]:
    """The names of the folders in a folder of images, for classes="folders". `exclude`: a folder that is none."""
    here = isinstance(images, str | os.PathLike) and not storage.is_remote(os.fspath(images))
    what = f"{os.fspath(images)} is none" if here else "a list, or the URI of a bucket, is none"
    require(here and Path(images).is_dir(), f"classes {FOLDER_NAMES}: needs a folder on this machine; {what}")
    output = Path(exclude).resolve() if exclude else None
    found = (entry for entry in Path(images).iterdir() if entry.is_dir() and not entry.name.startswith("."))
    folders = sorted(entry for entry in found if entry.resolve() != output)
    names = [folder.name for folder in folders]
    holders = [folder for folder in folders if any(entry.is_dir() for entry in folder.iterdir())]
    inner = f"; if the classes are the folders in {holders[0]}, give that one" if holders else ""
    require(
        len(names) > 1,
        f"classes {FOLDER_NAMES}: {images} needs two folders at least, each with the name of a class{inner}",
    )
    require(
        holders != folders or not {name.lower() for name in names} <= PARTS_OF_A_SET,
        f"classes {FOLDER_NAMES}: {', '.join(names)} are parts of a data set, and no classes; give one of them "
        f"({folders[0]}), or the names of the classes (cat,dog,horse)",
    )
    return names


def describe_folders(names: Sequence[str]) -> str:
    more = f", and {len(names) - MOST_SHOWN:,} more" if len(names) > MOST_SHOWN else ""
    return make_printable(f"{len(names):,} classes, named as the folders: {', '.join(names[:MOST_SHOWN])}{more}")


def convert_scalars(value: Any) -> Any:
    """Subclasses of str and float, such as numpy's, as str and float, and collections as lists, for YAML."""
    for kind in (str, float):
        if isinstance(value, kind):
            return kind(value)
    return (
        [convert_scalars(item) for item in value]
        if isinstance(value, Iterable) and not isinstance(value, dict)
        else value
    )


SETS_OF_NAMES = (FOLDER_NAMES, BUNDLED_SET)  # values of `classes`
ONCE = ("output", "again", "rename", "drop", "verbose", "passed")  # words that a later call does not repeat
PATHS = ("images", "classes", "model", "pretrained", "test_images")  # words of a call that may be paths


def record_words(words: dict[str, Any]) -> dict[str, Any]:
    """The call in JSON, for `must adapt WORK`: paths on this machine from the root, without what is for one call only
    or cannot be written."""
    recorded = dict[str, Any]()
    for name, value in words.items():
        if name in ONCE or (name == "images" and not isinstance(value, str | os.PathLike)):
            continue  # images of a program, which gives them again
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        value = value.tolist() if hasattr(value, "tolist") else value  # an array or a Series
        if isinstance(value, str) and value and "://" not in value and name in PATHS and value not in SETS_OF_NAMES:
            with suppress(OSError):  # too long for a path: names of classes
                value = str(Path(value).absolute()) if Path(value).exists() else value
        with suppress(TypeError, ValueError):
            recorded[name] = json.loads(json.dumps(value, default=list))  # prompts in an array
    return recorded
