"""Composition: every file in conf/ becomes a valid configuration; what cannot be one is refused by name."""

from pathlib import Path

import pytest
import yaml

from harness.config.compose import (
    compose_run,
    conf_directory,
    config_of_tree,
    config_tree,
    group_options,
    known_keys,
)
from harness.config.schema import LoraConfig, QuantFormat, RunConfig
from harness.config.validate import validate
from harness.errors import RequestError

OPTIONS = [
    (group, option)
    for group, names in group_options().items()
    for option in names
    if group != "experiment"  # which sets keys of all sections
]
EXPERIMENTS = ("comments_mistral", "alpaca_llama3", "gemma_nf4")
COMPANIONS = {("lora", "none"): ["quant=none"]}
"""What an option is refused without."""
ON_GPU_ONLY = ("paged_adamw_8bit", "paged_adamw_32bit")


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: value)
def test_every_option_composes_to_what_its_file_says_and_is_valid(group, option, monkeypatch):
    if option in ON_GPU_ONLY:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    config = compose_run([f"{group}={option}", *COMPANIONS.get((group, option), [])])
    validate(config)
    section = config_tree(config)[group]
    said = yaml.safe_load((conf_directory() / group / f"{option}.yaml").read_text())
    assert {key: section[key] for key in said} == said


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_the_same_training_here_and_with_the_hub(name, monkeypatch):
    here = compose_run([f"experiment={name}_here"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    hub = compose_run([f"experiment={name}"])
    for config in (here, hub):
        validate(config)
    assert hub.data.hub is not None
    assert "/" in hub.model.name
    assert here.data.task is not None
    assert here.model.name == "smollm2_135m"
    assert (here.lora.rank, here.lora.target_modules) == (hub.lora.rank, hub.lora.target_modules)
    for key in ("lr", "schedule", "warmup_steps", "weight_decay", "batch_size", "steps", "epochs"):
        assert getattr(here.optim, key) == getattr(hub.optim, key), key
    embedded = compose_run([f"experiment={name}_here", "model=embedded", "optim.lr=1", "lora=qv"])
    validate(embedded)
    assert (embedded.model.name, embedded.optim.lr) == ("embedded", 1.0)
    assert embedded.lora.target_modules == ["q_proj", "v_proj"]
    said = (conf_directory() / "experiment" / f"{name}.yaml").read_text()
    assert "From the Hugging Face hub" in said


def test_the_walk_through_with_comments_has_its_own_settings():
    """Those of the table in its author's text: 50 and 9 rows, ten epochs of batches of 4 x 4."""
    config = compose_run(["experiment=comments_mistral_here"])
    lora, optim = config.lora, config.optim
    assert (lora.rank, lora.alpha, lora.dropout, lora.target_modules) == (8, 32, 0.05, ["q_proj"])
    assert (optim.lr, optim.batch_size, optim.micro_batch_size) == (2e-4, 16, 4)
    assert (optim.epochs, optim.warmup_steps, optim.weight_decay) == (10, 2, 0.01)
    assert (config.eval.every_epochs, config.eval.keep_best) == (1, True)
    assert (config.data.train_rows, config.data.validation_rows) == (50, 9)
    assert compose_run(["experiment=comments_mistral_here", "optim.steps=3"]).optim.epochs is None


def test_a_run_without_overrides_is_valid_and_complete():
    config = compose_run([])
    validate(config)
    assert isinstance(config, RunConfig)
    assert isinstance(config.lora, LoraConfig)
    assert config.quant.format is QuantFormat.nf4
    assert config.quant.compute_dtype.value == "float32"


def test_the_compute_type_follows_the_device(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert compose_run([]).quant.compute_dtype.value == "bfloat16"
    assert compose_run(["resources.device=cpu"]).quant.compute_dtype.value == "float32"
    assert compose_run(["quant.compute_dtype=float32"]).quant.compute_dtype.value == "float32"


def test_the_known_keys_are_those_of_the_composed_tree():
    def leaves(tree, prefix=""):
        for key, value in tree.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield prefix + key

    assert set(known_keys()) == set(leaves(config_tree(compose_run([]))))


@pytest.mark.parametrize(
    ("override", "gone"),
    [
        ("lora.alpha=16", "alpha_over_rank"),
        ("optim.epochs=2", "steps"),
    ],
)
def test_one_of_a_pair_takes_the_place_of_the_others_default(override, gone):
    section, key = override.split("=")[0].split(".")
    config = getattr(compose_run([override]), section)
    assert getattr(config, gone) is None
    assert getattr(config, key) is not None


@pytest.mark.parametrize(
    "name",
    [
        "/models/my llama",
        "/models/a (b)",
        "it's here",
        "a=b/c",
        "back\\slash",
        "ends\\",
        "~/llama",
        "org/Llama-3.2-1B",
    ],
)
def test_any_path_can_be_a_model_or_a_file(name):
    assert compose_run([f"model={name}"]).model.name == name
    assert compose_run([f"data.path={name}"]).data.path == name


def test_home_is_written_out_where_output_goes(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    config = compose_run(["paths.out=~/runs", "paths.cache=~/cache"])
    assert (config.paths.out, config.paths.cache) == ("/home/ada/runs", "/home/ada/cache")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lora.rnk=4", ["lora.rnk", "lora.rank"]),
        ("lora.learning_rate=1", ["lora.learning_rate"]),
        ("lr=0.1", ["'lr'", "optim.lr"]),
        ("+optim.bogus=1", ["optim.bogus"]),
        ("optm=adamw", ["optm", "optim"]),
        ("quant=nf5", ["quant=nf5", "nf4", "int4_asym_dq"]),
        ("lora=[qv,mlp]", ["lora=[qv,mlp]", "all_linear"]),
        ("model=null", ["model=null", "embedded", "Hugging Face"]),
        ("model=", ["model=", "embedded"]),
        ("data=null", ["data=null", "alpaca"]),
        ("quant.format=nf5", ["quant.format=nf5", "int4_asym"]),
        ("lora.rank=abc", ["lora.rank=abc", "Integer"]),
        ("lora.rank=2.5", ["lora.rank=2.5", "Integer"]),
        ("lora.target_modules=q_proj", ["lora.target_modules=[q_proj]"]),
        ("checkpoint=5", ["checkpoint=5"]),
        ("~lora.rank", ["~lora.rank"]),
        ("lora.rank=2,4", ["lora.rank=2,4", "sweep"]),
        ("lora.rank=choice(2,4)", ["choice(2,4)", "sweep"]),
        ("nonsense", ["nonsense", "key=value"]),
        ("lora.rank=(", ["lora.rank=(", "key=value"]),
    ],
)
def test_what_is_no_configuration_is_refused_with_what_would_work(override, words):
    with pytest.raises(RequestError) as refused:
        compose_run([override])
    message = str(refused.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_the_tree_in_conf_is_data_only():
    for file in conf_directory().rglob("*"):
        assert file.is_dir() or file.suffix == ".yaml", file
        assert file.is_dir() or "_target_" not in Path(file).read_text()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.path", "a,b.jsonl"),
        ("data.path", "100%${v}.jsonl"),
        ("data.path", "rows (1) [new].jsonl"),
        ("data.path", "it's=here.jsonl"),
        ("data.system", "You are kind, and brief."),
        ("data.response_column", "answer (gold)"),
        ("data.prompt_column", "question: text"),
        ("data.input_column", "a,b"),
        ("paths.out", "/tmp/x,y {z}"),
        ("data.path", "1e5"),
        ("data.path", "true"),
        ("data.path", "back\\slash\\${v}\\"),
        ("data.path", "'quoted' only at first.jsonl"),
        ("data.system", "{json}, [list] and 'this'"),
        ("data.hub_split", "train[:10%]+test"),
        ("data.hub_config", "default (en,de)"),
        ("data.revision", "0012"),
        ("tracker.project", "mine, 100% (1)"),
        ("model.revision", "123e4"),
        ("model.name", "/models/a,b (c)/${d}"),
        ("eval.choice_path", "mmlu,dev.jsonl"),
    ],
)
def test_paths_and_free_texts_are_taken_as_they_are(key: str, value: str):
    """Hydra's grammar reads them otherwise: hydra-ecosystem/hydra#573, #798, #938, #962, #1074, #1577."""
    config = compose_run(["data=pairs", "data.path=x.jsonl", f"{key}={value}"])
    section, _, field = key.partition(".")
    assert getattr(getattr(config, section), field) == value
    assert config_of_tree(config_tree(config)) == config  # as it is written, and read again
    quoted = compose_run(["data=pairs", "data.path=x.jsonl", f'{key}="a,b"'])
    assert getattr(getattr(quoted, section), field) == "a,b"
    assert (
        compose_run(["data=pairs", "data.path=x", "data.input_column=null"]).data.input_column
        is None
    )


def test_the_environment_says_where_everything_goes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HARNESS_OUT", "/scratch/${me}, mine")
    assert compose_run([]).paths.out == "/scratch/${me}, mine"
    assert compose_run(["paths.out=here"]).paths.out == "here"
    monkeypatch.setenv("HARNESS_OUT", "")
    assert compose_run([]).paths.out == "out"


def test_a_group_cannot_be_left_out():
    with pytest.raises(RequestError, match="~quant would leave quant to the schema's defaults"):
        compose_run(["~quant"])
    assert compose_run(["model=embedded"]).model.name == "embedded"
