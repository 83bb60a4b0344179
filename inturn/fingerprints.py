"""Whether the processes of a deployment run with the same settings, as far as they have to: those are read at the start.

Compared is what ``inturn config show`` shows, so no digest is one of a secret: keys are no settings, headers are masked.
Left out is what may well differ from process to process: ports, logs, lanes, concurrency, deadlines.
"""

import json
from collections.abc import Collection, Iterable, Iterator
from hashlib import sha256
from typing import TYPE_CHECKING

from inturn import __version__
from inturn.models.states import Lane, ProcessKind

if TYPE_CHECKING:
    from inturn.models.store.presence import WorkerInfo
    from inturn.settings import Settings

EVERYWHERE: dict[str, tuple[str, ...]] = {"webhooks": ("webhooks",)}
IN_CLEANUPS: dict[str, tuple[str, ...]] = {
    "retention": (
        "retention", "retention_days", "max_removal_share", "cleanup_interval_seconds",
        "receipt_days", "batch_days", "unread_batch_days", "delivery_days", "spending_days",
    )
}  # fmt: skip
IN_TURNS: dict[str, tuple[str, ...]] = {
    "providers": ("providers",),
    "budgets": ("budgets",),
    "limits": ("max_attempts", "max_ambiguous_attempts", "max_rescues", "max_tool_rounds", "context_turns"),
}
"""Settings by what they are about, as far as who answers turns uses them."""


def fingerprints(settings: "Settings", kind: ProcessKind, lanes: Collection[str]) -> dict[str, str]:
    """Digests of the settings that such a process uses, by what they are about."""
    used = dict(EVERYWHERE)
    if kind is ProcessKind.BEAT or Lane.MAINTENANCE in lanes:
        used |= IN_CLEANUPS
    if {Lane.CHAT, Lane.BATCH} & set(lanes):
        used |= IN_TURNS
    shown = settings.masked()
    return {about: _digest([shown[name] for name in names]) for about, names in used.items()}


def _digest(values: list[object]) -> str:
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def started_otherwise(
    settings: "Settings", processes: "Iterable[WorkerInfo]"
) -> "Iterator[tuple[WorkerInfo, list[str]]]":
    """Who of the living was started with other settings, and what those are about. Another version has other settings."""
    for process in processes:
        if process.alive and process.version == __version__ and process.settings is not None:
            ours = fingerprints(settings, process.kind, process.lanes.split(","))
            if apart := [about for about, digest in ours.items() if process.settings.get(about) != digest]:
                yield process, apart
