"""Wrong commands: one line each, before anything heavy is imported, and not a byte of a finished folder changes."""

import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from must.api.cli import main
from must.api.demo import CLASSES, find_assets
from must.api.run import check_output, configure, preflight
from tests.api.conftest import checksums, weights
from tests.zoo import put

ADAPT = "adapt photos --classes classes.txt --model model --output work"
TRAIN = "train --shards work/shards --classifier work/classifier.safetensors --output work/model"
REFINE = "refine --model new --shards work/shards --output labels --classifier work/classifier.safetensors"
PLAN = "plan --shards work/shards --classifier work/classifier.safetensors"
EXPORT = "export work --output new --to open_clip"
PROMOTE = "promote work --registry reg --name digits"
LINES = f"""
adapt wrok                                                                   | wrok: there is no such folder
adapt fotos --classes classes.txt --model model --output work                | --images fotos: there is no such folder or file
adapt photos more --classes classes.txt --model model --output work          | more: unexpected; write a value after its flag
adapt photos --classes clases.txt --model model --output work                | --classes clases.txt: no such file
adapt photos --classes cat --model model --output work                       | must adapt: --classes 'cat': no such file, and one name; give a file with a name a line, the names themselves
adapt photos --classes 'red; green' --model model --output work              | must adapt: --classes 'red; green': no such file; separate names by commas: 'red, green'
adapt photos --classes folders --model model --output work                   | classes folders: photos needs two folders at least
adapt photos --classes classes.txt --model modle --output work               | --model modle: no open_clip model and no folder
adapt photos --classes classes.txt --model work --output work                | model work: is the output, too
adapt work/labels --classes classes.txt --model model --output work          | in a folder that must adapt writes
adapt photos --classes classes.txt --model model --output work/model         | is in the model
adapt photos --classes classes.txt --model model --output classes.txt        | is a file; give a folder
adapt photos --classes classes.txt --model model                             | missing: --output
{ADAPT} --pretrained openai                                                  | --pretrained openai: model has weights of its own
{ADAPT} --test-images tset                                                   | --test-images tset: there is no such folder or file
{ADAPT} --epoch 3                                                            | --epoch: unknown; did you mean --epochs?
{ADAPT} --settings epoch=3                                                   | settings: unknown name 'epoch'; did you mean 'epochs'?
{ADAPT} --settings shards=x                                                  | shards: is set by must.adapt itself
{ADAPT} --device gpu                                                         | --device gpu: expected auto, cpu, cuda, cuda:N or mps
{ADAPT} --workers 1000000                                                    | --workers 1000000: more than the
refine wrok                                                                  | --model wrok: no such folder
refine work --model work                                                     | --model: is given twice
refine work --answers nowhere                                                | --answers nowhere: no answers.jsonl there
refine work --classifier classes.txt                                         | is damaged or no file of `must classifier`
refine work --memory-images 10                                               | --memory-images must be at least 11
{REFINE} --alpha 0.5                                                         | --alpha: new is not trained
refine work --answers bad                                                    | answers.jsonl, line 1: 'x' is not a sha256
review work --add classes.txt                                                | --add classes.txt: the first line must name
evaluate work --baseline model                                               | --baseline model: is a folder
evaluate work --refined photos                                               | --refined photos/refined.json: no such file
export work --to tflite                                                      | --to must be one of onnx, open_clip
export --model nowhere --output new --classifier work/classifier.safetensors --to open_clip | no model.json there
{EXPORT} --min-agreement 0.5                                                 | --min-agreement goes with --to onnx
{EXPORT} --license 'My Licence!'                                             | expected a short name of the hub's
export steps                                                                 | no model of `must train` or `must refine` is in it; make it, or name it with --model
export work --output new --metrics other.json                                | --metrics other.json: was made of another model
predict photos                                                               | the command is: must predict photos --model WORK
predict work/ photos                                                         | missing: --model; the command is: must predict photos --model work
predict --model wrok photos                                                  | --model wrok: no such file or folder
predict --model work photos --classes cat,dog                                | the model in work has classes of its own
predict --model ViT-B-16 --classes cat,dog photos                            | write ViT-B-16/WEIGHTS, such as ViT-B-16/openai
predict --model model photos                                                 | say which classes there are
predict --model work/model/model.safetensors photos                          | give its folder, work/model
predict --model work photos --output work/labels/predictions.csv             | work/labels holds refined.json of another command
serve wrok                                                                   | --model wrok/model.onnx: no such file
serve steps                                                                  | --model steps: no ONNX file is in it; `must export steps` makes it, or name it with --model
serve --model work --registry reg --name digits                              | cannot both be given
serve refined                                                                | was exported from another model than
serve work --host nowhere.invalid                                            | --host nowhere.invalid
gate work --output photos                                                    | --output photos: is a folder; give a file
gate --metrics classes.txt                                                   | --metrics classes.txt: is damaged or of another kind
promote work --registry reg --name 'my digits'                               | use small letters
{PROMOTE} --version ../x                                                     | use small letters
{PROMOTE} --to r1                                                            | --to goes with --rollback
promote --registry reg --name digits                                         | --model is missing: the bundle to promote
promote --rollback --list --registry reg --name digits                       | give one of them
promote --rollback --registry reg --name digits                              | no earlier champion to go back to
promote --list --registry reg --name digit                                   | holds no model of this name
{TRAIN}/x                                                                    | is in the model
{TRAIN} --batch_size 3                                                       | --batch_size: unknown; did you mean --batch-size?
{TRAIN} --index-sha256 0000                                                  | expected 0000
{TRAIN}2 --batch-size 5000                                                   | the split holds 40 images only
{TRAIN}2 --batch-size 8 --accumulate 3                                       | --accumulate 3: must divide the 8 images
{TRAIN} --randaugment-ops Foo                                                | operations such as Rotate,ShearX
{TRAIN}2 --mask-patch-size 12                                                | must be a multiple of the model's patch
{TRAIN}2 --randaugment rand-m99999999                                        | m is at most 10, p 1, and n 100
{TRAIN}2 --mask-ratio 0.99                                                   | would mask all
{TRAIN}2 --workers much                                                      | --workers: expected a whole number, got 'much', which is not auto either
{TRAIN}2 --logit-factor 1e31                                                 | --logit-factor must be above 0 and at most 10000, or 'model'
shard photos --output work                                                   | --output work: is a folder of `must adapt`
classifier --classes imagenet --model ViT-B-16 --output c.safetensors        | ViT-B-16: names no weights; write ViT-B-16/WEIGHTS
classifier --classes imagenet --model RN50 --pretrained openai --output c.safetensors | must classifier: --model RN50: the image tower
classifier --classes classes.txt --model model --output work                 | --output must end in .safetensors
{PLAN} --json photos                                                         | --json photos: is a folder; give a file
{PLAN} --json classes.txt/f/x                                                | --json classes.txt/f/x
evaluate work --output work                                                  | --output work: holds adapt.json of another command; choose another folder
evaluate work --output work/labels                                           | --output work/labels: holds refined.json of another command
refine work --output work/shards                                             | --output work/shards: holds index.json of another command
adapt photos --classes classes.txt --model ViT-B-32 --pretrained openia --output work | --pretrained openia: no such file and no tag of ViT-B-32
adapt work --classes classes.txt --model model --output new                  | --images work: is a folder of `must adapt`; give the photographs
demo --output work                                                           | holds files of yours
""".strip().splitlines()  # fmt: skip  # noqa: E501
WRONG = [pytest.param(*map(str.strip, line.split(" | "))) for line in LINES]


@pytest.fixture(scope="module")
def finished(friday, tmp_path_factory):
    """A folder with a finished WORK and the inputs; in refined/ a copy with another model than was exported."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(friday, folder, dirs_exist_ok=True)
    work = folder / "work"
    shutil.copytree(find_assets(), folder / "model")
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    put(folder, {"bad/answers.jsonl": b'{"sha256": "x", "label": "one"}\n', "steps/shards/index.json": b"{}"})
    shutil.copytree(work, folder / "refined")
    file = folder / "refined/model/model.json"
    file.write_text(file.read_text().replace(weights(work), "0" * 64))
    metrics = (work / "report/metrics.json").read_text()
    (folder / "other.json").write_text(metrics.replace(weights(work), "0" * 64))
    return folder, checksums(folder)


@pytest.mark.parametrize("line, message", WRONG)
def test_a_wrong_command_is_one_line_and_changes_nothing(finished, monkeypatch, capfd, line, message):
    folder, before = finished
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as end:
        main(shlex.split(line))
    said = capfd.readouterr()
    (told,) = said.err.splitlines()
    assert end.value.code == 2 and told.startswith(f"must {line.split()[0]}: ") and message in told
    assert not said.out and checksums(folder) == before


@pytest.mark.parametrize("stage", ["evaluate", "refine", "export"])
def test_a_command_may_write_again_where_it_has_written(finished, stage):
    preflight(configure(stage, {"model": str(finished[0] / "work")}))


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
HERE = "train --shards {digits.shards} --classifier {digits.classifier} --output m"
EARLY = [
    ("--help", 0, ""),
    ("train --help", 0, ""),
    (f"{HERE} --preset imagenet", 2, "--preset imagenet: published for ViT-B/16 and ViT-L/14 only"),
    ("train --shards nowhere --classifier c --output m", 2, "nowhere holds no index.json"),
    ("evaluate --model nowhere --shards nowhere --output report", 2, "--model nowhere: no model.json there"),
    ("predict --model nowhere.onnx .", 2, "--model nowhere.onnx: no such file"),
    ("classifier --classes no.yaml --model ViT-B-16 --output c.safetensors", 2, "--classes no.yaml: no such file"),
    (f"{HERE} --preset auto --class-prior given", 2, "must train: --class-prior given: "),
    (f"{HERE} --checkpoints /dev/null/c", 2, "must train: --checkpoints /dev/null/c: cannot be written"),
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
    lines = [line.format(digits=digits) for line, *_ in EARLY]
    subprocess.run([sys.executable, "-c", CODE, *lines], check=True, cwd=here, stdout=subprocess.DEVNULL)
    assert not list(here.iterdir())
    return {line: (folder / "told" / str(number)).read_text() for number, (line, *_) in enumerate(EARLY)}


@pytest.mark.parametrize("line, code, message", EARLY)
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
