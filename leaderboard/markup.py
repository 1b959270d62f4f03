"""HTML elements of the pages; all text is escaped.

The type `Html` marks safe HTML. Only `text` and the functions that build on it return it, so the
type checker finds unescaped text. No Markdown is rendered.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, NewType
from urllib.parse import urlencode

import numpy as np
import numpy.typing as npt
from PIL import Image

from bench.core.statistics import Count
from leaderboard import notices, words

Html = NewType("Html", str)

NOTHING = Html("")
ROUNDING_NOISE = 1e-6
"""Perturbations up to this size are float32 rounding."""


def text(value: object, most: int = words.MAX_TEXT) -> Html:
    """Escaped text: one line without control or direction marks, cut at `most` characters."""
    return Html(html.escape(words.plain_text(value, most), quote=True))


def reason(value: object) -> Html:
    """Escaped text of a reason or of evidence, with a higher limit."""
    return text(value, words.MAX_REASON)


def label_text(value: object, most: int = words.MAX_TEXT) -> str:
    """Plain text for a label that Streamlit renders as Markdown: inline code, never interpreted.

    Escaped marks would not be enough: addresses become links after the escapes are resolved.

    >>> label_text("![x](http://a.b)`")
    "`![x](http://a.b)'`"
    """
    return "`" + words.plain_text(value, most).replace("`", "'") + "`"


def join(parts: Iterable[Html], between: str = "") -> Html:
    """Concatenated elements."""
    return Html(between.join(parts))


def tag(name: str, inside: Html = NOTHING, **attributes: object) -> Html:
    """One element. Attribute values are escaped; `class_` is the attribute `class`."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>{inside}</{name}>")


def link(page: str, label: Html, **query: str) -> Html:
    """A link to another page of this site."""
    path = f"/{page}" + (f"?{urlencode(query)}" if query else "")
    return tag("a", label, href=path)


def chip(label: str, kind: str = "plain", why: str | None = None) -> Html:
    """A small label; `kind` sets its colour."""
    return tag("span", text(label), class_=f"g-chip g-{kind}", title=why)


def small(value: object) -> Html:
    """Secondary text."""
    return tag("span", text(value), class_="g-small")


def bar(count: Count | None, kind: str = "robust") -> Html:
    """A percentage with a bar: filled up to the share, with a whisker over the interval."""
    if count is None or not count.n:
        return tag("span", text("—"), class_="g-small")
    share = 100 * count.k / count.n
    width = 100 * (count.high - count.low)
    drawn = tag("span", class_=f"g-fill g-fill-{kind}", style=f"width:{share:.2f}%") + tag(
        "span", class_="g-whisker", style=f"left:{100 * count.low:.2f}%;width:{width:.2f}%"
    )
    return join(
        (
            tag("span", text(words.format_count(count)), class_="g-number"),
            tag("span", Html(drawn), class_="g-track", aria_hidden="true"),
            small(words.format_interval(count)),
        )
    )


class Column(NamedTuple):
    """Heading, explanation and alignment of a table column."""

    label: str
    means: str = ""
    kind: str = "left"


def html_table(
    columns: Sequence[Column], rows: Iterable[Sequence[Html]], caption: str = "", kind: str = ""
) -> Html:
    """A table that scrolls sideways on a narrow screen; of kind `cards` it becomes cards there."""
    head = join(
        tag("th", text(c.label), scope="col", title=c.means or None, class_=f"g-{c.kind}")
        for c in columns
    )
    lines = []
    for row in rows:
        cells = [
            tag("td", cell, class_=f"g-{c.kind}", data_label=c.label if kind else None)
            for c, cell in zip(columns, row, strict=True)
        ]
        lines.append(tag("tr", join(cells)))
    titled = tag("caption", text(caption)) if caption else NOTHING
    content = titled + tag("thead", tag("tr", head)) + tag("tbody", join(lines))
    return tag(
        "div",
        tag("table", Html(content), class_=f"g-table g-{kind}".removesuffix(" g-")),
        class_="g-scroll",
        tabindex="0",
    )


def definition_list(pairs: Iterable[tuple[str, Html]]) -> Html:
    """A definition list."""
    rows = (tag("dt", text(term)) + tag("dd", inside) for term, inside in pairs)
    return tag("dl", Html("".join(rows)), class_="g-facts")


def notice(content: notices.Notice, kind: str = "info") -> Html:
    """A notice: heading, sentences and commands."""
    body = tag("h3", text(content.heading)) + join(tag("p", text(s)) for s in content.sentences)
    if content.commands:
        lines = Html("\n".join(html.escape(command) for command in content.commands))
        body += tag("pre", tag("code", lines))
    return tag("section", Html(body), class_=f"g-notice g-notice-{kind}", role="status")


def heading(title: str, under: Html = NOTHING) -> Html:
    """The head of a page; the title is escaped."""
    return tag("header", Html(tag("h1", text(title)) + tag("p", under)), class_="g-head")


def figure_tiles(values: Iterable[tuple[str, str, str]]) -> Html:
    """Tiles of label, figure and explanation."""
    made = (
        tag(
            "div",
            Html(
                tag("span", text(label), class_="g-small")
                + tag("strong", text(value))
                + tag("span", text(means), class_="g-small")
            ),
            class_="g-tile",
        )
        for label, value, means in values
    )
    return tag("div", join(made), class_="g-tiles")


def picture(pixels: npt.NDArray[Any], alt: str, edge: int = 132) -> Html:
    """An image element of pixels [C, H, W], uint8 or float in [0, 1], `edge` points wide."""
    return Html(
        f'<img class="g-picture" width="{edge}" height="{edge}" alt="{text(alt)}" '
        f'src="data:image/png;base64,{png(pixels)}">'
    )


def png(pixels: npt.NDArray[Any]) -> str:
    """Pixels [C, H, W] as a PNG in base64: grey, or the first three channels as colours."""
    scaled = pixels if pixels.dtype == np.uint8 else np.rint(np.clip(pixels, 0, 1) * 255)
    rows = np.moveaxis(scaled.astype(np.uint8), 0, -1)
    shown = rows[..., 0] if rows.shape[-1] < 3 else rows[..., :3]
    file = io.BytesIO()
    Image.fromarray(shown).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def perturbation_of(
    original: npt.NDArray[np.uint8], adversarial: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """The perturbation [C, H, W]; 0 where all of it is rounding."""
    change = adversarial.astype(np.float32) - original.astype(np.float32) / np.float32(255)
    return change if np.abs(change).max(initial=0) >= ROUNDING_NOISE else np.zeros_like(change)


def magnified_perturbation(
    original: npt.NDArray[np.uint8], adversarial: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], float]:
    """The magnified perturbation [C, H, W] around mid grey, and its factor (1 without one)."""
    change = perturbation_of(original, adversarial)
    largest = float(np.abs(change).max(initial=0))
    factor = 1.0 if largest == 0 else 0.5 / largest
    factor = float(np.floor(factor)) if factor >= 2 else factor
    return 0.5 + np.float32(factor) * change, factor
