"""The report of `redetr evaluate --report`: where a detector goes wrong, and what to do about it.

`analysis` judges detections, `masks` their masks, `comparison` two checkpoints, `numbers` puts
together what `report.json` holds, `page` and `scenes` turn it into `index.html`.
"""

from redetr.report.comparison import ap_differences, pq_difference
from redetr.report.numbers import make_report
from redetr.report.page import write_report

__all__ = ["ap_differences", "make_report", "pq_difference", "write_report"]
