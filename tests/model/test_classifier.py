"""Text classifiers: the recorded one, the class file and everything that can be wrong with it."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from must.api.demo import find_assets
from must.model import classifier as module
from must.model.backbone import find_quick_gelu_option, load_backbone
from must.model.bundle import load_bundle, make_zero_shot_bundle, save_bundle
from must.model.classifier import load_class_set, load_text_classifier, read_header, save_classifier
from must.model.masked_vit import MaskedViT
from tests.golden import facts, golden
from tests.model.tiny import make_classifier, model_folder

GOOD = "classes: [cat, dog]\ntemplates: ['a photo of a {}.']\n"


def test_the_recorded_classifier_from_the_recorded_text_tower():
    """Tokens 10 classes x 3 templates; a stand-in tokenizer looks them up, as the recording did."""
    recorded = golden("text")
    text = {"context_length": 77, "vocab_size": 64, "width": 64, "heads": 1, "layers": 2}
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 1, "head_width": 64}
    clip = open_clip.CLIP(32, vision, text, quick_gelu=True)
    weights = {n: torch.from_numpy(v) for n, v in recorded.items() if n not in ("tokens", "classifier")}
    weights["logit_scale"] = weights["logit_scale"].reshape(())
    missing, unexpected = clip.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith("visual.") or name == "attn_mask" for name in missing)

    def look_up(texts):
        return torch.stack([torch.from_numpy(recorded["tokens"][tuple(map(int, t.split()))]) for t in texts])

    backbone = SimpleNamespace(model="recorded", tokenizer=look_up, clip=clip.eval())
    prompts = tuple(tuple(f"{k} {t}" for t in range(3)) for k in range(10))
    class_set = module.ClassSet(tuple(map(str, range(10))), prompts, ())
    ours = module.build_classifier(backbone, class_set, torch.device("cpu"))
    np.testing.assert_allclose(ours.numpy(), recorded["classifier"], atol=1e-6)


@pytest.mark.parametrize("row", facts()["text_facts"]["tokenizer_examples"], ids=lambda row: row["text"][:20])
def test_recorded_tokens(row):
    (tokens,) = open_clip.get_tokenizer("ViT-B-16-quickgelu")([row["text"]])
    ids = row["ids_until_eot"]
    assert tokens.tolist() == ids + [row["pad"]] * (row["length"] - len(ids))


def test_imagenet_ships():
    names, templates = facts()["text_facts"]["classes"]["imagenet"], facts()["text_facts"]["templates"]["imagenet"]
    class_set = load_class_set("imagenet")
    assert len(class_set.names) == names == len(set(class_set.names))
    assert {len(prompts) for prompts in class_set.prompts} == {templates}


def write(tmp_path, text):
    path = tmp_path / "classes.yaml"
    path.write_text(text)
    return str(path)


def made(tmp_path, text=GOOD):
    """(the classifier of a class file, the path of its own file), of the bundled model."""
    return make_classifier(tmp_path, classes=write(tmp_path, text)), str(tmp_path / "c.safetensors")


def test_own_prompts_and_number_names(tmp_path):
    text = "classes:\n- 7\n- {name: dog, prompts: [a dog, a puppy]}\ntemplates: ['a {}', 'the {}']\n"
    class_set = load_class_set(write(tmp_path, text))
    assert class_set.names == ("7", "dog")
    assert class_set.prompts == (("a 7", "the 7"), ("a dog", "a puppy"))


@pytest.mark.parametrize(
    "name, data",
    [
        ("names.txt", b"cat\n\n  big dog \r\nyes\n"),
        ("names.TXT", b"\xef\xbb\xbfcat\nbig dog\nyes"),
        ("names.yaml", b"- cat\n- big dog\n- 'yes'\n"),
        ("names.yaml", b"[cat, {name: big dog}, 'yes']"),
    ],
)
def test_a_file_of_names_alone(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    class_set = load_class_set(str(path))
    assert class_set.names == ("cat", "big dog", "yes") and class_set.prompts[1] == ("a photo of a big dog.",)


MANY_PROMPTS = "classes:\n- {name: cat, prompts: &own " + str(["x"] * 5000) + "}\n"
MANY_PROMPTS += "".join(f"- {{name: {n}, prompts: *own}}\n" for n in range(3000))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"cat\n", "needs at least two"),
        (b"cat\ncat", "more than once"),
        (b"caf\xe9\nb", "in UTF-8"),
        ("classes: [cat]\n", "needs at least two classes"),
        ("classes: [cat, '']\n", "class 2 is '', which is no name$"),
        ("classes: [cat, .nan]\n", "class 2 is .*None.*, which is no name$"),
        ("classes: [cat, no]\n", "class 2 is .*, which is no name .YAML reads yes, no"),
        ("classes: [cat, cat]\n", "class 'cat' appears more than once"),
        ("cafe\u0301\ncaf\xe9\n".encode(), "class 'café' appears more than once, in Unicode forms that look the same"),
        ("cat\ncat\u200b\n".encode(), "two classes are 'cat', but for a character that cannot be seen"),
        ("classes: [cat, dog]\ntemplates: ['a photo']\n", "'a photo' has no {}"),
        ("classes: [cat, dog]\ntemplates: a {}\n", "must be a list"),
        ("classes: [cat, {name: dog, prompts: []}]\n", "prompts of class 'dog'"),
        ("classes: [cat, {name: dog, share: 2}]\n", "class 'cat' has no share; give one to every class or to none"),
        *(
            (f"classes: [{{name: cat, share: 1}}, {{name: dog, share: {share}}}]\n", "the share of class 'dog' must be")
            for share in ("0", ".nan", "true", "many", "1e10", "1" + 400 * "0")
        ),
        ('classes: [cat, "do\\0g"]\n', "class 2 is 'do.g', which is no name"),
        (f"classes: {list(range(3000))}\ntemplates: {[f'{n} {{}}' for n in range(5000)]}\n", "too many prompts"),
        (MANY_PROMPTS, "too many prompts"),
        ("klasses: [cat, dog]\n", "expected 'classes:'"),
        ("classes: [cat, dog]\nnames: 3\n", "unknown key 'names'"),
        ("classes: [cat\n", "not valid YAML"),
    ],
)
def test_wrong_class_files_are_one_line(tmp_path, content, message):
    """Bytes are a file of names alone."""
    path = tmp_path / ("names.txt" if isinstance(content, bytes) else "classes.yaml")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as error:
        load_class_set(str(path))
    assert "\n" not in str(error.value) and str(error.value).startswith(f"--classes {path}: ")


def test_a_prompt_that_does_not_fit_is_refused_not_cut_off(tmp_path):
    with pytest.raises(ValueError, match=r"has \d+ tokens, the model takes 24"):
        made(tmp_path, "classes: [cat, dog]\ntemplates: ['" + "very " * 60 + "good {}']\n")
    assert not (tmp_path / "c.safetensors").exists()


def test_a_tokenizer_of_another_text_tower_is_refused(tmp_path):
    folder = Path(model_folder("clip", tmp_path / "model"))
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["token_embedding.weight"] = weights["token_embedding.weight"][:-1].clone()
    save_file(weights, folder / "open_clip_model.safetensors")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["vocab_size"] = len(weights["token_embedding.weight"])
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"its tokenizer gives the number (\d+), its text tower has \1 embeddings"):
        make_classifier(tmp_path, str(folder))


SHARES = "classes: [{name: cat, share: 1}, {name: dog, share: 3}]\ntemplates: ['a photo of a {}.']\n"


def test_shares_are_relative_and_the_file_comes_back_as_it_was(tmp_path):
    assert load_class_set(write(tmp_path, SHARES)).shares == (0.25, 0.75)
    assert load_class_set(write(tmp_path, SHARES.replace("1}", "0.5}").replace("3}", "1.5}"))).shares == (0.25, 0.75)
    written, file = made(tmp_path, SHARES)
    back = load_text_classifier(file)
    assert back.shares == written.shares == read_header(file).shares == (0.25, 0.75)
    assert torch.equal(back.weights, written.weights) and back.classes == ("cat", "dog")
    torch.testing.assert_close(back.weights.norm(dim=0), torch.ones(2))
    assert back.logit_scale == pytest.approx(load_backbone(str(find_assets())).logit_scale)


@pytest.mark.parametrize("shares", [(1.0,), (0.5, 0.0), (0.5, float("nan")), (1.5, -0.5), "ab", 3], ids=str)
def test_shares_that_cannot_be_are_damage(tmp_path, shares):
    written, file = made(tmp_path)
    save_classifier(replace(written, shares=shares), file)
    for read in (load_text_classifier, read_header):
        with pytest.raises(ValueError, match="is damaged or no file of `must classifier`"):
            read(file)


@pytest.mark.parametrize("damage", ["nonsense", "a bit", "no number", "dimensions", "scale"])
def test_a_file_that_is_not_what_was_written_is_damaged(tmp_path, damage):
    written, file = made(tmp_path)
    path = Path(file)
    if damage == "nonsense":
        path.write_bytes(b"nonsense")
    elif damage == "a bit":
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 128]))
    elif damage == "dimensions":  # a minute to look at, if that is done before they are counted
        data, end = path.read_bytes(), 8 + int.from_bytes(path.read_bytes()[:8], "little")
        head = data[8:end].replace(b'"shape":[', b'"shape":[' + b"1," * 100_000)
        path.write_bytes(len(head).to_bytes(8, "little") + head + data[end:])
    elif damage == "scale":  # the least similar class would be the answer
        save_classifier(replace(written, logit_scale=-1.0), file)
    else:
        save_classifier(replace(written, weights=written.weights * float("nan")), file)
    with pytest.raises(ValueError, match="is damaged or no file of `must classifier`"):
        load_text_classifier(file)


def test_a_classifier_of_another_model_is_refused():
    visual = load_backbone(str(find_assets())).clip.visual
    with pytest.raises(ValueError, match="made with another model"):
        MaskedViT(visual, torch.eye(32))


def test_openais_weights_get_their_activation_and_others_theirs():
    assert find_quick_gelu_option("ViT-B-16", "openai") == {"force_quick_gelu": True}
    assert find_quick_gelu_option("ViT-B-16", "laion2b_s34b_b88k") == {}


def test_a_bundle_classifies_as_before_and_damage_is_named(tmp_path):
    bundle = make_zero_shot_bundle(made(tmp_path)[0])
    folder = tmp_path / "bundle"
    save_bundle(str(folder), bundle.model, bundle.description)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(load_bundle(str(folder)).model(images), bundle.model(images))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    bundle.model.classifier.data *= -1
    save_bundle(str(folder), bundle.model, bundle.description)
    for weights in (b"x" * 100, before["model.safetensors"]):  # damaged, and another model's
        (folder / "model.safetensors").write_bytes(weights)
        with pytest.raises(ValueError, match=r"model.safetensors: is damaged or of another model than the model.json"):
            load_bundle(str(folder))
