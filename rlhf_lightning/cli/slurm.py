"""Processes that Slurm's `srun` started: they find each other as those of `torchrun` do."""

from collections.abc import MutableMapping

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from rlhf_lightning.runs.folders import PipelineError


def join_srun(environment: MutableMapping[str, str]) -> None:
    """Set the variables of `torchrun` for a process that `srun` started beside others; nothing where it did not.

    A command in a batch script is no step of `srun`, and neither are the processes of a `torchrun` within one.

    Args:
        environment: The environment variables, which are changed.

    Raises:
        PipelineError: When the machines have different numbers of tasks.
    """
    tasks, nodes = (
        environment.get(f"SLURM_STEP_NUM_{what}", environment.get(f"SLURM_{other}", "1"))
        for what, other in (("TASKS", "NTASKS"), ("NODES", "NNODES"))
    )
    step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID"))
    if step is None or tasks == "1" or "TORCHELASTIC_RUN_ID" in environment:
        return
    each, rest = divmod(int(tasks), int(nodes))
    if rest:
        raise PipelineError(
            f"srun started {tasks} tasks on {nodes} machines, which are not as many on each. Say --ntasks-per-node."
        )
    job = environment.get("SLURM_JOB_ID", "0")
    machines = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_NODELIST", "127.0.0.1"))
    environment.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(machines))
    environment.setdefault("MASTER_PORT", str(15000 + (int(job) + int(step)) % 10000))
    environment.update(
        {
            "WORLD_SIZE": tasks,
            "RANK": environment["SLURM_PROCID"],
            "LOCAL_WORLD_SIZE": str(each),
            "LOCAL_RANK": environment["SLURM_LOCALID"],
            "GROUP_WORLD_SIZE": nodes,
            "GROUP_RANK": environment.get("SLURM_NODEID", "0"),
            "TORCHELASTIC_RUN_ID": f"slurm-{job}.{step}",  # Lightning reads these where it is set
        }
    )
