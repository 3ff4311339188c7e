"""Keys whose values in the configuration are no longer those that the running service was started with."""

from __future__ import annotations

from storescp.config import Configuration, examine
from storescp.errors import ConfigError


def changed_keys(running: Configuration) -> list[str]:
    """What the file says otherwise now, or where it has a problem: the keys, never the values.

    Raises:
        ConfigError: the file cannot be read.
    """
    given = running.layers[0].table
    options = {(section, key): value for section, table in given.items() for key, value in table.items()}
    now = examine(options, running.file)
    problems = {problem.key for problem in now.problems}
    old, new = running.values(), now.values()
    differing = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
    return sorted(differing | problems)


def reload_text(running: Configuration) -> tuple[str, list[str]]:
    """What a SIGHUP reads again and what it does not, for the log; the keys that need a restart."""
    settings = running.settings
    again = ["the licence"]
    if settings.tls is not None:
        again.append("the certificates and revocation lists of [tls]")
    if settings.user_identity is not None:
        again.append("the users")
    text = f"read again: {', '.join(again)}"
    try:
        changed = changed_keys(running)
    except ConfigError as error:
        return f"{text}; the configuration cannot be compared: {error}", []
    if not changed:
        return f"{text}; nothing else of the configuration has changed", []
    return f"{text}; not read again, a restart is needed for: {', '.join(changed)}", changed
