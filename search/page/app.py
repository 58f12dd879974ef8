"""The web application of the page. It reads files only of images in the index, by their id."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from search.files import open_image
from search.index import Index
from search.page.export import CHUNK, MOST, as_csv, as_zip, shown_name
from search.page.texts import TEXTS, language_of
from search.tables import Hit, ImageRow
from utils.errors import UserError
from utils.images import FORMATS

HERE: Final = Path(__file__).parent
MOST_HITS: Final = 200
MOST_FOLDERS: Final = 1_000  # to choose from
LONGEST_SENTENCE: Final = 2_000
LARGEST_PICTURE: Final = 2**26  # bytes
FOR_A_PAGE: Final = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": FOR_A_PAGE,
    "Cross-Origin-Resource-Policy": "same-origin",  # no other site can show an image of the index
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
KEPT: Final = {"Cache-Control": "private, max-age=600"}


def make_app(index: Index, hosts: Sequence[str]) -> Starlette:
    """Returns the application that searches an index.

    Args:
        hosts: names under which the page may be asked for; ``*`` is any. Others are refused, so that no other site can
            pose as this one (DNS rebinding).
    """
    page = _Page(index)
    return Starlette(
        routes=[
            Route("/", page.show),
            Route("/api/search", page.search),
            Route("/api/similar/{id}", page.similar),
            Route("/api/picture", page.picture, methods=["POST"]),
            Route("/api/export", page.export, methods=["POST"]),
            Route("/thumbnail/{id}", page.thumbnail),
            Route("/original/{id}", page.original),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        middleware=[
            Middleware(_SafeHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
        ],
        exception_handlers={UserError: _told, HTTPException: _told},
    )


class _Page:
    """The answers to requests. Those that are no coroutines run in threads."""

    def __init__(self, index: Index) -> None:
        self._index = index
        loader = FileSystemLoader(HERE / "templates")
        self._templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)

    def show(self, request: Request) -> Response:
        """Returns the page, in the language of the address or of the browser."""
        language = language_of(request.query_params.get("lang"), request.headers.get("accept-language", ""))
        folders = list(self._index.folders().items())[:MOST_FOLDERS]
        template = self._templates.get_template("search.html")
        page = template.render(
            language=language, texts=TEXTS[language], folders=folders, images=len(self._index), most=MOST_HITS
        )
        return HTMLResponse(page, headers={"Vary": "Accept-Language"})

    def search(self, request: Request) -> Response:
        """Returns the images for a sentence, as JSON."""
        sentence = request.query_params.get("q", "")
        if len(sentence) > LONGEST_SENTENCE:
            raise UserError(f"the sentence has more than {LONGEST_SENTENCE:,} letters")
        return self._timed(request, lambda k, folder: self._index.query(sentence, k, folder=folder))

    def similar(self, request: Request) -> Response:
        """Returns the images that are most like one of them, as JSON."""
        row = self._row(request)
        return self._timed(
            request, lambda k, folder: self._index.similar(row.id, k, folder=folder), name=shown_name(row)
        )

    async def picture(self, request: Request) -> Response:
        """Returns the images that are most like the picture in the request's body, as JSON."""
        content = await _body(request, LARGEST_PICTURE)

        def search(k: int, folder: str | None) -> list[Hit]:
            try:
                return self._index.query_picture(content, k, folder=folder)
            except UserError as error:
                raise HTTPException(415, str(error)) from error

        return await run_in_threadpool(self._timed, request, search)

    async def export(self, request: Request) -> Response:
        """Returns the selected images as ``?as=zip`` or ``?as=csv``; the body is the ids, one a line."""
        ids = (await _body(request, 32 * MOST)).decode("ascii", errors="replace").split()
        if not 1 <= len(ids) <= MOST:
            raise UserError(f"{len(ids):,} images are selected; an export has 1 to {MOST:,}")
        return await run_in_threadpool(self._exported, ids, request.query_params.get("as", ""))

    def thumbnail(self, request: Request) -> Response:
        """Returns the small picture of an image, as it was when it was indexed."""
        return Response(self._row(request).thumbnail, media_type="image/jpeg", headers=KEPT)

    def original(self, request: Request) -> Response:
        """Returns the file of an image, if it still is an image in its indexed folder."""
        path = self._row(request).path
        try:
            file = open_image(path)
        except OSError as error:
            raise HTTPException(
                404, f"{path} cannot be opened ({error.strerror or 'it is reached by a link'})"
            ) from error
        try:
            kind = Image.MIME[Image.open(file, formats=FORMATS).format or ""]  # reads the header only
        except Exception as error:  # damaged bytes can make Pillow raise any error
            file.close()
            raise HTTPException(404, f"{path} is no image any more") from error
        file.seek(0)
        name = Path(path).name.encode("ascii", errors="replace").decode().replace('"', "_").replace("\\", "_")
        headers = {"Content-Disposition": f'inline; filename="{name}"'}
        return StreamingResponse(_chunks(file), media_type=kind, headers=headers)

    def _exported(self, ids: Sequence[str], kind: str) -> Response:
        rows = [self._index.image(image_id) for image_id in dict.fromkeys(ids)]
        if kind == "csv":
            return Response(as_csv(rows), media_type="text/csv; charset=utf-8")
        if kind == "zip":
            return StreamingResponse(_chunks(as_zip(rows)), media_type="application/zip")
        raise UserError(f"as={kind}: expected zip or csv")

    def _row(self, request: Request) -> ImageRow:
        try:
            return self._index.image(request.path_params["id"])
        except UserError as error:
            raise HTTPException(404, str(error)) from error

    def _timed(self, request: Request, search: Callable[[int, str | None], list[Hit]], **more: str) -> Response:
        k = request.query_params.get("k", "24")
        if not k.isascii() or not k.isdigit() or not 1 <= int(k) <= MOST_HITS:
            raise UserError(f"k={k[:20]}: expected 1 to {MOST_HITS}")
        start = time.perf_counter()
        hits = search(int(k), request.query_params.get("folder") or None)
        spent = round(1000 * (time.perf_counter() - start))
        shown = [{"id": hit.id, "name": shown_name(hit), "score": round(hit.score, 4)} for hit in hits]
        return JSONResponse({"hits": shown, "ms": spent, **more})


class _SafeHeaders:
    """A middleware that adds `HEADERS` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, with_headers)


async def _body(request: Request, largest: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > largest:
            raise HTTPException(413, f"more than {largest:,} bytes")
        parts.append(part)
    return b"".join(parts)


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK):
            yield chunk


def _told(_: Request, error: Any) -> Response:
    status, told = (error.status_code, error.detail) if isinstance(error, HTTPException) else (400, str(error))
    return JSONResponse({"error": told}, status_code=status)
