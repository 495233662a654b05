"""AttentiveNorm2d as a module: what it computes, what it refuses, where it can be taken."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from attnorm.errors import UserError
from attnorm.norms import AttentiveNorm2d
from attnorm.norms import fused as fused_passes
from tests.norms.attentive_oracle import attentive, relative_error

BACKBONES = ("bn", "gn", "in", "ln", "sn")
HEADS = ("sigmoid", "conv_relu", "released")


def layer(channels: int = 12, k: int = 3, **options: Any) -> AttentiveNorm2d:
    torch.manual_seed(0)
    return AttentiveNorm2d(channels, k, **options)


@pytest.mark.parametrize("separate", [False, True], ids=["shared", "separate"])
@pytest.mark.parametrize("attention", HEADS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_values_and_gradients_follow_the_equations(
    backbone: str, attention: str, separate: bool
) -> None:
    module = layer(
        backbone=backbone, attention=attention, separate_attention=separate, num_groups=4
    ).double()
    x = torch.randn(4, 12, 5, 3, dtype=torch.float64) * 2 + 1
    x.requires_grad_()
    dy = torch.randn_like(x)
    state = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    expected = attentive(x, state, backbone, attention, groups=4)
    variables = [x, *module.parameters()]
    expected_gradients = torch.autograd.grad(expected, variables, dy)
    actual = module(x)
    actual_gradients = torch.autograd.grad(actual, variables, dy)
    assert relative_error(actual, expected) <= 1e-10
    for ours, theirs in zip(actual_gradients, expected_gradients, strict=True):
        assert relative_error(ours, theirs) <= 1e-10


@pytest.mark.parametrize("attention", HEADS)
def test_running_statistics_are_those_of_batch_norm(attention: str) -> None:
    module, norm = layer(attention=attention, momentum=0.3), nn.BatchNorm2d(12, momentum=0.3)
    for _ in range(3):
        x = torch.randn(4, 12, 5, 3) * 2 + 1
        module(x), norm(x)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(module, name), getattr(norm, name))


@pytest.mark.parametrize("attention", HEADS)
def test_evaluation_normalizes_by_running_statistics_even_a_single_image(attention: str) -> None:
    module = layer(attention=attention)
    x = torch.randn(6, 12, 5, 3) * 2 + 1
    module(x)
    module.eval()
    before = copy.deepcopy(module.state_dict())
    whole = module(x)
    alone = torch.cat([module(image[None]) for image in x])
    torch.testing.assert_close(whole, alone)
    assert whole.std() > 0.1
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_without_running_statistics_evaluation_uses_the_batch() -> None:
    module = layer(track_running_stats=False)
    x = torch.randn(6, 12, 5, 3) * 2 + 1
    assert "running_mean" not in module.state_dict()
    torch.testing.assert_close(module(x), module.eval()(x))


def test_state_has_the_documented_names() -> None:
    names = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert sorted(layer().state_dict()) == sorted([*names, "attention.weight", "attention.bias"])
    assert layer(k=3, separate_attention=True).attention.weight.shape == (6, 12)
    assert sorted(layer(backbone="gn").state_dict()) == sorted(
        ["weight", "bias", "attention.weight", "attention.bias"]
    )


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (24, 24), (144, 24), (36, 18), (7, 7)])
def test_group_count_is_the_largest_divisor_up_to_32(channels: int, groups: int) -> None:
    assert layer(channels, backbone="gn").num_groups == groups


def test_scales_and_offsets_start_as_the_paper_says() -> None:
    module = layer(512, 40)
    assert abs(float(module.weight.mean()) - 1) < 0.01
    assert abs(float(module.weight.std()) - 0.1) < 0.01
    assert abs(float(module.bias.mean())) < 0.01
    assert abs(float(module.bias.std()) - 0.1) < 0.01


@pytest.mark.parametrize("components", [2, 5, 40])
def test_a_mixtures_scale_can_start_at_one_whatever_its_components(components: int) -> None:
    torch.manual_seed(0)
    module = layer(256, components, initial_scale=1.0)
    x = torch.randn(16, 256, 6, 6)
    assert module(x).std().item() == pytest.approx(1, rel=0.1)
    assert layer(256, components)(x).std().item() == pytest.approx(components / 2, rel=0.1)


@pytest.mark.parametrize(
    "options", [{"backbone": b} for b in BACKBONES] + [{"attention": "released"}]
)
def test_copies_and_state_dicts_reproduce_the_layer(options: dict[str, Any]) -> None:
    module = layer(**options)
    module(torch.randn(4, 12, 5, 3))
    x = torch.randn(4, 12, 5, 3)
    fresh = layer(**options)
    fresh.load_state_dict(module.state_dict())
    twins = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), fresh]
    expected = module.eval()(x)
    for twin in twins:
        torch.testing.assert_close(twin.eval()(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
@pytest.mark.parametrize(
    "options", [{"backbone": b} for b in BACKBONES] + [{"attention": "conv_relu"}]
)
def test_activation_cuts_values(options: dict[str, Any], activation: Any) -> None:
    x = torch.randn(4, 12, 5, 3)
    options = {**options, "initial_scale": 4.0}
    plain = layer(**options)(x)
    assert plain.min() < 0
    assert plain.max() > 6
    fused = layer(**options, activation=activation)(x)
    expected = {None: plain, "relu": plain.relu(), "relu6": plain.clamp(0, 6)}[activation]
    torch.testing.assert_close(fused, expected)


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("shape", [(2, 16, 4, 4), (2, 3, 5, 5)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernels", ["", "plain"])
def test_no_activation_hides_what_is_not_a_number(
    activation: Any,
    shape: tuple[int, ...],
    memory_format: torch.memory_format,
    kernels: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fused_passes, "KERNELS", kernels)
    x = torch.randn(shape).to(memory_format=memory_format)
    x[0, 0, 0, 0] = float("nan")
    y = layer(shape[1], activation=activation)(x)
    assert y[:, 0].isnan().all(), "the statistics of the batch are none either"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "options", [{"backbone": b} for b in BACKBONES] + [{"attention": "released"}]
)
def test_output_and_gradient_keep_the_memory_format(
    options: dict[str, Any], layout: torch.memory_format
) -> None:
    x = torch.randn(4, 12, 5, 3).to(memory_format=layout).requires_grad_()
    y = layer(**options)(x)
    y.sum().backward()
    assert x.grad is not None
    assert y.is_contiguous(memory_format=layout)
    if options == {"backbone": "bn"}:
        assert x.grad.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "options", [{"backbone": b} for b in BACKBONES] + [{"attention": "released"}]
)
def test_autocast_keeps_statistics_and_attention_in_float32(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    module, x = layer(**options), (torch.randn(4, 12, 9, 9) + 8).to(dtype)
    exact = copy.deepcopy(module).double()(x.double())
    with torch.autocast("cpu", dtype=dtype):
        y = module(x)
    assert y.dtype == dtype
    # Nothing but the rounding of the result itself.
    assert relative_error(y, exact) < torch.finfo(dtype).eps


def test_half_precision_parameters_get_half_precision_gradients() -> None:
    module = layer().to(torch.bfloat16)
    module(torch.randn(4, 12, 5, 3, dtype=torch.bfloat16)).float().sum().backward()
    for parameter in module.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("attention", HEADS)
def test_one_value_per_channel_in_training_is_an_error_as_in_batch_norm(attention: str) -> None:
    x = torch.randn(1, 12, 1, 1)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        nn.BatchNorm2d(12)(x)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(attention=attention)(x)


def test_inputs_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 4D input"):
        layer()(torch.randn(4, 12))
    with pytest.raises(ValueError, match=r"expected an input of \(N, 12, H, W\)"):
        layer()(torch.randn(4, 11, 5, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "wn"}, "backbone=wn"),
        ({"attention": "softmax"}, "attention=softmax"),
        ({"activation": "gelu"}, "activation=gelu"),
        ({"k": 0}, "num_components=0"),
        ({"num_groups": 0}, "num_groups=0"),
        ({"initial_scale": 0.0}, "initial_scale=0.0"),
    ],
)
def test_impossible_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        layer(**options)


def test_conversion_to_sync_batch_norm_leaves_it_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(12), layer(attention="released"))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(converted[0], nn.SyncBatchNorm)
    assert converted[1] is model[1]
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in converted[1].modules())


def test_synchronizing_without_processes_says_what_is_missing() -> None:
    with pytest.raises(RuntimeError, match="init_process_group"):
        layer().synchronize()


EXPORTED = [{"backbone": b} for b in BACKBONES] + [
    {"attention": "conv_relu"},
    {"attention": "released"},
    {"separate_attention": True, "activation": "relu"},
]


@pytest.fixture(params=EXPORTED, ids=lambda options: "-".join(map(str, options.values())))
def trained(request: pytest.FixtureRequest) -> AttentiveNorm2d:
    module = layer(**request.param)
    for _ in range(3):
        module(torch.randn(8, 12, 6, 6) * 2 + 1)
    return module.eval()


def test_onnx_runtime_computes_the_same(trained: AttentiveNorm2d) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    program = torch.onnx.export(
        trained,
        (torch.randn(4, 12, 6, 6),),
        dynamo=True,
        verbose=False,
        dynamic_shapes={"x": {0: "batch"}},
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    x = torch.randn(3, 12, 6, 6) * 2 + 1
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(result), trained(x), rtol=1e-4, atol=1e-5)


def test_torch_export_and_torchscript_compute_the_same(trained: AttentiveNorm2d) -> None:
    x = torch.randn(4, 12, 6, 6) * 2 + 1
    dynamic = {"x": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(trained, (x,), dynamic_shapes=dynamic).module()
    scripted = torch.jit.trace(trained, (x,))
    other = torch.randn(7, 12, 6, 6)
    torch.testing.assert_close(exported(other), trained(other))
    torch.testing.assert_close(scripted(other), trained(other))


@pytest.mark.parametrize("options", EXPORTED, ids=lambda o: "-".join(map(str, o.values())))
def test_compiles_without_a_graph_break(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    module, eager = layer(**options), layer(**options)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 12, 6, 6)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = compiled(ours), eager(theirs)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)
    for (name, buffer), other in zip(module.named_buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(buffer, other, msg=name)
