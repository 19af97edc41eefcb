"""Figures and names as they are read on the page, the same in every table and chart."""

from names import LOSSES
from run_lib.units import plain, scale_of_bytes

NONE = "–"


def count_text(value):
    return NONE if value is None else f"{round(value):,}".replace(",", "\u2009")


def real_text(value, digits=6):
    if value is None:
        return NONE
    return plain(value, digits).replace("-", "−") if value else "0"


def bytes_text(value):
    """Binary units, as on moesim's screen; four digits, as in the charts."""
    if value is None:
        return NONE
    sign, (size, unit) = "−" if value < 0 else "", scale_of_bytes(abs(value))
    value = abs(value) / size
    return f"{sign}{value:.0f} B" if unit == "B" else f"{sign}{value:.4g} {unit}"


def seconds_text(value):
    if value is None:
        return NONE
    sign, value = "−" if value < 0 else "", abs(value)
    for scale, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= scale or unit == "µs":
            return f"{sign}{value / scale:.3g} {unit}"


def share_text(value):
    return NONE if value is None else f"{100 * value:.1f} %".replace("-", "−")


def value_text(value):
    """A configuration's value as in config.ini."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value == int(value):
        return f"{value:g}"
    return NONE if value is None or value == "" else str(value)


def loss_name(name):
    """The name of a loss as it is said."""
    return LOSSES.get(name, name.replace("_", " "))
