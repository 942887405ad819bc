"""What talks to the service: the typed client and the `coevo` command."""
