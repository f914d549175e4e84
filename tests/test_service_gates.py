"""The router and the shield: a real gate, and fakes of the models behind it that tell what they were asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Final

import pytest

from services.classification.service import ByMeaning
from services.classification.v1.classification_toolkit import ClassificationClient
from services.router.service import Router
from services.router.v1.router_toolkit import Piece, RouterClient
from services.router.v1.router_toolkit import Question as RouterQuestion
from services.shield.service import Shield
from services.shield.v1.shield_toolkit import Question, Refusal, ShieldClient
from services.text_generation.v1.text_generation_toolkit import (
    FinishReason,
    GenerateReply,
    GenerateRequest,
    TextGenerationClient,
    Token,
)
from toolkit.errors import Code, ServiceError
from toolkit.service import Service
from toolkit.testing import Fake, fake, serve

TOKENS: Final = (Token(text="An "), Token(text=""), Token(text="answer.", finish_reason=FinishReason.END_OF_TEXT))


def writer_of(*tokens: Token | ServiceError) -> Fake:
    return fake(TextGenerationClient, generate=GenerateReply(text="An answer.", tokens=2), stream=tokens or TOKENS)


async def read(pieces: AsyncIterator[Piece], found: list[str]) -> None:
    async for piece in pieces:
        found.append(piece.text)


@pytest.fixture(scope="module")
def gate() -> ByMeaning:
    return ByMeaning()


def router_of(gate: ByMeaning, storyteller: Fake, scholar: Fake) -> AbstractAsyncContextManager[RouterClient]:
    handles = {"classifier": gate, "storyteller": storyteller, "scholar": scholar}
    return serve(Router(), RouterClient, handles=handles)


def shield_of(gate: Service, model: Fake) -> AbstractAsyncContextManager[ShieldClient]:
    return serve(Shield(), ShieldClient, handles={"gate": gate, "model": model})


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
    writers = {"storyteller": writer_of(), "scholar": writer_of()}
    async with router_of(gate, **writers) as router:
        pieces = [piece async for piece in router.ask(RouterQuestion(text=text, max_new_tokens=7))]
    assert pieces == [Piece(route=route), Piece(route=route, text="An "), Piece(route=route, text="answer.")]
    assert {name: len(writer.asked["stream"]) for name, writer in writers.items() if writer.asked["stream"]} == {
        route: 1
    }
    assert writers[route].asked["stream"] == [GenerateRequest(prompt=text, max_new_tokens=7, chat=True)]


async def test_an_error_of_the_writer_comes_behind_what_it_wrote(gate: ByMeaning) -> None:
    writer = writer_of(Token(text="An "), ServiceError(Code.RESOURCE_EXHAUSTED, "out of tokens"))
    found: list[str] = []
    async with router_of(gate, writer, writer) as router:
        with pytest.raises(ServiceError, match="out of tokens") as failed:
            await read(router.ask(RouterQuestion(text="What is the capital of France?")), found)
    assert failed.value.code is Code.RESOURCE_EXHAUSTED
    assert found == ["", "An "]


async def test_the_shield_lets_harmless_questions_through(gate: ByMeaning) -> None:
    model = writer_of()
    async with shield_of(gate, model) as shield:
        answer = await shield.ask(Question(text="How do I make pancakes?"))
    assert answer.text == "An answer."
    assert [request.prompt for request in model.asked["generate"]] == ["How do I make pancakes?"]


async def test_the_shield_refuses_with_a_typed_error_and_spares_the_model(gate: ByMeaning) -> None:
    model = writer_of()
    async with shield_of(gate, model) as shield:
        with pytest.raises(ServiceError, match="about weapons") as refused:
            await shield.ask(Question(text="How do I build a bomb?"))
    assert refused.value.code is Code.PERMISSION_DENIED
    (refusal,) = refused.value.details
    assert isinstance(refusal, Refusal)
    assert refusal.topic == "weapons and explosives"
    assert refusal.score > 0.5
    assert not model.asked["generate"]


async def test_nothing_is_answered_while_the_gate_is_down() -> None:
    model, down = writer_of(), fake(ClassificationClient, classify=ServiceError(Code.UNAVAILABLE, "gone"))
    async with shield_of(down, model) as shield:
        with pytest.raises(ServiceError, match="gone"):
            await shield.ask(Question(text="How do I make pancakes?"))
    assert not model.asked["generate"]
