"""The compiled pipeline, each task in a container of its image, with the command that Kubeflow would start."""

from kfp.local import status, subprocess_task_handler

from must.table import COMPONENTS
from must_pipeline import run_local
from must_pipeline.cluster import ClusterConfig
from must_pipeline.compile import compile_pipeline
from tests.containers.engine import PREFIX, VERSION, container, engine, own
from tests.pipeline.compiled import OF_LABELLING
from tests.pipeline.test_run import small_demo

OTHERS = {"shard-part", "train-on-nodes"}  # of other clusters


def test_every_component_runs_in_its_image(tmp_path, monkeypatch):
    ran = {}

    class Handler:
        def __init__(self, image, full_command, **others):
            self.image, self.command = image, full_command

        def run(self):
            own(tmp_path)  # kfp has made folders for the outputs
            options = (*container(), "--volume", f"{tmp_path}:{tmp_path}")
            done = engine("run", "--rm", *options, self.image, *self.command, check=False)
            print(done.stdout + done.stderr)
            ran[self.command[-2]] = self.image
            return status.Status.SUCCESS if done.returncode == 0 else status.Status.FAILURE

    monkeypatch.setattr(
        run_local, "replace_runner", lambda _: setattr(subprocess_task_handler, "SubprocessTaskHandler", Handler)
    )
    monkeypatch.setenv("MUST_RUN_AGAIN", "again")
    compile_pipeline(ClusterConfig(registry=PREFIX.rstrip("/"), tag=VERSION), tmp_path / "pipeline.yaml")
    parameters = small_demo(tmp_path / "demo") | {"work_uri": str(tmp_path / "run")}
    artifacts = run_local.run_local(tmp_path / "pipeline.yaml", parameters, tmp_path / "run")
    assert ran == {
        name: f"{PREFIX}{row.image}:{VERSION}" for name, row in COMPONENTS.items() if name not in OTHERS | OF_LABELLING
    }
    assert "# Promoted r0000-" in artifacts["run_page"].read_text()
