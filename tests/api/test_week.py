"""One week with one folder, on the command line: after each day every photo has a label, and the server answers with
the model of that day."""

import hashlib
import json
import shlex

import pytest

from must.api.cli import main
from must.api.demo import CLASSES, find_assets
from tests.api.conftest import MORE, PHOTOS, answer, label_of, labels, weights, write_photos
from tests.common import read_csv
from tests.serving.server import running

pytestmark = pytest.mark.slow
ADAPT = "adapt photos --classes classes.txt --model {model} --output work --train no --workers 0 --device cpu"


class Week:
    """The folder, and the weights of each day's model."""

    def __init__(self, place, capsys, monkeypatch):
        self.capsys, self.monkeypatch, self.models = capsys, monkeypatch, []
        self.move(place)

    def move(self, place):
        self.place, self.work, self.photos = place, place / "work", place / "photos"
        self.monkeypatch.chdir(place)

    def must(self, line):
        """What a command prints."""
        main(shlex.split(line.format(model=find_assets())))
        said = self.capsys.readouterr()
        assert "/.next" not in said.out + said.err
        return said.out + said.err

    def end_day(self, known, is_new=True):
        """Exports, predicts and serves. `known`: {photo: label that a person gave}; `is_new`: the model is another."""
        model = weights(self.work)
        assert (model not in self.models) is is_new
        self.models.append(model)
        self.must("export work --limit 11")
        self.must("gate work --gate none")
        self.must("predict --model work --output predictions.csv photos")
        table, photos = labels(self.work), sorted(self.photos.iterdir())
        assert table.keys() == {photo.name for photo in photos}
        assert {name: table[name] for name in known} == known
        measured = json.loads((self.work / "report/metrics.json").read_text())
        assert measured["model"]["weights_sha256"] == model and measured["images"] == len(photos)
        predicted = {row["image"].rpartition("/")[2]: row for row in read_csv(self.place / "predictions.csv")}
        with running("--model", self.work, "--abstain", "0") as server:
            status, served = server.ask("POST", "/classify", photos[0].read_bytes())
        assert status == 200
        assert served["version"] == hashlib.sha256((self.work / "onnx/model.onnx").read_bytes()).hexdigest()[:12]
        best, row = served["predictions"][0], predicted[photos[0].name]
        assert best["class"] == row["class"]
        assert best["probability"] == pytest.approx(float(row["probability"]), abs=1e-4)
        assert not list(self.work.glob(".next*"))


def told(numbers):
    return {f"IMG_{n:04d}.png": label_of(n) for n in numbers}


def test_a_week_with_one_folder(tmp_path, capsys, monkeypatch):
    (tmp_path / "home").mkdir()
    week = Week(tmp_path / "home", capsys, monkeypatch)
    write_photos(week.photos, range(PHOTOS))
    (week.place / "classes.txt").write_text("\n".join(CLASSES))
    week.must(ADAPT)
    week.end_day({})

    write_photos(week.photos, range(PHOTOS, PHOTOS + MORE))
    assert f"{MORE} new images, 0 gone" in week.must(ADAPT)
    week.end_day({})

    rows = [f"photos/{name},{label}\n" for name, label in told(range(8)).items()]
    (week.place / "corrections.csv").write_text("image,class\n" + "".join(rows))
    assert "8 new answers of 8" in week.must("review work --add corrections.csv --workers 0 --device cpu")
    assert "8 answers" in week.must(ADAPT)
    week.end_day(told(range(8)))

    names = ["zero", "eleven", *CLASSES[2:], "letter"]  # one renamed, one more
    (week.place / "classes.txt").write_text("\n".join(names))
    week.must(f"{ADAPT} --drop")
    week.end_day({name: label for name, label in told(range(8)).items() if label in names})

    for count in (20, 30):
        known = {name: label for name, label in told(range(count)).items() if label in names}
        answer(week.work, week.photos, known, "random")
        assert f"{len(known)} answers" in week.must("refine work --workers 0 --device cpu")
        refined = weights(week.work)
        with pytest.raises(SystemExit, match="2"):
            main(["serve", "work", "--port", "0"])
        assert "was exported from another model than" in capsys.readouterr().err
        week.must(ADAPT)
        assert weights(week.work) == refined, "it is measured, and nothing else is made"
        week.end_day(known)

    week.place.rename(tmp_path / "elsewhere")
    week.move(tmp_path / "elsewhere")
    week.must(ADAPT)
    week.end_day(known, is_new=False)
