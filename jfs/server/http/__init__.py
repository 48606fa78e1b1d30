"""One request and its answer: who asks, receiving, sending, faults, signed storage.

The server's event loop only. Imports ``store`` and below.
"""
