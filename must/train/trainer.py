"""The training loop: batches in, steps of the method, checkpoints, a bundle out.

Where training starts, the first that there is:

1. the newest whole checkpoint of the same run (`Trainer.resume`), unless --no-resume;
2. the model of --init (`start_from`), one that was adapted before;
3. the zero-shot model: the classifier file's backbone, with its text embeddings as the head.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from must.augment.exact import ViewSettings
from must.config import TrainConfig
from must.data.loader import TrainBatch, TrainDataset, make_views, train_batches
from must.data.order import GlobalBatches, MicroBatches
from must.data.reader import open_reader
from must.distributed.cpu import prepare_machine
from must.distributed.preemption import Preempted, StopSignal
from must.distributed.process_group import World, world
from must.model.bundle import preprocess_of, save_bundle, zero_shot_bundle
from must.model.classifier import load_classifier, require_shares
from must.select.introduce import introduce
from must.storage import UnreachableError
from must.text import printable
from must.train.alone import alone
from must.train.due import Due
from must.train.log import Meter, NoLog, TrainLog, clock
from must.train.provenance import provenance
from must.train.run_state import RunState
from must.train.selected import selected
from must.train.step import MustStep
from must.train.stopwatch import Stopwatch
from must.train.teacher import make_teacher
from must.train.warm_start import start_from

MAX_SKIPPED = 20  # steps without finite gradients in one run, after which training stops


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains, or goes on with training, and writes the bundle to ``config.output``. Returns the run's summary.

    Raises:
        ValueError: the user's input is wrong, or the numbers stopped being numbers.
        Preempted: a signal arrived and a checkpoint is saved; or the place of the checkpoints cannot be reached.
        LostRank: another process of the run is gone.
    """
    stop = StopSignal()
    try:
        with world(config.device, config.timeout) as processes:
            prepare_machine(processes.device)
            trainer = Trainer(config, processes)
            with alone(trainer.state.checkpoints, processes):
                trainer.resume()
                return trainer.run(stop)
    except UnreachableError as error:
        of_a_loader = f"{UnreachableError.__module__}.{UnreachableError.__qualname__}: "  # the end of its traceback
        reason = str(error).strip().splitlines()[-1].removeprefix(of_a_loader)
        print(
            f"must train: {printable(reason)}; run the same command to go on from the last checkpoint", file=sys.stderr
        )
        raise Preempted from error
    finally:
        stop.restore()


class Trainer:
    """One process's part of a run."""

    def __init__(self, config: TrainConfig, processes: World) -> None:
        self.config, self.world = config, processes
        self.reader = open_reader(
            config.shards, config.split, config.cache, config.cache_gb, config.shuffle_window, config.index_sha256
        )
        classifier = load_classifier(config.classifier)
        self.own_factor = classifier.logit_scale
        self.prior: tuple[float, ...] = ()
        if config.class_prior == "given":
            require_shares(classifier.shares, config.classifier)
            self.prior = classifier.shares
        torch.manual_seed(config.seed)  # mask token and decoder start at random, the same in every process
        self.zero_shot = zero_shot_bundle(classifier, config.model, config.pretrained, config.logit_factor)
        student = self.zero_shot.model.to(processes.device)
        self.reference = make_teacher(student)  # the zero-shot model: for the share of labels that changed
        if config.init:
            start_from(config.init, self.zero_shot)
        preprocess = preprocess_of(self.zero_shot.description)
        views = view_settings(config, preprocess, student.patch_size)
        self.dataset = TrainDataset(self.reader, make_views(views, config.views, config.augment_device), config.seed)
        plan = self.batches(0)
        MicroBatches(plan, config.accumulate)  # refuses what does not divide, before anything is made
        self.method = MustStep(student, preprocess, config, processes, plan.steps, plan.steps_per_epoch, self.prior)
        self.state = RunState.of(config, self.reader.index, classifier)
        self.facts: dict[str, Any] | None = None  # what the images look like

    def batches(self, first_step: int) -> GlobalBatches:
        config, rank, size = self.config, self.world.rank, self.world.size
        return GlobalBatches(
            self.reader.sizes,
            config.batch_size,
            config.epochs,
            config.seed,
            rank,
            size,
            config.shuffle_window,
            first_step,
        )

    def resume(self) -> None:
        if self.config.resume and self.state.resume(self.method) and self.world.is_main:
            step, uri = self.state.progress.step, self.state.checkpoints.uri
            print(f"going on after step {step} of {uri}", flush=True)

    def run(self, stop: StopSignal) -> dict[str, Any]:
        config, progress, checkpoints = self.config, self.state.progress, self.state.checkpoints
        plan = self.batches(progress.step)
        loader = train_batches(self.dataset, MicroBatches(plan, config.accumulate), config.workers, self.world.device)
        self.introduce(stop)
        log = self.open_log(plan)
        meter, watch, due = Meter(), Stopwatch(progress), Due(config.checkpoint_seconds)
        for parts in watch.waiting(grouped(loader, config.accumulate)):
            step = progress.step
            self.world.begin(step)
            meter.add(self.method(step, parts))
            progress.step += 1
            log.advance()
            last = progress.step == plan.steps
            if last or progress.step % config.log_every == 0:
                log.write(step, self.read(meter, step, parts[0]))

            leave, save = stop.agreed(self.world, self.world.is_main and due.asks(checkpoints.busy))
            save |= checkpoints.due(progress.step, config.checkpoint_every or plan.steps_per_epoch)
            if leave or (save and not last):
                due.saved(watch.timed(self.state.save, self.method))
            if leave:
                checkpoints.close()
                log.close(f"stopped by a signal after step {progress.step}; run the same command to go on")
                raise Preempted
        watch.read()
        log.close()
        return self.finish(stop)

    def open_log(self, plan: GlobalBatches) -> TrainLog | NoLog:
        if not self.world.is_main:
            return NoLog()
        self.announce(plan)
        return TrainLog(Path(self.config.output), plan.steps, self.state.progress.step, self.state.log_lines)

    def read(self, meter: Meter, step: int, batch: TrainBatch) -> dict[str, Any]:
        """The means since the last reading, with what the log adds to them."""
        count, progress, method = meter.count, self.state.progress, self.method
        line: dict[str, Any] = meter.read()
        progress.skipped += round(line.pop("skipped") * count)
        progress.replaced += round(self.world.sum(line.pop("replaced") * count))
        if self.too_many_replaced():
            self.stop_with_checkpoint(
                f"{progress.replaced} of {progress.step * self.config.batch_size:,} images could not be decoded, more "
                f"than --max-replaced {self.config.max_replaced:g}; `must index verify {self.reader.uri}` tells "
                "whether the shards are whole; shard again with --validate decode, or allow more"
            )
        if progress.skipped > MAX_SKIPPED:
            self.stop_with_checkpoint(
                f"the gradients of {progress.skipped} steps were not finite; lower --lr, or use --precision fp32"
            )
        taught, learned, zero_shot = (  # of this process's images; all look, as parameters may be cut
            method.predict(model, batch.weak) for model in (method.teacher, method.student, self.reference)
        )
        line["agreement"] = (taught == zero_shot).float().mean().item()
        line["stability"] = (taught == learned).float().mean().item()
        line |= {
            "epoch": (step + 1) / method.steps_per_epoch,
            "lr": method.learning_rate(step),
            "ema_decay": method.ema_decay(step),
            "skipped_steps": progress.skipped,
            "replaced_samples": progress.replaced,
            "images_per_s": meter.steps_per_s * self.config.batch_size,
        }
        return line

    def too_many_replaced(self) -> bool:
        """The share is of all images so far, but at least of an epoch or of 1000: one of the first ten is no share."""
        seen = self.state.progress.step * self.config.batch_size
        return self.state.progress.replaced > self.config.max_replaced * max(seen, min(1000, len(self.reader)))

    def stop_with_checkpoint(self, reason: str) -> NoReturn:
        self.state.save(self.method)
        self.state.checkpoints.close()
        raise ValueError(f"stopped after step {self.state.progress.step}: {reason}")

    def announce(self, plan: GlobalBatches) -> None:
        config, description = self.config, self.zero_shot.description
        parameters = sum(p.numel() for p in self.method.student.parameters()) / 1e6
        print(
            f"{printable(description.backbone)} ({parameters:.1f} M parameters), {len(description.classes)} classes, "
            f"{len(self.reader):,} images of '{config.split}' (labels are not read)\n"
            f"{plan.steps:,} steps of {config.batch_size} images ({config.epochs} epochs), "
            f"{self.world.size} process(es) on {self.world.device.type}",
            flush=True,
        )

    def introduce(self, stop: StopSignal) -> None:
        """What the images look like, before they are trained on; only where the ladder will judge by them."""
        if self.config.select == "ladder":
            place, index = self.state.checkpoints.uri, self.reader.index.sha256
            pause = leave_if(stop, "looking at the images")
            self.facts = introduce(self.config, self.reference, self.zero_shot, index, place, self.world, pause)

    def finish(self, stop: StopSignal) -> dict[str, Any]:
        """Writes the bundle; the checkpoint of the last step stays, so that running again does nothing twice."""
        progress, config = self.state.progress, self.config
        trained = max(progress.step, 1) * config.batch_size
        summary = {
            "steps": progress.step,
            "images": progress.step * config.batch_size,
            "seconds": round(progress.seconds, 2),
            "images_per_s": round(trained / progress.seconds, 1) if progress.seconds else None,
            "waiting_for_data": round(progress.waited / progress.seconds, 4) if progress.seconds else None,
            "saving_checkpoints": round(progress.saving / progress.seconds, 4) if progress.seconds else None,
            "skipped_steps": progress.skipped,
            "replaced_samples": progress.replaced,
        }
        networks = self.state.save(self.method)
        if self.world.is_main:
            self.state.checkpoints.close()
            description = provenance(self.zero_shot.description, config, self.reader.index, self.world.size, summary)
            weights = networks[config.save]
            told = {"data": self.facts, "class_shares": list(self.prior)}
            told = {name: what for name, what in told.items() if what}
            description = replace(description, provenance=description.provenance | told)
            if config.select == "ladder":
                weights, description = selected(
                    config,
                    self.reference,
                    weights,
                    description,
                    self.own_factor,
                    self.world.device,
                    leave_if(stop, "choosing what to keep"),
                )
            self.reference.load_state_dict(weights)
            save_bundle(config.output, self.reference, description)
            print(
                f"trained {summary['images']:,} images in {clock(progress.seconds)} "
                f"({summary['images_per_s']} images/s, {summary['waiting_for_data']:.1%} of the time waiting for data, "
                f"{summary['saving_checkpoints']:.1%} saving; "
                f"{progress.skipped} steps skipped, {progress.replaced} samples replaced) -> {config.output}",
                flush=True,
            )
        return summary


def leave_if(stop: StopSignal, doing: str) -> Callable[[], None]:
    def look() -> None:
        if stop.received:
            print(f"stopped by a signal while {doing}; run the same command to go on")
            raise Preempted

    return look


def grouped(batches: Iterable[TrainBatch], size: int) -> Iterator[list[TrainBatch]]:
    iterator = iter(batches)
    while group := list(itertools.islice(iterator, size)):
        yield group


def view_settings(config: TrainConfig, preprocess: Any, patch_size: int) -> ViewSettings:
    return ViewSettings(
        preprocess=preprocess,
        patch_size=patch_size,
        mask_patch_size=config.mask_patch_size,
        mask_ratio=config.mask_ratio,
        weak_padding=config.weak_padding,
        strong_scale=(config.strong_scale[0], config.strong_scale[1]),
        flip=config.flip,
        randaugment=config.randaugment,
        randaugment_ops=tuple(config.randaugment_ops),
    )
