"""What `must select --answers` takes from a folder of `must review`."""

from dataclasses import asdict
from typing import Any, NamedTuple

from must.base import storage
from must.base.parameters import require
from must.method.answers.book import FILE, read_answers
from must.method.answers.judge import BETTER, OPEN
from must.method.answers.questions import fingerprint
from must.method.answers.sampling import SamplingPlan


class Decided(NamedTuple):
    """`alpha`: the share of the way that the answers speak for, 0 for zero-shot; None: they do not decide. `record`:
    for the bundle's provenance, the report and the gate. `text`: one line."""

    alpha: float | None
    record: dict[str, Any]
    text: str


def decided(folder: str, weights: str) -> Decided:
    """Of the answers in a folder, about the model whose file of weights is given. No image is looked at.

    Raises:
        ValueError: no review there, or one of another model; an answer that cannot be read, or that names no class.
    """
    plan = SamplingPlan.load(folder)
    ours = fingerprint(storage.read_bytes(weights))
    require(
        ours == plan.model_sha256,
        f"--answers {folder}: is a review of another model than {weights}; give `must review` the same --model",
    )
    answers = read_answers(folder, plan.classes)
    require(bool(answers), f"--answers {folder}: there are no answers in {FILE} yet")
    found = plan.verdict(answers)
    alpha = None if found.outcome == OPEN else plan.alphas[found.candidate - 1] if found.outcome == BETTER else 0.0
    who = sorted({answer.who for answer in answers.values() if answer.who})
    record = asdict(found) | {"alpha": alpha, "who": who[:20], "images": plan.images, "split": plan.split}
    for name in ("candidate", "leading", "sure"):
        del record[name]
    return Decided(alpha, record, in_words(record))


def in_words(record: dict[str, Any]) -> str:
    """One line about a record of `decided`, for the log, the gate and the report."""
    gain, low, high = (100 * record[name] for name in ("gain", "low", "high"))
    answers = f"{record['answers']:,} answers about pictures"
    if record["outcome"] == BETTER:
        return (
            f"{answers} put {record['alpha']:.0%} of the adaptation {gain:+.1f} points above zero-shot on "
            f"{record['images']:,} images (at least {low:+.1f}, at most {high:+.1f}, each sure to 95%)"
        )
    if record["outcome"] == OPEN:
        more = f", about {record['left']:,} more would" if record["left"] else ""
        return f"{answers} do not decide yet{more}"
    return f"{answers} say that no part of the adaptation is a point better than zero-shot"
