"""Refusal of enum values that the contract does not define: proto3 lets any number through."""

from __future__ import annotations

import functools
from typing import NamedTuple

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from regionsearch.errors import invalid


class _Field(NamedTuple):
    """A field that is an enum, or a message that may hold one."""

    name: str
    repeated: bool
    enum: EnumDescriptor | None


def check_enums(message: Message, prefix: str = "") -> None:
    """Refuses a message in which a field has a number that is not a value of its enum.

    Only fields that can lead to an enum are looked at: masks, points and vectors cost nothing.

    Args:
        message: What a caller sent.
        prefix: Path of the message in the request, with a dot at its end.

    Raises:
        RegionSearchError: INVALID_ARGUMENT that names the field and the values.
    """
    for name, repeated, enum in _fields(message.DESCRIPTOR):
        if enum is not None:
            value = getattr(message, name)
            for number in value if repeated else (value,):
                if number not in enum.values_by_number:
                    known = ", ".join(enum.values_by_name)
                    field = f"{prefix}{name}"
                    raise invalid(
                        field, f"{field} is {number}, not a value of {enum.name}; send one of {known}"
                    )
        elif repeated:
            for index, part in enumerate(getattr(message, name)):
                check_enums(part, f"{prefix}{name}[{index}].")
        elif message.HasField(name):
            check_enums(getattr(message, name), f"{prefix}{name}.")


@functools.cache
def _fields(descriptor: Descriptor) -> tuple[_Field, ...]:
    return tuple(
        _Field(field.name, field.is_repeated, field.enum_type)
        for field in descriptor.fields
        if _leads_to_enum(field, ())
    )


def _leads_to_enum(field: FieldDescriptor, within: tuple[Descriptor, ...]) -> bool:
    """Whether a field is an enum or a message that may hold one; values of maps are not looked at."""
    message = field.message_type
    if message is None:
        return field.enum_type is not None
    if message in within or message.GetOptions().map_entry:
        return False
    return any(_leads_to_enum(part, (*within, message)) for part in message.fields)
