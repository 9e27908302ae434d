"""The report's first sentence: what the numbers allow to say, and no more."""

from typing import Any, NamedTuple

from must.evaluation.report.selection import sentence, verdict_of
from must.method.select.undecided import Undecided, decided_by


class Verdict(NamedTuple):
    tone: str  # good, bad or open
    headline: str
    text: str  # the statistics
    plain: str = ""  # the same for somebody who knows none


PICKED = (
    "These images were picked by must review, as hard ones or such as the models name differently: the accuracies and "
    "the gain on all images are others; must select --answers has the weighted gain."
)


def verdict(metrics: dict[str, Any]) -> Verdict:
    found = on_its_images(metrics)
    if metrics["labelled"] and metrics.get("data", {}).get("picked"):
        return Verdict("open", f"{found.headline}, on picked images", found.text, f"{found.plain} {PICKED}")
    return found


def on_its_images(metrics: dict[str, Any]) -> Verdict:
    if metrics["labelled"] and metrics["baseline"]:
        return with_labels(metrics)
    if metrics["labelled"]:
        top1 = metrics["adapted"]["top1"]
        low, high = metrics["adapted"]["intervals"]["top1"]
        text = f"95% interval {low:.1%} to {high:.1%}, {metrics['labelled']:,} labelled images. No baseline was given."
        return Verdict("open", f"{top1:.1%} top-1 accuracy", text, f"Of 100 images {out_of_100(top1)} are right.")
    return without_labels(metrics)


def with_labels(metrics: dict[str, Any]) -> Verdict:
    before, after, name = metrics["baseline"]["top1"], metrics["adapted"]["top1"], metrics["baseline_name"]
    low, high = metrics["intervals"]["top1"]
    changed = metrics["paired"]
    were, are = out_of_100(before, after), out_of_100(after, before)
    guessing = 1 / len(metrics["classes"])
    mind = f" Guessing would be right about {out_of_100(guessing)} times in 100." if after < 2 * guessing else ""
    if metrics["label_free"]["compared"]["agreement"] == 1:
        text = f"All {metrics['labelled']:,} images keep their class, so both have the same accuracy."
        plain = f"Nothing has changed: every image keeps its class, and of 100 images {are} are right.{mind}"
        return Verdict("open", f"The same as {name}", text, plain + why_kept(metrics))
    points = 100 * (after - before)
    facts = (
        f"{points:+.1f} points (95% interval {100 * low:+.1f} to {100 * high:+.1f}): {changed['fixed']:,} images "
        f"fixed, {changed['broken']:,} broken, of {metrics['labelled']:,}; McNemar's exact test: p "
        f"{p_value(changed['mcnemar_p'])}."
    )
    now = f"{are} of 100 are right, before it was {were}.{mind}"
    if low > 0:
        return Verdict("good", f"Better than {name}", facts, f"Better than before on these images: {now}")
    if high < 0:
        return Verdict("bad", f"Worse than {name}", facts, f"Worse than before on these images: {now}")
    plain = f"No clear difference on these images: {now} That may be chance; more labelled images would tell."
    return Verdict("open", f"No clear difference from {name}", facts + " The interval contains zero.", plain)


def out_of_100(share: float, other: float = -1.0) -> str:
    """A share as a number of 100, with a decimal where it would else be the same as the `other`."""
    same = share != other and round(100 * share) == round(100 * other)
    return f"{100 * share:.1f}" if same else f"{100 * share:.0f}"


def why_kept(metrics: dict[str, Any]) -> str:
    """Why nothing was kept of an adaptation, and what may help; '' if it was not asked."""
    chosen = (metrics.get("model") or {}).get("provenance", {}).get("selection")
    if not isinstance(chosen, dict) or not chosen.get("kept_zero_shot"):
        return ""
    why = f" Why: {chosen['reason']}." if chosen.get("reason") else ""
    if found := chosen.get("undecided"):
        return f"{why} {sentence(decided_by(Undecided(**found)))}"
    return f"{why} What helps: better class names or prompts, more images, or a model that knows such images."


def without_labels(metrics: dict[str, Any]) -> Verdict:
    compared = metrics["label_free"]["compared"]
    if not compared:
        plain = "Nobody has said which class the images really are, so how many are right is not known."
        return Verdict(
            "open", "No labels, no baseline", "Confidence and class balance are all that can be shown.", plain
        )
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
    changed = f"{out_of_100(1 - compared['agreement'])} of 100 images have another class than before"
    labels = "How many are right only labels can tell; a few hundred are enough."
    plain = {
        "good": f"Probably better than before: {changed}, and images that look alike speak for it. {labels}",
        "bad": f"Probably worse than before: {changed}, and images that look alike speak against it. Do not use it.",
        "open": f"Whether it is better cannot be said: {changed}. {labels}",
    }[tone]
    if compared["agreement"] == 1:
        plain = f"Nothing has changed: every image has the class that {name} gives it.{why_kept(metrics)}"
    if warnings and tone != "good":
        plain = f"Do not use it: {'; '.join(warnings)}."
        return Verdict("bad", "Signs of collapse", f"{text} But {'; '.join(warnings)}.", plain)
    if warnings:  # classes that zero-shot imagined may well be absent
        text += f" Mind that {'; '.join(warnings)}."
    return Verdict(tone, headline, text, plain)


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
