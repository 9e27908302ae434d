"""Every way a run can end: what its stages left, and how its page begins."""

import json

import pytest

from must.base.storage import exists
from must.pods.notes import Facts, Failure, Note, read_notes, write_note
from must.pods.summary import determine_outcome, summarize
from must_components.cluster import summarize_run

BEFORE = ["inputs", "shard", "classifier", "champion"]
MEASURED = {"top1": 0.772, "before": 0.734, "report": "gs://b/work/notes/7/report.html"}
R0007, PASSED = {"version": "r0007"}, {"outcome": "passed", "reasons": ["ok  same class 0.9"]}
STOPPED = {"outcome": "stopped", "reasons": ["STOP  too few images", "ok  a"]}
KEPT = {"outcome": "kept at zero-shot"}
HELD = (
    "must shard: /w/shards is being written by another `must shard` (run 1f2e-77, process 9 on node-2, since today); "
    "wait for it, or stop it, or choose another --output"
)
LOST = [None]


def done(*stages, **facts):
    return [Note(stage, "done", started=n, facts=Facts(**facts.get(stage, {}))) for n, stage in enumerate(stages)]


def with_train(state, **values):
    return [*done(*BEFORE), Note("train", state, started=9, facts=Facts(checkpoints="/w/checkpoints/k"), **values)]


TRAINED = [*BEFORE, "train", "evaluate", "export"]
WAYS = {  # case: (notes, the page's first line)
    "promoted": (
        done(*TRAINED, "promote", evaluate=MEASURED | PASSED, promote=R0007),
        "# Promoted r0007: 77.2%, was 73.4% (zero-shot)"),
    "all parts labelled": (
        done("model", "label-1-of-2", "label-2-of-2", **{
            "label-1-of-2": {"rows": {"images": 40, "new": 5}},
            "label-2-of-2": {"rows": {"images": 60, "new": 5, "not read: damaged": 1}}}),
        "# Labelled 100 images: 10 new, 1 not read: damaged"),
    "some parts never started": (
        done("model", "label-1-of-16", **{"label-1-of-16": {"rows": {"images": 10, "new": 10}}}),
        "# Labelled 10 images: 10 new. Then broken off: 15 of 16 parts never started"),
    "promoted, measured against the champion": (
        done(*TRAINED, "promote", promote=R0007,
             evaluate=MEASURED | PASSED | {"before": 0.751, "against": "the champion, r0006"}),
        "# Promoted r0007: 77.2%, was 75.1% (the champion, r0006)"),
    "promoted by people's answers": (
        done(*TRAINED, "promote", promote=R0007,
             evaluate=PASSED | {"gain": "+5.1 points over zero-shot (95%: +1.0 to +9.2, 238 answers)"}),
        "# Promoted r0007: +5.1 points over zero-shot (95%: +1.0 to +9.2, 238 answers)"),
    "promoted again, the same model": (
        done(*TRAINED, "promote", evaluate=MEASURED | PASSED, promote=R0007 | {"action": "nothing new"}),
        "# Nothing new: the model of this run, r0007, is the champion already"),
    "promoted without labels": (
        done(*TRAINED, "promote", evaluate=PASSED, promote=R0007), "# Promoted r0007"),
    "stopped by the gate": (
        done(*TRAINED, "promote", evaluate=MEASURED | STOPPED),
        "# Not promoted: stopped by the gate (too few images)"),
    "kept zero-shot": (
        done(*TRAINED, "promote", evaluate=MEASURED | KEPT | {"stays": "the champion, r0006"}),
        "# Kept zero-shot: no adaptation was better, so nothing is promoted; the champion, r0006, stays"),
    "kept zero-shot, as the first model of its name": (
        done(*TRAINED, "promote", evaluate=KEPT, promote={"version": "r0001"}),
        "# Kept zero-shot: no adaptation was better; promoted as r0001, the first of its name"),
    "stopped, and promote never started": (
        done(*TRAINED, evaluate=MEASURED | STOPPED),
        "# Not promoted: stopped by the gate (too few images). Then broken off: nothing came after export"),
    "rolled back by a person": (
        done(*TRAINED, "promote", evaluate={"outcome": "rolled back", "reasons": ["STOP  r0007 was rolled back"]}),
        "# Not promoted: r0007 was rolled back"),
    "all parts labelled before": (
        done("model", "label-1-of-1", **{"label-1-of-1": {"rows": {"images": 1097, "similarity below 0.5": 60}}}),
        "# Nothing new: 1,097 images are labelled already"),
    "nothing new": (
        done(*BEFORE, champion={"action": "nothing new", "why": "this data was promoted as r0006"}),
        "# Nothing new: this data was promoted as r0006"),
    "failed, then retried and fine": (
        [*done(*TRAINED[:4]), Note("train", "done", started=5, tries=LOST), *done("promote", promote=R0007)],
        "# Promoted r0007"),
    "wrong input": (
        [*done("inputs", "shard"), Note("classifier", "failed", started=3, code=2, lines=["no open_clip model"])],
        "# Run failed: classifier: the input is wrong"),
    "killed, memory ran out, every time": (
        with_train("failed", code=137, tries=LOST), "# Run failed: train: killed, memory may have run out"),
    "killed pod, lost node": (with_train("running"), "# Run failed: train: its pod is gone"),
    "terminated by a person, seen by the stage": (
        with_train("running", signalled=12.0), "# Run stopped from outside, during train"),
    "terminated by a person, between two stages": (
        done(*BEFORE, "train"), "# Run broken off: nothing came after train"),
    "a store that did not answer": (
        with_train("failed", code=75), "# Run failed: train: a dependency failed"),
    "the first driver failed": ([], "# Run broken off: no stage started"),
    "two failed at once": (
        [Note("shard", "failed", started=0, seconds=50, code=1), Note("classifier", "failed", started=1, code=2)],
        "# Run failed: classifier: the input is wrong"),
    "its time limit": (with_train("failed", code=124), "# Run failed: train: its time was over"),
    "another run is writing there": (
        [*done("inputs"), Note("shard", "failed", started=3, code=73, tries=LOST, lines=[HELD])],
        "# Run stopped: another run is writing to this work_uri"),
    "a bug": (with_train("failed", code=1, lines=["ZeroDivisionError"]), "# Run failed: train: an error"),
}  # fmt: skip


def page_of(work, notes, again="again"):
    """The summary's page of a run that left these notes, and those that are there."""
    for note in notes:
        write_note(str(work), "7", note)
    return summarize(str(work), "7", again).to_markdown()


@pytest.mark.parametrize("case", WAYS)
def test_the_page_follows_from_what_the_stages_left(tmp_path, case):
    notes, first_line = WAYS[case]
    page = page_of(tmp_path, notes, "submit.py --again 7")
    assert page.splitlines()[0] == first_line.replace("_", r"\_")
    good = first_line.split()[1] in ("Promoted", "Not", "Kept", "Nothing", "Labelled")
    good &= "broken off" not in first_line
    assert ("submit.py --again 7" in page) is not good
    assert determine_outcome(notes).good is good


@pytest.mark.parametrize(
    "values, why",
    [
        ({"code": 75, "error": Failure("UnreachableError", "x")}, "x · a dependency failed (exit code 75)"),
        ({"code": 1, "error": Failure("KeyError", "'x'")}, "KeyError: 'x' · an error in the program or the machine"),
        ({"code": 1, "lines": ["a library's line"]}, "an error in the program or the machine (exit code 1)"),
        ({"code": 137, "error": Failure("KeyError", "x")}, "killed (exit code 137): most often the pod's memory limit"),
        ({"state": "running"}, "its pod is lost, cause unknown: a lost node"),
    ],
)
def test_a_page_about_a_failure_says_why_and_how_to_go_on(tmp_path, values, why):
    note = Note(**{"stage": "train", "state": "failed", "facts": Facts(checkpoints=str(tmp_path))} | values)
    lines = page_of(tmp_path, [note]).splitlines()
    assert lines[2].startswith(f"- **Why**: {why}") and lines[3] == "- **Command to go on**: `again`"
    assert lines[4] == "- **Progress**: there is no checkpoint yet, training starts over"
    (tmp_path / "LAST").write_text("step-000000400")
    assert "**Progress**: training goes on from step-000000400 in " in page_of(tmp_path, [note])


def test_the_reason_is_whole_and_first_and_no_line_is_wider_than_kubeflows_panel(tmp_path):
    uri = "gs://my-bucket/" + "a_long_folder/" * 12 + "classes.yaml"
    line = f"must classifier: {uri}: no such file"
    error = Failure("UserError", f"{uri}: no such file")
    failed = Note("classifier", "failed", started=3, code=2, error=error, lines=[line, "See https://a.library"])
    page = page_of(tmp_path, [*done("inputs"), failed]).splitlines()
    assert page[2] == f"- **Why**: {uri}: no such file · wrong input (exit code 2)".replace("_", "\\_")
    assert page[3].startswith("- **First**: correct the input; ") and page[4] == "- **Command to go on**: `again`"
    log = page[page.index("```") + 1 : -1]
    assert max(map(len, log)) <= 66 and line in "".join(log)


@pytest.mark.parametrize("signalled, word", [(0.0, "lost"), (12.0, "stopped")])
def test_no_stage_runs_when_the_run_is_over(tmp_path, signalled, word):
    page = page_of(tmp_path, with_train("running", signalled=signalled))
    assert f"| train | {word} |" in page and "| running |" not in page


@pytest.mark.parametrize("uri", ["gs://b/notes/7/report.html", "/data/notes/7/report.html"])
def test_the_page_names_the_report_and_links_to_it_where_its_store_has_pages(tmp_path, uri):
    page = page_of(tmp_path, done(*TRAINED, "promote", evaluate=MEASURED | {"report": uri}, promote=R0007))
    label = "[Report](https://storage.cloud.google.com/b/notes/7/report.html)" if "gs:" in uri else "Report"
    assert f"- **{label}**: {uri}, or the output report of the stage evaluate\n- **Run**: 7\n" in page


@pytest.mark.parametrize("bucket_server", ["s3"], indirect=True)
def test_without_access_to_the_notes_the_page_says_so(bucket_server, tmp_path, monkeypatch, capfd):
    """A run whose first stage had no credentials for the bucket either."""
    monkeypatch.setenv("MUST_RETRY_AUTH_ERRORS_AT", "")
    monkeypatch.delenv("MUST_RUN_AGAIN", raising=False)
    monkeypatch.setattr("must.base.storage.store.RETRY_TIMEOUT", 0.5)
    work, page = f"{bucket_server.uri}/work", str(tmp_path / "page.md")
    bucket_server.faults.plan = ["403"] * 99
    summarize_run(work, run_id="7", run_summary=page)
    text = (tmp_path / "page.md").read_text()
    assert "Run ended, but" in capfd.readouterr().out
    assert text.startswith(f"# Run ended, but the notes of its stages in {work} cannot be read\n\n- **Why**: ")
    assert "`must-pipeline submit --again 7`" in text
    bucket_server.faults.plan = []
    assert not exists(f"{work}/notes/7/summary.md"), "a copy would only fail again"


def test_a_terminal_gets_the_same_without_markup(tmp_path):
    """No link that leads nowhere from a terminal, aligned columns, and no line cut into pieces."""
    line = "must train: a_registry does not answer (<urlopen error [Errno 111]>; " + "x" * 200 + ")"
    error = Failure("UnreachableError", line.removeprefix("must train: "))
    notes = [*done(*BEFORE), Note("train", "failed", started=9, code=75, error=error, lines=["a line", line])]
    page_of(tmp_path, notes)
    text = summarize(str(tmp_path), "7", "must-pipeline submit --again 7").to_text()
    assert text.startswith("Run failed: train: a dependency failed\n\nWhy: a_registry does not answer (<urlopen error")
    assert f"  a line\n  {line}\n" in text and "Command to go on: must-pipeline submit --again 7\n" in text
    assert "\ntrain       failed  1      " in text and not set("`*|\\") & set(text)


NOTE = {"stage": "train", "state": "done", "started": 1.0}
BYTES = [
    b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b"", b'{"name": "x"}', b'{"stage": "x", "seconds": Infinity}',
    b'{"stage": "x", "started": NaN}',
]  # fmt: skip
ODD = {
    "stage": ["x"], "started": "today", "lines": [1, 2], "tries": [{"code": 1}], "code": None, "facts": {"top1": []},
}  # fmt: skip
FOREIGN = BYTES + [json.dumps(NOTE | {name: value}).encode() for name, value in ODD.items()]


def test_other_files_among_the_notes_do_not_stop_the_summary(tmp_path):
    page_of(tmp_path, done("shard", shard={"result": "12 images"}))
    for name, content in enumerate(FOREIGN):
        (tmp_path / "notes" / "7" / f"{name}.json").write_bytes(content)
    assert [note.stage for note in read_notes(str(tmp_path), "7")] == ["shard"]
    assert "12 images" in summarize(str(tmp_path), "7", "again").to_markdown()


def test_what_a_stage_printed_cannot_steer_whoever_reads_the_page(tmp_path):
    raw = "\x1b[2J\u202e | ```"
    odd = Note(raw.replace("/", ""), "failed", code=1, facts=Facts(result=raw), lines=[raw, "x" * 10**6])
    page_of(tmp_path, [odd])
    summary = summarize(str(tmp_path), "7", "again")
    for page in (summary.to_markdown(), summary.to_text()):
        assert all(line.isprintable() for line in page.split("\n")) and len(page) < 5000
