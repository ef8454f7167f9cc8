"""A teacher of a run: in its step, or stored ahead of it."""
