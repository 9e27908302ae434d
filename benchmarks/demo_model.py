"""Pre-trains the bundled tiny CLIP on digits drawn from computer fonts, without handwriting.

The weights that ship in ``must/api/demo/assets`` were made by exactly this command (needs ``pip install matplotlib``):

    python -m benchmarks.demo_model --output must/api/demo/assets --seed 0

The images are digits rendered with the fonts that matplotlib and Pillow ship, distorted a little; the captions are
a template filled with the digit's name ("a photo of the digit three."). The model is open_clip's own CLIP class,
trained with the contrastive loss in which every caption of the same digit counts as a match.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save_file
from torch import Tensor

from must.api.demo import CLASSES, TEMPLATES
from must.config.work import MODEL_FOLDER_FILE

CANVAS = 64  # pixels; digits are drawn at this size, then distorted and reduced to IMAGE_SIZE
IMAGE_SIZE = 32
STROKES = (0, 1, 3, 4)  # extra stroke width in canvas pixels: the same font from thin to a felt pen
HELD_OUT_FONTS = ("STIXGeneralItalic", "DejaVuSerif-Bold", "cmss10")  # measured on, not trained on

# Fonts whose glyphs at the code points of 0-9 are ordinary digits.
MATPLOTLIB_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSans-Oblique", "DejaVuSansMono"),
    *("DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique", "DejaVuSansMono-Oblique", "DejaVuSerif"),
    *("DejaVuSerif-Bold", "DejaVuSerif-BoldItalic", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol"),
    *("STIXGeneralBolIta", "STIXGeneralItalic", "cmb10", "cmr10", "cmss10", "cmti10", "cmtt10"),
)

SANS_SERIF = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSans-Oblique", "cmss10", "Pillow")

MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "quick_gelu": False,
    "vision_cfg": {"image_size": IMAGE_SIZE, "patch_size": 8, "width": 128, "layers": 4, "head_width": 32},
    "text_cfg": {"context_length": 24, "vocab_size": 0, "width": 64, "heads": 2, "layers": 2},
}
# A black background stays black where an augmentation has to fill in pixels: the fill colour is the mean.
PREPROCESS_CONFIG: dict[str, Any] = {
    "size": IMAGE_SIZE,
    "mean": [0.0, 0.0, 0.0],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for the config, the weights and the tokenizer"
    )
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pretrain(args.output, args.steps, args.batch_size, args.lr, args.seed)


def pretrain(output: Path, steps: int, batch_size: int, lr: float, seed: int) -> dict[str, float]:
    """Trains the model and writes ``open_clip_config.json``, ``open_clip_model.safetensors`` and ``bpe.txt.gz``.

    Returns the learned logit scale and the accuracy on renderings of the held-out fonts.
    """
    torch.manual_seed(seed)
    output.mkdir(parents=True, exist_ok=True)
    captions = [template.format(name) for template in TEMPLATES for name in CLASSES]
    merges = learn_merges(captions)
    bpe_path = output / "bpe.txt.gz"
    with open(bpe_path, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file:
        file.write("\n".join(["#version: must-digits", *merges]).encode())
    context_length = MODEL_CONFIG["text_cfg"]["context_length"]
    tokenizer = open_clip.SimpleTokenizer(bpe_path=str(bpe_path), context_length=context_length)
    config = json.loads(json.dumps(MODEL_CONFIG))
    config["text_cfg"]["vocab_size"] = tokenizer.vocab_size
    model = open_clip.CLIP(**config)
    tokens = tokenizer(captions).view(len(TEMPLATES), len(CLASSES), -1)
    assert (tokens[..., -1] == 0).all(), "a caption does not fit into the context"

    glyphs, fonts = draw_glyphs()
    held_out = torch.tensor([font in HELD_OUT_FONTS for font in fonts])
    train_glyphs, test_glyphs = glyphs[~held_out], glyphs[held_out]
    decay = [p for p in model.parameters() if p.ndim > 1]
    no_decay = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": no_decay, "weight_decay": 0.0}], lr=lr
    )
    generator = torch.Generator().manual_seed(seed)
    started = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        images, digits = render(train_glyphs, batch_size, generator)
        template = torch.randint(len(TEMPLATES), (batch_size,), generator=generator)
        image_features, text_features, scale = model(images, tokens[template, digits])
        logits = scale * image_features @ text_features.T
        match = (digits[:, None] == digits[None, :]).float()
        match /= match.sum(1, keepdim=True)
        loss = (F.cross_entropy(logits, match) + F.cross_entropy(logits.T, match)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(
                f"step {step} loss {loss.item():.4f} logit scale {scale.item():.2f} "
                f"{time.perf_counter() - started:.0f} s",
                flush=True,
            )

    model.eval()
    with torch.no_grad():
        text = F.normalize(
            F.normalize(model.encode_text(tokens.flatten(0, 1)), dim=-1).view(len(TEMPLATES), len(CLASSES), -1).mean(0),
            dim=-1,
        )
        images, digits = render(test_glyphs, 2000, torch.Generator().manual_seed(seed + 1))
        accuracy = (
            ((F.normalize(model.encode_image(images), dim=-1) @ text.T).argmax(1) == digits).float().mean().item()
        )
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items() if name != "attn_mask"}
    save_file(weights, output / "open_clip_model.safetensors")
    (output / MODEL_FOLDER_FILE).write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS_CONFIG}, indent=1) + "\n"
    )
    result = {"logit_scale": model.logit_scale.exp().item(), "held_out_font_accuracy": accuracy}
    print(json.dumps(result))
    return result


def learn_merges(captions: list[str], limit: int = 200) -> list[str]:
    """Byte-pair merges (most frequent pair first) for the words of the captions, in open_clip's merge file format."""
    words = Counter(
        word for caption in captions for word in caption.lower().replace(".", " ").replace(",", " ").split()
    )
    spelled = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[str] = []
    while len(merges) < limit:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in spelled.items():
            for pair in itertools.pairwise(symbols):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(" ".join(best))
        for word, symbols in spelled.items():
            merged: list[str] = []
            for symbol in symbols:
                if merged and (merged[-1], symbol) == best:
                    merged[-1] += symbol
                else:
                    merged.append(symbol)
            spelled[word] = merged
    return merges


def draw_glyphs() -> tuple[Tensor, list[str]]:
    """Every digit in every font and stroke width, white on black: [fonts x strokes, 10, 1, CANVAS, CANVAS] in 0..1."""
    from matplotlib import get_data_path

    folder = Path(get_data_path()) / "fonts" / "ttf"
    fonts: dict[str, Any] = {name: ImageFont.truetype(str(folder / f"{name}.ttf"), 46) for name in MATPLOTLIB_FONTS}
    fonts["Pillow"] = ImageFont.load_default(46)
    glyphs, names = [], []
    for name, font in fonts.items():
        # Many people write a one as a single stroke: with sans-serif fonts also the letter l is drawn as a one.
        alphabets = ("0123456789", "0l23456789") if name in SANS_SERIF else ("0123456789",)
        for stroke, alphabet in itertools.product(STROKES, alphabets):
            glyphs.append(torch.stack([draw_digit(character, font, stroke) for character in alphabet]))
            names.append(name)
    return torch.stack(glyphs), names


def draw_digit(text: str, font: Any, stroke: int) -> Tensor:
    picture = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(picture).text((CANVAS / 2, CANVAS / 2), text, fill=255, font=font, anchor="mm", stroke_width=stroke)
    box = picture.getbbox()
    assert box is not None
    x0, y0, x1, y1 = box  # centre the ink itself, not the font's line box
    centred = Image.new("L", (CANVAS, CANVAS))
    centred.paste(picture.crop((x0, y0, x1, y1)), ((CANVAS - x1 + x0) // 2, (CANVAS - y1 + y0) // 2))
    return torch.from_numpy(np.asarray(centred, dtype=np.float32) / 255)[None]


def render(glyphs: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` distorted digits: (normalised images [count, 3, 32, 32], digits [count])."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    digits = torch.randint(10, (count,), generator=generator)
    pictures = glyphs[torch.randint(len(glyphs), (count,), generator=generator), digits]
    angle, shear = uniform(-0.25, 0.25), uniform(-0.3, 0.3)
    width, height = uniform(0.45, 1.0), uniform(0.5, 0.75)  # shares of the canvas that the ink fills
    cos, sin = angle.cos(), angle.sin()
    rotation = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], 1)
    skew = torch.stack([torch.stack([width, shear], -1), torch.stack([torch.zeros(count), height], -1)], 1)
    theta = torch.cat([rotation @ skew, uniform(-0.08, 0.08, 2, 1)], -1)
    grid = F.affine_grid(theta, [count, 1, CANVAS, CANVAS], align_corners=False)
    bend = uniform(-0.12, 0.12, 2, 4, 4)  # a smooth random deformation
    bend = F.interpolate(bend, size=(CANVAS, CANVAS), mode="bicubic", align_corners=True)
    pictures = F.grid_sample(pictures, grid + bend.permute(0, 2, 3, 1), align_corners=False)
    small = int(torch.randint(8, 14, (1,), generator=generator))  # a coarse scan, as of a small camera or sensor
    pictures = F.interpolate(pictures, size=(small, small), mode="area")
    pictures = F.interpolate(pictures, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", align_corners=False)
    pictures = pictures * uniform(0.6, 1.3, 1, 1, 1) + uniform(0, 0.08, 1, 1, 1) * torch.randn(
        pictures.shape, generator=generator
    )
    mean, std = (torch.tensor(PREPROCESS_CONFIG[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    return (pictures.clamp(0, 1).expand(-1, 3, -1, -1) - mean) / std, digits


if __name__ == "__main__":
    main()
