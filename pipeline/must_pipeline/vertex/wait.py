"""Waits for the end of a run on Vertex AI and says what came of it."""

import time
from functools import partial
from typing import Any

from google.cloud.aiplatform_v1.types import PipelineState, PipelineTaskDetail

from must.base.storage import repeat
from must.base.text import printable_page
from must_pipeline.server.wait import SERVER_TIMEOUT, page_of, tell_silence
from must_pipeline.vertex.client import VertexAi

POLL = 30.0  # seconds
GOOD = (PipelineState.PIPELINE_STATE_SUCCEEDED,)
OVER = (*GOOD, PipelineState.PIPELINE_STATE_FAILED, PipelineState.PIPELINE_STATE_CANCELLED)
FRAMES = ("exit-handler-", "condition-", "for-loop-")  # around the stages
RUNNING, FAILED = PipelineTaskDetail.State.RUNNING, PipelineTaskDetail.State.FAILED


def wait(vertex: VertexAi, run_id: str, work_uri: str) -> int:
    """Returns the exit code: 0, or 1 for a run that failed or was cancelled.

    Raises:
        TransientError: Vertex gave no answer for SERVER_TIMEOUT seconds.
    """
    shown = ""
    while True:
        job = repeat(vertex.host, partial(vertex.job, run_id), timeout=SERVER_TIMEOUT, on_first=tell_silence)
        now = " ".join([word(job.state), *tasks(job, RUNNING)])
        if now != shown:
            shown = now
            print(f"{time.strftime('%H:%M:%S')} {now}", flush=True)
        if job.state in OVER:
            return report(job, page_of(work_uri, run_id))
        time.sleep(POLL)


def report(job: Any, page: str) -> int:
    good = job.state in GOOD
    if not good:
        cancelled = job.state == PipelineState.PIPELINE_STATE_CANCELLED
        stages = ", ".join(tasks(job, FAILED)) or "no stage has begun"
        print("the run was ended by a person" if cancelled else f"failed: {stages}")
    print(
        f"\n{printable_page(page)}" if page else "\nThe page about it is the artifact of the stage summary.", flush=True
    )
    return 0 if good else 1


def word(state: PipelineState) -> str:
    return state.name.removeprefix("PIPELINE_STATE_").lower()


def tasks(job: Any, state: PipelineTaskDetail.State) -> list[str]:
    """Names of the stages in that state, without the groups around them."""
    names = [task.task_name for task in job.job_detail.task_details if task.state == state]
    return [name for name in dict.fromkeys(names) if not name.startswith(FRAMES)]
