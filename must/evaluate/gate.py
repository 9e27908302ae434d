"""May the adapted model be promoted? Pure functions of metrics.json; they return the decision and every reason for it.

Two gates. The label-free one is the default and reads nothing that comes from a label. The labelled one runs only when
the user asks for it by name, on labels of a split that nothing was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from must.evaluate.table import NAME_SHOWN
from must.parameters import require
from must.text import printable

NAMED = 5  # vanished classes that a reason names


@dataclass(frozen=True)
class Decision:
    """`reasons`: one line a rule, passed or not, in the order in which the rules were asked."""

    passed: bool
    gate: str  # "label-free" or "labelled"
    reasons: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, "gate": self.gate, "reasons": self.reasons}


@dataclass(frozen=True)
class LabelFreeLimits:
    """Defaults chosen on adaptations of which some were bad on purpose (docs/evaluation.md): each lies between the best
    bad and the worst good one. Every limit is relative to the zero-shot model on the same images; where zero-shot is
    right less than about 60% of the time, a good adaptation must disagree more: lower the first two there."""

    min_agreement: float = 0.6  # share of images that keep their class
    min_agreement_confident: float = 0.7  # the same among images that zero-shot was confident of
    min_effective_classes: float = 0.8  # of the zero-shot model's number
    max_vanished: float = 0.0  # share of all classes that are hardly predicted any more
    min_information_gain: float = -0.2  # in mutual information, adapted - zero-shot; good ones lost up to 0.11


def label_free_gate(metrics: dict[str, Any], limits: LabelFreeLimits | None = None) -> Decision:
    """Stops collapsed and run-away adaptations. Passing is no proof of a gain: docs/evaluation.md says what it misses.

    Reads `metrics["label_free"]` only.

    Raises:
        ValueError: the metrics have no baseline to compare with.
    """
    limits = limits or LabelFreeLimits()
    free, classes = metrics["label_free"], len(metrics["classes"])
    compared, before, after = free["compared"], free["baseline"], free["adapted"]
    require(compared is not None, "the label-free gate compares with zero-shot: give `must evaluate` a --baseline")
    name = metrics.get("baseline_name", "zero-shot")
    rules = [
        rule(f"same class as {name}", compared["agreement"], limits.min_agreement),
        rule(
            f"effective classes, of {name}'s number",
            after["effective_classes"] / before["effective_classes"],
            limits.min_effective_classes,
        ),
        rule(vanished(compared, metrics), len(compared["vanished"]) / classes, limits.max_vanished, at_most=True),
        rule(
            "mutual information gained",
            after["mutual_information"] - before["mutual_information"],
            limits.min_information_gain,
        ),
    ]
    if compared["agreement_confident"] is not None:
        value = compared["agreement_confident"]
        rules.insert(1, rule(f"same class where {name} is confident", value, limits.min_agreement_confident))
    return Decision(all(passed for passed, _ in rules), "label-free", [text for _, text in rules])


def labelled_gate(metrics: dict[str, Any], key: str = "top1", min_gain: float = 0.0, min_images: int = 100) -> Decision:
    """Passes when the lower end of the paired 95% interval of the gain over the baseline is above `min_gain`.

    The baseline is the one of `must evaluate --baseline`: the zero-shot model, or the champion's bundle.

    Args:
        key: top1, top5 or mean_per_class.
        min_gain: a fraction, such as 0.01 for one point.
        min_images: labelled images below which no decision is made.

    Raises:
        ValueError: there are no labels, or no baseline.
    """
    require(bool(metrics["labelled"]), "the labelled gate needs labels; the evaluated split has none")
    require(metrics["baseline"] is not None, "the labelled gate needs a baseline: must evaluate --baseline")
    require(key in ("top1", "top5", "mean_per_class"), f"gate metric '{key}': take top1, top5 or mean_per_class")
    low, high = metrics["intervals"][key]
    gain = metrics["adapted"][key] - metrics["baseline"][key]
    enough = metrics["labelled"] >= min_images
    reasons = [
        line(enough, f"labelled images {metrics['labelled']}, needed {min_images}"),
        line(
            low > min_gain,
            f"{key} gained {100 * gain:+.1f} points, 95% interval {100 * low:+.1f} to {100 * high:+.1f}; "
            f"its lower end must be above {100 * min_gain:+.1f}",
        ),
    ]
    return Decision(enough and low > min_gain, "labelled", reasons)


def vanished(compared: dict[str, Any], metrics: dict[str, Any]) -> str:
    names = [printable(metrics["classes"][number], NAME_SHOWN) for number in compared["vanished"]]
    shown = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    return f"vanished classes ({shown}): share of all" if names else "vanished classes"


def rule(name: str, value: float, limit: float, at_most: bool = False) -> tuple[bool, str]:
    passed = value <= limit if at_most else value >= limit
    return passed, line(passed, f"{name} {value:.3f}, {'at most' if at_most else 'at least'} {limit:g}")


def line(passed: bool, text: str) -> str:
    return f"{'ok' if passed else 'STOP'}  {text}"
