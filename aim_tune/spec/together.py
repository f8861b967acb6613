"""What is fine key by key but not together: amounts, looks, later and measured arms, confounds.

The confound gate: arms may differ only in the add-on. Whatever else differs (the recipe, by `overrides`;
a row of the add-on's table that says so) has to be declared, and the verdict repeats it.
Reads checked values and says faults at their lines; opens no file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

from aim_tune.spec.catalog import AddonEntry
from aim_tune.spec.explore_rules import explore_faults
from aim_tune.spec.space import Choice, Domain, Fixed
from aim_tune.spec.study import BASELINE, MEASURED, RECIPE_FIELDS, Study
from aim_tune.spec.values import canonical
from aim_tune.spec.yaml_io import BAD, Located

Say = Callable[[str, str, str], None]
"""Takes a fault: where, dotted key, text."""


@dataclass(frozen=True, kw_only=True)
class Together:
    """A study without faults in its single keys, and where they stand."""

    study: Study
    entry: AddonEntry | None
    tree: Located
    fault: Say

    def check(self) -> dict[str, str]:
        """Say every fault that can be judged; the declared confounds, each with how the arms differ."""
        study = self.study
        if not _spoiled((study.arms, study.protocol)):
            self._amounts()
            self._looks()
            self._later_arms()
            for key, text in explore_faults(study):
                self._say(key, text)
        if not _spoiled((study.arms, study.addon, study.shared, study.protocol)):
            self._measured_arms()
        if not _spoiled((study.recipe, study.shared, study.overrides, study.resources)):
            self._slices()
        if _spoiled((study.arms, study.recipe, study.overrides, study.declared_confounds)):
            return {}
        return self._confounds()

    def at(self, *keys: str) -> str:
        """Where a dotted key stands, else the nearest place around it."""
        found = self.tree
        for key in keys:
            if not isinstance(found.value, dict) or key not in found.value:
                break
            found = found.value[key]
        return found.where

    def _say(self, key: str, text: str) -> None:
        self.fault(self.at(*key.split(".")), key, text)

    def _amounts(self) -> None:
        p, study = self.study.protocol, self.study
        if p.blocks == 0 and p.explore.trials == 0:
            text = "nothing to run: blocks and explore.trials are both 0; raise one of them"
            self._say("protocol.blocks", text)
        if p.blocks > 0 and p.twins == 0:
            self._say("protocol.twins", "a block needs at least one twin to choose a point from")
        if study.compares and p.confirm == 0:
            text = (
                "a comparison needs at least one confirm pair per block, read on the sealed test "
                "examples; for plain search set protocol.blocks to 0"
            )
            self._say("protocol.confirm", text)

    def _looks(self) -> None:
        p, key = self.study.protocol, "protocol.looks"
        if not p.looks:
            return
        if any(a >= b for a, b in zip(p.looks, p.looks[1:], strict=False)):
            self._say(key, f"expected growing numbers of blocks, found {list(p.looks)}")
        if p.looks[-1] != p.blocks:
            text = (
                f"a study ends with its last look: it is at {p.looks[-1]} blocks, but blocks is "
                f"{p.blocks}; leave blocks out, or end with {p.blocks}"
            )
            self._say(key, text)
        if not self.study.compares:
            self._say(key, "there is nothing to look at: the study compares no arms; remove it")

    def _later_arms(self) -> None:
        if self.study.protocol.attribution != "after_better":
            return
        if not self.study.compares or not self.study.later_arms:
            text = (
                "after_better trains the arms beside baseline and the add-on's own later, but there "
                "are none; add one, such as frozen, or write always"
            )
            self._say("protocol.attribution", text)

    def _measured_arms(self) -> None:
        """They cost what one design costs at one batch size: both must be known before the blocks."""
        study = self.study
        arms = [a for a in study.arms if a in MEASURED]
        if not arms or study.addon is None:
            return
        names = " and ".join(arms)
        searched = [k for k, d in study.addon.space.items() if not isinstance(d, Fixed)]
        if searched and not study.protocol.explore.trials:
            self._say(
                "arms",
                f"{names} must cost what one design of the add-on costs, but {', '.join(searched)} "
                "would be searched anew in every block; fix them, or choose the design first with "
                "protocol.explore.trials",
            )
        if "batch_size" in study.shared and not isinstance(study.shared["batch_size"], Fixed):
            text = f"{names} cannot be matched while batch_size, which decides the step time, is searched"
            self._say("arms", text + "; fix it")
        needed = [BASELINE, self.entry.primary if self.entry else "aim"]
        missing = [a for a in needed if a not in study.arms]
        if missing:
            self._say("arms", f"{names} needs the arms {' and '.join(needed)}; add {missing[0]}")

    def _slices(self) -> None:
        """Several GPUs take equal slices of each batch."""
        study, gpus = self.study, int(self.study.resources.gpu)
        if gpus < 2:
            return
        asked: dict[str, Domain] = {"recipe.batch_size": Fixed(study.recipe.batch_size)}
        asked |= {f"overrides.{arm}.batch_size": Fixed(own["batch_size"])
                  for arm, own in study.overrides.items() if "batch_size" in own}  # fmt: skip
        if "batch_size" in study.shared:
            asked |= {"shared.batch_size": study.shared["batch_size"]}
            asked.pop("recipe.batch_size")
        for key, domain in asked.items():
            if isinstance(domain, (Fixed, Choice)):
                sizes = [domain.value] if isinstance(domain, Fixed) else list(domain.options)
                odd = [size for size in sizes if size % gpus]
                found = f"found {', '.join(map(str, odd))}" if odd else ""
            else:
                found = "found a range"
            if found:
                text = (
                    f"each of the {gpus} GPUs of a training (resources.gpu) takes an equal slice of a batch: "
                    f"expected multiples of {gpus}, such as {gpus * max(1, 32 // gpus)}, {found}"
                )
                self._say(key, text)

    def _confounds(self) -> dict[str, str]:
        declared = dict(self.study.declared_confounds)
        found = {**self._recipe_differences(), **self._arms_that_differ()}
        missing = [name for name in found if name not in declared]
        line = f"declared_confounds: [{', '.join([*declared, *missing])}]"
        for name in missing:
            where, how = found[name]
            text = (
                f"the arms would differ not only in the add-on ({name}: {how}): a difference between them "
                f"could come from that. Remove it, or declare it: {line}"
            )
            self.fault(where, name, text)
        return {name: found[name][1] if name in found else text for name, text in declared.items()}

    def _recipe_differences(self) -> Mapping[str, tuple[str, str]]:
        """Recipe field -> (where, how), for fields that are not the same in all arms."""
        study, found = self.study, {}
        for field in RECIPE_FIELDS if study.overrides else ():
            values = {a: getattr(study.recipe_of(a, {}), field) for a in study.arms}
            if len({canonical(v) for v in values.values()}) == 1:
                continue
            arm = next((a for a, own in study.overrides.items() if field in own), "")
            how = ", ".join(f"{a} {_said(v)}" for a, v in values.items())
            found[field] = (self.at("overrides", arm, field), how)
        return found

    def _arms_that_differ(self) -> Mapping[str, tuple[str, str]]:
        """Arm -> (where, how), for arms whose row of the table says that they differ in more."""
        known = self.entry.confounds if self.entry and len(self.study.arms) > 1 else {}
        return {a: (self._arm(a), known[a]) for a in self.study.arms if a in known}

    def _arm(self, name: str) -> str:
        listed = self.tree.value.get("arms")
        places = listed.value if listed is not None and isinstance(listed.value, list) else []
        return next((item.where for item in places if item.value == name), self.at("arms"))


def _spoiled(value: Any) -> bool:
    """Whether something in it has its fault already."""
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    return value is BAD or (isinstance(value, (list, tuple)) and any(map(_spoiled, value)))


def _said(value: Any) -> str:
    """A value as one would write it; None is "not given"."""
    if value is None:
        return "not given"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(str, value))}]"
    return str(value)
