"""Messages to bytes and back. protobuf's own implementation says what is right."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2, wrappers_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from services.echo.v1.echo_toolkit import Image, Note
from toolkit import codec
from toolkit.tensor import ALIGNMENT, DType, Tensor
from toolkit.wire import varint

GOLDEN = Path(__file__).parent / "golden"
LARGE = codec.VIEW_FROM
FILLER = varint(2000 << 3 | 2) + varint(LARGE) + bytes(LARGE)
"""An unknown field that makes a message large, so that it is read by slicing."""
FULL = Note(
    text="ä\0β", times=-3, number=1 << 60, weight=0.1, urgent=True, blob=b"\xff\0",
    tags=["a", ""], counts={"k": 1, "": -2}, level=0, about=Note(text="inner"),
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _golden_is_importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(GOLDEN))
        yield


def golden(name: str) -> Any:
    """A generated module of tests/golden: its classes are made for these tests, and untyped here."""
    return importlib.import_module(f"golden.{name}.v1.{name}_toolkit")


def theirs(cls: Any) -> Any:
    """protobuf's own class for a message type."""
    return message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(cls.__proto__))


def tensor(nbytes: int, dtype: DType = DType.UINT8) -> Tensor:
    return Tensor(dtype, (nbytes,), np.arange(nbytes, dtype=np.uint64).astype(np.uint8).tobytes())


def address(data: Any) -> int:
    found: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    return found


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


# What is written


def test_a_message_is_written_as_protobuf_writes_it() -> None:
    pb = theirs(Note).FromString(codec.encode(FULL))
    assert (pb.text, pb.times, pb.number, pb.urgent, pb.blob) == ("ä\0β", -3, 1 << 60, True, b"\xff\0")
    assert (list(pb.tags), dict(pb.counts), pb.HasField("level"), pb.about.text) == (
        ["a", ""],
        {"k": 1, "": -2},
        True,
        "inner",
    )
    assert codec.decode(Note, pb.SerializeToString()) == FULL


def test_presence_is_kept() -> None:
    assert codec.decode(Note, codec.encode(Note(level=0))).level == 0
    assert codec.decode(Note, codec.encode(Note())).level is None
    assert codec.decode(Note, codec.encode(Note(about=Note()))).about == Note()


def test_a_tensor_is_written_as_its_proto_says() -> None:
    data = codec.encode(Image(pixels=Tensor.of(np.arange(6, dtype="<f4").reshape(2, 3)), caption="c"))
    pb = theirs(Image).FromString(data)
    assert (pb.pixels.dtype, list(pb.pixels.shape), pb.pixels.data) == (11, [2, 3], np.arange(6, dtype="<f4").tobytes())
    assert pb.caption == "c"


def test_a_tensor_can_be_a_message_of_its_own() -> None:
    for size in (0, 1, LARGE):
        assert codec.decode(Tensor, codec.encode(tensor(size))) == tensor(size)


def test_messages_of_protobuf_itself_move_by_themselves() -> None:
    moment = timestamp_pb2.Timestamp(seconds=7)
    assert codec.decode(timestamp_pb2.Timestamp, codec.encode(moment)) == moment


@pytest.mark.parametrize("rank", [0, 1, 2, 31, 32])
@pytest.mark.parametrize("size", [0, 1, LARGE])
def test_a_tensor_of_any_rank_survives(rank: int, size: int) -> None:
    if rank or size == 1:
        shape = (size,) + (1,) * (rank - 1) if rank else ()
        image = Image(pixels=Tensor(DType.INT8, shape, bytes(size)))
        assert codec.decode(Image, codec.encode(image)) == image


@pytest.mark.parametrize("dtype", [each for each in DType if each])
def test_a_tensor_of_any_dtype_survives(dtype: DType) -> None:
    image = Image(pixels=Tensor(dtype, (0, 4), b""))
    assert codec.decode(Image, codec.encode(image)) == image


# Where large payloads lie

BOUNDARIES = [LARGE, (1 << 14) - 1, 1 << 14, (1 << 21) - 1, 1 << 21]
"""Sizes at which a payload becomes large, and its length another number of bytes."""


@pytest.mark.parametrize("around", BOUNDARIES)
@pytest.mark.parametrize("shift", [-40, -17, -16, -9, -8, -7, -6, -5, -4, -3, -2, -1, 0, 1])
def test_a_large_payload_starts_at_a_multiple_of_the_alignment(around: int, shift: int) -> None:
    size = max(around + shift, LARGE)
    image = Image(pixels=tensor(size), caption="x" * (shift % 16))
    data = codec.encode(image)
    found = codec.decode(Image, data)
    assert found == image
    start = address(found.pixels.data) - address(data) if found.pixels else -1
    is_view = 0 <= start < len(data)
    assert is_view or _is_where_padding_changes_a_length(data, size)
    assert theirs(Image).FromString(data).pixels.data == bytes(tensor(size).data)


def _is_where_padding_changes_a_length(data: bytes, size: int) -> bool:
    """With padding the message's length would take one more byte, which moves the payload."""
    header = 32
    return any(size < limit <= size + header for limit in (1 << 7, 1 << 14, 1 << 21)) and len(data) < size + header


@pytest.mark.parametrize("lead", range(17))
def test_payloads_are_aligned_whatever_comes_before(lead: int) -> None:
    clip = golden("tensors").Clip(
        frames=[golden("tensors").Frame(pixels=tensor(LARGE + lead), caption="c" * lead) for _ in range(3)],
        tracks=[tensor(LARGE + n) for n in range(3)],
        named={"k" * lead: tensor(LARGE)},
        dense=tensor(LARGE),
    )
    data = codec.encode(clip)
    found = codec.decode(type(clip), data)
    assert found == clip
    views = [*(f.pixels for f in found.frames), *found.tracks, *found.named.values(), found.dense]
    offsets = [address(view.data) - address(data) for view in views]
    assert all(0 < offset < len(data) and offset % ALIGNMENT == 0 for offset in offsets)


def test_a_received_tensor_shares_the_memory_of_the_message() -> None:
    data = codec.encode(Image(pixels=tensor(LARGE)))
    found = codec.decode(Image, data)
    assert found.pixels is not None
    assert np.shares_memory(found.pixels.numpy(), np.frombuffer(data, np.uint8))
    assert not found.pixels.numpy().flags.writeable


def test_a_small_tensor_does_not_keep_the_message_alive() -> None:
    clip = golden("tensors").Clip(tracks=[tensor(LARGE - 1), tensor(LARGE)])
    data = codec.encode(clip)
    small, large = codec.decode(type(clip), data).tracks
    assert not np.shares_memory(small.numpy(), np.frombuffer(data, np.uint8))
    assert np.shares_memory(large.numpy(), np.frombuffer(data, np.uint8))


def test_an_unaligned_payload_is_read_all_the_same() -> None:
    for lead in range(ALIGNMENT):
        content = b"\x08\x0c" + field(2, varint(LARGE // 8)) + field(15, bytes(range(256)) * (LARGE // 256))
        image = codec.decode(Image, field(2, b"c" * lead) + field(1, content))
        assert image.pixels is not None
        assert image.pixels.numpy().flags.aligned
        assert bytes(image.pixels.data) == bytes(range(256)) * (LARGE // 256)


def test_writing_deep_trees_costs_no_more_than_their_size() -> None:
    """Each level may have to be laid out twice, but not twice for each level above it."""
    tree = golden("recursive").Tree(name="x" * 200, leaf=golden("recursive").Leaf(weights=tensor(LARGE)))
    for _ in range(90):
        tree = golden("recursive").Tree(name="y" * 100, children=[tree])
    assert codec.decode(type(tree), codec.encode(tree)) == tree


# What is refused on the way out


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Note(text=3), r"Note\.text: int 3 does not fit"),  # type: ignore[arg-type]  # the mistakes under test
        (Note(text="\ud800"), r"Note\.text: str '\\ud800' does not fit"),
        (Note(times=1 << 31), r"Note\.times: int 2147483648 does not fit"),
        (Note(times="3"), r"Note\.times: str '3' does not fit"),  # type: ignore[arg-type]
        (Note(times=None), r"Note\.times: NoneType None does not fit"),  # type: ignore[arg-type]
        (Note(weight=10**400), r"Note\.weight: int 1000.* does not fit"),
        (Note(blob="text"), r"Note\.blob: str 'text' does not fit"),  # type: ignore[arg-type]
        (Note(tags=[b"\xff"]), r"Note\.tags: list \[b'\\xff'\] does not fit"),  # type: ignore[list-item]
        (Note(tags=5), r"Note\.tags: int 5 does not fit"),  # type: ignore[arg-type]
        (Note(counts={1: 1}), r"Note\.counts: dict {1: 1} does not fit"),  # type: ignore[dict-item]
        (Note(about="text"), r"Note\.about: expected Note, got str"),  # type: ignore[arg-type]
        (Note(about=Note(about=Note(text=3))), r"Note\.about: Note\.about: Note\.text: int 3"),  # type: ignore[arg-type]
        (Image(caption=3), r"Image\.caption: int 3 does not fit"),  # type: ignore[arg-type]
        (Image(pixels=np.zeros(3)), r"Image\.pixels: expected Tensor, got ndarray; Tensor\.of\(\)"),  # type: ignore[arg-type]
        (Image(pixels=b"raw"), r"Image\.pixels: expected Tensor, got bytes"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_value_is_refused_with_its_field(message: Any, reason: str) -> None:
    with pytest.raises(codec.EncodeError, match=f"^{reason}"):
        codec.encode(message)


def test_wrong_values_around_tensors_are_refused_with_their_field() -> None:
    module = golden("tensors")
    for message, reason in [
        (module.Clip(tracks=tensor(1)), "Clip.tracks: expected list, got Tensor"),
        (module.Clip(tracks=[None]), "Clip.tracks: expected Tensor, got NoneType"),
        (module.Clip(frames=[Note()]), "Clip.frames: expected Frame, got Note"),
        (module.Clip(named=[tensor(1)]), "Clip.named: expected dict, got list"),
        (module.Clip(named={"a": 1}), "Clip.named.value: expected Tensor, got int"),
        (module.Clip(named={5: tensor(1)}), "Clip.named.key: int 5 does not fit"),
        (module.Clip(dense=tensor(1), rle="x"), "Clip: dense and rle are both set, of oneof mask only one may be"),
    ]:
        with pytest.raises(codec.EncodeError) as caught:
            codec.encode(message)
        assert str(caught.value).startswith(reason)


def test_two_members_of_a_oneof_are_refused_by_name() -> None:
    with pytest.raises(
        codec.EncodeError, match=r"^Input: text and number are both set, of oneof content only one may be$"
    ):
        codec.encode(golden("oneofs").Input(text="", number=0))


@pytest.mark.parametrize("thing", [3, "text", object(), None])
def test_what_is_no_message_is_refused(thing: object) -> None:
    with pytest.raises(codec.EncodeError, match="is not a message; messages are the classes in"):
        codec.encode(thing)


def test_a_message_that_is_nested_without_end_is_refused() -> None:
    note = Note()
    note.about = note
    tree = golden("recursive").Tree()
    tree.children.append(tree)
    for message in (note, tree):
        with pytest.raises(codec.EncodeError, match="nested too deeply"):
            codec.encode(message)


@pytest.mark.parametrize("name", ["note", "tree"])
def test_a_message_is_written_as_deep_as_others_read_it(name: str) -> None:
    tree = golden("recursive").Tree
    for depth in (100, 101):
        message: Any = Note() if name == "note" else tree()
        for _ in range(depth):
            message = Note(about=message) if name == "note" else tree(children=[message])
        if depth == 100:
            assert codec.decode(type(message), codec.encode(message)) == message
        else:
            with pytest.raises(codec.EncodeError, match="nested too deeply; 100 levels"):
                codec.encode(message)


def test_a_wrong_value_is_found_at_once_however_deep_it_is() -> None:
    """Each level once looked twice for what is wrong below it."""
    note = Note(text=3)  # type: ignore[arg-type]  # the mistake under test
    for _ in range(60):
        note = Note(about=note)
    with pytest.raises(codec.EncodeError, match=r"Note\.about: Note\.text: int 3 does not fit"):
        codec.encode(note)


def test_what_protobuf_cannot_write_is_an_error_of_ours() -> None:
    with pytest.raises(codec.EncodeError, match="UninterpretedOption"):
        codec.encode(descriptor_pb2.UninterpretedOption(name=[descriptor_pb2.UninterpretedOption.NamePart()]))


# What is read


def test_what_this_side_does_not_know_is_sent_on() -> None:
    for cls, message in ((Note, FULL), (Image, Image(pixels=tensor(3))), (Image, Image(pixels=tensor(LARGE)))):
        unknown = field(900, b"newer") + varint(901 << 3) + varint(7)
        again = codec.encode(codec.decode(cls, codec.encode(message) + unknown))
        assert unknown in again
        assert codec.decode(cls, again) == message


def test_unknown_fields_of_inner_messages_are_sent_on() -> None:
    inner = field(1, b"inner") + field(900, b"newer")
    assert field(900, b"newer") in codec.encode(codec.decode(Note, field(10, inner)))


def test_unknown_fields_are_no_part_of_equality() -> None:
    assert codec.decode(Note, codec.encode(FULL) + field(900, b"newer")) == FULL


def test_the_last_occurrence_of_a_scalar_counts() -> None:
    assert codec.decode(Note, field(1, b"one") + field(1, b"two")) == Note(text="two")


def test_occurrences_of_a_message_are_merged() -> None:
    note = codec.decode(Note, field(10, field(1, b"a") + field(7, b"x")) + field(10, field(7, b"y")))
    assert note == Note(about=Note(text="a", tags=["x", "y"]))


@pytest.mark.parametrize("filler", [b"", FILLER], ids=["small", "large"])
def test_occurrences_of_a_tensor_are_merged(filler: bytes) -> None:
    one, two = b"\x08\x06" + field(2, b"\x02"), field(2, b"\x01") + field(15, b"ab")
    data = field(1, one + field(15, b"zzz")) + field(1, two) + filler
    assert codec.decode(Image, data) == Image(pixels=Tensor(DType.UINT8, (2, 1), b"ab"))


@pytest.mark.parametrize("filler", [b"", FILLER], ids=["small", "large"])
def test_an_entry_of_a_map_may_lack_its_key_and_its_value(filler: bytes) -> None:
    tree = golden("recursive").Tree
    assert codec.decode(tree, field(3, b"") + filler) == tree(named={"": tree()})
    assert codec.decode(tree, field(3, field(1, b"k")) + filler) == tree(named={"k": tree()})
    assert codec.decode(tree, field(3, field(2, field(1, b"n"))) + filler) == tree(named={"": tree(name="n")})


@pytest.mark.parametrize("filler", [b"", FILLER], ids=["small", "large"])
def test_a_later_member_of_a_oneof_displaces_the_earlier(filler: bytes) -> None:
    cls = golden("oneofs").Input
    scalar = b"\x08\x06" + field(2, b"\x01") + field(15, b"a")
    one = Tensor(DType.UINT8, (1,), b"a")
    assert codec.decode(cls, field(2, b"t") + field(4, scalar) + filler) == cls(tensor=one)
    assert codec.decode(cls, field(4, scalar) + field(2, b"t") + filler) == cls(text="t")
    assert codec.decode(cls, field(2, b"t") + field(4, scalar) + b"\x28\x05" + filler) == cls(number=5)
    assert codec.decode(cls, field(4, scalar) + b"\x10\x05" + filler) == cls(tensor=one), "text as a number is unknown"


@pytest.mark.parametrize(
    "data",
    [b"\x0a", b"\x0a\x05abc", b"\x0a\x01\xff", b"\x00", b"\x0f", field(10, b"\x0a"), field(8, b"\x0a\x09")],
)
@pytest.mark.parametrize("filler", [b"", FILLER], ids=["small", "large"])
def test_what_is_not_valid_is_refused(data: bytes, filler: bytes) -> None:
    with pytest.raises(codec.DecodeError):
        codec.decode(Note, filler + data)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "unknown dtype 0"),
        (b"\x08\x63", "unknown dtype 99"),
        (b"\x08\x06" + field(2, b"\x02") + field(15, b"abc"), "takes 2 bytes, not 3"),
        (b"\x08\x0b" + field(2, b"\x02\x03"), "takes 24 bytes, not 0"),
        (b"\x08\x06" + field(2, b"\x01" * 33) + field(15, b"a"), "rank 33; at most 32"),
        (b"\x08\x06" + field(2, varint((1 << 64) - 1)), "negative axis"),
        (b"\x08\x06" + field(2, varint(1 << 62) * 2 + b"\x00"), "axes"),
        (b"\x08\x06" + field(2, varint(1 << 40)), "takes 1099511627776 bytes, not 0"),
        (field(2, b"\x80"), "Error parsing"),
    ],
)
@pytest.mark.parametrize("filler", [b"", FILLER], ids=["small", "large"])
def test_a_tensor_that_lies_is_refused(content: bytes, reason: str, filler: bytes) -> None:
    with pytest.raises(codec.DecodeError, match=reason):
        codec.decode(Image, field(1, content) + filler)


def test_too_many_tensors_are_refused() -> None:
    empty = field(2, b"\x08\x06" + field(2, b"\x00"))
    clip = golden("tensors").Clip
    assert len(codec.decode(clip, empty * codec.MAX_TENSORS).tracks) == codec.MAX_TENSORS
    with pytest.raises(codec.DecodeError, match="more than 16384 tensors"):
        codec.decode(clip, empty * (codec.MAX_TENSORS + 1))


@pytest.mark.parametrize("filler", [b"", FILLER], ids=["small", "large"])
@pytest.mark.parametrize("number", [2, 4], ids=["plain", "tree"])
def test_messages_are_read_as_deep_as_protobuf_reads_them(number: int, filler: bytes) -> None:
    cls, number = (Note, 10) if number == 2 else (golden("recursive").Tree, 2)
    data = b""
    for _ in range(100):
        data = field(number, data)
    codec.decode(cls, data + filler)
    for _ in range(100):
        data = field(number, data)
    with pytest.raises(codec.DecodeError):
        codec.decode(cls, data + filler)


def test_reading_the_members_of_a_oneof_over_and_over_takes_no_longer_than_their_number() -> None:
    """A message of 200 kB that once took minutes."""
    cls = golden("oneofs").Input
    data = (field(1, b"") + field(2, b"") + field(1, b"") + b"\x28\x01") * 20_000
    assert codec.decode(cls, data) == cls(number=1)


SCALAR = b"\x08\x06" + field(2, b"\x01") + field(15, b"a")
PIECES = st.one_of(
    st.builds(
        field, st.integers(1, 9), st.sampled_from([b"", b"a", b"\x08\x06", SCALAR, field(1, b"k"), field(1, SCALAR)])
    ),
    st.builds(lambda number, value: varint(number << 3) + varint(value), st.integers(1, 9), st.integers(0, 300)),
    st.builds(lambda number: varint(number << 3 | 5) + b"4444", st.integers(1, 9)),
    st.builds(
        field, st.integers(1, 4), st.builds(lambda n, inner: field(n, inner), st.integers(1, 4), st.just(SCALAR))
    ),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(PIECES, max_size=8).map(b"".join), st.sampled_from(["oneofs.Input", "tensors.Clip", "recursive.Tree"]))
def test_slicing_reads_what_protobuf_reads(data: bytes, name: str) -> None:
    module, _, message = name.partition(".")
    cls = getattr(golden(module), message)
    small, large = _read(cls, data), _read(cls, data + FILLER)
    assert small == large
    if small is not None:
        assert theirs(cls).FromString(codec.encode(small)) == theirs(cls).FromString(data)


def _read(cls: Any, data: bytes) -> Any:
    try:
        return codec.decode(cls, data)
    except codec.DecodeError:
        return None


def test_wrappers_and_times_survive_inside_of_messages() -> None:
    for cls in (wrappers_pb2.Int64Value, wrappers_pb2.StringValue):
        assert codec.decode(cls, codec.encode(cls())) == cls()


def image(caption: str, pixels: Tensor) -> bytes:
    return codec.encode(Image(pixels=pixels, caption=caption))


@given(
    st.text(max_size=40),
    st.sampled_from([DType.UINT8, DType.INT8, DType.FLOAT32, DType.BOOL]),
    st.sampled_from([LARGE - 4, LARGE, LARGE + 4]),
    st.booleans(),
)
@settings(max_examples=200)
def test_what_is_remembered_of_a_message_changes_nothing(caption: str, dtype: DType, size: int, ones: bool) -> None:
    """A message whose like was read and written before is as one that was not."""
    shape = (size,) if dtype != DType.FLOAT32 else (size // 4, 1)
    message = Image(caption=caption, pixels=Tensor(dtype, shape, bytes([ones]) * size))
    data = codec.encode(message)
    assert theirs(Image).FromString(data).pixels.data == message.pixels.data  # type: ignore[union-attr]  # set above
    assert codec.decode(Image, data) == message
    assert codec.decode(Image, bytes(bytearray(data))) == message
    assert codec.encode(codec.decode(Image, data)) == data


def test_a_remembered_beginning_is_not_believed_for_another_message() -> None:
    data = image("a cat", tensor(LARGE))
    assert codec.decode(Image, data) == codec.decode(Image, data)
    other = data.replace(b"a cat", b"a dog")
    assert codec.decode(Image, other).caption == "a dog"
    with pytest.raises(codec.DecodeError, match="takes"):
        codec.decode(Image, data.replace(varint(LARGE) + b"\x72", varint(LARGE + 1) + b"\x72", 1))
    with pytest.raises(codec.DecodeError):
        codec.decode(Image, data.replace(b"a cat", b"a \xffat"))


def test_what_comes_behind_the_elements_counts() -> None:
    """Also where the message is as long as one that ended with them."""
    long = image("", tensor(LARGE + 7))
    assert codec.decode(Image, long) == codec.decode(Image, long)
    short = image("", tensor(LARGE))
    behind = short + field(2, b"x" * (len(long) - len(short) - 2))
    assert len(behind) == len(long)
    assert codec.decode(Image, behind).caption == codec.decode(Image, behind).caption == "xxxxx"


def test_booleans_are_looked_at_each_time() -> None:
    good = image("", Tensor(DType.BOOL, (LARGE,), bytes(LARGE)))
    assert codec.decode(Image, good) == codec.decode(Image, good)
    with pytest.raises(codec.DecodeError, match="only 0 and 1"):
        codec.decode(Image, good[:-1] + b"\2")


def test_messages_of_ever_new_sizes_are_not_remembered_for_ever() -> None:
    for size in range(LARGE, LARGE + codec.HEADS + 10):
        assert codec.decode(Image, image("", tensor(size))).pixels is not None
    lone = codec._plan(Image).lone  # type: ignore[union-attr]  # no public way to see it
    assert lone is not None
    assert len(lone._layouts) <= codec.HEADS
    assert len(lone._frames) <= codec.HEADS
