"""Wrong input is told before anything heavy is imported: nobody waits for torch to read that a path is misspelt."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from must.api.preflight import check_output

HEAVY = ("torch", "torchvision", "open_clip", "timm", "sklearn", "onnxruntime")
CODE = f"""
import os, sys
from must.api.cli import main
for number, line in enumerate(sys.argv[1:]):
    if not os.fork():  # as a program of its own, but for the interpreter's start
        os.dup2(os.open(f"../told/{{number}}", os.O_WRONLY | os.O_CREAT), 2)
        try:
            main(line.split())
        except SystemExit as end:
            print(end.code, [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr, flush=True)
        os._exit(0)
    os.wait()
"""
TRAIN = "train --shards {digits.shards} --classifier {digits.classifier} --output m"
LINES = [
    ("--help", 0, ""),
    ("train --help", 0, ""),
    (f"{TRAIN} --preset imagenet", 2, "--preset imagenet: published for ViT-B/16 and ViT-L/14 only"),
    ("train --shards nowhere --classifier c --output m", 2, "nowhere holds no index.json"),
    ("evaluate --model nowhere --shards nowhere --output report", 2, "--model nowhere: no model.json there"),
    ("predict --model nowhere.onnx .", 2, "--model nowhere.onnx: no such file"),
    ("classifier --classes no.yaml --model ViT-B-16 --output c.safetensors", 2, "--classes no.yaml: no such file"),
    (f"{TRAIN} --preset auto --class-prior given", 2, "must train: --class-prior given: "),
    (f"{TRAIN} --checkpoints /dev/null/c", 2, "must train: --checkpoints /dev/null/c: cannot be written"),
    ("train --shards {digits.shards} --classifier none --output m", 2, "--classifier none: no such file"),
    ("train --shards {digits.shards} --classifier {digits.classifier} --output /dev/null/m", 2, "cannot be written: "),
    ("evaluate --model {digits.adapted} --shards {digits.shards} --baseline none --output r", 2, "--baseline none: no"),
]


@pytest.fixture(scope="module")
def told(digits, tmp_path_factory):
    """{command line: its stderr}, of processes in an empty folder, which they leave so."""
    folder = tmp_path_factory.mktemp("told")
    (here := folder / "here").mkdir()
    (folder / "told").mkdir()
    lines = [line.format(digits=digits) for line, *_ in LINES]
    subprocess.run([sys.executable, "-c", CODE, *lines], check=True, cwd=here, stdout=subprocess.DEVNULL)
    assert not list(here.iterdir())
    return {line: (folder / "told" / str(number)).read_text() for number, (line, *_) in enumerate(LINES)}


@pytest.mark.parametrize("line, code, message", LINES)
def test_help_and_wrong_input_are_told_in_a_line_before_anything_heavy_is_imported(told, line, code, message):
    *lines, end = told[line].splitlines()
    assert end == f"{code} []", told[line]
    if message:
        assert len(lines) == 1 and message in lines[0] and lines[0].startswith(f"must {line.split()[0]}: ")


def test_an_output_without_permission_is_told_before_the_work():
    with tempfile.TemporaryDirectory() as locked:  # not below tmp_path, which other users may not enter
        Path(locked).chmod(0o555)
        process = multiprocessing.get_context("fork").Process(target=look_as_a_common_user, args=(f"{locked}/c",))
        process.start()
        process.join()
    assert process.exitcode == 0


def look_as_a_common_user(output):
    if os.geteuid() == 0:  # nothing is forbidden to root
        os.setuid(65534)
    with pytest.raises(ValueError, match=f"--output {output}: cannot be written: no permission for "):
        check_output(output, "--output")
