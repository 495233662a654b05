"""The operator behind AttentiveNorm2d: its arithmetic, gradients, memory and registration."""

from __future__ import annotations

import multiprocessing
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from attnorm.norms import AttentiveNorm2d, fused, native
from attnorm.norms.fused import attentive_batch_norm, passes_for
from attnorm.norms.passes import Activation, PlainPasses
from tests.norms.attentive_oracle import Figure3, mixture_sigmoid, normalized, recalibrated
from tests.norms.attentive_oracle import relative_error as error

# N, C, H, W: MobileNet's 24 channels, a tail after blocks of 64 and 16, one pixel, one instance.
SHAPES = [(4, 24, 5, 7), (3, 83, 9, 9), (17, 40, 1, 1), (1, 16, 12, 70), (2, 3, 33, 65)]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture(params=["native", "plain"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test on the compiled passes and again on plain torch operations."""
    if request.param == "native" and native.load() is None:
        pytest.skip("no C compiler here")
    if request.param == "plain":
        monkeypatch.setattr(fused, "KERNELS", "plain")
    return str(request.param)


def arguments(
    shape: tuple[int, ...], dtype: torch.dtype, k: int = 5, separate: bool = False, mean: float = 1
) -> list[Tensor]:
    """x and parameters. A large mean comes with small taps, or every sigmoid is exactly 0 or 1."""
    torch.manual_seed(0)
    c, rows = shape[1], 2 * k if separate else k
    values = [
        torch.randn(shape) * 2 + mean,
        1 + 0.1 * torch.randn(k, c),
        0.1 * torch.randn(k, c),
        torch.randn(rows, c) / (c * max(mean, 1)),
        torch.randn(rows),
    ]
    return [value.to(dtype).requires_grad_() for value in values]


def by_the_equations(
    variables: list[Tensor], statistics: tuple[Tensor, Tensor] | None, activation: Activation
) -> Tensor:
    x, weight, bias, head_weight, head_bias = variables
    if statistics is None:
        xhat = normalized(x, (0, 2, 3), 1e-5)
    else:
        mean, var = (value.double()[:, None, None] for value in statistics)
        xhat = (x - mean) / (var + 1e-5).sqrt()
    mixture = mixture_sigmoid(x, {"attention.weight": head_weight, "attention.bias": head_bias})
    y = recalibrated(xhat, mixture, weight, bias)
    if activation == Activation.NONE:
        return y
    return y.clamp(0, 6 if activation == Activation.RELU6 else None)


def compare(
    variables: list[Tensor],
    tolerance: float,
    statistics: tuple[Tensor, Tensor] | None = None,
    activation: Activation = Activation.NONE,
    kink: float = 0,
    head_tolerance: float | None = None,
) -> None:
    """Values and all gradients against the equations in float64."""
    exact = [v.detach().double().requires_grad_() for v in variables]
    expected = by_the_equations(exact, statistics, activation)
    dy = torch.randn(expected.shape).to(variables[0].dtype)
    # At a result within rounding of an activation's kink either side is right.
    if activation != Activation.NONE:
        dy = torch.where(expected.detach().abs() < kink, 0, dy)
        dy = torch.where((expected.detach() - 6).abs() < kink, 0, dy)
    theirs = [expected, *torch.autograd.grad(expected, exact, dy.double())]
    y, *_ = attentive_batch_norm(*variables, *(statistics or (None, None)), activation=activation)
    ours = [y, *torch.autograd.grad(y, variables, dy)]
    names = ["y", "dx", "dweight", "dbias", "dhead_weight", "dhead_bias"]
    errors = {n: error(a, b) for n, a, b in zip(names, ours, theirs, strict=True)}
    allowed = dict.fromkeys(names, tolerance)
    allowed["dhead_weight"] = allowed["dhead_bias"] = head_tolerance or tolerance
    assert all(errors[name] <= allowed[name] for name in names), errors


@pytest.mark.parametrize("separate", [False, True], ids=["shared", "separate"])
@pytest.mark.parametrize("activation", Activation, ids=lambda a: a.name)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64_follows_the_equations(
    shape: tuple[int, ...], layout: str, activation: Activation, separate: bool
) -> None:
    variables = arguments(shape, torch.float64, separate=separate)
    variables[0] = variables[0].detach().to(memory_format=LAYOUTS[layout]).requires_grad_()
    compare(variables, 1e-10, activation=activation)
    compare(
        variables, 1e-10, (torch.randn(shape[1]), torch.rand(shape[1]) + 0.5), activation=activation
    )


@pytest.mark.parametrize("separate", [False, True], ids=["shared", "separate"])
@pytest.mark.parametrize("mean", [1.0, 100.0], ids=["mean1", "mean100"])
@pytest.mark.parametrize("activation", Activation, ids=lambda a: a.name)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("kernels")
def test_float32_is_within_1e_5(
    shape: tuple[int, ...], layout: str, activation: Activation, mean: float, separate: bool
) -> None:
    variables = arguments(shape, torch.float32, separate=separate, mean=mean)
    variables[0] = variables[0].detach().to(memory_format=LAYOUTS[layout]).requires_grad_()
    # The head's gradients are sums that cancel, which shows the rounding of a mean of 100 itself.
    head = 1e-5 if mean == 1 else 1e-4
    compare(variables, 1e-5, activation=activation, kink=1e-4, head_tolerance=head)
    running = (torch.full((shape[1],), mean), torch.rand(shape[1]) + 0.5)
    compare(variables, 1e-5, running, activation=activation, kink=1e-4, head_tolerance=head)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_precision_is_within_1e_2(layout: str, dtype: torch.dtype) -> None:
    variables = arguments((4, 24, 5, 7), torch.float32, mean=30.0)
    variables[0] = variables[0].detach().to(dtype).to(memory_format=LAYOUTS[layout])
    variables[0].requires_grad_()
    compare(variables, 1e-2)
    y, *_ = attentive_batch_norm(*variables)
    assert y.dtype == dtype
    (dx,) = torch.autograd.grad(y.sum(), variables[:1])
    assert dx.dtype == dtype


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("kernels")
def test_output_and_gradient_have_the_strides_of_the_input(layout: str) -> None:
    variables = arguments((4, 24, 5, 7), torch.float32)
    x = variables[0].detach().to(memory_format=LAYOUTS[layout]).requires_grad_()
    y, *_ = attentive_batch_norm(x, *variables[1:])
    # A gradient of the other layout must not spoil it.
    other = LAYOUTS["contiguous" if layout == "channels_last" else "channels_last"]
    (dx,) = torch.autograd.grad(y, x, torch.randn_like(y).contiguous(memory_format=other))
    assert y.stride() == dx.stride() == x.stride()


@pytest.mark.usefixtures("kernels")
def test_inputs_with_gaps_and_expanded_gradients_are_read_correctly() -> None:
    variables = arguments((4, 24, 10, 7), torch.float32)
    x = variables[0].detach()[:, :, ::2, :].requires_grad_()
    dense = x.detach().contiguous().requires_grad_()
    y, *_ = attentive_batch_norm(x, *variables[1:])
    expected, *_ = attentive_batch_norm(dense, *variables[1:])
    torch.testing.assert_close(y, expected)
    y.mean().backward()
    expected.mean().backward()
    torch.testing.assert_close(x.grad, dense.grad)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("activation", Activation, ids=lambda a: a.name)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_passes_in_c_compute_in_float32_and_round_once(
    shape: tuple[int, ...], layout: str, activation: Activation
) -> None:
    compiled = native.load(torch.bfloat16)
    if compiled is None:
        pytest.skip("no C compiler here")
    wide, *parameters = (value.detach() for value in arguments(shape, torch.float32))
    dy = torch.randn(shape)
    x, dy = (value.bfloat16().to(memory_format=LAYOUTS[layout]) for value in (wide, dy))
    results = []
    # The same numbers, once as bfloat16 and once as float32.
    for passes, a, b in ((compiled, x, dy), (PlainPasses(), x.float(), dy.float())):
        mixture, affine, centre, unbiased, rstd = passes.prepare(a, *parameters, 1e-5)
        y = passes.apply(a, affine, centre, rstd, activation)
        found = passes.collect(b, a, mixture, *parameters[:3], centre, rstd, activation)
        dx = passes.gradient(b, a, affine, centre, rstd, found.mean_grad, found.folded, activation)
        results.append(([mixture, affine, centre, unbiased, rstd, *found[:5]], [y, dx]))
    for ours, exact in zip(results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(ours, exact, rtol=2e-5, atol=2e-4)
    for ours, exact in zip(results[0][1], results[1][1], strict=True):
        assert ours.dtype == torch.bfloat16
        assert ours.stride() == x.stride()
        # One rounding to 8 bits: half a unit in the last place.
        torch.testing.assert_close(ours.float(), exact, rtol=2.0**-8, atol=1e-4)


def test_what_is_not_a_number_stays_none_in_bfloat16() -> None:
    compiled = native.load(torch.bfloat16)
    if compiled is None:
        pytest.skip("no C compiler here")
    x = torch.tensor([[[[float("nan"), 1.0], [float("inf"), 3e38]]]]).bfloat16()
    one, none = torch.ones(1), torch.zeros(1)
    y = compiled.apply(x, torch.tensor([[[1.0]], [[0.0]]]), none, one, Activation.NONE)
    torch.testing.assert_close(y, x, rtol=0, atol=0, equal_nan=True)


def test_an_outlier_first_pixel_does_not_spoil_the_moments() -> None:
    variables = arguments((2, 16, 16, 16), torch.float32)
    with torch.no_grad():
        variables[0][0, :, 0, 0] = 1e4
    for layout in LAYOUTS.values():
        variables[0] = variables[0].detach().to(memory_format=layout).requires_grad_()
        compare(variables, 1e-5)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    if native.load() is None:
        pytest.skip("no C compiler here")
    variables = arguments((1, 200, 9, 9), torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for layout in LAYOUTS.values():
                x = variables[0].detach().to(memory_format=layout).requires_grad_()
                y, *_ = attentive_batch_norm(x, *variables[1:])
                results.append([y, *torch.autograd.grad(y.square().sum(), [x, *variables[1:]])])
    finally:
        torch.set_num_threads(before)
    for one, two in zip(results[0] + results[1], results[2] + results[3], strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


@pytest.mark.parametrize("activation", Activation, ids=lambda a: a.name)
@pytest.mark.parametrize("running", [False, True])
def test_gradcheck_to_second_order(running: bool, activation: Activation) -> None:
    variables = arguments((3, 4, 2, 3), torch.float64, k=2)
    statistics = (torch.zeros(4), torch.ones(4)) if running else (None, None)

    def function(*inputs: Tensor) -> Tensor:
        return attentive_batch_norm(*inputs, *statistics, activation=activation)[0]

    assert torch.autograd.gradcheck(function, variables)
    assert torch.autograd.gradgradcheck(function, variables)


@pytest.mark.parametrize("needs", range(5))
def test_each_gradient_can_be_had_alone(needs: int) -> None:
    variables = [v.detach() for v in arguments((3, 8, 4, 4), torch.float32)]
    every = arguments((3, 8, 4, 4), torch.float32)
    variables[needs].requires_grad_()
    attentive_batch_norm(*variables)[0].square().sum().backward()
    attentive_batch_norm(*every)[0].square().sum().backward()
    torch.testing.assert_close(variables[needs].grad, every[needs].grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_operator_is_registered_properly(layout: str, running: bool, dtype: torch.dtype) -> None:
    variables: list[Any] = arguments((3, 8, 4, 4), torch.float32)
    variables[0] = variables[0].detach().to(dtype).to(memory_format=LAYOUTS[layout])
    variables[0].requires_grad_()
    statistics = [torch.zeros(8), torch.ones(8)] if running else [None, None]
    operator = torch.ops.attnorm.attentive_norm.default
    torch.library.opcheck(operator, (*variables, *statistics, 1e-5, True, ""))


def test_compiler_and_exporter_see_one_operator() -> None:
    module = AttentiveNorm2d(8, 3).eval()
    program = torch.export.export(module, (torch.randn(2, 8, 4, 4),))
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum("attnorm.attentive_norm" in call for call in calls) == 1
    assert all("attentive_norm" in call or "getitem" in call for call in calls)


def test_shapes_that_disagree_are_refused_before_memory_is_read() -> None:
    x, weight, bias, head_weight, head_bias = arguments((2, 8, 4, 4), torch.float32)
    with pytest.raises(ValueError, match="disagree"):
        attentive_batch_norm(x, weight, bias[:, :4], head_weight, head_bias)
    with pytest.raises(ValueError, match="the head has 4 outputs for 5 components"):
        attentive_batch_norm(x, weight, bias, head_weight[:4], head_bias[:4])


@pytest.mark.parametrize("size", [56, 7])
def test_no_more_is_kept_for_backward_than_by_batch_norm(size: int) -> None:
    x = torch.randn(8, 512, size, size, requires_grad=True)

    def kept(module: nn.Module) -> int:
        parameters = {p.data_ptr() for p in module.parameters()}
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in parameters:
                seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module(x)
        return sum(seen.values())

    assert kept(AttentiveNorm2d(512, 20)) <= 1.02 * kept(nn.BatchNorm2d(512))
    assert kept(AttentiveNorm2d(512, 20, activation="relu")) <= 1.02 * kept(nn.BatchNorm2d(512))


class _Small(nn.Module):
    """Two convolutions, a normalizer after each, a classifier."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            norm(16, 5),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
            norm(32, 5),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


@pytest.mark.usefixtures("kernels")
def test_fifty_steps_of_training_follow_figure_3() -> None:
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    labels = torch.from_numpy(digits.target)
    torch.manual_seed(0)
    ours = _Small(AttentiveNorm2d)
    theirs = _Small(Figure3)
    renamed = {"weight": "gamma", "bias": "beta", "attention.weight": "fc.weight"}
    renamed["attention.bias"] = "fc.bias"
    state = {}
    for name, value in ours.state_dict().items():
        for norm in ("features.1.", "features.4."):
            if name.startswith(norm):
                inner = name.removeprefix(norm)
                name = norm + renamed.get(inner, inner)
        state[name] = value
    theirs.load_state_dict(state)
    curves = [_losses(model, images, labels) for model in (ours, theirs)]
    assert curves[1][-1] < 0.4 * curves[1][0]
    torch.testing.assert_close(curves[0], curves[1], rtol=1e-2, atol=1e-3)


def _losses(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(50):
        batch = torch.arange(step * 32, step * 32 + 32) % len(images)
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.usefixtures("forget_library")
@pytest.mark.parametrize("compiler", ["/nonexistent/cc", "/bin/false"])
def test_without_a_working_compiler_plain_operations_run_and_the_log_says_why(
    compiler: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("ATTNORM_CACHE", str(tmp_path))
    with caplog.at_level("INFO"):
        assert isinstance(passes_for(torch.randn(1, 1, 1, 1)), PlainPasses)
    assert "plain torch operations" in caplog.text
    assert compiler in caplog.text


@pytest.mark.usefixtures("forget_library")
def test_processes_that_start_together_compile_safely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if native.load() is None:
        pytest.skip("no C compiler here")
    native.load.cache_clear()
    monkeypatch.setenv("ATTNORM_CACHE", str(tmp_path))
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_load_or_fail) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    (library,) = tmp_path.iterdir()
    assert library.suffix == ".so"


def _load_or_fail() -> None:
    sys.exit(native.load() is None)


def test_triton_passes_enter_no_context_on_the_gpu_that_is_current(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class OnGpu:
        is_cuda, device = True, torch.device("cuda", 1)

    x: Any = OnGpu()
    passes: Any = SimpleNamespace(ignores_autocast=True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert isinstance(fused._surroundings(x, passes), nullcontext)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert isinstance(fused._surroundings(x, passes), torch.cuda.device)
    passes.ignores_autocast = False
    with torch.autocast("cpu", torch.bfloat16), fused._surroundings(torch.ones(1), passes):
        assert not torch.is_autocast_enabled("cpu")
