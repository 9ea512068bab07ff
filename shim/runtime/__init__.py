"""What every shim needs, whatever it runs: flags, start, the daemon, reaping, events, the log.  Knows no engine."""
