"""The report: complete in itself, small, and safe to open whatever the classes and files are called."""

import base64
import hashlib
import json
import re
import shutil
from dataclasses import asdict, replace
from html.parser import HTMLParser

import numpy as np
import pytest

from must.answers.accuracy import AccuracyEstimate
from must.evaluation.evaluate import evaluate
from must.evaluation.figures import GALLERY_SHOWN, read_training_log
from must.evaluation.gate import state_verdict
from must.evaluation.metrics import MATRIX_LIMIT, Samples, measure
from must.evaluation.report import list_notes, render_report
from must.evaluation.result import Data, ModelRecord
from must.model.bundle import load_bundle, save_bundle
from tests.common import read_csv
from tests.evaluation.digits import evaluation
from tests.evaluation.measured import CHECK, MEASURED, accuracy, scores_of

HOSTILE = (
    "<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "'; drop table--", "{{ 7 * 7 }}{% raw %}",
    "</style><svg onload=alert(3)>", "javascript:alert(4)", "a\x00b\u202etxt", "&lt;b&gt;", "-->", "日本語 \U0001f600",
)  # fmt: skip


class Page(HTMLParser):
    """Tags, attributes and text of a page; the text of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open, self.scripts = [], [], "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend((tag, name, value or "") for name, value in attrs)
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        else:
            self.text += data


def check_harmless(page):
    """One script, which the page's policy names by its hash; nothing is loaded."""
    assert not {"iframe", "object", "embed", "link", "base", "form"} & set(page.tags)
    (script,) = page.scripts
    policy = next(value for _, _, value in page.attributes if value.startswith("default-src"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    for tag, name, value in page.attributes:
        assert not name.startswith("on") and (tag, name) != ("script", "src"), (tag, name, value)
        if name in ("src", "href", "srcset", "data", "action"):
            assert value.startswith(("data:image/jpeg;base64,", "#", "copies.csv")), (tag, name, value[:60])
    assert not page.open, "every element is closed"


def test_the_report_is_complete_in_itself(evaluated):
    text = (evaluated[1] / "report.html").read_text()
    page = Page(text)
    check_harmless(page)
    assert not re.search(r"url\(|@import|https?://", text)
    assert len(text.encode()) < 2_000_000
    linked = [value[1:] for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert 3 < len(linked) <= 5 and {*linked} <= {value for _, name, value in page.attributes if name == "id"}
    top = 100 * evaluated[0]["adapted"]["top1"]
    for part in ("Better than zero-shot", f"{top:.1f}%", "Pictures by class", "Right now", "Confusions", "Numbers"):
        assert part in page.text
    assert page.text.index(f"{top:.1f}%") < page.text.index("Pictures by class") < page.text.index("For engineers")


def synthetic(classes, images=400, labelled=True, after_quality=3.0):
    """Samples and the scores of two models, of which the second is right about some images."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, len(classes), images)
    shown, scores = labels if labelled else np.full(images, -1), []
    for quality in (after_quality, 1.0):
        logits = generator.normal(size=(images, len(classes)))
        logits[np.arange(images), labels] += quality
        scores.append(scores_of(logits, shown))
    sources = np.array([f"folder/{i}/{HOSTILE[i % len(HOSTILE)]}" for i in range(images)], dtype=object)
    return Samples(np.arange(images) % 100, shown, sources), *scores


def measured(classes, **options):
    samples, after, before = synthetic(classes, **options)
    return measure(samples, after, before, None, classes)


def rendered(digits, classes, model="", **options):
    samples, after, before = synthetic(classes, **options)
    config = evaluation(digits, "out", model=model or digits.adapted, baseline="zero.safetensors")
    origin = {"config": {"shards": HOSTILE[0]}, "versions": {HOSTILE[1]: HOSTILE[2]}}
    metrics = replace(
        measure(samples, after, before, None, list(classes)),
        model=ModelRecord(HOSTILE[0], HOSTILE[1], HOSTILE[4], 100, "0", "0" * 64, origin),
        data=Data(digits.shards, "test", "0" * 64),
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
    assert "<h3>49" not in text, "a name is no template"


def test_a_thousand_classes_and_more_pictures_than_are_shown_stay_small(digits):
    names = [f"a rather long class name number {i}" for i in range(1000)]
    text, metrics = rendered(digits, names, images=2 * GALLERY_SHOWN)
    assert len(names) > MATRIX_LIMIT and metrics.confusion["matrix"] is None and "taken for" in text
    assert GALLERY_SHOWN <= text.count("<img") <= GALLERY_SHOWN + 1500 and len(text.encode()) < 15_000_000
    check_harmless(Page(text))


def figures(page):
    """{title: groups} of the pictures in the gallery."""
    gallery = page[: page.index("For engineers")]
    return {title: groups.split() for groups, title in re.findall(r'<figure class="(.*?)" title="(.*?)">', gallery)}


def test_the_report_begins_with_the_labels_and_shows_each_picture(digits, refined, tmp_path):
    metrics = evaluate(evaluation(digits, tmp_path, model=str(refined.parent / "model"), refined=str(refined)))
    text, rows = (tmp_path / "report.html").read_text(), read_csv(refined / "predictions.csv")
    summary = json.loads((refined / "refined.json").read_text())
    share = metrics.model.selection.measured.labels
    people = {row["image"] for row in rows if row["by"] != "model"}
    sure = {row["image"] for row in rows if row["accepted"] == "true"} | people
    found = re.findall(r"<b>(.*?)</b><span>(.*?)</span>", text)[:3]
    assert [number for number, _ in found] == [str(len(sure)), "70", f"{share.value:.1%}"] and len(people) == 70
    assert summary["accepted"]["text"] in text and f"The labels of your {len(rows)} pictures" in text
    shown = figures(text)
    assert shown.keys() == {row["image"] for row in rows}
    for row in rows:
        groups = ["person"] if row["by"] != "model" else ["sure" if row["accepted"] == "true" else "left"]
        assert shown[row["image"]][-1:] == groups
    copies = read_csv(refined / "copies.csv")
    assert (tmp_path / "copies.csv").read_bytes() == (refined / "copies.csv").read_bytes()
    assert f"{len(copies)} of the unlabeled images" in text and 'href="copies.csv"' in text


def test_without_answers_it_asks_for_them_and_with_all_it_does_not(digits, refined, tmp_path):
    for name, left in (("none", True), ("all", False)):
        folder = shutil.copytree(refined, tmp_path / name)
        summary, rows = json.loads((folder / "refined.json").read_text()), read_csv(folder / "predictions.csv")
        by = "model" if left else "person: ann"
        lines = [[row["image"], row["class"], row["probability"], by, row["zero_shot"], "true"] for row in rows]
        head = "image,class,probability,by,zero_shot,accepted"
        if left:
            head, lines, summary["accepted"] = head.removesuffix(",accepted"), [line[:-1] for line in lines], None
        (folder / "predictions.csv").write_text("\n".join([head, *map(",".join, lines)]) + "\n")
        (folder / "refined.json").write_text(json.dumps(summary))
        model = str(refined.parent / "model")
        evaluate(evaluation(digits, tmp_path / f"{name} report", model=model, refined=str(folder)))
        text = (tmp_path / f"{name} report/report.html").read_text()
        assert ("must review" in text) is left and ("all named by a person" in text) is not left
        assert left or summary["accepted"]["text"] in text


def test_of_images_that_are_no_longer_in_the_shards_only_the_numbers_are_shown(digits, refined, tmp_path):
    copy = shutil.copytree(refined, tmp_path / "labels")
    summary = json.loads((copy / "refined.json").read_text())
    (copy / "refined.json").write_text(json.dumps(summary | {"index_sha256": "0" * 64}))
    evaluate(evaluation(digits, tmp_path, model=str(refined.parent / "model"), refined=str(copy)))
    text = (tmp_path / "report.html").read_text()
    assert not figures(text) and "The pictures are no longer there" in text and text.count("<article") > 5


def test_search_and_filter_leave_the_pictures_that_fit(digits, refined, tmp_path):
    page, chromium = (
        pytest.importorskip("playwright.sync_api"),
        shutil.which("chromium") or shutil.which("google-chrome"),
    )
    if not chromium:
        pytest.skip("no Chromium")
    evaluate(evaluation(digits, tmp_path, model=str(refined.parent / "model"), refined=str(refined)))
    text = (tmp_path / "report.html").read_text()
    name = next(iter(figures(text)))
    with page.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab, said = browser.new_page(), []
        tab.on("console", lambda message: said.append(message.text))
        tab.goto((tmp_path / "report.html").as_uri())
        visible = tab.locator(".kinds figure:visible")
        assert visible.count() == len(figures(text))
        tab.select_option("#how", "person")
        assert visible.count() == 70 and tab.locator("#said").inner_text() == "70 pictures"
        tab.select_option("#how", "")
        tab.fill("#find", name.upper())
        assert visible.count() == 1 and tab.locator("article:visible").count() == 1
        tab.click("a[href='#numbers']")
        assert tab.locator("#numbers").is_visible() and not said, "the script runs under the page's policy"
        browser.close()


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
    assert found.tone == "open"
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
    metrics = replace(metrics, refined={"images": 18, "named": 17, "changed": 0})
    assert "fifty answers" in state_verdict(checked(metrics, 18, [])).plain
    metrics.refined["named"] = 18
    assert "answers" not in state_verdict(checked(metrics, 18, [])).plain, "all pictures are named"


def test_probabilities_that_became_less_reliable_are_said():
    better, worse = replace(accuracy(0.9), ece=0.021), replace(accuracy(0.9), ece=0.034, nll=0.512)
    before = replace(accuracy(0.7), ece=0.021)
    assert list_notes(replace(MEASURED, adapted=better, baseline=before)) == []
    (note,) = list_notes(replace(MEASURED, adapted=worse, baseline=before))
    assert note.startswith("Its probabilities are less reliable than before")
    assert list_notes(replace(MEASURED, adapted=replace(worse, top1=0.7), baseline=before)) == []


def test_curves_are_drawn_from_the_log_even_when_it_is_cut_off(digits, tmp_path):
    bundle = load_bundle(digits.adapted)
    save_bundle(str(tmp_path), bundle.model, bundle.description)
    lines = [f'{{"step": {i}, "confident": {0.5 + i / 200}, "lr": 0.001, "loss_fairness": NaN}}' for i in range(50)]
    (tmp_path / "train_log.jsonl").write_text("\n".join(lines) + '\n{"step": 50, "confi')
    text, _ = rendered(digits, [str(i) for i in range(10)], model=str(tmp_path))
    page = Page(text)
    assert "Confident pseudo-labels" in page.text and "step 49" in page.text
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text).lower().replace("finance", "")


def test_lines_of_the_log_that_are_no_lines_are_left_out(tmp_path):
    assert read_training_log(str(tmp_path)) == [], "no log"
    lines = [{"step": step, "stability": 0.5, "agreement": 0.7} for step in range(9, 100, 10)]
    others = [[1], "text", {"stability": 0.1}, {"step": 10**400}]
    text = "\n".join(json.dumps(line) for line in [*others, *lines])
    (tmp_path / "train_log.jsonl").write_text(text + '\n{"step": 19, "stab')
    assert read_training_log(str(tmp_path)) == lines
