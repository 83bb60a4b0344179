"""Amounts, rates and lengths of time, as short as a glance needs them."""

from datetime import timedelta

UNITS = ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"))
MANY = 10_000


def amount(many: int) -> str:
    """``1,234``; ``10k+`` where counting ended; ``1.2M`` of what is more."""
    if many >= 10**6:
        return f"{many / 10**6:.1f}M"
    if many > MANY:
        return f"{many / 1000:.0f}k"
    return "10k+" if many == MANY else f"{many:,}"


def rate(per_second: float) -> str:
    if per_second <= 0:
        return "-"
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.1f}" if per_second >= 0.1 else "<0.1"


def lasting(length: timedelta | float) -> str:
    """``3.2 s``, ``45 s``, ``12 min``, ``3 h 10 min``, ``2 d 4 h``."""
    seconds = max(0.0, length.total_seconds() if isinstance(length, timedelta) else length)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min"
    for many, unit, part, smaller in UNITS:
        if seconds >= many:
            whole, rest = divmod(seconds, many)
            return f"{whole:.0f} {unit} {rest // part:.0f} {smaller}"
    raise AssertionError(seconds)
