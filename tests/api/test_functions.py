"""The stages as functions at `must`: what importing costs, signatures, results, errors, threads, signals, demo."""

import inspect
import pickle
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

import must
from docs.stub import STUB, stub
from must.api import cli, demo
from must.api.run import configure, write_as_python
from must.base.parameters import list_parameters
from must.config import TrainConfig
from must.data.format import load_index
from must.model.classifier import load_text_classifier
from must.model.distributed import Preempted
from must.table import COMMANDS
from must.training import plan, trainer
from must.training.recipe import resolve
from tests.common import one_line, printed

SHORT = {"preset": "digits", "epochs": 1, "batch_size": 50, "workers": 0, "device": "cpu"}


def python(code):
    return printed(sys.executable, "-c", code).split()


def test_importing_imports_nothing():
    heavy = "{'torch', 'numpy', 'yaml', 'must.api.run', 'must.api'} & sys.modules.keys()"
    assert python(f"import sys, must; print(len({heavy}))") == ["0"]
    assert python("import sys, must; must.train, must.adapt; print('torch' in sys.modules)") == ["False"]


def test_importing_configures_no_logging():
    code = "import logging, must; l = logging.getLogger('must'); print(l.level, l.propagate, *map(repr, l.handlers))"
    assert python(code) == ["0", "True", "<NullHandler", "(NOTSET)>"]
    shown = "import logging, must, sys; logging.basicConfig(stream=sys.stdout, format='%(message)s')"
    line = "; logging.getLogger('must.model').warning('hello')"
    assert python(shown + line) == ["hello"] and python("import logging, must" + line) == []


def test_every_stage_is_there():
    public = "MustError TransientError UserError adapt classifier demo evaluate export gate load plan predict promote"
    public += " quickstart refine review serve shard sort train"
    assert public.split() == must.__all__ == sorted(set(dir(must)) - {"__version__"})
    assert must.__all__ == sorted(must.__all__)
    assert all(callable(getattr(must, name)) for name in must.__all__)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        must.trian  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_signature_and_docstring_are_the_parameters(name):
    function, config = getattr(must, name), COMMANDS[name].config
    parameters = inspect.signature(function).parameters
    training = {"training"} if name == "adapt" else set()  # settings of must.train
    assert set(parameters) == {field.name for field in list_parameters(config)} | training
    for field in list_parameters(config):
        given = field.default if not callable(field.default_factory) else field.default_factory()
        expected = inspect.Parameter.empty if field.default is field.default_factory else given
        assert parameters[field.name].default == expected
        alone = parameters[field.name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert alone == field.metadata["bare"]
        assert f"    {field.name}: " in function.__doc__
    assert function.__doc__.startswith(write_as_python(COMMANDS[name].help)) and "--" not in function.__doc__
    assert function.__name__ == name and pickle.loads(pickle.dumps(function)) is function


def test_flags_in_a_help_text_are_parameters():
    assert write_as_python("as --test-source; --no-resume starts over") == "as test_source; resume=False starts over"


def test_the_stub_for_editors_is_current():
    assert STUB.read_text() == stub(), "run `make reference`"


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return must.train(shards=digits.shards, classifier=digits.classifier, output=folder, **SHORT)


def test_training_and_what_follows(digits, friday, trained, tmp_path, capsys):
    """Places may be paths."""
    assert (trained.steps, trained.images, trained.alpha) == (3, 150, 1.0)
    assert Path(trained.output, "model.json").exists()
    places = {"baseline": digits.classifier, "shards": digits.shards, "output": tmp_path / "report"}
    report = must.evaluate(model=trained.output, **places, workers=0)
    assert report.images == 120 and report.top1 == report.metrics["adapted"]["top1"] != None  # noqa: E711
    assert Path(report.report).exists() and report._repr_html_().startswith("<iframe srcdoc=")
    assert must.gate(metrics=tmp_path / "report" / "metrics.json", gate="none").passed
    capsys.readouterr()
    image = next(digits.images.glob("test/three/*.png"))
    found = must.predict(model=friday / "work/onnx", images=image, top_k=2)
    assert found.images == 1 and found.predictions[0].image == str(image) and len(found.predictions[0].classes) == 2
    assert capsys.readouterr().out == "", "no table"


def test_a_plan_says_what_training_would_cost(digits, monkeypatch):
    monkeypatch.setattr(plan, "MEASURED", 0.1)
    planned = must.plan(shards=digits.shards, classifier=digits.classifier, **SHORT | {"epochs": 2})
    assert planned.steps == 6 and planned.seconds > 0 and planned.plan["images_per_s"] == planned.images_per_s


def test_what_is_passed_wins_over_a_preset_even_where_it_is_the_default(digits, monkeypatch):
    """On the command line, from Python, and of a class whose caller names it."""
    configs = []
    monkeypatch.setattr(trainer, "train", configs.append)
    values = {"shards": digits.shards, "classifier": digits.classifier, "output": "o", "preset": "digits", "epochs": 30}
    cli.main(["train", *(part for name, value in values.items() for part in (f"--{name}", str(value)))])
    configs += [configure("train", values), TrainConfig(**values, passed=frozenset(["epochs"]))]
    for config in configs:
        found = resolve(config, load_index(digits.shards), load_text_classifier(digits.classifier))
        assert (found.config.epochs, found.config.alpha, found.config.lr) == (30, 1, 0.004)
        assert "epochs" not in found.reasons and {"lr", "alpha"} <= found.reasons.keys()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"epoch": 1}, "unknown name 'epoch'; did you mean 'epochs'"),
        ({"shards": "nowhere"}, r"nowhere holds no index\.json"),
        ({"shards": None}, "^missing: shards$"),
    ],
)
def test_the_users_mistakes_are_value_errors(digits, tmp_path, values, message):
    given = {"shards": digits.shards, "classifier": digits.classifier, "output": str(tmp_path / "o")} | values
    with one_line(message):
        must.train(**given)
    assert not list(tmp_path.iterdir())


def test_training_that_was_stopped_is_no_exit(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "train", Mock(side_effect=Preempted("gs://bucket could not be reached")))
    message = r"^gs://bucket could not be reached; call must\.train again"
    with pytest.raises(must.TransientError, match=message):
        must.train(shards=digits.shards, classifier=digits.classifier, output=str(tmp_path))


def test_it_runs_in_a_thread_and_leaves_signals_alone(digits, trained, tmp_path):
    def handlers():
        return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def run():
        results.append(must.train(shards=digits.shards, classifier=digits.classifier, output=tmp_path, **SHORT))

    before, results, seen = handlers(), [], []
    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        seen.append(handlers())
        thread.join(0.05)
    assert results[0].steps == 3 and all(at_a_time == before for at_a_time in seen)
    same = [Path(place, "model.safetensors").read_bytes() for place in (tmp_path, trained.output)]
    assert same[0] == same[1], "the weights of the main thread"


def test_a_users_folder_is_left_alone(tmp_path):
    for name in ("classes.yaml", "photo.jpg"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(ValueError, match=r"holds files of yours.*give a new folder"):
            must.demo(output=folder)
        assert [path.name for path in folder.iterdir()] == [name] and (folder / name).read_text() == "mine"
    with pytest.raises(ValueError, match="is a file"):
        must.demo(output=tmp_path / "photo" / "photo.jpg")


def test_a_second_run_completes_its_own_folder_and_keeps_what_was_changed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "SPLIT_SIZES", {"test": 20, "unlabeled": 40})
    made = must.demo(output=tmp_path / "demo")
    (tmp_path / "demo" / "classes.yaml").write_text("classes: [mine, yours]\n")
    missing = tmp_path / "demo" / "images" / "unlabeled" / "00000.png"
    missing.unlink()
    capsys.readouterr()
    assert must.demo(output=tmp_path / "demo") == made and missing.exists()
    assert (tmp_path / "demo" / "classes.yaml").read_text() == "classes: [mine, yours]\n"
    assert "classes.yaml: is kept, because it was changed" in capsys.readouterr().out


@pytest.mark.parametrize("played", ["a picture", "a name"])
def test_quickstart_goes_on_where_its_folder_was_played_with(tmp_path, monkeypatch, capsys, played):
    """Without the truth, which it no longer knows."""
    seen: list[object] = []
    run: Callable[..., object] = vars(demo)["run"]

    def without_a_page(name, *config, **values):
        return seen.append(values["truth"]) if name == "review" else run(name, *config, **values)

    monkeypatch.setattr(demo, "run", without_a_page)
    monkeypatch.setattr(demo, "SPLIT_SIZES", {"test": 20, "unlabeled": 40})
    must.demo(output=tmp_path)
    if played == "a picture":
        shutil.copy(tmp_path / "images/unlabeled/00000.png", tmp_path / "images/unlabeled/mine.png")
    else:
        text = (tmp_path / "classes.yaml").read_text()
        (tmp_path / "classes.yaml").write_text(text.replace("- zero", "- oh"))
    must.quickstart(output=tmp_path)
    assert seen == [None] and "right classes" not in capsys.readouterr().out
