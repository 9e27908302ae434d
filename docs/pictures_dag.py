"""Draws the compiled pipeline: its tasks, their dependencies, and the tasks that run only on a condition."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import yaml

from must.table import PODS

COMPILED = Path(__file__).parents[1] / "pipeline" / "must_pipeline.yaml"
WIDE, HIGH, GAP_X, GAP_Y, EDGE = 146, 44, 36, 64, 30
INK, GREY = "#1f2933", "#7b8794"
FILL = {"condition": ("#f5f9ff", "#9cc2f0"), "stage": ("#ffffff", "#52606d")}


def dag() -> str:
    """An SVG, from left to right."""
    spec = next(yaml.load_all(COMPILED.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    waits: dict[str, set[str]] = {}
    groups: list[tuple[str, set[str]]] = []
    collect(spec, spec["root"]["dag"], waits, groups, set())
    last = {"summary"}  # the exit handler, which waits for all tasks
    level: dict[str, int] = {}
    while len(level) < len(waits) - 1:
        for name, before in waits.items():
            if name not in level and name not in last and before <= level.keys():
                level[name] = 1 + max((level[stage] for stage in before), default=-1)
    positions: dict[str, tuple[float, float]] = {}
    rows = max(list(level.values()).count(number) for number in set(level.values()))
    for number in sorted(set(level.values())):
        names = [name for name in PODS if level.get(name) == number]
        for row, name in enumerate(names):
            y = EDGE + 40 + (row + (rows - len(names)) / 2) * (HIGH + GAP_Y)
            if len(names) == 1 and len(before := direct(waits, name)) == 1:  # in the row of the task that it waits for
                y = positions[min(before)][1]
            positions[name] = (EDGE + number * (WIDE + GAP_X), y)
    width = EDGE * 2 + (max(level.values()) + 1) * (WIDE + GAP_X) - GAP_X + 20
    bottom = EDGE + 40 + rows * (HIGH + GAP_Y)
    positions["summary"] = (width - EDGE - WIDE - 20, bottom + 34)
    around = [sum(members < other for _, other in groups) for _, members in groups]
    body = [group(*item, positions, depth) for item, depth in zip(groups, around, strict=True)]
    body += [arrow(positions[a], positions[b]) for b in waits for a in sorted(direct(waits, b))]
    body += [box(name, *positions[name]) for name in positions]
    x, y = positions["summary"]
    body.append(label(x - 12, y + HIGH / 2 + 4, "in any case, at the end:", GREY, 12, "end"))
    height = bottom + 34 + HIGH + EDGE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif"><defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" '
        f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{GREY}"/></marker></defs>'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(body)}</svg>\n'
    )


def collect(spec: Any, dag: Any, waits: dict[str, set[str]], groups: list[Any], above: set[str]) -> set[str]:
    """Reads one DAG of the compiled file and those inside it; returns the names of its stages."""
    stages: set[str] = set()
    for name, task in dag["tasks"].items():
        if name == "is-anything-new":  # only shows that the branch ends
            continue
        component = spec["components"][task["componentRef"]["name"]]
        if "dag" in component:
            # All tasks below wait for the stages in the condition.
            deciders = {stage for stage in PODS if f"pipelinechannel--{stage}-action" in str(task.get("triggerPolicy"))}
            inner = collect(spec, component["dag"], waits, groups, above | deciders)
            if inner and "condition" in task.get("triggerPolicy", {}):
                groups.insert(0, (task["taskInfo"]["name"], inner))
            stages |= inner
            continue
        inputs = str(task.get("inputs"))
        producers = {s for s in PODS if f"'producerTask': '{s}'" in inputs or f"pipelinechannel--{s}-" in inputs}
        waits[name] = (producers | set(task.get("dependentTasks", [])) | above) & PODS.keys() - {name}
        stages.add(name)
    return stages


def direct(waits: dict[str, set[str]], name: str) -> set[str]:
    """The direct dependencies of a stage: without those that another dependency has."""

    def ancestors(stage: str) -> set[str]:
        return waits[stage] | {far for near in waits[stage] for far in ancestors(near)}

    return {stage for stage in waits[name] if not any(stage in ancestors(other) for other in waits[name])}


def box(name: str, x: float, y: float) -> str:
    fill, line = FILL["stage"]
    return f'<rect x="{x}" y="{y}" width="{WIDE}" height="{HIGH}" rx="7" fill="{fill}" stroke="{line}"/>' + label(
        x + WIDE / 2, y + HIGH / 2 + 5, name, INK, 13, "middle"
    )


def group(title: str, members: set[str], positions: dict[str, tuple[float, float]], depth: int) -> str:
    fill, line = FILL["condition"]
    pad = 22 - 8 * depth
    x, y = (min(positions[name][axis] for name in members) - pad for axis in (0, 1))
    right = max(positions[name][0] for name in members) + WIDE + pad
    low = max(positions[name][1] for name in members) + HIGH + pad
    return (
        f'<rect x="{x}" y="{y - 18}" width="{right - x}" height="{low - y + 18}" rx="10" fill="{fill}" stroke="{line}" '
        'stroke-dasharray="5 4"/>' + label(x + 10, y - 2, f"only if: {title}", "#0b63ce", 12)
    )


def arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x, y), (u, v) = (start[0] + WIDE, start[1] + HIGH / 2), (end[0] - 2, end[1] + HIGH / 2)
    middle = (x + u) / 2
    path = f"M{x} {y}C{middle} {y} {middle} {v} {u} {v}"
    return f'<path d="{path}" fill="none" stroke="{GREY}" stroke-width="1.4" marker-end="url(#tip)"/>'


def label(x: float, y: float, words: str, colour: str, size: int, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" fill="{colour}" font-size="{size}" text-anchor="{anchor}">{escape(words)}</text>'
