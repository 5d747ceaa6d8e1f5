"""Choices that a store names by a short word, and makes again from it."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, ClassVar

from typing_extensions import Self


class Named(ABC):
    """A choice, such as a measurement, that its fingerprint names.

    The library's own classes have a short name, ``class TrainingLoss(Measurement, name="training_loss")``, which does
    not change when a module moves, and which ``from_fingerprint`` finds again. A caller's class without one is named by
    its module.
    """

    fingerprint_name: ClassVar[str]
    _by_name: ClassVar[dict[str, type[Any]]]

    def __init_subclass__(cls, *, name: str | None = None, **options: Any) -> None:
        """Name the class, and find it by that name among those of the same kind."""
        super().__init_subclass__(**options)
        if Named in cls.__bases__:
            cls._by_name = {}
        cls.fingerprint_name = f"{cls.__module__}.{cls.__qualname__}" if name is None else name
        if name is not None:
            cls._by_name[name] = cls

    def fingerprint(self) -> dict[str, Any]:
        """Return what determines the choice, as JSON values: its name, and its fields if it is a dataclass."""
        fields: dict[str, Any] = asdict(self) if is_dataclass(self) else {}
        return {"class": self.fingerprint_name, **fields}  # no field can have the name of a keyword

    @classmethod
    def from_fingerprint(cls, fingerprint: Mapping[str, Any]) -> Self:
        """Make a choice of the library's own again.

        Args:
            fingerprint: What ``fingerprint`` returned.

        Returns:
            A choice with that fingerprint.

        Raises:
            ValueError: If it cannot be made from its fingerprint: a class of the caller's, or one that holds tensors.
        """
        fields = dict(fingerprint)
        name = fields.pop("class")
        found: Self | None = cls._by_name[name].from_fields(fields) if name in cls._by_name else None
        if found is None:
            what = cls.__name__.lower()
            raise ValueError(
                f"the features were made with {what} {name}, which cannot be made again from its name: "
                f"give it as {what}="
            )
        return found

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self | None:
        """Return the choice with these fields of a fingerprint, or None if they do not tell all of it."""
        return cls(**fields)
