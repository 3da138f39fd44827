"""What a run ran on: versions, commit, command line and hardware, for ``environment.json``."""

import os
import platform
import subprocess
import sys
import time
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "diptych", "torch", "numpy", "accelerate", "safetensors", "tokenizers", "transformers", "diffusers", "datasets",
    "webdataset", "pillow",
)  # fmt: skip


def describe_environment(num_processes: int = 1, device: torch.device | None = None) -> dict[str, Any]:
    """One session of a run, JSON-able: what is needed to run it again and to understand its speed."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv else [],
        "versions": versions(),
        "commit": git_commit(Path(__file__).parent),
        "hardware": {
            "platform": platform.platform(terse=True),
            "processor": _processor(),
            "cpu_cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "memory_gib": _memory_gib(),
            "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
            "device": str(device) if device is not None else None,
            "processes": num_processes,
        },
    }


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Python and the packages that decide what a run computes, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit(folder: Path) -> str | None:
    """The commit the code is at, with ``+changes`` where files differ from it; None outside of a repository."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changes else commit


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _processor() -> str:
    """The processor's name on Linux, else what the platform says."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None
