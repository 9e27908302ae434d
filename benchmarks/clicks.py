"""How many pictures a person looks at until `must review` says that a set is finished, and how many labels are wrong
then.

    python benchmarks/clicks.py [WORK TRUTH.csv] [--seeds 4]

A simulated person answers rightly on the page, and takes what it asks; each answer waits for the effect of the one
before. WORK: a folder of `must adapt` without answers; TRUTH.csv: a table of image and class, with names as in
WORK/labels/predictions.csv. Without them: the bundled digits, which `must quickstart` asks about.
"""

from __future__ import annotations

import argparse
import csv
import logging
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

import must
from must.api.demo import demo, find_assets, load_digits, name_image
from must.api.stages import configure
from must.config import DemoConfig, ReviewConfig
from must.deploy.review.prepare import AnswerEffect, Images, compute_review
from must.deploy.review.session import Session
from must.method.answers.review import Review


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="?", type=Path)
    parser.add_argument("truth", nargs="?", type=Path)
    parser.add_argument("--seeds", type=int, default=4, help="orders of the pictures")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        if options.work:
            with options.truth.open(newline="") as file:
                truth = {row["image"]: row["class"] for row in csv.DictReader(file)}
        else:
            options.work, truth = adapt_digits(Path(folder))
        for seed in range(options.seeds):
            output = Path(folder, f"answers-{seed}")
            output.mkdir()
            config = configure("review", {"model": str(options.work), "output": str(output), "seed": seed})
            assert isinstance(config, ReviewConfig)
            review, images = compute_review(config)
            asked, wrong = answer_all(config, review, images, truth)
            streams = ", ".join(f"{count} {how}" for how, count in asked.items())
            share = asked.total() / len(review.pictures)
            print(f"seed {seed}: {asked.total()} of {len(review.pictures):,} pictures ({share:.0%}; {streams}); "
                  f"{wrong} labels are wrong ({wrong / len(review.pictures):.1%})", flush=True)  # fmt: skip


def adapt_digits(folder: Path) -> tuple[Path, dict[str, str]]:
    """(WORK, image -> class)"""
    demo(DemoConfig(output=str(folder / "demo")))
    images, classes, work = folder / "demo/images/unlabeled", folder / "demo/classes.yaml", folder / "work"
    must.adapt(images, classes=str(classes), model=find_assets(), output=work, train="no")
    return work, {name_image(number): label for number, (_, label) in enumerate(load_digits()["unlabeled"])}


def answer_all(config: ReviewConfig, review: Review, images: Images, truth: dict[str, str]) -> tuple[Counter[str], int]:
    """(answers by how the picture was chosen, wrong labels at the end)"""
    effect, asked = AnswerEffect(config, images, truth), Counter[str]()
    session = Session(review, config.output, "simulated", effect)
    shown = session.next("page")["picture"]
    while shown:
        asked[shown["sampled"]] += 1
        picture = session.picture(shown["number"])
        session.act("answer", "page", {"number": picture.number, "kind": "label", "label": truth[picture.image]})
        effect.wait()
        shown = session.act("next", "page", {})["picture"]
    true = effect.progress.true if effect.progress and effect.progress.true else (np.nan, np.nan)
    return asked, round((1 - true[1]) * len(review.pictures))


if __name__ == "__main__":
    main()
