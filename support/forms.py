"""Forms of values that were read from files: checks that they have the form that their readers rely on."""

from collections.abc import Callable
from typing import Any

import numpy as np

Form = Any  # a function value -> bool, or {key: form}: a dict that has these keys


def number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def boolean(value: Any) -> bool:
    return isinstance(value, bool)


def number_or_none(value: Any) -> bool:
    return value is None or number(value)


def numbers(value: Any) -> bool:
    """Return whether this is a list of numbers, or an array of them, with at least one."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf" and value.size > 0
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(number, value))


def matrix(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and value.ndim == 2 and min(value.shape) > 1


def whole(value: Any) -> bool:
    """Return whether this is a whole number from 1 to 2^31."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 2**31


def whole_or_text_or_none(value: Any) -> bool:
    return value is None or whole(value) or text(value)


def pair_or_none(value: Any) -> bool:
    """Return whether these are two numbers, such as a mean and its standard deviation, or None."""
    return value is None or (numbers(value) and len(value) == 2)


def text(value: Any) -> bool:
    return isinstance(value, str)


def several(form: Form) -> Callable[[Any], bool]:
    """Return the form of a list of values of a form, at least one."""
    return lambda value: isinstance(value, list | tuple) and len(value) > 0 and all(not wrong(v, form) for v in value)


def each(form: Form, key: Callable[[Any], bool] = text) -> Callable[[Any], bool]:
    """Return the form of a dict of values of a form, at least one, whose keys are of a form."""
    return lambda value: (
        isinstance(value, dict) and len(value) > 0 and all(key(k) and not wrong(v, form) for k, v in value.items())
    )


def whole_text(value: Any) -> bool:
    return isinstance(value, str) and value.isdecimal() and len(value) < 19


def number_text(value: Any) -> bool:
    try:
        return isinstance(value, str) and np.isfinite(float(value))
    except ValueError:
        return False


def wrong(value: Any, form: Form) -> list[str]:
    """Return the keys of value that are missing or of another form; [''] for a value that is of another form as a
    whole."""
    if not isinstance(form, dict):
        return [] if form(value) else [""]
    if not isinstance(value, dict):
        return [""]
    return sorted(key for key, inner in form.items() if key not in value or wrong(value[key], inner))
