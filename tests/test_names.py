"""Names in generated code: none is lost, none meets another, and Python takes each."""

from __future__ import annotations

import ast
import builtins
import inspect
import keyword

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from protoc_gen_toolkit import names
from protoc_gen_toolkit.writer import docstring

from toolkit.message import Enum

identifiers = st.from_regex(r"[a-zA-Z][a-zA-Z0-9_]{0,12}", fullmatch=True)
likely = st.sampled_from(sorted(names.KEYWORDS | names.ENUM_ATTRIBUTES)).flatmap(
    lambda word: st.sampled_from([word, f"{word}_", f"{word}__", word.upper(), word.title()])
)


def test_reserved_words_cover_this_python() -> None:
    assert set(keyword.kwlist) <= names.KEYWORDS
    assert {name for name in dir(Enum) + dir(int) if not name.startswith("_")} <= names.ENUM_ATTRIBUTES
    site = {"copyright", "credits", "exit", "help", "license", "quit"}
    assert {name for name in dir(builtins) if not name.startswith("_")} - site <= names.BUILTINS | names.KEYWORDS


@given(st.lists(identifiers | likely, unique=True))
def test_different_names_stay_different(found: list[str]) -> None:
    for rule in (names.escape, names.enum_value):
        escaped = [rule(name) for name in found]
        assert len(set(escaped)) == len(found)
        assert not any(keyword.iskeyword(name) for name in escaped)


@given(st.lists(identifiers | st.just("_gencode")))
def test_private_names_are_distinct(found: list[str]) -> None:
    distinct = names.distinct(found)
    assert len({*distinct, "_gencode", "_dataclasses"}) == len(found) + 2
    assert [name.rstrip("_") for name in distinct] == [name.rstrip("_") for name in found]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Score", "score"),
        ("GenerateScore", "generate_score"),
        ("getURL", "get_url"),
        ("GetURLList", "get_url_list"),
        ("HTTPGet", "http_get"),
        ("V2Ray", "v2_ray"),
        ("already_snake", "already_snake"),
        ("Mixed_Case", "mixed_case"),
        ("Import", "import_"),
        ("Class_", "class__"),
    ],
)
def test_methods_are_snake_case(name: str, expected: str) -> None:
    assert names.attribute(name) == expected


@pytest.mark.parametrize(
    ("path", "module", "output"),
    [
        (
            "services/scoring/v1/scoring.proto",
            "services.scoring.v1.scoring_toolkit",
            "services/scoring/v1/scoring_toolkit.py",
        ),
        ("top.proto", "top_toolkit", "top_toolkit.py"),
        ("my-app/v1/two-words.proto", "my_app.v1.two_words_toolkit", "my_app/v1/two_words_toolkit.py"),
        ("google/protobuf/any.proto", "google.protobuf.any_pb2", "google/protobuf/any_pb2.py"),
    ],
)
def test_a_proto_has_one_module(path: str, module: str, output: str) -> None:
    assert names.module(path) == module
    assert names.output(path) == output


@pytest.mark.parametrize(
    "path",
    ["a/class/v1/x.proto", "a/2b/x.proto", "a/_b/x.proto", "a/b/3d.proto", "a b/x.proto", "a/x.txt", "ä/x.proto"],
)
def test_paths_that_python_cannot_import_are_named(path: str) -> None:
    assert names.module_problem(path) is not None


@pytest.mark.parametrize("path", ["a/b/class.proto", "x.proto", "a-b/c_d/e2.proto"])
def test_paths_that_python_can_import_pass(path: str) -> None:
    assert names.module_problem(path) is None


lines = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\"\\'{}N"), max_size=20)


@given(st.lists(lines, min_size=1, max_size=4))
@example(['"""'])
@example(["\\"])
@example(['\\"""'])
@example(['""""""'])
@example(["x", '"'])
@example(["\\N{DASH}", "\x00\r\u2028"])
def test_docstrings_say_what_the_comment_says(found: list[str]) -> None:
    text = "\n".join(line.replace("\n", " ").replace("\t", " ").strip() for line in found).strip("\n")
    source = f"class X:\n    {docstring(text)}\n".replace("\n", "\n    ").rstrip(" ")
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    assert inspect.cleandoc(ast.literal_eval(body.body[0].value)).strip() == text.strip()  # type: ignore[attr-defined]
