"""An independent encoder that says which images are similar: a self-supervised one of timm or open_clip, or none.

`must classifier` loads it from wherever it was named, and keeps it in a folder beside the classifier, timm's or
open_clip's own; later stages read that. N images, D numbers each.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from must.base import storage
from must.base.errors import UserError
from must.base.files import MODEL_FOLDER_FILE
from must.base.parameters import require
from must.base.text import close_to
from must.data.augment.normalize import channels
from must.data.image.preprocess import Preprocess
from must.method.model.backbone import Backbone, is_folder, load_backbone
from must.method.model.fetch import here
from must.method.model.folder import TIMMS_FILE, TIMMS_WEIGHTS, Kept, save_files, verified, write_files
from must.method.model.hub import LATER, WEIGHTS_FILE, changed, fetched, first_line

AUTO, TOWER = "auto", "tower"
DEFAULT = "timm:vit_small_patch14_dinov2.lvd142m"  # k-NN on its class token: 79% of ImageNet (arXiv 2304.07193)
SMALLEST = 20_000_000  # weights of an image tower from which `auto` wants the default: it has 22 million itself
SIDE = 224  # pixels; an encoder of timm that was made for more looks at so many, as k-NN is reported for DINOv2
TIMMS_OLD_WEIGHTS = "pytorch_model.bin"
KINDS = f"{AUTO}, {TOWER}, timm:NAME, timm:NAME=CHECKPOINT, open_clip:NAME/TAG, or a folder of either"


class Named(NamedTuple):
    """`kind`: timm or open_clip; `name`: of a model there, or a folder on this machine; `file`: a checkpoint."""

    kind: str
    name: str
    file: str = ""


class Encoder(nn.Module):
    """Frozen. It looks at the pixels that the model looks at, in its own size and with its own mean and deviation."""

    def __init__(self, network: nn.Module, preprocess: Preprocess, name: str = "") -> None:
        super().__init__()
        self.network, self.preprocess, self.name = network, preprocess, name
        self.requires_grad_(False).eval()

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> float32 [B, D]."""
        images = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format) / 255
        size, mean, std = self.preprocess.size, self.preprocess.mean, self.preprocess.std
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp_(0, 1)
        images = (images - channels(mean, images.device)) / channels(std, images.device)
        found = self.network(images)
        return (found[0] if isinstance(found, tuple) else found).float()


@dataclass(frozen=True)
class Loaded:
    """`network`: timm's, or open_clip's whole model in `backbone`; `licence`: as its publisher says, '' if unknown."""

    network: Any
    licence: str = ""
    backbone: Backbone | None = None


def provide(given: str, backbone: Backbone, models: str) -> tuple[Kept | None, str]:
    """(the encoder that judges, kept below `models`; a line that names the judge). None: the frozen tower does.

    Raises:
        ValueError: an encoder was named that cannot be had. `auto` takes the tower then.
    """
    visual: Any = backbone.clip.visual
    weights = sum(value.numel() for value in visual.parameters())
    if given == TOWER or (given == AUTO and weights < SMALLEST):
        why = "" if given == TOWER else ", smaller than any encoder that could be asked"
        return None, f"similar images are found by the frozen image tower itself{why}"
    try:
        kept = keep(DEFAULT if given == AUTO else given, models)
    except ValueError as error:
        if given != AUTO or isinstance(error, storage.TransientError):
            raise
        reason = str(error).removeprefix(f"--look-alikes {DEFAULT}: ").partition(f": {LATER}")[0]
        return None, f"similar images are found by the frozen image tower itself: {DEFAULT} cannot be had ({reason})"
    return kept, f"similar images are found by {kept.name} (licence: {kept.licence or 'not known'}) -> {kept.folder}"


def keep(given: str, models: str) -> Kept:
    """Loads an encoder and writes it to a folder below `models`. Raises ValueError: it cannot be had."""
    named = understood(given)
    found = load(named, given)
    name = re.sub(r"[^\w.-]+", "-", Path(named.name).name) or "encoder"
    with blamed(given):
        if found.backbone:
            whole, files = found.backbone, (MODEL_FOLDER_FILE, WEIGHTS_FILE)
            place, sha256 = save_files(lambda folder: write_files(whole, folder), models, name, *files)
        else:
            check_sees(found.network)
            place, sha256 = save_files(
                lambda folder: write_timm(found.network, folder), models, name, TIMMS_FILE, TIMMS_WEIGHTS
            )
    return Kept(given, place, sha256, found.licence)


def understood(given: str) -> Named:
    """What a user named. Folders and files in a bucket are fetched.

    Raises:
        ValueError: it is no encoder's name, or there is nothing of that name.
    """
    asked = f"--look-alikes {given}"
    kind, _, rest = given.partition(":")
    if kind == "open_clip" and rest:
        return Named("open_clip", rest)
    if kind == "timm" and rest:
        name, _, file = rest.partition("=")
        check_timm(name, with_weights=not file, asked=asked)
        file = here(file)
        require(not file or Path(file).is_file(), f"{asked}: no such file")
        return Named("timm", name, file)
    if storage.is_remote(given) or is_folder(given) or Path(given).exists():
        require(not Path(given).is_file(), f"{asked}: is a file; say of which model: timm:NAME={given}")
        return of_folder(here(given.removeprefix("local-dir:")), asked)
    published = [DEFAULT.removeprefix("timm:"), *timm.list_pretrained()]
    near = close_to(given, published) or [one for one in published if given.lower() in one]
    hint = f"; did you mean timm:{near[0]}?" if near else ""
    raise UserError(f"{asked}: is none of {KINDS}{hint}")


def of_folder(folder: str, asked: str) -> Named:
    if (Path(folder) / MODEL_FOLDER_FILE).is_file():
        return Named("open_clip", folder)
    there = (Path(folder) / TIMMS_FILE).is_file()
    require(there, f"{asked}: has neither {TIMMS_FILE} (of timm) nor {MODEL_FOLDER_FILE}")
    return Named("timm", folder)


def check_timm(name: str, with_weights: bool, asked: str) -> None:
    """Raises ValueError: timm has no such model, or no weights of that name."""
    architecture, _, tag = name.partition(".")
    published = timm.list_pretrained()
    known = name in published or (timm.is_model(name) and timm.is_model_pretrained(name))
    if known or (not with_weights and timm.is_model(architecture) and (not tag or name in published)):
        return
    pool = published if with_weights else [*published, *timm.list_models()]
    near = close_to(name, pool, 3) or [one for one in published if one.partition(".")[0] == architecture][:3]
    hint = f"; did you mean {' or '.join(f'timm:{one}' for one in near)}?" if near else ""
    what = "weights" if timm.is_model(architecture) else "model"
    raise UserError(f"{asked}: timm knows no {what} of that name{hint}")


def check(given: str) -> None:
    """A look at what was named, before anything is downloaded: raises ValueError where it could not be loaded."""
    from must.method.model.backbone import check_name, check_pretrained
    from must.method.model.backbone import understood as parted

    if given in (AUTO, TOWER, ""):
        return
    asked = f"--look-alikes {given}"
    if storage.is_remote(given):  # not fetched for a look
        there = any(storage.exists(storage.join(given, file)) for file in (TIMMS_FILE, MODEL_FOLDER_FILE))
        return require(there, f"{asked}: has neither {TIMMS_FILE} (of timm) nor {MODEL_FOLDER_FILE}")
    kind, _, rest = given.partition(":")
    if kind == "timm" and storage.is_remote(file := rest.partition("=")[2]):
        check_timm(rest.partition("=")[0], with_weights=False, asked=asked)
        return require(storage.exists(file), f"{asked}: no such file")
    named = understood(given)
    with blamed(given):
        if named.kind == "timm" and not named.file and not Path(named.name).is_dir():
            with on_hub(named.name, only_look=True):
                pass
        elif named.kind == "open_clip" and not is_folder(named.name) and not named.name.startswith("hf-hub:"):
            model, tag = parted(named.name, "")
            check_name(model)
            check_pretrained(model, tag)


def load(named: Named, given: str) -> Loaded:
    """In float32 on the CPU. Raises ValueError: it cannot be loaded; the message begins with the flag."""
    with blamed(given):
        if named.kind == "open_clip":
            whole = load_backbone(named.name, with_tokenizer=False)
            return Loaded(None, "", whole)
        place = Path(named.name)
        if place.is_dir():
            damaged = UserError(f"its {TIMMS_FILE} is damaged")
            settings = storage.read_object(str(place / TIMMS_FILE), dict, damaged).get("pretrained_cfg") or {}
            return of_timm(f"local-dir:{place}", settings, {})
        config = get_pretrained_cfg(named.name, allow_unregistered=True)
        settings = config.to_dict() if config else {}
        if named.file:
            return of_timm(named.name, settings, {"pretrained_cfg_overlay": {"file": named.file}})
        with on_hub(named.name):
            return of_timm(named.name, settings, {})


def of_timm(name: str, config: dict[str, Any], options: dict[str, Any]) -> Loaded:
    size = (config.get("input_size") or (3, SIDE, SIDE))[-1]
    if config.get("fixed_input_size") and size > SIDE:
        options = options | {"img_size": SIDE}
    networks = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 1):  # timm leaves what a file lacks as it was drawn
            torch.manual_seed(seed)
            networks.append(timm.create_model(name, pretrained=True, num_classes=0, **options).eval())
    one, other = (network.state_dict() for network in networks)
    whole = all(torch.equal(value, other[key]) for key, value in one.items())
    require(whole, "its weights are of another network: they lack a part of this one")
    return Loaded(networks[0], str(config.get("license") or ""))


@contextmanager
def on_hub(name: str, only_look: bool = False) -> Iterator[None]:
    """A model of timm's is in the hub's cache inside the block, or, to `only_look`, could be fetched."""
    config = get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise UserError(f"timm has it on no hub; give a checkpoint: timm:{name}=FILE")
    repository = config.hf_hub_id
    names = [config.hf_hub_filename] if config.hf_hub_filename else [TIMMS_WEIGHTS, TIMMS_OLD_WEIGHTS]
    instead = (
        f"put {TIMMS_FILE} and {TIMMS_WEIGHTS} of {repository} into a folder and give it as --look-alikes, or take "
        f"--look-alikes {TOWER} (docs/models.md)"
    )
    answers = fetched(repository, *names, instead=instead, only_look=only_look)
    with changed(HF_HUB_OFFLINE=True) if not answers else nullcontext():
        yield


def write_timm(network: Any, folder: Path) -> None:
    timm.models.save_for_hf(network, str(folder), safe_serialization=True)
    for path in folder.iterdir():  # safetensors makes files private; other users' pods read these
        path.chmod(0o666 & ~storage.umask())


def check_sees(network: Any) -> None:
    """Raises ValueError: it does not give one row of numbers an image."""
    size = timm.data.resolve_model_data_config(network)["input_size"][-1]
    embed = getattr(getattr(network, "patch_embed", None), "img_size", None)
    encoder = Encoder(network, Preprocess(size=embed[0] if embed else size))
    found = encoder(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))
    whole = found.ndim == 2 and bool(found.isfinite().all())
    require(whole, "gives no single row of numbers an image, so it cannot say which images look alike")


def load_kept(kept: Kept | None) -> Encoder | None:
    """The encoder of a classifier file, in float32 on the CPU; no hub is asked. None where the frozen tower judges.

    Raises:
        ValueError: it is not there, or not what the classifier stage kept.
    """
    if kept is None:
        return None
    of_clip = storage.exists(storage.join(kept.folder, MODEL_FOLDER_FILE))
    files = (MODEL_FOLDER_FILE, WEIGHTS_FILE) if of_clip else (TIMMS_FILE, TIMMS_WEIGHTS)
    folder = verified(kept.folder, kept.sha256, *files, what="the encoder for look-alikes")
    named = of_folder(folder, kept.folder)
    found = load(named, kept.name)
    if found.backbone:
        visual: Any = found.backbone.clip.visual
        return Encoder(visual, found.backbone.preprocess, kept.name)
    told = timm.data.resolve_model_data_config(found.network)
    filter = told["interpolation"] if told["interpolation"] in ("bicubic", "bilinear") else "bicubic"
    values = {"size": list(told["input_size"][1:]), "mean": list(told["mean"]), "std": list(told["std"])}
    return Encoder(found.network, Preprocess.from_dict({**values, "interpolation": filter}), kept.name)


@contextmanager
def blamed(given: str) -> Iterator[None]:
    """What goes wrong inside is one line that begins with the flag: timm and the hub raise anything."""
    asked = f"--look-alikes {given}"
    try:
        yield
    except storage.TransientError:
        raise
    except ValueError as error:
        text = re.sub(r"^--model \S+( --pretrained \S+)?: ", "", str(error))
        raise UserError(text if text.startswith(asked) else f"{asked}: {text}") from error
    except Exception as error:
        raise UserError(f"{asked}: cannot be loaded: {first_line(error)}") from error
