"""`must export --to open_clip`: a model folder in open_clip's format, compared with open_clip's own outputs."""

import json
import logging
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.text import encoded, join_lines
from must.config import ExportConfig
from must.config.work import CLASSIFIER_FILE, MODEL_FOLDER_FILE
from must.data.augment import normalize
from must.deploy.export.graph import LARGEST_DIFFERENCE, run_in_batches
from must.deploy.export.model_card import README_FILE, front_matter, images_text, model_card
from must.deploy.onnx_model import LABELS_FILE
from must.evaluation.result import Metrics
from must.method.model.backbone import Backbone, load_backbone, quiet_open_clip
from must.method.model.bundle import Bundle
from must.method.model.classifier import read_header
from must.method.model.description import get_preprocess
from must.method.model.folder import write_files
from must.method.model.hub import first_line

logger = logging.getLogger(__name__)

OPTIONAL_FILES = {
    "bpe.txt.gz", "config.json", "vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json",
    "tokenizer.json", "added_tokens.json", "sentencepiece.bpe.model", "spiece.model",
}  # fmt: skip
"""Of text towers: not every model has them."""


def export_folder(
    config: ExportConfig, bundle: Bundle, pixels: np.ndarray, metrics: Metrics | None, begin: Any
) -> dict[str, Any]:
    """Writes the folder OUTPUT; returns the comparison. `pixels`: uint8 [N, S, S, 3]; `begin`: from `parts`."""
    images = normalize(torch.from_numpy(pixels), get_preprocess(bundle.description))
    parent = None if storage.is_remote(config.output) else storage.local(config.output).absolute().parent
    if parent:  # of the temporary files: on the same disk as OUTPUT
        with storage.disk_errors(parent):
            parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=storage.TEMPORARY, dir=parent) as folder:
        scratch = Path(folder)
        begin("the files")
        write_files(whole_model(config.classifier, config.model, bundle), scratch)
        begin("outputs of open_clip")
        features = open_clip_features(scratch, images)
        begin("outputs of the bundle")
        of_logit, of_probability = compare_features(bundle, images, features)
        require(
            of_probability < LARGEST_DIFFERENCE,
            "--to open_clip: open_clip computes another network of these weights (probabilities differ by up to "
            f"{of_probability:.1e}); nothing was written",
        )
        begin("the card")
        write_classifier(bundle, scratch)
        result = {
            "to": config.to,
            "check": {"images": len(images), "largest_difference": of_probability},
            "largest_logit_difference": of_logit,
            "checked_on": images_text(config),
        }
        # The folder has no memory: its accuracy is the tower's.
        measured = replace(metrics, adapted=metrics.tower) if metrics and metrics.tower else metrics
        front = front_matter(bundle.description, config.to, measured, config.license)
        (scratch / README_FILE).write_bytes(encoded(front + model_card(bundle.description, result, measured)))
        publish(scratch, config.output)
    logger.info(
        f"{config.output}  for {config.to}; compared on {len(images)} images ({result['checked_on']}): largest "
        f"difference of a probability {of_probability:.1e}"
    )
    if bundle.memory:
        gain = "; `must export` without --to holds both"
        if metrics and metrics.tower and metrics.adapted:
            top1 = f"top-1 {metrics.tower.top1:.1%}, with the memory {metrics.adapted.top1:.1%}"
            gain = f": {top1} (`must export` without --to)"
        logger.info(f"open_clip holds the tower alone, without the memory{gain}")
    return result


def whole_model(classifier: str, model: str, bundle: Bundle) -> Backbone:
    """The classifier file's model with the image tower and the logit factor of the bundle at `model`."""
    header = read_header(classifier)
    backbone = load_backbone(*header.find_model())
    clip: Any = backbone.clip
    require(
        have_same_tower(backbone.architecture, bundle.description.architecture),
        f"--classifier {classifier}: was made with {header.model}, whose image tower is of another shape "
        f"than that of --model {model} ({bundle.description.backbone})",
    )
    clip.visual.load_state_dict(bundle.model.visual.state_dict())
    with torch.no_grad():
        clip.logit_scale.fill_(math.log(bundle.description.logit_factor))
    return backbone


def have_same_tower(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two architectures have the same image tower; a missing option equals None."""
    one, other = ({k: v for k, v in each["vision_cfg"].items() if v is not None} for each in (first, second))
    return one == other and all(first[name] == second[name] for name in ("embed_dim", "quick_gelu"))


def open_clip_features(folder: Path, images: Tensor) -> Tensor:
    """The features [N, D] that open_clip computes with the written folder, of normalised images [N, 3, S, S]."""
    import open_clip

    try:
        with quiet_open_clip():
            model = open_clip.create_model(f"local-dir:{folder}").eval()
    except Exception as error:  # any kind: for text towers of transformers, open_clip sends requests to a hub
        raise UserError(f"--to open_clip: open_clip does not load what was written: {first_line(error)}") from error
    return run_in_batches(model.encode_image, images)


def compare_features(bundle: Bundle, images: Tensor, features: Tensor) -> tuple[float, float]:
    """The largest differences of a logit and of a probability. `images` [N, 3, S, S], normalised; `features` [N, D]:
    open_clip's features of them."""
    expected = run_in_batches(bundle.model, images)
    logits = bundle.model.logit_factor * F.normalize(features.float(), dim=-1) @ bundle.model.classifier
    pairs = (expected, logits), (expected.softmax(-1), logits.softmax(-1))
    of_logit, of_probability = ((one - other).abs().max().item() for one, other in pairs)
    return of_logit, of_probability


def write_classifier(bundle: Bundle, folder: Path) -> None:
    """Writes `classifier` [D, K], the columns after training, `logit_factor`, and the class names as JSON in the
    metadata."""
    from safetensors.torch import save

    description = bundle.description
    factor = torch.tensor(description.logit_factor, dtype=torch.float32)
    weights = {"classifier": bundle.model.classifier.detach().float().contiguous(), "logit_factor": factor}
    (folder / CLASSIFIER_FILE).write_bytes(save(weights, {"classes": json.dumps(description.classes)}))
    (folder / LABELS_FILE).write_bytes(join_lines(description.classes))


def publish(scratch: Path, output: str) -> None:
    """Moves the files into OUTPUT, its configuration last; deletes the files of an earlier export.

    Without a configuration the folder is no model, so that nobody reads a mixture of two exports."""
    storage.delete(storage.join(output, MODEL_FOLDER_FILE))
    files = sorted((path.name for path in scratch.iterdir()), key=lambda name: (name == MODEL_FOLDER_FILE, name))
    for name in sorted(OPTIONAL_FILES - set(files)):
        storage.delete(storage.join(output, name))
    for name in files:
        (storage.upload if storage.is_remote(output) else storage.move)(scratch / name, storage.join(output, name))
