"""Zero-shot classifier weights from class names and prompt templates, and the classifier file."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from must.base import storage
from must.base.errors import UserError
from must.base.files import CLASSIFIER_FILE, DESCRIPTION_FILE, MODEL_FOLDER_FILE
from must.base.parameters import parse_yaml, require
from must.base.text import brief
from must.config import ClassifierConfig
from must.method.model.description import LARGEST_HEADER, LARGEST_LOGIT_FACTOR

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

METADATA_KEY = "must"
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
class TextClassifier:
    """`weights` [D, K], unit columns, and their origin."""

    weights: Tensor
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    model: str
    pretrained: str
    logit_scale: float
    shares: tuple[float, ...] = ()  # of the images, sum 1; empty: unknown
    model_folder: str = ""  # the model's own files; empty: it is loaded by name
    model_sha256: str = ""  # of the weights in it


def classifier(config: ClassifierConfig) -> TextClassifier:
    """The stage: reads the class file, runs the text tower, writes the classifier file."""
    from must.method.distributed.process_group import pick_device
    from must.method.model.backbone import load_backbone
    from must.method.model.folder import default_models_folder, save_model

    class_set = load_class_set(config.classes)
    backbone = load_backbone(config.model, config.pretrained)
    text_weights = text_classifier(backbone, class_set, pick_device(config.device))
    models = config.model_store or default_models_folder(config.output)
    folder, sha256 = save_model(backbone, models)
    result = replace(text_weights, model_folder=folder, model_sha256=sha256)
    save_classifier(result, config.output)
    prompts, dimensions = sum(map(len, class_set.prompts)), len(text_weights.weights)
    logger.info(f"{len(class_set.names)} classes, {prompts} prompts, {dimensions} dimensions -> {config.output}")
    logger.info(f"the model, for later stages -> {folder}")
    return result


def text_classifier(backbone: Any, class_set: ClassSet, device: Any) -> TextClassifier:
    """The classifier from the text tower's features of the prompts; the tower stays on the device."""
    return TextClassifier(
        build_classifier(backbone, class_set, device),
        class_set.names,
        class_set.templates,
        backbone.model,
        backbone.pretrained,
        backbone.logit_scale,
        class_set.shares,
    )


def build_classifier(backbone: Any, class_set: ClassSet, device: Any) -> Tensor:
    """Mean of a class's unit prompt features, made unit again: float32 [D, K]."""
    import torch
    from open_clip import build_zero_shot_classifier

    check_prompts(backbone.tokenizer, class_set)
    check_vocabulary(backbone, class_set)
    clip = backbone.clip.to(device)
    columns = []
    shared = all(len(prompts) == len(class_set.prompts[0]) for prompts in class_set.prompts)
    if shared:  # the same number of prompts a class: open_clip batches over classes
        lookup = dict(zip(class_set.names, class_set.prompts, strict=True))
        templates = [lambda name, i=i: lookup[name][i] for i in range(len(class_set.prompts[0]))]
        columns.append(
            build_zero_shot_classifier(
                clip, backbone.tokenizer, class_set.names, templates, device=device, use_tqdm=sys.stderr.isatty()
            )
        )
    else:
        for name, prompts in zip(class_set.names, class_set.prompts, strict=True):
            templates = [lambda _, prompt=prompt: prompt for prompt in prompts]
            columns.append(build_zero_shot_classifier(clip, backbone.tokenizer, [name], templates, device=device))
    return torch.cat(columns, dim=1).float().cpu()


def check_vocabulary(backbone: Any, class_set: ClassSet) -> None:
    """Raises UserError: the tokenizer is of another text tower, and gives numbers without an embedding in this one."""
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
    """Raises UserError: a prompt is too long for the text tower, and open_clip would truncate it silently."""
    limit = getattr(tokenizer, "context_length", None)
    if limit is None or not hasattr(tokenizer, "encode"):
        return
    for prompt in chain.from_iterable(class_set.prompts):
        length = len(tokenizer.encode(prompt)) + 2
        require(
            length <= limit,
            f"the prompt '{prompt[:80]}' has {length} tokens, the model takes {limit}; shorten it",
        )


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
    hint = f"a file with a name a line, the names themselves (cat,dog,horse), or the set that ships: {BUNDLED_SET}"
    is_path = storage.is_remote(source) or bool(CLASS_FILE.search(source)) or "/" in source
    if not is_path and not storage.exists(source):
        return make_class_set(split_names(source, hint), [DEFAULT_TEMPLATE], f"--classes {brief(source)}")
    folder = not storage.is_remote(source) and storage.local(source).is_dir()
    require(not folder, f"--classes {source}: is a folder; give {hint}")
    require(storage.exists(source), f"--classes {source}: no such file; give {hint}")
    if source.lower().endswith(".txt"):
        content: Any = names_in(storage.read_bytes(source), f"--classes {source}")
    else:
        content = parse_yaml(storage.read_bytes(source), f"--classes {source}")
    if isinstance(content, list):
        content = {"classes": content}
    require(
        isinstance(content, dict) and "classes" in content,
        f"--classes {source}: expected 'classes:' and 'templates:', or a list of names",
    )
    unknown = content.keys() - {"classes", "templates"}
    examples = ", ".join(sorted(map(brief, unknown))[:5])
    require(not unknown, f"--classes {source}: unknown key {examples}; known: classes, templates")
    return make_class_set(content["classes"], content.get("templates") or [DEFAULT_TEMPLATE], f"--classes {source}")


def split_names(text: str, hint: str) -> list[str]:
    """The names in "cat,dog,horse"."""
    names, where = [name.strip() for name in text.split(",")], f"--classes {brief(text)}"
    if len(names) == 1 and ";" in text:
        raise UserError(f"{where}: no such file; separate names by commas: {brief(text.replace(';', ','))}")
    require(len(names) > 1, f"{where}: no such file, and one name; give {hint}")
    require(all(names), f"{where}: a name is empty; write the names without spaces between them, or quote them all")
    return names


def names_in(data: bytes, where: str) -> list[str]:
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
        require(
            is_text(template) and template.count("{}") >= 1,
            f"{where}: the template {brief(template)} has no {{}} for the class name",
        )
    names, prompts, shares, room = [], [], dict[str, Any](), LARGEST_SET
    longest = sum(PROMPT_OVERHEAD + len(template) for template in templates)
    for number, entry in enumerate(classes):
        name: Any = entry.get("name") if isinstance(entry, dict) else entry
        if isinstance(name, float) or (type(name) is int and name.bit_length() <= LONGEST_NUMBER):
            name = str(name)
        require(
            is_text(name),
            f"{where}: class {number + 1} is {brief(name)}, which is no name"
            + (" (YAML reads yes, no, on and off as true and false: quote them)" if isinstance(name, bool) else ""),
        )
        name = name.strip()
        listed = entry.get("prompts") if isinstance(entry, dict) else None
        room -= PROMPT_OVERHEAD * len(listed) if isinstance(listed, list) else longest + len(templates) * len(name)
        require(room >= 0, f"{where}: class {number + 1} of {len(classes)}: too many prompts, at most some 5 million")
        require(
            listed is None or (isinstance(listed, list) and bool(listed) and all(map(is_text, listed))),
            f"{where}: the prompts of class {brief(name)} must be a list of strings",
        )
        if isinstance(entry, dict) and "share" in entry:
            shares[name] = entry["share"]
            require(
                is_share(shares[name]),
                f"{where}: the share of class {brief(name)} must be a number from {1 / LARGEST_SHARE:g} to "
                f"{LARGEST_SHARE:g}, not {brief(shares[name])}",
            )
        names.append(name)
        prompts.append(tuple(listed or (template.replace("{}", name) for template in templates)))
    repeated = sorted(name for name, count in Counter(names).items() if count > 1) if not allow_repeats else []
    require(not repeated, f"{where}: class {', '.join(map(brief, repeated[:5]))} appears more than once")
    without = next((name for name in names if name not in shares), "")
    require(
        not (shares and without), f"{where}: class {brief(without)} has no share; give one to every class or to none"
    )
    total = sum(shares.values())
    relative = tuple(float(share / total) for share in shares.values())
    return ClassSet(unique(names), tuple(prompts), tuple(templates), relative)


def is_share(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 1 / LARGEST_SHARE <= value <= LARGEST_SHARE


def is_text(value: Any) -> bool:
    """Whether it is a string that is not blank and can be encoded: YAML can contain half a surrogate pair."""
    return isinstance(value, str) and bool(value.strip()) and not UNWRITABLE.search(value)


def unique(names: list[str]) -> tuple[str, ...]:
    """Numbers repeated names: ImageNet has 'missile' and 'sunglasses' twice. The prompts stay the same."""
    counts: dict[str, int] = {}
    result = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        result.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return tuple(result)


def save_classifier(result: TextClassifier, uri: str) -> None:
    from safetensors.torch import save

    description = asdict(result)
    del description["weights"]
    description["sha256"] = checksum(result.weights)
    storage.write_bytes(uri, save({"classifier": result.weights.contiguous()}, {METADATA_KEY: json.dumps(description)}))


def checksum(weights: Tensor) -> str:
    """The sha256 of the weights."""
    return hashlib.sha256(weights.contiguous().numpy().tobytes()).hexdigest()


def load_text_classifier(uri: str, flag: str = "--classifier") -> TextClassifier:
    """Reads a classifier file, local or gs://; `flag` is the command line flag that named it."""
    from safetensors.torch import load

    require_file(uri, flag)
    data = storage.read_bytes(uri)
    header = with_model_folder(parse_header(data[8 : 8 + header_size(data)], uri, flag), uri)
    try:
        weights = load(data)["classifier"]
        intact = weights.ndim == 2 and weights.shape[1] == len(header["classes"]) and weights.is_floating_point()
        intact = intact and bool(weights.isfinite().all())  # after ndim: with 100,000 dimensions it takes a minute
        intact = intact and header["sha256"] == checksum(weights)
    except Exception:
        intact = False
    if not intact:
        raise damage_error(uri, flag)
    known = {field.name for field in fields(TextClassifier)} - {"weights"}
    values = {name: value for name, value in header.items() if name in known}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return TextClassifier(weights=weights, **values)


def read_header(uri: str, flag: str = "--classifier") -> dict[str, Any]:
    """The contents of a classifier file but its weights, without torch. Raises as `load_text_classifier` does."""
    require_file(uri, flag)
    header = parse_header(storage.read_bytes(uri, 8, header_size(storage.read_bytes(uri, 0, 8))), uri, flag)
    return with_model_folder(header, uri)


def with_model_folder(header: dict[str, Any], uri: str) -> dict[str, Any]:
    """The header with the current path of its model folder."""
    from must.method.model.folder import resolve_folder

    return header | {"model_folder": resolve_folder(header["model_folder"], uri)}


def header_size(data: bytes) -> int:
    """Bytes of a safetensors file's header, which follows the first 8 bytes."""
    return min(int.from_bytes(data[:8], "little"), LARGEST_HEADER)


def parse_header(data: bytes, uri: str, flag: str) -> dict[str, Any]:
    def checked(header: dict[str, Any]) -> dict[str, Any]:
        texts = [*header["classes"], *header["templates"], header["model"], header["pretrained"]]
        texts += [header["model_folder"], header["model_sha256"]]
        scale = header["logit_scale"]
        valid = all(isinstance(text, str) for text in texts)
        valid &= isinstance(scale, int | float) and 0 < scale <= LARGEST_LOGIT_FACTOR
        valid &= header["shares"] == [] or are_shares(header["shares"], len(header["classes"]))
        require(valid, "a value of another kind")
        return header

    text = storage.parse_object(data, lambda header: header["__metadata__"][METADATA_KEY], damage_error(uri, flag))
    return storage.parse_object(text, checked, damage_error(uri, flag))


def are_shares(value: Any, classes: int) -> bool:
    """Whether a value from a file is a share above 0 for each class."""
    has_all = isinstance(value, list) and len(value) == classes
    return has_all and all(isinstance(share, int | float) and 0 < share <= 1 for share in value)


def require_shares(shares: Sequence[float] | None, uri: str) -> None:
    """Raises ValueError: a classifier file has no class shares."""
    require(
        bool(shares),
        f"--class-prior given: {uri} holds no class shares; give every class a share: in the class file and make it "
        "again with `must classifier`",
    )


def require_file(uri: str, flag: str) -> None:
    folder = not storage.is_remote(uri) and storage.local(uri).is_dir()
    require(
        not folder, f"{flag} {uri}: is a folder; give the classifier file in it, {storage.join(uri, CLASSIFIER_FILE)}"
    )
    require(storage.exists(uri), f"{flag} {uri}: no such file; make it with `must classifier`")


def damage_error(uri: str, flag: str) -> ValueError:
    folder, _, name = uri.rpartition("/")
    parts = (DESCRIPTION_FILE, MODEL_FOLDER_FILE, "config.json")
    if name.endswith("model.safetensors") and any(storage.exists(storage.join(folder, part)) for part in parts):
        return UserError(f"{flag} {uri}: is a part of a model; give its folder, {folder}")
    return UserError(f"{flag} {uri}: is damaged or no file of `must classifier`")
