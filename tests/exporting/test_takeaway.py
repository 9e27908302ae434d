"""What `must export --to open_clip` writes, open_clip loads with its own code and gives the bundle's logits."""

import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors import safe_open

from must.base import storage
from must.config import ClassifierConfig, ExportConfig
from must.data.augment import normalize
from must.data.image.preprocess import EvalView
from must.exporting.export import export
from must.model.bundle import load_bundle, make_zero_shot_bundle, save_bundle
from must.model.classifier import classifier, load_text_classifier
from must.model.description import Provenance, get_preprocess
from tests.common import one_line, printed
from tests.exporting.conftest import files_up_to
from tests.model.tiny import FAMILIES, SIZE, model_folder
from tests.zoo import put

CLASSES, FACTOR = ["zero", "one", "two", "don't"], 30.0
CHECKED = 1e-4  # of a logit; below 30


class Tiny(NamedTuple):
    bundle: str
    classifier: str
    model: str


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function: a family's bundle with stirred weights, its classifier file and its model folder, made once."""
    root = tmp_path_factory.mktemp("takeaway")
    (root / "classes.yaml").write_text(yaml.safe_dump({"classes": CLASSES, "templates": ["a photo of a {}."]}))

    @cache
    def make(family: str) -> Tiny:
        place = root / family
        given, weights = model_folder(family, place / "model"), str(place / "classifier.safetensors")
        classifier(ClassifierConfig(classes=str(root / "classes.yaml"), model=given, output=weights, device="cpu"))
        bundle = make_zero_shot_bundle(load_text_classifier(weights), logit_factor=str(FACTOR))
        torch.manual_seed(1)
        with torch.no_grad():  # what training does: the tower and the columns are no longer what they came as
            for parameter in bundle.model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        description = replace(bundle.description, provenance=Provenance(processes=1))
        save_bundle(str(place / "bundle"), bundle.model, description)
        return Tiny(str(place / "bundle"), weights, given)

    return make


def exported_folder(tiny: Tiny, output: Path, **more: Any) -> Path:
    export(ExportConfig(model=tiny.bundle, classifier=tiny.classifier, to="open_clip", output=str(output), **more))
    return output


@pytest.mark.parametrize("family", FAMILIES)
def test_open_clip_alone(made, family, tmp_path, record_property):
    tiny = made(family)
    folder, bundle = exported_folder(tiny, tmp_path / "ours"), load_bundle(tiny.bundle)
    rng, preparation = np.random.default_rng(5), get_preprocess(bundle.description)
    pixels = rng.integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    images = normalize(torch.from_numpy(pixels), preparation)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    file = safe_open(folder / "classifier.safetensors", "pt")  # nothing else is needed, as the README says
    assert json.loads(file.metadata()["classes"]) == CLASSES
    tokens = open_clip.get_tokenizer(f"local-dir:{tiny.model}", bpe_path=f"{tiny.model}/bpe.txt.gz")(["a photo"])
    before = open_clip.create_model(f"local-dir:{tiny.model}").eval()
    with torch.no_grad():
        features = F.normalize(model.encode_image(images), dim=-1)
        logits = file.get_tensor("logit_factor") * features @ file.get_tensor("classifier")
        difference = (logits - bundle.model(images)).abs().max().item()
        torch.testing.assert_close(model.encode_text(tokens), before.encode_text(tokens))  # the given text tower
        assert not torch.allclose(model.encode_image(images), before.encode_image(images))
    record_property("largest difference of a logit", difference)
    assert difference < CHECKED
    assert model.logit_scale.exp().item() == pytest.approx(FACTOR), "the trained factor, not the model's own"
    picture = Image.fromarray(rng.integers(0, 256, (60, 47, 3), dtype=np.uint8))
    ours = normalize(torch.from_numpy(EvalView(preparation)(picture).copy()[None]), preparation)
    torch.testing.assert_close(preprocess(picture)[None], ours, atol=1e-6, rtol=0)


def test_one_export_on_top_of_another(made, tmp_path):
    output = tmp_path / "ours"
    put(output, {"notes.txt": b"mine", "vocab.json": b"of another text tower"})
    exported_folder(made("clip"), output)
    alone = exported_folder(made("clip"), tmp_path / "alone")
    assert {path.name for path in output.iterdir()} == {path.name for path in alone.iterdir()} | {"notes.txt"}
    for path in alone.iterdir():
        assert (output / path.name).read_bytes() == path.read_bytes()
        assert path.stat().st_mode & 0o444 == 0o444
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    "size, message", [(10**9, "open_clip computes another network"), (20_000, "{}: the model cannot be written: ")]
)
def test_an_export_that_fails_leaves_what_was_there(made, tmp_path, monkeypatch, size, message):
    """A library that answers otherwise, and a full disk."""
    from must.exporting import export as kind

    tiny, output, features = made("clip"), tmp_path / "ours", kind.open_clip_features
    before = {path.name: path.read_bytes() for path in exported_folder(tiny, output).iterdir()}
    monkeypatch.setattr(kind, "open_clip_features", lambda folder, images: features(folder, images).flip(1))
    with files_up_to(size), pytest.raises(ValueError, match=message.format(tmp_path)):
        exported_folder(tiny, output)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_a_folder_becomes_a_model_with_its_last_file(tmp_path):
    from must.exporting.export import publish

    put(tmp_path, {f"new/{name}": b"new" for name in ("open_clip_config.json", "open_clip_model.safetensors")})
    put(tmp_path, {"ours/open_clip_config.json": b"old", "ours/open_clip_model.safetensors/in": b"the way"})
    with pytest.raises(OSError, match=r"open_clip_model\.safetensors"):
        publish(tmp_path / "new", str(tmp_path / "ours"))
    assert not (tmp_path / "ours" / "open_clip_config.json").exists()


def test_a_folder_that_is_not_loaded_or_another_models_classifier_is_one_line(made, tmp_path):
    from must.exporting.export import open_clip_features

    with pytest.raises(ValueError, match="whose image tower is of another shape"):
        exported_folder(made("clip")._replace(classifier=made("siglip").classifier), tmp_path / "ours")
    with one_line("open_clip does not load what was"):
        open_clip_features(tmp_path, torch.zeros(1, 3, SIZE, SIZE))


def test_to_a_bucket_twice_with_images_to_check_with(digits, tmp_path, bucket_server):
    uri = f"{bucket_server.uri}/ours"
    model = {"model": digits.adapted, "classifier": digits.classifier}
    for _ in range(2):
        result = export(ExportConfig(**model, to="open_clip", output=uri, shards=digits.shards, limit=20))
        assert result["check"]["images"] == 20 and "train of" in result["checked_on"]
    names = {entry.name.rpartition("/")[2] for entry in storage.list_files(uri)}
    assert names >= {"open_clip_config.json", "open_clip_model.safetensors", "classifier.safetensors", "labels.txt"}


@pytest.mark.slow
def test_the_readme_runs_as_it_stands(made, tmp_path):
    folder = exported_folder(made("clip"), tmp_path / "ours")
    Image.fromarray(np.full((50, 40, 3), 90, dtype=np.uint8)).save(tmp_path / "photo.jpg")
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder))
    assert len(code.splitlines()) <= 11
    code += "\nimport sys; assert not [name for name in sys.modules if name.split('.')[0] == 'must']"
    assert printed(sys.executable, "-c", code, cwd=tmp_path).strip() in CLASSES
