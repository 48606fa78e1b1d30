"""Every fault against every operation: the right answer, in time, and nothing lost or stuck.

A slice of the faults runs in the gate, all of them with ``--whole``. They run beside each other,
since they mostly wait; each has a server and a mount of its own.
"""

import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.readme import README
from tests.weather.certificates import made_in
from tests.weather.expected import COLUMNS, expected, table
from tests.weather.matrix import LONGEST_S, Seen, run
from tests.weather.rows import ROWS, Row

_AT_A_TIME = 4
# One of each kind: no answer, nobody to ask, a mistake, a refusal, and bytes that are not right.
_SLICE = {
    "server stopped",
    "server's name unknown",
    "401 once",
    "403, blocked by Xray",
    "wrong bytes",
}

Running = dict[str, "Future[Seen]"]


def _chosen(config: pytest.Config) -> list[Row]:
    return [row for row in ROWS if config.getoption("--whole") or row.name in _SLICE]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "row" in metafunc.fixturenames:
        rows = _chosen(metafunc.config)
        metafunc.parametrize("row", rows, ids=[row.name for row in rows])


@pytest.fixture(scope="module")
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """All rows that are asked for, beside each other."""
    selected = {item.name for item in request.session.items}
    test = test_every_operation_in_bad_weather.__name__
    rows = [row for row in ROWS if f"{test}[{row.name}]" in selected]
    directory = tmp_path_factory.mktemp("weather")
    certificates = made_in(directory / "tls")
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        yield {
            row.name: pool.submit(run, row, directory / f"row{number}", certificates)
            for number, row in enumerate(rows)
        }


@pytest.mark.timeout(900)
@pytest.mark.xdist_group("weather")  # one process runs all rows beside each other
def test_every_operation_in_bad_weather(running: Running, row: Row) -> None:
    seen = running[row.name].result()
    print(f"\n{row.name}: healed after {seen.heals_s:.1f} s")
    for name, cell in seen.cells.items():
        print(f"  {name}: {cell.outcome} in {cell.seconds:.2f} s")
    assert {name: cell.outcome for name, cell in seen.cells.items()} == expected(row.name), seen.log
    assert not seen.lost, seen.log
    assert max(cell.seconds for cell in seen.cells.values()) < LONGEST_S
    assert seen.heals_s < LONGEST_S
    assert "Traceback" not in seen.log


def test_the_readme_has_the_table() -> None:
    found = re.search(r"<!-- weather -->\n(.*?)<!-- /weather -->", README.read_text(), re.DOTALL)
    assert found
    assert found[1].strip() == table().strip()


def test_every_row_has_its_outcomes() -> None:
    for row in ROWS:
        assert set(expected(row.name)) == set(COLUMNS)
