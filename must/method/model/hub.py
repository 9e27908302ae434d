"""Models from elsewhere: from a hub, and from a bucket, fetched to this machine once.

Asking a hub for a model's files so that what goes wrong is one line, and soon.

huggingface_hub waits a minute and more for a hub that does not answer, open_clip asks again for other file names, and
what it then reports is the last of them. Here a file is asked for once, with little patience, before open_clip is.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from must.base import storage
from must.base.errors import TransientError, UserError
from must.base.files import MODEL_FOLDER_FILE
from must.base.lock import in_turn
from must.base.names import listed
from must.base.parameters import require
from must.base.text import without_secrets
from must.method.model.transformers_folder import CONFIG_FILE, PREPROCESSORS, WEIGHTS

logger = logging.getLogger(__name__)

PATIENCE = 4  # seconds for the hub's answer whether there is such a file, unless HF_HUB_ETAG_TIMEOUT says another

OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
OLD_WEIGHTS_FILE = "open_clip_pytorch_model.bin"  # a pickle, read with weights_only
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "spiece.model")
TRY_LATER = "try again later"
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)


class AbsentError(UserError):
    """A repository has none of the files."""


@contextmanager
def patched_constants(**settings: bool) -> Iterator[None]:
    """huggingface_hub's own settings, which it reads from the environment, as they are inside the block."""
    from huggingface_hub import constants

    before = {name: getattr(constants, name) for name in settings}
    vars(constants).update(settings)
    try:
        yield
    finally:
        vars(constants).update(before)


@patched_constants(HF_HUB_DISABLE_TELEMETRY=True)  # else it asks the hub first which programs are agents
def fetched(repository: str, *names: str) -> bool:
    """Puts the first of the files `names` that the repository has into the hub's cache, unless it is there.

    Returns:
        Whether the hub answered. If not, the cache has a file, of which nobody knows whether it is the newest.

    Raises:
        UserError: the hub has no such model, or does not give it; why, and what to do.
        TransientError: the hub cannot be reached, or is busy.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    instead = folder_instead(repository, names[0])
    hub, known = without_secrets(constants.ENDPOINT), constants.HF_HUB_ETAG_TIMEOUT
    patience = PATIENCE if known == constants.DEFAULT_ETAG_TIMEOUT else known
    for name in names:
        try:
            get_hf_file_metadata(hf_hub_url(repository, name), timeout=patience)
        except EntryNotFoundError:
            continue
        except Exception as error:  # of the network's many kinds, which change with huggingface_hub's versions
            there = [try_to_load_from_cache(repository, one) for one in names]  # a path, None, or "no such"
            if any(isinstance(one, str) for one in there):
                logger.info(f"the hub {hub} cannot serve {repository}; using the cached copy")
                return False
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
            if constants.HF_HUB_OFFLINE:
                raise UserError(f"the hub {hub} is disabled: unset HF_HUB_OFFLINE, or {instead}") from error
            kind = TransientError if may_pass(status, error) else UserError
            raise kind(f"the hub {hub} {explain(status, error)}, or {instead}") from error
        try:
            hf_hub_download(repository, name, etag_timeout=patience)
        except Exception as error:
            first, _, _ = str(error).partition("\n")  # what follows is advice for programmers
            why = without_secrets(first) or type(error).__name__
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
            kind = TransientError if may_pass(status, error) else UserError
            raise kind(
                f"{name} of {repository} could not be downloaded from {hub} ({why}): {TRY_LATER}, or {instead}"
            ) from error
        return True
    raise AbsentError(f"{repository} on the hub {hub} has no {' and no '.join(names)}")


def is_folder(model: str) -> bool:
    return model.startswith("local-dir:") or Path(model).is_dir() or model.startswith(("/", "./", "../"))


def as_folder(repository: str) -> str:
    """The folder in the hub's cache of a model in transformers' format, without its weights; '' for one of open_clip's.

    Raises:
        UserError, TransientError: it cannot be had.
    """
    if cached(repository, MODEL_FOLDER_FILE):
        return ""
    answers = fetched(repository, MODEL_FOLDER_FILE, CONFIG_FILE)
    if cached(repository, MODEL_FOLDER_FILE):
        return ""
    for name in (*TOKENIZER_NAMES, *PREPROCESSORS) if answers else ():
        with suppress(AbsentError):  # each has some of them
            fetched(repository, name)
    return str(Path(cached(repository, CONFIG_FILE)).parent)


def fetch_weights(repository: str, asked: str) -> None:
    """Puts the weights of a model in transformers' format into the hub's cache.

    Raises:
        UserError, TransientError: they cannot be had; the message begins with `asked`.
    """
    try:
        answers = fetched(repository, *WEIGHTS)
        index = next((cached(repository, name) for name in WEIGHTS if cached(repository, name)), "")
        if answers and index.endswith(".json"):
            for piece in sorted(set(json.loads(Path(index).read_text())["weight_map"].values())):
                fetched(repository, piece)
    except (ValueError, KeyError) as error:
        raise same_kind(error, f"{asked}: {first_line(error)}") from error


def cached(repository: str, name: str) -> str:
    """Where a file is in the hub's cache; '' if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, name)
    return path if isinstance(path, str) else ""


def explain(status: int, error: Exception) -> str:
    """What the hub answered, after "the hub"; `status` is 0 where it did not."""
    match status:
        case 0:
            return f"cannot be reached ({first_line(error)}): {TRY_LATER}"
        case 401 | 403 | 404:
            return f"has no such public model ({status}): check its name; if private, set HF_TOKEN"
        case 429:
            return f"limits requests from here ({status}): {TRY_LATER}, or set HF_TOKEN"
    return f"answers with an error ({status}): {TRY_LATER}"


def may_pass(status: int, error: Exception) -> bool:
    """Whether the same request may succeed later; `status` is 0 where the hub did not answer."""
    if status:
        return status >= 500 or storage.is_transient(status)
    return not isinstance(error, ValueError) and getattr(error, "errno", None) not in OF_THE_DISK


def same_kind(error: Exception, line: str) -> TransientError | UserError:
    """An error with that line: transient if `error` is."""
    return (TransientError if isinstance(error, TransientError) else UserError)(line)


def folder_instead(repository: str, name: str) -> str:
    weights = OPEN_CLIP_WEIGHTS if name == MODEL_FOLDER_FILE else name
    return (
        f"put {MODEL_FOLDER_FILE} and {weights} of {repository} into a folder and give it as --model (docs/models.md)"
    )


def first_line(error: BaseException) -> str:
    """The message of an exception in one line, without the page that some libraries add."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return without_secrets(" ".join(lines))[:300] if lines else type(error).__name__


def ensure_local(place: str) -> str:
    """A path of this machine for a gs:// or file:// folder or file; anything else comes back as it is.

    Raises:
        ValueError: there is nothing at the URI.
    """
    if not place or not storage.is_remote(place):
        return place.removeprefix("file://")
    single = storage.exists(place)
    names = [""] if single else listed(place)
    require(bool(names), f"{place}: there is no model; expected a folder with open_clip_config.json or a checkpoint")
    uris = {name: storage.join(place, name) if name else place for name in names}
    contents = [[name, storage.size(uri), storage.generation(uri)] for name, uri in uris.items()]
    target = cache_folder() / hashlib.sha256(json.dumps([place, contents]).encode()).hexdigest()[:32]
    with in_turn(target.with_suffix(".lock")):  # the others find what the first has fetched
        if not target.exists():
            fetch(uris, target, PurePosixPath(place).name)
    return str(target / PurePosixPath(place).name) if single else str(target)


def fetch(uris: dict[str, str], target: Path, only: str) -> None:
    """Downloads the files to `target`, which appears when all of it is there."""
    logger.info(f"fetching the model from {min(uris.values(), key=len)} ({len(uris)} files)")
    storage.remove_leftovers(target.parent)
    unfinished = Path(tempfile.mkdtemp(dir=target.parent, prefix=storage.TEMPORARY))
    try:
        for name, uri in uris.items():
            storage.download(uri, unfinished / (name or only))
        unfinished.replace(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def cache_folder() -> Path:
    """A pod's scratch space, or the user's cache."""
    place = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "must" / "models"
    place.mkdir(parents=True, exist_ok=True)
    return place
