"""The settings of every command, in groups that the commands put together."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode

from cryptomnesia.settings.base import (
    MOST_IMAGES,
    BatchSize,
    LocalPath,
    Location,
    Locations,
    Long,
    Names,
    Options,
    Paths,
    Settings,
    as_list,
)


class RunSettings(Settings):
    """The arguments of the calls of a model, and how it is loaded, for every command that generates images."""

    panel: ClassVar[str | None] = "Generation"

    steps: int | None = Field(None, ge=1)
    """Solver steps; the default of the pipeline's own call unless given."""
    guidance: float | None = None
    """Guidance scale; the default of the pipeline's own call unless given."""
    height: int | None = Field(None, ge=1)
    """Height of the images in pixels; the model's own unless given."""
    width: int | None = Field(None, ge=1)
    """Width of the images in pixels; the model's own unless given."""
    negative_prompt: str | None = None
    """Text for the unconditional branch of every image, instead of an empty one."""
    option: Options = Field(default_factory=list)
    """Further argument of the pipeline's call as KEY=VALUE, for instance eta=0.5; can be given several times."""
    scheduler: str = "own"
    """The pipeline's own scheduler, or ddim, pndm, euler, euler-ancestral, heun, dpm++, unipc or lms."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format of the weights; use the one that the service uses."""
    variant: str | None = None
    """Variant of the weights to load, for instance fp16; it is a part of the names of their files."""
    revision: str | None = None
    """Branch, tag or commit of the hub's repository."""
    without: Names = Field(default_factory=list)
    """Part of the pipeline to leave out, for instance text_encoder_3; can be given several times."""
    device: str | None = None
    """Device that computes: cpu, cuda, cuda:1 or mps. By default a GPU if there is one, else the CPU."""
    batch_size: BatchSize = 8


class CallSettings(RunSettings):
    """The model and the arguments of its calls."""

    panel: ClassVar[str | None] = "Generation"

    model: str | None = None
    """A local diffusers folder, a hub id such as org/name, a single file of weights, or `bundled`."""
    lora: Names = Field(default_factory=list)
    """LoRA to switch on, PATH or PATH:SCALE; a file, a folder or a hub id; can be given several times."""
    unet: LocalPath | None = None
    """UNet instead of the model's own: folder of a training checkpoint, or a single file."""
    transformer: LocalPath | None = None
    """Transformer instead of the model's own: folder of a training checkpoint, or a single file."""
    base: str | None = None
    """For a model in a single file: the diffusers folder, or the hub id, of the model that it was made from."""


class ImageSettings(CallSettings):
    """The model, the arguments of its calls and the images of every prompt."""

    images_per_prompt: int = Field(1, ge=1, le=MOST_IMAGES)
    """Images per prompt, every one with another seed."""
    seed: int = Field(0, ge=0, le=2**62)
    """Seed of the first image of every prompt; the next images have the seeds that follow."""


class JudgeSettings(Settings):
    """How an image is judged."""

    panel: ClassVar[str | None] = "Detection"

    calibration: Location | None = None
    """File that `calibrate` made, with scores and maps of reference images; the one in the model's folder unless
    given."""
    detector: str = "auto"
    """Detector whose score flags an image; `auto` is the default of the model's family. `methods` lists
    all."""
    fpr: float = Field(0.01, gt=0, lt=1)
    """False-positive rate: the share of ordinary images that are flagged."""


class FlaggedSettings(Settings):
    """What is computed of flagged images."""

    panel: ClassVar[str | None] = "Flagged images"

    localize: bool = False
    """Map where flagged images are memorized."""
    localizer: str = "auto"
    """Localizer that makes the maps; `auto` is the default of the model's family. `methods` lists all."""
    mitigate: bool = False
    """Try the mitigation on flagged images."""
    mitigation: str = "auto"
    """Mitigation to try; `auto` is the default of the model's family. `methods` lists all."""
    words: bool = False
    """Measure which words of the prompt bring flagged images."""


class MaskSettings(Settings):
    """How a map becomes a mask."""

    panel: ClassVar[str | None] = "Masks"

    pixel_fpr: float = Field(0.05, gt=0, lt=1)
    """Share of the pixels of ordinary images that a mask may hold: sets the threshold of the map."""


class IndexSettings(Settings):
    """The training images that pictures are compared with."""

    panel: ClassVar[str | None] = "Training images"

    index: Location | None = None
    """Index of the training images, made by `index build`."""
    sscd: LocalPath | None = None
    """TorchScript or ONNX file of the descriptor SSCD, if the index was built with it."""


class AuditSettings(IndexSettings, MaskSettings, FlaggedSettings, JudgeSettings, ImageSettings):
    """Everything that the result of an audit depends on, apart from the machine.

    `model` and `prompts` are None where Python passes a pipeline and a list.
    """

    panel: ClassVar[str | None] = "Audit"

    prompts: Location | None = None
    """File of the prompts to audit: .txt, .csv, .tsv, .jsonl, .json or .parquet; or the folder of a data set."""
    column: str | None = None
    """Column or key of the file with the prompts; `prompt`, `caption` or `text` unless given."""
    long: Long = "truncate"
    """What is done about prompts that are longer than the text encoders read: cut off as diffusers does it, left out,
    or refused."""
    references: Location | None = None
    """File of reference prompts, which are not memorized, to make a calibration from instead of giving one; 150 are
    enough for a false-positive rate of 1%."""
    seed: int = Field(0, ge=0, le=2**62)
    """Seed of the first image of the run; every further image has the next seed."""
    batch_size: BatchSize = 16
    localize: bool = True
    """Map where flagged images are memorized."""
    mitigate: bool = True
    """Try the mitigation on flagged images."""
    training_images: LocalPath | None = None
    """Training images, of which the run makes an index: a folder, a tar shard or a Parquet file."""
    guard: Literal["block", "mitigate", "regenerate", "escalate"] | None = None
    """Policy of a guard: the audit also reports what is left behind that guard, and the gate judges that. The guard's
    mitigation is that of --mitigation. `guard` says what the policies do."""
    fail_on: Literal["suspected", "corroborated", "confirmed"] = "corroborated"
    """Level of evidence that counts against the model, with all higher levels."""
    fdr: float | None = Field(None, gt=0, lt=1)
    """False-discovery rate: of the prompts that are suspected, the share that is expected to be ordinary at most. For
    audits of many prompts, of which 1% would be suspected by chance at a false-positive rate of 1%."""
    max_rate: float = Field(0.0, ge=0, lt=1)
    """Share of prompts that may reach that level. With 0 no audit passes: without a finding it is undecided."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.references is not None and self.calibration is not None:
            raise ValueError("got both references and calibration; references make a new calibration, so give one")
        if self.index is not None and self.training_images is not None:
            raise ValueError("got both index and training_images; training_images make a new index, so give one")
        if self.fail_on == "confirmed" and self.index is None and self.training_images is None:
            raise ValueError(
                "got fail_on = 'confirmed' without training images, which alone can confirm; give index or "
                "training_images, or another level"
            )
        return self


class PromptSettings(Settings):
    """The prompts that images are generated of."""

    panel: ClassVar[str | None] = "Prompts"

    prompt: Names = Field(default_factory=list)
    """A prompt; can be given several times."""
    prompts: Location | None = None
    """File of prompts: .txt, .csv, .tsv, .jsonl, .json or .parquet; or the folder of a data set."""
    column: str | None = None
    """Column or key of the file with the prompts; `prompt`, `caption` or `text` unless given."""
    long: Long = "truncate"
    """What is done about prompts that are longer than the text encoders read: cut off as diffusers does it, left out,
    or refused."""

    @model_validator(mode="after")
    def _check_one_source(self) -> Self:
        if self.prompt and self.prompts is not None:
            raise ValueError("got both prompt and prompts; give one of them")
        if self.column is not None and self.prompts is None:
            raise ValueError("got column without a file of prompts, which has columns; give prompts")
        if any(not text.strip() for text in self.prompt):
            raise ValueError("got an empty prompt; give a text")
        return self


class GenerateSettings(PromptSettings, ImageSettings):
    """The settings of every command that generates images of prompts."""


class ComparedSettings(Settings):
    """What the model is compared with."""

    panel: ClassVar[str | None] = "Detection"

    checkpoint: str | None = None
    """For the detector `base-difference`: the model that was trained further, as a local folder or a hub id."""


class DetectSettings(ComparedSettings, FlaggedSettings, JudgeSettings, GenerateSettings):
    """Everything that the result of `detect` depends on."""


class DemoSettings(FlaggedSettings):
    """What `demo` computes of flagged images."""

    localize: bool = True
    """Map where flagged images are memorized."""
    mitigate: bool = True
    """Try the mitigation on flagged images."""


class PlaceSettings(Settings):
    """Where in a run maps look, and how exactly."""

    panel: ClassVar[str | None] = "Maps"

    at: float | None = None
    """Evaluation that the maps look at: 0 is the first one, -1 the last one, 0.3 three tenths into the run. Every
    localizer has a default of its own."""
    probes: int | None = Field(None, ge=1)
    """Products with the Jacobian per image, for the localizers that estimate one: a multiple of 8. By default 16, or at
    most 512 with `wanted`."""
    wanted: float | None = Field(None, gt=0)
    """Relative error that is enough for such a map: the estimate stops when it is reached, also before all probes are
    spent."""
    memory: float | None = Field(None, gt=0)
    """Memory in GiB that such a map may take beside the model; by default 2."""


class MapSettings(PlaceSettings):
    """The maps to make, and how."""

    localizer: Names = Field(default_factory=list)
    """Localizer that makes maps; can be given several times; the default of the model's family unless given. `methods`
    lists all."""
    checkpoint: str | None = None
    """Less-trained checkpoint for the localizers that are compared with one: a local folder or a hub id. The bundled
    model has one. `calibrate` also takes the base of a fine-tune, for the detector `base-difference`."""


class LocalizeSettings(MaskSettings, MapSettings, GenerateSettings):
    """Everything that the result of `localize` depends on."""

    calibration: Location | None = None
    """File that `calibrate --localizer` made, which turns maps into masks; the one in the model's folder, if it fits,
    unless given."""
    smooth: float = Field(0.0, ge=0)
    """Standard deviation of a blur before the threshold, in pixels of the map."""
    smallest: int = Field(1, ge=1)
    """Regions of fewer pixels of the map are dropped."""


class CalibrateSettings(MapSettings, CallSettings):
    """Everything that a calibration depends on."""

    panel: ClassVar[str | None] = "Calibration"

    prompts: Location | None = None
    """File of reference prompts, which are not memorized: at least 100; 150 are enough for a false-positive rate of
    1%."""
    fpr: float | None = Field(None, gt=0, lt=1)
    """False-positive rate that the calibration has to support; too few prompts are then an error, before anything is
    generated."""
    leave_out: Literal["none", "suspicious"] = "none"
    """Which reference prompts are left out after they were generated: none, or those that look memorized themselves."""
    column: str | None = None
    """Column or key of the file with the prompts; `prompt`, `caption` or `text` unless given."""
    long: Long = "truncate"
    """What is done about prompts that are longer than the text encoders read: cut off as diffusers does it, left out,
    or refused."""
    seed: int = Field(1_000_000, ge=0, le=2**62)
    """Seed of the first image; every further image has the next seed."""
    detector: Names = Field(default_factory=list)
    """Detector that needs more than the norms of a run, for instance `settled-detail`, the mean of a map; can be given
    several times. All other detectors are calibrated anyway."""
    localizer: Names = Field(default_factory=list)
    """Localizer whose maps are to become masks; can be given several times. `methods` lists all."""


class GuardSettings(ComparedSettings, JudgeSettings, GenerateSettings):
    """Everything that the result of `guard` depends on."""

    panel: ClassVar[str | None] = "Guard"

    calibration: Locations = Field(default_factory=list)  # type: ignore[assignment]
    """File that `calibrate` made, with scores of reference images; the one in the model's folder unless given. Of
    several, the one that was made with the settings of the call is used."""
    unknown: Literal["raise", "allow", "block"] = "raise"
    """What is done about a call that no calibration fits: raise refuses it, allow returns its images without judging
    them, block returns black images."""
    policy: Literal["observe", "block", "mitigate", "regenerate", "escalate"] = "observe"
    """What is done about flagged images: observe returns them, block returns black images, mitigate tries the
    mitigation, regenerate tries other seeds and then the mitigation, escalate tries the mitigation, a stronger setting
    of it and another seed."""
    mitigation: str = "auto"
    """Mitigation of the policies mitigate, regenerate and escalate; `auto` is the default of the model's family.
    `methods` lists all."""
    decide_by: int | None = Field(None, ge=1)
    """Judge every image after this many evaluations (calls of the denoiser); at the end of the run unless given."""


class TrialSettings(CallSettings):
    """The images of a bench, and the truth about them."""

    panel: ClassVar[str | None] = "Bench"

    ground: str | None = None
    """Proving ground whose model is judged; `proving-ground list` shows all."""
    bundle: LocalPath | None = None
    """RUN/bundle of a training of that ground in RUN; by default the model that comes with the package."""
    labels: LocalPath | None = None
    """For a model of your own: a .csv or .jsonl file with the columns prompt and label, and perhaps cluster and mask.
    The label `memorized` marks positives, any other label names a group of negatives. A mask is a picture that is
    white where images are memorized."""
    references: LocalPath | None = None
    """For a model of your own: file of reference prompts, none of which is among the labelled ones."""
    images_per_prompt: int = Field(1, ge=1, le=MOST_IMAGES)
    """For a model of your own: images of every labelled prompt."""
    positives: int = Field(224, ge=1)
    """Of a ground: images of planted captions, about."""
    negatives: int = Field(400, ge=1, le=2_000)
    """Of a ground: ordinary captions, one image each. A true-positive rate at 0.1% needs 1,000."""
    checkpoint: str | None = None
    """Less-trained checkpoint for the localizers that are compared with one, and the base of a fine-tune for the
    detector `base-difference`: a local folder or a hub id. A ground has the one, and a fine-tune the other."""
    batch_size: BatchSize = 16

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.ground is None) == (self.labels is None):
            raise ValueError("got both or none of ground and labels; give one of them")
        if self.labels is not None and (self.model is None or self.references is None):
            raise ValueError("got labels without model or references; give both besides")
        if self.ground is not None and (self.model is not None or self.references is not None):
            raise ValueError("got a ground, which has a model and references, and another one besides; leave it out")
        if self.bundle is not None and self.ground is None:
            raise ValueError("got a bundle without the ground that it belongs to; give ground as well")
        unused = ("images_per_prompt",) if self.labels is None else ("positives", "negatives")
        for name in unused:
            if getattr(self, name) != type(self).model_fields[name].default:
                counts = "positives and negatives" if self.labels is None else "images_per_prompt"
                raise ValueError(f"got {name} with {'labels' if self.labels else 'a ground'}; give {counts} instead")
        return self


class BenchDetectSettings(TrialSettings):
    """Everything that the result of `bench detect` depends on."""

    detector: Names = Field(default_factory=list)
    """Detector to compare; can be given several times. By default all that work in the set-up."""
    most: float | None = Field(None, ge=0)
    """Leave out detectors that take more evaluations of the network per image than this; 0 keeps those that cost
    nothing."""


class BenchLocalizeSettings(TrialSettings, PlaceSettings):
    """Everything that the result of `bench localize` depends on."""

    negatives: int = Field(200, ge=1, le=2_000)
    """Of a ground: ordinary captions, one image each."""
    localizer: Names = Field(default_factory=list)
    """Localizer to compare; can be given several times. By default all that work in the set-up."""


class MitigationSettings(TrialSettings):
    """What is measured of mitigations, and the detector that judges their pictures."""

    positives: int = Field(112, ge=1)
    """Of a ground: images of planted captions, about."""
    negatives: int = Field(200, ge=1, le=2_000)
    """Of a ground: ordinary captions, one image each."""
    mitigation: Names = Field(default_factory=list)
    """Mitigation to compare; can be given several times. By default all that work in the set-up."""
    detector: str = "auto"
    """Detector that judges every picture."""


class BenchMitigateSettings(MitigationSettings):
    """Everything that the result of `bench mitigate` depends on."""

    clip: str | None = None
    """CLIP model that compares every picture with its caption: a folder in which transformers saved one, or a hub id
    such as org/name."""


class BenchAttackSettings(MitigationSettings):
    """Everything that the result of `bench attack` depends on."""

    positives: int = Field(24, ge=1)
    """Of a ground: planted captions that are attacked, at most."""
    mitigation: Names = Field(default_factory=list)
    """Mitigation to attack; can be given several times. By default all that work in the set-up."""
    budget: int = Field(100, ge=4, le=10_000)
    """Steps of the search for an embedding, which is tried after a quarter of them, too."""
    wordings: int = Field(4, ge=0, le=20)
    """Other wordings of every caption that are tried."""

    @model_validator(mode="after")
    def _check_attacked(self) -> Self:
        if self.negatives != type(self).model_fields["negatives"].default:
            raise ValueError("got negatives, and only planted captions are attacked; give positives instead")
        return self


class MatchSettings(IndexSettings):
    """The pictures that are compared with training images."""

    images: Paths = Field(default_factory=list)
    """Picture files, and folders that are searched with all folders in them."""
    fpr: float = Field(0.01, gt=0, lt=1)
    """Share of pictures that may come as near to a training image by chance."""
    device: str = "cpu"
    """Device on which SSCD computes, for instance cuda. Tiles compute on the CPU."""


class FindSettings(CallSettings):
    """Everything that the result of `find` depends on."""

    panel: ClassVar[str | None] = "Pictures"

    images: Paths = Field(default_factory=list)
    """Pictures to look for: files, folders, tar shards or tables of pictures. Captions that lie beside them are read: a
    text file of the same name, or metadata.csv, .jsonl or .parquet in their folder."""
    captions: LocalPath | None = None
    """File with the captions of the pictures: .csv, .jsonl or .parquet with the columns file_name and text."""
    controls: Paths = Field(default_factory=list)
    """Pictures of the same kind that the model was not trained on, with captions likewise; can be given several times.
    A rate of 5% needs 19 at least, and 39 if what comes back from noise is to count as well."""
    control_captions: LocalPath | None = None
    """File with the captions of the controls."""
    alpha: float = Field(0.05, gt=0, lt=1)
    """Error rate: a picture that the model was not trained on, and that is like the controls, is called retained with
    this probability at most."""
    fdr: float | None = Field(None, gt=0, lt=1)
    """False-discovery rate: of the pictures that are called retained, the share that is expected not to be, at most.
    For many pictures, of which some would be called retained by chance."""
    seed: int = Field(0, ge=0, le=2**31)
    """Seed of the noises, which are the same for all pictures and controls."""
    checkpoint: str | None = None
    """Base model that the model was trained further from: a local folder or a hub id. Then the curvature is compared
    with it, and the page says whether it holds the picture, too."""
    thumbnails: bool = False
    """Keep the pictures and what comes back of them, and show them on the pages. They may be what was memorized."""


class FinetuneSettings(RunSettings):
    """Everything that the result of `finetune` depends on."""

    panel: ClassVar[str | None] = "Training"

    checkpoints: LocalPath | None = None
    """Folder of the training's checkpoints, as diffusers' scripts, kohya's or SimpleTuner write them."""
    base: str | None = None
    """The model that the training began from: a local diffusers folder, a hub id, a single file, or `bundled`."""
    base_config: str | None = None
    """For a base in a single file: the diffusers folder, or the hub id, with its configuration."""
    data: Paths = Field(default_factory=list)
    """The pictures of the training: folders, tar shards or tables, with their captions beside them."""
    captions: LocalPath | None = None
    """File with the captions of the pictures: .csv, .jsonl or .parquet with the columns file_name and text."""
    caption: str | None = None
    """One caption for all pictures, as DreamBooth has it."""
    held_out: Paths = Field(default_factory=list)
    """Pictures like those of the training, with captions likewise, that the training does not see. Then it is known how
    near images come to pictures by chance, and what the training has learnt beyond them."""
    held_out_captions: LocalPath | None = None
    """File with the captions of the held-out pictures."""
    other_captions: LocalPath | None = None
    """Further captions that the training does not see: a text file with one per line, or a table. What they return of
    the training comes back whatever the caption is."""
    images: int = Field(2, ge=1, le=100)
    """Images under every caption; where one of them is a copy, twice as many more are made."""
    most: int = Field(100, ge=1)
    """Training pictures that are asked about, at most; those that the folder holds more than once come first."""
    scale: Annotated[list[float], NoDecode, BeforeValidator(as_list)] = Field(default_factory=list)
    """Scale at which the LoRA of the last checkpoint is measured as well, for instance 0.6; can be given several
    times."""
    alpha: float = Field(0.05, gt=0, lt=1)
    """Rate at which pictures are said to be held, and captions flagged; it needs held-out pictures or captions, at
    least 1/alpha - 1 of them."""
    seed: int = Field(0, ge=0, le=2**31)
    """Seed of the first image of every caption, and of the noises."""
    thumbnails: bool = True
    """Keep the images that are copies, with the pictures that they copy, and show them on the page."""


class MakeCanariesSettings(Settings):
    """Everything that the result of `canaries make` depends on."""

    panel: ClassVar[str | None] = "Canaries"

    data: LocalPath | None = None
    """Folder of the training set."""
    repetitions: str = "1,4,16,64"
    """How often an epoch shows a canary: one number for every group of canaries, with commas between them."""
    each: int = Field(6, ge=1, le=1_000)
    """Canaries of every group; a median has an interval from 6 on."""
    reserve: int = Field(200, ge=1, le=100_000)
    """Pictures of the same kind that are never added, with which canaries are compared; a rate of 5% needs 19."""
    seed: int | None = Field(None, ge=0, le=2**62)
    """Seed that draws pictures and names. It is a secret until the training is over; a random one unless given."""
    size: int = Field(512, ge=8, le=4096)
    """Width and height of the canaries in pixels: those of the training."""
    layout: Literal["auto", "sidecar", "metadata", "kohya"] = "auto"
    """Where the training reads captions: text files beside pictures, rows of metadata.jsonl or metadata.csv, or kohya's
    folders N_NAME, which also repeat pictures; auto takes what the training set has."""

    @model_validator(mode="after")
    def _check_repetitions(self) -> Self:
        if not self.numbers or not 1 <= min(self.numbers) <= max(self.numbers) <= 10_000:
            raise ValueError(
                f"got the repetitions {self.repetitions!r}; give whole numbers from 1 to 10000, such as 1,4,16,64"
            )
        return self

    @property
    def numbers(self) -> list[int]:
        """The repetitions in ascending order, each once; none if one of them is no whole number."""
        texts = [text.strip() for text in self.repetitions.split(",")]
        return sorted({int(text) for text in texts}) if all(map(str.isdecimal, texts)) else []


class MeasureCanariesSettings(CallSettings):
    """Everything that the result of `canaries measure` depends on."""

    panel: ClassVar[str | None] = "Canaries"

    manifest: LocalPath | None = None
    """The file canaries.json that `canaries make` wrote, or the folder that has it."""
    alpha: float = Field(0.05, gt=0, lt=1)
    """Error rate: if the model has learnt no canary, some repetitions are said to stand out with this probability at
    most."""
    seed: int = Field(0, ge=0, le=2**31)
    """Seed of the noises, which are the same for all pictures."""
    checkpoint: str | None = None
    """Base model that the training began from: a local folder or a hub id. What the base restores as well then does not
    count, so that less is learnt by chance."""


class BuildSettings(Settings):
    """How an index of training images is built."""

    images: Paths = Field(default_factory=list)
    """Training images: folders, which are searched with all folders in them, WebDataset tar shards, Parquet or Arrow
    files, or patterns such as 'shards/{000..010}.tar'."""
    exif: Literal["both", "apply", "ignore"] = "both"
    """Whether the trainer applied the rotation in EXIF; `both` indexes both readings of a picture that has one."""
    alpha: Literal["all", "white", "black", "drop"] = "all"
    """What the trainer did with transparency: put it on white or black, or dropped it; `all` indexes all readings."""
    sscd: LocalPath | None = None
    """TorchScript or ONNX file of SSCD, to compare pictures by it instead of by tiles."""
    device: str = "cpu"
    """Device on which SSCD computes, for instance cuda. Tiles compute on the CPU."""
    faiss: bool = False
    """Make an index for more than ten million pictures, which compares a picture with candidates only. Needs the extra
    `faiss`."""
    workers: int | None = Field(None, ge=1)
    """Threads that decode pictures; one per core unless given. On Ray it is the number of processes; one per core, or
    one per GPU if SSCD computes on cuda, unless given."""


class DuplicatesSettings(Settings):
    """The index whose near-identical pictures are looked for."""

    index: Location | None = None
    """Index of the training images, made by `index build`."""
    sscd: LocalPath | None = None
    """TorchScript or ONNX file of the descriptor SSCD, if the index was built with it."""
