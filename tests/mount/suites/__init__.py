"""What runs suites of other projects against a mount."""
