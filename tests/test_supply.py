"""What the images are made of: packages by hash, and a base that can be named by digest."""

import re
import shutil

import pytest

from tests.common import ROOT, printed

LOCKS = sorted((ROOT / "images" / "locks").glob("*.txt"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_package_of_a_lock_has_one_version_and_hashes(lock):
    text = lock.read_text().replace("\\\n", " ")
    packages = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert packages
    for line in packages:
        assert re.match(r"[a-z0-9._-]+(\[[a-z0-9,._-]+\])?==[^\s;]+", line), line
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", line), line


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_commits_and_programs_have_versions(workflow):
    """A tag or a branch is whatever its owner makes of it, also while a release has the right to sign."""
    text = workflow.read_text()
    for used in re.findall(r"uses: (\S+)", text):
        assert used.startswith("./") or re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", used), used
    assert all("==" in program for program in re.findall(r"pipx run (\S+)", text))


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_base_image_can_be_named_by_digest():
    base = "docker.io/library/python@sha256:" + "0" * 64
    dry = printed("make", "-n", "must-shard", "ENGINE=true", f"BASE={base}", cwd=ROOT)
    assert f"--build-arg BASE={base}" in dry
    froms = re.findall(r"^FROM (\S+)", (ROOT / "images" / "Dockerfile").read_text(), re.M)
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", (ROOT / "images" / "Dockerfile").read_text(), re.M))
    assert "${BASE}" in froms and set(froms) <= {"${BASE}", "scratch"} | stages  # nothing else comes from a registry
