"""What a component reads of Kubeflow, and what it leaves for Kubeflow, as kfp itself reads both."""

import json
import subprocess
import sys

import pytest
from google.protobuf import json_format
from kfp import dsl
from kfp.pipeline_spec import pipeline_spec_pb2

from must.data.format import load_index
from must_components.run import find_local_path, run_component
from tests import zoo

URIS = ["gs://bucket/a/b", "s3://bucket/a/b", "minio://mlpipeline/v2/a", "/data/gs://odd", "relative/place"]


def ask(tmp_path, **values):
    """The input of the stage shard as Kubeflow's launcher gives it, which adds an output of its own: the log."""
    parameters = {"work_uri": str(tmp_path / "work"), "run_id": "7", "source": str(tmp_path / "in"), "append": False}
    parameters |= {"shard_settings": {"samples_per_shard": 4, "workers": 1}}
    artifacts = {"index": ("system.Dataset", tmp_path / "out/index"), "executor-logs": ("system.Artifact", "minio://l")}
    outputs = {
        name: {"artifacts": [{"name": name, "type": {"schemaTitle": kind}, "uri": str(uri), "metadata": {}}]}
        for name, (kind, uri) in artifacts.items()
    }
    files = {"index_sha256": {"outputFile": str(tmp_path / "out/index_sha256")}}
    written = {"parameters": files, "artifacts": outputs, "outputFile": str(tmp_path / "out/deep/output.json")}
    return {"inputs": {"parameterValues": parameters | values}, "outputs": written}


def run(given):
    command = [sys.executable, "-m", "must_components.run", "shard", json.dumps(given)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_component_leaves_what_kubeflow_reads(tmp_path):
    zoo.fill(tmp_path / "in", 20)
    given = ask(tmp_path)
    json_format.ParseDict(given, pipeline_spec_pb2.ExecutorInput())  # refuses a field that there is not
    done = run(given)
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "out/deep/output.json").read_text()
    output = json_format.Parse(written, pipeline_spec_pb2.ExecutorOutput())
    index = load_index(str(tmp_path / "work/shards"))
    assert output.parameter_values["index_sha256"].string_value == index.sha256
    assert {name: one.artifacts[0].uri for name, one in output.artifacts.items()} == {"index": f"{tmp_path}/out/index"}
    assert output.artifacts["index"].artifacts[0].metadata["images"] == 20
    assert (tmp_path / "out/index").read_bytes() == (tmp_path / "work/shards/index.json").read_bytes()


def test_a_stage_that_fails_gives_the_pod_its_exit_code_and_leaves_no_output(tmp_path):
    done = run(ask(tmp_path, labels="wrong"))
    assert done.returncode == 2 and "must shard: " in done.stdout and "Traceback" not in done.stdout
    assert not (tmp_path / "out/deep").exists()


@pytest.mark.parametrize("uri", URIS)
def test_an_artifact_lies_where_kubeflows_launcher_puts_it(uri):
    assert find_local_path(uri) == dsl.Artifact(uri=uri).path


def test_an_output_that_was_not_made_has_an_object_that_says_so(tmp_path):
    """Kubeflow's launcher lists each output that a component declares."""
    (tmp_path / "decision").write_text('{"passed": false, "gate": "none", "reasons": [], "outcome": "stopped"}')
    read = {name: {"artifacts": [{"uri": str(tmp_path / name)}]} for name in ("bundle", "details", "decision")}
    values = {"work_uri": str(tmp_path / "work"), "run_id": "7", "index_sha256": ""}
    onnx = {"artifacts": [{"name": "onnx", "uri": str(tmp_path / "onnx"), "metadata": {}}]}
    given = {"inputs": {"parameterValues": values, "artifacts": read}, "outputs": {"artifacts": {"onnx": onnx}}}
    (made,) = run_component("export", given)["artifacts"]["onnx"]["artifacts"]
    assert (tmp_path / "onnx").read_text() == "not made\n"
    assert made["metadata"] == {"display_name": "no onnx: not made"}
