"""For your own tests: is an engine right, and what does a search find on an engine?

`check_engine` tells the author of an engine what is wrong with it (`pts.testing.conformance`):

    print(check_engine(lambda sampling: MyEngine(model, sampling), problem))

`run_search` drives one search in plain Python (`pts.testing.driver`); with machines of chosen
difficulty (`pts.testing.shapes`) on `pts.engines.tabular.TabularEngine` the truth is known.
"""

from pts.testing.conformance import assert_engine_conforms, check_engine
from pts.testing.driver import run_search
from pts.testing.report import ConformanceReport, Finding

__all__ = [
    "ConformanceReport",
    "Finding",
    "assert_engine_conforms",
    "check_engine",
    "run_search",
]
