"""Callable models: backbones, the parameters a regime trains, frozen heads."""
