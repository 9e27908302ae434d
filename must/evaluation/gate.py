"""Decides whether the adapted model may be promoted: pure functions of metrics.json that return a decision and reasons.

The label-free gate is the default and reads no labels. The labelled gate runs only if the user names it, on labels of a
split that nothing was trained on.
"""

import json
import logging
import math
from dataclasses import asdict, dataclass, field, replace

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import require
from must.base.records import record_of
from must.config import GateConfig
from must.evaluation.result import Metrics, read_metrics
from must.method.model.provenance import CheckResult, Selection

logger = logging.getLogger(__name__)

FEWEST_LABELS = 50  # images; with fewer the check decides nothing
GAIN, NOTHING_KEPT, STOPPED, UNCHECKED = "gain", "zero-shot", "stopped", "unchecked"


@dataclass(frozen=True)
class Decision:
    """`reasons`: one line per rule, passed or not, in the order in which the rules were applied.

    `outcome`: "gain"; "zero-shot", the model is the zero-shot model, which passes but replaces no champion; "stopped";
    or "unchecked", no gate ran.
    """

    passed: bool
    gate: str  # "label-free", "labelled" or "none"
    reasons: list[str] = field(default_factory=list)
    outcome: str = ""

    def __post_init__(self) -> None:
        if not self.outcome:
            object.__setattr__(self, "outcome", GAIN if self.passed else STOPPED)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def read_decision(uri: str, flag: str = "--decision") -> Decision:
    """Reads the file of `must gate`. Raises UserError: no such file, or another kind of file."""
    try:
        return record_of(Decision, storage.read_json(uri, flag))
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(flag) else f"{flag} {uri}: is damaged: {error}") from None


def gate(config: GateConfig) -> Decision:
    """Decides, prints every reason, writes ``config.output`` if it is given. A stopped model is not an error.
    Raises ValueError: no metrics, or metrics without what the gate needs."""
    decision = RULES[config.gate](read_metrics(config.metrics), config)
    if config.output:
        storage.write_bytes(config.output, decision.to_json())
    logger.info("\n".join([f"gate ({decision.gate}): {decision_text(decision)}", *decision.reasons]))
    return decision


def label_free_gate(metrics: Metrics, config: GateConfig) -> Decision:
    """Passes when the check of the model against the baseline has no warnings (must/method/select/check.py).

    If the evaluated images are too few, it uses the check of the training images, which is in the bundle.
    Reads only `metrics.label_free` and the model's provenance.
    Raises ValueError: the metrics have no baseline to compare with, or are of an earlier version.
    """
    free = metrics.label_free
    compared, before, after = free.compared, free.baseline, free.adapted
    if compared is None or before is None:
        raise UserError("the label-free gate compares with zero-shot: give `must evaluate` a --baseline")
    if compared.check is None:
        raise UserError("the metrics are of an earlier version: run `must evaluate` again")
    require(before.effective_classes > 0, f"--metrics {config.metrics}: the baseline predicts no class; evaluate again")
    name = metrics.baseline_name
    zero_shot, same = name.endswith("zero-shot"), compared.agreement == 1
    rules = [unchanged_rule(name, zero_shot)] if same else check_rules(compared.check, metrics.model.selection, name)
    rules.append(rule(f"same class as {name}", compared.agreement, config.min_agreement))
    share = after.effective_classes / before.effective_classes
    rules.append(rule(f"effective classes, of {name}'s number", share, config.min_effective_classes))
    passed = all(passed for passed, _ in rules)
    outcome = NOTHING_KEPT if passed and zero_shot and same else ""
    return Decision(passed, "label-free", [text for _, text in rules], outcome)


def unchanged_rule(name: str, zero_shot: bool) -> tuple[bool, str]:
    if zero_shot:
        return True, line(True, "zero-shot is kept: no image changes its class")
    return False, line(False, f"no image changes its class against the {name}: there is nothing to promote")


def check_rules(check: CheckResult, selection: Selection | None, name: str) -> list[tuple[bool, str]]:
    """One failed rule per warning, or one passed rule if there are none."""
    source = "images"
    if check.images < FEWEST_LABELS and name.endswith("zero-shot") and selection and selection.check:
        check, source = selection.check, "training images"
    images = f"{check.images:,} {source}"
    if check.images < FEWEST_LABELS:
        text = f"{images} are too few to check a model without labels; {FEWEST_LABELS} are needed"
        return [(False, line(False, text))]
    if check.warnings:
        return [(False, line(False, f"{warning} ({images})")) for warning in check.warnings]
    before, after = check.agreement_before, check.agreement_after
    text = f"no sign of harm: similar images share a class in {before:.1%} before and {after:.1%} after ({images})"
    return [(True, line(True, text))]


def measured_text(selection: Selection) -> str:
    """The gain that was measured with people's answers or with a labelled split."""
    return f"{selection.by}: {selection.measured.text().partition(': ')[2]}" if selection.measured else ""


def labelled_gate(metrics: Metrics, config: GateConfig) -> Decision:
    """Passes when the lower end of the paired 95% interval of the gain over the baseline is above `config.min_gain`.

    The baseline is the one of `must evaluate --baseline`: the zero-shot model, or the champion's bundle.
    Raises ValueError: there are no labels, or no baseline.
    """
    if metrics.adapted is None:
        raise UserError("the labelled gate needs labels; the evaluated split has none")
    if metrics.baseline is None or config.metric not in metrics.intervals:
        raise UserError("the labelled gate needs a baseline: must evaluate --baseline")
    key, min_gain, min_images = config.metric, config.min_gain, config.min_images
    low, high = metrics.intervals[key]
    gain = getattr(metrics.adapted, key) - getattr(metrics.baseline, key)
    picked, enough = metrics.data.picked, metrics.labelled >= min_images
    reasons = [
        line(enough, f"labelled images {metrics.labelled}, needed {min_images}"),
        line(
            low > min_gain,
            f"{key} gained {100 * gain:+.1f} points, 95% interval {100 * low:+.1f} to {100 * high:+.1f}; "
            f"its lower end must be above {100 * min_gain:+.1f}",
        ),
    ]
    if picked:
        reason = "must review picked the labelled images: no gain on all images follows from them"
        reasons.append(line(False, f"{reason}; `must review` asks about random ones first"))
    return Decision(enough and low > min_gain and not picked, "labelled", reasons)


def no_gate(metrics: Metrics, config: GateConfig) -> Decision:
    return Decision(True, "none", ["ok  no gate was asked for: every model passes"], UNCHECKED)


RULES = {"labelled": labelled_gate, "label-free": label_free_gate, "none": no_gate}


def rule(name: str, value: float, limit: float) -> tuple[bool, str]:
    passed = limit <= value < math.inf
    return passed, line(passed, f"{name} {value:.3f}, at least {limit:g}")


def line(passed: bool, text: str) -> str:
    return f"{'ok' if passed else 'STOP'}  {text}"


def against_champion(decision: Decision, by_champion: Decision | None) -> Decision:
    """The decision when there is a champion: the zero-shot model never replaces it, and a model that is better than the
    zero-shot model must not be worse than the champion."""
    if decision.outcome == NOTHING_KEPT:
        return replace(decision, passed=False)
    if not decision.passed or by_champion is None:
        return decision
    reasons = [*decision.reasons, *(f"{text} [against the champion]" for text in by_champion.reasons)]
    return Decision(by_champion.passed, decision.gate, reasons)


def decision_text(decision: Decision) -> str:
    if decision.outcome == NOTHING_KEPT:
        return "passed, zero-shot is kept" if decision.passed else "zero-shot is kept, the champion stays"
    return "passed" if decision.passed else "stopped"


def as_markdown(decision: Decision, against: str) -> str:
    """The decision as a Markdown page for Kubeflow."""
    title = f"# {decision_text(decision).capitalize()} by the {decision.gate} gate"
    if decision.outcome == NOTHING_KEPT:
        title = f"# Zero-shot is kept{'' if decision.passed else ': the champion stays'}"
    if decision.gate == "none":
        title = "# Passed: no gate"
    reasons = [reason.replace("`", "'") for reason in decision.reasons]  # names of classes must not end the code
    return "\n".join([title, "", f"Compared with: {against}", "", *(f"- `{reason}`" for reason in reasons), ""])
