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
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pts.algorithm.question import search_question
    from pts.algorithm.selection import select_pairs
    from pts.config import SamplingConfig, SearchConfig
    from pts.data.codelion import read_codelion
    from pts.data.pairs import pairs_dataset, read_pairs, write_pairs
    from pts.data.problems import Problems, load_problems
    from pts.engines.base import Engine, SampleRequest
    from pts.engines.registry import make_engine
    from pts.engines.server.endpoints import RetryPolicy
    from pts.engines.server.engine import ServerEngine
    from pts.engines.tabular import TabularEngine
    from pts.engines.transformers.engine import TransformersEngine
    from pts.engines.vllm import VLLMEngine
    from pts.errors import (
        ConfigError,
        DataError,
        EngineError,
        JournalError,
        MissingExtra,
        PTSError,
        VerifierError,
    )
    from pts.planning.plan import Plan, plan_search
    from pts.report.page import write_report
    from pts.runtime.export import export_dataset
    from pts.runtime.results import read_results
    from pts.runtime.search import RunSummary, SearchRun, search
    from pts.types import (
        CandidatePair,
        CompletionResult,
        Cost,
        Counts,
        Estimate,
        Grade,
        Ids,
        LogprobQuery,
        Message,
        PivotalStep,
        PivotalToken,
        Problem,
        QuestionResult,
        Rollout,
        RolloutQuery,
        Search,
        StepQuery,
        TokenDistribution,
        TokenPair,
        Verdict,
    )
    from pts.verifiers.base import Verifier
    from pts.verifiers.callable import CallableVerifier
    from pts.verifiers.choice import ChoiceVerifier
    from pts.verifiers.code.verifier import CodeVerifier
    from pts.verifiers.exact import ExactVerifier
    from pts.verifiers.math.verifier import MathVerifier
    from pts.verifiers.registry import make_verifier

_HOMES = {
    "pts.runtime.search": ("SearchRun", "RunSummary", "search"),
    "pts.config": ("SamplingConfig", "SearchConfig"),
    "pts.engines.base": ("Engine", "SampleRequest"),
    "pts.engines.registry": ("make_engine",),
    "pts.engines.server.engine": ("ServerEngine",),
    "pts.engines.server.endpoints": ("RetryPolicy",),
    "pts.engines.tabular": ("TabularEngine",),
    "pts.engines.transformers.engine": ("TransformersEngine",),
    "pts.engines.vllm": ("VLLMEngine",),
    "pts.errors": (
        *("ConfigError", "DataError", "EngineError", "JournalError", "MissingExtra"),
        *("PTSError", "VerifierError"),
    ),
    "pts.algorithm.question": ("search_question",),
    "pts.algorithm.selection": ("select_pairs",),
    "pts.planning.plan": ("Plan", "plan_search"),
    "pts.report.page": ("write_report",),
    "pts.data.pairs": ("pairs_dataset", "read_pairs", "write_pairs"),
    "pts.runtime.results": ("read_results",),
    "pts.data.codelion": ("read_codelion",),
    "pts.runtime.export": ("export_dataset",),
    "pts.data.problems": ("Problems", "load_problems"),
    "pts.types": (
        *("StepQuery", "CandidatePair", "Cost", "Counts", "Estimate", "Ids", "Grade"),
        *("Message", "Rollout", "CompletionResult", "PivotalStep", "PivotalToken", "Problem"),
        *(
            "QuestionResult",
            "TokenDistribution",
            "RolloutQuery",
            "LogprobQuery",
            "Search",
            "TokenPair",
            "Verdict",
        ),
    ),
    "pts.verifiers.base": ("Verifier",),
    "pts.verifiers.callable": ("CallableVerifier",),
    "pts.verifiers.choice": ("ChoiceVerifier",),
    "pts.verifiers.code.verifier": ("CodeVerifier",),
    "pts.verifiers.exact": ("ExactVerifier",),
    "pts.verifiers.math.verifier": ("MathVerifier",),
    "pts.verifiers.registry": ("make_verifier",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "CallableVerifier",
    "CandidatePair",
    "ChoiceVerifier",
    "CodeVerifier",
    "CompletionResult",
    "ConfigError",
    "Cost",
    "Counts",
    "DataError",
    "Engine",
    "EngineError",
    "Estimate",
    "ExactVerifier",
    "Grade",
    "Ids",
    "JournalError",
    "LogprobQuery",
    "MathVerifier",
    "Message",
    "MissingExtra",
    "PTSError",
    "PivotalStep",
    "PivotalToken",
    "Plan",
    "Problem",
    "Problems",
    "QuestionResult",
    "RetryPolicy",
    "Rollout",
    "RolloutQuery",
    "RunSummary",
    "SampleRequest",
    "SamplingConfig",
    "Search",
    "SearchConfig",
    "SearchRun",
    "ServerEngine",
    "StepQuery",
    "TabularEngine",
    "TokenDistribution",
    "TokenPair",
    "TransformersEngine",
    "VLLMEngine",
    "Verdict",
    "Verifier",
    "VerifierError",
    "export_dataset",
    "load_problems",
    "make_engine",
    "make_verifier",
    "pairs_dataset",
    "plan_search",
    "read_codelion",
    "read_pairs",
    "read_results",
    "search",
    "search_question",
    "select_pairs",
    "write_pairs",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pts' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
