"""What --model may name: a folder, a model on a hub or in a bucket, or an open_clip model; its download, once; and
where the model of a classifier file is.

huggingface_hub waits a minute and more for a hub that does not respond; open_clip then tries other file names, and
reports the error of the last one. Here each file is requested once, with a short timeout, before open_clip runs, so
that an error is one line and comes early. Imports no torch, which takes seconds."""

import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from must.base import storage
from must.base.errors import TransientError, UserError
from must.base.lock import in_turn
from must.base.parameters import require
from must.base.storage import list_names
from must.base.text import close_to, make_one_line, remove_secrets
from must.config.work import DESCRIPTION_FILE, MODEL_FOLDER_FILE, PARTS

logger = logging.getLogger(__name__)

PATIENCE = 4  # seconds to wait for the hub's response about a file; HF_HUB_ETAG_TIMEOUT overrides it

HUB = "hf-hub:"
MODELS_FOLDER = PARTS["models"].path  # beside the classifier file: the models of classifiers (backbone.py)
OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
OLD_WEIGHTS_FILE = "open_clip_pytorch_model.bin"  # a pickle, read with weights_only
TEXT_CONFIG_FILE = "config.json"  # in a model folder of open_clip: the configuration of a transformers text tower
CONVERT = "a model of transformers is converted once (docs/models.md)"
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)


def list_models() -> list[str]:
    """The names of open_clip's models, from its files if it is not imported; [] without open_clip."""
    if "open_clip" in sys.modules:  # a program may have added models
        return list(sys.modules["open_clip"].list_models())
    spec = find_spec("open_clip")
    folder = Path(spec.origin).with_name("model_configs") if spec and spec.origin else Path()
    return sorted(path.stem for path in folder.glob("*.json"))


def check_model_name(model: str, pretrained: str = "") -> None:
    """Raises UserError: there is no such folder, or no such open_clip model; or a folder is given other
    weights, by a tag. A hub is not asked."""
    if storage.is_remote(model) or is_folder(model):
        with labelled(f"--model {model}"):
            require_open_clip(model.removeprefix("local-dir:"))
        file = storage.is_remote(pretrained) or Path(pretrained).is_file()
        require(not pretrained or file, f"--pretrained {pretrained}: {model} has weights of its own; leave it out")
    elif not model.startswith(HUB) and list_models():
        check_name(parse_model_name(model, "")[0])


def require_open_clip(folder: str) -> None:
    """The folder, of this machine or in a bucket, must be a model in open_clip's format."""
    names = MODEL_FOLDER_FILE, DESCRIPTION_FILE, TEXT_CONFIG_FILE
    found = next((name for name in names if storage.exists(storage.join(folder, name))), "")
    hints = {
        DESCRIPTION_FILE: "; it is a bundle, without a text tower: `must export --to open_clip` makes a model of it",
        TEXT_CONFIG_FILE: f"; {CONVERT}",
    }
    require(found == MODEL_FOLDER_FILE, f"no {MODEL_FOLDER_FILE} in this folder{hints.get(found, '')}")


def parse_model_name(model: str, pretrained: str) -> tuple[str, str]:
    """(model, pretrained), after splitting names like NAME/TAG and NAME/FILE."""
    if is_folder(model) or model.startswith(HUB) or "/" not in model or storage.is_remote(model):
        return model, pretrained
    known = list_models()
    splits = [(model[:i], model[i + 1 :]) for i, character in enumerate(model) if character == "/"]
    name, tag = next((split for split in splits if split[0].replace("/", "-") in known), ("", ""))
    if model.replace("/", "-") in known or not name:  # ViT-B/16, or an unknown name
        return model, pretrained
    if pretrained and pretrained != tag:
        raise UserError(f"--model {model} already says --pretrained {tag}; it cannot be {pretrained} too")
    return name, tag


def check_name(model: str) -> None:
    known = list_models()
    if model.replace("/", "-") not in known:
        similar = close_to(model.replace("/", "-"), known, 3)
        hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
        raise UserError(f"--model {model}: no open_clip model and no folder{hint} (a model on a hub is {HUB}TEAM/NAME)")


def is_folder(model: str) -> bool:
    return model.startswith("local-dir:") or Path(model).is_dir() or model.startswith(("/", "./", "../"))


@contextmanager
def patched_constants(**settings: bool) -> Iterator[None]:
    """Changes settings of huggingface_hub, which it reads from the environment at import, inside the block."""
    from huggingface_hub import constants

    before = {name: getattr(constants, name) for name in settings}
    vars(constants).update(settings)
    try:
        yield
    finally:
        vars(constants).update(before)


@patched_constants(HF_HUB_DISABLE_TELEMETRY=True)  # otherwise it first requests a list of agent programs from the hub
def fetch_first(repository: str, *names: str) -> bool:
    """Downloads the first of the files `names` that the repository has to the hub's cache, unless it is cached. Returns
    whether the hub responded. If not, the cache has one of the files, possibly not the newest version.
    Raises TransientError if the hub cannot be reached, or is busy."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    hub, timeout_setting = remove_secrets(constants.ENDPOINT), constants.HF_HUB_ETAG_TIMEOUT
    timeout_s = PATIENCE if timeout_setting == constants.DEFAULT_ETAG_TIMEOUT else timeout_setting
    for name in names:
        try:
            get_hf_file_metadata(hf_hub_url(repository, name), timeout=timeout_s)
            hf_hub_download(repository, name, etag_timeout=timeout_s)
            return True
        except LocalEntryNotFoundError as problem:  # the hub has the file, and it did not arrive
            error: BaseException = problem.__cause__ or problem
        except EntryNotFoundError:
            continue
        except Exception as problem:  # many kinds of network errors, which change with huggingface_hub's versions
            error = problem
        if any(find_cached(repository, file) for file in names):
            logger.info(f"the hub {hub} cannot serve {repository}; using the cached copy")
            return False
        weights = OPEN_CLIP_WEIGHTS if names[0] == MODEL_FOLDER_FILE else names[0]
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
        reason, later = f"{status or find_first_line(error)}", may_succeed_later(status, error)
        if status in (401, 403, 404):
            reason = f"no such public model ({status}); check its name, set HF_TOKEN if it is private"
        raise (TransientError if later else UserError)(
            f"{name} of {repository} could not be downloaded from the hub {hub}: {reason}"
            f"{'; try again later' if later else ''}, or put {MODEL_FOLDER_FILE} and {weights} of it into a folder and "
            "give that as --model (docs/models.md)"
        ) from error
    hint = f"; {CONVERT}" if MODEL_FOLDER_FILE in names else ""
    raise UserError(f"{repository} on the hub {hub} has no {' and no '.join(names)}{hint}")


def find_cached(repository: str, name: str) -> str:
    """The path of a file in the hub's cache; '' if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, name)
    return path if isinstance(path, str) else ""


def may_succeed_later(status: int, error: BaseException) -> bool:
    """Whether the same request may succeed later; `status` 0: no response."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if status:
        return status >= 500 or storage.is_transient(status)
    hopeless = isinstance(error, ValueError | OfflineModeIsEnabled)
    return not hopeless and getattr(error, "errno", None) not in DISK_ERRORS


@contextmanager
def labelled(label: str) -> Iterator[None]:
    """Errors about input in the block begin with the label; transient ones stay transient."""
    try:
        yield
    except ValueError as error:
        kind = TransientError if isinstance(error, TransientError) else UserError
        raise kind(f"{label}: {error}") from error


def find_first_line(error: BaseException) -> str:
    """The message of an exception in one line, of at most 300 characters."""
    return remove_secrets(make_one_line(error))[:300]


def ensure_local(uri: str) -> str:
    """A path of this machine for a gs:// or file:// folder or file; anything else is returned as it is."""
    if not uri or not storage.is_remote(uri):
        return uri.removeprefix("file://")
    single = storage.exists(uri)
    names = [""] if single else list_names(uri)
    require(bool(names), f"{uri}: there is no model; expected a folder with open_clip_config.json or a checkpoint")
    uris = {name: storage.join(uri, name) if name else uri for name in names}
    contents = [[name, storage.size(file_uri), storage.find_generation(file_uri)] for name, file_uri in uris.items()]
    target = cache_folder() / hashlib.sha256(json.dumps([uri, contents]).encode()).hexdigest()[:32]
    with in_turn(target.with_suffix(".lock")):  # so that one process downloads it for all
        if not target.exists():
            logger.info(f"fetching the model from {min(uris.values(), key=len)} ({len(uris)} files)")
            storage.remove_leftovers(target.parent)
            unfinished = Path(tempfile.mkdtemp(dir=target.parent, prefix=storage.TEMPORARY))
            try:
                for name, file_uri in uris.items():
                    storage.download(file_uri, unfinished / (name or PurePosixPath(uri).name))
                unfinished.replace(target)  # which appears only when it is complete
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return str(target / PurePosixPath(uri).name) if single else str(target)


def cache_folder() -> Path:
    """The folder of downloaded models: XDG_CACHE_HOME, which a pod sets to its scratch space, or the user's cache."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "must" / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def find_models_folder(classifier: str) -> str:
    """The default folder of a classifier's models: beside the classifier file."""
    return storage.join(make_absolute(classifier).rpartition("/")[0], MODELS_FOLDER)


def make_absolute(uri: str) -> str:
    """The absolute path; URIs stay as they are."""
    return uri if storage.is_remote(uri) else os.path.normpath(storage.local(uri).absolute())


def resolve_folder(recorded: str, classifier: str) -> str:
    """The model folder that a classifier file names: beside the file, which may have moved, else at the recorded path;
    '' if it names none."""
    if not recorded:
        return ""
    beside = storage.join(find_models_folder(classifier), PurePosixPath(recorded).name)
    folders = beside, recorded
    return next((folder for folder in folders if storage.exists(storage.join(folder, MODEL_FOLDER_FILE))), beside)


def require_model(folder: str) -> None:
    require(
        not folder or storage.exists(storage.join(folder, MODEL_FOLDER_FILE)),
        f"{folder}: the classifier's model is not there, nor in the folder {MODELS_FOLDER} beside the classifier file; "
        f"put it back, {MODEL_FOLDER_FILE} and {OPEN_CLIP_WEIGHTS}, or make the classifier again with "
        "`must classifier`, or the same `must adapt`",
    )


def verify_folder(folder: str, sha256: str) -> str:
    """The folder on this machine."""
    require_model(folder)
    path = Path(ensure_local(folder))
    file = path / OPEN_CLIP_WEIGHTS
    require(
        file.is_file() and storage.compute_sha256(file) == sha256,
        f"{storage.join(folder, OPEN_CLIP_WEIGHTS)}: is missing, damaged or of another model than when the classifier "
        "was made (sha256); delete the folder and run `must classifier` again",
    )
    return str(path)
