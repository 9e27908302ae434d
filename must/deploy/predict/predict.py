"""The stage `must predict`: images -> classes, with the ONNX file alone (numpy, Pillow, onnxruntime; no torch)."""

from __future__ import annotations

import glob
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
from tqdm import tqdm

from must.base import storage
from must.base.parameters import require
from must.base.progress import bar
from must.base.text import printable
from must.config import PredictConfig
from must.data.image.decode import seen
from must.data.image.preprocess import EvalView
from must.data.sources.base import EXTENSIONS
from must.deploy.predict.abstention import threshold
from must.deploy.predict.engine import Opener, onnx_model
from must.deploy.predict.shards import predict_shards
from must.deploy.predict.writer import Prediction, open_writer


def predict(
    config: PredictConfig, take: Callable[[Prediction], None] | None = None, open_model: Opener = onnx_model
) -> dict[str, int]:
    """Classifies images, prints a table or writes a file; returns how many images were read and how many were not.

    An image that cannot be read is one line on stderr and does not stop the others. `--shards`: see predict_shards.

    Args:
        take: gets each prediction, in place of the table on the terminal.
        open_model: finds the model; else it is an ONNX file.

    Raises:
        ValueError: no model, or none of the images could be read.
    """
    if config.shards:
        return predict_shards(config, open_model)
    require(
        not config.embeddings or bool(config.output) or take is not None,
        "--embeddings: a table on the terminal holds none; give --output FILE.jsonl",
    )
    with open_model(config) as model:
        classifier = model.open(False)
    if config.embeddings:
        classifier.require_embeddings()
    unsure = threshold(config.abstain, classifier.metadata, config.model)
    view, top = EvalView(classifier.preprocess), min(config.top_k, len(classifier.classes))
    counts = {"images": 0, "unreadable": 0}
    names = find_images(config.images, counts)
    shown = bar(unit="img", desc="predict", leave=False, quiet=not config.output)  # none between the rows of a table
    with open_writer(config.output, top, unsure > 0) as writer, ThreadPoolExecutor() as pool, shown:
        while batch := list(islice(names, config.batch_size)):
            read = [(name, *item) for name, item in zip(batch, pool.map(lambda n: load(n, view), batch), strict=True)]
            for name, pixels, problem in read:
                if pixels is None:
                    warn(name, problem, counts)
            whole = [(name, pixels) for name, pixels, _ in read if pixels is not None]
            if not whole:
                continue
            probability, embedding = classifier.answer(np.stack([pixels for _, pixels in whole]), config.embeddings)
            for number, ((name, _), row) in enumerate(zip(whole, probability, strict=True)):
                best = np.argsort(-row, kind="stable")[:top]
                classes, values = [classifier.classes[i] for i in best], [float(row[i]) for i in best]
                feature = None if embedding is None else embedding[number]
                (take or writer)(Prediction(name, classes, values, bool(row[best[0]] < unsure), feature))
            counts["images"] += len(whole)
            shown.update(len(batch))
        require(counts["images"] > 0, "none of the images could be read")
    if config.output:
        missing = f", {counts['unreadable']} could not be read" if counts["unreadable"] else ""
        print(f"{counts['images']} images{missing} -> {config.output}")
    return counts


def load(name: str, view: EvalView) -> tuple[np.ndarray | None, str]:
    """(uint8 [S, S, 3], "") or (None, the reason). The same decoder and view as `must evaluate`."""
    try:
        return seen(storage.read_bytes(name), view), ""
    except (OSError, ValueError) as error:
        return None, getattr(error, "strerror", None) or str(error)


def find_images(given: list[str], counts: dict[str, int]) -> Iterator[str]:
    """File names: as given, those in folders (sorted, recursively), those that match a glob, those on stdin for '-'."""
    for name in given:
        if name == "-":
            yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
        elif storage.is_remote(name):
            inside = sorted(storage.join(name, entry.name) for entry in storage.list_files(name))
            yield from only_images(inside) if inside else [name]
        elif storage.local(name).is_dir():
            inside = [storage.join(name, entry.name) for entry in storage.list_files(name)]
            found = only_images(sorted(inside))
            if not found:
                warn(name, "no images in this folder", counts)
            yield from found
        elif glob.has_magic(name) and not storage.exists(name):
            matches = sorted(glob.glob(name, recursive=True))  # noqa: PTH207, Path.glob takes no absolute pattern
            if not matches:
                warn(name, "matches no file", counts)
            yield from matches
        else:
            yield name


def only_images(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.rpartition(".")[2].lower() in EXTENSIONS]


def warn(name: str, problem: str, counts: dict[str, int]) -> None:
    counts["unreadable"] += 1
    tqdm.write(printable(f"{name}: {problem}"), file=sys.stderr)
