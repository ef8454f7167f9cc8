"""Teachers are tried on the small runs of the trainer's tests."""

from tests.training.conftest import batch_of, run_on

__all__ = ["batch_of", "run_on"]
