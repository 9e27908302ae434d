"""Curves on TensorBoard and a real MLflow server: every step once, whatever happens."""

import signal
import threading

import pytest

from must.config import defaults
from must.evaluation.report.provenance import training_log
from must.method.train import trackers
from must.method.train.trackers import AsyncTracker, reason
from must.method.train.trainer import train
from tests.method.train.lives import training
from tests.method.train.test_train import SETTINGS, STEPS, run, start_and_stop
from tests.mlflow_server import MlflowServer

LOGGED = list(range(1, STEPS, 2))  # steps from 0, a line every second one


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def config(digits, output, *names, **changes):
    return training(digits, output, **{**SETTINGS, "trackers": list(names), **changes})


def test_no_tracker_is_no_file(digits, tmp_path):
    train(config(digits, tmp_path, epochs=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoints", "model.json", "model.safetensors", "train_log.jsonl",
    ]  # fmt: skip


class Fragile:
    """Fails, or never returns, at its second point."""

    run_id = ""

    def __init__(self, patience=None):
        self.seen, self.patience, self.closed = [], patience, False

    def log(self, step, values):
        self.seen.append(step)
        if len(self.seen) == 2:
            if self.patience is None:
                raise ConnectionError("the server\nis gone")
            self.patience.wait()

    def close(self, finished):
        self.closed = True


def test_a_tracker_that_fails_warns_once(capsys):
    tracker = Fragile()
    sender = AsyncTracker("mlflow", tracker)
    for step in range(100):
        sender.log(step, {})
    sender.close(True)
    warning = "warning: --trackers mlflow: the server is gone; training goes on without it\n"
    assert capsys.readouterr().err == warning and tracker.seen == [0, 1] and not tracker.closed


def test_a_password_in_an_address_is_not_told():
    error = ConnectionError("POST\nhttp://me:secret@host:5000/api failed; see https://host/me@here")
    assert reason(error) == "POST http://***@host:5000/api failed; see https://host/me@here"


@pytest.mark.parametrize("finished, name", [(True, "FLUSH_TIMEOUT"), (False, "LAST_LINES_TIMEOUT")])
def test_a_tracker_that_hangs_is_left_behind(capsys, monkeypatch, finished, name):
    monkeypatch.setattr(trackers, name, 0.1)
    patience = threading.Event()
    sender = AsyncTracker("mlflow", Fragile(patience))
    for step in range(100):
        sender.log(step, {})
    sender.close(finished)
    assert "timed out with values unsent (0 s); training goes on" in capsys.readouterr().err
    patience.set()


@pytest.mark.parametrize(
    "names, message",
    [
        ("mlfow", "--trackers must be one of tensorboard, mlflow (got 'mlfow')"),
        ("mlflow", "--trackers mlflow: set MLFLOW_TRACKING_URI to the server's address"),
    ],
)
def test_wrong_trackers_are_one_line(digits, tmp_path, refusal, names, message):
    flags = {"shards": digits.shards, "classifier": digits.classifier, "output": str(tmp_path / "m")}
    assert message in refusal("train", {**flags, "preset": "digits", "trackers": names})
    assert not (tmp_path / "m" / "model.json").exists()


def test_a_missing_package_is_one_line_with_its_command(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(defaults, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^--trackers mlflow: .* pip install 'must-clip\[mlflow\]'$"):
        train(config(digits, tmp_path, "mlflow"))


@pytest.mark.slow
def test_an_address_without_a_server_is_one_line_and_a_run_that_goes_on_does_without(
    digits, tmp_path, monkeypatch, capfd
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ValueError, match=r"^--trackers mlflow: .*127.0.0.1.*$") as error:
        train(config(digits, tmp_path / "new", "mlflow"))
    assert "\n" not in str(error.value)
    code, _ = start_and_stop(digits, tmp_path / "run", signal.SIGTERM)
    assert code == 75
    assert train(config(digits, tmp_path / "run", "mlflow")).steps == STEPS
    (warning,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: --trackers")]
    assert warning.startswith("warning: --trackers mlflow: ") and warning.endswith("training goes on without it")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = MlflowServer(tmp_path_factory.mktemp("mlflow")).start()
    yield server
    server.stop()


@pytest.fixture
def client(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    return server.client


def losses(client, run_id):
    return [(point.step, point.value) for point in client.get_metric_history(run_id, "train/loss")]


def only_run(client, experiment):
    (made,) = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return made


@pytest.mark.slow
def test_a_killed_run_goes_on_as_the_same(client, digits, tmp_path, monkeypatch):
    """Killed some steps after a checkpoint."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "digits")
    output, names = tmp_path / "run", "mlflow,tensorboard"
    code, text = start_and_stop(digits, output, signal.SIGKILL, trackers=names)
    assert code == -signal.SIGKILL, text
    code, text = run(digits, output, trackers=names)
    assert code == 0 and "going on after step" in text, text
    made = only_run(client, "digits")
    assert made.info.status == "FINISHED" and made.data.params["batch_size"] == "25"
    found = losses(client, made.info.run_id)
    assert [step for step, _ in found] == LOGGED
    assert found == [(line["step"], pytest.approx(line["loss"])) for line in training_log(str(output))]
    events = EventAccumulator(str(output / "tensorboard")).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [(n, pytest.approx(v, rel=1e-6)) for n, v in found]


@pytest.mark.slow
def test_the_pipelines_run_is_taken_and_left_open(client, digits, tmp_path, monkeypatch):
    run_id = client.create_run("0").info.run_id
    before = len(client.search_runs(["0"]))
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    train(config(digits, tmp_path / "a", "mlflow", epochs=1))
    train(config(digits, tmp_path / "b", "mlflow", epochs=1))  # a retry that found no checkpoint
    assert len(client.search_runs(["0"])) == before and client.get_run(run_id).info.status == "RUNNING"
    assert [step for step, _ in losses(client, run_id)] == [1, 3, 5]


@pytest.mark.slow
def test_a_run_that_was_deleted_begins_anew_with_all_its_steps(client, digits, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "anew")
    code, text = start_and_stop(digits, tmp_path / "run", signal.SIGTERM, trackers="tensorboard")
    assert code == 75, text
    train(config(digits, tmp_path / "run", "mlflow"))
    made = only_run(client, "anew")
    assert [step for step, _ in losses(client, made.info.run_id)] == LOGGED
