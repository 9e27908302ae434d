"""Every command that the documentation shows exists and has the flags it is given; the files it shows can be read."""

import ast
import re
import sys
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from itertools import pairwise

import pytest
import yaml

from must.api.cli import build_parser
from must.base.parameters import flag, list_parameters
from must.model.classifier import load_class_set
from must.table import COMMANDS
from must_pipeline import cli
from must_pipeline.cli import parse
from must_pipeline.cluster import load_cluster
from must_pipeline.compile import check_parameters, read_compiled
from tests.common import ROOT, printed
from tests.docs.blocks import PAGES, blocks, commands
from tests.pipeline.compiled import COMPILED

MAKEFILE = (ROOT / "Makefile").read_text()


def shown():
    """(page, words) of every command of ours, without what starts it: torchrun, python -m, a path to the programs."""
    for page in PAGES:
        for block in blocks(page):
            for words in commands(block):
                if words[0].endswith("torchrun") or words[1:3] == ["-m", "must.model.distributed"]:
                    words = words[len(words) - 1 - words[::-1].index("-m") + 1 :] if "-m" in words else []
                if words and re.fullmatch(r"(\S*/)?python3?", words[0]):
                    words = words[2:] if words[1:2] == ["-m"] else words[1:]
                words = [words[0].removeprefix(".venv/bin/"), *words[1:]] if words else words
                if words and (words[0] in ("must", "must-pipeline", "make") or words[0].startswith("must.")):
                    yield page.relative_to(ROOT).as_posix(), words


SHOWN = list(shown())


def of(program):
    found = {" ".join(words): (page, words) for page, words in SHOWN if words[0] == program}
    return [pytest.param(*one, id=f"{one[0]}: {text[:60]}") for text, one in found.items()]


@pytest.mark.parametrize("page, words", of("must"))
def test_must(page, words):
    words = [word for before, word in pairwise(words) if word != "..." or before.startswith("--")]
    wanted = {action.split("=")[0] for action in words if action.startswith("--")}
    if len(words) < 1 or words[0] in ("COMMAND", "--help", "--version"):
        return
    assert words[0] in {*COMMANDS, "index"}, f"{page}: must {words[0]}"
    placeholders = [word for word in words if word.isupper() and len(word) > 3 and not word.startswith("-")]
    if "--help" not in words and not placeholders:
        build_parser().parse_args(words)  # also the values' number
    known = help_of("must", *words[: 2 if words[0] == "index" else 1])
    assert wanted <= known | {"--help"}, f"{page}: {wanted - known}"


@cache
def help_of(program, *command):
    """The flags in a command's --help."""
    text = StringIO()
    with redirect_stdout(text), pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patch:
        if program == "must":
            build_parser().parse_args([*command, "--help"])
        else:
            patch.setattr(sys, "argv", [program, "--help"])
            parse(command[0])
    return set(re.findall(r"--[a-z][a-z0-9-]*", text.getvalue()))


@pytest.mark.parametrize("page, words", of("must-pipeline"))
def test_must_pipeline(page, words):
    if words[1] == "--help":
        return
    assert words[1] in cli.COMMANDS, page
    wanted, known = {word.split("=")[0] for word in words if word.startswith("--")}, help_of(*words[:2])
    assert wanted <= known, f"{page}: {wanted - known}"


@pytest.mark.parametrize("page, words", of("make"))
def test_make(page, words):
    targets = [word for word in words[1:] if re.fullmatch(r"[a-z][a-z-]*", word)]
    images = re.search(r"^IMAGES := (.*)$", MAKEFILE, re.MULTILINE)[1].split()
    for target in targets:
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE) or target in images, f"{page}: make {target}"


def test_nothing_was_overlooked():
    assert len(SHOWN) > 70 and {page for page, _ in SHOWN} >= {"README.md", "docs/kubeflow.md"}


def file(page, name):
    """The block that a page shows as the file `name`: the first one after the name."""
    text = (ROOT / page).read_text()
    after = text[text.index(f"`{name}`") :]
    return re.search(r"^```yaml\n(.*?)^```", after, re.MULTILINE | re.DOTALL)[1]


def test_the_files_that_pages_show(tmp_path):
    def write(page, name):
        (tmp_path / name).write_text(file(page, name))
        return tmp_path / name

    assert load_cluster(write("docs/kubeflow.md", "my-cluster.yaml")).gpu.count == 1
    check_parameters(read_compiled(COMPILED), yaml.safe_load(COMPILED.with_name("run.yaml").read_text()))
    assert len(load_class_set(str(write("docs/kubeflow.md", "classes.yaml"))).names) == 3


def test_the_reference_pages_are_current():
    code = "from docs.reference import FOLDER, pages; "
    code += "print(*(name for name, text in pages().items() if (FOLDER / name).read_text() != text))"
    assert printed(sys.executable, "-c", code, cwd=ROOT) == "\n", "run `make reference`"


FOREIGN = {"--standalone", "--nproc-per-node", "--shutdown-timeout", "--data-binary", "--flag-names", "--no-resume"}


def test_flags_that_texts_name_exist():
    """Of error lines, help and docstrings; FOREIGN are those of torchrun and curl, and forms of ours."""
    known = FOREIGN | {"--config", "--help", "--version"}
    known |= {flag(one.name) for row in COMMANDS.values() for one in list_parameters(row.config)}
    texts = [
        node.value
        for path in (ROOT / "must").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    named = {name for text in texts for name in re.findall(r"(?<![\w-])--[a-z][a-z0-9]*(?:-[a-z0-9]+)*(?![\w-])", text)}
    assert not named - known
