"""The container engine under test, and how a container is run with it."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import must

ENGINE = os.environ.get("ENGINE") or shutil.which("docker") or shutil.which("podman") or ""
VERSION = os.environ.get("TAG", must.__version__)
PREFIX = f"{os.environ['REGISTRY']}/" if os.environ.get("REGISTRY") else ""
IMAGES = ("must-shard", "must-torch", "must-train", "must-serve")
ROOT_LOCKS = Path(must.__file__).parent.parent / "images" / "locks"
UID = os.getuid() or 12345  # never root, and no uid that has a name in the images


def image(name: str) -> str:
    return f"{PREFIX}{name}:{VERSION}"


def engine(*arguments: str | Path, check: bool = True, timeout: float = 900) -> subprocess.CompletedProcess:
    command = [ENGINE, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    assert not check or result.returncode == 0, f"{arguments}: {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


def container(data: Path | None = None) -> list[str]:
    """What every container gets: a read-only root, a scratch, one thread, a user without a name, and the data."""
    options = ["--read-only", "--tmpfs", "/tmp:exec", "--shm-size", "1g", "--env", "OMP_NUM_THREADS=1"]
    options += ["--user", f"{UID}:0", *(["--userns=keep-id"] if rootless() else [])]
    return options + (["--volume", f"{data}:/data"] if data else [])


def run(name: str, *command: str | Path, data: Path | None = None, options=(), check=True):
    return engine("run", "--rm", *container(data), *options, image(name), *command, check=check)


def inspect(name: str) -> dict:
    return json.loads(engine("image", "inspect", image(name)).stdout)[0]


def rootless() -> bool:
    return os.getuid() != 0 and "podman" in Path(ENGINE).name


def own(folder: Path) -> Path:
    """Gives a folder to the containers' user, which is another than root's."""
    if os.getuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, UID, 0, follow_symlinks=False)
    return folder
