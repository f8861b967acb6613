"""What a request is: stage and block from its position, its round trip, what makes it the same."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from aim_tune.spec import Point, Request

ASKED = Request(
    position="block/3/twin/2",
    arms={"baseline": Point(shared={"lr": 0.1}), "aim": Point(shared={"lr": 0.1})},
    streams={"split": 1},
)


@pytest.mark.parametrize(
    ("position", "stage", "block"),
    [
        ("explore/12", "explore", None),
        ("match/0", "match", None),
        ("block/3/twin/2", "twin", 3),
        ("after/3/twin/2", "twin", 3),
        ("after/11/confirm/0", "confirm", 11),
    ],
)
def test_stage_and_block_follow_from_the_position(
    position: str, stage: str, block: int | None
) -> None:
    request = replace(ASKED, position=position)
    assert (request.stage, request.block) == (stage, block)


def test_steps_are_written_only_where_they_are_granted() -> None:
    granted = replace(ASKED, steps={"aim": 60})
    assert "steps" not in ASKED.to_dict()
    for request in (ASKED, granted):
        assert Request.from_dict(json.loads(json.dumps(request.to_dict()))) == request


def test_other_steps_are_another_training() -> None:
    hashes = {replace(ASKED, steps=s).content_hash for s in ({}, {"aim": 60}, {"aim": 61})}
    assert len(hashes) == 3
