"""An ensemble: two classifiers are asked at once, and their answers merged. One may fail."""

from __future__ import annotations

import asyncio

from services.classification.v1.classification_toolkit import ClassificationClient, ClassifyRequest, Label
from services.ensemble.v1.ensemble_toolkit import EnsembleBase, Prediction, Vote
from toolkit.context import Context
from toolkit.errors import Code, ServiceError
from toolkit.service import depends


class Ensemble(EnsembleBase):
    """Holds no model. A classifier with other replicas, another device or another owner is a line in the graph file."""

    by_meaning = depends(ClassificationClient)
    by_likelihood = depends(ClassificationClient)

    async def predict(self, request: ClassifyRequest, context: Context) -> Prediction:
        votes = await asyncio.gather(
            self._vote("by_meaning", self.by_meaning, request),
            self._vote("by_likelihood", self.by_likelihood, request),
        )
        return Prediction(labels=_mean([vote.labels for vote in votes if not vote.error]), votes=list(votes))

    async def _vote(self, name: str, classifier: ClassificationClient, request: ClassifyRequest) -> Vote:
        """A failure becomes a value, so that it does not take the other's answer with it."""
        try:
            reply = await classifier.classify(request)
        except ServiceError as error:
            if error.code is Code.INVALID_ARGUMENT:  # the request is to blame, for every classifier
                raise
            return Vote(classifier=name, error=str(error))
        return Vote(classifier=name, labels=reply.labels)


def _mean(answers: list[list[Label]]) -> list[Label]:
    if not answers:
        raise ServiceError(Code.UNAVAILABLE, "no classifier has answered")
    total: dict[str, float] = {}
    for labels in answers:
        for label in labels:
            total[label.name] = total.get(label.name, 0.0) + label.score / len(answers)
    return [Label(name=name, score=total[name]) for name in sorted(total, key=lambda name: -total[name])]
