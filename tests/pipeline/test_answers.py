"""A run that is left to people: it waits, is answered, goes on and promotes; here, and asked of Kubeflow."""

import json

import pytest
import yaml

from must.deploy.promote.registry import Registry
from tests.pipeline.local import Run, small_demo
from tests.runtime.test_answers import lines_of_answers


@pytest.mark.slow
def test_a_run_waits_is_answered_and_promotes(tmp_path, server, must_pipeline, capsys):
    """Asked again before it is answered it has nothing new: tests/runtime/test_champion.py."""

    def answering(*words, command="answer"):
        """(exit code, what was printed) of must-pipeline answer, or of another command."""
        capsys.readouterr()
        code = must_pipeline(command, *words, "--host", server.url, "--cluster", tmp_path / "cluster.yaml")
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    (tmp_path / "cluster.yaml").write_text("namespace: vision")
    parameters = small_demo(tmp_path / "demo")
    parameters |= {"gate": "reviewed", "gate_settings": {}, "only_new": True, "epochs": 4}
    parameters |= {"source": parameters["test_source"], "test_source": "", "evaluate_split": "train"}  # with labels
    work = tmp_path / "work"
    first = Run(parameters, work, "--verbose")
    assert first.code == 0 and first.stages[-2:] == ["review", "summary"], first.log + first.error
    page = first.artifacts["run_summary"].read_text()
    assert page.startswith("# Waiting for answers about ") and f"`must-pipeline answer {work} answers.jsonl`" in page
    assert "waits for answers" in first.log and not Registry(str(work / "registry"), "digits").latest().version
    (place,) = (work / "reviews").iterdir()
    assert (place / "review.html").read_bytes() == (first.artifacts["questions"] / "review.html").read_bytes()

    (file := tmp_path / "answers.jsonl").write_text("".join(lines := list(lines_of_answers(place))))
    (few := tmp_path / "few.jsonl").write_text("".join(lines[:3]))
    code, said = answering(work, few)
    assert code == 0 and said.count("\n") == 2 and "3 answers: zero-shot " in said and not server.stored["runs"]

    values = {**parameters, "work_uri": str(work)}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    assert answering("--parameters", tmp_path / "run.yaml", "--name", "must 1", command="submit")[0] == 0
    (run,) = server.stored["runs"].values()
    run_id, run["state"] = run["run_id"], "SUCCEEDED"
    notes = next(path for path in (work / "notes").iterdir() if (path / "review.json").exists())
    notes.rename(notes.with_name(run_id))  # as if that had been the run
    (other := tmp_path / "other.jsonl").write_text(json.dumps({"sha256": "0" * 64, "label": "one"}) + "\n")
    (unknown := tmp_path / "unknown.jsonl").write_text(few.read_text().replace('"label": "', '"label": "un'))
    for wrong, why in (
        (other, "none of its 1 answers"),
        (unknown, "is none of the model's classes"),
        ("no", "no such"),
    ):
        code, said = answering(run_id, wrong)
        assert code == 2 and why in said and len(said.splitlines()) == 1
    assert answering("must 2", file) == (2, "must-pipeline answer: run must 2: there is none of that id or name\n")
    code, said = answering(f"{server.url}/#/runs/details/{run_id}", file)
    assert code == 0 and f"{len(lines)} answers: zero-shot " in said
    again = next(run for run in server.stored["runs"].values() if run["run_id"] != run_id)
    assert again["runtime_config"]["parameters"] == values and f"run {again['run_id']} started" in said
    assert answering(work, file)[1].count("\n") == 2  # the same once more changes nothing, and asks no server
    assert len((place / "answers.jsonl").read_text().splitlines()) == len(lines)

    second = Run(parameters, work, "--verbose")  # what that run does
    assert second.code == 0 and "promote" in second.stages and "review" not in second.stages, second.log + second.error
    assert second.artifacts["run_summary"].read_text().startswith("# Promoted r0000-")
    assert f"{len(lines)} answers: zero-shot " in second.artifacts["reasons"].read_text()
    assert Registry(str(work / "registry"), "digits").latest().version
