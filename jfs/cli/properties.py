"""``KEY=VALUE`` on the command line, as properties."""

from collections.abc import Iterable

from jfs.errors import ConfigError, NamespaceError
from jfs.model import Properties
from jfs.vfs.attributes.xattrs import PREFIX, decode_values, key_to_write


def properties_of(pairs: Iterable[str]) -> Properties:
    """Read pairs; several values are joined with commas. Raises ConfigError saying which rule."""
    found: dict[str, tuple[str, ...]] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"{pair}: give KEY=VALUE, such as env=production")
        try:
            known = key_to_write(f"{PREFIX}{key}".encode())
            values = decode_values(value.encode("utf-8", "surrogateescape"))
        except NamespaceError as error:
            raise ConfigError(f"{pair}: {error}") from None
        found[known] = (*found.get(known, ()), *values)
    return found
