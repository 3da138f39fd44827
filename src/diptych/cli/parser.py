"""An argument parser that answers mistakes with the nearest known name, and the checks that several verbs share."""

import argparse
import math
import re
from typing import NoReturn

from diptych.train.nearest import nearest


class Parser(argparse.ArgumentParser):
    """Long options are never abbreviated, and a mistake raises ``ValueError`` instead of ending the process."""

    def __init__(self, prog: str, description: str, epilog: str = "", add_help: bool = True) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            add_help=add_help,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """
        Raises:
            ValueError: always; it says where the verb's help is and which option was meant.
        """
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        known = [option for option in self._option_string_actions if option.startswith("--")]
        hint = f" {nearest(unknown[1], known, count=1)}" if unknown else ""
        raise ValueError(f"{message.removesuffix('.')}.{hint} `{self.prog} --help` shows how it is used.")


def picture_size(text: str) -> tuple[int, int]:
    """``64`` or ``WIDTHxHEIGHT`` in pixels, as (height, width)."""
    match = re.fullmatch(r"(\d+)(?:[xX×](\d+))?", text.strip())
    if not match or int(match[1]) == 0 or (match[2] is not None and int(match[2]) == 0):
        raise argparse.ArgumentTypeError(f"expected pixels as SIDE or WIDTHxHEIGHT, such as 64 or 96x64, got {text!r}")
    width = int(match[1])
    return (int(match[2]) if match[2] else width), width


def whole_number(minimum: int) -> "WholeNumber":
    """A type for argparse: a whole number of at least ``minimum``."""
    return WholeNumber(minimum)


class WholeNumber:
    """Reads a whole number and refuses one that is too small."""

    def __init__(self, minimum: int) -> None:
        self.minimum = minimum

    def __call__(self, text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
        if value < self.minimum:
            raise argparse.ArgumentTypeError(f"must be at least {self.minimum}, got {value}")
        return value


def positive_number(text: str) -> float:
    """A type for argparse: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value
