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
from must.deploy.predict.session import check_onnx
from must.method.model.bundle import check_weights
from must.method.model.hub import TRY_LATER, ensure_local, first_line, may_succeed_later

logger = logging.getLogger(__name__)

CARD = "README.md"
COMPLETE_FILES = (MODEL_FOLDER_FILE, "config.json", ONNX_FILE)  # one of them is in every exported folder
HIDDEN = [".*", "**/.*"]


def push(config: PushConfig) -> str:
    """Uploads the folder's files except hidden ones; returns the commit's URL.

    Raises:
        ValueError: no exported folder, or the hub refuses it: no token, no permission, no such team.
        TransientError: the hub cannot be reached, or is busy.
    """
    folder = checked_folder(config.model)
    from huggingface_hub import HfApi, constants

    api = HfApi()
    label = f"--repo {config.repo}: the hub {without_secrets(api.endpoint)}"
    require(not constants.HF_HUB_OFFLINE, f"{label} is disabled: unset HF_HUB_OFFLINE")
    with hub_client(label):
        api.create_repo(config.repo, private=config.private or None, exist_ok=True)
        public = config.private and not api.repo_info(config.repo).private
        require(not public, f"{label} has it already, and it is public: nothing was pushed; take another --repo")
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
def hub_client(label: str) -> Iterator[None]:
    """Converts errors to one line, and hides progress bars where stderr is no terminal.

    huggingface_hub raises many kinds of exceptions, which change with its versions.
    """
    import huggingface_hub.utils

    bars: Any = huggingface_hub.utils
    hide = not sys.stderr.isatty() and not bars.are_progress_bars_disabled()
    if hide:
        bars.disable_progress_bars()
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause: Any = error
        while cause is not None and getattr(cause, "response", None) is None:
            cause = cause.__cause__
        status = int(cause.response.status_code) if cause else 0
        reason = first_line(UserError(getattr(cause, "server_message", None) or error))
        if may_succeed_later(status, error):
            raise TransientError(f"{label} cannot be reached, or fails ({reason}): {TRY_LATER}") from error
        advice = f"look at --repo, at {CARD}, and whether HF_TOKEN may write there"
        raise UserError(f"{label} refuses it ({f'{status} {reason}' if status else reason}): {advice}") from error
    finally:
        if hide:
            bars.enable_progress_bars()
