"""What a user called a model, kept so that the same can be asked for again. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glimt.models.zoo import BUNDLED


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint came from.

    Attributes:
        source: what was asked for, word for word. A path is not completed or resolved, so that a record tells no more
            of somebody's folders than was typed.
        revision: the commit that a Hub id stood for; "" of anything else.
        base: the same of the model that a lone transformer took the rest from.
    """

    source: str
    revision: str = ""
    base: Origin | None = None

    def again(self) -> str | Path:
        """What opens the same model: a Hub id comes with its commit, a path is one also where nothing is there."""
        if self.source == BUNDLED:
            return BUNDLED
        if self.revision:
            return f"{self.source.partition('@')[0]}@{self.revision}"
        return Path(self.source)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what is empty is left out."""
        values = {"source": self.source, "revision": self.revision, "base": self.base and self.base.to_dict()}
        return {name: value for name, value in values.items() if value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Origin:
        """What :meth:`to_dict` gave, other names beside it allowed; ``video.record`` has checked it."""
        base = values.get("base")
        return cls(values["source"], values.get("revision", ""), cls.from_dict(base) if base else None)
