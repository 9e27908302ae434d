"""Progress goes to a server as Kubeflow Trainer 2.3 has one: TLS, a token, and a body that it looks at."""

import datetime
import json
import ssl
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from must.evaluation.report.provenance import training_log
from must.method.train import trackers
from must.method.train.trackers import AsyncTracker, Attempt, Trackers, TrainerStatus
from must.method.train.trainer import train
from tests.local_server import Answer, LocalServer
from tests.method.train.test_train import STEPS, config

PATH = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/vision/trainjobs/must-1/status"


def certificate(folder):
    """A key and a certificate of it for localhost, which signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now, number = datetime.datetime.now(datetime.UTC), x509.random_serial_number()
    made = x509.CertificateBuilder(name, name, key.public_key(), number, now, now.replace(year=2099))
    made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "ca.crt").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(pem))
    (folder / "key").write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))


def refusal(headers, path, body):
    """The status that Trainer 2.3 answers with (statusserver/server.go, and the rules of its CRD)."""
    if headers.get("Authorization") != "Bearer secret":
        return 403
    status = body.get("trainerStatus", {})
    known = {"progressPercentage": int, "estimatedRemainingSeconds": int, "metrics": list, "lastUpdatedTime": str}
    good = path == PATH and set(body) == {"trainerStatus"}
    good = good and all(isinstance(status[name], known[name]) for name in status)
    good = good and 0 <= status["progressPercentage"] <= 100 and status.get("estimatedRemainingSeconds", 0) >= 0
    good = good and datetime.datetime.fromisoformat(status["lastUpdatedTime"]).tzinfo is not None
    for metric in status.get("metrics", []):
        good = good and set(metric) == {"name", "value"} and 1 <= len(metric["name"]) <= 64
        good = good and isinstance(metric["value"], str) and 1 <= len(metric["value"]) <= 64
    return 200 if good else 422


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """What it took, in order; `refuse` makes it answer with that status."""

    def answer(request):
        body = json.loads(request.body)
        status = server.refuse or refusal(request.headers, request.path, body)
        server.answers.append(status)
        if status == 200:
            server.took.append(body["trainerStatus"])
        return Answer(status)

    certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ca.crt", tmp_path / "key")
    server: Any = LocalServer(answer)
    server.took, server.answers, server.refuse = [], [], 0
    server.server.socket = context.wrap_socket(server.server.socket, server_side=True)
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", f"https://localhost:{server.server.server_port}{PATH}")
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_CA_CERT", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(tmp_path / "token"))
    monkeypatch.setattr(trackers, "EVERY", 0.0)
    yield server
    server.close()


@pytest.mark.slow
def test_a_run_tells_percent_seconds_left_and_loss_and_ends_with_a_hundred(trainer, digits, tmp_path, caplog):
    train(config(digits, tmp_path / "out", log_every=1))
    assert trainer.answers and set(trainer.answers) == {200} and "cannot report to" not in caplog.text
    percents = [status["progressPercentage"] for status in trainer.took]
    assert percents == sorted(percents) and percents[-1] == 100 and len(set(percents)) >= min(STEPS, 3)
    assert trainer.took[-1]["estimatedRemainingSeconds"] == 0
    last = {one["name"]: float(one["value"]) for one in trainer.took[-1]["metrics"]}
    logged = training_log(str(tmp_path / "out"))[-1]
    assert last["loss"] == pytest.approx(logged["loss"], rel=1e-4) and "confident" in last


@pytest.mark.parametrize("trouble", ["403", "token", "certificate", "away"])
def test_a_trainer_that_does_not_take_it_costs_a_line_and_no_training(
    trainer, digits, tmp_path, caplog, monkeypatch, trouble
):
    if trouble == "403":
        trainer.refuse = 403
    elif trouble == "token":
        (tmp_path / "token").unlink()
    elif trouble == "certificate":
        (tmp_path / "other").mkdir()
        certificate(tmp_path / "other")
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_CA_CERT", str(tmp_path / "other" / "ca.crt"))
    else:
        monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", "https://localhost:9/")
    tracker = AsyncTracker("kubeflow", TrainerStatus(3, 0))
    for step in range(3):
        tracker.log(step, {"loss": 1.0})
    tracker.close(True)
    assert trainer.took == [] and caplog.text.count("cannot report to Kubeflow Trainer") == 1
    assert "training goes on\n" in caplog.text and not tracker.failed  # the next one is tried: a server may come back


def test_a_life_that_goes_on_counts_the_whole_run_and_its_own_speed(trainer):
    status = TrainerStatus(200, 100)
    status.log(149, {"loss": 0.5, "epoch": 1.0})
    (told,) = trainer.took
    assert told["progressPercentage"] == 75 and told["metrics"] == [{"name": "loss", "value": "0.5"}]
    assert 0 <= told["estimatedRemainingSeconds"] < 60


def test_nothing_is_sent_where_the_variables_are_not_all_there(trainer, tmp_path, monkeypatch):
    attempt = Attempt(tmp_path, 0, [], "")
    for name, count in (("", 1), ("KUBEFLOW_TRAINER_SERVER_TOKEN", 0)):
        monkeypatch.delenv(name, raising=False)
        made = Trackers([], attempt, {}, 3)
        made.start({})
        assert len(made.all) == count
