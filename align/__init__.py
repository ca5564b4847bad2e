"""The three-stage post-train: SFT in ChatML, DPO on pivotal tokens, DPO on full-length pairs.

Command line: `align run phi-nano`. From Python:

    import align

    run = align.open_run("runs/phi-nano-seed0")
    run.table

and `align.pipeline.recipe.load_recipe`, `align.pipeline.run`. Names are imported when they are
first used; `__init__.pyi` beside this file lists them.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
