"""Who searches when several workers do, by name: `pts search --executor NAME`.

An executor of your own joins by one line: `EXECUTORS["mine"] = MyLaunch`, a class that is called
like `ProcessLaunch` and has its methods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pts.errors import ConfigError, did_you_mean
from pts.runtime.processes import ProcessLaunch
from pts.runtime.ray_actors import RayActors

EXECUTORS: dict[str, Callable[..., Any]] = {
    "pool": ProcessLaunch,
    "ray": RayActors(),
}
"""Each is called with the function that a worker runs, the one that makes an engine, the search's
settings and the number of workers; it returns what `pts.runtime.leasing.Launch` describes."""


def executor_named(name: str) -> Callable[..., Any]:
    """The executor of that name. ConfigError if there is none."""
    if name not in EXECUTORS:
        known = ", ".join(EXECUTORS)
        raise ConfigError(f"no executor {name!r}{did_you_mean(name, EXECUTORS)}; give one: {known}")
    return EXECUTORS[name]
