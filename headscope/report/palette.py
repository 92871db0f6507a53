"""Colours of figures and reports, once for light and once for dark paper.

Figures are drawn in the light colours; a report swaps each for its dark partner when the reader's system is dark.
The sequential ramps run evenly in OKLCH lightness from paper to ink (or back), so order survives every kind of
colour blindness and grey print. Text colours reach WCAG AA (4.5 : 1) on their paper, marks 3 : 1.
"""

from __future__ import annotations

LIGHT = {
    "paper": "#fbfaf7",
    "panel": "#ffffff",
    "ink": "#1b1d21",
    "soft": "#575c64",
    "line": "#dfdcd4",
    "wash": "#f0eee7",
    "accent": "#1f5f99",
    "warm": "#b5480f",
    "grey": "#80868e",
    "band": "#e3e1db",
    "gold": "#a8740a",
    "heat": "#ffb454",
    "good": "#1d6b45",
    "bad": "#a3292d",
    "on-low": "#080807",
    "on-high": "#fefefe",
}
DARK = {
    "paper": "#14161a",
    "panel": "#1a1d22",
    "ink": "#e9e7e2",
    "soft": "#a6abb3",
    "line": "#32363d",
    "wash": "#22262c",
    "accent": "#7fb6ec",
    "warm": "#f2955c",
    "grey": "#8b9199",
    "band": "#2b3037",
    "gold": "#dcae4e",
    "heat": "#8f5600",
    "good": "#6ecb98",
    "bad": "#f08a8a",
    "on-low": "#fefefd",
    "on-high": "#080808",
}
ON_MIDDLE = "#080806"
"""Text on the middle of a ramp is black on either paper; on its ends it follows ``on-low`` and ``on-high``."""

RAMP_LIGHT = ("#f5f0de", "#d0dcad", "#97cb93", "#4bb891", "#179c96", "#0f7e91", "#01608a", "#244175", "#2b284d")
RAMP_DARK = ("#242142", "#1e3a6c", "#09597f", "#03778a", "#109691", "#38b58b", "#8fc98a", "#cddaa0", "#f7efd0")
"""Low to high, in nine steps of equal lightness."""

DIVERGING_LIGHT = (
    "#9b4805",
    "#b3724c",
    "#c89b82",
    "#dcc4b7",
    "#eeeeee",
    "#baccdf",
    "#87aace",
    "#5488bc",
    "#1666aa",
)
DIVERGING_DARK = ("#efa464", "#b98357", "#866448", "#554539", "#292929", "#3d4b59", "#516f8e", "#6595c6", "#7abdff")
"""Negative, nothing, positive: orange to blue, told apart by every common kind of colour vision."""


def on_ramp(share: float, *, diverging: bool = False) -> str:
    """Colour of text on a cell at ``share`` (0 to 1) of a ramp: the better of black and white, in light and in dark."""
    if diverging:
        # Where the better one changes: in the dark nearer to the middle than in the light.
        distance, dark, light = abs(2 * share - 1), 0.575, 0.824 if share < 0.5 else 0.85
        return LIGHT["on-low"] if distance < dark else ON_MIDDLE if distance < light else LIGHT["on-high"]
    return LIGHT["on-low"] if share < 0.428 else ON_MIDDLE if share < 0.608 else LIGHT["on-high"]


def ramp(colours: tuple[str, ...]) -> list[list[float | str]]:
    """Write colours as a plotly colour scale."""
    return [[round(i / (len(colours) - 1), 4), colour] for i, colour in enumerate(colours)]


def dark_of() -> dict[str, str]:
    """Map of every light colour to its dark partner."""
    pairs = {LIGHT[name]: DARK[name] for name in LIGHT}
    pairs |= dict(zip(RAMP_LIGHT, RAMP_DARK, strict=True))
    pairs |= dict(zip(DIVERGING_LIGHT, DIVERGING_DARK, strict=True))
    return pairs


def css() -> str:
    """Write both palettes as custom properties of a style sheet; the reader's system chooses."""
    light, dark = _properties()
    return f":root{{color-scheme:light dark;{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"


def css_of_scheme() -> str:
    """Write both palettes as custom properties; the page chooses, by the attribute that Mantine sets."""
    light, dark = _properties()
    return f':root{{color-scheme:light;{light}}}:root[data-mantine-color-scheme="dark"]{{color-scheme:dark;{dark}}}'


def _properties() -> tuple[str, str]:
    light, dark = ("".join(f"--{name}:{colour};" for name, colour in colours.items()) for colours in (LIGHT, DARK))
    sequential = [f"--ramp:{','.join(colours)};" for colours in (RAMP_LIGHT, RAMP_DARK)]
    diverging = [f"--diverging:{','.join(colours)};" for colours in (DIVERGING_LIGHT, DIVERGING_DARK)]
    return light + sequential[0] + diverging[0], dark + sequential[1] + diverging[1]
