"""Raw request targets to paths and properties (artifactory-rest 2)."""

from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jfs.model import RepoPath
from jfs.server.wire.answers import ApiError
from jfs.server.wire.paths import (
    check_path,
    parse_keys,
    parse_property_list,
    parse_query,
    parse_target,
    split_target,
)

_ILLEGAL = '\\|*?"\0/'
names = (
    st.text(st.characters(codec="utf-8", exclude_characters=_ILLEGAL), min_size=1, max_size=40)
    .filter(lambda name: name == name.strip() and name.strip(".") and name != "&")
    .filter(lambda name: not name.endswith(":properties") and not name.lower().startswith("http"))
)
keys = st.from_regex(r"[A-Za-z][A-Za-z0-9._:-]{0,20}", fullmatch=True)
values = st.text(st.characters(codec="utf-8"), max_size=30)
property_sets = st.dictionaries(keys, st.lists(values, min_size=1, max_size=3, unique=True))


@given(st.lists(names, min_size=1, max_size=4))
def test_an_encoded_path_is_read_back(parts: list[str]) -> None:
    raw = "/ml/" + "/".join(quote(part, safe="") for part in parts)
    assert parse_target(raw).path == RepoPath("ml", "/".join(parts))
    # As Go's URL encoding has it: what is legal in a path stays bare, a semicolon never does.
    raw = "/ml/" + quote("/".join(parts), safe="/!$&'()+,:=@")
    assert parse_target(raw).path == RepoPath("ml", "/".join(parts))


@given(property_sets.filter(lambda each: not any("\\" in v for vs in each.values() for v in vs)))
def test_matrix_parameters_of_the_jf_command_are_read_back(wanted: dict[str, list[str]]) -> None:
    matrix = ";".join(
        f"{quote_plus(key)}={quote_plus(value)}" for key, vs in wanted.items() for value in vs
    )
    expected = {key: tuple(vs) for key, vs in wanted.items()}
    assert parse_target(f"/ml/a/b.bin;{matrix}").properties == expected
    early = parse_target(f"/ml;{matrix}/a/b.bin")
    assert early.path == RepoPath("ml", "a/b.bin")
    assert early.properties == expected


@given(property_sets)
def test_an_escaped_property_list_is_read_back(wanted: dict[str, list[str]]) -> None:
    def escape(text: str) -> str:
        return "".join(f"\\{each}" if each in "\\,=|;" else each for each in text)

    stripped = {key: list(dict.fromkeys(v.strip() for v in vs)) for key, vs in wanted.items()}
    text = ";".join(
        f"{key}={','.join(escape(value) for value in vs)}" for key, vs in stripped.items()
    )
    if not wanted:
        return
    query = parse_query(urlencode({"properties": text, "recursive": "0"}))
    assert parse_property_list(query["properties"]) == {
        key: tuple(vs) for key, vs in stripped.items()
    }


@pytest.mark.parametrize(
    ("raw", "path", "properties"),
    [
        ("/r/a%3Bb", "a;b", {}),
        ("/r/a+b%20c", "a+b c", {}),
        ("/r/a;k=x+y%2Bz", "a", {"k": ("x y+z",)}),
        ("/r/a;k=v/b.bin", "a", {"k": ("v/b.bin",)}),  # a `;` in the middle swallows the rest
        ("/r/a;k;l=;;", "a", {"k": ("",), "l": ("",)}),
        ("/r/a;k=1;k=2;k=1", "a", {"k": ("1", "2")}),
        ("/r/a;k=1,2", "a", {"k": ("1", "2")}),
        ("/r/a;k=1%2C2", "a", {"k": ("1,2",)}),
        ("/r/a;k=1%5C%2C2", "a", {"k": ("1,2",)}),
        ("/r/a;k=1%5C,2", "a", {"k": ("1,2",)}),
        ("/r/a;k=b=c", "a", {"k": ("b=c",)}),
        ("/r/./a//b/.", "a/b", {}),
    ],
)
def test_targets(raw: str, path: str, properties: dict[str, tuple[str, ...]]) -> None:
    target = parse_target(raw)
    assert target.path == RepoPath("r", path)
    assert target.properties == properties


@pytest.mark.parametrize(
    "raw",
    [
        "/r/..",
        "/r/%2e%2e/x",
        "/r/...",
        "/r/a/..%2Fb",
        "/r/a%5Cb",
        "/r/a%7Cb",
        "/r/a%2A",
        "/r/a%3F",
        "/r/a%22",
        "/r/%20a",
        "/r/a%09/b",
        "/r/a%00b",
        "/r/&",
        "/r/" + "n" * 256,
        "/r/" + "/".join(["p" * 200] * 6) + "/x",
        "/r/%FF",
        "/r/http:%2F%2Fexample.com",
        "/r/a;1k=v",
        "/r/a;k%20k=v",
        "/r/a;k%25=v",
    ],
)
def test_what_artifactory_refuses_is_refused(raw: str) -> None:
    with pytest.raises(ApiError) as error:
        parse_target(raw)
    assert error.value.status == 400


def test_the_retired_notation_is_a_conflict() -> None:
    with pytest.raises(ApiError) as error:
        check_path("a/b:properties")
    assert error.value.status == 409


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("k=v", {"k": ("v",)}),
        ("k=v1,v2;l=x|m=y", {"k": ("v1", "v2"), "l": ("x",), "m": ("y",)}),
        ("k=a\\,b", {"k": ("a,b",)}),
        ("k=a\\=b\\|c\\;d", {"k": ("a=b|c;d",)}),
        ("k=a=b;l=x", {"l": ("x",)}),  # two unescaped `=`: dropped without a word
        ("k", {"k": ("",)}),
        (" k = v ", {"k ": (" v",)}),
        ("k=C:\\temp", {"k": ("C:\\temp",)}),
    ],
)
def test_property_lists(text: str, expected: dict[str, tuple[str, ...]]) -> None:
    if " " in next(iter(expected)):
        with pytest.raises(ApiError):
            parse_property_list(text)
        return
    assert parse_property_list(text) == expected


@pytest.mark.parametrize("text", ["", ";", "k=a=b", "=v"])
def test_a_property_list_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(ApiError, match="cannot be empty"):
        parse_property_list(text)


def test_a_semicolon_in_a_query_is_no_separator() -> None:
    assert parse_query("properties=a=1;b=2&recursive=0") == {
        "properties": "a=1;b=2",
        "recursive": "0",
    }
    assert parse_keys("a,b,") == ["a", "b"]


def test_the_absolute_form_of_a_target() -> None:
    assert split_target("http://h:1/artifactory/r/a?x=1#f") == ("/artifactory/r/a", "x=1")


@given(st.text(st.characters(min_codepoint=33, max_codepoint=0xDCFF), max_size=60))
def test_no_target_breaks_the_parser(text: str) -> None:
    status = None
    try:
        parse_target(text)
    except ApiError as error:
        status = error.status
    assert status in (None, 400, 409)
