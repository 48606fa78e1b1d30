"""Include and exclude patterns of repositories, in the style of Ant. Pure; any thread.

``?`` and ``*`` stay inside one name, ``**`` crosses slashes, a slash at the end means everything
below. Source: artifactory-rest 9.1; JFrog documentation "Local Repositories".
"""

import re
from collections.abc import Mapping
from functools import lru_cache

_TOKEN = re.compile(r"\*\*/|\*\*|\*|\?|[^*?]+")
_MEANING = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def accepts(config: Mapping[str, object], path: str) -> bool:
    """Whether a repository so configured takes a file at *path*, which is decoded."""
    includes = str(config.get("includesPattern") or "**/*")
    excludes = str(config.get("excludesPattern") or "")
    return _matches(includes, path) and not _matches(excludes, path)


def _matches(patterns: str, path: str) -> bool:
    return any(
        _compiled(each.strip()).fullmatch(path) for each in patterns.split(",") if each.strip()
    )


@lru_cache(maxsize=1000)
def _compiled(pattern: str) -> re.Pattern[str]:
    if pattern.endswith("/"):
        pattern += "**"
    tokens = _TOKEN.findall(pattern.lstrip("/"))
    return re.compile("".join(_MEANING.get(each) or re.escape(each) for each in tokens), re.DOTALL)
