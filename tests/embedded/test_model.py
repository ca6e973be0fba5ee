"""The shipped model: its files, its tokenizer, its recorded numbers and its retraced start."""

import json
from itertools import islice

import pytest
import torch

from harness.embedded.corpus import Part, documents, skill_pairs
from harness.embedded.tasks import TASKS, make_task
from harness.embedded.tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCABULARY_SIZE, load_tokenizer
from pretraining.measure import (
    MODEL_FOLDER,
    exact_match,
    greedy_responses,
    held_out_losses,
    held_out_rows,
    load_model,
    token_losses,
)
from pretraining.pretrain import (
    CURVE_FILE,
    Recipe,
    build_model,
    build_optimizers,
    check,
    pretrain,
    resume,
    schedule,
    step_batch,
    train_step,
)
from pretraining.rows import TokenKind


@pytest.fixture(scope="module", autouse=True)
def offline():
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    yield
    patch.undo()


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(MODEL_FOLDER)


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture(scope="module")
def record():
    return json.loads((MODEL_FOLDER / CURVE_FILE).read_text())


def test_any_text_survives_the_tokenizer(tokenizer) -> None:
    texts = [d.text for d in islice(documents(Part.HELD_OUT, seed=9), 500)]
    texts += ["  two  spaces ", "naïve — 数 🦊\t\r\n", "x\x00y", "12,345.67 + 8\n\n= 9", ""]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_digits_stand_alone(tokenizer) -> None:
    assert tokenizer.tokenize("1234")[-4:] == ["1", "2", "3", "4"]
    assert not [token for token in tokenizer.get_vocab() if sum(c.isdigit() for c in token) > 1]


def test_special_tokens_are_three_and_distinct(tokenizer) -> None:
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<s>", "</s>"]) == [PAD_ID, BOS_ID, EOS_ID]
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert ids == (PAD_ID, BOS_ID, EOS_ID)
    assert len(tokenizer) == VOCABULARY_SIZE


def test_prompt_tokens_begin_the_whole_rows_tokens(tokenizer) -> None:
    for name in TASKS:
        splits = make_task(name, train_rows=400, validation_rows=4, test_rows=4, seed=0)
        for prompt, response in splits.train:
            head = tokenizer(f"{prompt}\n")["input_ids"]
            row = tokenizer(f"{prompt}\n{response}")["input_ids"]
            assert row[: len(head)] == head
            assert len(row) + 1 <= 64


def test_rows_hold_whole_documents(tokenizer) -> None:
    rows = held_out_rows(tokenizer, num_rows=8)
    texts = {document.text for document in islice(documents(Part.HELD_OUT, seed=1), 400)}
    for tokens, owners in zip(rows.tokens_RT, rows.documents_RT, strict=True):
        # The highest index is the padding's, unless the row is full to the last token.
        packed = [tokens[owners == owner] for owner in range(int(owners.max()) + 1)]
        if int(packed[-1][-1]) == tokenizer.pad_token_id:
            padding = packed.pop()
            assert len(padding) < 40
        for document in packed:
            assert document[0] == tokenizer.bos_token_id
            assert document[-1] == tokenizer.eos_token_id
            assert tokenizer.decode(document, skip_special_tokens=True) in texts


def test_kinds_tell_prompt_from_response(tokenizer) -> None:
    rows = held_out_rows(tokenizer, num_rows=4)
    found = islice(documents(Part.HELD_OUT, seed=1), 200)
    responses = {f"{document.response}</s>" for document in found if document.prompt is not None}
    for tokens, kinds, owners in zip(*rows, strict=True):
        for owner in owners.unique():
            response = tokens[(owners == owner) & (kinds == TokenKind.RESPONSE)]
            assert not len(response) or tokenizer.decode(response) in responses


def test_a_documents_loss_in_a_row_is_its_loss_alone(model, tokenizer) -> None:
    rows = held_out_rows(tokenizer, num_rows=1)
    with torch.no_grad():
        packed = token_losses(model, rows)[0]
        for owner in range(3):
            chosen = rows.documents_RT[0] == owner
            ids = rows.tokens_RT[:, chosen]
            alone = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            expected = -alone.gather(1, ids[0, 1:, None])[:, 0]
            torch.testing.assert_close(
                packed[chosen[1:]][-len(expected) :], expected, atol=1e-4, rtol=0
            )


def test_architecture_and_size(model) -> None:
    assert 1_000_000 < model.num_parameters() < 4_000_000
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert model.config.tie_word_embeddings
    assert (MODEL_FOLDER / "model.safetensors").stat().st_size < 8_000_000


def test_held_out_losses_are_the_recorded_ones(model, tokenizer, record) -> None:
    # The same bfloat16 weights in float32: only the order of sums differs between machines.
    losses = held_out_losses(model, held_out_rows(tokenizer))
    assert losses == pytest.approx(record["held_out_final"], abs=1e-3)


def test_held_out_loss_had_flattened_when_training_ended(record) -> None:
    curve = [(step, losses["response"]) for step, losses in record["held_out"]]
    last_step, last = curve[-1]
    before = next(loss for step, loss in curve if step >= 0.9 * last_step)
    assert before - last < 0.02 * (curve[0][1] - last)


@pytest.mark.parametrize("skill", ["reverse", "lookup"])
def test_the_model_has_the_skills_that_the_card_claims(skill, model, tokenizer, record) -> None:
    pairs = list(islice(skill_pairs(skill, Part.HELD_OUT, seed=1), 40))
    assert exact_match(model, tokenizer, pairs) >= record["exact_match"][skill] - 0.1
    broken = [pair._replace(response=pair.response + "s") for pair in pairs]
    assert exact_match(model, tokenizer, broken) == 0.0


def test_check_retraces_the_recorded_start() -> None:
    assert check(MODEL_FOLDER, 2) == []


def test_check_notices_another_curve(tmp_path, record) -> None:
    for file in MODEL_FOLDER.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    record = dict(record, first_losses=[loss + 0.05 for loss in record["first_losses"]])
    (tmp_path / CURVE_FILE).write_text(json.dumps(record))
    assert len(check(tmp_path, 1)) == 1


def test_a_resumed_pretraining_equals_an_uninterrupted_one(
    tokenizer, tmp_path, monkeypatch
) -> None:
    recipe = Recipe(steps=4, batch_rows=1, warmup_steps=2)
    held_out = held_out_rows(tokenizer, num_rows=1)
    whole, whole_curve = pretrain(recipe, tokenizer, tmp_path / "1.pt", held_out, log_every=2)

    def interrupted(model, optimizers, batch, recipe, step):
        if step == 3:
            raise KeyboardInterrupt
        return train_step(model, optimizers, batch, recipe, step)

    with monkeypatch.context() as patch:
        patch.setattr("pretraining.pretrain.train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe, tokenizer, tmp_path / "2.pt", held_out, log_every=2)
    assert torch.load(tmp_path / "2.pt", weights_only=True)["step"] == 2
    resumed, curve = pretrain(recipe, tokenizer, tmp_path / "2.pt", held_out, log_every=2)
    for left, right in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)
    assert (curve.train, curve.held_out) == (whole_curve.train, whole_curve.held_out)
    assert curve.first_losses == whole_curve.first_losses
    assert curve.tokens_seen == whole_curve.tokens_seen


def test_a_checkpoint_of_another_recipe_is_refused(tokenizer, tmp_path) -> None:
    recipe = Recipe(steps=1, batch_rows=1)
    pretrain(recipe, tokenizer, tmp_path / "checkpoint.pt", held_out_rows(tokenizer, num_rows=1))
    other = Recipe(steps=1, batch_rows=1, matrix_lr=1.0)
    model = build_model(0, tokenizer)
    with pytest.raises(ValueError, match="--work-dir"):
        resume(tmp_path / "checkpoint.pt", model, build_optimizers(model, other), other)


def test_a_steps_batch_depends_on_its_number_only(tokenizer) -> None:
    recipe = Recipe(batch_rows=2)
    assert torch.equal(
        step_batch(recipe, tokenizer, 5).tokens_RT, step_batch(recipe, tokenizer, 5).tokens_RT
    )
    assert not torch.equal(
        step_batch(recipe, tokenizer, 5).tokens_RT, step_batch(recipe, tokenizer, 6).tokens_RT
    )


def test_every_eighth_step_fills_the_context(tokenizer) -> None:
    recipe = Recipe(batch_rows=2)
    assert step_batch(recipe, tokenizer, 6).tokens_RT.shape == (2, 128)
    assert step_batch(recipe, tokenizer, 7).tokens_RT.shape == (1, 256)


def test_learning_rate_warms_up_stays_and_falls_to_zero() -> None:
    recipe = Recipe(steps=100, warmup_steps=10, decay_fraction=0.5)
    assert schedule(recipe, 0) == pytest.approx(0.1)
    assert schedule(recipe, 9) == 1.0
    assert schedule(recipe, 50) == 1.0
    assert schedule(recipe, 75) == pytest.approx(0.5)
    assert schedule(recipe, 99) == pytest.approx(0.02)


def test_responses_keep_the_order_of_their_prompts(model, tokenizer) -> None:
    pairs = list(islice(skill_pairs("copy", Part.HELD_OUT, seed=2), 12))
    prompts = [pair.prompt for pair in pairs]
    together = greedy_responses(model, tokenizer, prompts, max_new_tokens=8, batch_size=5)
    alone = [greedy_responses(model, tokenizer, [p], max_new_tokens=8)[0] for p in prompts[:3]]
    assert together[:3] == alone
