"""The published experiments, one TOML file a family."""
