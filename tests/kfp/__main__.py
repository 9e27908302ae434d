"""Checks a Kubeflow: runs the bundled digits through the ways a run can end; prints what was expected and was seen.

    make test-kfp KFP_HOST=http://localhost:8080 NAMESPACE=vision STORE=gs://my-bucket/must-check

It needs the images in a registry that the cluster pulls from (--cluster: the file that says so), and a place that both
this machine and the pods see (--store). Killing and deleting pods needs Kubernetes' own API, as kubectl is configured,
with the right to list, delete and exec pods; without it those cases are skipped. What it makes is deleted at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import uuid
from pathlib import Path

from must import storage
from must.stages import call
from pipeline.cluster.config import Cluster
from pipeline.cluster.load import load_cluster
from pipeline.compile import CLUSTER, compile_pipeline
from pipeline.server.api import Kfp, add_arguments
from tests.kfp.cases import CASES, Case, Skipped
from tests.kfp.cluster import Pods
from tests.kfp.runs import Runs, Seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", type=Path, default=CLUSTER, help="the cluster's file [pipeline/cluster.yaml]")
    parser.add_argument(
        "--store", default="build/kfp-check", metavar="URI", help="gs://... or a path [build/kfp-check]"
    )
    parser.add_argument("--only", default="", metavar="NAME,...", help=f"of: {', '.join(case.name for case in CASES)}")
    parser.add_argument("--keep", action="store_true", help="delete nothing")
    add_arguments(parser)
    options = parser.parse_args()
    try:
        raise SystemExit(check(options))
    except ValueError as error:
        print(f"test-kfp: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def check(options: argparse.Namespace) -> int:
    """Returns the exit code: 0 if every case that could be tried ended as expected."""
    cluster = load_cluster(options.cluster)
    wanted = [case for case in CASES if not options.only or case.name in options.only.split(",")]
    name = f"must-check-{uuid.uuid4().hex[:6]}"
    place = storage.join(
        options.store if storage.is_remote(options.store) else str(Path(options.store).resolve()), name
    )
    namespace = options.namespace or cluster.namespace
    runs = Runs(Kfp(options), name, namespace, cluster, place)
    pods = Pods(namespace or "kubeflow")
    results = []
    try:
        upload_data(place)
        with tempfile.TemporaryDirectory() as folder:
            for case in wanted:
                print(f"-- {case.name}", flush=True)
                results.append((case, *tried(case, runs, pods, cluster, Path(folder))))
    finally:
        if not options.keep:
            runs.delete_all()
            storage.delete_folder(place)
    print("\n" + table(results))
    return int(any(not case.fits(seen) for case, seen, _ in results if seen is not None))


def tried(case: Case, runs: Runs, pods: Pods, cluster: Cluster, folder: Path) -> tuple[Seen | None, str]:
    """What was seen, or None and why it was not tried. Compiled pipelines go to `folder`."""
    try:
        case.check_needs(pods)
    except Skipped as reason:
        return None, str(reason)
    compiled = folder / f"nodes-{case.nodes}.yaml"
    if not compiled.exists():
        training = dataclasses.replace(cluster.training, nodes=case.nodes)
        compile_pipeline(dataclasses.replace(cluster, training=training), compiled)
    return case.run(runs, pods, compiled), ""


def upload_data(place: str) -> None:
    """The bundled digits, few of them: images, class names and the tiny CLIP."""
    with tempfile.TemporaryDirectory() as folder:
        call("demo", output=folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        images = [path for path in files if path.suffix == ".png"]
        for file in [path for path in files if path.suffix != ".png"] + images[::3]:
            storage.upload(file, storage.join(place, "demo", str(file.relative_to(folder))))


def table(results: list[tuple[Case, Seen | None, str]]) -> str:
    rows = [("case", "expected", "seen", "")]
    for case, seen, why in results:
        shown = seen.line if seen else f"not tried: {why}"
        rows.append((case.name, case.expected, shown, "" if seen is None else "ok" if case.fits(seen) else "WRONG"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


if __name__ == "__main__":
    main()
