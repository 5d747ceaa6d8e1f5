"""Dividing an amount of money, to the cent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from math import floor
from pathlib import Path

from journey.exports.csv import write_csv


@dataclass(frozen=True)
class Payments:
    """Amounts of money.

    Attributes:
        names: Of the groups; None is the rest, the images in no group.
        amounts: Of each, with two decimals; negative ones are owed. They add up to the pool.
    """

    names: list[str | None]
    amounts: list[Decimal]

    def to_csv(self, path: str | Path) -> Path:
        """Write a line for each group: its name, empty for the rest, and its amount.

        Args:
            path: The file; missing folders are made.

        Returns:
            The path of the file.
        """
        pairs = zip(self.names, self.amounts, strict=True)
        return write_csv(
            path, [("group", "amount"), *(("" if name is None else name, amount) for name, amount in pairs)]
        )


def divide(pool: int | float | str | Decimal, weights: Sequence[float]) -> list[Decimal]:
    """Divide an amount in proportion to weights, to the cent, by largest remainders.

    Every part is its exact share rounded down; the cents that are left go, one each, to the parts that lost most by
    rounding, of equal ones to the first.

    Args:
        pool: A positive amount with two decimals at most.
        weights: Finite, of positive sum; negative ones get negative parts.

    Returns:
        Amounts with two decimals, whose sum is the pool.

    Raises:
        ValueError: If the pool is no such amount.
    """
    try:
        amount = Decimal(str(pool))
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount <= 0 or amount * 100 != (amount * 100).to_integral_value():
        raise ValueError(f"pool must be a positive amount with two decimals at most, got {pool!r}")
    cents = int(amount * 100)
    exact = [Fraction(weight) for weight in weights]
    total = sum(exact)
    parts = [cents * weight / total for weight in exact]
    whole = [floor(part) for part in parts]
    largest = sorted(range(len(parts)), key=lambda i: (whole[i] - parts[i], i))
    for i in largest[: cents - sum(whole)]:
        whole[i] += 1
    return [Decimal(part).scaleb(-2) for part in whole]
