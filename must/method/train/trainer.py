"""The training loop: batches in, steps of the method, checkpoints, a bundle out.

Where training starts, the first that there is:

1. the newest whole checkpoint of the same run (`Trainer.resume`), unless --no-resume;
2. the model of --init (`start_from`), one that was adapted before;
3. the zero-shot model: the classifier file's backbone, with its text embeddings as the head.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from must.base import storage
from must.base.files import ADAPTED, DESCRIPTION_FILE
from must.base.storage import UnreachableError
from must.base.text import printable
from must.config import TrainConfig
from must.data.augment.draws import ViewSettings
from must.data.loading.loader import EvalSource, TrainBatch, TrainDataset, grouped, make_views, train_batches
from must.data.loading.order import GlobalBatches, MicroBatches
from must.data.loading.reader import open_reader
from must.method.distributed.cpu import prepare_machine
from must.method.distributed.preemption import Preempted, StopSignal
from must.method.distributed.process_group import World, init_distributed
from must.method.model.bundle import Description, preprocess_of, save_bundle, zero_shot_bundle
from must.method.model.classifier import load_text_classifier, require_shares
from must.method.select.alpha import shares_of
from must.method.select.introduce import introduce
from must.method.select.rung_predictions import Weights, affordable
from must.method.select.select import described, select_weights, selection_text
from must.method.train.autotune import choose_accumulation, choose_loaders
from must.method.train.checkpoint import exclusive_checkpoints
from must.method.train.compiled import compile_blocks, pays
from must.method.train.estimate import LONG_ENOUGH, Size, StepTimer, memory_of, size_of
from must.method.train.health import Health
from must.method.train.log import Meter, NoLog, TrainLog, in_words, last_logged, summary_of
from must.method.train.provenance import provenance
from must.method.train.step import MustStep
from must.method.train.teacher import make_teacher
from must.method.train.timers import CheckpointTimer, RunTimer
from must.method.train.trackers.base import Life
from must.method.train.trackers.fan import Trackers
from must.method.train.train_state import TrainState
from must.method.train.warm_start import start_from, start_mask_token

logger = logging.getLogger(__name__)

SELECT_BATCH = 256  # images a forward pass of the ladder


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains, or goes on with training, and writes the bundle to ``config.output``. Returns the run's summary.

    Raises:
        ValueError: the user's input is wrong, or the numbers stopped being numbers.
        Preempted: a signal arrived and a checkpoint is saved; or the place of the checkpoints cannot be reached.
        LostRank: another process of the run is gone.
    """
    stop = StopSignal()
    try:
        with init_distributed(config.device, config.timeout) as processes:
            prepare_machine(processes.device)
            trainer = Trainer(config, processes)
            with exclusive_checkpoints(trainer.state.checkpoints, processes):
                trainer.resume()
                return trainer.run(stop)
    except UnreachableError as error:
        of_a_loader = f"{UnreachableError.__module__}.{UnreachableError.__qualname__}: "  # the end of its traceback
        reason = printable(str(error).strip().splitlines()[-1].removeprefix(of_a_loader))
        logger.warning(f"must train: {reason}; run the same command to go on from the last checkpoint")
        raise Preempted(reason) from error
    finally:
        stop.restore()


class Trainer:
    """One process's part of a run."""

    def __init__(self, config: TrainConfig, processes: World) -> None:
        self.config, self.world = config, processes
        self.asked = config
        self.reader = open_reader(
            config.shards, config.split, config.cache, config.cache_gb, config.index_sha256, config.shuffle_window
        )
        classifier = load_text_classifier(config.classifier)
        self.own_factor = classifier.logit_scale
        self.prior: tuple[float, ...] = ()
        if config.class_prior == "given":
            require_shares(classifier.shares, config.classifier)
            self.prior = classifier.shares
        torch.manual_seed(config.seed)  # mask token and decoder start at random, the same in every process
        kept = not (config.model or config.pretrained)
        self.origin = {name: getattr(classifier, name) for name in ("model_folder", "model_sha256") if kept}
        self.zero_shot = zero_shot_bundle(classifier, config.model, config.pretrained, config.logit_factor)
        student = self.zero_shot.model.to(processes.device)
        self.reference = make_teacher(student)  # the zero-shot model: for the share of labels that changed
        preprocess = preprocess_of(self.zero_shot.description)
        if config.init:
            start_from(config.init, self.zero_shot, self.origin.get("model_sha256", ""))
        elif config.mask_token == "mean":
            start_mask_token(self.zero_shot, EvalSource(self.reader, preprocess, SELECT_BATCH, 0), processes.device)
        views = ViewSettings.of(config, preprocess, student.patch_size)
        self.dataset = TrainDataset(self.reader, make_views(views, config.views, config.augment_device), config.seed)
        self.whole = plan = self.batches(0)
        if config.accumulate != "auto":
            MicroBatches(plan, config.accumulate)  # refuses what does not divide, before anything is made
        self.method = MustStep(student, preprocess, config, processes, plan.steps, plan.steps_per_epoch, self.prior)
        self.state = TrainState.of(config, self.reader.index, classifier)
        self.health = Health(config, processes, self.reader, self.method, self.state, self.reference)
        self.facts: dict[str, Any] | None = None  # what the images look like
        self.not_compiled = ""  # why torch.compile does not work here, where it was asked for

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
            logger.info(f"going on after step {step} of {uri}")

    def choose(self) -> None:
        """Puts numbers in the place of `auto`, once it is known whether the run goes on."""
        config, progress, local = self.config, self.state.progress, self.whole.local_size
        pieces, workers = config.accumulate, config.workers
        if pieces == "auto":
            pieces = choose_accumulation(self.method, local, progress.micro_batch)
        progress.micro_batch = local // pieces
        if workers == "auto":
            workers = choose_loaders(self.world.device, progress.micro_batch, self.method.preprocess.size)
        self.config = replace(config, accumulate=pieces, workers=workers)
        if pays(config.compile, self.world.device.type, self.whole.steps - progress.step):
            self.not_compiled = compile_blocks(self.method, progress.micro_batch)

    def run(self, stop: StopSignal) -> dict[str, Any]:
        self.choose()
        groups = self.groups(self.state.progress.step)
        if self.world.is_main:
            self.announce()
        self.introduce(stop)
        if self.is_futile():
            return self.finish(stop)
        log = self.open_log()
        try:
            self.take_steps(groups, log, stop)
        finally:
            log.close(self.state.progress.step == self.whole.steps)
        return self.finish(stop)

    def take_steps(self, groups: Iterator[list[TrainBatch]], log: TrainLog | NoLog, stop: StopSignal) -> None:
        config, progress, checkpoints = self.config, self.state.progress, self.state.checkpoints
        meter, timer, clock = Meter(), RunTimer(progress), CheckpointTimer(config.checkpoint_seconds)
        first_steps: StepTimer | None = StepTimer()
        for parts in timer.waiting(groups):
            step = progress.step
            self.world.begin(step)
            meter.add(self.method(step, parts))
            progress.step += 1
            log.advance()
            if first_steps:
                first_steps = self.estimate(first_steps, log)
            last = progress.step == self.whole.steps
            if last or progress.step % config.log_every == 0:
                log.write(step, self.health.read(meter, step, parts[0]))

            leave, save = stop.agreed(self.world, self.world.is_main and clock.due(checkpoints.busy))
            save |= checkpoints.due(progress.step, config.checkpoint_every or self.whole.steps_per_epoch)
            if leave or (save and not last):
                clock.saved(timer.timed(self.state.save, self.method))
            if leave:
                checkpoints.close()
                log.say(f"stopped by a signal after step {progress.step}; run the same command to go on")
                raise Preempted
        timer.read()

    def groups(self, first_step: int) -> Iterator[list[TrainBatch]]:
        """A step's micro-batches at a time."""
        config = self.config
        parts = MicroBatches(self.batches(first_step), config.pieces)
        return grouped(train_batches(self.dataset, parts, config.loaders, self.world.device), config.pieces)

    def open_log(self) -> TrainLog | NoLog:
        if not self.world.is_main:
            return NoLog()
        folder, state, first = Path(self.config.output), self.state, self.state.progress.step
        names = self.config.trackers if first < self.whole.steps else []
        steps, life = self.whole.steps, Life(folder, first, list(state.log_lines), last_logged(folder), "")
        trackers = Trackers(names, life, state.run_ids, steps)
        log = TrainLog(folder, steps, first, state.log_lines, trackers)
        state.run_ids |= trackers.start(self.asked.to_dict())
        return log

    def estimate(self, steps: StepTimer, log: TrainLog | NoLog) -> StepTimer | None:
        """Says how long the run will take, once its own first steps tell; None then."""
        steps.mark(self.state.progress.waited)
        if not steps.enough(LONG_ENOUGH):
            return steps
        if self.world.is_main:
            batch, left = self.config.batch_size, self.whole.steps - self.state.progress.step
            pace = steps.pace(memory_of(self.world.device), batch, batch)
            for line in pace.lines(self.size(), left) if left else ():
                log.say(line)
        return None

    def size(self) -> Size:
        return size_of(self.config, self.whole, self.reader, self.method)

    def announce(self) -> None:
        description, size = self.zero_shot.description, self.size()
        backbone = f"{printable(description.backbone)} ({size.parameters / 1e6:.1f} M parameters)"
        images = f"{size.images:,} images of '{self.config.split}' (labels are not read)"
        logger.info("\n".join([f"{backbone}, {len(description.classes)} classes, {images}", *size.lines()]))

    def introduce(self, stop: StopSignal) -> None:
        """Looks at the images before they are trained on, where the ladder will."""
        if self.config.select == "ladder":
            place, index = self.state.checkpoints.uri, self.reader.index.sha256
            pause = leave_if(stop, "looking at the images")
            self.facts = introduce(self.config, self.reference, self.zero_shot, index, place, self.world, pause)

    def is_futile(self) -> bool:
        """Whether there are too few images for the ladder to keep anything: the result is zero-shot's weights already.

        It is a function of zero-shot and the images alone, so all processes and all attempts agree.
        """
        hopeless = self.config.select == "ladder" and self.facts is not None and self.facts["agreement"] is None
        futile = any(self.world.gather(hopeless)) and self.state.progress.step == 0
        if futile and self.world.is_main:
            logger.info(
                "no step is trained: the images are too few for the ladder to keep anything of it, and zero-shot's "
                "weights are the result (--select none trains all the same)"
            )
        return futile

    def finish(self, stop: StopSignal) -> dict[str, Any]:
        """Writes the bundle; the checkpoint of the last step stays, so that running again does nothing twice."""
        progress, config = self.state.progress, self.config
        summary = summary_of(progress, config.batch_size)
        networks = self.state.save(self.method) if progress.step else self.method.state_dict()
        if self.world.is_main:
            self.state.checkpoints.close()
            settings = replace(config, workers=self.asked.workers)  # what was chosen of this machine is no setting
            description = provenance(self.zero_shot.description, settings, self.reader.index, self.world.size, summary)
            weights = networks[config.save]
            found = {"data": self.facts, "class_shares": list(self.prior), **self.origin}
            if config.select == "ladder" and self.zero_shot.encoder:
                found["encoder"] = self.zero_shot.encoder.record
            found = {name: what for name, what in found.items() if what}
            description = replace(description, provenance=description.provenance | found)
            if config.select == "ladder":
                weights, description = self.select(weights, description, leave_if(stop, "choosing what to keep"))
            self.reference.load_state_dict(weights)
            save_bundle(config.output, self.reference, description)
            logger.info(f"{in_words(summary)} -> {config.output}")
        return summary

    def select(
        self, weights: Weights, description: Description, pause: Callable[[], None]
    ) -> tuple[Weights, Description]:
        """`--select ladder`: the weights that become the model, and its description with the reasons.

        Judged by the images of the reader that was trained with: shards that were added since do not count. This
        process looks alone. It is a function of the weights and the images: a run that was killed here and goes on
        chooses the same. Where it leaves a part of the way undecided, the bundle OUTPUT/adapted holds its other end,
        which `must review` and `must select` go on from.
        """
        source = EvalSource(self.reader, preprocess_of(description), SELECT_BATCH, self.config.loaders)
        most = affordable(len(source) * self.config.epochs, len(description.classes))
        kept, choice = select_weights(
            self.reference, weights, source, self.world.device, pause, shares_of(description), most,
            encoder=self.zero_shot.encoder,
        )  # fmt: skip
        logger.info(selection_text(choice))
        place = storage.join(self.config.output, ADAPTED)
        if choice.climb.undecided:
            adapted = copy.deepcopy(self.reference)  # what is kept may be its very tensors
            adapted.load_state_dict(weights)
            save_bundle(place, adapted, description)
            logger.info(f"  all of the adaptation is beside it: {place}")
        elif storage.exists(storage.join(place, DESCRIPTION_FILE)):  # of an earlier run
            storage.delete_folder(place)
        return kept, described(description, choice, self.own_factor)


def leave_if(stop: StopSignal, doing: str) -> Callable[[], None]:
    def look() -> None:
        if stop.received:
            logger.info(f"stopped by a signal while {doing}; run the same command to go on")
            raise Preempted

    return look
