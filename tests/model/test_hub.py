"""Models from a hub: asked once and briefly, each of its failures one line, and never again after the classifier."""

import hashlib
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants as hub_settings
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from must.api import demo
from must.api.demo import find_assets
from must.api.run import run
from must.base import storage
from must.base.errors import TransientError, UserError
from must.base.program import PREEMPTED, WRONG_INPUT, find_exit_code
from must.model import hub
from must.model.backbone import find_tower_shape, load_backbone
from must.model.description import load_description
from tests.local_server import Answer, LocalServer, Request
from tests.training.lives import same

FILES = "or put open_clip_config.json and open_clip_model.safetensors of it into a folder and give that as --model"
OPENAI = "timm/vit_base_patch16_clip_224.openai"
COMMIT = "1" * 40


class Hub(LocalServer):
    """A hub on this machine: the part of Hugging Face's protocol that fetching a file needs, and its ways to fail.
    Serves TEAM/NAME/FILE below a folder. `asked` holds the requests; `fault` is a way to fail, see `answer`."""

    def __init__(self, folder: Path, fault: str = "") -> None:
        self.folder, self.fault, self.asked, self.ended = folder, fault, list[str](), threading.Event()
        super().__init__(self.last_answer)

    def last_answer(self, request: Request) -> Answer:
        """The connection ends with it: none is left when the hub is gone."""
        answer = self.answer(request)
        return replace(answer, headers={**(answer.headers or {}), "Connection": "close"})

    def answer(self, request: Request) -> Answer:
        self.asked.append(f"{request.method} {request.path}")
        if self.fault == "hangs":
            self.ended.wait(120)
        if self.fault.isdigit():
            return Answer(int(self.fault))
        repository, _, name = request.path.partition("?")[0].partition("/resolve/main/")
        file = self.folder / repository.strip("/") / name
        if not file.is_file():
            kind = "EntryNotFound" if file.parent.is_dir() else "RepoNotFound"
            return Answer(404, headers={"X-Error-Code": kind, "X-Repo-Commit": COMMIT})
        data = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if self.fault == "no commit":
            del headers["X-Repo-Commit"]
        if self.fault == "cuts" and request.method == "GET":
            data = data[: len(data) // 2]
        return Answer(200, data, headers)

    def close(self) -> None:
        self.ended.set()
        super().close()


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """A hub's folder with one model, team/tiny, whose tokenizer is open_clip's own."""
    folder = tmp_path_factory.mktemp("hub")
    tiny = folder / "team" / "tiny"
    tiny.mkdir(parents=True)
    config = json.loads((find_assets() / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= {"vocab_size": 49408, "context_length": 77, "width": 16}
    (tiny / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    save_file(open_clip.create_model(f"local-dir:{tiny}").state_dict(), tiny / "open_clip_model.safetensors")
    (folder / OPENAI).mkdir(parents=True)
    return folder


@pytest.fixture
def serving(monkeypatch, tmp_path):
    """serving(folder, fault): the hub that this process asks, until the block ends. The cache is empty."""
    monkeypatch.setattr(hub, "PATIENCE", 1)
    monkeypatch.setattr(hub_settings, "HF_HUB_CACHE", str(tmp_path / "cache"))

    @contextmanager
    def start(folder, fault=""):
        with closing(Hub(folder, fault)) as server:
            monkeypatch.setattr(hub_settings, "ENDPOINT", server.url)
            template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(hub_settings, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            yield server

    return start


BY_NAME, BY_REPOSITORY = ("ViT-B-16-quickgelu", "openai"), ("hf-hub:team/tiny", "")


@pytest.mark.parametrize(
    "model, pretrained, fault, later, message",
    [
        (*BY_NAME, "hangs", True, "timed out; try again later, or "),
        (*BY_NAME, "401", False, r"no such public model \(401\); check its name, set HF_TOKEN if it is private, or "),
        (*BY_NAME, "429", True, "429; try again later, or "),
        (*BY_REPOSITORY, "403", False, r"no such public model \(403\)"),
        (*BY_REPOSITORY, "503", True, "503; try again later, or "),
    ],
)
def test_a_hub_that_gives_nothing_is_one_line_with_the_files_that_are_needed(
    repositories, serving, model, pretrained, fault, later, message
):
    told = "could not be downloaded from the hub {}: " + message
    with serving(repositories, fault) as server, pytest.raises(ValueError, match=told.format(server.url)) as error:
        load_backbone(model, pretrained)
    assert find_exit_code(error.value) == (PREEMPTED if later else WRONG_INPUT)
    said = str(error.value)
    assert said.startswith(f"--model {model}" + (f" --pretrained {pretrained}: " if pretrained else ": "))
    assert FILES in said and f"of {OPENAI if pretrained else 'team/tiny'} could" in said and "\n" not in said
    assert len(server.asked) == 1


def test_a_hub_that_may_not_be_asked(serving, monkeypatch):
    monkeypatch.setattr(hub_settings, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE.*, or put"):
        load_backbone("ViT-B-16-quickgelu", "openai")


@pytest.mark.parametrize("fault, message", [("cuts", "size"), ("no commit", "missing|Distant resource")])
def test_a_file_that_does_not_arrive_is_not_called_absent_and_leaves_nothing(repositories, serving, fault, message):
    """As when the connection is lost after the first request: the hub's client raises a kind of EntryNotFoundError."""
    with serving(repositories, fault) as server:
        told = f"open_clip_config.json of team/tiny could not be downloaded .*{message}"
        with pytest.raises(TransientError, match=told) as error:
            load_backbone("hf-hub:team/tiny")
        assert "\n" not in str(error.value) and FILES in str(error.value)
        server.fault = ""
        expected = load_backbone("hf-hub:team/tiny").preprocess
        server.fault = fault
        assert load_backbone("hf-hub:team/tiny").preprocess == expected, "the cached copy is used"


def test_a_repository_without_the_file_is_named(repositories, serving):
    with serving(repositories):
        message = r"openai on the hub .* has no open_clip_model.safetensors and no open_clip_"
        with pytest.raises(UserError, match=message):
            load_backbone("ViT-B-16-quickgelu", "openai")
        with pytest.raises(UserError, match=r"no such public model \(404\)"):
            load_backbone("hf-hub:team/none")


def test_what_the_cache_has_is_taken_where_the_hub_is_gone(repositories, serving, capsys):
    with serving(repositories):
        expected = load_backbone("hf-hub:team/tiny").clip.state_dict()
        assert find_tower_shape("hf-hub:team/tiny", "") == (128, 32, 8)
    assert same(load_backbone("hf-hub:team/tiny").clip.state_dict(), expected)
    assert "cannot serve team/tiny; using the cached copy" in capsys.readouterr().out
    assert not hub_settings.HF_HUB_OFFLINE and not hub_settings.HF_HUB_DISABLE_TELEMETRY


def test_a_model_in_transformers_format_is_refused_with_what_to_do(serving, tmp_path):
    (tmp_path / "hub" / "team" / "fashion").mkdir(parents=True)
    (tmp_path / "hub" / "team" / "fashion" / "config.json").write_text("{}")
    with serving(tmp_path / "hub"), pytest.raises(UserError, match=r"has no open_clip_config.json; .*docs/models.md"):
        load_backbone("hf-hub:team/fashion")


@pytest.mark.slow
def test_after_the_classifier_no_stage_asks_the_hub(repositories, digits, serving, tmp_path, monkeypatch):
    """Then it is gone, and so is its cache, and one works in another folder."""
    monkeypatch.chdir(tmp_path)
    classes = str(Path(digits.shards).parent / "classes.yaml")
    with serving(repositories) as server:
        made = run("classifier", classes=classes, model="hf-hub:team/tiny", output="w/c.safetensors")
        assert len([line for line in server.asked if line.startswith("GET") and "open_clip_model" in line]) == 1
    shutil.rmtree("cache")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    shards, file = {"shards": digits.shards, "workers": 0}, "../w/c.safetensors"
    run("train", **shards, classifier=file, output="model", epochs=1, device="cpu")  # settings that auto finds
    trained = load_description("model").provenance
    assert (trained.model_folder, trained.model_sha256) == (made.model_folder, made.model_sha256)
    run("refine", **shards, classifier=file, model="model", output="refined", split="test", device="cpu")
    metrics = run("evaluate", **shards, model="model", baseline=file, output="report", device="cpu")
    assert metrics.images == 120
    run("export", model="model", shards=digits.shards, output="onnx", limit=40)
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "must" / "models"


@pytest.fixture
def bucket(bucket_server):
    """A model folder in a bucket."""
    for file in demo.find_assets().iterdir():
        storage.upload(file, f"{bucket_server.uri}/models/tiny/{file.name}")
    return f"{bucket_server.uri}/models/tiny"


def fetched(cache):
    return [path for path in cache.iterdir() if path.is_dir()]


def test_it_is_fetched_once_until_it_changes(bucket, cache, capsys):
    first = hub.ensure_local(bucket)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(hub.ensure_local, [bucket] * 8)) == {first}
    assert capsys.readouterr().out.count("fetching the model") == 1
    storage.write_bytes(f"{bucket}/README", b"another version")
    assert hub.ensure_local(bucket) != first and len(fetched(cache)) == 2


def test_a_checkpoint_file(bucket_server, cache):
    storage.write_bytes(f"{bucket_server.uri}/weights.pt", b"abc")
    assert Path(hub.ensure_local(f"{bucket_server.uri}/weights.pt")).read_bytes() == b"abc"
    assert Path(hub.ensure_local(f"{bucket_server.uri}/weights.pt")).name == "weights.pt"


def test_what_is_not_there_is_said_and_what_breaks_off_leaves_nothing(bucket, cache, bucket_server, monkeypatch):
    with pytest.raises(ValueError, match="there is no model"):
        hub.ensure_local(f"{bucket_server.uri}/nothing")
    monkeypatch.setattr(storage, "download", lambda uri, path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hub.ensure_local(bucket)
    assert fetched(cache) == []
