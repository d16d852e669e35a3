# The official Python SDK logs in by itself: only URLs are given. Prints what it came with, one JSON line per URL.
"""usage: login.py URL...     the same person and token store for all URLs, one after the other."""

import json
import logging
import os
import pathlib
import subprocess
import sys
from urllib.parse import parse_qs, urlsplit

import anyio
import httpx2
from mcp import Client
from mcp.client.auth import OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientMetadata

logging.disable(logging.CRITICAL)
BROWSER = pathlib.Path(__file__).with_name("browser.mjs")


class Person:
    """Keeps tokens and follows links."""

    def __init__(self):
        self.tokens = self.client = self.answer = None
        self.seen = {"logins": 0, "scopes": []}

    async def get_tokens(self):
        return self.tokens

    async def set_tokens(self, tokens):
        self.tokens = tokens

    async def get_client_info(self):
        return self.client

    async def set_client_info(self, client):
        self.client = client

    async def redirect(self, url):
        self.seen["logins"] += 1
        self.seen["scopes"].append(parse_qs(urlsplit(url).query).get("scope", [None])[0])
        walk = [os.environ["WARDGATE_NODE"], str(BROWSER), url, "--stop"]
        self.answer = subprocess.run(walk, check=True, capture_output=True, text=True).stdout.strip()

    async def callback(self):
        answer = {name: values[0] for name, values in parse_qs(urlsplit(self.answer).query).items()}
        return AuthorizationCodeResult(code=answer["code"], state=answer.get("state"), iss=answer.get("iss"))


async def use(url, person):
    metadata = OAuthClientMetadata(
        client_name="wardgate-test-client",
        redirect_uris=["http://127.0.0.1:33418/callback"],
        grant_types=["authorization_code", "refresh_token"],
        token_endpoint_auth_method="none",
    )
    auth = OAuthClientProvider(url, metadata, person, person.redirect, person.callback)
    async with httpx2.AsyncClient(auth=auth, timeout=30, trust_env=False) as http:
        async with Client(streamable_http_client(url, http_client=http)) as client:
            tools = sorted(tool.name for tool in (await client.list_tools()).tools)
            text = (await client.call_tool("list_notes", {})).content[0].text
    line = {"tools": tools, "text": text, **person.seen, "client_id": person.client.client_id, "scope": person.tokens.scope}
    print(json.dumps(line), flush=True)


async def main():
    person = Person()
    for url in sys.argv[1:]:
        await use(url, person)


def innermost(error):
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return error


try:
    anyio.run(main)
except BaseException as error:
    found = innermost(error)
    print(json.dumps({"error": f"{type(found).__name__}: {found}"}), flush=True)
    sys.exit(1)
