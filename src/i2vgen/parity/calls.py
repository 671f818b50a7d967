"""Reading the calls of the original code as the JSON files of a golden folder write them down."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

CALL_START = re.compile(r"\.?[A-Za-z_][\w.]*\(")
BRACKETS = {"(": ")", "[": "]", "{": "}"}
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
WITHOUT_EFFECT = {"model", "model_kwargs", "show_progress", "seed"}  # model_kwargs: see `conditions`
FUNCTIONS = {"tanh": torch.tanh, "sin": torch.sin, "cos": torch.cos, "exp": torch.exp, "sigmoid": torch.sigmoid}


class ParityError(ValueError):
    """A recorded case that cannot be replayed, and why."""


@dataclass(frozen=True)
class Call:
    """`name(positional, ..., option=value, ...)`; values that are no Python literals stay text."""

    name: str
    positional: tuple[str, ...]
    options: dict[str, Any]

    @property
    def method(self) -> str:
        return self.name.rpartition(".")[2]

    def take(self, defaults: dict[str, Any]) -> dict[str, Any]:
        """The options, with `defaults` for those not written.

        Raises ParityError for any other option, unless it is None or without effect: it would change the result.
        """
        for name, value in self.options.items():
            if name not in defaults and value is not None and name not in WITHOUT_EFFECT:
                raise ParityError(f"{self.method}: option {name}={value!r} is not known; known: {', '.join(defaults)}")
        return {name: self.options.get(name, default) for name, default in defaults.items()}


def parse_calls(text: str) -> list[Call]:
    """All calls in a line of prose, in order; calls inside arguments stay text."""
    calls, position = [], 0
    while match := CALL_START.search(text, position):
        end = _closing(text, match.end() - 1)
        positional, options = [], {}
        for argument in split_top(text[match.end() : end]):
            name, equals, value = argument.partition("=")
            if equals and name.strip().isidentifier():
                options[name.strip()] = literal(value)
            elif argument:
                positional.append(argument)
        calls.append(Call(match[0].strip(".("), tuple(positional), options))
        position = end + 1
    return calls


def split_top(text: str) -> list[str]:
    """The parts between those commas that lie in no brackets and no quotes, stripped."""
    parts, start, position = [], 0, 0
    while position < len(text):
        if text[position] in BRACKETS:
            position = _closing(text, position)
        elif text[position] in "'\"":
            position = _closing_quote(text, position)
        elif text[position] == ",":
            parts.append(text[start:position].strip())
            start = position + 1
        position += 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def literal(text: str) -> Any:
    """A Python literal, or the text itself."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()


def conditions(call: Call) -> list[dict[str, str]]:
    """What each evaluation of the model is given: `[{y:y_cond,fps},{y:zeros,fps}]` -> argument -> tensor name.

    One entry without guidance, two with: conditional, unconditional. A name alone stands for the tensor of that name.
    """
    written = call.options.get("model_kwargs")
    if written is None:
        written = next((text for text in call.positional if text[:1] in "[{"), None)
    if not isinstance(written, str) or written[:1] not in "[{":
        raise ParityError(f"{call.method}: no model_kwargs that can be read, got {written!r}")
    parts = split_top(written[1:-1]) if written[0] == "[" else [written]
    return [_condition(part) for part in parts]


def analytic_model(text: str) -> Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]:
    """`v(x,t,y) = <formula>   (prose)` -> that function of a state, a timestep and a field; t in x's dtype."""
    formula = text.partition("=")[2].strip()
    while True:
        try:
            tree = ast.parse(formula, mode="eval").body
            break
        except SyntaxError:
            formula, space, _ = formula.rpartition(" ")
            if not space:
                raise ParityError(f"model: no formula can be read from {text!r}") from None

    def evaluate(node: ast.AST, values: dict[str, torch.Tensor]) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return float(node.value)
        if isinstance(node, ast.Name) and node.id in values:
            return values[node.id]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -evaluate(node.operand, values)
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](evaluate(node.left, values), evaluate(node.right, values))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
            return FUNCTIONS[node.func.id](*(evaluate(argument, values) for argument in node.args))
        raise ParityError(f"model: {ast.unparse(node)!r} in {formula!r} is not understood")

    def model(x: torch.Tensor, t: int | torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        t = torch.as_tensor(t).reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype)
        return evaluate(tree, {"x": x, "t": t, "y": y})

    return model


def _condition(text: str) -> dict[str, str]:
    if text[:1] != "{":
        raise ParityError(f"model_kwargs: {text!r} is not of the form {{name:tensor, ...}}")
    pairs = (part.partition(":") for part in split_top(text[1:-1]))
    return {_unquoted(name): _unquoted(value) if colon else _unquoted(name) for name, colon, value in pairs}


def _unquoted(text: str) -> str:
    return text.strip().strip("'\"")


def _closing(text: str, start: int) -> int:
    """Position of the bracket that closes the one at `start`."""
    expected, position = [BRACKETS[text[start]]], start + 1
    while position < len(text):
        character = text[position]
        if character in "'\"":
            position = _closing_quote(text, position)
        elif character in BRACKETS:
            expected.append(BRACKETS[character])
        elif character in BRACKETS.values():
            if character != expected.pop():
                break
            if not expected:
                return position
        position += 1
    raise ParityError(f"call: brackets do not match in {text[start : start + 60]!r}")


def _closing_quote(text: str, start: int) -> int:
    end = text.find(text[start], start + 1)
    if end < 0:
        raise ParityError(f"call: a quote does not end in {text[start : start + 60]!r}")
    return end
