"""The training loop: reads batches, takes steps of the method, saves checkpoints, writes the bundle.

Training starts from the first of these that exists:

1. the newest complete checkpoint of the same run (`Trainer.resume`), unless --no-resume;
2. the zero-shot model: the classifier file's backbone, with its text embeddings as the head."""

import copy
import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from must.base import storage
from must.base.errors import UserError
from must.base.storage import UnreachableError
from must.base.text import make_printable
from must.config import TrainConfig
from must.config.work import ADAPTED, DESCRIPTION_FILE
from must.data.augment import TrainViews, normalize
from must.data.loader import PREFETCH, EvalSource, GlobalBatches, TrainBatch, TrainDataset, group_batches, train_batches
from must.data.reader import open_reader
from must.memory.features import read_features
from must.memory.predictions import TopLabels, compare_predictions
from must.memory.propagate import LARGEST_MEMORY, PropagatedLabels, build_memory, count_bytes
from must.model.bundle import (
    Bundle,
    Weights,
    interpolate,
    load_bundle,
    load_trained,
    make_zero_shot_bundle,
    save_bundle,
)
from must.model.classifier import load_text_classifier, require_shares
from must.model.description import Description, RunSummary, Selection, get_preprocess, keep_levels
from must.model.distributed import (
    Preempted,
    StopSignal,
    World,
    count_loader_processes,
    count_own_cores,
    divide_cores,
    init_distributed,
    prepare_machine,
    share_cores,
)
from must.training.checkpoint import RunTimer, TrainState, exclusive_checkpoints
from must.training.log import Size, TrainLog, in_words, summarize_run
from must.training.recipe import record_provenance, resolve
from must.training.step import MustStep, make_teacher

logger = logging.getLogger(__name__)

CHECK_BATCH = 256  # images per forward pass of the check
MEASURED = 2_000  # images whose zero-shot confidence gives the threshold
MAX_THRESHOLD = 0.98  # the largest threshold: an overconfident model has many images at 1
MASK_TOKEN_IMAGES = 256  # the first images of the split, whose mean patch initializes the mask token


def train(config: TrainConfig) -> RunSummary:
    """Trains, or resumes training, and writes the bundle to ``config.output``. Returns the run's summary.
    Raises Preempted: a signal arrived and a checkpoint is saved; a storage cannot be reached; or another process of the
    run is lost."""
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
        reason = make_printable(str(error).strip().splitlines()[-1].removeprefix(prefix))
        logger.warning(f"must train: {reason}; run the same command to go on from the last checkpoint")
        raise Preempted(reason) from error
    finally:
        stop.restore()


class Trainer:
    """One process of a run."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        self.world = world
        self.reader = open_reader(config.shards, config.split, config.index_sha256, config.shuffle_window)
        classifier = load_text_classifier(config.classifier)
        self.resolved = resolve(config, self.reader.index, classifier)
        self.config = config = self.resolved.config
        self.prior: tuple[float, ...] = ()
        if config.class_prior == "given":
            require_shares(classifier.shares, config.classifier)
            self.prior = classifier.shares
        torch.manual_seed(config.seed)  # mask token and decoder are initialized at random, the same in every process
        self.origin = {name: getattr(classifier, name) for name in ("model_folder", "model_sha256")}
        zero_shot = make_zero_shot_bundle(classifier, config.logit_factor)
        description = keep_levels(zero_shot.description, self.reader.index.levels)
        self.zero_shot = replace(zero_shot, description=description)
        student = self.zero_shot.model.to(world.device)
        self.reference = make_teacher(student)  # the zero-shot model: for the share of labels that changed
        preprocess = get_preprocess(self.zero_shot.description)
        if config.mask_token == "mean":
            start_mask_token(self.zero_shot, EvalSource(self.reader, preprocess, CHECK_BATCH, 0), world.device)
        views = TrainViews(config, preprocess, student.patch_size)
        self.dataset = TrainDataset(self.reader, views, config.seed)
        self.batches = GlobalBatches(
            self.reader.sizes, config.batch_size, config.epochs, config.seed, world.rank, world.size,
            config.shuffle_window, micro_batches=config.accumulate,
        )  # fmt: skip
        self.must_step = MustStep(
            student, preprocess, config, world,
            self.batches.steps, self.batches.steps_per_epoch, self.prior,
        )  # fmt: skip
        self.state = TrainState.start(config, self.reader.index, classifier, self.reference.tower.visual)
        self.micro_batch = self.batches.local_size // config.accumulate  # images that this process takes at once
        self.loaders = 0  # processes; set by `choose`

    def resume(self) -> None:
        if self.config.resume and self.state.resume(self.must_step) and self.world.is_main:
            step, uri = self.state.progress.step, self.state.checkpoints.uri
            logger.info(f"going on after step {step} of {uri}")

    def choose(self) -> None:
        """Chooses the `auto` settings on this machine, after it is known whether the run resumes: such a run keeps its
        threads and its precision, as sums in another order differ in the last bits."""
        config, step, progress = self.config, self.must_step, self.state.progress
        on_cpu = self.world.device.type == "cpu"
        if config.workers != "auto":
            self.loaders = config.workers
        elif on_cpu:
            self.loaders = divide_cores(step.work).loaders
        else:
            view_bytes = 2 * step.preprocess.size**2 * 3  # of an image's two views
            self.loaders = count_loader_processes(PREFETCH * self.micro_batch * view_bytes)
        if config.precision == "auto":
            step.precision = progress.precision or self.world.gather(step.precision)[0]
        progress.precision = step.precision
        if on_cpu:
            share_cores(min(progress.threads, count_own_cores()) or divide_cores(step.work).threads)
            progress.threads = torch.get_num_threads()

    def start_labels(self, stop: StopSignal) -> None:
        """Computes propagated labels and the confidence threshold from zero-shot predictions, as the settings need."""
        config, step = self.config, self.must_step
        if step.propagated is not None:  # from the checkpoint
            return
        source = EvalSource(self.reader, step.preprocess, CHECK_BATCH, self.loaders)
        source.pause = partial(stop.check, "predicting all images")
        if config.pseudo_labels == "propagated":
            step.propagated, confidence = PropagatedLabels.compute(self.reference, source, self.world, config.features)
        elif config.confident_share:
            features = read_features(self.reference, source, self.world, config.features, MEASURED)
            confidence = features.probabilities(self.reference).float().amax(-1)
        if config.confident_share:
            step.threshold = self.world.gather(find_threshold(config.confident_share, confidence))[0]

    def run(self, stop: StopSignal) -> RunSummary:
        self.choose()
        self.start_labels(stop)
        groups = self.groups(self.state.progress.step)
        if self.world.is_main:
            self.announce()
        log = TrainLog(Path(self.config.output), self.reader, self.must_step, self.state, self.reference)
        try:
            self.take_steps(groups, log, stop)
        finally:
            log.close()
        log.stop_on_problems()
        return self.finish(stop)

    def take_steps(self, groups: Iterator[list[TrainBatch]], log: TrainLog, stop: StopSignal) -> None:
        """Raises Preempted: a signal stopped the run; its state is saved."""
        config, progress, checkpoints = self.config, self.state.progress, self.state.checkpoints
        timer = RunTimer(progress, config.checkpoint_seconds)
        for micro_batches in timer.waiting(groups):
            log.add(self.must_step(progress.step, micro_batches))
            progress.step += 1
            last = progress.step == self.batches.steps
            if last or progress.step % config.log_every == 0:
                log.write(micro_batches[0])

            stopping, save = stop.agreed(self.world, self.world.is_main and timer.due(checkpoints.busy))
            save |= progress.step % self.checkpoint_every == 0
            if stopping or (save and not last):
                log.count_problems()
                timer.save(partial(self.state.save, self.must_step))
            if stopping:
                checkpoints.close()
                if self.world.is_main:
                    logger.info(f"stopped by a signal after step {progress.step}; run the same command to go on")
                raise Preempted
        timer.read()

    @property
    def checkpoint_every(self) -> int:
        """Steps between two checkpoints."""
        return self.config.checkpoint_every or self.batches.steps_per_epoch

    def groups(self, first_step: int) -> Iterator[list[TrainBatch]]:
        """The micro-batches of each step."""
        self.batches.first_step = first_step
        batches = train_batches(self.dataset, self.batches, self.loaders, self.world.device)
        return group_batches(batches, self.config.accumulate)

    def size(self) -> Size:
        """Of the run with the chosen settings."""
        config, batches, reader, step = self.config, self.batches, self.reader, self.must_step
        labels = count_bytes(len(reader), step.student.classifier.shape[1])
        total = sum(shard.bytes for shard in reader.shards)
        return Size(
            images=len(reader),
            steps=batches.steps,
            epochs=config.epochs,
            batch_size=config.batch_size,
            micro_batch=self.micro_batch,
            processes=self.world.size,
            workers=self.loaders,
            device=self.world.device.type,
            parameters=sum(p.numel() for p in step.student.parameters()),
            checkpoint_bytes=step.count_bytes() + (labels if config.pseudo_labels == "propagated" else 0),
            checkpoints_kept=min(config.keep_checkpoints, -(-batches.steps // self.checkpoint_every)),
            shards_bytes=total,
            cache_bytes=min(total, reader.cache.limit) if reader.cache is not None else 0,
            threads=self.state.progress.threads,
            precision=self.state.progress.precision,
        )

    def announce(self) -> None:
        description, size = self.zero_shot.description, self.size()
        backbone = f"{make_printable(description.backbone)} ({size.parameters / 1e6:.1f} M parameters)"
        images = f"{size.images:,} images of '{self.config.split}' (labels are not read)"
        logger.info("\n".join([f"{backbone}, {len(description.classes)} classes, {images}", *size.lines()]))

    def finish(self, stop: StopSignal) -> RunSummary:
        """Writes the bundle; the last step's checkpoint is kept, so that a second run repeats no work."""
        progress, config = self.state.progress, self.config
        summary = summarize_run(progress, config.batch_size)
        networks = self.state.save(self.must_step)
        if self.world.is_main:
            self.state.checkpoints.close()
            origin = record_provenance(
                self.reader.index, config=config.to_dict() | {"precision": progress.precision},
                processes=self.world.size, threads=progress.threads or None, summary=summary,
                class_shares=list(self.prior), **self.origin,
            )  # fmt: skip
            description = replace(self.zero_shot.description, provenance=origin)
            if self.is_saved(networks["teacher"]):
                logger.info(
                    f"{config.output}: has the model of this training, which stays as it is; when it was trained:"
                )
            else:
                self.save_model(networks["teacher"], description, stop)
            logger.info(f"{in_words(summary)} -> {config.output}")
        return summary

    def is_saved(self, weights: Weights) -> bool:
        """Whether the output has the model of these weights: then `must refine` may have taught it answers."""
        try:
            bundle, trained = load_bundle(self.config.output), load_trained(self.config.output)
        except UserError:  # none, or a damaged one
            return False
        runs = [replace(b.description.provenance, selection=None, memory=None) for b in (bundle, trained)]
        if runs[0] != runs[1] or runs[0].config.get("alpha") != self.config.alpha:
            return False  # killed before the model was written, beside which the trained weights are
        saved = trained.model.state_dict()
        return saved.keys() == weights.keys() and all(torch.equal(saved[k], w.cpu()) for k, w in weights.items())

    def save_model(self, weights: Weights, description: Description, stop: StopSignal) -> None:
        """Writes the model interpolated at `--alpha`, with a memory of the images, and beside it the fully trained one.

        It depends only on the weights and the training images: a run that is killed here and resumes writes the same.
        """
        config, zero_shot, trained = self.config, self.reference, copy.deepcopy(self.reference)
        trained.load_state_dict(weights)
        adapted_uri, device = storage.join(config.output, ADAPTED), self.world.device

        alpha = config.alpha
        network = interpolate(zero_shot, trained, alpha)
        source = EvalSource(self.reader, get_preprocess(description), CHECK_BATCH, self.loaders)
        source.pause = partial(stop.check, "checking the model")
        alone = replace(self.world, rank=0, size=1)  # the other processes do not wait for this
        before, features = (
            read_features(model, source, alone, config.features, LARGEST_MEMORY) for model in (zero_shot, network)
        )
        if alpha != 1:  # now, as the pass refuses a model whose features are not numbers
            save_bundle(adapted_uri, trained, description)
            logger.info(f"the model with alpha 1: {adapted_uri}")
        elif storage.exists(storage.join(adapted_uri, DESCRIPTION_FILE)):  # of an earlier run
            storage.delete_folder(adapted_uri)
        pool = features.pool(network, [before.probabilities(zero_shot)])
        memory, refined = build_memory(pool, torch.zeros(2, 0, dtype=torch.int64), device)
        predicted = TopLabels.from_probabilities(pool.others[0]), TopLabels.from_probabilities(refined)
        check = compare_predictions(*predicted, description.classes)
        for warning in check.warnings:
            logger.warning(f"warning: {warning}")
        selection = Selection(alpha=alpha, check=check)
        description = replace(description, provenance=replace(description.provenance, selection=selection))
        save_bundle(config.output, network.cpu(), description, memory)


def start_mask_token(zero_shot: Bundle, source: EvalSource, device: torch.device) -> None:
    """Initializes the mask token with the mean patch. Every process calls this and reads the same images. If none can
    be decoded, the token stays random, and training reports it."""
    source = source.only(source.numbers[:MASK_TOKEN_IMAGES])
    sums = [normalize(batch.pixels, source.preprocess).sum(0) for batch in source]
    if sums:
        mean = torch.stack(sums).sum(0) / (len(source.numbers) - source.skipped)
        zero_shot.model.start_mask_token(mean.to(device))


def find_threshold(share: float, confidence: Tensor) -> float:
    """The confidence that a `share` of the images reaches; `confidence` [N]. Without images it is 0."""
    if not len(confidence):
        return 0.0
    threshold = np.quantile(confidence.float().cpu().numpy(), 1 - share)  # torch.quantile takes 2^24 numbers at most
    return min(float(threshold), MAX_THRESHOLD)
