"""What servers say is shown in one line, without secrets, whatever it holds."""

import json

import pytest

from jfs import words
from jfs.artifactory.wire import error_message

XRAY = (
    "Artifact ml/llm/model.bin was blocked by policy 'no-critical' of watch 'models' "
    "(Xray: CVE-2024-3094, Critical)"
)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (403, json.dumps({"errors": [{"status": 403, "message": XRAY}]}), XRAY),
        (451, XRAY, XRAY),
        (403, json.dumps({"errors": [{"message": "a"}, {"message": "b"}]}), "a; b"),
        (409, json.dumps({"messages": [{"level": "ERROR", "message": "Pattern"}]}), "Pattern"),
        (400, json.dumps({"error": {"message": "odd"}}), "odd"),
        (400, json.dumps({"error": "invalid", "error_description": "why"}), "invalid; why"),
        (403, '{"reason": "blocked"}', '{"reason": "blocked"}'),
        (500, "", "the server answered 500"),
        (500, "null", "null"),
        (403, "[" * 100_000, None),
        (
            403,
            "<html><head><title>Blocked</title><style>p {color: red}</style></head>"
            "<body><script>x()</script><h1>Blocked</h1><p>by policy &quot;AI&quot;</p></body>",
            'Blocked by policy "AI"',
        ),
        (502, "<html><title>502 Bad Gateway</title><body><hr>nginx", "502 Bad Gateway nginx"),
        (
            403,
            "<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Request has expired"
            "</Message><RequestId>7</RequestId></Error>",
            "AccessDenied: Request has expired",
        ),
        (403, "<html></html>", "the server answered 403"),
    ],
)
def test_the_server_s_own_words(status: int, body: str, said: str | None) -> None:
    found = error_message(status, body.encode())
    assert found == said or (said is None and len(found) <= words.WORDS_MAX)


def test_words_are_one_short_line() -> None:
    text = words.clean("a\r\nb\x1b[2J\x00c\u202ed\x9b1m" + "x" * 10_000)
    assert text.startswith("a b [2J c d 1m")
    assert len(text) == words.WORDS_MAX
    assert text.endswith("…")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://s3/b/k?X-Amz-Signature=abcdef&x=1 has expired", "https://s3/b/k?… has expired"),
        ("see <https://h/p?sig=abc>", "see <https://h/p?…>"),
        ("proxy http://user:pa55@proxy:3128 refuses", "proxy http://…@proxy:3128 refuses"),
        ("Authorization: Bearer abcdefgh.ijk", "Authorization: Bearer ***"),
        ("Basic dXNlcjpwYXNz is wrong", "Basic *** is wrong"),
        ("X-JFrog-Art-Api: AKCp8abcdefgh", "X-JFrog-Art-Api: ***"),
        ('{"access_token":"s3cr3t-value"}', '{"access_token":"***"}'),
        ("token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc_DEF-1 expired", "token *** expired"),
        ("key AKCp5bueTFpfypEqQbGJPp7eHFi28fBivfWczrjbPb9erDff9LbX is", "key *** is"),
        ("reference cmVmdGtuOjAxOjE3NjYxMjM0NTY6 is", "reference *** is"),
        ("Artifact ml/a?b blocked by policy 'token-scan'", None),
        ("the token has expired", None),
        ("a property key must not hold '='", None),
    ],
)
def test_no_secret_is_shown(text: str, shown: str | None) -> None:
    assert words.clean(text) == (text if shown is None else shown)


def test_a_password_may_hold_an_at_sign() -> None:
    masked = words.masked("http://user:pa@ss@proxy:3128/x, mail me@example.com")
    assert masked == "http://…@proxy:3128/x, mail me@example.com"
