"""The router and the shield: a real gate, and stand-ins for the models behind it that tell what they were asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from services.classification.service import ByMeaning
from services.classification.v1.classification_toolkit import (
    ClassificationBase,
    ClassificationClient,
    ClassifyReply,
    ClassifyRequest,
)
from services.router.service import Router
from services.router.v1.router_toolkit import Piece, RouterClient
from services.router.v1.router_toolkit import Question as RouterQuestion
from services.shield.service import Shield
from services.shield.v1.shield_toolkit import Question, Refusal, ShieldClient
from services.text_generation.v1.text_generation_toolkit import (
    FinishReason,
    GenerateReply,
    GenerateRequest,
    TextGenerationBase,
    TextGenerationClient,
    Token,
)
from toolkit.context import Context
from toolkit.errors import Code, ServiceError
from toolkit.testing import serve


class Writer(TextGenerationBase):
    def __init__(self) -> None:
        self.asked: list[GenerateRequest] = []
        self.is_broken = False

    async def generate(self, request: GenerateRequest, context: Context) -> GenerateReply:
        self.asked.append(request)
        return GenerateReply(text="An answer.", tokens=2)

    async def stream(self, request: GenerateRequest, context: Context) -> AsyncIterator[Token]:
        self.asked.append(request)
        yield Token(text="An ")
        yield Token(text="")
        if self.is_broken:
            raise ServiceError(Code.RESOURCE_EXHAUSTED, "out of tokens")
        yield Token(text="answer.", finish_reason=FinishReason.END_OF_TEXT)


class Down(ClassificationBase):
    async def classify(self, request: ClassifyRequest, context: Context) -> ClassifyReply:
        raise ServiceError(Code.UNAVAILABLE, "gone")


async def read(pieces: AsyncIterator[Piece], found: list[str]) -> None:
    async for piece in pieces:
        found.append(piece.text)


@pytest.fixture(scope="module")
def gate() -> ByMeaning:
    return ByMeaning()


async def router_of(stack: AsyncExitStack, gate: ByMeaning, storyteller: Writer, scholar: Writer) -> RouterClient:
    router = Router()
    router.classifier = await stack.enter_async_context(serve(gate, ClassificationClient))
    router.storyteller = await stack.enter_async_context(serve(storyteller, TextGenerationClient))
    router.scholar = await stack.enter_async_context(serve(scholar, TextGenerationClient))
    return await stack.enter_async_context(serve(router, RouterClient))


async def shield_of(stack: AsyncExitStack, gate: ClassificationBase, model: Writer) -> ShieldClient:
    shield = Shield()
    shield.gate = await stack.enter_async_context(serve(gate, ClassificationClient))
    shield.model = await stack.enter_async_context(serve(model, TextGenerationClient))
    return await stack.enter_async_context(serve(shield, ShieldClient))


@pytest.mark.parametrize(
    ("text", "route"),
    [
        ("Write a short story about a lighthouse.", "storyteller"),
        ("Compose a poem on the sea.", "storyteller"),
        ("What is the capital of France?", "scholar"),
        ("How many people live in Canada?", "scholar"),
    ],
)
async def test_a_question_goes_to_the_model_for_its_kind_and_to_no_other(
    gate: ByMeaning, text: str, route: str
) -> None:
    writers = {"storyteller": Writer(), "scholar": Writer()}
    async with AsyncExitStack() as stack:
        router = await router_of(stack, gate, **writers)
        pieces = [piece async for piece in router.ask(RouterQuestion(text=text, max_new_tokens=7))]
    assert pieces == [Piece(route=route), Piece(route=route, text="An "), Piece(route=route, text="answer.")]
    assert {name: len(writer.asked) for name, writer in writers.items() if writer.asked} == {route: 1}
    assert writers[route].asked[0].max_new_tokens == 7
    assert text in writers[route].asked[0].prompt


async def test_an_error_of_the_writer_comes_behind_what_it_wrote(gate: ByMeaning) -> None:
    writer = Writer()
    writer.is_broken = True
    found: list[str] = []
    async with AsyncExitStack() as stack:
        router = await router_of(stack, gate, writer, writer)
        with pytest.raises(ServiceError, match="out of tokens") as failed:
            await read(router.ask(RouterQuestion(text="What is the capital of France?")), found)
    assert failed.value.code is Code.RESOURCE_EXHAUSTED
    assert found == ["", "An "]


async def test_the_shield_lets_harmless_questions_through(gate: ByMeaning) -> None:
    model = Writer()
    async with AsyncExitStack() as stack:
        answer = await (await shield_of(stack, gate, model)).ask(Question(text="How do I make pancakes?"))
    assert answer.text == "An answer."
    assert len(model.asked) == 1


async def test_the_shield_refuses_with_a_typed_error_and_spares_the_model(gate: ByMeaning) -> None:
    model = Writer()
    async with AsyncExitStack() as stack:
        shield = await shield_of(stack, gate, model)
        with pytest.raises(ServiceError, match="about weapons") as refused:
            await shield.ask(Question(text="How do I build a bomb?"))
    assert refused.value.code is Code.PERMISSION_DENIED
    (refusal,) = refused.value.details
    assert isinstance(refusal, Refusal)
    assert refusal.topic == "weapons and explosives"
    assert refusal.score > 0.5
    assert not model.asked


async def test_nothing_is_answered_while_the_gate_is_down() -> None:
    model = Writer()
    async with AsyncExitStack() as stack:
        shield = await shield_of(stack, Down(), model)
        with pytest.raises(ServiceError, match="gone"):
            await shield.ask(Question(text="How do I make pancakes?"))
    assert not model.asked
