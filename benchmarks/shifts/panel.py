"""The judging families by one command: installs packages, pre-trains three towers, and runs `--preset auto` as it is,
at its own length, on every family and variant with two seeds.

    python -m benchmarks.shifts.panel           (some hours of one core; what is there is not done again)
    python -m benchmarks.shifts.panel --before  (some hours more: what auto was fitted on and what stood before it)

Runs are ordered so that an interrupted panel has something of every family.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.shifts import packages, pretrain, pretrain_wide
from benchmarks.shifts.run import one

IMAGES = 6_000  # shown in training, and at least two epochs
LONGER = {("cyrillic", "as-is"): 14_000, ("display", "as-is"): 14_000, ("kana", "as-is"): 8_000}
ORDER = (  # (tower, family, setting, variants)
    ("scripts", "cyrillic", "auto", ("as-is",)), ("", "display", "auto", ("as-is",)),
    ("scripts", "kana", "auto", ("as-is",)), ("", "digits", "auto", ("as-is",)),
    ("scripts", "kana", "auto-third", ("as-is",)), ("picto", "emoji", "auto", ("as-is",)),
    ("picto", "flags", "auto", ("as-is",)),
    ("", "slanted", "auto", ("as-is", "tail")), ("", "grainy", "auto", ("as-is", "tail", "half")),
    ("", "slanted", "auto", ("half", "few")), ("", "grainy", "auto", ("few",)),
    ("picto", "emoji", "auto-third", ("as-is",)), ("", "digits", "auto", ("tail",)),
    ("scripts", "cyrillic", "auto-third", ("as-is",)), ("", "display", "auto-third", ("as-is", "tail")),
    ("picto", "flags", "auto", ("tail",)), ("picto", "flags", "auto-third", ("as-is",)),
    ("picto", "emoji", "auto", ("junk", "half")), ("scripts", "kana", "auto", ("tail",)),
    ("", "display", "auto", ("half", "junk", "few")), ("scripts", "cyrillic", "auto", ("half", "few")),
    ("picto", "flags", "auto", ("junk", "few", "half", "swapped")), ("", "digits", "auto", ("half", "few")),
    ("scripts", "kana", "auto", ("junk", "few", "half")), ("picto", "emoji", "auto", ("tail", "few", "swapped")),
    ("kanji", "kanji", "auto", ("as-is", "few")), ("kanji", "kanji", "auto-third", ("as-is",)),
    ("kanji", "kanji", "auto-classes", ("half", "tail", "junk")), ("kanji", "faxed", "auto", ("as-is",)),
    ("kanji", "faxed", "auto-third", ("as-is",)), ("kanji", "faxed", "auto-classes", ("tail", "few", "half")),
    ("", "slanted", "auto", ("junk",)), ("", "grainy", "auto", ("junk",)), ("", "digits", "auto-pull", ("tail",)),
    ("", "digits", "auto-memory", ("as-is", "tail")), ("", "digits", "auto-balance", ("tail",)),
    ("kanji", "kanji", "auto-memory", ("as-is", "few")), ("kanji", "faxed", "auto-memory", ("as-is",)),
    ("kanji", "kanji", "auto-pull", ("as-is",)), ("kanji", "kanji", "auto-balance", ("as-is",)),
)  # fmt: skip
# Many classes that have something to gain.
WIDE: tuple[tuple[str, str, tuple[str, ...], int], ...] = (  # (task, setting, variants, images)
    ("leaning", "auto-classes", ("as-is",), 8_000), ("dotted", "auto-classes", ("as-is",), 12_600),
    ("tilted", "auto-classes", ("as-is",), 8_000), ("leaning", "auto-classes", ("tail", "half"), 8_000),
    ("dotted", "auto-classes", ("tail", "half"), 8_000), ("tilted", "auto-classes", ("half",), 8_000),
    ("leaning", "auto-classes", ("few", "shuffled"), 8_000), ("brush", "auto-classes", ("as-is",), 8_000),
    ("leaning", "auto-aimless", ("as-is",), 8_000), ("dotted", "auto-classes", ("few", "junk"), 8_000),
    ("tilted", "auto-classes", ("tail", "few", "junk"), 8_000), ("leaning", "auto-classes", ("junk", "swapped"), 8_000),
)  # fmt: skip
# `--preset auto` as it is: tower, family. Names exchanged or shuffled are controls.
OWN = (
    ("", "slanted"), ("", "grainy"), ("", "display"), ("kanji", "faxed"), ("kanji", "kanji"), ("scripts", "cyrillic"),
    ("east", "printed"), ("east", "dotted"), ("east", "tilted"), ("east", "leaning"),
)  # fmt: skip
OWN_VARIANTS = ("as-is", "tail", "half", "few", "junk")
OWN_CONTROLS = (("slanted", "swapped"), ("slanted", "shuffled"), ("faxed", "shuffled"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", action="store_true", help="the runs before auto was as it is")
    before = parser.parse_args().before
    torch.set_num_threads(1)
    packages.install()
    (what_was_before if before else as_it_is)()


def as_it_is() -> None:
    for seed in (0, 1):
        for variant in OWN_VARIANTS:
            for tower, name in OWN:
                train_tower(tower)
                one(name, variant, "auto-gentle", 0, seed, short=True)
        for name, variant in OWN_CONTROLS:
            one(name, variant, "auto-gentle", 0, seed, short=True)


def train_tower(name: str) -> None:
    """Nothing, where it is there already or is the bundled one."""
    if name == pretrain_wide.TOWER:
        pretrain_wide.pretrain()
    elif name:
        pretrain.pretrain(name)


def what_was_before() -> None:
    for seed in (0, 1):
        pretrain_wide.pretrain()
        for name, setting, variants, images in WIDE:
            for variant in variants:
                one(name, variant, setting, images, seed)
    for seed in (0, 1):
        for model, name, setting, variants in ORDER:
            train_tower(model)
            for variant in variants:
                images = LONGER.get((name, variant), IMAGES) if seed == 0 and setting == "auto" else IMAGES
                images = 8_000 if (model == "kanji" and variant != "few") or setting == "auto-classes" else images
                one(name, variant, setting, images, seed, short=(name, variant) != ("digits", "as-is"))


if __name__ == "__main__":
    main()
