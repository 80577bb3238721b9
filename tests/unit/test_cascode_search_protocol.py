"""The server for assistants, asked by the official client of the protocol."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cascode_search_toy import FILES, build, write_tree

mcp = pytest.importorskip("mcp")
anyio = pytest.importorskip("anyio")

SERVER = """
import sys
from pathlib import Path
from methods.cascode.search.protocol import server
from methods.cascode.search.query import Request
from tests.unit.cascode_search_toy import searcher
found = searcher(Path(sys.argv[1]))
server(lambda: found, Request("", top=5)).run("stdio")
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = write_tree((tmp_path / "code").resolve(), FILES | {"notes.md": "# Servers\n\nOurs.\n"})
    build(root)
    return root


def asked(root: Path, tmp_path: Path, *calls: dict[str, Any]) -> list[Any]:
    """The tools that the server offers, and its answers."""
    from mcp.client.session import ClientSession
    from mcp.client.stdio import StdioServerParameters, stdio_client

    script = tmp_path / "server.py"
    script.write_text(SERVER)
    here = str(Path(__file__).parents[2])
    given = {"PYTHONPATH": here, "PATH": os.environ["PATH"]}
    parameters = StdioServerParameters(
        command=sys.executable, args=[str(script), str(root)], env=given, cwd=here
    )

    async def run() -> list[Any]:
        async with (
            stdio_client(parameters) as streams,
            ClientSession(*streams) as session,
        ):
            await session.initialize()
            tools = await session.list_tools()
            return [tools, *[await session.call_tool("search_code", call) for call in calls]]

    return anyio.run(run)


def test_an_assistant_searches(root, tmp_path):
    tools, code, docs, wrong, empty = asked(
        root,
        tmp_path,
        {"query": "connect to a server", "top": 1},
        {"query": "servers", "kind": "docs"},
        {"query": "x", "top": 0},
        {"query": " "},
    )
    (tool,) = tools.tools
    assert tool.name == "search_code"
    assert "plain words" in " ".join(tool.description.split())
    (best,) = code.structured_content["results"]
    assert best["name"] == "open_connection"
    assert best["lines"][0][1] == "def open_connection(host, port):"
    assert docs.structured_content["results"][0]["kind"] == "document"
    assert wrong.is_error
    assert "top is from 1 to 100" in wrong.content[0].text
    assert empty.is_error
    assert "the query is empty" in empty.content[0].text
