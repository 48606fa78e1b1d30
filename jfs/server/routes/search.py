"""``api/search``: AQL and the searches that came before it. Event loop only.

Source: artifactory-rest 10.
"""

from jfs.model import RepoPath
from jfs.server.http.exchange import Answer, Call, json_answer
from jfs.server.routes.download import link
from jfs.server.search import language
from jfs.server.search.language import Condition, Criterion, Group, Query
from jfs.server.store.rights import ANONYMOUS
from jfs.server.wire.answers import ApiError

_MAX_QUERY_BYTES = 1 << 20
_DIGEST_FIELDS = {"md5": "actual_md5", "sha1": "actual_sha1", "sha256": "sha256"}


async def aql(call: Call) -> Answer:
    """Answer POST ``api/search/aql``; any content type, or ``?query=``."""
    if call.user == ANONYMOUS:
        raise ApiError(403, "Only non-anonymous users are allowed to access AQL queries")
    body = await call.body(_MAX_QUERY_BYTES)
    try:
        text = body.decode() or call.query.get("query", "")
    except UnicodeDecodeError:
        raise ApiError(400, "The query is not UTF-8.") from None
    if not text.strip():
        raise ApiError(400, "AQL query is missing.")
    query = language.parse(text)

    def work() -> bytes:
        return call.store.search(query, call.user).as_json()

    return Answer(200, {"Content-Type": "application/json"}, [await call.run(work)])


async def artifact(call: Call) -> Answer:
    """Answer ``?name=&repos=``: a part of the name, in any case."""
    name = call.query.get("name", "")
    if not name:
        raise ApiError(400, "The search term is empty.")
    return await _legacy(call, [Criterion("name", "$matchic", f"*{name}*")])


async def prop(call: Call) -> Answer:
    """Answer ``?k=v1,v2&repos=``."""
    wanted: list[Condition] = []
    for key, value in call.query.items():
        if key != "repos":
            values = value.split(",") if value else ["*"]
            wanted.append(
                Group("$or", tuple(Criterion(f"@{key}", "$match", each) for each in values))
            )
    if not wanted:
        raise ApiError(400, "No property is named.")
    return await _legacy(call, wanted, folders=True)


async def checksum(call: Call) -> Answer:
    """Answer ``?sha256=`` or ``?sha1=`` or ``?md5=``."""
    wanted: list[Condition] = [
        Criterion(field, "$eq", call.query[name])
        for name, field in _DIGEST_FIELDS.items()
        if call.query.get(name)
    ]
    if not wanted:
        raise ApiError(400, "No checksum is named.")
    return await _legacy(call, wanted)


async def _legacy(call: Call, wanted: list[Condition], *, folders: bool = False) -> Answer:
    if repos := call.query.get("repos"):
        named = tuple(Criterion("repo", "$eq", each) for each in repos.split(","))
        wanted.append(Group("$or", named))
    if folders:
        wanted.append(Criterion("type", "$eq", "any"))
    query = Query(Group("$and", tuple(wanted)), include=("repo", "path", "name"))
    result = await call.run(lambda: call.store.search(query, call.user))
    rows = []
    for row in result.rows:
        parts = [str(row[name]) for name in ("path", "name") if row[name] != "."]
        place = RepoPath(str(row["repo"]), "/".join(parts))
        rows.append({"uri": f"{call.base}/api/storage/{link(place)}"})
    return json_answer({"results": rows})
