"""What `must.adapt` returns: the adapted model, its report, and methods to predict and export."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from must.api.functions import run_stage
from must.api.model import Model, Predictions, load
from must.api.results import Exported, iframe
from must.api.work_state import BUNDLE, LABELS, REPORT, SHARDS
from must.base.files import CLASSIFIER_FILE, DESCRIPTION_FILE, METRICS_FILE, PREDICTIONS_FILE, REPORT_FILE
from must.base.parameters import require
from must.base.storage import read_json
from must.deploy.predict.writer import import_pandas


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
        file = self.output / REPORT / METRICS_FILE
        require(
            file.is_file() and (self.bundle / DESCRIPTION_FILE).is_file(),
            f"{self.output}: no adaptation was finished there; call must.adapt with it as the output",
        )
        object.__setattr__(self, "metrics", read_json(str(file), "output"))

    @property
    def bundle(self) -> Path:
        return self.output / BUNDLE

    @property
    def labels(self) -> Path:
        """A table of the unlabeled images: refined labels, and those of the zero-shot and the adapted model."""
        return self.output / LABELS / PREDICTIONS_FILE

    def to_frame(self) -> Any:
        """The table `labels` as a pandas DataFrame. Raises UserError: pandas is not installed."""
        return import_pandas().read_csv(self.labels, keep_default_na=False)

    @property
    def report(self) -> Path:
        return self.output / REPORT / REPORT_FILE

    @property
    def classes(self) -> list[str]:
        return list(self.metrics["classes"])

    def _repr_html_(self) -> str:
        """A notebook shows the page of the report."""
        return iframe(self.report.read_text(encoding="utf-8"))

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

        from must.data.image.colors import to_rgb
        from must.deploy.export.open_clip import whole_model
        from must.method.model.bundle import load_bundle

        bundle = load_bundle(str(self.bundle))
        clip: Any = whole_model(str(self.output / CLASSIFIER_FILE), str(self.bundle), bundle).clip
        preprocess_cfg = get_model_preprocess_cfg(clip)
        options = {name: preprocess_cfg[name] for name in ("mean", "std", "resize_mode", "interpolation", "fill_color")}
        transform = image_transform(preprocess_cfg["size"], is_train=False, **options)
        # upright, and without the colours under transparent pixels: as every other command sees an image
        preprocess = Compose([ImageOps.exif_transpose, to_rgb, transform])
        return OpenClip(clip.eval(), preprocess, bundle.model.classifier.detach().clone())

    def export(self, output: str | Path = "", **parameters: Any) -> Exported:
        """`must.export` of this model, to OUTPUT/onnx by default, checked on the images it was adapted to."""
        defaults = {"shards": str(self.output / SHARDS), "metrics": str(self.output / REPORT / METRICS_FILE)}
        paths = {"model": str(self.bundle), "output": str(output or self.output / "onnx")}
        return run_stage("export", {**defaults, **parameters, **paths})
