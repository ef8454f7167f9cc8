"""Stages of a Gemma's life: functions that make or change a RunConfig."""
