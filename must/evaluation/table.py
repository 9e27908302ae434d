"""What the numbers say: the small table at the end of `must evaluate`, and the report's first sentence."""

from itertools import zip_longest
from typing import NamedTuple

from must.base.text import counted, printable
from must.evaluation.gate import FEWEST_LABELS
from must.evaluation.result import Interval, Metrics
from must.method.answers.estimate import Abstention, AccuracyEstimate

CLASSES_LISTED = 20
NOTHING = "\N{EN DASH}"
NAME_SHOWN = 32  # characters of a class name


def text_table(metrics: Metrics) -> str:
    """Aligned text: one row per metric, then one per class (with many classes: those that changed most)."""
    rows: list[tuple[str, ...]] = []
    name, before = metrics.baseline_name, metrics.baseline
    if after := metrics.adapted:
        rows.append((f"{metrics.labelled} labelled images", *([name] if before else []), "adapted", "difference"))
        if metrics.tower:
            title = "top-1 without memory"
            if before and not name.endswith("zero-shot"):  # another model, whose accuracy without memory is not known
                rows.append((title, NOTHING, percent(metrics.tower.top1)))
            else:
                rows.append(metric_row(title, before.top1 if before else None, metrics.tower.top1, None))
        for key, title in (("top1", "top-1"), ("top5", "top-5"), ("mean_per_class", "mean per class")):
            if key == "top5" and len(metrics.classes) <= 5:
                continue
            old = getattr(before, key) if before else None
            rows.append(metric_row(title, old, getattr(after, key), metrics.intervals.get(key)))
        rows.append(("",))
        rows.extend(class_rows(metrics))
    else:
        baseline, adapted = metrics.label_free.baseline, metrics.label_free.adapted
        rows.append((f"{metrics.images} images, no labels", *([name] if baseline else []), "adapted", "difference"))
        rows.append(metric_row("mean confidence", baseline.confidence if baseline else None, adapted.confidence, None))
        if compared := metrics.label_free.compared:
            rows.append((f"same class as {name}", "", percent(compared.agreement)))
    lines = [align(rows)]
    if (compared := metrics.label_free.compared) and (check := compared.check):
        effective = f"{check.effective_before:.1f} before and {check.effective_after:.1f} after"
        changed = f"check of the model on {check.images:,} images: it changes the class of {percent(check.changed)}"
        lines += ["", f"{changed}; effective number of classes {effective}"]
        lines += [f"warning: {printable(warning)}" for warning in check.warnings]
    if metrics.abstention and metrics.labelled:
        lines.append(describe_abstention(metrics.abstention))
    return "\n".join(lines)


def describe_abstention(abstention: Abstention) -> str:
    """The threshold below which no class should be named, with its coverage and risk."""
    if abstention.threshold is None:
        return f"abstention: no threshold for {percent(abstention.target)} wrong ({abstention.reason})"
    named, wrong, most = map(percent, (abstention.coverage, abstention.risk, abstention.bound))
    below = f"abstention (predict --abstain -1) below {abstention.threshold:.6g}"
    return f"{below}: {named} get a class; {wrong} of those wrong, at most {most}"


def metric_row(title: str, before: float | None, after: float, interval: Interval | None) -> tuple[str, ...]:
    if before is None:
        return (title, percent(after))
    spread = f"  [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]" if interval else ""
    return (title, percent(before), percent(after), f"{100 * (after - before):+.1f}{spread}")


def class_rows(metrics: Metrics) -> list[tuple[str, ...]]:
    rows = [row for row in metrics.per_class if row["support"]]
    if len(rows) > CLASSES_LISTED:
        rows = sorted(rows, key=lambda row: -abs(row["difference"] or 0))[:CLASSES_LISTED]
    return [
        metric_row(printable(row["class"], NAME_SHOWN), row["baseline_recall"], row["recall"], None) for row in rows
    ]


def percent(value: float | None, digits: int = 1) -> str:
    return NOTHING if value is None else f"{100 * value:.{digits}f}%"


def align(rows: list[tuple[str, ...]]) -> str:
    """Aligns the first column left, the others right; the fourth, which may have an interval, left."""
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    lines = []
    for row in rows:
        cells = [cell.ljust(widths[i]) if i in (0, 3) else cell.rjust(widths[i]) for i, cell in enumerate(row)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


class Verdict(NamedTuple):
    tone: str  # good, bad or open
    headline: str
    text: str  # the statistics
    plain: str = ""  # the same without statistics


HELPS = " What helps: better class names or prompts, more images, or a model that knows such images."


def verdict(metrics: Metrics) -> Verdict:
    model, baseline = metrics.adapted, metrics.baseline
    if not model:
        return without_labels(metrics)
    if baseline:
        return with_labels(metrics, baseline.top1, model.top1)
    low, high = model.intervals["top1"]
    text = f"95% interval {low:.1%} to {high:.1%}, {metrics.labelled:,} labelled images. No baseline was given."
    plain = f"{count_of(model.top1, metrics.labelled)} images are right."
    return Verdict("open", f"{model.top1:.1%} top-1 accuracy", text, plain)


def with_labels(metrics: Metrics, before: float, after: float) -> Verdict:
    name, images = metrics.baseline_name, metrics.labelled
    low, high = metrics.intervals["top1"]
    changed, compared = metrics.paired, metrics.label_free.compared
    assert changed and compared
    were, are = count(before, images, after), count_of(after, images, before)
    guessing = 1 / len(metrics.classes)
    chance = f" Guessing would be right about {count(guessing)} times in 100." if after < 2 * guessing else ""
    if compared.agreement == 1:
        text = f"All {images:,} images keep their class, so both have the same accuracy."
        plain = f"{describe_same(metrics)} {are} images are right.{chance}"
        return Verdict("open", f"The same as {name}", text, plain + HELPS)
    p = "< 0.001" if changed.mcnemar_p < 0.001 else f"= {changed.mcnemar_p:.3f}"
    facts = (
        f"{100 * (after - before):+.1f} points (95% interval {100 * low:+.1f} to {100 * high:+.1f}): "
        f"{changed.fixed:,} images fixed, {changed.broken:,} broken, of {images:,}; McNemar's exact test: p {p}."
    )
    now = f"{are} are right, before it was {were}.{chance}"
    if images < FEWEST_LABELS:
        text = f"{facts} Fewer than {FEWEST_LABELS} labelled images decide nothing."
        return Verdict("open", "Too few labels to tell", text, f"{now} These are too few images to tell.")
    if low > 0:
        return Verdict("good", f"Better than {name}", facts, f"Better than before on these images: {now}")
    if high < 0:
        return Verdict("bad", f"Worse than {name}", facts, f"Worse than before on these images: {now}")
    plain = f"No clear difference on these images: {now} That may be chance; more labelled images would tell."
    return Verdict("open", f"No clear difference from {name}", facts + " The interval contains zero.", plain)


def describe_same(metrics: Metrics) -> str:
    """For a model that gives every image the baseline's class: this, and how many refined labels are others."""
    text = f"The predictions have not changed: the model gives every image the class of {metrics.baseline_name}."
    refined = metrics.refined or {}
    if refined.get("changed"):
        text += f" Of the {refined['images']:,} refined labels, {refined['changed']:,} differ from zero-shot."
    return text


def count(share: float, images: int = 100, other: float = -1.0) -> str:
    """A share as a number of 100, with a decimal if it would otherwise equal `other`; as a number of fewer `images`."""
    if images < 100:
        return f"{images * share:.0f}"
    same = share != other and round(100 * share) == round(100 * other)
    return f"{100 * share:.1f}" if same else f"{100 * share:.0f}"


def count_of(share: float, images: int, other: float = -1.0) -> str:
    return f"{count(share, images, other)} of {min(images, 100)}"


def describe_lack(metrics: Metrics) -> str:
    return "All labelled images have answers that are in the model" if metrics.answered else "The images have no labels"


def without_labels(metrics: Metrics) -> Verdict:
    compared = metrics.label_free.compared
    if not compared:
        text = "Confidence and class balance are all that can be shown."
        plain = f"{describe_lack(metrics)}, so the accuracy is unknown."
        return Verdict("open", "No labels, no baseline", text, plain)
    name, check = metrics.baseline_name, compared.check
    selection = metrics.model.selection
    measured = selection.decisive if selection and name.endswith("zero-shot") else None
    text = measured.text() if measured else f"{describe_lack(metrics)}, so accuracy is unknown"
    text += f". {compared.agreement:.1%} of the images keep their class."
    if compared.agreement == 1:
        plain = " ".join([describe_same(metrics), *([describe_answers(measured)] if measured else [])])
        return Verdict("open", f"The same as {name}", text, plain + HELPS)
    if check and check.warnings and not (measured and measured.better):  # as for `must gate`
        signs = "; ".join(check.warnings)
        return Verdict("bad", "Signs of harm", f"{text} But {signs}.", f"Do not use it: {signs}.")
    # facts and no warnings: the zero-shot model may predict classes that are absent, and miss others
    taking = "predicted more than three times as often, for over 20% of the images"
    for numbers, words in ((compared.vanished, "hardly predicted any more"), (compared.dominant, taking)):
        names = ", ".join(metrics.classes[i] for i in numbers[:5]) + (", ..." if len(numbers) > 5 else "")
        text += f" Classes that are {words}: {names}." if numbers else ""
    if measured:
        return judge_answers(measured, text)
    by = f"the {name}" if name == "baseline" else name
    changed = f"the model gives {count_of(1 - compared.agreement, metrics.images)} images another class than {by}"
    tell = "Whether it is better only labels can tell"
    tell += "; fifty answers give a first number (must review)." if name.endswith("zero-shot") else "."
    if check is None or check.images < FEWEST_LABELS:
        changed = changed[:1].upper() + changed[1:]
        return Verdict("open", "Accuracy unknown", text, f"{changed}, and these are too few to see any harm. {tell}")
    return Verdict("open", "No collapse, accuracy unknown", text, f"The model did not collapse: {changed}. {tell}")


def judge_answers(measured: AccuracyEstimate, text: str) -> Verdict:
    """By people's answers about images that were drawn at random."""
    sentence, by = describe_answers(measured), f"by {counted(measured.answers, 'answer')}"
    if measured.better is not None:
        tone, headline = ("good", "Better than") if measured.better else ("bad", "Worse than")
        return Verdict(tone, f"{headline} zero-shot, {by}", text, sentence)
    plain = f"{sentence} The difference may be chance; more answers would tell."
    return Verdict("open", f"Not decided yet, {by}", text, plain)


def describe_answers(measured: AccuracyEstimate) -> str:
    before, after = measured.zero_shot.value, (measured.with_answers or measured.model).value
    images = measured.answers
    model, other = count_of(after, images, before), count(before, images, after)
    right = f"the model is right about {model} images, zero-shot about {other}"
    labels = f"; of the labels, {count_of(measured.labels.value, 100)} are right" if measured.labels else ""
    return f"By {counted(images, 'answer')}, {right}{labels}{measured.limit}."
