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
from typing import Any

from must.api.stages import call
from must.base import storage
from must_pipeline.cluster.config import Cluster
from must_pipeline.cluster.rules import load_cluster
from must_pipeline.compile import compile_pipeline
from must_pipeline.server.api import Kfp, add_arguments
from tests.kfp.cases import CASES, Case
from tests.kfp.cluster import Pods
from tests.kfp.runs import Runs, Seen, StuckError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    store = "build/kfp-check"
    parser.add_argument("--store", default=store, metavar="URI", help=f"gs://... or a path [{store}]")
    parser.add_argument("--only", default="", metavar="NAME,...", help=f"of: {', '.join(case.name for case in CASES)}")
    parser.add_argument("--minutes", type=float, default=60, help="the longest a run may take [60]")
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
    cluster, wanted = load_cluster(options.cluster), chosen(options.only)
    name, kfp = f"must-check-{uuid.uuid4().hex[:6]}", Kfp(options)
    store = options.store if storage.is_remote(options.store) else str(Path(options.store).resolve())
    place = storage.join(store, name)
    pods = Pods(kfp.namespace or "kubeflow")
    runs = Runs(kfp, pods, name, cluster, place, 60 * options.minutes)
    results: list[tuple[Case, Seen | None, str]] = []
    try:
        upload_data(place)
        with tempfile.TemporaryDirectory() as folder:
            try_all(wanted, runs, pods, cluster, Path(folder), results)
    finally:
        print("\n" + table(results) + "\n", flush=True)
        if not options.keep:
            runs.delete_all()
            delete_data(place)
    return int(any(not case.fits(seen) for case, seen, _ in results if seen is not None))


def chosen(only: str) -> list[Case]:
    """The cases of these names, and those that they come after. Raises ValueError for a name that there is not."""
    names = {name.strip() for name in only.split(",") if name.strip()}
    if unknown := names - {case.name for case in CASES}:
        raise ValueError(f"--only: no case '{min(unknown)}'; there are: {', '.join(case.name for case in CASES)}")
    names |= {case.after for case in CASES if case.name in names}
    return [case for case in CASES if not names or case.name in names]


def try_all(wanted: list[Case], runs: Runs, pods: Pods, cluster: Cluster, folder: Path, results: list[Any]) -> None:
    """One after the other: they share a place. What goes wrong in one of them is what was seen of it. Pipelines are
    compiled to `folder`."""
    stuck = ""
    for case in wanted:
        print(f"-- {case.name}", flush=True)
        seen, why = None, stuck or case.why_not(pods, cluster)
        if not why:
            try:
                seen = case.run(runs, pods, compiled(case.nodes, cluster, folder))
            except StuckError as error:  # so would be the next one, and each would take an hour
                seen, stuck = Seen("", str(error), 0), f"{case.name} did not go on"
            except Exception as error:  # the API servers', the store's, a websocket's
                seen = Seen("", " ".join(f"{type(error).__name__}: {error}".split())[:300], 0)
        results.append((case, seen, why))


def compiled(nodes: int, cluster: Cluster, folder: Path) -> Path:
    """The pipeline that trains on so many nodes."""
    file = folder / f"nodes-{nodes}.yaml"
    if not file.exists():
        as_ = "trainjob" if nodes > 1 else cluster.training.as_
        training = dataclasses.replace(cluster.training, nodes=nodes, as_=as_)
        compile_pipeline(dataclasses.replace(cluster, training=training), file)
    return file


def delete_data(place: str) -> None:
    storage.delete_folder(place)
    if not storage.is_remote(place) and Path(place).exists():
        print(f"left behind, for it belongs to the pods' user: sudo rm -r {place}")


def upload_data(place: str) -> None:
    """The bundled digits, few of them: images, class names and the tiny CLIP."""
    if not storage.is_remote(place):  # on a volume pods write there, as another user than this one
        for made in (Path(place), Path(place, "work")):
            made.mkdir(parents=True, exist_ok=True)
            made.chmod(0o2777)
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
        if seen and seen.promised:
            shown += f" (by Argo's setting such pods are {seen.promised})"
        rows.append((case.name, case.expected, shown, "" if seen is None else "ok" if case.fits(seen) else "WRONG"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


if __name__ == "__main__":
    main()
