"""Which executor `pts search` runs on, from its options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pts.config import parse_settings
from pts.errors import ConfigError
from pts.runtime.executors import executor_named
from pts.runtime.ray_actors import RayActors, import_ray


def chosen_executor(name: str, **of_ray: Any) -> str | Callable[..., Any]:
    """What `pts.search` takes as `executor`; `of_ray` are fields of `RayActors`, None if not given.

    Raises ConfigError for an unknown name, a wrong value and for options of Ray without it, and
    MissingExtra if Ray is not installed, all before anything is loaded.
    """
    given = {field: value for field, value in of_ray.items() if value is not None}
    if name == "ray":
        import_ray()
        return parse_settings(RayActors, given, "")
    executor_named(name)
    options = {"address": "--ray-address"}
    stray = [options.get(field, f"--{field.replace('_', '-')}") for field in given]
    if stray:
        raise ConfigError(
            *(f"{option} is for Ray: give --executor ray as well" for option in stray)
        )
    return name
