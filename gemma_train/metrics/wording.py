"""Large numbers and long times as a person says them."""


def count(number: float) -> str:
    """A count in three digits: 987, 12.3k, 4.56M, 7.89B, 1.23T."""
    for unit in ("", "k", "M", "B"):
        if abs(number) < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:,.3g}T"


def duration(seconds: float) -> str:
    """A time in its two largest units: 42 s, 3 min 20 s, 5 h 10 min, 2 d 4 h."""
    rest = round(seconds)
    for unit, next_unit, size, next_size in (
        ("d", "h", 86_400, 3600),
        ("h", "min", 3600, 60),
        ("min", "s", 60, 1),
    ):
        if rest >= size:
            return f"{rest // size} {unit} {rest % size // next_size} {next_unit}"
    return f"{rest} s"


def longest_unit(seconds: float) -> tuple[str, str]:
    """A time as a figure and its unit: ("5.2", "hours")."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g}", unit
    return f"{seconds:.3g}", "seconds"


def scientific(number: float) -> str:
    """Three digits, with a power of ten below a hundredth: 12, 0.415, 6·10⁻⁴."""
    if number == 0 or abs(number) >= 0.01:
        return f"{number:.3g}"
    mantissa, exponent = f"{number:.2e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{float(mantissa):g}·10{raised}"


def byte_count(size: float) -> str:
    """Bytes, held or moved, in three digits by powers of 1000: 640 B, 15.7 MB, 6.4 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} PB"


def moment(seconds: float) -> str:
    """A short time in three digits: 5.01 ms, 518 ms, 3.16 s."""
    if seconds >= 0.9995:
        return f"{seconds:.3g} s"
    return f"{1000 * seconds:.3g} ms" if seconds else "0 ms"
