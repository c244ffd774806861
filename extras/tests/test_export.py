"""extras.export: the small file paints and scores like the run, and cannot be resumed."""

import numpy as np
import pytest
import torch
from tiny_run import make_checkpoint

import oasis
import sample
import train
from extras import export


def test_an_exported_run_draws_the_same_and_cannot_be_resumed(tmp_path, capsys):
    run = make_checkpoint(tmp_path / "runs" / "a" / "latest.pt")
    torch.save({"channels": [4, 8], "weights": torch.randn(100)}, run.with_name("segmenter.pt"))
    out = tmp_path / "b" / "latest.pt"
    export.main([str(run), "--out", str(out)])
    before, after = sample.load_model(run), sample.load_model(out)
    labels = torch.randint(0, 5, (32, 32))
    noise = oasis.noise_from_seeds([0, 1], before.generator.noise_dim)
    one = sample.paint(before.generator, labels, noise).astype(int)
    two = sample.paint(after.generator, labels, noise).astype(int)
    assert abs(one - two).mean() < 3 and np.ptp(one) > 0
    content = sample.load_checkpoint(out)
    assert content["segmenter"]["weights"].dtype == torch.bfloat16
    assert content["settings"]["run_dir"] == "" and list(out.parent.iterdir()) == [out]
    # Exported once more, it keeps its segmenter, and bit for bit its weights.
    again = tmp_path / "c.pt"
    export.main([str(out), "--out", str(again)])
    assert torch.equal(torch.load(again)["segmenter"]["weights"], content["segmenter"]["weights"])
    with pytest.raises(SystemExit) as stopped:
        train.main(["--run-dir", str(out.parent), "--resume", "--metrics", "none"])
    assert stopped.value.code == 2 and "optimizers" in capsys.readouterr().err
