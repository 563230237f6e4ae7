"""The callback for the Trainer of transformers.

The Trainer itself saves weights of a language model's kind. Have it write checkpoints that diffusers can load, for
instance with `self.model.save_pretrained(Path(output_dir) / "unet")` in a `_save` of your own.
"""

from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cryptomnesia.finetuning.callbacks import CopyingMeter, Scalars


class CopyingCallback(TrainerCallback):
    """Has every checkpoint of a Trainer measured, and logs how many training pictures come back.

    Example:
        meter = CopyingMeter(arguments.output_dir, base, "my-pictures", output="course")
        trainer.add_callback(CopyingCallback(meter, trainer, stop_when_copying=True))
    """

    def __init__(self, meter: CopyingMeter, trainer: Trainer, *, stop_when_copying: bool = False) -> None:
        """Keep what is needed.

        Args:
            meter: measures; unless it has a `log` of its own, it logs through the Trainer.
            trainer: the Trainer.
            stop_when_copying: whether the training stops once a checkpoint returns a training picture. Measuring takes
                a while, so some steps later; with several processes, when a checkpoint is saved after that.
        """
        self.meter, self.trainer, self.stop_when_copying = meter, trainer, stop_when_copying
        if meter.log is None:
            meter.log = self._log

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Have the checkpoint measured."""
        if state.is_world_process_zero:
            self.meter.saved(state.global_step)
        # every process has to stop at the same step, and all of them are here
        (copying,) = broadcast_object_list([self.meter.copying])
        control.should_training_stop |= self.stop_when_copying and copying

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look whether something was measured."""
        if state.is_world_process_zero:
            self.meter.look(state.global_step)
        if args.world_size == 1:
            control.should_training_stop |= self.stop_when_copying and self.meter.copying

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for what is still to be measured."""
        if state.is_world_process_zero:
            self.meter.finish()

    def _log(self, scalars: Scalars, step: int) -> None:
        # to log is what the Trainer was about to do, and must not forget
        wanted = self.trainer.control.should_log
        self.trainer.log(scalars)
        self.trainer.control.should_log = wanted
