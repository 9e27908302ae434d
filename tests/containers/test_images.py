"""What an image is: small, without root, without tools, with exactly what its locks say."""

import json
import os
import re
import subprocess

import pytest

from tests.containers.engine import IMAGES, ROOT_LOCKS, VERSION, engine, image, inspect, run

MB = 10**6
SIZES = {"must-shard": 270 * MB, "must-torch": 1300 * MB, "must-serve": 400 * MB}
LOCKS = {
    "must-shard": ("shard",),
    "must-torch": ("shard", "torch"),
    "must-train": ("shard", "train"),
    "must-serve": ("shard", "serve"),
}
LIST_PACKAGES = """
import importlib.metadata, json, re
print(json.dumps({re.sub("[-_.]+", "-", d.name.lower()): d.version for d in importlib.metadata.distributions()}))
"""


@pytest.mark.parametrize("name", SIZES)
def test_size(name, record_property):
    size = inspect(name)["Size"]
    record_property("bytes", size)
    assert size < SIZES[name], f"{name}: {size / MB:.0f} MB"


@pytest.mark.parametrize("name", IMAGES)
def test_settings_and_labels(name):
    config = inspect(name)["Config"]
    assert not config.get("Entrypoint") and config["User"] == "10001:0"
    labels = config["Labels"]
    prefix = "org.opencontainers.image"
    assert labels[f"{prefix}.title"] == name and labels[f"{prefix}.version"] == VERSION
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert labels[f"{prefix}.revision"].removesuffix("-dirty") == head, "the images are of another commit: make images"
    assert f"{prefix}.source" in labels and labels[f"{prefix}.base.name"]
    env = dict(item.split("=", 1) for item in config["Env"])
    assert env["HOME"] == env["TMPDIR"] == "/tmp" and env["PATH"].startswith("/opt/must/bin:")


@pytest.mark.parametrize("name", IMAGES)
def test_the_command_runs_as_a_user_without_a_name_on_a_read_only_root(name):
    look = "import getpass, tempfile; print(getpass.getuser(), tempfile.gettempdir())"
    script = f"must --version && touch /opt/must/x /x 2>&1; python -c '{look}'"
    version, *lines, told = run(name, "sh", "-c", script).stdout.splitlines()
    assert version == f"must {VERSION}" and told == "must /tmp"
    assert len(lines) == 2 and all("Read-only file system" in line for line in lines)


@pytest.mark.parametrize("name", IMAGES)
def test_nothing_to_build_with_and_no_leftovers(name):
    tools = "for t in gcc cc g++ make cmake git pip pip3 uv curl wget; do command -v $t; done"
    pip = "python -c 'import pip' 2>/dev/null && echo pip can be imported"
    left = "-name '*.whl' -o -name '*.tar.gz' -o -name '*.pyc' -path '*/tests/*'"
    find = f"find / -xdev \\( {left} \\) -printf 'left: %p\\n' || exit"
    places = "/var/cache/pip /root /var/lib/apt/lists /var/cache/apt/archives /home /opt"
    caches = f"find {places} -xdev -maxdepth 2 -type f -size +0 2>/dev/null; true"
    found = run(name, "sh", "-c", "; ".join((tools, pip, find, caches)), options=("--user", "0:0")).stdout.splitlines()
    assert [path for path in found if not re.match(r"/opt/must/|/root/\.(bashrc|profile)", path)] == []


@pytest.mark.parametrize("name", IMAGES)
def test_the_packages_are_those_of_the_locks(name):
    installed = json.loads(run(name, "python", "-c", LIST_PACKAGES).stdout)
    assert installed.pop("must-clip") == VERSION
    locks = [(ROOT_LOCKS / f"{lock}.txt").read_text() for lock in LOCKS[name]]
    assert all(" --hash=sha256:" in lock for lock in locks)
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^\s\\]+)", "\n".join(locks), re.M))
    if name in ("must-torch", "must-train"):
        pins = (ROOT_LOCKS / os.environ.get("CPU_LOCK", "torch.in")).read_text()
        for package, version in re.findall(r"^(torch[a-z]*)(?:==(\S+))?$", pins, re.M):
            assert installed.pop(package).split("+")[0] == version or not version
        of_cuda = re.findall(r"^([a-z0-9-]+)==", (ROOT_LOCKS / "torch-cuda.txt").read_text(), re.M)
        installed = {p: v for p, v in installed.items() if p in locked or p not in of_cuda}
    assert installed == locked


def test_a_stage_whose_packages_are_not_in_the_image_says_so(demo):
    """The wrong image is the user's mistake, not a traceback to read."""
    result = run("must-shard", "must", "classifier", "--classes", "/data/classes.yaml", "--model", "/data/model",
                 "--output", "/tmp/x.safetensors", data=demo, check=False)  # fmt: skip
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and "not installed here" in result.stderr


def test_the_images_share_their_layers():
    layers = {name: inspect(name)["RootFS"]["Layers"] for name in IMAGES}
    shared = layers["must-shard"][:4]  # the base, the lock files, the packages
    for name in IMAGES:
        assert layers[name][: len(shared) - 1] == shared[:-1], name


def test_history_has_no_secrets_of_the_build():
    for name in IMAGES:
        text = engine("history", "--no-trunc", image(name)).stdout
        assert not re.search(r"(?i)token|password|secret", text)
