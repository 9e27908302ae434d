"""The stage `must predict`: images -> classes, with an ONNX file, a bundle, a classifier file, or a model's name and
class names. Without torch, unless the model is no ONNX file."""

import hashlib
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from multiprocessing.pool import AsyncResult, ThreadPool
from typing import Any

import numpy as np
from tqdm import tqdm

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.processes import count_cores
from must.base.program import load_torch, show_bar
from must.base.text import make_printable
from must.config import PredictConfig
from must.config.defaults import parse_part
from must.config.work import (
    DESCRIPTION_FILE,
    METRICS_FILE,
    MODEL_FOLDER_FILE,
    ONNX_FILE,
    PREDICTIONS_FILE,
    RECORD_FILE,
    REFINED_FILE,
    Workspace,
)
from must.data.image.decode import decode_view
from must.data.image.preprocess import EvalView
from must.data.sources.files import ListingReport, UnreadableError, describe_unread, hash_name
from must.prediction.images import (
    OWN_COLUMNS,
    Found,
    Known,
    find_images,
    find_part_file,
    find_parts_folder,
    join_parts,
    require_images,
    require_same_parts,
    select_part,
)
from must.prediction.onnx_model import Classifier, choose_threshold, open_onnx
from must.prediction.stream import classify_many, rank_batch
from must.prediction.writer import (
    Options,
    Prediction,
    Row,
    Unreadable,
    list_columns,
    make_row,
    open_table,
    print_row,
)

logger = logging.getLogger(__name__)

OTHERS_FILES = REFINED_FILE, METRICS_FILE  # beside another predictions.csv
READERS = min(32, count_cores() + 4)  # threads
FEW = 64  # images for which no processes are started
MOST_UNREADABLE = 5  # images of a new part that may all be unreadable


def predict(config: PredictConfig, take: Callable[[Prediction], None] | None = None) -> dict[str, int]:
    """Classifies images, prints a table or writes a file; or joins the parts of --output, if there are some.

    Returns the numbers of images read and not readable. An image that cannot be read is reported on stderr; it has no
    row, but in a Parquet file or one that is continued. `take`: is called with each prediction; then no table is
    printed."""
    require_images(config.images)
    require_own_place(config.output)
    if config.output and not (config.part or config.known) and (rows := join_parts(config.output)) >= 0:
        return {"images": rows, "unreadable": 0}
    return Labelling(config, open_model(config), take).run()


def open_model(config: PredictConfig, classes: list[Any] | None = None) -> Classifier:
    """The model at --model, or in the folder there. Imports torch only if it is no ONNX file. `classes`: entries of a
    class file, used in place of --classes."""
    model = config.model
    files = [name for name in (DESCRIPTION_FILE, ONNX_FILE) if storage.exists(storage.join(model, name))]
    if config.classes:
        require(
            not files and not Workspace(model).is_made(),
            f"--classes: the model in {model} has classes of its own; leave --classes out",
        )
        return open_with_torch(config, classes=classes)
    if DESCRIPTION_FILE in files:
        return open_with_torch(config)
    if ONNX_FILE in files or model.lower().endswith(".onnx"):
        return open_onnx(config)
    if model.lower().endswith(".safetensors"):
        return open_with_torch(config, zero_shot=True)
    for kind in ("bundle", "onnx", "classifier"):
        if uri := Workspace(model).find(kind):
            require(
                kind != "classifier" or not storage.exists(storage.join(model, RECORD_FILE)),
                f"--model {model}: its model is not there; the same `must adapt` again makes it",
            )
            config = replace(config, model=uri)
            return open_onnx(config) if kind == "onnx" else open_with_torch(config, zero_shot=kind == "classifier")
    require(
        not storage.exists(storage.join(model, MODEL_FOLDER_FILE)),
        f"--model {model}: is a CLIP model that was not adapted; say which classes there are: --classes cat,dog,horse",
    )
    require(
        not (storage.is_remote(model) or storage.local(model).is_dir()),
        f"--model {model}: holds no model: neither model.onnx of `must export` nor model.json of `must train`",
    )
    require(
        not storage.exists(model),
        f"--model {model}: is neither model.onnx of `must export` nor a classifier file; nor is it a folder of a model",
    )
    raise UserError(
        f"--model {model}: no such file or folder; for the zero-shot answers of a CLIP model of that name say which "
        "classes there are: --classes cat,dog,horse"
    )


def open_with_torch(config: PredictConfig, zero_shot: bool = False, classes: list[Any] | None = None) -> Classifier:
    """A bundle; with `zero_shot` the model of a classifier file; with --classes the CLIP model of the name --model."""
    load_torch("predict")
    from must.prediction.bundle import open_bundle

    return open_bundle(config, zero_shot, classes)


class Labelling:
    """One call of `must predict`. A table is continued if --part or --known is given."""

    def __init__(
        self, config: PredictConfig, classifier: Classifier, take: Callable[[Prediction], None] | None
    ) -> None:
        self.config, self.classifier, self.take = config, classifier, take
        self.options = Options(
            config.top_k, choose_threshold(config.abstain, classifier, classifier.where), config.batch_size
        )
        self.model = hashlib.sha256(f"{classifier.identity} {self.options.abstain:g}".encode()).hexdigest()[:12]
        self.continued = bool(config.part or config.known)
        self.output = find_part_file(config.output, config.part) if config.part else config.output
        self.own_columns = OWN_COLUMNS if self.continued or config.output.lower().endswith(".parquet") else []
        further = [*self.own_columns, *["embedding"] * config.embeddings]
        self.columns = list_columns(min(config.top_k, len(classifier.classes)), further)
        self.counts, self.abstained, self.kept = {"images": 0, "unreadable": 0}, 0, 0
        self.table: Known | None = None
        self.pending = deque[Found]()  # images without a result yet, in order

    def run(self) -> dict[str, int]:
        problems, config = ListingReport(self.report), self.config
        with ExitStack() as stack:
            found = self.select(find_images(config.images, problems, stack))
            at_once = 0 if "-" in config.images and not self.continued else max(FEW, self.options.batch_size)
            first = list(islice(found, at_once))
            if self.table and not first and self.table.is_complete:
                logger.info(f"{self.output}: {len(self.table.seen):,} images, nothing new")
                return self.counts
            predictions = self.classify(self.track(chain(first, found)), len(first))
            quiet = not self.output  # not amid rows
            progress = stack.enter_context(show_bar(unit="img", desc="predict", leave=False, quiet=quiet))
            write = stack.enter_context(open_table(self.output, self.columns)) if self.output else None
            for prediction in predictions:
                progress.update()
                self.finish(prediction, write)
            if self.table and write:
                for row in self.table.kept():
                    write(row)
                    self.kept += 1
            if problems.skipped and self.counts["images"]:
                tqdm.write(f"other files, not read: {describe_unread(problems.skipped)}", file=sys.stderr)
            before = self.table and (len(self.table.own) or len(self.table.others))
            few = self.continued and self.counts["unreadable"] <= MOST_UNREADABLE
            require(bool(self.counts["images"] or before or few), "none of the images could be read")
        if self.output:
            self.summarize()
        return self.counts

    def report(self, name: str, why: str) -> None:
        """Of a file or a source that the listing refuses."""
        lost = "with --part or --known that is an error, as rows that are there would be left out"
        refused = self.continued and name in self.config.images  # a disk that is not mounted?
        require(not refused, f"{name}: {why}; {lost}")
        if is_in_part(name, self.config.part):
            warn(name, why, self.counts)

    def select(self, found: Iterator[Found]) -> Iterator[Found]:
        """The images of the part that have no row yet."""
        config = self.config
        if config.part:
            require_same_parts(config.output, config.part)
            storage.remove_leftovers(find_parts_folder(config.output))
            found = select_part(found, config.part)
        if self.continued:
            self.table = Known(self.output, config.output, config.known, self.columns, self.model, config.relabel)
            found = filter(self.table.is_new, found)
        return found

    def track(self, found: Iterable[Found]) -> Iterator[Found]:
        """The same images; each is also added to `pending`."""
        for one in found:
            self.pending.append(one)
            yield one

    def classify(self, images: Iterator[Found], known: int) -> Iterator[Prediction | Unreadable]:
        """In processes, if so many images are known to be there that it is worth it."""
        view = EvalView(self.classifier.preprocess)
        if known >= FEW and (workers := count_workers(self.config)):
            return classify_many(self.classifier, images, view, read_pixels, self.options, workers)
        named, read = ((one.name, one) for one in images), partial(read_pixels, view=view)
        return classify(self.classifier, named, read, self.options, read_ahead="-" not in self.config.images)

    def finish(self, prediction: Prediction | Unreadable, write: Callable[[Row], object] | None) -> None:
        """Writes, prints or hands over what came of the next image."""
        version = self.pending.popleft().version
        own = {"model": self.model, "version": version} if self.own_columns else {}
        if isinstance(prediction, Unreadable):
            warn(prediction.image, prediction.reason, self.counts)
            if write and self.own_columns:
                write({"image": prediction.image, "error": prediction.reason, **own})
            return
        self.counts["images"] += 1
        self.abstained += prediction.abstained
        if write and not self.take:
            write(make_row(prediction) | own)
        else:
            (self.take or print_row)(prediction)

    def summarize(self) -> None:
        left_out = self.table.left_out + int((~self.table.seen).sum()) if self.table else 0
        numbers = {
            "without a class": self.abstained, "could not be read": self.counts["unreadable"],
            "known before": self.kept, "left out, of images that are gone or labelled again": left_out,
        }  # fmt: skip
        also = "".join(f", {count:,} {what}" for what, count in numbers.items() if count)
        logger.info(f"{self.counts['images']:,} images{also} -> {self.output}")


def count_workers(config: PredictConfig) -> int:
    """Processes that decode; 0 where they cannot be forked. Those that read a bucket mostly wait for it."""
    if config.workers or sys.platform != "linux":
        return config.workers
    return count_cores() * (2 if any(map(storage.is_remote, config.images)) else 1)


def is_in_part(name: str, part: str) -> bool:
    number, parts = parse_part(part or "1/1")
    return hash_name(name) % parts == number - 1


def require_own_place(output: str) -> None:
    """Refuses predictions.csv in the folder of `must refine` or `must evaluate`, whose file has this name too."""
    folder, slash, file = output.rpartition("/")
    for name in OTHERS_FILES if file == PREDICTIONS_FILE else ():
        require(
            not storage.exists(storage.join(folder or slash or ".", name)),
            f"--output {output}: {folder} holds {name} of another command; write to another folder",
        )


def classify(
    classifier: Classifier,
    images: Iterable[tuple[str, Any]],
    read: Callable[[Any], tuple[np.ndarray | None, str]],
    options: Options,
    read_ahead: bool = True,
) -> Iterator[Prediction | Unreadable]:
    """Predictions in the order of the images, a batch at a time. `images`: pairs of a name and an argument for `read`,
    which returns (uint8 [S, S, 3], "") or (None, reason) and is called in threads. `read_ahead`: the next batch is read
    while a batch is classified."""
    remaining, started = iter(images), deque[list[tuple[str, AsyncResult[tuple[np.ndarray | None, str]]]]]()
    first = list(islice(remaining, options.batch_size))
    remaining = chain(first, remaining)
    # After an error nothing else is read, and nobody waits for its threads. A thread less saves 0.1 ms.
    with ThreadPool(min(READERS, 2 * len(first) or 1)) as pool:

        def start_batch() -> None:
            batch = islice(remaining, options.batch_size)
            if reading := [(name, pool.apply_async(read, (value,))) for name, value in batch]:
                started.append(reading)

        start_batch()
        while started:
            if read_ahead:
                start_batch()
            batch = started.popleft()
            pixels, reasons = zip(*(result.get() for _, result in batch), strict=True)
            readable = [picture for picture in pixels if picture is not None]
            output = classifier(np.stack(readable)) if readable else None
            yield from rank_batch([name for name, _ in batch], reasons, output, classifier.classes, options)
            if not read_ahead:
                start_batch()


def read_pixels(found: Found, view: EvalView) -> tuple[np.ndarray | None, str]:
    """(uint8 [S, S, 3], "") or (None, the reason). Decoder and view are those of `must evaluate`.
    Raises TransientError: a bucket does not answer; UserError: the images of a source cannot be read."""
    try:
        data = found.read()
    except UserError as error:
        if found.source:
            raise UserError(f"{found.name}: {error}") from None
        return None, str(error)
    except (OSError, UnreadableError) as error:
        return None, getattr(error, "strerror", None) or str(error)
    try:
        return decode_view(data, view), ""
    except UserError as error:
        return None, str(error)


def warn(name: str, problem: str, counts: dict[str, int]) -> None:
    counts["unreadable"] += 1
    tqdm.write(make_printable(f"{name}: {problem}"), file=sys.stderr)
