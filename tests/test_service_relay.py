"""The relay with its real models: sentences come while the writer writes, reviewed by their meaning."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.embedding.service import Embedding
from services.embedding.v1.embedding_toolkit import EmbeddingClient
from services.relay.reviewer import Reviewer
from services.relay.sentences import MAX_CHARACTERS, Sentences
from services.relay.service import Relay
from services.relay.v1.relay_toolkit import RelayClient, ReviewerClient, Verdict, WriteRequest
from services.text_generation.service import TextGeneration
from services.text_generation.v1.text_generation_toolkit import GenerateRequest, TextGenerationClient, Token
from toolkit.context import Context
from toolkit.errors import Code, ServiceError
from toolkit.testing import serve


class Writer(TextGeneration):
    """The real writer, which can be made to wait at the first sentence's end, and tells when a stream of it is over."""

    def __init__(self) -> None:
        super().__init__(max_new_tokens=64)
        self.may_go_on = asyncio.Event()
        self.is_over = asyncio.Event()

    async def stream(self, request: GenerateRequest, context: Context) -> AsyncIterator[Token]:
        sentences = Sentences()
        try:
            async for token in super().stream(request, context):
                yield token
                if sentences.add(token.text):
                    await self.may_go_on.wait()
        finally:
            self.is_over.set()


@pytest.fixture(scope="module")
def models() -> tuple[Writer, Embedding]:
    torch.set_num_threads(1)  # on a busy machine, threads that wait for each other are slower than one
    return Writer(), Embedding()


@pytest.fixture
def writer(models: tuple[Writer, Embedding]) -> Writer:
    models[0].may_go_on, models[0].is_over = asyncio.Event(), asyncio.Event()
    return models[0]


@asynccontextmanager
async def reviewing(embedding: Embedding) -> AsyncIterator[ReviewerClient]:
    reviewer = Reviewer()
    async with serve(embedding, EmbeddingClient) as reviewer.embedding, serve(reviewer, ReviewerClient) as client:
        yield client


@pytest.fixture
async def relay(writer: Writer, models: tuple[Writer, Embedding]) -> AsyncIterator[RelayClient]:
    relay = Relay()
    async with (
        serve(writer, TextGenerationClient) as relay.writer,
        reviewing(models[1]) as relay.reviewer,
        serve(relay, RelayClient) as client,
    ):
        yield client


async def test_the_first_sentence_is_reviewed_before_the_second_is_written(relay: RelayClient, writer: Writer) -> None:
    stream = relay.write(WriteRequest(about="the sea", max_new_tokens=40))
    first = await anext(stream)  # the writer waits: nothing more has left it
    assert first.text.strip().endswith(".")
    assert (first.verdict, first.similarity) == (Verdict.NEW, 0)
    writer.may_go_on.set()
    rest = [sentence async for sentence in stream]
    assert first.tokens < rest[-1].tokens <= 40
    assert 0 < rest[-1].similarity < 1
    ask = GenerateRequest(prompt="Write a few sentences about the sea.", max_new_tokens=40, chat=True)
    async with serve(writer, TextGenerationClient) as alone:
        assert first.text + "".join(sentence.text for sentence in rest) == (await alone.generate(ask)).text


async def test_leaving_the_relay_stops_the_writer(relay: RelayClient, writer: Writer) -> None:
    async with relay.write(WriteRequest(about="the sea", max_new_tokens=64)) as sentences:
        await anext(sentences)
    await asyncio.wait_for(writer.is_over.wait(), 30)


async def test_an_error_of_the_writer_reaches_the_caller(relay: RelayClient) -> None:
    with pytest.raises(ServiceError, match="max_new_tokens: 65 is not in 0 to 64") as raised:
        await anext(relay.write(WriteRequest(about="the sea", max_new_tokens=65)))
    assert raised.value.code is Code.INVALID_ARGUMENT
    with pytest.raises(ServiceError, match="about: empty"):
        await anext(relay.write(WriteRequest(about=" ")))


async def test_a_sentence_with_the_meaning_of_one_before_it_is_marked(models: tuple[Writer, Embedding]) -> None:
    async def tokens() -> AsyncIterator[Token]:
        for text in ("A cat is sleep", "ing on the sofa. ", "Prices rose in May. The cat", " sleeps on the couch. "):
            yield Token(text=text)

    async with reviewing(models[1]) as reviewer:
        found = [sentence async for sentence in reviewer.refine(tokens())]
    assert [sentence.text for sentence in found] == [
        "A cat is sleeping on the sofa. ",
        "Prices rose in May. ",
        "The cat sleeps on the couch. ",
    ]
    assert [sentence.verdict for sentence in found] == [Verdict.NEW, Verdict.NEW, Verdict.REPEATED]
    assert [sentence.tokens for sentence in found] == [3, 3, 4]


def sentences_of(pieces: list[str]) -> list[str]:
    sentences = Sentences()
    return [found for piece in pieces for found in sentences.add(piece)] + sentences.rest()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One. ", "Two! ", "Three?"]),
        ('"Stop!" he said. It was 3.14 p.m.', ['"Stop!" ', "he said. ", "It was 3.14 p.m."]),
        ("A title\n\nThe text.\n", ["A title\n\n", "The text.\n"]),
        ("\n One.", ["\n One."]),
        ("", []),
    ],
)
def test_a_text_is_cut_where_sentences_end(text: str, expected: list[str]) -> None:
    assert sentences_of([text]) == expected


@given(st.lists(st.text(alphabet="ab.! \n"), max_size=8))
def test_sentences_do_not_depend_on_the_pieces_and_lose_nothing(pieces: list[str]) -> None:
    whole = "".join(pieces)
    assert sentences_of(pieces) == sentences_of(list(whole)) == sentences_of([whole])
    assert "".join(sentences_of(pieces)) == whole


def test_a_sentence_without_an_end_is_cut() -> None:
    assert [len(sentence) for sentence in sentences_of(["x" * 1000])] == [MAX_CHARACTERS, MAX_CHARACTERS, 200]
