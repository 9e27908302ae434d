"""Builds the folder with which our components can be proposed to kubeflow/pipelines-components: must-pipeline shelf.

    must-pipeline shelf CHECKOUT --approver NAME [--verified 2026-01-31]

writes components/training/must_clip/ below CHECKOUT: sharding, the zero-shot classifier, training, evaluation and
export, each with the component, its README, metadata, owners and tests as that repository asks for them. They are our
components, word for word, on an image that its rules allow; the package is installed when the pod starts.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import kfp

import must_components
from must import __version__
from must.base.exits import WRONG_INPUT
from must.base.text import without_secrets
from must_pipeline.shelf_readme import index_page, page

PLACE = Path("components/training/must_clip")
IMAGE = "python:3.11"  # their rules allow python:VERSION and Kubeflow's own images
EXTRAS = {"shard": "gcs,s3,azure", **dict.fromkeys(("classifier", "train", "evaluate"), "train,gcs,s3,azure"),
          "export": "export,gcs,s3,azure"}  # fmt: skip
TAGS = {
    "shard": ["data_processing", "webdataset"],
    "classifier": ["zero_shot", "clip"],
    "train": ["unsupervised", "domain_adaptation", "clip"],
    "evaluate": ["evaluation", "clip"],
    "export": ["onnx", "clip"],
}
KFP = ".".join([*kfp.__version__.split(".")[:2], "0"])
COMPONENT = """from kfp import dsl


@dsl.component(
    base_image="{image}",
    packages_to_install=["{package}"],
)
{function}

if __name__ == "__main__":
    from kfp.compiler import Compiler

    Compiler().compile(
        {name},
        package_path=__file__.replace(".py", "_component.yaml"),
    )
"""
EXAMPLE = '''"""Adapt CLIP to unlabeled images: shards, a zero-shot classifier, training, evaluation, export."""

from kfp import dsl


@dsl.pipeline(name="must-clip-adapt")
def adapt(
    source: str,
    classes: str,
    work_uri: str,
    model: str = "ViT-B-16-quickgelu",
    pretrained: str = "openai",
    gpu: str = "nvidia.com/gpu",
):
    """Adapt a CLIP model to the images of one's own domain without labels.

    Args:
        source: Bucket prefix of unlabeled images, such as gs://bucket/photos.
        classes: URI of a YAML file with class names and prompt templates.
        work_uri: Bucket prefix for shards and checkpoints.
        model: An open_clip model name.
        pretrained: Its open_clip pretrained tag.
        gpu: The accelerator resource that training asks for.
    """
    from kfp_components.components.training.must_clip.classifier import classifier
    from kfp_components.components.training.must_clip.evaluate import evaluate
    from kfp_components.components.training.must_clip.export import export
    from kfp_components.components.training.must_clip.shard import shard
    from kfp_components.components.training.must_clip.train import train

    run = {"work_uri": work_uri, "run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER}
    sharded = shard(source=source, split="train=0.9,test=0.1", **run)
    zero_shot = classifier(
        classes=classes, model=model, pretrained=pretrained, fingerprint=dsl.PIPELINE_JOB_ID_PLACEHOLDER, **run
    )
    data = {**run, "index_sha256": sharded.outputs["Output"]}
    trained = train(classifier=zero_shot.outputs["weights"], **data)
    trained.set_accelerator_type(gpu).set_accelerator_limit(1)
    bundle = trained.outputs["bundle"]
    evaluated = evaluate(bundle=bundle, classifier=zero_shot.outputs["weights"], **data)
    export(bundle=bundle, details=evaluated.outputs["details"], **data)
'''
UNIT_TEST = '''"""Tests for the {name} component."""

import inspect

from kfp.compiler import Compiler

from ..component import {name}


class Test{title}UnitTests:
    """Unit tests for the component's interface."""

    def test_component_function_exists(self):
        """The component can be called in a pipeline, and its function on its own."""
        assert callable({name})
        assert callable({name}.python_func)

    def test_every_parameter_reaches_the_compiled_component(self, tmp_path):
        """It compiles, with all parameters as inputs or outputs."""
        import yaml

        Compiler().compile({name}, str(tmp_path / "component.yaml"))
        spec = yaml.safe_load((tmp_path / "component.yaml").read_text())
        root = spec["root"]
        compiled = {{*root.get("inputDefinitions", {{}}).get("parameters", {{}})}}
        compiled |= {{*root.get("inputDefinitions", {{}}).get("artifacts", {{}})}}
        compiled |= {{*root.get("outputDefinitions", {{}}).get("artifacts", {{}})}}
        assert set(inspect.signature({name}.python_func).parameters) <= compiled

    def test_every_parameter_is_described(self):
        """The docstring has a line for each parameter."""
        text = inspect.getdoc({name}.python_func)
        assert all(f"{{name}}: " in text for name in inspect.signature({name}.python_func).parameters)
'''
LOCAL_TEST = '''"""Runs the shard component's function on real images, where its package is installed."""

import json

import pytest

from ..component import shard


class Index:
    """An output artifact in a folder of the test."""

    def __init__(self, path):
        """Stand for the artifact at `path`."""
        self.path = str(path)
        self.metadata = {}


def test_images_become_shards_with_an_index(tmp_path):
    """Three images are packed, and the returned checksum is the index's."""
    pytest.importorskip("must", reason="needs the package must-clip")
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    (tmp_path / "photos").mkdir()
    for number in range(3):
        image.new("RGB", (32, 32), (80 * number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    index = Index(tmp_path / "index.json")
    checksum = shard.python_func(
        source=str(tmp_path / "photos"), work_uri=str(tmp_path / "work"), run_id="run", index=index
    )
    assert len(checksum) == 64
    assert list((tmp_path / "work" / "shards").rglob("*.tar"))
    assert sum(split["samples"] for split in json.loads((tmp_path / "index.json").read_text())["splits"].values()) == 3
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a checkout of kubeflow/pipelines-components, or an empty folder")
    parser.add_argument("--approver", action="append", default=[], metavar="NAME",
                        help="a GitHub name, of a member of the Kubeflow community; may be repeated")  # fmt: skip
    parser.add_argument("--verified", default="", metavar="DATE", help="when the components were last tried [today]")
    parser.add_argument("--package", default="", metavar="REQUIREMENT", help="for pip, such as a wheel's URL; {extras} "
                        f"stands for what a component needs [must-clip[{{extras}}]=={__version__}]")  # fmt: skip
    options = parser.parse_args()
    try:
        written = build(options.checkout, options.approver, day_of(options.verified), options.package)
    except (ValueError, OSError) as error:
        print(f"shelf: {without_secrets(str(error))}", file=sys.stderr)
        raise SystemExit(WRONG_INPUT) from None
    print(f"{options.checkout / PLACE}: {len(written)} files, verified {day_of(options.verified)}")


def day_of(text: str) -> date:
    """Raises ValueError: none of a year ago or less."""
    today = datetime.now(UTC).date()
    try:
        day = date.fromisoformat(text) if text else today
    except ValueError:
        raise ValueError(f"--verified {text}: expected a date such as {today}") from None
    if not 0 <= (today - day).days < 365:
        raise ValueError(f"--verified {text}: their rules take a day of the last twelve months")
    return day


def build(checkout: Path, approvers: list[str], verified: date, package: str = "") -> list[Path]:
    """Writes all files, over older ones of the same names; returns them.

    Raises:
        ValueError: no approver, or one that is no GitHub name.
    """
    if not approvers:
        raise ValueError("--approver: their rules ask for at least one, a GitHub name of a Kubeflow community member")
    for name in approvers:
        if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9]|-(?=[A-Za-z0-9])){0,38}", name):
            raise ValueError(f"--approver {name}: is no GitHub name")
    package = package or f"must-clip[{{extras}}]=={__version__}"
    files: dict[str, str] = {"__init__.py": "", "OWNERS": owners(approvers)}
    for name in EXTRAS:
        files |= {f"{name}/{file}": text for file, text in component(name, approvers, verified, package).items()}
    files["README.md"] = index_page("must_clip", {name: files[f"{name}/component.py"] for name in sorted(EXTRAS)})
    for file, text in files.items():
        target = checkout / PLACE / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return [checkout / PLACE / file for file in files]


def component(name: str, approvers: list[str], verified: date, package: str) -> dict[str, str]:
    """The files of one component's folder."""
    requirement = package.replace("{extras}", EXTRAS[name])
    source = COMPONENT.format(image=IMAGE, package=requirement, name=name, function=function_of(name))
    metadata = metadata_of(name, verified)
    files = {
        "__init__.py": f'from .component import {name}\n\n__all__ = ["{name}"]\n',
        "component.py": source,
        "metadata.yaml": yaml_of(metadata),
        "OWNERS": owners(approvers),
        "tests/__init__.py": "",
        "tests/test_component_unit.py": UNIT_TEST.format(name=name, title=name.capitalize()),
    }
    if name == "shard":
        files["tests/test_component_local.py"] = LOCAL_TEST
    if name == "train":
        files["example_pipelines.py"] = EXAMPLE
    files["README.md"] = page(source, metadata, approvers, files.get("example_pipelines.py", ""))
    return files


def function_of(name: str) -> str:
    """The component's function as we have it, without its decorator and our linter's remarks."""
    text = (Path(inspect.getfile(must_components)).parent / f"{name}.py").read_text(encoding="utf-8")
    (function,) = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    lines = text.splitlines()[function.lineno - 1 : function.end_lineno]
    return "\n".join(re.sub(r"  # noqa: B006.*", "", line) for line in lines) + "\n"


def metadata_of(name: str, verified: date) -> dict[str, Any]:
    """In the order that their check asks for."""
    return {
        "name": f"must_clip_{name}",
        "stability": "alpha",
        "dependencies": {"kubeflow": [{"name": "Pipelines", "version": f">={KFP}"}]},
        "tags": ["training", *TAGS[name]],
        "lastVerified": f"{verified}T00:00:00Z",
    }


def yaml_of(metadata: dict[str, Any]) -> str:
    """As their yamllint wants it: lists are indented."""
    (pipelines,) = metadata["dependencies"]["kubeflow"]
    tags = "".join(f"  - {tag}\n" for tag in metadata["tags"])
    return (
        f"---\nname: {metadata['name']}\nstability: {metadata['stability']}\ndependencies:\n  kubeflow:\n"
        f"    - name: {pipelines['name']}\n      version: '{pipelines['version']}'\n"
        f"tags:\n{tags}lastVerified: {metadata['lastVerified']}\n"
    )


def owners(approvers: list[str]) -> str:
    return "approvers:\n" + "".join(f"  - {name}\n" for name in approvers)
