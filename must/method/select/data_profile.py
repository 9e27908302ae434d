"""What unlabeled images look like to zero-shot and to their look-alikes, in numbers and in a paragraph.

It is told before training starts, because it says what the ladder will be able to vouch for at its end. N images, K
classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from must.base.text import printable
from must.method.select.ladder import KNOWING, MIN_IMAGES, agreement, knows, preferred

DOUBT = 0.4  # own confidence times the look-alikes' mean confidence, below which an image counts as doubtful
LONGEST_NAME = 40  # characters of a class name in a sentence
WELL = 0.85  # how often look-alikes prefer the class of sure images, above which they know the classes well


def data_profile(
    probabilities: np.ndarray,
    neighbours: np.ndarray,
    copies: int,
    classes: Sequence[str],
    images: int,
    undecodable: int = 0,
) -> dict[str, Any]:
    """JSON-able facts; `paragraph` puts them into words.

    Args:
        probabilities: zero-shot's, [N, K], of the images that are no copies.
        neighbours: [N, C] look-alikes, places among the N.
        copies: images left out because they show what another one shows.
        images: in the whole split, of which N + copies were looked at.
    """
    labels = probabilities.argmax(axis=1)
    share = np.bincount(labels, minlength=len(classes)) / max(len(labels), 1)
    there = share[share > 0]
    sure = probabilities.max(axis=1)
    judged = neighbours.size > 0
    doubted = sure * sure[neighbours].mean(axis=1) < DOUBT if judged else np.zeros(0)
    agree = agreement(labels, neighbours, len(classes)) if judged else None
    enough = len(labels) >= MIN_IMAGES and agree is not None
    most, least = int(share.argmax()), int(share.argmin())
    return {
        "images": int(images),
        "looked_at": int(len(labels) + copies),
        "undecodable": int(undecodable),
        "copies": int(copies),
        "classes": len(classes),
        "largest": {"class": classes[most], "share": float(share[most])},
        "smallest": {"class": classes[least], "share": float(share[least])},
        "unseen": int((share == 0).sum()),
        "effective_classes": float(np.exp(-(there * np.log(there)).sum())),
        "confidence": float(sure.mean()),
        "doubted": float(doubted.mean()) if judged else None,
        "agreement": agree if enough else None,
        "preferred": preferred(probabilities, neighbours) if enough else None,
    }


def paragraph(facts: dict[str, Any]) -> list[str]:
    """Sentences, for the log and the report."""
    return [how_many(facts), balance(facts), *strange(facts), prospects(facts)]


def how_many(facts: dict[str, Any]) -> str:
    looked, copies = facts["looked_at"], facts["copies"]
    of = f"{facts['images']:,} images" if facts["images"] > 1 else "1 image"
    bad = f"; {facts['undecodable']:,} cannot be decoded" if facts["undecodable"] else ""
    if looked + facts["undecodable"] < facts["images"]:
        of += f", of which {looked:,} were looked at here"
    if not copies:
        return f"{of}{bad}; none shows what another one shows."
    are = "is a copy or nearly one" if copies == 1 else "are copies or nearly copies"
    return f"{of}{bad}; {copies:,} ({copies / looked:.1%}) {are} of others and count{'s' if copies == 1 else ''} once."


def balance(facts: dict[str, Any]) -> str:
    most, least = facts["largest"], facts["smallest"]
    text = f"Zero-shot sees {named(most)} most often ({most['share']:.1%})"
    if facts["unseen"]:
        text += f" and {facts['unseen']:,} of {facts['classes']:,} classes never"
    else:
        text += f" and {named(least)} least often ({least['share']:.1%})"
    return (
        f"{text}, which is as varied as {facts['effective_classes']:.1f} equally frequent classes. Without labels "
        "there is no telling whether the images are so or zero-shot leans that way."
    )


def strange(facts: dict[str, Any]) -> list[str]:
    if facts["doubted"] is None:
        return []
    return [
        f"Neither zero-shot nor an image's look-alikes are sure of {facts['doubted']:.1%} of the images: a guess at "
        "how many show none of the classes, in which hard images of the classes are counted too."
    ]


def prospects(facts: dict[str, Any]) -> str:
    if facts["agreement"] is None:
        return (
            f"Fewer than {MIN_IMAGES} different images are too few to judge by: the ladder can keep nothing of an "
            "adaptation, and zero-shot stays."
        )
    share = facts.get("preferred")
    if share is None:  # facts of an earlier version, or one class
        return "How well look-alikes know the classes was not asked."
    text = f"Look-alikes of the images that zero-shot is surest of prefer their class to the runner-up in {share:.0%}"
    if share >= WELL:
        return f"{text}: they know the classes well, and the ladder can be expected to see what training changes."
    if knows(share, facts["looked_at"] - facts["copies"]):
        return f"{text}: they know something of the classes; of small changes the ladder may see too little."
    return (
        f"{text} (50% is chance, {KNOWING:.0%} and a standard error are needed): they know too little of the classes "
        "to vouch for others, and what training changes will stay undecided. Answers in `must review`, or labels, "
        "would decide."
    )


def named(fact: dict[str, Any]) -> str:
    return f"'{printable(fact['class'], LONGEST_NAME)}'"


def profile_text(facts: dict[str, Any]) -> str:
    """The paragraph, for the log."""
    return "the images: " + "\n  ".join(paragraph(facts))
