"""The report's account of the ladder: what was kept of the adaptation, and why, in one picture and one sentence."""

from typing import Any

from markupsafe import Markup, escape

from must.evaluation.report.charts import LEFT, TOP, Axes, nice_ticks, svg
from must.method.answers.decided import in_words as by_people
from must.method.select.ladder import REFUSED
from must.method.select.undecided import Undecided, decided_by

STYLES = {"kept": "adapted", "undecided": "baseline", "refused": "rival-2"}


def selection(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """A part for the choice that was made when the model was trained, and one for the look at the evaluated images."""
    compared = metrics["label_free"]["compared"] or {}
    chosen = metrics["model"]["provenance"].get("selection")
    parts = [
        (chosen, "Chosen on the training images", "from zero-shot to the adapted weights"),
        (compared.get("audit"), "Looked at again on this split", f"from {metrics['baseline_name']} to this model"),
    ]
    return [
        {"title": title, "text": in_words(found), "way": way, "chart": ladder_chart(title, found)}
        for found, title, way in parts
        if found and found["rungs"]
    ]


def in_words(found: dict[str, Any]) -> str:
    images = f"{found['images']:,} images"
    if found["copies"]:
        images += f" ({found['copies']:,} copies of others left out)"
    if found["outcome"] == "same":
        return f"No image changes its class, of {images}."
    review = found.get("review")
    if review and review["alpha"] is not None:
        who = f" Answered by {', '.join(review['who'])}." if review["who"] else ""
        kept = f"{review['alpha']:.0%} of the way is kept" if review["alpha"] else "Zero-shot is kept"
        return (
            f"{kept}, as people's answers decided: {by_people(review)}.{who} Look-alikes had no say; theirs is below."
        )
    kept = "Zero-shot is kept" if found["kept_zero_shot"] else f"{found['alpha']:.0%} of the way is kept"
    reason = f": {found['reason']}" if found["reason"] else ""
    judge = f", to {found['judge']}" if found.get("judge") else ""  # earlier versions do not say
    judged = f"{kept}{reason}. Judged by the look-alikes of {images}{judge}"
    if found["agreement"] is None:  # zero-shot sees a single class
        return f"{judged}."
    if "needed" in found["rungs"][-1]:
        text = f"{judged}. The further a rung is, the more standard errors it needs."
        undecided = found.get("undecided")
        return f"{text} {sentence(decided_by(Undecided(**undecided)))}" if undecided else text
    share = f"their zero-shot classes agree by {found['agreement']:.2f} (kappa)"  # of an earlier version
    if found["needed"] is None:
        return f"{judged}; {share}, too little to vouch for a change, however many standard errors speak for it."
    return f"{judged}; {share}, so {found['needed']:.1f} standard errors were asked for."


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def verdict_of(audit: dict[str, Any] | None, name: str) -> tuple[str, str, str]:
    """(tone, headline, sentence) for a split without labels."""
    if audit is None:
        return "open", "No labels: no accuracy", f"{name} has another shape; look-alikes cannot compare the two."
    last = f"z = {audit['rungs'][-1]['z']:+.1f}" if audit["rungs"] else audit["reason"]
    if audit["outcome"] == "same":
        return "open", f"The same as {name}", "No image changes its class."
    if audit["outcome"] == "gain":
        kept = max(rung["z"] for rung in audit["rungs"])
        return "good", f"Look-alikes prefer it to {name}", f"They speak for the changed classes (z up to {kept:+.1f})."
    if audit["outcome"] == "refused":
        return "bad", f"Look-alikes prefer {name}", f"They speak against a part of the changed classes ({last})."
    return "open", "Too little evidence", f"Look-alikes speak neither for nor against the changed classes ({last})."


def ladder_chart(title: str, found: dict[str, Any]) -> Markup:
    """A bar a rung: how many standard errors the look-alikes speak for it (up) or against it (down)."""
    rungs, values = found["rungs"], [rung["z"] for rung in found["rungs"]]
    needed = [rung.get("needed", found.get("needed")) or 0.0 for rung in rungs]  # a number for all in earlier versions
    ticks = nice_ticks(min(*values, REFUSED), max(*values, *needed, 1.0), 4)
    axes = Axes((0.0, 1.05), (ticks[0], ticks[-1]))
    parts = [axes.grid((0, 0.2, 0.4, 0.6, 0.8, 1), ticks, percent=False)]
    at = axes.y(REFUSED)
    parts.append(f'<line class="ideal" x1="{LEFT}" y1="{at}" x2="{axes.x(1.05)}" y2="{at}"/>')
    bar = " ".join(f"{axes.x(rung['alpha'])},{axes.y(limit)}" for rung, limit in zip(rungs, needed, strict=True))
    if any(needed):
        parts.append(f'<polyline class="ideal" fill="none" points="{bar}"/>')
    width = round(axes.x(0.07) - axes.x(0), 1)
    for rung in rungs:
        top, bottom = sorted((axes.y(rung["z"]), axes.y(0)))
        changed = f"{rung['changed']:.1%} of the images change class"
        hint = f"{rung['alpha']:.0%}: z {rung['z']:+.1f}, {changed}: {rung['outcome']}"
        parts.append(
            f'<rect class="{STYLES[rung["outcome"]]}" x="{round(axes.x(rung["alpha"]) - width / 2, 1)}" '
            f'y="{max(top, TOP)}" width="{width}" height="{round(max(bottom - top, 0.8), 1)}">'
            f"<title>{escape(hint)}</title></rect>"
        )
    return svg(title, "".join(parts))
