"""The jobs: config, cluster, registry and report put together."""
