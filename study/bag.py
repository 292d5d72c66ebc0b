"""
A linear bag of words: the baseline of the reward models of film reviews.

    python -m study.bag --data imdb --data_dir reviews --half first    # a minute

Writes reward.json as rlhf/train_reward.py does, and result.json. docs/real-text.md compares both.

    log-odds of a good review = b + sum of w[token] over the different tokens of the review

Order and number of a token's occurrences do not count. Read next: table.py
"""
import copy
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import data
from rlhf.train_reward import evaluate_log_odds, hits, load_labeled_reviews, positive
from support import cli
from support.checkpoint import write_json

EPOCHS, BATCH, LR = 12, 64, 1e-2

def get_args(argv=None):
    p = cli.Parser(__doc__)
    p.add_argument("--data", choices=["imdb"], default="imdb", help="the data set (default: %(default)s)")
    p.add_argument("--data_dir", help="folder with its files, instead of the hub")
    p.add_argument("--half", choices=("first", "second"), help="learn from this half of the labels (default: from all)")
    p.add_argument("--max_len", type=cli.positive, default=4096,
                   help="tokens read of a review, from its beginning (default: %(default)s)")
    p.add_argument("--bpe_vocab", type=cli.positive, default=8192,
                   help="size of the vocabulary: the first of GPT-2's byte pairs (default: %(default)s)")
    p.add_argument("--out_dir", default="out/imdb/bag", help="folder to write into (default: %(default)s)")
    p.add_argument("--seed", type=cli.seed, default=0, help="of the order of the reviews (default: %(default)s)")
    return p.parse_args(argv)

class Bag(torch.nn.Module):
    """w, one weight a token, and b. Both start at 0."""
    def __init__(self, n_vocab):
        super().__init__()
        self.w, self.b = torch.nn.EmbeddingBag(n_vocab, 1, mode="sum"), torch.nn.Parameter(torch.zeros(()))
        torch.nn.init.zeros_(self.w.weight)

    def forward(self, bags):
        """A list of n lists of different tokens -> (n,) log-odds of a good review."""
        starts = np.cumsum([0] + [len(bag) for bag in bags[:-1]])
        return self.w(torch.tensor(sum(bags, [])), torch.tensor(starts)).squeeze(1) + self.b

@torch.no_grad()
def scores(model, bags):
    """(n,): the log-odds of n reviews as an array."""
    return torch.cat([model(bags[i:i + BATCH]) for i in range(0, len(bags), BATCH)]).numpy()

def fit(model, bags, rows, rng):
    """Trains the model, which ends with the weights of the epoch of best validation accuracy, the last of equals."""
    best, weights = 0, None
    optimizer = torch.optim.Adam(model.parameters(), LR)
    for _ in range(EPOCHS):
        order = rng.permutation(len(bags["train"]))
        for at in range(0, len(order), BATCH):
            part = order[at:at + BATCH]
            labels = torch.tensor([float(rows["train"][i]["label"]) for i in part])
            loss = F.binary_cross_entropy_with_logits(model([bags["train"][i] for i in part]), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        accuracy = hits(scores(model, bags["val"]), positive(rows["val"])).mean()
        if accuracy >= best:
            best, weights = accuracy, copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)

def train(args):
    """Trains and judges a bag of words. Returns the contents of reward.json."""
    begin = time.time()
    tokenizer = data.get_tokenizer(args.data, args.bpe_vocab + 1)
    rows = load_labeled_reviews(args.data_dir, tokenizer, args.max_len, args.half)
    bags = {}
    for split, part in rows.items():
        bags[split] = [sorted(set(r["prompt"] + r["chosen"])) for r in part]
    model = Bag(tokenizer.n_vocab)
    fit(model, bags, rows, np.random.default_rng(args.seed))
    found = evaluate_log_odds(scores(model, bags["test"]), positive(rows["test"]))
    out_dir = Path(args.out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    write_json(out_dir / "reward.json", found)
    write_json(out_dir / "result.json", {"seconds": time.time() - begin})
    accuracy, low, high = found["accuracy"]
    print(f"bag of words: accuracy on {found['n']:,} test reviews {accuracy:.3f} [{low:.3f}, {high:.3f}]")
    return found

def main(argv=None):
    """Returns the contents of reward.json."""
    args = get_args(argv)
    with cli.interruptible("-m study.bag", args, argv), cli.bad_input():
        return train(args)

if __name__ == "__main__":
    main()
