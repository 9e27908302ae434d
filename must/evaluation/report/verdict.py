"""The report's first sentence: what the numbers allow to say, and no more."""

from __future__ import annotations

from typing import Any, NamedTuple

from must.evaluation.report.selection import verdict_of


class Verdict(NamedTuple):
    tone: str  # good, bad or open
    headline: str
    text: str


def verdict(metrics: dict[str, Any]) -> Verdict:
    if metrics["labelled"] and metrics["baseline"]:
        return with_labels(metrics)
    if metrics["labelled"]:
        top1 = metrics["adapted"]["top1"]
        low, high = metrics["adapted"]["intervals"]["top1"]
        text = f"95% interval {low:.1%} to {high:.1%}, {metrics['labelled']:,} labelled images. No baseline was given."
        return Verdict("open", f"{top1:.1%} top-1 accuracy", text)
    return without_labels(metrics)


def with_labels(metrics: dict[str, Any]) -> Verdict:
    before, after, name = metrics["baseline"]["top1"], metrics["adapted"]["top1"], metrics["baseline_name"]
    low, high = metrics["intervals"]["top1"]
    changed = metrics["paired"]
    if metrics["label_free"]["compared"]["agreement"] == 1:
        text = f"All {metrics['labelled']:,} images keep their class, so both have the same accuracy."
        return Verdict("open", f"The same as {name}", text)
    points = 100 * (after - before)
    facts = (
        f"{points:+.1f} points (95% interval {100 * low:+.1f} to {100 * high:+.1f}): {changed['fixed']:,} images "
        f"fixed, {changed['broken']:,} broken, of {metrics['labelled']:,}; McNemar's exact test: p "
        f"{p_value(changed['mcnemar_p'])}."
    )
    if low > 0:
        return Verdict("good", f"Better than {name}", facts)
    if high < 0:
        return Verdict("bad", f"Worse than {name}", facts)
    return Verdict("open", f"No clear difference from {name}", facts + " The interval contains zero.")


def without_labels(metrics: dict[str, Any]) -> Verdict:
    compared = metrics["label_free"]["compared"]
    if not compared:
        return Verdict("open", "No labels, no baseline", "Confidence and class balance are all that can be shown.")
    name, classes = metrics["baseline_name"], metrics["classes"]
    warnings = []
    if compared["vanished"]:
        names = ", ".join(classes[i] for i in compared["vanished"][:5])
        warnings.append(f"{len(compared['vanished'])} classes are hardly predicted any more ({names})")
    if compared["dominant"]:
        names = ", ".join(classes[i] for i in compared["dominant"][:5])
        warnings.append(f"few classes have taken over ({names})")
    text = (
        f"The split has no labels, so accuracy is unknown. {compared['agreement']:.1%} of the images keep their class."
    )
    tone, headline, sentence = verdict_of(compared["audit"], name)
    text += f" {sentence}"
    if warnings and tone != "good":
        return Verdict("bad", "Signs of collapse", f"{text} But {'; '.join(warnings)}.")
    if warnings:  # classes that zero-shot imagined may well be absent
        text += f" Mind that {'; '.join(warnings)}."
    return Verdict(tone, headline, text)


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
