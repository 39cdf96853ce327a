"""Serves the page and its requests: detections, their explanation, and the loss of a training
image."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from torch import Tensor

from redetr.app.answers import JSONAnswer
from redetr.app.guard import FRAME_POLICY
from redetr.app.uploads import (
    MAX_BYTES,
    Turns,
    Upload,
    Uploads,
    parse_threshold,
    read_image,
)
from redetr.data import DetectionDataset
from redetr.data.dataset import spread_indices
from redetr.detector.detections import Detections
from redetr.detector.detector import Detector
from redetr.errors import InputError
from redetr.explain import explain, explain_loss, image_page, loss_page, open_judged
from redetr.outlines import outlines
from redetr.pages.drawing import SCORE_COLORS, class_color, to_pil
from redetr.pages.images import data_uri
from redetr.pages.templates import render
from redetr.structures import Size

_FOLDER = Path(__file__).parent
_MOST_GPUS = 8
_EXAMPLES = 12  # images that are trained on, to choose from
_THUMBNAIL_PX = 160
_MOST_MASKS = 30
_LEAST_MASK_SCORE = 0.1  # of detections whose masks are shown
_OUTLINES_PX = 512  # longer side at which masks are outlined: models see them at about a quarter
_PICTURE_PX = 2048  # longest side of the picture that the page shows and saves


class Page:
    """The page and its requests. Images are processed one at a time (see `Turns`)."""

    def __init__(
        self,
        detector: Detector,
        dataset: DetectionDataset | None,
        title: str,
        uploads: Uploads,
        turns: Turns,
    ):
        self.detector = detector
        self.title = title
        self.uploads = uploads
        self.turns = turns
        self._dataset = dataset
        self._known_examples: dict[str, list[Any]] | None = None

    def routes(self) -> list[Route]:
        return [
            Route("/", self.show),
            Route(
                "/frame",
                _file("frame.html", "text/html", {"content-security-policy": FRAME_POLICY}),
            ),
            Route("/app.js", _file("app.js", "text/javascript")),
            Route("/app.css", _file("app.css", "text/css")),
            Route("/look", self.look, methods=["POST"]),
            Route("/explain", self.explain, methods=["POST"]),
            Route("/examples", self.examples),
            Route("/judge", self.judge, methods=["POST"]),
        ]

    @cached_property
    def dataset(self) -> DetectionDataset:
        """The training images, opened on first use. Raises InputError if they cannot be opened."""
        if self._dataset is not None:
            return self._dataset
        return open_judged(self.detector, "train")

    @cached_property
    def image_ids(self) -> list[str]:
        return [str(self.dataset.image_id(index)) for index in range(len(self.dataset))]

    async def show(self, request: Request) -> HTMLResponse:
        return HTMLResponse(self.html.encode("utf-8", "backslashreplace"))

    @cached_property
    def html(self) -> str:
        return render(
            "app/page.html",
            title=self.title,
            class_names=self.detector.class_names,
            threshold=self.detector.threshold,
            max_bytes=MAX_BYTES,
            most_gpus=_MOST_GPUS,
        )

    async def look(self, request: Request) -> JSONAnswer:
        """All detections of an image, which the page filters, and the image to draw them on."""
        async with self.uploads.receive(request) as upload:
            content = await self.turns.take(request, self._look, upload)
        return JSONAnswer(content)

    def _look(self, upload: Upload) -> dict[str, Any]:
        image = read_image(upload.file, self.detector.model.channels)
        detections = self.detector.predict(image, threshold=0.0, masks=False)
        # Browsers cannot show all formats, so the page gets the image that the model was given.
        picture = to_pil(image)
        picture.thumbnail((_PICTURE_PX, _PICTURE_PX))
        colors = {}
        for label, name in enumerate(self.detector.class_names):
            colors[name] = class_color(label)
        return {
            "answer": {"image": upload.name, **detections.to_dict()},
            "picture": data_uri(picture),
            "masks": self._outlines(image, detections),
            "segments": self._segments(image, upload.name),
            "colors": colors,
            # With a single class, colours show scores.
            "score_colors": SCORE_COLORS if len(colors) == 1 else None,
        }

    def _outlines(self, image: Tensor, detections: Detections) -> list[list[list[float]]]:
        """The masks of the best detections, each as polygons x1, y1, x2, y2, ... in pixels of the
        image. Holes have polygons of their own.

        Masks at the size of a photograph would take gigabytes. So the model runs a second time, to
        get small masks of a few detections.
        """
        if not self.detector.model.has_masks or not len(detections):
            return []
        last = min(len(detections), _MOST_MASKS) - 1
        least = max(_LEAST_MASK_SCORE, float(detections.scores[last]))
        size = _outlined_size(image)
        shown = self.detector.predict_at_size(image, size, least)
        assert isinstance(shown.masks, Tensor)  # those of tiles are cropped
        return _outlines_of(shown.masks, image)

    def _segments(self, image: Tensor, name: str | None) -> dict[str, Any] | None:
        """The segments that a panoptic model finds in an image, in the form of detections, with
        their outlines. None for other models."""
        if not self.detector.model.is_panoptic:
            return None
        (segments,) = self.detector.predict_panoptic([image], masks=False)
        ids = _nearest(segments.ids, _outlined_size(image))
        reduced = replace(segments.panoptic, ids=ids)
        return {
            "answer": {"image": name, **segments.to_dict("none")},
            "masks": _outlines_of(reduced.masks(), image),
        }

    async def explain(self, request: Request) -> JSONAnswer:
        """The page that shows where the model looked in an image."""
        async with self.uploads.receive(request) as upload:
            threshold = parse_threshold(upload.threshold, self.detector.threshold)
            page = await self.turns.take(request, self._explain, upload, threshold)
        return JSONAnswer({"page": page})

    def _explain(self, upload: Upload, threshold: float) -> str:
        image = read_image(upload.file, self.detector.model.channels)
        explanation = explain(self.detector, image)
        return image_page(explanation, threshold, title="Where DETR looked")

    async def examples(self, request: Request) -> JSONAnswer:
        """Thumbnails of training images, spread over the data set, and the errors of those that
        cannot be read."""
        return JSONAnswer(await self.turns.take(request, self._examples))

    def _examples(self) -> dict[str, list[Any]]:
        if self._known_examples is not None:
            return self._known_examples
        examples = []
        errors: list[str] = []
        for index in spread_indices(_EXAMPLES, len(self.dataset)):
            try:
                examples.append(self._example(index))
            except InputError as error:  # the others can be chosen without it
                errors.append(str(error))
        content: dict[str, list[Any]] = {"examples": examples, "errors": errors}
        if not errors:  # once fixed, images are shown when the page is loaded again
            self._known_examples = content
        return content

    def _example(self, index: int) -> dict[str, str]:
        """A training image to choose. Raises InputError if it cannot be read."""
        thumbnail = to_pil(self.dataset.image(index))
        thumbnail.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        return {
            "image_id": self.image_ids[index],
            "name": self.dataset.image_name(index),
            "thumbnail": data_uri(thumbnail),
        }

    async def judge(self, request: Request) -> JSONAnswer:
        """The page on the loss of a training image.

        The query of the request gives the id of the image (by default, the first); with `step` 1,
        the page is on the next image.
        """
        image_id = request.query_params.get("image_id", "").strip()
        step = _whole_number(request, "step", 0, 1)
        world_size = _whole_number(request, "world_size", 1, _MOST_GPUS)
        return JSONAnswer(await self.turns.take(request, self._judge, image_id, step, world_size))

    def _judge(self, image_id: str, step: int, world_size: int) -> dict[str, str]:
        ids = self.image_ids
        if image_id and image_id not in ids:
            examples = ", ".join(ids[:5])
            raise InputError(
                f"{self.dataset.name} has no image with this id: try another, such as {examples}"
            )
        index = ids.index(image_id) if image_id else 0
        index = (index + step) % len(ids)
        chosen = ids[index]
        explanation = explain_loss(self.detector, self.dataset, int(chosen), world_size)
        page = loss_page(explanation, title="From boxes to loss")
        return {"image_id": chosen, "name": self.dataset.image_name(index), "page": page}


def _outlined_size(image: Tensor) -> Size:
    """Height and width of the masks that are outlined for an image `[C, H, W]`."""
    height, width = image.shape[1:]
    reduction = max(1.0, max(height, width) / _OUTLINES_PX)
    # Of a very narrow image, one row remains.
    return max(1, round(height / reduction)), max(1, round(width / reduction))


def _nearest(ids: Tensor, size: Size) -> Tensor:
    """A map `[H, W]` at another size: each pixel has the value of the nearest one."""
    indices = []
    for old, new in zip(ids.shape, size, strict=True):
        centers = (torch.arange(new) + 0.5) * (old / new)
        indices.append(centers.long())
    rows, columns = indices
    return ids[rows[:, None], columns]


def _outlines_of(masks: Tensor, image: Tensor) -> list[list[list[float]]]:
    """The polygons of each mask of a copy of `image` `[C, H, W]`, bool `[N, h, w]`, as in
    `Page._outlines`."""
    height, width = image.shape[1:]
    scale = np.array([width / masks.shape[2], height / masks.shape[1]])
    of_masks = []
    for mask in masks:
        polygons = []
        for polygon in outlines(mask.numpy()):
            polygons.append((polygon * scale).round(1).ravel().tolist())
        of_masks.append(polygons)
    return of_masks


def _file(name: str, media_type: str, headers: dict[str, str] | None = None) -> Any:
    """A handler that serves a file of this folder."""
    content = (_FOLDER / name).read_bytes()

    async def answer(request: Request) -> Response:
        return Response(content, media_type=media_type, headers=headers)

    return answer


def _whole_number(request: Request, name: str, least: int, most: int) -> int:
    """A parameter of the request's query, by default `least`. Raises HTTPException if it is no
    whole number from `least` to `most`."""
    text = request.query_params.get(name, str(least))
    allowed = [str(number) for number in range(least, most + 1)]
    if text not in allowed:
        raise HTTPException(400, f"{name} is not a whole number between {least} and {most}")
    return int(text)
