"""Class names as they are in a Python program become the entries of a class file."""

from collections.abc import Iterable
from typing import Any

from must.base.parameters import require
from must.base.text import brief


def entries_of(classes: Any) -> list[Any]:
    """Classes from Python as a class file has them. Raises ValueError: something is neither a name nor a prompt."""
    if isinstance(classes, dict):
        return [{"name": name_of(name), "prompts": prompts_of(name, given)} for name, given in classes.items()]
    require(isinstance(classes, list | tuple), "classes: expected a list of names, a dictionary, or a file")
    return [entry if isinstance(entry, dict) else name_of(entry) for entry in classes]


def name_of(name: Any) -> Any:
    """A plain text, also of a kind of text such as numpy's; a number is a name, too, as in a file."""
    if isinstance(name, str):
        return str(name)
    known = type(name) in (int, float)
    require(known, f"classes: {brief(name)} ({type(name).__name__}) is no name; names must be strings")
    return name


def prompts_of(name: Any, given: Any) -> list[str]:
    prompts = [given] if isinstance(given, str) else list(given) if isinstance(given, Iterable) else [None]
    require(
        all(isinstance(prompt, str) for prompt in prompts),
        f"classes: the prompts of {brief(name)} must be a string or a list of strings",
    )
    return [str(prompt) for prompt in prompts]
