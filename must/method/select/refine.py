"""The stage `must refine`: a better zero-shot, in seconds and without training."""

import json
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from must import __version__
from must.base import storage
from must.base.files import CLASSIFIER_FILE, PREDICTIONS_FILE
from must.base.parameters import require
from must.base.text import cell, csv_of, encoded
from must.config import RefineConfig
from must.data.loading.loader import EvalSource
from must.method.distributed.process_group import init_distributed
from must.method.model.bundle import preprocess_of, zero_shot_bundle
from must.method.model.classifier import load_text_classifier, save_classifier
from must.method.select.data_profile import data_profile, profile_text
from must.method.select.image_features import ImageFeatures, extract_features, softmax
from must.method.select.label_propagation import for_copies, recognised, refined
from must.method.select.ladder import KNOWING, MIN_IMAGES, RUNGS, Climb, climb, knows
from must.method.select.neighbours import judges, look_alikes
from must.method.select.rung_predictions import subsample

logger = logging.getLogger(__name__)

RECOGNISED = 0.8  # share of the surest images whose look-alikes would name them as zero-shot does, at least
STORY_FILE = "refined.json"
PULL = 3e-4  # towards the text's own weights, times the logit factor
STEPS = 50


def refine(config: RefineConfig) -> dict[str, Any]:
    """Writes to OUTPUT, and returns what refined.json holds:

    - predictions.csv, a row an image that was looked at: image, class, probability as `must predict` writes them, and
      zero-shot's own class and probability;
    - classifier.safetensors, the classifier with its weights fitted to the refined classes, as far as the ladder keeps
      that: for new images, and for `must train` and `must evaluate`;
    - refined.json, the reasons; last, so that a folder with it is a whole result.

    Where look-alikes do not know the classes all of it is zero-shot's, the classifier file byte for byte.

    Raises:
        ValueError: no such split or classifier, or no image can be decoded.
    """
    classifier = load_text_classifier(config.classifier)
    zero_shot = zero_shot_bundle(classifier)
    classes, text = list(classifier.classes), classifier.weights.float().numpy()
    with init_distributed(config.device, timeout=600) as here:
        require(here.size == 1, "must refine runs in one process")
        source = subsample(EvalSource.of(config, preprocess_of(zero_shot.description)), config.images)
        sight = extract_features(zero_shot.model, source, here.device, encoder=zero_shot.encoder)
        require(len(sight.numbers) > 0, "none of the split's images can be decoded; check them: must index verify")
        neighbours, originals = look_alikes(sight.tokens)
        before = sight.probabilities(text, classifier.logit_scale)
        copies = len(before) - len(originals)
        facts = data_profile(before[originals], neighbours, copies, classes, len(source), source.skipped)
        facts |= {"judge": sight.judge, "recognised": recognised(before[originals], neighbours)}
        logger.info(profile_text(facts))
        reason = reason_against(facts)
        after, weights, found = before, text, None
        if not reason:
            after, weights, found = improve(sight, text, classifier.logit_scale, neighbours, originals, here.device)
    story = {
        "must_version": __version__,
        "kept_zero_shot": bool(reason),
        "reason": reason,
        "changed": float((after.argmax(1) != before.argmax(1)).mean()),
        "classifier": found.to_dict() if found else None,
        "data": facts,
        "config": config.to_dict(),
    }
    storage.write_bytes(
        storage.join(config.output, PREDICTIONS_FILE), predictions_csv(sight.sources, classes, after, before)
    )
    place = storage.join(config.output, CLASSIFIER_FILE)
    if found and found.alpha > 0:
        save_classifier(replace(classifier, weights=torch.from_numpy(weights), refined=True), place)
    else:
        storage.write_bytes(place, storage.read_bytes(config.classifier))
    storage.write_bytes(storage.join(config.output, STORY_FILE), encoded(json.dumps(story, indent=1) + "\n"))
    logger.info(f"{log_line(story)} -> {config.output}")
    return story


def reason_against(facts: dict[str, Any]) -> str:
    """Why look-alikes may not correct zero-shot here; '' if they may."""
    share = facts["preferred"]
    if facts["agreement"] is None:
        return f"fewer than {MIN_IMAGES} different images are too few to judge by"
    if share is not None and not knows(share, facts["looked_at"] - facts["copies"]):
        return (
            f"look-alikes of the surest images prefer their class to the runner-up in {share:.0%}: they know too "
            f"little ({KNOWING:.0%} and a standard error are needed)"
        )
    if facts["recognised"] < RECOGNISED:
        return (
            f"look-alikes of the surest images believe most in another class than theirs in "
            f"{1 - facts['recognised']:.0%}: they know too little to correct others (at most {1 - RECOGNISED:.0%})"
        )
    return ""


def improve(
    sight: ImageFeatures,
    text: np.ndarray,
    factor: float,
    neighbours: np.ndarray,
    originals: np.ndarray,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray, Climb]:
    """(refined probabilities [N, K] of all images, weights [D, K] that the ladder keeps, its account)."""
    features = sight.features[originals]
    before = softmax(factor * (features @ text))
    better = refined(before, neighbours)
    fitted = refit(features, better, text, factor, device)
    rungs = [softmax(factor * (features @ between(text, fitted, alpha))) for alpha in (0.0, *RUNGS)]
    said = np.stack([rung.astype(np.float16) for rung in rungs])
    labels = np.stack([rung.argmax(axis=1) for rung in rungs])
    found = climb(said, labels, judges(sight.tokens[originals]))
    return for_copies(better, originals, sight.tokens), between(text, fitted, found.alpha), found


def predictions_csv(sources: list[str], classes: list[str], after: np.ndarray, before: np.ndarray) -> bytes:
    """predictions.csv."""
    rows = [["image", "class", "probability", "zero_shot", "zero_shot_probability"]]
    names = [cell(name) for name in classes]
    for source, new, old in zip(sources, after, before, strict=True):
        pairs = [part for row in (new, old) for part in (names[row.argmax()], f"{row.max():.6f}")]
        rows.append([cell(source), *pairs])
    return csv_of(rows)


def log_line(story: dict[str, Any]) -> str:
    """One line for the log."""
    if story["kept_zero_shot"]:
        return f"kept zero-shot: {story['reason']}"
    found = story["classifier"]
    kept = f"{found['alpha']:.0%} of its way kept" if found["alpha"] else "left as it was"
    why = f" ({found['reason']})" if found["reason"] else ""
    return f"{story['changed']:.1%} of the images changed class; the classifier: {kept}{why}"


def refit(
    features: np.ndarray, targets: np.ndarray, weights: np.ndarray, factor: float, device: torch.device | None = None
) -> np.ndarray:
    """Float32 [D, K], unit columns, near `weights`.

    Minimises the mean cross entropy of `targets` [N, K] with softmax(factor f W), plus factor PULL / 2 |W - weights|^2,
    by L-BFGS from `weights`: a strictly deterministic function of its arguments on a CPU.

    Args:
        features: float32 [N, D], unit vectors.
        weights: float32 [D, K], unit columns.
    """
    f, z, text = (
        torch.from_numpy(np.ascontiguousarray(x, np.float32)).to(device) for x in (features, targets, weights)
    )
    free = text.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([free], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        unit = F.normalize(free, dim=0)
        value = -(z * (factor * f @ unit).log_softmax(-1)).sum(-1).mean()
        value = value + 0.5 * factor * PULL * (unit - text).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return F.normalize(free, dim=0).detach().cpu().numpy()


def between(start: np.ndarray, end: np.ndarray, alpha: float) -> np.ndarray:
    """start + alpha (end - start) with unit columns; at 0 the very bits of `start`."""
    if alpha == 0:
        return start
    mixed = start + np.float32(alpha) * (end - start)
    return np.asarray(mixed / np.linalg.norm(mixed, axis=0, keepdims=True), np.float32)
