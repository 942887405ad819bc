"""What every route shares: admission, authentication, metrics, uploads, problems."""
