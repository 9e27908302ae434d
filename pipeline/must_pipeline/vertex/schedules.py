"""`must-pipeline schedule` on Vertex AI: its schedules hold the compiled pipeline and are changed in place."""

from pathlib import Path
from typing import Any

from google.cloud import aiplatform_v1
from google.protobuf.field_mask_pb2 import FieldMask

from must_pipeline.cluster.config import Cluster
from must_pipeline.vertex.client import TIMEOUT, VertexAi
from must_pipeline.vertex.jobs import CONTENT, check_run, make_job

State = aiplatform_v1.Schedule.State
CHANGED = ("cron", "create_pipeline_job_request", "max_concurrent_run_count")


def apply(options: Any, cluster: Cluster, schedule: Any, pipeline: Path) -> None:
    """Makes the schedule, or brings the one of that name up to date. Each run uses the pipeline as it is now.

    Raises:
        ValueError: two schedules have the name.
    """
    check_run(pipeline, schedule.parameters, cluster)
    cron = five_fields(schedule.cron)
    vertex = VertexAi(cluster.vertex, options.host)
    wanted = make_schedule(vertex, cluster, schedule, pipeline, cron)
    existing = vertex.find_schedules(schedule.name)
    if len(existing) > 1:
        raise ValueError(f"{schedule.name}: {len(existing)} schedules have this name; delete them first: delete NAME")
    if not existing:
        with vertex.translate_errors():
            vertex.schedules.create_schedule(parent=vertex.parent, schedule=wanted, timeout=TIMEOUT)
    elif facts(existing[0]) == facts(wanted):
        print(f"{schedule.name}: is up to date ({word(existing[0])})")
        return
    else:
        wanted.name = existing[0].name
        with vertex.translate_errors():
            vertex.schedules.update_schedule(
                schedule=wanted, update_mask=FieldMask(paths=list(CHANGED)), timeout=TIMEOUT
            )
    print(f"{schedule.name}: {'updated' if existing else 'created'}, {schedule.cron} (UTC)")


def make_schedule(vertex: VertexAi, cluster: Cluster, schedule: Any, pipeline: Path, cron: str) -> Any:
    """The message: one run at a time, and none that was missed."""
    job = make_job(cluster, pipeline, schedule.parameters, schedule.name, schedule.experiment)
    return aiplatform_v1.Schedule(
        display_name=schedule.name,
        cron=f"TZ=UTC {cron}",
        create_pipeline_job_request={"parent": vertex.parent, "pipeline_job": job},
        max_concurrent_run_count=1,
        allow_queueing=False,
    )


def five_fields(cron: str) -> str:
    """Vertex' cron lines have no seconds. Raises ValueError: this one does, or is a word."""
    fields = cron.split()
    if len(fields) == 6 and fields[0] == "0":
        fields = fields[1:]
    if len(fields) != 5:
        raise ValueError(f"cron '{cron}': Vertex takes minute hour day month weekday, such as '0 3 * * 1'")
    return " ".join(fields)


def facts(schedule: Any) -> list[Any]:
    job = schedule.create_pipeline_job_request.pipeline_job
    return [schedule.cron, schedule.max_concurrent_run_count, job.labels.get(CONTENT)]


def print_all(options: Any, cluster: Cluster) -> None:
    found = VertexAi(cluster.vertex, options.host).find_schedules()
    for one in found:
        print(f"{one.display_name:30}  {word(one):7}  {one.cron}")
    if not found:
        print("no schedules")


def switch(options: Any, cluster: Cluster, action: str, name: str) -> None:
    """Pauses, resumes or deletes. Runs that are going on go on. Raises ValueError: there is no such schedule."""
    vertex = VertexAi(cluster.vertex, options.host)
    found = vertex.find_schedules(name)
    if not found and action == "delete":
        print(f"{name}: there is no such schedule; nothing to do")
        return
    if not found:
        known = ", ".join(sorted(one.display_name for one in vertex.find_schedules())) or "none"
        raise ValueError(f"{action} {name}: there is no such schedule; there are: {known}")
    client = vertex.schedules
    call = {"pause": client.pause_schedule, "resume": client.resume_schedule, "delete": client.delete_schedule}[action]
    with vertex.translate_errors():
        for one in found:
            call(name=one.name, timeout=TIMEOUT)
    print(f"{name}: {action}d")


def word(schedule: Any) -> str:
    return {State.ACTIVE: "active", State.PAUSED: "paused"}.get(schedule.state, "unknown")
