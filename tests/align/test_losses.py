from __future__ import annotations

import math

import pytest
import torch

from align.training import losses
from pts.errors import ConfigError


def random_case(seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(6, 8, generator=generator)
    weight, bias = torch.randn(11, 8, generator=generator), torch.randn(11, generator=generator)
    chosen = torch.randint(0, 11, (6,), generator=generator)
    rejected = (chosen + torch.randint(1, 11, (6,), generator=generator)) % 11
    return hidden, weight, bias, chosen, rejected


@pytest.mark.parametrize("with_bias", [True, False])
def test_token_margin_is_the_difference_of_log_probabilities(with_bias: bool) -> None:
    hidden, weight, bias, chosen, rejected = random_case()
    logps = (hidden @ weight.T + (bias if with_bias else 0)).log_softmax(-1)
    rows = torch.arange(6)
    expected = logps[rows, chosen] - logps[rows, rejected]
    found = losses.token_margin(hidden, weight, bias if with_bias else None, chosen, rejected)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_token_margin_reaches_no_third_logit() -> None:
    hidden, weight, bias, chosen, rejected = random_case()
    weight.requires_grad_()
    losses.token_margin(hidden[:1], weight, bias, chosen[:1], rejected[:1]).sum().backward()
    touched = set(weight.grad.abs().sum(1).nonzero().flatten().tolist())  # type: ignore[union-attr]
    assert touched == {int(chosen[0]), int(rejected[0])}


def test_margin_of_bfloat16_inputs_is_not_rounded_to_bfloat16() -> None:
    hidden, weight, bias, chosen, rejected = (
        x.bfloat16() if x.is_floating_point() else x for x in random_case()
    )
    exact = losses.token_margin(hidden.float(), weight.float(), bias.float(), chosen, rejected)
    found = losses.token_margin(hidden, weight, bias, chosen, rejected)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, atol=1e-6, rtol=0)


def test_dpo_loss_is_equation_7() -> None:
    margin, reference = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([0.0, 0.5, 3.0])
    expected = [
        -math.log(1 / (1 + math.exp(-0.3 * (m - r))))
        for m, r in zip(margin.tolist(), reference.tolist(), strict=True)
    ]
    torch.testing.assert_close(losses.dpo_loss(margin, reference, 0.3), torch.tensor(expected))


def test_policy_that_is_its_reference_has_loss_ln_2() -> None:
    margin = torch.tensor([-3.0, 0.0, 8.0])
    assert losses.dpo_loss(margin, margin, 0.7).tolist() == pytest.approx([math.log(2)] * 3)


def test_dpo_gradient_is_beta_times_the_probability_of_error() -> None:
    margin = torch.tensor([1.5], requires_grad=True)
    losses.dpo_loss(margin, torch.tensor([0.5]), beta=0.4).sum().backward()
    assert margin.grad.item() == pytest.approx(-0.4 / (1 + math.exp(0.4)))  # type: ignore[union-attr]


def test_pair_probs_and_anchor_agree_with_a_softmax() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]]))
    chosen, rejected = torch.tensor([0, 2]), torch.tensor([1, 0])
    probs = losses.pair_probs(logits, chosen, rejected)
    torch.testing.assert_close(probs, torch.tensor([[0.5, 0.2, 0.3], [0.8, 0.1, 0.1]]))
    torch.testing.assert_close(
        losses.chosen_nll(logits, chosen), torch.tensor([-math.log(0.5), -math.log(0.8)])
    )


def test_weights_of_mean_one_leave_the_mean_alone_where_losses_are_equal() -> None:
    weights = losses.mean_one([1.0, 3.0, 0.0, 4.0])
    assert weights == pytest.approx([0.5, 1.5, 0.0, 2.0])
    loss = losses.weighted_mean(torch.full((4,), 0.7), torch.tensor(weights))
    assert loss.item() == pytest.approx(0.7)


def test_weights_without_a_sum_are_refused() -> None:
    with pytest.raises(ValueError, match="positive sum"):
        losses.mean_one([0.0, 0.0])


def test_ipo_is_smallest_where_the_margin_has_grown_by_half_over_beta() -> None:
    # beta 0.25: 1 / (2 * 0.25) = 2; margins that grew by 2, 0 and 5 are 0, 2 and 3 away from it.
    grown = torch.tensor([3.0, 1.0, 6.0])
    loss = losses.ipo_loss(grown, torch.ones(3), 0.25)
    assert loss.tolist() == pytest.approx([0.0, 4.0, 9.0])


def test_hinge_is_silent_beyond_one_over_beta() -> None:
    # beta 0.5: 1 - 0.5 * (margin - reference) for growths of 3, 2, 0 and -2, never below 0.
    grown = torch.tensor([4.0, 3.0, 1.0, -1.0])
    loss = losses.hinge_loss(grown, torch.ones(4), 0.5)
    assert loss.tolist() == pytest.approx([0.0, 0.0, 1.0, 2.0])


def test_losses_go_by_the_field_s_names() -> None:
    assert losses.loss_named("sigmoid") is losses.dpo_loss
    with pytest.raises(ConfigError, match="no loss 'sigmiod'; did you mean 'sigmoid'"):
        losses.loss_named("sigmiod")
