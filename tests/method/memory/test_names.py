"""Names that do not fit the images, on spoilt class lists of the bundled digits."""

import pytest
import torch
import yaml

from must.api.demo import CLASSES, TEMPLATES, find_assets
from must.config import ClassifierConfig, RefineConfig
from must.method.memory.predictions import TopLabels, find_missing, find_pairs
from must.method.memory.refine import refine
from must.method.model.classifier import classifier
from tests.method.memory.remembering import unlabeled_digits

CPU = {"workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def find(tmp_path_factory):
    """Class names -> what `must refine` returns, for the unlabeled digits."""
    root = tmp_path_factory.mktemp("names")
    shards, _ = unlabeled_digits(root)

    def run(names):
        place = root / "-".join(names)
        place.mkdir()
        (place / "classes.yaml").write_text(yaml.safe_dump({"classes": names, "templates": list(TEMPLATES)}))
        file = str(place / "classifier.safetensors")
        classifier(ClassifierConfig(classes=f"{place}/classes.yaml", model=str(find_assets()), output=file))
        places = {"model": str(place / "model"), "output": str(place / "labels")}
        return refine(RefineConfig(shards=shards, classifier=file, **places, **CPU))

    return run


def test_a_fitting_list_has_no_findings(find):
    assert find(list(CLASSES))["misfits"] == []


def test_a_second_name_for_the_same_images_is_a_pair(find):
    pair = find([*CLASSES, "nine two"])["misfits"][0]
    assert pair["kind"] == "pair" and "nine two" in pair["classes"] and len(pair["examples"]) == 3


def test_images_that_are_all_alike_to_the_model_say_nothing_about_names():
    """Of black images all columns of probabilities are constant, so that any two of them are parallel."""
    generator = torch.Generator().manual_seed(0)
    row, columns = torch.rand(4, generator=generator).softmax(0), torch.eye(6)[:, :4]
    assert find_pairs((row + 1e-5 * torch.rand(20, 4, generator=generator)).half(), columns) == []
    assert find_pairs(torch.rand(20, 4, generator=generator)[:, [0, 0, 1, 2]].softmax(1), columns)


def test_answers_of_none_of_the_classes_are_a_finding_with_the_images_like_them():
    labels = TopLabels(torch.tensor([-1, 0, -1, -1, -1, 1]), torch.tensor([1.0, 0.9, 0.7, 1.0, 0.8, 1.0]))
    answered = torch.tensor([0, 3, 5])
    assert find_missing(labels, answered, 1) == [], "one such answer is none"
    (found,) = find_missing(labels, answered, 2)
    assert (found.images, found.answers, found.rows) == (2, 2, (4, 2, 0)), "images without an answer come first"
    said, question = "2 images have the answer “none of the classes”, the model finds", "like them: is a class missing?"
    assert found.to_dict(["a", "b"], list("uvwxyz"))["text"] == f"{said} 2 other images {question}"


@pytest.mark.parametrize(("distance", "found"), [(0.05, [(0, 5)]), (0.15, [])])
def test_names_with_almost_the_same_text_are_a_pair_whichever_images_they_get(distance, found):
    columns = torch.eye(6)
    columns[:2, 5] = torch.tensor([1 - distance, (1 - (1 - distance) ** 2) ** 0.5])
    columns[5, 5] = 0
    assert [finding.classes for finding in find_pairs(torch.eye(6).repeat(5, 1), columns)] == found
