"""May the adapted model be promoted? Pure functions of metrics.json; they return the decision and every reason for it.

Two gates. The label-free one is the default and reads nothing that comes from a label. The labelled one runs only when
the user asks for it by name, on labels of a split that nothing was trained on.
"""

import json
import logging
import math
from dataclasses import dataclass, field, replace
from typing import Any

from must.base import storage
from must.base.parameters import require
from must.base.storage import read_json
from must.config import GateConfig
from must.method.answers.decided import in_words as in_words_of_answers
from must.method.select.undecided import Undecided, decided_by

logger = logging.getLogger(__name__)

GAIN, ZERO_SHOT, STOPPED, UNCHECKED = "gain", "zero-shot", "stopped", "unchecked"


@dataclass(frozen=True)
class Decision:
    """`reasons`: one line a rule, passed or not, in the order in which the rules were asked.

    `outcome`, for programs: gain; zero-shot, nothing was kept of the adaptation and the model is as good as zero-shot,
    which passes but replaces no champion; stopped; or unchecked, no gate was asked.
    """

    passed: bool
    gate: str  # "label-free", "reviewed", "labelled" or "none"
    reasons: list[str] = field(default_factory=list)
    outcome: str = ""

    def __post_init__(self) -> None:
        if not self.outcome:
            object.__setattr__(self, "outcome", GAIN if self.passed else STOPPED)

    def to_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, "gate": self.gate, "outcome": self.outcome, "reasons": self.reasons}


def gate(config: GateConfig) -> Decision:
    """Decides, prints every reason, writes ``config.output`` if it is given. A stopped model is no error.

    Raises:
        ValueError: no metrics, or metrics without what the gate needs.
    """
    metrics = read_json(config.metrics, "--metrics")
    try:
        decision = RULES[config.gate](metrics, config)
    except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"--metrics {config.metrics}: is not what `must evaluate` of this version writes "
            f"({type(error).__name__}: {' '.join(str(error).split())[:100]}); evaluate again"
        ) from error
    if config.output:
        storage.write_bytes(config.output, json.dumps(decision.to_dict(), indent=1).encode())
    logger.info("\n".join([f"gate ({decision.gate}): {in_words(decision)}", *decision.reasons]))
    return decision


def label_free_gate(metrics: dict[str, Any], config: GateConfig) -> Decision:
    """Passes when the images' look-alikes speak for the change (must.method.select.ladder). docs/evaluation.md says how
    often it was wrong.

    Where the evaluated images are too few to tell, the audit that chose the model on its training images counts.
    Reads `metrics["label_free"]` and the model's own record only.

    Raises:
        ValueError: the metrics have no baseline to compare with, or are of an earlier version.
    """
    free = metrics["label_free"]
    compared, before, after = free["compared"], free["baseline"], free["adapted"]
    require(compared is not None, "the label-free gate compares with zero-shot: give `must evaluate` a --baseline")
    require("audit" in compared, "the metrics are of an earlier version: run `must evaluate` again")
    name = metrics.get("baseline_name", "zero-shot")
    audit = compared["audit"]
    by_people = review_of(metrics) if name.endswith("zero-shot") else None  # it is zero-shot that they compared with
    said = (True, line(True, in_words_of_answers(by_people))) if by_people else None  # zero-shot's weights, too, pass
    rules = [said or audited(audit, selection_of(metrics), name)]
    if not by_people and audit and audit["signal"]["renamed"] is not None:
        value = audit["signal"]["renamed"]
        rules.append(rule("images whose class only changed its name", value, config.max_renamed, at_most=True))
    rules.append(rule(f"same class as {name}", compared["agreement"], config.min_agreement))
    share = after["effective_classes"] / before["effective_classes"]
    rules.append(rule(f"effective classes, of {name}'s number", share, config.min_effective_classes))
    passed = all(passed for passed, _ in rules)
    kept = passed and name.endswith("zero-shot") and audit is not None and audit["outcome"] == "same"
    return Decision(passed, "label-free", [text for _, text in rules], ZERO_SHOT if kept else "")


def audited(audit: dict[str, Any] | None, chosen: dict[str, Any], name: str) -> tuple[bool, str]:
    """Whether the look-alikes let the model pass, and why."""
    if audit is None:
        text = f"{name} has another shape, and look-alikes cannot compare the two; take the labelled gate"
        return False, line(False, text)
    require(
        all(isinstance(rung["z"], int | float) for rung in audit["rungs"]),
        "the metrics' record of the look-alikes is damaged; evaluate again",
    )
    z = ", ".join(f"{rung['z']:+.1f}" for rung in audit["rungs"])
    of = f"{audit['images']:,} images, z on the way {z or 'unknown'}"
    if audit.get("needed"):
        of += f", {audit['needed']:.1f} needed"
    if audit["outcome"] == "same":
        if name.endswith("zero-shot"):
            return True, line(True, f"zero-shot is kept: no image changes its class{left_open(chosen)}")
        return False, line(False, f"no image changes its class against the {name}: there is nothing to promote")
    if audit["outcome"] == "refused":
        text = f"look-alikes speak against the change ({audit['reason']}; {of}); `must select` keeps what is good of it"
        return False, line(False, text)
    if audit["outcome"] == "gain":
        return True, line(True, f"look-alikes speak for the change ({of})")
    if chosen.get("alpha"):
        spoke = f"those of {chosen['images']:,} training images spoke for it{left_open(chosen)}"
        text = f"look-alikes here are undecided ({of}); {spoke}"
        return True, line(True, text)
    decides = left_open(audit) or "; give more images, or labels"
    return False, line(False, f"the evidence for the change is too weak ({of}){decides}")


def left_open(found: dict[str, Any]) -> str:
    """What would decide about the part of a way that look-alikes leave open; '' if they leave none open."""
    return f"; {decided_by(Undecided(**found['undecided']))}" if found.get("undecided") else ""


def selection_of(metrics: dict[str, Any]) -> dict[str, Any]:
    """What the model's bundle records of its selection; nothing where it had none."""
    return ((metrics.get("model") or {}).get("provenance") or {}).get("selection") or {}


def review_of(metrics: dict[str, Any]) -> dict[str, Any] | None:
    """What people's answers decided of the model, if they were asked and did."""
    found = selection_of(metrics).get("review")
    return found if isinstance(found, dict) and found.get("alpha") is not None else None


def reviewed_gate(metrics: dict[str, Any], config: GateConfig) -> Decision:
    """Passes when people's answers decided how much of the adaptation is kept (`must select --answers`)."""
    if not metrics.get("baseline_name", "zero-shot").endswith("zero-shot"):  # a champion, which no answer is about
        return replace(label_free_gate(metrics, config), gate="reviewed")
    review = review_of(metrics)
    if review is None:
        asked = selection_of(metrics).get("review")
        why = in_words_of_answers(asked) if isinstance(asked, dict) else "nobody was asked about this model"
        return Decision(
            False, "reviewed", [line(False, f"{why}; ask with `must review`, then `must select --answers`")]
        )
    return Decision(True, "reviewed", [line(True, in_words_of_answers(review))], "" if review["alpha"] else ZERO_SHOT)


def labelled_gate(metrics: dict[str, Any], config: GateConfig) -> Decision:
    """Passes when the lower end of the paired 95% interval of the gain over the baseline is above `config.min_gain`.

    The baseline is the one of `must evaluate --baseline`: the zero-shot model, or the champion's bundle.

    Raises:
        ValueError: there are no labels, or no baseline.
    """
    require(bool(metrics["labelled"]), "the labelled gate needs labels; the evaluated split has none")
    require(metrics["baseline"] is not None, "the labelled gate needs a baseline: must evaluate --baseline")
    key, min_gain, min_images = config.metric, config.min_gain, config.min_images
    low, high = metrics["intervals"][key]
    gain = metrics["adapted"][key] - metrics["baseline"][key]
    numbers = all(math.isfinite(value) for value in (low, high, gain))
    require(numbers, f"--metrics {config.metrics}: {key} or its interval is no finite number; evaluate again")
    picked, enough = bool(metrics.get("data", {}).get("picked")), metrics["labelled"] >= min_images
    reasons = [
        line(enough, f"labelled images {metrics['labelled']}, needed {min_images}"),
        line(
            low > min_gain,
            f"{key} gained {100 * gain:+.1f} points, 95% interval {100 * low:+.1f} to {100 * high:+.1f}; "
            f"its lower end must be above {100 * min_gain:+.1f}",
        ),
    ]
    if picked:
        why = "must review picked the labelled images, such as models name differently: no gain on all images follows"
        reasons.append(line(False, f"{why}; `must select --answers` weights them, and the reviewed gate takes that"))
    return Decision(enough and low > min_gain and not picked, "labelled", reasons)


def no_gate(metrics: dict[str, Any], config: GateConfig) -> Decision:
    return Decision(True, "none", ["ok  no gate was asked for: every model passes"], UNCHECKED)


RULES = {"labelled": labelled_gate, "reviewed": reviewed_gate, "label-free": label_free_gate, "none": no_gate}


def rule(name: str, value: float, limit: float, at_most: bool = False) -> tuple[bool, str]:
    passed = value <= limit if at_most else value >= limit
    return passed, line(passed, f"{name} {value:.3f}, {'at most' if at_most else 'at least'} {limit:g}")


def line(passed: bool, text: str) -> str:
    return f"{'ok' if passed else 'STOP'}  {text}"


def against_champion(decision: Decision, by_champion: Decision | None) -> Decision:
    """The decision on a model when there is a champion: zero-shot replaces none, and a model that is better than
    zero-shot must not be worse than the champion either."""
    if decision.outcome == ZERO_SHOT:
        return replace(decision, passed=False)
    if not decision.passed or by_champion is None:
        return decision
    reasons = [*decision.reasons, *(f"{text} [against the champion]" for text in by_champion.reasons)]
    return Decision(by_champion.passed, decision.gate, reasons)


def in_words(decision: Decision) -> str:
    if decision.outcome == ZERO_SHOT:
        return "passed, zero-shot is kept" if decision.passed else "zero-shot is kept, the champion stays"
    return "passed" if decision.passed else "stopped"


def as_markdown(decision: Decision, against: str) -> str:
    """The decision as a page of Kubeflow's."""
    head = f"# {in_words(decision).capitalize()} by the {decision.gate} gate"
    if decision.outcome == ZERO_SHOT:
        head = f"# Zero-shot is kept{'' if decision.passed else ': the champion stays'}"
    if decision.gate == "none":
        head = "# Passed: no gate"
    reasons = [reason.replace("`", "'") for reason in decision.reasons]  # names of classes must not end the code
    return "\n".join([head, "", f"Compared with: {against}", "", *(f"- `{reason}`" for reason in reasons), ""])
