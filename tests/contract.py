"""One row a method: what only a test can know of it. Whatever is a fact of the method, its class declares (`draws`, `tunes`, ...).

The folder listing of conf/ decides what is tested: a yaml without a row fails in test_contract.py, with the line to add here.
Nothing else names a method: neither the contract's tests nor those of the pretended device, which run from the same rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from conftest import QUICK

from backdoorbench.config import catalog
from backdoorbench.config.compose import Plain, compose
from backdoorbench.config.groups import STAGES

GROUPS = tuple(stage.group for stage in STAGES)  # attack, detector, defense, after
COUNTS = ("epochs", "iterations", "passes", "steps", "units")  # what a setting that costs time ends with


@dataclass(frozen=True)
class Takes:
    """What an attack does to digits, at its own settings: ASR and CA, at least.

    slow     minutes
    finding  why it does not: the test is expected to fail, and the reason is kept
    """

    asr: float
    ca: float
    slow: bool = False
    finding: str = ""


@dataclass(frozen=True)
class Leaves:
    """What a defense leaves of the default attack on digits, at its own settings: ASR, and loss of CA, at most."""

    asr: float
    loss: float
    slow: bool = False
    finding: str = ""


@dataclass(frozen=True)
class Row:
    """One method.

    quick   words that make it run in a second on 400 digits (`conftest.QUICK`)
    effect  what it does to the digits, as far as a bound is known; None: `why` says why not, or which test knows more
    wide    its quick run takes seconds, so that its tests are of the wide tier
    smoke   it runs on the pretended device in the quick tier too; the others in a tier of their own
    beside  setting -> words with which it changes something, where the quick run is too short or too small for it to matter
    values  setting -> what else it could be, where its type does not tell: names of layers
    """

    group: str
    name: str
    quick: tuple[str, ...] = ()
    effect: Takes | Leaves | None = None
    why: str = ""
    wide: bool = False
    smoke: bool = False
    beside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    values: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.effect is None) != bool(self.why):
            raise ValueError(f"the row of {self} states either an effect or why there is none")

    def __str__(self) -> str:
        return f"{self.group}={self.name}"

    def compose(self, *words: str) -> Plain:
        """The configuration of its quick run. A defense, a detector and an after-attack meet the default attack."""
        return compose([*self.words, *words])

    @property
    def words(self) -> tuple[str, ...]:
        """What its quick run is described by."""
        return (str(self), *QUICK, *self.quick, "runtime.threads=1")


FEW = "poisons a few rows: one seed says little"
CONSTANT = "a finding, test_bypass.py: 460 steps leave the network constant"
HELD = "ASR 0.00 with the 68 images that the rate allows"
FOUND = "test_detectors.py: it finds a backdoor on digits"
COMES_BACK = "test_after.py: what it does; docs/after.md: what comes back"
FILTERED = "a finding, test_filters.py: at 10 % half of the target class is poisoned, which is no small cluster, no small share"

# fmt: off
ROWS = (  # one line each
    Row("after", "alternative", quick=("after.images=40", "after.epochs=1", "after.batch_size=20", "after.direction=infected", "defense=ft", "defense.epochs=1"), why=COMES_BACK),
    Row("after", "lmc", quick=("after.points=3", "after.images=60", "after.remeasure=true", "after.statistics_images=50", "defense=ft", "defense.epochs=2"), why=COMES_BACK),
    Row("after", "none", why="it tries nothing"),
    Row("after", "perturb", quick=("after.images=40", "after.epochs=1", "after.batch_size=20"), why=COMES_BACK),
    Row("after", "query", quick=("control=train", "after.images=20", "after.hidden=8", "after.epochs=2", "after.batch_size=20", "after.retuning.rate=0.1", "after.retuning.epochs=2"), why=COMES_BACK),
    Row("after", "retune", quick=("after.rate=0.1", "after.epochs=2", "after.batch_size=16"), why=COMES_BACK, smoke=True),
    Row("after", "square", quick=("after.images=20", "after.queries=5"), why=COMES_BACK),
    Row("after", "variations", quick=("after.images=60", "after.shifts=[1]", "after.blurs=[1.0]", "after.crops=[2]"), why=COMES_BACK),
    Row("attack", "adap_blend", why=FEW),
    Row("attack", "adap_k_way", why=FEW),
    Row("attack", "adap_patch", why=FEW),
    Row("attack", "badnets", effect=Takes(0.9, 0.95), smoke=True),
    Row("attack", "badnets_bypass", why=CONSTANT),
    Row("attack", "blended", effect=Takes(0.9, 0.95, slow=True)),
    Row("attack", "blended_bypass", why=CONSTANT),
    Row("attack", "blind", effect=Takes(0.8, 0.95, slow=True), beside={"threshold": ("attack.history=5", "train.epochs=3"), "history": ("train.epochs=3", "attack.history=5", "attack.threshold=3")}),
    Row("attack", "bpp", why="a finding, test_bpp.py: 17 grey levels in blocks leave no banding to see, ASR 0.02"),
    Row("attack", "ctrl", effect=Takes(0.8, 0.95, slow=True, finding=HELD), beside={"cap": ("attack.poison_rate=0.2", "attack.cap=true")}),
    Row("attack", "ftrojan", effect=Takes(0.8, 0.95, slow=True, finding="CA 0.19: learned too late for batch norm's running statistics")),
    Row("attack", "given", why="it plants nothing: test_given_trigger.py"),
    Row("attack", "grond", wide=True, quick=("attack.steps=5",), why="no bound is known yet", beside={"cap": ("attack.poison_rate=0.2", "attack.cap=true")}),
    Row("attack", "input_aware", wide=True, quick=("attack.mask_epochs=1", "attack.mask_lr=0.001", "attack.mask_milestones=[1]", "dataset.train_size=200"), effect=Takes(0.8, 0.95, slow=True), beside={"mask_milestones": ("attack.mask_epochs=3",), "generator_milestones": ("train.epochs=3", "attack.generator_milestones=[1]")}),
    Row("attack", "issba", wide=True, quick=("attack.bits=1", "attack.bits_epochs=0", "attack.encoder_epochs=1", "attack.encoder_batch_size=4", "attack.encoder_lr=0.01", "attack.encoder_width=2"), effect=Takes(0.8, 0.95, slow=True)),
    Row("attack", "l0_inv", effect=Takes(0.8, 0.95, slow=True)),
    Row("attack", "l2_inv", effect=Takes(0.8, 0.95, slow=True)),
    Row("attack", "lc", quick=("attack.steps=2",), effect=Takes(0.8, 0.95, slow=True, finding=HELD), beside={"cap": ("attack.poison_rate=0.2", "attack.cap=true")}),
    # At its own settings 38,670 gradient steps, each of one image: at 1.2 ms on a CPU 47 s, at 9 ms on the pretended device (some
    # 130 operations each) six minutes.
    Row("attack", "lf", quick=("attack.search_images=5", "attack.search_passes=1", "attack.deepfool_steps=20"), effect=Takes(0.8, 0.95, slow=True), beside={"changed_rate": ("attack.search_passes=4", "attack.search_images=60")}),
    Row("attack", "lira", wide=True, quick=("attack.generator_epochs=1", "dataset.train_size=200"), effect=Takes(0.8, 0.95, slow=True)),
    Row("attack", "none", why="it plants nothing"),
    Row("attack", "poison_ink", wide=True, quick=("attack.encoder_epochs=1", "attack.encoder_batch_size=64", "attack.encoder_width=2", "attack.reader_width=2", "dataset.train_size=200"), effect=Takes(0.8, 0.95, slow=True), beside={"encoder_milestones": ("attack.encoder_epochs=3",)}),
    Row("attack", "refool", quick=("attack.reflections=20",), effect=Takes(0.8, 0.95, slow=True), beside={"cap": ("attack.poison_rate=0.2", "attack.cap=true", "attack.labels=clean")}),
    Row("attack", "sig", effect=Takes(0.8, 0.95, slow=True, finding=f"{HELD}; on 12,000 CIFAR-10 images 0.998"), beside={"cap": ("attack.poison_rate=0.2", "attack.cap=true")}),
    Row("attack", "smooth", effect=Takes(0.8, 0.95, slow=True)),
    Row("attack", "ssba", wide=True, quick=("attack.bits=1", "attack.image_wait=0", "attack.image_rise=1", "attack.encoder_epochs=1", "attack.encoder_batch_size=4", "attack.encoder_lr=0.01", "attack.encoder_width=2"), effect=Takes(0.8, 0.95, slow=True)),
    Row("attack", "tact", why=FEW),
    Row("attack", "trojan_3x3", effect=Takes(0.8, 0.95, slow=True)),
    Row("attack", "trojan_8x8", effect=Takes(0.8, 0.95, slow=True)),
    Row("attack", "trojan_wm", effect=Takes(0.8, 0.95, slow=True)),
    Row("attack", "trojannn", quick=("attack.steps=5",), effect=Takes(0.8, 0.95, slow=True)),
    Row("attack", "wanet", effect=Takes(0.9, 0.95, slow=True), beside={"strength_relative": ("dataset.size=16",)}),
    Row("defense", "abl", quick=("defense.tuning_epochs=1", "defense.finetuning_epochs=1", "defense.unlearning_epochs=1", "defense.isolation_rate=0.1", "defense.batch_size=32"), effect=Leaves(0.1, 0.12, slow=True), beside=dict.fromkeys(("level", "trapped"), ("defense.tuning_epochs=4",)) | dict.fromkeys(("finetuning_milestones", "finetuning_decay"), ("defense.finetuning_epochs=3", "defense.finetuning_milestones=[1]"))),  # the loss is of the target class alone
    Row("defense", "ac", quick=("train.epochs=1",), why=FILTERED, beside={"min_samples": ("defense.min_samples=30", "defense.max_share=0.5")}),
    Row("defense", "aft", quick=("defense.adversarial_iterations=2", "defense.natural_iterations=2", "defense.steps=2"), why="test_aft_pbe.py: its premise, and what each pass does", beside={"schedule": ("defense.adversarial_iterations=4", "defense.natural_iterations=4")}),
    Row("defense", "d3", quick=("defense.epochs=2",), effect=Leaves(0.10, 0.10, slow=True), beside={"loss_threshold": ("defense.loss_threshold=2.3",)}),
    Row("defense", "anp", wide=True, quick=("defense.iterations=20", "defense.batch_size=16", "defense.lr=5.0"), effect=Leaves(0.2, 0.06, slow=True), beside=dict.fromkeys(("max_drop", "select_fraction"), ("defense.selection=holdout_drop", "train.epochs=8", "holdout.rate=0.2"))),
    Row("defense", "bnp", quick=("defense.u=1.0",), effect=Leaves(1.0, 0.06), beside={"augment": ("defense.u=0.2", "holdout.rate=0.03")}),
    Row("defense", "clp", quick=("defense.u=1.0",), effect=Leaves(1.0, 0.06)),
    Row("defense", "ep", quick=("defense.u=1.0",), effect=Leaves(1.0, 0.06)),
    Row("defense", "bti_dbf", quick=("defense.rounds=2", "defense.width=2", "defense.pretrain_epochs=1", "defense.mask_epochs=1", "defense.generator_epochs=1", "defense.epochs=1", "defense.batch_size=8", "defense.image_bound=1000"), why="test_inversion.py: its mask and its bounds; docs/baselines.md: what it leaves"),
    Row("defense", "d_br", wide=True, quick=("defense.warmup_epochs=1", "defense.spread_epochs=1", "defense.epochs=1"), why="a finding: turned digits are other digits; of the rows that move most a quarter is poisoned, ASR stays"),
    Row("defense", "fe_tuning", quick=("defense.epochs=2",), effect=Leaves(1.0, 0.06, slow=True)),  # as lp and ft_init FST's ablation: what it removes is the finding
    Row("defense", "fmp", wide=True, quick=("defense.epochs=1", "defense.probe_images=8"), why="test_fmp.py: means over three seeds", beside={"p": ("defense.fraction=null", "defense.p=4"), "lr_min": ("defense.epochs=2",)}),
    Row("defense", "fp", quick=("defense.epochs=2",), effect=Leaves(0.6, 0.03, slow=True), beside={"share": ("defense.selection=fixed",), "max_drop": ("train.epochs=8", "holdout.rate=0.2")}),
    Row("defense", "fst", quick=("defense.epochs=2",), effect=Leaves(0.10, 0.06), smoke=True),
    Row("defense", "ft", quick=("defense.epochs=2",), effect=Leaves(1.0, 0.03)),  # a baseline: at this size it need not remove anything
    Row("defense", "ft_init", quick=("defense.epochs=2",), effect=Leaves(1.0, 0.06, slow=True)),
    Row("defense", "ft_sam", quick=("defense.epochs=2",), effect=Leaves(0.2, 0.05, slow=True, finding="ASR 0.73 after 72 images; after 288 (holdout.rate=0.2) 0.04")),
    Row("defense", "i_bau", quick=("defense.rounds=1", "defense.batch_size=16"), effect=Leaves(0.2, 0.05, slow=True, finding="ASR 0.96: on 72 images the perturbation hardly grows, on 288 it grows to twice the range of pixels; defense.radius=10 leaves 0.22 there"), beside={"radius": ("defense.radius=0.01",)}),
    Row("defense", "ims", quick=("defense.initial_rounds=2", "defense.rounds=2", "defense.steps=2", "defense.batch_size=8", "defense.lr=0.2"), why="test_ims.py: what its masks and losses are", beside={"patience": ("defense.improvement=0", "defense.rounds=4"), "improvement": ("defense.patience=0", "defense.rounds=4")}),
    Row("defense", "latent_tac", quick=("defense.threshold=0.01", "defense.epochs=2"), why="test_latent_tac.py: its shifts"),
    Row("defense", "lp", quick=("defense.epochs=2",), effect=Leaves(1.0, 0.03, slow=True)),
    Row("defense", "mcr", quick=("defense.epochs=1", "defense.end.epochs=2"), effect=Leaves(1.0, 0.03, slow=True)),  # at t = 0.1 the weights are 81 % the infected ones
    Row("defense", "nad", quick=("defense.epochs=2", "defense.teacher_epochs=1", "defense.lr=0.001"), effect=Leaves(0.2, 0.05, slow=True, finding="ASR 0.80 after 72 images; after 288 0.29, where ft leaves 0.50"), beside={"milestones": ("defense.epochs=3",), "decay": ("defense.milestones=[1]",)}),
    Row("defense", "nc", quick=("defense.reversal.units=4", "defense.reversal.success=0.2", "defense.threshold=0.01", "defense.epochs=2"), why="test_nc.py: what it stamps; docs/baselines.md: what it leaves", beside={f"reversal.{name}": ("defense.reversal.units=16", "defense.reversal.patience=1", "defense.reversal.stop_patience=2") for name in ("multiplier", "stop_patience", "stop_factor")}),
    Row("defense", "none", effect=Leaves(1.0, 0.0)),
    Row("defense", "npd", quick=("defense.warmup_epochs=1", "defense.epochs=2", "defense.batch_size=16", "defense.augment=${dataset.augment}"), why="test_npd.py: its layer and its ball", beside=dict.fromkeys(("radius", "step", "steps", "gradient"), ("defense.enough=1.0", "defense.radius=0.5"))),
    Row("defense", "pam", quick=("defense.rounds=2", "defense.width=2", "defense.pretrain_epochs=1", "defense.mask_epochs=1", "defense.generator_epochs=1", "defense.epochs=1", "defense.batch_size=8", "defense.image_bound=1000"), why="test_inversion.py: its path"),
    Row("defense", "pbe", wide=True, quick=("defense.epochs=1", "defense.adversarial_batches=1", "defense.steps=2"), why="test_aft_pbe.py: a finding on this patch, and three that it erases"),
    Row("defense", "pbe_clean", quick=("defense.adversarial_iterations=2", "defense.natural_iterations=2", "defense.steps=2"), why="test_aft_pbe.py: it is aft", beside={"schedule": ("defense.adversarial_iterations=4", "defense.natural_iterations=4")}),
    Row("defense", "sau", quick=("defense.epochs=2", "defense.batch_size=16", "defense.augment=${dataset.augment}"), why="test_sau.py: its ball and its shared set"),
    Row("defense", "ss", quick=("train.epochs=1",), why=FILTERED),
    Row("defense", "rnp", quick=("defense.unlearn_epochs=3", "defense.recover_epochs=3", "defense.selection=fixed", "defense.recover_lr=20.0"), why="test_mask_pruners.py", beside=dict.fromkeys(("max_drop", "select_fraction"), ("defense.selection=holdout_drop", "train.epochs=8", "holdout.rate=0.2")) | dict.fromkeys(("milestones", "decay"), ("defense.milestones=[1]", "defense.clean_accuracy=0.01"))),
    Row("defense", "trap_and_replace", quick=("defense.stage1.epochs=1", "defense.stage2.epochs=1"), why="test_trap_and_replace.py: means over three seeds", values={"stem_until": ("net.layer2",)}, beside={"stage1.schedule": ("defense.stage1.epochs=3",), "stage2.schedule": ("defense.stage2.epochs=3",)}),
    Row("defense", "ulrl", quick=("defense.unlearning_epochs=2", "defense.epochs=1", "defense.threshold=0.1"), effect=Leaves(0.1, 0.06, slow=True), beside={"unlearnt_accuracy": ("defense.unlearning_epochs=20",), "schedule": ("defense.epochs=3",)}),
    Row("detector", "ac", quick=("train.epochs=1",), why=FOUND, beside={"min_samples": ("detector.min_samples=100",)}),
    Row("detector", "latent_tac", why="test_latent_tac.py: its shifts", beside={"threshold": ("detector.threshold=0.5",)}),
    Row("detector", "nc", quick=("detector.units=4", "detector.success=0.2"), why=FOUND, beside=dict.fromkeys(("multiplier", "stop_factor"), ("detector.units=16", "detector.patience=1", "detector.stop_patience=2")) | {"stop_patience": ("detector.units=40", "detector.patience=1", "detector.stop_patience=20")}),
    Row("detector", "none", why="it judges nothing"),
    Row("detector", "signature", why="test_detectors.py: the mean that stands out", beside={"threshold": ("detector.threshold=0.5",)}),
    Row("detector", "ss", why=FOUND),
    Row("detector", "strip", quick=("detector.overlays=5",), why=FOUND, smoke=True),
)
# fmt: on


def listed() -> list[tuple[str, str]]:
    """(group, name) of every option that conf/ holds."""
    return [(group, name) for group in GROUPS for name in catalog.names(group)]


def rows(*groups: str) -> list[Row]:
    """The rows of all that conf/ holds in these groups; of all where none is named."""
    known = {(row.group, row.name): row for row in ROWS}
    return [known[each] for each in listed() if each in known and each[0] in (groups or GROUPS)]


def line_to_add(group: str, name: str) -> str:
    """A row for an option that has none; its quick settings are the yaml's that cost time, at 1."""
    quick = [f'"{group}.{knob.name}=1"' for knob in catalog.describe(group, name).knobs if knob.name.endswith(COUNTS)]
    words = f"quick=({', '.join(quick)}{',' if len(quick) == 1 else ''}), " if quick else ""
    return f'Row("{group}", "{name}", {words}why="no bound is known yet"),'
