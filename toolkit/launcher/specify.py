"""(graph, deployment, addresses) → the specification of one replica. Pure; `up` and the exporters share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from toolkit.launcher.manifest import Batching, Deployment, Graph, Remote
from toolkit.launcher.trust import Trust
from toolkit.spec import ReplicaSpec


def specify(
    graph: Graph, name: str, *, listen: tuple[str, ...], addresses: Mapping[str, tuple[str, ...]], trust: Trust
) -> ReplicaSpec:
    """What the file says of a deployment, and how it reaches the others. `addresses` are those of the ones that run here."""
    deployment = graph.services[name]
    called: dict[str, Deployment | Remote] = {**graph.services, **graph.remotes}
    said: dict[str, Any] = {
        "timeout": deployment.traffic.timeout,
        "idle_timeout": deployment.traffic.idle_timeout,
        "max_concurrency": deployment.traffic.max_concurrency,
        "max_queue": deployment.traffic.max_queue,
        "max_outstanding": deployment.traffic.max_outstanding,
    }
    return ReplicaSpec(
        service=deployment.service,
        command=tuple(deployment.command),
        deployment=name,
        listen=listen,
        args=deployment.args,
        addresses={**addresses, **{remote: (each.url,) for remote, each in graph.remotes.items()}},
        bind=deployment.bind,
        batching={method: _said(limits) for method, limits in deployment.batching.items()},
        message_limits={each: limit for each, one in called.items() if (limit := one.traffic.max_message)},
        hedges={each: hedge for each, one in called.items() if (hedge := one.traffic.hedge) is not None},
        ahead={each: ahead for each, one in called.items() if (ahead := one.traffic.ahead) is not None},
        forward=tuple(graph.forward),
        reflection=True,
        incoming=trust.incoming,
        outgoing=trust.outgoing,
        insecure=deployment.insecure,
        **{option: value for option, value in said.items() if value is not None},
    )


def _said(limits: Batching) -> dict[str, float]:
    return {option: value for option, value in asdict(limits).items() if value is not None}
