"""
A linear bag of words, which any reward model of reviews is measured against: its log-odds are b + the sum of w[token] over the different
tokens of a review, whatever their order and number.

    python -m study.bag --data imdb --data_dir reviews --half first    # a minute; writes reward.json as rlhf/train_reward.py does
"""
import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import data
import measures
from checkpoint import write_json
from rlhf.train_reward import calibration, labelled

EPOCHS, BATCH, LR = 12, 64, 1e-2    # what is best on the validation reviews is kept, of equals the last

def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.strip().split("\n\n")[0], allow_abbrev=False)
    p.add_argument("--data", choices=["imdb"], default="imdb")
    p.add_argument("--data_dir", help="folder with its files, instead of the hub")
    p.add_argument("--half", choices=("first", "second"), help="learn from this half of the labels alone (default: from all)")
    p.add_argument("--max_len", type=int, default=4096, help="tokens of a review that are read, from its beginning (default: %(default)s)")
    p.add_argument("--bpe_vocab", type=int, default=8192, help="the first so many of GPT-2's byte pairs (default: %(default)s)")
    p.add_argument("--out_dir", default="out/imdb/bag")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--dtype", default="float32", help="has no effect: nothing here is worth it")
    return p.parse_args(argv)

class Bag(torch.nn.Module):
    def __init__(self, n_vocab):
        super().__init__()
        self.w, self.b = torch.nn.EmbeddingBag(n_vocab, 1, mode="sum"), torch.nn.Parameter(torch.zeros(()))
        torch.nn.init.zeros_(self.w.weight)

    def forward(self, rows):
        """Rows of tokens -> (n,) log-odds of a good review."""
        bags = [sorted(set(r["prompt"] + r["chosen"])) for r in rows]
        starts = np.cumsum([0] + [len(bag) for bag in bags[:-1]])
        return self.w(torch.tensor(sum(bags, [])), torch.tensor(starts)).squeeze(1) + self.b

@torch.no_grad()
def scores(model, rows):
    return torch.cat([model(rows[i:i + BATCH]) for i in range(0, len(rows), BATCH)]).numpy()

def right(scores, rows):
    """(n,): 1 where the sign is the label's, ties half."""
    positive = np.array([r["label"] == 1 for r in rows])
    return measures.ties_half(np.where(positive, scores, -scores))

def main(argv=None):
    """Returns what reward.json holds."""
    args, begin = get_args(argv), time.time()
    tokenizer = data.get_tokenizer(args.data, args.bpe_vocab + 1)
    rows = labelled(args.data_dir, tokenizer, args.max_len, args.half)
    model, best, rng = Bag(tokenizer.n_vocab), (0, None), np.random.default_rng(args.seed)
    optimizer = torch.optim.Adam(model.parameters(), LR)
    for _ in range(EPOCHS):
        order = rng.permutation(len(rows["train"]))
        for at in range(0, len(order), BATCH):
            part = [rows["train"][i] for i in order[at:at + BATCH]]
            loss = F.binary_cross_entropy_with_logits(model(part), torch.tensor([float(r["label"]) for r in part]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        best = max((right(scores(model, rows["val"]), rows["val"]).mean(), scores(model, rows["test"])), best, key=lambda b: b[0])
    found, positive = best[1], np.array([r["label"] == 1 for r in rows["test"]])
    accuracy, (error, table) = measures.bootstrap(right(found, rows["test"])), calibration(1 / (1 + np.exp(-found)), positive)
    out_dir = Path(args.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    result = {"accuracy": accuracy, "calibration_error": error, "calibration": table, "n": len(positive)}
    write_json(out_dir / "result.json", {"seconds": time.time() - begin})
    write_json(out_dir / "reward.json", result)
    print(f"bag of words: accuracy on {len(positive):,} test reviews {accuracy[0]:.3f} [{accuracy[1]:.3f}, {accuracy[2]:.3f}]")
    return result

if __name__ == "__main__":
    main()
