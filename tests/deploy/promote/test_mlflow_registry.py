"""`must promote --register mlflow` against a real server: a version with its files, once, and the alias."""

import pytest

from must.config import defaults
from tests.deploy.promote.bundles import latest, make_bundle, promote, refused
from tests.mlflow_server import MlflowServer


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--register", "mlfow"], "--register must be one of"),
        (["--register", "mlflow"], "--register mlflow: goes with --onnx"),
        (["--register-name", "x"], "--register-name goes with --register"),
        (["--register", "mlflow", "--onnx", "o", "--register-name", "a/b"], "use letters, digits,"),
        (["--register", "mlflow", "--onnx", "o"], "--onnx o: no model.onnx there"),
    ],
)
def test_what_is_wrong_is_named(registry, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, 2, registry, "--model", make_bundle(tmp_path / "model"), *flags)
    assert not (tmp_path / "registry").exists()


@pytest.mark.slow
def test_without_package_server_or_address_nothing_is_promoted(registry, tmp_path, made, monkeypatch, capsys):
    flags = ["--model", make_bundle(tmp_path / "model"), *made, "--register", "mlflow"]
    assert "--register mlflow: set MLFLOW_TRACKING_URI" in refused(capsys, 2, registry, *flags)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert refused(capsys, 75, registry, *flags).endswith("; nothing was promoted")
    monkeypatch.setattr(defaults, "find_spec", lambda name: None)
    assert refused(capsys, 2, registry, *flags).endswith("pip install 'must-clip[mlflow]'")
    assert not (tmp_path / "registry").exists()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = MlflowServer(tmp_path_factory.mktemp("mlflow")).start()
    yield server
    server.stop()


@pytest.mark.slow
class TestServer:
    @pytest.fixture(autouse=True)
    def address(self, server, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)

    def test_a_version_has_files_metrics_and_the_alias_and_is_made_once(self, server, registry, tmp_path, made, capsys):
        import mlflow

        bundle, flags = make_bundle(tmp_path / "model", revision=3), [*made, "--register", "mlflow"]
        for _ in range(2):  # a retried pod
            promote(registry, "--model", bundle, *flags, "--champion", "none")
        assert capsys.readouterr().out.count("(version 1 there) is there, and the champion") == 2
        (version,) = server.client.search_model_versions("name = 'digits'")
        champion = server.client.get_model_version_by_alias("digits", "champion")
        assert champion.version == version.version and champion.description == "# A model card\n"
        assert champion.tags["must.version"] == latest(registry).version and champion.tags["must.git_revision"] == "abc"
        run = server.client.get_run(version.run_id)
        metrics = run.data.metrics
        assert (metrics["adapted/top1"], metrics["baseline/top1"], run.info.status) == (0.9, 0.7, "FINISHED")
        files = {file.path for file in server.client.list_artifacts(version.run_id, "model")}
        assert files == {f"model/{name}" for name in ("MLmodel", "MODEL_CARD.md", "labels.txt", "model.onnx")}
        mlflow.set_tracking_uri(server.uri)
        assert mlflow.onnx.load_model("models:/digits@champion").graph.node[0].op_type == "ReduceMean"

    def test_the_alias_follows_the_champion_forward_and_back(self, server, registry, tmp_path, made, capsys):
        flags, versions = ["--register", "mlflow", "--register-name", "Handwritten digits"], []
        for seed in range(2):
            promote(registry, "--model", make_bundle(tmp_path / str(seed), seed=seed), *made, *flags)
            versions.append(server.client.get_model_version_by_alias("Handwritten digits", "champion"))
            assert versions[-1].tags["must.version"] == latest(registry).version
        promote(registry, "--rollback", *flags)
        back = server.client.get_model_version_by_alias("Handwritten digits", "champion")
        assert back.version == versions[0].version and back.tags["must.version"] == latest(registry).version
        message = f"Handwritten digits: the champion is {latest(registry).version} (version 1 there)"
        assert message in capsys.readouterr().out

    @pytest.mark.parametrize("broken", ["log_artifacts", "create_model_version"])
    def test_what_breaks_half_way_leaves_no_version_and_the_same_again_completes_it(
        self, server, registry, tmp_path, made, monkeypatch, capsys, broken
    ):
        from mlflow import MlflowClient

        name, bundle = f"broken-{broken.replace('_', '-')}", make_bundle(tmp_path / "model")
        flags, runs = ["--model", bundle, *made, "--register", "mlflow"], len(server.client.search_runs(["0"]))

        def lost(*_, **__):
            raise ConnectionError("the network\nis gone")

        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, broken, lost)
            line = refused(capsys, 75, registry, *flags, name=name)
        assert "the network is gone; " in line and line.endswith("but not in MLflow; run the same again")
        assert not server.client.search_registered_models(f"name = '{name}'")
        assert len(server.client.search_runs(["0"])) == runs  # the one that was begun is deleted
        promote(registry, *flags, name=name)
        assert server.client.get_model_version_by_alias(name, "champion").version == "1"

    def test_an_answer_that_got_lost_leaves_the_version(self, server, registry, tmp_path, made, monkeypatch, capsys):
        from mlflow import MlflowClient

        flags = ["--model", make_bundle(tmp_path / "model"), *made, "--register", "mlflow"]
        real = MlflowClient.create_model_version

        def lost(client, *values, **named):
            real(client, *values, **named)
            raise ConnectionError("the answer got lost")

        with monkeypatch.context() as patch, pytest.raises(SystemExit, match="75"):
            patch.setattr(MlflowClient, "create_model_version", lost)
            promote(registry, *flags, name="lost")
        promote(registry, *flags, name="lost")
        (version,) = server.client.search_model_versions("name = 'lost'")
        assert server.client.get_model_version_by_alias("lost", "champion").version == version.version
        assert server.client.get_run(version.run_id).info.lifecycle_stage == "active"
