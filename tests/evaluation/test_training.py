"""What evaluation takes from the training log that travels in the bundle."""

import json

import pytest

from must.evaluation.report.provenance import stability, training_log


def write(folder, lines):
    (folder / "train_log.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return str(folder)


def test_the_last_tenth_of_the_steps_counts(tmp_path):
    lines = [{"step": step, "stability": 0.5 if step < 90 else 0.9, "agreement": 0.7} for step in range(9, 100, 10)]
    found = stability(training_log(write(tmp_path, lines)))
    assert found == {"stability": pytest.approx(0.9), "agreement": pytest.approx(0.7), "log_lines": 1}


def test_no_log_and_a_log_of_an_earlier_version(tmp_path):
    assert stability(training_log(str(tmp_path))) is None
    assert stability(training_log(write(tmp_path, [{"step": 9, "agreement": 0.7}]))) is None


def test_lines_that_are_no_lines_are_left_out(tmp_path):
    write(
        tmp_path, [{"step": 9, "stability": 0.8, "agreement": 0.7}, [1], "text", {"stability": 0.1}, {"step": 10**400}]
    )
    with (tmp_path / "train_log.jsonl").open("a") as file:
        file.write('\n{"step": 19, "stab')
    assert stability(training_log(str(tmp_path)))["stability"] == pytest.approx(0.8)
