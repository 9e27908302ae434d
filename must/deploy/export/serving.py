"""What a server needs around model.onnx: a Triton model repository and a KServe InferenceService that serves it.

OUTPUT/triton/NAME/config.pbtxt
OUTPUT/triton/NAME/labels.txt
OUTPUT/triton/NAME/1/model.onnx
OUTPUT/kserve.yaml
"""

import json
import re
from contextlib import suppress
from pathlib import Path

import yaml

from must.base import storage
from must.base.files import ONNX_FILE
from must.data.image.preprocess import Preprocess
from must.deploy.predict.session import EMBEDDING, LABELS_FILE

MAX_BATCH = 64
QUEUE_DELAY = 2000  # microseconds that a request may wait for others to fill its batch
PLACEHOLDER = "gs://BUCKET/PATH/triton"
CONFIG_FILE, MANIFEST_FILE = "config.pbtxt", "kserve.yaml"
RUNTIME = "kserve-tritonserver"


def write_serving(
    output: str, name: str, model: Path, labels: bytes, preprocess: Preprocess, uint8: bool, dimensions: int = 0
) -> None:
    """Writes the repository and the manifest; config.pbtxt, which makes the repository complete, last."""
    folder = storage.join(output, "triton", name)
    storage.upload(model, storage.join(folder, "1", ONNX_FILE))
    storage.write_bytes(storage.join(folder, LABELS_FILE), labels)
    config = triton_config(name, preprocess, len(labels.splitlines()), uint8, dimensions)
    storage.write_bytes(storage.join(folder, CONFIG_FILE), config.encode())
    uri = storage.join(output, "triton") if storage.is_remote(output) else PLACEHOLDER
    storage.write_bytes(storage.join(output, MANIFEST_FILE), kserve_manifest(name, uri).encode())


def clear_serving(output: str) -> None:
    """Takes away what earlier exports wrote for servers, under any name. Ours are told by what is in them: other files
    stay, also other models of a Triton repository.
    """
    for name in repositories(output):
        folder = storage.join(output, "triton", name)
        for file in (f"1/{ONNX_FILE}", LABELS_FILE, CONFIG_FILE):  # last what tells that it is ours
            storage.delete(storage.join(folder, file))
        if not storage.is_remote(output):
            for empty in (storage.join(folder, "1"), folder, storage.join(output, "triton")):
                with suppress(OSError):  # it is not
                    storage.local(empty).rmdir()
    manifest = storage.join(output, MANIFEST_FILE)
    if storage.exists(manifest) and RUNTIME.encode() in storage.read_bytes(manifest):
        storage.delete(manifest)


def repositories(output: str) -> list[str]:
    """The names of the models of a Triton repository that an export wrote."""
    root = storage.join(output, "triton")
    try:
        files = [entry.name for entry in storage.list_files(root)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    configs = [file for file in files if re.fullmatch(rf"[a-z][-a-z0-9]*/{CONFIG_FILE}", file)]
    contents = {file.split("/")[0]: storage.read_bytes(storage.join(root, file)) for file in configs}
    ours = (b'backend: "onnxruntime"', b'key: "preprocess"')
    return [name for name, config in contents.items() if all(part in config for part in ours)]


def triton_config(name: str, preprocess: Preprocess, classes: int, uint8: bool, dimensions: int = 0) -> str:
    """Triton's ModelConfig as protobuf text. The preprocessing travels as a parameter, for clients to read.

    `dimensions`: of the embeddings, if the graph gives them.
    """
    size = preprocess.size
    kind, shape = ("TYPE_UINT8", f"{size}, {size}, 3") if uint8 else ("TYPE_FP32", f"3, {size}, {size}")
    more = f',\n  {{ name: "{EMBEDDING}" data_type: TYPE_FP32 dims: [ {dimensions} ] }}' if dimensions else ""
    return f"""\
name: {quoted(name)}
backend: "onnxruntime"
max_batch_size: {MAX_BATCH}
input [
  {{ name: "image" data_type: {kind} dims: [ {shape} ] }}
]
output [
  {{ name: "probability" data_type: TYPE_FP32 dims: [ {classes} ] label_filename: "{LABELS_FILE}" }}{more}
]
dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_DELAY} }}
parameters {{
  key: "preprocess"
  value: {{ string_value: {quoted(json.dumps(preprocess.to_dict()))} }}
}}
"""


def kserve_manifest(name: str, storage_uri: str) -> str:
    """An InferenceService for KServe's Triton runtime, speaking the open inference protocol (v2)."""
    manifest = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {
            "predictor": {
                "model": {
                    "modelFormat": {"name": "triton", "version": "2"},
                    "runtime": RUNTIME,
                    "protocolVersion": "v2",
                    "storageUri": storage_uri,
                    "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"cpu": "4", "memory": "4Gi"}},
                }
            }
        },
    }
    note = "# storageUri is the folder triton/ where the cluster can read it\n" if storage_uri == PLACEHOLDER else ""
    return note + yaml.safe_dump(manifest, sort_keys=False)


def quoted(text: str) -> str:
    """A protobuf text string: JSON's escapes are a subset of its own for ASCII."""
    return json.dumps(text, ensure_ascii=True)
