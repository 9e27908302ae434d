"""The page of `must review` in a real browser: Chromium without a window, driven by Playwright."""

import importlib.util
import os
import shutil
import threading

import pytest
import uvicorn

from must.answers.answers_file import append
from must.reviewing.page import App
from must.reviewing.prepare import AnswerEffect
from must.reviewing.session import Session
from must.serving.serve import format_url, listen
from tests.common import ROOT
from tests.reviewing.conftest import config_at, join_lines, labels_of, reader_of

AXE = ROOT / "build/axe/node_modules/axe-core/axe.min.js"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PACKAGE = importlib.util.find_spec("playwright")
MISSING = [what for what, there in (("playwright", PACKAGE), ("Chromium", CHROMIUM)) if not there]
SKIPPED = bool(MISSING) and "REQUIRE_BROWSER" not in os.environ
pytestmark = pytest.mark.skipif(SKIPPED, reason=f"not here: {', '.join(MISSING)}")
PATIENCE = 120_000  # milliseconds in which a page that works has long done it
if not MISSING:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
ZOOMED = {"viewport": {"width": 640, "height": 400}, "device_scale_factor": 2}  # a laptop's window at 200%


@pytest.fixture(scope="module")
def chromium():
    assert not MISSING, f"not here: {', '.join(MISSING)}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def serve():
    """Serves an App in a thread; returns its address."""
    running = []

    def start(app):
        listener = listen("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        running.append((server, thread))
        return f"{format_url('127.0.0.1', listener)}/{app.token}/"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


@pytest.fixture
def place(review, folder, serve):
    """The address of a page, its session."""
    session = Session(review, str(folder), "ann")
    return serve(App(session, reader_of(review), "token")), session


@pytest.fixture
def visit(chromium):
    """Opens an address in a browser of its own; what the page's script raises fails the test."""
    contexts, raised = [], []

    def open_at(url, **options):
        contexts.append(chromium.new_context(**options))
        contexts[-1].set_default_timeout(PATIENCE)
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: raised.append(str(error)))
        page.on("console", lambda said: raised.append(said.text) if said.type == "error" else None)
        page.goto(url)
        return page

    yield open_at
    for context in contexts:
        context.close()
    assert not raised


def visit_again(page, url):
    """A new tab of the same browser, after the first one was closed."""
    new = page.context.new_page()
    with page.expect_event("close"):
        page.close(run_before_unload=True)
    new.wait_for_timeout(1_000)  # the tab's last message, that it is closed, arrives
    new.goto(url)
    return new


def ready(page):
    """Waits for the reply to the last key or button: until then the page takes no other."""
    page.wait_for_function("() => !busy")


def press(page, key):
    ready(page)
    page.keyboard.press(key)


def shown(page, number):
    """Waits until the page asks about this picture."""
    ready(page)
    expect(page.locator(f"#picture[data-number='{number}']")).to_be_visible()


def test_a_picture_in_a_wrong_folder_is_shown_first_with_both_names(review, place, visit):
    doubted = review.pictures[5]
    place[1].misplaced = {doubted.sha256: ("<b>six</b>\u202e", "five")}
    page = visit(place[0])
    shown(page, doubted.number)
    said = f"{doubted.image} · in the folder “<b>six</b>\ufffd”, but seems to show “five”"
    expect(page.locator("#kind")).to_have_text(said)
    press(page, "5")
    shown(page, review.pictures[0].number)
    expect(page.locator("#kind")).to_have_class("random")


def test_keys_answer_and_undo_survives_a_new_tab(review, folder, place, visit):
    page = visit(place[0])
    numbers = [picture.number for picture in review.pictures]
    shown(page, numbers[0])
    expect(page.locator("#sentence")).to_have_text("0 of 150 named.")
    for key, after in (("3", 1), ("n", 2), ("c", 3), ("0", 4)):
        press(page, key)
        shown(page, numbers[after])
    expect(page.locator("#sentence")).to_have_text("4 of 150 named; ….")
    expect(page.locator("#kind")).to_have_text(
        f"{review.pictures[4].image} · Drawn at random: your answer measures the accuracy."
    )
    assert page.locator("#recent span").all_inner_texts() == ["zero", "cannot tell", "none of the classes", "three"]
    page = visit_again(page, place[0])
    shown(page, numbers[4])
    assert page.locator("#recent span").all_inner_texts() == ["zero", "cannot tell", "none of the classes", "three"]
    for after in (3, 2):
        press(page, "z")
        shown(page, numbers[after])
    expect(page.locator("#note")).to_have_text("1 answer taken back.")
    press(page, "c")
    expect(page.locator("#recent span").first).to_have_text("cannot tell")
    page.locator("#recent button").last.click()
    shown(page, numbers[0])
    expect(page.locator("#names button.was")).to_contain_text("three")
    press(page, "4")
    shown(page, numbers[3])
    press(page, "?")
    expect(page.locator("#keys")).to_be_visible()
    press(page, "5")  # answers nothing while it is open
    press(page, "Escape")
    page.click("#picture")
    expect(page.locator("#full")).to_have_attribute("src", f"full/{numbers[3]}")
    press(page, "f")
    expect(page.locator("#zoom")).to_be_hidden()
    lines = join_lines(folder)
    given = [line["undone"] if "undone" in line else line.get("label", "unsure") for line in lines]
    taken = [lines[3]["when"], lines[2]["when"]]
    assert given == ["three", None, "unsure", "zero", *taken, "unsure", "four"]
    assert all(line["sampled"] == "random" for line in lines if "undone" not in line)


def test_what_is_marked_or_pointed_at_on_a_screen_gets_a_class_and_enter_says_that_the_others_are_right(
    review, folder, place, visit
):
    url, session = place
    page = visit(url)
    shown(page, review.pictures[0].number)
    press(page, "g")
    tiles = page.locator("#tiles button")
    expect(tiles.first).to_be_visible()
    ready(page)
    label = page.locator("#title bdi").inner_text()
    numbers = [int(tile.get_attribute("data-number")) for tile in tiles.all()]
    wanted = {session.pictures[number].label for number in numbers}
    assert wanted == {review.class_numbers[label]} and tiles.first.get_attribute("title").endswith(".png")
    tiles.nth(1).click()
    press(page, "ArrowRight")
    press(page, "Space")
    assert [tile.get_attribute("aria-pressed") for tile in tiles.all()[:4]] == ["false", "true", "true", "false"]
    press(page, "Enter")
    expect(page.locator("#note")).to_contain_text("Choose the class of those that are marked")
    press(page, "7" if label != "seven" else "8")
    tiles.nth(4).hover()
    press(page, "n")
    expect(tiles.nth(4).locator("span")).to_have_text("none")
    press(page, "ArrowRight")
    press(page, "n")
    expect(tiles.nth(3).locator("span")).to_have_text("none")
    expect(page.locator("#accept-text")).to_have_text(f"the other {len(numbers) - 4} are “{label}”")
    press(page, "Enter")
    ready(page)
    expect(page.locator("#tiles button[data-number='" + str(numbers[0]) + "']")).to_have_count(0)
    said = {line["sha256"]: line["label"] for line in join_lines(folder) if "drawn" not in line}
    other = "seven" if label != "seven" else "eight"
    given = [said[session.pictures[number].sha256] for number in numbers]
    assert given == [label, other, other, None, None, *[label] * (len(numbers) - 5)]
    press(page, "z")
    expect(page.locator("#note")).to_have_text(f"{len(numbers)} answers taken back.")
    page.select_option("#class", "three")
    expect(page.locator("#title bdi")).to_have_text("three")
    press(page, "o")
    shown(page, review.pictures[0].number)


def test_who_leaves_a_known_wrong_label_is_told_at_once(review, folder, place, visit):
    labels = labels_of(review)
    session = place[1]
    for picture in review.pictures[:9]:
        session.act("answer", "p", {"number": picture.number, "kind": "label", "label": labels[picture.sha256]})
    session.screens = 2
    page = visit(place[0])
    ready(page)
    press(page, "g")
    expect(page.locator("#tiles button").first).to_be_visible()
    count = page.locator("#tiles button").count()
    press(page, "Enter")
    expect(page.locator("#tiles button.missed")).to_have_count(1)
    expect(page.locator("#note")).to_contain_text("You named the outlined picture before")
    assert len(session.answers) == 9
    press(page, "Enter")
    expect(page.locator("#tiles button.missed")).to_have_count(0)
    assert len(session.answers) == 9 + count - 1


def test_the_end_says_what_came_of_the_answers(review, folder, images, serve, visit):
    labels = labels_of(review)
    truth = {picture.image: labels[picture.sha256] for picture in review.pictures}
    effect = AnswerEffect(config_at(folder), images, truth)
    session = Session(review, str(folder), "ann", effect)
    session.commands = ["must refine 'a b'"]
    effect.wait()
    page = visit(serve(App(session, reader_of(review), "token")))
    ready(page)
    expect(page.locator("#sentence")).to_contain_text("of 100 labels (in truth ")
    for picture in review.pictures[:12]:
        shown(page, picture.number)
        press(page, str(review.classes.index(labels[picture.sha256])))  # "three" has the key 3
    shown(page, review.pictures[12].number)
    press(page, "e")
    expect(page.locator("#end")).to_have_text("Result so far")
    expect(page.locator("#endtext")).to_have_text("Of 100 pictures each names right, by 12 answers at random")
    right = f"{100 * effect.progress.accuracy.labels.value:.0f}"
    expect(page.locator("#right")).to_contain_text(f"Of 100 labels that you get, {right} are right (95%: ")
    expect(page.locator("#rows tr")).to_have_count(4)
    row = page.locator("#rows tr").first.inner_text().split()
    assert row[:6] == ["the", "labels", "that", "you", "get", f"{right}%"]
    expect(page.locator("#accepted")).to_contain_text("150 pictures: 12 answered, ")
    expect(page.locator("#numbers")).to_contain_text("Then at most 5 in 100 of all labels are wrong")
    page.locator("#without-review summary").click()
    effect.wait()
    classes = effect.progress.classes
    expect(page.locator("#classes tr")).to_have_count(1 + len(classes))
    expect(page.locator("#classes tr").nth(1)).to_contain_text(classes[0]["class"])
    expect(page.locator("#commands pre")).to_have_text("must refine 'a b'")
    expect(page.locator("#changed")).to_contain_text("of other pictures changed.")
    page.locator("#classes button").first.click()
    expect(page.locator("#title")).to_contain_text("“")
    expect(page.locator("#title bdi")).to_have_text(classes[0]["class"])
    press(page, "o")
    shown(page, review.pictures[12].number)


def test_after_few_answers_their_interval_stands_beside_the_share(place, visit):
    (page := visit(place[0])).wait_for_function("() => !busy")
    page.evaluate("bar({ set: null, labels: [1, 0.57, 1], answers: 5, of: 100, text: '', problem: '', recent: [] })")
    expect(page.locator("#sentence")).to_have_text("5 of 100 named; of 100 labels 100 are right (57 to 100).")


def test_a_set_that_is_finished_ends_and_can_be_gone_on_with(review, folder, images, serve, visit):
    effect, labels = AnswerEffect(config_at(folder), images), labels_of(review)
    lines = [{"sha256": p.sha256, "label": labels[p.sha256], "sampled": "random"} for p in review.pictures]
    append(folder / "answers.jsonl", *lines[:149])
    session = Session(review, str(folder), "ann", effect)
    effect.wait()
    page = visit(serve(App(session, reader_of(review), "token")))
    for way in ("o", "#back"):
        expect(page.locator("#end")).to_have_text("Finished")
        expect(page.locator("#sentence")).to_contain_text("149 named, 1 sure, 0 left; of 100 labels ")
        ready(page)
        page.locator(way).click() if way.startswith("#") else page.keyboard.press(way)
        shown(page, review.pictures[149].number)
        press(page, "e")
    press(page, "o")
    shown(page, review.pictures[149].number)
    press(page, "1")
    expect(page.locator("#done")).to_be_visible()
    expect(page.locator("#end")).to_have_text("All pictures are answered.")


def test_up_to_thirty_classes_each_has_a_button_and_a_key(review, folder, place, visit):
    review.classes.extend(f"class {number}" for number in range(20))
    page = visit(place[0])
    for at, (key, label) in enumerate([("0", "zero"), ("q", "class 2"), (",", "class 19"), ("9", "nine")]):
        shown(page, review.pictures[at].number)
        expect(page.locator("#names button")).to_have_count(30)
        press(page, key)
        expect(page.locator("#recent span").first).to_have_text(label)
    assert page.locator("#search").is_hidden()


def test_with_more_classes_those_in_use_get_a_key_that_they_keep(review, folder, place, visit):
    review.classes.extend(["Émile's hat", "\u202eleft", *(f"class {number}" for number in range(20))])
    page = visit(place[0])
    expect(page.locator("#found li")).to_have_count(len(review.classes))
    first = review.pictures[0]
    likely = [review.classes[number] for number in sorted(first.likely)]
    assert page.locator("#found bdi").all_inner_texts()[: len(likely)] == likely
    press(page, "/")
    page.keyboard.type("emile")
    expect(page.locator("#found li")).to_have_count(1)
    press(page, "Enter")
    shown(page, review.pictures[1].number)
    press(page, "n")  # the cursor has left the search box
    shown(page, review.pictures[2].number)
    page.locator("#found li").nth(1).click()
    shown(page, review.pictures[3].number)
    page = visit_again(page, place[0])
    expect(page.locator("#names bdi")).to_have_count(2)
    press(page, "1")
    shown(page, review.pictures[4].number)
    labels = [line["label"] for line in join_lines(folder)]
    assert labels[:2] + labels[3:] == ["Émile's hat", None, "Émile's hat"]
    assert page.locator("#names bdi").all_inner_texts() == ["Émile's hat", labels[2]]
    assert "\u202e" not in page.inner_text("#found")


@pytest.mark.parametrize(
    "file, old, name, command",
    [
        ("", "", "my ten", "must adapt work --classes 'zero,one,two,three,four,five,six,seven,eight,nine,my ten'"),
        ("", "two", "2", "must adapt work --rename two=2"),
        ("", "two", "don't", "must adapt work --rename 'two=don'\\''t'"),
        ("/names.txt", "", "ten", "must adapt work"),
        ("/names.txt", "two", "", "must adapt work --rename two=NEW"),
    ],
)
def test_the_page_says_how_a_class_is_added_or_renamed(place, visit, file, old, name, command):
    url, session = place
    session.change = {"work": "work", "file": file}
    page = visit(url)
    ready(page)
    page.click("#to-change")
    page.select_option("#old", old)
    page.fill("#new", name)
    expect(page.locator("#change-command")).to_have_text(command)
    assert (file in page.inner_text("#change")) and page.locator("#change-file code").count() == bool(file)


def test_a_tab_that_is_closed_holds_nothing_and_a_page_that_comes_early_waits(review, folder, serve, visit):
    app = App(None, reader_of(review), "token")
    app.wait = "Looking at the first 128 of 20,000 images ..."
    url = serve(app)
    page = visit(url)
    expect(page.locator("#sentence")).to_have_text(app.wait)
    app.session = Session(review, str(folder), "ann")
    shown(page, review.pictures[0].number)
    other = visit(url)
    shown(other, review.pictures[1].number)
    page.close(run_before_unload=True)
    for _ in range(600):  # until the tab's last message has arrived
        if len(app.session.shown) == 1:
            break
        other.wait_for_timeout(100)
    third = visit(url)
    shown(third, review.pictures[0].number)


@pytest.mark.slow
@pytest.mark.skipif(
    not AXE.exists() and "REQUIRE_BROWSER" not in os.environ,
    reason="not here: axe-core (make build/axe/node_modules/axe-core/axe.min.js)",
)
@pytest.mark.parametrize("options", [{}, PHONE | {"color_scheme": "dark"}, ZOOMED], ids=["light", "dark phone", "200%"])
def test_everybody_can_use_every_part_of_it(options, review, place, visit):
    """No violation that axe-core finds, and nothing to be scrolled sideways."""
    page = visit(place[0], bypass_csp=True, **options)
    shown(page, review.pictures[0].number)
    page.locator("#names button").first.click()
    shown(page, review.pictures[1].number)
    for part in ("one", "keys", "zoom", "screens", "done"):
        if part == "keys":
            page.evaluate("document.getElementById('keys').showModal()")
        elif part == "zoom":
            page.evaluate("document.getElementById('keys').close()")
            page.click("#picture")
        else:
            page.evaluate("document.getElementById('zoom').close()")
            page.click(f"#to-{part}")
        expect(page.locator({"one": "#alone", "screens": "#screen"}.get(part, f"#{part}"))).to_be_visible()
        page.evaluate(AXE.read_text())
        found = page.evaluate("axe.run().then((r) => r.violations.map((v) => [v.id, v.nodes.map((n) => n.html)]))")
        assert found == [], part
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), part
