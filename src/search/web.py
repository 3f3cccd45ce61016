"""The page's web server: a few routes over `Page`, a token, and nothing of the disk but its videos.

A video is named by its id, never by a path, and an id that is not indexed does not exist.
"""

from __future__ import annotations

import hmac
import socket
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Any

from rushes.errors import BackendMissing, ConfigError, MissingVideo, RushesError
from rushes.search.page import UPLOAD_LIMIT, Page

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
    from starlette.routing import Route
except ModuleNotFoundError as error:  # the extra is optional; the command says how to get it
    raise BackendMissing("the page's web server", "pip install 'rushes[app]'") from error

TEXT_LIMIT = 1000
"""Characters of a sentence or a question."""
TOP_LIMIT = 60
COOKIE = "rushes_token"
STATIC = {"app.css": "text/css", "app.js": "text/javascript"}
SECURITY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
Work = Callable[[Request], Awaitable[Response]]


class Web:
    """One method a route.

    Args:
        page: does the work.
        token: asked of every request, once in the address and then by a cookie; None asks nothing.
    """

    def __init__(self, page: Page, token: str | None) -> None:
        self.page, self.token = page, token

    def guarded(self, work: Work) -> Work:
        """`work` behind the token, with errors as JSON and the headers that browsers heed."""

        async def endpoint(request: Request) -> Response:
            response = self._refusal(request)
            if response is None:
                try:
                    response = await work(request)
                except MissingVideo as error:
                    response = _error(404, str(error))
                except (RushesError, ValueError) as error:
                    response = _error(400, str(error))
            response.headers.update(SECURITY)
            return response

        return endpoint

    def _refusal(self, request: Request) -> Response | None:
        if self.token is not None and not _has_token(request, self.token):
            return _error(403, "this page needs the token that rushes app printed")
        if request.method == "POST" and request.headers.get("x-rushes") != "1":
            # A form on another site can post, but it cannot set this header.
            return _error(403, "requests come from the page itself")
        return None

    async def home(self, request: Request) -> Response:
        """The page; a token in the address becomes a cookie, so that it leaves the address."""
        if self.token is not None and request.query_params.get("token"):
            response: Response = RedirectResponse("/")
            response.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
            return response
        return Response(_static("app.html"), media_type="text/html")

    async def static(self, request: Request) -> Response:
        """Style and script."""
        name = request.path_params["name"]
        if name not in STATIC:
            raise MissingVideo(name, "no such file")
        return Response(_static(name), media_type=STATIC[name])

    async def state(self, _: Request) -> Response:
        """What there is."""
        return JSONResponse(self.page.state())

    async def search(self, request: Request) -> Response:
        """Moments for a sentence."""
        asked = await _object(request)
        text, top = _text(asked, "text"), _top(asked.get("top", 12))
        return JSONResponse(await run_in_threadpool(self.page.search, text, top))

    async def answer(self, request: Request) -> Response:
        """Answers to a question."""
        asked = await _object(request)
        video, question = _text(asked, "video"), _text(asked, "question")
        start, end = _time(asked.get("start")), _time(asked.get("end"))
        found = await run_in_threadpool(self.page.answer, video, question, start, end)
        return JSONResponse(found)

    async def neighbours(self, request: Request) -> Response:
        """Videos like the one in the request's body."""
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > UPLOAD_LIMIT:
                return _error(413, f"the file is larger than {UPLOAD_LIMIT // 2**20} MB")
        top = _top(request.query_params.get("top", "12"))
        return JSONResponse(await run_in_threadpool(self.page.neighbours, bytes(data), top))

    async def media(self, request: Request) -> Response:
        """The file of a video; answers range requests, so that players can seek."""
        return FileResponse(self.page.path(request.path_params["video"]))

    async def still(self, request: Request) -> Response:
        """One frame."""
        at = _time(request.query_params.get("at", "0")) or 0.0
        data = await run_in_threadpool(self.page.still, request.path_params["video"], at)
        return Response(data, media_type="image/jpeg")


def make_app(page: Page, token: str | None = None, hosts: Sequence[str] = ("*",)) -> Starlette:
    """The web application.

    Args:
        token: see `Web`.
        hosts: names under which the page may be opened.
    """
    web = Web(page, token)
    routes: list[tuple[str, Work, str]] = [
        ("/", web.home, "GET"),
        ("/static/{name}", web.static, "GET"),
        ("/api/state", web.state, "GET"),
        ("/api/search", web.search, "POST"),
        ("/api/answer", web.answer, "POST"),
        ("/api/neighbours", web.neighbours, "POST"),
        ("/media/{video:path}", web.media, "GET"),
        ("/still/{video:path}", web.still, "GET"),
    ]
    app = Starlette(
        routes=[Route(path, web.guarded(work), methods=[method]) for path, work, method in routes]
    )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    return app


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections from now on; they wait until `serve`.

    Raises:
        ConfigError: the interface is not this machine's, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error}") from error


def serve(app: Starlette, listening: socket.socket) -> None:
    """Serve until interrupted."""
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def _has_token(request: Request, token: str) -> bool:
    given = request.query_params.get("token") or request.cookies.get(COOKIE) or ""
    return hmac.compare_digest(given.encode(), token.encode())


def _error(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status_code=status)


def _static(name: str) -> str:
    return (resources.files("rushes.search") / name).read_text("utf-8")


async def _object(request: Request) -> dict[str, Any]:
    value = await request.json()
    if not isinstance(value, dict):
        raise ConfigError("expected a JSON object")
    return value


def _text(asked: dict[str, Any], name: str) -> str:
    value = asked.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{name}: nothing was asked")
    if len(value) > TEXT_LIMIT:
        raise ConfigError(f"{name}: {len(value)} characters, the limit is {TEXT_LIMIT}")
    return value


def _top(value: Any) -> int:
    count = int(value)
    if not 1 <= count <= TOP_LIMIT:
        raise ConfigError(f"top={count}: expected 1 to {TOP_LIMIT}")
    return count


def _time(value: Any) -> float | None:
    if value is None:
        return None
    seconds = float(value)
    if not 0 <= seconds < 1e7:
        raise ConfigError(f"{seconds} s: expected a time in the video")
    return seconds
