"""Zero-shot classifier weights from class names and prompt templates, and the classifier file."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from must.base import storage
from must.base.errors import UserError
from must.base.parameters import make_record, parse_yaml, require
from must.base.text import abbreviate, compose, remove_invisible
from must.config import ClassifierConfig
from must.config.work import CLASSIFIER_FILE, DESCRIPTION_FILE, MODEL_FOLDER_FILE
from must.model.description import LARGEST_LOGIT_FACTOR

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

METADATA_KEY = "must"
LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
BUNDLED_SET = "imagenet"
DEFAULT_TEMPLATE = "a photo of a {}."  # for classes without templates
CLASS_FILE = re.compile(r"\.(txt|ya?ml|json)$", re.IGNORECASE)  # anything else may be a list of classes
LONGEST_NUMBER = 320  # bits of a number that is a class name: Python does not print very long ones
UNWRITABLE = re.compile("[\0\ud800-\udfff]")
LARGEST_SET, PROMPT_OVERHEAD = 300_000_000, 50  # bytes of all prompts, and of each besides its characters
LARGEST_SHARE = 1e9  # its inverse is the smallest share: float32 can hold the ratio


@dataclass(frozen=True)
class ClassSet:
    """Class names, the prompts of each class, and the class frequencies, if known."""

    names: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...]
    shares: tuple[float, ...] = ()  # of the images, sum 1; empty: unknown


@dataclass(frozen=True)
class ClassifierHeader:
    """All of a classifier file but its weights."""

    classes: tuple[str, ...]
    templates: tuple[str, ...]
    model: str
    pretrained: str
    logit_scale: float
    shares: tuple[float, ...] = ()  # of the images, sum 1; empty: unknown
    model_folder: str = ""  # the model's own files; empty: it is loaded by name
    model_sha256: str = ""  # of the weights in it
    sha256: str = ""  # of the classifier's weights; empty for one that is not in a file

    @property
    def identity(self) -> str:
        """A sha256, of the zero-shot model and the names of its classes."""
        return hashlib.sha256(json.dumps([self.sha256, self.model_sha256, self.classes]).encode()).hexdigest()

    def find_model(self) -> tuple[str, str]:
        """(model, pretrained) of `load_backbone`: the model's own folder if it is as it was, else its name."""
        from must.model.hub import verify_folder

        folder = self.model_folder
        return (verify_folder(folder, self.model_sha256), "") if folder else (self.model, self.pretrained)


@dataclass(frozen=True, kw_only=True)
class TextClassifier(ClassifierHeader):
    weights: Tensor  # [D, K], unit columns


def classifier(config: ClassifierConfig) -> TextClassifier:
    """The stage: reads the class file, runs the text tower, writes the classifier file."""
    from must.model.backbone import load_backbone, save_model
    from must.model.distributed import pick_device
    from must.model.hub import find_models_folder

    class_set = load_class_set(config.classes)
    if str(config.classes).endswith(".txt") and (commas := [name for name in class_set.names if "," in name]):
        logger.warning(
            f"--classes {config.classes}: has one class a line, so that {abbreviate(commas[0])} is one class"
        )
    backbone = load_backbone(config.model, config.pretrained)
    text_weights = make_text_classifier(backbone, class_set, pick_device(config.device))
    models = config.model_store or find_models_folder(config.output)
    folder, sha256 = save_model(backbone, models)
    result = replace(text_weights, model_folder=folder, model_sha256=sha256)
    save_classifier(result, config.output)
    prompts, dimensions = sum(map(len, class_set.prompts)), len(text_weights.weights)
    logger.info(f"{len(class_set.names)} classes, {prompts} prompts, {dimensions} dimensions -> {config.output}")
    logger.info(f"the model, for later stages -> {folder}")
    return result


def make_text_classifier(backbone: Any, class_set: ClassSet, device: Any) -> TextClassifier:
    """The classifier from the text tower's features of the prompts; the tower stays on the device."""
    return TextClassifier(
        classes=class_set.names,
        templates=class_set.templates,
        model=backbone.model,
        pretrained=backbone.pretrained,
        logit_scale=backbone.logit_scale,
        shares=class_set.shares,
        weights=build_classifier(backbone, class_set, device),
    )


def build_classifier(backbone: Any, class_set: ClassSet, device: Any) -> Tensor:
    """Mean of a class's unit prompt features, made unit again: float32 [D, K]."""
    import torch
    from open_clip import build_zero_shot_classifier

    check_prompts(backbone.tokenizer, class_set)
    check_vocabulary(backbone, class_set)
    lookup = dict(zip(class_set.names, class_set.prompts, strict=True))
    clip, tokenizer, shared = backbone.clip.to(device), backbone.tokenizer, len(set(map(len, lookup.values()))) == 1
    columns = []
    # With the same number of prompts a class, open_clip batches over classes.
    for names in [class_set.names] if shared else [[name] for name in class_set.names]:
        templates = [lambda name, i=i: lookup[name][i] for i in range(len(lookup[names[0]]))]
        progress = shared and sys.stderr.isatty()
        columns.append(build_zero_shot_classifier(clip, tokenizer, names, templates, device=device, use_tqdm=progress))
    return torch.cat(columns, dim=1).float().cpu()


def check_vocabulary(backbone: Any, class_set: ClassSet) -> None:
    """A tokenizer of another text tower gives numbers without an embedding in this one."""
    embedding = getattr(getattr(backbone.clip, "text", backbone.clip), "token_embedding", None)
    if embedding is None:  # a text tower of transformers, which comes with its tokenizer
        return
    largest = int(backbone.tokenizer([prompts[0] for prompts in class_set.prompts]).max())
    require(
        largest < embedding.num_embeddings,
        f"--model {backbone.model}: its tokenizer gives the number {largest}, its text tower has "
        f"{embedding.num_embeddings} embeddings; put the tokenizer's files of the same model into the folder",
    )


def check_prompts(tokenizer: Any, class_set: ClassSet) -> None:
    """open_clip would truncate a prompt that is too long for the text tower, silently."""
    limit = getattr(tokenizer, "context_length", None)
    if limit is None or not hasattr(tokenizer, "encode"):
        return
    for prompt in chain.from_iterable(class_set.prompts):
        length = len(tokenizer.encode(prompt)) + 2
        require(length <= limit, f"the prompt '{prompt[:80]}' has {length} tokens, the model takes {limit}; shorten it")


def load_class_set(source: str | list[Any]) -> ClassSet:
    """Reads a class file (YAML, or .txt with one name per line), the bundled set ('imagenet': 1,000 names and 80
    templates, from open_clip), or the names themselves: a list, or "cat,dog,horse".

    The file holds ``classes:``, a list of names or of ``{name, prompts, share}``, and ``templates:``, strings with
    ``{}``; or is a list of classes alone. Shares are relative numbers above 0, for all classes or for none."""
    if source == BUNDLED_SET:
        from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

        templates = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
        return make_class_set(list(IMAGENET_CLASSNAMES), templates, BUNDLED_SET, allow_repeats=True)
    if isinstance(source, list):
        return make_class_set(source, [DEFAULT_TEMPLATE], "--classes")
    require(source not in ("", ".", ".."), "--classes is missing; give names or a file")
    where = f"--classes {source}"
    hint = f"a file with a name a line, the names themselves (cat,dog,horse), or the set that ships: {BUNDLED_SET}"
    is_path = storage.is_remote(source) or bool(CLASS_FILE.search(source)) or "/" in source
    if not is_path and not storage.exists(source):
        return make_class_set(split_names(source, hint), [DEFAULT_TEMPLATE], f"--classes {abbreviate(source)}")
    folder = not storage.is_remote(source) and storage.local(source).is_dir()
    require(not folder, f"{where}: is a folder; give {hint}")
    require(storage.exists(source), f"{where}: no such file; give {hint}")
    data = storage.read_bytes(source)
    content: Any = parse_names(data, where) if source.lower().endswith(".txt") else parse_yaml(data, where)
    if isinstance(content, list):
        content = {"classes": content}
    has_classes = isinstance(content, dict) and "classes" in content
    require(has_classes, f"{where}: expected 'classes:' and 'templates:', or a list of names")
    unknown = content.keys() - {"classes", "templates"}
    examples = ", ".join(sorted(map(abbreviate, unknown))[:5])
    require(not unknown, f"{where}: unknown key {examples}; known: classes, templates")
    return make_class_set(content["classes"], content.get("templates") or [DEFAULT_TEMPLATE], where)


def split_names(text: str, hint: str) -> list[str]:
    """The names in "cat,dog,horse"."""
    names, where = [name.strip() for name in text.split(",")], f"--classes {abbreviate(text)}"
    if len(names) == 1 and ";" in text:
        raise UserError(f"{where}: no such file; separate names by commas: {abbreviate(text.replace(';', ','))}")
    require(len(names) > 1, f"{where}: no such file, and one name; give {hint}")
    require(all(names), f"{where}: a name is empty; write the names without spaces between them, or quote them all")
    return names


def parse_names(data: bytes, where: str) -> list[str]:
    """The names in a text file, one per line; a line that begins with "# " is a comment."""
    try:
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise UserError(f"{where}: is no text in UTF-8") from None
    names = [line for line in lines if line and not line.startswith("# ")]
    require(len(names) != 1 or "," not in names[0], f"{where}: has one line; give a name a line, without commas")
    return names


def make_class_set(classes: Any, templates: Any, where: str, allow_repeats: bool = False) -> ClassSet:
    require(isinstance(classes, list) and len(classes) >= 2, f"{where}: needs at least two classes")
    require(isinstance(templates, list), f"{where}: templates must be a list of strings with {{}}")
    for template in templates:
        has_gap = is_text(template) and "{}" in template
        require(has_gap, f"{where}: the template {abbreviate(template)} has no {{}} for the class name")
    names, prompts, shares, room = [], [], dict[str, Any](), LARGEST_SET
    longest = sum(PROMPT_OVERHEAD + len(template) for template in templates)
    for number, entry in enumerate(classes, 1):
        values = entry if isinstance(entry, dict) else {"name": entry}
        name, listed = parse_name(values.get("name"), f"{where}: class {number}"), values.get("prompts")
        room -= PROMPT_OVERHEAD * len(listed) if isinstance(listed, list) else longest + len(templates) * len(name)
        require(room >= 0, f"{where}: class {number} of {len(classes)}: too many prompts, at most some 5 million")
        require(
            listed is None or (isinstance(listed, list) and bool(listed) and all(map(is_text, listed))),
            f"{where}: the prompts of class {abbreviate(name)} must be a list of strings",
        )
        if "share" in values:
            share = shares[name] = values["share"]
            in_range = type(share) in (int, float) and 1 / LARGEST_SHARE <= share <= LARGEST_SHARE
            require(
                in_range,
                f"{where}: the share of class {abbreviate(name)} must be a number from {1 / LARGEST_SHARE:g} to "
                f"{LARGEST_SHARE:g}, not {abbreviate(share)}",
            )
        names.append(name)
        prompts.append(tuple(listed or (template.replace("{}", name) for template in templates)))
    if not allow_repeats:
        refuse_repeats(names, [entry["name"] if isinstance(entry, dict) else entry for entry in classes], where)
    without = next((name for name in names if name not in shares), "")
    require(
        not (shares and without),
        f"{where}: class {abbreviate(without)} has no share; give one to every class or to none",
    )
    total = sum(shares.values())
    relative = tuple(float(share / total) for share in shares.values())
    return ClassSet(number_repeated(names), tuple(prompts), tuple(templates), relative)


def refuse_repeats(names: list[str], written: list[Any], where: str) -> None:
    """Raises UserError: two of the names are equal, or look so. `written`: as they are in the file."""
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    forms = {str(form).strip() for form, name in zip(written, names, strict=True) if name in repeated}
    why = "" if len(forms) == len(repeated) else ", in Unicode forms that look the same"
    require(not repeated, f"{where}: class {', '.join(map(abbreviate, repeated[:5]))} appears more than once{why}")
    alike = Counter(map(remove_invisible, names))
    same = next((name for name, count in alike.items() if count > 1), "")
    require(
        not same, f"{where}: two classes are {abbreviate(same)}, but for a character that cannot be seen; delete that"
    )


def parse_name(name: Any, where: str) -> str:
    """A class name, which may be a number in YAML."""
    if isinstance(name, float):
        name = None if math.isnan(name) else str(name)  # of a cell without a value
    elif type(name) is int and name.bit_length() <= LONGEST_NUMBER:
        name = str(name)
    hint = " (YAML reads yes, no, on and off as true and false: quote them)" if isinstance(name, bool) else ""
    require(is_text(name), f"{where} is {abbreviate(name)}, which is no name{hint}")
    return compose(name.strip())


def is_text(value: Any) -> bool:
    """Whether it is a string that is not blank and can be encoded: YAML can contain half a surrogate pair."""
    return isinstance(value, str) and bool(value.strip()) and not UNWRITABLE.search(value)


def number_repeated(names: list[str]) -> tuple[str, ...]:
    """Numbers repeated names: ImageNet has 'missile' and 'sunglasses' twice. The prompts stay the same."""
    counts: dict[str, int] = {}
    result = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        result.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return tuple(result)


def save_classifier(result: TextClassifier, uri: str) -> None:
    from safetensors.torch import save

    description = asdict(replace(result, sha256=compute_checksum(result.weights)))
    del description["weights"]
    storage.write_bytes(uri, save({"classifier": result.weights.contiguous()}, {METADATA_KEY: json.dumps(description)}))


def compute_checksum(weights: Tensor) -> str:
    """The sha256 of the weights."""
    return hashlib.sha256(weights.contiguous().numpy().tobytes()).hexdigest()


def load_text_classifier(uri: str, flag: str = "--classifier") -> TextClassifier:
    """Reads a classifier file, local or gs://; `flag` is the command line flag that named it."""
    from safetensors.torch import load

    header = read_header(uri, flag)
    try:
        weights = load(storage.read_bytes(uri))["classifier"]
        intact = weights.ndim == 2 and weights.shape[1] == len(header.classes) and weights.is_floating_point()
        intact = intact and bool(weights.isfinite().all())  # after ndim: with 100,000 dimensions it takes a minute
        intact = intact and header.sha256 == compute_checksum(weights)
    except Exception:
        intact = False
    if not intact:
        raise make_damage_error(uri, flag)
    return TextClassifier(**vars(header), weights=weights)


def read_header(uri: str, flag: str = "--classifier") -> ClassifierHeader:
    """The contents of a classifier file but its weights, without torch, with the current path of its model folder."""
    from must.model.hub import resolve_folder

    folder = not storage.is_remote(uri) and storage.local(uri).is_dir()
    require(
        not folder, f"{flag} {uri}: is a folder; give the classifier file in it, {storage.join(uri, CLASSIFIER_FILE)}"
    )
    require(storage.exists(uri), f"{flag} {uri}: no such file; make it with `must classifier`")
    size = min(int.from_bytes(storage.read_bytes(uri, 0, 8), "little"), LARGEST_HEADER)
    header = parse_header(storage.read_bytes(uri, 8, size), uri, flag)
    return replace(header, model_folder=resolve_folder(header.model_folder, uri))


def parse_header(data: bytes, uri: str, flag: str) -> ClassifierHeader:
    def checked(content: dict[str, Any]) -> ClassifierHeader:
        header = make_record(ClassifierHeader, content)
        require(0 < header.logit_scale <= LARGEST_LOGIT_FACTOR, "a factor out of range")
        require(not header.shares or len(header.shares) == len(header.classes), "shares of other classes")
        require(all(0 < share <= 1 for share in header.shares), "a share out of range")
        return header

    text = storage.parse_object(data, lambda header: header["__metadata__"][METADATA_KEY], make_damage_error(uri, flag))
    return storage.parse_object(text, checked, make_damage_error(uri, flag))


def require_shares(shares: Sequence[float] | None, uri: str) -> None:
    require(
        bool(shares),
        f"--class-prior given: {uri} holds no class shares; give every class a share: in the class file and make it "
        "again with `must classifier`",
    )


def make_damage_error(uri: str, flag: str) -> ValueError:
    folder, _, name = uri.rpartition("/")
    parts = (DESCRIPTION_FILE, MODEL_FOLDER_FILE, "config.json")
    if name.endswith("model.safetensors") and any(storage.exists(storage.join(folder, part)) for part in parts):
        return UserError(f"{flag} {uri}: is a part of a model; give its folder, {folder}")
    return UserError(f"{flag} {uri}: is damaged or no file of `must classifier`")
