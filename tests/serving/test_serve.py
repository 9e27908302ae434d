"""`must serve` gives real HTTP clients the answers of `must predict`."""

import asyncio
import base64
import json
import socket
from contextlib import nullcontext
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import must
from must.api.cli import main
from must.base.program import WRONG_INPUT, find_exit_code
from must.config import ServeConfig
from must.data.image.decode import decode
from must.data.image.preprocess import EvalView, normalize_pixels
from must.prediction.onnx_model import KNOWS_NONE, OnnxClassifier
from must.serving.models import ServedModel
from must.serving.serve import listen
from tests.common import ended
from tests.serving.server import ask
from tests.zoo import encoded

INFER = "/v2/models/digits/infer"


@pytest.fixture(scope="module")
def predicted(exported, pictures):
    """[(class, probability), ...] of `must predict` for each picture, all ten classes."""
    found = must.predict(model=str(exported[1]), images=[str(path) for path, _ in pictures], top_k=10, batch_size=1)
    return [prediction.top for prediction in found.predictions]


def same(answer, expected):
    names = [found["class"] for found in answer["predictions"]]
    shown = [found["probability"] for found in answer["predictions"]]
    assert names == [name for name, _ in expected[: len(names)]]
    assert np.allclose(shown, [value for _, value in expected[: len(names)]], atol=2e-6)


def test_a_picture_gets_the_names_that_must_predict_gives(server, exported, pictures, predicted, tmp_path):
    connection = server.connection()
    for (_, data), expected in zip(pictures, predicted, strict=True):
        status, answer = ask(connection, "POST", "/classify?top_k=3", data)
        assert status == 200 and answer["class"] == expected[0][0] and answer["abstained"] is False
        same(answer, expected)
    data = encoded(Image.open(pictures[0][0]).convert("RGB").resize((96, 96)), "JPEG")
    (tmp_path / "photo.jpg").write_bytes(data)
    same(ask(connection, "POST", "/classify", data)[1], must.load(exported[1])(tmp_path / "photo.jpg").top)


@pytest.mark.parametrize("form", ["base64", "data URL", "uint8", "float32"])
def test_every_form_of_input_gives_the_same(server, pictures, exported, predicted, form):
    files, preprocess = [data for _, data in pictures[:4]], OnnxClassifier(exported[1] / "model.onnx").preprocess
    tensor = dict[str, Any](name="image", datatype="BYTES", shape=[4])
    if form in ("base64", "data URL"):
        before = "data:image/png;base64," if form == "data URL" else ""
        tensor["data"] = [before + base64.b64encode(data).decode() for data in files]
    else:
        pixels = np.stack([EvalView(preprocess)(decode(data)) for data in files])
        array = pixels if form == "uint8" else normalize_pixels(pixels, preprocess)
        tensor |= {"datatype": {"uint8": "UINT8", "float32": "FP32"}[form], "shape": list(array.shape)}
        tensor["data"] = array.ravel().tolist() if form == "uint8" else array.tolist()
    body = {"inputs": [tensor], "parameters": {"top_k": 2}, "id": "mine"}
    if form == "uint8":
        body["outputs"] = [{"name": name} for name in ("class", "top_probability", "abstained", "probability")]
    (version,) = server.ask("GET", "/v2/models/digits")[1]["versions"]
    address = INFER if form == "uint8" else f"/v2/models/digits/versions/{version}/infer"
    status, answer = server.ask("POST", address, json.dumps(body))
    assert status == 200 and answer["id"] == "mine" and answer["model_name"] == "digits"
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert outputs["class"]["shape"] == [4, 2] and outputs["abstained"]["data"] == [False] * 4
    assert outputs["class"]["data"] == [name for row in predicted[:4] for name, _ in row[:2]]
    shown = outputs["top_probability"]["data"]
    assert np.allclose(shown, [value for row in predicted[:4] for _, value in row[:2]], atol=2e-6)
    if form == "uint8":
        assert outputs["probability"]["shape"] == [4, 10] and max(outputs["probability"]["data"]) == max(shown)


def test_below_a_threshold_no_class_is_named(server, pictures, predicted):
    for (_, data), expected in zip(pictures[:20], predicted[:20], strict=True):
        _, answer = server.ask("POST", "/classify?abstain=0.9", data)
        unsure = expected[0][1] < 0.9
        assert answer["abstained"] is unsure and (answer["class"] is None) is unsure
        assert answer["predictions"][0]["class"] == expected[0][0]
    assert 0 < sum(row[0][1] < 0.9 for row in predicted[:20]) < 20, "the threshold divides the pictures"


def test_no_client_fills_the_log(server, pictures):
    for abstain in (-1, -1, 0.5):  # the model has no threshold of its own
        status, answer = server.ask("POST", f"/classify?abstain={abstain}", pictures[0][1])
        assert status == 200 and answer["class"]
    assert not server.said("threshold")


def test_what_it_says_of_itself(server):
    assert server.ask("GET", "/v2")[1]["name"] == "must-serve"
    _, described = server.ask("GET", "/v2/models/digits")
    (version,) = described["versions"]
    assert described["parameters"]["classes"][:2] == ["zero", "one"] and described["parameters"]["size"] == 32
    with_version = f"/v2/models/digits/versions/{version}"
    assert server.ask("GET", with_version)[1] == described
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/digits/ready", f"{with_version}/ready"):
        assert server.ask("GET", path)[0] == 200
    for path in ("/v2/models/digits/versions/7", "/v2/models/digits/versions/7/ready"):
        status, answer = server.ask("GET", path)
        assert status == 404 and answer["error"] == f"version 7 is not served; {version} is"
    text = server.ask("GET", "/metrics")[1].decode()
    assert f'must_model_info{{version="{version}"}} 1.0' in text
    assert "must_images_total" in text and "must_images_waiting 0.0" in text


def test_a_port_in_use_is_one_line(server, exported, capfd):
    line = ended(capfd, 2, main, ["serve", "--model", str(exported[1]), "--port", str(server.port)])
    assert "already in use" in line


def test_a_notebook_has_an_event_loop_and_is_told_so_in_one_line(exported):
    async def cell():
        must.serve(model=str(exported[1]), port=0)

    with pytest.raises(ValueError, match="run `must serve` as a program of its own") as error:
        asyncio.run(cell())
    assert find_exit_code(error.value) == WRONG_INPUT


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_answer_in_two_packets_does_not_wait_for_the_clients_acknowledgement(host):
    """A client delays it by 40 ms on a connection that is kept."""
    with listen(host, 0) as listener, socket.create_connection((host, listener.getsockname()[1])):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    ("factor", "says_so", "served"), [(1, False, True), (0.5, False, False), (0.5, True, True), (2, True, False)]
)
def test_probabilities_add_up_to_one_unless_the_file_knows_none(exported, tmp_path, factor, says_so, served):
    model = onnx.load(exported[1] / "model.onnx")
    name, last = model.graph.output[0].name, model.graph.node[-1]
    last.output[:] = ["before" if output == name else output for output in last.output]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["before", "factor"], [name]))
    if says_so:
        model.metadata_props.add(key=KNOWS_NONE, value="true")
    onnx.save(model, tmp_path / "model.onnx")
    made = ServedModel("v", OnnxClassifier(tmp_path / "model.onnx"), ServeConfig(model=str(tmp_path)))
    with nullcontext() if served else pytest.raises(ValueError, match="its probabilities add up to"):
        made.try_out()


def test_a_model_that_takes_no_full_batch_is_not_served(exported, tmp_path):
    model = onnx.load(exported[1] / "model.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, tmp_path / "model.onnx")
    made = ServedModel("v", OnnxClassifier(tmp_path / "model.onnx"), ServeConfig(model=str(tmp_path)))
    with pytest.raises(ValueError, match="a forward pass fails"):
        made.try_out()
