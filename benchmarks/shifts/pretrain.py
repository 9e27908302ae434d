"""Pre-trains a tiny CLIP of the bundled one's size on images of one style; the adaptation is to another style.

python -m benchmarks.shifts.pretrain scripts kanji signs clothes groceries    (minutes each on one core)
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.demo_model import IMAGE_SIZE, MODEL_CONFIG, PREPROCESS_CONFIG, learn_merges
from benchmarks.shifts import families, photos
from benchmarks.shifts.families import ROOT


def material(name: str) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """(pictures, class numbers, names, templates) for the pre-training of a model."""
    if name in photos.SETS:
        return (*photos.source(name), photos.class_names(name), photos.CAPTIONS)
    return (*families.source(name), families.CAPTIONS)


def pretrain(name: str, batch_size: int = 128, lr: float = 2e-3, seed: int = 0) -> None:
    steps, preprocess, strength = families.STEPS.get(name, 0), PREPROCESS_CONFIG, 1.0
    if name in photos.SETS:  # few photographs: smaller steps, milder distortion
        steps, preprocess, strength, batch_size, lr = photos.STEPS[name], photos.PREPROCESS, 0.4, 64, 1e-3
    size = preprocess["size"]
    if (ROOT / "models" / name / "open_clip_model.safetensors").exists():
        return
    torch.manual_seed(seed)
    pixels, numbers, names, templates = material(name)
    model, config, tokens = new_model(name, names, templates, size)
    if name == "groceries":  # 81 classes of few photographs: starts from another image tower
        previous = load_file(ROOT / "models/clothes/open_clip_model.safetensors")
        model.visual.load_state_dict(
            {k.removeprefix("visual."): v.float() for k, v in previous.items() if k.startswith("visual.")}
        )
    pictures, labels = torch.from_numpy(pixels), torch.from_numpy(numbers)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    generator = torch.Generator().manual_seed(seed)
    spread_names(model, tokens)  # first separates names that begin alike, which saves half of the steps
    started = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        chosen = torch.randint(len(pictures), (batch_size,), generator=generator)
        images = normalize(distort(pictures[chosen], generator, strength, size), preprocess)
        template = int(torch.randint(len(templates), (), generator=generator))
        text = F.normalize(model.encode_text(tokens[template]), dim=-1)
        logits = model.logit_scale.exp() * F.normalize(model.encode_image(images), dim=-1) @ text.T
        loss = F.cross_entropy(logits, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        if step % 100 == 0 or step == steps - 1:
            right = (logits.argmax(1) == labels[chosen]).float().mean().item()
            print(f"{name} step {step} loss {loss.item():.3f} right {right:.2f} {time.perf_counter() - started:.0f} s")
    save(model, config, name, preprocess)


def new_model(
    name: str, names: list[str], templates: list[str], size: int = IMAGE_SIZE
) -> tuple[open_clip.CLIP, dict[str, Any], Tensor]:
    """(model, its config, tokens [T, K, L] of each name in each template); its tokenizer is in the model's folder."""
    output = ROOT / "models" / name
    output.mkdir(parents=True, exist_ok=True)
    captions = [template.format(text) for template in templates for text in names]
    bpe = output / "bpe.txt.gz"
    with open(bpe, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file:
        file.write("\n".join([f"#version: {name}", *learn_merges(captions, 400)]).encode())
    config = json.loads(json.dumps(MODEL_CONFIG))
    config["vision_cfg"]["image_size"] = size
    tokenizer = open_clip.SimpleTokenizer(bpe_path=str(bpe), context_length=config["text_cfg"]["context_length"])
    config["text_cfg"]["vocab_size"] = tokenizer.vocab_size
    return open_clip.CLIP(**config), config, tokenizer(captions).view(len(templates), len(names), -1)


def save(
    model: open_clip.CLIP, config: dict[str, Any], name: str, preprocess: dict[str, Any] = PREPROCESS_CONFIG
) -> None:
    output = ROOT / "models" / name
    weights = {key: value.half().contiguous() for key, value in model.state_dict().items() if key != "attn_mask"}
    (output / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=1) + "\n"
    )
    save_file(weights, output / "open_clip_model.safetensors")


def spread_names(model: open_clip.CLIP, tokens: Tensor, steps: int = 60) -> None:
    """Trains the text tower until a name in one template is nearest to itself in another."""
    optimizer = torch.optim.AdamW([p for n, p in model.named_parameters() if not n.startswith("visual.")], lr=2e-3)
    for _ in range(steps):
        names, templates = torch.randperm(tokens.shape[1])[:400], torch.randperm(len(tokens))[:2]
        first, second = (F.normalize(model.encode_text(tokens[k][names]), dim=-1) for k in templates)
        loss = F.cross_entropy(20 * first @ second.T, torch.arange(len(first)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def distort(pictures: Tensor, generator: torch.Generator, strength: float, size: int = IMAGE_SIZE) -> Tensor:
    """uint8 [B, C, C] or [B, C, C, 3] -> float32 [B, size, size(, 3)] in 0..1: turned, sheared, scaled,
    bent, blurred, noisy."""
    count = len(pictures)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    angle, shear = strength * uniform(-0.25, 0.25), strength * uniform(-0.25, 0.25)
    width, height = uniform(0.7, 1.0), uniform(0.7, 1.0)
    cos, sin = angle.cos(), angle.sin()
    rotation = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], 1)
    skew = torch.stack([torch.stack([width, shear], -1), torch.stack([torch.zeros(count), height], -1)], 1)
    theta = torch.cat([rotation @ skew, uniform(-0.08, 0.08, 2, 1)], -1)
    grid = F.affine_grid(theta, [count, 1, size * 2, size * 2], align_corners=False)
    bend = strength * uniform(-0.1, 0.1, 2, 4, 4)
    bend = F.interpolate(bend, size=grid.shape[1:3], mode="bicubic", align_corners=True)
    planes = pictures[:, None] if pictures.ndim == 3 else pictures.permute(0, 3, 1, 2)
    warped = F.grid_sample(planes.float() / 255, grid + bend.permute(0, 2, 3, 1), align_corners=False)
    small = F.interpolate(warped, size=(size, size), mode="area")
    noise = uniform(0, 0.08, 1, 1, 1) * torch.randn(small.shape, generator=generator)
    output = (small * uniform(0.6, 1.2, 1, 1, 1) + noise).clamp(0, 1)
    return output[:, 0] if pictures.ndim == 3 else output.permute(0, 2, 3, 1)


def normalize(pictures: Tensor, preprocess: dict[str, Any] = PREPROCESS_CONFIG) -> Tensor:
    mean, std = (torch.tensor(preprocess[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    planes = pictures[:, None].expand(-1, 3, -1, -1) if pictures.ndim == 3 else pictures.permute(0, 3, 1, 2)
    return (planes - mean) / std


def as_bytes(pictures: Tensor) -> np.ndarray:
    return (pictures * 255).round().byte().numpy()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=(*families.MODELS, *photos.SETS))
    torch.set_num_threads(1)
    for source in parser.parse_args().names:
        pretrain(source)
