"""The model folder beside a classifier: whole, shared, found wherever it goes, and all that later stages read."""

import shutil
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from must.api.demo import find_assets
from must.api.run import configure, preflight
from must.model.backbone import load_backbone
from must.model.bundle import make_zero_shot_bundle
from must.model.classifier import load_text_classifier, read_header
from tests.exporting.conftest import files_up_to
from tests.model.tiny import FAMILIES, SIZE, make_classifier, model_folder
from tests.training.lives import same


def logits(bundle):
    pixels = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return bundle.model(pixels)


@pytest.mark.parametrize("family", FAMILIES)
def test_open_clip_alone_loads_the_folder_as_the_same_model(family, tmp_path):
    given = model_folder(family, tmp_path / "given")
    made = make_classifier(tmp_path / "w", given)
    ours = load_backbone(given)
    theirs, *_ = open_clip.create_model_and_transforms(f"local-dir:{made.model_folder}")
    assert same(ours.clip.state_dict(), theirs.state_dict())
    assert theirs.visual.preprocess_cfg == ours.clip.visual.preprocess_cfg
    pixels = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval().encode_image(pixels), ours.clip.encode_image(pixels))
    words = open_clip.get_tokenizer(f"local-dir:{made.model_folder}", bpe_path=f"{made.model_folder}/bpe.txt.gz")
    assert torch.equal(words(["a cat"]), ours.tokenizer(["a cat"]))
    kept = load_backbone(made.model_folder)
    assert (kept.architecture, kept.preprocess) == (ours.architecture, ours.preprocess)


def test_what_begins_at_random_does_not_depend_on_where_the_model_is_read(tmp_path):
    """Mask token and decoder are drawn after the model is made: a run with a seed is what it was with the name."""
    made = make_classifier(tmp_path / "w")
    networks = []
    for one in (made, replace(made, model_folder="")):
        torch.manual_seed(0)
        networks.append(make_zero_shot_bundle(one).model.state_dict())
    assert same(*networks)


def test_classifiers_of_one_model_share_a_folder_and_of_another_do_not(tmp_path):
    first = make_classifier(tmp_path / "w")
    weights = Path(first.model_folder) / "open_clip_model.safetensors"
    written = weights.stat().st_mtime_ns
    second = make_classifier(tmp_path / "w", output=str(tmp_path / "w/d.safetensors"))
    assert second.model_folder == first.model_folder and weights.stat().st_mtime_ns == written
    make_classifier(tmp_path / "w", model_folder("clip", tmp_path / "assets"))
    assert len(list((tmp_path / "w" / "models").iterdir())) == 2
    assert weights.stat().st_mode == weights.with_name("open_clip_config.json").stat().st_mode  # other users' pods read
    expected = weights.read_bytes()
    weights.write_bytes(expected[:-1] + bytes([expected[-1] ^ 1]))
    make_classifier(tmp_path / "w")
    assert weights.read_bytes() == expected  # what is damaged is written anew


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    with files_up_to(100_000), pytest.raises(ValueError, match=r"models: the model cannot be written: .*"):
        make_classifier(tmp_path / "w")
    assert [path.name for path in (tmp_path / "w").rglob("*") if path.is_file()] == []


def test_half_precision_is_kept_where_it_loses_nothing_and_only_there(tmp_path):
    given = Path(model_folder("clip", tmp_path / "given")) / "open_clip_model.safetensors"
    make_classifier(tmp_path / "w", str(given.parent))
    full = sum(path.stat().st_size for path in (tmp_path / "w").rglob("open_clip_model.safetensors"))
    save_file({name: value.half() for name, value in load_file(given).items()}, given)
    made = make_classifier(tmp_path / "half", str(given.parent))
    assert (Path(made.model_folder) / given.name).stat().st_size < 0.6 * full
    ours, kept = load_backbone(str(given.parent)), load_backbone(made.model_folder)
    assert same(ours.clip.state_dict(), kept.clip.state_dict())


def test_a_classifier_made_with_a_relative_path_works_in_another_folder(tmp_path, monkeypatch):
    shutil.copytree(find_assets(), tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    made = make_classifier(Path("w"), "model", model_store="w/other")
    expected = logits(make_zero_shot_bundle(made))
    shutil.rmtree("model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    torch.testing.assert_close(logits(make_zero_shot_bundle(load_text_classifier("../w/c.safetensors"))), expected)


def test_the_folder_is_found_beside_a_file_that_moved_else_where_it_was(tmp_path):
    made, output = make_classifier(tmp_path / "w"), str(tmp_path / "w/c.safetensors")
    shutil.copy(output, tmp_path / "alone.safetensors")
    assert load_text_classifier(str(tmp_path / "alone.safetensors")).model_folder == made.model_folder
    (tmp_path / "w").rename(tmp_path / "moved")
    moved = str(tmp_path / "moved" / "c.safetensors")
    assert read_header(moved).model_folder == str(tmp_path / "moved/models" / Path(made.model_folder).name)
    assert logits(make_zero_shot_bundle(load_text_classifier(moved))).shape == (3, 2)
    lonely = load_text_classifier(str(tmp_path / "alone.safetensors"))
    with pytest.raises(ValueError, match=r"the classifier's model is not there, nor in the folder models beside"):
        make_zero_shot_bundle(lonely)


@pytest.mark.parametrize("damage", ["cut", "other numbers", "gone"])
def test_damaged_weights_are_refused(tmp_path, damage):
    made, output = make_classifier(tmp_path / "w"), str(tmp_path / "w/c.safetensors")
    weights = Path(made.model_folder) / "open_clip_model.safetensors"
    if damage == "gone":
        weights.unlink()
    else:
        data = weights.read_bytes()
        weights.write_bytes(data[:-100] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"open_clip_model.safetensors: is missing, damaged or of another model"):
        make_zero_shot_bundle(load_text_classifier(output))


def test_in_a_bucket(bucket_server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    work = f"{bucket_server.uri}/work"
    made = make_classifier(tmp_path / "w", model_store=f"{work}/models")
    assert made.model_folder.startswith(f"{work}/models/assets-") and not (tmp_path / "w/models").exists()
    again = make_classifier(tmp_path / "w", made.model_folder, output=f"{work}/c.safetensors")
    assert again.model_folder == made.model_folder
    expected = logits(make_zero_shot_bundle(made))
    for file in (str(tmp_path / "w/c.safetensors"), f"{work}/c.safetensors"):
        torch.testing.assert_close(logits(make_zero_shot_bundle(load_text_classifier(file))), expected)


def test_no_stage_begins_without_the_model(digits, tmp_path):
    made, output = make_classifier(tmp_path / "w"), str(tmp_path / "w/c.safetensors")
    shutil.rmtree(made.model_folder)
    places = {"shards": digits.shards, "output": str(tmp_path / "out")}
    for stage, values in {
        "train": {"classifier": output, "preset": "digits"},
        "evaluate": {"model": digits.zero_shot, "baseline": output},
        "refine": {"classifier": output, "model": str(tmp_path / "model")},
    }.items():
        with pytest.raises(ValueError, match="the classifier's model is not there"):
            preflight(configure(stage, {**places, **values}))
