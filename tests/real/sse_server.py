# A small real MCP server over HTTP+SSE of 2024-11-05, on the official Python SDK: the note tools, echo and slow_count.
"""usage: sse_server.py [KEY]   (binds a free port; prints `LISTENING http://127.0.0.1:PORT/sse`)

With a KEY every request, GET and POST, must carry `Authorization: Bearer KEY`.
"""

import sys
from pathlib import Path

from mcp.server.sse import SseServerTransport
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount
from starlette.routing import Route

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
import fixture  # noqa: E402
import stdio_server  # noqa: E402

transport = SseServerTransport("/messages/")
server = fixture.build(only=stdio_server.TOOLS)


class Stream:
    async def __call__(self, scope, receive, send):
        async with transport.connect_sse(scope, receive, send) as (read, write):
            await server.run(read, write, server.create_initialization_options())


class Locked:
    def __init__(self, app, key):
        self.app, self.key = app, f"Bearer {key}".encode()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and (b"authorization", self.key) not in scope["headers"]:
            await Response(status_code=401)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


app = Starlette(routes=[Route("/sse", endpoint=Stream()), Mount("/messages/", app=transport.handle_post_message)])
fixture.serve(Locked(app, sys.argv[1]) if len(sys.argv) > 1 else app, 0, "/sse")
