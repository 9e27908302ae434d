"""A registry of models that can be told apart: version N's class names begin with N."""

from must.api.demo import CLASSES
from must.base import storage
from must.registry.promote import Registry
from tests.prediction.test_foreign import edited

NAME = "digits"


def add_version(registry, exported, version, folder, spoil=b"", weights=b""):
    """Puts a version with its ONNX file into the registry; `spoil`: bytes that its file has instead of the model;
    `weights`: of its bundle, if it has one."""
    classes = [f"{version}-{name}" for name in CLASSES]
    path = edited(folder / f"{version}.onnx", exported[1] / "model.onnx", classes=classes)
    place = Registry(str(registry), NAME)
    files = {"onnx/model.onnx": str(path)}
    if weights:
        (folder / "weights").write_bytes(weights)
        files["bundle/model.safetensors"] = str(folder / "weights")
    place.add(version, files, {})
    if spoil:
        storage.write_bytes(place.make_uri(version, "onnx", "model.onnx"), spoil)


def promote(registry, version):
    Registry(str(registry), NAME).set_champion(version, "promoted")
