"""The room that knows Hydra, Lightning, files and loggers."""
