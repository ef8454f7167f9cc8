from gemma_train.metrics import byte_progress as module
from gemma_train.metrics.byte_progress import progress


def test_without_a_terminal_lines_come_at_intervals(capsys, monkeypatch):
    now = iter([0, 4, 11, 12, 25])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    with progress("tokenising", 10_000_000) as advance:
        advance(1_000_000)
        advance(2_000_000)
    assert capsys.readouterr().out == "tokenising: 3 of about 10 MB\n"
