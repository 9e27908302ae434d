"""The labels that `must refine` gave to the unlabeled images, against zero-shot's: what the report shows of them."""

import csv
import io
from collections import Counter
from dataclasses import dataclass
from typing import Any, Self

from must.base import storage
from must.base.errors import UserError
from must.base.files import PREDICTIONS_FILE, REFINED_FILE
from must.base.parameters import require
from must.base.storage import read_json
from must.base.text import NONE_OF_THESE, uncell

PAIRS_LISTED = 10  # pairs of classes


@dataclass(frozen=True)
class RefinedLabels:
    """`changed`: image -> (zero-shot's class, the refined one), of the images where the two differ."""

    folder: str
    split: str
    images: int
    answers: int
    changed: dict[str, tuple[str, str]]

    @classmethod
    def read(cls, folder: str) -> Self:
        """Raises ValueError: the folder is none of `must refine`."""
        summary = read_json(storage.join(folder, REFINED_FILE), "--refined")
        place = storage.join(folder, PREDICTIONS_FILE)
        require(storage.exists(place), f"--refined {folder}: no {PREDICTIONS_FILE} there")
        changed, images = dict[str, tuple[str, str]](), 0
        try:
            for row in csv.DictReader(io.StringIO(storage.read_bytes(place).decode(), newline="")):
                images += 1
                if row["class"] != row["zero_shot"]:
                    changed[uncell(row["image"])] = uncell(row["zero_shot"]), uncell(row["class"]) or NONE_OF_THESE
            return cls(folder, summary["config"]["split"], images, summary["answers"], changed)
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise UserError(
                f"--refined {folder}: is not what `must refine` of this version writes ({type(error).__name__}); "
                "run it again"
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """What metrics.json holds as `refined`."""
        pairs = Counter(self.changed.values()).most_common(PAIRS_LISTED)
        return {
            "folder": self.folder,
            "split": self.split,
            "images": self.images,
            "answers": self.answers,
            "changed": len(self.changed),
            "changes": [{"zero_shot": old, "refined": new, "images": count} for (old, new), count in pairs],
        }
