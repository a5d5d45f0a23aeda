# SPDX-License-Identifier: GPL-3.0-or-later
"""The servers and what flows between them, laid out for a drawing: wide, from left to right, and narrow, as a tree."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, NamedTuple, Sequence

from ansible_collections.postgresml.distributed.plugins.plugin_utils.status_facts import GOOD, size_text, time_text

MARKS = ("\u2713", "!", "\u2715")
"""What tells the levels apart beside their colours."""
_LINE = 18
"""Height of a line of text; all is in the units of the drawing, which are pixels unless it has to shrink."""
_CHARACTER = 6.1
"""Width of a character of 12 units, on average."""
_BOX, _BOX_HEIGHT = 190, 48
_FLOW = 290
"""Width that is left for the labels of a flow."""
_GAP = 22
_NARROW, _INDENT = 352, 22
_MARGIN = 4


class Node(NamedTuple):
    """A server in the tree of who takes from whom."""

    host: Mapping[str, Any]
    depth: int
    labels: Sequence[Mapping[str, Any]]
    """what comes to it, a line each"""
    children: Sequence[Any]


def pictures(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Boxes, lines and texts with their places, of both drawings."""
    roots = _tree(report, None, 0)
    return {"wide": _wide(roots), "narrow": _narrow(roots)}


def _tree(report: Mapping[str, Any], upstream: str | None, depth: int) -> list[Node]:
    return [
        Node(host, depth, [*_labels(report, host["name"])], _tree(report, host["name"], depth + 1))
        for host in report["hosts"]
        if host["upstream"] == upstream
    ]


def _labels(report: Mapping[str, Any], replica: str) -> Iterable[dict[str, Any]]:
    for entry in report["distributions"]:
        if entry["replica"] == replica:
            measure = [entry["state"]]
            if entry["lag"]["bytes"] is not None and entry["state"] in ("streaming", "lagging"):
                measure.append("lag {0}".format(size_text(entry["lag"]["bytes"])))
            elif entry["age"] is not None:
                measure.append("age {0}".format(time_text(entry["age"])))
            text = "{0} {1}: {2}, {3}".format(
                MARKS[entry["level"]], entry["distribution"], entry["strategy"], ", ".join(measure)
            )
            yield {"text": text, "level": entry["level"]}


def _box(node: Node, x: float, y: float, width: float, height: float) -> dict[str, Any]:
    host = node.host
    level = max(host["level"], host["received"])
    role = "primary" if host["upstream"] is None else "replica"
    version = "PostgreSQL {0}".format(host["version"]) if host["version"] else "down"
    name = "{0} {1}".format(MARKS[level], host["name"])
    return {
        "x": x,
        "y": y,
        "width": width,
        "height": height,
        "level": level,
        "full": "{0}, {1}, {2}".format(host["name"], role, version),
        "texts": [
            {"x": x + 12, "y": y + 20, "text": _cut(name, (width - 24) / 1.35), "level": level, "strong": True},
            {"x": x + 12, "y": y + 38, "text": _cut("{0}, {1}".format(role, version), width - 24), "level": GOOD},
        ],
    }


def _cut(text: str, width: float) -> str:
    most = int(width / _CHARACTER)
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def _wide(roots: Sequence[Node]) -> dict[str, Any]:
    boxes: list[dict[str, Any]] = []
    flows: list[dict[str, Any]] = []
    bottom: float = _MARGIN
    for root in roots:
        _middle, bottom = _place(root, bottom, boxes, flows)
    width = max((box["x"] + box["width"] for box in boxes), default=0) + _MARGIN
    return {"width": width, "height": bottom - _GAP + _MARGIN, "boxes": boxes, "flows": flows}


def _place(node: Node, top: float, boxes: list[dict[str, Any]], flows: list[dict[str, Any]]) -> tuple[float, float]:
    """Lay a node and what takes from it out below *top*; returns the middle of its box, and where the next begins.

    The labels of what comes to it stand on the line that leads to that middle.
    """
    x = _MARGIN + node.depth * (_BOX + _FLOW)
    bottom, middles = top, []
    for child in node.children:
        middle, bottom = _place(child, bottom, boxes, flows)
        middles.append((child, middle))
    least = top + max(_BOX_HEIGHT / 2, _LINE * len(node.labels) + 4)
    middle = max(least, (middles[0][1] + middles[-1][1]) / 2) if middles else least
    boxes.append(_box(node, x, middle - _BOX_HEIGHT / 2, _BOX, _BOX_HEIGHT))
    for child, end in middles:
        flows.append(_flow(child, x + _BOX, middle, x + _BOX + _FLOW, end))
    return middle, max(bottom, middle + _BOX_HEIGHT / 2 + _GAP)


def _flow(child: Node, x: float, y: float, end_x: float, end_y: float) -> dict[str, Any]:
    turn = x + 18
    texts = [
        {
            "x": turn + 10,
            "y": end_y - 7 - _LINE * (len(child.labels) - 1 - number),
            "text": _cut(label["text"], _FLOW - 40),
            "full": label["text"],
            "level": label["level"],
        }
        for number, label in enumerate(child.labels)
    ]
    path = "M{0:g} {1:g} H{2:g} V{3:g} H{4:g}".format(x, y, turn, end_y, end_x - 9)
    arrow = "M{0:g} {1:g} l-10 -5 v10 z".format(end_x - 1, end_y)
    return {"path": path, "arrow": arrow, "level": child.host["received"], "texts": texts}


def _narrow(roots: Sequence[Node]) -> dict[str, Any]:
    boxes: list[dict[str, Any]] = []
    flows: list[dict[str, Any]] = []
    bottom = float(_MARGIN)
    for root in roots:
        bottom = _hang(root, bottom, boxes, flows)
    return {"width": _NARROW, "height": bottom, "boxes": boxes, "flows": flows}


def _hang(node: Node, top: float, boxes: list[dict[str, Any]], flows: list[dict[str, Any]]) -> float:
    """Draw a node, and below it, further in, what takes from it."""
    x = _MARGIN + node.depth * _INDENT
    width = _NARROW - x - _MARGIN
    box = _box(node, x, top, width, _BOX_HEIGHT + _LINE * len(node.labels))
    for number, label in enumerate(node.labels):
        y = top + 38 + _LINE * (number + 1)
        box["texts"].append({"x": x + 12, "y": y, "text": _cut(label["text"], width - 24), "level": label["level"]})
    boxes.append(box)
    height = float(box["height"])
    bottom = top + height + _GAP / 2
    trunk = x + _INDENT / 2
    for child in node.children:
        y = bottom + 16
        path = "M{0:g} {1:g} V{2:g} h{3:g}".format(trunk, top + height, y, _INDENT / 2 - 7)
        arrow = "M{0:g} {1:g} l-8 -4 v8 z".format(trunk + _INDENT / 2 - 1, y)
        flows.append({"path": path, "arrow": arrow, "level": child.host["received"], "texts": []})
        bottom = _hang(child, bottom, boxes, flows)
    return bottom
