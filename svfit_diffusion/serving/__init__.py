"""Pictures for many at once from one base, each with its own adapters: engine and HTTP API."""
