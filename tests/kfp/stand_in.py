"""A server of Kubeflow Pipelines' API whose runs end as they were seen to end, notes and page included; its pods."""

import json

from must.base.storage import join, write_bytes
from must.runtime.notes import Facts, Note
from must.runtime.places import WorkUri
from must.runtime.summary import leave_page, summarize
from tests.kfp.cluster import RACE
from tests.pipeline.kfp_server import OVER, KfpServer

BEFORE = ["inputs", "shard", "classifier", "champion"]
TRAINED = [*BEFORE, "train", "evaluate", "export", "gate"]
LOST = {"code": 137, "seconds": 9.0, "host": "node", "line": ""}


class Player(KfpServer):
    """A run in which training is disturbed has a checkpoint, and waits for the disturbance."""

    def __init__(self, users=None):
        super().__init__(users)
        self.disturbed = {}  # run id -> what was done to it
        self.orphans = set()  # runs whose schedule is gone: those that are not over stay what they are
        self.states, self.lost = ["RUNNING"], ()  # what a run does not outlive

    def second_is_there(self):
        return any(run["display_name"].endswith("the second") for run in self.stored["runs"].values())

    def create(self, kind, body, who):
        status, made = super().create(kind, body, who)
        if kind == "recurringruns":
            self.add("runs", {**made, "recurring_run_id": made["recurring_run_id"]})
        return status, made

    def one(self, method, kind, name, action):
        if kind == "recurringruns" and method == "DELETE":  # Kubernetes deletes its workflows, and nobody notices
            self.orphans |= {i for i, run in self.stored["runs"].items() if run.get("recurring_run_id") == name}
        if (
            kind != "runs"
            or method == "DELETE"
            or (name in self.orphans and self.stored[kind][name]["state"] not in OVER)
        ):
            return super().one(method, kind, name, action)
        run = self.stored[kind][name]
        if run["state"] in OVER:
            return 200, run
        if action == "terminate":
            self.disturbed[name] = "terminated"
            return 200, {}
        values, done = run["runtime_config"]["parameters"], self.disturbed.get(name)
        if values["settings"].get("seed") == 6 and self.second_is_there():
            done = "met another"
        if values["settings"].get("seed") in (1, 2, 3, 5, 6) and done is None:
            self.checkpoint(values)
            self.leave(run, [*notes(BEFORE), Note("train")])
            self.move(run, "RUNNING")
            return 200, run
        self.play(run, values, done)
        return 200, run

    def play(self, run, values, done):
        good = True
        if done in self.lost or done == "terminated":
            good, left = False, [*notes(BEFORE), Note("train", signalled=1.0)]
        elif values["model"] == "ViT-B-17":
            good, left = False, [Note("inputs", "failed", code=2)]
        elif values.get("only_new"):
            left = notes(BEFORE, champion={"action": "nothing new", "why": "this data was promoted"})
        elif values["settings"].get("alpha") == 0:
            left = notes(TRAINED, gate={"outcome": "kept zero-shot", "against": "the champion, r0000-abc"})
        elif values["gate"] == "reviewed":
            left = notes([*TRAINED, "review"], gate={"outcome": "waits for answers"}, review={"pictures": 200})
        elif values["gate"] == "labelled":
            left = notes(TRAINED, gate={"outcome": "stopped", "reasons": ["STOP  too small a gain"]})
        else:
            left = notes([*TRAINED, "promote"], promote={"version": "r0000-abc"})
            next(note for note in left if note.stage == "train").tries = [LOST] if done else []
        self.leave(run, left)
        state = "RUNNING" if good else "FAILED"  # what the exit handler is told
        leave_page(values["work_uri"], run["run_id"], summarize(values["work_uri"], run["run_id"], state, "again"))
        self.move(run, "SUCCEEDED" if good else "FAILED")

    def leave(self, run, left):
        folder = WorkUri(run["runtime_config"]["parameters"]["work_uri"]).notes(run["run_id"])
        for note in left:
            content = {key: value for key, value in vars(note).items() if key not in ("source", "changed")}
            write_bytes(join(folder, f"{note.stage}.json"), json.dumps(content).encode())

    def checkpoint(self, values):
        place = WorkUri(values["work_uri"]).checkpoints(f"seed-{values['settings']['seed']}")
        write_bytes(join(place, "LAST"), b"step-000000005")


def notes(stages, **facts):
    return [Note(stage, "done", facts=Facts.of(facts.get(stage, {}))) for stage in stages]


class StandInPods:
    """Kubernetes as the program sees it; `server` plays what becomes of the run."""

    def __init__(self, server):
        self.server = server
        self.hopeless, self.promise = "", RACE

    def unusable(self):
        return ""

    def cannot_start(self, run_id):
        return self.hopeless

    def no_trainer(self, runtime):
        return "no Kubeflow Trainer to be seen"

    def delete(self, run_id):
        self.server.disturbed[run_id] = "deleted"

    def evict(self, run_id):
        self.server.disturbed[run_id] = "evicted"

    def retries(self):
        return self.promise

    def kill_worker(self, run_id):
        self.server.disturbed[run_id] = "killed"
