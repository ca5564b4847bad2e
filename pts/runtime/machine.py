"""What a worker gets of its machine: a share of the cores, and with it its threads; a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess

THREADS = "OMP_NUM_THREADS"
DEVICES = "CUDA_VISIBLE_DEVICES"
END_SECONDS = 10.0
"""How long a worker may take to end after its last order."""


def core_share(workers: int) -> int:
    """Cores of this process for each of so many workers, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (cores or 1) // workers)


def worker_environment(number: int, workers: int) -> dict[str, str]:
    """Variables of worker `number` of this machine: its threads, one CUDA device in turn.

    A number of threads that is set already stays. CUDA was not run with several devices.
    """
    set_to = {}
    if THREADS not in os.environ:
        set_to[THREADS] = str(core_share(workers))
    devices = _devices()
    if devices:
        set_to[DEVICES] = devices[number % len(devices)]
    return set_to


def _devices() -> list[str]:
    """CUDA devices as CUDA_VISIBLE_DEVICES names them, found without touching CUDA."""
    listed = os.environ.get(DEVICES)
    if listed is not None:
        return [name for name in listed.split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in told.splitlines()))]
