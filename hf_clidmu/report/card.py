"""What goes with a mended dataset when it is shared: what its labels were like, and what was done about them.

mended.push_to_hub("me/films-mended", private=True)
card = DatasetCard.load("me/films-mended")  # the push wrote its columns there
dataset_card(report, "suggested", len(mended), card.data).push_to_hub("me/films-mended")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .apply import POLICIES, Policy


if TYPE_CHECKING:
    from huggingface_hub import DatasetCard, DatasetCardData

    from .labels import LabelReport

TAG = "label-noise"

_DONE = {
    "annotate": "Labels and rows are those of the source; columns say what is thought of each label.",
    "drop": "Rows whose labels are probably wrong were left out.",
    "relabel": "Labels that are probably wrong were replaced by the likeliest other class.",
    "suggested": "Labels that are probably wrong were replaced where one other class is more likely than not; where "
    "none is, the row was left out.",
}
_MOST_CONFUSED = 5


def dataset_card(
    report: LabelReport, policy: Policy, rows: int, data: DatasetCardData | None = None, *, title: str = "Mended labels"
) -> DatasetCard:
    """A dataset card that says how a dataset was mended. No sample is shown in it.

    Args:
        report: what was found in the source.
        policy: of [`hf_clidmu.report.apply_report`], which made the dataset.
        rows: of the dataset, afterwards.
        data: metadata to keep, such as what a push wrote; a tag is added.
        title: heading.

    Raises:
        ValueError: when the policy is none.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    values = {} if data is None else data.to_dict()
    metadata = DatasetCardData(**{**values, "tags": [*dict.fromkeys([*(values.get("tags") or []), TAG])]})
    rate = report.noise_rate
    lines = [
        f"# {_plain(title)}",
        "",
        _DONE[policy],
        "",
        f"- rows: {rows:,} of {len(report.table):,}",
        f"- labels called wrong in the source: {int(report.table['is_label_issue'].sum()):,}",
        f"- estimated noise rate of the source: {100 * rate.value:.1f} % (95 % interval over samples "
        f"{100 * rate.low:.1f} % to {100 * rate.high:.1f} %)",
        "",
        "Wrong labels were found by a model and its features, without a single clean label (`hf_clidmu.report`). Some "
        "labels that were called wrong are right, and some wrong ones are left.",
        *(f"\n> {_plain(doubt)}" for doubt in report.doubts),
    ]
    if confusions := _confusions(report):
        lines += ["", "| given label | likeliest true class | expected wrong labels |", "|---|---|---|", *confusions]
    return DatasetCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n")


def _confusions(report: LabelReport) -> list[str]:
    from .charts import suspected_confusions

    names, count_CC = suspected_confusions(report)
    pairs = [
        (count, names[given], names[true])
        for true, row in enumerate(count_CC)
        for given, count in enumerate(row)
        if count >= 1
    ]
    return [
        f"| {_plain(given)} | {_plain(true)} | {count:.0f} |"
        for count, given, true in sorted(pairs, reverse=True)[:_MOST_CONFUSED]
    ]


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]#|!" else letter for letter in text)
