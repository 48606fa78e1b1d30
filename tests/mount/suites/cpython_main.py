"""Run CPython's own tests with the interpreter that they belong to: ``python cpython_main.py …``.

Not part of the test package: the interpreter is the system's, and has nothing of this project.
Arguments are those of ``python -m test``.
"""

from test.libregrtest import main
from test.support import os_helper

# Asked first, it looks for trusted. attributes too, and skips every test of attributes without.
os_helper._can_xattr = True

main()
