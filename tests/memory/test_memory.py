"""The memory: labels from neighbours and answers, a new image by hand, and its way through a bundle's files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from must.answers.accuracy import compute_upper_bound
from must.answers.answers_file import OPEN
from must.memory import propagate as module
from must.memory import refine as refine_module
from must.memory.features import Pool
from must.memory.measure import NEVER, Answers, bound_none
from must.memory.predictions import FEWEST, Guesses, TopLabels, compare_predictions, count_effective
from must.memory.propagate import (
    LABELS_KEPT,
    RARE,
    VOTES,
    build_memory,
    encode_one_hot,
    fit_correction,
    measure_sharing,
    predict_left_out,
    propagate,
)
from must.memory.refine import describe_lacking, refine_pool
from must.model.bundle import load_bundle, save_bundle
from must.model.description import MemoryFacts
from must.model.memory import (
    NEIGHBOURS,
    SHARPNESS,
    Memory,
    Whitening,
    apply_correction,
    find_nearest,
    parse_memory,
    weigh_neighbours,
)
from tests.memory.remembering import pair, remember
from tests.training.lives import same

CLASSES, GROUP, WIDTH = 6, 30, 12
TRUTH = torch.arange(CLASSES).repeat_interleave(GROUP)


@pytest.fixture(scope="module")
def pool():
    """Images of each class are near a direction of its own; a fifth of the probabilities name another class."""
    generator = torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.eye(WIDTH)[TRUTH] + 0.2 * torch.randn(len(TRUTH), WIDTH, generator=generator), dim=1)
    said = torch.where(torch.rand(len(TRUTH), generator=generator) < 0.2, (TRUTH + 1) % CLASSES, TRUTH)
    P = (2 * F.one_hot(said, CLASSES) + 0.3 * torch.rand(len(TRUTH), CLASSES, generator=generator)).softmax(1)
    names = [str(n) for n in range(len(TRUTH))]
    none = P.half().new_zeros(0, *P.shape)
    half = Whitening(torch.eye(WIDTH // 2).half(), torch.zeros(WIDTH // 2))
    return Pool(torch.arange(len(TRUTH)), names, vectors.half(), P.half(), none, half, half)


def build(pool, answers=(), **more):
    return build_memory(pool, pair(dict(answers)), torch.device("cpu"), **more)


@pytest.fixture(scope="module")
def built(pool):
    return build(pool)


def by_hand(memory, labels, shared, probability, vector):
    """(p, f) of one image, by the formula of the memory's docstring."""
    cosines = memory.vectors.float() @ vector
    near = cosines.topk(NEIGHBOURS).indices
    weights = torch.exp(SHARPNESS * cosines[near]) / torch.exp(SHARPNESS * cosines[near]).sum()
    low, high = memory.fade
    similarity = ((weights @ cosines[near] - low) / (high - low)).clamp(0, 1)
    lift = 1 - shared + shared * labels / (labels.mean(0) + RARE)
    largest = torch.zeros_like(labels).scatter(1, labels.topk(LABELS_KEPT).indices, 1.0)
    few = labels.sum(0) / (labels.sum(0) + 5)
    gain = (lift / (1 - shared)).log().clamp(min=0) * largest * few
    product = probability * torch.exp((VOTES * weights[:, None] * similarity * gain[near]).sum(0))
    return product / product.sum(), similarity


def test_a_new_image_by_hand(pool, built):
    memory, Z = built
    shared = propagate(*find_nearest(F.normalize(pool.vectors.float(), dim=1)), pool.probabilities).shared
    assert 0.2 < shared < 0.9 and memory.facts == MemoryFacts(images=len(Z), shared=round(shared, 4))
    P = torch.tensor([0.1, 0.3, 0.2, 0.15, 0.15, 0.1])
    for direction in ([1.0, 0.1, 0, 0, 0, 0], [0.5, 0.5, 0.3, 0, 0, 0], [0.4, 0.5, 0.5, 0.5, 0.3, 0.0]):
        vector = F.normalize(torch.tensor(direction + [0.25] * (WIDTH - 6)), dim=0)
        expected, similarity = by_hand(memory, Z, shared, P, vector)
        found = memory(P[None], vector[None])
        torch.testing.assert_close(found[0][0], expected, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(found[1][0], similarity, atol=2e-3, rtol=0)


def test_an_image_has_no_vote_for_itself(pool, built):
    memory, _ = built
    row, P = 17, pool.probabilities[17:18].float()
    changed = Memory(memory.tokens, memory.embedding, dict(memory.named_buffers(recurse=False)), memory.facts)
    changed.lifts, changed.classes = memory.lifts.clone(), memory.classes.clone()
    changed.lifts[row], changed.classes[row] = 9.0, 5
    own = pool.vectors[row : row + 1].float()
    like = F.normalize(own + 0.05 * torch.ones(1, WIDTH) / WIDTH**0.5, dim=1)
    for vector, equal in ((own, True), (F.normalize(own, dim=1), True), (like, False)):
        assert torch.allclose(changed(P, vector)[0], memory(P, vector)[0], atol=1e-5) == equal


def test_votes_count_fully_for_an_image_as_near_as_three_quarters_of_the_memorys_own(pool, built):
    memory, _ = built
    similarity = memory(pool.probabilities.float(), F.normalize(pool.vectors.float(), dim=1))[1]
    assert 0.72 < float((similarity == 1).float().mean()) < 0.78
    assert 0 < float((similarity < 1e-6).float().sum()) <= 3, "one of a hundred is too far"


def take(pool, rows):
    """The pool's images `rows`, which may be there several times."""
    parts = {name: getattr(pool, name)[rows] for name in ("vectors", "probabilities")}
    return replace(pool, numbers=torch.arange(len(rows)), sources=[str(n) for n in range(len(rows))], **parts)


@pytest.fixture(scope="module")
def shots():
    """(a pool of 180 images of six classes in 96 numbers, each three times, slightly different; new images of the same
    kinds; their classes)."""
    generator = torch.Generator().manual_seed(3)

    def images(truth):
        return F.normalize(torch.eye(96)[truth] + 0.12 * torch.randn(len(truth), 96, generator=generator), dim=1)

    def say(truth):
        said = torch.where(torch.rand(len(truth), generator=generator) < 0.3, (truth + 1) % CLASSES, truth)
        return (2 * F.one_hot(said, CLASSES) + 0.3 * torch.rand(len(truth), CLASSES, generator=generator)).softmax(1)

    once, new = images(TRUTH), images(TRUTH)
    values = F.normalize(once.repeat(3, 1) + 0.01 * torch.randn(540, 96, generator=generator), dim=1)
    P, half = say(TRUTH).repeat(3, 1), Whitening(torch.eye(48).half(), torch.zeros(48))
    pool = Pool(torch.arange(540), [""] * 540, values.half(), P.half(), P.half()[None][:0], half, half)
    return pool, new, say(TRUTH)


def test_a_burst_votes_once(shots):
    """Else its frames vote for each other, and a new image seems to be far from all."""
    pool, new, said = shots
    single, _ = build(take(pool, torch.arange(180)))
    memory, Z = build(pool)
    assert memory.facts.images == 180 and memory.facts.shared == pytest.approx(single.facts.shared, abs=0.03)
    torch.testing.assert_close(memory.fade, single.fade, atol=0.01, rtol=0)
    found, similarity = memory(said, new)
    assert similarity.mean() > 0.9
    assert (found.argmax(1) == TRUTH).float().mean() > (said.argmax(1) == TRUTH).float().mean() + 0.2
    assert torch.equal(Z[:180], Z[180:360]) and (Z[:180].argmax(1) == TRUTH).float().mean() > 0.95
    frame = F.normalize(pool.vectors[400:401].float() + 0.001, dim=1)
    assert memory(said[:1], frame)[1] == 1, "another frame of it is near"


def test_an_answer_is_about_its_image_and_teaches_the_other_frames(shots):
    """Answers about frames that are the first of their burst, and about others; two about one burst contradict."""
    pool, *_ = shots
    wrong = {row: (int(TRUTH[row % 180]) + 3) % CLASSES for row in (0, 200, 95, 275)}
    memory, Z = build(pool, wrong | {275: 5})
    assert memory.facts.images == 182, "200 and 275 are groups of their own"
    assert [int(Z[row].argmax()) for row in wrong] == [*[*wrong.values()][:3], 5] and float(
        Z[[*wrong]].amax(1).min()
    ) == 1
    assert Z[[180, 20]].argmax(1).tolist() == [wrong[0], wrong[200]], "other frames of the bursts of 0 and of 200"
    assert float(Z[180].max()) < 1 and float(Z[20].max()) < 1
    assert torch.allclose(memory.fade, build(pool)[0].fade), "answers bring nothing nearer"


def test_an_answer_more_leaves_the_others_in_their_parts_of_the_cross_validation(pool, monkeypatch):
    """Else the labels that measure would change with each answer, and what is left would rise and fall."""
    known, contents = list[set[int]](), np.random.default_rng(0).integers(0, 2**63, len(TRUTH)).astype(np.uint64)

    def build_one(pool, answers, *more):
        known.append({*answers[0].tolist()})
        return build_memory(pool, answers, *more)

    def find_parts(rows):
        known.clear()
        said = np.full(len(TRUTH), OPEN)
        said[[*rows]] = TRUTH[[*rows]]
        answers = Answers(said, said != OPEN, np.ones(len(TRUTH), bool), contents)
        refine_pool(pool, answers, torch.device("cpu"), 1_000, 0.05)
        return [{*rows} - some for some in known if some and some != {*rows}]

    monkeypatch.setattr(refine_module, "build_memory", build_one)
    few, more = find_parts(range(31, 90, 2)), find_parts(sorted([60, *range(31, 90, 2)]))
    assert 5 <= len(few) <= 20 and all(any(part <= other for other in more) for part in few)


def test_one_image_alone_gets_no_votes(pool):
    memory, Z = build(take(pool, torch.zeros(1, dtype=torch.int64)))
    assert memory.facts.images == 1 and torch.allclose(Z, pool.probabilities[:1].float(), atol=1e-3)
    found, similarity = memory(pool.probabilities[1:2].float(), F.normalize(pool.vectors[1:2].float(), dim=1))
    assert similarity == 0 and torch.allclose(found, pool.probabilities[1:2].float(), atol=1e-3)


@pytest.mark.parametrize("with_answers", [False, True])
def test_an_image_unlike_all_keeps_the_models_own_probabilities(pool, with_answers):
    memory, _ = build(pool, dict.fromkeys(range(GROUP), 3) if with_answers else {})
    assert bool(len(memory.correction)) == with_answers
    P = torch.tensor([[0.7, 0.1, 0.1, 0.05, 0.03, 0.02]])
    found, similarity = memory(P, -torch.ones(1, WIDTH) / WIDTH**0.5)
    assert similarity.tolist() == [0] and torch.allclose(found, P, atol=1e-6)
    near, similarity = memory(P, pool.vectors[:1].float())
    assert similarity > 0 and not torch.allclose(near, P, atol=1e-2)


def sure(pool, counts):
    """The first images of each class, so many, of which the model is sure."""
    rows = torch.cat([torch.arange(count) + GROUP * k for k, count in enumerate(counts)])
    return replace(take(pool, rows), probabilities=(0.97 * encode_one_hot(TRUTH[rows], CLASSES) + 0.005).half())


@pytest.mark.parametrize("counts, full", [((30, 30, 30, 30, 4, 6), 10), ((8, 8, 8, 8, 1, 3), 3)])
def test_a_class_is_held_in_full_with_ten_images_or_half_of_the_mean(pool, counts, full):
    """What is half held halves what votes do to a new image that the model takes for it."""
    memory, Z = build(sure(pool, counts))
    assert memory.held.tolist() == pytest.approx([1, 1, 1, 1, counts[4] / full, min(1, counts[5] / full)], abs=0.05)
    assert "show 1 of the 6 classes (e): new images" in describe_lacking(memory, list("abcdef"))
    assert torch.allclose(memory.held, (Z.sum(0) / min(10, len(Z) / CLASSES / 2)).clamp(max=1), atol=1e-6)
    P = 0.4 * encode_one_hot(torch.tensor([1, 4]), CLASSES).sum(0)[None] + 0.2 / CLASSES
    vector = F.normalize(torch.eye(WIDTH)[1:2] + 0.5 * torch.eye(WIDTH)[4:5], dim=1)
    gains = list[torch.Tensor]()
    for held in (memory.held, torch.ones(CLASSES)):
        memory.held = held
        gains.append((memory(P, vector)[0] / P).log()[0])
    share = float(P @ build(sure(pool, counts))[0].held)
    assert 0.6 < share < 0.9
    change = [gain[1] - gain[4] for gain in gains]
    assert float(change[1]) > 0.5 and float(change[0]) == pytest.approx(share * float(change[1]), abs=1e-4)


def test_a_class_that_the_pool_lacks_keeps_what_the_model_says(pool):
    """The pool holds no image of class 4, which the model says of some; a person says what they are."""
    rows = torch.nonzero(TRUTH != 4).flatten()
    part = take(pool, rows)
    part.probabilities[::3] = encode_one_hot(torch.full((len(rows[::3]),), 4), CLASSES).half()
    memory, Z = build(part, dict(enumerate(TRUTH[rows].tolist())))
    assert Z[:, 4].sum() < 0.1 and memory.held.tolist() == pytest.approx([1, 1, 1, 1, 0, 1], abs=0.02)
    P, vector = 0.94 * encode_one_hot(torch.tensor([4]), CLASSES) + 0.01, part.vectors[1:2].float()
    found, similarity = memory(P, vector)
    assert found.argmax() == 4 and similarity == 1
    memory.held.fill_(1)
    assert describe_lacking(memory, list("abcdef")) == ""
    assert memory(P, vector)[0].argmax() != 4, "so strong is what people said of the others"


def test_a_class_that_three_answers_should_name_and_none_names_is_not_held(pool):
    """The model takes 20 of class 1's 30 images for class 4, which the pool lacks: they add up to many."""
    part = take(pool, torch.nonzero(TRUTH != 4).flatten())
    part.probabilities[30:50] = (0.6 * encode_one_hot(torch.tensor([4]), CLASSES) + 0.4 / CLASSES).half()
    known = dict.fromkeys(range(30, 35), 1)
    few, answered = (build(part, dict([*known.items()][:count]))[0].held for count in (4, 5))
    assert few[4] > 0.2 and answered[4] == 0, "0.67 expected of each answer"
    assert answered[[0, 1, 2, 3, 5]].min() == 1 and all(
        build(part, known | {36: label})[0].held[4] > 0.2 for label in (4, -1)
    )


def test_the_five_largest_labels_are_kept_and_answered_images_always(pool):
    known = {1: 2, 91: 0, 178: 5}
    memory, Z = build(pool, known, limit=20)
    assert Z.shape == (CLASSES * GROUP, CLASSES), "all images have labels"
    assert memory.classes.shape == memory.lifts.shape == (23, LABELS_KEPT)
    even = torch.linspace(0, len(Z) - 1, 20).round().long().tolist()
    rows = sorted({*even, *known})
    assert torch.equal(memory.vectors, pool.vectors[rows])
    assert torch.equal(memory.classes.long(), Z[rows].topk(LABELS_KEPT).indices)
    assert memory.facts.images == 23 and memory.facts.answers == 3


def test_images_like_those_of_none_of_the_classes_are_found_old_and_new(pool):
    """People say of five images of the last class that they show none of the classes."""
    others = {row: int(TRUTH[row]) for row in range(0, 150, 6)}
    memory, Z = build(pool, others | dict.fromkeys(range(150, 155), -1))
    assert not Z[150].any() and Z[30].tolist() == [0, 1, 0, 0, 0, 0], "answered images keep their answer"
    assert memory.facts.none == 0.1, "a tenth at most"
    labels = TopLabels.from_probabilities(Z)
    assert (labels.labels[155:] == -1).float().mean() > 0.9 and (labels.labels[:150] == -1).float().mean() < 0.02
    assert torch.allclose(labels.confidence[155:], 1 - Z[155:].sum(1)) and float(Z.sum(1).max()) <= 1 + 1e-5
    new = F.normalize(torch.eye(WIDTH)[[5, 1]] + 0.05, dim=1)
    found, _ = memory(torch.full((2, CLASSES), 1 / CLASSES), new)
    assert found[0].sum() < 0.3 and found[1].sum() > 0.95 and int(found[1].argmax()) == 1
    assert build(pool, others)[0].facts.none == 0 and torch.allclose(build(pool, others)[1].sum(1), torch.ones(180))


@pytest.fixture(scope="module")
def remembering(digits, tmp_path_factory):
    """(folder, bundle) of the bundled digits' zero-shot model with a memory of random images."""
    folder, bundle = tmp_path_factory.mktemp("bundle"), load_bundle(digits.zero_shot)
    images = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    bundle = remember(bundle, images, {number: number % 10 for number in range(20)})
    description = save_bundle(str(folder), bundle.model, bundle.description, bundle.memory)
    return folder, replace(bundle, description=description), images


def test_it_is_read_as_it_was_written(remembering):
    folder, bundle, images = tuple(remembering)
    found = load_bundle(str(folder))
    assert found.memory.facts == bundle.memory.facts and found.description == bundle.description
    assert same(ours := found.memory.state_dict(), bundle.memory.state_dict())
    with torch.no_grad():
        probability, similarity, _ = found.classify(images)
        torch.testing.assert_close(probability.log(), bundle.classify(images)[0].log(), atol=1e-3, rtol=1e-4)
    assert similarity.shape == (40,)
    saved = {name for name in load_file(folder / "model.safetensors") if name.startswith("memory.")}
    assert saved == {f"memory.{name}" for name in ours}


DAMAGE = [
    *((name, lambda value: value[:-1])
      for name in ("vectors", "fade", "held", "correction", "tokens.projection", "tokens.offset",
                   "embedding.projection")),
    *((name, lambda value: value[:, :-1]) for name in ("vectors", "classes", "correction", "tokens.projection")),
    *((name, lambda value: torch.full_like(value, torch.nan))
      for name in ("vectors", "lifts", "held", "embedding.offset")),
    ("vectors", lambda value: value[:0]), ("vectors", lambda value: value.flatten()),
    ("classes", lambda value: value + 10), ("classes", lambda value: value - 1), ("lifts", lambda value: -value - 1),
    ("fade", None), ("other", lambda _: torch.zeros(1)),
]  # fmt: skip


@pytest.mark.parametrize("name, change", DAMAGE)
def test_damaged_tensors_are_refused(remembering, name, change):
    _, bundle, _ = remembering
    tensors = bundle.memory.state_dict()
    parse_memory(tensors, bundle.memory.facts, bundle.model)
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors.get(name))
    with pytest.raises((ValueError, KeyError)):
        parse_memory(tensors, bundle.memory.facts, bundle.model)


def test_the_rounding_of_many_probabilities_is_not_none_of_the_classes():
    P = torch.full((2, 1_000), 0.000_995)
    P[1] = 0.000_985  # lacks 0.015
    found = TopLabels.from_probabilities(P)
    assert found.labels.tolist() == [0, -1] and found.confidence.tolist() == pytest.approx([0.000_995, 0.015], rel=1e-3)


def test_few_images_of_the_classes_are_taken_for_none_of_them():
    """Of a class: 100 answered pictures, and 19 of none. The fifth and sixth surest of the 100 are as sure as junk."""
    none = torch.cat([torch.linspace(0.95, 0.05, 100), torch.full((19,), 0.9)])
    P, truth = torch.stack([0.8 * (1 - none), 0.2 * (1 - none)], 1), torch.tensor([0] * 100 + [-1] * 19)

    def bound(rows):
        guesses = Guesses.of(P[rows:])
        margin, text = bound_none(guesses, truth[rows:])
        return guesses.decide(margin).labels, margin, text

    found, margin, text = bound(0)
    assert compute_upper_bound(1, 100) <= 0.05 < compute_upper_bound(2, 100)
    assert "at most 4.7 in 100" in text and "(100 random" in text
    assert (found[:100] == -1).sum() == 1 and margin > 2
    assert (found[100:] == 0).all(), "with so many sure ones, junk has a class, too"
    found, margin, text = bound(20)
    assert "at most 3.7 in 100" in text and 0 < margin < 2
    assert (found[:80] >= 0).all() and (found[80:] == -1).all()
    found, margin, text = bound(81)
    assert margin == NEVER and (found >= 0).all() and "every picture: fewer than 20" in text


def test_a_margin_divides_the_odds_for_none_of_the_classes():
    guesses = Guesses.of(torch.tensor([[0.2, 0.1], [0.5, 0.4]]))
    labels, confidence = guesses.decide(float(np.log(2)))
    assert labels.tolist() == [-1, 0] and confidence.tolist() == pytest.approx([0.35 / 0.65, 0.5 / 0.95])
    assert guesses.decide(2).labels.tolist() == [0, 0]


def test_a_memory_without_its_description_is_refused_in_one_line(remembering, tmp_path):
    _, bundle, _ = remembering
    save_bundle(str(tmp_path), bundle.model, bundle.description, bundle.memory)
    file = tmp_path / "model.json"
    file.write_text(file.read_text().replace('"memory"', '"memories"'))
    with pytest.raises(ValueError) as error:
        load_bundle(str(tmp_path))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def predicted(labels, confidence=0.9):
    return TopLabels(labels, torch.full((len(labels),), confidence))


def test_numbers_by_hand():
    assert count_effective(torch.tensor([4, 4, 0])) == pytest.approx(2)
    assert count_effective(torch.tensor([7])) == pytest.approx(1)
    labels = torch.arange(100) % 5
    found = compare_predictions(predicted(labels, 0.5), predicted(labels.clamp(max=3), 0.75), list("abcde"))
    assert (found.images, found.changed, found.dead_classes) == (100, 0.2, ["e"])
    assert (found.confidence_before, found.confidence_after) == (0.5, 0.75)
    assert found.effective_before == 5 and found.effective_after == pytest.approx(3.79, abs=0.01)
    assert found.warnings == [], "a class that is no longer predicted may be one that the images do not show"


@pytest.mark.parametrize(
    "images, left, confidence, words",
    [
        (100, 2, 0.9, []),  # 2 of 5 classes: above a third
        (100, 1, 0.9, ["effectively 1.0, zero-shot 5.0"]),
        (FEWEST - 1, 1, 0.9, []),
        (100, 5, float("nan"), ["not finite"]),
    ],
)
def test_only_a_collapse_is_a_warning(images, left, confidence, words):
    labels = torch.arange(images) % 5
    found = compare_predictions(predicted(labels), predicted(labels % left, confidence), list("abcde")).warnings
    assert len(found) == len(words) and all(word in text for word, text in zip(words, found, strict=True))


def test_answers_correct_new_images_that_are_like_them(pool):
    """Somebody calls all images of the first direction class 5: so do new images of that direction, and no others."""
    memory, _ = build(pool, dict.fromkeys(range(0, GROUP, 2), 5))
    found = predict_left_out(memory, pool, torch.arange(len(TRUTH))).labels
    unasked = torch.arange(1, GROUP, 2)
    assert (found[unasked] == 5).float().mean() > 0.9 and (found[GROUP:] == TRUTH[GROUP:]).float().mean() > 0.85


PAIR = torch.tensor([[1], [0]])  # each is the other's neighbour
FOUR = torch.tensor([[1], [0], [3], [2]])  # two pairs of neighbours


def test_a_round_by_hand(monkeypatch):
    """Neighbours that agree as often as by chance change nothing; where all agree, each counts in full."""
    monkeypatch.setattr(module, "ROUNDS", 1)
    P = torch.tensor([[0.6, 0.4], [0.4, 0.6], [0.9, 0.1], [0.8, 0.2]])
    assert measure_sharing(FOUR, torch.ones(4, 1), torch.tensor([0, 0, 1, 1])) == 1.0
    assert measure_sharing(FOUR, torch.ones(4, 1), torch.tensor([0, 1, 0, 1])) == 0.0
    shared = measure_sharing(FOUR, torch.ones(4, 1), P.argmax(1))
    assert shared == 0.0 and torch.allclose(propagate(FOUR, torch.ones(4, 1), P).labels, P)
    P = torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.1, 0.9], [0.2, 0.8]])
    expected = P * (P[[1, 0, 3, 2]] / (P.mean(0) + RARE)) ** VOTES
    expected = expected / expected.sum(1, keepdim=True)
    assert torch.allclose(propagate(FOUR, torch.ones(4, 1), P).labels, expected, atol=1e-6)


def test_nearer_neighbours_weigh_more(monkeypatch):
    monkeypatch.setattr(module, "ROUNDS", 1)
    monkeypatch.setattr(module, "measure_sharing", lambda *_: 0.5)
    P = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.1, 0.9]])
    neighbours, cosines = torch.tensor([[1, 2], [0, 2], [0, 1]]), torch.tensor([[1.0, 0.5], [1, 1], [1, 1]])
    assert propagate(neighbours, cosines, P).labels[0].argmax() == 0
    assert propagate(neighbours, cosines.flip(1), P).labels[0].argmax() == 1


def test_neighbours_that_know_nothing_of_the_classes_change_next_to_nothing():
    generator = torch.Generator().manual_seed(0)
    P = torch.randn(2_000, 50, generator=generator).mul(3).softmax(1)
    neighbours = torch.randint(0, 2_000, (2_000, 10), generator=generator)
    found, shared = propagate(neighbours, torch.ones(2_000, 10), P)
    assert shared == measure_sharing(neighbours, weigh_neighbours(torch.ones(2_000, 10)), P.argmax(1)) < 0.01
    assert (found.argmax(1) != P.argmax(1)).float().mean() < 0.05


def test_answered_images_stay_at_their_class_and_none_of_the_classes_is_none():
    P = torch.full((2, 3), 1 / 3)
    found = propagate(PAIR, torch.ones(2, 1), P, torch.tensor([0, 1]), torch.tensor([2, -1])).labels
    assert found.tolist() == [[0, 0, 1], [0, 0, 0]]
    known = [[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.9, 0.05, 0.05], [0.9, 0.05, 0.05]]
    other = propagate(FOUR, torch.ones(4, 1), torch.tensor(known), torch.tensor([0, 3]), torch.tensor([1, 2]))
    assert other.shared > 0 and other.labels[[0, 3]].tolist() == [[0, 1, 0], [0, 0, 1]]


def test_blocks_make_no_difference(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    neighbours, cosines = torch.randint(0, 40, (40, 5), generator=generator), torch.rand(40, 5, generator=generator)
    P = torch.rand(40, 6, generator=generator).softmax(1)
    whole = propagate(neighbours, cosines, P).labels
    monkeypatch.setattr(module, "BLOCK_NUMBERS", 100)
    assert torch.allclose(propagate(neighbours, cosines, P).labels, whole, atol=1e-6)


P64 = torch.tensor([[0.6, 0.4]]).repeat(4, 1)
VALUES = torch.tensor([[1.0, 0], [1.0, 0], [1.0, 0], [0, 1.0]])


def test_answers_correct_the_images_that_are_like_them():
    """Two answers about one picture, by hand: the change of image i is 2 k(i, a) / (2 k(a, a) + 1) (answer - P)."""
    correction = fit_correction(P64, VALUES, torch.tensor([0, 1]), torch.tensor([1, 1]))
    own = 1 + 0.6**2 + 0.4**2
    like, unlike = 2 * own / (2 * own + 1), 2 * (own - 1) / (2 * own + 1)
    expected = [0.6 - 0.6 * like] * 3 + [0.6 - 0.6 * unlike]
    found = apply_correction(P64, VALUES, correction, 0.0)
    assert found[:, 0].tolist() == pytest.approx(expected, abs=1e-6)
    half = apply_correction(P64, VALUES, correction, 0.0, torch.tensor([1, 0.5, 0, 1]))
    assert half[:, 0].tolist() == pytest.approx([expected[0], (0.6 + expected[0]) / 2, 0.6, expected[3]], abs=1e-6)


@pytest.mark.parametrize("answered, labels", [([], []), ([0], [1]), ([0, 1], [0, 1])])
def test_answers_that_do_not_predict_each_other_correct_nothing(answered, labels):
    assert fit_correction(P64, VALUES, torch.tensor(answered).long(), torch.tensor(labels).long()).shape == (0, 2)


def test_none_of_the_classes_has_a_ridge_of_its_own():
    """Of answers about two kinds of pictures, those about the classes contradict each other."""
    values, P = torch.eye(2)[[0, 0, 0, 0, 1, 1, 1]], torch.full((7, 2), 0.5)
    found = fit_correction(P, values, torch.arange(6), torch.tensor([0, 1, 0, 1, -1, -1]), 0.1)
    assert found.shape == (4, 3)
    corrected = apply_correction(P, values, found, 0.1)
    assert corrected[6, 2] > 3 * corrected[0, 2]
    assert float(corrected[0, 0]) == pytest.approx(float(corrected[0, 1]), abs=1e-5)
