"""How many clicks and keys it takes a person until `must review` says that a set is finished, how many pictures are
shown, and how many labels are wrong then.

    python benchmarks/clicks.py [WORK TRUTH.csv] [--seeds 4] [--every 1] [--wrong 0.02] [--overlooks 0.05]

A simulated person takes what the page asks; labels are renewed after each screen, and after `--every` pictures that
are shown alone. An action is a click or a key: one for a picture that is shown alone; on a screen one for each that is
something else (the key of its class, with the pointer on it), one more where the class has no key yet (only with more
than 30 classes), and Enter. `--wrong`: share of the single answers that are wrong; `--overlooks`: share of the wrong
labels on screens that the person does not see. WORK: a folder of `must adapt` without answers; TRUTH.csv: a table of
image and class, with names as in WORK/labels/predictions.csv. Without them: the bundled digits, which `must quickstart`
asks about.
"""

from __future__ import annotations

import argparse
import csv
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import must
from must.answers.review import Review
from must.api.demo import demo, find_assets, load_digits, name_image
from must.api.run import configure
from must.config import DemoConfig, ReviewConfig
from must.reviewing.prepare import AnswerEffect, Images, compute_review
from must.reviewing.session import BUTTONS, Session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="?", type=Path)
    parser.add_argument("truth", nargs="?", type=Path)
    parser.add_argument("--seeds", type=int, default=4, help="orders of the pictures")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--wrong", type=float, default=0.0)
    parser.add_argument("--overlooks", type=float, default=0.0)
    parser.add_argument("--mode", default="", help="one: pictures are shown alone")
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
            person = Person(truth, review, options.wrong, options.overlooks, np.random.default_rng(seed))
            broken, wrong = person.answer_all(config, images, options.mode, options.every)
            pictures = len(review.pictures)
            ways = f"{person.single} alone, {person.screens} screens"
            ends = f"{wrong} labels are wrong ({wrong / pictures:.1%}){', promise broken' if broken else ''}"
            print(f"seed {seed}: {person.actions / pictures:.0%} actions ({person.actions}: {ways}), "
                  f"{person.seen / pictures:.0%} of {pictures:,} pictures seen; {ends}", flush=True)  # fmt: skip


def adapt_digits(folder: Path) -> tuple[Path, dict[str, str]]:
    """(WORK, image -> class)"""
    demo(DemoConfig(output=str(folder / "demo")))
    images, classes, work = folder / "demo/images/unlabeled", folder / "demo/classes.yaml", folder / "work"
    must.adapt(images, classes=str(classes), model=find_assets(), output=work, train="no")
    return work, {name_image(number): label for number, (_, label) in enumerate(load_digits()["unlabeled"])}


class Slow(AnswerEffect):
    """Does not look while `skips`."""

    skips = False

    def update(self) -> None:
        if not self.skips:
            super().update()


class Person:
    def __init__(
        self, truth: dict[str, str], review: Review, wrong: float, overlooks: float, rng: np.random.Generator
    ) -> None:
        self.truth, self.review, self.wrong, self.overlooks, self.rng = truth, review, wrong, overlooks, rng
        self.keyed = set(review.classes if len(review.classes) <= BUTTONS else ())  # classes with a key
        self.actions = self.single = self.screens = self.seen = 0

    def answer_all(self, config: ReviewConfig, images: Images, mode: str, every: int) -> tuple[bool, int]:
        """(whether the page said finished with more wrong labels than promised, how many are wrong)"""
        effect = Slow(config, images, self.truth)
        session = Session(self.review, config.output, "simulated", effect)
        reply = session.act("next", "page", {"mode": mode})
        while reply["picture"] or reply["screen"]:
            effect.skips = bool(reply["picture"]) and (self.single + 1) % every != 0
            request = self.name_picture(session, reply) if reply["picture"] else self.name_screen(session, reply)
            reply = session.act("answer", "page", request)
            while "missed" in reply:  # the person looks again
                request["screen"] = self.look(session, request["left"], request["screen"], request["right"])
                reply = session.act("answer", "page", request)
            effect.wait()
            reply = session.act("next", "page", {"mode": mode})
        progress = effect.progress
        assert progress and progress.accepted and progress.true
        answers, labels = session.answers, progress.labels
        named = [
            answers[picture.sha256].label
            if picture.sha256 in answers
            else self.review.classes[labels[picture.number][0]]
            for picture in self.review.pictures
        ]
        wrong = sum(self.truth[p.image] != name for p, name in zip(self.review.pictures, named, strict=True))
        finished = session.finished and progress.accepted.accepted
        return bool(finished and wrong > progress.accepted.risk * len(named)), wrong

    def name_picture(self, session: Session, reply: dict[str, Any]) -> dict[str, Any]:
        self.actions, self.single, self.seen = self.actions + 1, self.single + 1, self.seen + 1
        number = reply["picture"]["number"]
        label = self.truth[session.picture(number).image]
        if self.rng.random() < self.wrong:
            label = str(self.rng.choice([name for name in self.review.classes if name != label]))
        return {"number": number, "kind": "label", "label": label}

    def name_screen(self, session: Session, reply: dict[str, Any]) -> dict[str, Any]:
        self.screens += 1
        numbers, right = [one["number"] for one in reply["screen"]["pictures"]], reply["screen"]["label"]
        self.seen += len(numbers)
        return {"right": right, "screen": self.look(session, numbers, [], right), "left": numbers}

    def look(self, session: Session, numbers: list[int], before: list[Any], right: str) -> list[Any]:
        """Answers for all pictures of a screen: what was found `before` and now."""
        found = {number: label for _, label, part in before for number in part if label != right}
        for number in numbers:
            label = self.truth[session.picture(number).image]
            if label != right and number not in found and self.rng.random() >= self.overlooks:
                found[number] = label
                self.actions += 1 + (label not in self.keyed)
                if len(self.keyed) < BUTTONS:
                    self.keyed.add(label)
        self.actions += 1
        groups = {label: [n for n, one in found.items() if one == label] for label in set(found.values())}
        groups[right] = [number for number in numbers if number not in found]
        return [["label", label, part] for label, part in groups.items()]


if __name__ == "__main__":
    main()
