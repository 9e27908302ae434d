"""The compiled pipeline for one machine: without retries and the pauses before them, which are for clusters."""

from pathlib import Path

import yaml

from must_pipeline.files import documents


def local_spec(pipeline: Path) -> str:
    """The pipeline's YAML without retries, except that training is retried at once, from its checkpoint."""
    spec, *platform = documents(pipeline.read_text())
    for executor in spec["deploymentSpec"]["executors"].values():
        container = executor["container"]
        container["env"] = [variable for variable in container.get("env", []) if variable["name"] != "MUST_RETRIES"]
    for component in [spec["root"], *spec["components"].values()]:
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            policy = task.pop("retryPolicy", None)
            if policy and name == "train":
                task["retryPolicy"] = {"maxRetryCount": policy["maxRetryCount"], "backoffDuration": "0s"}
    return yaml.safe_dump_all([spec, *platform])
