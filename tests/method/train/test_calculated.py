"""`must plan --gpu`: arithmetic for cards that are not here."""

import json

import pytest

from must.api import cli
from must.method.train.calculated import CARDS, REACHED, Shape, calculate, parse_gpus
from must.method.train.estimate import Size

B16, L14 = Shape(224, 16, 768, 12), Shape(224, 14, 1024, 24)


def size(parameters=87e6, batch=1024):
    return Size(
        images=1_281_167, steps=37_530, epochs=30, batch_size=batch, micro_batch=batch, processes=1, workers=1,
        device="cpu", parameters=int(parameters), checkpoint_bytes=0, checkpoints_kept=1,
        shards_bytes=140 * 10**9, cache_bytes=0,
    )  # fmt: skip


def test_the_work_of_a_step_and_image():
    """141 and 648 GFLOP a step and image (counted), 27% of the peak of eight H100."""
    assert 4 * B16.forward_flops / 1e9 == pytest.approx(141, abs=0.5)
    assert 4 * L14.forward_flops / 1e9 == pytest.approx(648, abs=0.5)
    eight = calculate("h100x8", B16, size(), False, 300.0)
    slow, fast = eight.images_per_s
    assert slow < 0.27 * 8 * 989e12 / 141e9 < fast and not eight.launching
    assert eight.share[0] == pytest.approx(slow * 140.5e9 / (8 * 989e12), rel=0.01)
    assert 0.2 < eight.share[0] < 0.23 and 0.3 < eight.share[1] < 0.33
    assert eight.cores == pytest.approx(fast / 300) and eight.seconds[1] == pytest.approx(37_530 * 1024 / slow)


@pytest.mark.parametrize(
    "card, shape, images_per_s",
    [
        ("h100", Shape(224, 16, 384, 12), 8_003),  # ViT-5-Small; nvidia-bionemo.github.io/nvSubquadratic
        ("h100", Shape(224, 14, 1408, 40), 1_428 / 8),  # ViT-g/14 on 8, NVIDIA NeMo's page on performance
        ("a100", Shape(224, 14, 1408, 40), 693 / 8),  # the same
    ],
)
def test_published_trainings_are_within_the_range(card, shape, images_per_s):
    """A training of one network is three forward passes' worth. g/14's MLP is a tenth wider than is counted here."""
    reached = images_per_s * shape.seconds(CARDS[card], 3)
    assert REACHED[0] - 0.03 < reached < REACHED[1] + 0.05, reached


def test_faster_memory_helps_where_the_arithmetic_is_the_same():
    one, other = (calculate(gpus, B16, size(), False, 300.0).images_per_s for gpus in ("h100x8", "h200x8"))
    assert one[1] < other[1] < 4800 / 3350 * one[1]


def test_a_smaller_card_takes_micro_batches_or_says_that_nothing_fits():
    pieces = [calculate(gpus, L14, size(305e6, 256), False, 300.0).micro_batches for gpus in ("h100x8", "h100", "l4")]
    assert pieces == sorted(pieces) and pieces[0] == 1 and pieces[-1] > 4
    cut, whole = (calculate("l4", L14, size(305e6, batch), False, 300.0) for batch in (256, 8))
    assert cut.images_per_s[1] == pytest.approx(whole.images_per_s[1] * 4 / 5)  # the student looks twice
    huge = calculate("l4", Shape(224, 14, 1664, 48), size(1.8e9, 8), False, 300.0)
    assert huge.micro_batches == 0 and "not even one image" in huge.lines(size())[0]


def test_a_small_model_waits_for_the_host():
    found = calculate("h100x8", Shape(64, 8, 128, 4), size(1e6, 64), False, 300.0)
    assert found.launching and "what the host can launch" in found.lines(size())[0]


@pytest.mark.parametrize("text, found", [("h100x8", ("h100", 8)), ("L4", ("l4", 1)), ("rtx3090x2", ("rtx3090", 2))])
def test_cards_are_named_with_their_number(text, found):
    assert parse_gpus(text) == found and all(parse_gpus(name) == (name, 1) for name in CARDS)


@pytest.mark.parametrize("text", ["", "h1000", "x8", "h100x0", "8"])
def test_an_unknown_card_is_one_line(text):
    with pytest.raises(ValueError, match=r"^--gpu ") as error:
        parse_gpus(text)
    assert "\n" not in str(error.value)


def test_the_command_says_what_is_calculated_and_what_measured(digits, tmp_path, capsys):
    flags = ["--shards", digits.shards, "--classifier", digits.classifier, "--preset", "digits", "--batch-size", "48"]
    cli.main(["plan", *flags, "--workers", "0", "--gpu", "h100x8", "--json", str(tmp_path / "plan.json")])
    *_, speed, feed = capsys.readouterr().out.splitlines()
    assert speed.startswith("h100 x 8: calculated, not measured: ") and "(measured)" in feed and "cores" in feed
    found = json.loads((tmp_path / "plan.json").read_text())["calculated"]
    assert found["gpus"] == 8 and found["core_images_per_s"] > 0 and found["micro_batches"] == 1
