"""The report's account of what was kept of the adaptation, and of the check that needs no labels."""

from typing import Any

from must.evaluation.gate import measured_in_words
from must.evaluation.result import CheckResult, Metrics, Selection

SHARES = ((0.0, "Nothing is kept: the weights are zero-shot's"), (0.5, "Half is kept"), (1.0, "All of it is kept"))


def selection(metrics: Metrics) -> dict[str, Any] | None:
    """`text`, and `checks`, a column of the table each; None where nothing is known of it. Of a model of an earlier
    version only the share that was kept is told."""
    chosen, compared = metrics.model.selection, metrics.label_free.compared
    here = f"this split, against {metrics.baseline_name}"
    columns = (("training images", chosen and chosen.check), (here, compared and compared.check))
    checks = [column(title, check) for title, check in columns if check]
    if not chosen and not checks:
        return None
    return {"text": in_words(chosen) if chosen else "", "checks": checks}


def in_words(chosen: Selection) -> str:
    share = dict(SHARES).get(chosen.alpha, "A part is kept")
    if chosen.measured:
        return f"{share} (alpha {chosen.alpha:g}), chosen by {measured_in_words(chosen)}."
    return f"{share} (alpha {chosen.alpha:g}; {chosen.by})." if chosen.by else f"{share} (alpha {chosen.alpha:g})."


def column(title: str, check: CheckResult) -> dict[str, Any]:
    """A check in the words of the table's rows."""
    dead = check.dead_classes
    return {
        "title": title,
        "rows": [
            f"{check.images:,}",
            f"{check.changed:.1%}",
            f"{check.agreement_before:.1%} → {check.agreement_after:.1%} (± {check.error:.1%})",
            f"{check.confidence_before:.2f} → {check.confidence_after:.2f}",
            f"{len(dead):,}" + (f": {', '.join(dead[:5])}{', ...' if len(dead) > 5 else ''}" if dead else ""),
        ],
        "warnings": check.warnings,
    }
