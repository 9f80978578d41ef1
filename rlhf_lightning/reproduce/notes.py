"""What was found out after the runs about claims that do not hold; the rules, written before, are with the claims."""

from collections.abc import Mapping

NOTES: Mapping[int, str] = {
    1: "The order holds but for one step: the large base model answers almost as well without examples as with "
    "them, and three seeds cannot tell its two win rates apart. In the small and the medium model the examples "
    "are worth four to five points.",
    4: "The directions are the paper's in every size. That “no comment” makes the small and the medium policy more "
    "truthful than GPT is not shown: with one seed of three each goes on answering, and its answers are often "
    "false. The large policy says “no comment” with every seed.",
    5: "The biased prompt leaves little room above GPT, which is rude nine times in ten there already. The small "
    "policy is ruder with every seed, the medium and the large one with two seeds of three.",
    8: "The best coefficient lies inside the range and 2 is clearly worse. 50 iterations are too few to "
    "overoptimise at 0: its Likert score is the lower one, by less than its interval.",
    9: "Shuffled pairs do show the mark of overfitting: their accuracy in training is above that on validation "
    "rankings, which it is not for whole rankings. But they also learn faster, for a batch of pairs mixes "
    "responses of some hundred prompts and one of whole rankings those of sixteen. After 6,000 rankings both "
    "models still learn, and the faster one is ahead. What whole rankings save is time: each response is read "
    "once, not K - 1 times.",
    10: "Reward models predict a team that they never saw as well as their own, so there is no gap to find: the "
    "tastes of the simulated teams differ less than those of people do. The other half of the claim, that the "
    "gap is small, holds.",
    11: "SFT overfits, and goes on improving by the reward model and in truth, as in the paper. Its validation loss "
    "turns later, between epochs 4 and 8 instead of after the first: 1,500 short demonstrations take a model of "
    "this size longer to memorise.",
    12: "SFT has already raised the pretraining loss of the small model from 1.069 to between 1.47 and 1.59, which "
    "the paper does not see in its large ones. 50 iterations bring it back to about 1.14 with any number of "
    "text rows, a little lower with more: they hold it far below where PPO started, but above GPT. The other "
    "half of the claim, that the mix of the start hardly matters, holds.",
}
"""By number of the claim: our best explanation."""
