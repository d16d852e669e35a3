# The gateway as the client under test of the conformance suite: a real client calls through it what the suite serves.
"""usage: WARDGATE_BIN=PROGRAM client_scenario.py URL      (run by `conformance client --command`, see client_scenarios.sh)

Starts `wardgate front URL` on a free loopback port and lets the official Python SDK's client, in the era of
MCP_CONFORMANCE_PROTOCOL_VERSION, list everything through it and call the tools the scenario names in
MCP_CONFORMANCE_CONTEXT, or else all tools. What the suite then judges are the requests that the gateway sent.
"""

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import warnings
from urllib.parse import urlsplit

import anyio
import httpx2
import mcp_types as t
from mcp import Client
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError

warnings.simplefilter("ignore", MCPDeprecationWarning)
logging.disable(logging.CRITICAL)

SCENARIO = os.environ.get("MCP_CONFORMANCE_SCENARIO", "")
VERSION = os.environ.get("MCP_CONFORMANCE_PROTOCOL_VERSION", "2025-11-25")
CONTEXT = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT") or "{}")
SAMPLES = {"string": "text", "integer": 5, "number": 5, "boolean": True, "array": [], "object": {}}


def start(url):
    """The gateway in front of the URL, and its own URL."""
    log = tempfile.NamedTemporaryFile(prefix="wardgate-", suffix=".log")
    command = [os.environ["WARDGATE_BIN"], "front", url if urlsplit(url).path else url + "/", "--mode", "full",
               "--effect", "*=read", "--listen", "127.0.0.1:0"]
    gateway = subprocess.Popen(command, stdout=log, stderr=log)
    for _ in range(200):
        found = re.search(rb'address="(127\.0\.0\.1:\d+)"', open(log.name, "rb").read())
        if found:
            return gateway, f"http://{found[1].decode()}/mcp", log
        if gateway.poll() is not None:
            break
        asyncio.run(asyncio.sleep(0.05))
    sys.exit(f"the gateway did not start: {open(log.name).read()}")


async def answer(context, params):
    """Accepts a form with its defaults (SEP-1034)."""
    properties = (getattr(params, "requested_schema", None) or {}).get("properties", {})
    content = {name: field["default"] for name, field in properties.items() if "default" in field}
    for name, field in properties.items():
        content.setdefault(name, SAMPLES.get(field.get("type"), "text"))
    return t.ElicitResult(action="accept", content=content)


def arguments(tool):
    schema = tool.input_schema
    return {name: SAMPLES.get(schema.get("properties", {}).get(name, {}).get("type"), "text")
            for name in schema.get("required", [])}


async def tried(awaitable):
    """Scenarios serve errors, too: what they judge is what was sent."""
    try:
        return await awaitable
    except (MCPError, ValueError) as error:
        print(f"answered: {error}", file=sys.stderr)


async def drive(url):
    mode = VERSION if VERSION >= "2026" else "legacy"
    async with Client(url, mode=mode, cache=None, elicitation_callback=answer) as client:
        tools = (await client.list_tools()).tools
        announced = client.server_capabilities
        if mode != "legacy" or announced.resources:
            for resource in getattr(await tried(client.list_resources()), "resources", []):
                await tried(client.read_resource(str(resource.uri)))
        if mode != "legacy" or announced.prompts:
            for prompt in getattr(await tried(client.list_prompts()), "prompts", []):
                values = {argument.name: "text" for argument in prompt.arguments or []}
                await tried(client.get_prompt(prompt.name, values))
        calls = CONTEXT.get("toolCalls") or [{"name": tool.name, "arguments": arguments(tool)} for tool in tools]
        async with anyio.create_task_group() as group:
            for call in calls:
                group.start_soon(tried, client.call_tool(call["name"], call["arguments"]))


async def drive_bare(url):
    """Calls every tool that is listed, without the checks of an SDK: only the gateway's own are left."""
    meta = {"io.modelcontextprotocol/protocolVersion": VERSION, "io.modelcontextprotocol/clientCapabilities": {}}
    async with httpx2.AsyncClient(timeout=20) as http:

        async def send(method, params, **headers):
            body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params | {"_meta": meta}}
            headers |= {"mcp-protocol-version": VERSION, "mcp-method": method,
                        "accept": "application/json, text/event-stream"}
            response = await http.post(url, json=body, headers=headers)
            lines = [line[5:] for line in response.text.splitlines() if line.startswith("data:")]
            return json.loads(lines[-1] if lines else response.text)

        for tool in (await send("tools/list", {}))["result"]["tools"]:
            headers, values = {"mcp-name": tool["name"]}, {}
            for name, field in tool["inputSchema"].get("properties", {}).items():
                values[name] = SAMPLES.get(field.get("type"), "text")
                if field.get("x-mcp-header"):
                    headers[f"mcp-param-{field['x-mcp-header']}"] = str(values[name])
            await send("tools/call", {"name": tool["name"], "arguments": values}, **headers)


if __name__ == "__main__":
    gateway, address, log = start(sys.argv[-1])
    try:
        anyio.run(drive_bare if SCENARIO == "http-invalid-tool-headers" else drive, address)
    finally:
        gateway.terminate()
        gateway.wait(10)
        sys.stderr.write(open(log.name).read())
