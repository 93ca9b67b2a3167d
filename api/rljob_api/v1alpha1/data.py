"""`spec.data`: prompts to train on, and the step that prepares files."""

from typing import Literal

from pydantic import Field

from rljob_api.v1alpha1.base import ApiModel, FreeMap, ImportPath, LongStr, PathStr, PositiveInt, ShortStr


class PromptDataset(ApiModel):
    """Prompts with labels, one row each, as JSONL or parquet."""

    path: PathStr
    """File (`.jsonl`, `.parquet`) or data set on the Hub (`hf://owner/name[:config][@revision][/split]`)."""
    split: ShortStr = "train"
    """Split of a data set on the Hub whose `path` names none."""
    input_key: ShortStr = "prompt"
    """Column with the prompt: text, or a list of chat messages. A dotted path reaches into nested columns."""
    label_key: ShortStr = "label"
    """Column that the reward compares with: text, or any JSON value (`reward_model.ground_truth` in Search-R1's)."""
    metadata_key: ShortStr | None = None
    """Column handed to generate and reward functions as the sample's metadata."""
    source_key: ShortStr | None = None
    """Column that names the row's origin, for scores by source (`data_source` in Search-R1's)."""
    apply_chat_template: bool = True
    """Render the prompt through the chat template. Off: the text is tokenised as it stands."""
    system_prompt: LongStr | None = None
    """System message put before every prompt, in the place of one that the row has."""
    max_prompt_length: PositiveInt = 2048
    """Prompts of more tokens are left out, counted and reported."""
    limit: PositiveInt | None = None
    """Use the first rows only."""


class TrainDataset(PromptDataset):
    """Prompts to train on."""

    shuffle: bool = True
    """Shuffle anew each epoch, from the seed."""


class PrepareSpec(ApiModel):
    """A step that writes data files into the job's directory, once, before anything reads them."""

    function: ImportPath
    """`package.module:function`, called with the target folder and `args` as keywords; must be deterministic."""
    args: FreeMap = Field(default_factory=dict)
    """Keyword arguments."""
    timeout_seconds: PositiveInt = 3600
    """The step fails when it takes longer."""


class DataSpec(ApiModel):
    """Prompts for training and the step that prepares them."""

    prepare: PrepareSpec | None = None
    """Run once before the retriever and the trainer start."""
    train: TrainDataset | None = None
    """Prompts for reinforcement learning. Required unless the job is SFT alone."""


class SftDataset(ApiModel):
    """Demonstrations for supervised fine-tuning, one row each, as JSONL or parquet."""

    path: PathStr
    """File (`.jsonl`, `.parquet`) or data set on the Hub (`hf://owner/name[:config][@revision][/split]`)."""
    split: ShortStr = "train"
    """Split of a data set on the Hub whose `path` names none."""
    format: Literal["messages", "conversations", "prompt_completion", "segments"] = "messages"
    """`messages` [{role, content}], `conversations` (`system` + [{from, value}]), `prompt_completion` (two columns),
    or `segments` ([{text, train}], tokenised one by one, loss on those with `train`: for tool-use demonstrations)."""
    limit: PositiveInt | None = None
    """Use the first rows only."""
