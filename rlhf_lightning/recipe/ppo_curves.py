"""What the report draws of a run of PPO."""

from rlhf_lightning.evaluation.plots import Curve

PPO_CURVES = (
    Curve("Score of the reward", "score", {"mean": "rollout/score"}),
    Curve("Validation prompts", "score", {"by the reward": "validation/score", "by the judge": "validation/judge"}),
    Curve("KL to the reference", "nats per response", {"k1": "rollout/kl", "k3": "rollout/kl_k3"}),
    Curve("Length", "tokens", {"mean": "rollout/length"}),
    Curve("Responses that end by themselves", "share of responses", {"share": "rollout/ended"}),
    Curve("Pretraining loss", "nats per token", {"train": "update/ptx_loss"}),
    Curve("Clipped tokens", "share of tokens", {"share": "update/clip_fraction"}),
    Curve("Change of the policy per iteration", "nats per token", {"approximate KL": "update/approx_kl"}),
    Curve("Value loss", "score squared", {"mean": "update/value_loss"}),
    Curve("Explained variance of the value", "share of variance", {"share": "rollout/explained_variance"}),
    Curve("Gradient norms", "norm", {"policy": "update/policy_grad_norm", "value": "update/value_grad_norm"}),
    Curve("Parts of the policy gradient", "norm", {"PPO": "update/ppo_grad_norm", "ptx": "update/ptx_grad_norm"}),
    Curve("Angle between the two parts", "cosine", {"cosine": "update/grad_cosine"}),
    Curve("KL coefficient", "score per nat", {"coefficient": "rollout/kl_coef"}, constant=False),
    Curve(
        "Time per iteration",
        "seconds",
        {phase: f"time/{phase}_seconds" for phase in ("update", "rollout", "score", "ptx")},
    ),
)
