"""What every room may use of the system: files, locks, streams, and this package's version."""
