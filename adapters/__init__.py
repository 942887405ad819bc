"""Adapters on disk: names, manifests, the store, merging. No network, no engine."""
