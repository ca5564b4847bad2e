"""Finds the code in a completion.

Blocks are what stands between fences, and what a completion writes before a fence that closes one
of the prompt's, or between [BEGIN] and [DONE]. Of the Python blocks, the last one that defines what
is tested is taken, with those that define what it uses: drafts and examples of use are left out,
helpers come along. Without a block, the text is taken from its first line of code to its last.
"""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
from dataclasses import dataclass
from itertools import takewhile

from pts.verifiers.thinking import after_thinking

_FENCE = re.compile(r"^([ \t>]*(?:[-*+] +|\d+[.)] +)?)(`{3,}|~{3,})[ \t]*([^`\n]*)$", re.MULTILINE)
_ONE_LINE = re.compile(r"^[ \t]*```(?:python|py)\d*[ \t]+(.+?)[ \t]*```[ \t]*$", re.MULTILINE)
_PYTHON = re.compile(r"\{?\s*\.?i?py(?:thon)?(?:\s*[\d.]+)?\b", re.IGNORECASE)
_SPECIAL = re.compile(r"<\|(?:im_end|endoftext|eot_id|end|end_of_text)\|>|</s>|<end_of_turn>")
"""Ends of turns that some models write as text."""
_READS = re.compile(r"\binput\(|\bstdin\b|\bopen\(0\)")
_REJECTED = re.compile(
    r"\b(?:wrong|incorrect|buggy|broken|faulty|original|does not work|doesn't work|na[iï]ve)\b"
    r"[^.\n]*:?\s*\Z",
    re.IGNORECASE,
)
"""Before a block: it is shown as what not to do."""
_MARKED = re.compile(r"\[BEGIN\][ \t]*\n?(.*?)(?:\[DONE\]|\Z)", re.DOTALL)
_START = re.compile(
    r"^[ \t]*(?:def |class |import |from \S+ import |@|async def |\w+(?:, \w+)* = )", re.MULTILINE
)
_STATEMENTS = (
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign),
    *(ast.AnnAssign, ast.AugAssign, ast.For, ast.While, ast.If, ast.With, ast.Try),
)


@dataclass(frozen=True, slots=True)
class _Block:
    """Code with the names that it binds at its top and those that it only uses."""

    code: str
    defines: frozenset[str]
    uses: frozenset[str]
    loads: frozenset[str] = frozenset()
    """All names that it reads, its own ones too."""
    functions: frozenset[str] = frozenset()
    """Functions and classes among `defines`."""
    acts: bool = False
    """Whether it does something but define."""


def extract_code(text: str, wanted: frozenset[str] = frozenset(), prefix: str = "") -> str:
    """The code of a completion. The tests use the names `wanted`; `prefix` stands before it."""
    text = _SPECIAL.split(after_thinking(text))[0]
    fenced = _fenced(text, prefix)
    python = [code for language, code in fenced if _PYTHON.match(language)]
    codes = python or [code for _, code in fenced]
    codes = [code for code in codes if code.strip()] or codes
    if not codes:
        marked = _MARKED.search(text)
        return _without_prose(marked[1] if marked else text.partition("[DONE]")[0], prefix)
    blocks = [_read(code) for code in codes]
    fit = [i for i, block in enumerate(blocks) if block.defines & wanted]
    if not wanted:  # a whole program: it reads its input, or at least does something
        fit = [i for i, block in enumerate(blocks) if _READS.search(block.code)]
        fit = fit or [i for i, block in enumerate(blocks) if block.acts]
    last = max(fit, default=len(blocks) - 1)
    chosen, missing = {last}, (blocks[last].uses | wanted) - blocks[last].defines
    for i in range(last - 1, -1, -1):
        if blocks[i].defines & missing:
            chosen.add(i)
            missing = (missing | blocks[i].uses) - blocks[i].defines
    used = missing.union(*(blocks[i].loads for i in chosen))
    chosen |= {i for i in range(last + 1, len(blocks)) if blocks[i].functions & used}
    return "\n".join(blocks[i].code for i in sorted(chosen))


def _fenced(text: str, prefix: str) -> list[tuple[str, str]]:
    """Language and code of every block. One that is never closed reaches to the end of the text."""
    blocks = [("python", found[1]) for found in _ONE_LINE.finditer(text)]
    text = _ONE_LINE.sub("", text)
    rejected: list[tuple[str, str]] = []
    fences = list(_FENCE.finditer(text))
    opened: tuple[str, str, str, int] | None = None
    if fences and not fences[0][3].strip() and _is_code(text[: fences[0].start()], prefix):
        opened = ("", fences[0][2], "python", 0)  # the prompt ended with an open fence
    for fence in fences:
        if opened is None:
            opened = (fence[1], fence[2], fence[3].strip(), fence.end() + 1)
            continue
        margin, mark, language, start = opened
        code = _flush_left(text[start : fence.start()], margin)
        if fence[2].startswith(mark) and not fence[3].strip() and not _in_string(code):
            before = text[:start].rstrip().rpartition("\n")[0] if start else ""
            shown = rejected if _REJECTED.search(before[-200:].rstrip()) else blocks
            shown.append((language, code))
            opened = None
    if opened is not None:
        margin, mark, language, start = opened
        code = text[start:]
        if _in_string(code) and (end := re.search(rf"^[ \t>]*{mark}[ \t]*$", code, re.MULTILINE)):
            code = code[: end.start()]
        blocks.append((language, _flush_left(code, margin)))
    return blocks or rejected


def _flush_left(code: str, margin: str) -> str:
    """Code without the indentation (or the quote marks) of its fence."""
    if not margin:
        return code
    return re.sub(rf"^[ \t>]{{0,{len(margin)}}}", "", code, flags=re.MULTILINE)


def _in_string(code: str) -> bool:
    """Whether code ends inside a triple-quoted string, so that a fence there closes nothing."""
    try:
        ast.parse(code)
    except SyntaxError as error:
        return "unterminated triple-quoted" in error.msg
    except (ValueError, RecursionError, MemoryError):
        pass
    return False


def _parse(code: str) -> ast.Module | None:
    try:
        tree = ast.parse(code)
        compile(tree, "<code>", "exec", dont_inherit=True)  # a return outside of a function
        return tree
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_code(text: str, prefix: str) -> bool:
    """Whether text is Python: it has a statement that is no single expression, or prints."""
    tree = _parse(text)
    if tree is None:
        return bool(text.strip() and prefix) and _parse(prefix + text) is not None
    prints = (isinstance(n, ast.Expr) and isinstance(n.value, ast.Call) for n in tree.body)
    return any(isinstance(node, _STATEMENTS) for node in tree.body) or (
        any(prints) and re.search(r"^print\(", text, re.MULTILINE) is not None
    )


def _without_prose(text: str, prefix: str) -> str:
    """Text without fences, from its first line of code to its last one that compiles."""
    for whole in (text, textwrap.dedent(text), textwrap.indent(text.lstrip(), "    ")):
        if _parse(prefix + whole) is not None:
            return whole
    code = text
    if not prefix and not _START.match(text):
        found = _START.search(text)
        if found is None:
            return text
        margin = found[0][: len(found[0]) - len(found[0].lstrip())]
        lines = text[found.start() :].splitlines(keepends=True)
        inside = takewhile(lambda line: not line.strip() or line.startswith(margin), lines)
        code = textwrap.dedent("".join(inside))
    for _ in range(8):  # each round cuts at the statement that does not compile
        try:
            ast.parse(prefix + code)
            return code
        except SyntaxError as error:
            line = (error.lineno or 1) - prefix.count("\n")
        except (ValueError, RecursionError, MemoryError):
            break
        lines = code.splitlines(keepends=True)
        tops = [i for i, x in enumerate(lines[:line]) if x.strip() and x[0] not in " \t"]
        if not tops or not tops[-1]:
            break
        code = "".join(lines[: tops[-1]])
    return text


def _read(code: str) -> _Block:
    tree = _parse(code)
    if tree is None:
        defined = re.findall(r"^(?:async def|def|class) +(\w+)", code, re.MULTILINE)
        return _Block(code, frozenset(defined), frozenset())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defines = {node.name for node in tree.body if isinstance(node, functions)}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    stores = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    top = {
        node.id
        for statement in tree.body
        if not isinstance(statement, functions)
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    loads = {n.id for n in names if isinstance(n.ctx, ast.Load)}
    uses = loads - stores - set(dir(builtins))
    quiet = (*functions, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    acts = any(not isinstance(statement, quiet) for statement in tree.body)
    return _Block(
        code,
        frozenset(defines | top),
        frozenset(uses - defines),
        frozenset(loads),
        frozenset(defines),
        acts,
    )
