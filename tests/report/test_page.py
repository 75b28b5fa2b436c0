"""The page: as a file, and in a real browser."""

import json
import re

import datasets
import numpy as np
import pytest
from browser import browse
from known_labels import NAMES, known
from PIL import Image

from hf_clidmu.report import LabelReport, apply_report
from hf_clidmu.report.page import MOST_CHARACTERS, thumbnail, write_page


pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")

ATTACKS = [
    "<script>window.owned = 1</script>",
    '"><img src=x onerror="window.owned = 2">',
    "</script><script>window.owned = 3</script>",
    "<!-- <script> {{ 7 * 7 }} \u2028 </SCRIPT >",
]


def hostile(report: LabelReport) -> LabelReport:
    names = [ATTACKS[2], *NAMES[1:]]
    table = report.table.assign(given_name=np.array(names, dtype=object)[report.table["given_label"]])
    return LabelReport(**{**vars(report), "label_names": names, "table": table, "doubts": [ATTACKS[0]]})


def texts(count: int) -> list[str]:
    return [f"sample {row} {ATTACKS[row % len(ATTACKS)]}" for row in range(count)]


def embedded(page: str, name: str):
    return json.loads(re.search(rf'type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)[1])


# ---- the file --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(noisy_report, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(hostile(noisy_report), path, texts(len(noisy_report.table)), title=ATTACKS[1])
    return path.read_text(encoding="utf8")


def markup(page: str) -> str:
    """The page without the contents of its scripts."""
    return re.sub(r"(<script[^>]*>).*?</script>", r"\1</script>", page, flags=re.DOTALL)


def test_what_the_user_provides_is_data(page, noisy_report):
    # Once as a title, once as a heading, once as a doubt, all escaped; all else is JSON, which holds no tag.
    assert markup(page).count("window.owned") == 3
    assert not re.search(r"<(img|script)[^>]*owned", markup(page))
    first = int(noisy_report.suspects(1)["index"].item())
    assert embedded(page, "chunk-0")[0] == texts(first + 1)[first]
    assert embedded(page, "data")["names"][0] == ATTACKS[2]


def test_every_script_carries_the_nonce_and_nothing_is_loaded(page):
    nonces = re.findall(r'<script nonce="([^"]+)"', page)
    assert len(set(nonces)) == 1
    assert markup(page).count("<script") == len(nonces)
    assert "default-src 'none'" in page
    assert f"script-src 'nonce-{nonces[0]}'" in page
    assert not re.search(r"<(link|iframe|object|embed|img)\b|<[^>]*\bsrc=", markup(page))


def test_rows_are_all_there_most_suspect_first(page, noisy_report):
    columns = embedded(page, "data")["columns"]
    assert columns["index"] == noisy_report.suspects()["index"].tolist()
    assert columns["wrong"] == sorted(columns["wrong"], reverse=True)
    assert "leaves out" not in page


def test_a_page_keeps_to_its_size_and_says_what_it_left_out(noisy_report, tmp_path):
    long = ["x" * (MOST_CHARACTERS + 500)] * len(noisy_report.table)
    path = write_page(noisy_report, tmp_path / "small.html", long, megabytes=1.6)
    assert 1_300_000 < path.stat().st_size <= 1_600_000
    said = re.search(r"leaves out the texts of ([\d,]+) of the samples listed", path.read_text())
    held = sum(
        len(embedded(path.read_text(), f"chunk-{k}")) for k in range(embedded(path.read_text(), "data")["chunkCount"])
    )
    assert int(said[1].replace(",", "")) == len(noisy_report.table) - held > 0
    assert len(embedded(path.read_text(), "chunk-0")[0]) == MOST_CHARACTERS
    with pytest.raises(ValueError, match="cannot hold its charts"):
        write_page(noisy_report, tmp_path / "tiny.html", megabytes=0.5)
    with pytest.raises(ValueError, match="3 samples for the 1200 rows"):
        write_page(noisy_report, tmp_path / "other.html", ["a", "b", "c"])


def test_images_become_thumbnails(tmp_path):
    data = known(0.2, size=40)
    images = [Image.fromarray(np.full((300, 200, 3), row * 5, dtype=np.uint8)) for row in range(40)]
    path = write_page(data.report(), tmp_path / "images.html", images)
    page = path.read_text()
    assert embedded(page, "data")["image"] is True
    assert all(value.startswith("data:image/jpeg;base64,") for value in embedded(page, "chunk-0"))
    assert len(thumbnail(images[0])) < 3000


# ---- the browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def visited(noisy_report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    path = write_page(hostile(noisy_report), folder / "page.html", texts(len(noisy_report.table)), title=ATTACKS[1])
    return browse(path, folder)


def test_it_opens_from_disk_asks_nobody_and_complains_of_nothing(visited):
    seen, asked = visited
    assert seen["errors"] == []
    assert seen["blocked"] == []
    assert asked == []
    assert seen["charts"] == 2
    assert seen["described"] > 2
    assert seen["unlabelled"] == 0


def test_attacks_stay_text(visited, noisy_report):
    seen, _ = visited
    first = int(noisy_report.suspects(1)["index"].item())
    assert seen["owned"] is None
    assert seen["first"] == texts(first + 1)[first]
    assert seen["option"] == ATTACKS[2]
    assert seen["title"].startswith(ATTACKS[1])
    assert seen["doubt"] == ATTACKS[0]


def test_the_list_shows_only_what_is_in_sight(visited, noisy_report):
    seen, _ = visited
    assert 4 <= seen["cards"] < 40
    assert 4 <= seen["scrolled"] < 40
    assert seen["last"] == str(len(noisy_report.table))
    assert seen["searched"] == [texts(1200)[1199]]
    of_cat = int((noisy_report.table["given_label"] == 2).sum())
    assert seen["given"].startswith(f"{of_cat:,} shown")
    assert seen["theme"] in ("dark", "light")


def test_marks_of_the_keyboard_reach_apply_report(visited, noisy_report, tmp_path):
    seen, _ = visited
    first, second, third, fourth = noisy_report.suspects(4)["index"].tolist()
    assert seen["focused"] == 4  # the mark on the fourth moved on
    assert seen["announced"] == f"Row {fourth} marked wrong."
    assert seen["wrongs"] == 2
    path = tmp_path / "label_decisions.csv"
    path.write_text(seen["csv"])
    dataset = datasets.Dataset.from_dict({"label": noisy_report.table["given_label"].tolist()})
    dataset = dataset.add_column("row", list(range(len(dataset))))
    mended = apply_report(dataset, noisy_report, "relabel", decisions=path)
    given = noisy_report.table["given_label"]
    labels = mended["label"][:]
    assert labels[first] == seen["chosen"] != given[first]  # a class of the visitor's choice
    assert labels[second] == given[second]  # marked right
    assert labels[fourth] == noisy_report.table["suggested_label"][fourth]
    assert len(seen["csv"].splitlines()) == 1 + 3  # the third was marked and taken back
    assert str(third) not in [line.split(",")[0] for line in seen["csv"].splitlines()]


@pytest.mark.slow
def test_fifty_thousand_samples_are_painted_within_two_seconds(noisy_report, tmp_path):
    times = 42
    rows = np.tile(np.arange(len(noisy_report.table)), times)[:50_000]
    table = noisy_report.table.iloc[rows].reset_index(drop=True).assign(index=np.arange(50_000))
    report = LabelReport(**{**vars(noisy_report), "table": table})
    samples = [f"sample {row}: " + "words of a usual length, " * 8 for row in range(50_000)]
    path = write_page(report, tmp_path / "large.html", samples)
    assert path.stat().st_size < 25_000_000
    seen, _ = browse(path, tmp_path, "paint.js")
    assert seen["cards"] >= 4
    assert max(seen["paint"]) < 2000


@pytest.mark.slow
def test_a_page_that_asked_for_something_would_be_found_out(tmp_path):
    path = tmp_path / "asks.html"
    ask = 'fetch("http://127.0.0.1:9/asked").catch(() => 0)'
    path.write_text(f'<style></style><script nonce="n">{ask}</script><p class="sample">asks</p></body>')
    seen, asked = browse(path, tmp_path, "paint.js")
    assert asked == ["http://127.0.0.1:9/asked"]
    assert seen["errors"] == []
