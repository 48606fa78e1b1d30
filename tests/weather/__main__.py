"""Print the table of the README."""

from tests.weather.expected import table

print(table(), end="")
