"""The small table at the end of `must evaluate`."""

from itertools import zip_longest

from must.base.text import printable
from must.evaluation.result import Interval, Metrics
from must.method.answers.estimate import Abstention

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
