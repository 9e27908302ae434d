"""The second panel, by one command: pre-trains three towers, then adapts to every family as it is and in its variants.

    python -m benchmarks.shifts.panel           (about an hour and a half of one core; what is there is not done again)

Runs are ordered so that an interrupted panel has something of every family.
"""

from __future__ import annotations

import torch

from benchmarks.shifts.pretrain import pretrain
from benchmarks.shifts.run import one

IMAGES = 6_000  # shown in training, and at least two epochs
LONGER = {("cyrillic", "as-is"): 14_000, ("display", "as-is"): 14_000, ("kana", "as-is"): 8_000}
ORDER = (
    ("scripts", "cyrillic", ("as-is",)), ("", "display", ("as-is",)), ("scripts", "kana", ("as-is", "tail", "half")),
    ("picto", "emoji", ("as-is",)), ("picto", "flags", ("as-is",)), ("", "digits", ("as-is", "tail", "half")),
    ("hangul", "hangul", ("as-is",)), ("scripts", "cyrillic", ("tail", "half")), ("", "display", ("tail", "half")),
    ("picto", "emoji", ("tail", "junk")), ("picto", "flags", ("tail", "half")), ("scripts", "kana", ("junk", "few")),
    ("hangul", "hangul", ("tail", "half")), ("scripts", "cyrillic", ("junk", "few")), ("", "display", ("junk", "few")),
    ("picto", "flags", ("junk", "few", "swapped")), ("picto", "emoji", ("half", "few")), ("", "digits", ("few",)),
    ("hangul", "hangul", ("junk", "few", "swapped")), ("scripts", "kana", ("swapped",)),
)  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    for seed in (0, 1):
        for model, name, variants in ORDER:
            if model:
                pretrain(model)
            for variant in variants:
                if seed == 0 or variant not in ("swapped",):
                    one(name, variant, "auto", LONGER.get((name, variant), IMAGES) if seed == 0 else IMAGES, seed)


if __name__ == "__main__":
    main()
