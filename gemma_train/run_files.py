"""The names of what a run keeps in its folder."""

RECORD = "config.py"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
CHECKPOINTS = "checkpoints"
SUMMARY = "summary.json"
SAMPLE = "sample.txt"
REPORT = "report.html"
