"""Authentication in IKE_AUTH: pre-shared keys and X.509 certificates (RFC 7296 sections 2.15 and 3.6-3.8, RFC 7427)."""

from __future__ import annotations
