"""Loggers and callbacks of the user stand beside ours; what the recipe sets is refused in the trainer's node."""

import csv
import importlib.util
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger

from rlhf_lightning.cli import CONFIG_DIR
from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.data.records import Demonstration
from rlhf_lightning.modules.language_model import LanguageModelModule
from rlhf_lightning.runs.files import read_metrics
from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.runs.targets import builder
from rlhf_lightning.training.fit import fit_stage
from rlhf_lightning.training.surroundings import check_trainer, user_callbacks, user_loggers

RECORDS = [Demonstration(f"w{3 + n} w{4 + n}", f"w{5 + n} w{6 + n}") for n in range(12)]
BUILD = builder([])
CSV = {"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "more", "version": ""}
STOPPING = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "validation/loss"}


def option(group: str, name: str) -> dict[str, Any]:
    text = (Path(CONFIG_DIR) / group / f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text) or {}


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed (extra {package})")


class TwoModels(L.LightningModule):
    """Two optimizers stepped by hand, as in PPO."""

    def __init__(self, schedules: bool) -> None:
        super().__init__()
        self.automatic_optimization, self.schedules = False, schedules
        self.policy, self.value = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)

    def configure_optimizers(self) -> Any:
        optimizers = [torch.optim.SGD(self.policy.parameters(), lr=0.5), torch.optim.SGD(self.value.parameters(), lr=2)]
        decay = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 0.5**step)
        return (optimizers, [decay(one) for one in optimizers]) if self.schedules else optimizers

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.step()
        for scheduler in self.lr_schedulers() or []:  # type: ignore[union-attr]
            scheduler.step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing to measure."""


@pytest.fixture
def fit(tiny_gpt2: Any, tiny_tokenizer: Any) -> Callable[..., list[str]]:
    def run(folder: Path, *callbacks: L.Callback, **options: Any) -> list[str]:
        said: list[str] = []
        module = options.pop("module", None) or LanguageModelModule(tiny_gpt2, partial(torch.optim.SGD, lr=0.25))
        validation = RECORDS[:4] if options.pop("validation", True) else None
        data = RLHFDataModule("sft", tiny_tokenizer, RECORDS, validation, batch_size=4)
        counts = {"epochs": 3, "checkpoint_every": 1, "log_every": 1}
        fit_stage(
            module, data, folder, partial(L.Trainer, accelerator="cpu"), callbacks, said.append, **counts, **options
        )
        return said

    return run


def test_a_logger_of_the_user_gets_every_metric_beside_ours(fit: Any, tmp_path: Path) -> None:
    loggers = user_loggers({"more": CSV, "none": None}, BUILD, tmp_path, ["a"])
    fit(tmp_path, loggers=loggers, hyperparameters={"lr": 0.25, "hub_token": "hf_secret"}, tags=["a", "b"])
    ours, theirs = (read_metrics(path) for path in (tmp_path / "metrics.csv", tmp_path / "logs/more/metrics.csv"))
    assert [row["train/loss"] for row in ours if "train/loss" in row] == [
        row["train/loss"] for row in theirs if "train/loss" in row
    ]
    assert {name for row in ours for name in row} == {name for row in theirs for name in row}
    hyperparameters = yaml.safe_load((tmp_path / "logs/more/hparams.yaml").read_text())
    assert hyperparameters.items() >= {"lr": 0.25, "hub_token": "(redacted)", "tags": ["a", "b"]}.items()


@pytest.mark.parametrize("nodes", [CSV, [CSV], {"one": CSV}, [{"one": CSV}, None], [None, [CSV]]])
def test_nodes_come_alone_by_name_or_in_lists(nodes: Any, tmp_path: Path) -> None:
    (logger,) = user_loggers(nodes, BUILD, tmp_path)
    assert isinstance(logger, CSVLogger)
    assert logger.save_dir == str(tmp_path / "logs")


def test_a_folder_of_the_users_own_stays(tmp_path: Path) -> None:
    (logger,) = user_loggers({**CSV, "save_dir": str(tmp_path / "mine")}, BUILD, tmp_path / "step")
    assert logger.save_dir == str(tmp_path / "mine")


def test_nothing_there_is_no_logger_and_no_callback(tmp_path: Path) -> None:
    for nodes in (None, {}, [], [None, {}], option("logger", "csv"), option("callbacks", "default")):
        assert user_loggers(nodes, BUILD, tmp_path) == user_callbacks(nodes, BUILD) == []
    assert not list(tmp_path.iterdir())


def test_what_is_no_logger_is_refused(tmp_path: Path) -> None:
    for make in (partial(user_loggers, folder=tmp_path), user_callbacks):
        with pytest.raises(PipelineError, match=r"os\.system is neither"):
            make({"_target_": "os.system", "command": "true"}, build=BUILD)


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("max_epochs", 3, r"trainer\.max_epochs=3 .* sft\.fit\.epochs"),
        ("max_steps", 10, r"trainer\.max_steps=10 .* ppo\.data\.num_batches"),
        ("enable_checkpointing", True, r"trainer\.enable_checkpointing=True .* sft\.fit\.checkpoint_every"),
        ("log_every_n_steps", 1, r"sft\.fit\.log_every"),
        ("fast_dev_run", True, "debug=fast"),
        ("precision", "bf16-true", r"precision=bf16-true: weights in 16 bits .*precision=bf16-mixed"),
        ("precision", "16-true", r"precision=16-true"),
        ("precision", 16, r"precision=16: .* scaled gradients"),
        ("precision", "16-mixed", r"precision=16-mixed"),
        ("precision", "transformer-engine", r"precision=transformer-engine"),
        ("accumulate_grad_batches", 2, r"accumulate_grad_batches=2 is not the gradient of one large batch"),
    ],
)
def test_what_the_recipe_sets_is_refused_with_where_to_set_it(name: str, value: Any, instead: str) -> None:
    with pytest.raises((PipelineError, ValueError), match=instead):
        check_trainer({"_target_": "lightning.Trainer", name: value})


@pytest.mark.parametrize("name", [path.stem for path in (Path(CONFIG_DIR) / "trainer").glob("*.yaml")])
def test_the_shipped_trainers_are_not_refused(name: str) -> None:
    for precision in (None, 32, "bf16-mixed", "64-true"):
        check_trainer({"precision": precision})
    check_trainer({**option("trainer", name), "limit_train_batches": 2, "accumulate_grad_batches": 1, "logger": CSV})


@pytest.mark.parametrize("name", sorted(path.stem for path in (Path(CONFIG_DIR) / "callbacks").glob("*.yaml")))
def test_the_shipped_callbacks_train(fit: Any, tmp_path: Path, name: str) -> None:
    callbacks = user_callbacks(option("callbacks", name), BUILD)
    assert len(callbacks) == (name not in ("default", "none"))
    assert fit(tmp_path, *callbacks) == []
    assert read_metrics(tmp_path / "metrics.csv")


def test_a_callback_that_ends_a_step_does_and_it_is_said(fit: Any, tmp_path: Path) -> None:
    (stopping,) = user_callbacks({**STOPPING, "stopping_threshold": 1e9}, BUILD)
    assert fit(tmp_path, stopping) == [
        "ended after 3 batches, before its time, as a callback or trainer.max_time wanted"
    ]


def test_a_metric_that_a_step_lacks_is_named_and_stops_nothing(fit: Any, tmp_path: Path) -> None:
    (stopping,) = user_callbacks(STOPPING, BUILD)
    assert fit(tmp_path / "lenient", stopping, validation=False) == [
        "EarlyStopping did nothing: it watches validation/loss, which this step does not log"
    ]
    strict = user_callbacks({**STOPPING, "strict": True, "check_on_train_epoch_end": True}, BUILD)
    assert isinstance(strict[0], EarlyStopping)
    with pytest.raises(RuntimeError, match="which is not available"):
        fit(tmp_path / "strict", *strict, validation=False)


def test_checkpoints_of_the_user_stand_beside_ours(fit: Any, tmp_path: Path) -> None:
    fit(tmp_path, ModelCheckpoint(tmp_path / "best", monitor="validation/loss"))
    assert len(list((tmp_path / "best").glob("*.ckpt"))) == 1
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("schedules", [True, False])
def test_the_rates_of_every_optimizer_are_logged(fit: Any, tmp_path: Path, schedules: bool) -> None:
    monitors = user_callbacks(option("callbacks", "lr_monitor"), BUILD)
    fit(tmp_path, *monitors, module=TwoModels(schedules), validation=False)
    for name, lr in (("policy", 0.5), ("value", 2.0)):
        rows = [row[f"lr/{name}"] for row in read_metrics(tmp_path / "metrics.csv") if f"lr/{name}" in row]
        expected = [lr * 0.5**step if schedules else lr for step in range(9)]
        assert rows == [rate for rate in expected for _ in range(2 if schedules else 1)]  # ours, and the monitor's
    if not schedules:
        assert "lr-SGD-1" in {name for row in read_metrics(tmp_path / "metrics.csv") for name in row}


def test_rates_of_one_optimizer_are_no_result(fit: Any, tmp_path: Path) -> None:
    fit(tmp_path, validation=False)
    with (tmp_path / "metrics.csv").open() as file:
        assert {row["lr/model"] for row in csv.DictReader(file)} == {"0.25"}


@needs("tensorboard")
def test_tensorboard_gets_every_metric_and_both_rates(fit: Any, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = user_loggers(option("logger", "tensorboard"), BUILD, tmp_path)
    fit(tmp_path, module=TwoModels(True), validation=False, loggers=loggers, hyperparameters={"a": {"b": [1]}})
    events = EventAccumulator(str(tmp_path / "logs" / "tensorboard"))
    events.Reload()
    columns = {name for row in read_metrics(tmp_path / "metrics.csv") for name in row}
    assert set(events.Tags()["scalars"]) == columns - {"step"}
    assert [event.value for event in events.Scalars("lr/value")] == [2 * 0.5**step for step in range(9)]
    assert "a:\n  b:\n  - 1" in (tmp_path / "logs" / "tensorboard" / "hparams.yaml").read_text()


@needs("wandb")
def test_wandb_writes_to_the_steps_folder_without_a_network(fit: Any, tmp_path: Path) -> None:
    for step in ("sft", "reward"):  # the second one is a run of its own
        loggers = user_loggers(option("logger", "wandb"), BUILD, tmp_path / "run" / step, ["blue"])
        fit(tmp_path / "run" / step, validation=False, loggers=loggers, hyperparameters={"a": 1}, tags=["blue"])
        (written,) = (tmp_path / "run" / step / "logs" / "wandb").glob("offline-run-*/*.wandb")
        wanted = ["train/loss", "lr/model", "blue", f"run/{step}"]
        for _ in range(100):  # W&B's own process writes the file, and may be behind
            missing = [text for text in wanted if text.encode() not in written.read_bytes()]
            if missing:
                time.sleep(0.1)
        assert missing == []
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"


@needs("mlflow")
@pytest.mark.filterwarnings("default")  # of its database library
def test_mlflow_writes_to_a_database_in_the_steps_folder(fit: Any, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    loggers = user_loggers(option("logger", "mlflow"), BUILD, tmp_path / "run" / "sft", ["blue"])
    fit(tmp_path / "run" / "sft", validation=False, loggers=loggers, hyperparameters={"a": {"b": 1}}, tags=["blue"])
    client = MlflowClient(f"sqlite:///{tmp_path}/run/sft/logs/mlflow.db")
    (found,) = client.search_runs([client.get_experiment_by_name("rlhf").experiment_id])
    assert found.data.metrics.keys() >= {"train/loss", "lr/model"}
    assert found.data.params.items() >= {"a/b": "1"}.items()
    assert (found.data.tags["blue"], found.data.tags["mlflow.runName"]) == ("true", "run/sft")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_every_shipped_logger_is_one() -> None:
    for path in (Path(CONFIG_DIR) / "logger").glob("*.yaml"):
        for node in option("logger", path.stem).values():
            assert issubclass(BUILD(node, _partial_=True).func, Logger)


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("GradientAccumulationScheduler", "would change what the recipe says: several batches are not the gradient"),
        ("BatchSizeFinder", "plan=true says what fits"),
        ("LearningRateFinder", r"sweep module\.optimizer\.lr"),
        ("StochasticWeightAveraging", r"ppo has module\.ema_decay"),
    ],
)
def test_callbacks_that_would_change_the_recipe_are_refused(target: str, sentence: str) -> None:
    with pytest.raises(PipelineError, match=sentence):
        user_callbacks({"one": {"_target_": f"lightning.pytorch.callbacks.{target}"}}, builder([]))


def test_what_is_no_callback_is_refused() -> None:
    with pytest.raises(PipelineError, match=r"torch\.nn\.Identity, which is no Callback of Lightning"):
        user_callbacks({"one": {"_target_": "torch.nn.Identity"}}, builder([]))
