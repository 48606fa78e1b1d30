"""``api/system`` and ``api/storageinfo``. Event loop only. Source: artifactory-rest 11, 12.1."""

import shutil

from jfs.extents import GiB, KiB, MiB, TiB
from jfs.server.http.exchange import Answer, Call, json_answer, text_answer
from jfs.server.wire import answers

_MAX_REPORT_BYTES = 1 << 20


async def ping(call: Call) -> Answer:
    return text_answer("OK")


async def version(call: Call) -> Answer:
    return json_answer(
        {
            "version": answers.VERSION,
            "revision": answers.REVISION,
            "addons": [],
            "license": "jfs embedded server",
        }
    )


async def usage(call: Call) -> Answer:
    """Accept what the ``jf`` command reports about itself, and drop it."""
    await call.body(_MAX_REPORT_BYTES)
    return Answer(200)


async def uploads_config(call: Call) -> Answer:
    return json_answer({"supported": False})


async def calculate(call: Call) -> Answer:
    """Answer POST ``api/storageinfo/calculate``; figures are always fresh here."""
    call.require_admin()
    return Answer(202)


async def storage_info(call: Call) -> Answer:
    """Answer GET ``api/storageinfo``: formatted strings, except ``usedSpaceInBytes``."""
    call.require_admin()
    repositories, (contents, stored) = await call.run(call.store.usage)
    configs = call.store.repositories.all()
    disk = await call.run(lambda: shutil.disk_usage(call.store.directory))
    files = sum(each.files for each in repositories.values())
    folders = sum(each.folders for each in repositories.values())
    size = sum(each.size for each in repositories.values())
    rows: list[dict[str, object]] = [
        {
            "repoKey": key,
            "repoType": str(configs[key]["rclass"]).upper(),
            "foldersCount": each.folders,
            "filesCount": each.files,
            "usedSpace": _bytes(each.size),
            "usedSpaceInBytes": each.size,
            "itemsCount": each.folders + each.files,
            "packageType": str(configs[key]["packageType"]).capitalize(),
            "projectKey": "default",
            "percentage": _percent(each.size, size),
        }
        for key, each in repositories.items()
        if key in configs
    ]
    rows.append(
        {
            "repoKey": "TOTAL",
            "repoType": "NA",
            "foldersCount": folders,
            "filesCount": files,
            "usedSpace": _bytes(size),
            "usedSpaceInBytes": size,
            "itemsCount": folders + files,
        }
    )
    return json_answer(
        {
            "binariesSummary": {
                "binariesCount": f"{contents:,}",
                "binariesSize": _bytes(stored),
                "artifactsSize": _bytes(size),
                "optimization": _percent(stored, size),
                "itemsCount": f"{folders + files:,}",
                "artifactsCount": f"{files:,}",
            },
            "fileStoreSummary": {
                "storageType": "file-system",
                "storageDirectory": str(call.store.directory / "filestore"),
                "totalSpace": _bytes(disk.total),
                "usedSpace": f"{_bytes(disk.used)} ({_percent(disk.used, disk.total)})",
                "freeSpace": f"{_bytes(disk.free)} ({_percent(disk.free, disk.total)})",
            },
            "repositoriesSummaryList": rows,
        }
    )


def _bytes(size: int) -> str:
    for unit, name in ((TiB, "TB"), (GiB, "GB"), (MiB, "MB"), (KiB, "KB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size} bytes"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}%" if whole else "N/A"
