"""The training loop: reads batches, takes steps of the method, saves checkpoints, writes the bundle.

Training starts from the first of these that exists:

1. the newest complete checkpoint of the same run (`Trainer.resume`), unless --no-resume;
2. the zero-shot model: the classifier file's backbone, with its text embeddings as the head.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from must.base import storage
from must.base.files import ADAPTED, DESCRIPTION_FILE
from must.base.parameters import part_of
from must.base.storage import UnreachableError
from must.base.text import printable
from must.config import TrainConfig
from must.data.augment.draws import ViewSettings
from must.data.augment.normalize import normalize
from must.data.loading.loader import EvalSource, TrainBatch, TrainDataset, grouped, make_views, train_batches
from must.data.loading.order import GlobalBatches, MicroBatches
from must.data.loading.reader import open_reader
from must.method.distributed.cpu import division, own_cores, prepare_machine, share_cores
from must.method.distributed.process_group import Preempted, StopSignal, World, init_distributed
from must.method.model.bundle import Bundle, Description, preprocess_of, save_bundle, zero_shot_bundle
from must.method.model.classifier import load_text_classifier, require_shares
from must.method.model.masked_vit import MaskedViT
from must.method.model.provenance import RunSummary
from must.method.select.check import CHECKED_IMAGES, selection_text
from must.method.select.features import subsample
from must.method.select.select import Weights, between, choose_alpha, start_weights, with_selection
from must.method.train.autotune import choose_loaders, choose_micro_batches, compile_blocks, should_compile
from must.method.train.checkpoint import exclusive_checkpoints
from must.method.train.estimate import Size, size_of
from must.method.train.log import Meter, NoLog, RunMonitor, TrainLog, in_words, summary_of
from must.method.train.presets import resolve
from must.method.train.propagated import PropagatedLabels
from must.method.train.provenance import provenance
from must.method.train.settings import StepSettings
from must.method.train.step import MustStep, make_teacher
from must.method.train.trackers import Attempt, Trackers
from must.method.train.train_state import CheckpointTimer, RunTimer, TrainState

logger = logging.getLogger(__name__)

CHECK_BATCH = 256  # images per forward pass of the check
MEASURED = 2_000  # images whose zero-shot confidence gives the threshold
MAX_THRESHOLD = 0.98  # the largest threshold: an overconfident model has many images at 1
MASK_TOKEN_IMAGES = 256  # the first images of the split, whose mean patch initializes the mask token


def train(config: TrainConfig) -> RunSummary:
    """Trains, or resumes training, and writes the bundle to ``config.output``. Returns the run's summary.

    Raises:
        ValueError: the user's input is wrong, or gradients are no longer finite.
        Preempted: a signal arrived and a checkpoint is saved; or the storage of the checkpoints cannot be reached.
        LostRank: another process of the run is lost.
    """
    stop = StopSignal()
    try:
        with init_distributed(config.device, config.timeout) as world:
            prepare_machine(world.device)
            trainer = Trainer(config, world)
            with exclusive_checkpoints(trainer.state.checkpoints, world):
                trainer.resume()
                return trainer.run(stop)
    except UnreachableError as error:
        prefix = f"{UnreachableError.__module__}.{UnreachableError.__qualname__}: "  # in a loader's traceback
        reason = printable(str(error).strip().splitlines()[-1].removeprefix(prefix))
        logger.warning(f"must train: {reason}; run the same command to go on from the last checkpoint")
        raise Preempted(reason) from error
    finally:
        stop.restore()


class Trainer:
    """One process of a run."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        self.world = world
        self.reader = open_reader(
            config.shards, config.split, config.cache, config.cache_gb, config.index_sha256, config.shuffle_window
        )
        classifier = load_text_classifier(config.classifier)
        self.resolved = resolve(config, self.reader.index, classifier)
        self.config = config = self.resolved.config
        self.prior: tuple[float, ...] = ()
        if config.class_prior == "given":
            require_shares(classifier.shares, config.classifier)
            self.prior = classifier.shares
        torch.manual_seed(config.seed)  # mask token and decoder are initialized at random, the same in every process
        own_model = not (config.model or config.pretrained)
        self.origin = {name: getattr(classifier, name) for name in ("model_folder", "model_sha256") if own_model}
        self.zero_shot = zero_shot_bundle(classifier, config.model, config.pretrained, config.logit_factor)
        student = self.zero_shot.model.to(world.device)
        self.reference = make_teacher(student)  # the zero-shot model: for the share of labels that changed
        preprocess = preprocess_of(self.zero_shot.description)
        if config.mask_token == "mean":
            start_mask_token(self.zero_shot, EvalSource(self.reader, preprocess, CHECK_BATCH, 0), world.device)
        views = part_of(config, ViewSettings, preprocess=preprocess, patch_size=student.patch_size)
        self.masked = views.masked_patches  # of an image
        self.dataset = TrainDataset(self.reader, make_views(views, config.views), config.seed)
        self.batches = self.batches_from(0)
        if config.accumulate != "auto":
            MicroBatches(self.batches, config.accumulate)  # raises early if the batch does not divide
        self.must_step = MustStep(
            student, preprocess, StepSettings.of(config), world, self.batches.steps, self.batches.steps_per_epoch,
            self.prior,
        )  # fmt: skip
        self.state = TrainState.of(config, self.reader.index, classifier)
        self.monitor = RunMonitor(
            config.batch_size, config.max_replaced, world, self.reader, self.must_step, self.state, self.reference
        )
        self.micro_batches = self.loaders = 0  # micro-batches per step, loader processes; set by `choose`
        self.not_compiled = ""  # why torch.compile fails on this machine, if it was requested

    def batches_from(self, first_step: int) -> GlobalBatches:
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
        if self.config.resume and self.state.resume(self.must_step) and self.world.is_main:
            step, uri = self.state.progress.step, self.state.checkpoints.uri
            logger.info(f"going on after step {step} of {uri}")

    def choose(self) -> None:
        """Chooses the `auto` settings on this machine, after it is known whether the run resumes."""
        config, progress, local = self.config, self.state.progress, self.batches.local_size
        count, workers = config.accumulate, config.workers
        if count == "auto":
            count = choose_micro_batches(self.must_step, self.masked, local, progress.micro_batch)
        progress.micro_batch = local // count
        if workers == "auto":
            workers = choose_loaders(self.must_step, progress.micro_batch)
        self.choose_arithmetic()
        self.micro_batches, self.loaders = count, workers
        if should_compile(config.compile, self.world.device.type, self.batches.steps - progress.step):
            self.not_compiled = compile_blocks(self.must_step, self.masked, progress.micro_batch)

    def start_labels(self, stop: StopSignal) -> None:
        """Computes propagated labels and the confidence threshold from zero-shot predictions, as the settings need."""
        config, step = self.config, self.must_step
        if step.propagated is not None:  # from the checkpoint
            return
        source = EvalSource(self.reader, step.preprocess, CHECK_BATCH, self.loaders)
        pause = raise_if_stopped(stop, "predicting all images") if self.world.size == 1 else None
        if config.pseudo_labels == "propagated":
            step.propagated, confidence = PropagatedLabels.of(self.reference, source, self.world, pause)
        elif config.confident_share:
            confidence = zero_shot_confidence(self.reference, source, self.world.device)
        if config.confident_share:
            step.threshold = self.world.gather(threshold_of(config.confident_share, confidence))[0]

    def choose_arithmetic(self) -> None:
        """Threads and precision; a resumed run keeps its own, as sums in another order differ in the last bits. Earlier
        versions left one core free and used fp32 on a CPU."""
        must_step, progress, on_cpu = self.must_step, self.state.progress, self.world.device.type == "cpu"
        earlier = progress.step > 0 and not progress.precision
        if self.config.precision == "auto":
            chosen = "fp32" if earlier and on_cpu else must_step.precision
            must_step.precision = progress.precision or self.world.gather(chosen)[0]
        progress.precision = must_step.precision
        if on_cpu:
            threads = min(progress.threads, own_cores())
            share_cores(0 if earlier else threads or division(must_step.work).threads)
            progress.threads = torch.get_num_threads()

    def run(self, stop: StopSignal) -> RunSummary:
        self.choose()
        self.start_labels(stop)
        groups = self.groups(self.state.progress.step)
        if self.world.is_main:
            self.announce()
        log = self.open_log()
        try:
            stopped = self.take_steps(groups, log, stop)
        finally:
            log.close(self.state.progress.step == self.batches.steps)
        if stopped:
            if self.world.is_main:
                logger.info(f"stopped by a signal after step {self.state.progress.step}; run the same command to go on")
            raise Preempted
        return self.finish(stop)

    def take_steps(self, groups: Iterator[list[TrainBatch]], log: TrainLog | NoLog, stop: StopSignal) -> bool:
        """Returns whether a signal stopped the run; then its state is saved."""
        config, progress, checkpoints = self.config, self.state.progress, self.state.checkpoints
        meter, timer, clock = Meter(), RunTimer(progress), CheckpointTimer(config.checkpoint_seconds)
        for micro_batches in timer.waiting(groups):
            step = progress.step
            self.world.begin(step)
            meter.add(self.must_step(step, micro_batches))
            progress.step += 1
            log.advance()
            last = progress.step == self.batches.steps
            if last or progress.step % config.log_every == 0:
                log.write(step, self.monitor.check(meter, step, micro_batches[0]))

            stopping, save = stop.agreed(self.world, self.world.is_main and clock.due(checkpoints.busy))
            save |= checkpoints.due(progress.step, config.checkpoint_every or self.batches.steps_per_epoch)
            if stopping or (save and not last):
                clock.saved(timer.timed(self.state.save, self.must_step))
            if stopping:
                checkpoints.close()
                return True
        timer.read()
        return False

    def groups(self, first_step: int) -> Iterator[list[TrainBatch]]:
        """The micro-batches of each step."""
        batches = MicroBatches(self.batches_from(first_step), self.micro_batches)
        return grouped(train_batches(self.dataset, batches, self.loaders, self.world.device), self.micro_batches)

    def open_log(self) -> TrainLog | NoLog:
        if not self.world.is_main:
            return NoLog()
        folder, state, first = Path(self.config.output), self.state, self.state.progress.step
        names = self.config.trackers if first < self.batches.steps else []
        steps, attempt = self.batches.steps, Attempt(folder, first, list(state.log_lines), "")
        trackers = Trackers(names, attempt, state.run_ids, steps)
        log = TrainLog(folder, steps, first, state.log_lines, trackers)
        state.run_ids |= trackers.start(self.config.to_dict())
        return log

    def size(self) -> Size:
        return size_of(self.config, self.batches, self.reader, self.must_step, self.state.progress, self.loaders)

    def announce(self) -> None:
        description, size = self.zero_shot.description, self.size()
        backbone = f"{printable(description.backbone)} ({size.parameters / 1e6:.1f} M parameters)"
        images = f"{size.images:,} images of '{self.config.split}' (labels are not read)"
        logger.info("\n".join([f"{backbone}, {len(description.classes)} classes, {images}", *size.lines()]))

    def finish(self, stop: StopSignal) -> RunSummary:
        """Writes the bundle; the last step's checkpoint is kept, so that a second run repeats no work."""
        progress, config = self.state.progress, self.config
        summary = summary_of(progress, config.batch_size)
        networks = self.state.save(self.must_step)
        if self.world.is_main:
            self.state.checkpoints.close()
            settings = replace(config, accumulate=self.micro_batches)
            origin = provenance(settings, self.reader.index, self.world.size, summary, self.prior, self.origin)
            values = origin.config | {"precision": progress.precision}
            origin = replace(origin, threads=progress.threads or None, config=values)
            description = replace(self.zero_shot.description, provenance=origin)
            self.save_model(networks[config.save], description, raise_if_stopped(stop, "checking the model"))
            logger.info(f"{in_words(summary)} -> {config.output}")
        return summary

    def save_model(self, adapted: Weights, description: Description, pause: Callable[[], None]) -> None:
        """Writes the model interpolated at `--alpha`, with its check, and beside it the fully adapted one.

        It depends only on the weights and the training images: a run that is killed here and resumes writes the same.
        """
        config, zero_shot, end = self.config, self.reference, copy.deepcopy(self.reference)
        end.load_state_dict(adapted)
        zero_shot.load_state_dict(start_weights(zero_shot.state_dict(), end.state_dict()))
        source = EvalSource(self.reader, preprocess_of(description), CHECK_BATCH, self.loaders)
        choice = choose_alpha(
            zero_shot, end.state_dict(), subsample(source, CHECKED_IMAGES), self.world.device, description.classes,
            config.alpha, pause=pause,
        )  # fmt: skip
        logger.info(selection_text(choice))
        adapted_uri = storage.join(config.output, ADAPTED)
        if choice.alpha != 1:
            save_bundle(adapted_uri, end, description)
            logger.info(f"the model with alpha 1: {adapted_uri}")
        elif storage.exists(storage.join(adapted_uri, DESCRIPTION_FILE)):  # of an earlier run
            storage.delete_folder(adapted_uri)
        zero_shot.load_state_dict(between(zero_shot.state_dict(), end.state_dict(), choice.alpha))
        save_bundle(config.output, zero_shot, with_selection(description, choice))


def raise_if_stopped(stop: StopSignal, activity: str) -> Callable[[], None]:
    def check() -> None:
        if stop.received:
            logger.info(f"stopped by a signal while {activity}; run the same command to go on")
            raise Preempted

    return check


def start_mask_token(zero_shot: Bundle, source: EvalSource, device: torch.device) -> None:
    """Initializes the mask token with the mean patch. Every process calls this and reads the same images. If none can
    be decoded, the token stays random, and training reports it."""
    source.numbers = source.numbers[:MASK_TOKEN_IMAGES]
    sums = [normalize(batch.pixels, source.preprocess).sum(0) for batch in source]
    if sums:
        mean = torch.stack(sums).sum(0) / (len(source.numbers) - source.skipped)
        zero_shot.model.start_mask_token(mean.to(device))


def threshold_of(share: float, confidence: Tensor) -> float:
    """The confidence that a `share` of the images reaches; `confidence` [N]. Without images it is 0."""
    return min(float(confidence.float().quantile(1 - share)), MAX_THRESHOLD) if len(confidence) else 0.0


@torch.inference_mode()
def zero_shot_confidence(zero_shot: MaskedViT, source: EvalSource, device: torch.device) -> Tensor:
    """[N]: the zero-shot confidence of at most 2,000 images; undecodable ones are skipped."""
    confidence = [
        zero_shot(normalize(batch.pixels.to(device), source.preprocess)).float().softmax(-1).amax(-1).cpu()
        for batch in subsample(source, MEASURED)
    ]
    return torch.cat(confidence) if confidence else torch.empty(0)
