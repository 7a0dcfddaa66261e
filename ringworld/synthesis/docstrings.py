"""What Python source says of itself, as questions and answers: docstrings, and how functions are called.

The source is parsed, never run. The answers are the first paragraphs of docstrings and the signatures of definitions,
the questions are ours. What is private, a test, or not told in a sentence makes no question.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from ringworld.synthesis.exchanges import Exchange, TalkRules, unwrapped

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Documented = ast.Module | ast.ClassDef | _Function

_MODULE = (
    "What is the module `{name}` for?",
    "What does the module `{name}` offer?",
    "What is in the module `{name}`?",
)
_CLASS = ("What is the class `{name}`?", "What is `{name}` for?", "What do I use the class `{name}` for?")
_FUNCTION = ("What does `{name}` do?", "What is `{name}` for?", "What happens when `{name}` is called?")
_CALLED = ("How is `{name}` called?", "What arguments does `{name}` take?", "How do I call `{name}`?")

# Where the first paragraph of a docstring ends although no blank line follows: fields, examples, headings of sections.
_FIELDS = re.compile(
    r"^\s*(?::\w+|@\w+|>>>|\.\. |[*+-] |\d+[.)] |(?:Args|Arguments|Parameters|Params|Returns?|Raises|Yields|Notes?|"
    r"Examples?|Usage|Attributes|Keyword arg\w*)\b *:?\s*$)"
)
_ROLE = re.compile(r":(?:\w+:){1,2}`~?!?([^`<>]+)(?: <[^`<>]*>)?`")  # :class:`Name` of reStructuredText
_UNDERLINE = re.compile(r"[=\-~^\"'*+#.`_]{3,}")
_CALL = re.compile(r"[\w.]+\([^)]*\)?")
_UNTOLD = re.compile(
    r"(?:todo|fixme|see|deprecated|alias|same as|like|as above|ditto|copyright|auto-?generated|generated|internal)\b",
    re.IGNORECASE,
)
_LEAST_WORDS = 4
_LEAST_LETTERS = 0.7
_MOST_CHARACTERS = 1 << 20  # of a file that is parsed: a syntax tree takes some hundred times its text


@dataclass(frozen=True)
class _Said:
    """What a definition says of itself. name: as people call it, without the module's.

    docstring: where it says so. called: how it is called, in words, and the function that is then called.
    """

    name: str
    questions: tuple[str, ...]
    answer: str
    docstring: ast.AST
    called: tuple[str, _Function] | None


def exchanges(source: str, path: str, begin: int, rules: TalkRules, seen: set[str]) -> list[Exchange]:
    """Questions about one file, in its order; none for a file that this Python cannot parse, or not to the bottom.

    begin: where the file begins in its document. seen: answers given before, which are not given again; added to.
    """
    tree = _parsed(source)
    if tree is None or _is_test(path):
        return []
    module = _module_name(path)
    place = _Places(source, begin)
    found: list[Exchange] = []
    try:
        told = list(_all_said(tree, module))
    except RecursionError:  # a default value of a thousand terms can be parsed and not be written again
        return []
    for said in told:
        answer = rules.answer(said.answer)
        if answer is None or answer in seen:
            continue
        seen.add(answer)
        question = _pick(said.questions, module, said.name).format(name=said.name)
        found.append(Exchange(question, answer, *place.of(said.docstring)))
        call, function = said.called or ("", None)
        # About half of them, so that the talk is not a form to fill in.
        if function and len(call) <= rules.answer_characters[1] and _draw(module, said.name, "call") % 2:
            asked = _pick(_CALLED, said.name, "called").format(name=said.name)
            found.append(Exchange(asked, call, *place.of_header(function)))
    return [exchange for exchange in found if rules.is_question(exchange.question)]


def opened(exchange: Exchange, path: str) -> Exchange:
    """The first exchange of a conversation, whose question says which module it is about."""
    module = _module_name(path)
    question = exchange.question
    if f"`{module}`" in question:
        return exchange
    question = f"In `{module}`, {question[0].lower()}{question[1:]}"
    return Exchange(question, exchange.answer, exchange.start, exchange.end)


def first_paragraph(docstring: str) -> str | None:
    """The first paragraph that tells something, unwrapped and ended; None where it would tell a reader nothing."""
    lines = inspect.cleandoc(docstring).split("\n")
    while len(lines) > 1 and (_UNDERLINE.fullmatch(lines[1].strip()) or not lines[0].strip()):
        lines = lines[2:] if lines[0].strip() else lines[1:]  # a heading and the line under it
    if lines and _CALL.fullmatch(lines[0].partition("->")[0].strip()):
        lines = lines[1:]  # a signature, as extension modules write it
    lines = lines[next((number for number, line in enumerate(lines) if line.strip()), 0) :]
    end = next((number for number, line in enumerate(lines) if not line.strip() or _FIELDS.match(line)), len(lines))
    told = _ROLE.sub(r"`\1`", unwrapped(" ".join(lines[:end]))).replace("``", "`")
    letters = sum(character.isalpha() or character == " " for character in told)
    if len(told.split()) < _LEAST_WORDS or letters < _LEAST_LETTERS * len(told):
        return None
    if not (told[0].isalpha() or told[0] in "`'\"*") or told.endswith((":", ",", "::", "-")) or _UNTOLD.match(told):
        return None
    return told if told.endswith((".", "!", "?")) else f"{told}."


def _parsed(source: str) -> ast.Module | None:
    if len(source) > _MOST_CHARACTERS:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old files
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _all_said(tree: ast.Module, module: str) -> Iterator[_Said]:
    yield from _said(tree, module, _MODULE, None)
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | _Function) or _is_hidden(node.name):
            continue
        if isinstance(node, _Function):
            yield from _said(node, node.name, _FUNCTION, (_call(node.name, node), node))
            continue
        made = next((inner for inner in node.body if isinstance(inner, _Function) and inner.name == "__init__"), None)
        yield from _said(node, node.name, _CLASS, (_call(node.name, made, bound=True), made) if made else None)
        for inner in node.body:
            if isinstance(inner, _Function) and not _is_hidden(inner.name):
                name = f"{node.name}.{inner.name}"
                decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in inner.decorator_list}
                if decorators & {"property", "cached_property", "setter", "getter", "deleter"}:
                    yield from _said(inner, name, ("What is `{name}`?",), None)
                else:
                    call = _call(inner.name, inner, bound="staticmethod" not in decorators)
                    yield from _said(inner, name, _FUNCTION, (call, inner))


def _said(
    node: _Documented, name: str, questions: tuple[str, ...], called: tuple[str, _Function] | None
) -> Iterator[_Said]:
    docstring = ast.get_docstring(node, clean=False)
    told = first_paragraph(docstring) if docstring else None
    if told is not None:
        yield _Said(name, questions, told, node.body[0], called)


def _call(name: str, node: _Function, bound: bool = False) -> str:
    """`name(arguments)`, without the one that a call through an object or a class gives."""
    given = ast.unparse(node.args)
    if bound and (node.args.posonlyargs or node.args.args):
        first = (node.args.posonlyargs or node.args.args)[0]
        given = given.removeprefix(ast.unparse(first)).removeprefix(", /").removeprefix(", ")
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None and name[0].islower() else ""
    return f"`{name}({given}){returns}`"


def _module_name(path: str) -> str:
    name = path.removesuffix(".pyi").removesuffix(".py").strip("/").replace("/", ".")
    return name.removesuffix(".__init__") or name


def _is_hidden(name: str) -> bool:
    return name.startswith("_") or name.lower().startswith("test")


def _is_test(path: str) -> bool:
    parts = path.lower().split("/")
    known = ("test", "tests", "testing", "conftest.py", "setup.py")
    return any(part in known or part.startswith("test_") or part.endswith("_test.py") for part in parts)


def _draw(*words: str) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(words).encode()).digest()[:4], "big")


def _pick(choices: tuple[str, ...], *words: str) -> str:
    return choices[_draw(*words) % len(choices)]


class _Places:
    """Places of nodes in a document, in characters: a syntax tree counts lines, and bytes in them."""

    def __init__(self, source: str, begin: int) -> None:
        self._lines = source.split("\n")
        self._starts = [begin]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line) + 1)

    def of(self, node: ast.AST) -> tuple[int, int]:
        return self._at(node.lineno, node.col_offset), self._at(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def of_header(self, node: _Function) -> tuple[int, int]:
        """From `def` to where its body begins."""
        return self.of(node)[0], self.of(node.body[0])[0]

    def _at(self, line: int, column: int) -> int:
        text = self._lines[line - 1]
        return self._starts[line - 1] + (column if text.isascii() else len(text.encode()[:column].decode()))
