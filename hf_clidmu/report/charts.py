"""The charts of a report, as Vega-Lite: one description serves the page, where it moves, and the PNG on a model card.

`vl-convert-python` carries Vega with it: nothing is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_clidmu.files import write_whole


if TYPE_CHECKING:
    from .labels import LabelReport

Chart = dict[str, Any]

#: A matrix of more classes could not be read: those with the most suspected confusions are shown.
MOST_CLASSES = 20

#: Background, text, lines and the colours of one, two and many values, by theme. Distinct without colour vision.
THEMES: dict[str, dict[str, Any]] = {
    "light": {
        "text": "#3b4252",
        "line": "#d8dce4",
        "first": "#2f6fb0",
        "second": "#c8502d",
        "ramp": ["#e6eef7", "#1b5a99"],
    },
    "dark": {
        "text": "#c9ced8",
        "line": "#3a404b",
        "first": "#6fa8dc",
        "second": "#e98a5f",
        "ramp": ["#1e2733", "#7db4e6"],
    },
}

_BINS = 25
_SCALE = 2.0  # pixels of a PNG per unit


def vega() -> Any:
    """The charting library.

    Raises:
        ImportError: when it is not installed; the message says how.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise ImportError(
            "charts need vl-convert-python: pip install 'hf_clidmu[report]'. The table of a report needs nothing more."
        ) from error
    return vl_convert


@cache
def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script, to be put into a page."""
    return vega().javascript_bundle()


def charts(report: LabelReport, curves: Sequence[Mapping[str, float]] | None = None) -> dict[str, Chart]:
    """All charts of a report, by name: `confusions`, `histogram`, and `curves` where there are some.

    Args:
        report: what is drawn.
        curves: evaluations of the run, each with `step` and any of `clid`, `accuracy`, `test_accuracy`.
    """
    found = {"confusions": confusion_chart(report), "histogram": histogram_chart(report)}
    drawn = None if curves is None else curve_chart(curves)
    return found if drawn is None else {**found, "curves": drawn}


def confusion_chart(report: LabelReport) -> Chart:
    """Which classes are suspected to be mistaken for which: expected numbers of wrong labels."""
    names, count_CC = suspected_confusions(report)
    cells = [
        {"given": names[given], "true": names[true], "count": round(float(count_CC[true, given]), 1)}
        for true in range(len(names))
        for given in range(len(names))
        if true != given
    ]
    left_out = len(report.label_names) - len(names)
    classes = {"type": "nominal", "sort": names, "axis": {"labelLimit": 140}}
    numbered = len(names) <= 10
    side = max(180, min(440, 34 * len(names)))
    layers: list[Chart] = [
        {
            "mark": {"type": "rect", "cornerRadius": 2},
            "encoding": {
                "color": {
                    "field": "count",
                    "type": "quantitative",
                    "scale": {"domainMin": 0},
                    "legend": None if numbered else {"title": "labels"},
                },
                "tooltip": [
                    {"field": "given"},
                    {"field": "true"},
                    {"field": "count", "title": "expected wrong labels"},
                ],
            },
        }
    ]
    if numbered:
        layers.append(
            {
                "mark": {"type": "text", "fontSize": 11},
                "encoding": {
                    "text": {"field": "count", "type": "quantitative", "format": ".0f"},
                    "color": {
                        "condition": {"test": f"datum.count > {0.55 * float(count_CC.max())!r}", "value": "onStrong"},
                        "value": "onWeak",
                    },
                },
            }
        )
    return {
        "description": "Matrix of suspected confusions: a row per likeliest true class, a column per given label.",
        "title": "Suspected confusions" + (f" (the {len(names)} classes with most)" if left_out else ""),
        "data": {"values": cells},
        "width": side,
        "height": side,
        "encoding": {
            "x": {"field": "given", "title": "given label", **classes},
            "y": {"field": "true", "title": "likeliest true class", **classes},
        },
        "layer": layers,
    }


def suspected_confusions(report: LabelReport) -> tuple[list[str], Any]:
    """Names of the classes shown, and how many labels are expected to be wrong, by true and given class, (C, C)."""
    table, classes = report.table, len(report.label_names)
    other = np.where(
        table["suggested_label"] == table["given_label"], table["predicted_label"], table["suggested_label"]
    )
    count_CC = np.zeros((classes, classes))
    np.add.at(count_CC, (other, table["given_label"]), table["p_wrong"])
    np.fill_diagonal(count_CC, 0)
    shown = np.sort(np.argsort(-(count_CC.sum(axis=0) + count_CC.sum(axis=1)), kind="stable")[:MOST_CLASSES])
    return [report.label_names[label] for label in shown], count_CC[np.ix_(shown, shown)]


def histogram_chart(report: LabelReport) -> Chart:
    """How many labels are how likely to be wrong."""
    edges = np.linspace(0, 1, _BINS + 1)
    counts, _ = np.histogram(report.table["p_wrong"], bins=edges)
    bars = [
        {"from": round(float(low), 3), "to": round(float(high), 3), "labels": int(count)}
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    return {
        "description": "Histogram of the probability that a label is wrong, over all samples; counts as square roots.",
        "title": "How likely labels are to be wrong",
        "data": {"values": bars},
        "width": 320,
        "height": 200,
        "encoding": {
            "x": {"field": "from", "type": "quantitative", "bin": {"binned": True}, "title": "P(label wrong)"},
            "x2": {"field": "to"},
            # Right labels are many: a square root lets the few wrong ones be seen, and keeps zero.
            "y": {"field": "labels", "type": "quantitative", "scale": {"type": "sqrt"}, "title": "samples"},
            "tooltip": [{"field": "from"}, {"field": "to"}, {"field": "labels", "title": "samples"}],
            "color": {"condition": {"test": "datum.from >= 0.5", "value": "second"}, "value": "first"},
        },
        "mark": {"type": "bar"},
    }


def curve_chart(curves: Sequence[Mapping[str, float]]) -> Chart | None:
    """CLID and accuracy over the steps of a run; None where nothing of that was recorded."""
    names = {"clid": "CLID", "accuracy": "accuracy (given labels)", "test_accuracy": "test accuracy"}
    panels = []
    for number, (name, title) in enumerate(names.items()):
        points = [{"step": point["step"], "value": point[name]} for point in curves if point.get(name) is not None]
        if len(points) > 1:
            panels.append(
                {
                    "width": 320,
                    "height": 120,
                    "data": {"values": points},
                    "mark": {"type": "line", "point": True, "color": "second" if number else "first"},
                    "encoding": {
                        "x": {"field": "step", "type": "quantitative", "axis": {"grid": False}},
                        "y": {"field": "value", "type": "quantitative", "title": title, "scale": {"zero": False}},
                        "tooltip": [{"field": "step"}, {"field": "value", "title": title, "format": ".4f"}],
                    },
                }
            )
    if not panels:
        return None
    return {"description": "CLID and accuracy over the run.", "title": "Over the run", "vconcat": panels}


def themed(chart: Chart, theme: str) -> Chart:
    """A chart in the colours of a theme, as Vega-Lite draws it."""
    colours = THEMES[theme]
    roles = {
        "first": colours["first"],
        "second": colours["second"],
        "onStrong": "#ffffff" if theme == "light" else "#10131a",
        "onWeak": colours["text"],
    }

    def coloured(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):  # not into the data: a class may be called "first"
            return {name: item if name == "data" else coloured(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [coloured(item, key) for item in value]
        return roles.get(value, value) if isinstance(value, str) and key in ("value", "color") else value

    text = {"labelColor": colours["text"], "titleColor": colours["text"], "titleFontWeight": "normal"}
    return {
        **coloured(chart),
        "background": None,
        "config": {
            "font": "system-ui, sans-serif",
            "view": {"stroke": None},
            "axis": {
                **text,
                "gridColor": colours["line"],
                "domainColor": colours["line"],
                "tickColor": colours["line"],
            },
            "legend": text,
            "title": {"color": colours["text"], "fontSize": 14, "anchor": "start", "offset": 12},
            "range": {"heatmap": colours["ramp"], "ramp": colours["ramp"]},
        },
    }


def write_plots(
    report: LabelReport, folder: str | Path, curves: Sequence[Mapping[str, float]] | None = None, theme: str = "light"
) -> list[Path]:
    """The charts as PNG files, `label_report_<name>.png`; returns them.

    Args:
        report: what is drawn.
        folder: where to.
        curves: see [`charts`].
        theme: `light` or `dark`, on a background to go with it.
    """
    paths = []
    for name, chart in charts(report, curves).items():
        spec = {**themed(chart, theme), "background": "white" if theme == "light" else "#171a21", "padding": 12}
        image = vega().vegalite_to_png(json.dumps(spec), scale=_SCALE)
        path = Path(folder) / f"label_report_{name}.png"
        write_whole(path, partial(Path.write_bytes, data=image))
        paths.append(path)
    return paths
