"""`must train`: the loop, as the paper has it, and what makes it go on after a kill."""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from must import storage
from must.config import TrainConfig
from must.data.order import GlobalBatches
from must.data.reader import ShardReader
from must.data.stream import TrainBatch, TrainDataset, train_batches
from must.data.views import ViewSettings, normalize
from must.model.bundle import Bundle, preprocess_of, save_bundle, zero_shot_bundle
from must.model.classifier import TextClassifier, load_classifier
from must.model.masked_vit import MaskedViT
from must.train.checkpoint import Checkpoints
from must.train.distributed import PREEMPTED, StopSignal, World, share_cores, world
from must.train.log import Meter, TrainLog, clock
from must.train.losses import LossWeights, must_losses, pseudo_labels
from must.train.optimizer import build_optimizer, ema_decay, learning_rate, set_learning_rate, step_if_finite
from must.train.provenance import identity, provenance
from must.train.teacher import make_teacher, update_teacher

MAX_SKIPPED = 20  # steps without finite gradients in one run, after which training stops


@dataclass
class Progress:
    """What changes during a run besides weights."""

    step: int = 0
    skipped: int = 0  # steps without finite gradients
    replaced: int = 0  # samples that could not be decoded
    seconds: float = 0.0
    waited: float = 0.0  # of `seconds`, for data


class Preempted(SystemExit):
    """Stopped by a signal after saving a checkpoint; exits with the code that says 'run me again'."""

    def __init__(self) -> None:
        super().__init__(PREEMPTED)


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains, or goes on with training, and writes the bundle to ``config.output``. Returns the run's summary.

    Raises:
        ValueError: the user's input is wrong, or the numbers stopped being numbers.
        Preempted: SIGTERM or SIGINT arrived; a checkpoint is saved.
    """
    stop = StopSignal()
    try:
        with world(config.device, config.timeout) as processes:
            share_cores(processes.device)
            trainer = Trainer(config, processes)
            trainer.resume()
            return trainer.run(stop)
    finally:
        stop.restore()


class Trainer:
    """One process's part of a run."""

    def __init__(self, config: TrainConfig, processes: World) -> None:
        self.config, self.world, self.device = config, processes, processes.device
        self.reader = ShardReader(config.shards, config.split)
        self.classifier = load_classifier(config.classifier)
        self.zero_shot = self.load_zero_shot(self.classifier)
        self.student = self.zero_shot.model.to(self.device)
        self.preprocess = preprocess_of(self.zero_shot.description)
        self.teacher = make_teacher(self.student)
        self.reference = make_teacher(self.student)  # the zero-shot model: for the share of labels that changed
        self.layers = len(self.student.visual.transformer.resblocks)
        self.optimizer = build_optimizer(self.student, self.layers, config.layer_decay, config.weight_decay)
        self.weights = LossWeights(config.fairness_weight, config.reconstruction_weight, config.align_weight)
        self.class_balance: Tensor | None = None
        self.progress = Progress()
        self.log_lines: list[dict[str, Any]] = []  # of the whole run; they travel with the checkpoints
        self.views = ViewSettings(
            preprocess=self.preprocess,
            patch_size=self.student.patch_size,
            mask_patch_size=config.mask_patch_size,
            mask_ratio=config.mask_ratio,
            weak_padding=config.weak_padding,
            strong_scale=(config.strong_scale[0], config.strong_scale[1]),
            flip=config.flip,
            randaugment=config.randaugment,
            randaugment_ops=tuple(config.randaugment_ops),
        )
        self.dataset = TrainDataset(self.reader, self.views, config.seed)
        self.plan = self.batches(0)
        self.checkpoints = Checkpoints(
            config.checkpoints or storage.join(config.output, "checkpoints"), config.keep_checkpoints
        )
        self.network: nn.Module = self.student
        if processes.size > 1:
            self.network = DistributedDataParallel(
                self.student, device_ids=[self.device] if self.device.type == "cuda" else None
            )

    def load_zero_shot(self, classifier: TextClassifier) -> Bundle:
        config = self.config
        torch.manual_seed(config.seed)  # mask token and decoder start at random, the same in every process
        return zero_shot_bundle(classifier, config.model, config.pretrained, config.logit_factor)

    def batches(self, first_step: int) -> GlobalBatches:
        config = self.config
        return GlobalBatches(
            self.reader.sizes,
            config.batch_size,
            config.epochs,
            config.seed,
            self.world.rank,
            self.world.size,
            first_step=first_step,
        )

    def run(self, stop: StopSignal) -> dict[str, Any]:
        config, plan = self.config, self.batches(self.progress.step)
        log = None
        if self.world.is_main:
            self.announce(plan)
            log = TrainLog(Path(config.output), plan.steps, self.progress.step, self.log_lines)
        loader = train_batches(self.dataset, plan, config.workers, pin_memory=self.device.type == "cuda")
        every = config.checkpoint_every or plan.steps_per_epoch
        meter, waiting, started, logged_at = Meter(), time.monotonic(), time.monotonic(), time.monotonic()
        for batch in loader:
            self.progress.waited += time.monotonic() - waiting
            step = self.progress.step
            values = self.train_step(step, batch)
            meter.add(values)
            self.progress.step += 1
            if log:
                log.advance()
            if self.progress.step % config.log_every == 0 or self.progress.step == plan.steps:
                count = meter.count
                line = self.read(meter, step, batch)
                if log:
                    now = time.monotonic()
                    line["images_per_s"] = count * config.batch_size / (now - logged_at)
                    logged_at = now
                    log.write(step, line)
            due = self.progress.step % every == 0 and self.progress.step < plan.steps
            if due or self.should_stop(stop):
                self.progress.seconds += time.monotonic() - started
                started = time.monotonic()
                self.save_checkpoint()
            if self.stopping:
                self.checkpoints.close()
                if log:
                    log.close()
                    print(f"stopped by a signal after step {self.progress.step}; run the same command to go on")
                raise Preempted
            waiting = time.monotonic()
        self.progress.seconds += time.monotonic() - started
        if log:
            log.close()
        return self.finish(plan)

    def train_step(self, step: int, batch: TrainBatch) -> dict[str, Tensor]:
        """One step of the method on this process's part of the global batch; values of the global batch."""
        config, plan = self.config, self.plan
        batch = batch.to(self.device)
        weak, strong = normalize(batch.weak, self.preprocess), normalize(batch.strong, self.preprocess)
        lr = learning_rate(step, plan.steps, config.lr, config.min_lr, config.batch_size)
        set_learning_rate(self.optimizer, lr)
        if step % plan.steps_per_epoch == 0:
            self.class_balance = None

        with torch.no_grad(), self.autocast():
            labels = pseudo_labels(self.teacher(weak), config.confidence_threshold)
        with self.autocast():
            output = self.network(strong, batch.masked)
        losses = must_losses(
            output, labels, strong, batch.masked, self.weights, self.class_balance, config.loss_reduction
        )
        self.optimizer.zero_grad(set_to_none=True)
        losses.total.backward()
        finite = step_if_finite(self.optimizer)
        update_teacher(self.teacher, self.student, ema_decay(step, *self.ema_ramp()))
        self.class_balance = losses.class_balance
        return {**losses.values, "skipped": (~finite).float(), "replaced": batch.replaced.float()}

    def ema_ramp(self) -> tuple[float, float, int]:
        return self.config.ema_decay_init, self.config.ema_decay, self.config.ema_warmup_steps

    def autocast(self) -> Any:
        precision = self.config.precision
        if precision == "auto":
            has_bf16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
            precision = "bf16" if has_bf16 else "fp32"
        return torch.autocast(self.device.type, torch.bfloat16) if precision == "bf16" else nullcontext()

    def read(self, meter: Meter, step: int, batch: TrainBatch) -> dict[str, Any]:
        """The means since the last reading, with what the log adds to them."""
        count, config = meter.count, self.config
        line: dict[str, Any] = meter.read()
        self.progress.skipped += round(line.pop("skipped") * count)
        self.progress.replaced += round(line.pop("replaced") * count)
        if self.progress.skipped > MAX_SKIPPED:
            self.save_checkpoint()
            self.checkpoints.close()
            raise ValueError(
                f"stopped after step {self.progress.step}: the gradients of {self.progress.skipped} steps were not "
                "finite; lower --lr, or use --precision fp32"
            )
        if self.world.is_main:
            with torch.no_grad(), self.autocast():
                weak = normalize(batch.weak.to(self.device), self.preprocess)
                same = self.teacher(weak).argmax(-1) == self.reference(weak).argmax(-1)
            line["agreement"] = same.float().mean().item()
        line |= {
            "epoch": (step + 1) / self.plan.steps_per_epoch,
            "lr": learning_rate(step, self.plan.steps, config.lr, config.min_lr, config.batch_size),
            "ema_decay": ema_decay(step, *self.ema_ramp()),
            "skipped_steps": self.progress.skipped,
            "replaced_samples": self.progress.replaced,
        }
        return line

    # --- stopping, saving, going on --------------------------------------------------------------------------

    stopping = False

    def should_stop(self, stop: StopSignal) -> bool:
        """Whether any process was told to stop: all of them leave after the same step."""
        received = torch.tensor(float(stop.received), device=self.device)
        if self.world.size > 1:
            dist.all_reduce(received)
        self.stopping = bool(received.item())
        return self.stopping

    def save_checkpoint(self) -> None:
        if self.world.is_main:
            state = {
                "identity": self.identity(),
                "progress": vars(self.progress),
                "student": self.student.state_dict(),
                "teacher": self.teacher.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "class_balance": self.class_balance,
                "log": json.dumps(self.log_lines),
            }
            self.checkpoints.save(self.progress.step, state)

    def resume(self) -> None:
        """Goes on from the newest whole checkpoint. Raises ValueError: it belongs to another run."""
        state = self.checkpoints.load_newest() if self.config.resume else None
        if state is None:
            return
        ours, theirs = self.identity(), state["identity"]
        changed = [f"{name} ({theirs.get(name)} -> {ours[name]})" for name in ours if theirs.get(name) != ours[name]]
        if changed:
            raise ValueError(
                f"{self.checkpoints.uri}: holds checkpoints of a run with other settings: {', '.join(changed[:5])}; "
                "use those, another --checkpoints, or --no-resume to start afresh"
            )
        self.progress = Progress(**state["progress"])
        self.log_lines = json.loads(state["log"])
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        balance = state["class_balance"]
        self.class_balance = None if balance is None else balance.to(self.device)
        if self.world.is_main:
            print(f"going on after step {self.progress.step} of {self.checkpoints.uri}", flush=True)

    def identity(self) -> dict[str, Any]:
        weights = hashlib.sha256(self.classifier.weights.numpy().tobytes()).hexdigest()
        return identity(self.config, self.reader.index.sha256, weights)

    def announce(self, plan: GlobalBatches) -> None:
        config, description = self.config, self.zero_shot.description
        parameters = sum(p.numel() for p in self.student.parameters()) / 1e6
        print(
            f"{description.backbone} ({parameters:.1f} M parameters), {len(description.classes)} classes, "
            f"{len(self.reader):,} images of '{config.split}' (labels are not read)\n"
            f"{plan.steps:,} steps of {config.batch_size} images ({config.epochs} epochs), "
            f"{self.world.size} process(es) on {self.device.type}",
            flush=True,
        )

    def finish(self, plan: GlobalBatches) -> dict[str, Any]:
        """Writes the bundle; the checkpoint of the last step stays, so that running again does nothing twice."""
        progress, config = self.progress, self.config
        trained = max(progress.step, 1) * config.batch_size
        summary = {
            "steps": progress.step,
            "images": progress.step * config.batch_size,
            "seconds": round(progress.seconds, 2),
            "images_per_s": round(trained / progress.seconds, 1) if progress.seconds else None,
            "waiting_for_data": round(progress.waited / progress.seconds, 4) if progress.seconds else None,
            "skipped_steps": progress.skipped,
            "replaced_samples": progress.replaced,
        }
        if self.world.is_main:
            self.save_checkpoint()
            self.checkpoints.close()
            model: MaskedViT = self.teacher if config.save == "teacher" else self.student
            description = provenance(self.zero_shot.description, config, self.reader.index, self.world.size, summary)
            save_bundle(config.output, model, description)
            print(
                f"trained {summary['images']:,} images in {clock(progress.seconds)} "
                f"({summary['images_per_s']} images/s, {summary['waiting_for_data']:.1%} of the time waiting for data, "
                f"{progress.skipped} steps skipped, {progress.replaced} samples replaced) -> {config.output}",
                flush=True,
            )
        return summary
