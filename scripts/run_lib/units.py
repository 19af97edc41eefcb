"""Units in which figures are said, the same in the report and in a sweep."""

LAST_STEPS = 20  # at the end of a run, that means are taken of


def scale_of_bytes(value):
    """(size, unit) in which that many bytes are said: binary, as on moesim's screen."""
    size, unit = 1, "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        if value < 1023.95 * size:
            break
        size, unit = size * 1024, larger
    return size, unit


def plain(value, digits):
    """So many significant digits, and of a large number all of its whole ones: 11610, not 1.161e+04."""
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in text and abs(value) < 1e15 else text
