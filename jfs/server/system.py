"""Small endpoints: ping, version, usage, storage summary, and the server's own counters."""

from aiohttp import web

from jfs.server.answers import json_response
from jfs.server.context import service_of

# Above what old clients ask for, below 7.82.2 (multipart probes) and 7.102 (another sink for
# usage reports): artifactory-rest 12.1.
VERSION = "7.55.14"


async def ping(request: web.Request) -> web.Response:
    return web.Response(text="OK")


async def version(request: web.Request) -> web.Response:
    return json_response(
        {"version": VERSION, "revision": "75514900", "addons": [], "license": "jfs embedded"}
    )


async def usage(request: web.Request) -> web.Response:
    await request.read()
    return web.Response()


async def storage_info(request: web.Request) -> web.Response:
    """``api/storageinfo``: sizes are formatted strings, but for usedSpaceInBytes."""
    service = service_of(request)
    rows = [
        {
            "repoKey": key,
            "repoType": "LOCAL",
            "foldersCount": folders,
            "filesCount": files,
            "usedSpace": f"{size:,} bytes",
            "usedSpaceInBytes": size,
            "itemsCount": folders + files,
            "packageType": "Generic",
            "percentage": "N/A",
        }
        for key, folders, files, size in await service.db(service.store.totals)
    ]
    return json_response({"repositoriesSummaryList": rows})


async def get_stats(request: web.Request) -> web.Response:
    """``GET /jfs/stats``: what the server has seen; outside Artifactory's address space."""
    return json_response(service_of(request).stats.snapshot())


async def reset_stats(request: web.Request) -> web.Response:
    service_of(request).stats.reset()
    return web.Response(status=204)
