"""`must.load`, a model that stays in memory and classifies images of any kind; `Adapted`, what `must.adapt` returns."""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from must.api.inputs import convert_image, make_entries
from must.api.results import Exported, make_iframe
from must.api.run import make_function
from must.base.errors import UserError
from must.base.parameters import naming_parameters, require
from must.base.storage import read_json
from must.base.text import parse_csv
from must.config import PredictConfig
from must.config.work import DESCRIPTION_FILE, METRICS_FILE, PREDICTIONS_FILE, REPORT_FILE, Workspace
from must.data.image.preprocess import EvalView, to_rgb
from must.data.sources.files import ListingReport
from must.prediction.images import Found, find_images
from must.prediction.onnx_model import Classifier, choose_threshold
from must.prediction.predict import classify, open_model
from must.prediction.predict import read_pixels as pixels_of_file
from must.prediction.writer import Options, Prediction, Unreadable, import_pandas, to_frame


class Predictions(list[Prediction]):
    """A prediction for each readable image, in order; `unreadable`: {name: reason} of the other images;
    `skipped`: {ending: number} of the files in folders that are not images."""

    to_frame = to_frame

    def __init__(self) -> None:
        super().__init__()
        self.unreadable: dict[str, str] = {}
        self.skipped: dict[str, int] = {}


class Model:
    """What `must.load` returns; `classes`: their names, in the model's order.

    model("photo.jpg").name                                               # one image: a Prediction
    for prediction in model(["a.jpg", "b.jpg"]): print(prediction.top)  # several, or a folder: Predictions"""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier, self._view = classifier, EvalView(classifier.preprocess)
        self.where, self.classes = classifier.where, list(classifier.classes)

    def __repr__(self) -> str:
        return f"Model({self.where!r}, {len(self.classes)} classes)"

    def __call__(self, images: Any, **options: Any) -> Any:
        """A Prediction for one image: a file, a PIL image or an array; Predictions for a list, a folder or a pattern.

        `options` are those of `predict`."""
        predictions = self.predict(images, **options)
        return predictions[0] if is_single(images) else predictions

    def predict(self, images: Any, *, top_k: int = 5, abstain: float = 0.0, batch_size: int = 32) -> Predictions:
        """The classes of images, most probable first: `.name` and `.probability` of the first, `.top` for all of them.

        Args:
            images: paths, folders, patterns or URIs of buckets; PIL images; arrays uint8 [H, W, 3]; or one of them. A
                file that cannot be read does not stop the others: see `unreadable`.
            abstain: a probability below which a prediction is `abstained` and has no name; -1: the threshold in the
                model. It also abstains where the model knows from answers that none of the classes is more probable."""
        require(top_k >= 1 and batch_size >= 1, "top_k and batch_size must be at least 1")
        require(0 <= abstain <= 1 or abstain == -1, "abstain must be from 0 to 1, or -1 for the model's own threshold")
        unsure = choose_threshold(abstain, self._classifier, self.where)
        settings = Options(min(top_k, len(self.classes)), unsure, batch_size)
        predictions = Predictions()
        problems = ListingReport(predictions.unreadable.__setitem__)
        predictions.skipped = problems.skipped
        with ExitStack() as stack:
            named = list_images(images, problems, stack)
            for prediction in classify(self._classifier, named, self._read, settings):
                if isinstance(prediction, Unreadable):
                    predictions.unreadable[prediction.image] = prediction.reason
                else:
                    predictions.append(prediction)
        if not predictions and predictions.unreadable:
            name, reason = next(iter(predictions.unreadable.items()))
            raise UserError(f"{name}: {reason}")
        return predictions

    def _read(self, item: Any) -> tuple[np.ndarray | None, str]:
        """(pixels, reason why not) of a file, as in `must predict`. Raises ValueError: an object is not an image."""
        if isinstance(item, Found):
            return pixels_of_file(item, self._view)
        number, image = item
        return self._view(convert_image(image, f"image {number}", self._view.preprocess.levels).convert("RGB")), ""


@naming_parameters()
def load(model: str | os.PathLike[str], *, classes: Any = "", device: str = "auto", threads: int = 0) -> Model:
    """A model to call with images: `must.load("work/onnx")("photo.jpg").name`. It is read once and kept in memory.

    Args:
        model: an ONNX file of `must export` or its folder, which needs no torch; a bundle of `must train`, the folder
            of `must adapt`, or a classifier file of `must classifier`; or, with `classes`, any CLIP model that was not
            adapted: an open_clip name with its tag, "ViT-B-16/datacomp_xl_s13b_b90k", or a checkpoint file,
            "ViT-B-16/mine.pt"; hf-hub:TEAM/NAME; or a model folder.
        classes: a list of names; a dictionary of names with their prompts; "cat,dog,horse"; or a file of them.
        device: for what torch runs: auto, cpu, cuda, cuda:N or mps.
        threads: of a forward pass; 0 leaves it to the library."""
    class_names = os.fspath(classes) if isinstance(classes, str | os.PathLike) else make_entries(classes)
    text = class_names if isinstance(class_names, str) else "names and prompts"
    parameters = PredictConfig(model=os.fspath(model), classes=text, device=device, threads=threads, images=["-"])
    return Model(open_model(parameters, None if isinstance(class_names, str) else class_names))


def is_single(images: Any) -> bool:
    """Whether a single image was given: not a collection, nor a path of several images."""
    if not isinstance(images, str | os.PathLike):
        return is_image(images)
    with ExitStack() as stack:
        found = find_images([os.fspath(images)], ListingReport(lambda *_: None), stack)
        return [one.name for one in islice(found, 2)] == [os.fspath(images)]


def is_image(item: Any) -> bool:
    """Whether it is one image in memory, not a collection of them, as is an array or a Series of one dimension."""
    return isinstance(item, bytes | dict) or not isinstance(item, Iterable) or getattr(item, "ndim", 1) in (2, 3)


def list_images(images: Any, problems: ListingReport, stack: ExitStack) -> Iterator[tuple[str, Any]]:
    """(name, file) of each file, and (number, (number, image)) of each image in memory."""
    single = isinstance(images, str | os.PathLike) or is_image(images)
    for number, item in enumerate([images] if single else images):
        if isinstance(item, str | os.PathLike):
            yield from ((found.name, found) for found in find_images([os.fspath(item)], problems, stack))
        else:
            yield str(number), (number, item)


class OpenClip(NamedTuple):
    """`classifier`: the adapted class weights [D, K], unit columns, in the order of the classes."""

    model: Any
    preprocess: Any
    classifier: Any


@dataclass(frozen=True)
class Adapted:
    """An adapted model in the folder `output`; `Adapted(folder)` opens an existing one.

    `metrics` are those of metrics.json, `classes` the names that predictions are of."""

    output: Path
    metrics: dict[str, Any] = field(init=False, repr=False, compare=False)
    _models: dict[str, Model] = field(init=False, repr=False, compare=False, default_factory=dict)  # by device

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", Path(self.output))
        file = self._place("report", METRICS_FILE)
        require(
            file.is_file() and (self.bundle / DESCRIPTION_FILE).is_file(),
            f"{self.output}: no adaptation was finished there; call must.adapt with it as the output",
        )
        object.__setattr__(self, "metrics", read_json(str(file), "output"))

    def _place(self, *names: str) -> Path:
        return Path(Workspace(str(self.output)).place(*names))

    @property
    def bundle(self) -> Path:
        return self._place("bundle")

    @property
    def labels(self) -> Path:
        """A table of the unlabeled images: refined labels, and those of the zero-shot and the adapted model."""
        return self._place("labels", PREDICTIONS_FILE)

    def to_frame(self) -> Any:
        """The table `labels` as a pandas DataFrame; names are texts. Raises UserError: pandas is not installed."""
        frame = import_pandas().DataFrame(list(parse_csv(self.labels.read_bytes())))
        for name in frame.columns:
            if name.endswith(("probability", "similarity")):
                frame[name] = frame[name].astype(float)
            elif name == "accepted":
                frame[name] = frame[name] == "true"
        return frame

    @property
    def report(self) -> Path:
        return self._place("report", REPORT_FILE)

    @property
    def classes(self) -> list[str]:
        return list(self.metrics["classes"])

    def _repr_html_(self) -> str:
        """A notebook shows the page of the report."""
        return make_iframe(self.report.read_text(encoding="utf-8"))

    def predict(
        self, images: Any, *, top_k: int = 5, abstain: float = 0.0, batch_size: int = 32, device: str = "auto"
    ) -> Predictions:
        """As `Model.predict` of `must.load`."""
        if device not in self._models:
            self._models[device] = load(self.bundle, device=device)
        return self._models[device].predict(images, top_k=top_k, abstain=abstain, batch_size=batch_size)

    def to_open_clip(self) -> OpenClip:
        """The CLIP model of open_clip with the adapted image tower, its preprocessing, and the class weights.

        `model.encode_image(...)`, made unit length, times `classifier` ranks the classes as the model without its
        memory does. The text tower is the original one, whose features of the prompts are no longer `classifier`."""
        from open_clip import get_model_preprocess_cfg, image_transform
        from PIL import ImageOps
        from torchvision.transforms import Compose

        from must.exporting.export import load_whole_model
        from must.model.bundle import load_bundle
        from must.model.description import get_preprocess

        bundle = load_bundle(str(self.bundle))
        clip: Any = load_whole_model(str(self._place("classifier")), str(self.bundle), bundle).clip
        preprocess_cfg = get_model_preprocess_cfg(clip)
        options = {name: preprocess_cfg[name] for name in ("mean", "std", "resize_mode", "interpolation", "fill_color")}
        transform = image_transform(preprocess_cfg["size"], is_train=False, **options)
        # upright, and without the colours under transparent pixels: as every other command sees an image
        levels = get_preprocess(bundle.description).levels
        preprocess = Compose([ImageOps.exif_transpose, partial(to_rgb, levels=levels), transform])
        return OpenClip(clip.eval(), preprocess, bundle.model.classifier.detach().clone())

    def export(self, output: str | Path = "", **parameters: Any) -> Exported:
        """`must.export` of this model, to OUTPUT/onnx by default, checked on the images it was adapted to."""
        defaults = {"shards": self._place("shards"), "metrics": self._place("report", METRICS_FILE)}
        paths = {"model": self.bundle, "output": output or self._place("onnx")}
        return make_function("export")(**defaults | parameters | paths)
