"""One builder for every arm: the same backbone weights, known costs, impossible designs refused early."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from aim_tune.addons import ADDONS
from aim_tune.arms import Cost, arm_cost, build_arm, check_points
from aim_tune.data.info import DataInfo
from aim_tune.errors import AttachError
from aim_tune.models import BACKBONES
from aim_tune.spec.catalog import AddonEntry, Catalog, Entry
from aim_tune.spec.request import Point
from aim_tune.spec.space import Choice, Domain, Fixed, IntUniform
from aim_tune.spec.study import Addon, Component, Recipe, Resources, Study

torch.set_num_threads(1)

ARMS = ("baseline", "aim", "frozen", "no_update")
STREAMS = {"split": 1, "init": 2, "order": 3, "augment": 4, "dropout": 5, "addon": 6}
CATALOG = Catalog(backbones=BACKBONES, data={}, addons=ADDONS)
INFO = DataInfo(
    name="digits",
    classes=10,
    class_names=tuple("0123456789"),
    image_shape=(3, 16, 16),
    pool=1000,
    test=797,
    train=200,
    val=300,
    digest="0" * 16,
)
SETTINGS = ADDONS["memory"].defaults()


def study(space: Mapping[str, Domain] | None = None, **changes: Any) -> Study:
    whole = {**{k: Fixed(v) for k, v in SETTINGS.items()}, **(space or {})}
    given: dict[str, Any] = {
        "name": "s",
        "backbone": Component(name="resnet8", settings={"width": 8}),
        "data": Component(name="digits"),
        "arms": ARMS,
        "recipe": Recipe(steps=1),
        "shared": {},
        "addon": Addon(name="memory", space=whole),
    }
    return Study(**{**given, **changes})


def build(arm: str, **streams: int) -> nn.Module:
    return build_arm(
        study(),
        CATALOG,
        arm,
        Point(addon=SETTINGS),
        streams={**STREAMS, **streams},
        info=INFO,
    )


def test_every_arm_starts_from_the_same_backbone_weights() -> None:
    baseline = build("baseline").state_dict()
    for arm in ARMS[1:]:
        mine = build(arm).state_dict()
        assert all(torch.equal(mine[key], baseline[key]) for key in baseline), arm


def test_the_streams_decide_the_weights_and_nothing_else() -> None:
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    first = build("aim").state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(100)
    again = build("aim").state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(build("aim", init=7).state_dict()["fc.weight"], first["fc.weight"])
    other = build("aim", addon=7).state_dict()
    assert torch.equal(other["fc.weight"], first["fc.weight"])
    assert not torch.equal(other["memory_bank.memory"], first["memory_bank.memory"])


def test_the_cost_of_a_known_network() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 10))
    net[0].weight.requires_grad_(False)
    flops = 2 * (8 * 3 * 9 * 16) + 2 * (8 * 16 * 10)
    assert arm_cost(net, (3, 4, 4)) == Cost(parameters=1514, trainable=1514 - 216, flops=flops)


def test_counting_cost_leaves_the_network_as_it_was() -> None:
    model = build("aim").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    arm_cost(model, INFO.image_shape)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_the_placebo_costs_less_than_aim_and_more_than_the_baseline() -> None:
    cost = {arm: arm_cost(build(arm), INFO.image_shape) for arm in ARMS}
    assert cost["baseline"].parameters == 19_954
    assert cost["baseline"].flops < cost["frozen"].flops == cost["no_update"].flops
    assert cost["no_update"].flops < cost["aim"].flops
    assert cost["no_update"].trainable - cost["frozen"].trainable == 256


def test_an_impossible_design_cannot_be_built() -> None:
    point = Point(addon={**SETTINGS, "memory_shape": [4, 4, 64]})
    with pytest.raises(AttachError, match=r"Use at most \[4, 4, 32\]"):
        build_arm(study(), CATALOG, "aim", point, streams=STREAMS, info=INFO)


def test_possible_designs_have_no_faults() -> None:
    shapes = Choice(([4, 4, 16], [4, 4, 32], [2, 2, 64]))
    assert check_points(study({"memory_shape": shapes}), CATALOG, INFO) == []


def test_matched_arms_are_tried_before_training_too() -> None:
    arms = ("baseline", "aim", "wide", "flop_matched", "step_matched", "time_matched")
    assert check_points(study(arms=arms), CATALOG, INFO) == []


def test_impossible_shapes_among_the_options_are_found_before_training() -> None:
    shapes = Choice(([4, 4, 16], [4, 4, 64], [4, 4, 16]))
    (fault,) = check_points(study({"memory_shape": shapes}), CATALOG, INFO)
    assert (fault.where, fault.key) == ("study s", "addon")
    assert "memory of [4, 4, 64] does not fit" in fault.text
    assert "with {'memory_shape': [4, 4, 64]}" in fault.text


def test_a_shape_that_fits_one_choice_of_readers_only_is_found() -> None:
    space = {
        "memory_shape": Choice(([4, 4, 16], [4, 4, 32])),
        "readers": Choice(("block", "all")),
        "update_width": IntUniform(4, 8),
    }
    (fault,) = check_points(study(space), CATALOG, INFO)
    assert "'memory_shape': [4, 4, 32]" in fault.text
    assert "'readers': 'all'" in fault.text


def test_a_backbone_that_does_not_take_the_images_is_a_fault() -> None:
    alexnet = study(backbone=Component(name="alexnet"))
    (fault,) = check_points(alexnet, CATALOG, INFO)
    assert fault.key == "backbone"
    assert "alexnet: the network does not run on an input of shape [3, 3, 16, 16]" in fault.text


def test_a_search_without_an_addon_needs_no_designs() -> None:
    assert check_points(study(arms=("baseline",), addon=None), CATALOG, INFO) == []


def test_rows_of_a_plugin_are_built_even_where_meta_tensors_cannot_go() -> None:
    class Offset(nn.Module):
        def __init__(self, body: nn.Module, size: float) -> None:
            super().__init__()
            self.body, self.size = body, nn.Parameter(torch.tensor(size))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x) + self.size

    def net(*, classes: int, image_shape: tuple[int, int, int]) -> nn.Module:
        layer = nn.Linear(image_shape[0] * image_shape[1] * image_shape[2], classes)
        assert layer.weight.std().item() > 0  # a value: not on the meta device
        return nn.Sequential(nn.Flatten(), layer)

    def offset(
        backbone: nn.Module, *, arm: str, image_shape: Any, seed: int, size: float
    ) -> nn.Module:
        if size > 1:
            raise AttachError(f"size is {size}; at most 1")
        return Offset(backbone, size)

    own = AddonEntry(build=offset, doc="", arms={"on": ""}, primary="on")
    catalog = Catalog(backbones={"net": Entry(build=net, doc="")}, data={}, addons={"offset": own})
    mine = study(
        backbone=Component(name="net"),
        arms=("baseline", "on"),
        addon=Addon(name="offset", space={"size": Choice((0.5, 2.0))}),
    )
    (fault,) = check_points(mine, catalog, INFO)
    assert "size is 2.0; at most 1" in fault.text
    model = build_arm(mine, catalog, "on", Point(addon={"size": 0.5}), streams=STREAMS, info=INFO)
    assert model.size.item() == 0.5


@pytest.mark.parametrize(
    ("width", "recipe", "gpu", "refused"),
    [
        (4, {"channels_last": True}, 0, True),
        (8, {"channels_last": True}, 0, False),
        (4, {}, 0, False),
        (4, {"channels_last": True, "amp": True}, 0, False),
        (4, {"channels_last": True}, 1, False),
    ],
)
def test_a_layer_whose_gradients_would_damage_memory_is_refused(
    width: int, recipe: dict[str, Any], gpu: float, refused: bool
) -> None:
    mine = study(
        backbone=Component(name="resnet8", settings={"width": width}),
        recipe=Recipe(steps=1, **recipe),
        resources=Resources(gpu=gpu),
    )
    faults = check_points(mine, CATALOG, INFO)
    assert [f.key for f in faults] == ["recipe.channels_last"] * refused
    if refused:
        assert (
            "stage2.0.shortcut.0 of resnet8 is a 1x1 convolution with stride 2 and 4"
            in faults[0].text
        )
