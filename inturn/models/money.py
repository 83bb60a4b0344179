"""How sums of money are written, in messages and in tables: US dollars, without their sign."""


def dollars(usd: float) -> str:
    """``20.00``; below one, hundredths of a cent where there are any (``0.0042``)."""
    if 0 < usd < 0.0001:
        return "<0.0001"
    if usd >= 1:
        return f"{usd:,.2f}"
    cents = f"{usd:.4f}"
    return cents[:-2] + cents[-2:].rstrip("0")
