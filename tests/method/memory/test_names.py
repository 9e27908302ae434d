"""Names that do not fit the images, on spoilt class lists of the bundled digits."""

from pathlib import Path

import pytest
import torch
import yaml

from must.api.demo import CLASSES, TEMPLATES, asset_folder
from must.config import ClassifierConfig, RefineConfig
from must.method.memory.names import find_groups, find_pairs
from must.method.memory.refine import refine
from must.method.model.classifier import classifier
from must.method.model.vectors import nearest
from tests.method.memory.remembering import unlabeled_digits

CPU = {"workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def find(tmp_path_factory):
    """(class names, parameters) -> what `must refine` returns, for the unlabeled digits."""
    root = tmp_path_factory.mktemp("names")
    shards, _ = unlabeled_digits(root)

    def run(names, place="", **changes):
        place = Path(place or root / "-".join(names))
        place.mkdir()
        (place / "classes.yaml").write_text(yaml.safe_dump({"classes": names, "templates": list(TEMPLATES)}))
        file = str(place / "classifier.safetensors")
        classifier(ClassifierConfig(classes=f"{place}/classes.yaml", model=str(asset_folder()), output=file))
        places = {"model": str(place / "model"), "output": str(place / "labels")}
        return refine(RefineConfig(shards=shards, classifier=file, **places, **CPU, **changes))

    return run


def test_a_fitting_list_has_no_findings(find):
    assert find(list(CLASSES))["misfits"] == []


def test_a_missing_class_is_a_group_and_a_second_name_is_a_pair(find):
    found = find([name for name in CLASSES if name != "three"] + ["nine two"])["misfits"]
    group, pair = (next(f for f in found if f["kind"] == kind) for kind in ("group", "pair"))
    assert group["images"] > 30 and all(example.startswith("three") for example in group["examples"])
    assert group["text"] == f"{group['images']} similar images fit none of the names well: is a class missing?"
    assert "nine two" in pair["classes"] and len(pair["examples"]) == 3


@pytest.mark.parametrize(("distance", "found"), [(0.05, [(0, 5)]), (0.15, [])])
def test_names_with_almost_the_same_text_are_a_pair_whichever_images_they_get(distance, found):
    columns = torch.eye(6)
    columns[:2, 5] = torch.tensor([1 - distance, (1 - (1 - distance) ** 2) ** 0.5])
    columns[5, 5] = 0
    assert [finding.classes for finding in find_pairs(torch.eye(6).repeat(5, 1), columns)] == found


def test_two_lists_are_compared_and_nothing_is_written(find, tmp_path, caplog):
    new = {"classes": [*CLASSES[:9], "nine two"], "templates": list(TEMPLATES)}
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(new))
    with caplog.at_level("INFO"):
        result = find(list(CLASSES), tmp_path / "work", classes=str(tmp_path / "new.yaml"))
    assert 80 < result["changed"] < 130 and result["misfits"][0] == []
    assert {finding["kind"] for finding in result["misfits"][1]} == {"group", "pair"}
    old, new, count, examples = result["changes"][0]
    assert (old, new) == ("nine", "nine two") and count > 20 and len(examples) == 3
    assert "  nine -> nine two: " in caplog.text and "does not fit, " in caplog.text
    files = sorted(path.name for path in tmp_path.glob("work/*"))
    assert files == ["classes.yaml", "classifier.safetensors", "models"]


def test_few_or_equal_images_are_no_group():
    for images in (1, 12, 100):
        vectors = torch.ones(images, 4) / 2
        assert find_groups(torch.ones(images), vectors, nearest(vectors), 3) == []
