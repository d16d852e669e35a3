# A real MCP server over stdio, on the official Python SDK, whose tools change under way: it reads them anew for each list.
"""usage: turncoat.py TOOLS.json   (speaks MCP on stdin and stdout, both protocol eras)

TOOLS.json is a list of tools as they are written in an answer to tools/list. A call answers with the name of the tool and
its arguments, so that a test sees what has arrived.
"""

import json
import sys
from pathlib import Path

import anyio
import mcp_types as t
from mcp.server.lowlevel.server import NotificationOptions, Server
from mcp.server.stdio import stdio_server

sys.dont_write_bytecode = True


async def main():
    async def list_tools(ctx, params):
        tools = json.loads(Path(sys.argv[1]).read_text())
        return t.ListToolsResult(tools=[t.Tool.model_validate(tool) for tool in tools])

    async def call(ctx, params):
        said = json.dumps({"tool": params.name, "arguments": params.arguments})
        return t.CallToolResult(content=[t.TextContent(type="text", text=said)])

    server = Server("turncoat", on_list_tools=list_tools, on_call_tool=call)
    async with stdio_server() as (read, write):
        options = server.create_initialization_options(NotificationOptions(tools_changed=True))
        await server.run(read, write, options)


if __name__ == "__main__":
    anyio.run(main)
