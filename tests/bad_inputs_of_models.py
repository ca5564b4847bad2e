"""Bad inputs where models are asked: judges, generators, defects, synthesis, refusals."""

from __future__ import annotations

from typing import Any

from tests.bad_inputs import Place, bad

URL = "http://localhost:1"
JUDGE = {"url": URL, "model": "judge"}
ANSWERS = {"doc_id": 0, "doc": {"question": "Who?"}, "filtered_resps": ["a", "b"]}
SCORES = {"correct": [0, 0], "incorrect": [1, 1], "not_attempted": [0, 0]}


def judged(kind: str = "full_dpo", judge: Any = JUDGE, **more: Any) -> Any:
    """A recipe whose stage has that judge."""
    return lambda p: p.check(stages=[kind], **{kind: {"judge": judge, **more}})


def judge(**more: Any) -> Any:
    return judged(judge={**JUDGE, **more})


def generators(*given: Any, kind: str = "full_dpo") -> Any:
    return judged(kind, generators=list(given))


def synthesize(p: Place, *settings: str, rows: Any = ({"prompt": "a?"},)) -> None:
    """`align synthesize` with sound settings but for those that are given."""
    sound = ("step=rewrite", f"engine=chat:{URL}", "options={model: m}")
    told = [word for setting in (*sound, *settings) for word in ("--set", setting)]
    p.align("synthesize", p.rows(*rows), "--output", p / "out", *told)


def defects(p: Place, *words: object, prompts: Any = ({"prompt": "a?"},), **more: Any) -> None:
    """`align defects` with a sound judge but for the keys that are given."""
    told = ", ".join(f"{key}: {value}" for key, value in {**JUDGE, **more}.items())
    p.align(
        "defects", p.shared.model, p.rows(*prompts), "--judge", f"{{{told}}}", "--output",
        p / "out", *words,
    )  # fmt: skip


def refusals(p: Place, *settings: str, rows: Any = ({**ANSWERS, **SCORES},)) -> None:
    """`align refusals` on sound answers but for those that are given."""
    told = [word for setting in settings for word in ("--set", setting)]
    file = p.rows(*rows, name="samples_x.jsonl")
    p.align("refusals", file, "--output", p / "out", *told)


ASKED_MODELS = [
    bad("judge of nothing", judged(judge={}), "full_dpo.judge: give either url (with model) or"),
    bad("judge of two kinds", judge(path="x"), "give either url (with model) or path"),
    bad("judge without a name", judged(judge={"url": URL}), "model is missing"),
    bad("judge's unknown key", judge(modle="x"), "modle: no such key", "did you mean 'model'?"),
    bad(
        "judge's key in the recipe",
        judge(key_variable="sk-123"),
        "key_variable: must be the name of an environment variable",
        "never write a key",
    ),
    bad(
        "judge's key not set",
        judge(key_variable="NO_SUCH_KEY"),
        "the environment variable NO_SUCH_KEY is not set",
    ),
    bad("judge's URL", judge(url="localhost"), "full_dpo.judge.url: 'localhost' is no base URL"),
    bad("judge's folder", judged(judge={"path": "./none"}), "'./none' holds no config.json"),
    bad("local judge's timeout", judged(judge={"path": "x", "timeout": 3}), "timeout has no place"),
    bad("judge's attempts", judge(attempts=0), "full_dpo.judge.attempts", "greater than or equal"),
    bad(
        "generators without a judge",
        lambda p: p.check(
            stages=["rejection_sft"],
            rejection_sft={"generators": [{"name": "a", "engine": "transformers:x"}]},
        ),
        "rejection_sft: generators needs a judge",
    ),
    bad(
        "generators of one name",
        generators(
            {"name": "a", "engine": "transformers:x"},
            {"name": "a", "engine": "transformers:y"},
            kind="rejection_sft",
        ),
        "generators: each name may stand once",
    ),
    bad(
        "generator named as the policy",
        generators({"name": "policy", "engine": "transformers:x"}),
        "generators: each name may stand once",
    ),
    bad(
        "generator of no folder",
        generators({"name": "a", "engine": "transformers:./none"}, kind="rejection_sft"),
        "rejection_sft.generators.a: ",
    ),
    bad(
        "generator's chat without a name",
        generators({"name": "a", "engine": f"chat:{URL}"}),
        "options.model is missing",
    ),
    bad("best of one", judged("rejection_sft", judged_answers=1), "judged_answers"),
    bad(
        "limit of rows beside a judge",
        judged("rejection_sft", max_per_question=2),
        "max_per_question has no place beside a judge",
    ),
    bad(
        "safety rows without a side",
        lambda p: p.align(
            "data",
            p.recipe(
                model={"path": "builtin:phi-nano"},
                stages=["full_dpo"],
                full_dpo={"sources": [{"path": str(p.rows({"prompt": "a", "chosen": "b"}))}]},
            ),
        ),
        "rows.jsonl, line 1",
    ),
    bad("synthesis of no step", lambda p: synthesize(p, "step=rewrit"), "step"),
    bad(
        "synthesis with another step's key",
        lambda p: synthesize(p, "quality=4"),
        "quality means nothing where step is rewrite",
    ),
    bad(
        "refusals sampled",
        lambda p: synthesize(p, "step=refusal", "samples=2"),
        "samples means nothing where step is refusal",
    ),
    bad("rating out of range", lambda p: synthesize(p, "step=bogus", "quality=6"), "quality"),
    bad(
        "synthesis of no column",
        lambda p: synthesize(p, "column=question"),
        "rows.jsonl, line 1: column 'question' is missing",
    ),
    bad(
        "synthesis without the reference",
        lambda p: synthesize(p, "step=refusal", "reference=answer"),
        "line 1: column 'answer' (the reference) is missing",
    ),
    bad("synthesis of no rows", lambda p: synthesize(p, rows=()), "holds no rows"),
    bad("synthesis by no engine", lambda p: synthesize(p, "engine=gpt"), "engine: no engine 'gpt'"),
    bad(
        "synthesis into others' files",
        lambda p: (p.write("out/thesis.txt", ""), synthesize(p)),
        "--output: ",
    ),
    bad("defects by no scale", lambda p: defects(p, "--set", "threshold=8"), "threshold"),
    bad(
        "defects of greedy samples",
        lambda p: defects(p, "--set", "samples=2", "--set", "temperature=0"),
        "samples: several greedy replies are one",
    ),
    bad("defects by a judge of no URL", lambda p: defects(p, url="nowhere"), "'nowhere'"),
    bad(
        "prompts without a column",
        lambda p: defects(p, prompts=({"text": "a"},)),
        "rows.jsonl, line 1: column 'prompt' is missing",
    ),
    bad(
        "labels without a severity",
        lambda p: defects(
            p,
            "--labelled",
            p.rows(
                {
                    "messages": [
                        {"role": "user", "content": "a"},
                        {"role": "assistant", "content": "b"},
                    ]
                },
                name="labels.jsonl",
            ),
        ),
        "labels.jsonl, line 1",
    ),
    bad(
        "refusals of no results",
        lambda p: p.align("refusals", p / "no", "--output", p / "out"),
        "no: does not exist",
        "align benchmark",
    ),
    bad(
        "refusals of other scores",
        lambda p: refusals(p, rows=(ANSWERS,)),
        "samples_x.jsonl, line 1: no answers of a benchmark with score: simpleqa",
    ),
    bad(
        "refusals of one answer",
        lambda p: refusals(
            p,
            rows=(
                {
                    **ANSWERS,
                    "filtered_resps": ["a"],
                    **{key: value[:1] for key, value in SCORES.items()},
                },
            ),
        ),
        "line 1: 1 answer to a question tells little",
    ),
    bad("refusals of no answers", lambda p: refusals(p, rows=()), "holds no answers"),
    bad("refusals of an open template", lambda p: refusals(p, "bogus='{{ bogus'"), "bogus: "),
    bad(
        "refusals of no column",
        lambda p: refusals(p, "bogus_refusal='{{ no }}'"),
        "samples_x.jsonl, line 1: bogus_refusal: 'no' is undefined",
    ),
    bad("refusals of none", lambda p: refusals(p, "refusals=[]"), "refusals"),
    bad("refusals above all shares", lambda p: refusals(p, "usually=1"), "usually"),
]
