"""Decoding the language model: any steps equal the full forward, states have a constant size, beams are reordered."""

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor

from fairseq_transnorm.models.transnormer.lm import TransNormerLM
from tests.transnormer_reference import T1, T2, LMTask, build_lm, random_tokens

VARIANTS = pytest.mark.parametrize("variant", [T1, T2], ids=["t1", "t2"])
# relative to the largest logit: t1's norms enlarge the rounding of nearly cancelled sums
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def assert_equal(got: Tensor, expected: Tensor) -> None:
    atol = TOLERANCE[got.dtype] * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


def tensors(state: object) -> list[Tensor]:
    """All tensors of an incremental state."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, dict):
        state = list(state.values())
    return [t for part in state for t in tensors(part)] if isinstance(state, list | tuple) else []


def decode(model: TransNormerLM, tokens: Tensor, ends: list[int], state: dict | None = None) -> Tensor:
    """Pass the tokens up to each of ``ends`` in turn; return all outputs joined."""
    state = {} if state is None else state
    return torch.cat([model.decoder(tokens[:, :end], incremental_state=state)[0] for end in ends], dim=1)


@VARIANTS
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_three_hundred_steps_equal_the_full_forward(variant, dtype):
    model, tokens = build_lm(**variant, dtype=dtype), random_tokens(2, 310)
    with torch.no_grad():
        assert_equal(decode(model, tokens, [*range(1, 311)]), model(tokens)[0])


@VARIANTS
def test_every_prefix_of_a_full_forward_is_the_step(variant):
    model, tokens = build_lm(**variant), random_tokens(1, 40)
    with torch.no_grad():
        steps = decode(model, tokens, [*range(1, 41)])
        for n in range(1, 41):
            assert_equal(steps[:, n - 1], model(tokens[:, :n])[0][:, -1])


@VARIANTS
@pytest.mark.parametrize("prefill", [1, 2, 7, 8, 9, 16, 17, 63, 64, 70])
def test_a_prefill_of_any_length(variant, prefill):
    model, tokens = build_lm(**variant), random_tokens(2, 90)
    with torch.no_grad():
        got = decode(model, tokens, [prefill, *range(prefill + 1, 91)])
        assert_equal(got, model(tokens)[0])


@pytest.mark.parametrize(
    "options", [{"layer_order": "linear_first"}, {"layer_split": "1"}, {"layer_split": "0"}, {"block_size": 5}]
)
@pytest.mark.parametrize("abs_pos", ["learned", "none"])
def test_other_layouts(options, abs_pos):
    model, tokens = build_lm(**options, abs_pos=abs_pos), random_tokens(2, 40)
    with torch.no_grad():
        got = decode(model, tokens, [3, 4, 5, 6, 17, 18, 40])
        assert_equal(got, model(tokens)[0])


@VARIANTS
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_reordered_beams(variant, dtype):
    """Rows are copied, dropped and exchanged after pieces of every size, as beam search does."""
    model = build_lm(**variant, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    tokens, state, outs = random_tokens(2, 3), {}, []
    with torch.no_grad():
        for step, (rows, new) in enumerate(
            [(4, 1), (4, 1), (6, 4), (5, 1), (5, 2), (3, 9), (3, 1), (3, 1), (7, 16), (7, 1)]
        ):
            out, _ = model.decoder(tokens, incremental_state=state)
            outs = [*outs, out]
            order = torch.randint(0, len(tokens), (rows,), generator=generator)
            model.decoder.reorder_incremental_state_scripting(state, order)
            tokens, outs = tokens[order], [out[order] for out in outs]
            tokens = torch.cat([tokens, random_tokens(rows, new, seed=step)], dim=1)
        outs.append(model.decoder(tokens, incremental_state=state)[0])
        assert_equal(torch.cat(outs, dim=1), model(tokens)[0])
    assert tokens.shape == (7, 40)


@VARIANTS
def test_a_state_is_not_changed_by_a_copy_that_goes_on(variant):
    model, tokens = build_lm(**variant), random_tokens(1, 30)
    with torch.no_grad():
        state = {}
        decode(model, tokens, [11], state)
        copies = [state.copy() for _ in range(2)]
        first, second = (decode(model, tokens, [12, 19, 30], copied) for copied in copies)
    assert torch.equal(first, second)


@VARIANTS
def test_two_texts_can_be_decoded_side_by_side(variant):
    model, one, other = build_lm(**variant), random_tokens(1, 20), random_tokens(1, 20, seed=1)
    states = [{}, {}]
    with torch.no_grad():
        expected = [model(t)[0] for t in (one, other)]
        got = [[], []]
        for n in range(1, 21):
            for i, tokens in enumerate((one, other)):
                got[i].append(decode(model, tokens, [n], states[i]))
        for i in (0, 1):
            assert_equal(torch.cat(got[i], dim=1), expected[i])


@VARIANTS
def test_the_state_has_a_constant_size(variant):
    model, tokens = build_lm(**variant, tokens_per_sample=5000), random_tokens(1, 4100)
    state = {}
    with torch.no_grad():
        numbers = {}
        for end in [9, 10, 24, 25, 26, 2049, 2050, 4097, 4098, 4099]:
            decode(model, tokens, [end], state)
            numbers[end] = sum(t.numel() for t in tensors(state))
    # 2 linear layers of d d_h numbers, 2 local ones of keys and values of the open block of 8
    assert numbers == {end: 2 * 16 * 8 + 2 * 2 * 16 * (end % 8) for end in numbers}
    assert all(t.dtype == torch.float64 for t in tensors(state) if t.is_floating_point())


@VARIANTS
def test_the_state_keeps_no_memory_of_a_long_prefill(variant):
    sizes = []
    for prefill in (11, 1003):
        model, state = build_lm(**variant, tokens_per_sample=2000), {}
        with torch.no_grad():
            decode(model, random_tokens(1, prefill), [prefill], state)
        sizes.append(sum(t.untyped_storage().nbytes() for t in tensors(state)))
    assert sizes[0] == sizes[1]


def test_half_precision_remembers_in_float32():
    model, state = build_lm().half(), {}
    with torch.no_grad():
        decode(model, random_tokens(1, 12), [10, 11, 12], state)
    assert {t.dtype for t in tensors(state) if t.is_floating_point()} == {torch.float32}


def test_tokens_must_be_new_and_unpadded():
    model, tokens, state = build_lm(), random_tokens(2, 9), {}
    decode(model, tokens, [5], state)
    with pytest.raises(ValueError, match="transnormer_lm: 5 tokens given, all of the 5 already read"):
        decode(model, tokens, [5], state)
    tokens[1, 7:] = 1
    with pytest.raises(ValueError, match=r"transnormer_lm: rows read together .* equal length, no padding"):
        decode(model, tokens, [9], state)


def test_a_state_that_was_never_used_can_be_reordered():
    build_lm().decoder.reorder_incremental_state_scripting({}, torch.tensor([1, 0]))


def score(model: TransNormerLM, row: Tensor) -> Tensor:
    """Log-probability of each token of ``row`` after the first, from the full forward."""
    logits = model(row[None, :-1])[0][0].log_softmax(-1)
    return logits.gather(1, row[1:, None])[:, 0]


@VARIANTS
@pytest.mark.parametrize("beam", [1, 4])
def test_fairseqs_beam_search_scores_what_the_full_forward_scores(variant, beam):
    task = LMTask()
    model = build_lm(**variant, dtype=torch.float32)
    generator = SequenceGenerator(
        [model], task.target_dictionary, beam_size=beam, max_len_a=0, max_len_b=40, min_len=38
    )
    prefix = random_tokens(3, 5)
    start = torch.full((3, 1), task.target_dictionary.eos())
    sample = {"net_input": {"src_tokens": prefix, "src_lengths": torch.full((3,), 5)}}
    for row, found in enumerate(generator.generate([model], sample, prefix_tokens=prefix)):
        assert len(found) == beam
        for hypothesis in found:
            tokens = torch.cat([start[row], hypothesis["tokens"]])
            assert torch.equal(tokens[1:6], prefix[row])
            with torch.no_grad():
                expected = score(model, tokens)
            torch.testing.assert_close(hypothesis["positional_scores"], expected, rtol=1e-4, atol=1e-4)
            if beam == 1:  # greedy: the likeliest word at every step, the end only when it must come
                with torch.no_grad():
                    logits = model(tokens[None, :-1])[0][0, 5:-1]
                logits[:, [1, 2]] = -torch.inf
                assert torch.equal(logits.argmax(-1), tokens[6:-1])
