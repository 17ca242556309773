"""Where a recording comes from: what a reader must know to make it again or to doubt it."""

import datetime
import os
import platform
import shutil
import subprocess

import torch

from ..machines import find_machine, machine_names
from .precision import allows_tf32


def provenance(device: torch.device) -> dict[str, str]:
    """Return what was there when a recording was made on *device*, as notes of a trace."""
    notes = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    if device.type != "cuda":
        return notes
    properties = torch.cuda.get_device_properties(device)
    setting = allocator_setting() or "default"
    cudnn = torch.backends.cudnn
    return notes | {
        "gpu": f"{properties.name}, {properties.total_memory} bytes",
        "driver": _driver(),
        "cuda": str(torch.version.cuda),
        "cudnn": str(cudnn.version()),
        "cudnn_settings": f"benchmark={cudnn.benchmark}, deterministic={cudnn.deterministic}",
        "tf32": f"convolutions={allows_tf32('conv')}, matrix products={allows_tf32('matmul')}",
        "allocator": f"{torch.cuda.get_allocator_backend()}, settings: {setting}",
    }


def allocator_setting() -> str:
    """Return how the environment sets torch's allocator, "" if it does not."""
    environ = os.environ
    return environ.get("PYTORCH_ALLOC_CONF") or environ.get("PYTORCH_CUDA_ALLOC_CONF") or ""


def machine_of(device: torch.device) -> str:
    """Return the name of the built-in machine whose GPU *device* is, "" if there is none."""
    if device.type != "cuda":
        return ""
    gpu = torch.cuda.get_device_properties(device).name
    return next((name for name in machine_names() if find_machine(name).gpu == gpu), "")


def _driver() -> str:
    """Return the version of the GPU's driver: torch does not know it, its tool does."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return found.stdout.split("\n")[0].strip() or "unknown"
