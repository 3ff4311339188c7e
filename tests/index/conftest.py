"""Fixtures of the tests of the tables."""

from support.databases import database, postgres, url

__all__ = ["database", "postgres", "url"]
