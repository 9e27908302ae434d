"""The stage `must push`: uploads an exported folder to a hub in one commit. HF_ENDPOINT: its URL, HF_TOKEN: the login.

All files of a commit appear together; other files of the repository are not changed.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from must.base.errors import TransientError, UserError
from must.base.files import DESCRIPTION_FILE, MODEL_FOLDER_FILE, ONNX_FILE
from must.base.names import require_no_links
from must.base.parameters import require
from must.base.text import without_secrets
from must.config import PushConfig
from must.config.push import OCI
from must.deploy.export.oci import write_layout
from must.deploy.predict.session import check_onnx
from must.method.model.bundle import check_weights
from must.method.model.hub import TRY_LATER, ensure_local, first_line

logger = logging.getLogger(__name__)

CARD = "README.md"
COMPLETE_FILES = (MODEL_FOLDER_FILE, "config.json", ONNX_FILE)  # one of them is in every exported folder
HIDDEN = [".*", "**/.*"]


def push(config: PushConfig) -> str:
    """Uploads the folder's files except hidden ones; returns the commit's URL, or an OCI image's digest.

    Raises:
        ValueError: no exported folder, or the hub refuses it: no token, no permission, no such team.
        TransientError: the hub cannot be reached, or is busy.
    """
    folder = checked_folder(config.model)
    if config.repo.startswith(OCI):
        target = config.repo.removeprefix(OCI)
        digest = write_layout(Path(folder), Path(target))
        logger.info(f"{config.model} -> {target} ({digest}); skopeo copy oci:{target} docker://REGISTRY/NAME:TAG")
        return digest
    from huggingface_hub import HfApi, constants

    api = HfApi()
    with hub_errors(config, api.endpoint), quiet_hub():
        if constants.HF_HUB_OFFLINE:
            raise UserError("is disabled: unset HF_HUB_OFFLINE")
        api.create_repo(config.repo, private=config.private or None, exist_ok=True)
        if config.private and not api.repo_info(config.repo).private:
            raise UserError(f"has {config.repo} already, and it is public: nothing was pushed; take another --repo")
        if config.revision:
            api.create_branch(config.repo, branch=config.revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=config.repo,
            folder_path=folder,
            revision=config.revision or None,
            ignore_patterns=list(HIDDEN),
            commit_message=f"{Path(folder).name}: exported by must",
        )
    url = without_secrets(str(commit.commit_url))
    logger.info(f"{config.model} -> {url}")
    return url


def checked_folder(model: str) -> str:
    """The folder on this machine. Raises ValueError: `must export` did not write it."""
    folder = Path(ensure_local(model))
    require(folder.is_dir(), f"--model {model}: there is no such folder")
    require(
        not (folder / DESCRIPTION_FILE).is_file(),
        f"--model {model}: is a bundle of `must train`; make a folder of it with `must export --to`, and push that",
    )
    require(
        (folder / CARD).is_file() and any((folder / name).is_file() for name in COMPLETE_FILES),
        f"--model {model}: is no folder of `must export`: {CARD} or the model's configuration is missing",
    )
    require_no_links(str(folder), "--model")
    for path in sorted(path for path in folder.rglob("*") if not path.name.startswith(".")):
        if path.suffix == ".safetensors":
            check_weights(str(path))
        elif path.name == ONNX_FILE:
            check_onnx(str(path))
    return str(folder)


@contextmanager
def hub_errors(config: PushConfig, hub: str) -> Iterator[None]:
    """Converts errors to one line. huggingface_hub raises many kinds of exceptions, which change with its versions."""
    try:
        yield
    except Exception as error:
        status, message = response_of(error)
        if not (status or isinstance(error, ValueError | OSError) or is_network_error(error)):
            raise  # a bug
        line = without_secrets(f"--repo {config.repo}: the hub {hub} {reason_of_hub(config, status, message, error)}")
        raise (TransientError if TRY_LATER in line else UserError)(line) from error


def reason_of_hub(config: PushConfig, status: int, message: str, error: Exception) -> str:
    team = config.repo.partition("/")[0]
    if isinstance(error, ValueError) and CARD in str(error):
        return f"does not take the card: {first_line(error)}"
    match status:
        case 0 if isinstance(error, ValueError):
            return first_line(error)
        case 0:
            return f"cannot be reached ({first_line(error)}): {TRY_LATER}"
        case 401:
            return "needs a valid token (401): set HF_TOKEN to one that may write"
        case 403:
            return f"does not let you write there (403{message}): the token must be allowed to write, and you in {team}"
        case 404:
            text = "look at its name, and whether HF_TOKEN may see it"
            return f"has no such repository, branch or team (404{message}): {text}"
        case 429:
            return f"limits requests from here (429): {TRY_LATER}"
    if status >= 500:
        return f"answers with an error ({status}): {TRY_LATER}"
    return f"refuses it ({status}{message})"


def is_network_error(error: BaseException | None) -> bool:
    """Whether the error or one of its causes is of an HTTP client; huggingface_hub's versions use different ones."""
    clients = {"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"}
    return any(type(cause).__module__.split(".")[0] in clients for cause in with_causes(error))


def response_of(error: BaseException | None) -> tuple[int, str]:
    """(HTTP status, the hub's message), of the error or one of its causes; (0, '') where there was no response."""
    for cause in with_causes(error):
        response: Any = getattr(cause, "response", None)
        if response is not None:
            message = getattr(cause, "server_message", None)
            return int(response.status_code), f": {first_line(UserError(message))}" if message else ""
    return 0, ""


def with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Hides progress bars where stderr is no terminal."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    hide = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()
