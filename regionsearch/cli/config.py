"""Defaults of options from a file: `config.toml` in the user's folder of configurations."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import typer

from regionsearch.errors import invalid

OPTIONS = ("url", "api_key", "collection")
"""What the file may set, wherever a command has an option of that name."""


def config_file() -> Path:
    """`~/.config/regionsearch/config.toml`, or what REGIONSEARCH_CLI_CONFIG names."""
    named = os.environ.get("REGIONSEARCH_CLI_CONFIG")
    return Path(named) if named else Path(typer.get_app_dir("regionsearch")) / "config.toml"


def read_defaults(root: Any) -> dict[str, Any]:
    """The file's values for every command below a group, by names; options and environment go before them.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for a file that is not as it should be.
    """
    path = config_file()
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise invalid("config", f"{path} is not a valid TOML file: {error}") from error
    for name, value in given.items():
        if name not in OPTIONS or not isinstance(value, str):
            raise invalid("config", f"{path}: {name} is not one of the texts {', '.join(OPTIONS)}")
    return _of_each(root, given)


def _of_each(command: Any, given: dict[str, Any]) -> dict[str, Any]:
    if hasattr(command, "commands"):
        return {name: _of_each(one, given) for name, one in command.commands.items()}
    options = {one.name for one in command.params if one.param_type_name == "option"}
    return {name: value for name, value in given.items() if name in options}
