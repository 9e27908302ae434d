"""The registry: versions are whole, LATEST moves once, of two rivals one loses aloud, one command goes back."""

import copy
import hashlib
import json
import multiprocessing
import subprocess
import sys
from collections import Counter

import pytest

from must import storage
from must.cli import main
from must.promote.registry import Registry
from tests.promote.bundles import make_bundle


@pytest.fixture(params=["local", "bucket"])
def registry(request, tmp_path):
    """A registry's URI: a folder, or a bucket on a real server of the protocol."""
    if request.param == "local":
        return str(tmp_path / "registry")
    return request.getfixturevalue("bucket_server").uri + "/registry"


def promote(registry, *flags):
    main(["promote", "--registry", registry, "--name", "digits", *map(str, flags)])


def latest(registry):
    return Registry(registry, "digits").latest()


def test_a_version_holds_the_bundle_the_onnx_and_where_they_come_from(registry, tmp_path, capsys):
    bundle = make_bundle(tmp_path / "model", seed=1, revision=3)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"onnx")
    metrics = {"adapted": {"top1": 0.9, "confusion": []}, "baseline": {"top1": 0.7}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    promote(registry, "--model", bundle, "--onnx", tmp_path / "onnx", "--metrics", tmp_path / "metrics.json")
    assert "LATEST is r0003-" in capsys.readouterr().out
    (version,) = Registry(registry, "digits").versions()
    weights = hashlib.sha256((bundle / "model.safetensors").read_bytes()).hexdigest()
    assert version["version"] == f"r0003-{weights[:12]}" == latest(registry).version
    assert set(version["files"]) == {"bundle/model.safetensors", "bundle/model.json", "onnx/model.onnx"}
    assert version["files"]["bundle/model.safetensors"] == {"bytes": 1000, "sha256": weights}
    assert version["metrics"] == {"adapted": {"top1": 0.9}, "baseline": {"top1": 0.7}}
    assert (version["index_revision"], version["git_revision"]) == (3, "abc")
    promote(registry, "--list")
    assert "90.0%" in (line := capsys.readouterr().out) and line.rstrip().endswith("LATEST")


def test_rolling_back_goes_one_champion_further_each_time(registry, tmp_path, capsys):
    names = []
    for seed in range(3):
        promote(registry, "--model", make_bundle(tmp_path / str(seed), seed=seed))
        names.append(latest(registry).version)
    promote(registry, "--rollback")
    assert latest(registry).version == names[1]
    promote(registry, "--rollback")
    assert (latest(registry).version, latest(registry).previous) == (names[0], ())
    with pytest.raises(SystemExit, match="2"):
        promote(registry, "--rollback")
    assert "no earlier champion to go back to" in capsys.readouterr().err
    promote(registry, "--model", tmp_path / "2")  # and forward again
    promote(registry, "--model", tmp_path / "1")
    promote(registry, "--rollback", "--to", names[0])
    assert latest(registry).version == names[0]


def test_a_champion_that_had_come_back_is_left_for_the_one_before_its_return(registry, tmp_path):
    models = {name: make_bundle(tmp_path / name, seed=seed) for seed, name in enumerate("abc")}
    for name in "abac":
        promote(registry, "--model", models[name], "--version", name)
    for champion, previous in (("a", ("a", "b")), ("b", ("a",)), ("a", ())):
        promote(registry, "--rollback")
        assert (latest(registry).version, latest(registry).previous) == (champion, previous)


def test_a_repeated_promotion_changes_nothing(registry, tmp_path):
    bundle = make_bundle(tmp_path / "model")
    promote(registry, "--model", bundle, "--champion", "none")
    before = latest(registry)
    promote(registry, "--model", bundle, "--champion", "none")  # a retried pod
    assert latest(registry) == before and len(Registry(registry, "digits").versions()) == 1


def test_a_challenger_of_yesterdays_champion_is_refused(registry, tmp_path, capsys):
    promote(registry, "--model", make_bundle(tmp_path / "a", seed=1), "--champion", "none")
    with pytest.raises(SystemExit, match="2"):
        promote(registry, "--model", make_bundle(tmp_path / "b", seed=2), "--champion", "none")
    assert "LATEST is r0000-" in (line := capsys.readouterr().err) and "not empty, which this model" in line
    assert latest(registry).previous == ()


def rival(registry, bundle, barrier, results):
    barrier.wait()
    code = 0
    try:
        promote(registry, "--model", bundle, "--champion", "none")
    except SystemExit as error:
        code = error.code
    results.put(code)


def test_of_rivals_that_finish_together_one_wins_and_the_others_say_so(registry, tmp_path):
    """Real processes, all at once, each compared with the same champion."""
    context, rivals = multiprocessing.get_context("fork"), 4
    bundles = [make_bundle(tmp_path / str(seed), seed=seed) for seed in range(rivals)]
    barrier, results = context.Barrier(rivals), context.Queue()
    processes = [context.Process(target=rival, args=(registry, b, barrier, results)) for b in bundles]
    for process in processes:
        process.start()
    codes = Counter(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert codes == {0: 1, 2: rivals - 1}
    assert latest(registry).version and latest(registry).previous == ()


def test_a_writer_between_reading_and_moving_is_noticed(registry, tmp_path, monkeypatch):
    from must.promote import pointer

    place, real = Registry(registry, "digits"), pointer.read
    for version in ("a", "b"):
        place.add(version, {}, {})

    def read_then_lose(uri):
        seen = real(uri)
        monkeypatch.setattr(pointer, "read", real)
        Registry(registry, "digits").set_champion("b", "the rival")
        return seen

    monkeypatch.setattr(pointer, "read", read_then_lose)
    with pytest.raises(ValueError, match="another run moved LATEST at the same moment; a is stored but is not"):
        place.set_champion("a", "promoted")
    assert place.latest().version == "b"


def test_a_lost_answer_to_the_move_is_no_defeat(bucket_server, tmp_path):
    registry = bucket_server.uri + "/registry"
    bucket_server.faults.plan = ["lost", "", "503", ""]
    promote(registry, "--model", make_bundle(tmp_path / "model"), "--champion", "none")
    bucket_server.faults.plan = []
    assert latest(registry).version.startswith("r0000-") and bucket_server.faults.done["lost"]


def test_a_killed_promotion_leaves_no_half_version(tmp_path):
    """The description comes last: a folder without it is no version, and the same command completes it."""
    registry, bundle = str(tmp_path / "registry"), make_bundle(tmp_path / "model")
    command = ["promote", "--registry", registry, "--name", "digits", "--model", str(bundle)]
    code = (
        "import os, must.promote.registry as r; copy = r.copy\n"
        "r.copy = lambda s, t: os._exit(9) if t.endswith('model.json') else copy(s, t)\n"
        f"from must.cli import main; main({command})"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert Registry(registry, "digits").versions() == [] and latest(registry).version == ""
    promote(registry, "--model", bundle)
    assert len(Registry(registry, "digits").versions()) == 1


def killed(monkeypatched, *flags):
    """The promotion in a process that kills itself where it is told to."""
    command = ["promote", *map(str, flags)]
    code = (
        "import os, signal, must.promote.registry as r; die = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"{monkeypatched}\nfrom must.cli import main; main({command})"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9


def onnx_folder(folder, **files):
    folder.mkdir()
    for name, content in files.items():
        (folder / f"{name}.onnx").write_text(content)
    (folder / "labels.txt").write_text("cat\ndog\n")
    return folder


def is_whole(registry, version):
    """Whether all files of a version are those that it says."""
    place = Registry(registry, "digits")
    found = {name: hashlib.sha256(storage.read_bytes(place.uri_of(version, name))) for name in place.held(version)}
    return {name: digest.hexdigest() for name, digest in found.items()} == place.held(version)


MOMENTS = {
    "after the first file": "copy = r.copy; r.copy = lambda s, t: die() if 'model.json' in t else copy(s, t)",
    "before the description": "write = r.storage.write_bytes\n"
    "r.storage.write_bytes = lambda uri, *a: die() if uri.endswith('version.json') else write(uri, *a)",
    "before LATEST moves": "r.Registry.set_champion = lambda *_: die()",
    "after LATEST moved": "move = r.Registry.set_champion; r.Registry.set_champion = lambda *a: move(*a) and die()",
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("weights", ["other weights", "the champion's, in another precision"])
def test_a_promotion_killed_at_any_moment_is_completed_by_the_same_command(registry, tmp_path, weights, moment):
    first, second = onnx_folder(tmp_path / "fp32", model="fp32"), onnx_folder(tmp_path / "int8", model="int8")
    promote(registry, "--model", make_bundle(tmp_path / "0"), "--onnx", first)
    before, same = latest(registry), weights != "other weights"
    model = tmp_path / "0" if same else make_bundle(tmp_path / "1", seed=1)
    flags = ["--model", model, "--onnx", second, "--champion", before.version]
    killed(MOMENTS[moment], "--registry", registry, "--name", "digits", *flags)
    assert (latest(registry) == before) is (moment != "after LATEST moved") and is_whole(registry, before.version)
    for _ in range(2):
        promote(registry, *flags)
        after = latest(registry)
        assert after.previous == (before.version,) and is_whole(registry, after.version)
        assert storage.read_bytes(Registry(registry, "digits").uri_of(after.version, "onnx/model.onnx")) == b"int8"
        assert len(Registry(registry, "digits").versions()) == 2


@pytest.mark.parametrize("chosen", [True, False])
def test_other_weights_never_get_a_name_that_is_taken(registry, tmp_path, capsys, chosen):
    flags = ["--version", "v1"] if chosen else []
    promote(registry, "--model", make_bundle(tmp_path / "a", seed=1), *flags)
    before = latest(registry)
    other = make_bundle(tmp_path / "b", seed=2)
    if not chosen:
        flags = ["--version", before.version]
    with pytest.raises(SystemExit, match="2"):
        promote(registry, "--model", other, *flags)
    (line,) = capsys.readouterr().err.splitlines()
    sums = [hashlib.sha256(bytes([seed]) * 1000).hexdigest()[:12] for seed in (1, 2)]
    assert all(sum_ in line for sum_ in sums) and line.endswith("give another --version")
    assert latest(registry) == before and is_whole(registry, before.version)


def test_another_onnx_file_of_the_same_weights_is_a_version_of_its_own(registry, tmp_path, capsys):
    model = ["--model", make_bundle(tmp_path / "model")]
    fp32, int8 = onnx_folder(tmp_path / "fp32", model="fp32"), onnx_folder(tmp_path / "int8", model="int8")
    promote(registry, *model, "--onnx", fp32)
    first = latest(registry).version
    for _ in range(2):
        promote(registry, *model, "--onnx", int8, "--champion", first)
        second = latest(registry)
        assert second.previous == (first,) and second.version.startswith(f"{first}-")
    (fp32 / "README.md").write_text("a card that was written anew")
    promote(registry, "--rollback")
    promote(registry, *model, "--onnx", fp32)
    assert latest(registry).version == first and is_whole(registry, first) and is_whole(registry, second.version)
    (int8 / "jpeg.onnx").write_text("takes files")
    promote(registry, *model, "--onnx", int8)
    assert len(Registry(registry, "digits").versions()) == 3
    with pytest.raises(SystemExit, match="2"):
        promote(registry, *model, "--onnx", int8, "--version", first)
    assert "with other ONNX files (different: onnx/jpeg.onnx, onnx/model.onnx)" in capsys.readouterr().err


@pytest.mark.parametrize("chosen", [[], ["--version", "v1"]])
def test_onnx_files_are_added_to_a_version_that_has_none(registry, tmp_path, chosen):
    model = ["--model", make_bundle(tmp_path / "model"), *chosen]
    promote(registry, *model)
    (before,) = Registry(registry, "digits").versions()
    promote(registry, *model, "--onnx", onnx_folder(tmp_path / "onnx", model="fp32"))
    (after,) = Registry(registry, "digits").versions()
    added = {"onnx/model.onnx", "onnx/labels.txt"}
    assert after["files"].keys() == before["files"].keys() | added and is_whole(registry, after["version"])
    assert {**after, "files": None} == {**before, "files": None} and latest(registry).version == after["version"]


def test_what_was_exported_into_the_versions_own_folder_is_added(tmp_path):
    registry = str(tmp_path / "registry")
    promote(registry, "--model", make_bundle(tmp_path / "model"))
    place = tmp_path / "registry" / "digits" / latest(registry).version
    onnx_folder(place / "onnx", model="fp32")
    promote(registry, "--model", place / "bundle", "--onnx", place / "onnx")
    assert (place / "onnx" / "model.onnx").read_text() == "fp32" and is_whole(registry, place.name)
    assert "onnx/model.onnx" in Registry(registry, "digits").held(place.name)


@pytest.mark.parametrize("then", ["the same", "another file"])
def test_a_promotion_killed_while_it_adds_onnx_files_leaves_the_version_whole(tmp_path, then):
    registry, model = str(tmp_path / "registry"), ["--model", make_bundle(tmp_path / "model")]
    promote(registry, *model)
    version = latest(registry).version
    folder = onnx_folder(tmp_path / "onnx", jpeg="takes files", model="fp32")
    killed(
        "copy = r.copy; r.copy = lambda s, t: die() if t.endswith('model.onnx') else copy(s, t)",
        "--registry", registry, "--name", "digits", *model, "--onnx", folder,
    )  # fmt: skip
    assert (tmp_path / "registry" / "digits" / version / "onnx" / "jpeg.onnx").exists()
    assert is_whole(registry, version) and "onnx/jpeg.onnx" not in Registry(registry, "digits").held(version)
    if then == "another file":
        folder = onnx_folder(tmp_path / "other", model="int8")
    promote(registry, *model, "--onnx", folder)
    assert latest(registry).version == version and is_whole(registry, version)
    there = {path.name for path in (tmp_path / "registry" / "digits" / version / "onnx").iterdir()}
    assert there == {path.name for path in folder.iterdir()}


def test_promotions_of_the_same_weights_with_other_onnx_files_do_not_mix(registry, tmp_path):
    context, bundle = multiprocessing.get_context("fork"), make_bundle(tmp_path / "model")
    folders = [onnx_folder(tmp_path / name, jpeg=f"jpeg {name}", model=name) for name in ("fp32", "fp16", "int8")]
    results, barrier = context.Queue(), context.Barrier(len(folders))
    processes = [context.Process(target=variant, args=(registry, bundle, f, barrier, results)) for f in folders]
    for process in processes:
        process.start()
    codes = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert codes <= {0, 2, 75}  # 2: another one moved LATEST at the same moment; 75: another one writes the version
    for folder in folders:
        promote(registry, "--model", bundle, "--onnx", folder)  # the same again
    versions = [version["version"] for version in Registry(registry, "digits").versions()]
    assert len(versions) == len(folders) and all(is_whole(registry, version) for version in versions)


def variant(registry, bundle, folder, barrier, results):
    barrier.wait()
    code = 0
    try:
        promote(registry, "--model", bundle, "--onnx", folder)
    except SystemExit as error:
        code = error.code
    results.put(code)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--model", "nowhere"], "no model.json there"),
        ([], "which bundle is to be promoted is missing"),
        (["--rollback", "--list"], "give one of them"),
        (["--to", "r1"], "--to goes with --rollback"),
        (["--model", "x", "--version", "../y"], "make a version"),
        (["--model", "x", "--name", "A/B"], "make a name"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        promote("registry", *flags)
    assert message in (line := capsys.readouterr().err) and len(line.splitlines()) == 1


@pytest.mark.parametrize("revision", [None, "7", -1, 1.5, True, [], 10**400], ids=range(7))
def test_a_bundle_whose_data_have_no_revision_needs_a_name(tmp_path, capsys, revision):
    bundle = make_bundle(tmp_path / "bundle", revision=revision)
    with pytest.raises(SystemExit, match="2"):
        promote(str(tmp_path / "registry"), "--model", bundle)
    assert "name it with --version" in (line := capsys.readouterr().err) and len(line.splitlines()) == 1
    promote(str(tmp_path / "registry"), "--model", bundle, "--version", "mine")
    assert latest(str(tmp_path / "registry")).version == "mine"


METRICS = {
    "classes": ["a", "b"],
    "labelled": 200,
    "baseline": {"top1": 0.7},
    "adapted": {"top1": 0.8},
    "intervals": {"top1": [0.05, 0.15]},
    "label_free": {
        "compared": {
            "agreement": 0.9,
            "audit": {
                "outcome": "gain",
                "alpha": 1.0,
                "reason": "",
                "images": 200,
                "rungs": [{"alpha": 1.0, "z": 4.0, "changed": 0.1, "outcome": "kept"}],
                "signal": {"renamed": 0.0},
            },
        },
        "baseline": {"effective_classes": 2.0, "mutual_information": 0.5},
        "adapted": {"effective_classes": 1.9, "mutual_information": 0.5},
    },
}


@pytest.mark.parametrize(
    "flags, passed",
    [
        ([], True),
        (["--min-agreement", "0.95"], False),
        (["--gate", "labelled"], True),
        (["--gate", "labelled", "--min-gain", "0.1"], False),
        (["--gate", "labelled", "--min-images", "201"], False),
        (["--gate", "none", "--min-agreement", "1"], True),
    ],
)
def test_the_gate_decides_and_promote_obeys(tmp_path, capsys, flags, passed):
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    decision = tmp_path / "decision.json"
    main(["gate", "--metrics", str(tmp_path / "metrics.json"), "--output", str(decision), *flags])
    shown = capsys.readouterr().out
    assert json.loads(decision.read_text())["passed"] is passed
    assert ("STOP" in shown) is not passed
    bundle, registry = make_bundle(tmp_path / "model"), str(tmp_path / "registry")
    if passed:
        promote(registry, "--model", bundle, "--decision", decision)
        assert Registry(registry, "digits").versions()[0]["decision"]["passed"]
    else:
        with pytest.raises(SystemExit, match="2"):
            promote(registry, "--model", bundle, "--decision", decision)
        assert "the gate stopped this model" in capsys.readouterr().err


def test_zero_shot_goes_green_but_replaces_no_champion(tmp_path, capsys):
    """Nothing was kept of an adaptation: the first model may be that, a champion stays."""
    metrics = copy.deepcopy(METRICS)
    metrics["label_free"]["compared"]["audit"] |= {"outcome": "same", "alpha": 0.0}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    decision = tmp_path / "decision.json"
    main(["gate", "--metrics", str(tmp_path / "metrics.json"), "--output", str(decision)])
    assert "gate (label-free): passed, zero-shot is kept" in capsys.readouterr().out
    said = json.loads(decision.read_text())
    assert said["passed"] and said["outcome"] == "zero-shot"
    bundle, registry = make_bundle(tmp_path / "model"), str(tmp_path / "registry")
    promote(registry, "--model", bundle, "--decision", decision)
    first = Registry(registry, "digits").latest().version
    assert first
    with pytest.raises(SystemExit, match="2"):
        promote(registry, "--model", make_bundle(tmp_path / "other", seed=1), "--decision", decision)
    assert "has a champion, which stays" in capsys.readouterr().err
    assert Registry(registry, "digits").latest().version == first
