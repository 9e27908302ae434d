"""Writes an exported folder as a container image (OCI image layout 1.0), without a container engine.

    FOLDER/oci-layout, index.json, blobs/sha256/...

The image only has the files, below /models: for Kubernetes' image volumes and KServe's oci+native://. It has no shell,
which KServe's sidecar (plain oci://) needs. The same files give the same bytes.
"""

import hashlib
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from must.base import storage
from must.base.parameters import require

MODELS_FOLDER = "models"
MEDIA = "application/vnd.oci.image"


def write_layout(source: Path, target: Path) -> str:
    """Returns the image's digest, sha256:... Hidden files are omitted.
    Raises ValueError: `target` exists, or cannot be written; it does not exist then."""
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
