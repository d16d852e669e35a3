# Drives the official Python SDK's client through a script of steps against many servers; one JSON line per step.
"""usage: drive.py < CELLS      CELLS: {"at_once": N, "cells": [{"cell", "url", "token", "mode", "plan": [STEP...]}]}

`mode` is legacy, auto or 2026-07-28; `token` "-" is none. Prints {"cell", "step", "ok", "detail"} for `connect` and
for each step, in the cell's order. A STEP has "step", its name, and
  list        prefix, must: [names], may: [names]: the tools whose names start with the prefix are `must`, perhaps `may`
  call        tool, args, text: the result's text contains it
  progress    tool, args, text, least: at least so many progress notifications, rising
  elicit      tool, args, text: the client was asked for input at least once, and the result's text contains it
  read        uri, text; listed: it is in resources/list too
  prompt      name, args, text: the first message's text contains it
  subscribe   uri, trigger: {tool, args}; again: call it again until the update comes, for a server that sends one only
  cancel      tool, args, after: seconds; count: {tool, args, text}: what the server then says; then: {tool, args, text}
With `refused: true` a call, read, prompt or subscribe must be answered with an error; `lacks: NAME` says that the server
must not announce that capability. drive.mjs and the driver in tests/it/matrix do the same.
"""

import json
import logging
import sys
import warnings

import anyio
import httpx2
import mcp_types as t
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError

warnings.simplefilter("ignore", MCPDeprecationWarning)
logging.disable(logging.CRITICAL)

STEP_SECONDS = 30
UPDATE_SECONDS = 12
POLL_SECONDS = 0.1


class Wrong(Exception):
    """What was seen is not what the step wants."""


def innermost(error):
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return error


def said(error):
    error = innermost(error)
    if isinstance(error, Wrong):
        return str(error)
    if isinstance(error, MCPError):
        return f"error {error.code}: {error.message}"
    return f"{type(error).__name__}: {error}"


def has(text, wanted):
    if wanted not in text:
        raise Wrong(f"{wanted!r} is not in {text[:300]!r}")


def text_of(result):
    return "\n".join(getattr(block, "text", None) or f"[{block.type}]" for block in result.content)


class Cell:
    """One client and what it has seen besides answers."""

    def __init__(self, spec):
        self.spec = spec
        self.asked = 0
        self.updates = []
        self.client = None

    async def answer(self, context, params):
        """Fills a form in: defaults where there are some, else the first choice, else something of that type."""
        self.asked += 1
        values = {"string": "Alice", "integer": 7, "number": 7.5, "boolean": True}
        content = {}
        schema = getattr(params, "requested_schema", None) or {}
        for name in schema.get("required", schema.get("properties", {})):
            field = schema["properties"][name]
            content[name] = field.get("default", (field.get("enum") or [values.get(field.get("type"), "Alice")])[0])
        return t.ElicitResult(action="accept", content=content)

    async def message(self, message):
        if isinstance(message, t.ResourceUpdatedNotification):
            self.updates.append(str(message.params.uri))

    async def call(self, step, **options):
        return await self.client.call_tool(step["tool"], step["args"], **options)

    async def called(self, step):
        result = await self.call(step)
        if result.is_error:
            raise Wrong(f"the tool failed: {text_of(result)[:300]}")
        has(text_of(result), step["text"])

    async def list(self, step):
        names, cursor = [], None
        for _ in range(100):
            page = await self.client.list_tools(cursor=cursor)
            names += [tool.name for tool in page.tools]
            cursor = page.next_cursor
            if cursor is None:
                break
        seen = {name for name in names if name.startswith(step["prefix"])}
        missing = sorted(set(step["must"]) - seen)
        extra = sorted(seen - set(step["must"]) - set(step["may"]))
        if missing or extra or len(set(names)) != len(names):
            raise Wrong(f"missing {missing}, not expected {extra}, {len(names)} listed")

    async def progress(self, step):
        seen = []

        async def note(done, total, message):
            seen.append(done)

        result = await self.call(step, progress_callback=note)
        has(text_of(result), step["text"])
        if len(seen) < step["least"] or any(b <= a for a, b in zip(seen, seen[1:])):
            raise Wrong(f"progress {seen}, wanted {step['least']} that rise")

    async def elicit(self, step):
        before = self.asked
        await self.called(step)
        if self.asked == before:
            raise Wrong("the client was never asked")

    async def read(self, step):
        contents = (await self.client.read_resource(step["uri"])).contents
        has("\n".join(getattr(c, "text", None) or "[blob]" for c in contents), step.get("text", ""))
        if step.get("listed"):
            uris = [str(r.uri) for r in (await self.client.list_resources()).resources]
            if step["uri"] not in uris:
                raise Wrong(f"not listed among {uris[:20]}")

    async def prompt(self, step):
        messages = (await self.client.get_prompt(step["name"], step.get("args"))).messages
        has(messages[0].content.text, step.get("text", ""))
        if step.get("listed"):
            names = [p.name for p in (await self.client.list_prompts()).prompts]
            if step["name"] not in names:
                raise Wrong(f"not listed among {names[:20]}")

    async def subscribe(self, step):
        uri = step["uri"]
        if self.client.protocol_version >= "2026":
            async with self.client.listen(resource_subscriptions=[uri]) as subscription:
                if step.get("refused"):
                    if uri in (subscription.honored.resource_subscriptions or ()):
                        return
                    raise MCPError(t.INVALID_PARAMS, "left out of what the server acknowledges")

                async def gather():
                    async for event in subscription:
                        self.updates.append(str(getattr(event, "uri", None)))

                async with anyio.create_task_group() as group:
                    group.start_soon(gather)
                    await self.updated(step, uri)
                    group.cancel_scope.cancel()
        else:
            await self.client.subscribe_resource(uri)
            if not step.get("refused"):
                await self.updated(step, uri)
                await self.client.unsubscribe_resource(uri)

    async def updated(self, step, uri):
        deadline = anyio.current_time() + UPDATE_SECONDS
        again = 0
        while uri not in self.updates:
            now = anyio.current_time()
            if now > deadline:
                raise Wrong(f"no update of {uri} within {UPDATE_SECONDS} s, but {self.updates}")
            if now >= again:
                again = now + 1 if step.get("again") else deadline
                await self.call(step["trigger"])
            await anyio.sleep(POLL_SECONDS)

    async def cancel(self, step):
        with anyio.move_on_after(step["after"]) as scope:
            await self.call(step)
        if not scope.cancelled_caught:
            raise Wrong("the call ended before it was cancelled")
        if "count" in step:
            await self.counted(step["count"])
        await self.called(step["then"])

    async def counted(self, count):
        deadline = anyio.current_time() + UPDATE_SECONDS
        while (text := text_of(await self.call(count))).strip() != count["text"]:
            if anyio.current_time() > deadline:
                raise Wrong(f"the server never heard of it: it says {text!r}")
            await anyio.sleep(POLL_SECONDS)

    async def step(self, step):
        kind = {"call": self.called}.get(step["step"]) or getattr(self, step["step"])
        if "lacks" in step:
            announced = self.client.server_capabilities.model_dump(by_alias=True, exclude_none=True)
            if step["lacks"] in announced:
                raise Wrong(f"it announces {step['lacks']}")
        if not step.get("refused"):
            return await kind(step)
        try:
            await kind(step)
        except MCPError as error:
            return error
        except BaseExceptionGroup as group:
            if isinstance(innermost(group), MCPError):
                return innermost(group)
            raise
        raise Wrong("it was answered, not refused")

    def out(self, step, error=None):
        line = {"cell": self.spec["cell"], "step": step, "ok": error is None}
        line["detail"] = "" if error is None else said(error)
        print(json.dumps(line, ensure_ascii=False), flush=True)

    async def run(self):
        token = self.spec["token"]
        headers = {} if token == "-" else {"Authorization": f"Bearer {token}"}
        timeout = httpx2.Timeout(30, read=300)
        connected = False
        try:
            async with httpx2.AsyncClient(headers=headers, timeout=timeout) as http:
                transport = streamable_http_client(self.spec["url"], http_client=http)
                async with Client(transport, mode=self.spec["mode"], cache=None, message_handler=self.message,
                                  elicitation_callback=self.answer) as self.client:
                    version, legacy = self.client.protocol_version, self.spec["mode"] == "legacy"
                    if (version < "2026") != legacy:
                        raise Wrong(f"version {version} was negotiated")
                    self.out("connect")
                    connected = True
                    for step in self.spec["plan"]:
                        try:
                            with anyio.fail_after(STEP_SECONDS):
                                await self.step(step)
                            self.out(step["step"])
                        except Exception as error:  # noqa: BLE001 - every failure is one line
                            self.out(step["step"], error)
        except Exception as error:  # noqa: BLE001
            self.out("close" if connected else "connect", error)


async def main():
    asked = json.load(sys.stdin)
    limit = anyio.CapacityLimiter(asked["at_once"])

    async def one(spec):
        async with limit:
            await Cell(spec).run()

    async with anyio.create_task_group() as group:
        for spec in asked["cells"]:
            group.start_soon(one, spec)


if __name__ == "__main__":
    anyio.run(main)
