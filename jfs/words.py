"""Words that come from elsewhere, made fit to be shown: one line, no secret, not too long. Pure.

What a server says is shown to people: in the log, in ``.jfs/errors``, in attributes. It may hold
control characters that speak to a terminal, the signature of a location, the credentials that it
was sent, or a page of HTML.
"""

import html
import re

WORDS_MAX = 300  # characters of what a server says; policy names and reasons fit
_SCANNED = 16384  # characters of an answer that are looked at
_LEFT_OUT = "…"

# Control characters, C1 ones too, and what reorders or ends a line: bidirectional marks and
# overrides (Unicode 15, PropList Bidi_Control), line and paragraph separator.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]+")
_QUERY = re.compile(r"(\bhttps?://[^\s?#\"'<>]*)[?#][^\s\"'<>]*", re.IGNORECASE)
_USERINFO = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s/\"'<>]+@", re.IGNORECASE)
_SECRETS = (
    # Authorization and its kin, whose value is everything that follows the scheme.
    re.compile(r"(\b(?:Bearer|Basic|Digest|Negotiate|Token)\s+)[\w+/=~.:-]{8,}", re.IGNORECASE),
    re.compile(
        r"(\b(?:X-JFrog-Art-Api|Authorization|Proxy-Authorization|Set-Cookie|Cookie|api[_-]?key|"
        r"access[_-]?token|refresh[_-]?token|token|password|passwd|secret|signature|sig|"
        r"X-Amz-(?:Signature|Credential|Security-Token))[\"']?\s*[:=]\s*[\"']?)"
        r"(?!(?:Bearer|Basic)\b)[^\s\"'&,;<>]{4,}",
        re.IGNORECASE,
    ),
    # JSON Web Tokens, API keys and reference tokens of JFrog (artifactory-rest: AKC…, cmVmd…).
    re.compile(r"()\beyJ[\w-]{8,}\.[\w-]+(?:\.[\w-]*)?"),
    re.compile(r"()\b(?:AKC|cmVmd)[A-Za-z0-9+/=_-]{16,}"),
)
_HIDDEN = re.compile(r"<(script|style|head)\b.*?(?:</\1\s*>|\Z)|<!--.*?(?:-->|\Z)", re.I | re.S)
_TITLE = re.compile(r"<title\b[^>]*>(.*?)</title", re.I | re.S)
_TAG = re.compile(r"<[^>]*>?")
_XML_WORDS = re.compile(r"<(Code|Message)>(.*?)</\1>", re.S)


def masked(text: str) -> str:
    """Return the text without what gives access: credentials, queries of URLs."""
    text = _QUERY.sub(rf"\1?{_LEFT_OUT}", text)
    text = _USERINFO.sub(rf"\1{_LEFT_OUT}@", text)
    for secret in _SECRETS:
        text = secret.sub(r"\1***", text)
    return text


def clean(text: str, limit: int = WORDS_MAX) -> str:
    """Return one line of at most *limit* characters without controls and secrets."""
    line = " ".join(_CONTROLS.sub(" ", text[:_SCANNED]).split())
    line = masked(line)
    return line if len(line) <= limit else f"{line[: limit - 1]}{_LEFT_OUT}"


def of_page(text: str) -> str:
    """Return what a page of HTML, or an XML answer of storage, says; empty: nothing.

    Storage names a code and a message; a gateway's page has its reason in the title or the text.
    """
    text = text[:_SCANNED]
    said = [words for _, words in _XML_WORDS.findall(text)]
    if said:
        return clean(html.unescape(": ".join(said)))
    title = _TITLE.search(text)
    body = clean(html.unescape(_TAG.sub(" ", _HIDDEN.sub(" ", text))))
    head = clean(html.unescape(title[1])) if title else ""
    return clean(body if not head or body.startswith(head) else f"{head}: {body}" if body else head)
