"""Merges against their formulas in float64, against PEFT, and what they refuse."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.base import locate
from adapters.errors import UserError
from adapters.manifest import CONFIG, WEIGHTS
from adapters.merge import fold, make_merge_plan, write_adapter
from adapters.merge_inputs import open_base, open_folder, open_revision
from adapters.merge_math import inner_products, ties, trim_threshold, truncated
from adapters.merge_record import RECORD
from adapters.names import Ref
from adapters.store import DiskFullError
from adapters.validate import check_adapter
from tests import disks
from tests.adapters.files import SHAPE, store_in_use
from tests.adapters.peft_files import PARTIAL, save_by_peft

MINIATURE = locate("miniature")
KINDS = {"text": (4, 16, False), "image": (16, 8, True), "video": (7, 3.5, False)}  # rank, alpha, rsLoRA
WEIGHTS_GIVEN = {"text": 2.0, "image": 1.0, "video": 0.5}
SCALE = 1.3
PREFIX = "base_model.model."


def write_random(folder, seed, rank, alpha, rslora=False):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tensors = {
        key: torch.from_numpy(rng.normal(0, 0.1, shape).astype("f4")) for key, shape in SHAPE.shapes(rank).items()
    }
    save_file(tensors, folder / WEIGHTS)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "use_rslora": rslora, "bias": "none"}
    config["target_modules"] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    return {name: write_random(root / name, seed, *kind) for seed, (name, kind) in enumerate(KINDS.items())}


@pytest.fixture(scope="module")
def base16():
    return open_base(MINIATURE, "miniature")


@pytest.fixture(scope="module")
def base32(tmp_path_factory):
    """The miniature in float32, in several files with an index."""
    folder = tmp_path_factory.mktemp("base32") / "base"
    shutil.copytree(MINIATURE, folder)
    tensors = {key: value.float() for key, value in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    where = {key: names[number % 3] for number, key in enumerate(tensors)}
    for name in names:
        save_file({key: value for key, value in tensors.items() if where[key] == name}, folder / name, {"format": "pt"})
    index = {"metadata": {"total_size": 4 * sum(map(torch.numel, tensors.values()))}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    return open_base(folder, "base32")


def plan_of(base, folders, **settings):
    settings = {"weights": WEIGHTS_GIVEN, "scale": SCALE} | settings
    return make_merge_plan([open_folder(folder, base) for folder in folders.values()], **settings)


def weights_of(folder):
    return {key: value for path in sorted(folder.glob("*.safetensors")) for key, value in load_file(path).items()}


def literal_deltas(folders) -> dict[str, dict[str, torch.Tensor]]:
    """scale_k B_k A_k in float64, by adapter and by key of the base."""
    deltas = {}
    for name, folder in folders.items():
        rank, alpha, rslora = KINDS[name]
        scale = alpha / rank**0.5 if rslora else alpha / rank
        factors = load_file(folder / WEIGHTS)
        deltas[name] = {
            key.removeprefix(PREFIX).replace(".lora_A", ""): scale
            * factors[key.replace("lora_A", "lora_B")].double()
            @ factors[key].double()
            for key in factors
            if ".lora_A." in key
        }
    return deltas


def literal_delta(folders) -> dict[str, torch.Tensor]:
    deltas, total = literal_deltas(folders), sum(WEIGHTS_GIVEN.values())
    return {
        key: SCALE * torch.stack([WEIGHTS_GIVEN[name] / total * deltas[name][key] for name in deltas]).sum(0)
        for key in deltas["text"]
    }


@pytest.fixture(scope="module")
def folded32(base32, folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("merged") / "folded32"
    return folder, fold(base32, plan_of(base32, folders), folder)


@pytest.fixture(scope="module")
def stacked(base32, folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("merged") / "stacked"
    write_adapter(base32, plan_of(base32, folders), folder)
    return folder


def load_plain(folder):
    from transformers import AutoModelForImageTextToText
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def test_a_float32_base_becomes_the_literal_sum_and_nothing_else_changes(base32, folders, folded32) -> None:
    before, after, delta = weights_of(base32.folder), weights_of(folded32[0]), literal_delta(folders)
    assert before.keys() == after.keys() > delta.keys()
    for key, weight in before.items():
        if key in delta:
            assert (after[key] - (weight.double() + delta[key])).abs().max() < 1e-6
            assert delta[key].abs().max() > 0.05
        else:
            assert torch.equal(after[key], weight)


def test_it_is_what_pefts_cat_merges(base32, folders, folded32) -> None:
    from peft import PeftModel

    total = sum(WEIGHTS_GIVEN.values())
    peft = PeftModel.from_pretrained(load_plain(base32.folder), folders["text"], adapter_name="text")
    for name in ("image", "video"):
        peft.load_adapter(folders[name], adapter_name=name)
    shares = [SCALE * weight / total for weight in WEIGHTS_GIVEN.values()]
    peft.add_weighted_adapter(list(folders), shares, "merged", combination_type="cat")
    peft.set_adapter("merged")
    expected = peft.merge_and_unload().state_dict()
    folded = load_plain(folded32[0]).state_dict()
    assert folded.keys() == expected.keys()
    assert max(float((folded[key] - expected[key]).abs().max()) for key in folded) < 1e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_a_folded_checkpoint_answers_as_the_stacked_adapter(
    dtype, tolerance, base32, base16, folders, folded32, stacked, tmp_path
) -> None:
    from peft import PeftModel

    folder, base = folded32[0], base32
    if dtype == "bfloat16":
        folder, base = tmp_path / "folded16", base16
        fold(base, plan_of(base, folders), folder)
    ids = torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        plain = load_plain(base.folder)
        untouched = plain(input_ids=ids).logits
        expected = PeftModel.from_pretrained(plain, stacked).eval()(input_ids=ids).logits
        folded = load_plain(folder)(input_ids=ids).logits
    assert (folded - expected).abs().max() < tolerance
    assert (untouched - expected).abs().mean() > 20 * (folded - expected).abs().mean()


def test_the_stacked_adapter_is_a_valid_one_and_exact(base32, folders, stacked) -> None:
    adapter = check_adapter(stacked, base32.shape, 64)
    assert json.loads((stacked / CONFIG).read_text())["base_model_name_or_path"] == "base32"
    assert (adapter.rank, adapter.scale) == (4 + 16 + 7, 1)
    factors, delta = load_file(stacked / WEIGHTS), literal_delta(folders)
    for key, expected in delta.items():
        module = PREFIX + key.removesuffix(".weight")
        product = factors[f"{module}.lora_B.weight"].double() @ factors[f"{module}.lora_A.weight"].double()
        torch.testing.assert_close(product, expected, atol=1e-6, rtol=0)


def test_adapters_with_fewer_modules_give_their_deltas_and_zero_elsewhere(base32, folders, tmp_path) -> None:
    partial = {name: save_by_peft(tmp_path / name, seed=seed, **PARTIAL[name]) for seed, name in enumerate(PARTIAL)}
    branches = [open_folder(folder, base32) for folder in partial.values()]
    fold(base32, make_merge_plan(branches, {}), tmp_path / "out")
    before, after = weights_of(base32.folder), weights_of(tmp_path / "out")
    expected = {key: value.double() for key, value in before.items()}
    for folder in partial.values():
        factors = load_file(folder / WEIGHTS)
        for key in factors:
            module, half, _ = key.rsplit(".", 2)
            if half == "lora_A":  # alpha / r = 16 / 8, and the mean of as many as there are
                delta = 2 * factors[f"{module}.lora_B.weight"].double() @ factors[key].double()
                expected[f"{module.removeprefix(PREFIX)}.weight"] += delta / len(partial)
    assert max(float((after[key] - expected[key]).abs().max()) for key in expected) < 1e-6

    write_adapter(base32, make_merge_plan(branches, {}), tmp_path / "stacked")
    assert check_adapter(tmp_path / "stacked", base32.shape, 64).rank == 8 * len(partial)
    assert "| query-value |" in (tmp_path / "stacked" / "README.md").read_text()


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "BF16"), (torch.float16, "F16")])
def test_an_adapter_of_16_bits_is_folded_in_float32(dtype, name, base32, folders, tmp_path) -> None:
    half = shutil.copytree(folders["image"], tmp_path / "half")
    rounded = {key: weight.to(dtype) for key, weight in load_file(half / WEIGHTS).items()}
    save_file(rounded, half / WEIGHTS)
    exact = shutil.copytree(folders["image"], tmp_path / "exact")
    save_file({key: weight.float() for key, weight in rounded.items()}, exact / WEIGHTS)
    for folder in (half, exact):
        branches = [open_folder(folder, base32, "image"), open_folder(folders["text"], base32, "text")]
        record = fold(base32, make_merge_plan(branches, {}), tmp_path / f"{folder.name}-merged")
        assert record.branches[0].dtype == ("F32" if folder is exact else name)
    for path in sorted((tmp_path / "exact-merged").glob("*.safetensors")):
        merged, expected = load_file(tmp_path / "half-merged" / path.name), load_file(path)
        assert all(torch.equal(merged[key], expected[key]) for key in expected)


def test_svd_and_ties_take_adapters_that_share_no_module(base32, tmp_path) -> None:
    names = ("query-value", "two-layers")
    partial = [save_by_peft(tmp_path / name, seed=seed, **PARTIAL[name]) for seed, name in enumerate(names)]
    branches = [open_folder(folder, base32) for folder in partial]
    for method in ("svd", "ties"):
        record = fold(base32, make_merge_plan(branches, {}, method=method), tmp_path / method)
        assert record.cosines == {"query-value two-layers": 0.0}
        assert 0 < record.changed < 0.5


def test_one_cast_and_a_record_that_says_what_it_did(base16, folders, tmp_path) -> None:
    record = fold(base16, plan_of(base16, folders), tmp_path / "out")
    before, after, delta = weights_of(MINIATURE), weights_of(tmp_path / "out"), literal_delta(folders)
    exact = {key: before[key].double() + delta[key] for key in delta}
    wrong = sum(int((after[key] != exact[key].to(torch.bfloat16)).sum()) for key in delta)
    total = sum(map(torch.numel, delta.values()))
    assert wrong < 1e-4 * total  # float32 against float64, at the middle between two numbers
    assert record.changed == sum(int((after[key] != before[key]).sum()) for key in delta) / total
    errors = {key: after[key].double() - exact[key] for key in delta}
    assert record.largest_difference == pytest.approx(max(float(e.abs().max()) for e in errors.values()), rel=1e-4)
    norms = [
        sum(float(value.square().sum()) for key, value in delta.items() if f".layers.{layer}." in key) ** 0.5
        for layer in range(4)
    ]
    assert record.layer_norms == pytest.approx(norms, rel=1e-5)
    lost = sum(float(e.square().sum()) for e in errors.values()) ** 0.5
    assert record.lost == pytest.approx(lost / sum(norm**2 for norm in norms) ** 0.5, rel=1e-4)


def test_cosines_are_those_of_the_full_deltas(folders, folded32) -> None:
    flat = {name: torch.cat([d.flatten() for d in deltas.values()]) for name, deltas in literal_deltas(folders).items()}
    expected = {
        f"{a} {b}": float(torch.cosine_similarity(flat[a], flat[b], dim=0)) for a, b in itertools.combinations(flat, 2)
    }
    assert folded32[1].cosines == pytest.approx(expected, abs=1e-7)


def test_inner_products_need_no_delta() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [(torch.randn(9, r, generator=generator), torch.randn(r, 5, generator=generator)) for r in (1, 3, 2)]
    deltas = torch.stack([(up @ down).flatten() for up, down in pairs]).double()
    torch.testing.assert_close(inner_products(pairs), deltas @ deltas.T, atol=1e-5, rtol=1e-5)


def test_svd_is_the_nearest_of_its_rank_folded_or_as_adapter(base32, folders, tmp_path) -> None:
    plan = plan_of(base32, folders, method="svd", rank=5)
    write_adapter(base32, plan, tmp_path / "adapter")
    record = fold(base32, plan, tmp_path / "out")
    assert (record.method, record.rank, check_adapter(tmp_path / "adapter", base32.shape, 5).rank) == ("svd", 5, 5)
    factors, before = load_file(tmp_path / "adapter" / WEIGHTS), weights_of(base32.folder)
    after = weights_of(tmp_path / "out")
    for key, delta in literal_delta(folders).items():
        left, values, right = torch.linalg.svd(delta, full_matrices=False)
        nearest = left[:, :5] * values[:5] @ right[:5]
        module = PREFIX + key.removesuffix(".weight")
        product = factors[f"{module}.lora_B.weight"] @ factors[f"{module}.lora_A.weight"]
        torch.testing.assert_close(product.double(), nearest, atol=2e-6, rtol=0)
        torch.testing.assert_close(after[key], before[key] + product, atol=1e-6, rtol=0)


def test_a_projection_smaller_than_the_rank_is_padded() -> None:
    up, down = torch.randn(4, 10), torch.randn(10, 6)
    small_up, small_down = truncated(up, down, 8)
    assert (small_up.shape, small_down.shape) == ((4, 8), (8, 6))
    torch.testing.assert_close(small_up @ small_down, up @ down)


def test_ties_with_equal_weights_is_pefts() -> None:
    from peft.utils.merge_utils import ties as reference

    deltas = [*torch.randn(3, 20, 30, generator=torch.Generator().manual_seed(1))]
    expected = reference([delta.clone() for delta in deltas], torch.ones(3), density=0.4)
    torch.testing.assert_close(ties(deltas, [trim_threshold(delta, 0.4) for delta in deltas], [1 / 3] * 3), expected)


def test_ties_with_weights_is_the_weighted_mean_of_those_that_agree() -> None:
    shares = [0.6, 0.3, 0.1]
    deltas = [*torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(2))]
    trimmed = torch.stack(deltas)
    for delta in trimmed:
        delta[delta.abs() < delta.abs().flatten().sort().values[-10]] = 0
    merged = ties(deltas, [trim_threshold(delta, 0.5) for delta in deltas], shares)
    for row, column in itertools.product(range(4), range(5)):
        values = trimmed[:, row, column].tolist()
        elected = np.sign(sum(w * v for w, v in zip(shares, values, strict=True)))
        agreeing = [(w, v) for w, v in zip(shares, values, strict=True) if v and np.sign(v) == elected]
        expected = sum(w * v for w, v in agreeing) / sum(w for w, _ in agreeing) if agreeing else 0.0
        assert float(merged[row, column]) == pytest.approx(expected, abs=1e-6)


def test_ties_is_folded_and_makes_no_adapter(base32, folders, tmp_path) -> None:
    plan = plan_of(base32, folders, method="ties", density=0.3)
    fold(base32, plan, tmp_path / "out")
    before, after, deltas = weights_of(base32.folder), weights_of(tmp_path / "out"), literal_deltas(folders)
    shares = [weight / 3.5 for weight in WEIGHTS_GIVEN.values()]
    for key in deltas["text"]:
        full = [deltas[name][key] for name in deltas]
        expected = SCALE * ties(full, [trim_threshold(delta, 0.3) for delta in full], shares)
        wrong = (after[key] - before[key] - expected).abs() > 1e-6
        assert wrong.double().mean() < 1e-3  # entries at the threshold may fall on either side of it
    with pytest.raises(UserError, match="ties makes no adapter"):
        write_adapter(base32, plan, tmp_path / "adapter")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_everything_that_a_model_needs_comes_along(folded32, base32, folders) -> None:
    from transformers import AutoProcessor, AutoTokenizer, GenerationConfig

    folder, record = folded32
    for name in ("chat_template.jinja", "processor_config.json", "tokenizer.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (base32.folder / name).read_bytes()
    assert AutoProcessor.from_pretrained(folder).tokenizer.chat_template
    assert AutoTokenizer.from_pretrained(folder)("1").input_ids
    assert GenerationConfig.from_pretrained(folder).eos_token_id
    assert json.loads((folder / RECORD).read_text()) == json.loads(record.model_dump_json())
    card = (folder / "README.md").read_text()
    for fact in (base32.digest, "scale: 1.3", "method: mean", *(branch.digest for branch in record.branches)):
        assert fact in card
    assert "| text | text |" in card
    assert "0.571429" in card


@pytest.fixture
def store(tmp_path, folders):
    with store_in_use(tmp_path / "store", folders) as store:
        yield store


def listing(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_revisions_of_a_store_in_use_are_read_and_nothing_is_touched(store, base16, tmp_path) -> None:
    before = listing(store.root)
    branches = [open_revision(store.root, Ref.parse(name), base16) for name in ("text", "image@1")]
    record = fold(base16, make_merge_plan(branches, {}), tmp_path / "out")
    assert [(branch.source, branch.share) for branch in record.branches] == [("text@2", 0.5), ("image@1", 0.5)]
    assert record.branches[0].digest == store.branch("text").live[2].digest
    assert listing(store.root) == before


def test_a_revision_retired_after_it_was_opened_is_still_merged(store, base16, tmp_path) -> None:
    plan = make_merge_plan([open_revision(store.root, Ref("text", 1), base16)], {})
    store.retire(Ref("text", 1))
    fold(base16, plan, tmp_path / "out")
    with pytest.raises(UserError, match="text@1 is not there, or retired"):
        open_revision(store.root, Ref("text", 1), base16)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("text@0", "it is the base itself"), ("text@9", "not there"), ("video", "no branch video")],
)
def test_what_is_no_revision_is_refused(name, reason, store, base16) -> None:
    with pytest.raises(UserError, match=reason):
        open_revision(store.root, Ref.parse(name), base16)


def test_a_flipped_bit_in_the_store_is_found(store, base16) -> None:
    path = store.folder(Ref("text", 2)) / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=f"text/2: {WEIGHTS} is not what the manifest says"):
        open_revision(store.root, Ref("text", 2), base16)


def test_a_store_of_another_base_is_refused(store, base32) -> None:
    with pytest.raises(UserError, match="give its own with --base"):
        open_revision(store.root, Ref("text", 2), base32)


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_an_existing_target_is_refused_and_kept(kind, base16, folders, tmp_path) -> None:
    target = tmp_path / "out"
    {"folder": target.mkdir, "file": target.touch, "link": lambda: target.symlink_to("nowhere")}[kind]()
    for make in (fold, write_adapter):
        with pytest.raises(UserError, match=r"out: exists; name a new folder$"):
            make(base16, plan_of(base16, folders), target)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture
def small_disk(tmp_path):
    with disks.small_disk(tmp_path / "small", "8m") as folder:
        yield folder


@pytest.mark.parametrize("free", [0, 2**12, 2**20, 5 * 2**20])
def test_a_full_disk_is_one_line_and_leaves_nothing(free, base16, folders, small_disk) -> None:
    ballast = disks.fill(small_disk, free)
    with pytest.raises(DiskFullError, match="free some room"):
        fold(base16, plan_of(base16, folders), small_disk / "out")
    assert [path.name for path in small_disk.iterdir()] == [ballast.name]
    ballast.unlink()
    fold(base16, plan_of(base16, folders), small_disk / "out")


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float16, 1e7), (torch.float32, 1e39)])
def test_weights_beyond_the_dtype_are_refused(dtype, scale, folders, tmp_path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(MINIATURE, folder)
    tensors = {key: value.to(dtype) for key, value in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    base = open_base(folder, "base")
    with pytest.raises(UserError, match="take a lower --scale"):
        fold(base, plan_of(base, folders, scale=scale), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"weights": {"text": 1}}, "'image' has no weight"),
        ({"weights": {"text": 1, "image": 1, "video": 1, "sound": 1}}, "'sound' names no adapter"),
        ({"weights": {"text": 0, "image": 0, "video": 0}}, "not all of them 0"),
        ({"weights": {"text": -1, "image": 1, "video": 1}}, "numbers from 0"),
        ({"weights": {"text": float("nan"), "image": 1, "video": 1}}, "numbers from 0"),
        ({"scale": 0}, "--scale 0"),
        ({"density": 1.5, "method": "ties"}, "--density 1.5"),
        ({"rank": 0, "method": "svd"}, "--rank 0"),
        ({"rank": 4}, "mean has its own"),
    ],
)
def test_wrong_numbers_are_one_line(settings, reason, base16, folders) -> None:
    with pytest.raises(UserError, match=reason) as error:
        plan_of(base16, folders, **settings)
    assert "\n" not in str(error.value)


def test_a_base_that_lacks_a_projection_is_refused(tmp_path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(MINIATURE, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.language_model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"layers\.2\.mlp\.up_proj\.weight is missing"):
        open_base(folder, "base")
