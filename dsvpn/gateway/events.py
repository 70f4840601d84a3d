"""What the gateway reports to whoever runs it: one line a piece, with the same facts as fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Level = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class GatewayEvent:
    """Something an operator may want to know. `name` is a stable word in snake case, `fields` are its facts."""

    level: Level
    name: str
    message: str
    fields: dict[str, str | int] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message
