"""The tool for programs that speak the Model Context Protocol, as assistants in editors do."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Literal

from methods.cascode.search import store
from methods.cascode.search.query import Request, Searcher
from methods.cascode.search.store import SearchError

try:
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
except ImportError as error:
    raise ImportError("the server needs mcp: pip install 'tenfold[mcp]'") from error

MOST = 100  # results


def server(searcher: Callable[[], Searcher], defaults: Request) -> MCPServer:
    """A server with one tool, `search_code`; `searcher` is called for every query, so that it may
    return a newer index."""
    made = MCPServer("tenfold-search", version=store.tool_version())

    @made.tool()
    def search_code(
        query: str,
        top: int = 10,
        kind: Literal["code", "docs", "all"] = "code",
        language: str | None = None,
        path: str | None = None,
    ) -> dict[str, Any]:
        """Find functions, classes and constants of the indexed folder by what they do, in plain
        words or by name; with kind "docs" sections of documentation and configuration. `path` is
        a glob or a folder. Results come best first, with path, lines and code."""
        if not 1 <= top <= MOST:
            raise ToolError(f"top is from 1 to {MOST}, got {top}")
        wanted = replace(defaults, query=query, top=top, kind=kind, language=language, path=path)
        try:
            return asdict(searcher().search(wanted))
        except SearchError as error:
            raise ToolError(str(error)) from error

    return made
