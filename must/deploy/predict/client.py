"""A small client of a served model: python -m must.deploy.predict.client http://HOST:8000 NAME IMAGE...

Needs numpy and Pillow, no torch and no Triton package: it speaks the open inference protocol (v2) with raw tensors,
which Triton and KServe understand. Triton's model configuration says how images are prepared.
"""

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from must.base.text import printable
from must.data.image.decode import decode
from must.data.image.preprocess import EvalView, Preprocess, normalize_pixels


class Client:
    """A model NAME at a server's URL."""

    def __init__(self, url: str, name: str, timeout: float = 30) -> None:
        self.base, self.timeout = f"{url.rstrip('/')}/v2/models/{name}", timeout
        config = json.loads(self._request("/config"))
        self.preprocess = Preprocess.from_dict(json.loads(config["parameters"]["preprocess"]["string_value"]))
        self.takes_pixels = config["input"][0]["data_type"] == "TYPE_UINT8"

    def __call__(self, files: list[Path], top: int = 1) -> list[list[tuple[str, float]]]:
        """The `top` classes of each image file with their probabilities, best first."""
        view = EvalView(self.preprocess)
        pixels = np.stack([view(decode(path.read_bytes())) for path in files])
        inputs = pixels if self.takes_pixels else normalize_pixels(pixels, self.preprocess)
        header = {
            "inputs": [
                {
                    "name": "image",
                    "shape": list(inputs.shape),
                    "datatype": "UINT8" if self.takes_pixels else "FP32",
                    "parameters": {"binary_data_size": inputs.nbytes},
                }
            ],
            "outputs": [{"name": "probability", "parameters": {"classification": top, "binary_data": False}}],
        }
        answer = json.loads(self._request("/infer", json.dumps(header).encode(), inputs.tobytes()))
        found = [parse(text) for text in answer["outputs"][0]["data"]]
        return [found[i : i + top] for i in range(0, len(found), top)]

    def _request(self, path: str, header: bytes = b"", body: bytes = b"") -> bytes:
        request: Any = self.base + path
        if header:
            names = {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"}
            request = urllib.request.Request(self.base + path, header + body, names)
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            return answer.read()


def parse(text: str) -> tuple[str, float]:
    """Triton's "probability:number:label"; a label may hold colons itself."""
    probability, _, label = text.split(":", 2)
    return label, float(probability)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: python -m must.deploy.predict.client http://HOST:8000 NAME IMAGE...")
    paths = [Path(name) for name in sys.argv[3:]]
    for path, ((label, probability),) in zip(paths, Client(sys.argv[1], sys.argv[2])(paths), strict=True):
        print(printable(f"{path}  {label} {100 * probability:.1f}%"))
