"""Decides whether the adapted model may be promoted: pure functions of metrics.json that return a decision and reasons.

By default labels decide, of a split that nothing was trained on; with fewer than --min-images, people's answers; with
fewer than FEWEST_LABELS of these that decide nothing, the label-free gate, which stops a collapsed model only.

`state_verdict` says in words, for the report, what the numbers say."""

import json
import logging
from dataclasses import asdict, dataclass, replace
from typing import Literal, NamedTuple

from must.answers.accuracy import AccuracyEstimate
from must.base import storage
from must.base.errors import UserError
from must.base.parameters import make_record
from must.base.text import pluralize
from must.config import GateConfig
from must.evaluation.result import Against, Metrics, read_metrics
from must.model.description import CheckResult, Selection, load_description, require_same_model

logger = logging.getLogger(__name__)

FEWEST_LABELS = 50  # images; with fewer the check decides nothing
NO_LABELS = "without labels nothing says whether it is better"
Outcome = Literal["passed", "unchecked", "kept at zero-shot", "stopped", "rolled back"]
"""Of a model: it passed the gate; no gate ran; it is the zero-shot model, which may be the first of its name and
replaces no champion; the gate stopped it; a person has rolled this version back before."""


@dataclass(frozen=True)
class Decision:
    """`reasons`: one line per rule, passed or not, in the order in which the rules were applied."""

    passed: bool
    gate: str  # "labelled", "answers", "label-free" or "none"
    reasons: list[str]
    outcome: Outcome
    weights_sha256: str = ""  # of the model that was decided on

    @property
    def title(self) -> str:
        return f"gate ({self.gate}): {self.outcome}"

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def decide(gate: str, *rules: tuple[bool, str], outcome: Outcome = "passed") -> Decision:
    """By rules, (whether it passed, text): all must pass."""
    reasons = [f"{'ok' if passed else 'STOP'}  {text}" for passed, text in rules]
    passed = all(passed for passed, _ in rules)
    return Decision(passed, gate, reasons, outcome if passed else "stopped")


def read_decision(uri: str) -> Decision:
    """Reads the file of `must gate`."""
    content = storage.read_json(uri, "--decision")
    try:
        return make_record(Decision, content)
    except UserError as error:
        raise UserError(f"--decision {uri}: is damaged: {error}") from None


def gate(config: GateConfig) -> Decision:
    """Decides, prints every reason, writes ``config.output`` if it is given. A stopped model is not an error."""
    metrics = read_metrics(config.metrics)
    if config.model:
        label, description = f"--metrics {config.metrics}", load_description(config.model)
        require_same_model(label, metrics.model.weights_sha256, description, "must evaluate")
    decision = replace(RULES[config.gate](metrics, config), weights_sha256=metrics.model.weights_sha256)
    if config.output:
        storage.write_bytes(config.output, decision.to_json())
    labels = (metrics.refined or {}).get("accepted", "")
    lines = [decision.title, *decision.reasons]
    logger.info("\n".join([*lines, *([f"labels: {labels}"] if labels else [])]))
    return decision


def automatic_gate(metrics: Metrics, config: GateConfig) -> Decision:
    """The labels decide if there are enough, else people's answers if they decide it or are many, and measure at least
    half of the images, else the label-free gate."""
    compares = metrics.baseline_name == "zero-shot"
    if metrics.adapted and metrics.baseline and metrics.labelled >= config.min_images:
        return labelled_gate(metrics, config)
    selection = metrics.model.selection
    measured = selection.measured if compares and selection else None
    if selection and measured and (measured.better is not None or measured.answers >= FEWEST_LABELS):
        if selection.decisive:
            return answers_gate(selection.decisive)
        added = pluralize(measured.unmeasured, "picture")
        return label_free_gate(metrics, config, f"{added} were added later than the answers: give more (must review)")
    if not 0 < metrics.labelled < config.min_images:
        return label_free_gate(metrics, config)
    few = (
        f"{pluralize(metrics.labelled, 'labelled image')}, {config.min_images:,} are needed to say whether it is better"
    )
    return label_free_gate(metrics, config, few)


def label_free_gate(metrics: Metrics, config: GateConfig, unknown: str = NO_LABELS) -> Decision:
    """Stops a model that collapsed (must/memory/predictions.py): without labels nothing else can be known.

    If the evaluated images are too few, it uses the check of the training images, which is in the bundle. `unknown`:
    why a model that passes may be no better."""
    compared, name = metrics.label_free.compared, metrics.baseline_name
    if compared is None or compared.check is None:
        raise UserError("the label-free gate compares with zero-shot: give `must evaluate` a --baseline")
    if compared.agreement < 1:
        return decide("label-free", *check_rules(compared.check, metrics.model.selection, name, unknown))
    if name == "zero-shot":
        return decide("label-free", (True, "zero-shot is kept: no image changes class"), outcome="kept at zero-shot")
    return decide("label-free", (False, f"no image changes its class against the {name}: there is nothing to promote"))


def check_rules(check: CheckResult, selection: Selection | None, name: Against, unknown: str) -> list[tuple[bool, str]]:
    """One failed rule per warning, or one passed rule if there are none."""
    source = "images"
    if check.images < FEWEST_LABELS and name == "zero-shot" and selection and selection.check:
        check, source = selection.check, "training images"
    images = f"{check.images:,} {source}"
    if check.images < FEWEST_LABELS:
        return [(False, f"{images} are too few to check a model without labels; {FEWEST_LABELS} are needed")]
    before, after = check.effective_before, check.effective_after
    text = f"no collapse: effective number of classes {before:.1f} before, {after:.1f} after ({images}); {unknown}"
    return [(False, f"{warning} ({images})") for warning in check.warnings] or [(True, text)]


def answers_gate(measured: AccuracyEstimate) -> Decision:
    """Passes when people's answers show a gain over the zero-shot model: its 95% interval is above 0."""
    passed = measured.better is True
    advice = "" if passed else "; the lower end of the gain must be above 0: give more answers, or another model"
    return decide("answers", (passed, measured.text() + advice))


def labelled_gate(metrics: Metrics, config: GateConfig) -> Decision:
    """Passes when the lower end of the paired 95% interval of the gain over the baseline is above `config.min_gain`.

    The baseline is the one of `must evaluate --baseline`: the zero-shot model, or the champion's bundle."""
    if metrics.adapted is None:
        raise UserError("the labelled gate needs labels; the evaluated split has none")
    if metrics.baseline is None or config.metric not in metrics.intervals:
        raise UserError("the labelled gate needs a baseline: must evaluate --baseline")
    low, high = metrics.intervals[config.metric]
    gain = getattr(metrics.adapted, config.metric) - getattr(metrics.baseline, config.metric)
    text = (
        f"{config.metric} gained {100 * gain:+.1f} points, 95% interval {100 * low:+.1f} to {100 * high:+.1f}; "
        f"its lower end must be above {100 * config.min_gain:+.1f}"
    )
    images = f"labelled images {metrics.labelled}, needed {config.min_images}"
    return decide("labelled", (metrics.labelled >= config.min_images, images), (low > config.min_gain, text))


def no_gate(metrics: Metrics, config: GateConfig) -> Decision:
    return decide("none", (True, "no gate was asked for: every model passes"), outcome="unchecked")


RULES = {"auto": automatic_gate, "labelled": labelled_gate, "label-free": label_free_gate, "none": no_gate}


def compare_with_champion(decision: Decision, by_champion: Decision | None) -> Decision:
    """The decision when there is a champion: the zero-shot model never replaces it, and a model that is better than the
    zero-shot model must not be worse than the champion."""
    if decision.outcome == "kept at zero-shot":
        return replace(decision, passed=False)
    if not decision.passed or by_champion is None:
        return decision
    reasons = [*decision.reasons, *(f"{text} [against the champion]" for text in by_champion.reasons)]
    return replace(decision, passed=by_champion.passed, reasons=reasons, outcome=by_champion.outcome)


def refuse_again(decision: Decision, version: str, command: str) -> Decision:
    """The decision on a version that a person has rolled back; `command` promotes it by hand."""
    reason = f"STOP  {version} was rolled back by a person, who can promote it again: {command}"
    return replace(decision, passed=False, reasons=[reason, *decision.reasons], outcome="rolled back")


def write_markdown(decision: Decision, against: str) -> str:
    """The decision as a Markdown page for Kubeflow."""
    reasons = [reason.replace("`", "'") for reason in decision.reasons]  # names of classes must not end the code
    title = f"# {decision.title.capitalize()}"
    return "\n".join([title, "", f"Compared with: {against}", "", *(f"- `{reason}`" for reason in reasons), ""])


class Verdict(NamedTuple):
    tone: str  # good, bad or open
    headline: str
    text: str  # the statistics
    plain: str = ""  # the same without statistics


HELPS = " What helps: better class names or prompts, more images, or a model that knows such images."


def state_verdict(metrics: Metrics) -> Verdict:
    model, baseline = metrics.adapted, metrics.baseline
    if not model:
        return state_without_labels(metrics)
    if baseline:
        return state_with_labels(metrics, baseline.top1, model.top1)
    low, high = model.intervals["top1"]
    text = f"95% interval {low:.1%} to {high:.1%}, {metrics.labelled:,} labelled images. No baseline was given."
    plain = f"{count_of(model.top1, metrics.labelled)} images are right."
    return Verdict("open", f"{model.top1:.1%} top-1 accuracy", text, plain)


def state_with_labels(metrics: Metrics, before: float, after: float) -> Verdict:
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
    facts = (
        f"{100 * (after - before):+.1f} points (95% interval {100 * low:+.1f} to {100 * high:+.1f}): "
        f"{changed.fixed:,} images fixed, {changed.broken:,} broken, of {images:,}."
    )
    now = f"{are} are right, before it was {were}.{chance}"
    if images < FEWEST_LABELS:
        text = f"{facts} Fewer than {FEWEST_LABELS} labelled images decide nothing."
        return Verdict("open", "Too few labels to tell", text, f"{now} These are too few images to tell.")
    if low > 0:
        return Verdict("good", f"Better than {name}", facts, f"Better than before on the labelled images: {now}")
    if high < 0:
        return Verdict("bad", f"Worse than {name}", facts, f"Worse than before on the labelled images: {now}")
    plain = f"No clear difference on the labelled images: {now} That may be chance; more labelled images would tell."
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


def state_without_labels(metrics: Metrics) -> Verdict:
    compared = metrics.label_free.compared
    if not compared:
        text = "Confidence and class balance are all that can be shown."
        plain = f"{describe_lack(metrics)}, so the accuracy is unknown."
        return Verdict("open", "No labels, no baseline", text, plain)
    name, check = metrics.baseline_name, compared.check
    selection = metrics.model.selection
    measured = selection.decisive if selection and name == "zero-shot" else None
    text = measured.text() if measured else f"{describe_lack(metrics)}, so accuracy is unknown"
    text += f". {compared.agreement:.1%} of the images keep their class."
    if compared.agreement == 1:
        plain = " ".join([describe_same(metrics), *([describe_answers(measured)] if measured else [])])
        return Verdict("open", f"The same as {name}", text, plain + HELPS)
    if check and check.warnings and not (measured and measured.better):  # as for `must gate`
        signs = "; ".join(check.warnings)
        return Verdict("bad", "Signs of harm", f"{text} But {signs}.", f"Do not use it: {signs}.")
    if measured:
        return judge_answers(measured, text)
    by = f"the {name}" if name == "baseline" else name
    changed = f"the model gives {count_of(1 - compared.agreement, metrics.images)} images another class than {by}"
    tell = "Whether it is better only labels can tell"
    refined = metrics.refined or {}
    can_ask = name == "zero-shot" and refined.get("named", 0) < refined.get("images", 1)
    tell += "; fifty answers give a first number (must review)." if can_ask else "."
    if check is None or check.images < FEWEST_LABELS:
        changed = changed[:1].upper() + changed[1:]
        return Verdict("open", "Accuracy unknown", text, f"{changed}, and these are too few to see any harm. {tell}")
    return Verdict("open", "No collapse, accuracy unknown", text, f"The model did not collapse: {changed}. {tell}")


def judge_answers(measured: AccuracyEstimate, text: str) -> Verdict:
    """By people's answers about images that were drawn at random."""
    sentence, by = describe_answers(measured), f"by {pluralize(measured.answers, 'answer')}"
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
    return f"By {pluralize(images, 'answer')}, {right}{labels}{measured.limit}."
