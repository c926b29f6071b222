"""An upload page: Flask, at most twelve masks an image, a FAISS index and a JSON file written after each.

One vector for the whole image and one for each object; a search groups by image.
"""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import faiss
import flask
import httpx
import numpy as np
from werkzeug.serving import make_server

from benchmarks.compare import driver
from benchmarks.compare.peers import plain


class Peer(driver.Peer):
    """Server and client in one process."""

    version = f"FAISS {faiss.__version__}"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._models = plain.Models()
        self._files = folder / "index.faiss", folder / "metadata.json"
        self._index: Any = faiss.IndexFlatIP(self._models.dimension)
        self._about: list[dict[str, Any]] = []
        if self._files[1].exists():
            self._index = faiss.read_index(str(self._files[0]))
            self._about = json.loads(self._files[1].read_text())
        (port,) = driver.free_ports(1)
        self._server = make_server("127.0.0.1", port, self._app(), threaded=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600, trust_env=False)

    def add(self, first: int, items: Any) -> None:
        for number, data in enumerate(items, first):
            files = {"file": (str(number), io.BytesIO(data))}
            self._http.post("/upload", files=files).raise_for_status()

    def ask(self, query: Any, below: int | None = None) -> list[Any]:
        found: list[Any] = self._http.get("/search", params={"text": query}).raise_for_status().json()
        return found

    def count(self) -> int:
        return len({about["image"] for about in self._about})

    def stop(self) -> None:
        self._server.shutdown()

    def _app(self) -> flask.Flask:
        app = flask.Flask("seed")

        @app.post("/upload")
        def upload() -> str:
            file = flask.request.files["file"]
            self._store(str(file.filename), file.read())
            return "stored"

        @app.get("/search")
        def search() -> flask.Response:
            return flask.jsonify(self._search(flask.request.args["text"]))

        return app

    def _store(self, name: str, data: bytes) -> None:
        image = plain.opened(data)
        masks = self._models.masks(np.array(image))
        masks = [m for m in masks if min(m["bbox"][2:]) > 2 and m["stability_score"] >= 0.85]
        masks.sort(key=lambda m: -(0.7 * m["predicted_iou"] + 0.3 * m["stability_score"]))
        boxes = [None, *(plain.corners(mask) for mask in masks[:12])]
        vectors = [self._models.image(image.crop(box) if box else image) for box in boxes]
        self._index.add(np.stack(vectors))
        self._about += [{"image": name, "box": box} for box in boxes]
        faiss.write_index(self._index, str(self._files[0]))
        self._files[1].write_text(json.dumps(self._about))

    def _search(self, text: str) -> list[Any]:
        _, rows = self._index.search(self._models.text(text)[np.newaxis], 100)
        best: dict[str, Any] = {}
        for row in rows[0]:
            if row >= 0:
                best.setdefault(self._about[row]["image"], self._about[row]["box"])
        return list(best.items())[:10]
