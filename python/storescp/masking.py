"""Values of the configuration without the secrets in them."""

from __future__ import annotations

import re

MASK = "********"
_URL = re.compile(r"([A-Za-z0-9+_-]+://)(?:([^:/@]*)(:.*)?@)?([^@?;=#]*)")
# A file of SQLite has no password, with or without the right number of slashes, nor has a path.
_FILE = re.compile(r"(sqlite[a-z+]*:)?[^:@?;=#]*[./][^:@?;=#]*")


def database_url(url: str) -> str:
    """A database URL without its password; one that may hold it in another place, not at all."""
    if _FILE.fullmatch(url):
        return url
    found = _URL.fullmatch(url)
    if found is None:
        return MASK
    scheme, user, password, rest = found.groups(default="")
    return f"{scheme}{user}{f':{MASK}' if password else ''}{'@' if user or password else ''}{rest}"
