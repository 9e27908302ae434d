"""Evaluates the part of expr-lang, Argo's expressions, that deploy/argo-retries.yaml uses; refuses the rest."""

import re
from collections.abc import Mapping
from typing import Any

TOKEN = re.compile(r"\s*(?:(\|\||&&|==|[!()\[\],])|('(?:[^'\\]|\\.)*')|(-?\d+)|([A-Za-z_][\w.]*))")
WORDS = ("matches", "in")


def evaluate(text: str, names: Mapping[str, str]) -> bool:
    """Raises ValueError: it is not of this part of the language, or its value is no boolean."""
    reader = Reader(text, names)
    value = reader.either()
    if reader.tokens or not isinstance(value, bool):
        raise ValueError(f"no boolean expression of the part that is known: {text}")
    return value


class Reader:
    """Recursive descent; both sides are always evaluated, as none of these has an effect."""

    def __init__(self, text: str, names: Mapping[str, str]) -> None:
        self.names, self.tokens, at = names, [], 0
        while at < len(text.rstrip()):
            found = TOKEN.match(text, at)
            if found is None:
                raise ValueError(f"not known: {text[at:]}")
            self.tokens.append(found[found.lastindex or 0])
            at = found.end()

    def take(self, *wanted: str) -> str:
        """The next token if it is one of these, else ''; any token where none is named."""
        if self.tokens and (not wanted or self.tokens[0] in wanted):
            return self.tokens.pop(0)
        return ""

    def need(self, wanted: str) -> None:
        if not self.take(wanted):
            raise ValueError(f"expected {wanted} before {' '.join(self.tokens)}")

    def either(self) -> Any:
        value = self.both()
        while self.take("||"):
            value = boolean(value) | boolean(self.both())
        return value

    def both(self) -> Any:
        value = self.compared()
        while self.take("&&"):
            value = boolean(value) & boolean(self.compared())
        return value

    def compared(self) -> Any:
        value = self.single()
        match self.take("==", *WORDS):
            case "==":
                return value == self.single()
            case "in":
                return value in self.listed()
            case "matches":
                return re.search(self.single(), value) is not None  # Go's expressions: none here differs from Python's
        return value

    def listed(self) -> list[Any]:
        self.need("[")
        values = [self.single()]
        while self.take(","):
            values.append(self.single())
        self.need("]")
        return values

    def single(self) -> Any:
        token = self.take()
        if token == "!":
            return not boolean(self.single())
        if token == "(":
            value = self.either()
            self.need(")")
            return value
        if token[:1] == "'":
            return re.sub(r"\\(.)", r"\1", token[1:-1])
        if re.fullmatch(r"-?\d+", token):
            return int(token)
        if token == "asInt":
            self.need("(")
            value = int(self.single())
            self.need(")")
            return value
        if token in self.names:
            return self.names[token]
        raise ValueError(f"not known: {token}")


def boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"no boolean: {value}")
    return value
