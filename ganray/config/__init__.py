"""Configuration: the schema, presets, command line and serialization."""
