"""Real CLIPs at full size: loaded from a checkpoint file, a step, resumed to the bit, exported. Their weights are
random: the file is what open_clip itself saves, with the names and shapes of the whole model. Each family runs in a
process of its own, which says how much memory it took."""

import json
import os
import resource
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.common import ROOT, printed

NAMES = ["ViT-B-32-quickgelu"]
ALL = ["ViT-B-16", "ViT-L-14-quickgelu", "ViT-B-16-SigLIP", "ViT-B-32-SigLIP2-256", "PE-Core-B-16", "EVA02-B-16"]
if os.environ.get("REQUIRE_FULL_SIZE"):  # minutes each
    NAMES += ALL
MOST_MEMORY = 20e9  # bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_step_a_resume_and_an_export_at_full_size(name, digits, tmp_path, record_property):
    arguments = [name, digits.zero_shot, digits.shards, str(tmp_path)]
    command = [sys.executable, "-m", "tests.model.test_full_size", *arguments]
    found = json.loads(printed(*command, cwd=ROOT).splitlines()[-1])
    record_property("memory", found["memory"])
    assert found["missing"] == [] and found["memory"] < MOST_MEMORY
    assert found["same_step"] and found["same_bundle"] and found["agreement"] >= 0.99


def main(name: str, bundle: str, shards: str, folder: str) -> None:
    import open_clip
    from safetensors.torch import load_file, save_file

    from must.config import ExportConfig, TrainConfig
    from must.data.loader import TrainBatch
    from must.exporting.export import export
    from must.model.backbone import load_backbone
    from must.model.bundle import load_bundle, save_bundle
    from must.model.description import load_description
    from must.model.distributed import World
    from must.model.masked_vit import MaskedViT
    from must.training.step import MustStep

    torch.manual_seed(0)
    weights = Path(folder, "weights.safetensors")
    save_file(open_clip.create_model(name, pretrained=None).state_dict(), weights)
    backbone = load_backbone(name, str(weights), with_tokenizer=False)
    saved, ours = load_file(weights), backbone.clip.state_dict()
    missing = [key for key in ours if key not in saved or not torch.equal(ours[key], saved[key])]
    del saved, ours
    weights.unlink()

    classes = [f"class {number}" for number in range(10)]
    head = torch.nn.functional.normalize(torch.randn(backbone.architecture["embed_dim"], len(classes)), dim=0)
    model = MaskedViT(backbone.clip.visual, head)
    backbone.clip.visual = None
    values = {"batch_size": 2, "precision": "fp32", "confidence_threshold": 0.0}
    config, world = TrainConfig(shards="-", classifier="-", output="-", **values), World(0, 1, torch.device("cpu"))
    method = MustStep(model, backbone.preprocess, config, world, 10, 10)
    size = backbone.preprocess.size
    weak, strong = (torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8) for _ in range(2))
    batch = TrainBatch(weak, strong, torch.arange(5).expand(2, 5), torch.zeros(2, dtype=torch.int64), torch.tensor(0))
    method(0, [batch])
    checkpoint = Path(folder, "step.pt")
    torch.save(method.state_dict(), checkpoint)
    loss = method(1, [batch])["loss"]
    after = {key: value.clone() for key, value in model.state_dict().items()}
    method.load_state_dict(torch.load(checkpoint, weights_only=True, mmap=True))
    again = method(1, [batch])["loss"]
    same_step = torch.equal(loss, again) and all(torch.equal(after[key], v) for key, v in model.state_dict().items())
    checkpoint.unlink()

    description = replace(
        load_description(bundle), architecture=backbone.architecture, backbone=name, pretrained="", classes=classes,
        preprocess=backbone.preprocess.to_dict(), logit_factor=model.logit_factor,
    )  # fmt: skip
    del method, after
    output = str(Path(folder, "bundle"))
    save_bundle(output, model, description)
    loaded = load_bundle(output).model.state_dict()
    same_bundle = all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())
    del loaded, model
    check = export(ExportConfig(model=output, output=str(Path(folder, "onnx")), shards=shards, limit=8))["check"]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {"missing": missing, "memory": memory, "same_step": same_step, "same_bundle": same_bundle}
    print(json.dumps({**found, "agreement": check["agreement"]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
