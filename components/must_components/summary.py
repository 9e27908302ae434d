"""The exit handler: one page about the run, after success or failure."""

from kfp import dsl

from must_components import images


@dsl.component(base_image=images.SHARD, install_kfp_package=False)
def summary(
    status: dsl.PipelineTaskFinalStatus,
    work_uri: str,
    run_id: str,
    run_summary: dsl.Output[dsl.Markdown],
    labelling_pods: int = 0,
    serve: str = "none",
) -> None:
    """Summarizes the stages' notes: which one failed, its last lines, whether and how to resume. Never cached.

    `status` is that of the stages, from Kubeflow: a hint.
    """
    import os

    from must.base.console import attach
    from must.base.storage import wait_for_credentials, write_bytes
    from must.runtime.stages import follow_ups
    from must.runtime.summary import leave_page, summarize
    from must_components.last_look import last_look

    attach()
    wait_for_credentials(work_uri)
    job_lines = last_look(work_uri, run_id)
    command = os.environ.get("MUST_RUN_AGAIN") or f"must-pipeline submit --again {run_id}"
    local = "MUST_RUN_AGAIN" in os.environ  # on one machine the run has no id on a server
    answer = f"must-pipeline answer {work_uri if local else run_id} answers.jsonl"
    text = summarize(work_uri, run_id, status.state, command, follow_ups(labelling_pods, serve), answer, job_lines)
    write_bytes(run_summary.path, text.encode())
    print(text)
    leave_page(work_uri, run_id, text)
