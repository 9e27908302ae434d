"""`must push` against a hub on this machine, by huggingface_hub's own client; then open_clip loads from it."""

import json

import huggingface_hub.constants as hub_settings
import open_clip
import pytest
import torch

from must.api.cli import main
from must.base.storage import TransientError
from must.config import ExportConfig, PushConfig
from must.data.augment.normalize import normalize
from must.deploy.export.export import export
from must.deploy.export.push import push
from must.method.model.bundle import load_bundle, preprocess_of
from tests.method.model.hub_api import READER, TOKEN, writable


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    """An open_clip folder of the digits' adapted model."""
    made = tmp_path_factory.mktemp("taken") / "ours"
    export(ExportConfig(model=digits.adapted, classifier=digits.classifier, to="open_clip", output=str(made)))
    return made


@pytest.fixture
def asked(monkeypatch):
    """A function that makes a URL the hub of this process, and somebody its user."""
    monkeypatch.setattr(hub_settings, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub_settings, "HF_TOKEN_PATH", "/nowhere")

    def use(url, token=TOKEN):
        monkeypatch.setattr(hub_settings, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(hub_settings, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_TOKEN", token)

    return use


def test_pushed_from_the_command_line_and_loaded_by_open_clip(folder, asked, digits, tmp_path, capsys):
    (folder / ".secret").write_text("hidden")
    with writable(tmp_path / "hub") as server:
        asked(server.url)
        main(["push", "--model", str(folder), "--repo", "team/digits", "--private"])
        out, err = capsys.readouterr()
        assert f"{server.url}/team/digits/commit/" in out and not err
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        assert server.commits == [names] and server.private == {"team/digits"}
        assert any(request.startswith("PUT /large/") for request in server.asked), "weights go their own way"
        model = open_clip.create_model("hf-hub:team/digits", cache_dir=str(tmp_path / "cache")).eval()
    bundle = load_bundle(digits.adapted)
    pixels = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    images = normalize(pixels, preprocess_of(bundle.description))
    with torch.no_grad():
        ours = torch.nn.functional.normalize(bundle.model.visual(images), dim=-1)
        torch.testing.assert_close(model.encode_image(images, normalize=True), ours, atol=1e-5, rtol=0)


def test_again_and_to_a_branch(folder, asked, tmp_path):
    with writable(tmp_path) as server:
        asked(server.url)
        for _ in range(2):
            assert push(PushConfig(model=str(folder), repo="team/x")).startswith(f"{server.url}/team/x/commit/")
            push(PushConfig(model=str(folder), repo="team/x", revision="v2/try"))
        assert len(server.commits) == 4 and (tmp_path / "team" / "x@v2+try" / "README.md").is_file()
        assert not server.private


def test_a_public_repository_is_not_taken_for_private(folder, asked, tmp_path):
    with writable(tmp_path) as server:
        asked(server.url)
        push(PushConfig(model=str(folder), repo="team/x"))
        with pytest.raises(ValueError, match="team/x already, and it is public: nothing was pushed"):
            push(PushConfig(model=str(folder), repo="team/x", private=True))
        assert len(server.commits) == 1


NEEDS_WRITING = "the token must be allowed to write, and you in team"


@pytest.mark.parametrize(
    ("token", "repo", "fault", "later", "message"),
    [
        ("", "team/x", (), False, r"needs a valid token \(401\): set HF_TOKEN"),
        (READER, "team/x", (), False, rf"denies you write access \(403: .*\): {NEEDS_WRITING}"),
        (TOKEN, "others/x", (), False, r"denies you write access \(403: .*others.*\): .* and you in others"),
        (TOKEN, "team/x", ("404", "commit"), False, r"has no such repository, branch or team \(404"),
        (TOKEN, "team/x", ("400", "commit"), False, r"refuses it \(400: as asked for\)"),
        (TOKEN, "team/x", ("413", "/large/"), False, r"refuses it \(413"),
        (TOKEN, "team/x", ("429", "create"), True, r"limits requests from here \(429\): try again later"),
        (TOKEN, "team/x", ("500", "commit"), True, r"answers with an error \(500\): try again later"),
    ],
)
def test_what_a_hub_refuses_is_one_line_and_nothing_is_committed(
    folder, asked, tmp_path, token, repo, fault, later, message
):
    with writable(tmp_path, *fault) as server:
        asked(server.url, token)
        with pytest.raises(ValueError, match=message) as error:
            push(PushConfig(model=str(folder), repo=repo))
        assert str(error.value).startswith(f"--repo {repo}: the hub {server.url} ") and "\n" not in str(error.value)
        assert isinstance(error.value, TransientError) == later and not server.commits
        assert not list(tmp_path.glob("*/x/*")), "all of a commit or nothing"


def test_a_hub_that_is_not_there_or_may_not_be_asked(folder, asked, monkeypatch):
    asked("http://127.0.0.1:9")
    with pytest.raises(TransientError, match=r"cannot be reached \(.*\): try again later"):
        push(PushConfig(model=str(folder), repo="team/x"))
    monkeypatch.setattr(hub_settings, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="is disabled: unset HF_HUB_OFFLINE"):
        push(PushConfig(model=str(folder), repo="team/x"))


def test_a_card_that_the_hub_does_not_take(folder, asked, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "README.md").write_text("---\nlicense: My Own\n---\n")
    (other / "config.json").write_text(json.dumps({}))
    with writable(tmp_path / "hub") as server:
        asked(server.url)
        with pytest.raises(ValueError, match=r"rejects the model card: Invalid metadata in README\.md\. .*license"):
            push(PushConfig(model=str(other), repo="team/x"))
        assert not server.commits


def test_what_is_no_exported_folder(digits, tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    for model, repo, message in (
        (digits.adapted, "team/x", "is a bundle of `must train`; make a folder of it with `must export --to`"),
        (str(tmp_path / "empty"), "team/x", "is no folder of `must export`: README.md or"),
        (str(tmp_path / "none"), "team/x", "there is no such folder"),
        (str(tmp_path), "x", "expected TEAM/NAME"),
        (str(tmp_path), "team/a--b", "expected TEAM/NAME"),
        (str(tmp_path), "team/x.git", "expected TEAM/NAME"),
        (str(tmp_path), "team/../x", "expected TEAM/NAME"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["push", "--model", model, "--repo", repo])
        (line,) = capfd.readouterr().err.splitlines()
        assert stopped.value.code == 2 and message in line
