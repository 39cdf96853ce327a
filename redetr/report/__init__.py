"""The report of `redetr evaluate --report`: the mistakes of a detector, and what to do about them.

`analysis` judges detections, `masks` judges their masks, and `comparison` compares two checkpoints.
`numbers` collects the contents of `report.json`, from which `page` and `scenes` make `index.html`.
"""

from redetr.report.comparison import ap_differences, pq_difference
from redetr.report.numbers import make_report
from redetr.report.page import write_report

__all__ = ["ap_differences", "make_report", "pq_difference", "write_report"]
