"""Gives people's answers to a run that waits for them: must-pipeline answer RUN answers.jsonl.

RUN is the run's id, its name, or the address of its page; or its work_uri, which needs no Kubeflow server. The answers
are checked and stored beside the pictures, in work_uri, and the run is started again with the same parameters: finished
stages are not repeated, the answers choose alpha, and the gate checks that model.
"""

import argparse
from pathlib import Path
from typing import Any

from must.base import storage
from must.base.errors import UserError
from must.base.flags import OneLineParser
from must.base.text import printable
from must.runtime.answers import add_answers
from must.runtime.notes import read_notes
from must_pipeline.cluster.rules import load_cluster
from must_pipeline.files import CLUSTER, nearest
from must_pipeline.server.api import Kfp, add_arguments, api_errors
from must_pipeline.server.wait import name_successor
from must_pipeline.submit import copy_of, start


def main() -> None:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="id, name or address of the run, or its work_uri")
    parser.add_argument("answers", metavar="FILE", help="what the page saved: answers.jsonl")
    parser.add_argument("--cluster", type=Path, default=nearest(CLUSTER), help="for the namespace [cluster.yaml]")
    add_arguments(parser)
    answer(parser.parse_args())


def answer(options: argparse.Namespace) -> None:
    """Raises ValueError: no such run, a run that does not wait for answers, or a file that has no answers."""
    if is_work_uri(options.run):
        print(printable(add_answers(options.run, options.answers)))
        print("the next run with the same data and settings goes on with them: start it again (must-pipeline run "
              "or submit --again RUN_ID), or leave it to the schedule")  # fmt: skip
        return
    kfp = Kfp(options)
    run = find_run(kfp, options.run, options.namespace or load_cluster(options.cluster).namespace)
    work_uri = ((run.runtime_config and run.runtime_config.parameters) or {}).get("work_uri", "")
    questions = [note.facts.place for note in read_notes(work_uri, run.run_id) if note.stage == "review"]
    if not any(questions):
        raise UserError(
            f"the run {run.run_id} has no page of questions: only a run whose stage `review` is done has one"
        )
    print(printable(add_answers(work_uri, options.answers, questions[-1])))
    body = copy_of(kfp, run.run_id)
    body.display_name = f"{run.display_name} answered"
    name_successor(work_uri, run.run_id, start(kfp, body))


def is_work_uri(run: str) -> bool:
    if run.startswith(("http://", "https://")):
        return False
    return run.startswith(("/", "./", "../", "~")) or storage.is_remote(run) or Path(run).is_dir()


def find_run(kfp: Kfp, identifier: str, namespace: str) -> Any:
    """The run of this id, page address or name; of several with the same name the newest."""
    with api_errors(kfp.host):
        if "/" in identifier:
            return kfp.runs.run_service_get_run(identifier.rstrip("/").rsplit("/", 1)[-1].split("?")[0])
        every = kfp.pages(kfp.runs.run_service_list_runs, "runs", namespace=namespace)
        runs = [run for run in every if identifier in (run.run_id, run.display_name)]
    if not runs:
        raise UserError(f"run {identifier}: there is none of that id or name")
    return max(runs, key=lambda run: run.created_at)
