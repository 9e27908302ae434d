"""The report: complete in itself, small, and safe to open whatever the classes and files are called."""

import json
import re
import shlex
from dataclasses import asdict, replace
from html.parser import HTMLParser

import numpy as np
import pytest

from must.config import EvaluateConfig
from must.evaluation.figures import lay_out
from must.evaluation.gate import state_verdict
from must.evaluation.metrics import MATRIX_LIMIT, Samples, measure
from must.evaluation.report import command_line, list_next_steps, list_worse, read_training_log, render_report
from must.evaluation.result import Data, ModelRecord
from must.method.answers.estimate import AccuracyEstimate
from must.method.model.bundle import load_bundle, save_bundle
from tests.evaluation.digits import evaluation
from tests.evaluation.measured import CHECK, MEASURED, accuracy, scores_of

HOSTILE = (
    "<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "'; drop table--", "{{ 7 * 7 }}{% raw %}",
    "</style><svg onload=alert(3)>", "javascript:alert(4)", "a\x00b\u202etxt", "&lt;b&gt;", "-->", "日本語 \U0001f600",
)  # fmt: skip


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend((tag, name, value or "") for name, value in attrs)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.text += data


def check_harmless(page):
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name, value)
        if name in ("src", "href", "srcset", "data", "action"):
            assert value.startswith(("data:image/jpeg;base64,", "#part-")), (tag, name, value[:60])
    assert not page.open, "every element is closed"


def test_the_report_is_complete_in_itself(evaluated):
    text = (evaluated[1] / "report.html").read_text()
    page = Page(text)
    check_harmless(page)
    assert not re.search(r"url\(|@import|https?://", text)
    assert len(text.encode()) < 2_000_000
    assert page.tags.count("img") > 10
    linked = {value[1:] for tag, name, value in page.attributes if (tag, name) == ("a", "href")}
    assert linked == {value for tag, name, value in page.attributes if (tag, name) == ("h2", "id")} and len(linked) > 8
    assert "must export --model" in page.text, "what to do with a better model"
    for heading in (
        "Better than zero-shot", "By class", "Confusion", "Right and wrong changes", "Map of the images",
        "What now", f"{100 * evaluated[0]['adapted']['top1']:.1f}%",
    ):  # fmt: skip
        assert heading in page.text


def test_on_the_map_similar_images_are_near_each_other():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(3), 20)
    values = 4 * np.eye(3, 16)[groups] + 0.3 * generator.normal(size=(60, 16))
    places = lay_out(values)
    assert places.shape == (60, 2) and places.min() == 0 and places.max() == 1 and (places == lay_out(values)).all()
    distances = np.square(places[:, None] - places).sum(2) + 9 * np.eye(60)
    assert (groups[distances.argmin(1)] == groups).all()
    copies = generator.normal(size=(30, 8))
    copies[10:22] = copies[3]
    for same in (copies, np.ones((50, 8)), np.repeat(np.eye(2), 30, 0), np.eye(2), np.ones((1, 8))):
        with np.errstate(over="raise", invalid="raise"):
            assert np.isfinite(lay_out(same)).all() and lay_out(same).shape == (len(same), 2), "copies of one image"


def synthetic(classes, images=400, labelled=True, after_quality=3.0):
    """Samples and the scores of two models, of which the second is right about some images."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, len(classes), images)
    shown, scores = labels if labelled else np.full(images, -1), []
    for quality in (after_quality, 1.0):
        logits = generator.normal(size=(images, len(classes)))
        logits[np.arange(images), labels] += quality
        scores.append(scores_of(logits, shown))
    sources = np.array([f"folder/{HOSTILE[i % len(HOSTILE)]}/{i}.png" for i in range(images)], dtype=object)
    return Samples(np.arange(images) % 100, shown, sources), *scores


def measured(classes, **options):
    samples, after, before = synthetic(classes, **options)
    return measure(samples, after, before, None, classes)


def rendered(digits, classes, model="", **options):
    samples, after, before = synthetic(classes, **options)
    config = evaluation(digits, "out", model=model or digits.adapted, baseline="zero.safetensors")
    origin = {"config": {"shards": HOSTILE[0]}, "note": HOSTILE[1]}
    metrics = replace(
        measure(samples, after, before, None, list(classes)),
        model=ModelRecord(HOSTILE[0], HOSTILE[1], HOSTILE[4], 100, "0", origin),
        data=Data(digits.shards, "test", "0" * 64, splits={HOSTILE[0]: {"samples": 1, "labelled": 0}}),
    )
    return render_report(config, metrics, samples, after, before), metrics


def checked(metrics, images, warnings):
    check = replace(CHECK, images=images, warnings=warnings)
    compared = replace(metrics.label_free.compared, check=check)
    return replace(metrics, label_free=replace(metrics.label_free, compared=compared))


@pytest.mark.parametrize("labelled", [True, False])
def test_hostile_names_stay_text(digits, labelled):
    text, _ = rendered(digits, HOSTILE, labelled=labelled)
    page = Page(text)
    check_harmless(page)
    for name in HOSTILE:
        assert name.replace("\x00", "\ufffd").replace("\u202e", "\ufffd") in page.text, "shown as it is written"
    assert not set("\x00\u202e") & set(text), "nothing that turns the page's own words around"
    assert "49" not in re.findall(r"class=\"label\">(.*?)<", text), "a name is no template"


def test_a_thousand_classes_are_still_under_two_megabytes(digits):
    names = [f"a rather long class name number {i}" for i in range(1000)]
    text, metrics = rendered(digits, names, images=3000)
    assert len(text.encode()) < 2_000_000
    assert len(names) > MATRIX_LIMIT and metrics.confusion["matrix"] is None
    check_harmless(Page(text))


@pytest.mark.parametrize("quality, tone", [(3.0, "good"), (1.0, "open"), (0.0, "bad")])
def test_the_verdict_says_no_more_than_the_interval(quality, tone):
    metrics = measured(list("abcdefghij"), after_quality=quality)
    found = state_verdict(metrics)
    before, after = (round(100 * model.top1) for model in (metrics.baseline, metrics.adapted))
    assert found.tone == tone and f"{after} of 100 are right, before it was {before}" in found.plain
    if tone == "bad":
        assert "Worse than zero-shot" in found.headline and found.plain.startswith("Worse than")
        assert "Guessing would be right about 10 times in 100" in found.plain


@pytest.mark.parametrize("labelled", [True, False])
def test_zero_shot_that_was_kept_is_said_to_be_the_same_and_not_unclear(labelled):
    samples, _, before = synthetic(list("abcdefghij"), labelled=labelled)
    metrics = measure(samples, before, before, None, list("abcdefghij"))
    found = state_verdict(metrics)
    assert (found.tone, found.headline) == ("open", "The same as zero-shot") and "keep their class" in found.text
    start = "The predictions have not changed: the model gives every image the class of zero-shot."
    assert found.plain.startswith(start) and "refined" not in found.plain
    assert "What helps: better class names" in found.plain
    plain = state_verdict(replace(metrics, refined={"images": 1097, "changed": 99})).plain
    assert "Of the 1,097 refined labels, 99 differ from zero-shot." in plain


def test_collapse_is_named_without_labels():
    samples, _, before = synthetic(list("abcd"), labelled=False)
    collapsed = scores_of(np.tile([9.0, 0, 0, 0], (400, 1)), samples.labels)
    metrics = measure(samples, collapsed, before, None, list("abcd"))
    found = state_verdict(checked(metrics, 400, ["the model predicts few of the classes"]))
    assert (found.tone, found.plain) == ("bad", "Do not use it: the model predicts few of the classes.")
    found = state_verdict(checked(metrics, 400, []))
    assert found.tone == "open" and "times as often, for over 20% of the images: a." in found.text, "a fact, no warning"
    assert "Do not use" not in found.plain and found.plain.startswith("The model did not collapse")


def test_the_headline_is_of_the_answers_where_there_are_no_labels():
    metrics = checked(measured(list("abcde"), labelled=False), 400, ["the model predicts few of the classes"])
    for fixed, broken, tone, headline in (
        (30, 3, "good", "Better than zero-shot, by 128 answers"),
        (3, 30, "bad", "Signs of harm"),
        (0, 0, "bad", "Signs of harm"),
    ):
        before, after = np.arange(128) < 80, np.arange(128) < 80
        before[:fixed], after[80 - broken : 80] = False, False
        selection = {"measured": asdict(AccuracyEstimate.from_correct(before, before, with_answers=after))}
        answered = replace(metrics, model=ModelRecord(provenance={"selection": selection}))
        found = state_verdict(answered)
        assert (found.tone, found.headline) == (tone, headline) and "128 answers: zero-shot" in found.text
        found = state_verdict(checked(answered, 400, []))
        right = (
            f"By 128 answers, the model is right about {round((80 - broken) / 1.28)} of 100 images, zero-shot about "
        )
        assert found.plain.startswith(right)
        assert found.headline.startswith(("Better", "Worse", "Not decided yet")) and "unknown" not in found.text
    config = EvaluateConfig(model="m", baseline="b.safetensors", shards="s", output="o")
    assert list_next_steps(config, answered, "open")[0][0] == "Measure it by more answers:"
    for wrong, headline in ((0, "Not decided yet, by 12 answers"), (6, "Better than zero-shot, by 12 answers")):
        few = AccuracyEstimate.from_correct(np.arange(12) >= wrong, np.ones(12, bool))  # as the page of `must review`
        few = few.with_labels(np.arange(12) > 0, own=20, others=20)
        selection = {"selection": {"measured": asdict(few)}}
        found = state_verdict(checked(replace(metrics, model=ModelRecord(provenance=selection)), 400, []))
        assert (found.headline, few.better) == (headline, True if wrong else None)
        assert (
            "the model is right about 12 of 12 images" in found.plain and "of the labels, 96 of 100 are" in found.plain
        )


def test_of_fewer_than_100_images_the_number_is_told():
    metrics = measured(list("abcde"), images=18)
    assert state_verdict(metrics).plain.startswith(
        f"{round(18 * metrics.adapted.top1)} of 18 are right, before it was "
    )
    metrics = measured(list("abcde"), images=18, labelled=False)
    changed = round(18 * (1 - metrics.label_free.compared.agreement))
    found = state_verdict(checked(metrics, 18, []))
    assert (
        f"The model gives {changed} of 18 images another class than zero-shot, and" in found.plain
        and "too few to see any harm" in found.plain
    )
    assert found.tone == "open" and "etter than" not in found.headline


def test_less_of_the_training_is_advised_where_there_was_one(digits):
    config = evaluation(digits, "out")
    metrics = measured(list("abcde"))
    assert [line.split()[1] for _, line in list_next_steps(config, metrics, "bad")] == ["review"]
    trained = replace(metrics, model=ModelRecord(provenance={"config": {"epochs": 1}}))
    assert [line.split()[1] for _, line in list_next_steps(config, trained, "bad")] == ["refine", "review"]
    assert [line.split()[1] for _, line in list_next_steps(config, trained, "good")] == ["predict", "export", "review"]


def test_probabilities_that_became_less_reliable_are_said():
    better, worse = replace(accuracy(0.9), ece=0.021), replace(accuracy(0.9), ece=0.034, nll=0.512)
    before = replace(accuracy(0.7), ece=0.021)
    assert list_worse(replace(MEASURED, adapted=better, baseline=before)) == ""
    text = "the calibration error rose from 2.1% to 3.4% and the negative log-likelihood rose from 0.500 to 0.512"
    assert list_worse(replace(MEASURED, adapted=worse, baseline=before)) == text
    assert list_worse(replace(MEASURED, adapted=replace(worse, top1=0.7), baseline=before)) == ""


def test_curves_are_drawn_from_the_log_even_when_it_is_cut_off(digits, tmp_path):
    bundle = load_bundle(digits.adapted)
    save_bundle(str(tmp_path), bundle.model, bundle.description)
    lines = [f'{{"step": {i}, "confident": {0.5 + i / 200}, "lr": 0.001, "loss_fairness": NaN}}' for i in range(50)]
    (tmp_path / "train_log.jsonl").write_text("\n".join(lines) + '\n{"step": 50, "confi')
    text, _ = rendered(digits, [str(i) for i in range(10)], model=str(tmp_path))
    page = Page(text)
    assert "Confident pseudo-labels" in page.text and "Learning rate" in page.text
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text).lower().replace("finance", "")


def test_the_command_to_reproduce_can_be_pasted():
    config = EvaluateConfig(model="my model", shards="gs://b/it's", output="o", baseline="b")
    words = shlex.split(command_line("evaluate", EvaluateConfig, config.to_dict()))
    assert words[:2] == ["must", "evaluate"] and "my model" in words and "gs://b/it's" in words
    assert "--split" not in words, "defaults are left out"


def test_lines_of_the_log_that_are_no_lines_are_left_out(tmp_path):
    assert read_training_log(str(tmp_path)) == [], "no log"
    lines = [{"step": step, "stability": 0.5, "agreement": 0.7} for step in range(9, 100, 10)]
    others = [[1], "text", {"stability": 0.1}, {"step": 10**400}]
    text = "\n".join(json.dumps(line) for line in [*others, *lines])
    (tmp_path / "train_log.jsonl").write_text(text + '\n{"step": 19, "stab')
    assert read_training_log(str(tmp_path)) == lines
