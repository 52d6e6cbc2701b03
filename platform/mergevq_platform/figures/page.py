"""Reconstructions to point at: one HTML file with everything inside, so that it opens anywhere and can be sent."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template

TEMPLATE = "reconstruction_page.html"
LABELS = 8  # of kept counts under the slider, at most
SMALL = 128  # pixels: images up to this side are enlarged pixel by pixel


@dataclass(frozen=True)
class InlineImage:
    """An image as the bytes of a file, to be part of a page."""

    data: bytes
    kind: str  # "png" or "jpeg"

    @property
    def uri(self) -> str:
        """The image as a `data:` address."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.data).decode()}"


@dataclass(frozen=True)
class ShownReconstruction:
    """One image at one kept count."""

    image: InlineImage
    overlay: InlineImage  # its clusters, to lay over the original
    psnr: float  # dB


class ReconstructionPage:
    """A page under way: images are added one by one, and its size is known all the time.

    `facts` are plain sentences, one a line; `counts` says each kept count in words, in ascending order of `keeps`.
    """

    def __init__(self, title: str, facts: Sequence[str], keeps: Sequence[int], counts: Sequence[str]) -> None:
        self.title, self.facts, self.keeps, self.counts = title, facts, keeps, counts
        self._articles: list[str] = []
        self.rows: list[str] = []  # of the table, one an image
        self.size_bytes = self.frame_bytes = len(self.html().encode())

    def add(
        self,
        name: str,
        original: InlineImage,
        size: tuple[int, int],
        shown: Sequence[ShownReconstruction],
    ) -> None:
        """Add an image of `size` (height, width) with its reconstruction at every kept count."""
        article = self._article(name, original, size, shown)
        cells = (f'<td data-column="{at}">{one.psnr:.2f}</td>' for at, one in enumerate(shown))
        row = f'<tr><th scope="row" title="{escape(name)}">{escape(name)}</th>{"".join(cells)}</tr>'
        line_ends = 2 if self._articles else 1
        self.size_bytes += len(article.encode()) + len(row.encode()) + line_ends
        self._articles.append(article)
        self.rows.append(row)

    def html(self) -> str:
        """The whole page."""
        template = files(__package__).joinpath(TEMPLATE).read_text()
        return Template(template).substitute(
            policy=_policy(template),
            title=escape(self.title),
            facts="\n".join(f'<p class="quiet">{escape(fact)}</p>' for fact in self.facts),
            counts="".join(
                f'<span data-at="{at}"{self._hidden(at)}>{escape(said)}</span>'
                for at, said in enumerate(self.counts)
            ),
            slider=self._slider(),
            images="\n".join(self._articles),
            table="\n".join([self._head(), *self.rows]),
        )

    @property
    def _first(self) -> int:
        return len(self.keeps) // 2  # in the middle: it moves both ways

    def _hidden(self, at: int) -> str:
        return "" if at == self._first else " hidden"

    def _slider(self) -> str:
        last = len(self.keeps) - 1
        every = -(-len(self.keeps) // LABELS)
        ticks = "".join(
            f'<span data-column="{at}">{keep if at % every == 0 or at == last else ""}</span>'
            for at, keep in enumerate(self.keeps)
        )
        return (
            f'<input type="range" id="keep" min="0" max="{last}" step="1" value="{self._first}" autocomplete="off"'
            f'{"" if last else " hidden"}>\n<div class="ticks" aria-hidden="true"{"" if last else " hidden"}>{ticks}</div>'
        )

    def _article(
        self,
        name: str,
        original: InlineImage,
        size: tuple[int, int],
        shown: Sequence[ShownReconstruction],
    ) -> str:
        said = escape(name)
        shape = f'height="{size[0]}" width="{size[1]}"'
        images, captions, overlays = [], [], []
        for at, (keep, one) in enumerate(zip(self.keeps, shown, strict=True)):
            part = f'data-at="{at}"{self._hidden(at)}'
            images.append(f'<img {part} {shape} alt="{said} from {keep} kept tokens" src="{one.image.uri}">')
            overlays.append(
                f'<img class="overlay" {part} alt="cells of {said} merged at {keep} kept tokens" src="{one.overlay.uri}">'
            )
            captions.append(f"<span {part}>{keep} kept: {one.psnr:.2f} dB</span>")
        pixels = " pixels" if max(size) <= SMALL else ""
        return (
            f"<article>\n<h2>{said}</h2>\n"
            f'<div class="panels{pixels}">\n'
            f'<figure><img class="original" {shape} alt="{said}" src="{original.uri}">'
            "<figcaption>original</figcaption></figure>\n"
            f"<figure>{''.join(images)}<figcaption>{''.join(captions)}</figcaption></figure>\n"
            f'<figure><div class="map"><img class="grey" {shape} alt="" hidden>{"".join(overlays)}</div>'
            "<figcaption>cells of one colour are one kept token; grey ones were not merged</figcaption></figure>\n"
            "</div>\n</article>"
        )

    def _head(self) -> str:
        cells = "".join(
            f'<th scope="col" data-column="{at}">{keep}</th>' for at, keep in enumerate(self.keeps)
        )
        return f'<caption>PSNR in dB at each kept count</caption>\n<tr><th scope="col">image</th>{cells}</tr>'


def _policy(template: str) -> str:
    """The content security policy: the template's own script and style, images inside the page, and nothing else."""

    def hashed(tag: str) -> str:
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; img-src data:; style-src {hashed('style')}; script-src {hashed('script')}; "
        "base-uri 'none'; form-action 'none'"
    )
