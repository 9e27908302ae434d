"""Embeddings of a served model: only for who asks for them, and the same whichever way."""

import base64
import json

import numpy as np
import pytest

from must.data.image.decode import decode
from must.data.image.preprocess import EvalView
from must.deploy.predict.session import OnnxClassifier
from tests.deploy.serve.server import running

INFER = "/v2/models/digits/infer"
USUAL = ["class", "top_probability", "abstained"]


@pytest.fixture(scope="module")
def embedding_server(embedded):
    with running("--model", embedded, "--name", "digits") as it:
        yield it


@pytest.fixture(scope="module")
def expected(embedded, pictures):
    """Float32 [3, 64], of the first three pictures, by `must predict`'s session."""
    classifier = OnnxClassifier(embedded / "model.onnx")
    view = EvalView(classifier.preprocess)
    return classifier.predict(np.stack([view(decode(data)) for _, data in pictures[:3]]), embeddings=True)[1]


def asked(pictures, *outputs):
    data = [base64.b64encode(data).decode() for _, data in pictures[:3]]
    request = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [3], "data": data}]}
    if outputs:
        request["outputs"] = [{"name": name} for name in outputs]
    return json.dumps(request).encode()


def test_json_has_it_when_it_is_named(embedding_server, pictures, expected):
    status, answer = embedding_server.ask("POST", INFER, asked(pictures, "embedding", "class"))
    assert status == 200 and [output["name"] for output in answer["outputs"]] == ["embedding", "class"]
    found = answer["outputs"][0]
    assert (found["datatype"], found["shape"]) == ("FP32", [3, 64])
    np.testing.assert_allclose(np.array(found["data"]).reshape(3, 64), expected, atol=1e-5)


def test_who_names_no_outputs_gets_the_usual_ones(embedding_server, pictures):
    answer = embedding_server.ask("POST", INFER, asked(pictures))[1]
    assert [output["name"] for output in answer["outputs"]] == USUAL
    assert "embedding" not in embedding_server.ask("POST", "/classify", pictures[0][1])[1]


def test_classify(embedding_server, pictures, expected):
    status, answer = embedding_server.ask("POST", "/classify?embedding=1&top_k=1", pictures[0][1])
    assert status == 200 and len(answer["predictions"]) == 1
    np.testing.assert_allclose(answer["embedding"], expected[0], atol=1e-5)


def test_what_it_says_of_the_model(embedding_server, server):
    outputs = embedding_server.ask("GET", "/v2/models/digits")[1]["outputs"]
    assert outputs[-1] == {"name": "embedding", "datatype": "FP32", "shape": [-1, 64]}
    assert "embedding" not in [tensor["name"] for tensor in server.ask("GET", "/v2/models/digits")[1]["outputs"]]


def test_a_model_without_is_refused_before_a_picture_is_read(server, pictures):
    body = asked(pictures, "embedding").replace(b'"data": ["', b'"data": ["AAAA')  # no picture any more
    for path, data in ((INFER, body), ("/classify?embedding=1", b"no picture")):
        status, answer = server.ask("POST", path, data)
        assert status == 400 and answer["error"].startswith("this model gives no embeddings; export it again")
