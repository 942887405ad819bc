"""Who may make them: jobs, leases and heads in Redis or Valkey."""
