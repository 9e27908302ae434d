"""`must promote --register kubeflow` against a registry as strict as the real one: one version, its metrics and place,
the champion forward and back, and what goes wrong on the way."""

import subprocess
import sys

import pytest

from must.deploy.promote import kubeflow_registry
from tests.deploy.promote.bundles import latest, make_bundle, promote, refused
from tests.model_registry_server import V1ALPHA3, ModelRegistryServer

FLAGS = ["--register", "kubeflow"]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in ("MODEL_REGISTRY_URL", "MODEL_REGISTRY_TOKEN", "KF_PIPELINES_SA_TOKEN_PATH", "MUST_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("must.base.storage.retry.FIRST_PAUSE", 0.01)


@pytest.fixture
def server(monkeypatch):
    server = ModelRegistryServer()
    monkeypatch.setenv("MODEL_REGISTRY_URL", server.uri)
    yield server
    server.stop()


def labelled(server):
    return [row["name"] for row in server.rows["model_versions"] if "champion" in row["customProperties"]]


def champion(server):
    (model,) = server.rows["registered_models"]
    return model["customProperties"]["must.champion"]["string_value"]


def test_a_promoted_model_is_read_back_with_metrics_and_the_place_of_its_files(
    server, registry, tmp_path, made, monkeypatch, capsys
):
    monkeypatch.setenv("MUST_RUN_ID", "run-7")
    bundle = make_bundle(tmp_path / "model", revision=3)
    for _ in range(2):  # a retried pod
        promote(registry, "--model", bundle, *made, *FLAGS, "--champion", "none")
    assert capsys.readouterr().out.count("Kubeflow Model Registry: digits: r0003-") == 2
    (model,), (version,), (artifact,) = server.rows.values()
    properties = {name: value for name, value in version["customProperties"].items() if name != "champion"}
    assert model["name"] == "digits" and champion(server) == version["name"] == latest(registry).version
    assert version["description"] == "# A model card\n" and labelled(server) == [version["name"]]
    assert properties["adapted/top1"] == {"metadataType": "MetadataDoubleValue", "double_value": 0.9}
    assert properties["must.git_revision"]["string_value"] == "abc" and "adapted/broken" not in properties
    place = f"file://{tmp_path}/registry/digits/{latest(registry).version}"
    assert properties["must.uri"]["string_value"] == place and artifact["uri"] == f"{place}/onnx"
    assert artifact["name"] == "digits" and artifact["modelFormatName"] == "onnx" and artifact["state"] == "LIVE"
    assert (artifact["modelSourceKind"], artifact["modelSourceId"]) == ("kfp", "run-7")
    assert [method for method, *_ in server.requests].count("POST") == 3


def test_the_champion_follows_forward_and_back_and_others_properties_stay(server, registry, tmp_path, made, capsys):
    server.page_limit, versions = 1, []  # so that the versions take several pages
    for seed in range(3):
        promote(registry, "--model", make_bundle(tmp_path / str(seed), seed=seed), *made, *FLAGS)
        versions.append(latest(registry).version)
        theirs = {"team": {"metadataType": "MetadataStringValue", "string_value": "vision"}}
        for row in (server.rows["registered_models"][0], server.rows["model_versions"][-1]):
            row["customProperties"] |= theirs
        assert champion(server) == versions[-1] and labelled(server) == [versions[-1]]
    promote(registry, "--rollback", *FLAGS)
    assert latest(registry).version == versions[1] == champion(server) and labelled(server) == [versions[1]]
    assert f"digits: the champion is {versions[1]}\n" in capsys.readouterr().out
    assert all("team" in row["customProperties"] for row in server.rows["model_versions"])
    assert "team" in server.rows["registered_models"][0]["customProperties"]


def test_going_back_to_what_the_registry_does_not_have_leaves_it(server, registry, tmp_path, made, capsys):
    promote(registry, "--model", make_bundle(tmp_path / "0", seed=0))
    promote(registry, "--model", make_bundle(tmp_path / "1", seed=1), *made, *FLAGS)
    there = champion(server)
    promote(registry, "--rollback", *FLAGS)
    assert "is not there, and the champion stays" in capsys.readouterr().out
    assert champion(server) == there != latest(registry).version


def test_a_model_that_is_not_promoted_is_not_registered(server, registry, tmp_path, made, capsys):
    flags = [*made, "--champion", "r0001-of-yesterday", *FLAGS]
    refused(capsys, 73, registry, "--model", make_bundle(tmp_path / "m"), *flags)
    assert not any(server.rows.values())


@pytest.mark.parametrize(
    "url, answer, code, message",
    [
        ("", None, 2, "--register kubeflow: set MODEL_REGISTRY_URL to"),
        ("model-registry:8080", None, 2, "MODEL_REGISTRY_URL is no http(s) address"),
        ("http://[registry", None, 2, "MODEL_REGISTRY_URL is no http(s) address"),
        ("http://me:secret@registry", None, 2, "MODEL_REGISTRY_URL holds a name or password"),
        ("http://127.0.0.1:9", None, 75, "http://127.0.0.1:9 does not answer"),
        (None, 503, 75, "answers 503 to GET registered_models: in trouble"),
        (None, 403, 2, "answers 403"),
        (None, 302, 2, "answers 302"),
        (None, "archived", 2, "digits is archived there"),
        (None, "a catalog", 2, "is no Kubeflow Model Registry"),
    ],
)
def test_what_is_wrong_with_the_server_is_named_and_nothing_is_promoted(
    server, registry, tmp_path, made, monkeypatch, capsys, url, answer, code, message
):
    if url is not None:
        monkeypatch.setenv("MODEL_REGISTRY_URL", url)
    elif answer == "archived":
        server.post(["registered_models"], {}, {"name": "digits", "state": "ARCHIVED"})
    elif answer == "a catalog":
        server.root = "/api/model_catalog/"
    else:
        server.faults = [("GET", "/registered_models", answer)] * kubeflow_registry.TRIES
    line = refused(capsys, code, registry, "--model", make_bundle(tmp_path / "m"), *made, *FLAGS)
    assert message in line and "nothing was promoted" in line and "secret" not in line
    assert not (tmp_path / "registry").exists()


def test_a_token_is_sent_from_the_environment_or_from_a_file(server, registry, tmp_path, made, monkeypatch, capsys):
    server.token = "sesame"
    monkeypatch.setenv("MODEL_REGISTRY_URL", server.uri + "/")
    flags = ["--model", make_bundle(tmp_path / "m"), *made, *FLAGS]
    assert "answers 401" in refused(capsys, 2, registry, *flags)
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
    assert "no token to be read there" in refused(capsys, 2, registry, *flags)
    (tmp_path / "token").write_text("sesame\n")
    promote(registry, *flags)
    monkeypatch.setenv("MODEL_REGISTRY_TOKEN", "another")
    assert "answers 401" in refused(capsys, 2, registry, *flags)


def test_an_older_server_is_spoken_to(server, registry, tmp_path, made):
    server.root = V1ALPHA3
    promote(registry, "--model", make_bundle(tmp_path / "m"), *made, *FLAGS)
    assert champion(server) == latest(registry).version


@pytest.mark.parametrize("path", ["/registered_models", "/model_versions", "/artifacts"])
@pytest.mark.parametrize("fault", [500, "lost"])
def test_what_breaks_half_way_is_completed_by_the_same_again(server, registry, tmp_path, made, capsys, path, fault):
    flags = ["--model", make_bundle(tmp_path / "m"), *made, *FLAGS]
    server.faults = [("POST", path, fault)] * (kubeflow_registry.TRIES if fault == 500 else 1)
    if fault == 500:
        line = refused(capsys, 75, registry, *flags)
        assert line.endswith("is the champion of the registry, but not in Kubeflow's; run the same again")
    promote(registry, *flags)  # a lost answer alone is no reason to stop: the name is there once
    assert [len(rows) for rows in server.rows.values()] == [1, 1, 1]
    assert champion(server) == latest(registry).version and labelled(server) == [latest(registry).version]


def test_another_model_of_the_same_version_name_is_not_taken_for_ours(server, registry, tmp_path, made, capsys):
    server.post(["registered_models"], {}, {"name": "digits"})
    server.post(["model_versions"], {}, {"name": "v1", "registeredModelId": "1"})
    theirs = {"artifactType": "model-artifact", "name": "digits", "uri": "s3://elsewhere"}
    server.post(["model_versions", "2", "artifacts"], {}, theirs)
    flags = ["--model", make_bundle(tmp_path / "m"), *made, *FLAGS, "--version", "v1"]
    line = refused(capsys, 2, registry, *flags)
    assert "version v1 of digits is there already and is another model (s3://elsewhere)" in line
    assert not labelled(server)
    promote(registry, *flags, "--register-name", "Handwritten digits")
    assert labelled(server) == ["v1"]


def test_it_takes_no_torch_and_no_package_of_its_own(server, registry, tmp_path, made):
    arguments = ["promote", "--registry", registry, "--name", "digits", *FLAGS]
    arguments += ["--model", str(make_bundle(tmp_path / "m")), *map(str, made)]
    code = f"import sys; from must.api.cli import main; main({arguments}); "
    code += "sys.exit(bool({'torch', 'aiohttp', 'mlflow', 'kubeflow', 'requests'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert champion(server) == latest(registry).version
