"""CLIP's byte-pair tokenizer and its preprocessing as transformers' files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from must.data.image.preprocess import FILTERS, Preprocess

BEGIN, END = "<|startoftext|>", "<|endoftext|>"  # open_clip calls them <start_of_text> and <end_of_text>


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """vocab.json, merges.txt and their settings, of open_clip's SimpleTokenizer."""
    renamed = {tokenizer.sot_token_id: BEGIN, tokenizer.eot_token_id: END}
    vocabulary = {renamed.get(number, word): number for word, number in tokenizer.encoder.items()}
    write_json(folder / "vocab.json", vocabulary)
    merges = [" ".join(pair) for pair in tokenizer.bpe_ranks if len(pair) == 2]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
    write_json(folder / "special_tokens_map.json", special)
    settings = {"model_max_length": tokenizer.context_length, "do_lower_case": True, "tokenizer_class": "CLIPTokenizer"}
    write_json(folder / "tokenizer_config.json", special | settings)


def write_preprocessing(preprocess: Preprocess, folder: Path) -> None:
    """preprocessor_config.json."""
    square = {"height": preprocess.size, "width": preprocess.size}
    squash = preprocess.resize_mode == "squash"
    values = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if squash else {"shortest_edge": preprocess.size},
        "resample": int(FILTERS[preprocess.interpolation]),
        "do_center_crop": not squash,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
    write_json(folder / "preprocessor_config.json", values)


def write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")
