"""The folder of a run's checkpoints: sealed, verified, walked back over, thinned out."""
