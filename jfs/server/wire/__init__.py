"""HTTP and JSON as text: targets, ranges, dates, errors. Pure; imports no other room."""
