"""The log: one line a fact on standard error, for people or as JSON."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import structlog


def configure_log(level: Literal["debug", "info", "warning", "error"], form: Literal["console", "json"]) -> None:
    """Set up structlog for this process. `form` "console": for people (with colours on a terminal), "json": a line
    of JSON an event, with `timestamp` (UTC, ISO 8601), `level`, `event` and the event's fields."""
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if form == "json":
        renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
        shared.append(structlog.processors.format_exc_info)
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
