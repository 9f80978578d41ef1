"""Commands that are wrong, hostile or clumsy, and what each must say: the rows of docs/trust.md.

A row is what is wrong, the arguments behind `rlhf`, a part of the sentence that must come, and what is done to the
folder before. `experiment=small` stands behind all arguments that do not begin with `!`.
"""

import json
import os
import shutil
from pathlib import Path

SANDBOX = "rlhf_lightning.sandbox.data.SandboxData"
PPO = "run=r upstream=done stages=[ppo]"


def write(name, text):
    def before(folder):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())

    return before


def rows_of(kind, *rows, rest=""):
    """A data folder with one file that is wrong."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    return write(f"data/{kind}.train.jsonl", "\n".join(lines) + "\n" + rest)


def cut(pattern, share=0.8):
    """Take away the last lines of a file, or the end of it."""

    def before(folder):
        path = next(folder.glob(pattern))
        content = path.read_bytes()
        lines = content.splitlines(keepends=True)
        short = (
            b"".join(lines[: int(len(lines) * share)])
            if path.suffix == ".jsonl"
            else content[: int(len(content) * share)]
        )
        path.write_bytes(short)

    return before


def flip(pattern):
    """Change one byte in the middle of a file."""

    def before(folder):
        path = next(folder.glob(pattern))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return before


def gone(*patterns):
    def before(folder):
        for pattern in patterns:
            for path in list(folder.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return before


def both(*steps):
    def before(folder):
        for step in steps:
            step(folder)

    return before


def dangling(folder):
    shutil.rmtree(folder / "runs/done/evaluate")
    (folder / "runs/done/evaluate").symlink_to(folder / "nowhere")


def fifo(folder):
    (folder / "data").mkdir()
    os.mkfifo(folder / "data/demonstrations.train.jsonl")


def not_a_step(folder: Path):
    (folder / "runs/mine/sft").mkdir(parents=True)
    (folder / "runs/mine/sft/thesis.txt").write_text("three years of work")


def endless_template(folder):
    shutil.copytree(next(folder.glob("runs/done/sft/model")), folder / "chat")
    loops = "".join("{% for a in range(99999) %}" for _ in range(3)) + 3 * "{% endfor %}"
    (folder / "chat" / "chat_template.jinja").write_text(loops)


DEMONSTRATION = {"prompt": "Say hello.", "response": "Hello."}
RANKING = {"prompt": "Say hello.", "completions": ["Hello.", "Go away."], "ranks": [1, 2]}
OWN = "! experiment=own"
SETTINGS = {
    "A key that no constructor knows": [
        ("a key at the top", "foo=1", "foo=1 is no setting", None),
        ("the same, added", "+foo=1", "foo", None),
        ("a misspelt key", "sft.fit.epoch=3", "did you mean sft.fit.epochs", None),
        ("the same, added", "+sft.fit.epoch=3", "did you mean sft.fit.epochs", None),
        ("a key without its node", "epochs=3", "fit.epochs", None),
        ("a misspelt step", "sfft.fit.epochs=3", "did you mean sft", None),
        ("a key in the wrong node", "++ppo.kl_coef=0.1", "ppo.module.kl_coef", None),
        ("a misspelt argument of PPO", "+ppo.module.kl_coeff=0.1", "did you mean ppo.module.kl_coef", None),
        ("of the data", "+sft.data.batchsize=3", "sft.data.batch_size", None),
        ("of the lengths", "+data.lengths.max_promt_tokens=5", "data.lengths.max_prompt_tokens", None),
        ("of the source", "+data.source.demonstration=3", "data.source.demonstrations", None),
        ("of the trainer", "+trainer.max_time_=1", "trainer.max_time", None),
        ("of the model", "+model.causal_lm.pth=x", "model.causal_lm.p", None),
        ("of sampling", "+collect.sampling.temprature=1", "collect.sampling.temperature", None),
        ("of step evaluate", "+evaluate.num_prompt=3", "evaluate.num_prompts", None),
        ("of adapters", "+reward.lora.rnk=3", "reward.lora.rank", None),
        ("of the optimizer", "+sft.module.optimizer.learning_rate=1", "sft.module.optimizer", None),
        ("of the folders", "+paths.run=x", "did you mean run", None),
        ("of a step that is not named", "+ppo_ptx.module.ptx_coeff=1", "ppo_ptx.module.ptx_coef", None),
        ("a group, added", "+logger=wandb", "logger=<option>", None),
        ("an experiment, added", "! +experiment=demo", "experiment=<option>", None),
    ],
    "An option that there is not": [
        ("a model", "model=gpt3", "did you mean gpt2", None),
        ("a variant of a step", "sft=nope", "sft has default", None),
        ("an experiment", "! experiment=demmo", "did you mean demo", None),
        ("a trainer", "trainer=tpu", "did you mean", None),
        ("a logger", "logger=wanb", "did you mean wandb", None),
        ("a data option", "data=jsonll", "did you mean jsonl", None),
        ("no option", "sft=null", "sft", None),
        ("a group that there is not", "modell=gpt2", "model", None),
    ],
    "A value of another type": [
        ("a word for a count", "sft.fit.epochs=two", "sft.fit.epochs", None),
        ("half an epoch", "sft.fit.epochs=1.5", "sft.fit.epochs", None),
        ("a word for the seed", "seed=abc", "seed", None),
        ("neither yes nor no", "overwrite=maybe", "overwrite", None),
        ("neither yes nor no", "plan=perhaps", "plan", None),
        ("a list for a number", "ppo.module.kl_coef=[1,2]", "ppo.module.kl_coef", None),
        ("a word for a rate", "sft.module.optimizer.lr=fast", "sft.module.optimizer.lr", None),
        ("a word for a switch", "ppo.module.whiten_scores=sometimes", "ppo.module.whiten_scores", None),
        ("a word for a count", "collect.prompts.train=all", "collect.prompts.train", None),
        ("a number for a mapping", "collect.prompts=5", "collect.prompts", None),
        ("nothing for a node", "ppo_init.data=null", "ppo_init.data", None),
        ("another form of export", "sft.export=zip", "sft.export", None),
        ("another engine", "generation.engine=fast", "generation.engine", None),
        ("a word for a count", "reward.bias_demonstrations=half", "reward.bias_demonstrations", None),
        ("a word for a switch", "sft.keep_epochs=sometimes", "sft.keep_epochs", None),
        ("a number for packages", "allowed_targets=5", "allowed_targets", None),
        ("a mapping for a name", "'run={a: 1}'", "run", None),
        ("a number for tags", "tags=5", "tags", None),
        ("a word for a length", "data.lengths.block_size=long", "data.lengths.block_size", None),
        ("a word in a pair", "sft.module.optimizer.betas=[a,b]", "sft.module.optimizer", None),
    ],
    "A value out of its range": [
        (what, f"{name}={value}", "sft.module.optimizer" if "optimizer" in name else name, None)
        for what, name, value in (
            ("gradient ascent", "ppo.module.max_grad_norm", "-1"),
            ("no clipping range", "ppo.module.clip_range", "0"),
            ("a moving average that never moves", "ppo.module.ema_decay", "1"),
            ("one that runs away", "ppo.module.ema_decay", "1.5"),
            ("a discount over 1", "ppo.module.discount", "1.5"),
            ("a discount below 0", "ppo.module.discount", "-0.1"),
            ("a lambda over 1", "ppo.module.gae_lambda", "2"),
            ("a reward for leaving the reference", "ppo.module.kl_coef", "-1"),
            ("no number", "ppo.module.kl_coef", "nan"),
            ("a pretraining gradient upwards", "ppo_ptx.module.ptx_coef", "-1"),
            ("temperature 0 in training", "ppo.module.temperature", "0"),
            ("no minibatch", "ppo.module.num_minibatches", "0"),
            ("no pass", "ppo.module.num_ppo_epochs", "0"),
            ("rows of none", "ppo.module.micro_batch_size", "0"),
            ("a limit that is always passed", "ppo.module.stop_kl", "0"),
            ("an untrained model", "sft.fit.epochs", "0"),
            ("never a checkpoint", "sft.fit.checkpoint_every", "0"),
            ("never a row of metrics", "reward.fit.log_every", "0"),
            ("batches of none", "sft.data.batch_size", "0"),
            ("all but the last rows", "sft.data.max_validation", "-5"),
            ("all but the last rankings", "reward.data.max_train", "-1"),
            ("all but the last prompts", "evaluate.num_prompts", "-1"),
            ("all but the last texts", "evaluate.num_texts", "-1"),
            ("all but the last prompts", "collect.prompts.train", "-2"),
            ("all but the last demonstrations", "reward.bias_demonstrations", "-3"),
            ("adapters of less than none", "sft.lora.rank", "-1"),
            ("a rate downwards", "sft.module.optimizer.lr", "-1"),
            ("an endless rate", "sft.module.optimizer.lr", "inf"),
            ("no Adam", "sft.module.optimizer.betas", "[1,2]"),
            ("more than all", "ppo_init.data.text_share", "1.5"),
            ("more than all dropped", "sft.residual_dropout", "1.5"),
            ("one response to rank", "collect.sampling.min_responses", "1"),
            ("a temperature below 0", "collect.sampling.temperature", "-1"),
            ("never sampled", "collect.sampling.rounds", "0"),
            ("a temperature below 0", "evaluate.temperature", "-1"),
            ("a seed below 0", "seed", "-1"),
            ("prompts of no token", "data.lengths.max_prompt_tokens", "0"),
            ("responses of less than none", "data.lengths.max_response_tokens", "-1"),
        )
    ],
    "Names": [
        ("a step that there is not", "stages=[sftt]", "did you mean sft", None),
        ("no step", "stages=[]", "stages", None),
        ("the policy's start, misspelt", "ppo.init=stf", "did you mean sft", None),
        ("the reference, misspelt", "ppo.reference=ppo_int", "did you mean ppo_init", None),
        ("the reward, misspelt", "ppo.reward=rewrd", "did you mean reward", None),
        ("a folder that there is not", "reward.init=./nope", "./nope", None),
        ("a policy, misspelt", "evaluate.policies=[bse,sft]", "did you mean base", None),
        ("the baseline, misspelt", "evaluate.baseline=sfft", "did you mean sft", None),
        ("an epoch that is not kept", "collect.policies=[sft/epoch-9]", "epoch-9", None),
        ("a variant that there is not", "collect.policies=[sft/rwa]", "rwa", None),
        ("a run that there is not", "upstream=nope run=new stages=[reward]", "nope", None),
        ("a metric of no step", "optimized_metric=foo.bar", "optimized_metric=foo.bar", None),
        ("a metric of no policy", "optimized_metric=evaluate.policies.pppo.score.value", "pppo", None),
        ("a run outside of the folder", "run=../x", "run", None),
        ("a run anywhere", "run=/abs", "run", None),
        ("an upstream outside", "upstream=..", "upstream", None),
        ("a step without what it reads", "run=new stages=[ppo]", "stages=[", None),
    ],
    "Data": [
        ("no folder named", "! data=jsonl", "data.root", None),
        ("no such folder", "! data=jsonl data.root=nope", "data.root=nope", None),
        ("demonstrations alone, for the whole recipe", OWN, "labelers", rows_of("demonstrations", DEMONSTRATION)),
        (
            "the paper's experiment on them",
            "! experiment=instructgpt_1.3b trainer=cpu data.root=data model.path=runs/done/sft/model",
            "text",
            rows_of("demonstrations", DEMONSTRATION),
        ),
        (
            "a broken line",
            f"{OWN} stages=[sft]",
            "demonstrations.train.jsonl, line 2",
            rows_of("demonstrations", DEMONSTRATION, "{"),
        ),
        (
            "a field that lacks",
            f"{OWN} stages=[sft]",
            "demonstrations.train.jsonl, line 1",
            rows_of("demonstrations", {"prompt": "x"}),
        ),
        (
            "bytes that are no text",
            f"{OWN} stages=[sft]",
            "demonstrations.train.jsonl",
            write("data/demonstrations.train.jsonl", b"\xff\xfe\x00{}\n"),
        ),
        ("an empty file", f"{OWN} stages=[sft]", "demonstrations", write("data/demonstrations.train.jsonl", "")),
        ("a pipe for a file", f"{OWN} stages=[sft]", "demonstrations.train.jsonl", fifo),
        (
            "two files for one split",
            f"{OWN} stages=[sft]",
            "Name one of them",
            both(
                rows_of("demonstrations", DEMONSTRATION),
                write("data/demonstrations.train.csv", "prompt,response\na,b\n"),
            ),
        ),
        (
            "ranks of another number",
            f"{OWN} stages=[reward] reward.init=base",
            "comparisons.train.jsonl, line 1",
            rows_of("comparisons", {**RANKING, "ranks": [1]}),
        ),
        (
            "10,000 responses in a ranking",
            f"{OWN} stages=[reward] reward.init=base",
            "comparisons.train.jsonl, line 1",
            rows_of(
                "comparisons",
                {**RANKING, "completions": [f"a{i}" for i in range(10_000)], "ranks": list(range(1, 10_001))},
            ),
        ),
        (
            "a kind that there is not",
            "! data=jsonl data.root=data +data.source.files.rankings.train=x.jsonl",
            "rankings",
            rows_of("demonstrations", DEMONSTRATION),
        ),
        (
            "a file that there is not",
            "! data=jsonl data.root=data data.source.files.demonstrations.train=x.jsonl",
            "x.jsonl",
            rows_of("demonstrations", DEMONSTRATION),
        ),
    ],
    "Models and objects": [
        ("no such folder", "model=folder model.path=/nope", "/nope", None),
        ("no path", "model=folder", "model.path", None),
        ("an empty folder", "model=folder model.path=empty", "empty", lambda folder: (folder / "empty").mkdir()),
        ("a hub id, offline", "model=gpt2 run=hub", "gpt2", None),
        (
            "code of strangers",
            "model=folder model.path=runs/done/sft/model model.causal_lm.trust_remote_code=true run=code",
            "allowed_targets",
            None,
        ),
        (
            "a chat template without an end",
            f"{OWN} model=folder model.path=chat stages=[sft]",
            "chat",
            both(rows_of("demonstrations", DEMONSTRATION), endless_template),
        ),
        ("a command for a class", "sft.module._target_=os.system", "allowed_targets", None),
        ("a class that there is not", "sft.module._target_=rlhf_lightning.Nope", "rlhf_lightning.Nope", None),
        ("a file of a reward that there is not", "ppo.reward=nofile:score run=r stages=[sft,ppo]", "nofile", None),
        ("a reward that is none", f"ppo.reward={{_target_:{SANDBOX}}} {PPO}", "ppo.reward must be a function", None),
        ("a model that writes as a reward", f"ppo.reward=./runs/done/sft/model {PPO}", "a sequence classifier", None),
        ("an address without a host", f"ppo.reward={{url:nope}} {PPO}", "http(s)://host/", None),
        ("a key that is not set", f"\"ppo.reward={{url:'http://x/y',api_key_env:NO_KEY}}\" {PPO}", "NO_KEY", None),
        (
            "a template without the response",
            f"'ppo.reward={{path: runs/done/reward/model, template: x}}' {PPO}",
            "{response}",
            None,
        ),
        ("an optimizer made too early", "sft.module.optimizer._partial_=false", "_partial_: true", None),
        ("a schedule made too early", "sft.module.scheduler._partial_=false", "_partial_: true", None),
        ("a layer that there is not", "sft.lora={rank:2,targets:[nope]} run=r stages=[sft]", "nope", None),
        (
            "a function that there is not",
            "ppo.reward=mine:nope run=r stages=[sft,ppo]",
            "nope",
            write("mine.py", "def score(responses):\n    return [1.0 for _ in responses]\n"),
        ),
        (
            "a field that no record has",
            "ppo.reward=mine:score run=r stages=[sft,ppo]",
            "salary",
            write("mine.py", "def score(responses, salary):\n    return [1.0 for _ in responses]\n"),
        ),
        (
            "a fault in your own code",
            "ppo.reward=mine:score run=r upstream=done stages=[ppo]",
            "mine.py",
            write("mine.py", "def score(responses):\n    return 1 / 0\n"),
        ),
        (
            "a fault before that code runs",
            "ppo.reward=mine:score run=r stages=[sft,ppo]",
            "mine.py",
            write("mine.py", "def score(responses:\n"),
        ),
        (
            "a score too few",
            "ppo.reward=mine:score run=r upstream=done stages=[ppo]",
            "scores",
            write("mine.py", "def score(responses):\n    return [1.0]\n"),
        ),
        (
            "a score that is none",
            "ppo.reward=mine:score run=r upstream=done stages=[ppo]",
            "finite",
            write("mine.py", "def score(responses):\n    return [float('nan')] * len(responses)\n"),
        ),
        (
            "nobody at that address",
            "ppo.reward=http://127.0.0.1:9/score run=r upstream=done stages=[ppo]",
            "127.0.0.1:9",
            None,
        ),
    ],
    "Folders of runs": [
        ("other settings", "stages=[sft] sft.data.batch_size=3", "sft.data.batch_size", None),
        ("a torn stage.json", "stages=[sft]", "stage.json", cut("runs/done/sft/stage.json", 0.5)),
        ("a stage.json that was lost", "stages=[sft]", "stage.json", gone("runs/done/sft/stage.json")),
        ("somebody's folder", "stages=[sft] run=mine", "stage.json", not_a_step),
        ("a file for a folder", "stages=[sft] run=mine", "mine", write("runs/mine", "x")),
        ("a file for all runs", "paths.runs=afile", "afile", write("afile", "x")),
        ("a link to nowhere", "stages=[evaluate]", "evaluate", dangling),
        (
            "rankings that were lost later",
            "stages=[reward] run=new upstream=done",
            "comparisons.train.jsonl",
            cut("runs/done/collect/comparisons.train.jsonl"),
        ),
        (
            "weights that changed later",
            "stages=[ppo] run=new upstream=done",
            "reward/model",
            flip("runs/done/reward/model/*.safetensors"),
        ),
        (
            "weights that were lost later",
            "stages=[ppo] run=new upstream=done",
            "sft/model",
            gone("runs/done/sft/model/*.safetensors"),
        ),
    ],
    "The command line and the machine": [
        ("a brace that is not closed", "'sft.data={batch_size: 4'", "no override of Hydra", None),
        ("a flag that there is not", "--foo", "--foo", None),
        ("a pickle to run again", "--experimental-rerun=x.pickle", "pickle", None),
        ("another primary file", "--config-name=nope", "nope", None),
        ("a GPU that is not there", "trainer=gpu run=gpu", "trainer.accelerator", None),
        ("more devices than processes", "trainer.devices=2", "torchrun", None),
        ("no device", "trainer.devices=0", "trainer.devices", None),
        ("weights that learn in 16 bits", "trainer.precision=16-true", "trainer.precision", None),
        ("a length for the trainer", "+trainer.max_epochs=3", "sft.fit.epochs", None),
        ("batches that add up", "+trainer.accumulate_grad_batches=2", "accumulate_grad_batches", None),
        ("a sweep in which a job is wrong", "-m stages=[sft] run=swept sft.fit.epochs=0,1", "at least 1, got 0", None),
    ],
}
