"""`must gate`: the decision on a model, from metrics.json, as JSON and as lines to read."""

from __future__ import annotations

import json
from dataclasses import fields, replace

from must import storage
from must.config import GateConfig
from must.evaluate.gate import UNCHECKED, ZERO_SHOT, Decision, LabelFreeLimits, label_free_gate, labelled_gate
from must.promote.promote import read_json


def gate(config: GateConfig) -> Decision:
    """Decides, prints every reason, writes ``config.output`` if it is given. A stopped model is no error.

    Raises:
        ValueError: no metrics, or metrics without what the gate needs.
    """
    metrics = read_json(config.metrics, "--metrics")
    if config.gate == "labelled":
        decision = labelled_gate(metrics, config.metric, config.min_gain, config.min_images)
    elif config.gate == "label-free":
        limits = {field.name: getattr(config, field.name) for field in fields(LabelFreeLimits)}
        decision = label_free_gate(metrics, LabelFreeLimits(**limits))
    else:
        decision = Decision(True, "none", ["ok  no gate was asked for: every model passes"], UNCHECKED)
    if config.output:
        storage.write_bytes(config.output, json.dumps(decision.to_dict(), indent=1).encode())
    print("\n".join([f"gate ({decision.gate}): {in_words(decision)}", *decision.reasons]))
    return decision


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
    reasons = [
        reason.replace("`", "'") for reason in decision.reasons
    ]  # they name classes, which must not end the code
    return "\n".join([head, "", f"Compared with: {against}", "", *(f"- `{reason}`" for reason in reasons), ""])
