"""The report as one HTML file: to look at, to decide by, from disk, without a server or a network.

What does not fit into the size that is asked for is left out from the end, least suspect first, and the page says so.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_clidmu.files import write_whole

from .charts import charts, javascript, themed
from .labels import SUGGESTIONS, LabelReport


if TYPE_CHECKING:
    from PIL.Image import Image

MEGABYTE = 1_000_000

#: Size of a page, by default.
MOST_MEGABYTES = 25.0

#: Longer texts are cut.
MOST_CHARACTERS = 1000

#: Height and width of a thumbnail, at most.
THUMBNAIL = 104

#: Samples that are parsed together when one of them comes into sight.
CHUNK_SIZE = 200

#: Signals that are shown with every sample, and how.
REASONS = {
    "self_confidence": "model",
    "neighbour_confidence": "neighbours' predictions",
    "neighbour_labels": "neighbours' labels",
    "mean_probability": "while training",
}

_QUALITY = 72
_ROW_SHARE = 0.5  # of the size, at most, for numbers; the rest is for samples


def write_page(
    report: LabelReport,
    path: str | Path,
    samples: Sequence[Any] | None = None,
    *,
    title: str = "Labels",
    curves: Sequence[Mapping[str, float]] | None = None,
    megabytes: float = MOST_MEGABYTES,
) -> Path:
    """Write a report as a self-contained HTML page.

    Args:
        report: what is shown.
        path: the file.
        samples: texts or images, one per row of the report and in its order; a column of a `datasets.Dataset` will
            do, and is read a sample at a time. None shows labels and signals alone.
        title: heading.
        curves: evaluations of the run, see [`hf_clidmu.report.charts.charts`].
        megabytes: the size of the file, at most.

    Returns:
        The path.

    Raises:
        ImportError: when the charting library is not installed.
        ValueError: when there are not as many samples as rows, or the size does not even hold the charting library.
    """
    if samples is not None and len(samples) != len(report.table):
        raise ValueError(f"there are {len(samples)} samples for the {len(report.table)} rows of the report")
    drawn = charts(report, curves)
    specs = {name: {theme: themed(chart, theme) for theme in ("light", "dark")} for name, chart in drawn.items()}
    frame = {
        "title": title,
        "rows": len(report.table),
        "names": report.label_names,
        "rate": report.noise_rate,
        "issues": int(report.table["is_label_issue"].sum()),
        "contradicted": report.contradicted,
        "doubts": report.doubts,
        "charts": specs,
        "css": _part("page.css"),
        "js": _part("page.js"),
        "vega": _inline(javascript()),
    }
    room = int(megabytes * MEGABYTE) - len(_render(frame, {}, [], "").encode()) - 2000
    if room < 0:
        raise ValueError(f"a page of {megabytes} MB cannot hold its charts: allow at least 2")

    suspects = report.suspects()
    reasons = [name for name in REASONS if name in suspects.columns]
    rows = _rows_that_fit(suspects, reasons, int(room * (1.0 if samples is None else _ROW_SHARE)), len(report.table))
    data = {
        "names": report.label_names,
        "columns": _columns(suspects.head(rows), reasons),
        "reasons": [[name, REASONS[name]] for name in reasons],
        "chunkSize": CHUNK_SIZE,
        "image": samples is not None and not isinstance(samples[0], str),
    }
    data["id"] = hashlib.sha256(json.dumps([title, data["columns"]]).encode()).hexdigest()[:16]
    room -= len(_tojson(data).encode())
    chunks: list[list[str]] = []
    if samples is not None:
        chunks = _chunks(samples, suspects["index"].head(rows).tolist(), room)
    data["chunkCount"] = len(chunks)
    held = None if samples is None else sum(map(len, chunks))
    html = _render(frame, data, chunks, _left_out(len(report.table), rows, held, bool(data["image"])))
    write_whole(path, lambda unfinished: unfinished.write_text(html, encoding="utf8"))
    return Path(path)


def _render(frame: Mapping[str, Any], data: Mapping[str, Any], chunks: list[list[str]], left_out: str) -> str:
    import secrets

    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":")}
    template = environment.from_string(_part("page.html.j2"))
    return template.render(**frame, data=data, chunks=chunks, left_out=left_out, nonce=secrets.token_urlsafe(16))


def _part(name: str) -> str:
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf8")


def _inline(script: str) -> str:
    """A script that no `</script>` of its own ends: in its strings and patterns `<\\/script` is the same."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _tojson(value: Any) -> str:
    from jinja2.utils import htmlsafe_json_dumps

    return str(htmlsafe_json_dumps(value, separators=(",", ":")))


def _columns(suspects: Any, reasons: list[str]) -> dict[str, list[Any]]:
    """The numbers of a page, most suspect first: shares in hundredths, P(wrong) in thousandths."""
    hundredths = {
        name: [None if np.isnan(value) else round(100 * value) for value in suspects[name].tolist()] for name in reasons
    }
    return {
        "index": suspects["index"].tolist(),
        "given": suspects["given_label"].tolist(),
        # What a sample that is to be kept would be, if it were not.
        "suggested": np.where(
            suspects["suggested_label"] == suspects["given_label"],
            suspects["predicted_label"],
            suspects["suggested_label"],
        ).tolist(),
        "suggestion": [SUGGESTIONS.index(word) for word in suspects["suggestion"]],
        "wrong": [round(1000 * value) for value in suspects["p_wrong"].tolist()],
        **hundredths,
    }


def _rows_that_fit(suspects: Any, reasons: list[str], room: int, rows: int) -> int:
    probe = min(rows, 2000)
    size = len(_tojson(_columns(suspects.tail(probe), reasons)).encode()) / probe * 1.2
    return min(rows, int(room / size))


def _chunks(samples: Sequence[Any], order: list[int], room: int) -> list[list[str]]:
    """Samples as texts or data URLs, most suspect first, in chunks, until there is no more room."""
    chunks: list[list[str]] = []
    for place, row in enumerate(order):
        sample = samples[row]
        value = _cut(sample) if isinstance(sample, str) else thumbnail(sample)
        room -= len(_tojson(value).encode()) + 1
        if place % CHUNK_SIZE == 0:
            room -= 120  # the element around a chunk
            if room < 0:
                break
            chunks.append([])
        if room < 0:
            break
        chunks[-1].append(value)
    return [chunk for chunk in chunks if chunk]


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"


def thumbnail(image: Image | Any) -> str:
    """A small JPEG of an image, as a data URL."""
    from hf_clidmu.data.images import as_pil_image

    small = as_pil_image(image).convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _left_out(all_rows: int, rows: int, held: int | None, image: bool) -> str:
    said = []
    if rows < all_rows:
        said.append(f"the {all_rows - rows:,} least suspect samples")
    if held is not None and held < rows:
        said.append(f"the {'thumbnails' if image else 'texts'} of {rows - held:,} of the samples listed")
    if not said:
        return ""
    return f"To keep this page small, it leaves out {' and '.join(said)}. The table (label_report.csv) has every row."
