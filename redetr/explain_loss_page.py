"""The page from boxes to loss: matching, loss terms, and what they are divided by, with one image's numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from redetr.boxes import box_cxcywh_to_xyxy
from redetr.explain_loss import LossExplanation
from redetr.explain_page import packed, picture_data, write_script_page
from redetr.page import table


def write_loss_page(path: Path, explanation: LossExplanation, link: str = "") -> None:
    """Writes the page, which needs no other file; `link` is HTML that leads to another page."""
    name = f"image {explanation.shares[0].image_id}"
    parts = [f"<h1>From boxes to loss: {name}</h1>{link}", *loss_parts(explanation)]
    write_script_page(path, f"loss of {name}", parts, "loss", loss_data(explanation))


def loss_data(explanation: LossExplanation) -> dict[str, Any]:
    """What `explainLoss` takes, JSON-ready."""
    num_queries = explanation.predicted.shape[1]
    queries = explanation.queries.clamp(max=num_queries - 1)[..., None].expand(-1, -1, 4)
    distances = (explanation.predicted.gather(1, queries) - explanation.targets).abs()
    names = [explanation.class_names[label] for label in explanation.labels.tolist()]
    return {
        **picture_data(explanation.image, explanation.class_names),
        "names": names,
        "letters": letters(len(names)),
        "objects": box_cxcywh_to_xyxy(explanation.targets).tolist(),
        "boxes": packed(box_cxcywh_to_xyxy(explanation.predicted), np.float32),
        "costs": packed(explanation.costs, np.float32),
        "queries": explanation.queries.tolist(),
        "terms": packed(explanation.terms, np.float32),
        "unmatched": packed(explanation.unmatched, np.float32),
        "distances": packed(distances, np.float32),
    }


def letters(count: int) -> list[str]:
    """Names of objects: A to Z, then A1 to Z1, and so on."""
    return [chr(ord("A") + i % 26) + (str(i // 26) if i >= 26 else "") for i in range(count)]


def loss_parts(explanation: LossExplanation) -> list[str]:
    """The elements that `explainLoss` fills, with the text that explains them."""
    return [
        _INTRO.format(queries=explanation.predicted.shape[1], objects=_count(len(explanation.labels))),
        _matching_part(explanation),
        _assignment_part(explanation),
        _terms_part(explanation),
        _division_part(explanation),
        _class_part(explanation),
        _total_part(explanation),
    ]


def _matching_part(explanation: LossExplanation) -> str:
    config = explanation.config
    class_cost = _CLASS_COST if config.scores == "softmax" else _CLASS_COST_FAST
    return _MATCHING.format(class_cost=class_cost, ce=_number(config.cost_class), l1=_number(config.cost_bbox),
                            giou=_number(config.cost_giou))  # fmt: skip


def _assignment_part(explanation: LossExplanation) -> str:
    layers, num_queries = explanation.predicted.shape[:2]
    heads = ["object", *(f"layer {i + 1}" for i in range(layers))]
    rows = []
    for t, (letter, label) in enumerate(
        zip(letters(len(explanation.labels)), explanation.labels.tolist(), strict=True)
    ):
        got = [f"query {q}" if q < num_queries else "none" for q in explanation.queries[:, t].tolist()]
        rows.append([f"{letter}: {explanation.class_names[label]}", *got])
    extra = _PROPOSALS if explanation.config.proposals else ""
    return _ASSIGNMENT.format(table=_wide(heads, rows), extra=extra)


def _terms_part(explanation: LossExplanation) -> str:
    config = explanation.config
    return (_TERMS if config.scores == "softmax" else _TERMS_FAST).format(eos=_number(config.eos_coef))


def _division_part(explanation: LossExplanation) -> str:
    shares, first = explanation.shares, explanation.shares[0]
    world, total = len(shares), sum(share.objects for share in shares)
    l1 = explanation.terms[-1, :, 1].tolist()
    raw = _number(first.sums["loss_bbox"])
    lines = [
        f"L1 distances: {' + '.join(map(_number, l1))} = {raw}" if len(l1) > 1 else f"L1 distance: {raw}",
        f"one GPU alone: {raw} / {_number(first.own_divisors[0])} = {_number(first.own_losses['loss_bbox'])}",
    ]
    if world > 1:
        counts = " + ".join(str(share.objects) for share in shares)
        lines += [
            f"boxes per GPU, on average: ({counts}) / {world} = {_number(total / world)}",
            f"GPU 0 of {world}: {raw} / {_number(first.divisors[0])} = {_number(first.losses['loss_bbox'])}",
        ]
    if world > 1 and not total:
        lines.append("(no object in the whole batch: it is divided as if there was one)")
    more = _ALONE if world == 1 else _spread(explanation) if total else ""
    return _DIVISION.format(worked="<br>".join(lines), more=more)


def _spread(explanation: LossExplanation) -> str:
    """The L1 loss of every GPU, their mean, and what it would be with own counts."""
    shares = explanation.shares
    world, total = len(shares), sum(share.objects for share in shares)
    mean = sum(share.losses["loss_bbox"] for share in shares) / world
    naive = sum(share.own_losses["loss_bbox"] for share in shares) / world
    rows = [
        [f"GPU {i}", share.image_id, share.objects, _number(share.sums["loss_bbox"]), _number(share.divisors[0]),
         _number(share.losses["loss_bbox"]), f"1/{share.objects * world}" if share.objects else "-"]
        for i, share in enumerate(shares)
    ]  # fmt: skip
    own = "weight of an object, if each GPU took its own count"
    return _SPREAD.format(
        canvas="{1} x {0}".format(*explanation.canvas),
        table=_wide(["", "image", "objects", "L1 sum", "divided by", "its loss", own], rows),
        mean=_number(mean),
        sums=_number(sum(share.sums["loss_bbox"] for share in shares)),
        total=total,
        whole=_number(explanation.together["loss_bbox"]),
        naive=_number(naive),
        off=f"{100 * abs(naive - mean) / mean:.1f}% off" if mean else "the same",
    )


def _class_part(explanation: LossExplanation) -> str:
    first, config = explanation.shares[0], explanation.config
    queries, world = explanation.predicted.shape[1], len(explanation.shares)
    matched = min(queries, first.objects)
    if config.scores == "softmax":
        why = _CLASS.format(matched=matched, eos=_number(config.eos_coef), rest=queries - matched,
                            own=_number(first.own_divisors[1]))  # fmt: skip
    else:
        why = _CLASS_FAST
    rows = []
    for name, meaning, which in (("loss_ce", "class", 1), ("loss_bbox", "L1", 0), ("loss_giou", "1 − GIoU", 0)):
        alone = [_number(first.own_divisors[which]), _number(first.own_losses[name])]
        spread = [_number(first.divisors[which]), _number(first.losses[name])] if world > 1 else []
        rows.append([meaning, _number(first.sums[name]), *alone, *spread])
    heads = ["term", "sum", "alone: divided by", "loss", *(["here: divided by", "loss"] if world > 1 else [])]
    return f"<h2>5. All three terms of the last layer</h2>{why}{_wide(heads, rows)}"


def _total_part(explanation: LossExplanation) -> str:
    first, config = explanation.shares[0], explanation.config
    layers = explanation.predicted.shape[0]
    names = [*(f"_{i}" for i in range(layers - 1)), "", *(["_enc"] if config.proposals else [])]
    titles = [*(f"layer {i + 1}" for i in range(layers)), "proposals of the encoder"]
    weights = config.loss_ce, config.loss_bbox, config.loss_giou
    rows = []
    for title, name in zip(titles, names, strict=False):
        parts = [first.losses[f"{term}{name}"] for term in ("loss_ce", "loss_bbox", "loss_giou")]
        weighted = sum(weight * part for weight, part in zip(weights, parts, strict=True))
        rows.append([title, *map(_number, parts), _number(weighted)])
    heads = ["", "class", "L1", "1 − GIoU", "weighted sum"]
    ce, l1, giou = map(_number, weights)
    total = _number(first.losses["loss"])
    where = "" if len(explanation.shares) == 1 else ", divided as in this batch"
    return _TOTAL.format(
        where=where, ce=ce, l1=l1, giou=giou, table=_wide(heads, [*rows, ["total", "", "", "", total]])
    )


def _wide(heads: list[str], rows: Sequence[Sequence[object]]) -> str:
    return f"<div class=wide>{table(heads, rows)}</div>"


def _count(objects: int) -> str:
    return "1 object" if objects == 1 else f"{objects} objects"


def _number(value: float) -> str:
    """Five digits at most: 0.275, 0.18333, 11.8."""
    return f"{value:.5g}"


_INTRO = """<p>In training, every object of an image must be found by exactly one query, and all other queries must
say that they found none. This page shows how one image is judged: the {queries} queries have answered, the image has
{objects}. Which query is responsible for which object is decided anew in each step, by
<span class=key>matching</span>. Then the <span class=key>loss</span>, one number that training makes smaller, is
computed. Seen is the whole image without augmentation (random changes), by the model as it is now; all numbers come
from the code that trains.</p>
<p>Decoder layer: <span data-part=layers></span> <span class=note>The model answers after every layer; each answer is
matched and judged. Pictures and tables of parts 1 and 3 change to that layer.</span></p>"""
_CLASS_COST = "minus the probability that the query gives to the object's class"
_CLASS_COST_FAST = "low if the query's score for the object's class is high (the focal cost of Deformable DETR)"
_MATCHING = """<h2>1. Which query would suit which object?</h2>
<p>Green, dashed: the objects. Yellow: the query that each one got. Each query (row) and object (column) have a
<span class=key>cost</span>, small for a good fit, of three parts:</p>
<ul><li><b>class</b>, times {ce}: {class_cost};</li>
<li><b>L1</b>, times {l1}: how far apart the two boxes are, |Δcx| + |Δcy| + |Δw| + |Δh|, centre and size as fractions
of the image;</li>
<li><b>GIoU</b>, times {giou}: minus the generalized IoU of the boxes. IoU is the area that they share, divided by the
area that they cover together. It is 0 for all boxes that do not touch, near or far; GIoU goes on below 0, the further
apart they are.</li></ul>
<div class=panels><canvas data-part=objects></canvas></div>
<p><span data-part=costs></span><label><input type=checkbox data-part=every> all queries (else: the matched ones, and
the two next best of each object)</label></p>
<div class='wide matrix'><table data-part=matrix></table></div>
<p>Matching takes one query for each object so that the sum of the costs is the smallest possible (the Hungarian
algorithm finds it): <b data-part=total></b>. These are the framed cells. The best row of a column is not always the
one framed: another object may need that query more.</p>"""
_ASSIGNMENT = """<h2>2. Who got which object, layer by layer</h2>{table}<p>{extra}</p>"""
_PROPOSALS = """This form picks its queries among the encoder's proposals, one for each cell of its grids. They are
matched and judged as well."""
_TERMS = """<h2>3. What each pair costs in the loss</h2>
<p>Matched queries are judged by class and box, the other queries by class only: they should say “no object”. The box
terms are the L1 distance and 1 − GIoU (0 for the same box). The class term is −log p, where p is the probability of
the right answer; for queries without object it is multiplied by {eos}, because they are so many.</p>
<div class=wide><table data-part=terms></table></div>"""
_TERMS_FAST = """<h2>3. What each pair costs in the loss</h2>
<p>Matched queries are judged by class and box, the other queries by class only. The box terms are the L1 distance and
1 − GIoU (0 for the same box). The class term is a binary cross-entropy for every score: at a matched query, the score
of the object's class should be the IoU of the two boxes, to the power 1.5; every other score should be 0, and the
higher it is, the more it counts.</p>
<div class=wide><table data-part=terms></table></div>"""
_DIVISION = """<h2>4. What the sums are divided by</h2>
<p>A batch with many objects should not give a larger loss than one with few only because it has more terms. So the
box terms are divided by a number of objects. Take L1 of the last layer:</p>
<p class=worked data-part=worked>{worked}</p>{more}"""
_ALONE = "<p>Here the image is the whole batch. A world size of 2 shows a batch spread over two GPUs.</p>"
_SPREAD = """<p>Now the batch is spread over several GPUs (data parallel training): each holds a copy of the model and
sees images of its own. Here GPU 0 has this image, and every other GPU has one of the images that follow it in the
data set. All are padded to one size, {canvas} px, as in training. Each GPU computes its own loss and gradient, then
the gradients are averaged. That average divides by the number of GPUs already. So each GPU divides by the <b>average
number of objects per GPU</b>:</p>
{table}
<p>The mean of the losses is {mean}: {sums} / {total}, what one GPU with all the images would compute ({whole}). Each of
the {total} objects weighs 1/{total}. If each GPU divided by its own count, the mean would be {naive}, {off}: what an
object weighs would depend on which others share its GPU (last column).</p>"""
_CLASS = """<p>The class term counts all queries, with weight 1 where matched and {eos} elsewhere. Alone, it is
divided by the sum of these weights, {matched} + {eos} x {rest} = {own}; in a batch over several GPUs, by the average
of that sum per GPU, for the same reason as above.</p>"""
_CLASS_FAST = "<p>In this form, the class term is divided by the number of objects as well, in the same way.</p>"
_TOTAL = """<h2>6. The loss of this image</h2>
<p>The terms of all layers are added up{where}: {ce} x class + {l1} x L1 + {giou} x (1 − GIoU).</p>{table}"""
