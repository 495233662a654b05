"""What a person types is what the config holds, for every command alike."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from omegaconf import MISSING

from attnorm import config as schema
from attnorm.config.compose import quoted
from attnorm.errors import UserError

ODD_PATHS = [
    "/data/odd däta",
    "/data/it's here",
    "/data/a,b=c (1) [2] {3}",
    "C:\\data\\",
    "/data/\\'",
    "relative/ö",
    "007",
    "1e3",
    "yes",
]


@pytest.mark.parametrize("path", ODD_PATHS)
def test_a_path_is_taken_as_it_is_typed(path: str) -> None:
    config, run_dir = schema.compose_run([f"data.root={path}", f"hydra.run.dir={path}"])
    assert config.data.root == path
    assert run_dir == Path(path)
    stored = schema.to_container(config)
    assert schema.compose([f"data.root={path}"], stored=stored).data.root == path


def test_a_group_has_no_null() -> None:
    with pytest.raises(UserError, match="detector=null: choose one of cascade_mask_rcnn, htc,"):
        schema.compose(["detector=null"])


def test_a_name_that_looks_like_a_number_stays_a_name() -> None:
    assert schema.compose(["name=0012"]).name == "0012"
    assert schema.compose_run(["name=x/y z"])[1] == Path("runs/x/y z")


def test_quotes_and_interpolations_of_hydra_still_work() -> None:
    config, run_dir = schema.compose_run(
        ["data.root='/a b'", "hydra.run.dir=out/${name}_x", "name=n", "arch.pretrained=true"]
    )
    assert config.data.root == "/a b"
    assert run_dir == Path("out/n_x")
    assert config.arch.pretrained is True
    assert schema.compose(["data.root=null"]).data.root is None


def test_a_value_that_cannot_be_read_is_told_with_the_line_that_works() -> None:
    wrong = r"arch.attentive_sites=layer(\d)\.\d+\.bn1"
    with pytest.raises(UserError) as refused:
        schema.compose([wrong])
    line = str(refused.value).splitlines()[1].removeprefix("Write ")
    (typed,) = shlex.split(line)
    assert schema.compose([typed]).arch.attentive_sites == r"layer(\d)\.\d+\.bn1"


def test_quoting_survives_any_mix_of_quotes_and_backslashes() -> None:
    for text in ("a'b", "a\\'b", "a\\\\'b", "tail\\", "tail\\\\", "\\", "'"):
        assert schema.compose([f"data.root={quoted(text)}"]).data.root == text


@dataclass
class _Own:
    checkpoint: str = MISSING
    top: int = 5
    sites: list[str] = field(default_factory=list)
    output: str | None = None


def test_a_commands_own_arguments_are_sorted_from_overrides_and_files(tmp_path: Path) -> None:
    image = tmp_path / "a=b.jpg"
    image.touch()
    given = ["checkpoint=runs/ö ä/best.pt", "top=3", "sites=[a,b]", "data.root=/x y", str(image)]
    own, overrides, files = schema.read_arguments(given, _Own, ("data",), "look.py", True)
    assert own == _Own("runs/ö ä/best.pt", 3, ["a", "b"])
    assert overrides == ["data.root=/x y"]
    assert files == [str(image)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["top=3"], "checkpoint is not set"),
        (["checkpoint=x", "top=many"], "top: .*many"),
        (["checkpoint=x", "norm=bn"], "norm is not a key of look.py: use checkpoint, top"),
        (["checkpoint=x", "stray"], "'stray' is not key=value: see look.py --help"),
        (["checkpoint=x", "sites=[a"], r"sites=\[a cannot be read"),
    ],
)
def test_impossible_arguments_are_refused_by_name(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        schema.read_arguments(arguments, _Own, ("data",), "look.py")


def test_a_folder_of_ones_own_yaml_files_can_be_searched(tmp_path: Path) -> None:
    (tmp_path / "mine" / "norm").mkdir(parents=True)
    (tmp_path / "mine" / "norm" / "small_an.yaml").write_text(
        "defaults: [{schema@_here_: attentive_norm}]\nname: small_an\nplacement: attentive\n"
        "layer: attnorm.norms.attentive.AttentiveNorm2d\nnum_components: 2\n"
    )
    config = schema.compose([f"hydra.searchpath=[file://{tmp_path / 'mine'}]", "norm=small_an"])
    assert config.norm.layer_options()["num_components"] == 2
