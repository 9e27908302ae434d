"""The compiled pipeline as one machine runs it: no pause before a second try, which is meant for clusters."""

from pathlib import Path

import yaml

from must_pipeline.files import documents


def local_spec(pipeline: Path) -> str:
    """The pipeline's YAML without retries, but for training: it goes on from its checkpoint, at once."""
    spec, *platform = documents(pipeline.read_text())
    for executor in spec["deploymentSpec"]["executors"].values():
        container = executor["container"]
        container["env"] = [one for one in container.get("env", []) if one["name"] != "MUST_RETRIES"]
    for component in [spec["root"], *spec["components"].values()]:
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            policy = task.pop("retryPolicy", None)
            if policy and name == "train":
                task["retryPolicy"] = {"maxRetryCount": policy["maxRetryCount"], "backoffDuration": "0s"}
    return yaml.safe_dump_all([spec, *platform])
