"""How graph_passes fails: its own class, because this room imports no other."""

from __future__ import annotations


class GraphError(Exception):
    """The graph, its file or the call is wrong; one or two sentences say what, and what to do."""

    exit_code = 2
