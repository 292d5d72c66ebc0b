"""
Iterative preference optimization: each round's pairs are sampled from the policy as it is by then.

    python train_pref.py --loss dpo --rounds 4                # the reference stays the model that training started from
    python train_pref.py --loss dpo --rounds 4 --sync_ref     # the reference is the policy at the start of the round

Offline training samples all pairs before the first update, from the model that training starts from. The policy moves
away from that model, and soon no pair says which of its own completions are better. In R rounds:

    for each round r = 1, ..., R:
        sample k completions of each prompt of part r from the current policy, and make ranked pairs    sampling.py
        compute the reference's log-probs of these pairs                                                reference.py
        make 1 / R of the run's updates, on these pairs alone

Prompts, samples and updates are as many as offline. DPO in rounds is Iterative DPO: Xu et al. 2023, arXiv:2312.16682;
Xiong et al. 2023, arXiv:2312.11456. Guo et al. 2024, arXiv:2402.04792, sample anew for every update. Gorbatovski et al.
2024, arXiv:2404.09656, move the reference during training. docs/recipes.md describes runs in rounds.

Writes pairs-round-<r>.jsonl and, when they are complete, round-<r>.json into the run directory. A resumed run reads
both. Round 1 is sampled before training, as offline. Read first: sampling.py, reference.py. Read next: train_pref.py
"""
import random
from pathlib import Path

import torch

import data
import sampling
from model import fingerprint
from support import cli, parallel
from support.round_files import read_mark, run_id, write_mark

def add_flags(p):
    """--rounds and --sync_ref."""
    p.add_argument("--rounds", type=cli.positive, default=1,
                   help="toy, imdb: parts of the run; each samples its pairs from the policy as it is by then")
    p.add_argument("--sync_ref", action="store_true",
                   help="the reference of each round is the policy at its start, not the model to start from")

def check_flags(p, args):
    """Refuses rounds on data whose pairs are not sampled, and rounds that are not equal."""
    cli.refuse(p, args, (("sync_ref", args.rounds > 1, "without --rounds 2 or more"),))
    if args.rounds > 1 and not args.n_prompts:
        p.error(f"--rounds {args.rounds} needs pairs that are sampled: --data toy or imdb")
    for flag in ("max_steps", "n_prompts"):
        n = getattr(args, flag) or 0
        if n % args.rounds:
            p.error(f"--rounds {args.rounds}: --{flag} {n} cannot be divided into equal rounds; "
                    f"{max(1, n // args.rounds) * args.rounds} can")

class Rounds:
    """
    rounds[i] is batch i of the run. The first batch of a round samples its pairs from the model, as it is by then.

    ranked_by        a reward.Reward
    first            the data.Batches of round 1, whose pairs were sampled before training
    batches_of       a function of rows: their data.Batches
    add_reference    a function of data.Batches that writes the reference's log-probs into their rows; or None
    gaps             whether the loss needs the rewards of both completions. The other arguments are flags
    """
    def __init__(self, model, tokenizer, ranked_by, first, batches_of, add_reference, *, gaps, rounds, max_steps,
                 grad_accum, out_dir, data, n_prompts, max_len, seed, data_dir, prompt_tokens, labels, label_noise):
        self.model, self.tokenizer, self.ranked_by, self.label_noise = model, tokenizer, ranked_by, label_noise
        self.batches, self.batches_of, self.add_reference = first, batches_of, add_reference
        self.gaps, self.number, self.length = gaps, 1, max_steps // rounds * grad_accum    # of a round: batches
        self.out_dir, self.run, self.seed = Path(out_dir), run_id(out_dir), seed
        self.nats = ranked_by.nats if labels == "bradley_terry" else None
        prompts, self.room = sampling.prompts_for(data, tokenizer, n_prompts, max_len=max_len, seed=seed,
                                                  data_dir=data_dir, prompt_tokens=prompt_tokens)
        self.prompts, self.size = prompts["train"], len(prompts["train"]) // rounds    # of a round: prompts

    def at(self, i):
        """(the Batches of the round of batch i, the number of this batch within the round)."""
        number, i = divmod(i, self.length)
        if number + 1 != self.number:
            self.batches, self.number = self.begin(number + 1, at_start=i == 0), number + 1
        return self.batches, i

    def __getitem__(self, i):
        batches, i = self.at(i)
        return batches[i]

    def one_by_one(self, i):
        """The rows of batch i, as pairs of a row's number and a batch of this row alone."""
        batches, i = self.at(i)
        return batches.one_by_one(i)

    def begin(self, number, at_start):
        """The Batches of a round. at_start: whether the model is still the policy that samples the round's pairs."""
        was_training = self.model.training
        self.model.eval()
        try:
            # Loading a reference draws random numbers. A resumed run may not load one, and its dropout must be the same
            with torch.random.fork_rng(devices=[]):
                return self.read_or_sample(number, at_start)
        except ValueError as e:
            raise SystemExit(f"error: round {number}: {e}") from None
        finally:
            self.model.train(was_training)

    def read_or_sample(self, number, at_start):
        """begin, with the model in eval mode. Raises ValueError if the pairs can be neither read nor sampled."""
        pairs, mark = self.out_dir / f"pairs-round-{number}.jsonl", self.out_dir / f"round-{number}.json"
        seed = random.Random(f"round {self.seed} {number}").randrange(2**31)    # other noise than in other rounds
        about = {"round": number, "batches": self.length, "run": self.run}
        if at_start and parallel.rank() == 0:    # with several processes the first one samples for all
            about["policy"] = fingerprint(self.model)
            if read_mark(mark, pairs, about) is None:    # also after a kill, and if the weights differ from before it
                mark.unlink(missing_ok=True)
                prompts = {"train": self.prompts[(number - 1) * self.size:number * self.size]}
                sampling.write_pairs(pairs, self.model, self.tokenizer, prompts, self.ranked_by,
                                     max_new_tokens=self.room, seed=seed, nats=self.nats)
        parallel.wait()
        known = read_mark(mark, pairs, about)
        if known is None and not at_start:
            raise ValueError(f"{mark} or {pairs.name} is missing, damaged or of another run, and the policy that "
                             "sampled these pairs has been trained further: start a new run")
        rows = sampling.read_pairs(pairs, self.tokenizer.n_vocab, self.gaps)["train"]
        data.flip_labels(rows, self.label_noise, seed)
        batches = self.batches_of(rows)
        for row, logps in zip(rows, known or []):
            row.update(logps)
        if known is None and self.add_reference:
            self.add_reference(batches)
        if known is None and parallel.rank() == 0:
            write_mark(mark, pairs, about, [{f: row[f] for f in row if f.startswith("ref_")} for row in rows])
        return batches
