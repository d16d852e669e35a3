# A test client on the official Python SDK: lists tools and then does what the arguments say, one JSON line each.
"""usage: client.py URL TOKEN MODE [ACTION...]     TOKEN `-` is none; MODE is legacy, auto or 2026-07-28

  --call NAME JSON            calls a tool           {"tool", "isError", "text"[, "structured"]} or {"tool", "error"}
  --cancel NAME JSON SECONDS  cancels the call then  {"tool", "cancelled": true}; waits 0.3 s for it to arrive
  --read URI                  reads a resource       {"resource", "text"}
  --prompt NAME JSON          gets a prompt          {"prompt", "messages": [text...]}
  --list                      lists the tools again  {"tools": [names], "pages"}
  --resources, --prompts      lists them             {"resources": [uris]}, {"prompts": [names]}
  --progress                  following calls collect progress: "progress": [[progress, total, message]...]
  --answer                    answers sampling, elicitation and roots requests (must come before other actions)
  --no-list                   does not list the tools first (must come before other actions)
  URL `stdio:PROGRAM ARG...` starts a stdio server instead, `sse:URL` speaks HTTP+SSE of 2024-11-05.
The first line is {"protocol", "server", "capabilities", "tools": [names], "pages", "annotations", "bytes"}; a
connection that fails prints {"error": {...}} and exits 1. An error is {"code", "message"[, "data"][, "http": {"status",
"www-authenticate", "retry-after"}]}; "http" is the last HTTP answer, if that was 400 or above.
"""

import json
import logging
import shlex
import sys
import time

import anyio
import httpx2
import mcp_types as t
from mcp import Client
from mcp.client.sse import sse_client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

logging.disable(logging.CRITICAL)

LINE_KEYS = {"--call": 2, "--cancel": 3, "--read": 1, "--prompt": 2, "--list": 0, "--resources": 0, "--prompts": 0,
             "--progress": 0}


def out(**line):
    print(json.dumps(line, ensure_ascii=False), flush=True)


refused = {}


async def remember(response):
    """Keeps the last HTTP refusal: the SDK tells its status and headers to nobody."""
    if response.request.method != "POST":
        return
    refused.clear()
    if response.status_code >= 400:
        refused["status"] = response.status_code
        for name in ("www-authenticate", "retry-after"):
            if name in response.headers:
                refused[name] = response.headers[name]


def describe(error):
    """What went wrong, also when it is inside exception groups, and the HTTP refusal if there was one."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    if isinstance(error, MCPError):
        found = {"code": error.code, "message": error.message}
        if error.data is not None:
            found["data"] = error.data
    else:
        found = {"code": None, "message": f"{type(error).__name__}: {error}"}
    if refused:
        found["http"] = dict(refused)
    return found


def texts(blocks):
    return "\n".join(getattr(block, "text", None) or f"[{block.type}]" for block in blocks)


async def list_tools(client):
    tools, cursor, pages = [], None, 0
    while True:
        page = await client.list_tools(cursor=cursor)
        pages += 1
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            return tools, pages
        if pages > 1000:
            raise RuntimeError("more than 1000 pages")


async def one(client, action, values, progress):
    if action == "--list":
        tools, pages = await list_tools(client)
        out(tools=[tool.name for tool in tools], pages=pages)
    elif action == "--resources":
        out(resources=[str(r.uri) for r in (await client.list_resources()).resources])
    elif action == "--prompts":
        out(prompts=[p.name for p in (await client.list_prompts()).prompts])
    elif action == "--read":
        try:
            contents = (await client.read_resource(values[0])).contents
            out(resource=values[0], text="\n".join(getattr(c, "text", None) or "[blob]" for c in contents))
        except MCPError as error:
            out(resource=values[0], error=describe(error))
    elif action == "--prompt":
        try:
            messages = (await client.get_prompt(values[0], json.loads(values[1]))).messages
            out(prompt=values[0], messages=[texts([m.content]) for m in messages])
        except MCPError as error:
            out(prompt=values[0], error=describe(error))
    else:
        seen, started = [], time.monotonic()

        async def on_progress(done, total, message):
            seen.append([done, total, message])

        line = {"tool": values[0]}
        try:
            seconds = float(values[2]) if action == "--cancel" else None
            with anyio.move_on_after(seconds) as scope:
                result = await client.call_tool(
                    values[0], json.loads(values[1]), progress_callback=on_progress if progress else None)
                line |= {"isError": bool(result.is_error), "text": texts(result.content)}
                if result.structured_content is not None:
                    line["structured"] = result.structured_content
            if scope.cancelled_caught:
                line["cancelled"] = True
        except Exception as error:  # noqa: BLE001 - every failure is one line
            line["error"] = describe(error)
        if progress:
            line["progress"] = seen
        line["ms"] = round((time.monotonic() - started) * 1000)
        if action == "--cancel":
            await anyio.sleep(0.3)
        out(**line)


async def answer_elicitation(context, params):
    values = {"string": "Alice", "integer": 7, "number": 7.5, "boolean": True}
    content = {}
    for name, schema in getattr(params, "requested_schema", {}).get("properties", {}).items():
        content[name] = schema.get("default", (schema.get("enum") or [values.get(schema.get("type"), "Alice")])[0])
    return t.ElicitResult(action="accept", content=content)


async def answer_sampling(context, params):
    return t.CreateMessageResult(role="assistant", model="test", content=t.TextContent(type="text", text="Paris"))


async def answer_roots(context):
    return t.ListRootsResult(roots=[t.Root(uri="file:///test-root", name="test")])


async def main(url, token, mode, arguments):
    answers = {}
    listing = True
    while arguments and arguments[0] in ("--answer", "--no-list"):
        if arguments.pop(0) == "--no-list":
            listing = False
        else:
            answers = dict(elicitation_callback=answer_elicitation, sampling_callback=answer_sampling,
                           list_roots_callback=answer_roots)
    actions, index = [], 0
    while index < len(arguments):
        count = LINE_KEYS.get(arguments[index])
        if count is None or index + count >= len(arguments):
            sys.exit(f"bad argument {arguments[index]!r}\n{__doc__}")
        actions.append((arguments[index], arguments[index + 1:index + 1 + count]))
        index += 1 + count

    headers = {} if token == "-" else {"Authorization": f"Bearer {token}"}
    timeout = httpx2.Timeout(30, read=300)
    async with httpx2.AsyncClient(
        headers=headers, timeout=timeout, event_hooks={"response": [remember]}
    ) as http:
        if url.startswith("stdio:"):
            program, *args = shlex.split(url.removeprefix("stdio:"))
            target = StdioServerParameters(command=program, args=args)
        elif url.startswith("sse:"):
            target = sse_client(url.removeprefix("sse:"), headers=headers)
        else:
            target = streamable_http_client(url, http_client=http)
        async with Client(target, mode=mode, cache=None, **answers) as client:
            first = {"protocol": client.protocol_version}
            info = client.server_info
            first["server"] = info.name if info is not None else None
            first["capabilities"] = client.server_capabilities.model_dump(by_alias=True, exclude_none=True)
            if listing:
                tools, pages = await list_tools(client)
                dumped = [tool.model_dump(by_alias=True, exclude_none=True, mode="json") for tool in tools]
                first |= {"tools": [tool.name for tool in tools], "pages": pages,
                          "annotations": {tool["name"]: tool.get("annotations") for tool in dumped},
                          "bytes": len(json.dumps(dumped, separators=(",", ":")))}
            out(**first)
            progress = False
            for action, values in actions:
                if action == "--progress":
                    progress = True
                    continue
                await one(client, action, values, progress)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    try:
        anyio.run(main, sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
    except Exception as error:  # noqa: BLE001 - the caller reads one JSON line
        out(error=describe(error))
        sys.exit(1)
