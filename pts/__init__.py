"""Pivotal token search: find the tokens that decide whether a model's answer succeeds.

    import pts

    sampling = pts.SamplingConfig(temperature=0.7, max_new_tokens=128)
    engine = pts.TransformersEngine.load("models/mine", sampling)
    problems = pts.load_problems("sums.jsonl", chat=True)
    verifier = pts.ExactVerifier(r"The answer is (-?\\d+)\\.")
    run = pts.search(problems, engine, verifier, pts.SearchConfig(p_gap=0.2), output="runs/sums")
    for pair in run.pairs:
        rejected, chosen = engine.token_texts((pair.rejected, pair.chosen))
        print(f"{pair.problem_id}: {chosen!r} over {rejected!r}, p differs by {pair.gap.mean:.2f}")
    pts.write_report("runs/sums")

Names are imported when they are first used: `import pts` loads neither torch nor numpy.
`__init__.pyi` beside this file lists them; a new one is a line there.
"""

from __future__ import annotations

from typing import Any

import lazy_loader

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _load(name)
