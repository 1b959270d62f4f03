"""The plugin contract as named checks, one list for `bench check` and for pytest."""
