"""Pre-trains the tower of wide.py in two parts, as LiT does (arXiv 2111.07991): an image tower that knows a wide
world, and then, with it locked, a text tower on what the web says of pictures.

    python -m benchmarks.shifts.pretrain_wide            (ten minutes of one core)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.shifts import families
from benchmarks.shifts.packages import ROOT
from benchmarks.shifts.pretrain import distort, normalized, save, spread_names, untrained
from benchmarks.shifts.wide import World

TOWER = "east"
FEATURE_STEPS = 1600  # of 128 pictures
CAPTIONED, CAPTION_STEPS = 25_600, 800  # pictures with one caption each, and steps of 256 of them
LR = 2e-3


def pretrain(seed: int = 0) -> None:
    if (ROOT / "models" / TOWER / "open_clip_model.safetensors").exists():
        return
    torch.manual_seed(seed)
    world = World(seed)
    model, config, tokens = untrained(TOWER, world.texts, families.CAPTIONS)
    known = ROOT / "models" / TOWER / "features.pt"  # kept, so that other captions cost two minutes
    if known.exists():
        model.visual.load_state_dict(torch.load(known, weights_only=True))
    else:
        learn_features(model, world, FEATURE_STEPS, torch.Generator().manual_seed(seed))
        torch.save(model.visual.state_dict(), known)
    spread_names(model, tokens)
    learn_names(model, World(seed + 1), tokens, torch.Generator().manual_seed(seed + 1))
    save(model, config, TOWER)


def learn_features(model: open_clip.CLIP, world: World, steps: int, generator: torch.Generator) -> None:
    """The image tower tells all things of the world apart, whatever they are called."""
    head = nn.Parameter(0.03 * torch.randn(model.visual.output_dim, world.things))
    scale = nn.Parameter(model.logit_scale.detach().clone())
    parameters = [*model.visual.parameters(), head, scale]
    pictures, labels = torch.from_numpy(world.pictures), torch.from_numpy(world.labels)
    for step, forward in descent(parameters, steps):
        chosen = torch.from_numpy(world.shown(128))
        images = normalized(distort(pictures[chosen], generator, strength=1.0))
        seen = F.normalize(model.encode_image(images), dim=-1)
        scores = scale.exp() * seen @ F.normalize(head, dim=0)
        forward(F.cross_entropy(scores, labels[chosen]))
        tell("features", step, steps, scores, labels[chosen])


def learn_names(model: open_clip.CLIP, world: World, tokens: Tensor, generator: torch.Generator) -> None:
    """Which caption of the batch is the picture's; every picture has the one that it was found with."""
    chosen, said = world.captioned(CAPTIONED)
    with torch.no_grad():
        features = torch.cat(
            [
                F.normalize(model.encode_image(normalized(distort(part, generator, strength=1.0))), dim=-1)
                for part in torch.from_numpy(world.pictures[chosen]).split(256)
            ]
        )
    captions = torch.from_numpy(said)
    parameters = [p for n, p in model.named_parameters() if not n.startswith("visual.")]
    for step, forward in descent(parameters, CAPTION_STEPS):
        batch = torch.randint(len(features), (256,), generator=generator)
        texts, right = captions[batch].unique(return_inverse=True)
        template = int(torch.randint(len(tokens), (), generator=generator))
        text = F.normalize(model.encode_text(tokens[template][texts]), dim=-1)
        scores = model.logit_scale.exp() * features[batch] @ text.T
        forward(F.cross_entropy(scores, right))
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        tell("names", step, CAPTION_STEPS, scores, right)
    sharpen(model, features, captions, tokens, world.things)


def sharpen(model: open_clip.CLIP, features: Tensor, captions: Tensor, tokens: Tensor, things: int) -> None:
    """The logit scale that makes first names likeliest among all first names, as a batch of 32,768 captions would."""
    with torch.no_grad():
        texts = F.normalize(torch.stack([model.encode_text(t[:things]) for t in tokens]).mean(0), dim=-1)
        first = captions < things
        scores = features[first] @ texts.T
        scales = torch.linspace(10, 100, 46)
        losses = torch.stack([F.cross_entropy(scale * scores, captions[first]) for scale in scales])
        model.logit_scale.fill_(float(scales[losses.argmin()].log()))
        print(f"scale {float(model.logit_scale.exp()):.0f}, loss {float(losses.min()):.2f}", flush=True)


def descent(parameters: list[nn.Parameter], steps: int) -> Iterator[tuple[int, Callable[[Tensor], None]]]:
    """AdamW, its rate rising for 50 steps and falling as a cosine."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR)

    def forward(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        yield step, forward


STARTED = time.perf_counter()


def tell(what: str, step: int, steps: int, scores: Tensor, right: Tensor) -> None:
    if step % 100 == 0 or step == steps - 1:
        share, seconds = float((scores.argmax(1) == right).float().mean()), time.perf_counter() - STARTED
        print(f"{what}, step {step}: right {share:.2f}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    pretrain()
