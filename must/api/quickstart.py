"""`must quickstart`: the bundled digits without labels, one pass, and the page on which a person answers about them.

It is `must demo`, `must adapt` and `must review`, and `must adapt` again with the answers. The page also says what is
true, as the classes of these pictures are known."""

import csv
import logging
from pathlib import Path
from typing import Any

from must.api.demo import demo, digit_parts, name_image
from must.api.stages import call, configure, run
from must.base import storage
from must.base.console import quieted
from must.config import DemoConfig, QuickstartConfig
from must.config.work import METRICS_FILE, PREDICTIONS_FILE

logger = logging.getLogger(__name__)


def quickstart(config: QuickstartConfig) -> None:
    """The stage: serves the page until a signal, then gives the answers to the model."""
    folder, work = Path(config.output), Path(config.output, "work")
    truth = {name_image(number): label for number, (_, label) in enumerate(digit_parts()["unlabeled"])}
    with quieted(logging.WARNING, "must"):
        demo(DemoConfig(output=config.output))
    logger.info(
        f"{len(truth):,} handwritten digits without labels, a CLIP that knows computer fonts only. One pass ..."
    )
    words = {
        "images": folder / "images/unlabeled", "classes": folder / "classes.yaml", "model": folder / "model",
        "output": work, "train": "no",
    }  # fmt: skip
    adapt(words)
    before, now = measure_labels(work / "labels" / PREDICTIONS_FILE, truth)
    logger.info(
        f"right classes: {before:.1%} by the CLIP alone, {now:.1%} after the pass. The page says it, too: the "
        "classes of these pictures are known. Name some:\n"
    )
    answers = work / "review" / "answers.jsonl"
    run("review", configure("review", {"model": str(work)}), truth=truth)
    if not answers.exists():
        return
    logger.info("\nThe answers are given to the labels and to the model ...")
    adapt(words | {"test_images": folder / "images/test"})
    metrics = storage.read_json(str(work / "report" / METRICS_FILE), "output")
    before, model = (metrics[name]["top1"] for name in ("baseline", "adapted"))
    logger.info(
        f"right classes: {measure_labels(work / 'labels' / PREDICTIONS_FILE, truth)[1]:.1%} of the labels; "
        f"{model:.1%} by the model for {metrics['labelled']} other pictures, {before:.1%} by the CLIP alone\n"
        f"report: {work / 'report' / 'report.html'}"
    )


def adapt(words: dict[str, Any]) -> None:
    with quieted(logging.WARNING, "must"):
        call("adapt", **{name: str(value) for name, value in words.items()})


def measure_labels(table: Path, truth: dict[str, str]) -> tuple[float, float]:
    """(share of right classes of zero-shot, of the labels), from 0 to 1, by predictions.csv of `must refine`."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    shares = (sum(row[column] == truth[row["image"]] for row in rows) for column in ("zero_shot", "class"))
    before, now = (right / len(rows) for right in shares)
    return before, now
