import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.errors import UserError
from trainer.commands.plan import cost
from trainer.plan.make import make_plan
from trainer.plan.steps import impossible
from trainer.recipe import TARGET_MODULES, Edge, MethodConfig, MiniatureData, Recipe, edges, engine_rank
from trainer.recipe.file import digest, load, resolved, run_id, write_resolved
from trainer.recipe.parts import Section

RECIPES = Path(__file__).parents[3] / "recipes"
SHIPPED = sorted(path for path in RECIPES.rglob("*.toml") if path.parent.name != "parts")
MINIATURE = RECIPES / "miniature.toml"

SMALL = """
name = "small"
base.name = "miniature"
capabilities.text.data = { type = "miniature", name = "text" }
capabilities.text.reward.kind = "exact"
capabilities.image.data = { type = "miniature", name = "image" }
capabilities.image.reward.kind = "exact"
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def message(path, *overrides):
    """The error, which must be one line."""
    with pytest.raises(UserError) as error:
        load(path, overrides)
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_load_and_survive_a_round_trip(path, tmp_path):
    recipe = load(path)
    assert recipe.name == "-".join([*path.parent.relative_to(RECIPES).parts, path.stem])
    again = load(write_resolved(recipe, tmp_path))
    assert again == recipe
    assert digest(again) == digest(recipe)


def test_shipped_recipes_differ():
    assert len({digest(load(path)) for path in SHIPPED}) == len(SHIPPED) >= 4


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_headers_say_what_a_step_costs(path):
    recipe = load(path)
    header = " ".join(line.lstrip("# ") for line in path.read_text().partition("\nname =")[0].splitlines())
    for step_cost in {cost(step, recipe) for step in make_plan(recipe).steps}:
        assert f"{step_cost.rollouts:,} " in header
        assert f"{step_cost.generated:,}" in header


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_makes_a_plan(path):
    plan = make_plan(load(path))
    assert list(impossible(plan)) == []
    assert plan.starts


def test_every_system_is_shipped_in_miniature_and_at_the_papers_scale():
    kinds = {
        scale: {
            (recipe.method.kind, len(recipe.branches)) for recipe in map(load, SHIPPED) if recipe.name.startswith(scale)
        }
        for scale in ("miniature", "paper")
    }
    assert kinds["miniature"] - {("copd", 5), ("ages", 3)} == kinds["paper"]
    assert {kind for kind, _ in kinds["paper"]} == {"rlvr", "static-opd", "mopd", "copd", "pilot", "negative"}


def test_a_mixed_branch_needs_a_prompt_for_each_capability(small):
    mixed = ("branches={mixed={capabilities=['text','image']}}", "method.kind=rlvr", "rollout.prompts=1")
    assert "rollout.prompts: 1 are fewer than the 2 capabilities of mixed" in message(small, *mixed)


# ---- recipes that extend others ----


def extended(tmp_path, text, name="own.toml"):
    path = tmp_path / name
    path.write_text(f'extends = "small.toml"\n{text}')
    return path


def test_tables_are_merged_and_values_replaced(small, tmp_path):
    recipe = load(extended(tmp_path, 'name = "own"\nlora.rank = 8\nlora.alpha = 8\ncapabilities.text.data.size = 5'))
    assert (recipe.name, recipe.lora.rank, recipe.base.name) == ("own", 8, "miniature")
    sizes = [data.size for data in (recipe.capabilities[name].data for name in ("text", "image"))
             if isinstance(data, MiniatureData)]  # fmt: skip
    assert sizes == [5, 2000]


def test_a_method_is_taken_whole(small, tmp_path):
    first = extended(tmp_path, 'name = "hub"\nmethod = { topology = "hub", hub = "text", cycles = 9 }', "hub.toml")
    path = tmp_path / "ring.toml"
    path.write_text('extends = "hub.toml"\nname = "ring"\nmethod.topology = "ring"')
    assert (load(first).method.hub, load(first).method.cycles) == ("text", 9)
    assert (load(path).method.hub, load(path).method.cycles) == (None, 8)


@pytest.mark.parametrize(
    ("under", "text", "said"),
    [
        ('method = { topology = "hub", hub = "text" }', 'method.cycles = 3', "[method] {}, without its topology, hub"),
        ("method = { cycles = 9, sync = 'phase' }", "method.cycles = 2", "[method] {}, without its sync"),
        ("method = { kind = 'rlvr', steps = 9 }", "method = { kind = 'rlvr' }", "[method] {}, without its steps"),
        ("branches.text.capabilities = ['text']\nbranches.image.capabilities = ['image']",
         "branches.both.capabilities = ['text', 'image']\nmethod.kind = 'rlvr'",
         "[branches] {}, without its text, image"),
    ],
)  # fmt: skip
def test_what_a_replaced_table_had_set_is_named_in_a_line(small, tmp_path, caplog, under, text, said):
    small.write_text(f"{SMALL}{under}\n")
    path = extended(tmp_path, text)
    load(path)
    line = said.format("replaces the inherited table whole")
    assert caplog.messages == [f"{path}: {line}; repeat what is to stay"]


@pytest.mark.parametrize(
    "text",
    [
        "method = { cycles = 3, topology = 'hub', hub = 'image' }",  # says all that was said
        "lora.rank = 8\nlora.alpha = 8",
        "branches.text.capabilities = ['text']\nbranches.image.capabilities = ['image']",
        "method.kind = 'rlvr'",  # another system
        "method.cycles = 3\nmethod.topology = 'ring'",  # which has no hub
    ],
)
def test_a_table_that_drops_nothing_is_silent(small, tmp_path, caplog, text):
    small.write_text(f"{SMALL}method = {{ cycles = 9, beta = 1.0, topology = 'hub', hub = 'text' }}\n")
    load(extended(tmp_path, text))
    assert caplog.messages == []


def test_tables_that_a_part_replaces_are_named_but_none_below(small, tmp_path, caplog):
    small.write_text(f"{SMALL}method.cycles = 9\n")
    extended(tmp_path, 'name = "middle"\nmethod.opd_steps = 1', "middle.toml")
    (tmp_path / "part.toml").write_text("method.rlvr_steps = 5")
    path = tmp_path / "own.toml"
    path.write_text('extends = ["middle.toml", "part.toml"]\nseed = 5')
    load(path)
    (line,) = caplog.messages
    assert line.startswith(f"{tmp_path / 'part.toml'}: [method] replaces")
    assert "without its opd_steps;" in line


def test_of_several_the_later_stand_above(small, tmp_path):
    (tmp_path / "part.toml").write_text("lora.rank = 4\nlora.alpha = 4\nseed = 3")
    path = tmp_path / "own.toml"
    path.write_text('extends = ["small.toml", "part.toml"]\nseed = 5')
    assert (load(path).lora.rank, load(path).seed) == (4, 5)


def test_inherited_capabilities_that_no_branch_uses_are_left_out(small, tmp_path):
    path = extended(tmp_path, 'branches.only.capabilities = ["image"]\nmethod.kind = "rlvr"')
    assert list(load(path).capabilities) == ["image"]
    changed = "\ncapabilities.text.data.size = 3"
    assert "capabilities.text: no branch uses it" in message(
        extended(tmp_path, path.read_text().partition("\n")[2] + changed)
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extends = 3", "extends: write the file or the name of a recipe"),
        ('extends = "smal.toml"', "no such recipe; did you mean"),
        ('extends = "own.toml"', "comes back to itself"),
    ],
)
def test_what_cannot_be_extended_is_told(small, tmp_path, text, said):
    path = tmp_path / "own.toml"
    path.write_text(text)
    assert said in message(path)


def test_the_paper_recipe_has_the_papers_settings():
    recipe = load(RECIPES / "paper-copd3.toml")
    assert (recipe.rollout.prompts, recipe.rollout.group_size, recipe.rollout.temperature) == (256, 8, 1.0)
    assert (recipe.rollout.max_prompt_tokens, recipe.rollout.max_completion_tokens) == (16_384, 16_384)
    assert (recipe.loss.eps_low, recipe.loss.eps_high) == (0.2, 0.28)
    assert (recipe.optimiser.lr, recipe.optimiser.weight_decay, recipe.optimiser.grad_norm) == (1e-5, 0.01, 1.0)
    assert recipe.optimiser.warmup_steps == 0
    assert recipe.method.rlvr_steps / recipe.method.opd_steps == 1.5
    assert {capability.reward.format_share for capability in recipe.capabilities.values()} == {0.1}
    assert recipe.evaluation.overlap_top_k == 10
    media = recipe.media
    assert (media.fps, media.max_frames, media.video_max_pixels) == (2.0, 128, 262_144)
    assert media.image_max_pixels == 1_048_576


def test_engine_numbers_follow_from_the_recipe(small):
    recipe = load(small, ["rollout.max_prompt_tokens=100", "rollout.max_completion_tokens=20"])
    assert recipe.rollout.max_model_len == 121
    assert [engine_rank(rank) for rank in (1, 4, 16, 48, 300)] == [1, 8, 16, 64, 320]
    assert load(small, ["lora.rank=48", "lora.alpha=96"]).max_lora_rank == 64
    assert len(TARGET_MODULES) == 7


def test_the_projections_of_adapters_are_one_run_in_any_order(small):
    seven, five = load(small), load(small, ['lora.modules=["up_proj","v_proj","down_proj","gate_proj","o_proj"]'])
    assert five.lora.modules == ("v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    again = load(small, ['lora.modules=["v_proj","o_proj","o_proj","down_proj","gate_proj","up_proj"]'])
    assert run_id(five) == run_id(again) != run_id(seven)
    # All of them are the default, which is left out: runs of before the key keep their names.
    everything = load(small, [f"lora.modules={json.dumps(TARGET_MODULES[::-1])}"])
    assert resolved(everything) == resolved(seven)
    assert "modules" not in resolved(seven)


@pytest.mark.parametrize(
    ("modules", "says"),
    [
        ('["lm_head"]', "lora.modules.0: must be 'q_proj', 'k_proj', .* or 'down_proj', not 'lm_head'$"),
        ("[]", "lora.modules: an adapter of nothing; name some of q_proj, k_proj, v_proj"),
    ],
)
def test_a_projection_that_is_none_is_told(small, modules, says):
    assert re.search(says, message(small, f"lora.modules={modules}"))


@pytest.mark.parametrize(("rank", "alpha", "scale"), [(64, 64, 1.0), (64, 16, 0.25), (16, 32, 2.0), (24, 12, 0.5)])
def test_the_scale_of_an_adapter_is_a_power_of_two(small, rank, alpha, scale):
    assert load(small, [f"lora.rank={rank}", f"lora.alpha={alpha}"]).lora.scale == scale


def test_branches_default_to_one_for_each_capability(small):
    branches = load(small).branches
    assert {name: branch.capabilities for name, branch in branches.items()} == {
        "text": ("text",),
        "image": ("image",),
    }


def test_one_override_of_a_default_branch_keeps_the_others(small):
    branches = load(small, ["branches.text.init=text-expert@120"]).branches
    assert branches["text"].init == "text-expert@120"
    assert branches["text"].capabilities == ("text",)
    assert list(branches) == ["text", "image"]


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("capabilities.text.data.size=100", lambda r: r.capabilities["text"].data.size, 100),
        ("optimiser.lr = 3e-4", lambda r: r.optimiser.lr, 3e-4),
        ("loss.std=false", lambda r: r.loss.std, False),
        ("base.name=Qwen/Qwen3-VL-4B-Instruct", lambda r: r.base.name, "Qwen/Qwen3-VL-4B-Instruct"),
        ('base.name="miniature"', lambda r: r.base.name, "miniature"),
        ("rollout.opd_prompts=4", lambda r: r.rollout.opd_batch, (4, 8)),
        ("rollout.opd_prompts=null", lambda r: r.rollout.opd_prompts, None),
        ("tracking.to=['wandb']", lambda r: r.tracking.to, ("wandb",)),
        ("merge.weights={text=2.0}", lambda r: r.merge.weights, {"text": 2.0}),
        ("evaluation.sets.aime-24.capability=text", None, None),
    ],
)
def test_overrides_read_toml_values_and_plain_words(small, override, read, value):
    benchmark = [
        "evaluation.sets.aime-24.data={type='dataset', name='x/y'}",
        'evaluation.sets."aime-24".reward={kind="math"}',
    ]
    if read is None:  # a key with a dash, bare and quoted
        assert load(small, [override, *benchmark]).evaluation.sets["aime-24"].capability == "text"
    else:
        assert read(load(small, [override])) == value


def test_later_overrides_win(small):
    assert load(small, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("method.cycels=3", "--set method.cycels: unknown key; did you mean method.cycles?"),
        ("metod.cycles=3", "--set metod.cycles: unknown key; did you mean method.cycles?"),
        ("lr=1e-3", "--set lr: unknown key; did you mean optimiser.lr?"),
        ("rollout.groupsize=3", "did you mean rollout.group_size?"),
        ("capabilities.text.data.siz=3", "did you mean capabilities.text.data.size?"),
        ("capabilities.txt.data.size=3", "capabilities.txt.data: no type"),
        ("wholly.wrong=1", "unknown key; a recipe has name, seed, base"),
        ("rollout.group_size.x=1", "rollout.group_size is a value"),
        ("optimiser.lr=fast", "--set optimiser.lr: must be a valid number, not 'fast'"),
        ("rollout.prompts=0", "--set rollout.prompts: must be greater than or equal to 1, not 0"),
        ("rollout.group_size=null", "--set rollout.group_size: must be a valid integer, not null"),
        ("method.kind=cop", "--set method.kind: must be 'base', 'rlvr'"),
        ("engine=3", "--set engine: must be a table"),
        ("capabilities.text.data.type=datset", "type 'datset' is unknown; take one of 'miniature', 'real', 'dataset'"),
        ("seed", "--set seed: no value; write it as KEY=VALUE"),
        ("a b=3", "--set a b=3: 'a b' is no key"),
        ('"a\\nb"=3', "unknown key"),
    ],
)
def test_a_wrong_override_names_the_nearest_path(small, override, expected):
    # rollout.group_size must be in the file for a value to be in the way
    small.write_text(SMALL + "rollout.group_size = 4\n")
    assert expected in message(small, override)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("method.cycels = 3", "method.cycels: unknown key; did you mean method.cycles?"),
        ("lora.alpha = 96", "lora: alpha 96 / rank 64 is no power of two; take alpha = 64"),
        ("rollout.group_size = 1", "rollout.group_size: a group of 1 has no baseline"),
        ("branches.text = {}", "branches.text.capabilities: missing; add it"),
        ("branches.text.capabilities = 5", "branches.text.capabilities: must be a valid tuple, not 5"),
        ("branches.Text.capabilities = ['text']", "branches.Text: 'Text' is no name; take a lower-case letter"),
        ("capabilities.text.reward.tolerance = 0.1", 'tolerance is read with kind = "numeric" only'),
        ("rollout.max_prompt_tokens = 20000", "budget.tokens_per_micro_batch: 16384 does not hold one sequence"),
        ("loss.teacher_top_k = 50", "loss.teacher_top_k: 50 is above engine.top_k = 20; raise engine.top_k to 50"),
        ("evaluation.questions = 8", "evaluation.overlap_prompts: 64 of 8 held-out questions"),
        ("evaluation.answers.greedy = false\nevaluation.answers.samples = 0", "no answer would be given"),
        ("media.image_min_pixels = 2000000", "image_min_pixels 2000000 is above image_max_pixels 1048576"),
        ("merge.weights = { txt = 1.0 }", "merge.weights.txt: 'txt' is no branch; did you mean 'text'?"),
        ("method.hub = 'text'", 'hub is given, but topology is pairwise; set topology = "hub" or remove hub'),
        ("method.topology = 'hub'", "topology hub has no hub"),
        ("method = { topology = 'hub', hub = 'txt' }", "method.hub: 'txt' is no branch; did you mean 'text'?"),
        ("method.edges = ['text <- image']", 'topology is pairwise; set topology = "explicit" or remove edges'),
        ("method.topology = 'explicit'", "topology explicit has no edges"),
        ("method = { topology = 'explicit', edges = ['text - image'] }", "method.edges.0: 'text - image' is no edge"),
        ("method = { topology = 'explicit', edges = ['text <- video'] }", "method.edges.0: 'video' is no branch"),
        ("method = { topology = 'explicit', edges = ['text <- text'] }", "a branch cannot teach itself"),
        (
            "method = { topology = 'explicit', edges = ['text <- image', {student = 'text', teacher = 'image'}] }",
            "edge text <- image is there twice",
        ),
        ("method.opd_steps = 0", "copd without opd_steps teaches nothing"),
        ("method.steps = 9", "steps is not read by copd"),
        ("method.kind = 'mopd'", "mopd has no student"),
        ("method.student = 'text'", "student is not read by copd"),
    ],
)
def test_a_wrong_file_is_told_where_and_how_to_mend_it(small, line, expected):
    small.write_text(SMALL + line + "\n")
    text = message(small)
    assert text.startswith(f"{small}: ")
    assert expected in text


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["branches={all={capabilities=['text','image']}}"], "copd needs at least 2 branches, there is 1"),
        (["branches.text.capabilities=['txt']"], "branches.text.capabilities: 'txt' is no capability"),
        (["branches={text={capabilities=['text']}}", "method.kind=rlvr"], "capabilities.image: no branch uses it"),
        (["branches.text.capabilities=['text','text']"], "one is there twice"),
        (["branches.text.capabilities=[]"], "branches.text.capabilities: empty; name at least one"),
        (["branches.text.init=text-expert"], "'text-expert' is no start; take \"base\", or a fork as BRANCH@REVISION"),
        (["capabilities.text.reward.kind=maths"], "'maths' is no reward; take one of math, choice, numeric, exact"),
        (["capabilities.text.reward.format_pattern=(<think>"], "'(<think>' is no regular expression"),
        (["media.min_frames=200"], "media: min_frames 200 is above max_frames 128"),
        (["capabilities.text.reward.kind=my_rewards:"], "or a function of your own as module:function"),
        (
            ["capabilities.image.data={type='dataset',name='d',columns={images='image'}}", "media.max_images=0"],
            "capabilities.image.data.columns.images: media.max_images is 0",
        ),
    ],
)
def test_sections_are_checked_against_each_other(small, overrides, expected):
    assert expected in message(small, *overrides)


def test_a_function_of_ones_own_is_a_reward(small):
    recipe = load(small, ["capabilities.text.reward.kind=my_rewards.units:score"])
    assert recipe.capabilities["text"].reward.kind == "my_rewards.units:score"


def test_many_problems_are_one_line_with_a_count(small):
    overrides = [f"wrong{number}=1" for number in range(5)]
    assert message(small, *overrides).endswith("; and 2 more")


KEYS = st.sampled_from(
    ["capabilities", "branches", "text", "data", "method", "edges", "type", "rollout", "name", "a b"]
)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
fuzzed = settings(max_examples=75, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzzed
@given(tree=st.dictionaries(KEYS, TREES))
def test_anything_in_a_file_is_a_recipe_or_one_line(tree, tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(tree))
    message(path)


@fuzzed
@given(key=st.lists(KEYS | st.text(max_size=6), min_size=1, max_size=4), value=st.text(max_size=12))
def test_any_override_is_taken_or_one_line(key, value):
    said = "one line"
    try:
        load(MINIATURE, [f"{'.'.join(key)}={value}"])
    except UserError as error:
        said = str(error)
    assert len(said.splitlines()) == 1


def test_files_that_are_no_recipe(tmp_path):
    near = tmp_path / "miniature.toml"
    near.write_text(SMALL)
    assert f"no such recipe; did you mean {near}?" in message(tmp_path / "minature.toml")
    assert "has no .toml files" in message(tmp_path / "elsewhere" / "x.toml")
    assert "cannot be read" in message(tmp_path)
    broken = tmp_path / "broken.toml"
    broken.write_text("name = \n")
    assert "not toml: Invalid value (at line 1" in message(broken)
    listed = tmp_path / "recipe.json"
    listed.write_text("[]")
    assert "not a recipe" in message(listed)


def test_resolved_recipes_keep_nulls_and_spell_out_defaults(small):
    tree = json.loads(resolved(load(small)))
    assert tree["rollout"]["opd_prompts"] is None
    assert tree["branches"]["image"] == {"capabilities": ["image"], "init": "base"}
    # These came later, and are at their defaults.
    assert set(tree) == set(Recipe.model_fields) - {"rollouts", "worker"}


def test_a_resolved_recipe_takes_overrides_too(small, tmp_path):
    path = write_resolved(load(small), tmp_path / "run")
    assert load(path, ["seed=7"]).seed == 7
    assert [entry.name for entry in path.parent.iterdir()] == ["recipe.json"]


def test_the_digest_tells_recipes_apart(small):
    assert digest(load(small)) == digest(load(small))
    assert digest(load(small)) != digest(load(small, ["seed=1"]))
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest(load(small)))


def test_recipes_are_frozen(small):
    with pytest.raises(ValueError, match="frozen"):
        load(small).rollout.prompts = 3


BRANCHES = ("text", "image", "video")


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (MethodConfig(topology="hub", hub="text"), {"text<-image", "text<-video", "image<-text", "video<-text"}),
        (MethodConfig(topology="ring"), {"text<-video", "image<-text", "video<-image"}),
        (
            MethodConfig(),
            {"text<-image", "text<-video", "image<-text", "image<-video", "video<-text", "video<-image"},
        ),
        (MethodConfig(kind="mopd", student="video"), {"video<-text", "video<-image"}),
        (MethodConfig(kind="rlvr"), set()),
        (MethodConfig(kind="base"), set()),
    ],
)
def test_topologies_say_who_learns_from_whom(method, expected):
    pairs = [f"{edge.student}<-{edge.teacher}" for edge in edges(method, BRANCHES)]
    assert set(pairs) == expected
    assert len(pairs) == len(expected)


def test_a_ring_of_two_is_mutual():
    ring = edges(MethodConfig(topology="ring"), ("text", "image"))
    assert set(ring) == {Edge("text", "image", 1.0), Edge("image", "text", 1.0)}


def test_edges_have_their_own_beta_or_the_methods():
    method = MethodConfig.model_validate(
        {
            "topology": "explicit",
            "beta": 0.5,
            "edges": ["text <- image", {"student": "image", "teacher": "text", "beta": 2.0}],
        }
    )
    assert edges(method, BRANCHES) == (Edge("text", "image", 0.5), Edge("image", "text", 2.0))


def test_an_expert_has_as_many_steps_as_a_branch_in_cycles():
    assert MethodConfig(cycles=8, rlvr_steps=3, opd_steps=2).expert_steps == 40
    assert MethodConfig(kind="rlvr", steps=7).expert_steps == 7


def test_every_field_is_described():
    """A field whose value is a section is described by that section."""
    undescribed = [
        f"{section.__name__}.{name}"
        for section in Section.__subclasses__()
        for name, field in section.model_fields.items()
        if field.description is None and "trainer.recipe" not in repr(field.annotation) and name != "type"
    ]
    assert undescribed == []


def test_importing_recipes_imports_no_torch():
    code = "import sys, trainer.recipe.file; print({'torch', 'vllm', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
