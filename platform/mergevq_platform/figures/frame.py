"""The frame of a comparison's figures: title, notes, panels, a colour and a marker for each group."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mergevq_platform.figures.compared import Entry, common_notes
from mergevq_platform.figures.series import GREY

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette, in an order that keeps neighbours apart.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")

Style = tuple[str, str]  # colour, marker

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


MOST_NAMED = 30  # groups, in a legend


def framed(
    entries: Sequence[Entry],
    title: str,
    families: str,
    panels: int,
    more: Sequence[str] = (),
    *,
    of_group: Mapping[str, Style] | None = None,
    first: Iterable[str] = (),
) -> tuple[Figure, list[Axes], list[Artist]]:
    """(figure, axes of one or two panels, legend handles of the groups), with the title, the common notes and `more` above.

    `of_group` holds the styles, of more groups than the entries have where only some are drawn. Of very many groups the legend
    names some, those of `first` before others, and the notes say so.
    """
    groups, omitted = named(entries, styles(entries) if of_group is None else of_group, first)
    said = [
        line
        for note in (*common_notes(entries), *more, *omitted)
        for line in textwrap.wrap(note, 118, break_on_hyphens=False)
    ]
    head = textwrap.wrap(title, 78)
    rows = math.ceil((len(groups) + 1) / 3)
    above = 0.45 + 0.27 * len(head) + 0.2 * len(said)
    below = 0.85 + 0.26 * rows
    width, height = (11.4 if panels == 2 else 9.2), 4.4 + above + below
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    bottom, tall = below / height, 1 - (above + below) / height
    spans = [(0.085, 0.39), (0.585, 0.39)][:panels] if panels > 1 else [(0.1, 0.86)]
    places = [(left, bottom, wide, tall) for left, wide in spans]
    axes = [figure.add_axes(place) for place in places]
    for one in axes:
        one.grid(color="#e6e6e6", linewidth=0.8)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    plain: dict[str, Any] = {"va": "top", "parse_math": False}
    edge = places[0][0]
    figure.text(edge, 1 - 0.18 / height, "\n".join(head), size=14, weight="bold", **plain)
    figure.text(
        edge,
        1 - (0.25 + 0.27 * len(head)) / height,
        "\n".join(said),
        size=9.5,
        color=GREY,
        linespacing=1.3,
        **plain,
    )
    handles: list[Artist] = []
    for group, (colour, marker) in groups.items():
        label = f"{families} = {group}" if families else group
        (handle,) = axes[0].plot([], [], color=colour, marker=marker, label=label)
        handles.append(handle)
    return figure, axes, handles


def styles(entries: Sequence[Entry]) -> dict[str, Style]:
    """Group -> (colour, marker), in the order of the entries."""
    groups = dict.fromkeys(entry.group for entry in entries)
    return {
        group: (COLOURS[at % len(COLOURS)], MARKERS[marker_number(at)]) for at, group in enumerate(groups)
    }


def marker_number(group: int) -> int:
    """The number of a group's marker: groups that share a colour have different ones, up to 64 of them."""
    return (group + group // len(COLOURS)) % len(MARKERS)


def named(
    entries: Sequence[Entry], of_group: Mapping[str, Style], first: Iterable[str] = ()
) -> tuple[dict[str, Style], list[str]]:
    """The groups of the entries that a legend names, with their styles, and a sentence where it leaves some out."""
    drawn = {entry.group for entry in entries}
    groups = {group: style for group, style in of_group.items() if group in drawn}
    if len(groups) <= MOST_NAMED:
        return groups, []
    chosen = set(list(dict.fromkeys([*first, *groups]))[:MOST_NAMED])
    said = (
        f"The legend names {MOST_NAMED} of {len(groups):,} families, and {len(COLOURS) * len(MARKERS)} pairs of colour and marker "
        "serve all of them; curves.csv names each"
    )
    return {group: style for group, style in groups.items() if group in chosen}, [said]


def legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Name the groups, and whatever else `handles` holds, below the panels."""
    figure.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.004), ncols=3, frameon=False, fontsize=9.5
    )
