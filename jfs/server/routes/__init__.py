"""What each address answers, a module for each part of Artifactory's API.

The server's event loop only; imports ``http`` and below. ``service.py`` has the table of addresses.
"""
