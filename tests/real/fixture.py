# A real MCP server for the tests, on the official Python SDK: both protocol eras on one endpoint, every tool,
# resource and prompt the conformance suite calls, and extra tools (notes, slow work, paging) for gateway tests.
"""usage: fixture.py [--port N] [--page-size N] [--many N] [--bare-prompts] [--era legacy|modern]

Binds 127.0.0.1 and prints `LISTENING http://127.0.0.1:PORT/mcp` when it accepts requests; port 0 is any free port.
`--page-size` splits tools/list into pages, `--many` adds that many small read-only tools, `--bare-prompts` takes the
`test_` away from the names of prompts (a route that prefixes names gives it back), `--era` refuses requests of the other era as servers do that do not know it.
"""

import argparse
import base64
import json
import socket
import warnings

import anyio
import jsonschema
import mcp_types as t
import uvicorn
from mcp.server.caching import CacheHint
from mcp.server.lowlevel.server import NotificationOptions, Server
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.streamable_http import EventMessage, EventStore
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ResourceUpdated,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from mcp.shared.message import ServerMessageMetadata

warnings.simplefilter("ignore", MCPDeprecationWarning)

NAME = "wardgate-test-fixture"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WAV = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="

READ = t.ToolAnnotations(read_only_hint=True, open_world_hint=False)
WRITE = t.ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
DELETE = t.ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)

EMPTY = {"type": "object", "properties": {}}


def obj(*required, **properties):
    """A JSON Schema of an object."""
    schema = {"type": "object", "properties": properties}
    if required:
        schema["required"] = list(required)
    return schema


STR = {"type": "string"}

JSON_SCHEMA_2020_12 = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


def text(value):
    return t.CallToolResult(content=[t.TextContent(type="text", text=str(value))])


def failed(value):
    return t.CallToolResult(content=[t.TextContent(type="text", text=str(value))], is_error=True)


def image():
    return t.ImageContent(type="image", data=PNG, mime_type="image/png")


def embedded(uri, mime, body):
    return t.EmbeddedResource(
        type="resource", resource=t.TextResourceContents(uri=uri, mime_type=mime, text=body)
    )


def elicit_form(message, schema):
    return t.ElicitRequest(params=t.ElicitRequestFormParams(message=message, requested_schema=schema))


def ask_model(prompt, max_tokens):
    return t.CreateMessageRequest(
        params=t.CreateMessageRequestParams(
            messages=[t.SamplingMessage(role="user", content=t.TextContent(type="text", text=prompt))],
            max_tokens=max_tokens,
        )
    )


ASK_NAME = ("What is your name?", obj("name", name=STR))


class NeedInput(Exception):
    """Ends a modern round: the client must answer these requests and call again."""

    def __init__(self, requests, state=None):
        self.result = t.InputRequiredResult(input_requests=requests, request_state=state)


def modern(ctx):
    return ctx.protocol_version >= "2026"


def answer(params, key, kind):
    """The client's answer under `key`, if it is of the expected kind."""
    value = (params.input_responses or {}).get(key)
    return value if isinstance(value, kind) else None


def accepted(params, key):
    """The content of an accepted elicitation, or None."""
    value = answer(params, key, t.ElicitResult)
    return value.content or {} if value is not None and value.action == "accept" else None


async def ask(ctx, params, key, request, kind):
    """Ask the client for input: a server request in the legacy era, an input_required result in the modern one."""
    if modern(ctx):
        value = answer(params, key, kind)
        if value is None:
            raise NeedInput({key: request})
        return value
    return await ctx.session.send_request(
        request, kind, metadata=ServerMessageMetadata(related_request_id=ctx.request_id)
    )


KINDS = {t.ElicitRequest: t.ElicitResult, t.CreateMessageRequest: t.CreateMessageResult,
         t.ListRootsRequest: t.ListRootsResult}
ROUNDS_MAX = 5


async def rounds(ctx, params, run):
    """The result of `run(params)`. What it asks the client for are rounds of their own in the modern era; a legacy client
    is asked by requests of the server, one after the other, until there is a result."""
    for _ in range(ROUNDS_MAX):
        try:
            result = run(params)
            result = await result if hasattr(result, "__await__") else result
        except NeedInput as need:
            result = need.result
        if modern(ctx) or not isinstance(result, t.InputRequiredResult):
            return result
        answers = {}
        for key, request in (result.input_requests or {}).items():
            metadata = ServerMessageMetadata(related_request_id=ctx.request_id)
            answers[key] = await ctx.session.send_request(request, KINDS[type(request)], metadata=metadata)
        params = params.model_copy(update={"input_responses": answers, "request_state": result.request_state})
    raise MCPError(t.INVALID_PARAMS, "Too many rounds")


async def log(ctx, message):
    await ctx.session.send_log_message("info", message, related_request_id=ctx.request_id)


class MemoryEventStore(EventStore):
    """Keeps the events of legacy streams, so that a client can resume with Last-Event-ID."""

    def __init__(self):
        self.events = []

    async def store_event(self, stream_id, message):
        self.events.append((stream_id, message))
        return str(len(self.events))

    async def replay_events_after(self, last_event_id, send_callback):
        if not last_event_id.isdigit() or not 0 < int(last_event_id) <= len(self.events):
            return None
        last = int(last_event_id)
        stream = self.events[last - 1][0]
        for number, (stream_id, message) in enumerate(self.events[last:], last + 1):
            if stream_id == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


class Fixture:
    """All state and all tools of one server."""

    def __init__(self, many=0):
        self.bus = InMemorySubscriptionBus()
        self.notes = {"hello": "world"}
        self.cancelled = []
        self.subscribers = {}
        self.toggled = False
        self.tools = {}
        self._tools()
        for number in range(many):
            name = f"many_{number:04d}"
            filler = f"Trivial tool number {number} of many. " + "It only exists so that a long list can be tested. " * 9
            self.add(name, filler[:460], obj(value=STR), READ, lambda ctx, p, a, name=name: text(name))

    def add(self, name, description, schema, annotations, handler, title=None):
        tool = t.Tool(name=name, title=title, description=description, input_schema=schema, annotations=annotations)
        self.tools[name] = (tool, handler)

    def listed(self):
        return [tool for name, (tool, _) in self.tools.items() if name != "toggled_tool" or self.toggled]

    async def call(self, ctx, params):
        found = self.tools.get(params.name)
        if found is None or (params.name == "toggled_tool" and not self.toggled):
            raise MCPError(t.INVALID_PARAMS, f"Unknown tool: {params.name}")
        tool, handler = found
        arguments = params.arguments or {}
        try:
            jsonschema.Draft202012Validator(tool.input_schema).validate(arguments)
        except jsonschema.ValidationError as error:
            return failed(f"Invalid arguments: {error.message}")
        try:
            return await rounds(ctx, params, lambda params: handler(ctx, params, arguments))
        except MCPError as error:
            if modern(ctx):
                raise
            return failed(f"The client did not answer: {error}")

    def _tools(self):
        add = self.add

        # --- tools for tests of a gateway ---
        add("echo", "Returns its text argument.", obj("text", text=STR), READ, lambda ctx, p, a: text(a["text"]))
        add("note_read", "Reads a note; without a key it lists the keys.", obj(key=STR), READ, self.note_read)
        add("note_write", "Writes a note.", obj("key", "value", key=STR, value=STR), WRITE, self.note_write)
        add("note_delete", "Deletes a note.", obj("key", key=STR), DELETE, self.note_delete)
        add(
            "slow_count",
            "Counts to `steps` within `seconds`, reports progress, notices when it is cancelled.",
            obj(seconds={"type": "number", "minimum": 0}, steps={"type": "integer", "minimum": 1}, label=STR),
            READ,
            self.slow_count,
        )
        add("cancelled_count", "How many calls of slow_count were cancelled, of all or of those with this label.",
            obj(label=STR), READ,
            lambda ctx, p, a: text(len([x for x in self.cancelled if "label" not in a or x == a["label"]])))
        add("unhinted", "A tool without any annotations.", EMPTY, None, lambda ctx, p, a: text("unhinted ran"))
        add("request_headers", "The HTTP headers this request arrived with, as JSON.", EMPTY, READ,
            lambda ctx, p, a: text(json.dumps(dict(ctx.request.headers) if ctx.request is not None else {})))
        add("toggled_tool", "Is listed only after test_trigger_tool_change {toggle: true}.", EMPTY, READ,
            lambda ctx, p, a: text("toggled_tool ran"))

        # --- tools of the conformance suite: content ---
        add("test_simple_text", "Tests simple text content.", EMPTY, READ,
            lambda ctx, p, a: text("This is a simple text response for testing."))
        add("test_image_content", "Tests image content.", EMPTY, READ,
            lambda ctx, p, a: t.CallToolResult(content=[image()]))
        add("test_audio_content", "Tests audio content.", EMPTY, READ,
            lambda ctx, p, a: t.CallToolResult(
                content=[t.AudioContent(type="audio", data=WAV, mime_type="audio/wav")]))
        add("test_embedded_resource", "Tests an embedded resource.", EMPTY, READ,
            lambda ctx, p, a: t.CallToolResult(content=[
                embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")]))
        add("test_multiple_content_types", "Tests mixed content.", EMPTY, READ,
            lambda ctx, p, a: t.CallToolResult(content=[
                t.TextContent(type="text", text="Multiple content types test:"),
                image(),
                embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}')]))
        add("test_error_handling", "Always fails.", EMPTY, READ,
            lambda ctx, p, a: failed("This tool intentionally returns an error for testing"))
        add("json_schema_2020_12_tool", "Tool with JSON Schema 2020-12 features.", JSON_SCHEMA_2020_12, READ,
            lambda ctx, p, a: text(json.dumps(a)))
        add("test_x_mcp_header", "Mirrors two of its arguments into HTTP headers.",
            obj("region",
                region={"type": "string", "x-mcp-header": "Region"},
                priority={"type": "integer", "x-mcp-header": "Priority"},
                query=STR),
            READ, lambda ctx, p, a: text(f"region={a['region']}"))

        # --- conformance: notifications, streams, server requests ---
        add("test_tool_with_logging", "Sends three log messages.", EMPTY, READ, self.with_logging)
        add("test_logging_tool", "Sends log messages, if the client asked for them.", EMPTY, READ, self.with_logging)
        add("test_tool_with_progress", "Reports progress three times.", EMPTY, READ, self.with_progress)
        add("test_reconnection", "Closes its stream in the middle of the call.", EMPTY, READ, self.reconnection)
        add("test_sampling", "Asks the client's model.", obj("prompt", prompt=STR), READ, self.sampling)
        add("test_elicitation", "Asks the user.", obj("message", message=STR), READ, self.elicitation)
        add("test_elicitation_sep1034_defaults", "Asks with default values.", EMPTY, READ, self.elicit_defaults)
        add("test_elicitation_sep1330_enums", "Asks with all kinds of enums.", EMPTY, READ, self.elicit_enums)
        add("test_streaming_elicitation", "Streams, then asks the user.", EMPTY, READ, self.streaming_elicitation)
        add("test_missing_capability", "Needs a client with sampling.", EMPTY, READ, self.missing_capability)
        add("test_trigger_tool_change", "Announces a change of the tool list; {toggle: true} makes one.",
            obj(toggle={"type": "boolean"}), WRITE, self.trigger_tools)
        add("test_trigger_prompt_change", "Announces a change of the prompt list.", EMPTY, WRITE, self.trigger_prompts)
        add("test_trigger_resource_update", "Announces an update of test://watched-resource.", EMPTY, WRITE,
            self.trigger_resource)

        # --- conformance: results that require input ---
        prefix = "test_input_required_result_"
        add(prefix + "elicitation", "Asks for a name.", EMPTY, READ, self.ir_elicitation)
        add(prefix + "sampling", "Asks the model for a capital.", EMPTY, READ, self.ir_sampling)
        add(prefix + "list_roots", "Asks for the client's roots.", EMPTY, READ, self.ir_roots)
        add(prefix + "request_state", "Asks once, with state.", EMPTY, READ, self.ir_state)
        add(prefix + "tampered_state", "Asks once; the state is protected.", EMPTY, READ, self.ir_state)
        add(prefix + "multiple_inputs", "Asks for three inputs at once.", EMPTY, READ, self.ir_multiple)
        add(prefix + "multi_round", "Asks in two rounds.", EMPTY, READ, self.ir_multi_round)
        add(prefix + "capabilities", "Asks only what the client declared.", EMPTY, READ, self.ir_capabilities)

    # --- handlers: notes and slow work ---

    def note_read(self, ctx, params, a):
        if "key" not in a:
            return text(json.dumps(sorted(self.notes)))
        if a["key"] not in self.notes:
            return failed(f"No note {a['key']!r}")
        return text(self.notes[a["key"]])

    def note_write(self, ctx, params, a):
        self.notes[a["key"]] = a["value"]
        return text(f"wrote {a['key']}")

    def note_delete(self, ctx, params, a):
        return text(f"deleted {a['key']}") if self.notes.pop(a["key"], None) is not None else failed("No such note")

    async def slow_count(self, ctx, params, a):
        seconds, steps = a.get("seconds", 1), a.get("steps", 4)
        try:
            for step in range(1, steps + 1):
                await anyio.sleep(seconds / steps)
                await ctx.session.report_progress(step, steps, f"step {step} of {steps}")
        except anyio.get_cancelled_exc_class():
            self.cancelled.append(a.get("label"))
            raise
        return text(f"counted to {steps}")

    # --- handlers: notifications, streams, server requests ---

    async def with_logging(self, ctx, params, a):
        await log(ctx, "Tool execution started")
        await anyio.sleep(0.05)
        await log(ctx, "Tool processing data")
        await anyio.sleep(0.05)
        await log(ctx, "Tool execution completed")
        return text("Tool with logging executed successfully")

    async def with_progress(self, ctx, params, a):
        for done in (0, 50, 100):
            await ctx.session.report_progress(done, 100, f"Completed step {done} of 100")
            if done < 100:
                await anyio.sleep(0.05)
        return text("Tool with progress executed successfully")

    async def reconnection(self, ctx, params, a):
        if ctx.close_sse_stream is not None:
            await ctx.close_sse_stream()
        await anyio.sleep(0.2)
        return text("Reconnection test completed")

    async def sampling(self, ctx, params, a):
        try:
            result = await ask(ctx, params, "model", ask_model(a["prompt"], 100), t.CreateMessageResult)
        except MCPError as error:
            return failed(f"Sampling not supported: {error}")
        return text(f"LLM response: {getattr(result.content, 'text', '')}")

    async def _elicit(self, ctx, params, message, schema, label):
        try:
            result = await ask(ctx, params, "user", elicit_form(message, schema), t.ElicitResult)
        except MCPError as error:
            return failed(f"Elicitation not supported: {error}")
        return text(f"{label}: action={result.action}, content={json.dumps(result.content or {})}")

    async def elicitation(self, ctx, params, a):
        schema = obj(
            "username", "email",
            username={"type": "string", "description": "User's response"},
            email={"type": "string", "description": "User's email address"},
        )
        return await self._elicit(ctx, params, a["message"], schema, "User response")

    async def elicit_defaults(self, ctx, params, a):
        schema = obj(
            name={"type": "string", "default": "John Doe"},
            age={"type": "integer", "default": 30},
            score={"type": "number", "default": 95.5},
            status={"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
            verified={"type": "boolean", "default": True},
        )
        return await self._elicit(ctx, params, "Please confirm your profile", schema, "Elicitation completed")

    async def elicit_enums(self, ctx, params, a):
        titled = [{"const": f"value{n}", "title": f"Choice {n}"} for n in (1, 2, 3)]
        plain = ["option1", "option2", "option3"]
        schema = obj(
            untitledSingle={"type": "string", "enum": plain},
            titledSingle={"type": "string", "oneOf": titled},
            legacyEnum={"type": "string", "enum": ["opt1", "opt2", "opt3"],
                        "enumNames": ["Option One", "Option Two", "Option Three"]},
            untitledMulti={"type": "array", "items": {"type": "string", "enum": plain}},
            titledMulti={"type": "array", "items": {"anyOf": titled}},
        )
        return await self._elicit(ctx, params, "Please choose", schema, "Elicitation completed")

    async def streaming_elicitation(self, ctx, params, a):
        await ctx.session.report_progress(1, 2, "about to ask")
        result = await ask(ctx, params, "user_name", elicit_form(*ASK_NAME), t.ElicitResult)
        return text(f"action={result.action}")

    async def missing_capability(self, ctx, params, a):
        if not ctx.session.check_client_capability(t.ClientCapabilities(sampling=t.SamplingCapability())):
            raise MCPError(t.MISSING_REQUIRED_CLIENT_CAPABILITY, "This tool needs the sampling capability",
                           {"requiredCapabilities": {"sampling": {}}})
        return text("the client has the sampling capability")

    async def trigger_tools(self, ctx, params, a):
        if a.get("toggle"):
            self.toggled = not self.toggled
        await self.bus.publish(ToolsListChanged())
        if not modern(ctx):
            await ctx.session.send_tool_list_changed()
        return text(f"announced; toggled_tool listed: {self.toggled}")

    async def trigger_prompts(self, ctx, params, a):
        await self.bus.publish(PromptsListChanged())
        if not modern(ctx):
            await ctx.session.send_prompt_list_changed()
        return text("announced")

    async def trigger_resource(self, ctx, params, a):
        uri = "test://watched-resource"
        await self.bus.publish(ResourceUpdated(uri=uri))
        for session in list(self.subscribers.get(uri, {}).values()):
            await session.send_resource_updated(uri)
        return text("announced")

    # --- handlers: results that require input ---

    async def ir_elicitation(self, ctx, params, a):
        content = accepted(params, "user_name")
        if content is None or not isinstance(content.get("name"), str):
            raise NeedInput({"user_name": elicit_form(*ASK_NAME)})
        return text(f"Hello, {content['name']}!")

    async def ir_sampling(self, ctx, params, a):
        result = answer(params, "capital_question", t.CreateMessageResult)
        if result is None:
            raise NeedInput({"capital_question": ask_model("What is the capital of France?", 100)})
        return text(getattr(result.content, "text", ""))

    async def ir_roots(self, ctx, params, a):
        result = answer(params, "client_roots", t.ListRootsResult)
        if result is None:
            raise NeedInput({"client_roots": t.ListRootsRequest()})
        return text("roots: " + ", ".join(str(root.uri) for root in result.roots))

    async def ir_state(self, ctx, params, a):
        if params.request_state is None or accepted(params, "confirm") is None:
            form = elicit_form("Please confirm", obj("ok", ok={"type": "boolean"}))
            raise NeedInput({"confirm": form}, "waiting for confirm")
        if params.request_state != "waiting for confirm":
            raise MCPError(t.INVALID_PARAMS, "Invalid requestState")
        return text("state-ok: confirmed")

    async def ir_multiple(self, ctx, params, a):
        user = accepted(params, "user_name")
        greeting = answer(params, "greeting", t.CreateMessageResult)
        roots = answer(params, "client_roots", t.ListRootsResult)
        if user is None or greeting is None or roots is None or params.request_state != "three questions":
            raise NeedInput(
                {
                    "user_name": elicit_form(*ASK_NAME),
                    "greeting": ask_model("Generate a greeting", 50),
                    "client_roots": t.ListRootsRequest(),
                },
                "three questions",
            )
        return text(f"{user.get('name')}: {getattr(greeting.content, 'text', '')}; {len(roots.roots)} roots")

    async def ir_multi_round(self, ctx, params, a):
        state = json.loads(params.request_state) if params.request_state else {}
        first = accepted(params, "step1")
        if not state or (state["round"] == 1 and first is None):
            form = elicit_form("Step 1: What is your name?", obj("name", name=STR))
            raise NeedInput({"step1": form}, json.dumps({"round": 1}))
        second = accepted(params, "step2")
        if state["round"] == 1 or second is None:
            name = state.get("name") or first.get("name")
            form = elicit_form("Step 2: What is your favorite color?", obj("color", color=STR))
            raise NeedInput({"step2": form}, json.dumps({"round": 2, "name": name}))
        return text(f"{state['name']} likes {second.get('color')}")

    async def ir_capabilities(self, ctx, params, a):
        if params.input_responses:
            return text("answered: " + ", ".join(sorted(params.input_responses)))
        requests, has = {}, ctx.session.check_client_capability
        if has(t.ClientCapabilities(sampling=t.SamplingCapability())):
            requests["greeting"] = ask_model("Generate a greeting", 50)
        if has(t.ClientCapabilities(elicitation=t.ElicitationCapability())):
            requests["user_name"] = elicit_form(*ASK_NAME)
        if has(t.ClientCapabilities(roots=t.RootsCapability())):
            requests["client_roots"] = t.ListRootsRequest()
        if not requests:
            return text("the client declared nothing that could be asked")
        raise NeedInput(requests)


def static_resources():
    return {
        "test://static-text": ("static-text", "A text resource", "text/plain"),
        "test://static-binary": ("static-binary", "A binary resource", "image/png"),
        "test://watched-resource": ("watched-resource", "A resource to subscribe to", "text/plain"),
    }


def read_resource(uri):
    """The contents of a resource, or None."""
    if uri == "test://static-binary":
        return t.BlobResourceContents(uri=uri, mime_type="image/png", blob=PNG)
    if uri == "test://static-text":
        body = "This is the content of the static text resource."
        return t.TextResourceContents(uri=uri, mime_type="text/plain", text=body)
    if uri == "test://watched-resource":
        return t.TextResourceContents(uri=uri, mime_type="text/plain", text="Watched resource content")
    head, tail = "test://template/", "/data"
    if uri.startswith(head) and uri.endswith(tail) and len(uri) > len(head) + len(tail):
        key = uri[len(head):-len(tail)]
        body = json.dumps({"id": key, "templateTest": True, "data": f"Data for ID: {key}"})
        return t.TextResourceContents(uri=uri, mime_type="application/json", text=body)
    return None


def prompts():
    def arg(name, description):
        return t.PromptArgument(name=name, description=description, required=True)

    return [
        t.Prompt(name="test_simple_prompt", description="A prompt without arguments"),
        t.Prompt(name="test_prompt_with_arguments", description="A prompt with arguments",
                 arguments=[arg("arg1", "First test argument"), arg("arg2", "Second test argument")]),
        t.Prompt(name="test_prompt_with_embedded_resource", description="A prompt with a resource",
                 arguments=[arg("resourceUri", "URI of the resource to embed")]),
        t.Prompt(name="test_prompt_with_image", description="A prompt with an image"),
        t.Prompt(name="test_input_required_result_prompt", description="A prompt that first asks the user"),
    ]


def get_prompt(params):
    def said(*blocks):
        return t.GetPromptResult(messages=[t.PromptMessage(role="user", content=block) for block in blocks])

    def words(value):
        return t.TextContent(type="text", text=value)

    known = {prompt.name: prompt for prompt in prompts()}
    if params.name not in known:
        raise MCPError(t.INVALID_PARAMS, f"Unknown prompt: {params.name}")
    args = params.arguments or {}
    for argument in known[params.name].arguments or []:
        if argument.name not in args:
            raise MCPError(t.INVALID_PARAMS, f"Missing argument: {argument.name}")
    if params.name == "test_simple_prompt":
        return said(words("This is a simple prompt for testing."))
    if params.name == "test_prompt_with_arguments":
        return said(words(f"Prompt with arguments: arg1='{args['arg1']}', arg2='{args['arg2']}'"))
    if params.name == "test_prompt_with_embedded_resource":
        resource = embedded(args["resourceUri"], "text/plain", "Embedded resource content for testing.")
        return said(resource, words("Please process the embedded resource above."))
    if params.name == "test_prompt_with_image":
        return said(image(), words("Please analyze the image above."))
    content = accepted(params, "user_context")
    if content is None:
        form = elicit_form("What context should the prompt use?", obj("context", context=STR))
        return t.InputRequiredResult(input_requests={"user_context": form})
    return said(words(f"Use this context: {content.get('context')}"))


class BothErasServer(Server):
    """A lowlevel server that also tells legacy clients that it announces list changes, if it does."""

    def create_initialization_options(self, notification_options=None, *args, **kwargs):
        announces = self.get_request_handler("subscriptions/listen") is not None
        options = notification_options or NotificationOptions(announces, announces, announces)
        return super().create_initialization_options(options, *args, **kwargs)


def build(page_size=0, many=0, only=None, bare_prompts=False):
    """The server. `only` restricts it to these tools and leaves out resources and prompts."""
    fixture = Fixture(many)
    if only is not None:
        fixture.tools = {name: fixture.tools[name] for name in only}

    async def list_tools(ctx, params):
        tools, start = fixture.listed(), 0
        if params is not None and params.cursor is not None:
            try:
                start = int(base64.urlsafe_b64decode(params.cursor.encode()).decode().removeprefix("tools:"))
            except ValueError:
                start = -1
            if not page_size or not 0 < start < len(tools):
                raise MCPError(t.INVALID_PARAMS, "Invalid cursor")
        end = start + page_size if page_size else len(tools)
        cursor = base64.urlsafe_b64encode(f"tools:{end}".encode()).decode() if end < len(tools) else None
        return t.ListToolsResult(tools=tools[start:end], next_cursor=cursor)

    def schema_of(name):
        found = fixture.tools.get(name)
        return found[0].input_schema if found else None

    handlers = dict(on_list_tools=list_tools, on_call_tool=fixture.call, get_tool_input_schema=schema_of)
    if only is None:

        async def list_resources(ctx, params):
            return t.ListResourcesResult(resources=[
                t.Resource(uri=uri, name=name, description=about, mime_type=mime)
                for uri, (name, about, mime) in static_resources().items()])

        async def list_templates(ctx, params):
            return t.ListResourceTemplatesResult(resource_templates=[
                t.ResourceTemplate(uri_template="test://template/{id}/data", name="template",
                                   description="A template", mime_type="application/json")])

        async def read(ctx, params):
            contents = read_resource(params.uri)
            if contents is None:
                # 2026-07-28 says -32602; 2025-11-25 and before say -32002.
                code = t.INVALID_PARAMS if modern(ctx) else -32002
                raise MCPError(code, "Resource not found", {"uri": params.uri})
            return t.ReadResourceResult(contents=[contents])

        async def subscribe(ctx, params):
            fixture.subscribers.setdefault(str(params.uri), {})[id(ctx.session._connection)] = ctx.session
            return t.EmptyResult()

        async def unsubscribe(ctx, params):
            fixture.subscribers.get(str(params.uri), {}).pop(id(ctx.session._connection), None)
            return t.EmptyResult()

        async def list_prompts(ctx, params):
            if not bare_prompts:
                return t.ListPromptsResult(prompts=prompts())
            bare = [prompt.model_copy(update={"name": prompt.name.removeprefix("test_")}) for prompt in prompts()]
            return t.ListPromptsResult(prompts=bare)

        async def prompt(ctx, params):
            name = params.name if not bare_prompts else f"test_{params.name}"
            return await rounds(ctx, params.model_copy(update={"name": name}), get_prompt)

        async def complete(ctx, params):
            words = [w for w in ("paris", "park", "party", "testing") if w.startswith(params.argument.value)]
            return t.CompleteResult(completion=t.Completion(values=words, total=len(words), has_more=False))

        async def set_level(ctx, params):
            return t.EmptyResult()

        handlers |= dict(
            on_list_resources=list_resources, on_list_resource_templates=list_templates, on_read_resource=read,
            on_subscribe_resource=subscribe, on_unsubscribe_resource=unsubscribe, on_list_prompts=list_prompts,
            on_get_prompt=prompt, on_completion=complete, on_set_logging_level=set_level,
            on_subscriptions_listen=ListenHandler(fixture.bus),
        )
    server = BothErasServer(
        NAME, version="1.0.0", instructions="A server for tests.",
        cache_hints={"tools/list": CacheHint(30000, "public")}, **handlers)
    server.middleware.append(RequestStateBoundary(RequestStateSecurity.ephemeral(), default_audience=NAME))
    return server


class OneEra:
    """Lets requests of one era through to the app."""

    def __init__(self, app, era):
        self.app = app
        self.era = era

    async def __call__(self, scope, receive, send):
        headers = dict(scope.get("headers", ()))
        theirs = "modern" if headers.get(b"mcp-protocol-version", b"") >= b"2026" else "legacy"
        if scope["type"] != "http" or theirs == self.era:
            return await self.app(scope, receive, send)
        body, more = b"", True
        while more:
            part = await receive()
            body, more = body + part.get("body", b""), part.get("more_body", False)
        if self.era == "modern":
            data = {"supported": ["2026-07-28"], "requested": "2025-11-25"}
            error = {"code": t.UNSUPPORTED_PROTOCOL_VERSION, "message": "Unsupported protocol version", "data": data}
        else:
            error = {"code": -32000, "message": "Bad Request: Unsupported protocol version"}
        message = json.loads(body) if body else {}
        answer = json.dumps({"jsonrpc": "2.0", "id": message.get("id"), "error": error}).encode()
        kind = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": 400, "headers": kind})
        await send({"type": "http.response.body", "body": answer})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--page-size", type=int, default=0)
    parser.add_argument("--many", type=int, default=0)
    parser.add_argument("--bare-prompts", action="store_true")
    parser.add_argument("--era", choices=("legacy", "modern"))
    args = parser.parse_args()
    app = build(args.page_size, args.many, bare_prompts=args.bare_prompts).streamable_http_app(event_store=MemoryEventStore(), retry_interval=100)
    if args.era is not None:
        app = OneEra(app, args.era)
    serve(app, args.port, "/mcp")


def serve(app, wanted, path):
    """Serves until killed; prints where, as soon as it does."""
    # Named as TCP, or asyncio does not set TCP_NODELAY and each answer waits 40 ms for a delayed ACK.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", wanted))
    port = listener.getsockname()[1]

    class Ready(uvicorn.Server):
        async def startup(self, sockets=None):
            await super().startup(sockets)
            print(f"LISTENING http://127.0.0.1:{port}{path}", flush=True)

    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    Ready(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
