"""The table of the library's stages: parameters, function and help text of each.

The command line is made from this table, and `call` runs a stage from Python:

    from must.api.stages import call
    call("train", shards="shards/", classifier="classifier.safetensors", output="model/", preset="auto")
"""

import importlib
import warnings
from typing import Any, Final, NamedTuple

import must.config as configs
from must.api.preflight import preflight
from must.base.console import silence_pillow
from must.base.errors import UserError
from must.base.parameters import StageConfig, load, read_yaml
from must.base.progress import load_torch
from must.base.workers import killed_workers
from must.config.work import with_words, with_work


class Stage(NamedTuple):
    config: type[StageConfig]
    function: str  # "module:name", imported when the stage runs: `must shard` runs where there is no torch
    help: str
    python: str = ""  # the function at `must.`, where that takes more than the parameters: "module:name"
    torch: bool = False  # it imports torch, which takes seconds: the terminal shows a message


STAGES: Final[dict[str, Stage]] = {
    "adapt": Stage(configs.AdaptConfig, "must.api.adapt:command",
        "Adapt CLIP to images without labels: one pass gives a model, labels and a report; then training, if worth it.",
        python="must.api.adapt:adapt"),
    "shard": Stage(configs.ShardConfig, "must.data.shards.build:shard",
        "Pack images into WebDataset shards with an index, ready to train on."),
    "classifier": Stage(configs.ClassifierConfig, "must.method.model.classifier:classifier",
        "Turn class names and prompt templates into zero-shot text classifier weights.", torch=True),
    "plan": Stage(configs.PlanConfig, "must.method.train.plan:plan",
        "Estimate steps, hours, memory and disk of `must train` on this machine; trains nothing.",
        torch=True),
    "train": Stage(configs.TrainConfig, "must.method.train.trainer:train",
        "Adapt the zero-shot classifier to unlabeled images with masked unsupervised self-training (MUST).",
        torch=True),
    "refine": Stage(configs.RefineConfig, "must.method.memory.refine:refine",
        "Give the model a memory of the unlabeled images and of people's answers, and the images better labels.",
        torch=True),
    "review": Stage(configs.ReviewConfig, "must.deploy.review.review:review",
        "Ask a person for classes of images in a browser; the answers measure accuracy and correct labels."),
    "evaluate": Stage(configs.EvaluateConfig, "must.evaluation.evaluate:evaluate",
        "Measure the adapted model against the zero-shot one; write metrics.json and report.html.", torch=True),
    "export": Stage(configs.ExportConfig, "must.deploy.export.export:export",
        "Write the model as ONNX, or as a folder that open_clip loads; checked against PyTorch.",
        torch=True),
    "gate": Stage(configs.GateConfig, "must.evaluation.gate:gate",
        "Decide from metrics.json whether the adapted model may replace the one in use, and say why."),
    "promote": Stage(configs.PromoteConfig, "must.deploy.promote.promote:promote",
        "Copy a model to the registry and make it the champion, the one in use; --rollback restores the one before."),
    "predict": Stage(configs.PredictConfig, "must.deploy.infer.predict:predict",
        "Classify images, few or many, with the ONNX file alone (no PyTorch) or with a bundle."),
    "serve": Stage(configs.ServeConfig, "must.deploy.serve.serve:serve",
        "Serve the ONNX file, or a registry's champion, over HTTP: pictures in, names out (no PyTorch)."),
    "sort": Stage(configs.SortConfig, "must.api.sort:sort",
        "Put the labelled images into a folder for each class, as links or copies."),
    "demo": Stage(configs.DemoConfig, "must.api.demo:demo",
        "Write the bundled data set (handwritten digits), class names and tiny CLIP (computer fonts) to a folder."),
}  # fmt: skip


def call(stage: str, /, **values: Any) -> Any:
    """Runs a stage; returns its result. Parameters are those of must/config/; None leaves one at its default. Raises
    what the functions at `must` do, but SystemExit for training that was stopped (75, a checkpoint is saved)."""
    return run(stage, configure(stage, {name: value for name, value in values.items() if value is not None}))


def configure(stage: str, values: dict[str, Any], file: str | None = None) -> StageConfig:
    """The stage's parameters: `values` override the YAML `file`, then the paths found in WORK, then the defaults.

    The preset of training is `auto` if none is named."""
    config = STAGES[stage].config
    values = with_work(config, (read_yaml(config, file) if file else {}) | values)
    if config is configs.AdaptConfig:
        values = with_words(values)
    if issubclass(config, configs.TrainConfig):
        values = values | {"preset": values.get("preset") or "auto"}
    return load(config, values)


def run(stage: str, config: StageConfig, **extra: Any) -> Any:
    """Checks the inputs, then imports and calls the stage's function, with the keywords `extra` besides."""
    module, function = STAGES[stage].function.split(":")
    preflight(config)
    try:
        with warnings.catch_warnings(), killed_workers():
            silence_pillow()
            if STAGES[stage].torch:
                load_torch(stage)
            return getattr(importlib.import_module(module), function)(config, **extra)
    except ModuleNotFoundError as error:  # an installation without extras, or another image
        if (error.name or "must").split(".")[0] == "must":
            raise
        if error.name in ("fcntl", "resource"):  # of Python's library, on Unix only
            raise UserError(
                "works on Linux or macOS; here `must predict` and `must.load` do (docs/install.md)"
            ) from None
        raise UserError(
            f"the package {error.name} is not installed here; install it with: pip install 'must-clip[all]', "
            "or take the image that has it (docs/containers.md)"
        ) from None
