"""`redetr explain`: what DETR does with an image, and how training would judge the result.

`attention` and `habits` compute the contents of the first page, and `loss` those of the second.
`image_page` and `loss_page` fill the templates `image.html` and `loss.html`, whose scripts
(`image.js`, `loss.js`) draw.
"""

from redetr.explain.attention import Explanation, Maps, Picks, Points, explain
from redetr.explain.habits import Habits, query_habits
from redetr.explain.image_page import image_page, write_image_page
from redetr.explain.loss import LossExplanation, explain_loss, open_judged
from redetr.explain.loss_page import loss_page, write_loss_page

__all__ = [
    "Explanation",
    "Habits",
    "LossExplanation",
    "Maps",
    "Picks",
    "Points",
    "explain",
    "explain_loss",
    "image_page",
    "loss_page",
    "open_judged",
    "query_habits",
    "write_image_page",
    "write_loss_page",
]
