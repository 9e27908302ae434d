"""The report's first sentence: the conclusion that the numbers support."""

from typing import NamedTuple

from must.evaluation.gate import FEWEST_LABELS
from must.evaluation.result import Metrics


class Verdict(NamedTuple):
    tone: str  # good, bad or open
    headline: str
    text: str  # the statistics
    plain: str = ""  # the same without statistics


HELPS = " What helps: better class names or prompts, more images, or a model that knows such images."


def verdict(metrics: Metrics) -> Verdict:
    if metrics.adapted and metrics.baseline:
        return with_labels(metrics, metrics.baseline.top1, metrics.adapted.top1)
    if metrics.adapted:
        top1 = metrics.adapted.top1
        low, high = metrics.adapted.intervals["top1"]
        text = f"95% interval {low:.1%} to {high:.1%}, {metrics.labelled:,} labelled images. No baseline was given."
        return Verdict("open", f"{top1:.1%} top-1 accuracy", text, f"Of 100 images {format_percent(top1)} are right.")
    return without_labels(metrics)


def with_labels(metrics: Metrics, before: float, after: float) -> Verdict:
    name = metrics.baseline_name
    low, high = metrics.intervals["top1"]
    changed, compared = metrics.paired, metrics.label_free.compared
    assert changed and compared
    were, are = format_percent(before, after), format_percent(after, before)
    guessing = 1 / len(metrics.classes)
    chance = f" Guessing would be right about {format_percent(guessing)} times in 100." if after < 2 * guessing else ""
    if compared.agreement == 1:
        text = f"All {metrics.labelled:,} images keep their class, so both have the same accuracy."
        plain = f"Nothing has changed: every image keeps its class, and of 100 images {are} are right.{chance}"
        return Verdict("open", f"The same as {name}", text, plain + HELPS)
    points = 100 * (after - before)
    facts = (
        f"{points:+.1f} points (95% interval {100 * low:+.1f} to {100 * high:+.1f}): {changed.fixed:,} images "
        f"fixed, {changed.broken:,} broken, of {metrics.labelled:,}; McNemar's exact test: p "
        f"{p_value(changed.mcnemar_p)}."
    )
    now = f"{are} of 100 are right, before it was {were}.{chance}"
    if metrics.labelled < FEWEST_LABELS:
        text = f"{facts} Fewer than {FEWEST_LABELS} labelled images decide nothing."
        return Verdict("open", "Too few labels to tell", text, f"{now} These are too few images to tell.")
    if low > 0:
        return Verdict("good", f"Better than {name}", facts, f"Better than before on these images: {now}")
    if high < 0:
        return Verdict("bad", f"Worse than {name}", facts, f"Worse than before on these images: {now}")
    plain = f"No clear difference on these images: {now} That may be chance; more labelled images would tell."
    return Verdict("open", f"No clear difference from {name}", facts + " The interval contains zero.", plain)


def format_percent(share: float, other: float = -1.0) -> str:
    """A share as a number of 100, with a decimal if it would otherwise equal `other`."""
    same = share != other and round(100 * share) == round(100 * other)
    return f"{100 * share:.1f}" if same else f"{100 * share:.0f}"


def without_labels(metrics: Metrics) -> Verdict:
    compared = metrics.label_free.compared
    if not compared:
        text = "Confidence and class balance are all that can be shown."
        plain = "The images have no labels, so the accuracy is unknown."
        return Verdict("open", "No labels, no baseline", text, plain)
    name, classes = metrics.baseline_name, metrics.classes
    text = f"The split has no labels, so accuracy is unknown. {compared.agreement:.1%} of the images keep their class."
    if compared.agreement == 1:
        plain = f"Nothing has changed: every image has the class that {name} gives it.{HELPS}"
        return Verdict("open", f"The same as {name}", text, plain)
    check = compared.check
    warnings = list(check.warnings) if check else []
    if compared.dominant:
        names = ", ".join(classes[i] for i in compared.dominant[:5])
        warnings.append(f"few classes have taken over ({names})")
    if warnings:
        signs = "; ".join(warnings)
        return Verdict("bad", "Signs of harm", f"{text} But {signs}.", f"Do not use it: {signs}.")
    if compared.vanished:  # not a warning: the zero-shot model may predict classes that are absent
        names = ", ".join(classes[i] for i in compared.vanished[:5])
        text += f" Mind that {len(compared.vanished)} classes are hardly predicted any more ({names})."
    changed = f"{format_percent(1 - compared.agreement)} of 100 images have another class than before"
    tell = "Whether it is better only labels can tell; fifty answers give a first number (must review)."
    if check is None or check.images < FEWEST_LABELS:
        return Verdict("open", "Accuracy unknown", text, f"{changed}, and these are too few to see any harm. {tell}")
    return Verdict("open", "No collapse, accuracy unknown", text, f"The model did not collapse: {changed}. {tell}")


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
