"""The stage `must export`: writes a bundle as an ONNX file, or as a folder that another library can load.

The exported model's outputs are compared with the bundle's before any file is written to the output.
"""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from must.base import storage
from must.base.files import CLASSIFIER_FILE, MODEL_FOLDER_FILE
from must.base.parameters import require
from must.base.progress import parts
from must.base.text import encoded, lines_of
from must.config import ExportConfig
from must.data.augment.normalize import normalize
from must.deploy.export import onnx
from must.deploy.export.deployed import LARGEST_DIFFERENCE
from must.deploy.export.onnx import README_FILE, check_images
from must.deploy.predict.session import LABELS_FILE
from must.evaluation.result import read_metrics
from must.method.model.bundle import Bundle, load_bundle, preprocess_of

logger = logging.getLogger(__name__)

MARKERS = (MODEL_FOLDER_FILE, "config.json")  # written last: a folder with its format's marker is complete
OTHER_FILES = {
    "open_clip_model.safetensors", "bpe.txt.gz", "model.safetensors", "vocab.json", "merges.txt",
    "special_tokens_map.json", "tokenizer_config.json", "preprocessor_config.json",
    "tokenizer.json", "added_tokens.json", "sentencepiece.bpe.model", "spiece.model",  # of other text towers
    CLASSIFIER_FILE, LABELS_FILE, README_FILE,
}  # fmt: skip


def export(config: ExportConfig) -> dict[str, Any]:
    """Writes the format `config.to`; returns the comparison.
    Raises ValueError: no bundle, no shards, a model that the format cannot represent, or too large differences; nothing
    is written then."""
    if config.to == "onnx":
        return onnx.export_onnx(config)
    from must.deploy.export.model_card import hub_card

    library = library_module(config.to)
    metrics = read_metrics(config.metrics) if config.metrics else None
    remote = storage.is_remote(config.output)
    parent = None if remote else parent_of(config.output)
    with (
        tempfile.TemporaryDirectory(prefix=storage.TEMPORARY, dir=parent) as folder,
        parts("export", 4) as begin,
        torch.no_grad(),
    ):
        scratch = Path(folder)
        begin("the model and images to compare on")
        bundle = load_bundle(config.model)
        images = normalize(torch.from_numpy(check_images(config, bundle)), preprocess_of(bundle.description))
        begin("the files")
        library.write(config, bundle, scratch)
        begin("outputs of the library")
        features = library.features(scratch, images)
        begin("outputs of the bundle")
        differences = compare_features(bundle, images, features)
        require(
            differences["probability"] < LARGEST_DIFFERENCE,
            f"--to {config.to}: the library computes another network of these weights (probabilities differ by up to "
            f"{differences['probability']:.1e}); nothing was written",
        )
        write_classifier(bundle, scratch)
        result = {
            "to": config.to,
            "check": {"images": len(images), "largest_difference": differences["probability"]},
            "largest_feature_difference": differences["feature"],
            "largest_logit_difference": differences["logit"],
            "checked_on": f"{config.split} of {config.shards}" if config.shards else "random pixels",
        }
        card = hub_card(bundle.description, result, metrics, library.use(scratch), config.license)
        (scratch / README_FILE).write_bytes(encoded(card))
        publish(scratch, config.output)
    logger.info(
        f"{config.output}  for {config.to}; compared on {len(images)} images ({result['checked_on']}): largest "
        f"difference of a probability {differences['probability']:.1e}"
    )
    return result


def library_module(to: str) -> Any:
    """The module for a library, with `write`, `features` and `use`."""
    if to == "open_clip":
        from must.deploy.export import open_clip as library
    else:
        from must.deploy.export import transformers as library  # type: ignore[no-redef]
    return library


def compare_features(bundle: Bundle, images: torch.Tensor, features: torch.Tensor) -> dict[str, float]:
    """The largest differences of an element of the unit features, of a logit and of a probability.

    `images` [N, 3, S, S], normalised; `features` [N, D]: the other library's features of them.
    """
    model = bundle.model
    expected = torch.cat([F.normalize(model.visual(part), dim=-1) for part in images.split(32)])
    expected_logits = torch.cat([model(part) for part in images.split(32)])
    features = F.normalize(features.float(), dim=-1)
    logits = model.logit_factor * features @ model.classifier
    return {
        "feature": (expected - features).abs().max().item(),
        "logit": (expected_logits - logits).abs().max().item(),
        "probability": (expected_logits.softmax(-1) - logits.softmax(-1)).abs().max().item(),
    }


def write_classifier(bundle: Bundle, folder: Path) -> None:
    """Writes `classifier` [D, K], the columns after training, `logit_factor`, and the class names as JSON in the
    metadata."""
    from safetensors.torch import save

    description = bundle.description
    factor = torch.tensor(description.logit_factor, dtype=torch.float32)
    weights = {"classifier": bundle.model.classifier.detach().float().contiguous(), "logit_factor": factor}
    (folder / CLASSIFIER_FILE).write_bytes(save(weights, {"classes": json.dumps(description.classes)}))
    (folder / LABELS_FILE).write_bytes(lines_of(description.classes))


def parent_of(output: str) -> Path:
    """The folder for temporary files: on the same disk as `output`."""
    parent = storage.local(output).absolute().parent
    with storage.disk_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
    return parent


def publish(scratch: Path, output: str) -> None:
    """Moves the files into OUTPUT, the marker last; deletes the files of an earlier export.

    Without a marker the folder is no model, so that nobody reads a mixture of two exports.
    """
    files = sorted(path.name for path in scratch.iterdir())
    files.sort(key=lambda name: name in MARKERS)
    for name in (*MARKERS, *sorted(OTHER_FILES - set(files))):
        if storage.exists(target := storage.join(output, name)):
            storage.delete(target)
    for name in files:
        (scratch / name).chmod(0o666 & ~storage.umask())
        (storage.upload if storage.is_remote(output) else storage.move)(scratch / name, storage.join(output, name))
