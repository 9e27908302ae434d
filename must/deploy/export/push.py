"""The stage `must push`: uploads an exported folder to a hub in one commit. HF_ENDPOINT: its URL, HF_TOKEN: the login.

All files of a commit appear together; other files of the repository are not changed.
"""

import hashlib
import json
import logging
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from must.base import storage
from must.base.errors import TransientError, UserError
from must.base.files import DESCRIPTION_FILE, MODEL_FOLDER_FILE, ONNX_FILE
from must.base.names import require_no_links
from must.base.parameters import require
from must.base.text import without_secrets
from must.config import PushConfig
from must.config.push import OCI
from must.deploy.predict.session import check_onnx
from must.method.model.bundle import check_weights
from must.method.model.hub import TRY_LATER, ensure_local, first_line

logger = logging.getLogger(__name__)

CARD = "README.md"
COMPLETE_FILES = (MODEL_FOLDER_FILE, "config.json", ONNX_FILE)  # one of them is in every exported folder
MODELS_FOLDER = "models"
MEDIA = "application/vnd.oci.image"
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
        return f"rejects the model card: {first_line(error)}"
    match status:
        case 0 if isinstance(error, ValueError):
            return first_line(error)
        case 0:
            return f"cannot be reached ({first_line(error)}): {TRY_LATER}"
        case 401:
            return "needs a valid token (401): set HF_TOKEN to one that may write"
        case 403:
            return f"denies you write access (403{message}): the token must be allowed to write, and you in {team}"
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


def write_layout(source: Path, target: Path) -> str:
    """Writes the folder as a container image (OCI image layout 1.0), without a container engine; returns its digest.

    The image only has the files, without hidden ones, below /models: for Kubernetes' image volumes and KServe's
    oci+native://. It has no shell, which KServe's sidecar (plain oci://) needs. The same files give the same bytes.
    Raises ValueError: `target` exists, or cannot be written; it does not exist then.
    """
    require(not target.exists(), f"--repo oci:{target}: is there already; give a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        storage.disk_errors(target),
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch,
    ):
        layout = Path(scratch) / "layout"
        blobs = layout / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        layer = write_layer(source, blobs)
        files = {"type": "layers", "diff_ids": [layer["digest"]]}
        config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": files}
        parts = {"config": write_json(blobs, "config.v1+json", config), "layers": [layer]}
        manifest = write_json(blobs, "manifest.v1+json", head("manifest.v1+json") | parts)
        index = head("index.v1+json") | {"manifests": [manifest]}
        (layout / "index.json").write_text(json.dumps(index))
        (layout / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
        layout.replace(target)
    return str(manifest["digest"])


def write_layer(source: Path, blobs: Path) -> dict[str, Any]:
    """A plain tar, without times and owners; its digest is also the diff_id, as it is not compressed."""
    draft = blobs / "layer"
    with tarfile.open(draft, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in [source, *sorted(source.rglob("*"))]:
            name = path.relative_to(source)
            if any(part.startswith(".") for part in name.parts):
                continue
            info = tarfile.TarInfo(str(MODELS_FOLDER / name))
            if path.is_dir():
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            else:
                info.size = path.stat().st_size
                with path.open("rb") as file:
                    tar.addfile(info, file)
    with draft.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return descriptor("layer.v1.tar", draft.rename(blobs / digest))


def write_json(blobs: Path, kind: str, content: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(content, sort_keys=True).encode()
    file = blobs / hashlib.sha256(data).hexdigest()
    file.write_bytes(data)
    return descriptor(kind, file)


def descriptor(kind: str, blob: Path) -> dict[str, Any]:
    return {"mediaType": f"{MEDIA}.{kind}", "digest": f"sha256:{blob.name}", "size": blob.stat().st_size}


def head(kind: str) -> dict[str, Any]:
    return {"schemaVersion": 2, "mediaType": f"{MEDIA}.{kind}"}
