"""Kinds of values that a flag may take. Each kind is a function: it returns the value's one form, or raises
`Bad`."""

import ast
import math
import operator
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from catalogue import optimizers
from catalogue.attacks import NORMALIZATIONS
from models import archivers, lr_scheduler
from models.architectures import ACT_TYPES, ARCHITECTURES, named, parse, slope_of
from support.errors import nearest


class Bad(ValueError):
    """A value that a flag does not take. The text says what was expected."""


# From a word on the command line to a value

_COMMA = re.compile(r",(?![^()]*\))")  # outside parentheses


def _power(base: float, exponent: float) -> float:
    """Compute base**exponent in floats, so that it is quick for any number; an int where it is exact."""
    power = float(base) ** float(exponent)
    exact = isinstance(base, int) and isinstance(exponent, int) and exponent >= 0 and abs(power) < 2**53
    return base**exponent if exact else power


_OPERATORS: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: _power,
    ast.USub: operator.neg,
}


def _literal(node: ast.AST | None) -> Any:
    """Evaluate a Python literal. Numbers may be written as 2**(1/5) or log(10)."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Tuple():
            return tuple(map(_literal, node.elts))
        case ast.List():
            return list(map(_literal, node.elts))
        case ast.Dict() if None not in node.keys:
            return {_literal(k): _literal(v) for k, v in zip(node.keys, node.values, strict=True)}
        case ast.UnaryOp() | ast.BinOp():
            operands = [node.operand] if isinstance(node, ast.UnaryOp) else [node.left, node.right]
            values = list(map(_literal, operands))
            if type(node.op) in _OPERATORS and all(type(v) in (int, float) for v in values):
                return _OPERATORS[type(node.op)](*values)
        case ast.Call(func=ast.Name("log"), args=[argument], keywords=[]):
            return math.log(_literal(argument))
    raise ValueError


def from_text(text: str) -> Any:
    """Return the value of a word: a Python literal; a,b,c for a tuple; else the text itself."""
    try:
        return _literal(ast.parse(text.strip(), mode="eval").body)
    except (ValueError, SyntaxError, TypeError, ArithmeticError, MemoryError, RecursionError):
        pass
    parts = _COMMA.split(text)
    if len(parts) > 1 and not set(text) & set("[]{}"):
        return tuple(from_text(part) for part in parts if part.strip())
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def native(value: Any) -> Any:
    """Return a value from Python as flags.json can hold it: NumPy's numbers as Python's, paths as text."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return type(value)(map(native, value))
    return {key: native(inner) for key, inner in value.items()} if isinstance(value, dict) else value


# General kinds


def choice(*words: str) -> Callable:
    """Accept one of these words."""

    def check(value):
        if value is None:  # a word `none` on the command line
            value = next((word for word in words if word.lower() == "none"), value)
        if value not in words:
            raise Bad(f"one of {', '.join(words)}{nearest(value, words)}")
        return value

    return check


def whole(least: int, *words: str, most: int = 2**53) -> Callable:
    """Accept a whole number from `least` to `most`, or one of these words."""

    def check(value):
        if value in words and isinstance(value, str):
            return value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            limit = f" and at most {most}" if isinstance(value, int) and value > most else ""
            raise Bad(", or ".join([f"a whole number, at least {least}{limit}", *words]))
        return value

    return check


def number(above: float = -math.inf, most: float = 1e300) -> Callable:
    """Accept a number above a bound, and at most another one."""

    def check(value):
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= most:
            low = f" above {above:g}" if above > -math.inf else ""
            too_large = isinstance(value, int | float) and value > most
            raise Bad("a number" + low + (f" and at most {most:g}" if most < 1e300 or too_large else ""))
        if value < -1e300:
            raise Bad("a number above -1e300")
        return float(value)

    return check


def boolean(value):
    if not isinstance(value, bool):
        raise Bad("true or false")
    return value


def cluster(value):
    """Accept a number of workers of this machine, a scheduler's address, or a scheduler file."""
    return text(value) if isinstance(value, str) else whole(1, most=1024)(value)


def text(value):
    if not isinstance(value, str) or not value:
        raise Bad("a name or path")
    try:
        value.encode()
    except UnicodeEncodeError:  # bytes of the command line that are not text
        raise Bad("a name or path in UTF-8") from None
    return value


def path(value):
    """Accept a path or a name: `flags.command_line` takes the word literally."""
    return text(value)


def data_path(value):
    """Accept a path of data, which becomes absolute, or the name of a data set."""
    value = path(value)
    return os.path.abspath(value) if value.endswith(".npz") else value


def folder(value):
    """Accept a folder, which becomes absolute."""
    return os.path.abspath(path(value))


def optional(kind: Callable) -> Callable:
    """Accept None, or a value of a kind."""

    def check(value):
        return None if value is None else kind(value)

    check.kind = kind  # type: ignore[attr-defined]
    return check


def several(kind: Callable) -> Callable:
    """Accept values of a kind, at least one, as a tuple. A single value means a list of one."""

    def check(value):
        values = value if isinstance(value, list | tuple) else [value]
        if not values:
            raise Bad("at least one value")
        return tuple(map(kind, values))

    return check


def either(word: str, kind: Callable) -> Callable:
    """Accept a word, or a value of a kind."""
    return lambda value: value if isinstance(value, str) and value == word else kind(value)


def expecting(what: str, kind: Callable) -> Callable:
    """Accept a kind of values, with another description of what was expected."""

    def check(value):
        try:
            return kind(value)
        except Bad:
            raise Bad(what) from None

    return check


def ascending(kind: Callable) -> Callable:
    """Accept several values of a kind, and sort them, each once."""
    return lambda value: tuple(sorted(set(several(kind)(value))))


def different(kind: Callable, at_least: int = 1) -> Callable:
    """Accept several values of a kind, none of them twice."""

    def check(value):
        values = several(kind)(value)
        if len(set(values)) < max(len(values), at_least):
            raise Bad("no value twice")
        return values

    return check


# Kinds of single flags

epochs = expecting(
    "last, all, or epochs such as 100 or 10,20,30",
    either("last", either("all", lambda value: list(ascending(whole(0))(value)))),
)
indices = expecting("indices into the set, such as 0 or 3,14,15", ascending(whole(0)))
radii = expecting("positive numbers, such as 0.5,1,2", ascending(number(0)))
target = expecting("next, or a class", whole(0, "next"))
confidence = expecting("a number, at least 0", number(-1e-300))
layers = expecting("all, or layers such as 0 or 0,2", either("all", ascending(whole(0))))
classes = expecting("two or more different classes, such as 3,5", different(whole(0), at_least=2))
seeds = expecting("different whole numbers such as 0,1,2", different(whole(0)))
boolean_or_auto = expecting("true, false or auto", either("auto", boolean))
first_frame = expecting("auto, or a number above -1e6 and at most 700", either("auto", number(-1e6, most=700)))
input_statistic = either("auto", expecting("a number, or one for each channel", several(number())))


def input_std(value):
    value = input_statistic(value)
    if value != "auto" and min(value) <= 0:
        raise Bad("auto, or numbers above 0")
    return value


def normalization(value):
    return choice(*NORMALIZATIONS)({True: "sum", False: "none"}[value] if isinstance(value, bool) else value)


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def act_type(value):
    """Accept the name of an activation, or ('leaky_relu', slope)."""
    name, *slope = value if isinstance(value, list | tuple) and value else [value]
    if len(slope) == 1 or str(name).startswith("leaky_relu,"):
        value = ",".join(map(str, (name, *slope)))
        try:
            return f"leaky_relu,{slope_of(value)!r}"
        except ValueError:
            raise Bad("leaky_relu with one slope between 0 and 1, such as leaky_relu,0.2") from None
    return choice(*ACT_TYPES)(value)


def learning_rate(value):
    """Accept a number, a scheduler's name, or (name, arguments ...)."""
    value = _tuples(value)
    try:
        if isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        lr_scheduler.build(value)
    except (ValueError, TypeError, OverflowError) as error:
        names = ", ".join(lr_scheduler.SCHEDULERS)
        name = value[0] if isinstance(value, tuple) and value else value
        unknown = isinstance(name, str) and name not in lr_scheduler.SCHEDULERS
        hint = nearest(name, lr_scheduler.SCHEDULERS) if unknown else ""
        reason = " ".join(re.sub(r"(\w+\.)?__init__\(\) ", "", str(error)).split())
        raise Bad(f"a learning rate, or (scheduler, arguments ...) with one of {names}: {reason}{hint}") from None
    return value


def optimizer(value):
    """Accept an optimizer's name, or (name, arguments ...)."""
    value = _tuples(value)
    value = value[0] if isinstance(value, tuple) and len(value) == 1 else value
    try:
        optimizers.parsed(value)
    except ValueError as error:
        raise Bad(str(error)) from None
    return value


def archive(value):
    """Accept any value that `models.archivers.build` takes."""
    value = _tuples(value)
    try:
        archivers.build(value)
    except ValueError as error:
        raise Bad(str(error).split("none of ")[-1]) from None
    return value


def description(value):
    """Accept a list of layers, or the name of an architecture."""
    if isinstance(value, str):
        try:
            value = named(value)
        except KeyError:
            names = (
                f"a list of layers, or one of {', '.join(ARCHITECTURES)}, also divided by 2, 4, 8 or 16 as in VGG16/4"
            )
            raise Bad(names + nearest(value, ARCHITECTURES)) from None
    try:
        parse(value, "NONE", (1 << 16, 1 << 16, 1))  # whether it fits the images is checked with the data
    except ValueError as error:
        raise Bad(f"a list of layers ({error})") from None

    def plain(item):
        return [plain(i) for i in item] if isinstance(item, list | tuple) else item

    return plain(value)


def shown(value: Any) -> str:
    """Return a value as it is typed, truncated if it is very long."""
    if isinstance(value, tuple) and all(isinstance(v, str | int | float) for v in value):
        value = ",".join(map(str, value))
    try:
        said = value if isinstance(value, str) else repr(value)
    except ValueError:  # an int of more digits than Python writes
        said = f"a number of about {value.bit_length() * 0.30103:.0f} digits"
    return said if len(said) < 200 else said[:200] + "..."
