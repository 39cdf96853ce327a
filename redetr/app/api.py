"""The endpoint for programs: `POST /api/predict` with an image, `GET /api/health`."""

from typing import Any

from starlette.requests import Request
from starlette.routing import Route

from redetr.app.answers import JSONAnswer
from redetr.app.uploads import Turns, Upload, Uploads, parse_threshold, read_image
from redetr.detector.detections import Detections
from redetr.detector.detector import Detector


class Api:
    """Serves programs, with the same detector as the page."""

    def __init__(self, detector: Detector, uploads: Uploads, turns: Turns):
        self.detector = detector
        self.uploads = uploads
        self.turns = turns

    def routes(self) -> list[Route]:
        return [
            Route("/api/predict", self.predict, methods=["POST"]),
            Route("/api/health", self.health),
        ]

    async def predict(self, request: Request) -> JSONAnswer:
        """A line of `predictions.jsonl`, without its `picture` and `folder`."""
        async with self.uploads.receive(request) as upload:
            threshold = parse_threshold(upload.threshold, self.detector.threshold)
            content = await self.turns.take(request, self._answer, upload, threshold)
        return JSONAnswer({"image": upload.name, **content})

    def _answer(self, upload: Upload, threshold: float) -> dict[str, Any]:
        """The answer, without the name of the image."""
        # Part of the turn: compressing masks takes long, and holds those of an image in memory.
        return self._detect(upload, threshold).to_dict()

    def _detect(self, upload: Upload, threshold: float) -> Detections:
        image = read_image(upload.file, self.detector.model.channels)
        # As one tile, whose masks are cropped: whole masks of all queries could take gigabytes.
        return self.detector.predict(image, threshold, tile=max(image.shape[1:]))

    async def health(self, request: Request) -> JSONAnswer:
        classes = []
        for category_id, name in self.detector.classes:
            classes.append({"label": name, "category_id": category_id})
        return JSONAnswer({"status": "ok", "classes": classes})
