"""`pts pairs`: where pairs come from, and the forms they are written in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pts.data.pairs import pair_line, read_pairs
from pts.errors import ConfigError, DataError, printable
from pts.files import file_fault, replacing
from pts.runtime.run_folder import RunFolder
from pts.types import Ids, TokenPair

Form: TypeAlias = Literal["text", "jsonl", "hf"]

BEGINS: dict[Form, str] = {
    "jsonl": r'\{"problem_id":"([^"\\]|\\.)*","prompt_ids":\[[\d,]*\],"chosen":',
    "text": r".+ \(\w+\): ",
}
"""How a file of pairs begins."""

CONTEXT = 60
"""Characters of the text before a pair that are shown."""


@dataclass(frozen=True, slots=True)
class Found:
    """Pairs, the run they come from (None for a file), and how their tokens read."""

    pairs: Sequence[TokenPair]
    run: RunFolder | None
    text: Callable[[Ids], str]
    file: Path | None = None
    """Where they were read from, if that was a file."""


def read_source(
    source: str, fdr: float | None, p_gap: float | None, tokenizer: Path | None
) -> Found:
    """Pairs of a run folder (selected again), of a pairs.jsonl, or of a file of codelion/pts.

    Raises ConfigError for options that do not go with the source, DataError for what is wrong
    with it.
    """
    path = Path(source)
    if path.is_dir():
        from pts.runtime.search import reselect

        if tokenizer is not None:
            raise ConfigError(
                f"--tokenizer: {tokenizer} is for files; {source} is a run, which holds the texts "
                "of its tokens: leave it out"
            )
        run = RunFolder(path)
        return Found(reselect(run, fdr=fdr, p_gap=p_gap), run, run.text)
    if fdr is not None or p_gap is not None:
        raise ConfigError(
            f"{source}: --fdr and --p-gap select from a run's measurements; give the run's folder"
        )
    if not source.startswith("hf:") and not path.is_file():
        raise DataError(f"{source}: no such run folder or file")
    loaded: Any = None
    if tokenizer is not None:
        from pts.engines.text import load_tokenizer

        loaded = load_tokenizer(tokenizer, None)[0]

    def text(ids: Ids) -> str:
        if loaded is None:
            return "".join(f"⟨{token}⟩" for token in ids)
        return str(loaded.decode(list(ids)))

    return Found(_read_file(source, loaded), None, text, path if path.is_file() else None)


def _read_file(source: str, tokenizer: Any) -> list[TokenPair]:
    from pts.data.codelion import is_codelion, read_codelion

    if not source.startswith("hf:") and not is_codelion(source):
        pairs = read_pairs(Path(source))
        if tokenizer is not None:
            _check_ids(source, pairs, len(tokenizer))
        return pairs
    if tokenizer is None:
        raise ConfigError(
            f"{source}: holds text of codelion/pts, whose token ids have to be rebuilt; give "
            "--tokenizer, the folder of the model that is to be trained"
        )
    return read_codelion(source, tokenizer)


def _check_ids(source: str, pairs: Sequence[TokenPair], size: int) -> None:
    """Raise DataError for a token that the tokenizer does not have."""
    for number, pair in enumerate(pairs, 1):
        token = max(*pair.prompt_ids, pair.chosen, pair.rejected)
        if token >= size:
            raise DataError(
                f"{source}, line {number}: holds token {token}, but the tokenizer has {size:,}; "
                "give the --tokenizer of the model that the pairs are of"
            )


def write_form(found: Found, form: Form | None, output: Path | None) -> None:
    """Write pairs to a file, to a folder (`hf`), or to standard output.

    Without a form they are text on standard output and JSONL in a file.
    """
    form = form or ("text" if output is None else "jsonl")
    if form == "hf":
        from pts.runtime.export import export_dataset

        if output is None:
            raise ConfigError("--format hf writes a folder; name it with --output")
        export_dataset(found.pairs, output, found.run)
        return
    lines = _text_lines(found) if form == "text" else map(pair_line, found.pairs)
    if output is not None:
        if found.file is not None and output.exists() and output.samefile(found.file):
            raise ConfigError(f"--output: {output} is the file that is read; give another file")
        _check_file(output, form)
        output.parent.mkdir(parents=True, exist_ok=True)
    with nullcontext(sys.stdout) if output is None else replacing(output) as file:
        file.writelines(line + "\n" for line in lines)


def _check_file(output: Path, form: Form) -> None:
    """Raise ConfigError for a file that cannot be written, or holds no pairs of that form."""
    if fault := file_fault(output, BEGINS[form], "pairs of this form"):
        raise ConfigError(f"--output: {output}: {fault}")


def _text_lines(found: Found) -> Iterator[str]:
    """Each pair with the end of the text before it, its gap with interval, and its
    expected gain."""
    for pair in found.pairs:
        before = printable(found.text(pair.prompt_ids)).replace("\n", "\\n")
        more = "…" if len(before) > CONTEXT else ""
        chosen, rejected = (repr(found.text((token,))) for token in (pair.chosen, pair.rejected))
        name = printable(pair.problem_id).replace("\n", "\\n")
        yield f"{name} ({pair.criterion}): {more}{before[-CONTEXT:]}"
        yield (
            f"    {chosen} over {rejected}, gap {pair.gap.mean:+.2f} "
            f"[{pair.gap.low:+.2f}, {pair.gap.high:+.2f}], expected_gain {pair.expected_gain:+.2f}"
        )
