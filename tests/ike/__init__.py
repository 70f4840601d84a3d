"""Tests of the IKEv2 engine."""

from __future__ import annotations
