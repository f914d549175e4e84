"""The sentences that our code says to a user when something is wrong: the texts that reach a call of `SAYS`.

A text reaches it as an argument; by a name that stands for it in the same function or module; as what a function of ours
returns or yields; or as an entry of a list or a mapping. Where a text has no words of its own (`f"{path}: {error}"`), what is
put into it counts instead; where it has, what is put into it does not. A sentence has three words at least, with gaps.
What is only logged, and what `toolkit doctor` finds, is no error and not read here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final, TypeAlias

from tests.pages import ROOT

SAYS: Final = re.compile(
    r"""(.*\.)?(
        \w*Error | BadParameter | Problem            # made here, raised or kept by whoever
        | problem | _refuse | refuse                 # of a graph file, a .proto, an export, a request to a running graph
        | complain | _complain | _stop | _failed | _lose | _give_up | _cut_off  # the launcher's
        | set_details | _refusing                    # a call's status
    ) | parser\.error""",
    re.VERBOSE,
)
"""Whatever is called so says what it is given to a user."""
NOT_SAID: Final = {
    "AssertionError": "a bug of ours",
    "ProtocolError": "two parts of the toolkit talk to each other; `broke the protocol` is what a user sees of it",
}
NOT_READ: Final = {
    "toolkit/launcher/events.py": "what a replica tells the launcher: `broke the protocol` is what a user sees of it",
    "toolkit/metrics.py": "samples that a replica tells the launcher: the same",
}
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Scope: TypeAlias = ast.Module | _Function
_WORD = re.compile(r"(?<![\w-])[A-Za-z]+")


@cache
def sentences() -> dict[str, list[str]]:
    """Sentence, with `…` for what is put in → where it is, as `path:line`."""
    found: dict[str, list[str]] = {}
    for path in sorted([*ROOT.glob("toolkit/**/*.py"), *ROOT.glob("codegen/**/*.py")]):
        if str(path.relative_to(ROOT)) not in NOT_READ:
            module = _Module(path)
            for text, where in (each for said, scope in module.said() for each in module.texts(said, scope, ())):
                if _is_sentence(text):
                    found.setdefault(text, []).append(where)
    return found


def text_of(node: ast.JoinedStr) -> str:
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)


def _is_sentence(text: str) -> bool:
    words = len(_WORD.findall(text))
    return words >= 1 and words + text.count("…") >= 3


class _Module:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.functions = [each for each in ast.walk(self.tree) if isinstance(each, _Function)]
        self.imported = {
            name.asname or name.name: (each.module, name.name)
            for each in ast.walk(self.tree)
            if isinstance(each, ast.ImportFrom) and each.module
            for name in each.names
        }

    def said(self) -> Iterator[tuple[ast.expr, _Scope]]:
        """What those calls are given, and what is put under the name `error`; and the function that it is in."""
        for scope in (self.tree, *self.functions):
            for node in _inside(scope):
                match node:
                    case ast.Call() if _says(node):
                        yield from ((each, scope) for each in (*node.args, *(each.value for each in node.keywords)))
                    case (
                        ast.keyword(arg="error", value=value)
                        | ast.Assign(targets=[ast.Attribute(attr="error")], value=value)
                    ):
                        yield value, scope
                    case ast.Dict(keys=keys, values=values):
                        pairs = zip(keys, values, strict=True)
                        yield from ((value, scope) for key, value in pairs if getattr(key, "value", None) == "error")
                    case _:
                        pass

    def texts(self, node: ast.expr, scope: _Scope, seen: tuple[object, ...]) -> Iterator[tuple[str, str]]:
        """Those that an expression may be, each with its place."""
        parts: list[ast.expr] = []
        match node:
            case ast.Constant(value=str(text)):
                yield text, self._where(node)
            case ast.JoinedStr():
                if _WORD.search(text_of(node)):
                    yield text_of(node), self._where(node)
                else:
                    parts = [each.value for each in node.values if isinstance(each, ast.FormattedValue)]
            case ast.Name(id=name) if (scope, name) not in seen:
                seen = (*seen, (scope, name))
                parts = list(_assigned(name, scope))
                if scope is not self.tree:
                    yield from self.texts(node, self.tree, seen)
            case ast.Call(
                func=ast.Attribute(value=value, attr="join" | "values" | "items" | "get" | "fromkeys"), args=arguments
            ):
                parts = [value, *arguments]
            case ast.Call(func=ast.Name(id="dict" | "list" | "next" | "sorted" | "str"), args=arguments):
                parts = arguments
            case ast.Call(func=function) if not _says(node):
                for module, called in self._find(function):
                    if called not in seen:
                        for each in _inside(called):
                            if isinstance(each, ast.Return | ast.Yield | ast.YieldFrom) and each.value is not None:
                                yield from module.texts(each.value, called, (*seen, called))
            case ast.IfExp(body=one, orelse=other) | ast.BinOp(left=one, right=other):
                parts = [one, other]
            case ast.BoolOp(values=parts) | ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Dict(values=parts):
                pass
            case ast.Starred(value=value) | ast.NamedExpr(value=value) | ast.Subscript(value=value):
                parts = [value]
            case ast.ListComp(elt=value) | ast.GeneratorExp(elt=value):
                parts = [value]
            case _:
                pass
        for part in parts:
            yield from self.texts(part, scope, seen)

    def _where(self, node: ast.expr) -> str:
        return f"{self.path.relative_to(ROOT)}:{node.lineno}"

    def _find(self, function: ast.expr) -> Iterator[tuple[_Module, _Function]]:
        """The functions of ours that may be meant, of this module or of the one that the name is imported from."""
        path: Path | None = self.path
        match function:
            case ast.Name(id=name) if name in self.imported:
                source, name = self.imported[name]
                path = _file(source)
            case ast.Attribute(value=ast.Name(id=holder), attr=name) if holder in self.imported:
                path = _file(".".join(self.imported[holder]))
            case ast.Name(id=name) | ast.Attribute(attr=name):
                pass
            case _:
                return
        if path is not None:
            module = _module(path)
            yield from ((module, each) for each in module.functions if each.name == name)


def _file(module: str) -> Path | None:
    path = ROOT / ("codegen" if module.startswith("protoc_gen") else "") / f"{module.replace('.', '/')}.py"
    return path if path.exists() else None


_module = cache(_Module)


def _inside(scope: ast.AST) -> Iterator[ast.AST]:
    """All of a function or a module, and nothing of the functions in it."""
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, _Function):
            yield child
            yield from _inside(child)


def _says(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func)
    return SAYS.fullmatch(name) is not None and name not in NOT_SAID


def _assigned(name: str, scope: _Scope) -> Iterator[ast.expr]:
    """What a name may stand for."""

    def is_meant(target: ast.expr) -> bool:
        return any(isinstance(each, ast.Name) and each.id == name for each in ast.walk(target))

    for node in _inside(scope):
        match node:
            case (
                ast.Assign(targets=[target], value=ast.expr() as value)
                | ast.NamedExpr(target=target, value=ast.expr() as value)
                | ast.AnnAssign(target=target, value=ast.expr() as value)
                | ast.AugAssign(target=target, value=ast.expr() as value)
            ) if is_meant(target):
                yield value
            case ast.For(target=target, iter=value) | ast.comprehension(target=target, iter=value) if is_meant(target):
                yield value
            case ast.Call(func=ast.Attribute(value=target, attr="append" | "extend" | "setdefault"), args=values) if (
                is_meant(target)
            ):
                yield from values
            case _:
                pass
