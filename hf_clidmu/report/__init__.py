"""Which labels are wrong: the evidence of a run weighed per sample, as a table, a mended dataset, and a page.

* `evidence`: what is known of every sample: the model's opinion, its neighbours', the features', the ledger's.
* `confusion`: which classes are mistaken for which, and how often.
* `calibration`: one score per sample, and the probability that its label is wrong.
* `trust`: when not to believe all this.
* `labels`: the report: the table and what it adds up to.
* `apply`: a dataset with wrong labels marked, left out or replaced.
* `page`, `charts`: the report to look at, and to decide by.

Nothing here knows a model: logits and features come as arrays.
"""

from .apply import apply_report
from .labels import LabelReport, label_report


__all__ = ["LabelReport", "apply_report", "label_report"]
