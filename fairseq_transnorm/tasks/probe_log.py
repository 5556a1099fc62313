"""Probes of the induction head, seen while a model trains: mixed into a task of triggers."""

from typing import Any


class ProbeLogMixin:
    """Mixed into a task of fairseq's, before it."""

    cfg: Any
