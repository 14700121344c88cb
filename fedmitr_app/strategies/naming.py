"""What nodes are called in lists, logs and reports."""

from flwr.serverapp import Grid

from fedmitr_app.utils.text import harmless

_LONGEST = 60


def node_names(grid: Grid) -> dict[int, str]:
    """Return what the connected nodes are called, of those that were registered with a name.

    A simulation's have none; nor has a Grid that can't say.
    """
    try:
        nodes = {node.node_id: node.name for node in grid.get_nodes()}
    except Exception:  # names are a convenience: no round may fail over them
        return {}
    return {node: called(node, name) for node, name in nodes.items() if isinstance(name, str)}


def called(node: int, name: str = "") -> str:
    """Return "hospital-a (node 123)", or "node-123" without a name.

    With the id, because two nodes may be registered under one name, and because no client key
    then looks like a node's name alone.
    """
    clean = harmless(name, _LONGEST)
    return f"{clean} (node {node})" if clean else f"node-{node}"
