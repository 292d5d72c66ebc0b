"""Planted faults of win rates at equal length, of the strengths of runs, and of the arena that judges them."""

FILE = "winrates.py"
HAND = "test_winrates.py::test_length_controlled_by_hand"
MEAN = "test_winrates.py::test_equal_length_is_not_mean_length"
OPTIMIZER = "test_winrates.py::test_length_controlled_equals_a_general_optimizer"
PLANTED = "test_winrates.py::test_planted_parameters_are_found"
EXTREME = "test_winrates.py::test_extreme_votes_stay_finite"
COVERED = "test_winrates.py::test_the_interval_covers_the_planted_win_rate"
TWO = "test_winrates.py::test_two_runs_by_hand"
STRONGER = "test_winrates.py::test_more_wins_make_a_run_stronger_and_the_mean_is_0"
PROMPTS = "test_winrates.py::test_prompts_are_resampled_and_not_answers"
VOTES = "test_winrates.py::test_strengths_from_votes_by_hand"
ARENA = "test_arena.py::test_an_arena_by_hand"
ARENA_VOTES = "test_arena.py::test_votes_by_hand"
REFUSED = "test_arena.py::test_runs_that_cannot_meet_are_refused"
JUDGED = "test_arena.py::test_a_judging_has_the_win_rate_at_equal_length"

FAULTS = {
    # length
    "the length regression has the wrong sign": (FILE, "torch.tanh(d / std)", "torch.tanh(-d / std)", PLANTED),
    "the win rate is that at the mean length": (FILE, "torch.sigmoid(w[:, 0])", "torch.sigmoid(w @ features.mean(0))", MEAN),
    "the win rate is the mean prediction": (FILE, "torch.sigmoid(w[:, 0])", "torch.sigmoid(w @ features.T).mean(1)", MEAN),
    "lengths are centered": (FILE, "torch.tanh(d / std)", "torch.tanh((d - d.mean()) / std)", MEAN),
    "no tanh": (FILE, "torch.tanh(d / std)", "(d / std)", OPTIMIZER),
    "ties are losses": (FILE, "features, v, resampled", "features, v.floor(), resampled",
                        "test_winrates.py::test_a_tie_is_half_a_win_and_half_a_loss"),
    "theta has the ridge too": (FILE, "[1e-6, ridge]", "[ridge, ridge]", EXTREME),
    "no ridge on gamma": (FILE, "[1e-6, ridge]", "[1e-6, 0]", EXTREME),
    "equal lengths are divided by 0": (FILE, " if std > 0 else torch.zeros_like(d)", "", EXTREME),
    "the interval is one standard error": (FILE, "[2.5, 97.5]", "[16, 84]", COVERED),
    "a gradient without its weights": (FILE, "(weights * (votes - p))", "(votes - p)", COVERED),
    "a point estimate is enough for an effect": (FILE, "if gamma[1] > 0:", "if gamma[0] > 0:",
                                                    "test_winrates.py::test_the_effect_of_length_in_words"),
    "lengths of the other side": (FILE, "torch.tanh(d / std)", "torch.tanh(d.abs() / std)",
                                  "test_winrates.py::test_swapped_sides_swap_the_win_rate"),
    # strengths
    "wins and losses are exchanged": (FILE, "features, won / (won + lost)", "features, lost / (won + lost)", STRONGER),
    "strengths are not centered": (FILE, "found - found.mean(1, keepdim=True)", "found", STRONGER),
    "an unbeaten run has no prior": (FILE, "several[:, i, j] + prior", "several[:, i, j]", TWO),
    "the prior is for the stronger side alone": (FILE, "several[:, j, i] + prior", "several[:, j, i]", TWO),
    "games do not count": (FILE, "won / (won + lost), won + lost,", "won / (won + lost), torch.ones_like(won),",
                           "test_winrates.py::test_strengths_equal_those_of_another_algorithm"),
    "one direction of a pair connects runs": (FILE, "(several + several.mT).sum(0)", "several.sum(0)",
                                              "test_winrates.py::test_runs_that_were_never_compared_are_refused"),
    "never compared is taken for equal": (FILE, "    if not reached.all():", "    if False:",
                                          "test_winrates.py::test_runs_that_were_never_compared_are_refused"),
    "answers are resampled instead of prompts": (
        FILE, 'torch.einsum("rp,pij->rij", counts, votes.nan_to_num(0.0))',
        "torch.stack([torch.stack([resampled(len(votes), n, 9 * min(a, b) + max(a, b)) @ votes.nan_to_num(0.0)[:, a, b] "
        "for b in range(votes.shape[1])], 1) for a in range(votes.shape[1])], 1)", PROMPTS),
    "an unreadable vote is a tie": (FILE, "votes.nan_to_num(0.0)", "votes.nan_to_num(0.5)", VOTES),
    # the arena
    "one order only is counted": ("arena.py", 'for key in (first, second)))])', 'for key in (first, first)))])', ARENA_VOTES),
    "a soft vote of one order only": ("arena.py", "(soft[first] + 1 - soft[second]) / 2", "soft[first]", ARENA_VOTES),
    "the other order's soft vote is not turned": ("arena.py", "1 - soft[second]", "soft[second]", ARENA_VOTES),
    "a flip is no vote": ("arena.py", '"flip": 0.5', '"flip": None', ARENA_VOTES),
    "an unreadable pair is a loss": ("arena.py", '"invalid": None', '"invalid": 0.0',
                                     "test_arena.py::test_an_unreadable_answer_is_no_vote"),
    "the vote is for both runs": ("arena.py", "column, 1 - column", "column, column", ARENA),
    "the weakest run is first": ("arena.py", "-item[1][0]", "item[1][0]", ARENA),
    "the lengths of the other answer come first": (
        "arena.py", '(vote, len(s["after"].strip()) - len(s[against].strip()))',
        '(vote, len(s[against].strip()) - len(s["after"].strip()))', JUDGED),
    "the raw win rate is shown as the one at equal length": (
        "arena.py", '{"raw": raw, **length_controlled(votes, differences)}',
        '{"raw": raw, **length_controlled(votes, differences), "win_rate": raw}', JUDGED),
    "a run may meet itself": ("arena.py", "len({Path(run).resolve() for run in runs})", "len(set(runs))", REFUSED),
    "prompts may differ": ("arena.py", "if prompts[run] != prompts[runs[0]]:", "if len(prompts[run]) != len(prompts[runs[0]]):",
                           REFUSED),
    "temperatures may differ": ("arena.py", 'if one["temperature"] != first["temperature"]:', "if False:", REFUSED),
    "a ranking from some of the answers": (
        "arena.py", "        check_answers(asked, known, failures, path, args.verdict)", "        pass",
        "test_arena.py::test_a_ranking_needs_all_answers"),
    "neighbors alone meet": ("arena.py", "in combinations(answers, 2)", "in zip(answers, list(answers)[1:])", ARENA),
    # the study of biased judges
    "filler has an opinion": ("study/judges.py", "toy.opening(rng)", "toy.opinion(rng, True)",
                              "test_judge_bias.py::test_filler_says_nothing_and_is_fixed_by_its_seed"),
    "equal evidence has a winner": ("study/judges.py", "return round(log_odds(prompt, answer), 9)",
                                    "return log_odds(prompt, answer)",
                                    "test_judge_bias.py::test_equal_reviews_tie_whatever_the_order_of_their_sentences"),
    "one order is the other order": ("study/judges.py", "verdict in verdicts[::2]])", "verdict in verdicts[1::2]])",
                                     "test_judge_bias.py::test_a_study_by_hand"),
    "filler behind both": ("study/judges.py", "fuller = {run: answers[run],", "fuller = {run: filled(answers[run], 1),",
                           "test_judge_bias.py::test_a_study_by_hand"),
}
