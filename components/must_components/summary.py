"""The exit handler: one page about the run, after success or failure; and the last task of a branch that ends early."""

from kfp import dsl

from must_components import images


@dsl.component(base_image=images.SHARD, install_kfp_package=False)
def summary(
    status: dsl.PipelineTaskFinalStatus, work_uri: str, run_id: str, run_summary: dsl.Output[dsl.Markdown]
) -> None:
    """Summarizes the stages' notes: which one failed, its last lines, whether and how to resume. Never cached."""
    import os

    from must.base.console import attach
    from must.base.storage import wait_for_credentials
    from must.runtime.summary import summarize, write_page
    from must_components.job_at_end import settle_run

    attach()
    wait_for_credentials(work_uri)
    again = os.environ.get("MUST_RUN_AGAIN") or f"must-pipeline submit --again {run_id}"
    page = summarize(work_uri, run_id, status.state, again, settle_run(work_uri, run_id))
    print(page.to_text())
    write_page(page, run_summary.path)


@dsl.component(base_image=images.SHARD, install_kfp_package=False)
def close(why: str) -> None:
    """Prints why nothing follows: Kubeflow shows a group whose last step was skipped as running for ever."""
    print(why)
