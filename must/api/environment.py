"""`must env`: what a bug report has to say of the machine. No name, no path, no credential."""

import os
import platform
import shutil
import subprocess
from importlib import metadata

import must
from must.base.cores import cores

PACKAGES = (
    "torch", "torchvision", "open_clip_torch", "timm", "transformers", "numpy", "pillow", "simplejpeg", "safetensors",
    "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "uvicorn", "httptools", "pyarrow",
    "google-cloud-storage", "boto3", "azure-storage-blob", "kfp", "kfp-server-api", "kubeflow", "kubernetes",
    "mlflow-skinny", "tensorboard",
)  # fmt: skip
SETTINGS = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MUST_START_METHOD")
TIMEOUT = 20  # seconds: a broken driver answers nothing


def environment() -> str:
    """Versions, system and devices, a line each, without packages that are not installed. Imports torch, if there."""
    rows = {
        "must": must.__version__ + (f" ({revision})" if (revision := os.environ.get("MUST_GIT_REVISION")) else ""),
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.platform()} {platform.machine()}",
        "cores": str(cores()),
        "memory": memory(),
        "GPUs": gpus(),
    }
    rows |= {name: value for name in SETTINGS if (value := os.environ.get(name))}
    rows |= {name: version for name in PACKAGES if (version := version_of(name))}
    return "\n".join(f"{name:22}{value}" for name, value in rows.items())


def version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (AttributeError, ValueError, OSError):  # no Unix
        return "unknown"


def gpus() -> str:
    """What the driver says, and whether torch can use it: the two differ where a bug is."""
    said = "none that nvidia-smi knows"
    if program := shutil.which("nvidia-smi"):
        question = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run([program, *question], capture_output=True, text=True, timeout=TIMEOUT, check=False)
            said = "; ".join((done.stdout or done.stderr or "nvidia-smi says nothing").split("\n")).strip("; ")
        except (OSError, subprocess.TimeoutExpired) as error:
            said = f"nvidia-smi failed ({type(error).__name__})"
    try:
        import torch
    except ImportError:
        return said
    except Exception as error:  # a torch that does not load may be what the report is about
        return f"{said}; torch does not load: {type(error).__name__}"
    return f"{said}; torch sees {torch.cuda.device_count()}, built for CUDA {torch.version.cuda or '(none)'}"
