"""Downloads models from a hub or a bucket to this machine, once.

huggingface_hub waits a minute and more for a hub that does not respond; open_clip then tries other file names, and
reports the error of the last one. Here each file is requested once, with a short timeout, before open_clip runs, so
that an error is one line and comes early.
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
from must.method.model.transformers_folder import CONFIG_FILE, PREPROCESSORS, WEIGHT_FILES

logger = logging.getLogger(__name__)

PATIENCE = 4  # seconds to wait for the hub's response about a file; HF_HUB_ETAG_TIMEOUT overrides it

OPEN_CLIP_WEIGHTS = "open_clip_model.safetensors"
OLD_WEIGHTS_FILE = "open_clip_pytorch_model.bin"  # a pickle, read with weights_only
TOKENIZER_NAMES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "spiece.model")
TRY_LATER = "try again later"
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)


class AbsentError(UserError):
    """A repository has none of the files."""


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
def fetched(repository: str, *names: str) -> bool:
    """Downloads the first of the files `names` that the repository has to the hub's cache, unless it is cached.

    Returns:
        Whether the hub responded. If not, the cache has one of the files, possibly not the newest version.

    Raises:
        UserError: the hub has no such model, or refuses access; the message says what to do.
        TransientError: the hub cannot be reached, or is busy.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    hub, timeout_setting = without_secrets(constants.ENDPOINT), constants.HF_HUB_ETAG_TIMEOUT
    timeout_s = PATIENCE if timeout_setting == constants.DEFAULT_ETAG_TIMEOUT else timeout_setting
    for name in names:
        try:
            get_hf_file_metadata(hf_hub_url(repository, name), timeout=timeout_s)
            hf_hub_download(repository, name, etag_timeout=timeout_s)
        except Exception as problem:  # many kinds of network errors, which change with huggingface_hub's versions
            in_transit = isinstance(problem, LocalEntryNotFoundError)  # the hub has the file, and it did not arrive
            if isinstance(problem, EntryNotFoundError) and not in_transit:
                continue
            error = problem.__cause__ if in_transit and isinstance(problem.__cause__, Exception) else problem
            if any(cached(repository, file) for file in names):
                logger.info(f"the hub {hub} cannot serve {repository}; using the cached copy")
                return False
            weights = OPEN_CLIP_WEIGHTS if names[0] == MODEL_FOLDER_FILE else names[0]
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
            kind = TransientError if may_succeed_later(status, error) else UserError
            raise kind(
                f"{name} of {repository} could not be downloaded from the hub {hub}: {explain(status, error)}, or put "
                f"{MODEL_FOLDER_FILE} and {weights} of it into a folder and give that as --model (docs/models.md)"
            ) from error
        return True
    raise AbsentError(f"{repository} on the hub {hub} has no {' and no '.join(names)}")


def is_folder(model: str) -> bool:
    return model.startswith("local-dir:") or Path(model).is_dir() or model.startswith(("/", "./", "../"))


def as_folder(repository: str) -> str:
    """The folder in the hub's cache of a model in transformers' format, without weights; '' for one in open_clip's.
    Raises UserError, TransientError: it cannot be downloaded."""
    if cached(repository, MODEL_FOLDER_FILE):
        return ""
    online = fetched(repository, MODEL_FOLDER_FILE, CONFIG_FILE)
    if cached(repository, MODEL_FOLDER_FILE):
        return ""
    for name in (*TOKENIZER_NAMES, *PREPROCESSORS) if online else ():
        with suppress(AbsentError):  # no repository has all of them
            fetched(repository, name)
    return str(Path(cached(repository, CONFIG_FILE)).parent)


def fetch_weights(repository: str, label: str) -> None:
    """Downloads the weights of a model in transformers' format to the hub's cache.
    Raises UserError, TransientError: they cannot be downloaded; the message begins with `label`."""
    try:
        online = fetched(repository, *WEIGHT_FILES)
        index = next((cached(repository, name) for name in WEIGHT_FILES if cached(repository, name)), "")
        if online and index.endswith(".json"):
            for file in sorted(set(json.loads(Path(index).read_text())["weight_map"].values())):
                fetched(repository, file)
    except (ValueError, KeyError) as error:
        raise same_kind(error, f"{label}: {first_line(error)}") from error


def cached(repository: str, name: str) -> str:
    """The path of a file in the hub's cache; '' if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, name)
    return path if isinstance(path, str) else ""


def explain(status: int, error: Exception) -> str:
    """The hub's error, and what to do; `status` 0: no response."""
    if status in (401, 403, 404):
        return f"no such public model ({status}); check its name, set HF_TOKEN if it is private"
    return f"{status or first_line(error)}" + (f"; {TRY_LATER}" if may_succeed_later(status, error) else "")


def may_succeed_later(status: int, error: Exception) -> bool:
    """Whether the same request may succeed later; `status` 0: no response."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    if status:
        return status >= 500 or storage.is_transient(status)
    hopeless = isinstance(error, ValueError | OfflineModeIsEnabled)
    return not hopeless and getattr(error, "errno", None) not in DISK_ERRORS


def same_kind(error: Exception, line: str) -> TransientError | UserError:
    """An error with that message: transient if `error` is."""
    return (TransientError if isinstance(error, TransientError) else UserError)(line)


def first_line(error: BaseException) -> str:
    """The message of an exception in one line, of at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return without_secrets(" ".join(lines))[:300] if lines else type(error).__name__


def ensure_local(uri: str) -> str:
    """A path of this machine for a gs:// or file:// folder or file; anything else is returned as it is.
    Raises ValueError: there is nothing at the URI."""
    if not uri or not storage.is_remote(uri):
        return uri.removeprefix("file://")
    single = storage.exists(uri)
    names = [""] if single else listed(uri)
    require(bool(names), f"{uri}: there is no model; expected a folder with open_clip_config.json or a checkpoint")
    uris = {name: storage.join(uri, name) if name else uri for name in names}
    contents = [[name, storage.size(file_uri), storage.generation(file_uri)] for name, file_uri in uris.items()]
    target = cache_folder() / hashlib.sha256(json.dumps([uri, contents]).encode()).hexdigest()[:32]
    with in_turn(target.with_suffix(".lock")):  # so that one process downloads it for all
        if not target.exists():
            fetch(uris, target, PurePosixPath(uri).name)
    return str(target / PurePosixPath(uri).name) if single else str(target)


def fetch(uris: dict[str, str], target: Path, single_name: str) -> None:
    """Downloads the files to `target`, which appears only when it is complete."""
    logger.info(f"fetching the model from {min(uris.values(), key=len)} ({len(uris)} files)")
    storage.remove_leftovers(target.parent)
    unfinished = Path(tempfile.mkdtemp(dir=target.parent, prefix=storage.TEMPORARY))
    try:
        for name, uri in uris.items():
            storage.download(uri, unfinished / (name or single_name))
        unfinished.replace(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def cache_folder() -> Path:
    """The folder of downloaded models: XDG_CACHE_HOME, which a pod sets to its scratch space, or the user's cache."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "must" / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
