# A real MCP server over stdio, on the official Python SDK: the note tools, echo and slow_count of fixture.py, or all of it.
"""usage: stdio_server.py [all]   (speaks MCP on stdin and stdout, both protocol eras)"""

import sys
from pathlib import Path

import anyio
from mcp.server.stdio import stdio_server

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
import fixture  # noqa: E402

TOOLS = ("note_read", "note_write", "note_delete", "echo", "slow_count", "cancelled_count")


async def main():
    server = fixture.build(only=None if sys.argv[1:] == ["all"] else TOOLS)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


if __name__ == "__main__":
    anyio.run(main)
