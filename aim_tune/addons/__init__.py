"""The table of add-ons: what a study may write under `addon:`, with its settings, arms and placebo.

`memory` is AiM (Memory for Artificial Intelligence); `published_memory` asks the published comparison again,
with what was confounded there as arms of its own. Builders are imported on first use: reading
this table needs no torch. A row `f` is called as f(backbone, arm="aim", image_shape=(3, 32, 32),
seed=0, **settings) and returns the network of that arm; it may change the backbone it was given.
The defaults are the preset `fast`.
"""

from __future__ import annotations

from aim_tune.spec.catalog import AddonEntry, Setting

ACTIVATIONS = ("sigmoid", "relu", "tanh", "gelu", "silu")
WRITES = ("none", "sample", "batch")
READERS = ("block", "all")
LAYOUTS = ("aligned", "raster")
POOLS = ("first", "last")
RULES = ("overwrite", "residual")
CARRIES = ("weights", "ema")
INITS = ("zero", "normal")

PUBLISHED = {
    "memory_shape": [7, 7, 1024],
    "update_width": 16,
    "kernel_size": 3,
    "activation": "sigmoid",
    "write": "sample",
    "readers": "block",
    "layout": "raster",
    "pool": "last",
    "rule": "overwrite",
    "carry": "weights",
    "init": "normal",
    "update_every": None,
}
"""The authors' design for ResNet50 at 224 pixels, in the words of the settings below."""

ADDONS: dict[str, AddonEntry] = {
    "memory": AddonEntry(
        build="aim_tune.addons.memory:build",
        doc="AiM: layers read a small memory; update blocks rewrite it from the features",
        settings={
            "memory_shape": Setting(
                kind="shape",
                default=[4, 4, 16],
                low=1,
                high=4096,
                length=3,
                doc="rows, columns, channels; a dense network reads all rows x columns x channels numbers",
            ),
            "update_width": Setting(
                kind="int", default=16, low=1, high=4096, doc="channels inside an update block"
            ),
            "kernel_size": Setting(
                kind="int",
                default=3,
                low=1,
                high=15,
                options=(1, 3, 5, 7, 9, 11, 13, 15),
                doc="of the three convolutions of an update block; odd",
            ),
            "activation": Setting(
                kind="str", default="sigmoid", options=ACTIVATIONS, doc="inside an update block"
            ),
            "write": Setting(
                kind="str",
                default="sample",
                options=WRITES,
                doc="none: never updated; sample: each image its own; batch: one for the batch",
            ),
            "readers": Setting(
                kind="str",
                default="block",
                options=READERS,
                or_names=True,
                doc="block: the first readable layer of each block; all: every readable layer; or names of "
                "layers in a list",
            ),
            "layout": Setting(
                kind="str",
                default="aligned",
                options=LAYOUTS,
                doc="aligned: a number stays where it belongs; raster: the published reshape",
            ),
            "pool": Setting(
                kind="str",
                default="first",
                options=POOLS,
                doc="first: updates run at the size of the memory; last: as published, at the features'",
            ),
            "rule": Setting(
                kind="str",
                default="overwrite",
                options=RULES,
                doc="overwrite: an update is the new memory; residual: it is added to the old one",
            ),
            "carry": Setting(
                kind="str",
                default="weights",
                options=CARRIES,
                doc="what persists between batches: weights; ema: also a mean of what was written last",
            ),
            "init": Setting(
                kind="str",
                default="zero",
                options=INITS,
                doc="of the reads: zero (starts as the baseline, exactly) or normal",
            ),
            "update_every": Setting(
                kind="int",
                default=None,
                low=1,
                high=1000,
                optional=True,
                doc="blocks between two updates; null: at the end of each resolution, or of each quarter",
            ),
        },
        arms={
            "aim": "memory is learned, and rewritten by update blocks within each forward pass",
            "frozen": "placebo: memory is random, never trained and never rewritten; reads are trained",
            "no_update": "memory is learned but never rewritten",
            "reset": "memory is rewritten, but starts each pass from the same random numbers",
            "shuffled": "aim, but an image goes on with the memory written for another one",
            "constant": "memory is learned, one value per channel: no position, never rewritten",
            "coordinates": "reads get x and y of each position instead of a memory",
            "noise": "reads get fresh random numbers for each image in training, zeros in evaluation",
            "wide": "no memory: the baseline with more hidden channels, as many parameters as aim",
            "flop_matched": "no memory: the baseline with more hidden channels, as many FLOPs as aim",
            "step_matched": "no memory: the baseline widened until a step takes as long as one of aim",
            "time_matched": "no memory: the baseline trained for as many seconds as aim",
        },
        primary="aim",
        placebo="frozen",
        published=PUBLISHED,
        matched={
            "wide": "parameters",
            "flop_matched": "flops",
            "step_matched": "step_ms",
            "time_matched": "seconds",
        },
        album="aim_tune.addons.memory:MemoryAlbum",
    ),
    "published_memory": AddonEntry(
        build="aim_tune.addons.memory:build_published",
        doc="the published AiM-ResNet50 on keras_resnet50 with stem_stride 1, flaws included",
        settings={
            "memory_shape": Setting(
                kind="shape",
                default=[7, 7, 1024],
                low=1,
                high=4096,
                length=3,
                doc="rows, columns, channels; as published: as many numbers as the image has pixels",
            )
        },
        arms={
            "aim": "as published: stem stride 1, most blocks read a second, static memory",
            "aim_stride2": "the published memory at stem stride 2, the resolution of its control",
            "plain_stride2": "the published control: no memory, stem stride 2",
            "described": "the design of the article's text: all blocks read what updates write",
            "frozen": "placebo: the published reads of a random memory that never changes",
        },
        primary="aim",
        placebo="frozen",
        published={"memory_shape": [7, 7, 1024]},
        confounds={
            "aim_stride2": "stem stride 2: a quarter of the positions and about a quarter of the FLOPs of "
            "baseline, which has stride 1",
            "plain_stride2": "no memory; stem stride 2: a quarter of the positions and of the FLOPs of "
            "baseline, which has stride 1 (the published control)",
        },
        album="aim_tune.addons.memory:MemoryAlbum",
    ),
}
"""Name in a study -> row."""
