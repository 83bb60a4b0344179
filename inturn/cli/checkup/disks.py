"""What a check-up finds of this machine's disk: room for the embedded database and broker, and logs that have grown."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from inturn.cli.checkup.finding import Finding
from inturn.cli.words import size

if TYPE_CHECKING:
    from inturn.settings import Settings

LOW_BYTES, LOW_SHARE = 2 * 1000**3, 0.05
"""Less than both is free: told."""
NONE_BYTES = 50 * 1000**2
LOG_BYTES = 200 * 1000**2


def check_disks(settings: "Settings") -> Iterator[Finding]:
    url, home = settings.effective_database_url, settings.home
    places = {home: "the home"}
    if url.startswith("sqlite"):
        file = Path(url.removeprefix("sqlite:///").partition("?")[0])
        places = {file.parent: "the database"} if settings.database_url else places
    for place, what in places.items():
        if place.exists():
            yield from check_room(place, what)
    yield from check_logs(home / "log")


def check_room(place: Path, what: str) -> Iterator[Finding]:
    try:
        disk = shutil.disk_usage(place)
    except OSError as error:
        yield Finding(
            "warn", "disk", f"{place} cannot be looked at ({error.strerror}): check its permissions", "disk.room"
        )
        return
    figures = {"free_bytes": disk.free, "total_bytes": disk.total}
    told = f"{size(disk.free)} of {size(disk.total)} are free where {what} is ({place})"
    if disk.free < NONE_BYTES:
        fact = f"{told}: prompts and replies can hardly be stored. Free some space now"
        yield Finding("fail", "disk", fact, "disk.room", more=figures)
    elif disk.free < min(LOW_BYTES, disk.total * LOW_SHARE):
        mend = "free some, shorten retention (`inturn cleanup --dry-run`), or move to a larger disk"
        yield Finding(
            "warn", "disk", f"{told}, and nothing is accepted once it is full: {mend}", "disk.room", more=figures
        )
    else:
        yield Finding("ok", "disk", told, "disk.room", more=figures)


def check_logs(directory: Path) -> Iterator[Finding]:
    """They are put aside at 10 MB, and one before is kept of each; those of more workers than there are now stay, too."""
    sizes = {path: path.stat().st_size for path in sorted(directory.glob("*.log*")) if path.is_file()}
    if (total := sum(sizes.values())) <= LOG_BYTES:
        return
    largest = max(sizes, key=lambda path: sizes[path])
    yield Finding(
        "warn",
        "logs",
        f"{size(total)} in {directory}, {size(sizes[largest])} of it in {largest.name}: a process that runs puts its log "
        "aside at 10 MB, so restart `inturn up` if that one grows, and remove those that nobody writes any more",
        "disk.logs",
        more={"bytes": total},
    )
