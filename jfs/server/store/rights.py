"""Who may do what: users, and their rights by repository. Pure; any thread.

The letters are Artifactory's own (artifactory-rest 6.4): r(ead), w = deploy, n = annotate, that is
set properties, d(elete) and overwrite, m(anage). Real servers give rights by path patterns in
permission targets; here a grant covers the repositories whose key matches a glob.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase

from jfs.errors import ConfigError

CACHE = "-cache"  # ends the key of what a remote repository has fetched
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_EVERYTHING = "*"


class Right(StrEnum):
    READ = "r"
    DEPLOY = "w"
    ANNOTATE = "n"
    DELETE = "d"
    MANAGE = "m"


@dataclass(frozen=True, slots=True)
class Grant:
    """Rights on every repository whose key matches the glob *repos*; MANAGE implies the others."""

    rights: frozenset[Right]
    repos: str = _EVERYTHING

    def covers(self, right: Right, repo: str) -> bool:
        if right not in self.rights and Right.MANAGE not in self.rights:
            return False
        # Whoever may read a remote repository may read what it has kept.
        return fnmatchcase(repo, self.repos) or fnmatchcase(repo.removesuffix(CACHE), self.repos)


@dataclass(frozen=True, slots=True)
class User:
    """Who asks."""

    name: str
    grants: tuple[Grant, ...]

    def may(self, right: Right, repo: str) -> bool:
        return any(grant.covers(right, repo) for grant in self.grants)

    @property
    def is_admin(self) -> bool:
        """Whether this user manages everything, so also what belongs to no repository."""
        return any(
            Right.MANAGE in grant.rights and grant.repos == _EVERYTHING for grant in self.grants
        )


ADMIN = User("admin", (Grant(frozenset([Right.MANAGE])),))
# Without credentials, where that is allowed: everything but administration.
ANONYMOUS = User("anonymous", (Grant(frozenset(Right) - {Right.MANAGE}),))


def parse_users(users: Mapping[str, str | Sequence[str]]) -> list[User]:
    """Read what ``--user`` says: by name one ``RIGHTS[@REPO-GLOB]``, or several.

    Raises:
        ConfigError: a name or a right that is none.
    """
    found = []
    for name, given in users.items():
        _check_name(name)
        texts = [given] if isinstance(given, str) else given
        found.append(User(name, tuple(_grant(name, each) for each in texts)))
    return found


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"--user {name!r}: a name is made of letters, digits, '.', '_' and '-', 64 at most"
        )
    if name in (ADMIN.name, ANONYMOUS.name):
        raise ConfigError(f"--user {name}: is a user already, whose rights cannot be changed")


def _grant(name: str, text: str) -> Grant:
    letters, at, repos = text.partition("@")
    known = "".join(Right)
    if wrong := [letter for letter in letters if letter not in known]:
        raise ConfigError(
            f"--user {name}={text}: {wrong[0]!r} is no right: give letters of {known!r}: "
            "read, deploy, annotate, delete, manage"
        )
    if not letters:
        raise ConfigError(f"--user {name}={text}: gives no right: name some of {known!r}")
    if at and not repos:
        raise ConfigError(f"--user {name}={text}: the glob after '@' is missing")
    return Grant(frozenset(map(Right, letters)), repos or _EVERYTHING)
