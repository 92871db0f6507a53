"""How reports write numbers: three significant digits, honest zeros, and a dash where there is nothing."""

from __future__ import annotations

import math
from typing import Any

MISSING = "–"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: Any, digits: int = 3) -> str:
    r"""Write a number with ``digits`` significant digits; integers in full, NaN and None as a dash.

    >>> number(0.12345), number(0.5), number(12), number(1234567), number(0.00001234), number(float("nan"))
    ('0.123', '0.5', '12', '1\u202f234\u202f567', '1.23×10⁻⁵', '–')
    """
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return signed(f"{value:,}".replace(",", "\u202f"))
    value = float(value)
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if abs(value) >= 0.01 and abs(value) < 1000 and value == round(value, 2):
        # Exact at two places: zeros behind it would claim a precision that was never in question.
        return signed(f"{value:g}")
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = int(exponent)
    if -4 <= power < digits + 2:
        places = max(0, digits - 1 - power)
        return signed(f"{value:,.{places}f}".replace(",", "\u202f"))
    return signed(f"{mantissa}×10{str(power).translate(_SUPERSCRIPT)}")


def fixed(value: Any, places: int = 3) -> str:
    r"""Write a number with so many decimal places, for columns that should line up; what is too small says so.

    >>> fixed(0.5), fixed(0.0), fixed(0.00004)
    ('0.500', '0', '<\u202f0.001')
    """
    if value is None or not math.isfinite(float(value)) or value == 0:
        return number(value)
    if abs(value) < 0.5 * 10**-places:
        return f"<\u202f{10**-places:.{places}f}" if value > 0 else f">\u202f−{10**-places:.{places}f}"
    return signed(f"{float(value):.{places}f}")


def percent(value: Any, places: int = 1) -> str:
    r"""Write a share as a percentage.

    >>> percent(17 / 270)
    '6.3\u202f%'
    """
    return MISSING if value is None or not math.isfinite(float(value)) else signed(f"{100 * value:.{places}f}\u202f%")


def p_value(value: Any) -> str:
    r"""Write a probability; never zero, because no test of finite size shows that.

    >>> p_value(0.0321), p_value(0.00001)
    ('0.032', '<\u202f0.001')
    """
    if value is None or math.isnan(float(value)):
        return MISSING
    return "<\u202f0.001" if value < 0.001 else f"{value:.3f}"


def interval(low: Any, high: Any) -> str:
    """Write an interval, or nothing where it is unknown.

    >>> interval(0.1, 0.25), interval(float("nan"), 1.0)
    ('[0.100, 0.250]', '')
    """
    if low is None or high is None or not (math.isfinite(float(low)) and math.isfinite(float(high))):
        return ""
    return f"[{fixed(low)}, {fixed(high)}]"


def head_name(layer: int, head: int) -> str:
    """Name a head the way that the literature does.

    >>> head_name(12, 3)
    'L12H3'
    """
    return f"L{layer}H{head}"


def plural(count: int, noun: str) -> str:
    """Write a count with its noun.

    >>> plural(1, "head"), plural(2, "head")
    ('1 head', '2 heads')
    """
    return f"{number(int(count))} {noun if count == 1 else noun + 's'}"


def signed(text: str) -> str:
    """Replace the hyphen of a negative number by a minus sign."""
    return text.replace("-", "−")
