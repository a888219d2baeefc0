"""Expressions over the sizes of a call: written as Python, kept in postfix order, as a launcher evaluates them.

    "cdiv(N, 128) * B"  ->  ("N", 128, "cdiv", "B", "*")

All numbers are signed 64-bit integers; an overflow is an error, not a wrap. A comparison is 1 or 0.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping

from glimt_kernels.manifest.spec import MAX_INT, Axis, Code, LaunchError

OVERFLOW, DIVIDED = "a number overflows", "a number is divided by one that is not positive"

OPERATORS: Mapping[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "cdiv": lambda a, b: -(-a // b),  # the quotient rounded up
    "==": lambda a, b: int(a == b),
    "!=": lambda a, b: int(a != b),
    "and": lambda a, b: int(a != 0 and b != 0),
    "or": lambda a, b: int(a != 0 or b != 0),
}
_NAMES = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.And: "and",
    ast.Or: "or",
}


def compiled(text: str) -> Code:
    """The postfix form of an expression.

    Raises:
        ValueError: it has something that the language has not.
    """
    return tuple(_postfix(ast.parse(text, mode="eval").body))


def _postfix(node: ast.expr) -> Iterator[Axis]:
    match node:
        case ast.Constant(value=int() as value) if 0 <= value <= MAX_INT and not isinstance(value, bool):
            yield value
        case ast.Name(id=name):
            yield name
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _NAMES:
            yield from (*_postfix(left), *_postfix(right), _NAMES[type(op)])
        case ast.Compare(left=left, ops=[compare], comparators=[right]) if type(compare) in _NAMES:
            yield from (*_postfix(left), *_postfix(right), _NAMES[type(compare)])
        case ast.BoolOp(op=join, values=[first, *rest]):
            yield from _postfix(first)
            for other in rest:
                yield from (*_postfix(other), _NAMES[type(join)])
        case ast.Call(func=ast.Name(id="cdiv"), args=[left, right], keywords=[]):
            yield from (*_postfix(left), *_postfix(right), "cdiv")
        case _:
            raise ValueError(f"a rule of a launch has no such expression: {ast.unparse(node)}")


def evaluate(code: Code, sizes: Mapping[str, int]) -> int:
    """The value of an expression.

    Raises:
        LaunchError: it overflows 64 bits, or divides by what is not positive.
    """
    stack: list[int] = []
    for token in code:
        if isinstance(token, int):
            stack.append(token)
        elif token in OPERATORS:
            right, left = stack.pop(), stack.pop()
            if token == "cdiv" and right <= 0:
                raise LaunchError(DIVIDED)
            value = OPERATORS[token](left, right)
            if not -MAX_INT - 1 <= value <= MAX_INT:
                raise LaunchError(OVERFLOW)
            stack.append(value)
        else:
            stack.append(sizes[token])
    return stack[0]
