"""An edited graph file: what of it a graph that runs cannot take over. Pure."""

from __future__ import annotations

from dataclasses import fields

from toolkit.launcher.manifest import Deployment, Graph

LIVE = frozenset(
    {
        *("args", "batching", "device", "env", "image", "on_unsatisfiable"),
        *("replicas", "resources", "strategy", "traffic"),
    }
)
"""Keys of a deployment for which its replicas alone need be replaced, or their number be changed."""
_WRITTEN = {"service": "class", "remotes": "services"}
"""As the file has it, where that is another word."""


def find_fixed(old: Graph, new: Graph) -> str:
    """A key that differs and counts from the start of a graph on, such as `services.gpt2.class`; empty: there is none."""
    for key in ("name", "entry", "forward", "metrics", "remotes"):
        if getattr(old, key) != getattr(new, key):
            return _WRITTEN.get(key, key)
    if old.services.keys() != new.services.keys():
        return "services"
    for name, each in old.services.items():
        for key in (field.name for field in fields(Deployment) if field.name not in LIVE):
            if getattr(each, key) != getattr(new.services[name], key):
                return f"services.{name}.{_WRITTEN.get(key, key)}"
    return ""
