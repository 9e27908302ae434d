"""The second and third panel, by one command: pre-trains five towers, then adapts to every family and its variants.

    python -m benchmarks.shifts.panel           (some hours of one core; what is there is not done again)

Runs are ordered so that an interrupted panel has something of every family.
"""

from __future__ import annotations

import torch

from benchmarks.shifts import pretrain, pretrain_wide
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
# `--preset auto` as it is, at its own length: (task, variants)
OWN = (
    ("faxed", ("as-is", "tail", "half", "few")), ("cyrillic", ("as-is", "half")), ("kanji", ("as-is", "tail")),
    ("slanted", ("as-is", "tail", "few", "half")), ("grainy", ("as-is", "tail", "few")), ("display", ("as-is", "tail")),
    ("printed", ("as-is", "half", "tail")), ("dotted", ("as-is",)), ("tilted", ("as-is",)),
    ("leaning", ("as-is", "tail")),
)  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    for seed in (0, 1):
        pretrain_wide.pretrain()
        for name, setting, variants, images in WIDE:
            for variant in variants:
                one(name, variant, setting, images, seed)
    for seed in (0, 1):
        for model, name, setting, variants in ORDER:
            if model:
                pretrain.pretrain(model)
            for variant in variants:
                images = LONGER.get((name, variant), IMAGES) if seed == 0 and setting == "auto" else IMAGES
                images = 8_000 if (model == "kanji" and variant != "few") or setting == "auto-classes" else images
                one(name, variant, setting, images, seed, short=(name, variant) != ("digits", "as-is"))
    for seed in (0, 1):
        for name, variants in OWN:
            for variant in variants:
                one(name, variant, "auto-gentle", 0, seed, short=True)


if __name__ == "__main__":
    main()
