"""The report's first sentence: the conclusion that the numbers support."""

from typing import NamedTuple

from must.evaluation.gate import FEWEST_LABELS
from must.evaluation.result import Metrics


class Verdict(NamedTuple):
    tone: str  # good, bad or open
    headline: str
    text: str  # the statistics
    plain: str = ""  # the same without statistics


PICKED = " These images were picked by must review as doubtful ones: on all images the numbers are others."


def verdict(metrics: Metrics) -> Verdict:
    if not metrics.adapted:
        return without_labels(metrics)
    if metrics.baseline:
        conclusion = with_baseline(metrics, metrics.baseline.top1, metrics.adapted.top1)
    else:
        top1, (low, high) = metrics.adapted.top1, metrics.adapted.intervals["top1"]
        text = f"95% interval {low:.1%} to {high:.1%}, {metrics.labelled:,} labelled images. No baseline was given."
        conclusion = Verdict("open", f"{top1:.1%} top-1 accuracy", text, f"Of 100 images {100 * top1:.1f} are right.")
    if metrics.data.picked:
        _, headline, text, plain = conclusion
        return Verdict("open", f"{headline}, on picked images", text, plain + PICKED)
    return conclusion


def with_baseline(metrics: Metrics, before: float, after: float) -> Verdict:
    name = metrics.baseline_name
    low, high = metrics.intervals["top1"]
    changed, compared = metrics.paired, metrics.label_free.compared
    assert changed and compared
    guessing = 1 / len(metrics.classes)
    chance = f" Guessing would be right {100 * guessing:.0f} times in 100." if after < 2 * guessing else ""
    if compared.agreement == 1:
        text = f"All {metrics.labelled:,} images keep their class, so both have the same accuracy."
        plain = f"Nothing has changed: of 100 images {100 * after:.1f} are right.{chance}"
        return Verdict("open", f"The same as {name}", text, plain)
    facts = (
        f"{100 * (after - before):+.1f} points (95% interval {100 * low:+.1f} to {100 * high:+.1f}): {changed.fixed:,} "
        f"images fixed, {changed.broken:,} broken, of {metrics.labelled:,}; McNemar's exact test: p = "
        f"{changed.mcnemar_p:.3g}."
    )
    now = f"{100 * after:.1f} of 100 are right, before it was {100 * before:.1f}.{chance}"
    if low > 0:
        return Verdict("good", f"Better than {name}", facts, f"Better than before: {now}")
    if high < 0:
        return Verdict("bad", f"Worse than {name}", facts, f"Worse than before: {now}")
    plain = f"No clear difference: {now} That may be chance; more labelled images would tell."
    return Verdict("open", f"No clear difference from {name}", f"{facts} The interval contains zero.", plain)


def without_labels(metrics: Metrics) -> Verdict:
    compared = metrics.label_free.compared
    if not compared:
        text = "Without labels and a baseline, confidence and class balance are all that can be shown."
        return Verdict("open", "No labels, no baseline", text, "How many images are right is not known.")
    name, classes = metrics.baseline_name, metrics.classes
    text = f"The split has no labels, so accuracy is unknown. {compared.agreement:.1%} of the images keep their class."
    if compared.agreement == 1:
        plain = f"Nothing has changed: every image has the class that {name} gives it."
        return Verdict("open", f"The same as {name}", text, plain)
    check = compared.check
    warnings = list(check.warnings) if check else []
    if compared.dominant:
        warnings.append(f"few classes have taken over ({', '.join(classes[i] for i in compared.dominant[:5])})")
    if warnings:
        signs = "; ".join(warnings)
        return Verdict("bad", "Signs of harm", f"{text} But {signs}.", f"Do not use it: {signs}.")
    if compared.vanished:  # not a warning: the zero-shot model may predict classes that are absent
        names = ", ".join(classes[i] for i in compared.vanished[:5])
        text += f" {len(compared.vanished)} classes are hardly predicted any more ({names})."
    changed = f"{100 * (1 - compared.agreement):.1f} of 100 images have another class than before"
    tell = "Whether it is better only labels can tell; fifty answers give a first number (must review)."
    if check is None or check.images < FEWEST_LABELS:
        return Verdict("open", "Accuracy unknown", text, f"{changed}, and these are too few to see any harm. {tell}")
    return Verdict("open", "No sign of harm, accuracy unknown", text, f"No sign of harm: {changed}. {tell}")
