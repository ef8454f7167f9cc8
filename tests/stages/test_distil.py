"""A run taught by another model: the same run, but for its loss."""

from dataclasses import replace

from gemma_train.config import EXAMPLE, Distillation, NextToken, Online, TopK
from gemma_train.stages.distil import distilled

TEACHER = Online(weights="large")


def test_all_but_the_loss_and_the_folder_stays():
    run = replace(EXAMPLE, loss=NextToken(z_loss=0.5, chunk=256))
    found = distilled(run, TEACHER)
    loss = Distillation(teacher=TEACHER, sampler=TopK(candidates=256), z_loss=0.5, chunk=256)
    assert found == replace(run, loss=loss, folder=f"{run.folder}_distilled")
    assert distilled(run, TEACHER, folder="runs/own").folder == "runs/own"


def test_a_chunk_holds_targets_too_and_is_no_longer_than_the_losss_own():
    assert distilled(replace(EXAMPLE, loss=NextToken()), TEACHER).loss.chunk == Distillation.chunk
    assert Distillation.chunk < NextToken.chunk
