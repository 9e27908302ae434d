"""Files for servers, checked with the servers' own schemas where these are installed, and a client against a server."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml

from must.config import ExportConfig, PredictConfig
from must.data.image.preprocess import Preprocess
from must.deploy.export.onnx import export
from must.deploy.export.serving import triton_config
from must.deploy.predict.client import Client, parse
from must.deploy.predict.images import predict_images

# Of V1beta1ModelSpec in KServe 0.21's Python models.
MODEL_SPEC = {"modelFormat", "runtime", "protocolVersion", "storageUri", "storage", "resources", "args", "env", "image"}


@pytest.fixture(scope="module", params=["normalized", pytest.param("uint8", marks=pytest.mark.slow)])
def repository(request, digits, exported, tmp_path_factory):
    if request.param == "normalized":
        return exported[1]
    folder = tmp_path_factory.mktemp("serving")
    export(ExportConfig(model=digits.adapted, output=str(folder), input=request.param, triton="hand-digits", images=8))
    return folder


def test_the_repository_is_what_triton_expects(repository):
    inside = {str(path.relative_to(repository)) for path in (repository / "triton").rglob("*") if path.is_file()}
    root = "triton/hand-digits/"
    assert inside == {root + "config.pbtxt", root + "labels.txt", root + "1/model.onnx"}
    served = (repository / root / "1/model.onnx").read_bytes()
    assert served == (repository / "model.onnx").read_bytes()


@pytest.mark.slow
def test_an_export_into_a_used_folder_leaves_nothing_of_the_one_before_and_all_that_is_not_ours(digits, tmp_path):
    def write(**changes):
        export(ExportConfig(model=digits.adapted, output=str(tmp_path), images=8, **changes))

    write(triton="first")
    theirs = {
        "notes.txt": "mine",
        "triton/other/config.pbtxt": 'name: "other"\nbackend: "python"\n',
        "triton/other/1/model.onnx": "a model of another program",
        "triton/first/2/model.onnx": "a version that was put there by hand",
    }
    for name, text in theirs.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    write(triton="second")
    there = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    own = {"model.onnx", "labels.txt", "MODEL_CARD.md", "README.md"}
    second = {f"triton/second/{name}" for name in ("config.pbtxt", "labels.txt", "1/model.onnx")}
    assert there == own | second | {"kserve.yaml"} | theirs.keys()
    (tmp_path / "kserve.yaml").write_text("kind: InferenceService  # of another runtime, written by hand\n")
    write()
    there = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert there == own | {"kserve.yaml"} | theirs.keys() and not (tmp_path / "triton" / "second").exists()
    assert all((tmp_path / name).read_text() == text for name, text in theirs.items())


@pytest.mark.slow
def test_an_export_that_breaks_leaves_no_folder_that_looks_complete(digits, tmp_path, monkeypatch):
    from must.deploy.export import onnx

    def broken(*_):
        raise OSError("the disk is gone")

    config = ExportConfig(model=digits.adapted, output=str(tmp_path), images=8, triton="digits")
    export(config)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="the disk is gone"):
        patch.setattr(onnx, "write_serving", broken)
        export(config)
    assert not (tmp_path / "model.onnx").exists()
    export(config)
    assert (tmp_path / "model.onnx").exists() and (tmp_path / "triton" / "digits" / "config.pbtxt").exists()


def test_config_parses_with_tritons_schema(repository):
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    text_format = pytest.importorskip("google.protobuf.text_format")
    text = (repository / "triton/hand-digits/config.pbtxt").read_text()
    config = text_format.Parse(text, schema.ModelConfig())
    assert config.name == "hand-digits" and config.backend == "onnxruntime" and config.max_batch_size > 1
    assert config.HasField("dynamic_batching")
    session = onnxruntime.InferenceSession(str(repository / "model.onnx"))
    given, wanted = config.input[0], session.get_inputs()[0]
    assert (given.name, list(given.dims)) == (wanted.name, wanted.shape[1:])
    assert (
        schema.DataType.Name(given.data_type)
        == {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}[wanted.type]
    )
    assert (config.output[0].name, list(config.output[0].dims)) == ("probability", [10])
    assert Preprocess.from_dict(json.loads(config.parameters["preprocess"].string_value)).size == 32


def test_strings_are_escaped():
    text = triton_config('a"\n}x', Preprocess(size=8), 3, False)
    assert text.splitlines()[0] == 'name: "a\\"\\n}x"'


def test_manifest_is_an_inference_service(repository):
    manifest = yaml.safe_load((repository / "kserve.yaml").read_text())
    assert manifest["metadata"]["name"] == "hand-digits"
    model = manifest["spec"]["predictor"]["model"]
    assert set(model) <= MODEL_SPEC and set(model["modelFormat"]) <= {"name", "version"}
    assert (model["runtime"], model["protocolVersion"]) == ("kserve-tritonserver", "v2")


def test_names_kubernetes_refuses_are_refused(digits):
    for name in ("Digits", "a_b", "-a", "a" * 64):
        with pytest.raises(ValueError, match="small letters"):
            ExportConfig(model=digits.adapted, output="o", triton=name)


class OneModel(BaseHTTPRequestHandler):
    """The part of Triton's HTTP interface that the client uses, with onnxruntime behind it."""

    folder: Path

    def do_GET(self):
        assert self.path == "/v2/models/hand-digits/config"
        text = (self.folder / "triton/hand-digits/config.pbtxt").read_text()
        quoted = text.split("string_value: ")[1].split(" }\n")[0]
        kind = text.split("data_type: ")[1].split(" ")[0]
        preprocess = {"preprocess": {"string_value": json.loads(quoted)}}
        self.answer({"input": [{"data_type": kind}], "parameters": preprocess})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        length = int(self.headers["Inference-Header-Content-Length"])
        request = json.loads(body[:length])
        tensor = request["inputs"][0]
        kind = {"UINT8": np.uint8, "FP32": np.float32}[tensor["datatype"]]
        inputs = np.frombuffer(body[length:], kind).reshape(tensor["shape"])
        session = onnxruntime.InferenceSession(str(self.folder / "triton/hand-digits/1/model.onnx"))
        labels = (self.folder / "triton/hand-digits/labels.txt").read_text().splitlines()
        top = request["outputs"][0]["parameters"]["classification"]
        data = []
        for row in session.run(None, {tensor["name"]: inputs})[0]:
            data += [f"{row[i]:.6f}:{i}:{labels[i]}" for i in np.argsort(-row)[:top]]
        self.answer({"outputs": [{"name": "probability", "data": data}]})

    def answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def test_the_client_sees_what_predict_sees(repository, digits, tmp_path):
    server = HTTPServer(("127.0.0.1", 0), type("Handler", (OneModel,), {"folder": repository}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        files = sorted((digits.images / "test").rglob("*.png"))[::20]
        found = Client(f"http://127.0.0.1:{server.server_port}", "hand-digits")(files, top=2)
    finally:
        server.shutdown()
        server.server_close()
    output = tmp_path / "found.jsonl"
    predict_images(PredictConfig(model=str(repository), images=[str(f) for f in files], output=str(output), top_k=2))
    expected = [json.loads(line)["predictions"] for line in output.read_text().splitlines()]
    for got, wanted in zip(found, expected, strict=True):
        assert [name for name, _ in got] == [entry["class"] for entry in wanted]
        assert [p for _, p in got] == pytest.approx([entry["probability"] for entry in wanted], abs=1e-5)


def test_a_label_may_hold_colons():
    assert parse("0.75:3:ratio 1:2") == ("ratio 1:2", 0.75)
