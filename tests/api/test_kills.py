"""Kills in the middle of `must.adapt`: the same call again ends well, and nothing is lost."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from must.api import adapt as adapt_module
from must.api.run import configure
from must.base import storage
from must.reviewing.review import list_commands
from tests.api.conftest import MORE, PHOTOS, adapt, checksums, label_of, labels, weights, write_photos
from tests.common import read_csv
from tests.forked import CONTEXT

module: Any = adapt_module
CLASSIFIER, SHARD, MODEL = ["classifier"], ["shard"], ["refine", "evaluate"]
OTHER = {"classes": ["zero", "one", "two", "other"]}


def kill_at(place, stage, when, changes):
    """In a process of its own: adapts, and is killed before or after the first run of a stage."""
    run = module.run

    def run_and_die(name, **values):
        result = run(name, **values) if (name, when) != (stage, "before") else None
        if name == stage:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    module.run = run_and_die
    adapt(place, **changes)


def kill_after(place, number, changes):
    """Is killed after so many renamed or removed files of the exchange of parts."""
    count = iter(range(number))

    def dying(function):
        def wrapped(*arguments, **options):
            result = function(*arguments, **options)
            if str(arguments[0]).startswith(str(place / "work")) and next(count, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    take = module.WorkState.take

    def take_and_die(state):
        for owner, name in ((Path, "rename"), (Path, "replace"), (shutil, "rmtree")):
            setattr(owner, name, dying(getattr(owner, name)))
        take(state)
        os.kill(os.getpid(), signal.SIGKILL)

    module.WorkState.take = take_and_die
    adapt(place, **changes)


def run_killed(target, *arguments):
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    process.join(600)
    assert process.exitcode == -signal.SIGKILL


def finish(place):
    adapted, work = adapt(place, **OTHER), place / "work"
    assert adapted.classes == OTHER["classes"] and len(labels(work)) == PHOTOS + MORE
    assert adapted.metrics["model"]["weights_sha256"] == weights(work)
    assert not list(work.glob(".*")) and set(labels(work).values()) <= set(OTHER["classes"])


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("stage", [*CLASSIFIER, *SHARD, *MODEL])
def test_after_a_kill_in_any_stage_the_same_call_ends_well(place, tmp_path, stage, when):
    """Also the first one; what is left by then is made once."""
    write_photos(place / "photos", range(PHOTOS, PHOTOS + MORE))
    before = checksums(place / "work")
    run_killed(kill_at, place, stage, when, OTHER)
    now = checksums(place / "work")
    if stage in (*CLASSIFIER, *SHARD):
        kept = before.keys() - {"adapt.json"}
        assert {name: now.get(name) for name in kept} == {name: before[name] for name in kept}
    finish(place)
    new = tmp_path / "new"
    write_photos(new / "photos", range(PHOTOS + MORE))
    run_killed(kill_at, new, stage, when, OTHER)
    finish(new)


@pytest.mark.parametrize("number", range(7))
def test_a_kill_while_parts_take_their_places_loses_nothing(place, ran, number):
    """Of shards and classifier; the next call makes neither of the two anew that is complete."""
    write_photos(place / "photos", range(PHOTOS, PHOTOS + MORE))
    run_killed(kill_after, place, number, OTHER)
    finish(place)
    assert ran in (MODEL, [*CLASSIFIER, *MODEL]) and "shard" not in ran


IN_FOLDERS = {"classes": "folders"}


def die_before_the_summary(place):
    """Is killed when the labels and folders.csv are there, and refined.json is not."""
    write = storage.write_bytes

    def write_or_die(uri: str | Path, data: bytes, if_generation_match: int | str | None = None) -> None:
        if str(uri).endswith("refined.json"):
            os.kill(os.getpid(), signal.SIGKILL)
        write(uri, data, if_generation_match)

    storage.write_bytes = write_or_die
    adapt(place, **IN_FOLDERS)


def test_photos_in_the_wrong_folder_are_counted_once_and_again_after_a_kill_and_a_move(tmp_path, capsys):
    moved = {9: "three", 21: "eight"}
    for number in range(100):
        write_photos(tmp_path / "photos" / moved.get(number, label_of(number)), [number])
    run_killed(die_before_the_summary, tmp_path)
    assert (tmp_path / "work/labels/folders.csv").exists()
    capsys.readouterr()
    adapt(tmp_path, **IN_FOLDERS)
    said, file = "".join(capsys.readouterr()), tmp_path / "work/labels/folders.csv"
    listed = [row["image"] for row in read_csv(file)]
    assert {"three/IMG_0009.png", "eight/IMG_0021.png"} <= {*listed} and len(listed) < 10
    assert (
        f"{len(listed)} of 100 pictures seem to lie in the wrong folder: {file}; `must review {file.parents[1]}`"
        in said
    )
    commands = list_commands(configure("review", {"model": str(tmp_path / "work")}))
    assert [command.split()[1] for command in commands] == ["adapt", "export"]  # the folders are better than the labels
    before = checksums(tmp_path / "work")
    adapt(tmp_path, **IN_FOLDERS)
    assert "nothing has changed" in "".join(capsys.readouterr()) and checksums(tmp_path / "work") == before
    for number, label in moved.items():
        (tmp_path / "photos" / label / f"IMG_{number:04d}.png").rename(
            tmp_path / "photos" / label_of(number) / f"IMG_{number:04d}.png"
        )
    adapt(tmp_path, **IN_FOLDERS)
    assert len(listed) - 2 == len(read_csv(file)) and f"{len(listed) - 2} of 100 pictures" in "".join(
        capsys.readouterr()
    )
    other = "one" if label_of(0) != "one" else "two"
    shutil.copy(tmp_path / "photos" / label_of(0) / "IMG_0000.png", tmp_path / "photos" / other)
    adapt(tmp_path, **IN_FOLDERS)
    assert "wrong folder (1 picture with copies in the folders of two classes): " in "".join(capsys.readouterr())
