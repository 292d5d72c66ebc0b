"""
The pipelines on real text: every step is a valid command, is skipped when finished, and is collected with its
seeds.
"""
import csv
import json
from pathlib import Path

import numpy as np
import pytest

from study import real
from test_data import write_jsonl

TINY = "--max_len 48 --max_steps 2 --eval_every 2 --batch_size 8"
STEPS = {"imdb": {
    "sft": (real.train_sft, f"{TINY} --n_layer 1 --n_head 2 --n_embd 16"),
    "reward": (real.train_reward, f"{TINY} --init_from {{root}}/imdb/sft --half first --max_steps 20 --lr 3e-2"),
    "gold": (real.train_reward, f"{TINY} --init_from {{root}}/imdb/sft --half second --max_steps 20 --lr 3e-2"),
    "bag": (real.bag, "--half first"),
    "dpo": (real.train_pref, f"{TINY} --loss dpo --init_from {{root}}/imdb/sft --reward {{root}}/imdb/reward "
            "--prompt_tokens 4 --n_prompts 12")}}

@pytest.mark.slow
@pytest.mark.usefixtures("painted")
def test_the_pipeline_of_reviews_runs_skips_what_is_done_and_is_collected(in_tmp, own_tokenizer, monkeypatch):
    """A finished run is not started again. A run that ended before its evaluation is only evaluated."""
    for split, n in (("train", 60), ("test", 20)):
        rows = []
        for i in range(n):
            word = ("dull", "superb")[i % 2]
            rows.append({"text": f"{i:02d} {split} plot was {word} . " * 2, "label": i % 2})
        write_jsonl(in_tmp / "reviews" / f"{split}.jsonl", rows)
    monkeypatch.setattr(real, "STEPS", STEPS)
    monkeypatch.setattr(real, "SEEDS", (0, 1))
    monkeypatch.setattr(real.places, "RESULTS", in_tmp / "study")
    monkeypatch.setattr(real.places, "FIGURES", in_tmp / "study")
    evaluate = real.eval.main
    few = ["--n_prompts", "8", "--n_samples", "1"]
    monkeypatch.setattr(real.eval, "main", lambda argv, **more: evaluate([*argv, *few], **more))
    argv = ["--data", "imdb", "--data_dir", "reviews", "--dtype", "float32", "--out", "."]
    real.main(argv)
    runs = sorted(p.name for p in Path("out/real/imdb").iterdir())
    assert runs == ["bag", "dpo-0", "dpo-1", "gold", "reward", "sft"]
    assert Path("real_imdb.png").read_bytes() == Path("out/real/imdb/dpo-0/eval.png").read_bytes()
    with open("real.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    found = {(r["run"], r["measure"], r["seed"]) for r in rows}
    assert {("sft", "perplexity", "0"), ("reward", "accuracy", "0"), ("bag", "accuracy", "0"),
            ("before dpo", "gold", "1"), ("dpo", "gold", "1"), ("dpo", "gold_win", "0"), ("dpo", "kl", "1"),
            ("dpo", "seconds", "0")} <= found
    accuracy = next(float(r["mean"]) for r in rows if (r["run"], r["measure"]) == ("bag", "accuracy"))
    assert accuracy > 0.8    # from 26 reviews
    perplexity = next(float(r["mean"]) for r in rows if r["measure"] == "perplexity")
    val_loss = json.loads(Path("out/real/imdb/sft/result.json").read_text())["best_val_loss"]
    assert perplexity == pytest.approx(np.exp(val_loss), rel=1e-3)
    assert "gold" in json.loads(Path("real_samples.json").read_text())["imdb dpo"][0]["rewards"]["after"]
    Path("out/real/imdb/dpo-1/done").unlink()
    for name in ("done", "reward.json"):    # as if it had been killed during its evaluation
        Path("out/real/imdb/gold", name).unlink()
    written = lambda: {p: p.stat().st_mtime_ns for p in Path("out/real").rglob("*.safetensors")}
    before = written()
    real.main(argv)
    assert before == written()
    assert Path("out/real/imdb/dpo-1/done").exists() and Path("out/real/imdb/gold/reward.json").exists()
    monkeypatch.setattr(real, "ROOT", Path("elsewhere"))
    kept = Path("real.csv").read_text()
    real.main(["--collect", "--out", "."])    # on a machine without these runs
    assert Path("real.csv").read_text() == kept
    assert "imdb dpo" in json.loads(Path("real_samples.json").read_text())
    assert not Path("study").exists()    # the project's own results are written only with --update
    real.main(["--collect", "--update"])
    assert Path("study/real.csv").exists()

def test_the_steps_can_be_parsed():
    """An unknown flag would show only after hours of training."""
    for data, steps in real.STEPS.items():
        for script, flags in steps.values():
            script.get_args([*flags.replace("{root}", "x").split(), "--data", data])
