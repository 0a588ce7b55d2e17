"""`/docs`: the OpenAPI document as one page, made here: it needs no script and no network."""

import base64
import hashlib
import json
from collections.abc import Iterator
from html import escape
from typing import Any, Final

_METHODS: Final = ("get", "put", "post", "patch", "delete")
_STYLE: Final = """
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:60rem;padding:1rem;color:#1c1c1c}
h2{margin-top:3rem;border-bottom:1px solid #ccc}code,pre{font:14px/1.45 ui-monospace,monospace}
pre{background:#f4f4f2;padding:.75rem;overflow-x:auto;border-radius:4px}
details{border:1px solid #ddd;border-radius:4px;margin:.5rem 0;padding:.5rem .75rem}
summary{cursor:pointer}.m{display:inline-block;min-width:4.5rem;font-weight:700;
text-transform:uppercase}table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;padding:.25rem .5rem;border-bottom:1px solid #eee}
@media(prefers-color-scheme:dark){body{background:#161616;color:#e6e6e6}pre{background:#222}
details{border-color:#444}td,th{border-color:#333}a{color:#8ab4f8}}
"""


def policy() -> str:
    """The page's content security policy: its own style, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def page(document: dict[str, Any]) -> bytes:
    """The whole page."""
    info = document["info"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'>",
        f"<title>{escape(info['title'])} {escape(info['version'])}</title>",
        f"<style>{_STYLE}</style>",
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>",
        f"<p>{_text(info['description'])}</p>",
        "<p>For programs: <a href=/openapi.json>openapi.json</a></p>",
    ]
    for tag, operations in _by_tag(document).items():
        parts.append(f"<h2>{escape(tag)}</h2>")
        parts += (_operation(*operation) for operation in operations)
    parts.append("<h2>schemas</h2>")
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts.append(f"<details id='{escape(name)}'><summary><code>{escape(name)}</code></summary>")
        parts.append(f"{_json(schema)}</details>")
    return "".join(parts).encode()


def _by_tag(document: dict[str, Any]) -> dict[str, list[tuple[str, str, dict[str, Any]]]]:
    found: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, methods in document["paths"].items():
        for method in _METHODS:
            if method in methods:
                operation = methods[method]
                found.setdefault(operation["tags"][0], []).append((path, method, operation))
    return found


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    parts = [
        f"<details><summary><span class=m>{method}</span> <code>{escape(path)}</code> ",
        f"{escape(operation.get('summary', ''))}</summary>",
        f"<p>{_text(operation.get('description', ''))}</p>",
        f"<pre>{escape(_curl(path, method, operation))}</pre>",
        _parameters(operation.get("parameters", [])),
    ]
    for media, body in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<h4>Body, <code>{escape(media)}</code></h4>{_json(body['schema'])}")
    parts.append("<h4>Answers</h4><table>")
    for status, answer in operation["responses"].items():
        parts.append(f"<tr><th>{status}<td>{''.join(_answer(answer))}")
    return "".join([*parts, "</table></details>"])


def _parameters(parameters: list[dict[str, Any]]) -> str:
    if not parameters:
        return ""
    rows = "".join(
        f"<tr><th><code>{escape(p['name'])}</code><td>{escape(p['in'])}"
        f"<td>{_text(p.get('description') or p['schema'].get('description', ''))}"
        f"<td><code>{escape(_bounds(p['schema']))}</code>"
        for p in parameters
    )
    return f"<h4>Parameters</h4><table>{rows}</table>"


def _answer(answer: dict[str, Any]) -> Iterator[str]:
    if "$ref" in answer:
        name = answer["$ref"].rpartition("/")[2]
        yield f"<a href='#Problem'>{escape(name)}</a>"
        return
    yield _text(answer["description"])
    for name in answer.get("headers", {}):
        yield f" · header <code>{escape(name)}</code>"
    for media, content in answer.get("content", {}).items():
        yield f"<div><code>{escape(media)}</code> {_schema_link(content.get('schema', {}))}</div>"
        if "example" in content:
            example = content["example"]
            yield f"<pre>{escape(example)}</pre>" if isinstance(example, str) else _json(example)


def _schema_link(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f"<a href='#{name}'>{name}</a>"
    return " or ".join(_schema_link(part) for part in schema.get("oneOf", ()))


def _curl(path: str, method: str, operation: dict[str, Any]) -> str:
    """A line to try, with the examples in their places."""
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            example = str(parameter["schema"].get("example", "…"))
            path = path.replace(f"{{{parameter['name']}}}", example)
    line = f"curl -X {method.upper()} http://localhost:3001{path}"
    if operation.get("security"):
        line += ' -H "Authorization: Bearer $TOKEN"'
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    if "example" in body:
        line += f" -d '{json.dumps(body['example'])}'"
    return line


def _bounds(schema: dict[str, Any]) -> str:
    kept = {k: v for k, v in schema.items() if k not in {"description", "example", "title"}}
    return ", ".join(f"{name} {value}" for name, value in kept.items())


def _json(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=2, ensure_ascii=False))}</pre>"


def _text(text: str) -> str:
    """Text with `code` in it."""
    pieces = escape(text).split("`")
    joined = "".join(
        f"<code>{piece}</code>" if place % 2 else piece for place, piece in enumerate(pieces)
    )
    return joined.replace("\n\n", "<br><br>")
