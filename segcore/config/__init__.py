"""The typed configuration of a job: its schema, and how files and flags fill it."""

from segcore.config.loading import load_config
from segcore.config.schema import DEFAULT_MODEL, Config, ModelConfig, RayOptions, RunOptions

__all__ = ["DEFAULT_MODEL", "Config", "ModelConfig", "RayOptions", "RunOptions", "load_config"]
