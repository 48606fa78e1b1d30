"""What the server keeps: catalogue in SQLite, content on disk, rules of who may put what where.

Blocking; called from threads. Imports ``search`` and ``wire``. Lock order: ``Store``'s own, then
SQLite's; no request is waited for under it.
"""
