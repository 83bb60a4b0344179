"""What a check-up finds of where settings come from: which are not the defaults, and which of two that were given counts."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from inturn.cli.checkup.finding import Finding

if TYPE_CHECKING:
    from inturn.settings import Settings

MERGED = {"providers"}
"""Given in several places, all of them count."""


def check_origins(settings: "Settings") -> Iterator[Finding]:
    from inturn.origins import FLAG, layers_of

    origins = settings.origins()
    chosen = {name: origin for name, origin in origins.items() if origin != "default"}
    told = ", ".join(f"{name} ({origin})" for name, origin in chosen.items())
    shows = "`inturn config show` has the values"
    sentence = (
        f"{len(chosen)} of {len(origins)} are not the defaults: {told}. {shows}" if chosen else "all are the defaults"
    )
    yield Finding("ok", "origins", sentence, "settings.origins", more={"origins": chosen})
    layers = list(layers_of({}))
    for name, origin in chosen.items():
        given = [place for place, values in layers if name in values and place != origin]
        if name in MERGED or not given:
            continue
        values = {place: values[name] for place, values in layers if name in values}
        if origin != FLAG and all(str(values[place]) == str(values.get(origin)) for place in given):
            continue  # said twice, and the same
        places = " and ".join(given)
        yield Finding(
            "note",
            "origins",
            f"{name} is what {'the flag' if origin == FLAG else origin} says, and what {places} "
            f"{'says' if len(given) == 1 else 'say'} is not used: take {'it' if len(given) == 1 else 'them'} out, or "
            f"{'give no flag' if origin == FLAG else 'take the other one out'}",
            "settings.overridden",
            more={"setting": name, "origin": origin, "overridden": given},
        )
    if settings.database_url.startswith("postgresql") and settings.has_embedded_broker:
        yield Finding(
            "note",
            "origins",
            f"database_url is set ({origins['database_url']}), and broker_url is not: hints go through the embedded broker "
            f"in {settings.home}, which workers on other machines do not see. Set INTURN_BROKER_URL for those",
            "settings.broker",
        )
