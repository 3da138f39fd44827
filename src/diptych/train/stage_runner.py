"""One stage of a run: optimizer steps, and what is logged, drawn and saved between them."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diptych.train.checkpoint import TrainingState, latest_checkpoint, save_checkpoint
from diptych.train.distributed import Processes, wrap
from diptych.train.ema import WeightAverage
from diptych.train.interrupt import Stopped
from diptych.train.metrics import LossMeter
from diptych.train.nonfinite import NonFiniteLoss, find_culprit, save_batch
from diptych.train.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors, set_learning_rate
from diptych.train.parts import freeze_all_but, matching_parts, parts_of, trained_parameters
from diptych.train.precision import autocast_dtype
from diptych.train.prefetch import Prefetcher, prefetch_depth
from diptych.train.recipe import Stage
from diptych.train.run import Run
from diptych.train.schedule import lr_factor
from diptych.train.serialization import recipe_to_dict
from diptych.train.sharding import collected, full, gather_into, local, shard, sharded_copy
from diptych.train.stage_data import StepInputs, step_inputs
from diptych.train.step import Step, StepModule, StepResult, objective_of
from diptych.train.throughput import SpeedMeter, count_flops, peak_flops, peak_memory
from diptych.train.weights import trained_weights

logger = logging.getLogger(__name__)


class StageRunner:
    """Sets a stage up, fresh or from a training state, and runs it.

    Raises:
        Stopped: a signal came while the task prepared the stage.
    """

    def __init__(self, run: Run, name: str, state: TrainingState | None) -> None:
        self.run, self.name = run, name
        self.stage = stage = run.recipe.stages[name]
        self.model = run.task.model
        self.trainable = matching_parts(stage.trainable, parts_of(self.model), f"stages.{name}.trainable")
        self.processes = Processes.of(run.accelerator, stage.gradient_accumulation)
        self.weights = {objective: weight for objective, weight in stage.objectives.items() if weight > 0}
        freeze_all_but(self.model, self.trainable)
        if run.task.prepare_stage is not None:
            self._prepare(run.task.prepare_stage)
        self.companion = run.task.companion
        if self.companion is not None:
            self._prepare(partial(self.companion.begin_stage, is_new=state is None))
        self.stream = run.task.open_stream(name, stage, self.processes.rank, self.processes.count)
        self.done = 0
        precision = autocast_dtype(run.recipe.precision, self.processes.device)
        if run.is_sharded:
            self.model = sharded_copy(self.model)
            run.task.model.to("cpu")
        objectives = {name: run.task.objectives[name] for name in self.weights}
        step_module = StepModule(self.model, objectives, reaches_all=run.is_sharded)
        module = shard(step_module, self.processes) if run.is_sharded else wrap(step_module, self.processes)
        self.parameters = trained_parameters(self.model)
        if not self.parameters:
            raise ValueError(f"stages.{name}.trainable names {sorted(self.trainable)}: no parameters to train.")
        self.passes = Step(module, self.weights, self.processes, precision, run.task.count_terms)
        self.bare_passes = Step(step_module, self.weights, self.processes, precision)
        self.optimizer = build_optimizer(self.parameters, stage.optimizer, precision)
        decay = stage.optimizer.ema_decay
        self.ema = None if decay is None else WeightAverage(self.parameters, decay)
        self.losses = LossMeter(self.weights, run.recipe.logging.noise_level_bins)
        self.speed = SpeedMeter(peak=peak_flops(self.processes.device, precision))
        self.counts_flops = run.recipe.logging.cost
        self.counted: set[str] = set()
        if state is not None:
            self._load(state)
        self.data_state = self.stream.state_dict()

    def _prepare(self, prepare_stage: Callable[[str, Stage], None]) -> None:
        """What the task does before a stage; a signal ends it at once, in all processes if in one.

        Raises:
            Stopped: a signal came. Nothing was trained, so there is nothing to save.
        """
        is_stopped = False
        try:
            with self.run.stop.at_once():
                prepare_stage(self.name, self.stage)
        except Stopped:
            is_stopped = True
        if any(self.processes.gather(is_stopped)):
            raise Stopped
        freeze_all_but(self.model, self.trainable)

    def _load(self, state: TrainingState) -> None:
        """Weights are in the model already; here come optimizer, average and data."""
        self.done = state.stage_step
        load_optimizer_tensors(self.optimizer, self.parameters, state.optimizer)
        if self.ema is not None:
            self.ema.load(state.ema, state.ema_updates)
        if self.companion is not None:
            self.companion.load_state_dict(state.companion)
        same_world = len(state.data) == self.processes.count
        self.stream.load_state_dict(state.data[self.processes.rank if same_world else 0])

    def run_steps(self) -> bool:
        """Trains to the end of the stage and saves; False if it was stopped before."""
        run, stage = self.run, self.stage
        rank, count = self.processes.rank, self.processes.count
        inputs = step_inputs(run.task, self.stream, self.name, stage, run.recipe.seed, rank, count, self.done)
        prefetcher = Prefetcher(inputs, prefetch_depth(self.processes.device.type))
        run.display.start_stage(self.name, self.done, stage.num_steps)
        self.speed.start()
        try:
            while self.done < stage.num_steps:
                stopped = self._one_step(prefetcher.next())
                is_last = self.done == stage.num_steps
                if self.done % run.recipe.logging.every_steps == 0 or is_last:
                    self._log()
                if self._sampling_is_due():
                    with self._shown_model():
                        run.draw_samples(self.name)
                if not is_last and (stopped or run.step % run.recipe.checkpoints.every_steps == 0):
                    self.save()
                if stopped and not is_last:
                    return False
        finally:
            prefetcher.close()
            run.display.end_stage()
        self._finish()
        return True

    def _one_step(self, inputs: StepInputs) -> bool:
        """One optimizer step; True if the run is to stop after it."""
        config = self.stage.optimizer
        set_learning_rate(self.optimizer, config.lr * lr_factor(config, self.done, self.stage.num_steps))
        self._drop_gradients()
        batches = [batch.to(self.processes.device) for batch in inputs.batches]
        wants_stop = self.run.stop.requested is not None
        if (self.speed.peak or self.counts_flops) and not self.speed.flops_per_step:
            self._count_flops(inputs, batches)
        result = self.passes.run(batches, inputs.seeds, wants_stop)
        grad_norm = self._clip()
        # The one place where a step waits for the device: weights must not take in what is no number.
        # Several processes look at the norm alone, which is the same for all, so that they stop together.
        watched = grad_norm + result.loss if self.processes.count == 1 else grad_norm
        if not bool(torch.isfinite(watched).item()):
            raise self._explain_nonfinite(inputs, batches, result)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()
        if self.companion is not None:
            self.companion.after_step()
        self.done += 1
        self.run.step += 1
        self.data_state = inputs.data_state
        self.losses.add(result.terms, grad_norm)
        self.counted |= {name for terms in result.terms for name in terms}
        self.speed.add(inputs.num_examples * self.processes.count, inputs.num_tokens * self.processes.count)
        self.run.display.advance(self.done)
        if self.processes.count == 1:
            return self.run.stop.requested is not None
        return result.num_stops.item() > 0

    def _count_flops(self, inputs: StepInputs, batches: list[Any]) -> None:
        """Runs the passes of the step once more than needed, to count what they do."""
        try:
            self.speed.flops_per_step = count_flops(lambda: self.passes.run(batches, inputs.seeds))
        except (RuntimeError, NotImplementedError) as error:  # an operation the counter cannot follow
            logger.warning("FLOPs and MFU are not shown: they could not be counted (%s).", error)
            self.speed.peak, self.counts_flops = None, False
        self._drop_gradients()

    def _drop_gradients(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def _clip(self) -> Tensor:
        """Scales the gradients down to ``clip_norm``; returns their norm before."""
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norm = full(torch.nn.utils.get_total_norm(gradients)).to(self.processes.device)
        if self.stage.optimizer.clip_norm is not None and gradients:
            factor = (self.stage.optimizer.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_([local(gradient) for gradient in gradients], factor)
        return norm

    def _log(self) -> None:
        lr = self.stage.optimizer.lr * lr_factor(self.stage.optimizer, self.done - 1, self.stage.num_steps)
        metrics = {**self.losses.read(self.processes), **self.speed.read(), "lr": lr}
        if self.run.recipe.logging.cost:
            metrics |= {"peak_memory": float(peak_memory(self.processes.device))}
            if self.speed.flops_per_step:  # of one process, which are alike
                metrics["flops_per_step"] = float(self.speed.flops_per_step * self.processes.count)
        if self.companion is not None:
            metrics |= self.companion.metrics()
        bad = getattr(self.stream, "num_bad", {})
        num_bad = sum(count for reasons in bad.values() for count in reasons.values())
        self.run.log(self.name, "train", {"stage_step": self.done, **metrics, "bad_records": num_bad})
        self.run.display.update(self.done, metrics)

    def _sampling_is_due(self) -> bool:
        every = self.run.recipe.logging.sample_every
        return every > 0 and self.done % every == 0 and self.done < self.stage.num_steps

    @contextmanager
    def _shown_model(self) -> Iterator[None]:
        """Inside, the task's model is what others are to see: averaged weights where there is an average, evaluation
        mode, no gradients. All processes enter together."""
        self.speed.pause()
        shown = self.run.task.model
        with self.ema.applied() if self.ema is not None else nullcontext(), torch.no_grad():
            self._gather()
            shown.eval()
            yield
        freeze_all_but(shown, self.trainable)
        if self.run.is_sharded:
            shown.to("cpu")
        self.speed.start()

    def _gather(self) -> None:
        """Brings the shards, where there are any, into the task's model."""
        if self.run.is_sharded:
            gather_into(self.run.task.model, self.parameters)
            if self.run.accelerator.is_main_process:
                self.run.task.model.to(self.processes.device)

    def _finish(self) -> None:
        """The averaged weights become the weights, and the end of the stage is saved."""
        counted = {objective_of(term) for names in self.processes.gather(self.counted) for term in names}
        for objective in set(self.weights) - counted:
            logger.warning(
                "stage %r: nothing in its mix had the loss %r; its weight had no effect.", self.name, objective
            )
        if self.ema is not None:
            self.ema.copy_to_model()
            self.ema = None
        self.optimizer.state.clear()
        self.save()
        if self.run.is_sharded:
            self.run.task.model.to(self.processes.device)

    def save(self) -> None:
        """A checkpoint of this moment."""
        run = self.run
        self._gather()
        is_main = run.accelerator.is_main_process
        weights = trained_weights(run.task.model, run.trained_parts) if is_main else {}
        if self.ema is not None:  # the model folder is saved with the average in their place
            weights = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
        data = self.processes.gather(self.data_state)
        state = TrainingState(
            stage=self.name,
            stage_step=self.done,
            step=run.step,
            seconds=run.seconds,
            data=data if any(own != data[0] for own in data) else data[:1],
            recipe=recipe_to_dict(run.recipe),
            frozen=run.frozen,
            weights=weights,
            optimizer=collected(optimizer_tensors(self.optimizer, self.parameters), keep=is_main),
            ema={} if self.ema is None else collected(self.ema.tensors(), keep=is_main),
            ema_updates=0 if self.ema is None else self.ema.num_updates,
            companion={} if self.companion is None else self.companion.state_dict(),
        )
        with self._shown_model():
            if is_main:
                save_checkpoint(run.folder.checkpoints, state, run.task.save_model_folder, run.recipe.checkpoints.keep)
            run.accelerator.wait_for_everyone()

    def _explain_nonfinite(self, inputs: StepInputs, batches: list[Any], result: StepResult) -> NonFiniteLoss:
        """Saves the batch and finds the module at fault."""
        rank, step = self.processes.rank, self.run.step + 1
        bad = [not all(bool(torch.isfinite(term.sum)) for term in terms.values()) for terms in result.terms]
        index = bad.index(True) if any(bad) else 0

        def forward() -> dict[str, Tensor]:
            terms = self.bare_passes.evaluate(batches[index], inputs.seeds[index])
            return {name: term.sum for name, term in terms.items()}

        culprit = find_culprit(self.model, forward)
        if self.processes.count > 1:
            # A bad gradient of one process reaches all: believe the one whose own loss is bad.
            told = self.processes.gather((any(bad), f"in process {rank}, {culprit}"))
            culprit = next((sentence for is_bad, sentence in told if is_bad), told[0][1])
        folder = self.run.folder.path / f"nonfinite-step-{step:06d}" / f"process-{rank}-batch-{index}"
        losses = {name: term.sum.item() for name, term in result.terms[index].items()}
        facts = {"stage": self.name, "step": step, "culprit": culprit, "losses": losses, "seed": inputs.seeds[index]}
        save_batch(folder, batches[index], {**facts, "examples": inputs.keys})
        last = latest_checkpoint(self.run.folder.path)
        return NonFiniteLoss(
            f"step {step} (stage {self.name!r}) has a loss or gradient that is not finite: {culprit}. The batch is in "
            f"{folder}; the step was not taken. The last checkpoint is {last or '(none yet)'}. Try a lower "
            "learning rate, a longer warm-up, gradient clipping, or --precision float32."
        )
