"""What a plan knows of a device: memory, bandwidth and arithmetic, as its data sheet tells."""

from __future__ import annotations

import os
from dataclasses import dataclass

from align.errors import RecipeError
from pts.errors import did_you_mean

CPU = "cpu"
CORE_FLOPS = 70e9
"""Of a CPU core: matrix products in float32 of PyTorch on AVX2 cores (62 to 79e9 measured)."""
CORE_BANDWIDTH = 10e9
"""Of a CPU core, bytes a second: what one core of a server reads from DDR4, about."""


@dataclass(frozen=True, slots=True)
class Device:
    """One device. GB are 10⁹ bytes throughout."""

    name: str
    memory: float
    """Bytes."""
    bandwidth: float
    """Bytes a second between its memory and its cores."""
    flops: dict[str, float]
    """Dense matrix products, floating point operations a second, by the type of the numbers;
    float32 without TF32, as PyTorch has it by default."""
    source: str


def _gpu(name: str, memory: float, bandwidth: float, half: float, single: float) -> Device:
    flops = {"bfloat16": half * 1e12, "float32": single * 1e12}
    sheet = f"NVIDIA's data sheet of the {name}"
    return Device(name, memory * 1e9, bandwidth * 1e9, flops, sheet)


GPUS = {
    "h200": _gpu("H200 SXM", 141, 4800, 989, 67),
    "h100": _gpu("H100 SXM 80GB", 80, 3350, 989, 67),
    "a100-80": _gpu("A100 SXM 80GB", 80, 2039, 312, 19.5),
    "a100-40": _gpu("A100 SXM 40GB", 40, 1555, 312, 19.5),
    "l40s": _gpu("L40S", 48, 864, 362, 91.6),
}


def device_named(name: str) -> Device:
    """A device by its name; `cpu` is this machine.

    Raises:
        RecipeError: no such device.
    """
    if name == CPU:
        return _this_machine()
    if name not in GPUS:
        known = [*GPUS, CPU]
        hint = did_you_mean(name, known) or f"; known: {', '.join(known)}"
        raise RecipeError(f"--gpu: no device {name!r}{hint}")
    return GPUS[name]


def _this_machine() -> Device:
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = here or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # bfloat16 is emulated: 65 times slower than float32 on a machine without AMX.
    flops = {"float32": cores * CORE_FLOPS, "bfloat16": cores * CORE_FLOPS / 65}
    return Device(
        f"CPU, cores of this machine: {cores}", memory, cores * CORE_BANDWIDTH, flops,
        "measured on an AVX2 core: float32 products; a DDR4 core's share of the bandwidth",
    )  # fmt: skip
