"""Messages are plain dataclasses, enums are open, and copies are apart."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, timestamp_pb2

from services.echo.v1.echo_toolkit import Image, Line, Note
from toolkit import codec
from toolkit.message import Enum, class_of, copy_message, register_file
from toolkit.tensor import Tensor

GOLDEN = Path(__file__).parent / "golden"
UNKNOWN = b"\xa2\x38\x05newer"


@pytest.fixture(scope="module", autouse=True)
def _golden_is_importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(GOLDEN))
        yield


def golden(name: str) -> Any:
    """A generated module of tests/golden: its classes are made for these tests, and untyped here."""
    return importlib.import_module(f"golden.{name}.v1.{name}_toolkit")


class Mood(Enum):
    UNSPECIFIED = 0
    GOOD = 1


# Messages


def test_a_message_is_built_by_keyword_and_equal_by_its_fields() -> None:
    assert Note(text="a") == Note(text="a")
    assert Note(text="a") != Note(text="b")
    assert Note() != Line()  # type: ignore[comparison-overlap]  # what a checker would refuse
    with pytest.raises(TypeError):
        Note("a")  # type: ignore[call-arg]  # the mistake under test


def test_a_message_takes_no_field_that_it_does_not_have() -> None:
    with pytest.raises(AttributeError):
        Note().txet = "a"  # type: ignore[attr-defined]  # the mistake under test
    with pytest.raises(TypeError):
        Note(txet="a")  # type: ignore[call-arg]  # likewise


def test_messages_do_not_share_their_lists() -> None:
    one, two = Note(), Note()
    one.tags.append("x")
    one.counts["k"] = 1
    assert two == Note()


def test_a_message_has_no_public_name_but_its_fields() -> None:
    names = {name for name in dir(Note) if not name.startswith("_")}
    assert names == {field.name for field in dataclasses.fields(Note)}


def test_what_python_does_with_dataclasses_works() -> None:
    note = Note(text="a", tags=["x"], about=Note(text="b"))
    assert dataclasses.replace(note, text="c").about is note.about
    assert dataclasses.asdict(Image(pixels=Tensor.of([1]), caption="c"))["caption"] == "c"
    assert pickle.loads(pickle.dumps(note)) == note
    assert copy.deepcopy(note) == note
    match note:
        case Note(text="a", about=Note(text=inner)):
            assert inner == "b"
        case _:
            raise AssertionError


# Copies


def test_a_copy_can_be_changed_apart_from_its_original() -> None:
    note = Note(text="a", tags=["x"], counts={"k": 1}, about=Note(tags=["y"]))
    twin = copy_message(note)
    assert twin == note
    twin.tags.append("z")
    twin.counts["l"] = 2
    twin.about.tags.append("z")
    twin.about.about = Note()
    assert note == Note(text="a", tags=["x"], counts={"k": 1}, about=Note(tags=["y"]))


def test_messages_in_lists_and_maps_are_copied_too() -> None:
    tree = golden("recursive").Tree
    original = tree(children=[tree(name="a")], named={"k": tree(name="b")})
    twin = copy_message(original)
    twin.children[0].name = twin.named["k"].name = "changed"
    assert original == tree(children=[tree(name="a")], named={"k": tree(name="b")})


def test_messages_of_protobuf_itself_are_copied_too() -> None:
    moment = timestamp_pb2.Timestamp(seconds=1)
    twin = copy_message(moment)
    twin.seconds = 2
    assert moment.seconds == 1


def test_tensors_are_shared_by_copies() -> None:
    image = Image(pixels=Tensor.of(np.arange(10)))
    assert copy_message(image).pixels is image.pixels


def test_a_copy_keeps_what_this_side_does_not_know() -> None:
    note = codec.decode(Note, UNKNOWN)
    assert codec.encode(copy_message(note)) == UNKNOWN


# Enums


def test_a_number_without_a_name_is_kept() -> None:
    mood = Mood(99)
    assert (mood, mood.name, mood.value, repr(mood)) == (99, "99", 99, "<Mood.99: 99>")
    assert isinstance(mood, Mood)
    assert mood == Mood(99)
    assert len({mood, Mood(99), 99}) == 1
    assert pickle.loads(pickle.dumps(mood)) == mood
    assert copy.deepcopy(mood) == mood


def test_a_number_with_a_name_is_its_member() -> None:
    assert Mood(1) is Mood.GOOD
    assert list(Mood) == [Mood.UNSPECIFIED, Mood.GOOD]
    assert Mood(-5) != Mood.GOOD
    assert list(Mood) == [Mood.UNSPECIFIED, Mood.GOOD], "a number without a name does not become a member"


@pytest.mark.parametrize("value", [1 << 31, -(1 << 31) - 1, "GOOD", 1.5, None])
def test_what_no_enum_can_hold_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="is not a valid Mood"):
        Mood(value)


def test_a_number_without_a_name_travels() -> None:
    module = golden("enums")
    levels = module.Levels(
        plain=module.Level(7), maybe=module.Level(-7), many=[module.Level(8), module.Level.LOW], by_name={"k": 9}
    )
    found = codec.decode(module.Levels, codec.encode(levels))
    assert found == levels
    assert all(isinstance(each, module.Level) for each in (found.plain, found.maybe, *found.many, found.by_name["k"]))


# Files


def test_two_files_of_one_path_are_refused_with_the_cure() -> None:
    other = descriptor_pb2.FileDescriptorProto(name="services/echo/v1/echo.proto", package="other", syntax="proto3")
    with pytest.raises(ImportError) as caught:
        register_file(other.SerializeToString())
    assert str(caught.value).startswith("two different .proto files share one path: ")
    assert str(caught.value).endswith("for example <project>/<name>/v1/<name>.proto")


def test_one_file_may_be_registered_twice() -> None:
    for _ in range(2):
        register_file(descriptor_pool.Default().FindFileByName("services/echo/v1/echo.proto").serialized_pb)


def test_a_file_that_protobuf_refuses_is_told() -> None:
    broken = descriptor_pb2.FileDescriptorProto(name="tests/broken.proto", dependency=["tests/absent.proto"])
    with pytest.raises(ImportError, match=r"^protobuf refuses this \.proto: "):
        register_file(broken.SerializeToString())


def test_a_class_is_found_by_the_name_of_its_message() -> None:
    assert class_of("golden.recursive.v1.Tree") is golden("recursive").Tree
    assert class_of("golden.enums.v1.Level") is golden("enums").Level
    assert class_of("no.such.Message") is None
