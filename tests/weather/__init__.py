"""Bad weather: every fault against every operation of a mount, and what the user gets.

``rows`` has the faults, ``operations`` what a process does in a mount meanwhile, ``expected`` the
table of the README, ``line`` a network between mount and server that can fail.
``errands`` does ten thousand things while one request in ten fails, and nobody may notice.
``python -m tests.weather`` prints the table.
"""
