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
