"""The OpenAPI description as a page that asks nothing of any other server, and runs no script."""

from __future__ import annotations

from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2.5rem 0 .25rem; font-size: 1.1rem; }
code { font-family: ui-monospace, monospace; }
.method { display: inline-block; min-width: 4.2rem; font-weight: 700; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
td, th { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #8884; }
.answers { color: #777; }
"""


def api_page(description: dict[str, Any]) -> str:
    """HTML of an OpenAPI document: each route, its parameters, the fields of its body, its answers."""
    info = description["info"]
    parts = [f"<h1>{escape(info['title'])}</h1><p>{escape(info['description'])}</p>"]
    parts.append('<p>The same for programs: <a href="/openapi.json">openapi.json</a>.</p>')
    for path, methods in description["paths"].items():
        parts += [_route(path, method, route) for method, route in methods.items()]
    head = f'<meta charset="utf-8"><title>{escape(info["title"])}</title><style>{STYLE}</style>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    return f'<!doctype html><html lang="en"><head>{head}{view}</head><body><main>{"".join(parts)}</main></body></html>'


def _route(path: str, method: str, route: dict[str, Any]) -> str:
    title = f'<span class="method">{method.upper()}</span> <code>{escape(path)}</code>'
    text = f"<h2>{title}</h2><p>{escape(route.get('summary', ''))}. {escape(route.get('description', ''))}</p>"
    rows = [
        (p["name"], p["in"], p.get("schema", {}), p.get("description", ""), p.get("required", False))
        for p in route.get("parameters", ())
    ]
    for kind, content in route.get("requestBody", {}).get("content", {}).items():
        if kind == "multipart/form-data":
            schema = content["schema"]
            for name, field in schema["properties"].items():
                rows.append((name, "form", field, field.get("description", ""), name in schema["required"]))
    if rows:
        cells = "".join(_row(*row) for row in rows)
        text += f"<table><tr><th>name</th><th>where</th><th>type</th><th>meaning</th></tr>{cells}</table>"
    return text + f'<p class="answers">Answers: {escape(", ".join(route.get("responses", {})))}</p>'


def _row(name: str, where: str, schema: dict[str, Any], meaning: str, is_required: bool) -> str:
    choices = schema.get("enum")
    kind = " | ".join(map(str, choices)) if choices else schema.get("format") or schema.get("type", "string")
    label = f"<code>{escape(name)}</code>{' (required)' if is_required else ''}"
    return f"<tr><td>{label}</td><td>{where}</td><td>{escape(str(kind))}</td><td>{escape(meaning)}</td></tr>"
