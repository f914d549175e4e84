"""One graph file and what is laid over it: other files (`-f production.yaml`), then `--set gpt2.replicas=2`. Pure but for the
reading; every value keeps the place where it was said.

The rules: mappings are merged key by key, everything else is replaced, and `~` takes a key away. A deployment that says
another of `class`, `url` and `command` than the one below it is replaced as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from toolkit.errors import GraphError
from toolkit.launcher.document import Document, Key, Place, Problem, read_document, read_text
from toolkit.launcher.hints import no_deployment

KINDS = ("class", "url", "command")
"""What a deployment is: one of these."""


def read_layers(path: Path, overrides: Sequence[Path] = (), assignments: Sequence[str] = ()) -> Document:
    """All of them as one document. Raises GraphError where one of them cannot be read."""
    document = _with_env(read_document(path))
    for override in overrides:
        document = lay_over(document, _read_override(override))
    for assignment in assignments:
        document = lay_over(document, read_assignment(assignment, document))
    return document


def _read_override(path: Path) -> Document:
    document = read_document(path)
    if document.values is None:
        return replace(document, values={})
    if not isinstance(document.values, dict):
        raise GraphError(f"{path}:1: must be a mapping with keys of the graph file")
    return _with_env(document)


def lay_over(below: Document, above: Document) -> Document:
    """`below`, with all that `above` says."""
    if not isinstance(below.values, dict):
        return below
    merged = _Merged({}, [*below.problems, *above.problems])
    values = merged.mapping((), below.values, below.places, above)
    sources = tuple(dict.fromkeys((*below.sources, *above.sources)))
    return Document(sources, values, merged.places, tuple(merged.problems))


@dataclass(frozen=True, slots=True)
class _Merged:
    places: dict[Key, Place]
    problems: list[Problem]

    def mapping(
        self, key: Key, below: Mapping[str, Any], below_places: Mapping[Key, Place], above: Document
    ) -> dict[str, Any]:
        """What stands at `key` in both."""
        found: dict[str, Any] = {}
        layer = _at(above.values, key)
        for name in dict.fromkeys((*below, *layer)):
            here = (*key, name)
            old, new = below.get(name), layer.get(name)
            if name not in layer:
                found[name] = self.value(here, old, below_places)
            elif new is None:
                if name not in below:
                    self.problems.append(above.problem(here, "nothing is said here that ~ could take away"))
            elif isinstance(old, dict) and isinstance(new, dict) and not _is_another(here, old, new):
                self.places[here] = below_places[here]
                found[name] = self.mapping(here, old, below_places, above)
            else:
                found[name] = self.value(here, new, above.places)
        return found

    def value(self, key: Key, value: Any, places: Mapping[Key, Place]) -> Any:
        """A value as it is, with the places of all in it."""
        if key in places:
            self.places[key] = places[key]
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for name, each in inside:
            self.value((*key, name), each, places)
        return value


def _at(values: Any, key: Key) -> Mapping[str, Any]:
    for part in key:
        values = values[part]
    return cast("Mapping[str, Any]", values)


def _is_another(key: Key, below: Mapping[str, Any], above: Mapping[str, Any]) -> bool:
    """Whether a deployment is to be something else than before."""
    kinds = [kind for kind in KINDS if kind in above]
    return len(key) == 2 and key[0] == "services" and bool(kinds) and not any(kind in below for kind in kinds)


def read_assignment(text: str, below: Document) -> Document:
    """`gpt2.args.temperature=0.9`: the deployment, its key, and a value in YAML; the value of a variable is text as it is.

    Raises GraphError.
    """
    source = f"--set {text}"
    path, separator, value = text.partition("=")
    deployment, *rest = path.split(".")
    if not separator or not rest or not all(rest):
        raise GraphError(f"{source}: write DEPLOYMENT.KEY=VALUE, such as gpt2.replicas=2")
    services = below.values.get("services") if isinstance(below.values, dict) else None
    if isinstance(services, dict) and deployment not in services:
        raise GraphError(f"{source}: {no_deployment(deployment, services)}")
    place = Place(source)
    if rest[0] in ("env", "envs"):
        rest[0], document = "env", Document((source,), value, {})
    else:
        document = read_text(value, lambda line: place, source)
    key: Key = ("services", deployment, *rest)
    places: dict[Key, Place] = {key[:length]: place for length in range(1, len(key) + 1)}
    places |= {(*key, *each): place for each in document.places}
    values = document.values
    for part in reversed(key):
        values = {part: values}
    return Document((source,), values, places, document.problems)


def _with_env(document: Document) -> Document:
    """`envs` is another spelling of `env`, and a list of names and values is one of a mapping."""
    if not isinstance(document.values, dict):
        return document
    for key in _holders(document.values):
        document = _spelled(document, key)
    return document


def _holders(values: Mapping[str, Any]) -> Iterator[Key]:
    """Where variables may be said: at the top for all, and in each deployment."""
    yield ()
    services = values.get("services")
    if isinstance(services, dict):
        yield from (("services", name) for name, service in services.items() if isinstance(service, dict))


def _spelled(document: Document, key: Key) -> Document:
    holder = document.values
    for part in key:
        holder = holder[part]
    said, own = (*key, "envs"), (*key, "env")
    if "envs" in holder and "env" in holder:
        return replace(document, problems=(*document.problems, document.problem(said, "the same as env; say it once")))
    name = "envs" if "envs" in holder else "env"
    if name not in holder:
        return document
    variables, problems = holder.pop(name), list(document.problems)
    places = {own + each[len(said) :] if each[: len(said)] == said else each: p for each, p in document.places.items()}
    if isinstance(variables, list):
        variables = dict(_named(variables, own, places, problems))
    holder["env"] = variables
    return replace(document, places=places, problems=tuple(problems))


def _named(
    items: Sequence[Any], key: Key, places: dict[Key, Place], problems: list[Problem]
) -> Iterator[tuple[str, Any]]:
    seen: set[str] = set()
    for index, item in enumerate(items):
        place = places[*key, index]
        match item:
            case {"name": str(name), "value": value, **rest} if not rest and name not in seen:
                places[*key, name] = place
                seen.add(name)
                yield name, value
            case {"name": str(name), "value": _, **rest} if not rest:
                problems.append(
                    Problem(place, (*key, name), f"written twice; the first is on line {places[*key, name].line}")
                )
            case _:
                problems.append(Problem(place, (*key, index), 'must be {name: VARIABLE, value: "text"}'))
