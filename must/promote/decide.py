"""`must gate`: the decision on a model, from metrics.json, as JSON and as lines to read."""

from __future__ import annotations

import json
from dataclasses import fields

from must import storage
from must.config import GateConfig
from must.evaluate.gate import Decision, LabelFreeLimits, label_free_gate, labelled_gate
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
        decision = Decision(True, "none", ["ok  no gate was asked for: every model passes"])
    if config.output:
        storage.write_bytes(config.output, json.dumps(decision.to_dict(), indent=1).encode())
    print("\n".join([f"gate ({decision.gate}): {'passed' if decision.passed else 'stopped'}", *decision.reasons]))
    return decision


def as_markdown(decision: Decision, against: str) -> str:
    """The decision as a page of Kubeflow's."""
    head = f"# {'Passed' if decision.passed else 'Stopped'} by the {decision.gate} gate"
    if decision.gate == "none":
        head = "# Passed: no gate"
    reasons = [
        reason.replace("`", "'") for reason in decision.reasons
    ]  # they name classes, which must not end the code
    return "\n".join([head, "", f"Compared with: {against}", "", *(f"- `{reason}`" for reason in reasons), ""])
