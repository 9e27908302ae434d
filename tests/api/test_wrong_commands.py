"""Wrong commands in a folder where everything is finished: each is one line, and not a byte is changed."""

import shlex
import shutil

import pytest

import must
from must.api.cli import main
from must.api.demo import CLASSES, asset_folder
from tests.api.conftest import answer, checksums, label_of, weights
from tests.once import made_once

ADAPT = "adapt photos --classes classes.txt --model model --output work"
TRAIN = "train --shards work/shards --classifier work/classifier.safetensors --output work/model"
PROMOTE = "promote work --registry reg --name digits"
LINES = f"""
adapt fotos --classes classes.txt --model model --output work                | images fotos: there is no such folder or file
adapt fotos --classes classes.txt --model model --output work --again        | images fotos: there is no such folder or file
adapt photos more --classes classes.txt --model model --output work          | more: unexpected; write a value after its flag
adapt photos --classes clases.txt --model model --output work                | --classes clases.txt: no such file
adapt photos --classes cat --model model --output work                       | --classes 'cat': no such file, and one name
adapt photos --classes one,one --model model --output work                   | class 'one' appears more than once
adapt photos --classes 'one;two' --model model --output work                 | separate names by commas: 'one,two'
adapt photos --classes folders --model model --output work                   | classes folders: photos needs two folders at least
adapt photos --classes classes.txt --model modle --output work               | --model modle: no open_clip model and no folder
adapt photos --classes classes.txt --model ViT-B-61 --output work            | did you mean ViT-B-16
adapt photos --classes classes.txt --model work --output work                | model work: is the output, too
adapt photos --classes classes.txt --model work/model --output work          | in a folder that must adapt writes
adapt work/labels --classes classes.txt --model model --output work          | in a folder that must adapt writes
adapt photos --classes classes.txt --model model --output photos             | images photos: is the output, too
adapt photos --classes classes.txt --model model --output work/model         | is in the model
adapt photos --classes classes.txt --model model --output classes.txt        | is a file; give a folder
adapt photos --classes classes.txt --model model                             | missing: --output
{ADAPT} --pretrained openai                                                  | --pretrained openai: model has weights of its own
{ADAPT} --test-images tset                                                   | test_images tset: there is no such folder or file
{ADAPT} --test-images classes.txt                                            | test_images classes.txt: expected a folder of images
{ADAPT} --epoch 3                                                            | --epoch: unknown; did you mean --epochs?
{ADAPT} --epochs three                                                       | --epochs: expected a whole number
{ADAPT} --settings epoch=3                                                   | settings: unknown name 'epoch'; did you mean 'epochs'?
{ADAPT} --settings shards=x                                                  | shards: is set by must.adapt itself
{ADAPT} --max-rejected 5                                                     | --max-rejected must be at least 0 and at most 1
{ADAPT} --device gpu                                                         | --device gpu: expected auto, cpu, cuda, cuda:N or mps
{ADAPT} --workers 1000000                                                    | --workers 1000000: more than the
{ADAPT} --preset imagnet                                                     | --preset imagnet: unknown; did you mean 'imagenet'?
{ADAPT} --config no.yaml                                                     | --config no.yaml: cannot be read
refine wrok                                                                  | --model wrok: no such folder
refine work/labels                                                           | no model of `must adapt` there
refine work --model work                                                     | --model: is given twice
refine work --answers nowhere                                                | --answers nowhere: no answers.jsonl there
refine work --classifier classes.txt                                         | is damaged or no file of `must classifier`
review work --add nowhere.csv                                                | --add nowhere.csv: no such file
review work --add classes.txt                                                | --add classes.txt: the first line must name
review work --add wrong.csv                                                  | the first line must name the columns image and class
review work --add typo.csv                                                   | did you mean 'three'?
review work --add                                                            | expected one argument
evaluate work --split tset                                                   | hold no split 'tset'
evaluate work --baseline model                                               | --baseline model: is a folder
evaluate work --refined photos                                               | --refined photos/refined.json: no such file
evaluate work --shards work                                                  | work holds no index.json
export work --to tflite                                                      | --to must be one of onnx, open_clip
predict photos                                                               | the command is: must predict photos --model WORK
predict work/ photos                                                         | missing: --model; the command is: must predict photos --model work
predict --model wrok photos                                                  | --model wrok: no such file or folder
predict --model work fotos                                                   | fotos: no such file
predict --model work photos --output work                                    | the name must end in .csv or .jsonl
predict --model work photos --classes cat,dog                                | the model in work has classes of its own
predict --model ViT-B-16 --classes cat,dog photos                            | write ViT-B-16/WEIGHTS, such as ViT-B-16/openai
predict --model model photos                                                 | say which classes there are
predict --model work/model/model.safetensors photos                          | give its folder, work/model
predict --model work photos --output work/labels/predictions.csv             | work/labels holds refined.json of another command
predict --model work                                                         | missing: images
predict --model work --shards work photos                                    | --shards: unknown
serve wrok                                                                   | --model wrok/model.onnx: no such file
serve --model work --registry reg --name digits                              | cannot both be given
serve refined                                                                | was exported from another model than
serve work --port 99999                                                      | --port must be at least 0
serve work --host nowhere.invalid                                            | --host nowhere.invalid
gate work --output photos                                                    | photos: cannot be written: is a directory
gate --metrics classes.txt                                                   | --metrics classes.txt: is damaged or of another kind
promote work --registry reg                                                  | missing: --name
promote work --registry reg --name 'my digits'                               | use small letters
{PROMOTE} --onnx photos                                                      | --onnx photos: no model.onnx there
{PROMOTE} --version ../x                                                     | use small letters
{PROMOTE} --to r1                                                            | --to goes with --rollback
promote --model nowhere --registry reg --name digits                         | no model.json there
promote --registry reg --name digits                                         | --model is missing: the bundle to promote
promote --rollback --list --registry reg --name digits                       | give one of them
promote --rollback --registry reg --name digits                              | no earlier champion to go back to
promote --list --registry reg --name digit                                   | holds no model of this name
train work                                                                   | work: unexpected
{TRAIN}/x                                                                    | is in the model
{TRAIN} --batch_size 3                                                       | --batch_size: unknown; did you mean --batch-size?
{TRAIN} --no_resume                                                          | --no_resume: unknown; did you mean --no-resume?
{TRAIN} --shufle-window 3                                                    | did you mean --shuffle-window?
{TRAIN} --index-sha256 0000                                                  | expected 0000
{TRAIN} --batch-size 5000                                                    | the split holds 40 images only
{TRAIN} --randaugment-ops Foo                                                | operations such as Rotate,ShearX
{TRAIN} --device cuda:9                                                      | no such device here
shard photos --output work                                                   | --output work: is a folder of `must adapt`
shard photos --output work/shards --append --resize 30                       | were made with --resize 0; give the same
shard fotos --output new                                                     | --source fotos: there is no such folder
shard photos --output new --test-source photos                               | test images need labels to measure with
shard photos --output new --split train=0.5,test=0.6                         | --split must add up to 1
classifier --classes imagenet --model ViT-B-16 --output c.safetensors        | ViT-B-16: names no weights; write ViT-B-16/WEIGHTS
classifier --classes classes.txt --model model --output work                 | --output must end in .safetensors
plan --json photos --shards work/shards --classifier work/classifier.safetensors | --json photos: is a folder; give a file
evaluate --modle=x --shards s                                                 | --modle: unknown; did you mean --model?
index show work                                                              | work holds no index.json
demo --output work                                                           | holds files of yours
""".strip().splitlines()  # fmt: skip  # noqa: E501
WRONG = [
    pytest.param(*map(str.strip, line.split(" | ")), marks=() if line.startswith("adapt ") else pytest.mark.slow)
    for line in LINES
]


@pytest.fixture(scope="module")
def finished(monday):
    """A folder with photos, a finished WORK that was answered, exported and promoted, and the inputs; in refined/ a
    copy with another model than was exported."""

    def make(folder):
        shutil.copytree(monday, folder, dirs_exist_ok=True)
        work = folder / "work"
        shutil.copytree(asset_folder(), folder / "model")
        (folder / "classes.txt").write_text("\n".join(CLASSES))
        (folder / "typo.csv").write_text("image,class\nIMG_0000.png,trhee\n")
        (folder / "wrong.csv").write_text("picture,label\na.png,one\n")
        answer(work, folder / "photos", {f"IMG_{n:04d}.png": label_of(n) for n in range(5)})
        must.export(model=work, images=11)  # type: ignore[call-arg]
        must.gate(model=work, gate="none")  # type: ignore[call-arg]
        must.promote(model=work, registry=folder / "reg", name="digits")

        shutil.copytree(work, folder / "refined")
        file = folder / "refined/model/model.json"
        file.write_text(file.read_text().replace(weights(work), "0" * 64))

    folder = made_once("finished", make)
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
