"""What kfp 2.17 and 2.18 do differently, on the one that is installed."""

import inspect

import kfp
import pytest
import yaml
from kfp import compiler, dsl

from must_pipeline.cluster.rules import load_cluster
from must_pipeline.compile import compile_pipeline
from must_pipeline.run_local import run_local
from tests.pipeline.compiled import Compiled

ESCAPE = (  # an output that is a program where it is put into a condition as it is
    "x' == 'y' or [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == '_wrap_close'][0]"
    ".__init__.__globals__['system']('touch {}') == 0 or 'x"
)


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def say(text: str) -> str:
    return text


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def mark(path: str):
    from pathlib import Path

    Path(path).write_text("reached")


@dsl.pipeline
def conditions(text: str, path: str):
    with dsl.If(say(text=text).output == "go"):
        mark(path=path)


def test_the_local_runner_takes_an_output_in_a_condition_as_data(tmp_path):
    """GHSA-rhjm-6347-5x33."""
    compiler.Compiler().compile(conditions, str(tmp_path / "p.yaml"))
    for text, reached in ((ESCAPE.format(tmp_path / "escaped"), False), ("go", True)):
        run_local(tmp_path / "p.yaml", {"text": text, "path": str(tmp_path / "mark")}, tmp_path / "run", True, None)
        assert (tmp_path / "mark").exists() is reached and not (tmp_path / "escaped").exists()


def test_a_retry_policy_is_set_or_refused_in_one_line(tmp_path):
    (tmp_path / "cluster.yaml").write_text("retries: {policy: Always}")
    cluster = load_cluster(tmp_path / "cluster.yaml")
    if "policy" not in inspect.signature(dsl.PipelineTask.set_retry).parameters:
        with pytest.raises(ValueError, match=f"retries.policy Always: the installed kfp {kfp.__version__} cannot set"):
            compile_pipeline(cluster, tmp_path / "p.yaml")
        return
    compile_pipeline(cluster, tmp_path / "p.yaml")
    assert "Always" in yaml.safe_dump(Compiled(tmp_path / "p.yaml").tasks["train"]["retryPolicy"])
